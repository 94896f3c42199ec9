//! Bulk operations: reach every node in a set of arcs, or every owner of ids in it, each told
//! exactly which ids (PROTOCOL.md 4.4; Ghodsi p. 123-129).
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
use dugnad_kernel::{Arc, ArcSet, Cx, Id, NodeId, Peer, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    AVOID_MAX, BULK_PATIENCE, CAST_STEP, FANOUT, HOPS_MAX, MOVED_MAX, SERVED_MAX, T_MOVED,
};
use crate::overlay::ring::Status;
use crate::overlay::tree::broadcast::{CastId, CastMsg};
use crate::overlay::tree::feedback::{Ask, Feedback, Opening, Recalled, Reply};
use crate::overlay::{Event, Msg, Overlay};

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
    /// A broadcast, on its way around somebody who fell silent (4.3).
    Cast(Vec<u8>),
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
    /// Whether the sender wants to hear what the receiver's part of the tree says.
    pub ask: Option<Ask>,
    pub hops: u8,
    /// Nothing is delegated to these.
    pub avoid: Vec<NodeId>,
    /// Whether those who know the operation hand the set on from one to the next: most of it may
    /// be done already.
    pub walk: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkMsg {
    /// To a child: do this in these arcs.
    Down(Box<Bulk>),
    /// Before a range goes to the receiver: these ids of these operations were told already.
    Served { id: CastId, arcs: Box<ArcSet> },
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

/// The one message of a walk: to the node that was given the arc behind what is known, else
/// towards the first id that is not.
fn walk(
    me: NodeId,
    pointers: &[NodeId],
    recalled: &Recalled,
    arcs: &ArcSet,
    next: NodeId,
) -> Result<Vec<Leg>, Full> {
    let after = me.plus(1);
    let firsts = arcs.runs().iter().map(|(lo, _)| Id(*lo));
    let Some(first) = firsts.min_by_key(|id| after.distance(*id)) else { return Ok(Vec::new()) };
    let usable = recalled.beyond.iter().filter(|id| pointers.contains(id));
    let heir = usable.min_by_key(|id| first.distance(**id)).copied();
    let before = |id: &&NodeId| me.distance(**id) <= me.distance(first);
    let to = heir
        .filter(|_| recalled.known.contains(first.minus(1)))
        .or_else(|| pointers.iter().rfind(before).copied())
        .or_else(|| pointers.first().copied());
    let Some(to) = to else { return Ok(Vec::new()) };
    let own = arcs.and(&ArcSet::of(Arc::new(me, to)))?;
    let arcs = arcs.minus(&own)?;
    Ok(Vec::from([Leg { to, arcs, own, next }]))
}

impl Overlay {
    /// Nothing that others depend on is given to it.
    pub(crate) fn is_doubtful(&self, id: NodeId) -> bool {
        self.links.is_suspect(id) || self.branches.is_silent(id)
    }

    /// Who can be sent to, by growing distance, without me and without suspects.
    pub(crate) fn pointers(&self) -> Vec<NodeId> {
        let me = self.ring.me().id;
        let pred = (!self.ring.pred_suspect()).then_some(self.ring.pred());
        let known = self.ring.succs().iter().chain(pred).chain(self.table.contacts());
        let usable = known.map(|p| p.id).filter(|id| *id != me && !self.is_doubtful(*id));
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
        self.start_bulk(reach, arcs, load, None, cx);
    }

    /// With `call`, [`Event::Feedback`] follows under it; then a set takes 32 arcs at most.
    pub(crate) fn start_bulk(
        &mut self,
        reach: Reach,
        arcs: impl IntoIterator<Item = Arc>,
        load: &Load,
        call: Option<u32>,
        cx: &mut Cx<'_, Self>,
    ) {
        let sets = pack(arcs);
        let all = sets.iter().try_fold(ArcSet::empty(), |all, set| all.or(set));
        let refused = !self.ring.is_member() || (call.is_some() && all.is_err());
        let asked = all.unwrap_or_else(|Full| ArcSet::whole());
        if refused {
            self.count("bulk_refused");
            if let Some(call) = call {
                let (parts, missing) = (Vec::new(), Box::new(asked));
                let feedback = Feedback { parts, complete: false, missing };
                cx.emit(Event::Feedback { call, feedback });
            }
            return;
        }
        let next = self.ring.me().id;
        let id = self.casts.next_id(next);
        let mut branch = None;
        if let Some(call) = call {
            let (reply, load, patience) = (Reply::Above(call), load.clone(), BULK_PATIENCE);
            branch =
                self.open(Opening { id, reply, load, reach, asked, limit: None, patience }, cx);
            if branch.is_none() {
                return;
            }
        }
        for arcs in sets {
            let (own, load, avoid) = (arcs.clone(), load.clone(), Vec::new());
            let (ask, hops, walk) = (None, 0, false);
            let bulk = Bulk { id, reach, arcs, own, next, load, ask, hops, avoid, walk };
            self.spread(bulk, branch, cx);
        }
        if let Some(branch) = branch {
            self.opened(branch, cx);
        }
    }

    pub(crate) fn on_bulk(&mut self, from: NodeId, msg: BulkMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            BulkMsg::Down(bulk) => self.on_bulk_down(from, *bulk, cx),
            BulkMsg::Served { id, arcs } if arcs.is_sound() => self.bulks.serve(id, &arcs, cx.now),
            BulkMsg::Served { .. } => self.count("bulk_malformed"),
        }
    }

    fn on_bulk_down(&mut self, from: NodeId, mut bulk: Bulk, cx: &mut Cx<'_, Self>) {
        let sound = bulk.arcs.is_sound() && bulk.own.is_sound() && bulk.avoid.len() <= AVOID_MAX;
        if !sound || bulk.hops >= HOPS_MAX {
            return self.count("bulk_malformed");
        }
        if self.ring.status() < Status::Joining {
            self.count("bulk_outside");
            if let Some(Ask { tag, .. }) = bulk.ask {
                cx.send(from, Msg::Cast(CastMsg::Unknown { id: bulk.id, tag }));
            }
            return;
        }
        let known = self.casts.is_known(bulk.id) || self.bulks.served(bulk.id).is_some();
        if !known && !self.casts.allow(bulk.id.origin, cx.now) {
            return self.count("cast_rate");
        }
        let Some(ask) = bulk.ask.take() else { return self.spread(bulk, None, cx) };
        let opening = Opening {
            id: bulk.id,
            reply: Reply::To(from, ask.tag),
            load: bulk.load.clone(),
            reach: bulk.reach,
            asked: bulk.arcs.or(&bulk.own).unwrap_or_else(|Full| bulk.arcs.clone()),
            limit: None,
            patience: ask.patience().max(CAST_STEP),
        };
        if let Some(branch) = self.open(opening, cx) {
            self.spread(bulk, Some(branch), cx);
            self.opened(branch, cx);
        }
    }

    /// Delivers what is mine and delegates the rest.
    pub(crate) fn spread(&mut self, mut bulk: Bulk, branch: Option<u32>, cx: &mut Cx<'_, Self>) {
        self.bulks.forget_old(cx.now);
        let delivered = match bulk.reach {
            Reach::Nodes => self.deliver_node(&bulk, branch, cx),
            Reach::Owners => self.deliver_owner(&bulk, branch, cx),
        };
        let cut = delivered.and_then(|recalled| {
            bulk.arcs = bulk.arcs.minus(&recalled.known)?;
            Ok(recalled)
        });
        let Ok(recalled) = cut else { return self.split(&bulk, branch, cx) };
        let me = self.ring.me().id;
        let mut pointers = self.pointers();
        pointers.extend(recalled.beyond.iter().filter(|id| !self.is_doubtful(**id)));
        pointers.retain(|id| *id != me && !bulk.avoid.contains(id));
        pointers.sort_unstable_by_key(|id| me.distance(*id));
        pointers.dedup();
        bulk.walk &= recalled.before;
        let legs = if bulk.walk {
            walk(me, &pointers, &recalled, &bulk.arcs, bulk.next)
        } else {
            plan(me, bulk.reach, &pointers, &bulk.arcs, bulk.next)
        };
        match legs {
            Ok(legs) => legs.into_iter().for_each(|leg| self.send_leg(leg, &bulk, branch, cx)),
            Err(Full) => self.split(&bulk, branch, cx),
        }
    }

    fn send_leg(&mut self, leg: Leg, bulk: &Bulk, branch: Option<u32>, cx: &mut Cx<'_, Self>) {
        let Leg { to, arcs, own, next } = leg;
        // A share of a broadcast is a whole range: its last id stands for it.
        let last = || own.and(&ArcSet::of(Arc::new(to.minus(1), to)));
        let share = if matches!(bulk.load, Load::Cast(_)) { last() } else { Ok(own.clone()) };
        let all = share.and_then(|share| arcs.or(&share)).unwrap_or_else(|Full| arcs.clone());
        let ask = branch.and_then(|branch| self.add_child(branch, to, all, false, cx.now));
        let (id, reach, hops) = (bulk.id, bulk.reach, bulk.hops.saturating_add(1));
        let (load, mut avoid) = (bulk.load.clone(), bulk.avoid.clone());
        avoid.truncate(AVOID_MAX);
        let walk = bulk.walk;
        let down = Bulk { id, reach, arcs, own, next, load, ask, hops, avoid, walk };
        cx.send(to, Msg::Bulk(BulkMsg::Down(Box::new(down))));
    }

    /// The set cannot be cut further as it is: each half on its own (PROTOCOL.md 1.1).
    fn split(&mut self, bulk: &Bulk, branch: Option<u32>, cx: &mut Cx<'_, Self>) {
        // One arc is never too much to cut, unless somebody claims to have told it in splinters.
        if bulk.arcs.runs().len() <= 1 && bulk.own.runs().len() <= 1 {
            self.count("bulk_overflow");
            return;
        }
        let ((a, b), (own_a, own_b)) = (bulk.arcs.halves(), bulk.own.halves());
        for (arcs, own) in [(a, own_a), (b, own_b)] {
            self.spread(Bulk { arcs, own, ..bulk.clone() }, branch, cx);
        }
    }

    fn deliver_node(
        &mut self,
        bulk: &Bulk,
        branch: Option<u32>,
        cx: &mut Cx<'_, Self>,
    ) -> Result<Recalled, Full> {
        let me = self.ring.me().id;
        let mut done =
            Recalled { known: ArcSet::of(Arc::new(me.minus(1), me)), ..Recalled::default() };
        if bulk.arcs.contains(me) {
            if self.casts.first_time(bulk.id, cx.now) {
                self.hand_up(bulk, &done.known, branch, cx);
            } else if let Some(branch) = branch {
                done.add(self.recall(branch, bulk.id, &bulk.arcs, cx)?)?;
            }
        }
        if let Some(branch) = branch {
            self.cover(branch, &self.node_share());
        }
        Ok(done)
    }

    /// What of the ids I may own is mine is told here, what moved goes on (2.5, rules 2 and 3).
    fn deliver_owner(
        &mut self,
        bulk: &Bulk,
        branch: Option<u32>,
        cx: &mut Cx<'_, Self>,
    ) -> Result<Recalled, Full> {
        let me = self.ring.me().id;
        let claim = self.ring.claim().map_or_else(ArcSet::empty, ArcSet::of);
        let mine = bulk.own.and(&claim)?;
        let mut done = mine.clone();
        for moved in self.bulks.moved.clone() {
            let own = bulk.own.and(&ArcSet::of(moved.arc))?.minus(&done)?;
            if !own.is_empty() && !bulk.avoid.contains(&moved.to) {
                done = done.or(&own)?;
                let leg = Leg { to: moved.to, arcs: ArcSet::empty(), own, next: me };
                self.count("bulk_handed_on");
                self.send_leg(leg, bulk, branch, cx);
            }
        }
        if matches!(bulk.load, Load::Cast(_)) {
            return self.deliver_cast(bulk, branch, done, cx);
        }
        let mut done = Recalled { known: done, ..Recalled::default() };
        let served = self.bulks.served(bulk.id).cloned();
        let fresh = served.as_ref().map_or(Ok(mine.clone()), |served| mine.minus(served))?;
        if let (Some(_), Some(branch)) = (served, branch) {
            done.add(self.recall(branch, bulk.id, &bulk.arcs, cx)?)?;
        }
        if !fresh.is_empty() {
            self.bulks.serve(bulk.id, &fresh, cx.now);
            self.hand_up(bulk, &fresh, branch, cx);
        }
        if let Some(branch) = branch.filter(|_| !mine.is_empty()) {
            self.cover(branch, &mine);
        }
        Ok(done)
    }

    /// A broadcast that came around: everybody on the way takes it, whether it owns ids of the set
    /// or not.
    fn deliver_cast(
        &mut self,
        bulk: &Bulk,
        branch: Option<u32>,
        known: ArcSet,
        cx: &mut Cx<'_, Self>,
    ) -> Result<Recalled, Full> {
        let mut done = Recalled { known, ..Recalled::default() };
        if self.casts.first_time(bulk.id, cx.now) {
            self.hand_up(bulk, &done.known, branch, cx);
        } else if let Some(branch) = branch {
            done.before = true;
            if !self.remembers(bulk.id) {
                return Ok(done);
            }
            done.add(self.recall(branch, bulk.id, &bulk.arcs, cx)?)?;
        }
        if let Some(branch) = branch {
            self.cover(branch, &self.share());
        }
        Ok(done)
    }

    fn hand_up(&mut self, bulk: &Bulk, mine: &ArcSet, branch: Option<u32>, cx: &mut Cx<'_, Self>) {
        let (id, feedback) = (bulk.id, branch.is_some());
        let at = match &bulk.load {
            Load::Above(body) => {
                let (body, mine) = (body.clone(), Box::new(mine.clone()));
                let first = mine.runs().first().map(|run| Id(run.0));
                cx.emit(Event::Bulk { id, body, mine, feedback });
                first
            }
            Load::Topology(change) => {
                self.on_topo_change(change, cx);
                None
            }
            Load::Cast(body) => {
                cx.emit(Event::Cast { id, body: body.clone(), feedback });
                Some(self.ring.me().id)
            }
        };
        if let (Some(branch), Some(at)) = (branch, at) {
            self.await_answer(branch, at);
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
