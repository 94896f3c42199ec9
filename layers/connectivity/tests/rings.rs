//! Lookups and broadcasts in rings that stand, and with nodes that just fell silent.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dugnad_connectivity::route::Found;
use dugnad_connectivity::tree::broadcast::CastMsg;
use dugnad_connectivity::{Command, Connectivity, Event, Msg, Timer, overlay};
use dugnad_kernel::{Component, Cx, Duration, Effect, Id, Input, NodeId, Peer, Time};

/// Overlays with a network that delivers at once and in order.
struct Ring {
    nodes: BTreeMap<NodeId, Connectivity>,
    queue: VecDeque<(NodeId, Input<Connectivity>)>,
    timers: BTreeMap<(Time, u64), (NodeId, Timer)>,
    linked: BTreeSet<(NodeId, NodeId)>,
    silent: BTreeSet<NodeId>,
    found: BTreeMap<(NodeId, u32), Option<Found>>,
    casts: Vec<NodeId>,
    complete: Option<bool>,
    downs: usize,
    now: Time,
    sequence: u64,
    rng: fastrand::Rng,
}

impl Ring {
    /// All join through the first; stands for ten minutes.
    fn of(count: usize, seed: u64) -> Self {
        let mut ring = Self {
            nodes: BTreeMap::new(),
            queue: VecDeque::new(),
            timers: BTreeMap::new(),
            linked: BTreeSet::new(),
            silent: BTreeSet::new(),
            found: BTreeMap::new(),
            casts: Vec::new(),
            complete: None,
            downs: 0,
            now: Time(0),
            sequence: 0,
            rng: fastrand::Rng::with_seed(seed),
        };
        let mut first = None;
        for _ in 0..count {
            let id = Id(ring.rng.u128(..));
            ring.nodes.insert(id, Connectivity::new(Peer::new(id)));
            ring.put(id, Command::Overlay(overlay::Command::Boot { alone: first.is_none() }));
            if let Some(first) = first {
                ring.link(id, first);
            }
            first = first.or(Some(id));
            ring.run(Duration::from_secs(5));
        }
        ring.run(Duration::from_secs(600));
        ring
    }

    fn put(&mut self, id: NodeId, command: Command) {
        self.queue.push_back((id, Input::Command(command)));
    }

    fn link(&mut self, a: NodeId, b: NodeId) {
        if self.linked.insert((a.min(b), a.max(b))) {
            self.put(a, Command::LinkUp(Peer::new(b)));
            self.put(b, Command::LinkUp(Peer::new(a)));
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            if let Some((id, input)) = self.queue.pop_front() {
                self.step(id, input);
            } else if self.timers.first_key_value().is_some_and(|((due, _), _)| *due <= end) {
                let ((due, _), (id, timer)) = self.timers.pop_first().unwrap();
                self.now = due;
                self.step(id, Input::Timer(timer));
            } else {
                break;
            }
        }
        self.now = end;
    }

    fn step(&mut self, id: NodeId, input: Input<Connectivity>) {
        if self.silent.contains(&id) {
            return;
        }
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(&id).unwrap();
        node.handle(input, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => self.send(id, to, msg),
                Effect::After { delay, timer } => {
                    self.sequence += 1;
                    self.timers.insert((self.now + delay, self.sequence), (id, timer));
                }
                Effect::Emit(event) => self.event(id, event),
            }
        }
    }

    fn event(&mut self, id: NodeId, event: Event) {
        match event {
            Event::Overlay(overlay::Event::Found { call, found }) => {
                self.found.insert((id, call), found);
            }
            Event::Overlay(overlay::Event::Cast { id: cast, feedback, .. }) => {
                self.casts.push(id);
                if feedback {
                    // In the same step, before anything else.
                    let answer = Command::Overlay(overlay::Command::AnswerCast {
                        id: cast,
                        part: Some(vec![1]),
                    });
                    self.queue.push_front((id, Input::Command(answer)));
                }
            }
            Event::Overlay(overlay::Event::Feedback { feedback, .. }) => {
                let everybody = feedback.parts.len() == self.nodes.len();
                self.complete = Some(feedback.complete && everybody);
            }
            _ => {}
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        self.downs +=
            usize::from(matches!(msg, Msg::Overlay(overlay::Msg::Cast(CastMsg::Down { .. }))));
        if to != from && !self.silent.contains(&to) {
            self.link(from, to);
        }
        self.queue.push_back((to, Input::Message { from, msg }));
    }

    fn live(&self) -> Vec<NodeId> {
        self.nodes.keys().filter(|id| !self.silent.contains(id)).copied().collect()
    }

    /// Looks up 40 keys, on and beside nodes, from every live node; how many answers were right,
    /// and how many there should be.
    fn all_to_all(&mut self) -> (usize, usize) {
        let live = self.live();
        let mut keys: Vec<Id> = live.iter().flat_map(|id| [*id, id.plus(1), id.minus(1)]).collect();
        keys.push(Id(self.rng.u128(..)));
        self.rng.shuffle(&mut keys);
        keys.truncate(40);
        let mut asked = Vec::new();
        self.found.clear();
        for key in keys {
            // The oracle: the first live node at or after the key.
            let owner = *live.iter().min_by_key(|id| key.distance(**id)).unwrap();
            for id in &live {
                let call = u32::try_from(asked.len()).unwrap();
                self.put(*id, Command::Overlay(overlay::Command::Lookup { call, key }));
                asked.push((*id, call, owner));
            }
            self.run(Duration::from_millis(10));
        }
        self.run(Duration::from_secs(15));
        let right = |(id, call, owner): &&(NodeId, u32, NodeId)| {
            let found = self.found.get(&(*id, *call)).and_then(Option::as_ref);
            found.is_some_and(|found| found.owner.id == *owner)
        };
        (asked.iter().filter(right).count(), asked.len())
    }
}

#[test]
fn lookups_from_all_reach_the_owner() {
    for count in [1, 2, 3, 10, 50] {
        let mut ring = Ring::of(count, count as u64);
        let (right, asked) = ring.all_to_all();
        assert_eq!(right, asked, "{count} nodes");
        for found in ring.found.values().flatten() {
            assert!(found.certain && found.hops <= 8, "{count} nodes: {found:?}");
        }
    }
}

/// A tenth fell silent a moment ago and nobody knows it yet: hops go another way.
#[test]
fn lookups_go_around_nodes_that_just_fell_silent() {
    for seed in 1..=5 {
        let mut ring = Ring::of(50, seed);
        let mut ids = ring.live();
        ring.rng.shuffle(&mut ids);
        ring.silent = ids.into_iter().take(5).collect();
        let (right, asked) = ring.all_to_all();
        assert!(right * 1_000 >= asked * 999, "seed {seed}: {right} of {asked}");
    }
}

#[test]
fn a_broadcast_reaches_everybody_once() {
    for count in [1, 2, 3, 5, 20, 100] {
        let mut ring = Ring::of(count, 7 + count as u64);
        let ids = ring.live();
        for _ in 0..5 {
            let from = ids[ring.rng.usize(0..ids.len())];
            (ring.downs, ring.complete) = (0, None);
            ring.casts.clear();
            ring.put(
                from,
                Command::Overlay(overlay::Command::Cast { call: 1, body: vec![1], feedback: true }),
            );
            ring.run(Duration::ZERO);
            assert_eq!(ring.downs, count - 1, "{count} nodes");
            ring.casts.sort_unstable();
            assert_eq!(ring.casts, ids, "{count} nodes");
            assert_eq!(ring.complete, Some(true), "{count} nodes");
        }
    }
}
