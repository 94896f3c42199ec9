//! Scenarios that tests and the command line share, and what they print.

use std::collections::BTreeMap;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Duration, Hash, Key, NodeId};
use dugnad_node::{Answer, ServiceQuestion};
use dugnad_resource::spec::{Check, Health, Keep, Kind, Port, Spec, Tree, Want};

use crate::world::Crash;
use crate::{Options, World, check};

/// A static service with a package of its own.
#[must_use]
pub fn site(name: &str, replicas: u8) -> Spec {
    let tree = Tree { root: Hash::of(name.as_bytes()), bytes: 100_000 };
    Spec {
        name: name.into(),
        kind: Kind::Static,
        want: Want::Replicas(replicas),
        command: Vec::new(),
        env: Vec::new(),
        artifacts: vec![(None, tree)],
        needs: Amounts { memory: 16 << 20, cpu: 20, disk: 1 << 20, processes: 1 },
        port: Port::Http,
        health: Health { check: Check::Port, interval_ms: 10_000, timeout_ms: 2_000, failures: 3 },
        stop_grace_ms: 1_000,
        state: Keep::Nothing,
    }
}

/// A community of `count`, all joining through the first, until the ring is ideal.
///
/// # Panics
/// If it is not ideal after five minutes.
pub fn community(world: &mut World, count: usize) -> Vec<NodeId> {
    let first = world.add(&[]);
    world.start(first);
    let mut ids = vec![first];
    for _ in 1..count {
        let id = world.add(&[first]);
        world.start(id);
        ids.push(id);
        let pause = Duration::from_millis(world.rng.u64(0..300));
        world.run_for(pause);
    }
    let joined = world.run_until(Duration::from_secs(300), Duration::from_secs(1), |w| {
        check::ideal_ring(w).is_ok()
    });
    assert!(joined, "no ideal ring: {:?}", check::ideal_ring(world));
    // Peers they met stand in for the seed when it is gone.
    for id in &ids {
        let met: Vec<NodeId> = world
            .node(*id)
            .map(|n| n.overlay().book().map(|p| p.id).take(16).collect())
            .unwrap_or_default();
        world.set_seeds(*id, met);
    }
    ids
}

/// Deploys `count` services from random nodes; what each must run.
///
/// # Panics
/// If one is not ready after two minutes.
pub fn deploy(world: &mut World, count: usize, replicas: u8) -> BTreeMap<Key, usize> {
    let mut wanted = BTreeMap::new();
    let mut asked = Vec::new();
    for number in 0..count {
        let spec = site(&format!("site-{number}"), replicas);
        let alive = world.alive();
        let from = alive[world.rng.usize(0..alive.len())];
        for (_, tree) in &spec.artifacts {
            world.give_tree(from, *tree);
        }
        wanted.insert(spec.key(), usize::from(replicas));
        asked.push(world.ask(from, ServiceQuestion::Deploy(spec)));
    }
    let done = world.run_until(Duration::from_secs(120), Duration::from_millis(100), |w| {
        asked.iter().all(|ask| w.answers.contains_key(ask))
    });
    assert!(done, "a deploy was not answered");
    for ask in asked {
        match world.answers.get(&ask) {
            Some(Answer::Deployed { missing, .. }) if missing.is_empty() => {}
            other => panic!("deploy ended with {other:?}"),
        }
    }
    wanted
}

/// Crashes `percent` of the live nodes at one instant; who they were.
pub fn crash_many(world: &mut World, percent: usize, kind: Crash) -> Vec<NodeId> {
    let mut ids = world.alive();
    let count = ids.len() * percent / 100;
    let mut rng = world.rng.fork();
    rng.shuffle(&mut ids);
    ids.truncate(count);
    for id in &ids {
        world.crash(*id, kind);
    }
    ids
}

/// Messages and bytes sent by live nodes so far.
#[must_use]
pub fn traffic(world: &World) -> (u64, u64) {
    let live = world.machines.values().filter(|m| m.node.is_some());
    live.fold((0, 0), |(sent, bytes), m| (sent + m.sent, bytes + m.bytes))
}

/// A node that manages or runs a service dies at a moment that varies with the seed; how long it
/// takes until every service is as wanted again. `None` if it takes more than a minute.
pub fn heal(seed: u64, kind: Crash) -> (World, Option<Duration>) {
    let mut world = World::new(Options::seed(seed));
    community(&mut world, 6);
    let wanted = deploy(&mut world, 2, 3);
    // Any phase of the heartbeat.
    let phase = Duration::from_millis(seed.wrapping_mul(1_237) % 10_000);
    world.run_for(phase);
    let hosts: Vec<NodeId> =
        check::running(&world).values().flatten().map(|(node, _)| *node).collect();
    let victim = hosts[world.rng.usize(0..hosts.len())];
    world.verbose = std::env::var_os("SIM_VERBOSE").is_some();
    world.crash(victim, kind);
    let at = world.now;
    let healed = world.run_until(Duration::from_secs(60), Duration::from_millis(20), |w| {
        check::services(w, &wanted).is_ok()
    });
    let took = world.now - at;
    (world, healed.then_some(took))
}

/// Messages and bytes that a node of an idle community of `count` sends in a minute.
#[must_use]
pub fn idle(count: usize) -> (f64, f64) {
    let mut world = World::new(Options::seed(9));
    community(&mut world, count);
    world.run_for(Duration::from_secs(180));
    let before = traffic(&world);
    world.run_for(Duration::from_secs(600));
    let after = traffic(&world);
    let per = 10.0 * count as f64;
    ((after.0 - before.0) as f64 / per, (after.1 - before.1) as f64 / per)
}
