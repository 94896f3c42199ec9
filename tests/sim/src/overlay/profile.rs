//! Whole runs: a profile says what a community goes through, the report what came of it.

use std::fmt::Write as _;

use dugnad_kernel::{Duration, Id};

use super::measure::{Traffic, resident_kb};
use super::{Gone, Options, Watch, World};
use crate::net::NetOptions;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Nothing happens.
    Idle,
    /// Nodes crash after sessions of random length; as many come.
    Churn,
    /// Joins and leaves only.
    Graceful,
    /// Half of the nodes die in one instant.
    KillHalf,
    /// Ten times the nodes come, one after the other.
    Growth,
    /// Two rings that were one become one again.
    Merge,
    /// All join at once through one.
    Storm,
}

impl Profile {
    pub const ALL: [(&'static str, Self); 7] = [
        ("idle", Self::Idle),
        ("churn", Self::Churn),
        ("graceful", Self::Graceful),
        ("kill-half", Self::KillHalf),
        ("growth", Self::Growth),
        ("merge", Self::Merge),
        ("storm", Self::Storm),
    ];
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name);
        let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
        known.map(|(_, profile)| *profile).ok_or_else(|| format!("one of {}", names.join(", ")))
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub profile: Profile,
    pub nodes: u32,
    pub seed: u64,
    pub net: NetOptions,
    pub watch: Watch,
    /// Simulated minutes that are measured.
    pub minutes: u64,
    /// Median session of a node, in minutes.
    pub session: f64,
    /// Lookups of the whole community per second.
    pub lookups: f64,
    pub verbose: bool,
}

impl Plan {
    #[must_use]
    pub fn new(profile: Profile, nodes: u32, seed: u64) -> Self {
        Self {
            profile,
            nodes,
            seed,
            net: NetOptions::default(),
            watch: Watch::Node,
            minutes: 10,
            session: 10.0,
            lookups: 0.0,
            verbose: false,
        }
    }

    #[must_use]
    pub fn world(&self) -> World {
        World::new(Options {
            seed: self.seed,
            net: self.net.clone(),
            watch: self.watch,
            verbose: self.verbose,
        })
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub world_trace: String,
    pub wrong: Option<String>,
    /// What the whole community is like at the end.
    pub ideal: Result<(), String>,
    pub nodes: usize,
    pub minutes: f64,
    pub traffic: Traffic,
    pub kb_per_node: u64,
    pub text: String,
}

/// Runs a plan.
#[must_use]
pub fn run(plan: &Plan) -> (World, Report) {
    let before = resident_kb();
    let mut world = plan.world();
    let mut notes = String::new();
    let (from, earlier) = match plan.profile {
        Profile::Idle => idle(plan, &mut world),
        Profile::Churn => churn(plan, &mut world),
        Profile::Graceful => graceful(plan, &mut world),
        Profile::KillHalf => kill_half(plan, &mut world, &mut notes),
        Profile::Growth => growth(plan, &mut world, &mut notes),
        Profile::Merge => merge(plan, &mut world, &mut notes),
        Profile::Storm => storm(plan, &mut world, &mut notes),
    };
    let resident = resident_kb().saturating_sub(before);
    let minutes = (world.now - from).as_secs_f64() / 60.0;
    let report = Report::of(plan, &world, &earlier, minutes, resident, notes);
    (world, report)
}

impl Report {
    #[must_use]
    pub fn of(
        plan: &Plan,
        world: &World,
        earlier: &Traffic,
        minutes: f64,
        resident_kb: u64,
        notes: String,
    ) -> Self {
        let nodes = world.alive().len();
        let traffic = world.traffic.since(earlier);
        let mut report = Self {
            world_trace: world.trace(),
            wrong: world.checks.wrong().map(Into::into),
            ideal: world.ideal(),
            nodes,
            minutes,
            traffic,
            kb_per_node: resident_kb / (world.nodes.len() as u64).max(1),
            text: String::new(),
        };
        report.text = report.write(plan, world, &notes);
        report
    }

    /// Messages and bytes that a node sends in a minute.
    #[must_use]
    pub fn per_node_minute(&self) -> (f64, f64) {
        let (messages, bytes) = self.traffic.total();
        let per = (self.nodes as f64 * self.minutes).max(f64::MIN_POSITIVE);
        (messages as f64 / per, bytes as f64 / per)
    }

    fn write(&self, plan: &Plan, world: &World, notes: &str) -> String {
        let mut out = String::new();
        let name = Profile::ALL.iter().find(|(_, p)| *p == plan.profile).map_or("", |(n, _)| n);
        let (nodes, seed) = (plan.nodes, plan.seed);
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!("cargo sim -- --nodes {nodes} --profile {name} --seed {seed}"));
        line(format!("  {} nodes at the end, {:.1} s", self.nodes, world.now.0 as f64 / 1e6));
        for note in notes.lines() {
            line(format!("  {note}"));
        }
        let (messages, bytes) = self.per_node_minute();
        line(format!(
            "  a node and minute: {messages:.1} messages, {bytes:.0} bytes ({:.0} B/s) sent",
            bytes / 60.0
        ));
        let per = (self.nodes as f64 * self.minutes).max(f64::MIN_POSITIVE);
        for (kind, m, b) in self.traffic.kinds().filter(|(_, m, _)| *m > 0) {
            let (m, b) = (m as f64 / per, b as f64 / per);
            line(format!("    {kind:<10} {m:8.2} messages {b:9.1} bytes"));
        }
        let (links, sessions) = world.net.sizes();
        let per = world.nodes.len().max(1);
        line(format!(
            "  memory: {} kB a node (growth of the resident set, the simulator's own included); \
             {:.1} links met, {:.1} sessions a node",
            self.kb_per_node,
            2.0 * links as f64 / per as f64,
            2.0 * sessions as f64 / per as f64
        ));
        lookups(world, &mut line);
        line(format!(
            "  deaths declared {}, of nodes that lived {}",
            world.deaths, world.false_deaths
        ));
        let counters: Vec<String> =
            world.counters().iter().map(|(name, count)| format!("{name} {count}")).collect();
        line(format!("  counters: {}", counters.join(", ")));
        line(format!("  ring: {}", self.ideal.as_ref().err().map_or("ideal", |wrong| wrong)));
        if let Some(wrong) = &self.wrong {
            line(format!("  WRONG: {wrong}"));
        }
        let (delivered, trace) = (world.delivered, &self.world_trace);
        line(format!("  {delivered} messages delivered, trace {trace}"));
        out
    }
}

fn lookups(world: &World, line: &mut impl FnMut(String)) {
    let looked = &world.lookups;
    if looked.asked == 0 {
        return;
    }
    let (mean, p99, max) = looked.hops_summary();
    let (median, slow, slowest) = looked.time_summary();
    line(format!(
        "  lookups: {} asked, {:.3} % right, {} wrong and certain, {} wrong and unsure, \
         {} failed, {} unsure, {} open, {} of crashed askers",
        looked.asked,
        100.0 * looked.success(),
        looked.wrong_certain,
        looked.wrong_unsure,
        looked.failed,
        looked.unsure,
        looked.open.len(),
        looked.abandoned
    ));
    line(format!(
        "  hops: mean {mean:.2}, p99 {p99}, max {max}; \
         time: median {median} ms, p99 {slow} ms, max {slowest} ms"
    ));
}

/// Runs for a while with lookups from random nodes for random keys.
pub fn run_with_lookups(world: &mut World, span: Duration, per_second: f64) {
    let end = world.now + span;
    if per_second <= 0.0 {
        return world.run_for(span);
    }
    while world.now < end && world.checks.wrong().is_none() {
        let pause = Duration::from_secs_f64(-(1.0 - world.rng.f64()).ln() / per_second);
        world.run_for(pause.min(end - world.now));
        ask_some(world, 1);
    }
}

/// Random members look up random keys, now. (Who is not inside yet cannot ask.)
pub fn ask_some(world: &mut World, count: usize) {
    for _ in 0..count {
        let key = Id(world.rng.u128(..));
        let from = (0..8).find_map(|_| world.some().filter(|n| world.is_inside(*n)));
        if let Some(from) = from {
            world.lookup(from, key);
        }
    }
}

type Start = (dugnad_kernel::Time, Traffic);

fn started(world: &World) -> Start {
    (world.now, world.traffic.clone())
}

/// A ring that stands, after its first two minutes.
fn planted(plan: &Plan, world: &mut World) -> Start {
    world.plant(plan.nodes);
    world.run_for(2 * MINUTE);
    world.checks.own = true;
    started(world)
}

fn idle(plan: &Plan, world: &mut World) -> Start {
    let start = planted(plan, world);
    run_with_lookups(world, MINUTE * plan.minutes as u32, plan.lookups);
    start
}

/// How long a node stays, with this median.
fn session(world: &mut World, median_minutes: f64) -> Duration {
    let mean = median_minutes * 60.0 / std::f64::consts::LN_2;
    Duration::from_secs_f64(-mean * (1.0 - world.rng.f64()).ln())
}

fn churn(plan: &Plan, world: &mut World) -> Start {
    let start = planted(plan, world);
    let end = world.now + MINUTE * plan.minutes as u32;
    let mut ends = std::collections::BTreeSet::new();
    for number in 0..plan.nodes {
        let stays = session(world, plan.session);
        ends.insert((world.now + stays, number));
    }
    while let Some((at, number)) = ends.pop_first() {
        let next = at.min(end);
        run_with_lookups(world, next - world.now, plan.lookups);
        if at >= end || world.checks.wrong().is_some() {
            break;
        }
        let how = if world.rng.bool() { Gone::Closed } else { Gone::Silent };
        world.crash(number, how);
        let seeds = world.ways_in();
        if !seeds.is_empty() {
            world.replace(number, &seeds);
            world.start(number);
        }
        let stays = session(world, plan.session);
        ends.insert((world.now + stays, number));
    }
    start
}

fn graceful(plan: &Plan, world: &mut World) -> Start {
    let start = planted(plan, world);
    let end = world.now + MINUTE * plan.minutes as u32;
    // As many come and go as with sessions of this length.
    let mean = plan.session * 60.0 / std::f64::consts::LN_2 / f64::from(plan.nodes.max(1));
    while world.now < end && world.checks.wrong().is_none() {
        let pause = Duration::from_secs_f64(-mean * (1.0 - world.rng.f64()).ln());
        run_with_lookups(world, pause.min(end - world.now), plan.lookups);
        let Some(leaver) = world.some() else { break };
        world.leave(leaver);
        let seeds = world.ways_in();
        let free = world.nodes.iter().position(|m| m.overlay.is_none()).map(|n| n as u32);
        let number = match free {
            Some(number) => {
                world.replace(number, &seeds);
                number
            }
            None => world.add(&seeds),
        };
        world.start(number);
    }
    run_with_lookups(world, MINUTE, plan.lookups);
    start
}

fn kill_half(plan: &Plan, world: &mut World, notes: &mut String) -> Start {
    planted(plan, world);
    let mut all = world.alive();
    world.rng.shuffle(&mut all);
    for number in all.iter().take(all.len() / 2) {
        world.crash(*number, Gone::Silent);
    }
    let start = started(world);
    world.run_for(MINUTE);
    let count = 20 * plan.nodes as usize;
    ask_some(world, count);
    world.run_for(MINUTE);
    let success = 100.0 * world.lookups.success();
    let _ = writeln!(notes, "{success:.2} % of lookups asked after one minute are right");
    let since = world.now;
    let healed = world.run_until(20 * MINUTE, SECOND, |w| w.ideal().is_ok());
    let took = (world.now - since).as_secs_f64() + 120.0;
    let what = if healed { "ideal" } else { "NOT ideal" };
    let _ = writeln!(notes, "{what} {took:.0} s after the crash");
    start
}

fn growth(plan: &Plan, world: &mut World, notes: &mut String) -> Start {
    world.plant((plan.nodes / 100).max(2));
    world.run_for(2 * MINUTE);
    world.checks.own = true;
    let start = started(world);
    while (world.nodes.len() as u32) < plan.nodes && world.checks.wrong().is_none() {
        let Some(seed) = world.some() else { break };
        let number = world.add(&[seed]);
        world.start(number);
        let pause = Duration::from_millis(world.rng.u64(0..1_000));
        world.run_for(pause);
    }
    let limit = 10 * MINUTE;
    let ideal = world.run_until(limit, SECOND, |w| w.ideal().is_ok());
    let _ = writeln!(notes, "ideal after growth: {ideal}, {:.0} s", world.now.0 as f64 / 1e6);
    run_with_lookups(world, MINUTE * plan.minutes as u32, plan.lookups);
    start
}

fn merge(plan: &Plan, world: &mut World, notes: &mut String) -> Start {
    planted(plan, world);
    world.partition(|number| number % 2, 0.0);
    world.run_for(5 * MINUTE);
    let start = started(world);
    let since = world.now;
    world.heal();
    let merged = world.run_until(20 * MINUTE, SECOND, |w| w.ideal().is_ok());
    let took = (world.now - since).as_secs_f64();
    let what = if merged { "one ring" } else { "NOT one ring" };
    let messages = world.traffic.since(&start.1).of("merge").0;
    let per = messages as f64 / f64::from(plan.nodes.max(1));
    let _ = writeln!(notes, "{what} {took:.0} s after the heal, {per:.1} merge messages a node");
    start
}

fn storm(plan: &Plan, world: &mut World, notes: &mut String) -> Start {
    let first = world.add(&[]);
    world.start(first);
    world.run_for(SECOND);
    let start = started(world);
    for _ in 1..plan.nodes {
        let number = world.add(&[first]);
        world.start(number);
    }
    let since = world.now;
    let inside = |w: &World| {
        w.nodes.iter().all(|m| m.overlay.as_ref().is_some_and(|o| o.ring().is_member()))
    };
    world.run_until(20 * MINUTE, SECOND, inside);
    let joined = (world.now - since).as_secs_f64();
    world.run_until(20 * MINUTE, SECOND, |w| w.ideal().is_ok());
    let ideal = (world.now - since).as_secs_f64();
    let _ = writeln!(notes, "all inside after {joined:.0} s, ideal after {ideal:.0} s");
    start
}
