//! The ring itself: atomic join and leave with locks, operation numbers and lock leases
//! (overlay.md 2.1-2.7, Ghodsi p. 45-81), and who owns what.
//!
//! A join or leave of q touches p.succ, q and r.pred. Holding two locks, q's own and its
//! successor's, is enough; a locked successor answers "retry" and nobody waits while holding.
//! Links must be FIFO per peer: an acknowledgement is the last thing p says to its old successor
//! under the old belief, so no forwarded request overtakes the change of ownership.

use alloc::vec::Vec;

use dugnad_kernel::arc::{in_oc, in_oo};
use dugnad_kernel::{Arc, Component, Cx, Duration, Input, NodeId, Peer, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    BACKOFF, BACKOFF_DOUBLINGS, JOIN_ANSWER, LEAVE_LIMIT, STABILIZE_FAST, SUCCESSORS, T_GRACE,
    T_LOCK, T_UNSURE, UNSURE_MAX,
};

/// Where a node stands (overlay.md 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Out,
    JoinReq,
    Joining,
    Inside,
    PredJoining,
    LeaveReq,
    PredLeaveReq,
    PredLeaving,
    Leaving,
    Gone,
}

/// Every message of 2.3; `op` is a random number chosen by the joiner or leaver. `JoinReq` itself
/// is routed, so it travels as [`crate::route::Purpose::Join`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    JoinRetry {
        op: u64,
        after_ms: u16,
    },
    JoinPoint {
        op: u64,
        pred: Peer,
        succs: Vec<Peer>,
    },
    NewSucc {
        op: u64,
        joiner: Peer,
        succ: NodeId,
        succs: Vec<Peer>,
    },
    NewSuccAck {
        op: u64,
        joiner: NodeId,
    },
    JoinDone {
        op: u64,
    },
    LeaveReq {
        op: u64,
    },
    LeaveRetry {
        op: u64,
        after_ms: u16,
    },
    LeaveGrant {
        op: u64,
    },
    LeavePoint {
        op: u64,
        pred: Peer,
    },
    UpdateSucc {
        op: u64,
        leaver: NodeId,
        succs: Vec<Peer>,
    },
    UpdateSuccAck {
        op: u64,
    },
    LeaveDone {
        op: u64,
    },
    Query {
        call: u32,
    },
    QueryRes {
        call: u32,
        pred: Peer,
        succs: Vec<Peer>,
    },
    /// From a node that left: ask these instead.
    Moved {
        call: u32,
        succs: Vec<Peer>,
    },
    Notify {
        me: Peer,
    },
    /// From the successor: my list changed, ask me. So a list deep in the ring is right after
    /// seconds and not after a quiet round for each of its entries.
    ListChanged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The lease on the hosted lock, or on one's own, ends.
    Lock {
        op: u64,
    },
    /// The join asked for under `op` was not answered, or may be tried again.
    Retry {
        op: u64,
    },
    /// A leave that was refused, or came while locked for somebody else.
    LeaveAgain,
    Stabilize {
        round: u32,
    },
    Query {
        call: u32,
    },
    /// The time in which a node that left still points the way is over.
    Grace,
    LeaveLimit,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Be the first node of a ring.
    Create,
    /// Join through a node that says it is inside.
    Join {
        via: NodeId,
    },
    /// The way in turned out to be closed.
    GiveUpJoin {
        via: NodeId,
    },
    /// A routed join request reached its owner.
    JoinReq {
        op: u64,
        joiner: Peer,
    },
    Leave,
    /// The detector is sure, or a new incarnation showed up.
    Dead(NodeId),
    /// Its session ended or it could not be dialled.
    Closed(NodeId),
    /// A live node that might be a better neighbour (merge, or a table entry after losses).
    Candidate(Peer),
    /// Nobody else is known to live: the whole ring is mine.
    Alone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Route a join request for me through `via`.
    RouteJoin {
        via: NodeId,
        op: u64,
    },
    Joined,
    /// The join did not work out; try another way in.
    JoinFailed,
    /// What I own is now `(pred, me]`.
    RangeChanged,
    NeighboursChanged,
    /// A merge put `by` where `old` was; `old` has its place behind it.
    Displaced {
        old: Peer,
        by: NodeId,
    },
    /// Every successor is dead: name any live node.
    Stranded,
    /// A farther node says it is my predecessor: it found the one I count on dead.
    Doubted(NodeId),
    Left,
}

impl Msg {
    /// The peer records it carries, no more than an honest node sends.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        let (one, list): (Option<&Peer>, &[Peer]) = match self {
            Self::JoinPoint { pred, succs, .. } | Self::QueryRes { pred, succs, .. } => {
                (Some(pred), succs)
            }
            Self::NewSucc { joiner, succs, .. } => (Some(joiner), succs),
            Self::LeavePoint { pred, .. } => (Some(pred), &[]),
            Self::UpdateSucc { succs, .. } | Self::Moved { succs, .. } => (None, succs),
            Self::Notify { me } => (Some(me), &[]),
            Self::JoinRetry { .. }
            | Self::NewSuccAck { .. }
            | Self::JoinDone { .. }
            | Self::LeaveReq { .. }
            | Self::LeaveRetry { .. }
            | Self::LeaveGrant { .. }
            | Self::UpdateSuccAck { .. }
            | Self::LeaveDone { .. }
            | Self::Query { .. }
            | Self::ListChanged => (None, &[]),
        };
        one.into_iter().chain(list.iter().take(SUCCESSORS))
    }
}

pub struct Ring {
    me: Peer,
    status: Status,
    pred: Peer,
    /// Never cleared to "none" on suspicion: that would disown the whole range (overlay.md E6).
    pred_suspect: bool,
    old_pred: Option<NodeId>,
    succs: Vec<Peer>,
    lock: Option<u64>,
    join_forward: bool,
    leave_forward: bool,
    my_op: Option<u64>,
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
}

/// A liveness query of stabilisation (overlay.md 2.8).
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
        Self {
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
        }
    }

    #[must_use]
    pub const fn me(&self) -> &Peer {
        &self.me
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

    #[must_use]
    pub const fn forwards(&self) -> (bool, bool) {
        (self.join_forward, self.leave_forward)
    }

    /// What I own, while I am a member.
    #[must_use]
    pub fn range(&self) -> Option<Arc> {
        self.is_member().then(|| Arc::new(self.pred.id, self.me.id))
    }

    /// The claim of overlay.md I-OWN: what this node would answer for at this instant.
    #[must_use]
    pub fn claim(&self) -> Option<Arc> {
        (self.is_member() && !self.leave_forward).then(|| Arc::new(self.pred.id, self.me.id))
    }

    #[must_use]
    pub fn owns(&self, key: NodeId) -> bool {
        self.range().is_some_and(|range| range.contains(key))
    }

    /// Whether an answer for `key` is beyond doubt (overlay.md 2.9).
    #[must_use]
    pub fn certain(&self, key: NodeId, now: Time) -> bool {
        !self.unsure.iter().any(|(arc, until)| *until > now && arc.contains(key))
    }

    /// Where a request for `key` that must not be answered here goes while a point moves
    /// (overlay.md 2.5, rules 2 and 3).
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

    /// Newer addresses of a neighbour.
    pub fn refresh(&mut self, peer: &Peer) {
        if self.pred.id == peer.id && self.pred.inc <= peer.inc {
            self.pred = peer.clone();
        }
        for succ in &mut self.succs {
            if succ.id == peer.id && succ.inc <= peer.inc {
                *succ = peer.clone();
            }
        }
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
            Command::Leave => {
                self.leave_wanted = true;
                cx.after(LEAVE_LIMIT, Timer::LeaveLimit);
                self.leave(cx);
            }
            Command::Dead(id) => self.on_dead(id, cx),
            Command::Closed(id) => self.on_closed(id, cx),
            Command::Candidate(peer) => self.on_candidate(peer, cx),
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

    fn create(&mut self, cx: &mut Cx<'_, Self>) {
        if self.status != Status::Out {
            return;
        }
        self.status = Status::Inside;
        self.pred = self.me.clone();
        self.succs = Vec::from([self.me.clone()]);
        cx.emit(Event::Joined);
        cx.emit(Event::RangeChanged);
        self.neighbours_changed(cx);
    }

    /// From `Out`, or from a ring of my own that nobody else is in.
    fn join(&mut self, via: NodeId, cx: &mut Cx<'_, Self>) {
        let lone = self.status == Status::Inside && self.alone() && self.lock.is_none();
        if self.status != Status::Out && !lone {
            return;
        }
        let op = cx.rng.u64(..);
        self.status = Status::JoinReq;
        self.my_op = Some(op);
        self.via = Some(via);
        cx.emit(Event::RouteJoin { via, op });
        cx.after(JOIN_ANSWER, Timer::Retry { op });
    }

    fn on_join_req(&mut self, op: u64, joiner: Peer, cx: &mut Cx<'_, Self>) {
        if self.joined_op == Some(op) {
            // The same request came by another way.
            return;
        }
        self.on_lost_pred(op, &joiner, cx);
        // The refusal goes to the joiner, not to the last hop (overlay.md E2). A dead predecessor
        // is no predecessor to hand on: it may be an earlier life of the joiner itself.
        let ready = self.status == Status::Inside && self.lock.is_none() && !self.pred_suspect;
        if !ready || joiner.id == self.me.id || joiner.id == self.pred.id {
            let after_ms = backoff_ms(0, cx);
            cx.send(joiner.id, Msg::JoinRetry { op, after_ms });
            return;
        }
        self.take_lock(op, cx);
        self.joined_op = Some(op);
        self.stray_op = None;
        self.status = Status::PredJoining;
        self.join_forward = true;
        self.old_pred = Some(self.pred.id);
        let mut succs = Vec::from([self.me.clone()]);
        succs.extend(self.succs.iter().filter(|s| s.id != self.me.id).cloned());
        succs.truncate(SUCCESSORS);
        let point = Msg::JoinPoint { op, pred: self.pred.clone(), succs };
        cx.send(joiner.id, point);
        // The join point: (old pred, joiner] moves in this step.
        self.pred = joiner;
        self.pred_suspect = false;
        cx.emit(Event::RangeChanged);
        self.neighbours_changed(cx);
    }

    /// A predecessor that asks to join is outside: it began a new life, or missed its join point.
    /// One request with another operation may be a late copy; the second one is not.
    fn on_lost_pred(&mut self, op: u64, joiner: &Peer, cx: &mut Cx<'_, Self>) {
        let mine = joiner.id == self.pred.id && joiner.id != self.me.id;
        if !mine || self.status != Status::Inside || self.lock.is_some() {
            return;
        }
        let stray = self.stray_op.replace(op);
        if joiner.inc > self.pred.inc || stray.is_some_and(|stray| stray != op) {
            self.on_dead(joiner.id, cx);
            self.lives(joiner.id);
        }
    }

    fn on_join_point(
        &mut self,
        from: NodeId,
        op: u64,
        pred: Peer,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let valid = succs.first().is_some_and(|s| s.id == from);
        // `Out` under the same operation: refused by one way, let in by another.
        let waits = matches!(self.status, Status::JoinReq | Status::Out);
        if !waits || self.my_op != Some(op) || !valid {
            return;
        }
        self.pred = pred;
        self.pred_suspect = false;
        self.succs = self.trim(succs);
        self.status = Status::Joining;
        self.take_lock(op, cx);
        cx.emit(Event::RangeChanged);
        let succ = self.succ().id;
        cx.send(
            self.pred.id,
            Msg::NewSucc { op, joiner: self.me.clone(), succ, succs: self.succs.clone() },
        );
        self.neighbours_changed(cx);
    }

    fn on_new_succ(
        &mut self,
        from: NodeId,
        op: u64,
        joiner: Peer,
        succ: NodeId,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let between = in_oo(self.me.id, from, succ) && joiner.id == from;
        if self.succ().id != succ || !between || !self.is_member() {
            return;
        }
        // Acknowledge first, then switch: the ack is the last word under the old belief.
        cx.send(succ, Msg::NewSuccAck { op, joiner: from });
        let mut list = Vec::from([joiner]);
        list.extend(succs);
        self.succs = self.trim(list);
        self.neighbours_changed(cx);
    }

    fn on_new_succ_ack(&mut self, op: u64, joiner: NodeId, cx: &mut Cx<'_, Self>) {
        if self.lock != Some(op) || !self.join_forward {
            return;
        }
        self.unlock();
        cx.send(joiner, Msg::JoinDone { op });
    }

    fn on_join_done(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status == Status::Joining && self.my_op == Some(op) {
            self.entered(cx);
        }
    }

    fn entered(&mut self, cx: &mut Cx<'_, Self>) {
        self.unlock();
        self.my_op = None;
        self.via = None;
        self.tries = 0;
        cx.emit(Event::Joined);
        self.schedule_stabilize(STABILIZE_FAST, cx);
    }

    fn leave(&mut self, cx: &mut Cx<'_, Self>) {
        match self.status {
            Status::Out | Status::JoinReq => {
                self.status = Status::Gone;
                cx.emit(Event::Left);
            }
            Status::Inside if self.alone() => {
                self.status = Status::Gone;
                cx.emit(Event::Left);
            }
            Status::Inside if self.lock.is_none() => {
                let op = cx.rng.u64(..);
                self.status = Status::LeaveReq;
                self.my_op = Some(op);
                self.take_lock(op, cx);
                cx.send(self.succ().id, Msg::LeaveReq { op });
            }
            Status::Leaving | Status::Gone | Status::LeaveReq => {}
            // Locked for somebody else: again when that is over.
            Status::Inside
            | Status::Joining
            | Status::PredJoining
            | Status::PredLeaveReq
            | Status::PredLeaving => {
                let delay = self.backoff(cx);
                cx.after(delay, Timer::LeaveAgain);
            }
        }
    }

    fn on_leave_req(&mut self, from: NodeId, op: u64, cx: &mut Cx<'_, Self>) {
        let grant = self.lock.is_none() && self.pred.id == from && self.status == Status::Inside;
        if grant {
            self.take_lock(op, cx);
            self.status = Status::PredLeaveReq;
            cx.send(from, Msg::LeaveGrant { op });
        } else {
            let after_ms = backoff_ms(0, cx);
            cx.send(from, Msg::LeaveRetry { op, after_ms });
        }
    }

    fn on_leave_grant(&mut self, from: NodeId, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status != Status::LeaveReq || self.my_op != Some(op) || self.succ().id != from {
            return;
        }
        self.leave_forward = true;
        self.status = Status::Leaving;
        cx.send(from, Msg::LeavePoint { op, pred: self.pred.clone() });
        cx.emit(Event::RangeChanged);
    }

    fn on_leave_point(&mut self, from: NodeId, op: u64, pred: Peer, cx: &mut Cx<'_, Self>) {
        if self.status != Status::PredLeaveReq || self.lock != Some(op) || self.pred.id != from {
            return;
        }
        self.status = Status::PredLeaving;
        let mut succs = Vec::from([self.me.clone()]);
        succs.extend(self.succs.iter().cloned());
        cx.send(pred.id, Msg::UpdateSucc { op, leaver: from, succs });
        self.pred = pred;
        self.pred_suspect = false;
        cx.emit(Event::RangeChanged);
        self.neighbours_changed(cx);
    }

    fn on_update_succ(
        &mut self,
        from: NodeId,
        op: u64,
        leaver: NodeId,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let valid = succs.first().is_some_and(|s| s.id == from);
        if self.succ().id != leaver || !valid {
            return;
        }
        cx.send(leaver, Msg::UpdateSuccAck { op });
        // The whole list: swapping only the head leaves lists out of order (overlay.md 2.11).
        self.succs = self.trim(succs);
        self.neighbours_changed(cx);
    }

    fn on_update_succ_ack(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status != Status::Leaving || self.my_op != Some(op) {
            return;
        }
        cx.send(self.succ().id, Msg::LeaveDone { op });
        self.gone(cx);
    }

    fn gone(&mut self, cx: &mut Cx<'_, Self>) {
        self.status = Status::Gone;
        self.lock = None;
        cx.after(T_GRACE, Timer::Grace);
    }

    fn on_leave_done(&mut self, op: u64) {
        if self.status == Status::PredLeaving && self.lock == Some(op) {
            self.unlock();
        }
    }

    fn on_join_retry(&mut self, op: u64, after_ms: u16, cx: &mut Cx<'_, Self>) {
        if self.status != Status::JoinReq || self.my_op != Some(op) {
            return;
        }
        self.status = Status::Out;
        let hint = Duration::from_millis(u64::from(after_ms));
        let delay = self.backoff(cx).max(hint);
        cx.after(delay, Timer::Retry { op });
    }

    fn on_leave_retry(&mut self, op: u64, after_ms: u16, cx: &mut Cx<'_, Self>) {
        if self.status != Status::LeaveReq || self.my_op != Some(op) {
            return;
        }
        self.unlock();
        self.my_op = None;
        let hint = Duration::from_millis(u64::from(after_ms));
        let delay = self.backoff(cx).max(hint);
        cx.after(delay, Timer::LeaveAgain);
    }

    fn on_retry_timer(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.my_op != Some(op) {
            return;
        }
        match self.status {
            // Refused and waited: the same way in once more.
            Status::Out => match self.via {
                Some(via) if self.tries <= BACKOFF_DOUBLINGS => self.join(via, cx),
                Some(_) | None => self.give_up_join(cx),
            },
            // Not answered at all: another way in.
            Status::JoinReq => self.give_up_join(cx),
            _ => {}
        }
    }

    fn give_up_join(&mut self, cx: &mut Cx<'_, Self>) {
        self.status = Status::Out;
        self.my_op = None;
        self.via = None;
        self.tries = 0;
        cx.emit(Event::JoinFailed);
    }

    /// A lock lease ended: whoever held it crashed or was cut off. Stabilisation finishes the
    /// job; what arrives late carries an operation that no longer matches (overlay.md 2.7).
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

    /// Drops everything from myself on, duplicates, and what is beyond the length.
    pub(crate) fn trim(&self, list: Vec<Peer>) -> Vec<Peer> {
        let mut out: Vec<Peer> = Vec::new();
        for peer in list {
            if peer.id == self.me.id || out.len() == SUCCESSORS {
                break;
            }
            let ordered = out.last().is_none_or(|last| in_oo(last.id, peer.id, self.me.id));
            if ordered && !out.iter().any(|known| known.id == peer.id) {
                out.push(peer);
            }
        }
        if out.is_empty() {
            out.push(self.me.clone());
        }
        out
    }

    pub(crate) fn set_succs(&mut self, mut list: Vec<Peer>, cx: &mut Cx<'_, Self>) {
        list.retain(|peer| !self.died(peer, cx.now));
        let list = self.trim(list);
        let same = list.len() == self.succs.len()
            && list.iter().zip(&self.succs).all(|(a, b)| a.id == b.id);
        self.succs = list;
        if !same {
            self.neighbours_changed(cx);
            if self.is_member() && !self.pred_suspect && self.pred.id != self.me.id {
                cx.send(self.pred.id, Msg::ListChanged);
            }
        }
    }

    /// Takes `peer` as predecessor. What I gain this way is unsure for a while: another node may
    /// still answer for it.
    pub(crate) fn set_pred(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let old = core::mem::replace(&mut self.pred, peer);
        self.pred_suspect = false;
        if old.id == self.pred.id {
            return;
        }
        if !in_oo(old.id, self.pred.id, self.me.id) {
            let gained = Arc::new(self.pred.id, old.id);
            self.unsure.retain(|(_, until)| *until > cx.now);
            if self.unsure.len() == UNSURE_MAX {
                self.unsure.remove(0);
            }
            self.unsure.push((gained, cx.now + T_UNSURE));
        }
        cx.emit(Event::RangeChanged);
        self.neighbours_changed(cx);
    }

    pub(crate) fn remove_succ(&mut self, id: NodeId) -> bool {
        let before = self.succs.len();
        self.succs.retain(|succ| succ.id != id);
        let removed = self.succs.len() != before;
        if self.succs.is_empty() {
            self.succs.push(self.me.clone());
        }
        removed
    }

    pub(crate) fn suspect_pred(&mut self, id: NodeId) -> bool {
        let mine = self.pred.id == id && id != self.me.id;
        self.pred_suspect |= mine;
        mine
    }

    pub(crate) fn neighbours_changed(&mut self, cx: &mut Cx<'_, Self>) {
        self.changed_at = cx.now;
        cx.emit(Event::NeighboursChanged);
        self.schedule_stabilize(STABILIZE_FAST, cx);
    }
}

fn backoff_ms(tries: u32, cx: &mut Cx<'_, Ring>) -> u16 {
    let base = BACKOFF.as_millis() << tries.min(BACKOFF_DOUBLINGS);
    let jitter = u128::from(cx.rng.u32(50..150));
    u16::try_from(base * jitter / 100).unwrap_or(u16::MAX)
}
