//! The records one node holds, and how it answers for them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dugnad_kernel::{Arc, Cx, Key, NodeId, Peer};

use super::put;
use super::record::{
    AUTHOR_BYTES_MAX, AUTHOR_MAX, COPIES, DEGREE, Name, RECORDS_MAX, Record, STORE_BYTES_MAX,
    Version, belongs, class, disk_key, owns,
};
use crate::{Collective, Event, Request, Response, step_of_kind};

/// What the ring says about this node.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// `None` while it is not a member.
    pub range: Option<Arc>,
    pub succs: Vec<Peer>,
    /// Estimated size of the community.
    pub size: u64,
}

/// Nodes between an owner and who holds its copies: one, and two that may have died unnoticed.
const BETWEEN: usize = COPIES + 1;
/// An owner lies so many average distances before who holds its copies at most: a random ring has
/// such a gap once in 10^12.
const GAPS: u128 = 32;

impl Place {
    /// Whether `from` may own a place of `key` and `me` hold its copies. Nobody knows all of the
    /// ring, so this refuses what cannot be, and lets through some that is not.
    pub(crate) fn may_copy(&self, me: NodeId, from: NodeId, key: Key) -> bool {
        let Some(range) = self.range else { return true };
        if from.distance(me) / GAPS > u128::MAX / u128::from(self.size.max(1)) {
            return false;
        }
        // In a small ring the one before is among those that follow.
        let pred = Some(range.lo).filter(|pred| self.succs.iter().all(|peer| peer.id != *pred));
        let known = || self.succs.iter().map(|peer| peer.id).chain(pred);
        (0..DEGREE).map(|x| class(key, x)).any(|at| {
            let before = |id: &NodeId| at.distance(*id) < at.distance(me);
            let others = known().filter(|id| *id != me && *id != from);
            before(&from) && others.filter(before).count() <= BETWEEN
        })
    }
}

#[derive(Debug, Default)]
pub struct Store {
    pub(crate) records: BTreeMap<Name, Record>,
    /// Bytes of all names and values.
    bytes: usize,
    /// Which successor holds copies of which range of mine.
    pub(crate) synced: BTreeMap<NodeId, Arc>,
    pub(crate) sync_planned: bool,
}

impl Store {
    #[must_use]
    pub fn get(&self, key: Key, name: &[u8]) -> Option<&Record> {
        // A tuple key needs an owned name; names are a few bytes.
        self.records.get(&(key, name.to_vec()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Takes over what lay on disk.
    pub(crate) fn restore(&mut self, records: Vec<Record>) {
        for record in records {
            self.insert(record);
        }
    }

    fn insert(&mut self, record: Record) {
        self.bytes += record.bytes();
        if let Some(old) = self.records.insert(record.id(), record) {
            self.bytes -= old.bytes();
        }
    }

    /// Whether `record` may be added, or put in the place of an older version.
    fn has_room(&self, record: &Record) -> bool {
        let old = self.records.get(&record.id());
        let bytes = self.bytes - old.map_or(0, Record::bytes) + record.bytes();
        let grows = old.is_none_or(|old| old.bytes() < record.bytes());
        let fits = bytes <= STORE_BYTES_MAX || !grows;
        fits && (old.is_some() || self.records.len() < RECORDS_MAX)
    }

    /// Whether the author may have so much here: a share, so that one alone cannot fill the store.
    fn has_room_for(&self, author: NodeId, record: &Record) -> bool {
        // Counted only when there is much of it: most stores are nearly empty.
        if self.bytes + record.bytes() <= AUTHOR_BYTES_MAX && self.records.len() < AUTHOR_MAX {
            return true;
        }
        let others = self.records.values().filter(|other| other.id() != record.id());
        let own = others.filter(|other| other.version.author == author);
        let (count, bytes) =
            own.fold((1, record.bytes()), |(count, bytes), o| (count + 1, bytes + o.bytes()));
        count <= AUTHOR_MAX && bytes <= AUTHOR_BYTES_MAX
    }

    /// Bytes of all names and values.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The version a new write must have to win here.
    #[must_use]
    pub fn next_version(&self, key: Key, name: &[u8], author: NodeId) -> Version {
        let known = self.get(key, name).map_or(0, |record| record.version.counter);
        Version { counter: known.saturating_add(1), author }
    }
}

/// How a write met what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    New,
    /// The same or a newer version is here already.
    Old,
    /// Out of bounds, or no room.
    Refused,
}

impl Collective {
    /// Last writer wins.
    pub(crate) fn apply(&mut self, record: &Record, cx: &mut Cx<'_, Self>) -> Applied {
        let known = self.store.records.get(&record.id()).map(|known| known.version);
        if !record.fits() {
            self.count("record_out_of_bounds");
            return Applied::Refused;
        }
        let Some(step) = step_of_kind(&record.name) else {
            self.count("record_of_unknown_kind");
            return Applied::Refused;
        };
        let counter = known.map_or(0, |known| known.counter);
        if record.version.counter > counter.saturating_add(step) {
            self.count("version_out_of_bounds");
            return Applied::Refused;
        }
        if known.is_some_and(|known| known >= record.version) {
            return Applied::Old;
        }
        if !self.store.has_room(record) {
            self.count("store_full");
            return Applied::Refused;
        }
        if !self.store.has_room_for(record.version.author, record) {
            self.count("author_full");
            return Applied::Refused;
        }
        self.store.insert(record.clone());
        self.on_record_changed(record, cx);
        Applied::New
    }

    /// Whether `from` may bring a record of this key here: to one of its owners, or as one.
    fn may_bring(&mut self, from: NodeId, key: Key) -> bool {
        let may = self.owns_class_of(key) || self.place.may_copy(self.me, from, key);
        if !may {
            self.count("copy_of_a_stranger");
        }
        may
    }

    /// What another node brings in a sync.
    pub(crate) fn on_items(
        &mut self,
        from: NodeId,
        mut records: Vec<Record>,
        cx: &mut Cx<'_, Self>,
    ) {
        records.retain(|record| self.may_bring(from, record.key));
        self.take_in(&records, cx);
    }

    /// A write that nobody waits for.
    pub(crate) fn take_in(&mut self, records: &[Record], cx: &mut Cx<'_, Self>) {
        let mut writes = Vec::new();
        for record in records {
            if self.apply(record, cx) == Applied::New {
                writes.push((disk_key(record.key, &record.name), encode(record)));
            }
        }
        if !writes.is_empty() {
            let token = self.next_token();
            cx.emit(Event::Persist { token, writes });
        }
    }

    pub(crate) fn owns_class_of(&self, key: Key) -> bool {
        self.place.range.is_some_and(|range| belongs(key, &range))
    }

    pub(crate) fn on_put(
        &mut self,
        from: NodeId,
        call: u32,
        record: Record,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.owns_class_of(record.key) {
            self.respond(from, call, Response::NotOwner, cx);
            return;
        }
        match self.apply(&record, cx) {
            Applied::Refused => self.respond(from, call, Response::Refused, cx),
            // An older write is as good as done; a repeated one is stored again to be sure.
            Applied::Old | Applied::New => {
                let (me, copies) = (self.me, self.copy_holders());
                let newest = self.store.records.get(&record.id()).cloned().unwrap_or(record);
                let mine = |x: &u32| self.place.range.is_some_and(|r| owns(&r, newest.key, *x));
                let places = (0..DEGREE).filter(mine).fold(0, |mask, x| mask | (1 << x));
                let op = |asker| put::accept(asker, me, newest, copies, places, (from, call));
                self.start("accept put", op, cx);
            }
        }
    }

    /// A put by somebody who must know what was there before: of two at once, the owner of the key
    /// takes the one that comes first.
    fn on_claim(
        &mut self,
        from: NodeId,
        call: u32,
        record: Record,
        expected: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.place.range.is_some_and(|range| owns(&range, record.key, 0)) {
            self.respond(from, call, Response::NotOwner, cx);
            return;
        }
        let known = self.store.records.get(&record.id());
        let counter = known.map_or(0, |known| known.version.counter);
        // A question that comes twice is answered twice.
        let again = known.is_some_and(|known| *known == record);
        if counter == expected || again {
            self.on_put(from, call, record, cx);
        } else {
            let taken = Response::Taken(known.cloned());
            self.respond(from, call, taken, cx);
        }
    }

    pub(crate) fn copy_holders(&self) -> Vec<NodeId> {
        let others = self.place.succs.iter().map(|p| p.id).filter(|id| *id != self.me);
        others.take(COPIES).collect()
    }

    pub(crate) fn on_copy(
        &mut self,
        from: NodeId,
        call: u32,
        record: Record,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.may_bring(from, record.key) {
            self.respond(from, call, Response::Refused, cx);
            return;
        }
        match self.apply(&record, cx) {
            Applied::Refused => self.respond(from, call, Response::Refused, cx),
            Applied::Old | Applied::New => {
                let newest = self.store.records.get(&record.id()).cloned().unwrap_or(record);
                self.start("copy", |asker| put::copy(asker, newest, from, call), cx);
            }
        }
    }

    pub(crate) fn on_request(
        &mut self,
        from: NodeId,
        call: u32,
        request: Request,
        cx: &mut Cx<'_, Self>,
    ) {
        match request {
            Request::Put(record) => self.on_put(from, call, record, cx),
            Request::Copy(record) => self.on_copy(from, call, record, cx),
            Request::Get((key, name)) => {
                let response = if self.owns_class_of(key) {
                    Response::Get(self.store.get(key, &name).cloned())
                } else {
                    Response::NotOwner
                };
                self.respond(from, call, response, cx);
            }
            Request::Query { service, seen } => self.on_query(from, call, service, seen, cx),
            Request::Why { service } => self.on_why(from, call, service, cx),
            Request::Decide { key, decide } => self.on_decide(from, call, key, decide, cx),
            Request::Recall { key } => self.on_recall(from, call, key, cx),
            Request::Claim { record, expected } => self.on_claim(from, call, record, expected, cx),
        }
    }
}

pub(crate) fn encode(record: &Record) -> Option<Vec<u8>> {
    // Plain data into memory cannot fail; `None` would delete, which a later sync repairs.
    postcard::to_allocvec(record).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    /// A ring of `count` nodes, in order.
    fn ring(count: usize, rng: &mut fastrand::Rng) -> Vec<NodeId> {
        let mut ids: Vec<NodeId> = (0..count).map(|_| Id(rng.u128(..))).collect();
        ids.sort_unstable();
        ids
    }

    /// What the node at `at` knows, with as many dead ones in its list as the check allows for.
    fn place(ids: &[NodeId], at: usize, rng: &mut fastrand::Rng) -> Place {
        let count = ids.len();
        let id = |step: usize| ids[(at + step) % count];
        let mut succs: Vec<Peer> = (1..count.min(13)).map(|step| Peer::new(id(step))).collect();
        succs.extend((0..2).map(|_| Peer::new(Id(rng.u128(..)))));
        let size = u64::try_from(count).unwrap_or(1) * rng.u64(3..30) / 10;
        Place { range: Some(Arc::new(id(count - 1), ids[at])), succs, size }
    }

    #[test]
    fn copies_of_owners_are_taken() {
        let mut rng = fastrand::Rng::with_seed(12);
        for count in (2..40).chain([100, 300]) {
            let ids = ring(count, &mut rng);
            for _ in 0..50 {
                let (at, key) = (rng.usize(0..count), Id(rng.u128(..)));
                let place = place(&ids, at, &mut rng);
                for step in 1..=COPIES.min(count - 1) {
                    let owner = (at + count - step) % count;
                    let range = Arc::new(ids[(owner + count - 1) % count], ids[owner]);
                    if belongs(key, &range) {
                        assert!(place.may_copy(ids[at], ids[owner], key), "{count} nodes");
                    }
                }
            }
        }
    }

    #[test]
    fn few_copies_of_others_are_taken() {
        let mut rng = fastrand::Rng::with_seed(13);
        let ids = ring(200, &mut rng);
        let mut taken = 0;
        for _ in 0..1_000 {
            let (at, from) = (rng.usize(0..200), rng.usize(0..200));
            let place = place(&ids, at, &mut rng);
            taken += u32::from(place.may_copy(ids[at], ids[from], Id(rng.u128(..))));
        }
        assert!(taken < 200, "{taken} of 1000");
    }
}
