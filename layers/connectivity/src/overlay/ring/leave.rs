//! Leaving, atomically (PROTOCOL.md 2.3 L1-L7, 2.4; Ghodsi p. 66-72).
//!
//! q locks itself and asks r, its successor, for r's lock. The *leave point* is when q hands r its
//! predecessor: from that step on r owns q's range and q only points the way. Six messages.

use alloc::vec::Vec;

use dugnad_kernel::{Cx, Duration, NodeId, Peer};

use super::{Event, Msg, Ring, Status, Timer, backoff_ms};
use crate::config::{JOIN_ANSWER, LEAVE_LIMIT, T_GRACE};

impl Ring {
    /// Wants to leave from now on. Who asked to join waits until that would have been answered:
    /// a range handed to a node that went would be nobody's until the lease ends.
    pub(super) fn on_leave(&mut self, cx: &mut Cx<'_, Self>) {
        self.leave_wanted = true;
        cx.after(LEAVE_LIMIT, Timer::LeaveLimit);
        let asked = self.my_op.is_some() || !self.given_up.is_empty();
        if asked && matches!(self.status, Status::Out | Status::JoinReq) {
            self.status = Status::Out;
            self.give_up_op();
            cx.after(JOIN_ANSWER, Timer::LeaveAgain);
        } else {
            self.leave(cx);
        }
    }

    pub(super) fn leave(&mut self, cx: &mut Cx<'_, Self>) {
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

    pub(super) fn on_leave_req(&mut self, from: NodeId, op: u64, cx: &mut Cx<'_, Self>) {
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

    pub(super) fn on_leave_grant(&mut self, from: NodeId, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status != Status::LeaveReq || self.my_op != Some(op) || self.succ().id != from {
            return self.dropped("ring_leave_grant_late");
        }
        self.leave_forward = true;
        self.status = Status::Leaving;
        cx.send(from, Msg::LeavePoint { op, pred: self.pred.clone() });
        cx.emit(Event::RangeChanged);
    }

    pub(super) fn on_leave_point(
        &mut self,
        from: NodeId,
        op: u64,
        pred: Peer,
        cx: &mut Cx<'_, Self>,
    ) {
        if self.status != Status::PredLeaveReq || self.lock != Some(op) || self.pred.id != from {
            return self.dropped("ring_leave_point_late");
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

    pub(super) fn on_update_succ(
        &mut self,
        from: NodeId,
        op: u64,
        leaver: NodeId,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let valid = succs.first().is_some_and(|s| s.id == from);
        if self.succ().id != leaver || !valid {
            return self.dropped("ring_update_succ_late");
        }
        cx.send(leaver, Msg::UpdateSuccAck { op });
        // What it answered before it left would put it back in its place.
        self.asking.take_if(|asking| asking.target.id == leaver);
        // The whole list: swapping only the head leaves lists out of order (PROTOCOL.md 2.11).
        self.succs = self.trim(succs);
        self.neighbours_changed(cx);
    }

    pub(super) fn on_update_succ_ack(&mut self, op: u64, cx: &mut Cx<'_, Self>) {
        if self.status != Status::Leaving || self.my_op != Some(op) {
            return self.dropped("ring_update_succ_ack_late");
        }
        cx.send(self.succ().id, Msg::LeaveDone { op });
        self.gone(cx);
    }

    pub(super) fn gone(&mut self, cx: &mut Cx<'_, Self>) {
        self.status = Status::Gone;
        self.lock = None;
        cx.after(T_GRACE, Timer::Grace);
    }

    pub(super) fn on_leave_done(&mut self, op: u64) {
        if self.status == Status::PredLeaving && self.lock == Some(op) {
            self.unlock();
        } else {
            self.dropped("ring_leave_done_late");
        }
    }

    pub(super) fn on_leave_retry(&mut self, op: u64, after_ms: u16, cx: &mut Cx<'_, Self>) {
        if self.status != Status::LeaveReq || self.my_op != Some(op) {
            return self.dropped("ring_leave_retry_late");
        }
        self.unlock();
        self.my_op = None;
        let hint = Duration::from_millis(u64::from(after_ms));
        let delay = self.backoff(cx).max(hint);
        cx.after(delay, Timer::LeaveAgain);
    }
}
