//! Stabilisation and rectify after Zave's verified model (PROTOCOL.md 2.8).
//!
//! Copied exactly: the successor's whole list is adopted in the same step as the successor; a
//! candidate is asked for a sign of life before it is adopted; the old predecessor must be dead
//! before a farther one replaces it; every round ends with a notify.

use alloc::vec::Vec;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Cx, Duration, NodeId, Peer, Time};

use super::{Asking, Event, Msg, Ring, Status, Timer};
use crate::config::{
    CLAIM, DEAD_MAX, QUERY, QUERY_TRIES, STABILIZE_FAST, STABILIZE_QUIET, T_DEAD, YOUNG,
};

impl Ring {
    /// Replaces whatever round was planned: a timer of an older round is stale.
    pub(crate) fn schedule_stabilize(&mut self, base: Duration, cx: &mut Cx<'_, Self>) {
        self.round = self.round.wrapping_add(1);
        let jitter = cx.rng.u32(80..120);
        cx.after(base * jitter / 100, Timer::Stabilize { round: self.round });
    }

    pub(crate) fn on_stabilize_timer(&mut self, round: u32, cx: &mut Cx<'_, Self>) {
        if round != self.round || self.status() == Status::Gone {
            // Another round was planned meanwhile.
            return;
        }
        let young = cx.now.since(self.changed_at) < YOUNG;
        self.schedule_stabilize(if young { STABILIZE_FAST } else { STABILIZE_QUIET }, cx);
        self.stabilize(cx);
    }

    pub(crate) fn stabilize_soon(&mut self, cx: &mut Cx<'_, Self>) {
        self.changed_at = cx.now;
        self.schedule_stabilize(STABILIZE_FAST, cx);
        self.stabilize(cx);
    }

    fn stabilize(&mut self, cx: &mut Cx<'_, Self>) {
        if self.status() != Status::Inside || self.locked() || self.asking.is_some() {
            // The next round comes by itself.
            return;
        }
        if self.succ().id == self.me().id {
            // My own answer to my own query: the predecessor is a candidate (Zave, s == me).
            if self.pred().id != self.me().id && !self.pred_suspect() {
                self.query(self.pred().clone(), cx);
            }
            return;
        }
        self.query(self.succ().clone(), cx);
    }

    fn query(&mut self, target: Peer, cx: &mut Cx<'_, Self>) {
        self.next_call = self.next_call.wrapping_add(1);
        let call = self.next_call;
        cx.send(target.id, Msg::Query { call });
        cx.after(QUERY, Timer::Query { call });
        self.asking = Some(Asking { call, target, tries: 1 });
    }

    pub(crate) fn on_query(&mut self, from: NodeId, call: u32, cx: &mut Cx<'_, Self>) {
        match self.status() {
            Status::Out | Status::JoinReq => self.dropped("ring_query_outside"),
            Status::Leaving | Status::Gone => {
                cx.send(from, Msg::Moved { call, succs: self.succs().to_vec() });
            }
            _ => {
                let pred = self.named_pred().clone();
                cx.send(from, Msg::QueryRes { call, pred, succs: self.succs().to_vec() });
            }
        }
    }

    pub(crate) fn on_query_timeout(&mut self, call: u32, cx: &mut Cx<'_, Self>) {
        let Some(asking) = self.asking.as_mut().filter(|asking| asking.call == call) else {
            // It was answered.
            return;
        };
        if asking.tries < QUERY_TRIES {
            asking.tries += 1;
            cx.send(asking.target.id, Msg::Query { call });
            cx.after(QUERY, Timer::Query { call });
            return;
        }
        let target = asking.target.id;
        self.asking = None;
        if self.remove_succ(target) {
            self.after_loss(cx);
        } else if self.succ().id == self.me().id && self.pred_suspect() {
            cx.emit(Event::Stranded);
        } else {
            // A candidate that does not live: the round still ends with a notify.
            self.notify_head(cx);
        }
    }

    pub(crate) fn on_query_res(
        &mut self,
        from: NodeId,
        call: u32,
        pred: Peer,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(asking) = self.asking.take_if(|asking| asking.call == call) else {
            return self.dropped("ring_query_res_late");
        };
        if asking.target.id != from || self.status() != Status::Inside || self.locked() {
            return self.dropped("ring_query_res_late");
        }
        let me = self.me().id;
        let is_head = self.succ().id == from;
        let is_closer = self.succ().id == me || in_oo(me, from, self.succ().id);
        if !is_head && !is_closer {
            // A nearer one was found while it was asked.
            return self.dropped("ring_query_res_farther");
        }
        let old = self.succ().clone();
        let mut list = Vec::from([asking.target]);
        list.extend(succs);
        self.set_succs(list, cx);
        if !is_head && old.id != me && !self.succs().iter().any(|s| s.id == old.id) {
            cx.emit(Event::Displaced { old, by: from });
        }
        let between = pred.id != me && in_oo(me, pred.id, from);
        if is_head && between && !self.died(&pred, cx.now) {
            self.query(pred, cx);
            return;
        }
        self.notify_head(cx);
    }

    pub(crate) fn on_moved(
        &mut self,
        from: NodeId,
        call: u32,
        succs: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(asking) = self.asking.take_if(|asking| asking.call == call) else {
            return self.dropped("ring_moved_late");
        };
        if asking.target.id != from || self.status() != Status::Inside {
            return self.dropped("ring_moved_late");
        }
        if self.succ().id == from {
            let mut list: Vec<Peer> = succs.into_iter().filter(|s| s.id != from).collect();
            list.extend(self.succs().iter().filter(|s| s.id != from).cloned());
            self.set_succs(list, cx);
            self.notify_head(cx);
        }
    }

    /// Not from who left: a question it asked before may end only now, and its heir would take it
    /// for the predecessor once more.
    fn notify_head(&self, cx: &mut Cx<'_, Self>) {
        if self.is_member() && self.succ().id != self.me().id {
            cx.send(self.succ().id, Msg::Notify { me: self.me().clone() });
        }
    }

    pub(crate) fn on_list_changed(&mut self, from: NodeId, cx: &mut Cx<'_, Self>) {
        if from == self.succ().id {
            self.stabilize(cx);
        } else {
            self.dropped("ring_list_changed_late");
        }
    }

    /// Rectify: a node says it is my predecessor.
    pub(crate) fn on_notify(&mut self, from: NodeId, peer: Peer, cx: &mut Cx<'_, Self>) {
        if self.status() != Status::Inside || self.locked() || peer.id != from {
            // It says so again with the next round.
            return self.dropped("ring_notify_early");
        }
        let closer = in_oo(self.pred().id, from, self.me().id);
        if from == self.pred().id || closer || self.pred_suspect() {
            self.set_pred(peer, cx);
        } else {
            self.on_claim(peer, cx);
        }
        if self.succ().id == self.me().id && self.pred().id != self.me().id {
            self.stabilize(cx);
        }
    }

    /// A farther node than my predecessor says it is the one: it knows mine to be dead, or knows
    /// less of the ring than I do. Mine is asked at once, and if it is dead the claim stands.
    fn on_claim(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let me = self.me().id;
        let nearer = self
            .claimant
            .as_ref()
            .is_none_or(|(known, at)| cx.now.since(*at) >= CLAIM || !in_oo(peer.id, known.id, me));
        if nearer {
            self.claimant = Some((peer, cx.now));
        }
        cx.emit(Event::Doubt(self.pred().id));
    }

    /// Routing met a node that is nearer than my successor: a hint, which no question that is under
    /// way gives way to, and which is not taken from who still counts on a dead one.
    pub(crate) fn on_hint(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let head = self.succ().id;
        let busy = self.asking.as_ref().is_some_and(|asking| asking.target.id != head);
        if !busy && !self.died(&peer, cx.now) {
            self.on_candidate(peer, cx);
        }
    }

    /// Whether this life of `peer` was found over a short while ago.
    pub(crate) fn died(&self, peer: &Peer, now: Time) -> bool {
        let this = |(id, inc, at): &(NodeId, u32, Time)| {
            *id == peer.id && *inc >= peer.inc && now.since(*at) < T_DEAD
        };
        self.dead.iter().any(this)
    }

    /// It was heard of after all.
    pub(crate) fn lives(&mut self, id: NodeId) {
        self.dead.retain(|(dead, _, _)| *dead != id);
    }

    fn remember_dead(&mut self, id: NodeId, now: Time) {
        let known = core::iter::once(self.pred()).chain(self.succs()).find(|p| p.id == id);
        let Some(inc) = known.map(|peer| peer.inc) else { return };
        self.lives(id);
        if self.dead.len() == DEAD_MAX {
            self.dead.remove(0);
        }
        self.dead.push((id, inc, now));
    }

    /// A candidate that cannot be reached is none; the round still ends with a notify. The
    /// successor itself is for the detector to judge.
    pub(crate) fn on_closed(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let head = self.succ().id;
        if head != id && self.asking.take_if(|asking| asking.target.id == id).is_some() {
            self.notify_head(cx);
        }
    }

    pub(crate) fn on_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        if self.asking.take_if(|asking| asking.target.id == id).is_some() {
            self.notify_head(cx);
        }
        self.remember_dead(id, cx.now);
        let was_pred = self.suspect_pred(id);
        let was_succ = self.remove_succ(id);
        let claim = self.claimant.take_if(|(peer, _)| was_pred || peer.id == id);
        if let Some((peer, at)) = claim {
            let free = self.status() == Status::Inside && !self.locked();
            if free && was_pred && peer.id != id && cx.now.since(at) < CLAIM {
                self.set_pred(peer, cx);
            }
        }
        if was_succ {
            self.after_loss(cx);
        } else if was_pred {
            cx.emit(Event::NeighboursChanged);
            self.stabilize_soon(cx);
        }
        if self.succ().id == self.me().id && self.pred_suspect() {
            cx.emit(Event::Stranded);
        }
    }

    fn after_loss(&mut self, cx: &mut Cx<'_, Self>) {
        if self.succ().id == self.me().id && self.pred().id != self.me().id {
            if self.pred_suspect() {
                cx.emit(Event::Stranded);
            } else {
                self.set_succs(Vec::from([self.pred().clone()]), cx);
                // Right, but from there it is a walk around the whole ring: a contact of the
                // table is nearer.
                cx.emit(Event::Stranded);
            }
        }
        self.neighbours_changed(cx);
        if self.status() == Status::Inside && !self.locked() {
            self.notify_head(cx);
        }
        self.stabilize_soon(cx);
    }

    /// Nobody is left: the whole ring is mine.
    pub(crate) fn be_alone(&mut self, cx: &mut Cx<'_, Self>) {
        if self.succ().id == self.me().id && self.pred_suspect() {
            self.set_pred(self.me().clone(), cx);
        }
    }

    /// A live node I was told of: ask it, and adopt it if it is closer than my successor.
    pub(crate) fn on_candidate(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let me = self.me().id;
        if peer.id == me || self.status() != Status::Inside || self.locked() {
            // A candidate that counts is heard of again.
            return;
        }
        if self.succ().id == me || in_oo(me, peer.id, self.succ().id) {
            self.asking = None;
            self.query(peer, cx);
        }
    }
}
