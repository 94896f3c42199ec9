//! What was decided later counts: returning managers, updates, withdrawals, removals, and two
//! people who decide at once.

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, Hash, Key, NodeId};
use dugnad_node::{Answer, AskId, Command, ServiceQuestion};
use dugnad_resource::spec::{Keep, Kind, Port, Spec};
use dugnad_sim::report::{community, deploy, site};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

fn world(seed: u64) -> World {
    World::new(Options { encode: false, ..Options::seed(seed) })
}

fn manager(world: &World, key: Key) -> Option<NodeId> {
    world.alive().into_iter().find(|id| {
        world.node(*id).is_some_and(|n| n.collective().managers().any(|(k, _)| *k == key))
    })
}

fn running(world: &World, key: Key) -> Vec<(NodeId, u32)> {
    check::running(world).remove(&key).unwrap_or_default()
}

fn settles(world: &mut World, key: Key, want: usize, what: &str) {
    let wanted = BTreeMap::from([(key, want)]);
    let fine = |w: &World| check::ideal_ring(w).and_then(|()| check::services(w, &wanted));
    let settled = world.run_until(SECOND * 120, SECOND, |w| fine(w).is_ok());
    assert!(settled, "{what}: {:?}", fine(world));
}

fn ask_deploy(world: &mut World, from: NodeId, spec: &Spec) -> AskId {
    for (_, tree) in &spec.artifacts {
        world.give_tree(from, *tree);
    }
    world.ask(from, ServiceQuestion::Deploy(spec.clone()))
}

fn answer(world: &mut World, ask: AskId, what: &str) -> Answer {
    let done = world.run_until(SECOND * 120, TICK, |w| w.answers.contains_key(&ask));
    assert!(done, "{what}: no answer");
    world.answers[&ask].clone()
}

/// Runs until the question is answered, and looks at every moment on the way.
fn meanwhile(world: &mut World, ask: AskId, what: &str, look: impl Fn(&World)) -> Answer {
    while !world.answers.contains_key(&ask) {
        world.run_for(TICK);
        look(world);
    }
    answer(world, ask, what)
}

fn all_still_run(world: &World, key: Key, serves: &[(NodeId, u32)], what: &str) {
    let now = running(world, key);
    assert!(serves.iter().all(|s| now.contains(s)), "{what}: {serves:?} became {now:?}");
}

fn ready(told: &Answer, what: &str) -> u64 {
    match told {
        Answer::Deployed { service, missing } if missing.is_empty() => service.generation,
        other => panic!("{what}: {other:?}"),
    }
}

fn version(name: &str, number: u8, replicas: u8) -> Spec {
    let mut spec = site(name, replicas);
    spec.artifacts[0].1.root = Hash::of(&[number]);
    spec
}

/// The manager and the only replica's host die and come back after it healed: what serves now
/// goes on serving, and nothing of before takes its place.
#[test]
fn who_comes_back_does_not_undo_what_was_decided_meanwhile() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in one.map_or(1..=300, |seed| seed..=seed) {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 3 + usize::try_from(seed % 5).unwrap_or(0);
        let ids = community(&mut world, size);
        let wanted = deploy(&mut world, 1, 1);
        let (key, _) = wanted.into_iter().next().unwrap_or_default();
        let old = running(&world, key);
        let mut away: Vec<NodeId> = old.iter().map(|(node, _)| *node).collect();
        away.extend(manager(&world, key));
        away.dedup();
        world.verbose = one.is_some();
        away.iter().for_each(|id| world.crash(*id, Crash::Power));
        if world.alive().iter().all(|id| world.machines[id].disk.trees.is_empty()) {
            // Both copies of the package went: nobody else can run it.
            continue;
        }
        settles(&mut world, key, 1, &what);
        world.run_for(SECOND * 20);
        let serves = running(&world, key);
        // In some runs they first begin a ring of their own, with what their disks hold.
        let apart = seed % 3 == 0;
        if apart {
            let side = |id: &NodeId| (*id, u32::from(away.contains(id)));
            world.partition(ids.iter().map(side).collect());
        }
        for id in &away {
            world.start(*id);
            let pause = Duration::from_millis(world.rng.u64(0..3_000));
            world.run_for(pause);
        }
        if apart {
            world.run_for(SECOND * 45);
            world.net.heal();
        }
        for _ in 0..60 * 50 {
            world.run_for(TICK);
            all_still_run(&world, key, &serves, &what);
        }
        settles(&mut world, key, 1, &what);
        assert_eq!(running(&world, key), serves, "{what}");
    }
}

/// One replica or more: at every moment as many serve as before, and the new ones take over.
#[test]
fn an_update_starts_first_and_stops_then() {
    for seed in 1..=100 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 1 + usize::try_from(seed % 4).unwrap_or(0);
        let from = community(&mut world, size)[0];
        let replicas = u8::try_from(size.min(2)).unwrap_or(1);
        let first = ask_deploy(&mut world, from, &version("web", 1, replicas));
        answer(&mut world, first, &what);
        let new = version("web", 2, replicas);
        let second = ask_deploy(&mut world, from, &new);
        let told = meanwhile(&mut world, second, &what, |world| {
            let serving = running(world, new.key()).len();
            assert!(serving >= usize::from(replicas), "{what}: {serving} serve");
        });
        assert_eq!(ready(&told, &what), 2, "{what}");
        settles(&mut world, new.key(), usize::from(replicas), &what);
    }
}

/// More replicas, fewer, and all anew: what stays is not touched, and something always serves.
#[test]
fn a_service_is_scaled_and_restarted() {
    for seed in 1..=40 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let ids = community(&mut world, 5);
        let (from, other) = (ids[0], ids[usize::try_from(seed % 5).unwrap_or(0)]);
        let spec = version("web", 1, 2);
        let key = spec.key();
        let first = ask_deploy(&mut world, from, &spec);
        ready(&answer(&mut world, first, &what), &what);
        let before = running(&world, key);
        let scale = |world: &mut World, count: u8| {
            let ask = world.ask(other, ServiceQuestion::Scale("web".into(), count));
            let told = meanwhile(world, ask, &what, |world| {
                assert!(!running(world, key).is_empty(), "{what}: nothing serves");
            });
            assert_eq!(ready(&told, &what), 1, "{what}: the version is the same");
            settles(world, key, usize::from(count), &what);
        };
        scale(&mut world, 4);
        all_still_run(&world, key, &before, &what);
        // Its manager may die: the next one knows the number, too.
        if let Some(manager) = manager(&world, key).filter(|node| *node != other) {
            world.crash(manager, Crash::Process);
            settles(&mut world, key, 4, &what);
            world.start(manager);
            world.run_for(SECOND * 30);
        }
        let four = running(&world, key);
        scale(&mut world, 1);
        assert!(running(&world, key).iter().all(|one| four.contains(one)), "{what}");
        let ask = world.ask(other, ServiceQuestion::Restart("web".into()));
        let told = meanwhile(&mut world, ask, &what, |world| {
            assert!(!running(world, key).is_empty(), "{what}: nothing serves");
        });
        assert!(ready(&told, &what) > 1, "{what}");
        settles(&mut world, key, 1, &what);
        let ask = world.ask(other, ServiceQuestion::Scale("nothing".into(), 2));
        assert!(matches!(answer(&mut world, ask, &what), Answer::Unknown), "{what}");
    }
}

/// A number that is said while a place is being looked for counts, not the one before.
#[test]
fn a_service_is_scaled_while_it_is_healed() {
    for seed in 1..=100 {
        let what = format!("seed {seed}");
        let mut world = world(500 + seed);
        let ids = community(&mut world, 6);
        let spec = version("web", 1, 2);
        let key = spec.key();
        let first = ask_deploy(&mut world, ids[0], &spec);
        ready(&answer(&mut world, first, &what), &what);
        let (host, _) = running(&world, key)[0];
        world.crash(host, Crash::Process);
        world.run_for(Duration::from_millis(seed * 25));
        let from = world.alive()[1];
        let ask = world.ask(from, ServiceQuestion::Scale("web".into(), 4));
        ready(&answer(&mut world, ask, &what), &what);
        settles(&mut world, key, 4, &what);
    }
}

/// A version that does not start is withdrawn; whoever deployed it learns why, what served serves,
/// and a rollback of a later, good one goes back to it.
#[test]
fn a_version_that_does_not_start_is_withdrawn() {
    for seed in 1..=100 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 1 + usize::try_from(seed % 4).unwrap_or(0);
        let from = community(&mut world, size)[0];
        let replicas = u8::try_from(size.min(2)).unwrap_or(1);
        let good = version("web", 1, replicas);
        let first = ask_deploy(&mut world, from, &good);
        answer(&mut world, first, &what);
        let serves = running(&world, good.key());
        let bad = version("web", 2, replicas);
        world.broken.insert(bad.artifacts[0].1.root);
        let second = ask_deploy(&mut world, from, &bad);
        let told = meanwhile(&mut world, second, &what, |world| {
            all_still_run(world, good.key(), &serves, &what);
        });
        match told {
            Answer::Failed(text) => {
                assert!(text.contains("no such file: config"), "{what}: {text}");
                assert!(text.contains("version 1 stays"), "{what}: {text}");
            }
            other => panic!("{what}: {other:?}"),
        }
        settles(&mut world, good.key(), usize::from(replicas), &what);
        assert_eq!(running(&world, good.key()), serves, "{what}");
        // Whoever manages it later knows it, too.
        world.run_for(SECOND * 30);
        let third = ask_deploy(&mut world, from, &version("web", 3, replicas));
        ready(&answer(&mut world, third, &what), &what);
        let back = world.ask(from, ServiceQuestion::RollBack("web".into()));
        ready(&answer(&mut world, back, &what), &what);
        settles(&mut world, good.key(), usize::from(replicas), &what);
        let root = good.artifacts[0].1.root;
        let machines = world.machines.values();
        let all = machines.flat_map(|m| m.processes.running.values());
        assert!(all.clone().count() > 0, "{what}");
        assert!(
            all.into_iter().all(|run| run.package.is_some_and(|tree| tree.root == root)),
            "{what}"
        );
    }
}

/// A first version that does not start: the deploy ends, and says why.
#[test]
fn a_first_version_that_does_not_start_is_told() {
    for seed in 1..=20 {
        let mut world = world(seed);
        let size = 1 + usize::try_from(seed % 3).unwrap_or(0);
        let from = community(&mut world, size)[0];
        let bad = version("web", 2, 1);
        world.broken.insert(bad.artifacts[0].1.root);
        let ask = ask_deploy(&mut world, from, &bad);
        match answer(&mut world, ask, "first") {
            Answer::Failed(text) => assert!(text.contains("no such file"), "{text}"),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

/// A node that is about to leave has its replica run elsewhere before it stops.
#[test]
fn who_leaves_hands_over_first() {
    for seed in 1..=100 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 2 + usize::try_from(seed % 4).unwrap_or(0);
        community(&mut world, size);
        let (key, _) = deploy(&mut world, 1, 1).into_iter().next().unwrap_or_default();
        let leaver = running(&world, key)[0].0;
        world.command(leaver, Command::HandOver(true));
        let over = |w: &World| w.machines[&leaver].handed_over;
        while !over(&world) {
            world.run_for(TICK);
            assert!(!running(&world, key).is_empty(), "{what}: a gap");
            assert!(world.now < dugnad_kernel::Time(600_000_000), "{what}: never handed over");
        }
        assert!(running(&world, key).iter().all(|(node, _)| *node != leaver), "{what}");
        world.command(leaver, Command::Leave);
        world.run_until(SECOND * 30, TICK, |w| w.machines[&leaver].left);
        world.crash(leaver, Crash::Process);
        settles(&mut world, key, 1, &what);
        // It comes again, and is a host like any other.
        world.start(leaver);
        let back = world.run_until(SECOND * 60, SECOND, |w| check::ideal_ring(w).is_ok());
        assert!(back, "{what}: it is not back: {:?}", check::ideal_ring(&world));
        let everywhere = site("site-0", u8::try_from(size).unwrap_or(1));
        let ask = ask_deploy(&mut world, leaver, &everywhere);
        ready(&answer(&mut world, ask, &what), &what);
        settles(&mut world, key, size, &what);
    }
}

/// A service of which only one may run at a time: what it wrote goes with it.
fn diary(version: u8) -> Spec {
    Spec {
        kind: Kind::Process,
        command: vec!["./diary".into(), version.to_string()],
        state: Keep::Snapshots { every_ms: 300_000, hook: Vec::new() },
        ..site("site-0", 1)
    }
}

/// The one that leaves ends first, the next begins then; never two, and soon one again. The same
/// when its node, or its manager's, loses power in the middle of it, and when a new version comes.
#[test]
fn where_one_may_run_the_next_waits_for_it() {
    for seed in 1..=150 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 2 + usize::try_from(seed % 4).unwrap_or(0);
        let ids = community(&mut world, size);
        let spec = diary(1);
        let ask = ask_deploy(&mut world, ids[0], &spec);
        ready(&answer(&mut world, ask, &what), &what);
        let key = spec.key();
        let leaver = running(&world, key)[0].0;
        let left = world.now;
        world.command(leaver, Command::HandOver(true));
        let crashes = (seed % 3 == 0 && size > 2).then(|| {
            let after = Duration::from_millis(world.rng.u64(0..400));
            let victim = ids[world.rng.usize(0..ids.len())];
            (left + after, victim)
        });
        let mut crash = crashes;
        let over = |w: &World| running(w, key).iter().any(|(node, _)| *node != leaver);
        while !over(&world) || crash.is_some() {
            world.run_for(TICK);
            assert!(running(&world, key).len() <= 1, "{what}: two run");
            assert!(world.now < left + SECOND * 120, "{what}: nobody runs it");
            if let Some((_, victim)) = crash.take_if(|(at, _)| *at <= world.now) {
                world.crash(victim, Crash::Power);
            }
            if crashes.is_some_and(|(_, victim)| victim == leaver) && crash.is_none() {
                break;
            }
        }
        settles(&mut world, key, 1, &what);
        let from = world.alive()[0];
        let ask = ask_deploy(&mut world, from, &diary(2));
        ready(&answer(&mut world, ask, &what), &what);
        settles(&mut world, key, 1, &what);
    }
}

/// Where there is no other place, a node may leave as long as others serve; the only replica stays
/// until there is one.
#[test]
fn who_leaves_waits_for_one_that_serves() {
    for seed in 1..=40 {
        let mut world = world(seed);
        let ids = community(&mut world, 2);
        let (key, _) = deploy(&mut world, 1, 2).into_iter().next().unwrap_or_default();
        world.command(ids[1], Command::HandOver(true));
        let over = world.run_until(SECOND * 30, TICK, |w| w.machines[&ids[1]].handed_over);
        assert!(over, "seed {seed}: it still waits");
        assert_eq!(running(&world, key).len(), 1, "seed {seed}");
        // The last one has nobody to hand over to.
        world.command(ids[0], Command::HandOver(true));
        let over = world.run_until(SECOND * 30, TICK, |w| w.machines[&ids[0]].handed_over);
        assert!(!over && running(&world, key).len() == 1, "seed {seed}: a service was given up");
    }
}

/// Everything is removed, then all agents are told to end: nothing is started any more.
#[test]
fn what_was_removed_stays_removed_while_all_agents_end() {
    for seed in 1..=200 {
        let mut world = world(seed);
        let size = 2 + usize::try_from(seed % 8).unwrap_or(0);
        let ids = community(&mut world, size);
        deploy(&mut world, 3, u8::try_from(size.min(3)).unwrap_or(1));
        for number in 0..3 {
            let ask = world.ask(ids[0], ServiceQuestion::Remove(format!("site-{number}")));
            assert_eq!(answer(&mut world, ask, "rm"), Answer::Done, "seed {seed}");
        }
        let starts = world.starts.len();
        for id in &ids {
            world.command(*id, Command::Leave);
        }
        for _ in 0..30 * 50 {
            world.run_for(TICK);
            for id in &ids {
                if world.machines[id].left && world.node(*id).is_some() {
                    world.crash(*id, Crash::Process);
                }
            }
        }
        assert_eq!(world.starts.len(), starts, "seed {seed}: {:?}", &world.starts[starts..]);
        assert!(check::running(&world).is_empty(), "seed {seed}");
        // And stays so when they start again.
        ids.iter()
            .filter(|id| world.node(**id).is_some())
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|id| world.crash(id, Crash::Power));
        for id in &ids {
            world.set_seeds(*id, ids.iter().copied().filter(|other| other != id).collect());
            world.start(*id);
        }
        world.run_for(SECOND * 90);
        assert_eq!(world.starts.len(), starts, "seed {seed}: {:?}", &world.starts[starts..]);
    }
}

/// Two people deploy one name from two nodes in the same instant: one wins and the other is told
/// whose it is.
#[test]
fn of_two_deploys_at_once_one_wins() {
    let mut conflicts = 0;
    for seed in 1..=200 {
        let what = format!("seed {seed}");
        let mut world = world(seed);
        let size = 2 + usize::try_from(seed % 8).unwrap_or(0);
        let ids = community(&mut world, size);
        let (a, b) = (ids[0], ids[size - 1]);
        let (one, two) = (version("web", 1, 1), version("web", 2, 1));
        let asks = [ask_deploy(&mut world, a, &one), ask_deploy(&mut world, b, &two)];
        let answers = asks.map(|ask| answer(&mut world, ask, &what));
        let lost = answers.iter().filter(|answer| matches!(answer, Answer::Conflict(_))).count();
        conflicts += lost;
        for told in &answers {
            match told {
                Answer::Conflict(text) => assert!(text.contains("at the same time"), "{text}"),
                Answer::Deployed { missing, .. } if missing.is_empty() => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(lost <= 1, "{what}: {answers:?}");
        settles(&mut world, one.key(), 1, &what);
        let won = answers.iter().position(|a| matches!(a, Answer::Deployed { .. }));
        if lost == 1 {
            let root = [&one, &two][won.unwrap_or(0)].artifacts[0].1.root;
            let runs = world.machines.values().flat_map(|m| m.processes.running.values());
            for run in runs {
                assert!(run.package.is_some_and(|tree| tree.root == root), "{what}");
            }
        }
    }
    assert!(conflicts >= 150, "{conflicts} conflicts: the deploys were not at the same time");
}

/// A TCP port belongs to one service.
#[test]
fn a_port_that_is_taken_is_refused_with_its_holder() {
    let mut world = world(7);
    let ids = community(&mut world, 3);
    let with_port = |name: &str| {
        let mut spec = site(name, 1);
        spec.kind = Kind::Process;
        spec.command = vec!["./cache".into()];
        spec.port = Port::Tcp(6379);
        spec
    };
    let first = ask_deploy(&mut world, ids[0], &with_port("cache"));
    assert!(matches!(answer(&mut world, first, "first"), Answer::Deployed { .. }));
    let plan = world.ask(ids[1], ServiceQuestion::Plan(with_port("store")));
    let second = ask_deploy(&mut world, ids[2], &with_port("store"));
    for ask in [plan, second] {
        match answer(&mut world, ask, "second") {
            Answer::Unmet(reasons) => assert!(reasons[0].contains("cache"), "{reasons:?}"),
            other => panic!("{other:?}"),
        }
    }
    let again = ask_deploy(&mut world, ids[1], &with_port("cache"));
    assert!(matches!(answer(&mut world, again, "again"), Answer::Deployed { .. }));
}
