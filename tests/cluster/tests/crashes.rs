//! Agents that are killed at any moment while people write: what was acknowledged stays, and strong
//! values have one order. `SECONDS=600 cargo test -p dugnad-cluster --test crashes` goes on longer.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use dugnad_cluster::history::{Request, Told, What, check};
use dugnad_cluster::power::Dice;
use dugnad_cluster::{Community, PATIENCE, holds, say, until};
use serde_json::Value;

const NODES: usize = 5;
const CLIENTS: usize = 4;
const KEYS: usize = 4;
/// Bytes of a long value: it is kept as chunks.
const LONG: usize = 400_000;

/// What a client of its own keys was told last: nobody else writes them.
#[derive(Default)]
struct Own {
    written: usize,
    acknowledged: usize,
}

struct Client<'a> {
    number: usize,
    community: &'a RwLock<Community>,
    start: Instant,
    dice: Dice,
    history: Vec<Request>,
    short: Own,
    long: Own,
}

/// The long value of a client's `number`th write.
fn long(client: usize, number: usize) -> Vec<u8> {
    format!("{client}-{number} ").into_bytes().repeat(LONG / 8)
}

impl Client<'_> {
    /// Runs a command at any node; its exit code, what it said as JSON, and what else.
    fn run(&mut self, words: &[&str], stdin: Option<&[u8]>) -> (Option<i32>, Value, String) {
        let node = self.dice.below(NODES);
        let mut command = self.community.read().unwrap().prepare(node, words);
        command.args(["-o", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        if stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        if let Some(bytes) = stdin {
            // It may end without having read all: then it was not written.
            let _: std::io::Result<()> = child.stdin.take().unwrap().write_all(bytes);
        }
        let output = child.wait_with_output().unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn strong(&mut self) {
        let key = format!("reg/{}", self.dice.below(KEYS));
        let value = format!("{}-{}", self.number, self.history.len());
        let what = match (self.dice.below(4), self.last_seen(&key)) {
            (0 | 1, _) => What::Get,
            (2, Some(seen)) => What::Cas(seen, value),
            _ => What::Put(value),
        };
        let from = self.start.elapsed();
        let (code, said, text) = match &what {
            What::Get => self.run(&["get", &key], None),
            What::Put(value) => self.run(&["put", &key, value], None),
            What::Cas(at, value) => self.run(&["cas", &key, &at.to_string(), value], None),
        };
        let now = text
            .split("is now revision ")
            .nth(1)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        let told = match (&what, code, said["revision"].as_u64().or(now)) {
            (What::Cas(..), Some(1), Some(at)) => Told::Lost(at),
            (What::Get, Some(0), Some(at)) => {
                Told::Read(at, said["values"][0]["text"].as_str().map(str::to_owned))
            }
            (What::Put(_) | What::Cas(..), Some(0), Some(at)) => Told::Written(at),
            _ => Told::Unknown,
        };
        self.history.push(Request { key, what, from, until: self.start.elapsed(), told });
    }

    fn last_seen(&self, key: &str) -> Option<u64> {
        self.history.iter().rev().filter(|request| request.key == key).find_map(|request| {
            match request.told {
                Told::Read(at, _) | Told::Written(at) => Some(at),
                _ => None,
            }
        })
    }

    fn short(&mut self) {
        self.short.written += 1;
        let (key, value) = (format!("own/{}", self.number), self.short.written.to_string());
        if self.run(&["put", &key, &value], None).0 == Some(0) {
            self.short.acknowledged = self.short.written;
        }
    }

    fn long(&mut self) {
        self.long.written += 1;
        let (key, value) = (format!("long/{}", self.number), long(self.number, self.long.written));
        if self.run(&["put", &key], Some(&value)).0 == Some(0) {
            self.long.acknowledged = self.long.written;
        }
    }

    fn work(&mut self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            match self.dice.below(10) {
                0 => self.long(),
                1..=3 => self.short(),
                _ => self.strong(),
            }
            // People do not type faster, and others work on this machine, too.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Kills one or two of the agents at a time, and starts them again.
fn kill_some(community: &RwLock<Community>, start: Instant, limit: Duration) -> usize {
    let (mut dice, mut killed) = (Dice(7), 0);
    while start.elapsed() < limit {
        thread::sleep(Duration::from_millis(200 + dice.below(800) as u64));
        let first = dice.below(NODES);
        let both = [first, (first + 1 + dice.below(NODES - 1)) % NODES];
        let dead = &both[..1 + dice.below(2)];
        dead.iter().for_each(|node| community.write().unwrap().kill(*node));
        killed += dead.len();
        thread::sleep(Duration::from_millis(dice.below(1500) as u64));
        dead.iter().for_each(|node| community.write().unwrap().start(*node));
    }
    killed
}

/// What is there in the end: as new as the last write its client was told of.
fn nothing_is_lost(community: &Community, client: &Client<'_>, node: usize) -> Result<(), String> {
    let number = client.number;
    let said = community.cli(node, &["get", &format!("own/{number}")]);
    let at = said.out.parse::<usize>().unwrap_or(0);
    let Own { written, acknowledged } = client.short;
    holds((acknowledged..=written).contains(&at), || {
        format!("own/{number} at {node}: {acknowledged} was acknowledged, there is {}", said.all())
    })?;
    let back = community.mark.dir.join(format!("long-{number}"));
    let out = File::create(&back).unwrap();
    let got = community.prepare(node, &["get", &format!("long/{number}")]).stdout(out).status();
    let (got, is) = (got.unwrap(), std::fs::read(&back).unwrap());
    let Own { written, acknowledged } = client.long;
    let fits = |at: usize| if at == 0 { is.is_empty() } else { is == long(number, at) };
    holds((acknowledged..=written).any(fits), || {
        let begin = String::from_utf8_lossy(&is[..is.len().min(20)]).into_owned();
        format!("long/{number} at {node}: {acknowledged} was acknowledged; {got}, {begin}")
    })
}

#[test]
fn what_was_acknowledged_outlives_crashes() {
    let seconds = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let community = Community::new("crashes", NODES);
    until("five keep it", PATIENCE, || {
        let said = community.cli(0, &["put", "reg/first", "--strong", "one"]);
        holds(said.err.contains("on a majority of 5 nodes"), || said.all())
    });
    community.ok(0, &["put", "own/first", "one"]);
    community.ok(0, &["put", "long/first", "one"]);

    let (community, over) = (RwLock::new(community), AtomicBool::new(false));
    let (start, done) = (Instant::now(), Mutex::new(Vec::new()));
    let limit = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (community, over, done) = (&community, &over, &done);
            scope.spawn(move || {
                let (dice, history) = (Dice(number as u64), Vec::new());
                let (short, long) = Default::default();
                let mut client = Client { number, community, start, dice, history, short, long };
                client.work(over);
                done.lock().unwrap().push(client);
            });
        }
        let killed = kill_some(&community, start, limit);
        over.store(true, Ordering::Relaxed);
        say(start, &format!("{killed} agents were killed"));
    });
    let clients = done.into_inner().unwrap();
    let mut all: Vec<Request> =
        clients.iter().flat_map(|client| client.history.iter().cloned()).collect();
    let told = |wanted: fn(&Told) -> bool| all.iter().filter(|r| wanted(&r.told)).count();
    let (written, read) =
        (told(|t| matches!(t, Told::Written(_))), told(|t| matches!(t, Told::Read(..))));
    let own: usize = clients.iter().map(|client| client.short.acknowledged).sum();
    let files: usize = clients.iter().map(|client| client.long.acknowledged).sum();
    say(
        start,
        &format!(
            "{} strong requests, {written} written, {read} read; {own} others, {files} long ones",
            all.len()
        ),
    );
    assert!(written > 20 && read > 20 && own > 10 && files > 3, "too little was done to say much");

    let mut community = community.write().unwrap();
    community.wait_whole();
    for client in &clients {
        for node in 0..NODES {
            until("nothing is lost", PATIENCE, || nothing_is_lost(&community, client, node));
        }
    }
    for number in 0..KEYS {
        let key = format!("reg/{number}");
        let from = start.elapsed();
        let said = community.json(number, &["get", &key]).unwrap();
        let told = Told::Read(
            said["revision"].as_u64().unwrap(),
            said["values"][0]["text"].as_str().map(str::to_owned),
        );
        all.push(Request { key, what: What::Get, from, until: start.elapsed(), told });
    }
    assert_eq!(check(&all), Ok(()));
}
