//! The log of a type's events, as it lies in registers (PROTOCOL.md 9.3). Pure.
//!
//! A log is a ring of [`SLOTS`] registers. One slot is open: events are appended to it by writing
//! its register anew, if nobody wrote it meanwhile. A full slot is closed, and the next one begins
//! where it ends. So the registers alone decide the order, whoever appends.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::condition::Value;
use serde::{Deserialize, Serialize};

/// Registers of one log.
pub const SLOTS: u64 = 64;
/// A slot with so many bytes is full: each event that is appended has all before it in its slot
/// written once more. A longer event has a slot to itself.
pub const SLOT_BYTES: usize = 1_024;
/// Bytes of an event, at most.
pub const EVENT_BYTES: usize = 4 * 1024;

/// Names an event; its repetition has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId {
    /// The node that published it.
    pub by: NodeId,
    /// Grows with every event of the node, also over its lives.
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub id: EventId,
    /// Milliseconds since 1970 by the clock of who published it; 0 if that was never set.
    pub at_ms: u64,
    /// Sorted by name.
    pub attributes: Vec<(String, Value)>,
    pub body: Vec<u8>,
}

impl Published {
    /// Bytes it takes in a slot.
    #[must_use]
    pub fn bytes(&self) -> usize {
        postcard::to_allocvec(self).map_or(usize::MAX, |bytes| bytes.len())
    }
}

/// What one register holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Slots are numbered without end; the register is this modulo [`SLOTS`].
    pub number: u64,
    /// The place of its first event in the order of all; the first ever has 1.
    pub first: u64,
    /// Nothing is appended any more.
    pub closed: bool,
    pub events: Vec<Published>,
}

impl Slot {
    /// The place behind its last event.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.events.len() as u64)
    }

    fn bytes(&self) -> usize {
        self.events.iter().map(Published::bytes).sum::<usize>() + 32
    }
}

/// Where slot `index` of a type's log lies.
#[must_use]
pub fn key(name: &str, index: u64) -> Key {
    Key::of_name("event log", alloc::format!("{name} {index}").as_bytes())
}

/// The next write that brings events into a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub index: u64,
    /// The register must be at this.
    pub revision: u64,
    pub slot: Slot,
    /// So many of the events are in it.
    pub took: usize,
}

/// What is known of a log. By register: its revision, and the slot in it.
#[derive(Clone, Debug, Default)]
pub struct Log {
    slots: Vec<(u64, Option<Slot>)>,
}

impl Log {
    #[must_use]
    pub fn new() -> Self {
        Self { slots: alloc::vec![(0, None); SLOTS as usize] }
    }

    /// What a register holds now. What is no slot of this place counts as nothing.
    pub fn learn(&mut self, index: u64, revision: u64, value: Option<&[u8]>) {
        let slot = value.and_then(|bytes| postcard::from_bytes::<Slot>(bytes).ok());
        let slot = slot.filter(|slot| slot.number % SLOTS == index && slot.first > 0);
        if let Some(known) = self.slots.get_mut(usize::try_from(index).unwrap_or(usize::MAX)) {
            *known = (revision, slot);
        }
    }

    /// A step was written.
    pub fn wrote(&mut self, step: Step, revision: u64) {
        if let Some(known) = self.slots.get_mut(usize::try_from(step.index).unwrap_or(usize::MAX)) {
            *known = (revision, Some(step.slot));
        }
    }

    /// Whether none of these slots was ever written: then none behind them was.
    #[must_use]
    pub fn ends_before(&self, indices: &[u64]) -> bool {
        let known = |index: &u64| usize::try_from(*index).ok().and_then(|at| self.slots.get(at));
        indices.iter().all(|index| known(index).is_some_and(|(revision, _)| *revision == 0))
    }

    fn of(&self, number: u64) -> Option<&Slot> {
        let index = usize::try_from(number % SLOTS).ok()?;
        self.slots.get(index)?.1.as_ref().filter(|slot| slot.number == number)
    }

    fn newest(&self) -> Option<&Slot> {
        self.slots.iter().filter_map(|(_, slot)| slot.as_ref()).max_by_key(|slot| slot.number)
    }

    /// The slots that are still there, oldest first.
    fn kept(&self) -> impl Iterator<Item = &Slot> {
        let newest = self.newest().map_or(0, |slot| slot.number);
        let from = (newest + 1).saturating_sub(SLOTS);
        (from..=newest).filter_map(|number| self.of(number))
    }

    /// A register to read once more, because it was read before another one was written; `None` if
    /// all fit together.
    #[must_use]
    pub fn torn(&self) -> Option<u64> {
        let newest = self.newest()?;
        let from = (newest.number + 1).saturating_sub(SLOTS);
        let fits = |number: &u64| {
            self.of(*number)
                .zip(self.of(number + 1))
                .is_some_and(|(slot, next)| slot.closed && slot.end() == next.first)
        };
        (from..newest.number).rev().find(|number| !fits(number)).map(|number| number % SLOTS)
    }

    /// The place of the next event.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.newest().map_or(1, Slot::end)
    }

    /// The place of the oldest event that is still there, or of the next one.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.kept().next().map_or(1, |slot| slot.first)
    }

    /// Where an event is, if it is still there.
    #[must_use]
    pub fn place_of(&self, id: EventId) -> Option<u64> {
        self.from(0).find(|(_, event)| event.id == id).map(|(place, _)| place)
    }

    /// The events from a place on, in order, each with its place.
    pub fn from(&self, place: u64) -> impl Iterator<Item = (u64, &Published)> {
        let numbered = |slot: &'_ Slot| slot.first;
        self.kept()
            .filter(move |slot| slot.end() > place)
            .flat_map(move |slot| (numbered(slot)..).zip(&slot.events))
            .filter(move |(at, _)| *at >= place)
    }

    /// What to write next so that these events, or the first of them, are in the log.
    #[must_use]
    pub fn step(&self, events: &[Published]) -> Step {
        let at = |number: u64| {
            let index = number % SLOTS;
            let known = usize::try_from(index).ok().and_then(|index| self.slots.get(index));
            (index, known.map_or(0, |(revision, _)| *revision))
        };
        let (open, begin) = match self.newest() {
            None => (None, (0, 1)),
            Some(slot) if slot.closed => (None, (slot.number + 1, slot.end())),
            Some(slot) => (Some(slot), (slot.number, slot.first)),
        };
        let mut slot = open.cloned().unwrap_or_else(|| Slot {
            number: begin.0,
            first: begin.1,
            closed: false,
            events: Vec::new(),
        });
        let (mut bytes, mut took, mut last) = (slot.bytes(), 0, 0);
        for event in events {
            last = event.bytes();
            bytes += last;
            if bytes > SLOT_BYTES && !slot.events.is_empty() {
                break;
            }
            slot.events.push(event.clone());
            took += 1;
        }
        // It has no room for more, or none for one more like the last: closing it now costs
        // nothing, closing it later a write.
        slot.closed |= took < events.len() || bytes + last > SLOT_BYTES;
        let (index, revision) = at(slot.number);
        Step { index, revision, slot, took }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    fn event(number: u64, bytes: usize) -> Published {
        let id = EventId { by: Id(1), number };
        Published { id, at_ms: number, attributes: Vec::new(), body: alloc::vec![7; bytes] }
    }

    /// Appends as a rendezvous does; every write succeeds.
    fn append(log: &mut Log, mut events: &[Published]) {
        while !events.is_empty() {
            let step = log.step(events);
            assert!(step.took > 0 || step.slot.closed, "each write brings it further");
            events = &events[step.took..];
            let bytes = postcard::to_allocvec(&step.slot).unwrap_or_default();
            assert!(bytes.len() <= SLOT_BYTES.max(EVENT_BYTES) + 64);
            let revision = step.revision + 1;
            log.learn(step.index, revision, Some(&bytes));
        }
    }

    #[test]
    fn events_have_places_without_gaps_also_around_the_ring_of_slots() {
        let mut log = Log::new();
        let mut rng = fastrand::Rng::with_seed(5);
        assert_eq!((log.next(), log.first(), log.torn()), (1, 1, None));
        for number in 1..2_000 {
            append(&mut log, &[event(number, rng.usize(0..EVENT_BYTES - 64))]);
            assert_eq!((log.next(), log.torn()), (number + 1, None));
            assert_eq!(log.place_of(event(number, 0).id), Some(number));
        }
        let kept: Vec<u64> = log.from(0).map(|(place, _)| place).collect();
        assert_eq!(kept, (log.first()..log.next()).collect::<Vec<_>>());
        assert!(kept.len() > 30, "{}", kept.len());
        assert!(log.from(0).all(|(place, event)| place == event.id.number));
        let many: Vec<Published> = (0..300).map(|n| event(5_000 + n, 40)).collect();
        append(&mut log, &many);
        assert_eq!(log.from(2_000).count(), 300, "short ones share slots");
    }

    #[test]
    fn what_was_read_in_between_is_read_again() {
        let (mut log, mut other) = (Log::new(), Log::new());
        append(&mut log, &[event(1, 100)]);
        append(&mut other, &[event(1, 100)]);
        append(&mut other, &[event(2, 100), event(3, 900)]);
        let (_, newer) = &other.slots[1];
        let bytes = postcard::to_allocvec(newer.as_ref().unwrap_or(&Slot {
            number: 0,
            first: 0,
            closed: false,
            events: Vec::new(),
        }));
        log.learn(1, 9, bytes.ok().as_deref());
        assert_eq!(log.torn(), Some(0), "slot 0 was read before it was closed");
        log.learn(0, 9, Some(b"nonsense"));
        assert_eq!(log.torn(), Some(0));
    }
}
