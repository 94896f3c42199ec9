//! T2.1 to T2.3 of PROTOCOL.md 2.12.
//!
//! `SCHEDULE=7 cargo test --profile sim -p dugnad-proof --test schedules` repeats one schedule and
//! prints it.

use dugnad_proof::schedule::{Rules, Seen, World};

fn count(usual: u64) -> u64 {
    let asked = std::env::var("SCHEDULES").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(usual)
}

/// How many of `seeds` go wrong, and how the first does.
fn failures(seeds: u64, rules: Rules) -> (u64, Option<String>, Seen) {
    let (mut bad, mut first, mut seen) = (0, None, Seen::default());
    for seed in 0..seeds {
        let mut world = World::new(seed, rules);
        let outcome = world.run();
        seen.add(world.seen);
        if let Err(wrong) = outcome {
            bad += 1;
            first.get_or_insert(format!("SCHEDULE={seed}: {wrong}"));
        }
    }
    (bad, first, seen)
}

#[test]
fn t2_1_every_id_has_one_owner_at_every_step() {
    if let Some(seed) = std::env::var("SCHEDULE").ok().and_then(|seed| seed.parse().ok()) {
        let mut world = World::new(seed, Rules::default());
        world.keep_log();
        let wrong = world.run();
        panic!("{}\n{wrong:?}", world.log());
    }
    let seeds = count(100_000);
    let (bad, first, seen) = failures(seeds, Rules::default());
    assert_eq!((bad, first), (0, None));
    println!("{seeds} schedules: {seen:?}");
    // What never happened was not checked.
    assert!(seen.join_retries > seeds && seen.leave_retries > seeds / 2, "tame: {seen:?}");
    assert!(seen.joins > 5 * seeds && seen.leaves > 3 * seeds, "tame: {seen:?}");
}

#[test]
fn t2_2_without_fifo_it_fails() {
    let rules = Rules { fifo: false, ..Rules::default() };
    let (bad, first, _) = failures(1_000, rules);
    println!("{bad} of 1000: {first:?}");
    assert!(bad > 500, "{bad} of 1000 found: the checks are too tame");
}

#[test]
fn t2_3_all_but_one_leave_at_once() {
    for count in 2..=64 {
        let rules = Rules { nodes: 64, ..Rules::default() };
        let left = World::new(count as u64, rules).all_leave(count);
        assert_eq!(left, Ok(()), "{count} nodes");
    }
}
