//! Scenarios that tests and the command line share, and what they print.

use std::collections::BTreeMap;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Duration, Hash, Key, NodeId};
use dugnad_node::{Answer, Question};
use dugnad_resource::spec::{Check, Health, Kind, Port, Spec, Tree, Want};

use crate::world::Crash;
use crate::{World, check};

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
        keep_state: false,
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
        asked.push(world.ask(from, Question::Deploy(spec)));
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
