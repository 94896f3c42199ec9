//! Publish and subscribe, under faults: what was acknowledged is told, once, in one order.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::{Duration, NodeId};
use dugnad_node::{Answer, AskId, Begin, EventAnswer, EventQuestion, EventType, Told};
use dugnad_resource::condition::{Kind, Value};
use dugnad_sim::report::community;
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(60);
const TYPE: &str = "test.number";

fn ask(world: &mut World, id: NodeId, question: EventQuestion) -> EventAnswer {
    let ask = world.ask(id, question);
    assert!(world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask)), "no answer");
    answer(world, ask).unwrap()
}

fn answer(world: &World, ask: AskId) -> Option<EventAnswer> {
    match world.answers.get(&ask)? {
        Answer::Events(answer) => Some(answer.clone()),
        Answer::Failed(text) => Some(EventAnswer::Failed(text.clone())),
        other => panic!("{other:?}"),
    }
}

fn define(world: &mut World, id: NodeId, name: &str, parents: &[&str]) {
    let parents = parents.iter().map(ToString::to_string).collect();
    let own = [("n", Kind::Count)].map(|(name, kind)| (name.to_owned(), kind));
    let attributes = if name.contains('.') { own.into() } else { Vec::new() };
    let new = EventType { name: name.to_owned(), parents, attributes };
    assert_eq!(ask(world, id, EventQuestion::Define(new)), EventAnswer::Done, "{name}");
}

fn publish(world: &mut World, id: NodeId, n: u64) -> AskId {
    let attributes = vec![("n".to_owned(), n.to_string())];
    let question = EventQuestion::Publish { name: TYPE.to_owned(), attributes, body: Vec::new() };
    world.ask(id, question)
}

fn subscribe(world: &mut World, id: NodeId, sub: u64, typed: &str, begin: Begin) -> EventAnswer {
    let (name, condition) = typed.split_once(' ').unwrap_or((typed, ""));
    let (name, condition) = (name.to_owned(), condition.to_owned());
    ask(world, id, EventQuestion::Subscribe { sub, name, condition, begin })
}

fn number(told: &Told) -> u64 {
    match told.event.attributes.first() {
        Some((_, Value::Number(n))) => u64::try_from(*n).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What a node was told for a subscription, with the places.
fn told(world: &World, id: NodeId, sub: u64) -> Vec<(u64, u64)> {
    let all = world.machines[&id].told.iter().filter(|(known, _)| *known == sub);
    all.map(|(_, told)| (told.place, number(told))).collect()
}

/// With one node as with many; conditions, and each event once however many subscribe.
#[test]
fn whoever_subscribed_is_told_once() {
    for size in [1, 2, 3, 9] {
        let mut world = World::new(Options::seed(1_200 + size as u64));
        let ids = community(&mut world, size);
        let last = *ids.last().unwrap();
        define(&mut world, ids[0], "test", &[]);
        define(&mut world, last, TYPE, &["test"]);
        for id in &ids {
            assert_eq!(subscribe(&mut world, *id, 1, TYPE, Begin::Now), EventAnswer::Done);
            let even = "test.number n in 2,4,6,8";
            assert_eq!(subscribe(&mut world, *id, 2, even, Begin::Now), EventAnswer::Done);
            assert_eq!(subscribe(&mut world, *id, 3, "test", Begin::Now), EventAnswer::Done);
        }
        world.run_for(SECOND * 2);
        for n in 1..=9 {
            let id = ids[n % size];
            let asked = publish(&mut world, id, n as u64);
            assert!(world.run_until(ANSWER, SECOND / 50, |w| w.answers.contains_key(&asked)));
            assert_eq!(answer(&world, asked), Some(EventAnswer::Published { place: n as u64 }));
        }
        world.run_for(SECOND * 2);
        for id in &ids {
            let all: Vec<(u64, u64)> = (1..=9).map(|n| (n, n)).collect();
            assert_eq!(told(&world, *id, 1), all, "{size} nodes");
            assert_eq!(told(&world, *id, 3), all, "{size} nodes: by the parent");
            assert_eq!(told(&world, *id, 2), [(2, 2), (4, 4), (6, 6), (8, 8)], "{size} nodes");
        }
        // Late, from the beginning, and where somebody left off.
        subscribe(&mut world, last, 4, TYPE, Begin::Since(0));
        subscribe(&mut world, last, 5, TYPE, Begin::After(vec![(TYPE.to_owned(), 7)]));
        world.run_for(SECOND * 2);
        assert_eq!(told(&world, last, 4).len(), 9, "{size} nodes");
        assert_eq!(told(&world, last, 5), [(8, 8), (9, 9)], "{size} nodes");
        silent(&mut world).unwrap();
    }
}

/// The community's own types are written down only while somebody wants them.
#[test]
fn nodes_that_come_and_go_are_told() {
    let mut world = World::new(Options::seed(1_250));
    let ids = community(&mut world, 5);
    let wanted = "node.join memory>=1M";
    assert_eq!(subscribe(&mut world, ids[1], 1, wanted, Begin::Now), EventAnswer::Done);
    assert_eq!(subscribe(&mut world, ids[2], 2, "node", Begin::Now), EventAnswer::Done);
    world.run_for(SECOND * 2);
    let new = world.add(&[ids[0]]);
    world.start(new);
    world.run_for(SECOND * 20);
    world.crash(new, Crash::Process);
    world.run_for(SECOND * 20);
    let names = |world: &World, id: NodeId| -> Vec<String> {
        world.machines[&id].told.iter().map(|(_, told)| told.name.clone()).collect()
    };
    assert_eq!(names(&world, ids[1]), ["node.join"]);
    assert_eq!(names(&world, ids[2]), ["node.join", "node.leave"]);
    silent(&mut world).unwrap();
}

/// Also where neighbours die together: each death is said, and once.
#[test]
fn nodes_that_die_together_are_all_told() {
    for seed in 0..60 {
        let mut world = World::new(Options::seed(1_270 + seed));
        let mut ids = community(&mut world, 9);
        for id in &ids[..2] {
            assert_eq!(subscribe(&mut world, *id, 1, "node.leave", Begin::Now), EventAnswer::Done);
        }
        world.run_for(SECOND * 2);
        let watching = ids[..2].to_vec();
        ids.sort_unstable();
        // Two of them, next to each other on the ring where that can be: of the five that keep a
        // register a majority is left.
        let start = world.rng.usize(0..ids.len());
        ids.rotate_left(start);
        let mut dead: Vec<NodeId> =
            ids.into_iter().filter(|id| !watching.contains(id)).take(2).collect();
        world.rng.shuffle(&mut dead);
        for id in &dead {
            world.crash(*id, Crash::Process);
            let pause = Duration::from_millis(world.rng.u64(0..400));
            world.run_for(pause);
        }
        world.run_for(SECOND * 60);
        let mut expected: Vec<String> = dead.iter().map(|id| id.short().to_string()).collect();
        expected.sort();
        for id in &watching {
            let told = world.machines[id].told.iter().map(|(_, told)| node(told));
            let mut told: Vec<String> = told.collect();
            told.sort();
            assert_eq!(told, expected, "seed {seed}");
        }
    }
}

/// The node an event is about.
fn node(told: &Told) -> String {
    let mut all = told.event.attributes.iter();
    match all.find(|(name, _)| name == "node") {
        Some((_, Value::Text(node))) => node.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_wrong_is_said() {
    let mut world = World::new(Options::seed(1_260));
    let ids = community(&mut world, 3);
    define(&mut world, ids[0], TYPE, &[]);
    let wrong = |answer: EventAnswer, says: &str| match answer {
        EventAnswer::Wrong(text) | EventAnswer::Conflict(text) => {
            assert!(text.contains(says), "{text}");
        }
        other => panic!("{says}: {other:?}"),
    };
    wrong(subscribe(&mut world, ids[1], 1, "test.nmber", Begin::Now), "there are node, node.join");
    wrong(subscribe(&mut world, ids[1], 1, "test.number m>3", Begin::Now), "there are n\n");
    wrong(subscribe(&mut world, ids[1], 1, "test.number n>3 n<2", Begin::Now), "never be true");
    let publish = |world: &mut World, name: &str, value: &str, bytes: usize| {
        let attributes = vec![("n".to_owned(), value.to_owned())];
        let (name, body) = (name.to_owned(), vec![b'x'; bytes]);
        ask(world, ids[2], EventQuestion::Publish { name, attributes, body })
    };
    wrong(publish(&mut world, TYPE, "many", 0), "whole number");
    wrong(publish(&mut world, TYPE, "1", 1 << 20), "at most 4096");
    wrong(publish(&mut world, "node.join", "1", 0), "what nodes say of themselves");
    wrong(publish(&mut world, "nothing", "1", 0), "there is no type nothing");
    let other = EventType {
        name: TYPE.to_owned(),
        parents: Vec::new(),
        attributes: vec![("n".to_owned(), Kind::Text)],
    };
    wrong(ask(&mut world, ids[1], EventQuestion::Define(other)), "another type already");
    assert_eq!(publish(&mut world, TYPE, "1", 3_000), EventAnswer::Published { place: 1 });
}

/// Crashes and joins at any moment while many publish: what was acknowledged is told to all who
/// live, in the same order everywhere, once.
#[test]
fn nothing_acknowledged_is_lost_whoever_dies() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let (mut died, mut unreadable) = (0_u64, 0_u64);
    for seed in 0..seeds {
        let mut world = World::new(Options::seed(20_000 + seed));
        let ids = community(&mut world, 7);
        let mut rng = fastrand::Rng::with_seed(seed);
        define(&mut world, ids[0], TYPE, &[]);
        // These live; the others may die or leave.
        let listeners = [ids[0], ids[1]];
        for id in listeners {
            assert_eq!(subscribe(&mut world, id, 1, TYPE, Begin::Now), EventAnswer::Done);
        }
        world.run_for(SECOND * 2);
        let (mut asked, mut n): (Vec<(AskId, u64)>, u64) = (Vec::new(), 0);
        for step in 0..24 {
            for _ in 0..rng.u8(0..4) {
                n += 1;
                let alive = world.alive();
                let id = alive[rng.usize(0..alive.len())];
                let ask = publish(&mut world, id, n);
                asked.push((ask, n));
            }
            world.run_for(Duration::from_millis(rng.u64(0..900)));
            if step % 6 == 3 {
                let others: Vec<NodeId> =
                    world.alive().into_iter().filter(|id| !listeners.contains(id)).collect();
                match others.get(rng.usize(0..others.len().max(1))) {
                    Some(id) if others.len() > 3 || rng.bool() => {
                        let kind = if rng.bool() { Crash::Process } else { Crash::Power };
                        world.crash(*id, kind);
                        died += 1;
                        if rng.bool() {
                            world.run_for(Duration::from_millis(rng.u64(0..4_000)));
                            world.start(*id);
                        }
                    }
                    _ => {
                        let new = world.add(&[ids[0]]);
                        world.start(new);
                    }
                }
            }
        }
        world.run_for(SECOND * 150);
        // Where a majority of a log's keepers died for good, nobody can read it, nor append.
        let probe = publish(&mut world, listeners[0], 0);
        world.run_for(SECOND * 60);
        let whole = matches!(answer(&world, probe), Some(EventAnswer::Published { .. }));
        unreadable += u64::from(!whole);
        // Who cannot read goes on asking, once a minute.
        world.ends_silent &= whole;
        check(&world, seed, &listeners, &asked, whole);
    }
    assert!(died >= seeds && unreadable * 16 <= seeds, "{died} died, {unreadable} unreadable");
}

fn check(world: &World, seed: u64, listeners: &[NodeId], asked: &[(AskId, u64)], whole: bool) {
    let acknowledged: BTreeSet<u64> = asked
        .iter()
        .filter(|(ask, _)| {
            matches!(answer(world, *ask), Some(EventAnswer::Published { place }) if place > 0)
        })
        .map(|(_, n)| *n)
        .collect();
    let mut order: BTreeMap<u64, u64> = BTreeMap::new();
    for id in listeners {
        let all = told(world, *id, 1);
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "seed {seed}: {all:?}");
        let numbers: BTreeSet<u64> = all.iter().map(|(_, n)| *n).collect();
        assert_eq!(numbers.len(), all.len(), "seed {seed}: twice: {all:?}");
        for (place, n) in &all {
            assert_eq!(order.entry(*place).or_insert(*n), n, "seed {seed}: two orders");
        }
        let missing: Vec<_> = acknowledged.difference(&numbers).collect();
        let told = missing.is_empty() || !whole;
        assert!(told, "seed {seed}: {} not told of {missing:?}", id.short());
        assert_eq!(world.machines[id].lost, 0, "seed {seed}");
    }
    for (ask, n) in asked.iter().filter(|_| whole) {
        if let Some(EventAnswer::Published { place }) = answer(world, *ask) {
            assert_eq!(order.get(&place), Some(n), "seed {seed}: the place it was told");
        }
    }
}

/// Two of three go on, the third is refused; afterwards all hear what was said.
#[test]
fn a_minority_cannot_publish_and_catches_up() {
    for seed in 0..6 {
        let mut world = World::new(Options::seed(1_300 + seed));
        let ids = community(&mut world, 3);
        define(&mut world, ids[0], TYPE, &[]);
        for id in &ids {
            assert_eq!(subscribe(&mut world, *id, 1, TYPE, Begin::Now), EventAnswer::Done);
        }
        world.run_for(SECOND * 2);
        let groups = ids.iter().enumerate().map(|(n, id)| (*id, u32::from(n == 2)));
        world.partition(groups.collect());
        world.run_for(SECOND * 30);
        let minority = publish(&mut world, ids[2], 1);
        world.run_for(SECOND * 30);
        let refused = answer(&world, minority);
        assert!(
            matches!(refused, Some(EventAnswer::Unavailable | EventAnswer::Failed(_))),
            "seed {seed}: {refused:?}"
        );
        let majority = publish(&mut world, ids[0], 2);
        world.run_for(SECOND * 30);
        let taken = answer(&world, majority);
        assert!(matches!(taken, Some(EventAnswer::Published { .. })), "seed {seed}: {taken:?}");
        world.partition(BTreeMap::new());
        world.run_for(SECOND * 180);
        for id in &ids {
            let numbers: Vec<u64> = told(&world, *id, 1).iter().map(|(_, n)| *n).collect();
            assert_eq!(numbers, [2], "seed {seed} {}", id.short());
        }
        silent(&mut world).unwrap();
    }
}

/// A rendezvous with hundreds of subscribers sends an event to a few of them.
#[test]
fn many_subscribers_cost_the_rendezvous_little() {
    let mut world = World::new(Options::seed(1_400));
    let ids = community(&mut world, 50);
    define(&mut world, ids[0], TYPE, &[]);
    for id in &ids {
        for sub in 0..10 {
            assert_eq!(subscribe(&mut world, *id, sub, TYPE, Begin::Now), EventAnswer::Done);
        }
    }
    world.run_for(SECOND * 5);
    let sent = |world: &World| -> BTreeMap<NodeId, u64> {
        ids.iter().map(|id| (*id, world.machines[id].bytes)).collect()
    };
    let (before, rounds, body) = (sent(&world), 50, 900);
    for n in 0..rounds {
        let attributes = vec![("n".to_owned(), n.to_string())];
        let (name, body) = (TYPE.to_owned(), vec![b'x'; body]);
        world.ask(ids[n as usize % 7], EventQuestion::Publish { name, attributes, body });
        world.run_for(Duration::from_millis(200));
    }
    world.run_for(SECOND);
    let after = sent(&world);
    let most = ids.iter().map(|id| after[id] - before[id]).max().unwrap() / rounds;
    for id in &ids {
        assert_eq!(told(&world, *id, 9).len(), rounds as usize);
    }
    let event = body as u64 + 50;
    println!(
        "500 subscribers on 50 nodes, 5 events/s of {event} bytes: the busiest node sends {most} \
         bytes an event, {:.1} times its size",
        most as f64 / event as f64,
    );
    // The pushes are less than a third of it, the rest the register: four copies on other disks.
    assert!(most <= 10 * event, "{most}");
}
