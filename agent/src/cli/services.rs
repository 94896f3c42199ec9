//! Commands about services: `plan`, `deploy`, `stop`, `rm`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use argh::FromArgs;
use dugnad_fabric::Bytes;
use dugnad_kernel::Hash;
use dugnad_platform::weigh;
use dugnad_resource::spec::{REPLICAS_MAX, Spec, Tree, valid_name};
use serde_json::{Value, json};

use super::read::{label, text};
use super::table::plain;
use super::{ASK_LIMIT, Cx, Failure, Outcome, counted, duration, within};
use crate::control::{Client, ClientError, exit};
use crate::service::{self, ServiceFile};

/// where a service would run, and why not elsewhere; changes nothing
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "plan", example = "{command_name} wiki.toml")]
pub(super) struct Plan {
    /// the service file
    #[argh(positional)]
    pub(super) file: PathBuf,
}

/// run a service, and wait until its replicas are ready
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "deploy", example = "{command_name} wiki.toml")]
pub(super) struct Deploy {
    /// the service file
    #[argh(positional)]
    pub(super) file: PathBuf,
    /// how long to wait for the replicas (default: 2m); the service is kept wanted after that
    #[argh(option, default = "\"2m\".to_owned()", arg_name = "duration")]
    pub(super) timeout: String,
}

/// tell everybody in the community something: it shows in the events of every node
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "announce", example = "{command_name} 'attic reboots at eight'")]
pub(super) struct Announce {
    /// one line of text, at most 200 bytes
    #[argh(positional)]
    pub(super) text: String,
}

/// stop a service; it stays known
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "stop", example = "{command_name} wiki")]
pub(super) struct Stop {
    #[argh(positional)]
    pub(super) service: String,
}

/// stop a service and forget it; or remove the object under a key
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rm", example = "{command_name} wiki\n{command_name} notes/today")]
pub(super) struct Rm {
    /// a service's name, or a key: NAMESPACE/PATH
    #[argh(positional)]
    pub(super) service: String,
    /// what it has written stays where it is; a service of this name takes it up again
    #[argh(switch)]
    pub(super) keep_state: bool,
}

/// go back to the version of a service before the present one
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rollback", example = "{command_name} wiki")]
pub(super) struct Rollback {
    #[argh(positional)]
    pub(super) service: String,
}

/// start all replicas of a service anew, one after the other
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "restart", example = "{command_name} wiki")]
pub(super) struct Restart {
    #[argh(positional)]
    pub(super) service: String,
}

/// have so many replicas of a service, until its file is deployed again; those that stay go on
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "scale", example = "{command_name} wiki 5")]
pub(super) struct Scale {
    #[argh(positional)]
    pub(super) service: String,
    /// how many: 1 to 15
    #[argh(positional)]
    pub(super) replicas: u8,
}

/// How often a long work tells how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long to find out what is deployed now, before doing something else.
pub(super) const LOOK_UP: Duration = Duration::from_secs(3);

/// A name that may stand in a path.
pub(super) fn name(name: &str) -> Result<&str, Failure> {
    valid_name(name).map_err(|why| Failure::usage(format!("\"{name}\" is no service: {why}")))?;
    Ok(name)
}

pub(super) fn read_file(path: &Path) -> Result<ServiceFile, Failure> {
    service::parse(path).map_err(|error| Failure::failed(error.to_string()))
}

fn to_json(spec: &Spec) -> Result<Value, Failure> {
    serde_json::to_value(spec).map_err(|error| Failure::failed(format!("spec: {error}")))
}

/// What a file says, without its packages being stored: they have their weight but no name yet.
pub(super) fn weighed(file: &ServiceFile) -> Result<Spec, Failure> {
    let mut trees = Vec::new();
    for (arch, folder) in file.artifacts() {
        let bytes = weigh(&folder)
            .map_err(|error| Failure::failed(format!("{}: {error}", folder.display())))?;
        trees.push((arch, Tree { root: Hash([0; 32]), bytes }));
    }
    file.has_room(&trees).map_err(Failure::failed)?;
    Ok(file.to_spec(trees))
}

pub(super) fn plan(args: &Plan, cx: &mut Cx<'_>) -> Outcome {
    let file = read_file(&args.file)?;
    let (client, spec) = (cx.client()?, to_json(&weighed(&file)?)?);
    let plan = smol::block_on(within(ASK_LIMIT, client.post("/v1/plan", Some(&spec))))?.value;
    let chosen = plan["chosen"].as_array().cloned().unwrap_or_default();
    let want = plan["want"].as_u64().unwrap_or(0);
    let met = chosen.len() as u64 >= want && plan["reachable"] != false;
    if cx.json {
        cx.print_json(&plan)?;
    } else {
        write!(cx.out, "{}", plan_text(file.name(), &plan))?;
    }
    Ok(if met { exit::DONE } else { exit::UNMET })
}

fn plan_text(name: &str, plan: &Value) -> String {
    let list = |key: &str| plan[key].as_array().cloned().unwrap_or_default();
    let want = text(&plan["want"]);
    let replicas = if want == "1" { "replica" } else { "replicas" };
    let mut told = format!("{name}: {} → {want} {replicas}\n", text(&plan["because"]));
    let chosen = list("chosen");
    let names: Vec<_> = chosen.iter().map(|place| label(&place["node"], &place["name"])).collect();
    let widest = names.iter().map(|name| super::table::width(name)).max().unwrap_or(0);
    for (place, name) in chosen.iter().zip(&names) {
        let gap = " ".repeat(widest - super::table::width(name) + 2);
        told.push_str(&format!("  + {name}{gap}{}\n", text(&place["why"])));
    }
    for place in list("refused") {
        let name = label(&place["node"], &place["name"]);
        told.push_str(&format!("not chosen: {name} ({})\n", text(&place["why"])));
    }
    for note in list("notes") {
        told.push_str(&format!("note: {}\n", text(&note)));
    }
    told
}

/// How a deploy ended.
pub(super) struct Deployed {
    pub(super) service: Value,
    pub(super) missing: Vec<String>,
}

impl Deployed {
    fn of(result: &Value) -> Self {
        let missing = result["missing"].as_array().into_iter().flatten();
        Self {
            service: result["service"].clone(),
            missing: missing.filter_map(Value::as_str).map(plain).collect(),
        }
    }
}

/// How a deploy goes on.
pub(super) enum Progress {
    /// Something happened.
    Line(String),
    /// What is being done; the next one takes its place.
    Now(String),
}

/// Stores the packages of a file and deploys it; `progress` gets a line whenever there is one.
///
/// # Errors
/// As the agent says; a static service without a file.
pub(super) async fn deploy_file(
    client: &Client,
    file: &ServiceFile,
    mut progress: impl FnMut(Progress),
) -> Result<Deployed, Failure> {
    let mut trees = Vec::new();
    for (arch, folder) in file.artifacts() {
        let tree = store(client, file, &folder, &mut progress).await?;
        let of = arch.map_or_else(|| "any CPU".to_owned(), |arch| arch.to_string());
        progress(Progress::Line(format!("package for {of} stored: {}", Bytes(tree.bytes))));
        trees.push((arch, tree));
    }
    file.has_room(&trees).map_err(Failure::failed)?;
    let mut lines = client.post_lines("/v1/deploy", &to_json(&file.to_spec(trees))?).await?;
    while let Some(line) = lines.next().await? {
        if let Some(event) = line.get("progress") {
            let line = format!("{}: {}", text(&event["node_name"]), text(&event["text"]));
            progress(Progress::Line(line));
        } else if let Some(result) = line.get("result") {
            return Ok(Deployed::of(result));
        }
    }
    Err(ClientError::Broken("it gave no result".to_owned()).into())
}

/// Has the agent store a folder, and tells how far it is.
async fn store(
    client: &Client,
    file: &ServiceFile,
    folder: &Path,
    progress: &mut impl FnMut(Progress),
) -> Result<Tree, Failure> {
    let unreadable = |error| Failure::failed(format!("{}: {error}", folder.display()));
    if file.is_static() && !holds_a_file(folder).map_err(unreadable)? {
        let text = format!("{}: there is no file in it, so nothing to show", folder.display());
        return Err(Failure::failed(text));
    }
    let all = Bytes(weigh(folder).map_err(unreadable)?);
    let sent = Arc::<AtomicUsize>::default();
    let mut storing = std::pin::pin!(client.ingest(folder, Arc::clone(&sent)));
    loop {
        let later = async {
            smol::Timer::after(LOOK_AGAIN).await;
            None
        };
        let done = async { Some(storing.as_mut().await) };
        if let Some(stored) = smol::future::or(done, later).await {
            return Ok(stored?);
        }
        let sent = Bytes(sent.load(Ordering::Relaxed) as u64);
        progress(Progress::Now(format!("storing {}: {sent} of {all}", folder.display())));
    }
}

fn holds_a_file(folder: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || holds_a_file(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn deploy(args: &Deploy, cx: &mut Cx<'_>) -> Outcome {
    let limit = duration("--timeout", &args.timeout)?;
    let file = read_file(&args.file)?;
    let client = cx.client()?;
    let start = Instant::now();
    let before = smol::block_on(version(&client, file.name()));
    let deployed = smol::block_on(within(limit, async {
        deploy_file(&client, &file, |progress| match progress {
            Progress::Line(line) => cx.say(format!("{} {line}", elapsed(start.elapsed()))),
            Progress::Now(text) => cx.now(&format!("{} {text}", elapsed(start.elapsed()))),
        })
        .await
    }));
    let deployed = deployed.map_err(|failure| match failure.exit {
        exit::TIMED_OUT => {
            let now = smol::block_on(version(&client, file.name()));
            let then = match now {
                Some(now) if Some(now) != before => "it stays wanted: dugnad ps",
                _ => "it was not deployed: give it longer with --timeout",
            };
            Failure { text: format!("{}: {}; {then}", file.name(), failure.text), ..failure }
        }
        _ => failure,
    })?;
    tell_deployed(&client, &deployed, start, cx)
}

/// The version of a service that the community knows now, if there is one and it says so soon.
async fn version(client: &Client, service: &str) -> Option<u64> {
    let path = format!("/v1/resolve/{service}");
    let known = within(LOOK_UP, client.get(&path)).await.ok()?;
    known.value["version"].as_u64()
}

/// How it ended, and what is missing.
fn tell_deployed(client: &Client, deployed: &Deployed, start: Instant, cx: &mut Cx<'_>) -> Outcome {
    let Deployed { service, missing } = deployed;
    let met = missing.is_empty();
    if cx.json {
        cx.print_json(&json!({"service": service, "missing": missing}))?;
    } else {
        let took = elapsed(start.elapsed());
        let place = smol::block_on(address(client, service));
        writeln!(
            cx.out,
            "{} v{}  {}/{} ready in {}{place}",
            text(&service["service"]),
            text(&service["version"]),
            text(&service["ready"]),
            text(&service["want"]),
            took.trim_start(),
        )?;
    }
    for reason in counted(missing) {
        cx.say(format!("missing: {reason}"));
    }
    Ok(if met { exit::DONE } else { exit::UNMET })
}

/// Where the service answers on this machine, with two spaces in front; empty if nowhere.
async fn address(client: &Client, service: &Value) -> String {
    let status = client.get("/v1/status").await.map(|answered| answered.value);
    let gateway = status.ok().and_then(|status| status["gateway"].as_str().map(plain));
    match (&service["port"], gateway) {
        (Value::String(port), Some(gateway)) if port == "http" => {
            format!("  http://{gateway}/{}/", text(&service["service"]))
        }
        (Value::Number(port), _) => format!("  port {port} of any node"),
        (Value::String(port), _) if port.ends_with("/udp") => format!("  port {port} of any node"),
        _ => String::new(),
    }
}

/// Right-aligned seconds.
pub(super) fn elapsed(time: Duration) -> String {
    format!("{:>4}.{}s", time.as_secs(), time.subsec_millis() / 100)
}

pub(super) fn stop(args: &Stop, cx: &mut Cx<'_>) -> Outcome {
    order(cx, "stop", &args.service, "", "stopped; it stays known")
}

pub(super) fn rm(args: &Rm, cx: &mut Cx<'_>) -> Outcome {
    if args.keep_state {
        let done = "removed; what it has written stays (`dugnad status` lists it)";
        return order(cx, "rm", &args.service, "?keep_state=1", done);
    }
    order(cx, "rm", &args.service, "", "removed")
}

pub(super) fn rollback(args: &Rollback, cx: &mut Cx<'_>) -> Outcome {
    change(&format!("/v1/rollback/{}", name(&args.service)?), cx)
}

pub(super) fn restart(args: &Restart, cx: &mut Cx<'_>) -> Outcome {
    change(&format!("/v1/restart/{}", name(&args.service)?), cx)
}

pub(super) fn scale(args: &Scale, cx: &mut Cx<'_>) -> Outcome {
    if !(1..=REPLICAS_MAX).contains(&args.replicas) {
        let stop = format!("to have none: dugnad stop {}", plain(&args.service));
        return Err(Failure::usage(format!("replicas must be 1 to {REPLICAS_MAX}; {stop}")));
    }
    change(&format!("/v1/scale/{}?replicas={}", name(&args.service)?, args.replicas), cx)
}

fn change(path: &str, cx: &mut Cx<'_>) -> Outcome {
    let (client, start) = (cx.client()?, Instant::now());
    let result = smol::block_on(within(ASK_LIMIT, client.post(path, None)))?.value;
    tell_deployed(&client, &Deployed::of(&result), start, cx)
}

pub(super) fn announce(args: &Announce, cx: &mut Cx<'_>) -> Outcome {
    let client = cx.client()?;
    let text = Value::from(args.text.as_str());
    smol::block_on(within(ASK_LIMIT, client.post("/v1/announce", Some(&text))))?;
    cx.say("announced; it shows in the events of every node");
    Ok(exit::DONE)
}

fn order(cx: &mut Cx<'_>, verb: &str, service: &str, how: &str, done: &str) -> Outcome {
    let (client, path) = (cx.client()?, format!("/v1/{verb}/{}{how}", name(service)?));
    smol::block_on(within(ASK_LIMIT, client.post(&path, None)))?;
    cx.say(format!("{service} {done}"));
    Ok(exit::DONE)
}
