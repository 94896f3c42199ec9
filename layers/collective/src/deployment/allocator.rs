//! The service allocator: which nodes run the replicas (paper 3.4.4, PROTOCOL.md 10.5). Pure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Hash, NodeId};
use dugnad_resource::availability::{HOURS, weekly};
use dugnad_resource::describe::{self, Description};
use dugnad_resource::spec::{Kind, REPLICAS_MAX, Spec, state_mark};

/// More than everything else together: a replica without its state is another service.
const HAS_STATE: i64 = 1_000;

/// What a node is asked for before a place for `spec` is chosen: its packages, and its state.
#[must_use]
pub fn marks(spec: &Spec) -> Vec<Hash> {
    let trees = spec.artifacts.iter().map(|(_, tree)| tree.root);
    trees.chain(spec.keeps_state().then(|| state_mark(&spec.name))).collect()
}

/// Which programs of the host a node is asked for.
#[must_use]
pub fn programs(spec: &Spec) -> Vec<String> {
    let named = spec.place().map(|place| describe::programs(&place)).unwrap_or_default();
    spec.host_program().map(ToString::to_string).into_iter().chain(named).collect()
}

/// A node that can run it, and why it stands where it stands.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: NodeId,
    pub name: String,
    pub why: String,
}

/// Candidates, best first, and every other node with its reason.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub candidates: Vec<Candidate>,
    pub refused: Vec<(NodeId, String, String)>,
}

/// Orders the nodes that can run `spec`. `taken` run a replica already; `avoid` failed lately. Who
/// asks with the same nodes gets the same order, whoever it is.
pub fn choose(
    spec: &Spec,
    nodes: &[Description],
    taken: &Set<NodeId>,
    avoid: &Set<NodeId>,
) -> Choice {
    let mut choice = Choice::default();
    let mut fit: Vec<(&Description, i64, String)> = Vec::new();
    for node in nodes {
        match obstacle(spec, node, taken, avoid) {
            Some(reason) => {
                choice.refused.push((node.peer.id, node.profile.name.clone(), reason));
            }
            None => {
                let (score, why) = score(spec, node);
                fit.push((node, score * LOT + lot(spec, node.peer.id), why));
            }
        }
    }
    // The replicas that stay count.
    let mut off = Off::default();
    for node in nodes.iter().filter(|node| taken.contains(&node.peer.id)) {
        off.add(node);
    }
    while !fit.is_empty() {
        // Whoever comes after as many as a service may have is in reserve.
        let gains = choice.candidates.len() < usize::from(REPLICAS_MAX);
        let value = |(node, score, _): &(&Description, i64, String)| {
            (score + if gains { LOT * off.gain(node) } else { 0 }, node.peer.id)
        };
        let best = (0..fit.len()).max_by_key(|place| value(&fit[*place])).unwrap_or(0);
        let (node, _, why) = fit.swap_remove(best);
        off.add(node);
        let name = node.profile.name.clone();
        choice.candidates.push(Candidate { node: node.peer.id, name, why });
    }
    choice
}

/// Parts of a point.
const LOT: i64 = 1 << 16;
/// Points that lots are worth at most.
const LOTS: i64 = 4;

/// Among nodes that are about as good each service draws others, or all managers would pick the
/// same idle one; and the same ones each time, or two who are asked would plan differently.
fn lot(spec: &Spec, node: NodeId) -> i64 {
    let hash = Hash::of(&[spec.name.as_bytes(), &node.0.to_be_bytes()].concat()).0;
    i64::from(u16::from_be_bytes([hash[0], hash[1]])) * LOTS
}

/// How much of the time the nodes with a replica are all off, by the hour of the week.
struct Off {
    /// Of each home, of all its nodes, in 2^32nds.
    homes: Map<u32, [u32; HOURS]>,
    /// Of all.
    all: [u32; HOURS],
    used: Map<u32, i64>,
}

/// Always.
const ALWAYS: u32 = u32::MAX;
/// So much of the time a home is off with all that is in it: nine hours a year.
const HOME_OFF: u32 = ALWAYS / 1_000;
/// Points for each halving of the time in which nothing is up.
const HALVED: i64 = 10;
/// A home that runs one already is a worse place, not a forbidden one.
const SAME_HOME: i64 = 40;

impl Default for Off {
    fn default() -> Self {
        Self { homes: Map::new(), all: [ALWAYS; HOURS], used: Map::new() }
    }
}

/// The product of two shares.
fn both(a: u32, b: u32) -> u32 {
    u32::try_from((u64::from(a) * u64::from(b)) >> 32).unwrap_or(ALWAYS)
}

fn either(a: u32, b: u32) -> u32 {
    a.saturating_add(both(ALWAYS - a, b))
}

impl Off {
    /// What of all hours is left with this node beside.
    fn with(&self, node: &Description) -> ([u32; HOURS], [u32; HOURS]) {
        let (mut home, mut all) = ([0; HOURS], [0; HOURS]);
        let before = self.homes.get(&node.profile.home);
        for hour in 0..HOURS {
            let up = u64::from(node.availability.at(hour).min(1_000_000));
            let off = ALWAYS - u32::try_from((up << 32) / 1_000_000).unwrap_or(ALWAYS);
            let was = before.map_or(ALWAYS, |home| home[hour]);
            home[hour] = both(was, off);
            let with = either(HOME_OFF, home[hour]);
            all[hour] = match before {
                None => both(self.all[hour], with),
                // Of the others, and of this home with one more.
                Some(_) => {
                    let home_was = u64::from(either(HOME_OFF, was)).max(1);
                    let others = u64::from(self.all[hour]) * u64::from(with) / home_was;
                    u32::try_from(others).unwrap_or(ALWAYS)
                }
            };
        }
        (home, all)
    }

    fn add(&mut self, node: &Description) {
        let (home, all) = self.with(node);
        self.all = all;
        self.homes.insert(node.profile.home, home);
        *self.used.entry(node.profile.home).or_default() += 1;
    }

    /// Points for a replica on this node: how often the time in which nothing is up is halved.
    fn gain(&self, node: &Description) -> i64 {
        let week = |hours: &[u32; HOURS]| {
            weekly(|hour| u64::from(hours.get(hour).copied().unwrap_or(0) >> 12))
        };
        let (before, after) = (week(&self.all), week(&self.with(node).1));
        let halved = log2_hundredths(before) - log2_hundredths(after);
        let beside = self.used.get(&node.profile.home).copied().unwrap_or(0);
        halved * HALVED / 100 - SAME_HOME * beside
    }
}

/// In hundredths, straight between the powers of two; that of 0 as that of 1.
fn log2_hundredths(value: u32) -> i64 {
    let value = value.max(1);
    let whole = value.ilog2();
    let rest = i64::from(value) - (1 << whole);
    i64::from(whole) * 100 + ((rest * 100) >> whole)
}

/// Why a node cannot run it, if so.
fn obstacle(
    spec: &Spec,
    node: &Description,
    taken: &Set<NodeId>,
    avoid: &Set<NodeId>,
) -> Option<String> {
    if taken.contains(&node.peer.id) {
        return Some("runs a replica already".to_string());
    }
    if !node.takes_work {
        return Some("takes no new work".to_string());
    }
    if let Some(reason) = unfit(spec, node) {
        return Some(reason);
    }
    if let Some(short) = spec.needs.short_of(node.free) {
        return Some(short.to_string());
    }
    if avoid.contains(&node.peer.id) {
        return Some("it failed there lately".to_string());
    }
    None
}

/// Why a node cannot run it whatever else it runs, if so.
pub(crate) fn unfit(spec: &Spec, node: &Description) -> Option<String> {
    if let Some(program) = spec.host_program() {
        if !node.programs.iter().any(|known| known == program) {
            return Some(format!("has no {program}"));
        }
    }
    let needs_package = spec.kind == Kind::Static || !spec.artifacts.is_empty();
    if needs_package && spec.artifact(node.profile.arch).is_none() {
        return Some(format!("no build for {}", node.profile.arch));
    }
    // A spec that came so far was checked: one that cannot be read is met nowhere.
    let Ok(place) = spec.place() else { return Some("the condition cannot be read".to_string()) };
    if !place.is_empty() {
        if let Some(failing) = place.failing(node.attributes().as_slice()) {
            return Some(format!("not so here: {failing}"));
        }
    }
    spec.needs.short_of(node.gives).map(|short| format!("gives too little {short}"))
}

fn score(spec: &Spec, node: &Description) -> (i64, String) {
    let mut why = Vec::new();
    let mut score = 0;
    let package = spec.artifact(node.profile.arch);
    if package.is_some_and(|tree| node.holds.contains(&tree.root)) {
        score += 15;
        why.push("has the package".to_string());
    }
    if spec.keeps_state() && node.holds.contains(&state_mark(&spec.name)) {
        score += HAS_STATE;
        why.push("has its state".to_string());
    }
    let left = node.free.memory.saturating_sub(spec.needs.memory);
    let share = left.saturating_mul(20) / node.gives.memory.max(1);
    score += i64::try_from(share.min(20)).unwrap_or(0);
    why.push(format!("{} memory free", dugnad_fabric::Bytes(node.free.memory)));
    let idle = u64::from(node.free.cpu) * 10 / u64::from(node.gives.cpu.max(1));
    score += i64::try_from(idle.min(10)).unwrap_or(0);
    score += uplink(node);
    if node.availability.seen > 0 {
        why.push(format!("up {}%", node.availability.up() / 10_000));
    }
    let load = i64::from(node.replicas.min(32));
    score -= 4 * load;
    if load > 0 {
        why.push(format!("runs {load} other"));
    }
    (score, why.join(", "))
}

/// Points for a faster line than the usual one, or against a slower one: five for each doubling.
fn uplink(node: &Description) -> i64 {
    let given = node.profile.labels.uplink.map_or(USUAL_UPLINK, |given| given.clamp(1, 1 << 31));
    let hundredths = |bytes: u64| log2_hundredths(u32::try_from(bytes).unwrap_or(u32::MAX));
    (5 * (hundredths(given) - hundredths(USUAL_UPLINK)) / 100).clamp(-15, 15)
}

/// Bytes a second that an owner gives who says nothing.
const USUAL_UPLINK: u64 = 300_000;

/// Points of each node as a place for one replica.
pub(crate) fn scores(spec: &Spec, nodes: &[Description]) -> Map<NodeId, i64> {
    let off = Off::default();
    let points = |node: &Description| (node.peer.id, score(spec, node).0 + off.gain(node));
    nodes.iter().map(points).collect()
}

/// Points a replica must gain by a move: as much as three other replicas on its node, or half of
/// the memory, make it worse. A package that is not there yet counts against it, too.
const GAIN: i64 = 10;
/// How much less of the time, in millionths, the better node may be up: a machine that comes every
/// morning, empty, and goes in the evening is no better place.
const LESS_UP: u32 = 100_000;

/// A replica that would be better off elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Better {
    pub(crate) number: u32,
    pub(crate) from: (NodeId, String),
    pub(crate) to: (NodeId, String),
    /// How it is there, and how it is where it is.
    pub(crate) why: String,
}

impl fmt::Display for Better {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, from: (_, from), to: (_, to), why } = self;
        write!(f, "replica {number} moves from {from}, best to {to}: {why}")
    }
}

/// The nodes as they are after a move.
pub(crate) fn moved(spec: &Spec, nodes: &mut [Description], better: &Better) {
    for node in nodes {
        if node.peer.id == better.from.0 {
            node.replicas = node.replicas.saturating_sub(1);
        } else if node.peer.id == better.to.0 {
            node.replicas = node.replicas.saturating_add(1);
            node.free.memory = node.free.memory.saturating_sub(spec.needs.memory);
        }
    }
}

/// Which of the replicas (number, node) gains most by a move, if one gains enough.
pub(crate) fn better(
    spec: &Spec,
    nodes: &[Description],
    slots: &[(u32, NodeId)],
    avoid: &Set<NodeId>,
) -> Option<Better> {
    let taken: Set<NodeId> = slots.iter().map(|(_, node)| *node).collect();
    let of = |id: &NodeId| nodes.iter().find(|node| node.peer.id == *id);
    let mut best: Option<(i64, Better)> = None;
    for (number, at) in slots {
        let Some(here) = of(at) else { continue };
        // As its node would be without it.
        let mut without = here.clone();
        without.replicas = without.replicas.saturating_sub(1);
        without.free.memory = without.free.memory.saturating_add(spec.needs.memory);
        let others = || slots.iter().filter(|(other, _)| other != number);
        let beside = |home: u32| {
            let same = others().filter(|(_, id)| of(id).is_some_and(|n| n.profile.home == home));
            SAME_HOME * i64::try_from(same.count()).unwrap_or(i64::MAX / 64)
        };
        let (now, why_now) = score(spec, &without);
        let now = now - beside(here.profile.home);
        let up = here.availability.up();
        let stays = |node: &&Description| node.availability.up() + LESS_UP >= up;
        let free = |node: &&Description| obstacle(spec, node, &taken, avoid).is_none();
        for there in nodes.iter().filter(free).filter(stays) {
            let (then, why) = score(spec, there);
            let gain = then - beside(there.profile.home) - now;
            if gain >= GAIN && best.as_ref().is_none_or(|(most, _)| gain > *most) {
                let named = |node: &Description| (node.peer.id, node.profile.name.clone());
                let (from, to) = (named(here), named(there));
                let why = format!("{why}; it had {why_now}");
                best = Some((gain, Better { number: *number, from, to, why }));
            }
        }
    }
    best.map(|(_, better)| better)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_fabric::Amounts;
    use dugnad_kernel::{Hash, Id, Peer};
    use dugnad_resource::availability::History;
    use dugnad_resource::describe::Profile;
    use dugnad_resource::spec::{Arch, Check, Health, Keep, Port, Tree, Want};

    fn spec() -> Spec {
        let tree = Tree { root: Hash::of(b"x"), bytes: 10 };
        let check = Check::Port;
        Spec {
            name: "wiki".into(),
            kind: Kind::Process,
            want: Want::Replicas(3),
            command: std::vec!["./wiki".into()],
            env: std::vec![],
            artifacts: std::vec![(Some(Arch::X86_64), tree)],
            needs: Amounts { memory: 64, cpu: 100, disk: 1, processes: 1 },
            port: Port::Http,
            health: Health { check, interval_ms: 1, timeout_ms: 1, failures: 1 },
            stop_grace_ms: 1,
            state: Keep::Nothing,
        }
    }

    fn node(id: u128, home: u32) -> Description {
        let gives = Amounts { memory: 1000, cpu: 1000, disk: 1000, processes: 10 };
        Description {
            peer: Peer::new(Id(id)),
            profile: Profile::plain(&std::format!("n{id}"), Arch::X86_64, home),
            free: gives,
            gives,
            takes_work: true,
            up_secs: 1,
            replicas: 0,
            holds: std::vec![],
            programs: std::vec![],
            availability: Default::default(),
        }
    }

    fn pick(nodes: &[Description]) -> Choice {
        choose(&spec(), nodes, &Set::new(), &Set::new())
    }

    #[test]
    fn homes_are_spread_before_a_home_is_used_twice() {
        let nodes = [node(1, 7), node(2, 7), node(3, 8), node(4, 9)];
        let choice = pick(&nodes);
        let homes: Set<u32> = choice.candidates[..3]
            .iter()
            .filter_map(|c| nodes.iter().find(|n| n.peer.id == c.node))
            .map(|n| n.profile.home)
            .collect();
        assert_eq!(homes.len(), 3);
        assert_eq!(choice.candidates.len(), 4, "a used home is worse, not forbidden");
    }

    /// Three weeks in which it was up in these hours of every day.
    fn up(mut node: Description, hours: core::ops::Range<u64>) -> Description {
        const HOUR: u64 = 3_600_000;
        let (start, mut history) = (2_800 * 168 * HOUR, History::default());
        for hour in 0..21 * 24 {
            let from = start + hour * HOUR;
            history.saw(from, from + HOUR, hours.contains(&(hour % 24)));
        }
        node.availability = history.availability(0);
        node
    }

    #[test]
    fn machines_that_are_up_come_first_and_those_that_make_each_other_good() {
        let names = |nodes: &[Description]| -> Vec<String> {
            pick(nodes).candidates.into_iter().map(|c| c.name).collect()
        };
        let nodes = [up(node(1, 1), 9..17), up(node(2, 2), 0..24), node(3, 3)];
        assert_eq!(names(&nodes), ["n2", "n3", "n1"]);
        // Who is up in the evening goes well with who is up by day, a second one of the day less.
        let nodes = [up(node(1, 1), 6..18), up(node(2, 2), 7..18), up(node(3, 3), 18..24)];
        assert_eq!(names(&nodes), ["n1", "n3", "n2"]);
        // Not at any price: it is full.
        let mut full = up(node(1, 1), 0..24);
        (full.replicas, full.free.memory) = (24, 64);
        assert_eq!(names(&[full, up(node(2, 2), 0..22)]), ["n2", "n1"]);
        // A fast line is worth something.
        let mut fast = node(1, 1);
        fast.profile.labels.uplink = Some(10_000_000);
        assert_eq!(names(&[node(2, 2), fast.clone(), node(3, 3)])[0], "n1");
        let mut slow = node(1, 1);
        slow.profile.labels.uplink = Some(30_000);
        assert_eq!(names(&[slow, node(2, 2), node(3, 3)])[2], "n1");
    }

    #[test]
    fn services_draw_different_ones_of_equal_nodes_and_always_the_same() {
        let nodes: Vec<Description> = (0..8).map(|id| node(id.into(), id)).collect();
        let mut back = nodes.clone();
        back.reverse();
        let mut first = Set::new();
        for number in 0..64 {
            let spec = Spec { name: std::format!("s{number}"), ..spec() };
            let of = |nodes: &[Description]| {
                let choice = choose(&spec, nodes, &Set::new(), &Set::new());
                choice.candidates.iter().map(|c| c.node).collect::<Vec<_>>()
            };
            assert_eq!(of(&nodes), of(&back));
            first.insert(of(&nodes)[0]);
        }
        assert_eq!(first.len(), 8, "each is the first of some");
    }

    #[test]
    fn a_replica_moves_only_where_it_pays() {
        let (mut full, mut empty) = (node(1, 1), node(2, 2));
        full.holds.push(Hash::of(b"x"));
        let better = |nodes: &[Description], slots: &[(u32, NodeId)]| {
            better(&spec(), nodes, slots, &Set::new()).map(|better| (better.number, better.to.1))
        };
        let slots = [(4, Id(1))];
        full.replicas = 3;
        full.free.memory = 500;
        assert_eq!(better(&[full.clone(), empty.clone()], &slots), None, "the package costs, too");
        full.replicas = 6;
        assert_eq!(better(&[full.clone(), empty.clone()], &slots), Some((4, "n2".into())));
        // Nothing is gained by what it takes itself, nor where there is no room.
        empty.free.memory = 10;
        assert_eq!(better(&[full.clone(), empty], &slots), None);
        // Nor on a machine that is seldom up.
        let (mut seldom, mut history) = (node(2, 2), History::default());
        history.saw(0, 14 * 24 * 3_600_000, false);
        seldom.availability = history.availability(0);
        assert_eq!(better(&[full.clone(), seldom], &slots), None);
        // Two in one home: one of them goes to another.
        let (one, two, other) = (node(1, 7), node(2, 7), node(3, 8));
        let both = [(0, Id(1)), (1, Id(2))];
        let moved = better(&[one.clone(), two.clone(), other.clone()], &both);
        assert_eq!(moved.map(|(_, to)| to), Some("n3".into()));
        // And stays there.
        assert_eq!(better(&[one, two, other], &[(0, Id(1)), (1, Id(3))]), None);
    }

    #[test]
    fn every_refusal_says_why() {
        let mut arm = node(1, 1);
        arm.profile.arch = Arch::Aarch64;
        let mut small = node(2, 1);
        small.free.memory = 10;
        let mut tiny = node(3, 1);
        tiny.gives.memory = 32;
        let mut paused = node(4, 1);
        paused.takes_work = false;
        let reasons: Vec<String> =
            pick(&[arm, small, tiny, paused]).refused.into_iter().map(|(_, _, r)| r).collect();
        assert_eq!(
            reasons,
            [
                "no build for aarch64",
                "memory: needs 64, free 10",
                "gives too little memory: needs 64, free 32",
                "takes no new work",
            ]
        );
    }
}
