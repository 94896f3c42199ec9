//! A live node takes anything that decodes.

use std::collections::BTreeMap;

use dugnad_fuzz::golden;
use dugnad_fuzz::storm::Storm;

/// Messages in all, and inputs a node takes before the next one begins.
const MESSAGES: u64 = 400_000;
const INPUTS: u64 = 2_000;

/// One seed alone: `STORM_SEED=7 cargo test --profile sim -p dugnad-fuzz --test node`.
#[test]
fn node_never_panics() {
    let golden = golden();
    let one = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let (mut messages, mut most) = (0, BTreeMap::new());
    for seed in one.into_iter().chain(0..).take_while(|seed| one.is_none_or(|one| one == *seed)) {
        let run = std::panic::catch_unwind(|| {
            let mut storm = Storm::new(seed, &golden);
            (0..INPUTS).for_each(|_| storm.step());
            (storm.messages, storm.most)
        });
        let Ok((sent, sizes)) = run else { panic!("STORM_SEED={seed}") };
        messages += sent;
        for (name, size) in sizes {
            let known: &mut usize = most.entry(name).or_default();
            *known = size.max(*known);
        }
        if messages >= MESSAGES || one.is_some() {
            break;
        }
    }
    // What is never filled was never tried.
    for name in [
        "records",
        "managers",
        "casts",
        "hops",
        "lookups",
        "replicas",
        "fetching",
        "record_operations",
        "package_operations",
        "service_operations",
    ] {
        let size = most.get(name).copied().unwrap_or(0);
        assert!(size > 1 || one.is_some(), "at most {size} {name}: {most:?}");
    }
}
