//! The power fails while people write: whatever the medium kept of what was not synced, the agent
//! starts again, and what was acknowledged is there. One node, so that nobody else has a copy.
//!
//! `CUTS=1000 cargo test -p dugnad-cluster --test power` tries more moments.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use dugnad_cluster::power::{Dice, Event, Medium, Trace, strace};
use dugnad_cluster::{Community, Options, PATIENCE, holds, installed, say, skip, until};

/// Those who write, each its own keys.
const CLIENTS: usize = 3;
/// How long they write.
const WRITING: Duration = Duration::from_secs(8);
/// A strong value, one of which the later counts, and a long one, which is kept as chunks.
const NAMESPACES: [&str; 3] = ["reg", "own", "long"];
/// Bytes of a long value.
const LONG: usize = 300_000;
/// Moments that are tried at the same time.
const AT_ONCE: usize = 4;

fn micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// What happened to one key: the numbers written to it begin with 1.
#[derive(Default)]
struct Told {
    /// When each number was begun.
    begun: Vec<u64>,
    /// When each number was acknowledged, if it was.
    acknowledged: Vec<(usize, u64)>,
}

/// The value of a key's `number`th write.
fn value(key: &str, number: usize) -> Vec<u8> {
    let line = format!("{key} {number}\n").into_bytes();
    if key.starts_with("long") { line.repeat(LONG / line.len()) } else { line }
}

/// Ends with its test.
struct Agent(Child);

impl Agent {
    fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            return Err(format!("the agent ended with {}", child.wait().unwrap()));
        }
        Ok(Self(child))
    }
}

impl Agent {
    /// Ends it as an owner would: a call that a kill interrupts may have been done or not.
    fn end(mut self) {
        let process = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(process, Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended.
        let _: std::io::Result<()> = self.0.kill();
        let _: std::io::Result<_> = self.0.wait();
    }
}

fn put(community: &Community, key: &str, number: usize) -> bool {
    let mut command = community.prepare(0, &["put", key, "-"]);
    if number == 1 && !key.starts_with("own") && !key.starts_with("long") {
        command.arg("--strong");
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It may end without having read all: then it was not written.
    let _: std::io::Result<()> = child.stdin.take().unwrap().write_all(&value(key, number));
    child.wait().unwrap().success()
}

/// Writes to the keys of one client until the time is over.
fn work(community: &Community, client: usize, start: Instant) -> Vec<(String, Told)> {
    let mut keys: Vec<(String, Told)> =
        NAMESPACES.iter().map(|name| (format!("{name}/{client}"), Told::default())).collect();
    for turn in client.. {
        if start.elapsed() > WRITING {
            break;
        }
        let (key, told) = &mut keys[[0, 1, 2, 0, 0, 1][turn % 6]];
        let number = told.begun.len() + 1;
        told.begun.push(micros());
        if put(community, key, number) {
            told.acknowledged.push((number, micros()));
        }
    }
    keys
}

struct Cut<'a> {
    community: &'a Community,
    keys: &'a [(String, Told)],
    events: &'a [Event],
    /// Of the node before anything was recorded.
    before: &'a Medium,
}

impl Cut<'_> {
    /// Where the power fails: anywhere, or right after something was acknowledged.
    fn moment(&self, dice: &mut Dice) -> usize {
        let acks: Vec<u64> = self
            .keys
            .iter()
            .flat_map(|(_, told)| told.acknowledged.iter().map(|(_, at)| *at))
            .collect();
        if dice.below(2) == 0 {
            return dice.below(self.events.len());
        }
        let at = acks[dice.below(acks.len())];
        self.events.iter().position(|event| event.at > at).unwrap_or(self.events.len())
    }

    /// One cut: what is left, a start, and a look at all keys.
    fn try_one(&self, number: usize, place: SocketAddr) -> Result<(), String> {
        let mut dice = Dice(number as u64 + 1);
        dice.below(2);
        let moment = self.moment(&mut dice);
        let keep = [0, 50, 90, 100][dice.below(4)];
        let until = self.events.get(moment).map_or(u64::MAX, |event| event.at);
        let mut medium = self.before.clone();
        self.events[..moment].iter().for_each(|event| medium.apply(event));
        let dir = self.community.mark.dir.join(format!("cut{number}"));
        medium.cut(&dir, keep, &mut dice);
        let about = format!("cut {number} at event {moment}, {keep} % kept");
        let result = self.look(&dir, place, until).map_err(|why| {
            let log = fs::read_to_string(dir.with_extension("log")).unwrap_or_default();
            format!("{about}: {why}\n{log}")
        });
        if result.is_ok() {
            fs::remove_dir_all(&dir).unwrap();
        }
        result
    }

    fn look(&self, dir: &Path, place: SocketAddr, until: u64) -> Result<(), String> {
        let command = |words: &[&str]| {
            let mut command = self.community.prepare(0, words);
            command.env("DUGNAD_DIR", dir).env("DUGNAD_OVERLAY", place.to_string());
            command.env("DUGNAD_GATEWAY", SocketAddr::new(place.ip(), 7480).to_string());
            command
        };
        let _agent = Agent::start(command(&["agent"]), &dir.with_extension("log"))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let output = command(&["status", "-o", "json"]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains("\"alone\"") {
                break;
            }
            holds(Instant::now() < end, || format!("it did not begin: {text}"))?;
            thread::sleep(Duration::from_millis(50));
        }
        for (key, told) in self.keys {
            let owed = told.acknowledged.iter().filter(|(_, at)| *at < until);
            let owed = owed.map(|(number, _)| *number).max().unwrap_or(0);
            let begun = told.begun.iter().filter(|at| **at <= until).count();
            let output = command(&["get", key]).output().unwrap();
            let is = output.stdout;
            let fits =
                |number: usize| if number == 0 { is.is_empty() } else { is == value(key, number) };
            holds((owed..=begun).any(fits), || {
                let begins = String::from_utf8_lossy(&is[..is.len().min(30)]).into_owned();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                format!("{key}: {owed} was acknowledged, {begun} begun; {begins}{said}")
            })?;
        }
        Ok(())
    }
}

/// What clients were told, and what the agent did.
type Recorded = (Vec<(String, Told)>, Vec<Event>);

/// Lets clients write to an agent that is watched.
fn record(community: &Community, log: &Path) -> Result<Recorded, String> {
    let agent = strace(&community.prepare(0, &["agent"]), log);
    let agent = Agent::start(agent, &community.mark.dir.join("traced.log"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id())).unwrap();
    let recorder = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    let recorder = recorder.unwrap().trim().to_owned();
    until("it begins a ring", PATIENCE, || {
        let state = community.status(0)["state"].to_string();
        holds(state.contains("alone"), || state.clone())
    });
    let start = Instant::now();
    let keys = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let keys = &keys;
            scope.spawn(move || {
                let done = work(community, client, start);
                keys.lock().unwrap().extend(done);
            });
        }
    });
    agent.end();
    until("all is recorded", PATIENCE, || {
        let state = fs::read_to_string(format!("/proc/{recorder}/status")).unwrap_or_default();
        holds(state.is_empty() || state.contains("State:\tZ"), || state.clone())
    });
    let events = Trace::read(log, &community.nodes[0].dir).unwrap().events;
    Ok((keys.into_inner().unwrap(), events))
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut() {
    let test = "what_was_acknowledged_outlives_a_power_cut";
    if installed(&["/usr/bin/strace", "/bin/strace"]).is_none() {
        return skip(test, "needs strace: apt-get install strace");
    }
    let cuts = std::env::var("CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let mut community = Community::found("power", 1, Options::default());
    community.ends_silent = false;
    let before = Medium::of(&community.nodes[0].dir);
    let (keys, events) = match record(&community, &community.mark.dir.join("calls")) {
        Err(why) => return skip(test, &format!("strace cannot watch a process here: {why}")),
        Ok(recorded) => recorded,
    };
    let mut whole = before.clone();
    events.iter().for_each(|event| whole.apply(event));
    whole.is_what_is_there().unwrap();
    let acknowledged: usize = keys.iter().map(|(_, told)| told.acknowledged.len()).sum();
    say(community.start, &format!("{} calls, {acknowledged} writes acknowledged", events.len()));
    for (key, told) in &keys {
        assert!(!told.acknowledged.is_empty(), "{key}: none of {} written", told.begun.len());
    }

    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cut = Cut { community: &community, keys: &keys, events: &events, before: &before };
    thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let (next, failed, cut) = (&next, &failed, &cut);
            let mut place = cut.community.nodes[0].overlay;
            let SocketAddr::V4(v4) = &mut place else { panic!("{place}") };
            let [a, b, c, _] = v4.ip().octets();
            v4.set_ip([a, b, c, 10 + u8::try_from(worker).unwrap()].into());
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= cuts {
                        return;
                    }
                    if let Err(why) = cut.try_one(number, place) {
                        failed.lock().unwrap().push(why);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    say(community.start, &format!("{cuts} cuts, {} failed", failed.len()));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
