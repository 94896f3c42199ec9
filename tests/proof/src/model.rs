//! A small model for exhaustive search (PROTOCOL.md 2.12, T2.7): a few rings that ship, FIFO links
//! between them, and everything that may happen next. Time does not pass: a delay ends when what it
//! waits for cannot come any more, and everybody finds out about a crash, sooner or later.
//!
//! The ring is all there is: a join request is routed by the rule of `route.rs` over successors
//! and predecessor, without its repairs; whoever lost all successors is told of the next live
//! member, as table and links would; `Displaced` and `Doubted` only make real repairs faster.

mod judge;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::rc::Rc;

use dugnad_connectivity::overlay;
use dugnad_connectivity::ring::{Command, Event, Msg, Ring, Status, Timer};
use dugnad_kernel::arc::{in_oc, in_oo};
use dugnad_kernel::{Component, Cx, Effect, Input, NodeId, Peer, Time};
use fastrand::Rng;

use crate::words::{self, Ops, name, node};

/// What may happen, how often.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Names of the members to begin with, in a ring that stands.
    pub inside: &'static str,
    /// Names of those that join, each once.
    pub outside: &'static str,
    /// Length of the successor lists: r.
    pub length: usize,
    pub leaves: u8,
    pub fails: u8,
    /// Rounds of stabilisation that begin by the clock. Those that changes bring about are free.
    pub rounds: u8,
    /// Leases that end too early, while the operation goes on.
    pub leases: u8,
    /// Nodes leave and fail only if r+1 principals are left (R2 of PROTOCOL.md 2.8).
    pub principals: bool,
    /// What is remembered for a while (who died, who claims) is forgotten at once, or never.
    pub forgets: bool,
    pub fifo: bool,
    /// States with more messages on one link are not followed.
    pub queue: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            inside: "abd",
            outside: "c",
            length: 2,
            leaves: 0,
            fails: 0,
            rounds: 0,
            leases: 0,
            principals: true,
            forgets: false,
            fifo: true,
            queue: 6,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A message on the link from one to another: the head, or without FIFO any.
    Deliver(u8, u8, u8),
    Join(u8),
    Leave(u8),
    Fail(u8),
    /// The first learns that the second is dead.
    Dead(u8, u8),
    /// The pause after a refused join, or the wait for an answer that will not come.
    Retry(u8),
    LeaveAgain(u8),
    /// The lease on the lock of an operation that is stuck, or of any.
    Lease(u8),
    /// A node that left, and has pointed the way for a while, is there no more.
    End(u8),
    /// A question of stabilisation that will not be answered.
    Silence(u8),
    Round(u8),
}

#[derive(Clone)]
enum Wire {
    Ring(Msg),
    /// A join request on its way to the owner of the joiner's id.
    Join {
        op: u64,
        joiner: usize,
        last: bool,
    },
}

/// A message on a link, and what tells it from others but for its numbers.
struct Flight {
    wire: Wire,
    op: Option<u64>,
    call: Option<u32>,
    print: u64,
}

#[derive(Clone)]
struct Machine {
    ring: Ring,
    /// Of the timer of stabilisation that is not stale.
    round: u32,
    /// A `LeaveAgain` is on its way.
    again: bool,
    wants_in: bool,
    wants_out: bool,
    down: bool,
}

#[derive(Clone)]
pub struct World {
    bounds: Bounds,
    nodes: Vec<Rc<Machine>>,
    /// By sender, then by receiver.
    links: Vec<Vec<Rc<Flight>>>,
    leaves: u8,
    fails: u8,
    rounds: u8,
    leases: u8,
    /// Somebody failed, or lost a lock: two may own an id, or nobody, until that is repaired.
    faulty: bool,
    /// Inputs so far: makes every random number another.
    steps: u64,
}

impl Machine {
    fn live(&self) -> bool {
        !self.down && self.ring.is_member()
    }
}

impl Flight {
    fn new(mut wire: Wire) -> Self {
        let (text, op, call) = match &mut wire {
            Wire::Join { op, joiner, last } => (format!("Join {joiner} {last}"), Some(*op), None),
            Wire::Ring(msg) => {
                if let Msg::JoinRetry { after_ms, .. } | Msg::LeaveRetry { after_ms, .. } = msg {
                    *after_ms = 0;
                }
                let mut bare = msg.clone();
                let (op, call) = numbers(&mut bare);
                let (op, call) = (op.map(mem::take), call.map(mem::take));
                (format!("{bare:?}"), op, call)
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self { wire, op, call, print: hasher.finish() }
    }
}

/// The operation and the question a message is about.
fn numbers(msg: &mut Msg) -> (Option<&mut u64>, Option<&mut u32>) {
    match msg {
        Msg::JoinRetry { op, .. }
        | Msg::JoinPoint { op, .. }
        | Msg::NewSucc { op, .. }
        | Msg::NewSuccAck { op, .. }
        | Msg::JoinDone { op }
        | Msg::LeaveReq { op }
        | Msg::LeaveRetry { op, .. }
        | Msg::LeaveGrant { op }
        | Msg::LeavePoint { op, .. }
        | Msg::UpdateSucc { op, .. }
        | Msg::UpdateSuccAck { op }
        | Msg::LeaveDone { op } => (Some(op), None),
        Msg::Query { call } | Msg::QueryRes { call, .. } | Msg::Moved { call, .. } => {
            (None, Some(call))
        }
        _ => (None, None),
    }
}

impl World {
    /// The members in a ring that stands, the others outside.
    ///
    /// # Errors
    /// If that ring cannot be made.
    pub fn new(bounds: Bounds) -> Result<Self, String> {
        let mut letters: Vec<char> = bounds.inside.chars().chain(bounds.outside.chars()).collect();
        letters.sort_unstable();
        let machine = |letter: &char| {
            let ring = Ring::with_length(Peer::new(node(*letter)), bounds.length);
            let (again, wants_in, wants_out, down) = (false, false, false, false);
            Rc::new(Machine { ring, round: 0, again, wants_in, wants_out, down })
        };
        let nodes: Vec<Rc<Machine>> = letters.iter().map(machine).collect();
        let mut world = Self {
            bounds,
            links: vec![Vec::new(); nodes.len() * nodes.len()],
            nodes,
            leaves: 0,
            fails: 0,
            rounds: 0,
            leases: 0,
            faulty: false,
            steps: 0,
        };
        for letter in bounds.inside.chars() {
            let node = letters.iter().position(|l| *l == letter).unwrap_or(0);
            if world.way_in(node).is_some() {
                world.apply(Action::Join(node as u8));
            } else {
                world.input(node, Input::Command(Command::Create));
            }
            world.settle(&mut |_, _| {})?;
        }
        let Bounds { leaves, fails, rounds, leases, .. } = bounds;
        (world.leaves, world.fails) = (leaves, fails);
        (world.rounds, world.leases) = (rounds, leases);
        Ok(world)
    }

    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn index(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|machine| machine.ring.me().id == id)
    }

    fn now(&self) -> Time {
        Time(if self.bounds.forgets { self.steps * 3_600_000_000 } else { 3_600_000_000 })
    }

    fn flights(&self) -> impl Iterator<Item = &Rc<Flight>> {
        self.links.iter().flatten()
    }

    fn under_way(&self, op: u64) -> bool {
        self.flights().any(|flight| flight.op == Some(op))
    }

    /// The member through which a node joins.
    fn way_in(&self, node: usize) -> Option<usize> {
        (0..self.count()).find(|n| *n != node && self.nodes[*n].live())
    }

    /// Everything that may happen now.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        let count = self.count();
        let small = |n: usize| n as u8;
        for (place, link) in self.links.iter().enumerate() {
            let heads = if self.bounds.fifo { link.len().min(1) } else { link.len() };
            let (from, to) = (small(place / count), small(place % count));
            all.extend((0..heads).map(|at| Action::Deliver(from, to, small(at))));
        }
        for n in (0..count).filter(|n| !self.nodes[*n].down) {
            all.extend(self.alone(n));
            let dead = (0..count).filter(|x| self.learns_of(n, *x));
            all.extend(dead.map(|x| Action::Dead(small(n), small(x))));
        }
        all
    }

    /// What a node may do without a message.
    fn alone(&self, n: usize) -> Vec<Action> {
        let (machine, node) = (&self.nodes[n], n as u8);
        let ring = &machine.ring;
        let mut all = Vec::new();
        let waits = ring.status() == Status::Out && ring.op().is_none();
        let named = self.bounds.outside.contains(name(ring.me().id));
        if waits && (named || machine.wants_in) && !machine.again && self.way_in(n).is_some() {
            all.push(Action::Join(node));
        }
        let quiet = ring.op().is_some_and(|op| !self.under_way(op));
        if ring.op().is_some()
            && (ring.status() == Status::Out || ring.status() == Status::JoinReq && quiet)
        {
            all.push(Action::Retry(node));
        }
        // It waits until no point can come any more.
        if machine.again && !(ring.status() == Status::Out && self.expects_point(n)) {
            all.push(Action::LeaveAgain(node));
        }
        if let Some(op) = ring.lock() {
            if self.leases > 0 || !self.under_way(op) {
                all.push(Action::Lease(node));
            }
        }
        if ring.status() == Status::Gone && self.flights_at(n).next().is_none() {
            all.push(Action::End(node));
        }
        if self.silent(n) {
            all.push(Action::Silence(node));
        }
        let free = ring.status() == Status::Inside && !ring.locked() && ring.asking().is_none();
        if self.rounds > 0 && free {
            all.push(Action::Round(node));
        }
        if self.leaves > 0 && ring.is_member() && !machine.wants_out && self.may_go(n) {
            all.push(Action::Leave(node));
        }
        if self.fails > 0 && ring.status() > Status::Out && self.may_go(n) {
            all.push(Action::Fail(node));
        }
        all
    }

    fn expects_point(&self, n: usize) -> bool {
        let to_me = |place: usize| place % self.count() == n;
        self.links.iter().enumerate().any(|(place, link)| {
            link.iter().any(|flight| match &flight.wire {
                Wire::Join { joiner, .. } => *joiner == n,
                Wire::Ring(Msg::JoinPoint { .. }) => to_me(place),
                Wire::Ring(_) => false,
            })
        })
    }

    /// Whether it asked somebody who will not answer.
    fn silent(&self, n: usize) -> bool {
        let Some((call, _)) = self.nodes[n].ring.asking() else { return false };
        !self.flights_at(n).any(|flight| flight.call == Some(call))
    }

    /// From or to a node.
    fn flights_at(&self, n: usize) -> impl Iterator<Item = &Rc<Flight>> {
        let about = move |place: usize| place / self.count() == n || place % self.count() == n;
        self.links.iter().enumerate().filter(move |(at, _)| about(*at)).flat_map(|(_, link)| link)
    }

    fn learns_of(&self, n: usize, x: usize) -> bool {
        let (ring, id) = (&self.nodes[n].ring, self.nodes[x].ring.me().id);
        let counts_on = ring.succs().iter().any(|succ| succ.id == id)
            || ring.pred().id == id && !ring.pred_suspect()
            || ring.asking().is_some_and(|(_, target)| target == id);
        self.nodes[x].down && ring.is_member() && counts_on
    }

    pub fn apply(&mut self, action: Action) {
        match action {
            Action::Deliver(from, to, at) => self.deliver(from.into(), to.into(), at.into()),
            Action::Join(n) => {
                let n = usize::from(n);
                Rc::make_mut(&mut self.nodes[n]).wants_in = true;
                let via = self.way_in(n).map(|via| self.nodes[via].ring.me().id);
                if let Some(via) = via {
                    self.input(n, Input::Command(Command::Join { via }));
                }
            }
            Action::Leave(n) => {
                self.leaves -= 1;
                Rc::make_mut(&mut self.nodes[usize::from(n)]).wants_out = true;
                self.input(n.into(), Input::Command(Command::Leave));
            }
            Action::Fail(n) => {
                self.fails -= 1;
                self.faulty = true;
                self.down(n.into());
            }
            Action::End(n) => self.down(n.into()),
            Action::Dead(n, x) => {
                let id = self.nodes[usize::from(x)].ring.me().id;
                self.input(n.into(), Input::Command(Command::Dead(id)));
            }
            Action::Retry(n) => {
                if let Some(op) = self.nodes[usize::from(n)].ring.op() {
                    self.input(n.into(), Input::Timer(Timer::Retry { op }));
                }
            }
            Action::LeaveAgain(n) => {
                Rc::make_mut(&mut self.nodes[usize::from(n)]).again = false;
                self.input(n.into(), Input::Timer(Timer::LeaveAgain));
            }
            Action::Lease(n) => {
                let Some(op) = self.nodes[usize::from(n)].ring.lock() else { return };
                if self.under_way(op) {
                    self.leases -= 1;
                }
                self.faulty = true;
                self.input(n.into(), Input::Timer(Timer::Lock { op }));
            }
            Action::Silence(n) => {
                // All tries at once: nothing answers in between.
                while let (true, Some((call, _))) =
                    (self.silent(n.into()), self.nodes[usize::from(n)].ring.asking())
                {
                    self.input(n.into(), Input::Timer(Timer::Query { call }));
                }
            }
            Action::Round(n) => {
                self.rounds = self.rounds.saturating_sub(1);
                let round = self.nodes[usize::from(n)].round;
                self.input(n.into(), Input::Timer(Timer::Stabilize { round }));
            }
        }
    }

    fn down(&mut self, n: usize) {
        Rc::make_mut(&mut self.nodes[n]).down = true;
        let count = self.count();
        for from in 0..count {
            self.links[from * count + n].clear();
        }
    }

    fn deliver(&mut self, from: usize, to: usize, at: usize) {
        let place = from * self.count() + to;
        if self.links[place].len() <= at {
            return;
        }
        let flight = self.links[place].remove(at);
        let id = self.nodes[from].ring.me().id;
        Rc::make_mut(&mut self.nodes[to]).ring.heard(id);
        match &flight.wire {
            Wire::Ring(msg) => self.input(to, Input::Message { from: id, msg: msg.clone() }),
            Wire::Join { op, joiner, last } => self.route(from, to, (*op, *joiner, *last)),
        }
    }

    /// One hop of a join request, as `Overlay::next` has it.
    fn route(&mut self, from: usize, at: usize, (op, joiner, last): (u64, usize, bool)) {
        let (from, key) = (self.nodes[from].ring.me().id, self.nodes[joiner].ring.me().id);
        let ring = &self.nodes[at].ring;
        let (me, pred) = (ring.me().id, ring.pred().id);
        if ring.status() < Status::Joining {
            return;
        }
        let lost = ring.pred_suspect() || pred == key;
        let usable = |id: NodeId| id != from && id != me && id != key;
        let next = if let Some(to) = ring.redirect(key) {
            Some((to.id, true))
        } else if ring.owns(key) || last && lost {
            None
        } else if last && pred != from {
            Some((pred, true))
        } else if in_oc(me, key, ring.succ().id) {
            let heir = ring.succs().iter().map(|succ| succ.id).find(|id| usable(*id));
            let Some(heir) = heir else { return };
            Some((heir, true))
        } else {
            let known = ring.succs().iter().map(|succ| succ.id).chain([pred]);
            let before = known.filter(|id| usable(*id) && in_oo(me, *id, key));
            let nearest = before.min_by_key(|id| id.distance(key));
            let Some(next) =
                nearest.or(ring.succs().iter().map(|succ| succ.id).find(|id| usable(*id)))
            else {
                return;
            };
            Some((next, in_oc(me, key, next)))
        };
        match next.map(|(to, last)| (self.index(to), last)) {
            Some((Some(to), last)) => self.send(at, to, Wire::Join { op, joiner, last }),
            Some((None, _)) => {}
            None => {
                let joiner = self.nodes[joiner].ring.me().clone();
                self.input(at, Input::Command(Command::JoinReq { op, joiner }));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, wire: Wire) {
        if !self.nodes[to].down {
            let place = from * self.count() + to;
            self.links[place].push(Rc::new(Flight::new(wire)));
        }
    }

    fn input(&mut self, n: usize, input: Input<Ring>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.steps += 1;
            let mut rng = Rng::with_seed(self.steps);
            let mut effects = Vec::new();
            let mut cx = Cx::new(self.now(), &mut rng, &mut effects);
            Rc::make_mut(&mut self.nodes[n]).ring.handle(input, &mut cx);
            for effect in effects {
                match effect {
                    Effect::Send { to, msg } => {
                        if let Some(to) = self.index(to) {
                            self.send(n, to, Wire::Ring(msg));
                        }
                    }
                    Effect::After { timer, .. } => {
                        let machine = Rc::make_mut(&mut self.nodes[n]);
                        match timer {
                            Timer::Stabilize { round } => machine.round = round,
                            Timer::LeaveAgain => machine.again = true,
                            // Those of locks, joins and questions: their state says it.
                            _ => {}
                        }
                    }
                    Effect::Emit(Event::RouteJoin { via, op }) => {
                        if let Some(via) = self.index(via) {
                            self.send(n, via, Wire::Join { op, joiner: n, last: false });
                        }
                    }
                    Effect::Emit(Event::Stranded) => {
                        let me = self.nodes[n].ring.me().id;
                        let live = self.nodes.iter().filter(|m| m.live() && m.ring.me().id != me);
                        let next = live.min_by_key(|m| me.distance(m.ring.me().id));
                        let found = next.map(|m| Command::Candidate(m.ring.me().clone()));
                        inputs.push_back(Input::Command(found.unwrap_or(Command::Alone)));
                    }
                    Effect::Emit(_) => {}
                }
            }
        }
    }

    /// A line about an action that is possible now, and the node it changes.
    pub fn tell(&self, action: Action, ops: &mut Ops) -> String {
        let called = |n: u8| name(self.nodes[usize::from(n)].ring.me().id);
        match action {
            Action::Deliver(from, to, at) => {
                let place = usize::from(from) * self.count() + usize::from(to);
                let what =
                    self.links[place].get(usize::from(at)).map(|flight| match &flight.wire {
                        Wire::Ring(msg) => {
                            let msg = overlay::Msg::Ring(msg.clone());
                            words::message(&dugnad_connectivity::Msg::Overlay(msg), ops)
                        }
                        Wire::Join { op, joiner, last } => {
                            let last = if *last { ", the last hop" } else { "" };
                            format!("JoinReq {} of {}{last}", ops.short(*op), called(*joiner as u8))
                        }
                    });
                format!("{} -> {}  {}", called(from), called(to), what.unwrap_or_default())
            }
            Action::Dead(n, x) => format!("{} finds {} dead", called(n), called(x)),
            Action::Join(n)
            | Action::Leave(n)
            | Action::Fail(n)
            | Action::Retry(n)
            | Action::LeaveAgain(n)
            | Action::Lease(n)
            | Action::End(n)
            | Action::Silence(n)
            | Action::Round(n) => format!("{}: {action:?}", called(n)),
        }
    }

    /// What every node believes.
    pub fn list(&self, ops: &mut Ops) -> Vec<String> {
        let line = |machine: &Rc<Machine>| {
            let state = words::state(&machine.ring, ops).join("; ");
            let down = if machine.down { " DOWN" } else { "" };
            format!("{}{down}: {state}", name(machine.ring.me().id))
        };
        self.nodes.iter().map(line).collect()
    }
}
