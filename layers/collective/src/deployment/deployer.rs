//! The service deployer: how many replicas a service needs (paper 3.4.4, PROTOCOL.md 10.4). Pure.
//!
//! A service is down while none of the nodes that can run it is up, and while all its replicas have
//! failed and their successors are not ready yet. The first depends on the nodes, hour by hour: an
//! office machine and one at home make each other good. The second depends on how many replicas
//! there are. Nodes of one home fail together now and then.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::map::Map;
use dugnad_resource::availability::{PRIOR_UP, weekly};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::{REPLICAS_MAX, Scale, Want};
use serde::{Deserialize, Serialize};

/// Shares are counted in billionths.
const ALL: u64 = 1_000_000_000;
/// A home with all its nodes is down so much of the time: nine hours a year.
const HOME_DOWN: u64 = ALL / 1_000;
/// Seconds from the end of a replica to the next one that serves: found out, placed, fetched,
/// started.
const HEALED: u64 = 120;
/// From these goals on (millionths) fewer than two, or three, replicas are too few whatever the
/// sum says.
const TWO_FROM: u32 = 995_000;
const THREE_FROM: u32 = 999_900;

/// How many replicas, why, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub count: u8,
    pub because: String,
    pub predicted: Option<Predicted>,
}

/// What a service can be expected to do, if a goal was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicted {
    /// Millionths of the time it answers.
    pub up: u32,
    /// Whether that is what was wanted.
    pub enough: bool,
}

/// How many replicas, as long as it is not known which nodes there are.
#[must_use]
pub fn at_first(want: Want) -> Sum {
    let (count, because) = match want {
        Want::Replicas(count) => (count, format!("the file says {count}")),
        Want::Single => (1, "the file says single".into()),
        Want::Load(scale) => (scale.min, format!("{} of {scale}", scale.min)),
        Want::Availability(goal) => {
            let because = format!("{} wanted; the nodes are being looked at", percent(goal));
            (independent(goal, PRIOR_UP), because)
        }
    };
    Sum { count, because, predicted: None }
}

/// The same for a service that follows its load, and is to be so available besides: never fewer.
#[must_use]
pub fn at_least(scale: Scale, goal: u32, nodes: &[&Description]) -> Sum {
    let sum = replicas(Want::Availability(goal), nodes);
    let count = sum.count.clamp(scale.min, scale.max);
    Sum { count, because: format!("at least {count} of {scale}: {}", sum.because), ..sum }
}

/// The smallest n with `(1-a)^n <= 1-A`: independent nodes, no repair.
fn independent(goal_ppm: u32, node_ppm: u32) -> u8 {
    let allowed = u64::from(1_000_000 - goal_ppm.min(999_999)) * 1_000;
    let down = u64::from(1_000_000 - node_ppm) * 1_000;
    let (mut all_down, mut count) = (ALL, 0);
    while all_down > allowed && count < REPLICAS_MAX {
        all_down = of(all_down, down);
        count += 1;
    }
    count.max(1)
}

/// The product of two shares.
const fn of(a: u64, b: u64) -> u64 {
    a * b / ALL
}

/// How many replicas, with these nodes to run on (those that run one already among them).
#[must_use]
pub fn replicas(want: Want, nodes: &[&Description]) -> Sum {
    let Want::Availability(goal) = want else { return at_first(want) };
    if nodes.is_empty() {
        return at_first(want);
    }
    let none = none_up(nodes);
    let failing = failing(nodes);
    let together = |count: u8| (0..count).fold(ALL, |all, _| of(all, failing));
    let down = |count| none + of(ALL - none, together(count));
    let most = u8::try_from(nodes.len()).unwrap_or(REPLICAS_MAX).min(REPLICAS_MAX);
    let least = 1 + u8::from(goal >= TWO_FROM) + u8::from(goal >= THREE_FROM);
    let allowed = u64::from(1_000_000 - goal.min(999_999)) * 1_000;
    let counts = least.min(most)..=most;
    // Where the goal is out of reach, more than two are of no use once it is the nodes that are
    // missing.
    let enough = counts.clone().find(|count| down(*count) <= allowed);
    let useful =
        || counts.clone().find(|count| *count >= 2.min(most) && together(*count) <= none / 20);
    let count = enough.or_else(useful).unwrap_or(most);
    let up = u32::try_from((ALL - down(count).min(ALL)) / 1_000).unwrap_or(0);
    let predicted = Predicted { up, enough: enough.is_some() && most >= least };
    let because = told(goal, count, predicted, nodes, none);
    Sum { count, because, predicted: Some(predicted) }
}

fn told(goal: u32, count: u8, predicted: Predicted, nodes: &[&Description], none: u64) -> String {
    let measured = nodes.iter().filter(|node| node.availability.seen > 0).count();
    let (up, goal) = (about(predicted.up), percent(goal));
    let none = about(u32::try_from(none / 1_000).unwrap_or(u32::MAX));
    let fit = match nodes.len() {
        1 => "1 node".to_string(),
        many => format!("{many} nodes"),
    };
    let sum = format!("{fit} can run it, {measured} measured; none is up {none} of the time");
    if predicted.enough {
        let gives = if count == 1 { "gives" } else { "give" };
        format!("{goal} wanted, {count} {gives} {up}: {sum}")
    } else {
        format!("{goal} wanted, not reachable now: {up} with what is there: {sum}")
    }
}

/// How much of the time none of the nodes is up: the mean of the hours of a week.
fn none_up(nodes: &[&Description]) -> u64 {
    let mut homes: Map<u32, Vec<&Description>> = Map::new();
    for node in nodes {
        homes.entry(node.profile.home).or_default().push(node);
    }
    let hour = |hour: usize| {
        homes.values().fold(ALL, |all, home| {
            let down = |node: &&Description| {
                u64::from(1_000_000 - node.availability.at(hour).min(1_000_000)) * 1_000
            };
            let each = home.iter().map(down).fold(ALL, of);
            // One node alone was measured with its home.
            let home = if home.len() > 1 { HOME_DOWN + of(ALL - HOME_DOWN, each) } else { each };
            of(all, home)
        })
    };
    u64::from(weekly(hour))
}

/// How much of the time one replica has failed and its successor is not ready.
fn failing(nodes: &[&Description]) -> u64 {
    let each =
        |node: &&Description| HEALED * ALL / (u64::from(node.availability.session.max(1)) + HEALED);
    let sum: u64 = nodes.iter().map(each).sum();
    sum / nodes.len().max(1) as u64
}

/// A share to two places, never more than it is; what is less than that is said so.
fn about(ppm: u32) -> String {
    match ppm / 100 {
        0 if ppm > 0 => "less than 0.01%".to_string(),
        hundredths => percent(hundredths * 100),
    }
}

fn percent(ppm: u32) -> String {
    let (whole, rest) = (ppm / 10_000, ppm % 10_000);
    if rest == 0 {
        return format!("{whole}%");
    }
    let rest = format!("{rest:04}");
    let rest = rest.trim_end_matches('0').to_string();
    format!("{whole}.{rest}%")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dugnad_fabric::Amounts;
    use dugnad_kernel::{Id, Peer};
    use dugnad_resource::availability::{Availability, History};
    use dugnad_resource::describe::Profile;
    use dugnad_resource::spec::Arch;

    const HOUR: u64 = 3_600_000;
    /// A Monday.
    const START: u64 = 2_800 * 168 * HOUR + 96 * HOUR;

    fn node(home: u32, availability: Availability) -> Description {
        let gives = Amounts { memory: 1, cpu: 1, disk: 1, processes: 1 };
        Description {
            peer: Peer::new(Id(1)),
            profile: Profile::plain("n", Arch::X86_64, home),
            free: gives,
            gives,
            takes_work: true,
            up_secs: 1,
            replicas: 0,
            holds: Vec::new(),
            programs: Vec::new(),
            availability,
        }
    }

    /// Three weeks of a node that is up in these hours of weekdays, and in those of weekends.
    fn rhythm(up: impl Fn(u64, bool) -> bool) -> Availability {
        let mut history = History::default();
        for hour in 0..21 * 24 {
            let weekend = hour / 24 % 7 >= 5;
            let from = START + hour * HOUR;
            history.saw(from, from + HOUR, up(hour % 24, weekend));
        }
        history.availability(HOUR)
    }

    fn sum(goal: u32, nodes: &[Description]) -> Sum {
        replicas(Want::Availability(goal), &nodes.iter().collect::<Vec<_>>())
    }

    fn new(count: u32) -> Vec<Description> {
        (0..count).map(|home| node(home, Availability::default())).collect()
    }

    #[test]
    fn three_new_nodes_do_not_make_99_percent() {
        let sum = sum(990_000, &new(3));
        let predicted = sum.predicted.unwrap();
        assert!(!predicted.enough && (970_000..975_000).contains(&predicted.up), "{sum:?}");
        assert_eq!(sum.count, 2, "a third would not help: the nodes are missing");
        assert!(sum.because.contains("not reachable now: 97.2"), "{}", sum.because);
    }

    #[test]
    fn more_nodes_and_better_ones_need_fewer_replicas() {
        let five = sum(990_000, &new(5));
        assert!(five.predicted.unwrap().enough, "{five:?}");
        assert_eq!(five.count, 1, "it is healed in two minutes");
        assert_eq!(sum(995_000, &new(6)).count, 2);
        assert_eq!(sum(999_900, &new(12)).count, 3);
        let steady: Vec<_> = (0..3).map(|home| node(home, rhythm(|_, _| true))).collect();
        let steady = sum(999_000, &steady);
        assert!(steady.predicted.unwrap().enough && steady.count == 2, "{steady:?}");
    }

    #[test]
    fn machines_of_offices_and_of_homes_make_each_other_good() {
        let office = || rhythm(|hour, weekend| !weekend && (7..19).contains(&hour));
        let home = || rhythm(|hour, weekend| weekend || !(8..18).contains(&hour));
        let alike: Vec<_> = (0..6).map(|n| node(n, office())).collect();
        let mixed: Vec<_> =
            (0..6).map(|n| node(n, if n % 2 == 0 { office() } else { home() })).collect();
        let (alike, mixed) = (sum(990_000, &alike), sum(990_000, &mixed));
        assert!(!alike.predicted.unwrap().enough, "{alike:?}");
        assert!(mixed.predicted.unwrap().enough, "{mixed:?}");
    }

    #[test]
    fn nodes_of_one_home_fail_together() {
        let at = |home: fn(u32) -> u32| -> Vec<Description> {
            (0..6).map(|n| node(home(n), rhythm(|_, _| true))).collect()
        };
        let one = sum(999_900, &at(|_| 1)).predicted.unwrap();
        assert!(!one.enough && one.up <= 999_000, "{one:?}");
        assert!(sum(999_900, &at(|n| n / 2)).predicted.unwrap().enough);
    }

    #[test]
    fn the_sum_is_what_chance_makes_of_it() {
        // Nodes up half of the time, each hour anew, healed within the hour: the service is down
        // when none is up.
        let mut rng = fastrand::Rng::with_seed(9);
        for count in 1..6_u32 {
            let mut nodes = Vec::new();
            for home in 0..count {
                let mut history = History::default();
                for hour in 0..3_000 {
                    let from = START + hour * HOUR;
                    history.saw(from, from + HOUR, rng.bool());
                }
                nodes.push(node(home, history.availability(HOUR)));
            }
            let hours = 200_000;
            let down = (0..hours).filter(|_| (0..count).all(|_| rng.bool())).count();
            let measured = 1_000_000 - u32::try_from(down * 1_000_000 / hours).unwrap();
            let predicted = sum(500_000, &nodes).predicted.unwrap().up;
            assert!(predicted.abs_diff(measured) < 40_000, "{count}: {predicted} {measured}");
        }
    }

    /// The table of PROTOCOL.md 10.4.
    #[test]
    fn counts_at_first_follow_the_table() {
        let table =
            [(990_000, [7, 4, 3, 2, 2]), (999_000, [10, 6, 5, 3, 3]), (999_900, [14, 8, 6, 4, 4])];
        for (goal, counts) in table {
            for (node, count) in [500_000, 700_000, 800_000, 900_000, 950_000].iter().zip(counts) {
                assert_eq!(independent(goal, *node), count, "{goal} of {node}");
            }
        }
        assert_eq!(independent(1, 999_999), 1);
        assert_eq!(sum(990_000, &[]).predicted, None);
    }

    #[test]
    fn percentages_read_well() {
        assert_eq!(percent(999_000), "99.9%");
        assert_eq!(percent(700_000), "70%");
        assert_eq!(about(905_318), "90.53%");
        assert_eq!(about(12), "less than 0.01%");
        assert_eq!(about(999_999), "99.99%");
    }
}
