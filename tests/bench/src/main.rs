//! `cargo run --release -p dugnad-bench`: measures one node in a community of five, and what the
//! community does, beside the budgets of ARCHITECTURE.md. Every figure is measured in this run.
//!
//! The agents are the release program (or `DUGNAD_BIN`), each a real process on loopback. The
//! silent node needs root and network namespaces; without them its row says so.

mod boards;
mod dht;
mod events;
mod gateway;
mod idle;
mod netns;
mod nine;
mod overlay;
mod serf;
mod speed;
mod store;
mod swarm;

use std::fmt::Write as _;

use dugnad_cluster::program;

/// One line of the table.
pub(crate) struct Row {
    what: String,
    budget: &'static str,
    measured: String,
    /// `None` where there is no budget.
    kept: Option<bool>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, budget: &'static str, measured: String) -> Self {
        Self { what: what.into(), budget, measured, kept: None }
    }

    pub(crate) fn kept(mut self, kept: bool) -> Self {
        self.kept = Some(kept);
        self
    }
}

/// Least, middle and most of some figures.
pub(crate) fn spread(mut seconds: Vec<f64>) -> (f64, f64, f64) {
    seconds.sort_by(f64::total_cmp);
    let at = |place: usize| seconds.get(place).copied().unwrap_or(f64::NAN);
    (at(0), at(seconds.len() / 2), at(seconds.len().saturating_sub(1)))
}

pub(crate) fn seconds(values: Vec<f64>) -> (String, f64) {
    let count = values.len();
    let (least, middle, most) = spread(values);
    (format!("{middle:.2} s (n={count}, {least:.2} to {most:.2})"), most)
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| word == name);
    let mut rows = Vec::new();
    if wanted("size") {
        rows.push(size());
    }
    if wanted("idle") {
        rows.extend(idle::rows());
    }
    if wanted("deploy") {
        rows.extend(speed::deploy());
    }
    if wanted("kill") {
        rows.push(speed::kill());
    }
    if wanted("silent") {
        rows.push(netns::silent());
    }
    if wanted("events") {
        rows.extend(events::rows());
    }
    if wanted("overlay") {
        rows.extend(overlay::rows());
    }
    // Only on request: it wants caddy, nginx and wrk.
    if only.iter().any(|word| word == "gateway") {
        rows.extend(gateway::rows());
    }
    // Only on request: they take minutes, and want redis and Docker's engine.
    if only.iter().any(|word| word == "nine") {
        rows.extend(nine::rows());
    }
    if only.iter().any(|word| word == "swarm") {
        rows.extend(swarm::rows());
    }
    // Only on request: it wants etcd, and builds a client for it.
    if only.iter().any(|word| word == "store") {
        rows.extend(store::rows());
    }
    // Only on request: it wants emulators.
    if only.iter().any(|word| word == "boards") {
        rows.extend(boards::rows());
    }
    // Only on request: building the others takes minutes.
    if only.iter().any(|word| word == "dht") {
        rows.extend(dht::rows());
    }
    println!("\n{}", table(&rows));
}

fn size() -> Row {
    let bytes = std::fs::metadata(program()).map_or(0, |file| file.len());
    let megabytes = format!("{:.2} MB ({bytes} bytes)", bytes as f64 / 1e6);
    Row::new("stripped program, glibc, dynamic", "≤ 3 MB (musl, static)", megabytes)
        .kept(bytes <= 3_000_000)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | budget | measured | |\n|---|---|---|---|\n");
    for row in rows {
        let mark = match row.kept {
            Some(true) => "kept",
            Some(false) => "**missed**",
            None => "",
        };
        // Writing into a String cannot fail.
        let _: Result<(), std::fmt::Error> =
            writeln!(text, "| {} | {} | {} | {mark} |", row.what, row.budget, row.measured);
    }
    text
}
