//! Random schedules without clocks (PROTOCOL.md 2.12): one queue for every ordered pair of nodes,
//! and any of their heads may come next.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use dugnad_connectivity::entry::EntryTimer;
use dugnad_connectivity::ring::{self, Ring, Status};
use dugnad_connectivity::route::RouteMsg;
use dugnad_connectivity::{Command, Connectivity, Event, Msg, Timer, overlay};
use dugnad_kernel::{Arc, Component, Cx, Effect, Input, NodeId, Peer, Time};
use fastrand::Rng;

use crate::check::{self, PLACES, number, place};

/// What the links and the messages are like.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Nodes inside at once, at most.
    pub nodes: usize,
    pub steps: usize,
    /// Messages between two nodes come in the order in which they were sent.
    pub fifo: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { nodes: 12, steps: 200, fifo: true }
    }
}

/// What happened, for tests that must not be tame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub joins: u64,
    pub leaves: u64,
    pub lookups: u64,
    pub join_retries: u64,
    pub leave_retries: u64,
    pub forwarded: u64,
    pub deliveries: u64,
}

impl Seen {
    pub const fn add(&mut self, other: Self) {
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.lookups += other.lookups;
        self.join_retries += other.join_retries;
        self.leave_retries += other.leave_retries;
        self.forwarded += other.forwarded;
        self.deliveries += other.deliveries;
    }
}

struct Node {
    id: NodeId,
    overlay: Connectivity,
    told_to_leave: bool,
}

pub struct World {
    rules: Rules,
    rng: Rng,
    nodes: Vec<Node>,
    /// Which node is at a place.
    at: [Option<usize>; PLACES as usize],
    /// By receiver, then by sender.
    links: Vec<Vec<VecDeque<Msg>>>,
    effects: Vec<Effect<Connectivity>>,
    /// Links with something on them.
    busy: Vec<(usize, usize)>,
    timers: Vec<(usize, Timer)>,
    /// Claims carried by join and leave points under way, by link.
    points: Vec<(usize, usize, Arc)>,
    open: BTreeMap<(usize, u32), NodeId>,
    calls: u32,
    pub seen: Seen,
    log: Option<Vec<String>>,
}

/// No delay ever ends here.
const NOW: Time = Time(1_000_000);

impl World {
    #[must_use]
    pub fn new(seed: u64, rules: Rules) -> Self {
        let mut world = Self {
            rules,
            rng: Rng::with_seed(seed),
            nodes: Vec::new(),
            at: [None; PLACES as usize],
            links: Vec::new(),
            effects: Vec::new(),
            busy: Vec::new(),
            timers: Vec::new(),
            points: Vec::new(),
            open: BTreeMap::new(),
            calls: 0,
            seen: Seen::default(),
            log: None,
        };
        world.start(None);
        world
    }

    /// Keeps what happens as text, to be read when it went wrong.
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    #[must_use]
    pub fn log(&self) -> String {
        self.log.as_ref().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    fn note(&mut self, node: usize, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{}: {}", number(self.nodes[node].id), what()));
        }
    }

    fn ring(&self, node: usize) -> &Ring {
        self.nodes[node].overlay.ring()
    }

    fn inside(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.ring(*n).is_member()).collect()
    }

    /// A new node at a free place, that joins through `via` or is the first.
    fn start(&mut self, via: Option<usize>) {
        let free: Vec<u8> = (0..PLACES).filter(|n| self.at[usize::from(*n)].is_none()).collect();
        let Some(chosen) = self.rng.choice(&free).copied() else { return };
        let id = place(chosen);
        let node = self.nodes.len();
        self.nodes.push(Node {
            id,
            overlay: Connectivity::new(Peer::new(id)),
            told_to_leave: false,
        });
        self.at[usize::from(chosen)] = Some(node);
        self.links.push(Vec::new());
        self.note(node, || "starts".into());
        self.input(
            node,
            Input::Command(Command::Overlay(overlay::Command::Boot { alone: via.is_none() })),
        );
        if let Some(via) = via {
            let peer = Peer::new(self.nodes[via].id);
            self.input(node, Input::Command(Command::LinkUp(peer)));
            self.seen.joins += 1;
        }
    }

    /// One random step; then who owns what is checked.
    ///
    /// # Errors
    /// What is wrong.
    pub fn step(&mut self) -> Result<(), String> {
        match self.rng.u8(0..100) {
            0..=7 => self.join(),
            8..=15 => self.leave(),
            16..=24 => self.lookup(),
            _ => {
                self.deliver();
            }
        }
        self.check()
    }

    fn join(&mut self) {
        let gone = |n: &Node| n.overlay.ring().status() == Status::Gone;
        let present = self.nodes.iter().filter(|n| !gone(n)).count();
        let inside = self.inside();
        if let (true, Some(via)) = (present < self.rules.nodes, self.rng.choice(&inside).copied()) {
            self.start(Some(via));
        }
    }

    fn leave(&mut self) {
        let staying: Vec<usize> =
            self.inside().into_iter().filter(|n| !self.nodes[*n].told_to_leave).collect();
        if staying.len() >= 2 {
            let node = staying[self.rng.usize(0..staying.len())];
            self.tell_to_leave(node);
        }
    }

    fn tell_to_leave(&mut self, node: usize) {
        self.nodes[node].told_to_leave = true;
        self.seen.leaves += 1;
        self.note(node, || "leaves".into());
        self.input(node, Input::Command(Command::Leave));
    }

    fn lookup(&mut self) {
        let inside = self.inside();
        let Some(node) = self.rng.choice(&inside).copied() else { return };
        let key = place(self.rng.u8(0..PLACES));
        self.calls += 1;
        self.seen.lookups += 1;
        self.open.insert((node, self.calls), key);
        let call = self.calls;
        self.note(node, || format!("looks up {} as {call}", number(key)));
        self.input(node, Input::Command(Command::Overlay(overlay::Command::Lookup { call, key })));
    }

    /// The head of a random link, or a timer; `false` if there is neither.
    fn deliver(&mut self) -> bool {
        let ready = (0..self.timers.len()).filter(|t| self.may_fire(*t)).count();
        let choices = self.busy.len() + ready;
        if choices == 0 {
            return false;
        }
        self.seen.deliveries += 1;
        let chosen = self.rng.usize(0..choices);
        if let Some(&(from, to)) = self.busy.get(chosen) {
            self.deliver_from(from, to);
        } else {
            let nth = chosen - self.busy.len();
            let mut ready = (0..self.timers.len()).filter(|t| self.may_fire(*t));
            let Some(timer) = ready.nth(nth) else { return false };
            let (node, timer) = self.timers.swap_remove(timer);
            self.note(node, || format!("{timer:?}"));
            self.input(node, Input::Timer(timer));
        }
        true
    }

    fn deliver_from(&mut self, from: usize, to: usize) {
        let Some(link) = self.links[to].get_mut(from) else { return };
        let place = if self.rules.fifo { 0 } else { self.rng.usize(0..link.len().max(1)) };
        let Some(msg) = link.remove(place) else { return };
        if link.is_empty() {
            self.busy.retain(|link| *link != (from, to));
        }
        if let Msg::Overlay(overlay::Msg::Ring(
            ring::Msg::JoinPoint { pred, .. } | ring::Msg::LeavePoint { pred, .. },
        )) = &msg
        {
            let lo = pred.id;
            let here = |(f, t, arc): &(usize, usize, Arc)| (*f, *t, arc.lo) == (from, to, lo);
            if let Some(point) = self.points.iter().position(here) {
                self.points.remove(point);
            }
        }
        self.arrive(from, to, msg);
    }

    fn arrive(&mut self, from: usize, to: usize, msg: Msg) {
        let from = self.nodes[from].id;
        self.note(to, || format!("from {}: {msg:?}", number(from)));
        self.input(to, Input::Message { from, msg });
    }

    /// Whether a timer may go off here: those that say that something was not answered may not,
    /// because everything is, in the end.
    fn may_fire(&self, timer: usize) -> bool {
        let (node, timer) = &self.timers[timer];
        match timer {
            Timer::Overlay(overlay::Timer::Ring(ring::Timer::Retry { .. })) => {
                self.ring(*node).status() == Status::Out
            }
            _ => true,
        }
    }

    fn input(&mut self, node: usize, input: Input<Connectivity>) {
        let mut effects = mem::take(&mut self.effects);
        let mut cx = Cx::new(NOW, &mut self.rng, &mut effects);
        self.nodes[node].overlay.handle(input, &mut cx);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, msg } => self.send(node, to, msg),
                Effect::After { timer, .. } => {
                    let kept = matches!(
                        timer,
                        Timer::Overlay(overlay::Timer::Ring(
                            ring::Timer::Retry { .. } | ring::Timer::LeaveAgain
                        )) | Timer::Overlay(overlay::Timer::Entry(EntryTimer::TryNext))
                    );
                    if kept {
                        self.timers.push((node, timer));
                    }
                }
                Effect::Emit(Event::Overlay(overlay::Event::Found { call, found: Some(_) })) => {
                    self.open.remove(&(node, call));
                }
                Effect::Emit(_) => {}
            }
        }
        self.effects = effects;
    }

    fn send(&mut self, from: usize, to: NodeId, msg: Msg) {
        let Some(to) = self.at[usize::from(number(to))] else { return };
        match &msg {
            // Nobody dies here, so nobody is asked whether it lives.
            Msg::Detect(_) => return,
            // Only stops a timer that never goes off.
            Msg::Overlay(overlay::Msg::Route(RouteMsg::Ack { seq })) => {
                let (from, msg) = (self.nodes[from].id, RouteMsg::Ack { seq: *seq });
                self.input(
                    to,
                    Input::Message { from, msg: Msg::Overlay(overlay::Msg::Route(msg)) },
                );
                return;
            }
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::JoinPoint { pred, .. })) => {
                self.points.push((from, to, Arc::new(pred.id, self.nodes[to].id)));
            }
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::LeavePoint { pred, .. })) => {
                self.points.push((from, to, Arc::new(pred.id, self.nodes[from].id)));
            }
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::JoinRetry { .. })) => {
                self.seen.join_retries += 1
            }
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::LeaveRetry { .. })) => {
                self.seen.leave_retries += 1
            }
            Msg::Overlay(overlay::Msg::Route(RouteMsg::Hop(hop))) if hop.last => {
                self.seen.forwarded += 1
            }
            _ => {}
        }
        let links = &mut self.links[to];
        if links.len() <= from {
            links.resize(from + 1, VecDeque::new());
        }
        if links[from].is_empty() {
            self.busy.push((from, to));
        }
        links[from].push_back(msg);
    }

    /// I-OWN and I3.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let claims = self.nodes.iter().filter_map(|node| node.overlay.ring().claim());
        check::partition(claims.chain(self.points.iter().map(|point| point.2)))?;
        self.nodes.iter().try_for_each(|node| check::locks(node.overlay.ring()))
    }

    /// Lets everything under way arrive, then checks that all are done: nobody is locked, the
    /// ring is exact, whoever was told to leave is gone, every lookup was answered.
    ///
    /// # Errors
    /// What is wrong.
    pub fn drain(&mut self) -> Result<(), String> {
        for step in 0.. {
            if !self.deliver() {
                break;
            }
            self.check()?;
            if step > 100_000 {
                return Err("it never ends".into());
            }
        }
        for node in self.nodes.iter().filter(|n| n.told_to_leave) {
            if node.overlay.ring().status() != Status::Gone {
                return Err(format!("{} did not get away", number(node.id)));
            }
        }
        let gone = |n: &&Node| n.overlay.ring().status() != Status::Gone;
        let rings = self.nodes.iter().filter(gone).map(|n| (n.id, n.overlay.ring())).collect();
        check::pointers(&rings)?;
        match self.open.iter().next() {
            Some(((node, call), key)) => Err(format!(
                "lookup {call} of {} for {} was never answered",
                number(self.nodes[*node].id),
                number(*key)
            )),
            None => Ok(()),
        }
    }

    /// Everything of one schedule.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(&mut self) -> Result<(), String> {
        for _ in 0..self.rules.steps {
            self.step()?;
        }
        self.drain()
    }

    /// All but one leave at once, in a ring of `count` that stands (T2.3).
    ///
    /// # Errors
    /// What is wrong.
    pub fn all_leave(&mut self, count: usize) -> Result<(), String> {
        while self.nodes.len() < count {
            self.start(Some(0));
            self.drain()?;
        }
        let stays = self.rng.usize(0..count);
        for node in (0..count).filter(|node| *node != stays) {
            self.tell_to_leave(node);
        }
        self.drain()?;
        let whole = self.ring(stays).claim().is_some_and(|claim| check::places(claim) == u64::MAX);
        if whole { Ok(()) } else { Err("the last one does not own all".into()) }
    }
}
