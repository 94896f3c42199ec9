//! What a service was promised, and what it got: communities whose machines come and go as machines
//! do, over weeks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dugnad_collective::deployment::deployer::Predicted;
use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_node::{Answer, ServiceQuestion, program_hash};
use dugnad_resource::availability::hour_of;
use dugnad_resource::spec::{Spec, Want};

use crate::report::{community, site};
use crate::world::{BIRTH_MS, Crash};
use crate::{Options, World};

/// How often it is looked whether a replica runs, in seconds.
const LOOK: u64 = 5;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// How long a deploy may take.
const DEPLOYED: Duration = Duration::from_secs(120);

/// One machine starts, or ends: seconds from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub at: u64,
    pub node: usize,
    pub up: bool,
}

/// How machines come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Churn {
    /// Desks: on from about eight to about six on most weekdays; one in five is never turned off.
    Office,
    /// Homes: on in the evening and at weekends, some for good; a power cut now and then.
    Home,
    /// A third of desks, a third of homes, a third that is always on and fails once a week.
    Mixed,
}

impl std::str::FromStr for Churn {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "office" => Ok(Self::Office),
            "home" => Ok(Self::Home),
            "mixed" => Ok(Self::Mixed),
            _ => Err("one of office, home, mixed".into()),
        }
    }
}

/// What becomes of each of `nodes` machines in `days` days, in order.
#[must_use]
pub fn churn(model: Churn, nodes: usize, days: u64, seed: u64) -> Vec<Change> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut all = Vec::new();
    for node in 0..nodes {
        let kind = match (model, node % 3) {
            (Churn::Office, _) | (Churn::Mixed, 0) => Churn::Office,
            (Churn::Home, _) | (Churn::Mixed, 1) => Churn::Home,
            (Churn::Mixed, _) => Churn::Mixed,
        };
        let steady = rng.u8(..5) == 0 || kind == Churn::Mixed;
        let mut up = true;
        for hour in 0..days * 24 {
            let of_week = hour_of(BIRTH_MS + hour * HOUR * 1_000);
            let (weekend, hour_of_day) = (of_week >= 24, of_week % 24);
            let wanted = match kind {
                _ if steady => true,
                Churn::Office => !weekend && (8..18).contains(&hour_of_day) && rng.u8(..20) > 0,
                Churn::Home | Churn::Mixed => weekend || !(9..17).contains(&hour_of_day),
            };
            let at = hour * HOUR + rng.u64(0..30 * MINUTE);
            if wanted != up {
                all.push(Change { at, node, up: wanted });
                up = wanted;
            } else if up && rng.u32(..7 * 24) == 0 {
                // A cut, an update, somebody pulls the plug.
                let back = at + rng.u64(MINUTE..29 * MINUTE);
                all.extend([(at, false), (back, true)].map(|(at, up)| Change { at, node, up }));
            }
        }
    }
    all.sort_unstable();
    all
}

/// Reads a trace: lines `NODE,SECONDS,up` or `down`, of `nodes` nodes from 0, all of which are up
/// at first.
///
/// # Errors
/// The first line that is none, and what it should be.
pub fn parse(text: &str, nodes: usize) -> Result<Vec<Change>, String> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("node") {
            continue;
        }
        let parts: Vec<&str> = line.split(',').map(str::trim).collect();
        let change = match parts[..] {
            [node, at, state @ ("up" | "down")] => match (node.parse(), at.parse()) {
                (Ok(node), Ok(at)) if node < nodes => Some(Change { at, node, up: state == "up" }),
                _ => None,
            },
            _ => None,
        };
        let wrong = || {
            let line = format!("line {}: \"{line}\" is not NODE,SECONDS,up|down", number + 1);
            format!("{line}, with a NODE below {nodes}")
        };
        all.push(change.ok_or_else(wrong)?);
    }
    all.sort_unstable();
    Ok(all)
}

/// Services with goals from 90 to 99.9 % of the time, in turn.
#[must_use]
pub fn goals(count: usize) -> Vec<Spec> {
    let goals = [900_000, 950_000, 990_000, 995_000, 999_000];
    let one = |number: usize| {
        let goal = goals[number % goals.len()];
        let want = Want::Availability(goal);
        Spec { want, ..site(&format!("goal-{}-{number}", goal / 1_000), 1) }
    };
    (0..count).map(one).collect()
}

/// What one service was promised and got.
#[derive(Clone, Debug)]
pub struct Kept {
    pub name: String,
    /// What was said when it was deployed, if it has a goal.
    pub promised: Option<Predicted>,
    /// Millionths of the time a replica ran on a node that was up.
    pub measured: u32,
    /// Replicas that ran, in the mean, in thousandths.
    pub replicas: u32,
    /// Replicas that were started after the first ones.
    pub moves: u32,
    /// Bytes of packages that were started anew with them, at most.
    pub bytes: u64,
    /// Of each hour: how much of it there was a replica, in millionths, and how many in the mean,
    /// in thousandths.
    pub hours: Vec<(u32, u32)>,
}

/// How long, and with what.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub seed: u64,
    /// Days in which the nodes are measured before anything is deployed.
    pub before: u64,
    /// Days that count.
    pub days: u64,
    pub changes: Vec<Change>,
}

/// Runs it; `progress` is told of each day.
///
/// # Errors
/// A service was not deployed: what was answered.
pub fn run(
    plan: &Plan,
    specs: &[Spec],
    mut progress: impl FnMut(u64),
) -> Result<Vec<Kept>, String> {
    let mut world = World::new(Options { encode: false, ..Options::seed(plan.seed) });
    // What runs says every minute that it does.
    world.ends_silent = false;
    world.programs = specs.iter().filter_map(Spec::host_program).map(program_hash).collect();
    let ids = community(&mut world, plan.nodes);
    let mut run = Run { world, ids, changes: plan.changes.clone().into(), day: 0 };
    run.until(plan.before * DAY, &mut progress, |_| {});
    let mut kept = Vec::new();
    for spec in specs {
        kept.push(deploy(&mut run, spec)?);
    }
    let keys: BTreeMap<Key, usize> = specs.iter().map(Spec::key).zip(0..).collect();
    let first = run.world.starts.len();
    let (mut looks, mut sums) = (0_u64, vec![(0_u64, 0_u64); specs.len()]);
    let part =
        |sum: u64, of: u64, looks: u64| u32::try_from(sum * of / looks.max(1)).unwrap_or(u32::MAX);
    let mut hour = sums.clone();
    run.until((plan.before + plan.days) * DAY, &mut progress, |world| {
        looks += 1;
        let mut now = vec![0_u64; keys.len()];
        for machine in world.machines.values().filter(|machine| machine.node.is_some()) {
            for replica in machine.processes.running.keys() {
                if let Some(place) = keys.get(&replica.service) {
                    now[*place] += 1;
                }
            }
        }
        for ((sum, hour), now) in sums.iter_mut().zip(&mut hour).zip(now) {
            *sum = (sum.0 + u64::from(now > 0), sum.1 + now);
            *hour = (hour.0 + u64::from(now > 0), hour.1 + now);
        }
        const LOOKS: u64 = HOUR / LOOK;
        if looks % LOOKS == 0 {
            for (kept, hour) in kept.iter_mut().zip(&mut hour) {
                let (up, replicas) = std::mem::take(hour);
                kept.hours.push((part(up, 1_000_000, LOOKS), part(replicas, 1_000, LOOKS)));
            }
        }
    });
    for (_, _, replica) in &run.world.starts[first..] {
        if let Some(place) = keys.get(&replica.service) {
            kept[*place].moves += 1;
        }
    }
    for ((kept, (up, replicas)), spec) in kept.iter_mut().zip(sums).zip(specs) {
        kept.measured = part(up, 1_000_000, looks);
        kept.replicas = part(replicas, 1_000, looks);
        let package = spec.artifacts.iter().map(|(_, tree)| tree.bytes).max().unwrap_or(0);
        kept.bytes = u64::from(kept.moves) * package;
    }
    Ok(kept)
}

struct Run {
    world: World,
    ids: Vec<NodeId>,
    changes: std::collections::VecDeque<Change>,
    day: u64,
}

impl Run {
    /// Goes on to a second, one look at a time.
    fn until(&mut self, end: u64, progress: &mut impl FnMut(u64), mut each: impl FnMut(&World)) {
        loop {
            let now = self.world.now.0 / 1_000_000;
            if now >= end {
                return;
            }
            if now / DAY > self.day {
                self.day = now / DAY;
                progress(self.day);
            }
            while let Some(change) = self.changes.front().copied().filter(|next| next.at <= now) {
                self.changes.pop_front();
                let Some(id) = self.ids.get(change.node).copied() else { continue };
                let runs = self.world.node(id).is_some();
                if change.up && !runs {
                    self.world.start(id);
                } else if !change.up && runs {
                    self.world.crash(id, Crash::Power);
                }
            }
            self.world.run_for(Duration::from_secs(LOOK));
            each(&self.world);
        }
    }
}

fn deploy(run: &mut Run, spec: &Spec) -> Result<Kept, String> {
    let world = &mut run.world;
    let alive = world.alive();
    let Some(from) = alive.get(world.rng.usize(0..alive.len().max(1))).copied() else {
        return Err("no node is up when the service is to be deployed".into());
    };
    for (_, tree) in &spec.artifacts {
        world.give_tree(from, *tree);
    }
    let ask = world.ask(from, ServiceQuestion::Deploy(spec.clone()));
    world.run_until(DEPLOYED, Duration::from_secs(1), |w| w.answers.contains_key(&ask));
    let (name, hours) = (spec.name.clone(), Vec::new());
    match world.answers.remove(&ask) {
        Some(Answer::Deployed { service, .. }) => Ok(Kept {
            name,
            promised: service.predicted,
            measured: 0,
            replicas: 0,
            moves: 0,
            bytes: 0,
            hours,
        }),
        Some(answer) => Err(format!("{name}: {answer:?}")),
        None => Err(format!("{name}: no answer within two minutes")),
    }
}

/// Millionths as percent.
fn percent(ppm: u32) -> String {
    format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100)
}

/// A line for each.
#[must_use]
pub fn table(kept: &[Kept]) -> String {
    let mut text =
        String::from("SERVICE         PROMISED  MEASURED  REPLICAS  MOVES  BYTES MOVED\n");
    for kept in kept {
        let promised = kept.promised.map_or_else(|| "-".to_owned(), |said| percent(said.up));
        // Writing to a string cannot fail.
        _ = writeln!(
            text,
            "{:<15} {promised:>8}  {:>8}  {:>5}.{:02}  {:>5}  {:>11}",
            kept.name,
            percent(kept.measured),
            kept.replicas / 1_000,
            kept.replicas % 1_000 / 10,
            kept.moves,
            kept.bytes
        );
    }
    text
}
