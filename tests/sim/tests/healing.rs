//! What healing costs: nodes that flap, cuts, and outages of many.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_node::ServiceQuestion;
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::spec::RECONCILE;
use dugnad_sim::report::{community, deploy, site};
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Every replica that runs, and where.
fn running(world: &World) -> BTreeSet<(NodeId, ReplicaId)> {
    let all = world.machines.iter().filter(|(_, machine)| machine.node.is_some());
    all.flat_map(|(id, m)| m.processes.running.keys().map(|replica| (*id, *replica))).collect()
}

/// Within ten minutes the ring is whole and every service is as wanted.
fn heals(world: &mut World, wanted: &BTreeMap<Key, usize>, seed: u64) {
    let healed = world.run_until(MINUTE * 10, SECOND, |w| {
        check::ideal_ring(w).is_ok() && check::services(w, wanted).is_ok()
    });
    assert!(healed, "seed {seed}: {:?}", check::services(world, wanted));
}

/// A node that comes and goes every few minutes for two hours moves what it ran away once, and
/// costs each service at most two starts an hour.
#[test]
fn a_node_that_flaps_costs_few_moves() {
    for (seed, kind) in [(1, Crash::Power), (2, Crash::Process), (3, Crash::Power)] {
        let mut world = World::new(Options::seed(9_500 + seed));
        let ids = community(&mut world, 6);
        let wanted = deploy(&mut world, 4, 2);
        let flaps = ids[usize::try_from(seed).unwrap_or(0)];
        let before = world.starts.len();
        for round in 0..24_u32 {
            world.crash(flaps, kind);
            world.run_for(MINUTE * 2 + SECOND * (round % 7));
            world.start(flaps);
            world.run_for(MINUTE * 3 - SECOND * (round % 5));
        }
        world.run_for(MINUTE * 2);
        let mut each: BTreeMap<_, usize> = wanted.keys().map(|key| (*key, 0)).collect();
        for (_, _, replica) in &world.starts[before..] {
            *each.entry(replica.service).or_default() += 1;
        }
        println!("seed {seed}: {:?} starts in two hours", each.values().collect::<Vec<_>>());
        assert!(each.values().all(|starts| *starts <= 4), "seed {seed}: {each:?}");
        assert_eq!(check::services(&world, &wanted), Ok(()), "seed {seed}");
        assert_eq!(silent(&mut world), Ok(()), "seed {seed}");
    }
}

/// What runs through a cut and is still wanted after it was never stopped and started anew; each
/// side has what it needs meanwhile, as far as it has nodes.
#[test]
fn what_runs_through_a_cut_is_not_restarted() {
    for seed in 0..20 {
        let mut world = World::new(Options::seed(9_550 + seed));
        let ids = community(&mut world, 7);
        let wanted = deploy(&mut world, 3, 2);
        let before = running(&world);
        let side: BTreeMap<NodeId, u32> =
            ids.iter().enumerate().map(|(n, id)| (*id, u32::from(n % 2 == 0))).collect();
        world.partition(side);
        world.run_for(MINUTE * 5);
        let during = running(&world);
        assert!(during.is_superset(&before), "seed {seed}: a cut stopped something");
        let starts = world.starts.len();
        world.partition(BTreeMap::new());
        heals(&mut world, &wanted, seed);
        let anew: Vec<_> = world.starts[starts..].iter().map(|(_, at, id)| (*at, *id)).collect();
        assert!(anew.is_empty(), "seed {seed}: started when the halves met: {anew:?}");
        assert!(running(&world).is_subset(&during), "seed {seed}");
        assert_eq!(silent(&mut world), Ok(()), "seed {seed}");
    }
}

/// Which replicas stay when the halves of a cut meet says the service file; whichever stay have
/// run all the time.
#[test]
fn who_stays_after_a_cut_is_as_the_service_says() {
    for (word, originals) in [
        ("keep_original", Some(true)),
        ("longest_running", Some(true)),
        ("keep_replacement", None),
        ("best_score", None),
    ] {
        let mut kept = 0;
        for seed in 0..8 {
            let mut world = World::new(Options::seed(9_650 + seed));
            let ids = community(&mut world, 7);
            let mut spec = site("s", 2);
            spec.env.push((RECONCILE.to_owned(), word.to_owned()));
            world.give_tree(ids[0], spec.artifacts[0].1);
            let wanted = BTreeMap::from([(spec.key(), 2)]);
            world.ask(ids[0], ServiceQuestion::Deploy(spec));
            heals(&mut world, &wanted, seed);
            let before = running(&world);
            // One replica on each side: both sides start another.
            let at: Vec<NodeId> = before.iter().map(|(at, _)| *at).collect();
            let (left, right) = (at[0], at[1]);
            let on_left = |n: usize, id: NodeId| id == left || (id != right && n % 2 == 0);
            let side = ids.iter().enumerate().map(|(n, id)| (*id, u32::from(on_left(n, *id))));
            world.partition(side.collect());
            world.run_for(MINUTE * 5);
            let during = running(&world);
            assert!(during.len() > 2 && during.is_superset(&before), "{word}, seed {seed}");
            let starts = world.starts.len();
            world.partition(BTreeMap::new());
            heals(&mut world, &wanted, seed);
            let after = running(&world);
            assert!(after.is_subset(&during), "{word}, seed {seed}");
            assert_eq!(world.starts.len(), starts, "{word}, seed {seed}: started anew");
            kept += usize::from(after == before);
            if originals == Some(true) {
                assert_eq!(after, before, "{word}, seed {seed}: of {during:?}");
            }
            assert_eq!(silent(&mut world), Ok(()), "{word}, seed {seed}");
        }
        println!("{word}: {kept} of 8 kept both originals");
        assert!(originals.is_some() || word == "best_score" || kept < 8, "{word}");
    }
}

/// More than half of all nodes lose power for five minutes: the rest runs what fits, and when they
/// are back everything is as wanted, with at most one start a replica.
#[test]
fn a_mass_outage_ends_as_it_began() {
    for seed in 0..6 {
        let mut world = World::new(Options::seed(9_600 + seed));
        let ids = community(&mut world, 10);
        let wanted = deploy(&mut world, 5, 2);
        let before = world.starts.len();
        let gone: Vec<NodeId> = ids.iter().copied().filter(|_| world.rng.u8(..10) < 6).collect();
        gone.iter().for_each(|id| world.crash(*id, Crash::Power));
        world.run_for(MINUTE * 5);
        gone.iter().for_each(|id| world.start(*id));
        heals(&mut world, &wanted, seed);
        let starts = world.starts.len() - before;
        println!("seed {seed}: {} gone, {starts} starts of 10 replicas", gone.len());
        assert!(starts <= 2 * 10, "seed {seed}: {starts} starts of 10 replicas");
        assert_eq!(silent(&mut world), Ok(()), "seed {seed}");
    }
}
