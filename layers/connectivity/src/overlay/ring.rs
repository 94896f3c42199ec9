//! The ring itself: atomic join and leave with locks, operation numbers and lock leases
//! (PROTOCOL.md 2.1-2.7, Ghodsi p. 45-81), and who owns what.
//!
//! A join or leave of q touches p.succ, q and r.pred. Holding two locks, q's own and its
//! successor's, is enough; a locked successor answers "retry" and nobody waits while holding.
//! Links must be FIFO per peer: an acknowledgement is the last thing p says to its old successor
//! under the old belief, so no forwarded request overtakes the change of ownership.

mod join;
mod leave;
mod messages;
mod pointers;
mod print;
mod stabilize;

use alloc::vec::Vec;

use dugnad_kernel::arc::in_oc;
use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{Arc, Component, Counters, Cx, Duration, Input, NodeId, Peer, Time};

use crate::config::{BACKOFF, BACKOFF_DOUBLINGS, SUCCESSORS, T_LOCK};

pub use messages::{Command, Event, Msg, Status, Timer};

#[derive(Clone)]
pub struct Ring {
    me: Peer,
    status: Status,
    pred: Peer,
    /// Never cleared to "none" on suspicion: that would disown the whole range (PROTOCOL.md 2.2).
    pred_suspect: bool,
    old_pred: Option<NodeId>,
    succs: Vec<Peer>,
    /// How long the list may be: r of PROTOCOL.md 2.8. A node's own choice.
    length: usize,
    lock: Option<u64>,
    join_forward: bool,
    leave_forward: bool,
    my_op: Option<u64>,
    /// Joins I gave up or that were refused: a copy may have come another way, and its point may
    /// be on its way still. Oldest first, [`GIVEN_UP_MAX`] of them.
    given_up: Vec<u64>,
    /// The last join I gave a point to, and the last one my predecessor should not have asked for.
    joined_op: Option<u64>,
    stray_op: Option<u64>,
    via: Option<NodeId>,
    tries: u32,
    leave_wanted: bool,
    unsure: Vec<(Arc, Time)>,
    /// Found dead lately, with the life that ended: the lists of others name them for a while.
    pub(crate) dead: Vec<(NodeId, u32, Time)>,
    /// Who says it is my predecessor while I still count on a nearer one, and when it said so.
    pub(crate) claimant: Option<(Peer, Time)>,
    pub(crate) asking: Option<Asking>,
    pub(crate) next_call: u32,
    pub(crate) round: u32,
    /// When the neighbours changed last: stabilisation is fast for a while after.
    pub(crate) changed_at: Time,
    counters: Counters,
}

/// A liveness query of stabilisation (PROTOCOL.md 2.8).
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) call: u32,
    pub(crate) target: Peer,
    pub(crate) tries: u32,
}

impl Component for Ring {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => self.on_message(from, msg, cx),
            Input::Timer(timer) => self.on_timer(timer, cx),
        }
    }
}

impl Ring {
    #[must_use]
    pub fn new(me: Peer) -> Self {
        Self::with_length(me, SUCCESSORS)
    }

    /// With a successor list of `length`, 1 to [`SUCCESSORS`]. Rings of mixed lengths work.
    #[must_use]
    pub fn with_length(me: Peer, length: usize) -> Self {
        Self {
            length: length.clamp(1, SUCCESSORS),
            pred: me.clone(),
            succs: Vec::from([me.clone()]),
            me,
            status: Status::Out,
            pred_suspect: false,
            old_pred: None,
            lock: None,
            join_forward: false,
            leave_forward: false,
            my_op: None,
            given_up: Vec::new(),
            joined_op: None,
            stray_op: None,
            via: None,
            tries: 0,
            leave_wanted: false,
            unsure: Vec::new(),
            dead: Vec::new(),
            claimant: None,
            asking: None,
            next_call: 0,
            round: 0,
            changed_at: Time::default(),
            counters: Counters::default(),
        }
    }

    /// A message that comes too late, or from where it must not, changes nothing but this.
    pub(crate) fn dropped(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    /// What was dropped since the start, by message.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// A member of a ring that stands (see [`crate::overlay::Overlay::planted`]).
    pub(crate) fn planted(me: Peer, pred: Peer, succs: Vec<Peer>) -> Self {
        let mut ring = Self::new(me);
        ring.status = Status::Inside;
        ring.pred = pred;
        ring.succs = ring.trim(succs);
        ring
    }

    #[must_use]
    pub const fn me(&self) -> &Peer {
        &self.me
    }

    pub(crate) fn set_addrs(&mut self, addrs: Addrs) {
        // Alone it is its own neighbour.
        for own in [&mut self.pred].into_iter().chain(&mut self.succs) {
            if own.id == self.me.id {
                own.addrs.clone_from(&addrs);
            }
        }
        self.me.addrs = addrs;
    }

    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    #[must_use]
    pub const fn pred(&self) -> &Peer {
        &self.pred
    }

    /// The predecessor as others are told of it: a dead one is nobody to recommend, and naming
    /// myself means "nobody between us".
    #[must_use]
    pub const fn named_pred(&self) -> &Peer {
        if self.pred_suspect { &self.me } else { &self.pred }
    }

    #[must_use]
    pub const fn pred_suspect(&self) -> bool {
        self.pred_suspect
    }

    /// Nearest first; only myself if I am alone.
    #[must_use]
    pub fn succs(&self) -> &[Peer] {
        &self.succs
    }

    #[must_use]
    pub fn succ(&self) -> &Peer {
        self.succs.first().unwrap_or(&self.me)
    }

    /// Whether I hold a position: I own a range and answer for it.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.status >= Status::Joining && self.status < Status::Leaving
    }

    #[must_use]
    pub fn alone(&self) -> bool {
        self.succ().id == self.me.id && self.pred.id == self.me.id
    }

    #[must_use]
    pub const fn locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The operation that holds the lock hosted here.
    #[must_use]
    pub const fn lock(&self) -> Option<u64> {
        self.lock
    }

    /// The operation of my own join or leave.
    #[must_use]
    pub const fn op(&self) -> Option<u64> {
        self.my_op
    }

    /// How long the successor list may be.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Whether the successor list is full: then there may be nodes beyond it.
    #[must_use]
    pub fn list_full(&self) -> bool {
        self.succs.len() >= self.length
    }

    #[must_use]
    pub const fn forwards(&self) -> (bool, bool) {
        (self.join_forward, self.leave_forward)
    }

    /// What I own, while I am a member.
    #[must_use]
    pub fn range(&self) -> Option<Arc> {
        self.is_member().then(|| Arc::new(self.pred.id, self.me.id))
    }

    /// The claim of PROTOCOL.md 2.4, I-OWN: what this node would answer for at this instant.
    #[must_use]
    pub fn claim(&self) -> Option<Arc> {
        (self.is_member() && !self.leave_forward).then(|| Arc::new(self.pred.id, self.me.id))
    }

    #[must_use]
    pub fn owns(&self, key: NodeId) -> bool {
        self.range().is_some_and(|range| range.contains(key))
    }

    /// Whether an answer for `key` is beyond doubt (PROTOCOL.md 2.9).
    #[must_use]
    pub fn certain(&self, key: NodeId, now: Time) -> bool {
        !self.unsure.iter().any(|(arc, until)| *until > now && arc.contains(key))
    }

    /// Where a request for `key` that must not be answered here goes while a point moves
    /// (PROTOCOL.md 2.5, rules 2 and 3).
    #[must_use]
    pub fn redirect(&self, key: NodeId) -> Option<&Peer> {
        if self.join_forward {
            if let Some(old) = self.old_pred {
                if in_oc(old, key, self.pred.id) {
                    return Some(&self.pred);
                }
            }
        }
        (self.leave_forward || self.status == Status::Gone).then(|| self.succ())
    }

    /// Whether I count on an earlier life of this peer.
    #[must_use]
    pub fn holds_earlier_life_of(&self, peer: &Peer) -> bool {
        let earlier = |known: &Peer| known.id == peer.id && known.inc < peer.inc;
        peer.id != self.me.id && (earlier(&self.pred) || self.succs.iter().any(earlier))
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Create => self.create(cx),
            Command::Join { via } => self.join(via, cx),
            Command::GiveUpJoin { via } => {
                if self.status == Status::JoinReq && self.via == Some(via) {
                    self.give_up_join(cx);
                }
            }
            Command::JoinReq { op, joiner } => self.on_join_req(op, joiner, cx),
            Command::Leave => self.on_leave(cx),
            Command::Dead(id) => self.on_dead(id, cx),
            Command::LinkDown(id) => self.on_closed(id, cx),
            Command::Candidate(peer) => self.on_candidate(peer, cx),
            Command::Hint(peer) => self.on_hint(peer, cx),
            Command::Alone => self.be_alone(cx),
        }
    }

    fn on_message(&mut self, from: NodeId, msg: Msg, cx: &mut Cx<'_, Self>) {
        match msg {
            Msg::JoinRetry { op, after_ms } => self.on_join_retry(op, after_ms, cx),
            Msg::JoinPoint { op, pred, succs } => self.on_join_point(from, op, pred, succs, cx),
            Msg::NewSucc { op, joiner, succ, succs } => {
                self.on_new_succ(from, op, joiner, succ, succs, cx);
            }
            Msg::NewSuccAck { op, joiner } => self.on_new_succ_ack(op, joiner, cx),
            Msg::JoinDone { op } => self.on_join_done(op, cx),
            Msg::LeaveReq { op } => self.on_leave_req(from, op, cx),
            Msg::LeaveRetry { op, after_ms } => self.on_leave_retry(op, after_ms, cx),
            Msg::LeaveGrant { op } => self.on_leave_grant(from, op, cx),
            Msg::LeavePoint { op, pred } => self.on_leave_point(from, op, pred, cx),
            Msg::UpdateSucc { op, leaver, succs } => {
                self.on_update_succ(from, op, leaver, succs, cx);
            }
            Msg::UpdateSuccAck { op } => self.on_update_succ_ack(op, cx),
            Msg::LeaveDone { op } => self.on_leave_done(op),
            Msg::Query { call } => self.on_query(from, call, cx),
            Msg::QueryRes { call, pred, succs } => self.on_query_res(from, call, pred, succs, cx),
            Msg::Moved { call, succs } => self.on_moved(from, call, succs, cx),
            Msg::Notify { me } => self.on_notify(from, me, cx),
            Msg::ListChanged => self.on_list_changed(from, cx),
        }
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut Cx<'_, Self>) {
        match timer {
            Timer::Lock { op } => self.on_lock_expired(op, cx),
            Timer::Retry { op } => self.on_retry_timer(op, cx),
            Timer::Stabilize { round } => self.on_stabilize_timer(round, cx),
            Timer::Query { call } => self.on_query_timeout(call, cx),
            Timer::LeaveAgain if self.leave_wanted => self.leave(cx),
            Timer::LeaveAgain => {}
            Timer::Grace => cx.emit(Event::Left),
            Timer::LeaveLimit if self.status < Status::Gone => cx.emit(Event::Left),
            Timer::LeaveLimit => {}
        }
    }

    /// A lock lease ended: whoever held it crashed or was cut off. Stabilisation finishes the
    /// job; what arrives late carries an operation that no longer matches (PROTOCOL.md 2.7).
    fn on_lock_expired(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.lock != Some(op) {
            return;
        }
        match self.status {
            Status::Joining => self.entered(cx),
            Status::Leaving => self.gone(cx),
            _ => {
                self.unlock();
                self.my_op = None;
            }
        }
        self.stabilize_soon(cx);
        if self.leave_wanted && self.status == Status::Inside {
            self.leave(cx);
        }
    }

    fn take_lock(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        self.lock = Some(op);
        cx.after(T_LOCK, Timer::Lock { op });
    }

    fn unlock(&mut self) {
        self.lock = None;
        self.join_forward = false;
        self.leave_forward = false;
        self.old_pred = None;
        self.status = Status::Inside;
    }

    fn backoff(&mut self, cx: &mut Cx<'_, Self>) -> Duration {
        let delay = Duration::from_millis(u64::from(backoff_ms(self.tries, cx)));
        self.tries += 1;
        delay
    }
}

fn backoff_ms(tries: u32, cx: &mut Cx<'_, Ring>) -> u16 {
    let base = BACKOFF.as_millis() << tries.min(BACKOFF_DOUBLINGS);
    let jitter = u128::from(cx.rng.u32(50..150));
    u16::try_from(base * jitter / 100).unwrap_or(u16::MAX)
}
