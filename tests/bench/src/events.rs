//! Events among twenty real agents, each of which subscribes: how long one takes from the command
//! that publishes it to the line every subscriber reads.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use dugnad_cluster::{Community, PATIENCE, until};
use serde_json::Value;

use super::Row;

const NODES: usize = 20;
const EVENTS: usize = 200;
/// Five a second.
const PACE: Duration = Duration::from_millis(200);

/// Who watches, and the numbers it reads, with the moment.
struct Watcher {
    child: Child,
    lines: Receiver<(u64, Instant)>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn watch(community: &Community, node: usize) -> Watcher {
    let words = ["watch", "-o", "json", "bench.tick"];
    let child = community.prepare(node, &words).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("dugnad watch: {error}"));
    let (to, lines) = channel();
    let from = child.stdout.take().map(BufReader::new);
    thread::spawn(move || {
        for line in from.into_iter().flat_map(BufReader::lines).map_while(Result::ok) {
            let at = Instant::now();
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let Some(n) = event["attributes"]["n"].as_u64() else { continue };
            if to.send((n, at)).is_err() {
                return;
            }
        }
    });
    Watcher { child, lines }
}

pub(crate) fn rows() -> Vec<Row> {
    let community = Community::new("bench-events", NODES);
    let file = community.mark.dir.join("type.toml");
    dugnad_cluster::write(&file, "type = \"bench.tick\"\n[attributes]\nn = \"number\"\n");
    community.ok(0, &["type", "define", &file.to_string_lossy()]);
    let watchers: Vec<Watcher> = (0..NODES).map(|node| watch(&community, node)).collect();
    for watcher in &watchers {
        until("a subscription", PATIENCE, || {
            community.ok(0, &["publish", "bench.tick", "n=0"]);
            watcher.lines.try_recv().map(drop).map_err(|error| error.to_string())
        });
    }
    let (mut begun, mut acknowledged) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for n in 1..=EVENTS {
        // Its pace does not depend on how long each takes.
        let due = start + PACE * u32::try_from(n).unwrap_or(0);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let begin = Instant::now();
        community.ok(n % NODES, &["publish", "bench.tick", &format!("n={n}")]);
        begun.push(begin);
        acknowledged.push(begin.elapsed().as_secs_f64());
    }
    let mut delivered = Vec::new();
    for watcher in &watchers {
        let mut next = 1;
        while next <= EVENTS as u64 {
            let (n, at) = watcher.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| {
                panic!("event {next} did not come: {error}");
            });
            if n == next {
                let place = usize::try_from(n - 1).unwrap_or(0);
                delivered.push(at.duration_since(begun[place]).as_secs_f64());
                next += 1;
            }
        }
    }
    let told = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        let at = |hundredth: usize| all[(all.len() - 1) * hundredth / 100] * 1e3;
        (format!("{:.0} ms, p99 {:.0} ms (n={})", at(50), at(99), all.len()), at(99))
    };
    let ((ack, _), (delivery, late)) = (told(acknowledged), told(delivered));
    vec![
        Row::new("event acknowledged, 20 agents, 5/s, with the start of the command", "", ack),
        Row::new(
            "event at each of 20 subscribers, from the start of the command",
            "p99 ≤ 3 s",
            delivery,
        )
        .kept(late <= 3_000.0),
    ]
}
