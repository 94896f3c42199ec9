//! Random communities under random faults come into order again.
//!
//! `SWARM_SEED=7 cargo test --profile sim -p dugnad-sim --test swarm`, or
//! `cargo sim swarm --seed 7`, repeats one run; `--verbose` shows every message.

use dugnad_sim::swarm::swarm;

const SEEDS: u64 = 60;

#[test]
fn every_swarm_comes_into_order() {
    let one = std::env::var("SWARM_SEED").ok().and_then(|seed| seed.parse().ok());
    let past = include_str!("../../seeds.txt").lines().filter_map(|line| {
        let seed = line.strip_prefix("swarm ")?;
        seed.split(' ').next()?.parse::<u64>().ok()
    });
    let seeds: Vec<u64> = one.map_or_else(|| (1..=SEEDS).chain(past).collect(), |seed| vec![seed]);
    let mut failed = Vec::new();
    for seed in seeds {
        if let Err(wrong) = swarm(seed, false) {
            failed.push(format!("cargo sim swarm --seed {seed}: {wrong}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
