//! What must hold (PROTOCOL.md 2.8, 12.5), looked at after every event of the node it touched.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dugnad_connectivity::config::{T_LOCK, T_UNSURE};
use dugnad_connectivity::ring::{self, Ring, Status};
use dugnad_connectivity::route::RouteMsg;
use dugnad_connectivity::{Connectivity, Msg, overlay};
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Duration, Key, NodeId, Time};

use super::{Watch, World};
use crate::net::mix;

/// How long the past membership is kept to judge answers, beyond any lookup.
const MEMORY: Duration = Duration::from_secs(60);
/// How long after a disturbance ownership may be doubtful.
const CALM: Duration = Duration::from_secs(T_LOCK.as_secs() + T_UNSURE.as_secs());

/// Who makes a claim on a part of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claimant {
    Node,
    /// A join or leave point on its way, by its operation.
    Point(u64),
}

pub struct Checks {
    watch: Watch,
    wrong: Option<String>,
    /// The whole ring is looked at, too: one ring, everybody connected.
    pub one_ring: bool,
    /// Ownership is a partition at every step.
    pub own: bool,
    /// Keep messages for replays.
    pub replays: bool,
    /// Lower ends of the claims, by upper end (the id of the node).
    claims: BTreeMap<NodeId, Vec<(Claimant, NodeId)>>,
    /// Upper ends of claims that do not begin where the one before ends.
    gaps: BTreeSet<NodeId>,
    /// Nodes that answer for something, and when that changed lately.
    members: BTreeSet<NodeId>,
    changes: VecDeque<(Time, NodeId, bool)>,
    /// Ownership may be doubtful until then.
    calm_at: Time,
    principals: BTreeSet<NodeId>,
    parted: bool,
    pub steps: u64,
    pub changes_seen: u64,
    pub last_change: Option<(Time, NodeId)>,
    /// Rare things that happened, by name.
    pub sometimes: BTreeMap<&'static str, u64>,
}

/// What a node's ring looked like after its last step, and since when its lock is held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    print: u64,
    /// The operation, and since when it has the lock.
    locked: Option<(u64, Time)>,
}

impl Checks {
    #[must_use]
    pub fn new(watch: Watch) -> Self {
        Self {
            watch,
            wrong: None,
            one_ring: false,
            own: false,
            replays: false,
            claims: BTreeMap::new(),
            gaps: BTreeSet::new(),
            members: BTreeSet::new(),
            changes: VecDeque::new(),
            calm_at: Time(0),
            principals: BTreeSet::new(),
            parted: false,
            steps: 0,
            changes_seen: 0,
            last_change: None,
            sometimes: BTreeMap::new(),
        }
    }

    /// The first thing that was wrong.
    #[must_use]
    pub fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    pub fn is_wrong(&mut self, now: Time, what: String) {
        if self.wrong.is_none() {
            self.wrong = Some(format!("{:.6} s: {what}", now.0 as f64 / 1e6));
        }
    }

    /// Something failed: for a while nodes may disagree about who owns what.
    pub fn disturbed(&mut self, now: Time) {
        self.calm_at = self.calm_at.max(now + CALM);
    }

    /// Something was cut: until the ring is known to be one again, there may be several.
    pub fn parted(&mut self, now: Time) {
        self.disturbed(now);
        self.parted = true;
    }

    /// The ring was seen to be ideal.
    pub const fn whole(&mut self) {
        self.parted = false;
    }

    #[must_use]
    pub fn members(&self) -> &BTreeSet<NodeId> {
        &self.members
    }

    /// Whether `owner` was the first member at or after `key` at some instant since `since`.
    #[must_use]
    pub fn owned(&self, owner: NodeId, key: Key, since: Time) -> bool {
        let mut back: BTreeMap<NodeId, bool> = BTreeMap::new();
        let mut owns = self.is_owner(owner, key, &back);
        for (at, id, joined) in self.changes.iter().rev() {
            if owns || *at < since {
                break;
            }
            back.insert(*id, !joined);
            owns = self.is_owner(owner, key, &back);
        }
        owns
    }

    /// With some nodes put back as they were earlier.
    fn is_owner(&self, owner: NodeId, key: Key, back: &BTreeMap<NodeId, bool>) -> bool {
        let is_member =
            |id: &NodeId| back.get(id).copied().unwrap_or_else(|| self.members.contains(id));
        if !is_member(&owner) {
            return false;
        }
        // Nobody else between the key and the owner.
        let between = |id: &NodeId| *id != owner && key.distance(*id) < key.distance(owner);
        let was = back.iter().any(|(id, member)| *member && between(id));
        let after = self.members.range(key..).chain(self.members.range(..key));
        let nearest = after.take_while(|id| between(id)).any(is_member);
        !was && !nearest
    }

    fn claim(&mut self, hi: NodeId, who: Claimant, lo: Option<NodeId>) {
        let entry = self.claims.entry(hi).or_default();
        entry.retain(|(claimant, _)| *claimant != who);
        entry.extend(lo.map(|lo| (who, lo)));
        if entry.is_empty() {
            self.claims.remove(&hi);
        }
        let next = self.claims.range((std::ops::Bound::Excluded(hi), std::ops::Bound::Unbounded));
        let next = next.chain(self.claims.iter()).next().map(|(id, _)| *id);
        for id in [Some(hi), next].into_iter().flatten() {
            if self.joins_up(id) {
                self.gaps.remove(&id);
            } else {
                self.gaps.insert(id);
            }
        }
    }

    /// Whether the claim up to `hi`, if there is one, begins where the one before ends.
    fn joins_up(&self, hi: NodeId) -> bool {
        let Some(entry) = self.claims.get(&hi) else { return true };
        let before = self.claims.range(..hi).next_back().or_else(|| self.claims.last_key_value());
        matches!((entry.as_slice(), before), ([(_, lo)], Some((before, _))) if lo == before)
    }

    pub fn happened(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

    fn rare(&mut self, msg: &ring::Msg) {
        match msg {
            ring::Msg::JoinRetry { .. } => self.happened("join_retry"),
            ring::Msg::LeaveRetry { .. } => self.happened("leave_retry"),
            ring::Msg::Moved { .. } => self.happened("moved"),
            _ => {}
        }
    }

    /// A point that is on its way carries a claim.
    pub(super) fn sent(&mut self, from: NodeId, to: NodeId, msg: &Msg, now: Time) {
        if self.watch == Watch::Off {
            return;
        }
        if let Msg::Overlay(overlay::Msg::Ring(msg)) = msg {
            self.rare(msg);
        }
        match msg {
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::JoinPoint { op, pred, .. })) => {
                self.claim(to, Claimant::Point(*op), Some(pred.id));
            }
            Msg::Overlay(overlay::Msg::Ring(ring::Msg::LeavePoint { op, pred })) => {
                self.claim(from, Claimant::Point(*op), Some(pred.id));
            }
            Msg::Overlay(overlay::Msg::Route(RouteMsg::Hop(hop)))
                if !hop.last && hop.hops > 1 && !in_oo(from, to, hop.key) =>
            {
                let (from, to) = (from.short(), to.short());
                self.is_wrong(now, format!("I5: {from} -> {to} overshoots: {hop:?}"));
            }
            _ => {}
        }
    }

    pub(super) fn arrived(&mut self, msg: &Msg) {
        let (
            Msg::Overlay(overlay::Msg::Ring(
                ring::Msg::JoinPoint { op, .. } | ring::Msg::LeavePoint { op, .. },
            )),
            true,
        ) = (msg, self.watch != Watch::Off)
        else {
            return;
        };
        let who = Claimant::Point(*op);
        let carries = |entry: &Vec<(Claimant, NodeId)>| entry.iter().any(|(c, _)| *c == who);
        let hi = self.claims.iter().find(|(_, entry)| carries(entry)).map(|(hi, _)| *hi);
        if let Some(hi) = hi {
            self.claim(hi, who, None);
        }
    }

    /// A message was lost with its session.
    pub(super) fn lost(&mut self, msg: &Msg) {
        self.arrived(msg);
    }

    pub(super) fn stopped(&mut self, id: NodeId, now: Time) {
        self.member(id, None, now);
    }

    fn member(&mut self, id: NodeId, claim: Option<NodeId>, now: Time) {
        if self.watch != Watch::Off {
            self.claim(id, Claimant::Node, claim);
        }
        let changed = match claim {
            Some(_) => self.members.insert(id),
            None => self.members.remove(&id),
        };
        if claim == Some(id) && changed && self.members.len() > 1 {
            // Nobody let it in, or it knew nobody: a second ring until they are merged.
            self.happened("second_ring");
            self.parted(now);
        }
        if changed {
            self.changes.push_back((now, id, claim.is_some()));
            while self.changes.front().is_some_and(|(at, _, _)| now.since(*at) > MEMORY) {
                self.changes.pop_front();
            }
        }
    }
}

/// What of a ring's state the invariants depend on.
fn print(ring: &Ring) -> u64 {
    let word = |id: NodeId| id.0 as u64 ^ (id.0 >> 64) as u64;
    let (jf, lf) = ring.forwards();
    let flags = [jf, lf, ring.pred_suspect()].map(u64::from);
    let flags = flags.into_iter().chain([ring.lock().unwrap_or(0)]);
    let head = [ring.status() as u64, word(ring.pred().id)];
    let succs = ring.succs().iter().map(|peer| word(peer.id));
    head.into_iter().chain(flags).chain(succs).fold(7, mix)
}

impl World {
    /// A node handled something.
    pub(super) fn touched(&mut self, number: u32) {
        let machine = &self.nodes[number as usize];
        let Some(overlay) = machine.overlay.as_deref() else { return };
        let (id, ring) = (machine.id, overlay.ring());
        let print = print(ring);
        let seen = machine.seen;
        if print != seen.print {
            self.checks.changes_seen += 1;
            self.checks.last_change = Some((self.now, id));
            let held = ring.lock();
            let known = seen.locked.filter(|(op, _)| held == Some(*op));
            let locked = known.or(held.map(|op| (op, self.now)));
            // A lease ends to the microsecond; nothing else does.
            if known.is_none() && seen.locked.is_some_and(|(_, at)| self.now == at + T_LOCK) {
                self.checks.happened("lock_expired");
                self.checks.disturbed(self.now);
            }
            let claim = ring.claim().map(|_| ring.pred().id);
            let wrong = list_order(ring).or_else(|| forwards(ring));
            self.nodes[number as usize].seen = Seen { print, locked };
            self.checks.member(id, claim, self.now);
            if let Some(wrong) = wrong {
                self.checks.is_wrong(self.now, format!("{}: {wrong}", id.short()));
            }
            if self.checks.watch == Watch::Every {
                self.check_rings();
            }
        }
        if self.checks.watch == Watch::Off {
            return;
        }
        self.checks.steps += 1;
        self.check_lock(number);
        let full = self.overlay(number).and_then(over_cap);
        if let Some(full) = full {
            self.checks.is_wrong(self.now, format!("I13: {}: {full}", id.short()));
        }
        self.check_ownership(number);
    }

    fn check_lock(&mut self, number: u32) {
        let machine = &self.nodes[number as usize];
        let Some((_, since)) = machine.seen.locked else { return };
        // What a paused node did not get to do is not its fault.
        let busy = machine.slow_us > 0 || machine.busy_until > since;
        if !busy && self.now.since(since) > T_LOCK + Duration::from_millis(1) {
            let name = machine.id.short();
            self.checks.is_wrong(self.now, format!("I3: {name} is locked since {since:?}"));
        }
    }

    fn check_ownership(&mut self, number: u32) {
        let checks = &self.checks;
        if !checks.own || checks.parted || self.now < checks.calm_at || checks.gaps.is_empty() {
            return;
        }
        let name = self.id(number).short();
        let gap = checks.gaps.iter().next().map(|hi| (*hi, checks.claims.get(hi)));
        let what = format!("I-OWN after a step of {name}: claim up to {gap:?}");
        self.checks.is_wrong(self.now, what);
    }

    /// Z1, Z4, Z5: everybody has a live successor, there is one ring, and all are on it or lead
    /// to it. Z6, principals only become fewer by going, is counted only: a list put together
    /// from a leaver's and one's own, or from others' that know less, can skip somebody for a
    /// round. (Z2, at least r + 1 of them, is what the faults must leave.)
    fn check_rings(&mut self) {
        if !self.checks.one_ring || self.checks.parted {
            self.checks.principals.clear();
            return;
        }
        if let Err(wrong) = self.one_ring() {
            self.checks.is_wrong(self.now, wrong);
        }
        let principals = self.principals();
        let before = std::mem::replace(&mut self.checks.principals, principals);
        let gone =
            |id: &NodeId| !self.checks.principals.contains(id) && self.checks.members.contains(id);
        if before.iter().any(gone) {
            self.checks.happened("principal_skipped");
        }
    }

    /// # Errors
    /// The first of Z1, Z4 and Z5 that does not hold.
    pub fn one_ring(&self) -> Result<(), String> {
        let alive = self.alive_by_id();
        let member =
            |(_, n): &(NodeId, u32)| self.overlay(*n).is_some_and(|o| o.ring().is_member());
        let members: Vec<(NodeId, u32)> = alive.into_iter().filter(member).collect();
        let place = |id: NodeId| members.binary_search_by_key(&id, |(id, _)| *id).ok();
        let mut best = Vec::new();
        for (id, number) in &members {
            let Some(overlay) = self.overlay(*number) else { continue };
            let live = overlay.ring().succs().iter().find_map(|peer| place(peer.id));
            best.push(live.ok_or_else(|| format!("Z1: no successor of {} lives", id.short()))?);
        }
        // From anywhere, after as many steps as there are members, one is on a ring.
        let mut on_ring = vec![false; members.len()];
        let Some(mut at) = (!members.is_empty()).then_some(0) else { return Ok(()) };
        for _ in 0..members.len() {
            at = best[at];
        }
        while !on_ring[at] {
            on_ring[at] = true;
            let (me, _) = members[at];
            let (next, _) = members[best[at]];
            let skipped = (0..members.len())
                .find(|other| on_ring[*other] && in_oo(me, members[*other].0, next));
            if let Some(other) = skipped {
                let other = members[other].0.short();
                return Err(format!("Z4: {} skips {other} of the ring", me.short()));
            }
            at = best[at];
        }
        for start in 0..members.len() {
            let mut at = start;
            let mut steps = 0;
            while !on_ring[at] {
                at = best[at];
                steps += 1;
                if steps > members.len() {
                    let name = members[start].0.short();
                    return Err(format!("Z4, Z5: {name} does not lead to the ring"));
                }
            }
        }
        Ok(())
    }

    /// Members that no list skips (Zave's principals).
    #[must_use]
    pub fn principals(&self) -> BTreeSet<NodeId> {
        let alive = self.alive();
        let rings = alive.iter().filter_map(|n| Some(self.overlay(*n)?.ring()));
        let lists: Vec<Vec<NodeId>> = rings
            .filter(|ring| ring.is_member())
            .map(|ring| {
                let list = ring.succs().iter().map(|peer| peer.id);
                std::iter::once(ring.me().id).chain(list).collect()
            })
            .collect();
        let skipped = |id: NodeId| {
            lists.iter().any(|list| {
                list.windows(2).any(|two| in_oo(two[0], id, two[1]) && two[0] != two[1])
            })
        };
        lists.iter().map(|list| list[0]).filter(|id| !skipped(*id)).collect()
    }

    /// Everybody inside, neighbours and lists exact, nobody suspected or locked (PROTOCOL.md 2.8).
    ///
    /// # Errors
    /// The first thing that is not so.
    pub fn ideal(&self) -> Result<(), String> {
        let alive = self.alive_by_id();
        let count = alive.len();
        for (place, (id, number)) in alive.iter().enumerate() {
            let Some(overlay) = self.overlay(*number) else { continue };
            let (ring, name) = (overlay.ring(), id.short());
            if ring.status() != Status::Inside || ring.locked() {
                return Err(format!("{name} is {:?}, locked: {}", ring.status(), ring.locked()));
            }
            let at = |step: usize| alive[(place + step) % count].0;
            if ring.pred().id != at(count - 1) || ring.pred_suspect() {
                let (pred, real) = (ring.pred().id.short(), at(count - 1).short());
                return Err(format!("{name}: predecessor {pred}, not {real}"));
            }
            let list = ring.succs().iter().map(|peer| peer.id);
            let reach = ring.length().min(count - 1).max(1);
            if !list.clone().eq((1..=reach).map(at)) {
                let list: Vec<String> = list.map(|id| id.short().to_string()).collect();
                return Err(format!("{name}: successors {list:?}, not {}..", at(1).short()));
            }
        }
        Ok(())
    }
}

/// Z3: in order, no duplicates, not myself unless alone.
fn list_order(ring: &Ring) -> Option<String> {
    let (me, list) = (ring.me().id, ring.succs());
    let alone = list.len() == 1 && ring.succ().id == me;
    let ordered = list.windows(2).all(|two| in_oo(me, two[0].id, two[1].id));
    let myself = list.iter().any(|peer| peer.id == me);
    let fine = alone || (ordered && !myself && !list.is_empty());
    (!fine).then(|| format!("Z3: successor list {list:?}"))
}

/// I3: forwarding flags only under a lock, never both.
fn forwards(ring: &Ring) -> Option<String> {
    let (jf, lf) = ring.forwards();
    let fine = !jf || (!lf && ring.locked());
    (!fine).then(|| format!("I3: forwards {jf} {lf}, locked {}", ring.locked()))
}

fn over_cap(overlay: &Connectivity) -> Option<String> {
    let mut sizes = overlay.sizes();
    sizes
        .find(|(_, size, cap)| size > cap)
        .map(|(name, size, cap)| format!("{size} {name} of {cap}"))
}
