//! T4.1 for bulk operations: the plan of each node, on rings with randomly thinned tables.

use std::collections::BTreeMap;

use alloc::boxed::Box;

use dugnad_kernel::{Arc, ArcSet, Component, Cx, Effect, Id, Input, NodeId, Peer, Time};
use fastrand::Rng;

use super::{Bulk, BulkMsg, Leg, Load, Reach, pack, plan};
use crate::config::FANOUT;
use crate::overlay::tree::broadcast::CastId;
use crate::overlay::{Command, Event, Msg, Overlay};

/// A correct ring. Everybody knows its successor and some others.
struct World {
    nodes: Vec<NodeId>,
    pointers: BTreeMap<NodeId, Vec<NodeId>>,
}

impl World {
    fn random(rng: &mut Rng) -> Self {
        let count = rng.usize(1..=64);
        let mut nodes: Vec<NodeId> = (0..count).map(|_| Id(rng.u128(..))).collect();
        nodes.sort_unstable();
        let kept = rng.u32(0..=100);
        let pointers = nodes.iter().enumerate().map(|(place, &me)| {
            let succ = nodes[(place + 1) % count];
            let mut known = nodes.clone();
            known.retain(|id| *id != me && (*id == succ || rng.u32(0..100) < kept));
            known.sort_by_key(|id| me.distance(*id));
            (me, known)
        });
        Self { pointers: pointers.collect(), nodes: nodes.clone() }
    }

    fn range(&self, me: NodeId) -> ArcSet {
        let place = self.nodes.iter().position(|id| *id == me).unwrap();
        let pred = self.nodes[(place + self.nodes.len() - 1) % self.nodes.len()];
        ArcSet::of(Arc::new(pred, me))
    }
}

fn random_arcs(world: &World, rng: &mut Rng) -> ArcSet {
    if rng.u8(..) < 20 {
        return ArcSet::whole();
    }
    let mut set = ArcSet::empty();
    for _ in 0..rng.usize(1..=10) {
        let mut end = || match rng.u8(0..3) {
            0 => Id(rng.u128(..)),
            1 => rng.choice(&world.nodes).copied().unwrap(),
            _ => rng.choice(&world.nodes).unwrap().minus(1),
        };
        let (lo, hi) = (end(), end());
        let hi = if rng.bool() { lo.plus(1 + rng.u128(..1 << 120)) } else { hi };
        set = set.or(&ArcSet::of(Arc::new(lo, hi))).unwrap_or(set);
    }
    set
}

/// Runs one operation; what each node was told, and how many messages each got.
fn run(
    world: &World,
    start: NodeId,
    reach: Reach,
    arcs: &ArcSet,
) -> (BTreeMap<NodeId, ArcSet>, BTreeMap<NodeId, u32>) {
    let (mut told, mut got) = (BTreeMap::new(), BTreeMap::new());
    let first = Leg { to: start, arcs: arcs.clone(), own: arcs.clone(), next: start };
    let mut legs = vec![first];
    while let Some(Leg { to: me, arcs, own, next }) = legs.pop() {
        *got.entry(me).or_default() += 1;
        let mine = match reach {
            Reach::Owners => own.and(&world.range(me)).unwrap(),
            Reach::Nodes => arcs.and(&ArcSet::of(Arc::new(me.minus(1), me))).unwrap(),
        };
        if !mine.is_empty() {
            assert!(told.insert(me, mine.clone()).is_none(), "told twice");
        }
        let rest = arcs.minus(&mine).unwrap();
        let sent = plan(me, reach, &world.pointers[&me], &rest, next).unwrap();
        assert!(sent.len() <= FANOUT);
        legs.extend(sent);
    }
    *got.get_mut(&start).unwrap() -= 1;
    (told, got)
}

/// T4.1: owners are told exactly their part, nobody gets two messages, and a whole ring of n costs
/// n-1 of them. The full 100,000 runs: `RUNS=100000 cargo test --profile sim`.
#[test]
fn bulk_owner_covers_exactly() {
    let mut rng = Rng::with_seed(41);
    for _ in 0..crate::overlay::tree::broadcast::tests::runs() {
        let world = World::random(&mut rng);
        let arcs = random_arcs(&world, &mut rng);
        let start = *rng.choice(&world.nodes).unwrap();
        let (told, got) = run(&world, start, Reach::Owners, &arcs);
        for &node in &world.nodes {
            let wanted = arcs.and(&world.range(node)).unwrap();
            assert_eq!(told.get(&node).cloned().unwrap_or_default(), wanted);
            assert!(got.get(&node).copied().unwrap_or_default() <= 1, "a redundant message");
        }
        if arcs.is_whole() {
            assert_eq!(got.values().sum::<u32>() as usize, world.nodes.len() - 1);
        }
    }
}

#[test]
fn bulk_reaches_exactly_the_nodes_in_the_set() {
    let mut rng = Rng::with_seed(42);
    for _ in 0..crate::overlay::tree::broadcast::tests::runs() {
        let world = World::random(&mut rng);
        let arcs = random_arcs(&world, &mut rng);
        let start = *rng.choice(&world.nodes).unwrap();
        let (told, got) = run(&world, start, Reach::Nodes, &arcs);
        for &node in &world.nodes {
            assert_eq!(told.contains_key(&node), arcs.contains(node));
            assert!(got.get(&node).copied().unwrap_or_default() <= 1, "a redundant message");
        }
    }
}

/// A set of more arcs than a message holds is several operations (PROTOCOL.md 1.1).
#[test]
fn many_arcs_are_packed_into_sets_with_room() {
    let arcs = (0..100u128).map(|i| Arc::new(Id(i << 100), Id((i << 100) + 5)));
    let sets = pack(arcs.clone());
    assert_eq!(sets.len(), 7);
    assert!(sets.iter().all(|set| set.runs().len() <= ArcSet::ROOMY));
    for arc in arcs {
        assert_eq!(sets.iter().filter(|set| set.covers(&ArcSet::of(arc))).count(), 1);
    }
}

/// A member claims to have told a range in so many splinters that what is left has more runs than
/// a set holds: the operation is dropped and counted, the node lives.
#[test]
fn splinters_of_a_hostile_member_are_dropped() {
    let (mut rng, mut effects) = (Rng::with_seed(1), Vec::new());
    let mut overlay = Overlay::new(Peer::new(Id(1 << 100)));
    let mut put = |input| {
        overlay.handle(input, &mut Cx::new(Time(1), &mut rng, &mut effects));
    };
    put(Input::Command(Command::Boot { alone: true }));
    let mut splinters = ArcSet::empty();
    for n in 1..=40_u128 {
        let splinter = ArcSet::of(Arc::new(Id(n * 10), Id(n * 10 + 3)));
        splinters = splinters.or(&splinter).unwrap_or(splinters);
    }
    let (from, id) = (Id(7), CastId { origin: Id(7), number: 1 });
    let arcs = Box::new(splinters);
    put(Input::Message { from, msg: Msg::Bulk(BulkMsg::Served { id, arcs }) });
    let whole = ArcSet::whole();
    let down = Bulk {
        id,
        reach: Reach::Owners,
        arcs: whole.clone(),
        own: whole,
        next: from,
        load: Load::Above(Vec::new()),
        ask: None,
        hops: 0,
        avoid: Vec::new(),
        walk: false,
    };
    put(Input::Message { from, msg: Msg::Bulk(BulkMsg::Down(Box::new(down))) });
    assert!(overlay.counters().any(|(name, count)| name == "bulk_overflow" && count > 0));
    let told = |e: &Effect<Overlay>| matches!(e, Effect::Emit(Event::Bulk { .. }));
    assert_eq!(effects.iter().filter(|e| told(e)).count(), 0);
}
