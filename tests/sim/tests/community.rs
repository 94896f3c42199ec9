//! Whole communities under faults. Every failure prints the command that repeats it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::{Duration, NodeId};
use dugnad_node::{Answer, Command, NodeState, ServiceQuestion};
use dugnad_sim::net::{Latency, NetOptions};
use dugnad_sim::report::{community, crash_many, deploy, heal, idle, site};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);

/// The seeds of this test: a fixed range, and what `tests/seeds.txt` remembers.
fn seeds(name: &str, count: u64) -> Vec<u64> {
    let past = include_str!("../../seeds.txt");
    let of_test = |line: &str| {
        let (test, seed) = line.split_once(' ')?;
        (test == name).then(|| seed.split(' ').next()?.parse().ok())?
    };
    (1..=count).chain(past.lines().filter_map(of_test)).collect()
}

fn settles(
    world: &mut World,
    limit: u64,
    wanted: &BTreeMap<dugnad_kernel::Key, usize>,
    what: &str,
) {
    let fine = |w: &World| check::ideal_ring(w).and_then(|()| check::services(w, wanted));
    let limit = Duration::from_secs(limit);
    let settled = world.run_until(limit, SECOND, |w| fine(w).is_ok());
    assert!(settled, "{what}: {}", fine(world).unwrap_err());
}

#[test]
fn the_same_seed_is_the_same_run_bit_for_bit() {
    let run = |seed| {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 12);
        deploy(&mut world, 3, 3);
        crash_many(&mut world, 25, Crash::Process);
        world.run_for(Duration::from_secs(60));
        (world.trace(), world.delivered)
    };
    for seed in 1..=5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).0, run(2).0);
}

/// 100 nodes join through one seed, 20 services with 3 replicas, 30 % crash at once.
#[test]
fn services_come_back_after_a_third_of_the_nodes_crashed() {
    for seed in seeds("third", 50) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 100);
        let wanted = deploy(&mut world, 20, 3);
        let kind = if seed % 2 == 0 { Crash::Power } else { Crash::Process };
        crash_many(&mut world, 30, kind);
        let what = format!("cargo sim -- --seed {seed} ({kind:?})");
        settles(&mut world, 300, &wanted, &what);
        // Healed is healed: nothing starts to move again.
        world.run_for(Duration::from_secs(90));
        assert_eq!(check::services(&world, &wanted), Ok(()), "{what}: later");
    }
}

/// Small communities, every size from one.
#[test]
fn a_community_of_any_size_runs_what_fits() {
    for size in 1..=6usize {
        let mut world = World::new(Options::seed(size as u64));
        community(&mut world, size);
        let replicas = u8::try_from(size.min(3)).unwrap();
        let wanted = deploy(&mut world, 2, replicas);
        settles(&mut world, 30, &wanted, &format!("size {size}"));
    }
}

#[test]
fn a_single_crash_is_healed_within_the_budget() {
    for seed in seeds("single", 60) {
        for (kind, limit) in [(Crash::Power, 20), (Crash::Process, 5)] {
            let (world, took) = heal(seed, kind);
            let limit = Duration::from_secs(limit);
            let late = took.is_none_or(|took| took > limit);
            assert!(!late, "seed {seed}, {kind:?}: {took:?}, t = {:?}", world.now);
        }
    }
}

/// The manager's node and a replica's node die in the same instant.
#[test]
fn manager_and_replica_may_die_together() {
    for seed in seeds("manager", 30) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 8);
        let wanted = deploy(&mut world, 1, 3);
        let key = *wanted.keys().next().unwrap();
        let manages = |id: &dugnad_kernel::NodeId| {
            world.node(*id).is_some_and(|n| n.collective().managers().any(|(k, _)| *k == key))
        };
        let manager = world.alive().into_iter().find(manages).unwrap();
        let replica =
            check::running(&world)[&key].iter().map(|(n, _)| *n).find(|n| *n != manager).unwrap();
        let kind = if seed % 3 == 0 { Crash::Power } else { Crash::Process };
        world.crash(manager, kind);
        world.crash(replica, kind);
        settles(&mut world, 60, &wanted, &format!("seed {seed}"));
    }
}

/// The node that was asked dies the moment it answered.
#[test]
fn an_answered_deploy_survives_the_node_that_was_asked() {
    for seed in seeds("asked", 30) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 7);
        let spec = site("last-words", 3);
        let from = world.alive()[usize::try_from(seed % 7).unwrap()];
        world.give_tree(from, spec.artifacts[0].1);
        let wanted = BTreeMap::from([(spec.key(), 3)]);
        let ask = world.ask(from, ServiceQuestion::Deploy(spec));
        while !world.answers.contains_key(&ask) {
            assert!(world.step(), "seed {seed}: nothing left to happen");
        }
        world.crash(from, Crash::Power);
        settles(&mut world, 90, &wanted, &format!("seed {seed}"));
    }
}

/// A node that was replaced comes back with its replicas running.
#[test]
fn a_returning_replica_is_reconciled_not_doubled() {
    for seed in seeds("return", 30) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 6);
        let wanted = deploy(&mut world, 2, 3);
        let victim = check::running(&world).values().next().unwrap()[0].0;
        world.crash(victim, if seed % 2 == 0 { Crash::Process } else { Crash::Power });
        // Sometimes before it was replaced, sometimes after.
        world.run_for(Duration::from_millis(500 + 1_900 * (seed % 12)));
        world.start(victim);
        settles(&mut world, 120, &wanted, &format!("seed {seed}"));
    }
}

/// Power fails for everybody. Services run again from local state, then the ring finds together.
#[test]
fn everything_is_back_after_a_power_cut_for_all() {
    for seed in seeds("blackout", 30) {
        let mut world = World::new(Options::seed(seed));
        let ids = community(&mut world, 9);
        let wanted = deploy(&mut world, 4, 3);
        let before = check::running(&world);
        for id in &ids {
            world.crash(*id, Crash::Power);
        }
        world.run_for(Duration::from_secs(30));
        for id in &ids {
            world.start(*id);
            let pause = Duration::from_millis(world.rng.u64(0..2_000));
            world.run_for(pause);
        }
        settles(&mut world, 120, &wanted, &format!("seed {seed}"));
        assert_eq!(check::running(&world), before, "seed {seed}: replicas moved needlessly");
    }
}

/// A node that boots with nobody to reach runs what it ran, and says so.
#[test]
fn services_of_last_time_run_without_a_network() {
    let mut world = World::new(Options::seed(4));
    let ids = community(&mut world, 4);
    deploy(&mut world, 2, 3);
    let before = check::running(&world);
    for id in &ids {
        world.crash(*id, Crash::Power);
    }
    let lonely = before.values().next().unwrap()[0].0;
    world.partition(ids.iter().map(|id| (*id, u32::from(*id == lonely))).collect());
    world.start(lonely);
    world.run_for(SECOND);
    let mine = |id| before.values().flatten().filter(|(n, _)| *n == id).count();
    assert_eq!(world.machines[&lonely].processes.running.len(), mine(lonely));
}

/// A cable is cut in two halves and plugged in again: one ring, one set of replicas.
#[test]
fn two_rings_that_were_one_become_one_again() {
    for seed in seeds("merge", 20) {
        let mut world = World::new(Options::seed(seed));
        let ids = community(&mut world, 12);
        let wanted = deploy(&mut world, 3, 3);
        let groups = ids.iter().enumerate().map(|(i, id)| (*id, u32::from(i % 2 == 0)));
        world.partition(groups.collect());
        world.run_for(Duration::from_secs(120));
        world.net.heal();
        settles(&mut world, 240, &wanted, &format!("seed {seed}"));
    }
}

/// Graceful joins and leaves only: never two owners of an id, and the ring is right at the end.
#[test]
fn graceful_churn_never_makes_two_owners() {
    for seed in seeds("graceful", 40) {
        let mut world = World::new(Options::seed(seed));
        let ids = community(&mut world, 10);
        let first = ids[0];
        for _ in 0..12 {
            if world.rng.bool() {
                let id = world.add(&[first]);
                world.start(id);
            } else {
                let leavers: Vec<_> = world.alive().into_iter().filter(|id| *id != first).collect();
                let leaver = leavers[world.rng.usize(0..leavers.len())];
                world.command(leaver, Command::Leave);
            }
            let until = world.now + Duration::from_millis(world.rng.u64(0..1_500));
            while world.now < until && world.step() {
                assert_eq!(check::no_two_owners(&world), Ok(()), "seed {seed}");
            }
        }
        for _ in 0..60 {
            world.run_for(SECOND);
            let gone: Vec<_> = world
                .machines
                .iter()
                .filter(|(_, m)| m.left && m.node.is_some())
                .map(|(id, _)| *id)
                .collect();
            gone.into_iter().for_each(|id| world.crash(id, Crash::Process));
        }
        assert_eq!(check::ideal_ring(&world), Ok(()), "seed {seed}");
    }
}

/// Flaky lines are not deaths: 2 % loss for an hour, nobody is declared dead.
#[test]
fn loss_is_not_death() {
    let net = NetOptions { latency: Latency::Range(20..120), loss: 0.02, ..NetOptions::default() };
    let mut world = World::new(Options { net, ..Options::seed(3) });
    community(&mut world, 12);
    let wanted = deploy(&mut world, 3, 3);
    let before = check::running(&world);
    world.run_for(Duration::from_secs(3_600));
    for id in world.alive() {
        let deaths = world.node(id).unwrap().overlay().counters().find(|(n, _)| *n == "deaths");
        assert_eq!(deaths, None, "{}", id.short());
    }
    assert_eq!(check::running(&world), before);
    assert_eq!(check::services(&world, &wanted), Ok(()));
}

/// Idle traffic does not grow with the community (messages a node and minute).
#[test]
fn idle_traffic_is_constant() {
    let (small, large) = (idle(20), idle(100));
    assert!(small.0 < 140.0 && small.1 < 4_000.0, "20 nodes: {small:?}");
    assert!(large.0 < small.0 * 1.5 && large.1 < small.1 * 1.5, "{small:?} then {large:?}");
}

/// Nothing is written to disk when nothing changes, but that a node lives: after a quarter of an
/// hour, after half an hour, and so on.
#[test]
fn an_idle_community_writes_nothing() {
    let mut world = World::new(Options::seed(8));
    community(&mut world, 5);
    deploy(&mut world, 3, 3);
    world.run_for(Duration::from_secs(120));
    let writes = |w: &World| w.machines.values().map(|m| m.disk.writes).sum::<u64>();
    let before = writes(&world);
    world.run_for(Duration::from_secs(1_800));
    assert_eq!(writes(&world), before + 2 * 5);
}

#[test]
fn what_nobody_can_run_is_refused_with_a_reason_a_node() {
    let mut world = World::new(Options::seed(2));
    community(&mut world, 4);
    let mut spec = site("too-big", 2);
    spec.needs.memory = 1 << 40;
    let from = world.alive()[0];
    let ask = world.ask(from, ServiceQuestion::Deploy(spec));
    world.run_for(Duration::from_secs(10));
    let Some(Answer::Unmet(reasons)) = world.answers.get(&ask) else {
        panic!("{:?}", world.answers.get(&ask));
    };
    assert_eq!(reasons.len(), 4);
    assert!(reasons.iter().all(|r| r.contains("gives too little memory")), "{reasons:?}");
}

#[test]
fn more_replicas_than_nodes_says_what_is_missing() {
    let mut world = World::new(Options::seed(2));
    community(&mut world, 2);
    let spec = site("wide", 5);
    let from = world.alive()[0];
    world.give_tree(from, spec.artifacts[0].1);
    let ask = world.ask(from, ServiceQuestion::Deploy(spec));
    world.run_for(Duration::from_secs(60));
    match world.answers.get(&ask) {
        Some(Answer::Deployed { service, missing }) => {
            assert_eq!((service.ready, service.want), (2, 5));
            assert!(!missing.is_empty());
        }
        other => panic!("{other:?}"),
    }
    // A third node brings room without anybody asking again.
    let id = world.add(&[from]);
    world.start(id);
    let grown = world.run_until(Duration::from_secs(60), SECOND, |w| {
        check::running(w).values().all(|replicas| replicas.len() == 3)
    });
    assert!(grown, "{:?}", check::running(&world));
}

/// A plan for what runs says where it runs, and what one replica more would add.
#[test]
fn a_plan_agrees_with_what_runs() {
    for seed in 1..=5 {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 6);
        deploy(&mut world, 1, 2);
        let runs: BTreeSet<NodeId> =
            check::running(&world).into_values().flatten().map(|(node, _)| node).collect();
        for want in [2, 3] {
            let from = world.alive()[usize::from(want)];
            let ask = world.ask(from, ServiceQuestion::Plan(site("site-0", want)));
            world.run_for(Duration::from_secs(10));
            let Some(Answer::Plan(plan)) = world.answers.get(&ask) else { panic!("seed {seed}") };
            let chosen: BTreeSet<NodeId> = plan.chosen.iter().map(|(node, ..)| *node).collect();
            assert_eq!(chosen.len(), usize::from(want), "seed {seed}");
            assert!(chosen.is_superset(&runs), "seed {seed}: {:?}, runs on {runs:?}", plan.chosen);
            let refused = |node: &NodeId| plan.refused.iter().any(|(other, ..)| other == node);
            assert!(!runs.iter().any(refused), "seed {seed}: {:?}", plan.refused);
        }
        // A version that fits no node any more does not stay either.
        let mut large = site("site-0", 2);
        large.needs.memory = 1 << 50;
        let ask = world.ask(world.alive()[0], ServiceQuestion::Plan(large));
        world.run_for(Duration::from_secs(10));
        let Some(Answer::Plan(plan)) = world.answers.get(&ask) else { panic!("seed {seed}") };
        assert!(plan.chosen.is_empty(), "seed {seed}: {:?}", plan.chosen);
        let little = |(_, _, why): &(NodeId, String, String)| why.contains("gives too little");
        assert_eq!(plan.refused.iter().filter(|node| little(node)).count(), 6, "seed {seed}");
    }
}

#[test]
fn stop_and_remove_leave_nothing_running() {
    for seed in 1..=10 {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 6);
        let wanted = deploy(&mut world, 2, 3);
        let other = world.alive()[1];
        let stop = world.ask(other, ServiceQuestion::Stop("site-0".into()));
        let remove = world.ask(other, ServiceQuestion::Remove("site-1".into()));
        world.run_for(Duration::from_secs(30));
        assert_eq!(world.answers.get(&stop), Some(&Answer::Done), "seed {seed}");
        assert_eq!(world.answers.get(&remove), Some(&Answer::Done), "seed {seed}");
        let none = wanted.keys().map(|key| (*key, 0)).collect::<BTreeMap<_, _>>();
        assert!(check::running(&world).is_empty(), "seed {seed}: {none:?}");
        let again = world.ask(other, ServiceQuestion::Remove("site-1".into()));
        world.run_for(Duration::from_secs(10));
        assert_eq!(world.answers.get(&again), Some(&Answer::Unknown), "seed {seed}");
    }
}

/// A second deploy of the same file changes nothing; another version goes one replica at a time.
#[test]
fn versions_roll_and_repeats_do_nothing() {
    let mut world = World::new(Options::seed(6));
    community(&mut world, 5);
    let mut spec = site("rolling", 3);
    let from = world.alive()[2];
    world.give_tree(from, spec.artifacts[0].1);
    let mut versions = Vec::new();
    for step in 0..3 {
        if step == 2 {
            let root = dugnad_kernel::Hash::of(b"second version");
            spec.artifacts[0].1.root = root;
            world.give_tree(from, spec.artifacts[0].1);
        }
        let ask = world.ask(from, ServiceQuestion::Deploy(spec.clone()));
        let mut least = usize::MAX;
        while !world.answers.contains_key(&ask) {
            world.run_for(Duration::from_millis(20));
            if step == 2 {
                least = least.min(check::running(&world).values().map(Vec::len).sum());
            }
        }
        match &world.answers[&ask] {
            Answer::Deployed { service, missing } if missing.is_empty() => {
                versions.push(service.generation);
            }
            other => panic!("{other:?}"),
        }
        assert!(least >= 2, "an update took more than one replica away");
    }
    assert_eq!(versions, [1, 1, 2]);
}

#[test]
fn nodes_are_listed_with_the_dead_ones() {
    let mut world = World::new(Options::seed(11));
    let ids = community(&mut world, 5);
    world.crash(ids[3], Crash::Process);
    world.run_for(Duration::from_secs(20));
    let ask = world.ask(ids[0], ServiceQuestion::Nodes);
    world.run_for(Duration::from_secs(10));
    let Some(Answer::Nodes(nodes)) = world.answers.get(&ask) else { panic!("no answer") };
    let state = |id| nodes.iter().find(|n| n.peer.id == id).map(|n| n.state);
    assert_eq!(state(ids[3]), Some(NodeState::Gone));
    assert_eq!(nodes.iter().filter(|n| n.state == NodeState::Alive).count(), 4);
}

/// A manager that has just restarted alone holds nothing back for a host it has met and that dies.
#[test]
fn a_restarted_manager_heals_at_once() {
    for seed in seeds("restarted", 20) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 5);
        let wanted = deploy(&mut world, 1, 3);
        let key = *wanted.keys().next().unwrap();
        let manages = |w: &World, id: &dugnad_kernel::NodeId| {
            w.node(*id).is_some_and(|n| n.collective().managers().any(|(k, _)| *k == key))
        };
        let manager = world.alive().into_iter().find(|id| manages(&world, id)).unwrap();
        world.crash(manager, Crash::Process);
        world.run_for(Duration::from_secs(3));
        world.start(manager);
        settles(&mut world, 60, &wanted, &format!("seed {seed}: back"));
        let on = check::running(&world)[&key].clone();
        let replica = on.iter().map(|(n, _)| *n).find(|n| *n != manager).unwrap();
        world.crash(replica, Crash::Process);
        let healed = world
            .run_until(Duration::from_secs(6), SECOND, |w| check::services(w, &wanted).is_ok());
        assert!(healed, "seed {seed}: {:?}", check::services(&world, &wanted));
    }
}

/// Where one node owns every place of a package, its copy elsewhere is noticed, however quick.
#[test]
fn small_communities_never_wait_for_a_copy_that_is_there() {
    for seed in seeds("copies", 60) {
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 2 + usize::try_from(seed % 2).unwrap());
        for service in 0..4 {
            let spec = site(&format!("copy-{service}"), 1);
            let from = world.alive()[service % 2];
            world.give_tree(from, spec.artifacts[0].1);
            let ask = world.ask(from, ServiceQuestion::Deploy(spec));
            let limit = Duration::from_secs(20);
            let done = world.run_until(limit, SECOND, |w| w.answers.contains_key(&ask));
            assert!(done, "seed {seed}, service {service}");
        }
    }
}

/// Services that share a package, deployed by different nodes: whoever waits for copies of it is
/// told of them, not only the first who stored it.
#[test]
fn services_that_share_a_package_are_all_deployed() {
    for seed in seeds("shared", 40) {
        let mut world = World::new(Options::seed(seed));
        let ids = community(&mut world, 2 + usize::try_from(seed % 2).unwrap());
        // Several packages: which node owns how many of their places is chance.
        for package in 0..6 {
            let deploy = |world: &mut World, from, number: u32| {
                let mut spec = site(&format!("service-{package}-{number}"), 2);
                spec.artifacts = site(&format!("package-{package}"), 1).artifacts;
                world.give_tree(from, spec.artifacts[0].1);
                world.ask(from, ServiceQuestion::Deploy(spec))
            };
            let answered = |world: &mut World, asked: &[u64]| {
                let limit = Duration::from_secs(10);
                let all = |w: &World| asked.iter().all(|ask| w.answers.contains_key(ask));
                let done = world.run_until(limit, SECOND / 10, all);
                assert!(done, "seed {seed}, package {package}: no answer in {limit:?}");
            };
            let first = deploy(&mut world, ids[0], 0);
            answered(&mut world, &[first]);
            let second = deploy(&mut world, ids[1], 1);
            answered(&mut world, &[second]);
            let both = [deploy(&mut world, ids[0], 2), deploy(&mut world, ids[1], 3)];
            answered(&mut world, &both);
        }
    }
}
