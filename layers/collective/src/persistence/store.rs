//! The records one node holds, and how it answers for them.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Ref, RefCell, RefMut};

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Key, NodeId, Time, hlc};

use super::put;
use super::record::{
    AUTHOR_BYTES_MAX, AUTHOR_MAX, DEGREE, Name, RECORDS_MAX, Record, STORE_BYTES_MAX,
    TOMBSTONE_KEPT, Version, owns,
};
use super::{Event, Persistence, Request, Response, Versions};

/// Tombstones forgotten at a time.
const FORGET_MAX: usize = 256;

#[derive(Debug, Default)]
pub struct Store {
    pub(crate) records: BTreeMap<Name, Record>,
    /// Bytes of all names and values.
    bytes: usize,
}

/// The records that lie here, to read. Only [`Persistence`] writes them, and nobody holds what it
/// reads beyond one input.
#[derive(Clone, Debug, Default)]
pub struct Records(Rc<RefCell<Store>>);

impl Records {
    #[must_use]
    pub fn read(&self) -> Ref<'_, Store> {
        self.0.borrow()
    }

    pub(crate) fn write(&self) -> RefMut<'_, Store> {
        self.0.borrow_mut()
    }

    #[must_use]
    pub fn get(&self, key: Key, name: &[u8]) -> Option<Record> {
        self.read().get(key, name).cloned()
    }
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

    fn remove(&mut self, names: &[Name]) {
        for name in names {
            if let Some(old) = self.records.remove(name) {
                self.bytes -= old.bytes();
            }
        }
    }

    /// What lies under one key, by name.
    pub fn under(&self, key: Key) -> impl Iterator<Item = &Record> {
        let from: Name = (key, Vec::new());
        let under = self.records.range(from..).map(|(_, record)| record);
        under.take_while(move |record| record.key == key)
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

impl Persistence {
    /// Last writer wins.
    pub(crate) fn apply(&mut self, record: &Record, cx: &mut Cx<'_, Self>) -> Applied {
        let known = self.records.read().get(record.key, &record.name).map(|known| known.version);
        if !record.fits() {
            self.count("record_out_of_bounds");
            return Applied::Refused;
        }
        if let Some(why) = self.version_refused(record, known, cx.now) {
            self.count(why);
            return Applied::Refused;
        }
        if known.is_some_and(|known| known >= record.version) {
            return Applied::Old;
        }
        if !self.records.read().has_room(record) {
            self.count("store_full");
            return Applied::Refused;
        }
        if !self.records.read().has_room_for(record.version.author, record) {
            self.count("author_full");
            return Applied::Refused;
        }
        self.records.write().insert(record.clone());
        cx.emit(Event::Changed(record.id()));
        Applied::New
    }

    /// What is wrong with the version of a record, by its kind.
    fn version_refused(
        &self,
        record: &Record,
        known: Option<Version>,
        now: Time,
    ) -> Option<&'static str> {
        let counter = record.version.counter;
        match (self.versions_of)(&record.name) {
            None => Some("record_of_unknown_kind"),
            Some(Versions::Counted { step }) => {
                let known = known.map_or(0, |known| known.counter);
                (counter > known.saturating_add(step)).then_some("version_out_of_bounds")
            }
            Some(Versions::Stamped) if self.clock.is_ahead(counter, now) => {
                Some("stamp_of_the_future")
            }
            Some(Versions::Stamped) => self.is_old(record, now).then_some("tombstone_too_old"),
        }
    }

    /// A tombstone that everybody who is to hear of it has heard of.
    fn is_old(&self, record: &Record, now: Time) -> bool {
        let kept = u64::try_from(TOMBSTONE_KEPT.as_millis()).unwrap_or(u64::MAX);
        let stamped = (self.versions_of)(&record.name) == Some(Versions::Stamped);
        let until = hlc::millis(record.version.counter).saturating_add(kept);
        stamped && record.value.is_none() && self.clock.unix_ms(now).is_some_and(|ms| ms > until)
    }

    /// Forgets tombstones that are old enough.
    pub(crate) fn forget_tombstones(&mut self, cx: &mut Cx<'_, Self>) {
        let store = self.records.read();
        let old = store.iter().filter(|record| self.is_old(record, cx.now));
        let old: Vec<Name> = old.map(Record::id).take(FORGET_MAX).collect();
        drop(store);
        if !old.is_empty() {
            self.records.write().remove(&old);
            let writes = old.into_iter().map(|name| (name, None)).collect();
            cx.emit(Event::Persist { token: None, writes });
        }
    }

    /// Whether `from` may bring a record of this key here: to one of its owners, or as one.
    fn may_bring(&mut self, from: NodeId, key: Key) -> bool {
        let may = self.position.owns_class_of(key) || self.position.may_copy(self.me, from, key);
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
                writes.push((record.id(), record.encode()));
            }
        }
        if !writes.is_empty() {
            cx.emit(Event::Persist { token: None, writes });
        }
    }

    /// What counts here now: `record`, or what is newer.
    fn newest(&self, record: Record) -> Record {
        self.records.get(record.key, &record.name).unwrap_or(record)
    }

    fn on_put(&mut self, from: NodeId, call: u32, record: Record, cx: &mut Cx<'_, Self>) {
        if !self.position.owns_class_of(record.key) {
            self.respond(from, call, Response::NotOwner, cx);
            return;
        }
        match self.apply(&record, cx) {
            Applied::Refused => self.respond(from, call, Response::Refused, cx),
            // An older write is as good as done; a repeated one is stored again to be sure.
            Applied::Old | Applied::New => {
                let (me, copies) = (self.me, self.position.copy_holders(self.me));
                let newest = self.newest(record);
                let mine = |x: &u32| self.position.range.is_some_and(|r| owns(&r, newest.key, *x));
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
        if !self.position.owns(record.key) {
            self.respond(from, call, Response::NotOwner, cx);
            return;
        }
        let known = self.records.get(record.key, &record.name);
        let counter = known.as_ref().map_or(0, |known| known.version.counter);
        // A question that comes twice is answered twice.
        let again = known.as_ref().is_some_and(|known| *known == record);
        if counter == expected || again {
            self.on_put(from, call, record, cx);
        } else {
            self.respond(from, call, Response::Taken(known), cx);
        }
    }

    fn on_copy(&mut self, from: NodeId, call: u32, record: Record, cx: &mut Cx<'_, Self>) {
        if !self.may_bring(from, record.key) {
            self.respond(from, call, Response::Refused, cx);
            return;
        }
        match self.apply(&record, cx) {
            Applied::Refused => self.respond(from, call, Response::Refused, cx),
            Applied::Old | Applied::New => {
                let newest = self.newest(record);
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
                let response = if self.position.owns_class_of(key) {
                    Response::Get(self.records.get(key, &name))
                } else {
                    Response::NotOwner
                };
                self.respond(from, call, response, cx);
            }
            Request::Decide { key, decide } => self.on_decide(from, call, key, decide, cx),
            Request::Claim { record, expected } => self.on_claim(from, call, record, expected, cx),
        }
    }
}
