//! Broadcasts and bulk operations in rings that stand, lose messages, lose nodes and change
//! (PROTOCOL.md 4.10).

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use dugnad_connectivity::config::SUCCESSORS;
use dugnad_connectivity::overlay::{self, Command};
use dugnad_connectivity::ring::Status;
use dugnad_connectivity::tree::broadcast::{CastId, CastMsg};
use dugnad_connectivity::tree::bulk::{BulkMsg, Load, Reach};
use dugnad_connectivity::tree::feedback::Feedback;
use dugnad_connectivity::{self as connectivity, Connectivity, Event, Msg};
use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Arc, ArcSet, Duration, Id, NodeId, Peer, Time};

/// What the messages of trees did.
#[derive(Default)]
struct Trees {
    /// Messages of trees lost, of a thousand.
    lost: u32,
    /// Whether a message to the dead closes the connection, as a process that ended does.
    closes: bool,
    told: BTreeMap<CastId, Vec<NodeId>>,
    /// Who was told which ids, by the first byte of the body.
    bulks: BTreeMap<u8, Vec<(NodeId, ArcSet)>>,
    served: usize,
    feedback: BTreeMap<u32, (Feedback, Time)>,
    /// Who was delegated which share of the ring, of the last broadcast.
    shares: Vec<(NodeId, NodeId, f64)>,
    downs: usize,
    /// Copies that were sent to a node which had the message.
    redundant: usize,
    others: usize,
}

type Nodes = testing::World<Connectivity, Trees>;

impl Around<Connectivity> for Trees {
    /// Every node answers with its id.
    fn on_event(world: &mut Nodes, at: NodeId, event: Event) {
        let Event::Overlay(event) = event else { return };
        let (id, feedback) = match event {
            overlay::Event::Cast { id, feedback, .. } => {
                world.around.told.entry(id).or_default().push(at);
                (id, feedback)
            }
            overlay::Event::Bulk { id, mine, feedback, body } => {
                world.around.bulks.entry(body[0]).or_default().push((at, *mine));
                (id, feedback)
            }
            overlay::Event::Left => return world.crash(at),
            overlay::Event::Feedback { call, feedback } => {
                world.around.feedback.insert(call, (feedback, world.now));
                return;
            }
            _ => return,
        };
        if feedback {
            let part = Some(at.0.to_be_bytes().to_vec());
            let answer = Command::AnswerCast { id, part };
            world.command_now(at, connectivity::Command::Overlay(answer));
        }
    }

    fn carries(world: &mut Nodes, from: NodeId, to: NodeId, msg: &Msg) -> bool {
        let Msg::Overlay(msg @ (overlay::Msg::Cast(_) | overlay::Msg::Bulk(_))) = msg else {
            return true;
        };
        let trees = &mut world.around;
        trees.served += usize::from(matches!(msg, overlay::Msg::Bulk(BulkMsg::Served { .. })));
        if let overlay::Msg::Cast(CastMsg::Down { limit, .. }) = msg {
            let share = to.distance(*limit) as f64 / u128::MAX as f64;
            trees.shares.push((from, to, share));
        }
        let carried = match msg {
            overlay::Msg::Cast(CastMsg::Down { id, .. }) => Some(*id),
            overlay::Msg::Bulk(BulkMsg::Down(bulk)) if matches!(bulk.load, Load::Cast(_)) => {
                Some(bulk.id)
            }
            _ => None,
        };
        let told = carried.and_then(|id| trees.told.get(&id));
        trees.redundant += usize::from(told.is_some_and(|told| told.contains(&to)));
        match msg {
            overlay::Msg::Cast(CastMsg::Down { .. }) | overlay::Msg::Bulk(BulkMsg::Down(_)) => {
                trees.downs += 1;
            }
            _ => trees.others += 1,
        }
        let lost = trees.lost;
        world.rng.u32(0..1_000) >= lost
    }

    fn link_down(world: &Nodes, to: NodeId) -> Option<connectivity::Command> {
        world.around.closes.then_some(connectivity::Command::LinkDown(to))
    }
}

struct World(Nodes);

impl Deref for World {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Nodes {
        &mut self.0
    }
}

impl World {
    fn planted(count: usize, seed: u64) -> Self {
        let mut world = Self(Nodes::new(seed, Trees::default()));
        world.delay = 10_000..60_000;
        let mut ids: Vec<NodeId> = (0..count).map(|_| Id(world.rng.u128(..))).collect();
        ids.sort_unstable();
        let owner = |key: Id| Peer::new(ids[ids.partition_point(|id| *id < key) % ids.len()]);
        for (place, id) in ids.iter().enumerate() {
            let at = |i: usize| Peer::new(ids[(place + i) % count]);
            let succs = (1..=SUCCESSORS.min(count - 1)).map(at).collect();
            world.start(*id, Connectivity::planted(at(0), at(count - 1), succs, owner));
            world.put(*id, Command::Boot { alone: false });
        }
        world.run(Duration::from_secs(30));
        world
    }

    fn put(&mut self, id: NodeId, command: Command) {
        self.command(id, connectivity::Command::Overlay(command));
    }

    fn running(&self) -> Vec<NodeId> {
        self.live().map(|(id, _)| id).collect()
    }

    fn inside(&self) -> BTreeSet<NodeId> {
        let inside = |node: &Connectivity| node.ring().status() == Status::Inside;
        self.live().filter(|(_, node)| inside(node)).map(|(id, _)| id).collect()
    }

    /// A new node asks somebody inside to let it in.
    fn join(&mut self) {
        let (id, via) = (Id(self.rng.u128(..)), self.any());
        self.start(id, Connectivity::new(Peer::new(id)));
        self.put(id, Command::Boot { alone: false });
        self.command(id, connectivity::Command::LinkUp(Peer::new(via)));
        self.command(via, connectivity::Command::LinkUp(Peer::new(id)));
    }

    fn any(&mut self) -> NodeId {
        let running = self.running();
        running[self.rng.usize(0..running.len())]
    }

    fn ask(&mut self, call: u32, patience: u64) -> NodeId {
        let from = self.any();
        let patience = Duration::from_secs(patience);
        self.put(from, Command::AskAll { call, body: vec![1; 40], patience });
        from
    }

    fn counter(&self, name: &str) -> u64 {
        let of =
            |node: &Connectivity| node.counters().find(|(n, _)| *n == name).map_or(0, |(_, n)| n);
        self.live().map(|(_, node)| of(node)).sum()
    }

    /// What was answered under `call`: the ids of the nodes, sorted, and whether that is all.
    fn answers(&self, call: u32) -> (Vec<NodeId>, bool) {
        let (feedback, _) = self.around.feedback.get(&call).expect("no answer at all");
        let id = |part: &Vec<u8>| Id(u128::from_be_bytes(part.as_slice().try_into().unwrap()));
        let mut ids: Vec<NodeId> = feedback.parts.iter().map(id).collect();
        ids.sort_unstable();
        assert_eq!(feedback.complete, feedback.missing.is_empty());
        (ids, feedback.complete)
    }
}

/// T4.2: everybody answers once, the certificate covers the ring, 2(n-1) messages in all.
#[test]
fn feedback_is_the_sum_over_all_nodes() {
    for (count, seed) in [(1, 1), (2, 2), (3, 3), (20, 4), (64, 5), (300, 6)] {
        let mut world = World::planted(count, seed);
        for call in 1..=10 {
            (world.around.downs, world.around.others) = (0, 0);
            world.ask(call, 4);
            world.run(Duration::from_secs(3));
            assert_eq!(world.answers(call), (world.running(), true), "{count} nodes");
            assert_eq!((world.around.downs, world.around.others), (count - 1, count - 1));
        }
        assert!(world.around.told.values().all(|told| told.len() == count));
        assert_eq!(world.counter("cover_overlap"), 0);
    }
}

/// T4.2: a hundredth of the messages is lost and the sum is still exact, because who does not
/// answer is asked again.
#[test]
fn feedback_is_exact_in_spite_of_loss() {
    let mut lossy = 0;
    for seed in 1..=6 {
        let mut world = World::planted(100, seed);
        world.around.lost = 10;
        for call in 1..=10 {
            world.ask(call, 60);
            world.run(Duration::from_secs(61));
            assert_eq!(world.answers(call), (world.running(), true), "seed {seed}, {call}");
        }
        for (id, told) in &world.around.told {
            let once: BTreeSet<_> = told.iter().collect();
            assert_eq!((told.len(), once.len()), (100, 100), "{id:?}");
        }
        lossy += world.counter("cast_unknown");
    }
    assert!(lossy > 10, "hardly anything was lost");
}

/// T4.3: a child that holds a quarter to half of the ring dies, before or after it passed the
/// message on. All survivors are reached, and hardly anybody twice.
#[test]
fn a_child_that_dies_in_mid_flight_is_gone_around() {
    let (mut redundant, mut messages, mut runs) = (0, 0, 0);
    for seed in 1..=12 {
        let mut world = World::planted(400, seed);
        world.around.closes = seed % 2 == 0;
        let from = world.ask(1, 60);
        world.run(Duration::from_millis(1));
        let held = |(parent, _, share): &&(NodeId, NodeId, f64)| {
            *parent == from && (0.25 / 1.5..=0.5).contains(share)
        };
        let Some((_, victim, _)) = world.around.shares.iter().find(held).copied() else { continue };
        let after = Duration::from_millis(world.rng.u64(0..200));
        world.run(after);
        world.crash(victim);
        world.run(Duration::from_secs(61));
        let told = world.around.told.values().next().unwrap();
        let once: BTreeSet<NodeId> = told.iter().copied().collect();
        assert_eq!(once.len(), told.len(), "seed {seed}: delivered twice");
        let live = world.running();
        assert!(live.iter().all(|id| once.contains(id)), "seed {seed}: not everybody");
        let (answers, _) = world.answers(1);
        assert!(live.iter().all(|id| answers.contains(id)), "seed {seed}: not all answers");
        println!(
            "seed {seed} closes {} after {after:?}: {} redundant of {}, answer at {:?}",
            world.around.closes,
            world.around.redundant,
            world.around.downs,
            world.around.feedback[&1].1
        );
        redundant += world.around.redundant;
        messages += world.around.downs;
        runs += 1;
    }
    assert!(runs >= 8, "{runs} runs");
    assert!(redundant * 10 < messages, "{redundant} redundant of {messages}");
}

/// A person asks, a node is dead and nobody knows it yet: the answer comes in time, says which
/// part is missing and holds all others.
#[test]
fn an_undetected_death_costs_no_more_than_the_patience() {
    for seed in 1..=10 {
        let mut world = World::planted(40, seed);
        let from = world.ask(1, 4);
        world.run(Duration::from_millis(1));
        let victim = *world
            .around
            .shares
            .iter()
            .find(|(parent, ..)| *parent == from)
            .map(|(_, c, _)| c)
            .unwrap();
        let start = world.now;
        world.crash(victim);
        world.run(Duration::from_secs(5));
        let (answers, complete) = world.answers(1);
        let (feedback, at) = &world.around.feedback[&1];
        assert!(at.since(start) <= Duration::from_secs(4), "seed {seed}");
        assert!(!complete && feedback.missing.contains(victim), "seed {seed}");
        assert_eq!(answers, world.running(), "seed {seed}");
    }
}

/// Seeds of the next test in which no join meets a leave.
const STEADY: [u64; 9] = [3, 4, 5, 7, 8, 9, 11, 16, 17];

/// T4.4: nodes join and leave during a hundred broadcasts. Nobody gets one twice, and where
/// feedback says that it is complete, everybody got it who was there throughout. In the steady
/// seeds it always is; in the others a join and a leave beside each other may leave an arc missing
/// until stabilisation has made them good, and then it is said to be missing. Best effort loses an
/// arc with a pointer to a node that left.
#[test]
fn joins_and_leaves_lose_no_broadcast() {
    let (mut missed, mut all, mut incomplete) = (0, 0, 0);
    for (seed, feedback) in (1..=20).map(|seed| (seed, seed > 2)) {
        let mut world = World::planted(60, seed);
        for call in 0..100 {
            let before = world.inside();
            for _ in 0..world.rng.usize(1..=3) {
                if world.rng.bool() {
                    world.join();
                } else {
                    let leaver = world.any();
                    world.command(leaver, connectivity::Command::Leave);
                }
            }
            let span = Duration::from_millis(world.rng.u64(0..400));
            world.run(span);
            let from = *before.iter().find(|id| world.inside().contains(id)).unwrap();
            let known = world.around.told.len();
            let patience = Duration::from_secs(15);
            let command = match feedback {
                true => Command::AskAll { call, body: vec![7], patience },
                false => Command::Cast { call, body: vec![7], feedback },
            };
            world.put(from, command);
            world.run(Duration::from_secs(16));
            assert_eq!(world.around.told.len(), known + 1);
            let after = world.inside();
            let told = world.around.told.values().find(|told| told.first() == Some(&from));
            let told = told.unwrap().clone();
            world.around.told.clear();
            let once: BTreeSet<NodeId> = told.iter().copied().collect();
            assert_eq!(once.len(), told.len(), "broadcast {call}: twice");
            for id in before.intersection(&after) {
                let got = once.contains(id);
                let complete = feedback && world.answers(call).1;
                assert!(got || !complete, "broadcast {call}, seed {seed}: {id} missed it");
                missed += usize::from(!got);
                all += usize::from(!feedback);
            }
            let complete = !feedback || world.answers(call).1;
            assert!(
                complete || !STEADY.contains(&seed),
                "broadcast {call}, seed {seed}: incomplete"
            );
            incomplete += usize::from(!complete);
        }
    }
    println!("best effort missed {missed} of {all}; {incomplete} of 1800 were not complete");
    assert!(incomplete <= 36, "{incomplete} of 1800 broadcasts were not complete");
}

/// T4.7: an arc moves by a join or a leave while a bulk operation runs over it: every id is told
/// once, to whoever owns it then.
#[test]
fn a_range_that_moves_is_told_once() {
    let (mut handed, mut served) = (0, 0);
    for seed in 1..=60 {
        let mut world = World::planted(12, seed);
        if seed % 3 == 0 {
            let leaver = world.any();
            world.command(leaver, connectivity::Command::Leave);
        } else {
            world.join();
        }
        let mut asked = BTreeMap::new();
        for call in 0..25u8 {
            world.run(Duration::from_millis(20));
            let inside: Vec<NodeId> = world.inside().into_iter().collect();
            let from = inside[world.rng.usize(0..inside.len())];
            let lo = Id(world.rng.u128(..));
            let hi = if call % 2 == 0 { lo } else { Id(world.rng.u128(..)) };
            let command = Command::Bulk {
                arcs: vec![Arc::new(lo, hi)],
                reach: Reach::Owners,
                body: vec![call],
                call: None,
            };
            asked.insert(call, ArcSet::of(Arc::new(lo, hi)));
            world.put(from, command);
        }
        world.run(Duration::from_secs(10));
        assert_eq!(world.around.bulks.len(), 25);
        for (call, told) in &world.around.bulks {
            let mut all = ArcSet::empty();
            for (node, mine) in told {
                assert!(all.and(mine).unwrap().is_empty(), "seed {seed} {call}: {node} again");
                all = all.or(mine).unwrap();
            }
            assert_eq!(all, asked[call], "seed {seed} {call}");
        }
        handed += world.counter("bulk_handed_on");
        served += world.around.served;
    }
    assert!(handed > 0, "nothing was handed on");
    assert!(served > 0, "nobody was told what was served");
}
