//! Joining, atomically (PROTOCOL.md 2.3 J1-J6, 2.4; Ghodsi p. 57-66).
//!
//! q asks r, the owner of its id, for r's lock. r gives the *join point*: from that step on
//! (pred, q] is q's. q tells p, p tells r, r tells q: five messages after r is found.

use alloc::vec::Vec;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Cx, Duration, NodeId, Peer};

use super::{Event, Msg, Ring, Status, Timer, backoff_ms};
use crate::config::{BACKOFF_DOUBLINGS, GIVEN_UP_MAX, JOIN_ANSWER, STABILIZE_FAST};

impl Ring {
    pub(super) fn create(&mut self, cx: &mut Cx<'_, Self>) {
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
    pub(super) fn join(&mut self, via: NodeId, cx: &mut Cx<'_, Self>) {
        let lone = self.status == Status::Inside && self.alone() && self.lock.is_none();
        if self.leave_wanted || (self.status != Status::Out && !lone) {
            return;
        }
        self.give_up_op();
        let op = cx.rng.u64(..);
        self.status = Status::JoinReq;
        self.my_op = Some(op);
        self.via = Some(via);
        cx.emit(Event::RouteJoin { via, op });
        cx.after(JOIN_ANSWER, Timer::Retry { op });
    }

    pub(super) fn on_join_req(&mut self, op: u64, joiner: Peer, cx: &mut Cx<'_, Self>) {
        if self.joined_op == Some(op) {
            // The same request came by another way.
            return self.dropped("ring_join_req_twice");
        }
        self.on_lost_pred(op, &joiner, cx);
        // The refusal goes to the joiner, not to the last hop (PROTOCOL.md 2.4). A dead predecessor
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
        succs.truncate(self.length);
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

    pub(super) fn on_join_point(
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
        // Given up or not: the range is nobody's until I take it.
        let mine = self.my_op == Some(op) || self.given_up.contains(&op);
        if !waits || !mine || !valid {
            return self.dropped("ring_join_point_late");
        }
        self.my_op = Some(op);
        self.given_up.clear();
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

    pub(super) fn on_new_succ(
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
            return self.dropped("ring_new_succ_late");
        }
        // Acknowledge first, then switch: the ack is the last word under the old belief.
        cx.send(succ, Msg::NewSuccAck { op, joiner: from });
        let mut list = Vec::from([joiner]);
        list.extend(succs);
        self.succs = self.trim(list);
        self.neighbours_changed(cx);
    }

    pub(super) fn on_new_succ_ack(&mut self, op: u64, joiner: NodeId, cx: &mut Cx<'_, Self>) {
        if self.lock != Some(op) || !self.join_forward {
            return self.dropped("ring_new_succ_ack_late");
        }
        self.unlock();
        cx.send(joiner, Msg::JoinDone { op });
    }

    pub(super) fn on_join_done(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status == Status::Joining && self.my_op == Some(op) {
            self.entered(cx);
        } else {
            self.dropped("ring_join_done_late");
        }
    }

    pub(super) fn entered(&mut self, cx: &mut Cx<'_, Self>) {
        self.unlock();
        self.my_op = None;
        self.via = None;
        self.tries = 0;
        cx.emit(Event::Joined);
        self.schedule_stabilize(STABILIZE_FAST, cx);
    }

    pub(super) fn on_join_retry(&mut self, op: u64, after_ms: u16, cx: &mut Cx<'_, Self>) {
        if self.status != Status::JoinReq || self.my_op != Some(op) {
            return self.dropped("ring_join_retry_late");
        }
        self.status = Status::Out;
        let hint = Duration::from_millis(u64::from(after_ms));
        let delay = self.backoff(cx).max(hint);
        cx.after(delay, Timer::Retry { op });
    }

    pub(super) fn on_retry_timer(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.my_op != Some(op) {
            // Of an attempt that was answered.
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

    /// Its point may come after all.
    pub(super) fn give_up_op(&mut self) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.remove(0);
        }
        self.given_up.extend(self.my_op.take());
    }

    pub(super) fn give_up_join(&mut self, cx: &mut Cx<'_, Self>) {
        self.status = Status::Out;
        self.give_up_op();
        self.via = None;
        self.tries = 0;
        cx.emit(Event::JoinFailed);
    }
}
