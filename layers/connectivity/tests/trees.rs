//! Broadcasts and bulk operations in rings that stand, lose messages, lose nodes and change
//! (PROTOCOL.md 4.10).

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dugnad_connectivity::config::SUCCESSORS;
use dugnad_connectivity::ring::Status;
use dugnad_connectivity::tree::broadcast::{CastId, CastMsg};
use dugnad_connectivity::tree::bulk::{BulkMsg, Load, Reach};
use dugnad_connectivity::tree::feedback::Feedback;
use dugnad_connectivity::{Command, Event, Msg, Overlay, Timer};
use dugnad_kernel::{Arc, ArcSet, Component, Cx, Duration, Effect, Id, Input, NodeId, Peer, Time};
use fastrand::Rng;

enum Todo {
    Command(Command),
    Message { from: NodeId, msg: Msg },
    Timer(Timer),
}

/// Overlays with a network that delays, keeps the order of each pair, and may lose.
struct World {
    nodes: BTreeMap<NodeId, Overlay>,
    queue: BTreeMap<(Time, u64), (NodeId, Todo)>,
    /// When the last message of a pair arrives: none overtakes another.
    last: BTreeMap<(NodeId, NodeId), Time>,
    dead: BTreeSet<NodeId>,
    /// Messages of the layer under test lost, of a thousand.
    loss: u32,
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
    /// Copies that reached a node which had the message.
    redundant: usize,
    others: usize,
    now: Time,
    sequence: u64,
    rng: Rng,
}

impl World {
    fn planted(count: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut ids: Vec<NodeId> = (0..count).map(|_| Id(rng.u128(..))).collect();
        ids.sort_unstable();
        let owner = |key: Id| Peer::new(ids[ids.partition_point(|id| *id < key) % ids.len()]);
        let overlay = |place: usize| {
            let at = |i: usize| Peer::new(ids[(place + i) % count]);
            let succs = (1..=SUCCESSORS.min(count - 1)).map(at).collect();
            (ids[place], Overlay::planted(at(0), at(count - 1), succs, owner))
        };
        let mut world = Self {
            nodes: (0..count).map(overlay).collect(),
            queue: BTreeMap::new(),
            last: BTreeMap::new(),
            dead: BTreeSet::new(),
            loss: 0,
            closes: false,
            told: BTreeMap::new(),
            bulks: BTreeMap::new(),
            served: 0,
            feedback: BTreeMap::new(),
            shares: Vec::new(),
            downs: 0,
            redundant: 0,
            others: 0,
            now: Time(0),
            sequence: 0,
            rng,
        };
        for id in &ids {
            world.put(*id, Command::Boot { alone: false });
        }
        world.run(Duration::from_secs(30));
        world
    }

    fn put(&mut self, id: NodeId, command: Command) {
        self.later(self.now, id, Todo::Command(command));
    }

    fn later(&mut self, at: Time, id: NodeId, todo: Todo) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (id, todo));
    }

    fn live(&self) -> Vec<NodeId> {
        self.nodes.keys().filter(|id| !self.dead.contains(id)).copied().collect()
    }

    fn inside(&self) -> BTreeSet<NodeId> {
        let inside = |id: &NodeId| self.nodes[id].ring().status() == Status::Inside;
        self.live().into_iter().filter(inside).collect()
    }

    /// A new node asks somebody inside to let it in.
    fn join(&mut self) {
        let (id, via) = (Id(self.rng.u128(..)), self.any());
        self.nodes.insert(id, Overlay::new(Peer::new(id)));
        self.put(id, Command::Boot { alone: false });
        self.put(id, Command::LinkUp(Peer::new(via)));
        self.put(via, Command::LinkUp(Peer::new(id)));
    }

    fn any(&mut self) -> NodeId {
        let live = self.live();
        live[self.rng.usize(0..live.len())]
    }

    fn run(&mut self, span: Duration) {
        self.run_until(self.now + span, |_| false);
    }

    fn run_until(&mut self, end: Time, stop: impl Fn(&Self) -> bool) {
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) && !stop(self) {
            let ((at, _), (id, todo)) = self.queue.pop_first().unwrap();
            self.now = at;
            if !self.dead.contains(&id) {
                self.step(id, todo);
            }
        }
        if !stop(self) {
            self.now = end;
        }
    }

    fn step(&mut self, id: NodeId, todo: Todo) {
        let input = match todo {
            Todo::Command(command) => Input::Command(command),
            Todo::Timer(timer) => Input::Timer(timer),
            Todo::Message { from, msg } => {
                self.note(id, &msg);
                Input::Message { from, msg }
            }
        };
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            let node = self.nodes.get_mut(&id).unwrap();
            node.handle(input, &mut Cx::new(self.now, &mut self.rng, &mut effects));
            for effect in effects {
                match effect {
                    Effect::Send { to, msg } => self.send(id, to, msg),
                    Effect::After { delay, timer } => {
                        self.later(self.now + delay, id, Todo::Timer(timer));
                    }
                    Effect::Emit(event) => inputs.extend(self.event(id, event)),
                }
            }
        }
    }

    /// Every node answers with its id.
    fn event(&mut self, node: NodeId, event: Event) -> Option<Input<Overlay>> {
        let (id, feedback) = match event {
            Event::Cast { id, feedback, .. } => {
                self.told.entry(id).or_default().push(node);
                (id, feedback)
            }
            Event::Bulk { id, mine, feedback, body } => {
                self.bulks.entry(body[0]).or_default().push((node, *mine));
                (id, feedback)
            }
            Event::Left => {
                self.dead.insert(node);
                return None;
            }
            Event::Feedback { call, feedback } => {
                self.feedback.insert(call, (feedback, self.now));
                return None;
            }
            _ => return None,
        };
        let part = Some(node.0.to_be_bytes().to_vec());
        feedback.then_some(Input::Command(Command::AnswerCast { id, part }))
    }

    fn note(&mut self, to: NodeId, msg: &Msg) {
        self.served += usize::from(matches!(msg, Msg::Bulk(BulkMsg::Served { .. })));
        let id = match msg {
            Msg::Cast(CastMsg::Down { id, .. }) => *id,
            Msg::Bulk(BulkMsg::Down(bulk)) if matches!(bulk.load, Load::Cast(_)) => bulk.id,
            _ => return,
        };
        let told = self.told.get(&id).is_some_and(|told| told.contains(&to));
        self.redundant += usize::from(told);
    }

    fn send(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        let tree = matches!(msg, Msg::Cast(_) | Msg::Bulk(_));
        if let Msg::Cast(CastMsg::Down { limit, .. }) = &msg {
            let share = to.distance(*limit) as f64 / u128::MAX as f64;
            self.shares.push((from, to, share));
        }
        match &msg {
            Msg::Cast(CastMsg::Down { .. }) | Msg::Bulk(BulkMsg::Down(_)) => self.downs += 1,
            Msg::Cast(_) | Msg::Bulk(_) => self.others += 1,
            _ => {}
        }
        if tree && self.rng.u32(0..1_000) < self.loss {
            return;
        }
        let delay = Duration::from_millis(u64::from(self.rng.u32(10..60)));
        if self.dead.contains(&to) && self.closes {
            self.later(self.now + delay, from, Todo::Command(Command::LinkDown(to)));
        }
        let last = self.last.get(&(from, to)).copied().unwrap_or_default();
        let at = (self.now + delay).max(last);
        self.last.insert((from, to), at);
        if self.nodes.contains_key(&to) {
            self.later(at, to, Todo::Message { from, msg });
        }
    }

    fn ask(&mut self, call: u32, patience: u64) -> NodeId {
        let from = self.any();
        let patience = Duration::from_secs(patience);
        self.put(from, Command::AskAll { call, body: vec![1; 40], patience });
        from
    }

    fn counter(&self, name: &str) -> u64 {
        let of = |node: &Overlay| node.counters().find(|(n, _)| *n == name).map_or(0, |(_, n)| n);
        self.nodes.values().map(of).sum()
    }

    /// What was answered under `call`: the ids of the nodes, sorted, and whether that is all.
    fn answers(&self, call: u32) -> (Vec<NodeId>, bool) {
        let (feedback, _) = self.feedback.get(&call).expect("no answer at all");
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
            (world.downs, world.others) = (0, 0);
            world.ask(call, 4);
            world.run(Duration::from_secs(3));
            assert_eq!(world.answers(call), (world.live(), true), "{count} nodes");
            assert_eq!((world.downs, world.others), (count - 1, count - 1));
        }
        assert!(world.told.values().all(|told| told.len() == count));
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
        world.loss = 10;
        for call in 1..=10 {
            world.ask(call, 60);
            world.run(Duration::from_secs(61));
            assert_eq!(world.answers(call), (world.live(), true), "seed {seed}, {call}");
        }
        for (id, told) in &world.told {
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
        world.closes = seed % 2 == 0;
        let from = world.ask(1, 60);
        world.run(Duration::from_millis(1));
        let held = |(parent, _, share): &&(NodeId, NodeId, f64)| {
            *parent == from && (0.25 / 1.5..=0.5).contains(share)
        };
        let Some((_, victim, _)) = world.shares.iter().find(held).copied() else { continue };
        let after = Duration::from_millis(world.rng.u64(0..200));
        world.run(after);
        world.dead.insert(victim);
        world.run(Duration::from_secs(61));
        let told = world.told.values().next().unwrap();
        let once: BTreeSet<NodeId> = told.iter().copied().collect();
        assert_eq!(once.len(), told.len(), "seed {seed}: delivered twice");
        let live = world.live();
        assert!(live.iter().all(|id| once.contains(id)), "seed {seed}: not everybody");
        let (answers, _) = world.answers(1);
        assert!(live.iter().all(|id| answers.contains(id)), "seed {seed}: not all answers");
        println!(
            "seed {seed} closes {} after {after:?}: {} redundant of {}, answer at {:?}",
            world.closes, world.redundant, world.downs, world.feedback[&1].1
        );
        redundant += world.redundant;
        messages += world.downs;
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
        let victim =
            *world.shares.iter().find(|(parent, ..)| *parent == from).map(|(_, c, _)| c).unwrap();
        let start = world.now;
        world.dead.insert(victim);
        world.run(Duration::from_secs(5));
        let (answers, complete) = world.answers(1);
        let (feedback, at) = &world.feedback[&1];
        assert!(at.since(start) <= Duration::from_secs(4), "seed {seed}");
        assert!(!complete && feedback.missing.contains(victim), "seed {seed}");
        assert_eq!(answers, world.live(), "seed {seed}");
    }
}

/// T4.4: nodes join and leave during a hundred broadcasts; who is there throughout gets each once
/// where feedback shows what is missing. Without, an arc is lost with a pointer to a node that
/// left, as best effort says.
#[test]
fn joins_and_leaves_lose_no_broadcast() {
    let (mut missed, mut all) = (0, 0);
    for (seed, feedback) in [(1, false), (2, true), (3, false), (4, true)] {
        let mut world = World::planted(60, seed);
        for call in 0..100 {
            let before = world.inside();
            for _ in 0..world.rng.usize(1..=3) {
                if world.rng.bool() {
                    world.join();
                } else {
                    let leaver = world.any();
                    world.put(leaver, Command::Leave);
                }
            }
            let span = Duration::from_millis(world.rng.u64(0..400));
            world.run(span);
            let from = *before.iter().find(|id| world.inside().contains(id)).unwrap();
            let known = world.told.len();
            let patience = Duration::from_secs(15);
            world.put(
                from,
                match feedback {
                    true => Command::AskAll { call, body: vec![7], patience },
                    false => Command::Cast { call, body: vec![7], feedback },
                },
            );
            world.run(Duration::from_secs(16));
            assert_eq!(world.told.len(), known + 1);
            let after = world.inside();
            let told = world.told.values().find(|told| told.first() == Some(&from));
            let told = told.unwrap().clone();
            world.told.clear();
            let once: BTreeSet<NodeId> = told.iter().copied().collect();
            assert_eq!(once.len(), told.len(), "broadcast {call}: twice");
            for id in before.intersection(&after) {
                let got = once.contains(id);
                assert!(got || !feedback, "broadcast {call}, seed {seed}: {id} missed it");
                missed += usize::from(!got);
                all += usize::from(!feedback);
            }
            if feedback {
                assert!(world.answers(call).1, "broadcast {call}: not complete");
            }
        }
    }
    println!("best effort missed {missed} of {all}");
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
            world.put(leaver, Command::Leave);
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
        assert_eq!(world.bulks.len(), 25);
        for (call, told) in &world.bulks {
            let mut all = ArcSet::empty();
            for (node, mine) in told {
                assert!(all.and(mine).unwrap().is_empty(), "seed {seed} {call}: {node} again");
                all = all.or(mine).unwrap();
            }
            assert_eq!(all, asked[call], "seed {seed} {call}");
        }
        handed += world.counter("bulk_handed_on");
        served += world.served;
    }
    assert!(handed > 0, "nothing was handed on");
    assert!(served > 0, "nobody was told what was served");
}
