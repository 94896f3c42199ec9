//! Answers collected up the tree of a broadcast or bulk operation, with a certificate of what they
//! cover (PROTOCOL.md 4.2; Ghodsi p. 120-122), and delivery in spite of nodes that fail on the way
//! (4.3; Ghodsi p. 131-133).
//!
//! Every message that wants an answer opens a [`Branch`]: it waits for the children it was
//! delegated to. While it is open, children that did not answer are asked every few seconds for
//! what they have so far; one that is suspected, or does not know what is meant, loses its arcs to
//! others, by a bulk operation (4.4) over what it had not covered yet. Nothing waits for a fixed
//! time but for the patience of the one who asked.
//!
//! A node that is reached a second time, by way of such a repair, does not deliver again. It
//! answers with what it remembers of the branch it had, so an orphaned subtree costs a message
//! to its root and not one to each of its nodes. Parts carry their place on the ring and are
//! counted once, however often they arrive.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_kernel::arc::Full;
use dugnad_kernel::{Arc, ArcSet, Cx, Duration, Id, NodeId, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    ALIVE_MISSES, ALIVE_SHARE, AVOID_MAX, CAST_STEP, CASTS_MAX, CHILDREN_MAX, DONE_BYTES, DONE_MAX,
    GAP_ROUNDS, PARTS_BYTES, SILENT_MAX, T_ALIVE, T_ALIVE_MIN, T_DONE, T_SILENT,
};
use crate::overlay::tree::broadcast::{CastId, CastMsg};
use crate::overlay::tree::bulk::{Bulk, Load, Reach};
use crate::overlay::{Event, Msg, Overlay, Timer};

/// An answer is wanted: under which number, and how long the parent waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub tag: u32,
    pub patience_ms: u16,
}

/// One node's answer. `at` is its id; for an owner told of some ids, the first of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub at: Id,
    pub bytes: Vec<u8>,
}

/// The answers of a broadcast or bulk operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    pub parts: Vec<Vec<u8>>,
    /// Whether everything asked for was covered and nothing was cut for size.
    pub complete: bool,
    /// What was asked for and not covered.
    pub missing: Box<ArcSet>,
}

/// Who gets what a branch collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The layer above, under its own number.
    Above(u32),
    To(NodeId, u32),
}

#[derive(Debug)]
struct Child {
    peer: NodeId,
    tag: u32,
    /// What it has to cover and has not yet, as far as I know.
    arcs: ArcSet,
    /// Times it was asked and did not answer.
    misses: u8,
    /// Nobody waits for it any more; what it says still counts.
    lost: bool,
}

#[derive(Clone, Debug, Default)]
struct Collected {
    parts: Map<Id, Vec<u8>>,
    bytes: usize,
    cover: ArcSet,
    /// Something did not fit.
    cut: bool,
}

#[derive(Debug)]
struct Branch {
    id: CastId,
    reply: Vec<Reply>,
    load: Load,
    reach: Reach,
    asked: ArcSet,
    /// The node behind the arc I was given in the first place: it has the arc after mine.
    limit: Option<NodeId>,
    children: Vec<Child>,
    /// Places the layer above has not answered for; it does in the same step.
    awaiting: VecDeque<Id>,
    got: Collected,
    due: Time,
    every: Duration,
    /// Nothing is delegated to these again.
    avoid: Vec<NodeId>,
    /// Children that knew nothing of what they had been sent, once.
    unknown: Vec<NodeId>,
    gaps: u8,
}

/// A branch that is over, kept for a while for those who must ask again.
#[derive(Debug)]
struct Done {
    id: CastId,
    reply: Vec<Reply>,
    limit: Option<NodeId>,
    got: Collected,
    at: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Branches {
    open: Map<u32, Branch>,
    next: u32,
    done: VecDeque<Done>,
    /// Children that fell silent: nothing is delegated to them for a while.
    silent: Vec<(NodeId, Time)>,
}

/// What [`Overlay::open`] is told.
pub(crate) struct Opening {
    pub(crate) id: CastId,
    pub(crate) reply: Reply,
    pub(crate) load: Load,
    pub(crate) reach: Reach,
    pub(crate) asked: ArcSet,
    pub(crate) limit: Option<NodeId>,
    pub(crate) patience: Duration,
}

/// What a node knows of an operation from before.
#[derive(Debug, Default)]
pub(crate) struct Recalled {
    /// Need not be asked for again.
    pub(crate) known: ArcSet,
    /// Nodes that were given the arcs behind those: the shortest way on.
    pub(crate) beyond: Vec<NodeId>,
    /// It came here before, whatever is still known of it.
    pub(crate) before: bool,
}

impl Recalled {
    /// # Errors
    /// [`Full`], and then what is known may be too little.
    pub(crate) fn add(&mut self, other: Self) -> Result<(), Full> {
        self.known = self.known.or(&other.known)?;
        self.beyond.extend(other.beyond);
        Ok(())
    }
}

impl Collected {
    fn add(&mut self, part: Part) {
        if self.parts.contains_key(&part.at) {
            return;
        }
        let bytes = self.bytes + part.bytes.len() + size_of::<Id>() + 8;
        if bytes > PARTS_BYTES {
            self.cut = true;
            return;
        }
        self.bytes = bytes;
        self.parts.insert(part.at, part.bytes);
    }

    /// Whether some of `cover` was covered before. What does not fit counts as not covered.
    fn cover(&mut self, cover: &ArcSet) -> bool {
        let overlap = self.cover.and(cover).map_or(true, |both| !both.is_empty());
        if let Ok(all) = self.cover.or(cover) {
            self.cover = all;
        }
        overlap
    }

    fn take(&mut self, other: &Self) {
        self.cut |= other.cut;
        self.cover(&other.cover);
        for (at, bytes) in &other.parts {
            self.add(Part { at: *at, bytes: bytes.clone() });
        }
    }

    fn message(&self, id: CastId, tag: u32, done: bool) -> Msg {
        let part = |(at, bytes): (&Id, &Vec<u8>)| Part { at: *at, bytes: bytes.clone() };
        let parts = self.parts.iter().map(part).collect();
        let cover = Box::new(self.cover.clone());
        Msg::Cast(CastMsg::Up { id, tag, parts, cover, cut: self.cut, done })
    }
}

impl Branch {
    fn waits(&self) -> bool {
        !self.awaiting.is_empty() || self.children.iter().any(|child| !child.lost)
    }

    fn missing(&self) -> ArcSet {
        self.asked.minus(&self.got.cover).unwrap_or_else(|Full| self.asked.clone())
    }

    fn above(&self) -> bool {
        self.reply.iter().any(|reply| matches!(reply, Reply::Above(_)))
    }
}

impl Branches {
    /// Branches open, remembered, and peers that fell silent.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.open.len(), self.done.len(), self.silent.len())
    }

    pub(crate) fn is_silent(&self, id: NodeId) -> bool {
        self.silent.iter().any(|(silent, _)| *silent == id)
    }

    pub(crate) fn heard(&mut self, id: NodeId) {
        self.silent.retain(|(silent, _)| *silent != id);
    }

    fn fell_silent(&mut self, id: NodeId, now: Time) {
        self.heard(id);
        if self.silent.len() == SILENT_MAX {
            self.silent.remove(0);
        }
        self.silent.push((id, now));
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn forget_old(&mut self, now: Time) {
        self.done.retain(|done| now.since(done.at) < T_DONE);
        self.silent.retain(|(_, at)| now.since(*at) < T_SILENT);
        let mut bytes: usize = self.done.iter().map(|done| done.got.bytes).sum();
        while bytes > DONE_BYTES || self.done.len() > DONE_MAX {
            let Some(oldest) = self.done.pop_front() else { return };
            bytes = bytes.saturating_sub(oldest.got.bytes);
        }
    }

    /// The open branches in which `peer` has not answered, with its numbers there.
    fn waiting_for(&self, peer: NodeId) -> Vec<(u32, u32)> {
        let of = |(number, branch): (&u32, &Branch)| {
            let waits = branch.children.iter().filter(|c| c.peer == peer && !c.lost);
            waits.map(|child| (*number, child.tag)).collect::<Vec<_>>()
        };
        self.open.iter().flat_map(of).collect()
    }

    fn child(&mut self, peer: NodeId, tag: u32) -> Option<(u32, &mut Branch, usize)> {
        let place =
            |branch: &Branch| branch.children.iter().position(|c| c.peer == peer && c.tag == tag);
        self.open.iter_mut().find_map(|(n, branch)| {
            let place = place(branch)?;
            Some((*n, branch, place))
        })
    }
}

impl Overlay {
    /// Opens a branch; `None` if there are too many, and then the answer was given already.
    pub(crate) fn open(&mut self, opening: Opening, cx: &mut Cx<'_, Self>) -> Option<u32> {
        self.branches.forget_old(cx.now);
        let Opening { id, reply, load, reach, asked, limit, patience } = opening;
        if self.branches.open.len() >= CASTS_MAX {
            self.count("cast_overflow");
            let got = Collected { cut: true, ..Collected::default() };
            Self::tell(id, reply, &got, asked, cx);
            return None;
        }
        let every = (patience / ALIVE_SHARE).clamp(T_ALIVE_MIN, T_ALIVE);
        let branch = Branch {
            id,
            reply: Vec::from([reply]),
            load,
            reach,
            asked,
            limit,
            children: Vec::new(),
            awaiting: VecDeque::new(),
            got: Collected::default(),
            due: cx.now + patience,
            every,
            avoid: Vec::new(),
            unknown: Vec::new(),
            gaps: 0,
        };
        let number = self.branches.number();
        self.branches.open.insert(number, branch);
        Some(number)
    }

    /// A child that is to cover `arcs`; what to send along. `lost`: it is told, not waited for.
    pub(crate) fn add_child(
        &mut self,
        number: u32,
        peer: NodeId,
        arcs: ArcSet,
        lost: bool,
        now: Time,
    ) -> Option<Ask> {
        let tag = self.branches.number();
        let branch = self.branches.open.get_mut(&number)?;
        if branch.children.len() >= CHILDREN_MAX {
            self.count("children_overflow");
            return None;
        }
        branch.children.push(Child { peer, tag, arcs, misses: 0, lost });
        let left = branch.due.since(now);
        let left = left.saturating_sub(CAST_STEP.min(left / 16)).max(CAST_STEP);
        let patience_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        Some(Ask { tag, patience_ms })
    }

    /// The layer above is to answer for `at`, in this step.
    pub(crate) fn await_answer(&mut self, number: u32, at: Id) {
        if let Some(branch) = self.branches.open.get_mut(&number) {
            branch.awaiting.push_back(at);
        }
    }

    pub(crate) fn cover(&mut self, number: u32, cover: &ArcSet) {
        let branch = self.branches.open.get_mut(&number);
        if branch.is_some_and(|branch| branch.got.cover(cover)) {
            self.count("cover_overlap");
        }
    }

    /// The layer above answers for this node, in the same step in which it got the event.
    pub(crate) fn answer_cast(&mut self, id: CastId, part: Option<Vec<u8>>, cx: &mut Cx<'_, Self>) {
        let waits = |b: &Branch| b.id == id && !b.awaiting.is_empty();
        let found = self.branches.open.iter_mut().find(|(_, branch)| waits(branch));
        let Some((&number, branch)) = found else { return };
        if let (Some(at), Some(bytes)) = (branch.awaiting.pop_front(), part) {
            branch.got.add(Part { at, bytes });
        }
        self.close_if_done(number, cx);
    }

    /// From a child: what its part of the tree says so far, or, at last, in all.
    pub(crate) fn on_up(
        &mut self,
        (from, tag): (NodeId, u32),
        parts: Vec<Part>,
        cover: &ArcSet,
        (cut, done): (bool, bool),
        cx: &mut Cx<'_, Self>,
    ) {
        let Some((number, branch, place)) = self.branches.child(from, tag) else {
            return self.count("late_feedback");
        };
        branch.got.cut |= cut;
        parts.into_iter().for_each(|part| branch.got.add(part));
        let overlap = branch.got.cover(cover);
        if done {
            branch.children.remove(place);
        } else if let Some(child) = branch.children.get_mut(place) {
            child.misses = 0;
        }
        // A repeated answer covers what it covered before; only a final one tells of a fault.
        if overlap && done && !cover.is_empty() {
            self.count("cover_overlap");
        }
        self.close_if_done(number, cx);
    }

    /// From the parent: are you still at it?
    pub(crate) fn on_alive(&self, from: NodeId, id: CastId, tag: u32, cx: &mut Cx<'_, Self>) {
        let mine = |reply: &[Reply]| reply.contains(&Reply::To(from, tag));
        let open = self.branches.open.values().find(|b| b.id == id && mine(&b.reply));
        let done = self.branches.done.iter().find(|d| d.id == id && mine(&d.reply));
        let answer = match (open, done) {
            (Some(branch), _) => branch.got.message(id, tag, false),
            (None, Some(done)) => done.got.message(id, tag, true),
            (None, None) => Msg::Cast(CastMsg::Unknown { id, tag }),
        };
        cx.send(from, answer);
    }

    /// The child lives and knows nothing of it: it restarted, or the message was lost.
    pub(crate) fn on_unknown(&mut self, from: NodeId, tag: u32, cx: &mut Cx<'_, Self>) {
        let Some((number, branch, place)) = self.branches.child(from, tag) else { return };
        if branch.unknown.contains(&from) || branch.unknown.len() >= CHILDREN_MAX {
            // Twice is no accident: it is not inside.
            self.lose_child(number, tag, cx);
        } else {
            branch.unknown.push(from);
            let child = branch.children.remove(place);
            self.count("cast_unknown");
            self.delegate_again(number, child.arcs, false, cx);
        }
        self.close_if_done(number, cx);
    }

    pub(crate) fn on_branch_timer(&mut self, number: u32, cx: &mut Cx<'_, Self>) {
        self.branches.forget_old(cx.now);
        let Some(branch) = self.branches.open.get_mut(&number) else { return };
        if cx.now >= branch.due {
            branch.children.clear();
            branch.awaiting.clear();
            self.count("cast_overdue");
            return self.close(number, cx);
        }
        let me = self.ring.me().id;
        let (mut lost, mut silent) = (Vec::new(), Vec::new());
        for child in branch.children.iter_mut().filter(|c| !c.lost && c.peer != me) {
            if child.misses >= ALIVE_MISSES {
                lost.push((child.peer, child.tag));
                continue;
            }
            if child.misses > 0 {
                silent.push(child.peer);
            }
            child.misses += 1;
            let alive = CastMsg::Alive { id: branch.id, tag: child.tag };
            cx.send(child.peer, Msg::Cast(alive));
        }
        for peer in silent {
            cx.emit(Event::Doubt(peer));
        }
        for (peer, tag) in lost {
            self.lose_child(number, tag, cx);
            self.branches.fell_silent(peer, cx.now);
        }
        self.fill_gap(number, cx);
        self.branch_later(number, cx);
    }

    /// While a branch is open, somebody looks after it.
    fn branch_later(&self, number: u32, cx: &mut Cx<'_, Self>) {
        if let Some(branch) = self.branches.open.get(&number) {
            let left = branch.due.since(cx.now).max(Duration::from_millis(1));
            cx.after(branch.every.min(left), Timer::Cast(number));
        }
    }

    /// All children are known: from now on the branch may close.
    pub(crate) fn opened(&mut self, number: u32, cx: &mut Cx<'_, Self>) {
        self.close_if_done(number, cx);
        self.branch_later(number, cx);
    }

    /// A peer is suspected or dead: what it had not covered goes to others (4.3).
    pub(crate) fn forget_child(&mut self, peer: NodeId, cx: &mut Cx<'_, Self>) {
        for (number, tag) in self.branches.waiting_for(peer) {
            self.lose_child(number, tag, cx);
            self.close_if_done(number, cx);
        }
    }

    /// A session ended, or could not be made: the child is asked at once, which dials again.
    pub(crate) fn child_closed(&mut self, peer: NodeId, cx: &mut Cx<'_, Self>) {
        for (number, tag) in self.branches.waiting_for(peer) {
            let Some((_, branch, place)) = self.branches.child(peer, tag) else { continue };
            let Some(child) = branch.children.get_mut(place) else { continue };
            child.misses += 1;
            if child.misses < ALIVE_MISSES {
                let alive = CastMsg::Alive { id: branch.id, tag };
                cx.send(peer, Msg::Cast(alive));
            } else {
                self.lose_child(number, tag, cx);
                self.branches.fell_silent(peer, cx.now);
                self.close_if_done(number, cx);
            }
        }
    }

    fn lose_child(&mut self, number: u32, tag: u32, cx: &mut Cx<'_, Self>) {
        let Some(branch) = self.branches.open.get_mut(&number) else { return };
        let Some(child) = branch.children.iter_mut().find(|c| c.tag == tag) else { return };
        child.lost = true;
        let arcs = child.arcs.clone();
        let peer = child.peer;
        if !branch.avoid.contains(&peer) {
            branch.avoid.push(peer);
        }
        let room = branch.avoid.len() <= AVOID_MAX;
        self.count("cast_child_lost");
        if room {
            self.delegate_again(number, arcs, true, cx);
        }
    }

    /// What of `arcs` is not covered yet goes out again, around whom this branch avoids.
    fn delegate_again(&mut self, number: u32, arcs: ArcSet, walk: bool, cx: &mut Cx<'_, Self>) {
        let me = self.ring.me().id;
        let Some(branch) = self.branches.open.get(&number) else { return };
        let arcs = arcs.minus(&branch.got.cover).unwrap_or(arcs);
        if arcs.is_empty() {
            return;
        }
        let bulk = Bulk {
            id: branch.id,
            reach: branch.reach,
            own: arcs.clone(),
            arcs,
            next: me,
            load: branch.load.clone(),
            ask: None,
            hops: 0,
            avoid: branch.avoid.clone(),
            walk: walk && matches!(branch.load, Load::Cast(_)),
        };
        self.count("cast_delegated_again");
        self.spread(bulk, Some(number), cx);
    }

    /// Everybody answered and something is missing: a range that was moving, a pointer that was
    /// wrong. Only who asked first looks, a few times.
    fn fill_gap(&mut self, number: u32, cx: &mut Cx<'_, Self>) {
        let Some(branch) = self.branches.open.get_mut(&number) else { return };
        if !branch.waits() && branch.above() {
            branch.gaps = branch.gaps.saturating_add(1);
            branch.avoid.clear();
            let missing = branch.missing();
            self.count("cast_gap");
            self.delegate_again(number, missing, false, cx);
            self.close_if_done(number, cx);
        }
    }

    fn close_if_done(&mut self, number: u32, cx: &mut Cx<'_, Self>) {
        let Some(branch) = self.branches.open.get(&number) else { return };
        if branch.waits() {
            return;
        }
        let more = branch.above() && branch.gaps < GAP_ROUNDS && !branch.missing().is_empty();
        let can = self.ring.is_member() && !self.ring.alone();
        // At once the first time, then with the rhythm of the branch.
        let wait = if branch.gaps == 0 { CAST_STEP } else { branch.every };
        if !more || !can || branch.due.since(cx.now) <= wait {
            self.close(number, cx);
        } else if branch.gaps == 0 {
            self.fill_gap(number, cx);
        }
    }

    fn close(&mut self, number: u32, cx: &mut Cx<'_, Self>) {
        let Some(branch) = self.branches.open.remove(&number) else { return };
        let me = self.ring.me().id;
        let Branch { id, reply, asked, limit, got, .. } = branch;
        let mut local = Vec::new();
        for reply in &reply {
            match reply {
                Reply::To(to, tag) if *to == me => local.push(*tag),
                _ => Self::tell(id, *reply, &got, asked.clone(), cx),
            }
        }
        for tag in local {
            let part = |(at, bytes): (&Id, &Vec<u8>)| Part { at: *at, bytes: bytes.clone() };
            let parts = got.parts.iter().map(part).collect();
            self.on_up((me, tag), parts, &got.cover, (got.cut, true), cx);
        }
        self.branches.done.push_back(Done { id, reply, limit, got, at: cx.now });
        self.branches.forget_old(cx.now);
    }

    fn tell(id: CastId, reply: Reply, got: &Collected, asked: ArcSet, cx: &mut Cx<'_, Self>) {
        match reply {
            Reply::To(to, tag) => cx.send(to, got.message(id, tag, true)),
            Reply::Above(call) => {
                let missing = asked.minus(&got.cover).unwrap_or(asked);
                let complete = missing.is_empty() && !got.cut;
                let parts = got.parts.values().cloned().collect();
                let missing = Box::new(missing);
                cx.emit(Event::Feedback { call, feedback: Feedback { parts, complete, missing } });
            }
        }
    }

    /// This node was part of `id` before: what it knows from then goes into the new branch, so
    /// that it need not be asked for again.
    pub(crate) fn recall(
        &mut self,
        number: u32,
        id: CastId,
        arcs: &ArcSet,
        cx: &Cx<'_, Self>,
    ) -> Result<Recalled, Full> {
        let mut recalled = Recalled::default();
        if let Some(branch) = self.branches.open.get_mut(&number) {
            for done in self.branches.done.iter().filter(|d| d.id == id) {
                recalled.known = recalled.known.or(&done.got.cover)?;
                recalled.beyond.extend(done.limit);
                branch.got.take(&done.got);
            }
        }
        let same = |(n, b): (&u32, &Branch)| (*n != number && b.id == id).then_some(*n);
        let others: Vec<u32> = self.branches.open.iter().filter_map(same).collect();
        for other in others {
            self.wait_for(number, other, arcs, &mut recalled, cx)?;
        }
        Ok(recalled)
    }

    /// Branch `number` gets what `other`, which is still open, will have of `arcs`.
    fn wait_for(
        &mut self,
        number: u32,
        other: u32,
        arcs: &ArcSet,
        recalled: &mut Recalled,
        cx: &Cx<'_, Self>,
    ) -> Result<(), Full> {
        let me = self.ring.me().id;
        let Some(branch) = self.branches.open.get(&other) else { return Ok(()) };
        let own = branch.got.parts.get(&me).cloned();
        recalled.beyond.extend(branch.limit);
        let both = branch.asked.and(arcs)?.minus(&recalled.known)?;
        // Only ahead of me: who is behind may be waiting for me.
        let can = !branch.above() && branch.reply.len() < CHILDREN_MAX;
        if !both.is_empty() && can {
            recalled.known = recalled.known.or(&both)?;
            if let Some(ask) = self.add_child(number, me, both, false, cx.now) {
                if let Some(branch) = self.branches.open.get_mut(&other) {
                    branch.reply.push(Reply::To(me, ask.tag));
                }
            }
        }
        if let (Some(bytes), Some(branch)) = (own, self.branches.open.get_mut(&number)) {
            branch.got.add(Part { at: me, bytes });
        }
        Ok(())
    }

    /// Whether this node's own answer to `id` is still known.
    pub(crate) fn remembers(&self, id: CastId) -> bool {
        self.branches.open.values().any(|b| b.id == id && !b.got.cover.is_empty())
            || self.branches.done.iter().any(|d| d.id == id)
    }

    /// The range this node answers for, as its share of a certificate.
    pub(crate) fn share(&self) -> ArcSet {
        self.ring.range().map_or_else(ArcSet::empty, ArcSet::of)
    }

    /// Its share where nodes are counted: no other node lies between me and my successor.
    pub(crate) fn node_share(&self) -> ArcSet {
        let (me, succ) = (self.ring.me().id, self.ring.succ().id);
        ArcSet::of(Arc::new(me.minus(1), succ.minus(1)))
    }
}
