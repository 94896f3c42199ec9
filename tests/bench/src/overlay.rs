//! The overlay among twenty agents on loopback: lookups, broadcasts, joins and deaths as everybody
//! learns of them, beside serf (gossip membership, Debian's package) in the same run.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use dugnad_cluster::Community;
use serde_json::Value;

use crate::{Row, serf, spread};

pub(crate) const NODES: usize = 20;
const LOOKUPS: usize = 200;
pub(crate) const CASTS: usize = 20;
pub(crate) const ROUNDS: usize = 5;
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Between two broadcasts, as for serf: members may say one thing a second.
pub(crate) const PAUSE: Duration = Duration::from_millis(1_100);

/// Something one node learned: which node, when, and what.
pub(crate) type Heard = (usize, Instant, String);

/// Waits until as many distinct nodes as `want` heard a text that `about` accepts; the times since
/// `start` in seconds, sorted; fewer than `want` if the limit came first.
pub(crate) fn all_heard(
    heard: &Receiver<Heard>,
    start: Instant,
    want: usize,
    about: impl Fn(&str) -> bool,
) -> Vec<f64> {
    let mut times = std::collections::BTreeMap::new();
    while times.len() < want {
        let left = LIMIT.saturating_sub(start.elapsed());
        match heard.recv_timeout(left) {
            Ok((node, at, text)) if at >= start && about(&text) => {
                times.entry(node).or_insert_with(|| at.duration_since(start).as_secs_f64());
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut times: Vec<f64> = times.into_values().collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The last of them, if all came.
pub(crate) fn last(times: &[f64], want: usize) -> f64 {
    times.get(want - 1).copied().unwrap_or(f64::INFINITY)
}

pub(crate) fn millis(values: &[f64]) -> String {
    let (least, middle, most) = spread(values.to_vec());
    let (least, middle, most) = (least * 1e3, middle * 1e3, most * 1e3);
    format!("{middle:.0} ms (n={}, {least:.0} to {most:.0})", values.len())
}

fn socket(community: &Community, node: usize) -> PathBuf {
    community.nodes[node].dir.join("dugnad.sock")
}

/// Tells of every event a node sees, until the agent ends.
fn follow(community: &Community, node: usize, to: Sender<Heard>) {
    let path = socket(community, node);
    let opened = UnixStream::connect(&path);
    let mut stream = opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let request = "GET /v1/events?follow=1 HTTP/1.1\r\nHost: agent\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    std::thread::spawn(move || {
        // Chunk sizes and headers are lines, too; an event is one that begins with a brace.
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(text) = event["text"].as_str() {
                let text = format!("{}: {text}", event["node_name"].as_str().unwrap_or("?"));
                // The bench may be over.
                let _: Result<(), _> = to.send((node, Instant::now(), text));
            }
        }
    });
}

/// One connection to an agent, for many questions.
struct Door(BufReader<UnixStream>);

impl Door {
    fn open(community: &Community, node: usize) -> Self {
        let path = socket(community, node);
        let stream = UnixStream::connect(&path);
        Self(BufReader::new(stream.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
    }

    /// # Panics
    /// The agent does not answer with JSON.
    fn ask(&mut self, head: &str, body: &str) -> Value {
        let length = body.len();
        let request =
            format!("{head} HTTP/1.1\r\nHost: agent\r\nContent-Length: {length}\r\n\r\n{body}");
        let sent = self.0.get_mut().write_all(request.as_bytes());
        sent.unwrap_or_else(|error| panic!("{head}: {error}"));
        let mut length = 0;
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            assert!(read.is_ok_and(|read| read > 0), "{head}: no answer");
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap_or_else(|error| panic!("{head}: {error}"));
        serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{head}: {error}"))
    }
}

struct Lookups {
    hops: Vec<f64>,
    micros: Vec<f64>,
    wrong: usize,
}

/// Lookups from every node; the oracle is the sorted list of ids.
fn lookups(community: &Community) -> Lookups {
    let id = |text: &str| u128::from_str_radix(text, 16).unwrap_or_default();
    let mut ids: Vec<u128> = community.nodes.iter().map(|node| id(&node.id)).collect();
    ids.sort_unstable();
    let mut all = Lookups { hops: Vec::new(), micros: Vec::new(), wrong: 0 };
    // Any spread of keys will do, the same in every run.
    let mut key: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;
    for node in 0..community.nodes.len() {
        let mut door = Door::open(community, node);
        for _ in 0..LOOKUPS {
            key = key.wrapping_mul(0xda94_2042_e4dd_58b5).rotate_left(61).wrapping_add(1);
            let found = door.ask(&format!("GET /v1/lookup/{key:032x}"), "");
            let owner = ids[ids.partition_point(|id| *id < key) % ids.len()];
            if found["owner"].as_str().map(id) != Some(owner) {
                all.wrong += 1;
                continue;
            }
            all.hops.push(found["hops"].as_f64().unwrap_or(f64::NAN));
            all.micros.push(found["micros"].as_f64().unwrap_or(f64::NAN));
        }
    }
    all.hops.sort_by(f64::total_cmp);
    all.micros.sort_by(f64::total_cmp);
    all
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = (sorted.len() as f64 * q) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn lookup_rows(found: &Lookups) -> Vec<Row> {
    let count = found.hops.len();
    let mean = found.hops.iter().sum::<f64>() / count.max(1) as f64;
    let (hops99, most) = (quantile(&found.hops, 0.99), quantile(&found.hops, 1.0));
    let (p50, p99) = (quantile(&found.micros, 0.5) / 1e3, quantile(&found.micros, 0.99) / 1e3);
    vec![
        Row::new(
            format!("requests a lookup, {NODES} nodes"),
            "≤ 4: ⌈log₄ n⌉ + 1",
            format!("mean {mean:.2}, p99 {hops99}, most {most} (n={count}, {} wrong)", found.wrong),
        )
        .kept(mean <= 4.0 && found.wrong == 0),
        Row::new(
            format!("time of a lookup, {NODES} processes"),
            "p50 ≤ 1.1 ms",
            format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
        )
        .kept(p50 <= 1.1),
    ]
}

/// What serf took for the same in this run.
#[derive(Default)]
pub(crate) struct Times {
    pub(crate) cast: Vec<f64>,
    pub(crate) join: Vec<f64>,
    pub(crate) death: Vec<f64>,
}

pub(crate) fn rows() -> Vec<Row> {
    let mut community = Community::new("bench-ring", NODES);
    let (to, heard) = channel();
    (0..NODES).for_each(|node| follow(&community, node, to.clone()));
    let mut rows = lookup_rows(&lookups(&community));
    let mut ours = Times::default();
    for number in 0..CASTS {
        std::thread::sleep(PAUSE);
        let mut door = Door::open(&community, (number * 7) % NODES);
        let text = format!("bench {number}");
        let start = Instant::now();
        door.ask("POST /v1/announce", &format!("\"{text}\""));
        let times = all_heard(&heard, start, NODES, |heard| heard.ends_with(&text));
        ours.cast.push(last(&times, NODES));
    }
    for round in 0..ROUNDS {
        let victim = 1 + (round * 5) % (NODES - 1);
        let name = community.nodes[victim].name.clone();
        let start = Instant::now();
        community.kill(victim);
        let gone = format!("{name} is gone");
        let times = all_heard(&heard, start, NODES - 1, |text| text.ends_with(&gone));
        ours.death.push(last(&times, NODES - 1));
        let start = Instant::now();
        community.start(victim);
        let joined = format!("{name} joined");
        let times = all_heard(&heard, start, NODES - 1, |text| text.ends_with(&joined));
        ours.join.push(last(&times, NODES - 1));
        follow(&community, victim, to.clone());
        community.wait_whole();
    }
    drop(community);
    let theirs = serf::measure();
    rows.extend(beside(&ours, theirs.as_ref().ok()));
    if let Err(why) = theirs {
        rows.push(Row::new("serf, beside it", "", format!("not measured: {why}")));
    }
    rows
}

fn beside(ours: &Times, theirs: Option<&Times>) -> Vec<Row> {
    let median = |values: &[f64]| spread(values.to_vec()).1;
    let row = |what: &str, goal, ratio: f64, ours: &[f64], theirs: Option<&[f64]>| {
        let mut text = millis(ours);
        let row = match theirs {
            Some(theirs) => {
                let share = median(ours) / median(theirs);
                text.push_str(&format!("; serf {}; {share:.2}×", millis(theirs)));
                Row::new(format!("{what}, {NODES} nodes"), goal, text).kept(share <= ratio)
            }
            None => Row::new(format!("{what}, {NODES} nodes"), goal, text),
        };
        vec![row]
    };
    let mut rows = row(
        "broadcast until all have it",
        "≤ 0.2× serf",
        0.2,
        &ours.cast,
        theirs.map(|t| t.cast.as_slice()),
    );
    rows.extend(row(
        "start of a node until all know it joined",
        "≤ 0.5× serf",
        0.5,
        &ours.join,
        theirs.map(|t| t.join.as_slice()),
    ));
    rows.extend(row(
        "`kill -9` until all know it is gone",
        "≤ 0.6× serf",
        0.6,
        &ours.death,
        theirs.map(|t| t.death.as_slice()),
    ));
    rows
}
