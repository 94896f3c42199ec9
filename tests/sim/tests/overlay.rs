//! Overlays alone, in the hundreds and thousands (overlay.md 12). A failure prints the line that
//! repeats it.

use dugnad_sim::overlay::profile::{Plan, Profile, run};

/// T12.1: the same arguments are the same run, bit for bit.
#[test]
fn the_same_arguments_are_the_same_run() {
    for (name, profile) in Profile::ALL {
        let trace = |seed| {
            let plan = Plan { minutes: 2, lookups: 2.0, ..Plan::new(profile, 30, seed) };
            let (_, report) = run(&plan);
            assert_eq!(report.wrong, None, "{}", report.text);
            report.world_trace
        };
        for seed in 1..=3 {
            assert_eq!(trace(seed), trace(seed), "{name} {seed}");
        }
        assert_ne!(trace(1), trace(2), "{name}");
    }
}
