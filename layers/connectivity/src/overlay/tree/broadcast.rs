//! Broadcast by delegated intervals (PROTOCOL.md 4.1; Ghodsi p. 117-119).
//!
//! Each child gets the arc up to the previously chosen child, so nobody is reached twice and n-1
//! messages do. What the nodes answer is collected by [`super::feedback`]; without it a broadcast
//! is best effort: a node that dies holding an arc takes the message for that arc with it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, ArcSet, Cx, Duration, NodeId, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    CAST_BYTES, CAST_STEP, FANOUT, LIFE_BITS, SEEN_MAX, SOURCE_BURST, SOURCE_RATE, SOURCES_MAX,
    T_SEEN,
};
use crate::overlay::ring::Status;
use crate::overlay::tree::bulk::{Load, Reach};
use crate::overlay::tree::feedback::{Ask, Feedback, Opening, Part, Reply};
use crate::overlay::{Event, Msg, Overlay};

/// Names one broadcast or bulk operation in the whole community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CastId {
    pub origin: NodeId,
    pub number: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastMsg {
    /// Deliver `body`, and reach everybody between you and `limit`.
    Down { id: CastId, limit: NodeId, body: Vec<u8>, ask: Option<Ask> },
    /// What my part of the tree says, and which part of the ring that is; `done` if that is all.
    Up { id: CastId, tag: u32, parts: Vec<Part>, cover: Box<ArcSet>, cut: bool, done: bool },
    /// To a child that has not answered in full: what do you have so far?
    Alive { id: CastId, tag: u32 },
    /// I know nothing of it.
    Unknown { id: CastId, tag: u32 },
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Thousandths of a token.
    level: u64,
    at: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Casts {
    next: u32,
    seen: VecDeque<(CastId, Time)>,
    sources: Map<NodeId, Bucket>,
}

impl Bucket {
    #[must_use]
    pub fn full(burst: u32, now: Time) -> Self {
        Self { level: u64::from(burst) * 1_000, at: now }
    }

    fn fill(&mut self, burst: u32, per_second: u32, now: Time) {
        let passed = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let more = passed.saturating_mul(u64::from(per_second));
        self.level = self.level.saturating_add(more).min(u64::from(burst) * 1_000);
        self.at = now;
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, burst: u32, per_second: u32, now: Time) -> bool {
        self.fill(burst, per_second, now);
        let left = self.level.checked_sub(1_000);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

impl Ask {
    pub(crate) fn patience(self) -> Duration {
        Duration::from_millis(u64::from(self.patience_ms))
    }
}

impl Casts {
    /// Broadcasts remembered against duplicates, and sources counted.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.seen.len(), self.sources.len())
    }

    /// Numbers of another life of this node are still remembered by the others as seen.
    pub(crate) fn of_life(inc: u32) -> Self {
        Self { next: inc << LIFE_BITS, ..Self::default() }
    }

    pub(crate) fn next_id(&mut self, origin: NodeId) -> CastId {
        self.next = self.next.wrapping_add(1);
        CastId { origin, number: self.next }
    }

    pub(crate) fn is_known(&self, id: CastId) -> bool {
        self.seen.iter().any(|(seen, _)| *seen == id)
    }

    /// Whether `id` comes for the first time; from now on it does not.
    pub(crate) fn first_time(&mut self, id: CastId, now: Time) -> bool {
        while self.seen.front().is_some_and(|(_, at)| now.since(*at) >= T_SEEN) {
            self.seen.pop_front();
        }
        if self.is_known(id) {
            return false;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back((id, now));
        true
    }

    /// Whether one more of this source passes (PROTOCOL.md 4.9).
    pub(crate) fn allow(&mut self, origin: NodeId, now: Time) -> bool {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&origin) {
            for bucket in self.sources.values_mut() {
                bucket.fill(SOURCE_BURST, SOURCE_RATE, now);
            }
            self.sources.retain(|_, bucket| bucket.level < u64::from(SOURCE_BURST) * 1_000);
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let bucket = self.sources.entry(origin);
        let bucket = bucket.or_insert_with(|| Bucket::full(SOURCE_BURST, now));
        bucket.take(SOURCE_BURST, SOURCE_RATE, now)
    }
}

/// Who gets which arc, farthest first: `pointers` by growing distance from `me`, of which the
/// nearest is always served and the others as far as [`FANOUT`] goes. The arc of one that is not
/// becomes part of the next nearer one's.
pub(crate) fn plan(me: NodeId, pointers: &[NodeId], limit: NodeId) -> Vec<(NodeId, NodeId)> {
    let inside = pointers.iter().copied().filter(|id| in_oo(me, *id, limit));
    let mut served: Vec<NodeId> = inside.collect();
    if served.len() > FANOUT {
        served.drain(1..=served.len() - FANOUT);
    }
    let mut limit = limit;
    let leg = |child: NodeId| (child, core::mem::replace(&mut limit, child));
    served.into_iter().rev().map(leg).collect()
}

impl Overlay {
    /// Reaches everybody, this node included. With `ask`, a call number and a patience, the
    /// answers come as [`Event::Feedback`].
    pub(crate) fn cast(
        &mut self,
        body: Vec<u8>,
        ask: Option<(u32, Duration)>,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.ring.me().id;
        if body.len() > CAST_BYTES {
            self.count("cast_too_large");
            if let Some((call, _)) = ask {
                let (parts, missing) = (Vec::new(), Box::new(ArcSet::whole()));
                let feedback = Feedback { parts, complete: false, missing };
                cx.emit(Event::Feedback { call, feedback });
            }
            return;
        }
        let id = self.casts.next_id(me);
        self.casts.first_time(id, cx.now);
        let ask = ask.map(|(call, patience)| (Reply::Above(call), patience));
        self.down(id, me, body, ask, cx);
    }

    pub(crate) fn on_cast(&mut self, from: NodeId, msg: CastMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            CastMsg::Down { id, limit, body, ask } => {
                self.on_down(from, id, limit, body, ask, cx);
            }
            CastMsg::Up { tag, parts, cover, cut, done, .. } if cover.is_sound() => {
                self.on_up((from, tag), parts, &cover, (cut, done), cx);
            }
            CastMsg::Up { .. } => self.count("cast_malformed"),
            CastMsg::Alive { id, tag } => self.on_alive(from, id, tag, cx),
            CastMsg::Unknown { tag, .. } => self.on_unknown(from, tag, cx),
        }
    }

    fn on_down(
        &mut self,
        from: NodeId,
        id: CastId,
        limit: NodeId,
        body: Vec<u8>,
        ask: Option<Ask>,
        cx: &mut Cx<'_, Self>,
    ) {
        if self.ring.status() < Status::Joining {
            self.count("cast_outside");
            if let Some(Ask { tag, .. }) = ask {
                cx.send(from, Msg::Cast(CastMsg::Unknown { id, tag }));
            }
            return;
        }
        let known = self.casts.is_known(id);
        if !known && (body.len() > CAST_BYTES || !self.casts.allow(id.origin, cx.now)) {
            return self.count("cast_rate");
        }
        if !self.casts.first_time(id, cx.now) {
            self.count("cast_twice");
            // Another branch has the arc; whoever sent this need not wait for me.
            if let Some(Ask { tag, .. }) = ask {
                let (parts, cover) = (Vec::new(), Box::new(ArcSet::empty()));
                let up = CastMsg::Up { id, tag, parts, cover, cut: false, done: true };
                cx.send(from, Msg::Cast(up));
            }
            return;
        }
        let ask = ask.map(|ask| (Reply::To(from, ask.tag), ask.patience().max(CAST_STEP)));
        self.down(id, limit, body, ask, cx);
    }

    fn down(
        &mut self,
        id: CastId,
        limit: NodeId,
        body: Vec<u8>,
        ask: Option<(Reply, Duration)>,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.ring.me().id;
        let branch = ask.and_then(|(reply, patience)| {
            let (load, reach) = (Load::Cast(body.clone()), Reach::Owners);
            let asked = ArcSet::of(Arc::new(me.minus(1), limit.minus(1)));
            let limit = Some(limit);
            self.open(Opening { id, reply, load, reach, asked, limit, patience }, cx)
        });
        let pointers = self.pointers();
        for (child, limit) in plan(me, &pointers, limit) {
            self.send_down(child, id, limit, &body, (branch, false), cx);
        }
        // A suspect may live; nobody else reaches it, and nothing depends on it.
        let nearest = pointers.first().copied().filter(|id| in_oo(me, *id, limit));
        let beside = self.ring.succs().iter().map(|peer| peer.id).filter(|id| {
            *id != me && self.is_doubtful(*id) && in_oo(me, *id, nearest.unwrap_or(limit))
        });
        for suspect in beside.collect::<Vec<_>>() {
            self.send_down(suspect, id, suspect.plus(1), &body, (branch, true), cx);
        }
        cx.emit(Event::Cast { id, body, feedback: branch.is_some() });
        if let Some(branch) = branch {
            self.cover(branch, &self.share());
            self.await_answer(branch, me);
            self.opened(branch, cx);
        }
    }

    fn send_down(
        &mut self,
        child: NodeId,
        id: CastId,
        limit: NodeId,
        body: &[u8],
        (branch, lost): (Option<u32>, bool),
        cx: &mut Cx<'_, Self>,
    ) {
        let arcs = ArcSet::of(Arc::new(child.minus(1), limit.minus(1)));
        let ask = branch.and_then(|branch| self.add_child(branch, child, arcs, lost, cx.now));
        let down = CastMsg::Down { id, limit, body: body.to_vec(), ask };
        cx.send(child, Msg::Cast(down));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests;
