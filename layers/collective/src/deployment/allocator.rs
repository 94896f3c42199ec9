//! The service allocator: which nodes run the replicas (paper 3.4.4, PROTOCOL.md 10.5). Pure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Hash, NodeId};
use dugnad_resource::describe::{self, Description};
use dugnad_resource::spec::{Kind, Spec, state_mark};

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

/// Orders the nodes that can run `spec`. `taken` run a replica already; `avoid` failed lately.
pub fn choose(
    spec: &Spec,
    nodes: &[Description],
    taken: &Set<NodeId>,
    avoid: &Set<NodeId>,
    rng: &mut fastrand::Rng,
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
                // Equal nodes are taken at random, or all managers pick the same idle one.
                fit.push((node, score * 16 + i64::from(rng.u8(0..16)), why));
            }
        }
    }
    // Homes of the replicas that stay count as used.
    let mut homes: Map<u32, i64> = Map::new();
    for node in nodes.iter().filter(|node| taken.contains(&node.peer.id)) {
        *homes.entry(node.profile.home).or_default() += 1;
    }
    while !fit.is_empty() {
        // A home that runs one already is a worse place, not a forbidden one (PROTOCOL.md 10.5).
        let value = |(node, score, _): &(&Description, i64, String)| {
            score - 16 * 40 * homes.get(&node.profile.home).copied().unwrap_or(0)
        };
        let best = (0..fit.len()).max_by_key(|place| value(&fit[*place])).unwrap_or(0);
        let (node, _, why) = fit.swap_remove(best);
        *homes.entry(node.profile.home).or_default() += 1;
        let name = node.profile.name.clone();
        choice.candidates.push(Candidate { node: node.peer.id, name, why });
    }
    choice
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
    let load = i64::from(node.replicas.min(32));
    score -= 4 * load;
    if load > 0 {
        why.push(format!("runs {load} other"));
    }
    (score, why.join(", "))
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
            40 * i64::try_from(same.count()).unwrap_or(i64::MAX / 64)
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
        let mut rng = fastrand::Rng::with_seed(3);
        choose(&spec(), nodes, &Set::new(), &Set::new(), &mut rng)
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
