//! `dugnad demo`: a small community of real agents on this machine, services on it that look after
//! themselves, a node taken away, and what becomes of the services. Uses what the command line
//! uses; nothing in the agents knows that it is a demo.

mod care;
mod community;
mod http;
pub(super) mod server;
mod sweep;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use dugnad_platform::probe::arch;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use serde_json::Value;
use smol::Async;

use super::read::{label, text};
use super::services::{Progress, deploy_file, elapsed};
use super::{Cx, Failure, Outcome, within};
use crate::control::{Client, exit};
use crate::service;
use community::Community;

/// see it work: a community of real agents on this machine, services, and a failure
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "demo", example = "{command_name} --once")]
pub(super) struct Demo {
    /// end by itself; exit 0 only if every step held
    #[argh(switch)]
    pub(super) once: bool,
    /// how many nodes, 5 to 20 (default: 5)
    #[argh(option, default = "5")]
    pub(super) nodes: usize,
}

const NODES: std::ops::RangeInclusive<usize> = 5..=20;
const REPLICAS: u64 = 3;
const SERVICES: [&str; 2] = ["site", "hello"];
/// How long one step may take before the demo says that it did not hold.
const STEP_LIMIT: Duration = Duration::from_secs(60);
const VISIT_LIMIT: Duration = Duration::from_secs(10);
const HEAL_LIMIT: Duration = Duration::from_secs(30);
/// A visitor's pace, and how often we look whether it healed.
const PACE: Duration = Duration::from_millis(50);

const PAGE: &str = "<!doctype html><meta charset=\"utf-8\"><title>dugnad</title>\n\
                    <h1>This page is kept up by its community</h1>\n";

/// Tells people what happens, with the time since the start.
struct Teller<'a> {
    to: RefCell<&'a mut dyn Write>,
    start: Instant,
    live: bool,
}

impl Teller<'_> {
    fn say(&self, line: &str) {
        let clear = if self.live { "\r\x1b[K" } else { "" };
        // Nobody reads it if stderr is closed; the exit code still tells.
        let _: io::Result<()> =
            writeln!(self.to.borrow_mut(), "{clear}{} {line}", elapsed(self.start.elapsed()));
    }

    /// A line that is written over by the next one; only on a terminal.
    fn now(&self, line: &str) {
        if self.live {
            let mut to = self.to.borrow_mut();
            let time = elapsed(self.start.elapsed());
            // As above.
            let _: io::Result<()> = write!(to, "\r\x1b[K{time} {line}").and_then(|()| to.flush());
        }
    }
}

pub(super) fn run(args: &Demo, cx: &mut Cx<'_>) -> Outcome {
    if !NODES.contains(&args.nodes) {
        let text = format!("--nodes: {} to {} can be shown", NODES.start(), NODES.end());
        return Err(Failure::usage(text));
    }
    // Before any other thread exists, so that all of them leave these signals to us.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    let watch = |errno: nix::Error| Failure::failed(format!("cannot watch signals: {errno}"));
    signals.thread_block().map_err(watch)?;
    let asked_to_end = Async::new(SignalFd::new(&signals).map_err(watch)?)
        .map_err(|error| Failure::failed(format!("cannot watch signals: {error}")))?;
    let mut community = Community::found(args.nodes, signals, cx.env)?;
    let teller = Teller { to: RefCell::new(&mut *cx.err), start: Instant::now(), live: cx.live };
    let outcome = smol::block_on(async {
        let interrupted = async {
            // An error here would be one of our own descriptor; ending is the safe answer.
            let _: io::Result<()> = asked_to_end.readable().await;
            Err(Failure::new(exit::INTERRUPTED, ""))
        };
        let steps = async {
            steps(&mut community, &teller, &mut *cx.out).await?;
            if !args.once {
                teller.say("it stays up like this; Ctrl-C ends it");
                let _: io::Result<()> = asked_to_end.readable().await;
            }
            Ok(exit::DONE)
        };
        let outcome = smol::future::or(steps, interrupted).await;
        teller.now("ending");
        remove_services(&community).await;
        outcome
    });
    let logs = community.last_words();
    let left = community.end();
    if !left.is_empty() {
        return Err(Failure { reasons: left, ..Failure::failed("the demo left something behind") });
    }
    teller.say("everything ended and removed");
    outcome.map_err(|mut failure| match failure.exit {
        exit::INTERRUPTED => failure,
        _ => {
            // The logs are gone with the folder.
            failure.reasons.extend(logs);
            Failure { text: format!("a step did not hold: {}", failure.text), ..failure }
        }
    })
}

async fn steps(
    community: &mut Community,
    teller: &Teller<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let count = community.nodes.len();
    for number in 0..count {
        teller.now(&format!("starting agent {} of {count}", number + 1));
        community.start(number).await?;
    }
    within(STEP_LIMIT, all_alive(community, teller)).await?;
    teller.say(&format!("{count} agents run, and each sees all of them alive"));
    let files = write_services(community)?;
    for file in files {
        within(STEP_LIMIT * 2, deploy(community, teller, file)).await?;
    }
    for node in &community.nodes {
        let address = node.gateway;
        writeln!(out, "http://{address}/site/  http://{address}/hello/  through {}", node.name)?;
    }
    let (_, visited) = places(community).await?;
    visit(community, teller, visited).await?;
    care::show(community, teller).await?;
    let (victim, visited) = places(community).await?;
    visit(community, teller, visited).await?;
    heal(community, teller, victim, visited).await?;
    visit(community, teller, visited).await
}

/// Waits until every node says of every node that it is alive.
async fn all_alive(community: &Community, teller: &Teller<'_>) -> Result<(), Failure> {
    for node in &community.nodes {
        loop {
            let nodes = node.client.get("/v1/nodes").await?.value;
            let alive = nodes.as_array().into_iter().flatten().filter(|n| n["state"] == "alive");
            let alive = alive.count();
            if alive >= community.nodes.len() {
                break;
            }
            teller.now(&format!("{} sees {alive} of {}", node.name, community.nodes.len()));
            smol::Timer::after(PACE).await;
        }
    }
    Ok(())
}

/// The two service files and what they name, in the demo's folder.
fn write_services(community: &Community) -> Result<[PathBuf; 2], Failure> {
    let dir = community.dir.join("services");
    let make = || -> io::Result<[PathBuf; 2]> {
        fs::create_dir_all(dir.join("pages"))?;
        fs::write(dir.join("pages/index.html"), PAGE)?;
        let site = format!(
            "name = \"site\"\nkind = \"static\"\nreplicas = {REPLICAS}\n\
             [artifacts]\nany = \"pages/\"\n[needs]\nmemory = \"8M\"\ncpu = \"1%\"\ndisk = \"1M\"\n"
        );
        fs::write(dir.join("site.toml"), site)?;
        fs::create_dir_all(dir.join("program"))?;
        let program = dir.join("program/dugnad");
        let bytes = fs::copy(std::env::current_exe()?, &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let hello = format!(
            "name = \"hello\"\nkind = \"process\"\nreplicas = {REPLICAS}\n\
             command = [\"./dugnad\", \"demo-server\", \"{}\"]\nstop_grace = \"1s\"\n\
             [artifacts]\n{} = \"program/\"\n\
             [needs]\nmemory = \"64M\"\ncpu = \"10%\"\ndisk = \"{}M\"\nprocesses = 16\n\
             [port]\nhttp = true\n[health]\nhttp = \"/\"\ninterval = \"1s\"\n",
            community.mark,
            arch(),
            (bytes >> 20) + 16,
        );
        fs::write(dir.join("hello.toml"), hello)?;
        Ok([dir.join("site.toml"), dir.join("hello.toml")])
    };
    make().map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))
}

/// What there is of it then.
async fn deploy(
    community: &Community,
    teller: &Teller<'_>,
    file: PathBuf,
) -> Result<Value, Failure> {
    let file = service::parse(&file).map_err(|error| Failure::failed(error.to_string()))?;
    let start = Instant::now();
    teller.now(&format!("deploying {}", file.name()));
    let client = &community.nodes[0].client;
    let tell = |progress| match progress {
        Progress::Line(text) | Progress::Now(text) => teller.now(&text),
    };
    let deployed = deploy_file(client, &file, tell).await?;
    if !deployed.missing.is_empty() {
        let text = format!("{} is not ready", file.name());
        return Err(Failure { reasons: deployed.missing, ..Failure::new(exit::UNMET, text) });
    }
    let took = elapsed(start.elapsed());
    let ready = match deployed.service["ready"].as_u64() {
        Some(1) => "1 replica".to_owned(),
        ready => format!("{} replicas", ready.unwrap_or_default()),
    };
    teller.say(&format!("{} has {ready}, in {}", file.name(), took.trim_start()));
    Ok(deployed.service)
}

/// The ids of the nodes that have a ready replica of each service, as far as its manager tells:
/// there is none for a moment when its node dies.
async fn ready_places(client: &Client) -> [Vec<String>; 2] {
    let places = async |name: &str| {
        let service = client.get(&format!("/v1/resolve/{name}")).await;
        let service = service.map(|answered| answered.value).unwrap_or_default();
        let replicas = service["replicas"].as_array().into_iter().flatten();
        let ready = replicas.filter(|replica| replica["state"] == "ready");
        ready.filter_map(|replica| replica["node"].as_str().map(str::to_owned)).collect()
    };
    let [site, hello] = SERVICES;
    [places(site).await, places(hello).await]
}

/// Which node to take away (it runs the program) and through which one to visit (it does not).
async fn places(community: &Community) -> Result<(usize, usize), Failure> {
    let [site, hello] = ready_places(&community.nodes[0].client).await;
    let numbers = || community.nodes.iter().enumerate().rev();
    let runs = |places: &[String], id: &String| places.contains(id);
    let victim = numbers().find(|(_, node)| runs(&hello, &node.id)).map(|(number, _)| number);
    let visited = numbers()
        .filter(|(_, node)| !runs(&hello, &node.id))
        .min_by_key(|(_, node)| runs(&site, &node.id))
        .map(|(number, _)| number);
    victim.zip(visited).ok_or_else(|| Failure::failed("every node, or none, runs the program"))
}

/// Visits each service through a node that does not run the program, until it answers.
async fn visit(community: &Community, teller: &Teller<'_>, visited: usize) -> Result<(), Failure> {
    let node = &community.nodes[visited];
    for service in SERVICES {
        let last = RefCell::new("no answer".to_owned());
        let visiting = async {
            loop {
                match http::get(node.gateway, &format!("/{service}/")).await {
                    Ok(said) => return Ok::<_, Failure>(said),
                    Err(error) => last.replace(error),
                };
                teller.now(&format!("{service} through {}: {}", node.name, last.borrow()));
                smol::Timer::after(PACE).await;
            }
        };
        let said = within(VISIT_LIMIT, visiting).await.map_err(|failure| Failure {
            text: format!("{service} through {}: {}", node.name, last.borrow()),
            ..failure
        })?;
        if service == "hello" {
            let said = text(&Value::from(said.trim()));
            teller.say(&format!("through {}, which does not run it: {said}", node.name));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Visits {
    answered: Cell<u32>,
    failed: Cell<u32>,
    /// Longest time between two answers, in milliseconds.
    gap_ms: Cell<u128>,
}

/// Takes a node away and watches until its services are whole again elsewhere.
async fn heal(
    community: &mut Community,
    teller: &Teller<'_>,
    victim: usize,
    visited: usize,
) -> Result<(), Failure> {
    let (name, lost) = (community.nodes[victim].name.clone(), community.nodes[victim].id.clone());
    let killed_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    community.kill(victim)?;
    let start = Instant::now();
    teller.say(&format!("killed {name}, which ran hello (SIGKILL)"));
    let visits = Visits::default();
    let node = &community.nodes[visited];
    let visiting = async {
        let mut last = Instant::now();
        loop {
            let answer = http::get(node.gateway, "/hello/").await;
            let counter = if answer.is_ok() { &visits.answered } else { &visits.failed };
            counter.set(counter.get() + 1);
            if answer.is_ok() {
                visits.gap_ms.set(visits.gap_ms.get().max(last.elapsed().as_millis()));
                last = Instant::now();
            }
            smol::Timer::after(PACE).await;
        }
    };
    let telling = async {
        let mut lines = node.client.get_lines("/v1/events?follow=1").await?;
        while let Some(event) = lines.next().await? {
            let at = Duration::from_millis(event["unix_ms"].as_u64().unwrap_or(0));
            if at >= killed_at {
                let who = label(&event["node"], &event["node_name"]);
                teller.say(&format!("  {who}: {}", text(&event["text"])));
            }
        }
        // The agent ended its events; the others decide.
        smol::future::pending::<Result<(), Failure>>().await
    };
    let watching = async {
        loop {
            let places = ready_places(&node.client).await;
            let elsewhere = |p: &Vec<String>| p.iter().filter(|id| **id != lost).count() as u64;
            let whole = places.iter().all(|places| elsewhere(places) >= REPLICAS);
            if whole {
                return Ok(());
            }
            let [site, hello] = places.map(|places| elsewhere(&places));
            teller.now(&format!("hello {hello}/{REPLICAS}, site {site}/{REPLICAS}"));
            smol::Timer::after(PACE).await;
        }
    };
    let busy = smol::future::or(visiting, telling);
    within(HEAL_LIMIT, smol::future::or(watching, busy)).await.map_err(|failure| Failure {
        text: format!("not healed after the loss of {name}: {}", failure.text),
        ..failure
    })?;
    teller.say(&format!(
        "healed in {}: {REPLICAS} replicas each again, none of them on {name}; meanwhile {} visits \
         were answered and {} failed, the longest gap was {} ms",
        elapsed(start.elapsed()).trim_start(),
        visits.answered.get(),
        visits.failed.get(),
        visits.gap_ms.get()
    ));
    Ok(())
}

/// Services outlive their agents: they are removed while there is still somebody to ask.
async fn remove_services(community: &Community) {
    let Some(node) = community.living() else { return };
    for service in SERVICES.iter().chain(&care::SERVICES) {
        let path = format!("/v1/rm/{service}");
        let removing = within(Duration::from_secs(5), node.client.post(&path, None));
        // Never deployed, or nobody answers: what is left is found by its mark.
        let _: Result<crate::control::Answered, Failure> = removing.await;
    }
}
