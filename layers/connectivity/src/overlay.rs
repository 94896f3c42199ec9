//! One ring with all that makes it useful. One component, [`Overlay`]; its parts are one file each,
//! named as in the literature:
//!
//! - [`ring`]: atomic join and leave, ownership, stabilisation. - [`table`]: k-ary table.
//! - [`route`]: forwarding rule and lookups. - [`tree`]: telling all, or all in some arcs, and
//!   collecting answers. - [`entry`]: the way in, and merging.
//!
//! The whole community is one overlay, and so is each large group. Links and failure detector are
//! the node's ([`crate::Connectivity`]): an overlay says whom it needs watched ([`Event::Watch`])
//! and whom it doubts ([`Event::Doubt`]), and is told who is linked, suspected and dead.

pub mod entry;
mod planted;
pub mod ring;
pub mod route;
pub mod table;
pub mod tree;

use alloc::boxed::Box;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{Arc, ArcSet, Component, Counters, Cx, Duration, Input, Key, NodeId, Peer};
use serde::{Deserialize, Serialize};

use crate::config::{self, LINKED_MAX, SLOT_REFRESH, SUCCESSORS, SUCCESSORS_WATCHED};
use entry::{Entry, EntryMsg, EntryTimer};
use ring::{Ring, Status};
use route::{Found, LookupFor, RouteMsg, RouteTimer, Routes};
use table::Table;
use tree::broadcast::{CastId, CastMsg, Casts};
use tree::bulk::{BulkMsg, Bulks, Load, Reach};
use tree::feedback::{Branches, Feedback};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Ring(ring::Msg),
    Route(RouteMsg),
    Cast(CastMsg),
    Entry(EntryMsg),
    Bulk(BulkMsg),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Ring(ring::Timer),
    Route(RouteTimer),
    /// Look after one branch of a tree.
    Cast(u32),
    Entry(EntryTimer),
    /// Look up one slot of the table again.
    Refresh,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Once, first. `alone`: there is nobody to join, start a ring.
    Boot {
        alone: bool,
    },
    LinkUp(Peer),
    LinkDown(NodeId),
    /// Find the owner of `key`; [`Event::Found`] follows under `call`.
    Lookup {
        call: u32,
        key: Key,
    },
    /// Reach everybody; with feedback, [`Event::Feedback`] follows under `call`.
    Cast {
        call: u32,
        body: Vec<u8>,
        feedback: bool,
    },
    /// As `Cast` with feedback, by somebody with a patience of its own, a minute at most.
    AskAll {
        call: u32,
        body: Vec<u8>,
        patience: Duration,
    },
    /// Reach the nodes in `arcs`, or the owners of the ids in them; [`Event::Bulk`] there. Only
    /// trees repair themselves with it yet: it is for the components to come (the prospector's
    /// search over an arc, ranges of the linearizable store).
    Bulk {
        arcs: Vec<Arc>,
        reach: Reach,
        body: Vec<u8>,
        /// Whether [`Event::Feedback`] is to follow, and under which number.
        call: Option<u32>,
    },
    /// This node's answer to an [`Event::Cast`] or [`Event::Bulk`] with feedback, in the same
    /// step.
    AnswerCast {
        id: CastId,
        part: Option<Vec<u8>>,
    },
    /// The layers above count on these: how they can be reached is not forgotten.
    Remembered(Set<NodeId>),
    Leave,
    /// Where a peer can be dialled.
    Learn(Peer),
    /// The detector checks whether it lives.
    Suspect(NodeId),
    /// It does.
    Refuted(NodeId),
    /// It does not.
    Dead(NodeId),
    /// It says that it is in no ring with me.
    Outside(NodeId),
    /// A peer that may come back, or lives on the other side of a cut.
    Remember(Peer),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Contact(Peer),
    Joined,
    /// What this node owns changed.
    RangeChanged,
    NeighboursChanged,
    Found {
        call: u32,
        found: Option<Found>,
    },
    Cast {
        id: CastId,
        body: Vec<u8>,
        feedback: bool,
    },
    Feedback {
        call: u32,
        feedback: Feedback,
    },
    /// A bulk operation; `mine` are the ids of it that are this node's.
    Bulk {
        id: CastId,
        body: Vec<u8>,
        mine: Box<ArcSet>,
        feedback: bool,
    },
    /// These neighbours are to be watched, and no others for this ring.
    Watch(Set<NodeId>),
    /// It lives, but not the life that was known: what it promised it may have forgotten.
    Restarted(NodeId),
    Left,
    /// It did not do what it should have done by now.
    Doubt(NodeId),
}

/// Peers remembered with their addresses (PROTOCOL.md 11.4).
pub const BOOK_MAX: usize = 384;
/// Lookups for the table started in one step.
const FILL: usize = 8;

/// Who can be asked now, as links and detector of the node have it.
#[derive(Debug, Default)]
pub(crate) struct Links {
    linked: Set<NodeId>,
    suspects: Set<NodeId>,
}

impl Links {
    fn up(&mut self, id: NodeId) {
        if self.linked.len() < LINKED_MAX {
            self.linked.insert(id);
        }
    }

    fn down(&mut self, id: NodeId) {
        self.linked.remove(&id);
    }

    pub(crate) fn is_suspect(&self, id: NodeId) -> bool {
        self.suspects.contains(&id)
    }

    pub(crate) fn is_linked(&self, id: NodeId) -> bool {
        self.linked.contains(&id)
    }

    pub(crate) fn linked(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.linked.iter().copied()
    }
}

pub struct Overlay {
    pub(crate) ring: Ring,
    pub(crate) table: Table,
    pub(crate) routes: Routes,
    pub(crate) casts: Casts,
    pub(crate) bulks: Bulks,
    pub(crate) branches: Branches,
    pub(crate) links: Links,
    pub(crate) entry: Entry,
    pub(crate) book: Map<NodeId, Peer>,
    /// Neighbours that are watched.
    near: Set<NodeId>,
    /// Not to be forgotten, for the layers above, and watched, too.
    remembered: Set<NodeId>,
    stranded: Set<NodeId>,
    refreshing: bool,
    refreshed: usize,
    counters: Counters,
}

impl Component for Overlay {
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

impl Overlay {
    #[must_use]
    pub fn new(me: Peer) -> Self {
        Self::with_ring(Ring::new(me))
    }

    /// One of several of the same node. `instance` counts them, so that what an earlier one
    /// numbered is not taken for what this one does.
    #[must_use]
    pub fn of_instance(me: Peer, instance: u32) -> Self {
        let (routes, casts) = (Routes::of_life(instance), Casts::of_life(instance));
        Self { routes, casts, ..Self::new(me) }
    }

    /// Around a ring that was not entered yet.
    #[must_use]
    pub fn with_ring(ring: Ring) -> Self {
        let me = ring.me().clone();
        Self {
            table: Table::new(me.id),
            routes: Routes::of_life(me.inc),
            casts: Casts::of_life(me.inc),
            bulks: Bulks::default(),
            branches: Branches::default(),
            ring,
            links: Links::default(),
            entry: Entry::default(),
            book: Map::new(),
            near: Set::new(),
            remembered: Set::new(),
            stranded: Set::new(),
            refreshing: false,
            refreshed: 0,
            counters: Counters::default(),
        }
    }

    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Where this node can be dialled now; others learn it from its next sessions.
    pub fn set_addrs(&mut self, addrs: Addrs) {
        self.ring.set_addrs(addrs);
    }

    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    pub fn book(&self) -> impl Iterator<Item = &Peer> {
        self.book.values()
    }

    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.book.get(&id)
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter().chain(self.ring.counters())
    }

    /// How many nodes there are: exact while the successor list reaches around the ring, else
    /// from its density (PROTOCOL.md 1.4). Never used for safety.
    #[must_use]
    pub fn size(&self) -> u64 {
        let (me, succs) = (self.ring.me().id, self.ring.succs());
        if self.ring.alone() {
            return 1;
        }
        let count = u64::try_from(succs.len()).unwrap_or(u64::MAX);
        if !self.ring.list_full() {
            return count + 1;
        }
        let span = succs.last().map_or(u128::MAX, |last| me.distance(last.id)).max(1);
        let estimate = u64::try_from(u128::MAX / span).unwrap_or(u64::MAX);
        estimate.saturating_mul(count - 1).max(count + 1)
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let (pending, lookups) = self.routes.sizes();
        let (seen, sources) = self.casts.sizes();
        let (branches, done, silent) = self.branches.sizes();
        let (moved, served) = self.bulks.sizes();
        [
            ("book", self.book.len(), BOOK_MAX),
            ("successors", self.ring.succs().len(), SUCCESSORS),
            ("slots", self.table.len(), config::SLOTS),
            ("hops", pending, config::PENDING_MAX),
            ("lookups", lookups, config::PENDING_MAX),
            ("casts", branches, config::CASTS_MAX),
            ("casts_done", done, config::DONE_MAX),
            ("casts_seen", seen, config::SEEN_MAX),
            ("cast_sources", sources, config::SOURCES_MAX),
            ("silent", silent, config::SILENT_MAX),
            ("moved", moved, config::MOVED_MAX),
            ("served", served, config::SERVED_MAX),
            ("linked", self.links.linked.len(), LINKED_MAX),
        ]
        .into_iter()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Boot { alone } => self.boot(alone, cx),
            Command::LinkUp(peer) => self.on_link_up(&peer, cx),
            Command::LinkDown(id) => {
                self.links.down(id);
                self.ring_input(ring::Command::LinkDown(id), cx);
                self.on_way_in_closed(id, cx);
                self.child_closed(id, cx);
            }
            Command::Lookup { call, key } => self.lookup(key, LookupFor::Above(call), cx),
            Command::Cast { call, body, feedback } => {
                self.cast(body, feedback.then_some((call, config::CAST_PATIENCE)), cx);
            }
            Command::AskAll { call, body, patience } => {
                self.cast(body, Some((call, patience.min(config::BULK_PATIENCE))), cx);
            }
            Command::Bulk { arcs, reach, body, call: None } => {
                self.bulk(reach, arcs, &Load::Above(body), cx);
            }
            Command::Bulk { arcs, reach, body, call } => {
                self.start_bulk(reach, arcs, &Load::Above(body), call, cx);
            }
            Command::AnswerCast { id, part } => self.answer_cast(id, part, cx),
            Command::Remembered(set) => {
                self.remembered = set;
                self.forget_suspicions();
            }
            Command::Leave => self.ring_input(ring::Command::Leave, cx),
            Command::Learn(peer) => self.contact(&peer, cx),
            Command::Suspect(id) => {
                self.links.suspects.insert(id);
                self.forget_child(id, cx);
            }
            Command::Refuted(id) => _ = self.links.suspects.remove(&id),
            Command::Dead(id) => self.on_dead(id, cx),
            Command::Outside(id) => self.on_outside(id, cx),
            Command::Remember(peer) => {
                self.contact(&peer, cx);
                self.remember_dead(peer.id, cx);
            }
        }
    }

    fn on_link_up(&mut self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        // A higher incarnation means that the life the ring counts on is over.
        let earlier = |known: &Peer| known.inc != 0 && known.inc < peer.inc;
        let restarted = self.book.get(&peer.id).is_some_and(earlier);
        if self.ring.holds_earlier_life_of(peer) {
            self.leave_out(peer.id, cx);
        }
        if restarted {
            cx.emit(Event::Restarted(peer.id));
        }
        // It says itself where it is, whatever others still remember of this life.
        let moved = |known: &Peer| known.inc == peer.inc && known.addrs != peer.addrs;
        if self.book.get(&peer.id).is_some_and(moved) {
            self.book.insert(peer.id, peer.clone());
        }
        self.contact(peer, cx);
        self.ring.lives(peer.id);
        self.ring.refresh(peer);
        self.links.up(peer.id);
        self.entry_link_up(peer, cx);
        // Who began a ring alone and knew nobody then asks those it meets.
        self.probe_later(cx);
    }

    fn on_message(&mut self, from: NodeId, msg: Msg, cx: &mut Cx<'_, Self>) {
        if from != self.ring.me().id {
            self.ring.lives(from);
            self.branches.heard(from);
            self.links.up(from);
        }
        match msg {
            Msg::Ring(msg) => {
                for peer in msg.peers() {
                    self.contact(peer, cx);
                }
                if matches!(msg, ring::Msg::JoinRetry { .. }) && from != self.ring.me().id {
                    self.saw_ring(cx.now);
                }
                if matches!(msg, ring::Msg::LeaveGrant { .. }) {
                    self.tell_served(from, cx);
                }
                self.ring_step(Input::Message { from, msg }, cx);
            }
            Msg::Route(msg) => self.on_route(from, msg, cx),
            Msg::Cast(msg) => self.on_cast(from, msg, cx),
            Msg::Entry(msg) => self.on_entry(from, msg, cx),
            Msg::Bulk(msg) => self.on_bulk(from, msg, cx),
        }
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut Cx<'_, Self>) {
        match timer {
            Timer::Ring(timer) => self.ring_step(Input::Timer(timer), cx),
            Timer::Route(timer) => self.on_route_timer(timer, cx),
            Timer::Cast(branch) => self.on_branch_timer(branch, cx),
            Timer::Entry(timer) => self.on_entry_timer(timer, cx),
            Timer::Refresh => self.on_refresh(cx),
        }
    }

    pub(crate) fn ring_input(&mut self, command: ring::Command, cx: &mut Cx<'_, Self>) {
        if let ring::Command::JoinReq { joiner, .. } = &command {
            self.tell_served(joiner.id, cx);
        }
        self.ring_step(Input::Command(command), cx);
    }

    pub(crate) fn ring_step(&mut self, input: Input<Ring>, cx: &mut Cx<'_, Self>) {
        for event in cx.child(&mut self.ring, input, Msg::Ring, Timer::Ring) {
            match event {
                ring::Event::RouteJoin { via, op } => self.route_join(via, op, cx),
                ring::Event::Joined => {
                    self.fill(cx);
                    cx.emit(Event::Joined);
                }
                ring::Event::JoinFailed => self.on_join_failed(cx),
                ring::Event::RangeChanged => {
                    self.bulk_range_changed(cx);
                    cx.emit(Event::RangeChanged);
                }
                ring::Event::NeighboursChanged => {
                    self.update_watch(cx);
                    self.fill(cx);
                    self.probe_later(cx);
                    cx.emit(Event::NeighboursChanged);
                }
                ring::Event::Displaced { old, by } => self.merge(old, Some(by), cx),
                ring::Event::Stranded => self.on_stranded(cx),
                ring::Event::Doubt(id) => cx.emit(Event::Doubt(id)),
                ring::Event::Left => cx.emit(Event::Left),
            }
        }
    }

    /// Of somebody it never heard of an overlay has nothing to forget.
    fn on_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.links.down(id);
        self.links.suspects.remove(&id);
        if self.book.contains_key(&id) {
            self.count("deaths");
            self.remember_dead(id, cx);
            self.leave_out(id, cx);
        }
    }

    /// It lives, but not in this ring.
    fn on_outside(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.links.down(id);
        self.forget_dead(id);
        self.leave_out(id, cx);
        self.on_way_in_closed(id, cx);
    }

    /// The ring goes on without this node, or without its earlier life.
    pub(crate) fn leave_out(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let was_pred = self.ring.pred().id == id;
        self.table.remove(id);
        self.ring_input(ring::Command::Dead(id), cx);
        self.reroute(id, cx);
        self.forget_child(id, cx);
        self.update_watch(cx);
        self.fill(cx);
        if was_pred && !self.ring.alone() {
            self.lookup(id, LookupFor::Probe, cx);
        }
    }

    /// Every successor is dead: any live node will do, stabilisation finds the right one from it.
    fn on_stranded(&mut self, cx: &mut Cx<'_, Self>) {
        let me = self.ring.me().id;
        let live = |id: NodeId| !self.stranded.contains(&id) && !self.links.is_suspect(id);
        let contacts = self.table.contacts().filter(|p| live(p.id));
        let linked = self.links.linked().filter(|id| live(*id) && *id != me);
        let linked = linked.filter_map(|id| self.book.get(&id));
        let next = contacts.chain(linked).min_by_key(|p| me.distance(p.id)).cloned();
        match next {
            Some(peer) => {
                self.stranded.insert(peer.id);
                self.count("stranded");
                self.ring_input(ring::Command::Candidate(peer), cx);
            }
            None => {
                self.stranded.clear();
                self.ring_input(ring::Command::Alone, cx);
            }
        }
    }

    /// Neighbours that matter at once.
    pub(crate) fn update_watch(&mut self, cx: &mut Cx<'_, Self>) {
        let me = self.ring.me().id;
        let mut near = Set::new();
        if self.ring.is_member() {
            near.extend(self.ring.succs().iter().take(SUCCESSORS_WATCHED).map(|p| p.id));
            if !self.ring.pred_suspect() {
                near.insert(self.ring.pred().id);
            }
        }
        near.remove(&me);
        if self.ring.succ().id != me {
            self.stranded.clear();
        }
        self.near.clone_from(&near);
        self.forget_suspicions();
        cx.emit(Event::Watch(near));
    }

    /// Who is not watched any more is not suspected either.
    fn forget_suspicions(&mut self) {
        let (near, far) = (&self.near, &self.remembered);
        self.links.suspects.retain(|id| near.contains(id) || far.contains(id));
    }

    /// Looks up the slots that miss a contact, if the successor list does not reach around.
    pub(crate) fn fill(&mut self, cx: &mut Cx<'_, Self>) {
        let succs = self.ring.succs();
        let beyond = self.ring.status() == Status::Inside && self.ring.list_full();
        let Some(last) = succs.last().filter(|_| beyond).map(|p| p.id) else { return };
        let wanted = self.table.wanted(last);
        let missing = self.table.retain(&wanted);
        let busy = self.routes.slots_busy();
        for start in missing.into_iter().filter(|s| !busy.contains(s)).take(FILL) {
            self.lookup(start, LookupFor::Slot, cx);
        }
        if !self.refreshing {
            self.refreshing = true;
            cx.after(SLOT_REFRESH, Timer::Refresh);
        }
    }

    fn on_refresh(&mut self, cx: &mut Cx<'_, Self>) {
        self.refreshing = false;
        let succs = self.ring.succs();
        if self.ring.list_full() {
            let wanted = succs.last().map(|p| self.table.wanted(p.id)).unwrap_or_default();
            self.refreshed = self.refreshed.wrapping_add(1);
            if let Some(start) = wanted.get(self.refreshed % wanted.len().max(1)) {
                self.lookup(*start, LookupFor::Slot, cx);
            }
            self.fill(cx);
        }
    }

    /// Learns where a peer can be dialled; tells the driver if that is news.
    pub(crate) fn contact(&mut self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        if peer.id == self.ring.me().id {
            return;
        }
        self.table.offer(peer);
        let known = self.book.get(&peer.id);
        let news = known.is_none_or(|old| old.inc < peer.inc);
        let mut peer = peer.clone();
        if let Some(old) = known.filter(|_| !news) {
            // It moved, or others know it by another way. Where there is a session, the known one
            // is right; else what is new is tried first.
            let more = peer.addrs.iter().any(|addr| !old.addrs.contains(addr));
            if old.inc > peer.inc || !more || self.links.is_linked(peer.id) {
                return;
            }
            for addr in &old.addrs {
                // More than four are not kept.
                if !peer.addrs.contains(addr) && peer.addrs.push(*addr).is_err() {
                    break;
                }
            }
        }
        if self.book.len() >= BOOK_MAX && !self.book.contains_key(&peer.id) {
            self.forget_some(cx);
        }
        self.book.insert(peer.id, peer.clone());
        cx.emit(Event::Contact(peer));
    }

    /// Makes room in the book: a random peer that nothing here counts on.
    fn forget_some(&mut self, cx: &mut Cx<'_, Self>) {
        let needed: Set<NodeId> = self
            .ring
            .succs()
            .iter()
            .chain(core::iter::once(self.ring.pred()))
            .chain(self.table.contacts())
            .map(|p| p.id)
            .chain(self.remembered.iter().copied())
            .collect();
        let free: Vec<NodeId> =
            self.book.keys().filter(|id| !needed.contains(id)).copied().collect();
        if let Some(id) = cx.rng.choice(&free) {
            self.book.remove(id);
        }
    }
}
