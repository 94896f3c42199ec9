//! Routing to the owner of a key: the forwarding rule, greedy hops with acknowledgement and
//! alternatives, transitive lookups with end-to-end retries (PROTOCOL.md 2.5, 3.2-3.5).

use alloc::vec::Vec;
use dugnad_kernel::map::Map;
use dugnad_kernel::ops::FIRST_MAX;

use dugnad_kernel::arc::{in_oc, in_oo};
use dugnad_kernel::{Cx, Key, NodeId, Peer};
use serde::{Deserialize, Serialize};

use crate::config::LIFE_BITS;
use crate::config::{
    HOP_ALTERNATIVES, HOP_RTO, HOPS_MAX, HOPS_SPARE, K_BITS, LOOKUP, LOOKUP_ATTEMPTS, PENDING_MAX,
    SUCCESSORS,
};
use crate::overlay::ring::{self, Status};
use crate::overlay::table::closest_before;
use crate::overlay::{Event, Msg, Overlay, Timer};

/// What a routed message is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    Find,
    Join {
        op: u64,
    },
    /// Find the place of `origin`, a member of another ring that was one with this (6.3).
    Merge,
}

/// A message on its way to the owner of `key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub key: Key,
    pub purpose: Purpose,
    pub origin: Peer,
    /// The origin's own number for it.
    pub call: u32,
    pub hops: u8,
    /// The sender believes the receiver owns the key.
    pub last: bool,
    /// For the acknowledgement of this hop.
    pub seq: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteMsg {
    /// To whoever is nearer to the key; answered with `Ack` at once, and by the owner with `Found`.
    Hop(Hop),
    /// The hop of this number is here and goes on.
    Ack { seq: u32 },
    /// Straight from the owner to the origin (transitive).
    Found { call: u32, found: Found },
    /// The asked node is not a member and cannot route.
    NotInside { call: u32 },
    /// What you sent me as the owner was not mine: this node is between us (2.5, rule 5).
    SuccHint { pred: Peer },
}

/// Who answers for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub owner: Peer,
    /// The owner's successors, nearest first: who would take over.
    pub succs: Vec<Peer>,
    pub certain: bool,
    pub hops: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTimer {
    /// No acknowledgement of a hop.
    Rto { seq: u32 },
    /// One end-to-end attempt is over.
    Attempt { call: u32, attempt: u8 },
}

#[derive(Debug)]
struct Pending {
    hop: Hop,
    tried: Vec<NodeId>,
}

#[derive(Debug)]
struct Lookup {
    key: Key,
    attempt: u8,
    /// First hops of earlier attempts.
    avoid: Vec<NodeId>,
    purpose: LookupFor,
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookupFor {
    /// The layer above, under its own number.
    Above(u32),
    /// A slot of the table.
    Slot,
    /// Nobody: on its way it makes the predecessor of a dead node notice.
    Probe,
}

/// Lookups and hops under way.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    next: u32,
    pending: Map<u32, Pending>,
    lookups: Map<u32, Lookup>,
}

impl Routes {
    /// An answer to an earlier life of this node must not look like one to this.
    pub(crate) fn of_life(inc: u32) -> Self {
        Self { next: inc << LIFE_BITS, ..Self::default() }
    }

    /// Hops that wait for their acknowledgement, and lookups under way.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.pending.len(), self.lookups.len())
    }

    /// Slot starts that are being looked up.
    pub(crate) fn slots_busy(&self) -> Vec<Key> {
        let slot = |l: &&Lookup| l.purpose == LookupFor::Slot;
        self.lookups.values().filter(slot).map(|l| l.key).collect()
    }
}

enum Next {
    Deliver,
    Forward { to: NodeId, last: bool },
    Nowhere,
}

impl Overlay {
    /// The next number of a lookup or a hop. What others still say of an earlier life of this node
    /// must not be taken for something about this one.
    fn number(&mut self, cx: &mut Cx<'_, Self>) -> u32 {
        if self.routes.next == 0 {
            self.routes.next = cx.rng.clone().u32(1..FIRST_MAX);
        }
        self.routes.next = self.routes.next.wrapping_add(1);
        self.routes.next
    }

    /// Starts a lookup; the result comes as [`Event::Found`].
    pub(crate) fn lookup(&mut self, key: Key, purpose: LookupFor, cx: &mut Cx<'_, Self>) {
        if self.routes.lookups.len() >= PENDING_MAX {
            self.count("lookup_overflow");
            if let LookupFor::Above(call) = purpose {
                cx.emit(Event::Found { call, found: None });
            }
            return;
        }
        let call = self.number(cx);
        let lookup = Lookup { key, attempt: 0, avoid: Vec::new(), purpose };
        self.routes.lookups.insert(call, lookup);
        self.attempt(call, cx);
    }

    fn attempt(&mut self, call: u32, cx: &mut Cx<'_, Self>) {
        let Some(lookup) = self.routes.lookups.get_mut(&call) else { return };
        lookup.attempt += 1;
        let (key, attempt, avoid) = (lookup.key, lookup.attempt, lookup.avoid.clone());
        cx.after(LOOKUP, Timer::Route(RouteTimer::Attempt { call, attempt }));
        let hop = Hop {
            key,
            purpose: Purpose::Find,
            origin: self.ring.me().clone(),
            call,
            hops: 0,
            last: false,
            seq: 0,
        };
        if self.ring.is_member() {
            let first = self.step(hop, avoid, cx);
            if let (Some(first), Some(lookup)) = (first, self.routes.lookups.get_mut(&call)) {
                lookup.avoid.push(first);
            }
        }
    }

    /// Sends `hop` on its way from here.
    pub(crate) fn route(&mut self, hop: Hop, cx: &mut Cx<'_, Self>) {
        self.step(hop, Vec::new(), cx);
    }

    /// Asks `via`, which is inside, to route my join.
    pub(crate) fn route_join(&mut self, via: NodeId, op: u64, cx: &mut Cx<'_, Self>) {
        let me = self.ring.me().clone();
        let purpose = Purpose::Join { op };
        let hop = Hop { key: me.id, purpose, origin: me, call: 0, hops: 0, last: false, seq: 0 };
        cx.send(via, Msg::Route(RouteMsg::Hop(hop)));
    }

    pub(crate) fn on_route(&mut self, from: NodeId, msg: RouteMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            RouteMsg::Hop(hop) => {
                cx.send(from, Msg::Route(RouteMsg::Ack { seq: hop.seq }));
                if hop.hops >= self.hops_limit() {
                    self.count("hops_exceeded");
                } else if !self.ring.is_member() && self.ring.status() < Status::Joining {
                    self.count("not_inside");
                    self.not_inside(&hop, cx);
                } else {
                    self.arrived(from, hop, cx);
                }
            }
            RouteMsg::Ack { seq } => {
                self.routes.pending.remove(&seq);
            }
            RouteMsg::Found { call, found } => self.on_found(call, found, cx),
            RouteMsg::NotInside { call: 0 } => self.on_way_in_closed(from, cx),
            RouteMsg::NotInside { .. } => self.count("not_inside"),
            RouteMsg::SuccHint { pred } => {
                self.count("succ_hint");
                self.contact(&pred, cx);
                self.ring_input(ring::Command::Hint(pred), cx);
            }
        }
    }

    /// 2 log_k n + 16 (3.2): what takes longer goes in circles.
    fn hops_limit(&self) -> u8 {
        let levels = (u64::BITS - self.size().leading_zeros()).div_ceil(K_BITS);
        u8::try_from(2 * levels).unwrap_or(HOPS_MAX).saturating_add(HOPS_SPARE).min(HOPS_MAX)
    }

    fn arrived(&mut self, from: NodeId, hop: Hop, cx: &mut Cx<'_, Self>) {
        let (me, key) = (self.ring.me().id, hop.key);
        if hop.last {
            let pred = self.ring.pred();
            let misled = self.ring.redirect(key).is_none()
                && !self.ring.owns(key)
                && !self.ring.pred_suspect()
                && in_oo(from, pred.id, me);
            if misled {
                cx.send(from, Msg::Route(RouteMsg::SuccHint { pred: pred.clone() }));
            }
        } else if hop.hops > 1 && !in_oo(from, me, key) {
            // Behind the key, or not a step nearer: only successors are sure to lead there.
            self.count("routing_regress");
            let is_succ = |id: &NodeId| self.ring.succs().iter().any(|s| s.id == *id);
            let contacts = self.table.contacts().map(|p| p.id).filter(|id| !is_succ(id));
            let tried = contacts.chain([from]).collect();
            self.step(hop, tried, cx);
            return;
        }
        self.step(hop, Vec::from([from]), cx);
    }

    fn not_inside(&self, hop: &Hop, cx: &mut Cx<'_, Self>) {
        if hop.origin.id != self.ring.me().id {
            cx.send(hop.origin.id, Msg::Route(RouteMsg::NotInside { call: hop.call }));
        } else if let Purpose::Join { op } = hop.purpose {
            // The ring still counts on my earlier life and routed my join to it.
            let retry = ring::Msg::JoinRetry { op, after_ms: 300 };
            cx.send(hop.origin.id, Msg::Ring(retry));
        }
    }

    /// One step of the forwarding rule; returns where it went.
    fn step(&mut self, mut hop: Hop, tried: Vec<NodeId>, cx: &mut Cx<'_, Self>) -> Option<NodeId> {
        match self.next(&hop, &tried) {
            Next::Deliver => {
                self.deliver(hop, cx);
                None
            }
            Next::Forward { to, last } => {
                hop.seq = self.number(cx);
                hop.hops += 1;
                // Kept as it came: what the next node is told about itself is not said of me.
                let sent = Hop { last, ..hop.clone() };
                cx.send(to, Msg::Route(RouteMsg::Hop(sent)));
                if self.routes.pending.len() < PENDING_MAX {
                    cx.after(HOP_RTO, Timer::Route(RouteTimer::Rto { seq: hop.seq }));
                    let mut tried = tried;
                    tried.push(to);
                    self.routes.pending.insert(hop.seq, Pending { hop, tried });
                } else {
                    self.count("hop_overflow");
                }
                Some(to)
            }
            Next::Nowhere => {
                self.count("no_next_hop");
                None
            }
        }
    }

    /// Rules 2 to 6 of PROTOCOL.md 2.5.
    fn next(&self, hop: &Hop, tried: &[NodeId]) -> Next {
        let (me, key) = (self.ring.me().id, hop.key);
        if let Some(to) = self.ring.redirect(key) {
            return Next::Forward { to: to.id, last: true };
        }
        if self.ring.owns(key) {
            return Next::Deliver;
        }
        let pred = self.ring.pred();
        // Who wants to join is not asked to let itself in.
        let joins = matches!(hop.purpose, Purpose::Join { .. }) && pred.id == hop.origin.id;
        let lost = self.ring.pred_suspect() || joins;
        if hop.last && !lost && !tried.contains(&pred.id) {
            return Next::Forward { to: pred.id, last: true };
        }
        if hop.last && lost {
            // The owner is dead and I am next: I answer, uncertain.
            return Next::Deliver;
        }
        let succs = self.ring.succs();
        if in_oc(me, key, self.ring.succ().id) {
            // The last hop always uses the successor list; a dead owner's successor comes next.
            let asks =
                |s: &Peer| matches!(hop.purpose, Purpose::Join { .. }) && s.id == hop.origin.id;
            let usable = |s: &&Peer| !tried.contains(&s.id) && s.id != me && !asks(s);
            return match succs.iter().find(usable) {
                Some(s) => Next::Forward { to: s.id, last: true },
                // It counts as all my neighbours and says that it is outside: I come behind it.
                None if joins => Next::Deliver,
                None => Next::Nowhere,
            };
        }
        let pred = (!self.ring.pred_suspect()).then_some(pred);
        let known = succs.iter().chain(pred).chain(self.table.contacts());
        let usable =
            known.filter(|peer| !tried.contains(&peer.id) && !self.links.is_suspect(peer.id));
        match closest_before(me, key, usable) {
            Some(peer) => Next::Forward { to: peer.id, last: false },
            None => succs
                .iter()
                .find(|s| !tried.contains(&s.id) && s.id != me)
                // Behind the key it is the owner's heir, not a hop on the way.
                .map_or(Next::Nowhere, |s| Next::Forward { to: s.id, last: in_oc(me, key, s.id) }),
        }
    }

    fn deliver(&mut self, hop: Hop, cx: &mut Cx<'_, Self>) {
        match hop.purpose {
            Purpose::Join { op } => {
                let joiner = hop.origin;
                self.contact(&joiner, cx);
                self.ring_input(ring::Command::JoinReq { op, joiner }, cx);
            }
            Purpose::Merge => self.on_merge_point(hop.origin, cx),
            Purpose::Find => {
                let certain = self.ring.certain(hop.key, cx.now)
                    && !self.ring.pred_suspect()
                    && self.ring.owns(hop.key);
                let found = Found {
                    owner: self.ring.me().clone(),
                    succs: self.ring.succs().iter().take(4).cloned().collect(),
                    certain,
                    hops: hop.hops,
                };
                if hop.origin.id == self.ring.me().id {
                    self.on_found(hop.call, found, cx);
                } else {
                    self.contact(&hop.origin, cx);
                    let call = hop.call;
                    cx.send(hop.origin.id, Msg::Route(RouteMsg::Found { call, found }));
                }
            }
        }
    }

    fn on_found(&mut self, call: u32, mut found: Found, cx: &mut Cx<'_, Self>) {
        found.succs.truncate(SUCCESSORS);
        let Some(lookup) = self.routes.lookups.remove(&call) else {
            self.count("late_answer");
            return;
        };
        self.contact(&found.owner, cx);
        for succ in &found.succs {
            self.contact(succ, cx);
        }
        match lookup.purpose {
            LookupFor::Above(call) => cx.emit(Event::Found { call, found: Some(found) }),
            LookupFor::Slot => self.table.set(lookup.key, found.owner),
            LookupFor::Probe => {}
        }
    }

    pub(crate) fn on_route_timer(&mut self, timer: RouteTimer, cx: &mut Cx<'_, Self>) {
        match timer {
            RouteTimer::Rto { seq } => {
                let Some(pending) = self.routes.pending.remove(&seq) else { return };
                self.count("hop_timeout");
                if let Some(silent) = pending.tried.last().copied() {
                    cx.emit(Event::Doubt(silent));
                }
                if pending.tried.len() <= HOP_ALTERNATIVES + 1 {
                    self.step(pending.hop, pending.tried, cx);
                }
            }
            RouteTimer::Attempt { call, attempt } => self.on_attempt_over(call, attempt, cx),
        }
    }

    fn on_attempt_over(&mut self, call: u32, attempt: u8, cx: &mut Cx<'_, Self>) {
        let Some(lookup) = self.routes.lookups.get(&call) else { return };
        if lookup.attempt != attempt {
            return;
        }
        if attempt < LOOKUP_ATTEMPTS {
            self.attempt(call, cx);
            return;
        }
        self.count("lookup_failed");
        if let Some(lookup) = self.routes.lookups.remove(&call) {
            if let LookupFor::Above(call) = lookup.purpose {
                cx.emit(Event::Found { call, found: None });
            }
        }
    }

    /// A dead peer's hops go another way at once, without waiting for the timer.
    pub(crate) fn reroute(&mut self, dead: NodeId, cx: &mut Cx<'_, Self>) {
        let waits = |p: &Pending| p.tried.last() == Some(&dead);
        let seqs: Vec<u32> =
            self.routes.pending.iter().filter(|(_, p)| waits(p)).map(|(s, _)| *s).collect();
        for seq in seqs {
            if let Some(pending) = self.routes.pending.remove(&seq) {
                self.step(pending.hop, pending.tried, cx);
            }
        }
    }
}

#[cfg(test)]
mod tests;
