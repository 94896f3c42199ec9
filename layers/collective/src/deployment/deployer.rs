//! The service deployer: how many replicas a service needs (paper 3.4.4, PROTOCOL.md 10.4).

use alloc::format;
use alloc::string::String;

use dugnad_resource::spec::{REPLICAS_MAX, Want};

/// Availability assumed of a node nobody has measured yet, in millionths (PROTOCOL.md 10.3).
pub const PRIOR_PPM: u32 = 700_000;

/// How many replicas, and why.
#[must_use]
pub fn replicas(want: Want) -> (u8, String) {
    match want {
        Want::Replicas(count) => (count, format!("the file says {count}")),
        Want::Single => (1, "the file says single".into()),
        Want::Availability(goal) => {
            let count = for_availability(goal, PRIOR_PPM);
            let (goal, node) = (percent(goal), percent(PRIOR_PPM));
            let why = format!(
                "{goal} wanted, nodes are assumed up {node} of the time until they are measured"
            );
            (count, why)
        }
    }
}

/// The smallest n with `(1-a)^n <= 1-A`: independent nodes, no repair (PROTOCOL.md 10.4).
fn for_availability(goal_ppm: u32, node_ppm: u32) -> u8 {
    let allowed = u64::from(1_000_000 - goal_ppm.min(999_999)) * 1_000_000;
    let down = u64::from(1_000_000 - node_ppm);
    // Probability that all are down, in units of 10^-12.
    let mut all_down = 1_000_000_000_000u64;
    let mut count = 0;
    while all_down > allowed && count < REPLICAS_MAX {
        all_down = all_down / 1_000_000 * down;
        count += 1;
    }
    count.max(1)
}

fn percent(ppm: u32) -> String {
    let (whole, rest) = (ppm / 10_000, ppm % 10_000);
    if rest == 0 {
        return format!("{whole}%");
    }
    let rest = format!("{rest:04}");
    format!("{whole}.{}%", rest.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of PROTOCOL.md 10.4.
    #[test]
    fn counts_follow_the_table() {
        let table =
            [(990_000, [7, 4, 3, 2, 2]), (999_000, [10, 6, 5, 3, 3]), (999_900, [14, 8, 6, 4, 4])];
        for (goal, counts) in table {
            for (node, count) in [500_000, 700_000, 800_000, 900_000, 950_000].iter().zip(counts) {
                assert_eq!(for_availability(goal, *node), count, "{goal} of {node}");
            }
        }
        assert_eq!(for_availability(1, 999_999), 1);
    }

    #[test]
    fn percentages_read_well() {
        assert_eq!(percent(999_000), "99.9%");
        assert_eq!(percent(700_000), "70%");
    }
}
