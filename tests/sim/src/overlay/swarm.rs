//! Random faults from one seed: first safety under any of them, then the world is made whole and
//! must come into order (PROTOCOL.md 12.1, 12.3). A failing run is made smaller, fault by fault and
//! node by node.

use std::collections::BTreeSet;
use std::fmt;

use dugnad_kernel::{Duration, Id, Time};

use super::{Gone, Options, Watch, World};
use crate::net::{Latency, NetOptions, mix};

const SECOND: Duration = Duration::from_secs(1);
/// A world that was made whole is in order again after this.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Nodes beyond those of the beginning that may come.
const NEWCOMERS: u32 = 24;

/// What happens to whom. Nodes are named by number; one that is not in the state for it is left
/// alone, so that any part of a schedule is a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A new node, or one that crashed or left, with a higher incarnation.
    Start(u32),
    Leave(u32),
    Crash(u32, Gone),
    /// All nodes of a home lose power: every fourth number.
    Site(u32),
    /// The first nodes, through which others join.
    Bootstrap,
    Pause(u32, u64),
    /// Microseconds an event costs it.
    Slow(u32, u64),
    CutOneWay(u32, u32),
    Cut(u32, u32),
    /// Into so many groups; some pairs across still connect.
    Partition {
        groups: u32,
        salt: u64,
        leaky: bool,
    },
    Heal,
    MassJoin(u32),
    MassLeave {
        share: u32,
        salt: u64,
    },
    /// One of the latest ring messages comes once more.
    Replay(usize),
    Cast(u32, bool),
    Lookups(u32),
}

#[derive(Clone, Debug)]
pub struct Scheduled {
    pub at: Time,
    pub fault: Fault,
}

/// A run: what the network is like, and what happens when.
#[derive(Clone, Debug)]
pub struct Swarm {
    pub seed: u64,
    pub nodes: u32,
    pub net: NetOptions,
    /// Share of the pairs that cannot connect while faults happen.
    pub blocked: f64,
    /// No crash takes the last live entry of a successor list (Zave's assumption R1).
    pub gentle: bool,
    /// Only joins and leaves: every answer must be right, every id have one owner.
    pub graceful: bool,
    pub faults: Vec<Scheduled>,
}

/// Which part of a swarm is played.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Places of the faults that happen; all if none are named.
    pub only: Option<BTreeSet<usize>>,
    /// Nodes that never start.
    pub without: BTreeSet<u32>,
}

/// Why a run failed.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many nodes a seed begins with, if nobody says.
#[must_use]
pub fn nodes_of(seed: u64) -> u32 {
    (3 + mix(seed, 0x006e_6f64_6573) % 22) as u32
}

impl Swarm {
    /// Everything that the seed decides.
    #[must_use]
    pub fn of(seed: u64, nodes: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(mix(seed, 0x0073_7761_726d));
        let latency = match rng.u8(0..5) {
            0 => Latency::Lan,
            1 => Latency::Home,
            2 => Latency::Mobile,
            _ => Latency::Range(1..rng.u64(3..150)),
        };
        let loss = [0.0, 0.0, 0.002, 0.02][rng.usize(0..4)];
        let bursts = rng.u8(0..4) == 0;
        let graceful = rng.u8(0..4) == 0;
        let blocked = if !graceful && rng.u8(0..8) == 0 { 0.03 } else { 0.0 };
        let gentle = rng.bool();
        // Every kind is on or off for the whole run, so that some runs are all of one thing.
        let kinds: Vec<u8> = (0..16).filter(|_| rng.u8(0..3) > 0).collect();
        let pace = rng.u64(300..8_000);
        let mut swarm = Self {
            seed,
            nodes,
            net: NetOptions { latency, loss, bursts, blocked: 0.0 },
            blocked,
            gentle,
            graceful,
            faults: Vec::new(),
        };
        let mut at = 20_000;
        let end = at + rng.u64(30_000..240_000);
        while at < end && swarm.faults.len() < 400 {
            at += rng.u64(0..pace);
            if let Some(fault) = swarm.pick(&kinds, &mut rng) {
                swarm.faults.push(Scheduled { at: Time(at * 1000), fault });
            }
        }
        swarm
    }

    fn pick(&self, kinds: &[u8], rng: &mut fastrand::Rng) -> Option<Fault> {
        let all = self.nodes + NEWCOMERS;
        let one = rng.u32(0..all);
        let other = rng.u32(0..all);
        let how = if rng.bool() { Gone::Closed } else { Gone::Silent };
        let (number, flag) = (rng.u64(..), rng.bool());
        // Coming and going is half of it.
        let kind = if rng.bool() { rng.u8(0..4) } else { *rng.choice(kinds)? };
        let fault = match kind {
            0 | 1 => Fault::Start(one),
            2 => Fault::Leave(one),
            3 if self.graceful => Fault::Leave(one),
            3 => Fault::Crash(one, how),
            4 => Fault::Cast(one, flag),
            5 => Fault::Lookups(one % 20 + 1),
            6 if flag => Fault::MassJoin(one % 8 + 2),
            6 => Fault::MassLeave { share: one % 40 + 10, salt: number },
            _ if self.graceful => return None,
            7 => Fault::Pause(one, 200 + number % 20_000),
            8 => Fault::Slow(one, number % 100_000),
            9 => Fault::CutOneWay(one, other),
            10 => Fault::Cut(one, other),
            11 if flag => {
                Fault::Partition { groups: 2 + one % 2, salt: number, leaky: number % 3 == 0 }
            }
            12 if flag => Fault::Site(one % 4),
            13 if flag => Fault::Bootstrap,
            14 => Fault::Replay(one as usize),
            _ => Fault::Heal,
        };
        Some(fault)
    }

    /// Whether everybody always reaches everybody in time, so that there is one ring throughout.
    fn one_ring(&self) -> bool {
        let parts = |fault: &Fault| {
            matches!(
                fault,
                Fault::Pause(..)
                    | Fault::Slow(..)
                    | Fault::Cut(..)
                    | Fault::CutOneWay(..)
                    | Fault::Partition { .. }
                    | Fault::Site(_)
                    | Fault::Bootstrap
                    | Fault::Replay(_)
            )
        };
        self.gentle
            && self.blocked == 0.0
            && self.net.latency != Latency::Mobile
            && !self.net.bursts
            && !self.faults.iter().any(|s| parts(&s.fault))
    }

    /// Plays it; the world at its end, or what was wrong.
    ///
    /// # Errors
    /// The first thing that did not hold.
    pub fn play(&self, part: &Part, verbose: bool) -> Result<World, Failure> {
        let mut world = World::new(Options {
            seed: self.seed,
            net: self.net.clone(),
            watch: Watch::Every,
            verbose,
        });
        let all = self.nodes + NEWCOMERS;
        let runs = |number: u32| !part.without.contains(&number);
        let Some(first) = (0..all).find(|n| runs(*n)) else { return Ok(world) };
        for number in 0..all {
            let seeds = if number == first { vec![] } else { vec![first] };
            world.add(&seeds);
        }
        for number in (0..self.nodes).filter(|n| runs(*n)) {
            world.start(number);
            world.run_for(Duration::from_millis(200));
        }
        world.checks.replays = self.faults.iter().any(|s| matches!(s.fault, Fault::Replay(_)));
        let whole = |w: &World| w.ideal().is_ok();
        if !world.run_until(LIMIT, SECOND, whole) {
            return Err(self.failure(&world, "before any fault"));
        }
        world.checks.own = true;
        world.checks.one_ring = self.one_ring();
        if self.blocked > 0.0 {
            world.net.block(self.blocked);
            world.checks.parted(world.now);
        }
        let begin = world.now;
        for (place, Scheduled { at, fault }) in self.faults.iter().enumerate() {
            if part.only.as_ref().is_some_and(|only| !only.contains(&place)) {
                continue;
            }
            let at = begin + Duration::from_micros(at.0);
            world.run_for(at.since(world.now));
            if world.checks.wrong().is_some() {
                break;
            }
            if verbose {
                eprintln!("{:9.3} fault {place}: {fault:?}", world.now.0 as f64 / 1e6);
            }
            if world.net.is_whole() && world.ideal().is_ok() {
                world.checks.whole();
            }
            self.apply(&mut world, *fault, &runs);
        }
        self.settle(world)
    }

    fn apply(&self, world: &mut World, fault: Fault, runs: &impl Fn(u32) -> bool) {
        let off = |w: &World, n: u32| w.overlay(n).is_none() && runs(n);
        let on = |w: &World, n: u32| w.overlay(n).is_some();
        match fault {
            Fault::Start(n) if off(world, n) => start(world, n),
            Fault::Leave(n) if on(world, n) && world.alive().len() > 1 => world.leave(n),
            Fault::Crash(n, how) => self.crash(world, n, how),
            Fault::Site(site) => {
                for n in world.alive().into_iter().filter(|n| n % 4 == site) {
                    self.crash(world, n, Gone::Silent);
                }
            }
            Fault::Bootstrap => {
                for n in world.alive().into_iter().take(2) {
                    self.crash(world, n, Gone::Closed);
                }
            }
            Fault::Pause(n, ms) if on(world, n) => world.pause(n, Duration::from_millis(ms)),
            Fault::Slow(n, micros) if on(world, n) => world.slow(n, micros),
            Fault::CutOneWay(a, b) => world.cut_one_way(a, b),
            Fault::Cut(a, b) => world.cut(a, b),
            Fault::Partition { groups, salt, leaky } => {
                let group = |n: u32| (mix(salt, u64::from(n)) % u64::from(groups)) as u32;
                world.partition(group, if leaky { 0.01 } else { 0.0 });
            }
            Fault::Heal => world.heal(),
            Fault::MassJoin(count) => {
                let all = self.nodes + NEWCOMERS;
                let coming: Vec<u32> = (0..all).filter(|n| off(world, *n)).collect();
                for n in coming.into_iter().take(count as usize) {
                    start(world, n);
                }
            }
            Fault::MassLeave { share, salt } => {
                let leaves = |n: &u32| mix(salt, u64::from(*n)) % 100 < u64::from(share);
                let alive = world.alive();
                for n in alive.iter().skip(1).copied().filter(leaves) {
                    world.leave(n);
                }
            }
            Fault::Replay(which) => world.replay(which),
            Fault::Cast(n, feedback) if on(world, n) => {
                world.cast(n, feedback);
            }
            Fault::Lookups(count) => super::profile::ask_some(world, count as usize),
            _ => {}
        }
    }

    fn crash(&self, world: &mut World, number: u32, how: Gone) {
        let members = world.alive().len();
        if members > 1 && (!self.gentle || world.spares(number)) {
            world.crash(number, how);
        }
    }

    /// Everything is made whole; then the ring must be ideal, stay so, and answer.
    fn settle(&self, mut world: World) -> Result<World, Failure> {
        if world.checks.wrong().is_none() {
            world.make_whole();
        }
        let healed = world.now;
        let all_right = |w: &World| w.ideal().is_ok();
        if !world.run_until(LIMIT, SECOND, all_right) {
            return Err(self.failure(&world, "not in order after it was made whole"));
        }
        world.settled_after = world.now.since(healed);
        world.checks.whole();
        world.run_for(Duration::from_secs(60));
        // Z7: an ideal ring stays as it is.
        let before = world.ring_changes();
        world.run_for(Duration::from_secs(130));
        if world.ring_changes() != before {
            let what = format!("Z7: an ideal ring changed, last {:?}", world.checks.last_change);
            return Err(self.failure(&world, &what));
        }
        let judged = (world.lookups.right, world.lookups.asked);
        let casts = world.casts.len();
        let alive = world.alive();
        for n in &alive {
            for _ in 0..3 {
                let key = Id(world.rng.u128(..));
                world.lookup(*n, key);
            }
        }
        let from = world.some().unwrap_or(0);
        world.cast(from, true);
        world.run_for(Duration::from_secs(20));
        let (right, asked) = (world.lookups.right - judged.0, world.lookups.asked - judged.1);
        if right != asked {
            return Err(self.failure(&world, &format!("quiet: {right} of {asked} lookups right")));
        }
        let reached = world.casts.values().map(Vec::len).max().unwrap_or(0);
        let complete = world.feedbacks.last().is_some_and(|(_, complete)| *complete);
        // A mobile network is too slow for the budget of a broadcast now and then.
        if self.net.latency != Latency::Mobile && (world.casts.len() == casts || !complete) {
            let text = format!("quiet: a broadcast is not complete ({reached} reached)");
            return Err(self.failure(&world, &text));
        }
        // A node that nobody let in answers for itself: that is a second ring, not a wrong one.
        let one = !world.checks.sometimes.contains_key("second_ring");
        if self.graceful && one && world.lookups.wrong_certain > 0 {
            let text = format!("I4: {} certain answers are wrong", world.lookups.wrong_certain);
            return Err(self.failure(&world, &text));
        }
        match world.checks.wrong() {
            Some(_) => Err(self.failure(&world, "")),
            None => Ok(world),
        }
    }

    fn failure(&self, world: &World, what: &str) -> Failure {
        let ideal = world.ideal().err().unwrap_or_default();
        let wrong = world.checks.wrong().map_or_else(|| format!("{what}: {ideal}"), Into::into);
        Failure(wrong)
    }

    /// The line that repeats it.
    #[must_use]
    pub fn line(&self, part: &Part) -> String {
        let mut line =
            format!("cargo sim -- --nodes {} --profile swarm --seed {}", self.nodes, self.seed);
        if let Some(only) = &part.only {
            line += &format!(" --only {}", numbers(only.iter()));
        }
        if !part.without.is_empty() {
            line += &format!(" --without {}", numbers(part.without.iter()));
        }
        line
    }

    /// A smaller part that fails in the same way, and how; `part` must fail.
    #[must_use]
    pub fn shrink(&self, part: &Part, failure: Failure, tries: usize) -> (Part, Failure) {
        let all: BTreeSet<usize> = (0..self.faults.len()).collect();
        let only = Some(part.only.clone().unwrap_or(all));
        let mut best = (Part { only, without: part.without.clone() }, failure);
        let mut left = tries;
        let mut chunk = self.faults.len().div_ceil(2).max(1);
        loop {
            let mut smaller = false;
            let places: Vec<usize> = best.0.only.iter().flatten().copied().collect();
            for drop in places.chunks(chunk) {
                let mut part = best.0.clone();
                part.only.iter_mut().for_each(|only| only.retain(|place| !drop.contains(place)));
                smaller |= self.try_part(part, &mut best, &mut left);
            }
            if chunk == 1 && !smaller || left == 0 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        for number in 0..self.nodes + NEWCOMERS {
            let mut part = best.0.clone();
            if part.without.insert(number) {
                self.try_part(part, &mut best, &mut left);
            }
        }
        best
    }

    fn try_part(&self, part: Part, best: &mut (Part, Failure), left: &mut usize) -> bool {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        match self.play(&part, false) {
            Err(failure) if kind_of(&failure) == kind_of(&best.1) => {
                *best = (part, failure);
                true
            }
            _ => false,
        }
    }

    /// The faults of a part, one a line.
    #[must_use]
    pub fn story(&self, part: &Part) -> String {
        let played = |place: &usize| part.only.as_ref().is_none_or(|only| only.contains(place));
        let line = |(place, s): (usize, &Scheduled)| {
            format!("{place:4} {:8.3} s {:?}\n", s.at.0 as f64 / 1e6, s.fault)
        };
        self.faults.iter().enumerate().filter(|(place, _)| played(place)).map(line).collect()
    }
}

fn numbers<T: fmt::Display>(numbers: impl Iterator<Item = T>) -> String {
    let all: Vec<String> = numbers.map(|n| n.to_string()).collect();
    if all.is_empty() { "none".into() } else { all.join(",") }
}

/// What failed, without its time and names: the words that begin with a letter, up to a colon.
fn kind_of(failure: &Failure) -> String {
    let text = failure.0.split(" s: ").last().unwrap_or_default();
    text.split([':', ' ']).next().unwrap_or_default().to_string()
}

/// Starts a node that knows some of those that run.
fn start(world: &mut World, number: u32) {
    let alive = world.alive();
    let turn = if alive.is_empty() { 0 } else { number as usize % alive.len() };
    let seeds = alive.iter().cycle().skip(turn).take(alive.len().min(4)).copied().collect();
    world.nodes[number as usize].seeds = seeds;
    world.start(number);
}

impl World {
    /// Whether everybody still has a live successor if this node goes.
    fn spares(&self, number: u32) -> bool {
        let gone = self.id(number);
        self.alive().into_iter().filter(|n| *n != number).all(|n| {
            let Some(ring) = self.overlay(n).map(dugnad_connectivity::Connectivity::ring) else {
                return true;
            };
            let alone = ring.succ().id == ring.me().id;
            let live = |id| self.index.get(&id).is_some_and(|n| self.is_inside(*n));
            !ring.is_member() || alone || ring.succs().iter().any(|p| p.id != gone && live(p.id))
        })
    }

    /// Nothing is cut, lossy, slow or asleep any more; who crashed stays away. If nobody is left,
    /// somebody starts.
    fn make_whole(&mut self) {
        self.heal();
        self.net.calm();
        for machine in &mut self.nodes {
            machine.slow_us = 0;
        }
        if self.alive().is_empty() {
            self.nodes[0].seeds.clear();
            self.start(0);
        }
        // A node that nobody let in, whose way in is gone, is shown another one by a person.
        let alive = self.alive();
        for number in &alive {
            let linked = self.net.peers(self.id(*number));
            if linked.is_empty() && alive.len() > 1 {
                self.nodes[*number as usize].seeds =
                    alive.iter().filter(|n| *n != number).take(4).copied().collect();
                self.redial_now(*number);
            }
        }
    }
}
