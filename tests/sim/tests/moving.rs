//! Services move to better places when nodes come, only where it pays, and never with a gap.

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, Key};
use dugnad_sim::report::{community, deploy};
use dugnad_sim::silence::silent;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Replicas that serve, of each service.
fn serving(world: &World) -> BTreeMap<Key, usize> {
    let mut all = BTreeMap::new();
    for machine in world.machines.values().filter(|machine| machine.node.is_some()) {
        for replica in machine.processes.running.keys() {
            *all.entry(replica.service).or_default() += 1;
        }
    }
    all
}

/// Replicas on each node, in the order of `world.ids()`.
fn loads(world: &World) -> Vec<usize> {
    world.ids().iter().map(|id| world.machines[id].processes.running.len()).collect()
}

/// Runs on, looking every ten seconds whether every service has at least what is wanted.
fn without_a_gap(world: &mut World, wanted: &BTreeMap<Key, usize>, span: Duration) {
    let mut left = span;
    while left > Duration::ZERO {
        world.run_for(SECOND * 10);
        left = left.saturating_sub(SECOND * 10);
        let serving = serving(world);
        for (key, want) in wanted {
            assert!(serving.get(key) >= Some(want), "{key:?}: {:?} of {want}", serving.get(key));
        }
    }
}

#[test]
fn new_nodes_take_their_part() {
    for (seed, old, new, services) in [(1, 1, 1, 10), (2, 2, 2, 16), (3, 3, 3, 24), (4, 4, 2, 32)] {
        let mut world = World::new(Options::seed(9_700 + seed));
        let ids = community(&mut world, old);
        let wanted = deploy(&mut world, services, 1);
        let before = world.starts.len();
        let added: Vec<_> = (0..new)
            .map(|_| {
                let id = world.add(&ids);
                world.start(id);
                id
            })
            .collect();
        // Each service moves at most once an hour.
        without_a_gap(&mut world, &wanted, MINUTE * 95);
        let first = world.starts.len() - before;
        assert!(first <= services, "{first} moves of {services} services in a look");
        without_a_gap(&mut world, &wanted, MINUTE * 60 * 4);
        let moves = world.starts.len() - before;
        println!("{old} nodes and {new} more: {moves} moves of {services}, {:?}", loads(&world));
        for id in &added {
            let runs = world.machines[id].processes.running.len();
            assert!(runs > 0, "{id:?} runs nothing: {:?}", loads(&world));
        }
        assert_eq!(check::services(&world, &wanted), Ok(()), "seed {seed}");
        // It comes to rest: nothing moves to and fro.
        without_a_gap(&mut world, &wanted, MINUTE * 60 * 6);
        let later = world.starts.len() - before - moves;
        assert!(later <= services / 8, "{later} moves after five hours: {:?}", loads(&world));
        assert_eq!(silent(&mut world), Ok(()), "seed {seed}");
    }
}

/// Where nothing can be gained nothing moves.
#[test]
fn who_is_well_placed_stays() {
    for (nodes, replicas) in [(1, 1), (2, 2), (3, 2), (8, 2)] {
        let mut world = World::new(Options::seed(9_750 + nodes as u64));
        community(&mut world, nodes);
        let wanted = deploy(&mut world, 4, replicas);
        let before = world.starts.len();
        world.run_for(MINUTE * 60 * 6);
        assert_eq!(world.starts.len(), before, "{nodes} nodes: {:?}", loads(&world));
        assert_eq!(check::services(&world, &wanted), Ok(()), "{nodes} nodes");
        assert_eq!(silent(&mut world), Ok(()), "{nodes} nodes");
    }
}
