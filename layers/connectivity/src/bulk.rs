//! Bulk operations: reach every node in a set of arcs, or every owner of ids in it, each told
//! exactly which ids (overlay.md 4.4; Ghodsi p. 123-129).
//!
//! A node sends at most one message to each of its pointers, however large the set is, and no id
//! is told twice. One id behaves as a lookup, the whole ring as a broadcast.
//!
//! While a range moves (join, leave), ids the sender still counts as mine are handed on to whoever
//! got them (2.5, rules 2 and 3), and whoever gets a range is told first what was served in it:
//! so every id is told once, whichever way the messages overtake each other.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dugnad_kernel::arc::{Full, in_oo};
use dugnad_kernel::{Arc, ArcSet, Cx, NodeId, Peer, Time};
use serde::{Deserialize, Serialize};

use crate::broadcast::CastId;
use crate::config::{FANOUT, HOPS_MAX, MOVED_MAX, SERVED_MAX, T_MOVED};
use crate::ring::Status;
use crate::{Event, Msg, Overlay};

/// Whom a bulk operation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// Nodes whose own id is in the set.
    Nodes,
    /// Owners of ids in the set.
    Owners,
}

/// What it brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// For the layer above.
    Above(Vec<u8>),
    /// For the table (3.6).
    Topology(TopoChange),
}

/// A node came or went; whoever points at its place may want another contact (3.6.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopoChange {
    pub kind: TopoKind,
    pub node: Peer,
    /// The node behind it: who took over, or gave up, its range.
    pub succ: Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TopoKind {
    Join,
    Leave,
    Fail,
}

/// One message of a bulk operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bulk {
    pub id: CastId,
    pub reach: Reach,
    /// What the receiver must see to, itself or through others (I).
    pub arcs: ArcSet,
    /// Ids the receiver may own (R).
    pub own: ArcSet,
    /// The nearest node clockwise that is served already.
    pub next: NodeId,
    pub load: Load,
    pub hops: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkMsg {
    Down(Box<Bulk>),
    /// Before a range goes to the receiver: these ids of these operations were told already.
    Served {
        id: CastId,
        arcs: Box<ArcSet>,
    },
}

/// A message to one pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leg {
    pub(crate) to: NodeId,
    pub(crate) arcs: ArcSet,
    pub(crate) own: ArcSet,
    pub(crate) next: NodeId,
}

/// A range that was mine a short while ago.
#[derive(Clone, Debug)]
struct Moved {
    arc: Arc,
    to: NodeId,
    at: Time,
}

/// What one operation told here.
#[derive(Clone, Debug)]
struct Served {
    id: CastId,
    arcs: ArcSet,
    at: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Bulks {
    range: Option<Arc>,
    moved: Vec<Moved>,
    served: VecDeque<Served>,
}

impl Bulks {
    /// Ranges given away and operations served lately.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.moved.len(), self.served.len())
    }

    fn served(&self, id: CastId) -> Option<&ArcSet> {
        self.served.iter().find(|s| s.id == id).map(|s| &s.arcs)
    }

    /// Remembers that `arcs` of `id` need not be told again.
    fn serve(&mut self, id: CastId, arcs: &ArcSet, now: Time) {
        if let Some(known) = self.served.iter_mut().find(|s| s.id == id) {
            if let Ok(all) = known.arcs.or(arcs) {
                known.arcs = all;
            }
            return;
        }
        if self.served.len() == SERVED_MAX {
            self.served.pop_front();
        }
        self.served.push_back(Served { id, arcs: arcs.clone(), at: now });
    }

    fn forget_old(&mut self, now: Time) {
        self.moved.retain(|moved| now.since(moved.at) < T_MOVED);
        self.served.retain(|served| now.since(served.at) < T_MOVED);
    }
}

/// Sets that together hold `arcs`, each with room for the cuts that delegation makes.
pub(crate) fn pack(arcs: impl IntoIterator<Item = Arc>) -> Vec<ArcSet> {
    let mut sets: Vec<ArcSet> = Vec::new();
    for arc in arcs {
        let arc = ArcSet::of(arc);
        let joined = sets.last().and_then(|set| set.or(&arc).ok());
        match (joined, sets.last_mut()) {
            (Some(joined), Some(last)) if joined.runs().len() <= ArcSet::ROOMY => *last = joined,
            _ => sets.push(arc),
        }
    }
    sets
}

/// The arcs from `lo` to the id before `limit`, both being nodes.
fn nodes_from(lo: NodeId, limit: NodeId) -> ArcSet {
    ArcSet::of(Arc::new(lo.minus(1), limit.minus(1)))
}

/// Who gets which part. `pointers` by growing distance from `me`.
///
/// # Errors
/// [`Full`]: the set must be split first.
pub(crate) fn plan(
    me: NodeId,
    reach: Reach,
    pointers: &[NodeId],
    arcs: &ArcSet,
    next: NodeId,
) -> Result<Vec<Leg>, Full> {
    let legs = plan_all(me, reach, pointers, arcs, next)?;
    if legs.len() <= FANOUT {
        return Ok(legs);
    }
    // Home uplinks: the nearest and the farthest of them; what a skipped one would have served
    // becomes part of the next nearer one's arc.
    let mut served: Vec<NodeId> = legs.iter().map(|leg| leg.to).collect();
    served.drain(FANOUT - 1..legs.len() - 1);
    let succ = pointers.first().filter(|succ| !served.contains(succ));
    served.extend(succ.copied());
    served.reverse();
    served.sort_by_key(|id| me.distance(*id));
    plan_all(me, reach, &served, arcs, next)
}

/// Farthest first.
fn plan_all(
    me: NodeId,
    reach: Reach,
    pointers: &[NodeId],
    arcs: &ArcSet,
    next: NodeId,
) -> Result<Vec<Leg>, Full> {
    let (mut rest, mut limit, mut last) = (arcs.clone(), me, next);
    let mut legs: Vec<Leg> = Vec::new();
    for (place, &to) in pointers.iter().enumerate().rev() {
        let reached = match reach {
            Reach::Nodes => nodes_from(to, limit),
            Reach::Owners => ArcSet::of(Arc::new(to, limit)),
        };
        let part = rest.and(&reached)?;
        if part.is_empty() {
            continue;
        }
        let nearer = place.checked_sub(1).and_then(|p| pointers.get(p)).copied().unwrap_or(me);
        let own = match reach {
            Reach::Nodes => ArcSet::empty(),
            Reach::Owners => rest.and(&ArcSet::of(Arc::new(nearer, to)))?,
        };
        rest = rest.minus(&part)?;
        legs.push(Leg { to, arcs: part, own, next: last });
        (limit, last) = (to, to);
    }
    let Some(&succ) = pointers.first() else { return Ok(legs) };
    let sent = legs.last().is_some_and(|leg| leg.to == succ);
    if reach == Reach::Owners && !sent && next != succ {
        let own = rest.and(&ArcSet::of(Arc::new(me, succ)))?;
        if !own.is_empty() {
            legs.push(Leg { to: succ, arcs: ArcSet::empty(), own, next: limit });
        }
    }
    Ok(legs)
}

impl Overlay {
    /// Who can be sent to, by growing distance, without me and without suspects.
    pub(crate) fn pointers(&self) -> Vec<NodeId> {
        let me = self.ring.me().id;
        let pred = (!self.ring.pred_suspect()).then_some(self.ring.pred());
        let known = self.ring.succs().iter().chain(pred).chain(self.table.contacts());
        let usable = known.map(|p| p.id).filter(|id| *id != me && !self.detector.is_suspect(*id));
        let mut ids: Vec<NodeId> = usable.collect();
        ids.sort_unstable_by_key(|id| me.distance(*id));
        ids.dedup();
        ids
    }

    /// Brings `load` to everybody in `arcs`; best effort.
    pub(crate) fn bulk(
        &mut self,
        reach: Reach,
        arcs: impl IntoIterator<Item = Arc>,
        load: &Load,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.ring.is_member() {
            self.count("bulk_outside");
            return;
        }
        let (id, next) = (self.casts.next_id(self.ring.me().id), self.ring.me().id);
        for arcs in pack(arcs) {
            let own = arcs.clone();
            let load = load.clone();
            self.take_bulk(Bulk { id, reach, arcs, own, next, load, hops: 0 }, cx);
        }
    }

    pub(crate) fn on_bulk(&mut self, msg: BulkMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            BulkMsg::Down(b) if b.hops >= HOPS_MAX => self.count("bulk_hops_exceeded"),
            BulkMsg::Down(_) if self.ring.status() < Status::Joining => self.count("bulk_outside"),
            BulkMsg::Down(b) if b.arcs.is_sound() && b.own.is_sound() => self.take_bulk(*b, cx),
            BulkMsg::Down(_) => self.count("bulk_malformed"),
            BulkMsg::Served { id, arcs } if arcs.is_sound() => self.bulks.serve(id, &arcs, cx.now),
            BulkMsg::Served { .. } => self.count("bulk_malformed"),
        }
    }

    fn take_bulk(&mut self, mut bulk: Bulk, cx: &mut Cx<'_, Self>) {
        self.bulks.forget_old(cx.now);
        let done = match bulk.reach {
            Reach::Nodes => self.deliver_node(&bulk, cx),
            Reach::Owners => self.deliver_owner(&bulk, cx),
        };
        match done.and_then(|done| bulk.arcs.minus(&done)) {
            Ok(rest) => bulk.arcs = rest,
            Err(Full) => return self.split(&bulk, cx),
        }
        match plan(self.ring.me().id, bulk.reach, &self.pointers(), &bulk.arcs, bulk.next) {
            Ok(legs) => legs.into_iter().for_each(|leg| self.send_leg(leg, &bulk, cx)),
            Err(Full) => self.split(&bulk, cx),
        }
    }

    fn send_leg(&mut self, leg: Leg, bulk: &Bulk, cx: &mut Cx<'_, Self>) {
        let Leg { to, arcs, own, next } = leg;
        let (id, reach, hops) = (bulk.id, bulk.reach, bulk.hops.saturating_add(1));
        let down = Bulk { id, reach, arcs, own, next, load: bulk.load.clone(), hops };
        cx.send(to, Msg::Bulk(BulkMsg::Down(Box::new(down))));
    }

    /// The set cannot be cut further as it is: each half on its own (overlay.md 1.1).
    fn split(&mut self, bulk: &Bulk, cx: &mut Cx<'_, Self>) {
        // One arc is never too much to cut, unless somebody claims to have told it in splinters.
        if bulk.arcs.runs().len() <= 1 && bulk.own.runs().len() <= 1 {
            self.count("bulk_overflow");
            return;
        }
        let ((a, b), (own_a, own_b)) = (bulk.arcs.halves(), bulk.own.halves());
        for (arcs, own) in [(a, own_a), (b, own_b)] {
            self.take_bulk(Bulk { arcs, own, ..bulk.clone() }, cx);
        }
    }

    fn deliver_node(&mut self, bulk: &Bulk, cx: &mut Cx<'_, Self>) -> Result<ArcSet, Full> {
        let me = self.ring.me().id;
        let mine = ArcSet::of(Arc::new(me.minus(1), me));
        if bulk.arcs.contains(me) && self.casts.first_time(bulk.id) {
            self.hand_up(bulk, &mine, cx);
        }
        Ok(mine)
    }

    /// What of the ids I may own is mine is told here, what moved goes on (2.5, rules 2 and 3).
    fn deliver_owner(&mut self, bulk: &Bulk, cx: &mut Cx<'_, Self>) -> Result<ArcSet, Full> {
        let me = self.ring.me().id;
        let claim = self.ring.claim().map_or_else(ArcSet::empty, ArcSet::of);
        let mut mine = bulk.own.and(&claim)?;
        let mut done = mine.clone();
        for moved in self.bulks.moved.clone() {
            let own = bulk.own.and(&ArcSet::of(moved.arc))?.minus(&done)?;
            if !own.is_empty() {
                done = done.or(&own)?;
                let leg = Leg { to: moved.to, arcs: ArcSet::empty(), own, next: me };
                self.count("bulk_handed_on");
                self.send_leg(leg, bulk, cx);
            }
        }
        if let Some(served) = self.bulks.served(bulk.id) {
            mine = mine.minus(served)?;
        }
        if !mine.is_empty() {
            self.bulks.serve(bulk.id, &mine, cx.now);
            self.hand_up(bulk, &mine, cx);
        }
        Ok(done)
    }

    fn hand_up(&mut self, bulk: &Bulk, mine: &ArcSet, cx: &mut Cx<'_, Self>) {
        match &bulk.load {
            Load::Above(body) => {
                let (id, body, mine) = (bulk.id, body.clone(), Box::new(mine.clone()));
                cx.emit(Event::Bulk { id, body, mine });
            }
            Load::Topology(change) => self.on_topo_change(change, cx),
        }
    }

    /// Correction on change (3.6.4): who came may be a better contact, who went is none.
    pub(crate) fn on_topo_change(&mut self, change: &TopoChange, cx: &mut Cx<'_, Self>) {
        match change.kind {
            TopoKind::Join => self.contact(&change.node, cx),
            TopoKind::Leave | TopoKind::Fail => {
                self.table.remove(change.node.id);
                self.contact(&change.succ, cx);
            }
        }
    }

    /// My range changed: remembers for a while to whom the lost part went.
    pub(crate) fn bulk_range_changed(&mut self, cx: &Cx<'_, Self>) {
        let range = self.ring.claim();
        let Some(before) = core::mem::replace(&mut self.bulks.range, range) else { return };
        let (arc, to) = match range {
            None => (before, self.ring.succ().id),
            // It only gives away where its predecessor moves closer.
            Some(range) if in_oo(before.lo, range.lo, before.hi) => {
                (Arc::new(before.lo, range.lo), range.lo)
            }
            Some(_) => return,
        };
        if to == self.ring.me().id {
            return;
        }
        self.bulks.forget_old(cx.now);
        if self.bulks.moved.len() == MOVED_MAX {
            self.bulks.moved.remove(0);
        }
        self.bulks.moved.push(Moved { arc, to, at: cx.now });
    }

    /// A part of my range is about to go to `to`: it learns first what was told in it.
    pub(crate) fn tell_served(&mut self, to: NodeId, cx: &mut Cx<'_, Self>) {
        self.bulks.forget_old(cx.now);
        if to == self.ring.me().id {
            return;
        }
        for served in &self.bulks.served {
            let arcs = Box::new(served.arcs.clone());
            cx.send(to, Msg::Bulk(BulkMsg::Served { id: served.id, arcs }));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
