//! Finding the way in, and finding back together (PROTOCOL.md 6).
//!
//! A node that starts knows addresses, not the ring. It joins through the first peer that is
//! inside. When everybody restarts at once nobody is inside: then the one with the lowest id among
//! those it reaches starts the ring, and the others join it. Rings that were one (a cut cable) find
//! each other through the peers each side had declared dead, and are merged.

use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Cx, Duration, NodeId, Peer, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    MERGE_REPEAT, PASSIVE_MAX, PASSIVE_PROBE, PATIENCE, PATIENCE_RANK, PENDING_MAX,
};
use crate::overlay::ring::{self, Status};
use crate::overlay::route::{Hop, Purpose, RouteMsg};
use crate::overlay::{Msg, Overlay, Timer};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryMsg {
    /// Are you inside, and beside whom?
    Probe,
    /// To whoever probed: how the ring looks from here.
    ProbeRes { inside: bool, pred: Peer, succs: Vec<Peer> },
    /// Route my record to the owner of my id in your ring.
    Merge { peer: Peer },
    /// This node might be your successor.
    Hint { candidate: Peer },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryTimer {
    /// Whoever was asked to let this node in has had its time.
    Patience,
    /// Another known peer is asked the way in.
    TryNext,
    /// A peer that was lost is probed once more.
    Passive,
}

#[derive(Debug, Default)]
pub(crate) struct Entry {
    booted: Option<Time>,
    /// Ways in that were not tried since the last round.
    untried: Set<NodeId>,
    /// Dead peers that may come back or live on the other side of a cut, and peers that were on
    /// their way in when they were asked.
    passive: Vec<Peer>,
    probing: bool,
    merged: Vec<(NodeId, Time)>,
    /// When somebody last showed that there is a ring, even if it did not let me in.
    ring_seen: Option<Time>,
    /// A ring was to begin while somebody was asked the way in.
    missed: bool,
}

/// A node nobody lets in starts a ring of its own in the end; it is merged later.
const LONELY: Duration = Duration::from_secs(30);

impl Overlay {
    pub(crate) fn boot(&mut self, alone: bool, cx: &mut Cx<'_, Self>) {
        self.entry.booted = Some(cx.now);
        if self.ring.is_member() {
            // Planted: what a join would have set going.
            self.take_up(cx);
        } else if alone {
            self.ring_input(ring::Command::Create, cx);
        } else {
            cx.after(PATIENCE, Timer::Entry(EntryTimer::Patience));
            self.try_next(cx);
        }
    }

    pub(crate) fn entry_link_up(&mut self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        if self.ring.status() == Status::Out {
            self.entry.untried.insert(peer.id);
            self.try_next(cx);
        } else if self.ring.is_member() && !self.knows(peer.id) {
            cx.send(peer.id, Msg::Entry(EntryMsg::Probe));
        }
    }

    fn knows(&self, id: NodeId) -> bool {
        let ring = self.ring.succs().iter().chain(core::iter::once(self.ring.pred()));
        ring.chain(self.table.contacts()).any(|peer| peer.id == id)
    }

    fn try_next(&mut self, cx: &mut Cx<'_, Self>) {
        if self.entry.booted.is_none() || self.ring.status() != Status::Out {
            return;
        }
        let choices: Vec<NodeId> = self.entry.untried.iter().copied().collect();
        if let Some(via) = cx.rng.choice(&choices).copied() {
            self.entry.untried.remove(&via);
            self.ring_input(ring::Command::Join { via }, cx);
        }
    }

    /// `via` did not let me in, or cannot.
    pub(crate) fn on_way_in_closed(&mut self, via: NodeId, cx: &mut Cx<'_, Self>) {
        self.entry.untried.remove(&via);
        if self.ring.status() == Status::JoinReq {
            self.ring_input(ring::Command::GiveUpJoin { via }, cx);
            let nobody = self.links.linked().all(|id| id == via);
            if nobody && core::mem::take(&mut self.entry.missed) {
                // Who is outside itself is all there is: the moment to begin a ring was missed
                // over its answer.
                self.on_patience(cx);
            }
        }
    }

    pub(crate) fn on_join_failed(&mut self, cx: &mut Cx<'_, Self>) {
        if self.entry.untried.is_empty() {
            self.entry.untried = self.links.linked().collect();
            let pause = Duration::from_millis(u64::from(cx.rng.u16(300..700)));
            cx.after(pause, Timer::Entry(EntryTimer::TryNext));
        } else {
            self.try_next(cx);
        }
    }

    pub(crate) fn on_entry_timer(&mut self, timer: EntryTimer, cx: &mut Cx<'_, Self>) {
        match timer {
            EntryTimer::TryNext => self.try_next(cx),
            EntryTimer::Patience => self.on_patience(cx),
            EntryTimer::Passive => self.on_passive(cx),
        }
    }

    /// There is a ring: it is joined, not rivalled.
    pub(crate) fn saw_ring(&mut self, now: Time) {
        self.entry.ring_seen = Some(now);
    }

    fn on_patience(&mut self, cx: &mut Cx<'_, Self>) {
        if !matches!(self.ring.status(), Status::Out | Status::JoinReq) {
            return;
        }
        let me = self.ring.me().id;
        let rank = self.links.linked().filter(|id| *id < me).count();
        let waited = self.entry.booted.map_or(LONELY, |booted| cx.now.since(booted));
        let ring = self.entry.ring_seen.is_some_and(|at| cx.now.since(at) < PATIENCE * 2);
        if (rank == 0 && !ring) || waited >= LONELY {
            // While somebody is asked the way in, none begins: it may let me in.
            self.entry.missed = self.ring.status() == Status::JoinReq;
            self.ring_input(ring::Command::Create, cx);
            let linked: Vec<NodeId> = self.links.linked().collect();
            for id in linked {
                cx.send(id, Msg::Entry(EntryMsg::Probe));
            }
        } else {
            let rank = u32::try_from(rank).unwrap_or(u32::MAX).clamp(1, 8);
            cx.after(PATIENCE_RANK * rank, Timer::Entry(EntryTimer::Patience));
        }
    }

    /// A peer died; keep it for the day the cable is plugged in again.
    pub(crate) fn remember_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.ask_again(id, cx);
    }

    /// It is probed until it says that it is inside a ring, and so is this node.
    fn ask_again(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let Some(peer) = self.book.get(&id).cloned() else { return };
        self.entry.passive.retain(|asked| asked.id != id);
        if self.entry.passive.len() == PASSIVE_MAX {
            self.entry.passive.remove(0);
        }
        self.entry.passive.push(peer);
        self.probe_later(cx);
    }

    /// It will not come back to this ring.
    pub(crate) fn forget_dead(&mut self, id: NodeId) {
        self.entry.passive.retain(|dead| dead.id != id);
    }

    /// A node on its own that knows others keeps asking them, too.
    pub(crate) fn probe_later(&mut self, cx: &mut Cx<'_, Self>) {
        let lone = self.ring.is_member() && self.ring.alone() && !self.book.is_empty();
        if !self.entry.probing && (lone || !self.entry.passive.is_empty()) {
            self.entry.probing = true;
            let jitter = cx.rng.u32(80..120);
            cx.after(PASSIVE_PROBE * jitter / 100, Timer::Entry(EntryTimer::Passive));
        }
    }

    fn on_passive(&mut self, cx: &mut Cx<'_, Self>) {
        self.entry.probing = false;
        if self.ring.is_member() {
            let passive = self.entry.passive.first().map(|peer| peer.id);
            let lone = self.ring.alone() && cx.rng.bool();
            let known: Vec<NodeId> = self.book.keys().copied().filter(|_| lone).collect();
            if let Some(id) = cx.rng.choice(&known).copied().or(passive) {
                cx.send(id, Msg::Entry(EntryMsg::Probe));
            }
            if !self.entry.passive.is_empty() {
                self.entry.passive.rotate_left(1);
            }
        }
        self.probe_later(cx);
    }

    pub(crate) fn on_entry(&mut self, from: NodeId, msg: EntryMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            EntryMsg::Probe => {
                let inside = self.ring.status() == Status::Inside;
                let (pred, succs) = (self.ring.named_pred().clone(), self.ring.succs().to_vec());
                cx.send(from, Msg::Entry(EntryMsg::ProbeRes { inside, pred, succs }));
            }
            EntryMsg::ProbeRes { inside, pred, succs } => {
                self.on_probe_res(from, inside, &pred, &succs, cx);
            }
            EntryMsg::Merge { peer } => self.merge(peer, None, cx),
            EntryMsg::Hint { candidate } => {
                self.contact(&candidate, cx);
                self.ring_input(ring::Command::Candidate(candidate), cx);
            }
        }
    }

    fn on_probe_res(
        &mut self,
        from: NodeId,
        inside: bool,
        pred: &Peer,
        succs: &[Peer],
        cx: &mut Cx<'_, Self>,
    ) {
        if inside {
            self.saw_ring(cx.now);
        }
        if !inside || self.ring.status() != Status::Inside {
            // One of the two is on its way in: whether it is one ring is to be seen after.
            if self.ring.is_member() && !self.knows(from) {
                self.ask_again(from, cx);
            }
            return;
        }
        self.entry.passive.retain(|asked| asked.id != from);
        let me = self.ring.me().clone();
        let theirs_alone = pred.id == from && succs.first().is_none_or(|s| s.id == from);
        if self.ring.alone() {
            if !theirs_alone || from < me.id {
                self.ring_input(ring::Command::Join { via: from }, cx);
            } else {
                // It is the other one that moves; it may not know of me yet.
                cx.send(from, Msg::Entry(EntryMsg::Hint { candidate: me }));
            }
            return;
        }
        // One ring if they count me where I belong, or I count them where they belong.
        let between = |x: NodeId| pred.id != x && in_oo(pred.id, x, from);
        let misses_me = succs.iter().all(|s| s.id != me.id) && pred.id != me.id;
        if (!self.knows(from) && misses_me) || between(me.id) {
            if let Some(peer) = self.book.get(&from).cloned() {
                self.merge(peer, None, cx);
            }
            cx.send(from, Msg::Entry(EntryMsg::Merge { peer: me }));
        }
    }

    /// Routes `peer` to where it belongs in my ring, beginning at `via` or at myself.
    pub(crate) fn merge(&mut self, peer: Peer, via: Option<NodeId>, cx: &mut Cx<'_, Self>) {
        self.entry.merged.retain(|(_, at)| cx.now.since(*at) < MERGE_REPEAT);
        let again = self.entry.merged.iter().any(|(id, _)| *id == peer.id);
        if again || self.entry.merged.len() >= PENDING_MAX || peer.id == self.ring.me().id {
            return;
        }
        self.entry.merged.push((peer.id, cx.now));
        self.count("merge_lookups");
        self.contact(&peer, cx);
        let hop = Hop {
            key: peer.id,
            purpose: Purpose::Merge,
            origin: peer,
            call: 0,
            hops: 0,
            last: false,
            seq: 0,
        };
        match via {
            Some(via) => cx.send(via, Msg::Route(RouteMsg::Hop(hop))),
            None => self.route(hop, cx),
        }
    }

    /// `peer` belongs between my predecessor and me.
    pub(crate) fn on_merge_point(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let me = self.ring.me().clone();
        if peer.id == me.id || self.ring.pred().id == peer.id {
            return;
        }
        self.contact(&peer, cx);
        let pred = self.ring.pred().id;
        cx.send(peer.id, Msg::Entry(EntryMsg::Hint { candidate: me }));
        cx.send(pred, Msg::Entry(EntryMsg::Hint { candidate: peer }));
    }
}
