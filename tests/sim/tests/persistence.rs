//! Records stay where they belong while nodes come, go and die.

#![expect(clippy::unwrap_used, reason = "tests")]

use dugnad_kernel::Duration;
use dugnad_node::{Answer, Command, ServiceQuestion};
use dugnad_sim::report::{community, deploy, site};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);

fn placed(world: &mut World, what: &str) {
    let limit = Duration::from_secs(60);
    world.run_until(limit, SECOND, |w| check::records(w).is_ok());
    assert_eq!(check::records(world), Ok(()), "{what}");
}

/// In a community smaller than the degree, everybody holds everything, and says no more.
#[test]
fn a_small_community_holds_all_at_its_own_degree() {
    for size in 1..=9 {
        let mut world = World::new(Options::seed(size as u64));
        community(&mut world, size);
        deploy(&mut world, 3, 1);
        placed(&mut world, &format!("{size} nodes"));
    }
}

/// T5.2: graceful joins and leaves at random.
#[test]
fn joins_and_leaves_lose_no_copy() {
    for seed in 1..=20 {
        let mut world = World::new(Options::seed(seed));
        let first = community(&mut world, 8)[0];
        deploy(&mut world, 6, 2);
        for _ in 0..8 {
            if world.rng.bool() {
                let id = world.add(&[first]);
                world.start(id);
            } else if let Some(id) = world.alive().into_iter().rev().find(|id| *id != first) {
                world.command(id, Command::Leave);
                let gone = |w: &World| w.machines[&id].left;
                assert!(world.run_until(Duration::from_secs(30), SECOND / 10, gone));
                world.crash(id, Crash::Power);
            }
            let pause = Duration::from_millis(world.rng.u64(0..3_000));
            world.run_for(pause);
        }
        placed(&mut world, &format!("seed {seed}"));
    }
}

/// What is removed stays removed when somebody comes back who slept through it.
#[test]
fn a_tombstone_wins_over_who_slept_through_it() {
    for seed in 1..=20 {
        let mut world = World::new(Options::seed(seed));
        let ids = community(&mut world, 6);
        let wanted = deploy(&mut world, 1, 2);
        let key = *wanted.keys().next().unwrap();
        let sleeper = ids[usize::try_from(seed % 5).unwrap() + 1];
        world.crash(sleeper, Crash::Power);
        world.run_for(Duration::from_secs(30));
        let asker = world.alive()[0];
        let ask = world.ask(asker, ServiceQuestion::Remove("site-0".into()));
        world.run_for(Duration::from_secs(20));
        assert_eq!(world.answers.get(&ask), Some(&Answer::Done), "seed {seed}");
        world.start(sleeper);
        world.run_for(Duration::from_secs(90));
        assert!(!check::running(&world).contains_key(&key), "seed {seed}: it is back");
        placed(&mut world, &format!("seed {seed}"));
    }
}

/// A deploy is answered when three nodes have its record on disk: any two of all may die in the
/// instant of the answer.
#[test]
fn an_answered_record_survives_any_two() {
    let size = 7;
    for pair in 0..size * (size - 1) / 2 {
        let mut world = World::new(Options::seed(5));
        let ids = community(&mut world, size);
        let spec = site("kept", 1);
        world.give_tree(ids[0], spec.artifacts[0].1);
        let ask = world.ask(ids[0], ServiceQuestion::Deploy(spec.clone()));
        while !world.answers.contains_key(&ask) {
            assert!(world.step());
        }
        let pairs = (0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b)));
        let (a, b) = pairs.into_iter().nth(pair).unwrap();
        world.crash(ids[a], Crash::Power);
        world.crash(ids[b], Crash::Power);
        let kept = |w: &World| {
            let has =
                |id| w.node(id).unwrap().collective().store().get(spec.key(), b"spec").is_some();
            w.alive().into_iter().any(has)
        };
        assert!(kept(&world), "nobody has it without {a} and {b}");
        placed(&mut world, &format!("without {a} and {b}"));
        assert!(
            check::running(&world).contains_key(&spec.key()) || {
                world.run_for(Duration::from_secs(60));
                check::running(&world).contains_key(&spec.key())
            }
        );
    }
}
