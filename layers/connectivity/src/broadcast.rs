//! Broadcast by delegated intervals, with feedback and a coverage certificate
//! (overlay.md 4.1, 4.2; Ghodsi p. 117-122).
//!
//! Each child gets the arc up to the previously chosen child, so nobody is reached twice and n-1
//! messages do. Every node contributes the range it answers for; the initiator knows exactly
//! which part of the ring was not covered.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{ArcSet, Cx, Duration, NodeId, Peer};
use serde::{Deserialize, Serialize};

use crate::config::LIFE_BITS;
use crate::config::{CAST_BUDGET, CAST_STEP, CASTS_MAX, PARTS_BYTES, SEEN_MAX};
use crate::{Event, Msg, Overlay, Timer};

/// Names one broadcast in the whole community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CastId {
    pub origin: NodeId,
    pub number: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastMsg {
    /// Deliver `body`, and reach everybody between you and `limit`.
    Down { id: CastId, limit: NodeId, body: Vec<u8>, feedback: bool, budget_ms: u16 },
    /// What my part of the tree says, and which part of the ring that is.
    Up { id: CastId, parts: Vec<Vec<u8>>, cover: Box<ArcSet>, cut: bool },
}

/// The answers of a broadcast with feedback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    pub parts: Vec<Vec<u8>>,
    /// Whether every id of the ring was covered and nothing was cut for size.
    pub complete: bool,
}

#[derive(Debug)]
struct Cast {
    /// `None` at the initiator.
    parent: Option<NodeId>,
    pending: Vec<NodeId>,
    parts: Vec<Vec<u8>>,
    bytes: usize,
    cover: ArcSet,
    cut: bool,
    /// The initiator's own number for it.
    call: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Casts {
    next: u32,
    open: BTreeMap<CastId, Cast>,
    seen: VecDeque<CastId>,
}

impl Casts {
    /// Broadcasts under way, and those remembered against duplicates.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.open.len(), self.seen.len())
    }
}

impl Casts {
    /// Numbers of another life of this node are still remembered by the others as seen.
    pub(crate) fn of_life(inc: u32) -> Self {
        Self { next: inc << LIFE_BITS, ..Self::default() }
    }

    pub(crate) fn next_id(&mut self, origin: NodeId) -> CastId {
        self.next = self.next.wrapping_add(1);
        CastId { origin, number: self.next }
    }

    /// Whether `id` comes for the first time; from now on it does not.
    pub(crate) fn first_time(&mut self, id: CastId) -> bool {
        if self.seen.contains(&id) {
            return false;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(id);
        true
    }
}

impl Overlay {
    /// Reaches everybody, this node included. With feedback the answers come as
    /// [`Event::Feedback`] under `call`.
    pub(crate) fn cast(&mut self, call: u32, body: Vec<u8>, feedback: bool, cx: &mut Cx<'_, Self>) {
        let origin = self.ring.me().id;
        let id = self.casts.next_id(origin);
        self.casts.first_time(id);
        self.down(id, None, origin, body, feedback, CAST_BUDGET, call, cx);
    }

    pub(crate) fn on_cast(&mut self, from: NodeId, msg: CastMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            CastMsg::Down { id, limit, body, feedback, budget_ms } => {
                if !self.casts.first_time(id) {
                    self.count("cast_twice");
                    if feedback {
                        let cover = Box::new(ArcSet::empty());
                        let up = CastMsg::Up { id, parts: Vec::new(), cover, cut: false };
                        cx.send(from, Msg::Cast(up));
                    }
                    return;
                }
                let budget = Duration::from_millis(u64::from(budget_ms)).min(CAST_BUDGET);
                self.down(id, Some(from), limit, body, feedback, budget, 0, cx);
            }
            CastMsg::Up { id, parts, cover, cut } => self.on_up(from, id, parts, &cover, cut, cx),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call site a case; a struct would be built and taken apart at once"
    )]
    fn down(
        &mut self,
        id: CastId,
        parent: Option<NodeId>,
        limit: NodeId,
        body: Vec<u8>,
        feedback: bool,
        budget: Duration,
        call: u32,
        cx: &mut Cx<'_, Self>,
    ) {
        let left = budget.saturating_sub(CAST_STEP).max(CAST_STEP);
        let budget_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let pending = self.delegate(id, limit, &body, feedback, budget_ms, cx);
        cx.emit(Event::Cast { id, body, feedback });
        if !feedback {
            return;
        }
        if self.casts.open.len() >= CASTS_MAX {
            self.count("cast_overflow");
            return;
        }
        let cover = self.ring.range().map_or_else(ArcSet::empty, ArcSet::of);
        let cast = Cast { parent, pending, parts: Vec::new(), bytes: 0, cover, cut: false, call };
        self.casts.open.insert(id, cast);
        cx.after(budget, Timer::Cast(id));
    }

    fn delegate(
        &mut self,
        id: CastId,
        limit: NodeId,
        body: &[u8],
        feedback: bool,
        budget_ms: u16,
        cx: &mut Cx<'_, Self>,
    ) -> Vec<NodeId> {
        let me = self.ring.me().id;
        let mut known: Vec<&Peer> = self.ring.succs().iter().chain(self.table.contacts()).collect();
        if !self.ring.pred_suspect() {
            known.push(self.ring.pred());
        }
        known.retain(|p| p.id != me && in_oo(me, p.id, limit) && !self.detector.is_suspect(p.id));
        known.sort_by_key(|p| core::cmp::Reverse(me.distance(p.id)));
        known.dedup_by_key(|p| p.id);
        let mut limit = limit;
        let mut children = Vec::new();
        for peer in known {
            let down = CastMsg::Down { id, limit, body: body.to_vec(), feedback, budget_ms };
            cx.send(peer.id, Msg::Cast(down));
            children.push(peer.id);
            limit = peer.id;
        }
        children
    }

    /// The layer above answers for this node, in the same step in which it got [`Event::Cast`].
    pub(crate) fn answer_cast(&mut self, id: CastId, part: Option<Vec<u8>>, cx: &mut Cx<'_, Self>) {
        let Some(cast) = self.casts.open.get_mut(&id) else { return };
        if let Some(part) = part {
            cast.add(part);
        }
        self.close_if_done(id, cx);
    }

    fn on_up(
        &mut self,
        from: NodeId,
        id: CastId,
        parts: Vec<Vec<u8>>,
        cover: &ArcSet,
        cut: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(cast) = self.casts.open.get_mut(&id) else {
            self.count("late_feedback");
            return;
        };
        let before = cast.pending.len();
        cast.pending.retain(|child| *child != from);
        if cast.pending.len() == before {
            self.count("late_feedback");
            return;
        }
        cast.cut |= cut;
        parts.into_iter().for_each(|part| cast.add(part));
        match cast.cover.or(cover) {
            Ok(cover) => cast.cover = cover,
            Err(_) => cast.cut = true,
        }
        self.close_if_done(id, cx);
    }

    pub(crate) fn on_cast_over(&mut self, id: CastId, cx: &mut Cx<'_, Self>) {
        if let Some(cast) = self.casts.open.get_mut(&id) {
            cast.pending.clear();
            self.close_if_done(id, cx);
        }
    }

    /// A dead child will not answer.
    pub(crate) fn forget_child(&mut self, dead: NodeId, cx: &mut Cx<'_, Self>) {
        let waits = |cast: &Cast| cast.pending.contains(&dead);
        let ids: Vec<CastId> =
            self.casts.open.iter().filter(|(_, c)| waits(c)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(cast) = self.casts.open.get_mut(&id) {
                cast.pending.retain(|child| *child != dead);
            }
            self.close_if_done(id, cx);
        }
    }

    fn close_if_done(&mut self, id: CastId, cx: &mut Cx<'_, Self>) {
        if !self.casts.open.get(&id).is_some_and(|cast| cast.pending.is_empty()) {
            return;
        }
        let Some(cast) = self.casts.open.remove(&id) else { return };
        match cast.parent {
            Some(parent) => {
                let Cast { parts, cover, cut, .. } = cast;
                let cover = Box::new(cover);
                cx.send(parent, Msg::Cast(CastMsg::Up { id, parts, cover, cut }));
            }
            None => {
                let complete = cast.cover.is_whole() && !cast.cut;
                let feedback = Feedback { parts: cast.parts, complete };
                cx.emit(Event::Feedback { call: cast.call, feedback });
            }
        }
    }
}

impl Cast {
    fn add(&mut self, part: Vec<u8>) {
        if self.bytes + part.len() + 8 > PARTS_BYTES {
            self.cut = true;
            return;
        }
        self.bytes += part.len() + 8;
        self.parts.push(part);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// Random rings a test of exactness runs on.
    pub(crate) fn runs() -> u32 {
        std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2_000)
    }
}
