//! The figures of PROTOCOL.md 1.3 and 2.12 and others, measured: `cargo sim figures [NAME..]`.
//! Tests run them at a size that fits; the command runs them whole.

use dugnad_kernel::arc::in_co;
use dugnad_kernel::{Duration, NodeId};

use super::profile::{Plan, Profile, Report, ask_some, run};
use super::{Gone, Options, Watch, World};
use crate::net::NetOptions;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// One measured figure beside what is asked of it.
#[derive(Clone, Debug)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub gate: String,
    pub met: bool,
}

impl Figure {
    fn at_most(what: impl Into<String>, value: f64, most: f64) -> Self {
        Self { what: what.into(), value, gate: format!("<= {most}"), met: value <= most }
    }

    fn at_least(what: impl Into<String>, value: f64, least: f64) -> Self {
        Self { what: what.into(), value, gate: format!(">= {least}"), met: value >= least }
    }

    fn near(what: impl Into<String>, value: f64, wanted: f64, by: f64) -> Self {
        let met = (value - wanted).abs() <= by;
        Self { what: what.into(), value, gate: format!("{wanted} +- {by}"), met }
    }
}

/// A name, what it is, and how it is measured; whole, or as large as a test may be.
pub type Measure = (&'static str, &'static str, fn(bool) -> Vec<Figure>);

pub const ALL: [Measure; 15] = [
    ("table", "T1.5: hops of table 1.3, tables only", table),
    ("hops", "T1.5, T3.1: hops of the overlay, successor lists included", hops),
    ("estimator", "T1.6: how many there are", estimator),
    ("storm", "T2.4: 200 join through one", storm),
    ("successors", "T2.6: s successors of one node die at once", successors),
    ("pointers", "T2.8: dead and wrong successor pointers under churn", pointers),
    ("thin", "T3.3: half of the slots are missing", thin),
    ("tenth", "T3.4: a tenth dies at once", tenth),
    ("growth", "T3.6: 10 grow to 1,000", growth),
    ("blocked", "T3.7: a twentieth of the pairs cannot connect", blocked),
    ("idle", "T12.4: nothing happens", idle),
    ("half", "12.7: half die at once", half),
    ("graceful", "12.7: joins and leaves only", graceful),
    ("churn", "12.7: sessions of 60, 10 and 2 minutes", churn),
    ("merge", "12.7: two halves become one ring", merge),
];

fn world(seed: u64) -> World {
    World::new(Options { watch: Watch::Node, ..Options::seed(seed) })
}

fn standing(nodes: u32, seed: u64) -> World {
    let mut world = world(seed);
    world.plant(nodes);
    world.run_for(2 * MINUTE);
    world
}

/// Random lookups until all are answered; how many of a hundred were right.
fn ask(world: &mut World, count: usize) -> f64 {
    let before = (world.lookups.right, world.lookups.ended());
    for _ in 0..count.div_ceil(100) {
        ask_some(world, 100.min(count));
        world.run_for(Duration::from_millis(100));
    }
    world.run_until(MINUTE, SECOND, |w| w.lookups.open.is_empty());
    let ended = world.lookups.ended() - before.1;
    100.0 * (world.lookups.right - before.0) as f64 / ended.max(1) as f64
}

/// Hops in a ring of random ids when everybody knows S(start) of every slot and its successor:
/// the assumptions of table 1.3 (PROTOCOL.md 1.3).
fn static_hops(nodes: usize, bits: u32, lookups: usize, seed: u64) -> (f64, usize, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ids: Vec<u128> = (0..nodes).map(|_| rng.u128(..)).collect();
    ids.sort_unstable();
    let owner = |key: u128| ids.partition_point(|id| *id < key) % nodes;
    let mut counts = vec![0u64; 64];
    for _ in 0..lookups {
        let (mut at, key) = (rng.usize(0..nodes), rng.u128(..));
        let goal = owner(key);
        let mut hops = 0;
        while at != goal {
            hops += 1;
            let me = ids[at];
            let left = key.wrapping_sub(me);
            at = if (at + 1) % nodes == goal {
                goal
            } else {
                // The farthest contact that does not pass the key.
                let contacts = (0..128 / bits).rev().flat_map(|level| {
                    (1..1u128 << bits).rev().map(move |digit| digit << (level * bits))
                });
                let ahead = contacts.filter(|start| *start < left);
                let mut ahead = ahead.map(|start| owner(me.wrapping_add(start)));
                let closer = |c: &usize| ids[*c].wrapping_sub(me).wrapping_sub(1) < left - 1;
                ahead.find(closer).unwrap_or((at + 1) % nodes)
            };
        }
        counts[hops.min(63)] += 1;
    }
    let looked = super::measure::Lookups { hops: counts, ..Default::default() };
    let (mean, p99, _) = looked.hops_summary();
    let max = looked.hops.iter().rposition(|n| *n > 0).unwrap_or(0);
    (mean, p99, max)
}

fn table(whole: bool) -> Vec<Figure> {
    // nodes, bits of k, mean, p99
    let rows = [
        (1_000, 1, 5.82, 9),
        (1_000, 2, 4.89, 7),
        (1_000, 4, 3.68, 5),
        (10_000, 1, 7.51, 11),
        (10_000, 2, 6.13, 9),
        (10_000, 4, 4.45, 6),
        (100_000, 1, 9.17, 14),
        (100_000, 2, 7.38, 10),
        (100_000, 4, 5.22, 7),
    ];
    let rows = rows.into_iter().filter(|(nodes, ..)| whole || *nodes < 100_000);
    rows.flat_map(|(nodes, bits, mean, p99)| {
        let lookups = if whole { 100_000 } else { 20_000 };
        let (got, got_p99, max) = static_hops(nodes, bits, lookups, 5);
        let name = format!("{nodes} nodes, k = {}", 1 << bits);
        let limit = 2.0 * (nodes as f64).ln() / f64::from(1u32 << bits).ln() + 4.0;
        [
            Figure::near(format!("{name}: mean hops"), got, mean, 0.1),
            Figure::near(format!("{name}: p99"), got_p99 as f64, f64::from(p99), 1.0),
            Figure::at_most(format!("{name}: longest, 2 log_k n + 4"), max as f64, limit),
        ]
    })
    .collect()
}

fn hops(whole: bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    // The table's mean less what successor lists save (0.4 with 8 entries), and its p99.
    let rows: &[(u32, f64, f64)] = &[
        (1, 0.0, 0.0),
        (2, 1.0, 1.0),
        (3, 1.0, 2.0),
        (10, 2.0, 4.0),
        (1_000, 4.89, 8.0),
        (10_000, 6.13, 10.0),
    ];
    for (nodes, mean, p99) in rows.iter().filter(|(n, ..)| whole || *n <= 1_000) {
        let mut world = standing(*nodes, 5);
        let right = ask(&mut world, if whole { 20_000 } else { 4_000 });
        let (got, got_p99, max) = world.lookups.hops_summary();
        let limit = 2.0 * f64::from(*nodes).ln() / 4f64.ln() + 4.0;
        figures.push(Figure::at_least(format!("{nodes} nodes: % right"), right, 100.0));
        figures.push(Figure::at_most(format!("{nodes} nodes: mean hops"), got, *mean));
        figures.push(Figure::at_most(format!("{nodes} nodes: p99"), got_p99 as f64, *p99));
        figures.push(Figure::at_most(format!("{nodes} nodes: longest"), max as f64, limit));
    }
    figures
}

fn estimator(_: bool) -> Vec<Figure> {
    let world = standing(200, 5);
    let mut sizes: Vec<u64> = world
        .alive()
        .into_iter()
        .filter_map(|n| Some(world.overlay(n)?.overlay().size()))
        .collect();
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2] as f64;
    vec![Figure::near("200 nodes: median estimate", median, 200.0, 30.0)]
}

fn storm(_: bool) -> Vec<Figure> {
    let mut world = world(5);
    let first = world.add(&[]);
    world.start(first);
    world.run_for(SECOND);
    for _ in 1..=200 {
        let number = world.add(&[first]);
        world.start(number);
    }
    let inside = |w: &World| w.alive().into_iter().all(|n| w.is_inside(n));
    let since = world.now;
    let all = world.run_until(5 * MINUTE, Duration::from_millis(100), inside);
    let took = if all { (world.now - since).as_secs_f64() } else { f64::INFINITY };
    let retries = world.checks.sometimes.get("join_retry").copied().unwrap_or(0);
    let hops = world.traffic.of("join-hop").0;
    let ring = world.traffic.of("ring").0;
    let ideal = world.run_until(5 * MINUTE, SECOND, |w| w.ideal().is_ok());
    vec![
        Figure::at_most("seconds until all are inside", took, 60.0),
        Figure::at_most("refusals a join", retries as f64 / 200.0, 12.0),
        Figure::at_most("hops of join requests a join", hops as f64 / 200.0, 100.0),
        Figure::at_most("messages of the ring a join", ring as f64 / 200.0, 40.0),
        Figure::at_least("ideal", f64::from(u8::from(ideal)), 1.0),
    ]
}

fn successors(whole: bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    let counts: Vec<usize> = if whole { (1..=12).collect() } else { vec![1, 6, 11, 12] };
    for dead in counts {
        let mut world = standing(100, 40 + dead as u64);
        let ring = world.alive_by_id();
        let length = world.overlay(ring[0].1).map_or(12, |o| o.ring().succs().len());
        for (_, number) in ring.iter().skip(1).take(dead) {
            world.crash(*number, Gone::Silent);
        }
        world.run_for(Duration::from_secs(20));
        let (lo, hi) = (ring[0].0, ring[dead + 1].0);
        let before = (world.lookups.right, world.lookups.ended());
        for from in world.alive() {
            let key = lo.plus(world.rng.u128(..) % lo.distance(hi).max(1));
            world.lookup(from, key);
        }
        world.run_until(MINUTE, SECOND, |w| w.lookups.open.is_empty());
        let ended = world.lookups.ended() - before.1;
        let right = 100.0 * (world.lookups.right - before.0) as f64 / ended.max(1) as f64;
        let ideal = world.run_until(3 * MINUTE, SECOND, |w| w.ideal().is_ok());
        let wrong = world.ideal().err().unwrap_or_default();
        let what = format!("{dead} of {length} successors dead");
        if dead < length {
            figures.push(Figure::at_least(format!("{what}: % right after 20 s"), right, 100.0));
        }
        let what = format!("{what}: ideal {wrong}");
        figures.push(Figure::at_least(what, f64::from(u8::from(ideal)), 1.0));
    }
    figures
}

/// Shares of first successor pointers that are dead, and that are not the next live member.
fn pointer_shares(world: &World) -> (f64, f64) {
    let all = world.alive_by_id();
    let members: Vec<(NodeId, u32)> =
        all.into_iter().filter(|(_, n)| world.is_inside(*n)).collect();
    let (mut dead, mut wrong) = (0, 0);
    for (place, (_, number)) in members.iter().enumerate() {
        let Some(overlay) = world.overlay(*number) else { continue };
        let succ = overlay.ring().succ().id;
        let lives = world.number(succ).is_some_and(|n| world.overlay(n).is_some());
        dead += usize::from(!lives);
        wrong += usize::from(succ != members[(place + 1) % members.len()].0);
    }
    let count = members.len().max(1) as f64;
    (dead as f64 / count, wrong as f64 / count)
}

/// The formula counts on stabilisation alone (3 s while young). The detector sees a closed
/// connection sooner and a silent machine later, so only the first kind is held against it.
fn pointers(whole: bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    let xs: &[u32] = if whole { &[30, 100, 300] } else { &[100] };
    for x in xs {
        for how in [Gone::Closed, Gone::Silent] {
            let (nodes, rounds) = (200, if whole { 120 } else { 40 });
            let mut world = standing(nodes, 5);
            let mean = 3.0 * f64::from(*x);
            let (mut dead, mut wrong) = (0.0, 0.0);
            for _ in 0..rounds {
                let end = world.now + Duration::from_secs(5);
                while world.now < end {
                    let pause = -mean / f64::from(nodes) * (1.0 - world.rng.f64()).ln();
                    let pause = Duration::from_secs_f64(pause);
                    if world.now + pause >= end {
                        // Memoryless: what is left of the pause begins anew.
                        world.run_for(end - world.now);
                        break;
                    }
                    world.run_for(pause);
                    let Some(number) = world.some() else { break };
                    world.crash(number, how);
                    let seeds = world.ways_in();
                    if !seeds.is_empty() {
                        world.replace(number, &seeds);
                        world.start(number);
                    }
                }
                let (d, w) = pointer_shares(&world);
                (dead, wrong) = (dead + d, wrong + w);
            }
            let x = f64::from(*x);
            let (formula, per) = (100.0 / (3.0 + x), 100.0 / f64::from(rounds));
            let open = if how == Gone::Closed { 1.15 } else { f64::INFINITY };
            let what = format!("x = {x}, {how:?}: % of pointers");
            figures.push(Figure::at_most(format!("{what} dead"), dead * per, formula * open));
            let most = 2.0 * formula * open;
            figures.push(Figure::at_most(format!("{what} wrong"), wrong * per, most));
        }
    }
    figures
}

fn thin(whole: bool) -> Vec<Figure> {
    let nodes = if whole { 1_000 } else { 300 };
    let mut world = world(5);
    world.plant_thinned(nodes, 50);
    ask_some(&mut world, 2 * nodes as usize);
    world.run_until(MINUTE, SECOND, |w| w.lookups.open.is_empty());
    let (mean, _, max) = world.lookups.hops_summary();
    vec![
        Figure::at_least("% right", 100.0 * world.lookups.success(), 100.0),
        Figure::at_most("mean hops", mean, 16.0),
        Figure::at_most("longest", max as f64, 40.0),
    ]
}

fn tenth(whole: bool) -> Vec<Figure> {
    let nodes = if whole { 1_000 } else { 300 };
    let mut world = standing(nodes, 5);
    let mut all = world.alive();
    world.rng.shuffle(&mut all);
    for number in all.iter().take(all.len() / 10) {
        world.crash(*number, Gone::Silent);
    }
    ask_some(&mut world, 4 * nodes as usize);
    world.run_until(MINUTE, SECOND, |w| w.lookups.open.is_empty());
    let (_, p99, _) = world.lookups.time_summary();
    vec![
        Figure::at_least("% right before repair", 100.0 * world.lookups.success(), 99.0),
        Figure::at_most("p99, ms", f64::from(p99), 10_000.0),
    ]
}

/// Share of the slots with somebody in their interval that have a contact there.
fn slots_right(world: &World) -> f64 {
    let all = world.alive_by_id();
    let (mut right, mut count) = (0u64, 0u64);
    for (me, number) in &all {
        let Some(overlay) = world.overlay(*number) else { continue };
        let ring = overlay.ring();
        let reach = ring.succs().last().map_or(0, |last| me.distance(last.id));
        let known: Vec<NodeId> =
            ring.succs().iter().chain(overlay.table().contacts()).map(|p| p.id).collect();
        for level in 0..64u32 {
            for digit in 1..4u128 {
                let (from, width) = (digit << (2 * level), 1u128 << (2 * level));
                if from <= reach {
                    continue;
                }
                let (start, end) = (me.plus(from), me.plus(from).plus(width));
                let first = all.partition_point(|(id, _)| *id < start) % all.len();
                if in_co(start, all[first].0, end) {
                    count += 1;
                    right += u64::from(known.iter().any(|id| in_co(start, *id, end)));
                }
            }
        }
    }
    100.0 * right as f64 / count.max(1) as f64
}

fn growth(whole: bool) -> Vec<Figure> {
    let (nodes, minutes) = if whole { (1_000, 15) } else { (200, 15) };
    let plan = Plan { minutes: 0, ..Plan::new(Profile::Growth, nodes, 5) };
    let (mut world, _) = run(&plan);
    let early = slots_right(&world);
    world.run_for(MINUTE * minutes);
    let late = slots_right(&world);
    let right = ask(&mut world, 2_000);
    vec![
        Figure::at_least(format!("{nodes} nodes: % of slots right after growth"), early, 0.0),
        Figure::at_least(format!("{nodes} nodes: after {minutes} minutes"), late, 99.0),
        Figure::at_least(format!("{nodes} nodes: % of lookups right"), right, 100.0),
    ]
}

fn blocked(whole: bool) -> Vec<Figure> {
    let nodes = if whole { 1_000 } else { 200 };
    let net = NetOptions { blocked: 0.05, ..NetOptions::default() };
    let mut world = World::new(Options { net, watch: Watch::Node, ..Options::seed(5) });
    world.plant(nodes);
    world.run_for(5 * MINUTE);
    let right = ask(&mut world, 4_000);
    vec![Figure::at_least(format!("{nodes} nodes, pairs blocked: % right"), right, 100.0)]
}

fn idle(whole: bool) -> Vec<Figure> {
    let sizes: &[(u32, u64)] =
        if whole { &[(100, 60), (1_000, 60), (10_000, 60)] } else { &[(100, 10), (400, 10)] };
    let measured: Vec<(u32, Report)> = sizes
        .iter()
        .map(|(n, minutes)| {
            let plan = Plan { minutes: *minutes, ..Plan::new(Profile::Idle, *n, 7) };
            (*n, run(&plan).1)
        })
        .collect();
    let mut figures = Vec::new();
    let first = measured.first().map_or(0.0, |(_, report)| report.per_node_minute().1);
    for (nodes, report) in &measured {
        let (messages, bytes) = report.per_node_minute();
        figures.push(Figure::at_most(format!("{nodes} nodes: messages a minute"), messages, 120.0));
        figures.push(Figure::at_most(format!("{nodes} nodes: bytes a minute"), bytes, 10_000.0));
        figures.push(Figure::at_most(
            format!("{nodes} nodes: bytes beside the smallest"),
            bytes / first.max(1.0),
            1.25,
        ));
        if *nodes >= 1_000 {
            let kb = report.kb_per_node as f64;
            figures.push(Figure::at_most(format!("{nodes} nodes: kB a node"), kb, 100.0));
        }
    }
    figures
}

fn half(whole: bool) -> Vec<Figure> {
    let nodes = if whole { 1_000 } else { 200 };
    let (world, report) = run(&Plan::new(Profile::KillHalf, nodes, 5));
    let name = format!("{nodes} nodes, half dead: % right after a minute");
    vec![
        Figure::at_least(name, 100.0 * world.lookups.success(), 99.0),
        Figure::at_least("ideal", f64::from(u8::from(report.ideal.is_ok())), 1.0),
    ]
}

fn graceful(whole: bool) -> Vec<Figure> {
    let (nodes, seeds) = if whole { (300, 10) } else { (60, 2) };
    let mut bad = [0u64; 4];
    for seed in 1..=seeds {
        let plan = Plan {
            minutes: 5,
            session: 10.0,
            lookups: 20.0,
            ..Plan::new(Profile::Graceful, nodes, seed)
        };
        let (world, report) = run(&plan);
        let looked = &world.lookups;
        bad[0] += looked.failed + looked.wrong_certain + looked.wrong_unsure;
        bad[1] += looked.unsure;
        bad[2] += world.to_gone;
        bad[3] += u64::from(report.wrong.is_some());
    }
    vec![
        Figure::at_most("lookups that failed or were wrong", bad[0] as f64, 0.0),
        Figure::at_most("unsure answers", bad[1] as f64, 0.0),
        Figure::at_most("messages to nodes that left", bad[2] as f64, 0.0),
        Figure::at_most("runs that broke an invariant", bad[3] as f64, 0.0),
    ]
}

fn churn(whole: bool) -> Vec<Figure> {
    let rows: &[(f64, f64)] =
        if whole { &[(60.0, 400.0), (10.0, 800.0), (2.0, 2_000.0)] } else { &[(10.0, 800.0)] };
    let (nodes, minutes) = if whole { (1_000, 15) } else { (150, 10) };
    let mut figures = Vec::new();
    for (session, most) in rows {
        let lookups = f64::from(nodes) / 30.0;
        let plan =
            Plan { minutes, session: *session, lookups, ..Plan::new(Profile::Churn, nodes, 7) };
        let (world, report) = run(&plan);
        let name = format!("{nodes} nodes, sessions {session} min");
        let (_, bytes) = report.per_node_minute();
        let looked = &world.lookups;
        let ended = looked.ended().max(1) as f64;
        figures.push(Figure::at_most(format!("{name}: B/s a node"), bytes / 60.0, *most));
        let success = 100.0 * looked.success();
        figures.push(Figure::at_least(format!("{name}: % right"), success, 99.0));
        let wrong = looked.wrong_certain as f64 / ended;
        let most = if *session >= 60.0 { 1e-4 } else { 1.0 };
        figures.push(Figure::at_most(format!("{name}: wrong and certain"), wrong, most));
        let unsure = 100.0 * looked.unsure as f64 / ended;
        let most = if *session >= 60.0 { 1.0 } else { 100.0 };
        figures.push(Figure::at_most(format!("{name}: % unsure"), unsure, most));
        let false_deaths = world.false_deaths as f64;
        figures.push(Figure::at_most(format!("{name}: false deaths"), false_deaths, 0.0));
    }
    figures
}

fn merge(whole: bool) -> Vec<Figure> {
    let nodes = if whole { 1_000 } else { 100 };
    let plan = Plan::new(Profile::Merge, nodes, 5);
    let (world, report) = run(&plan);
    let messages = report.traffic.of("merge").0 as f64 / f64::from(nodes);
    let merged = f64::from(u8::from(world.ideal().is_ok()));
    let name = format!("{0} + {0}", nodes / 2);
    vec![
        Figure::at_least(format!("{name}: one ring"), merged, 1.0),
        Figure::at_most(format!("{name}: minutes"), report.minutes, 3.0),
        Figure::at_most(format!("{name}: merge messages a node"), messages, 37.5),
    ]
}
