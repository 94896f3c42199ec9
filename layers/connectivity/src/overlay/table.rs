//! The k-ary routing table (PROTOCOL.md 1.2, 3.1): pure, no messages.
//!
//! Slot (l, i) points at the first node of the interval that begins at `me + i * k^(L-l)`. Slots
//! whose interval begins inside the span of the successor list are not stored.

use alloc::vec::Vec;

use dugnad_kernel::arc::{in_co, in_oo};
use dugnad_kernel::{Id, NodeId, Peer};

use crate::config::{K_BITS, SLOTS};

#[derive(Clone, Debug)]
struct Slot {
    start: Id,
    contact: Peer,
}

#[derive(Clone, Debug)]
pub struct Table {
    me: NodeId,
    slots: Vec<Slot>,
}

/// Start of slot `j` (PROTOCOL.md 1.2, ordered form): `j` counts from 1 by growing distance.
#[must_use]
pub fn start(me: NodeId, j: u32) -> Option<Id> {
    let arity = (1 << K_BITS) - 1;
    let (digit, level) = (1 + (j - 1) % arity, (j - 1) / arity);
    let shift = level * K_BITS;
    (shift < 128).then(|| me.plus(u128::from(digit) << shift))
}

/// How many slots there are in all: (k-1) * L.
pub const STARTS: u32 = ((1 << K_BITS) - 1) * (128 / K_BITS);

impl Table {
    #[must_use]
    pub const fn new(me: NodeId) -> Self {
        Self { me, slots: Vec::new() }
    }

    /// Starts of the slots to keep when the successor list reaches as far as `last`: outermost
    /// first, because they save the most hops.
    #[must_use]
    pub fn wanted(&self, last: NodeId) -> Vec<Id> {
        let span = self.me.distance(last);
        let starts = (1..=STARTS).rev().filter_map(|j| start(self.me, j));
        starts.filter(|s| self.me.distance(*s) > span).take(SLOTS).collect()
    }

    /// Puts `contact` into the slot that begins at `start`.
    pub fn set(&mut self, start: Id, contact: Peer) {
        if contact.id == self.me {
            self.slots.retain(|slot| slot.start != start);
            return;
        }
        let room = self.slots.len() < SLOTS;
        match self.slots.iter_mut().find(|slot| slot.start == start) {
            Some(slot) => slot.contact = contact,
            None if room => self.slots.push(Slot { start, contact }),
            None => {}
        }
    }

    /// Takes a node that was met by chance where it is nearer to a slot's start than its contact.
    pub fn offer(&mut self, peer: &Peer) {
        for slot in &mut self.slots {
            if in_co(slot.start, peer.id, slot.contact.id) && peer.id != self.me {
                slot.contact = peer.clone();
            }
        }
    }

    /// Forgets a dead node; the starts that must be looked up again.
    pub fn remove(&mut self, id: NodeId) -> Vec<Id> {
        let lost = self.slots.iter().filter(|s| s.contact.id == id).map(|s| s.start).collect();
        self.slots.retain(|slot| slot.contact.id != id);
        lost
    }

    /// Drops slots that are no longer wanted; the wanted ones without a contact are returned.
    pub fn retain(&mut self, wanted: &[Id]) -> Vec<Id> {
        self.slots.retain(|slot| wanted.contains(&slot.start));
        let has = |start: &Id| self.slots.iter().any(|slot| slot.start == *start);
        wanted.iter().copied().filter(|start| !has(start)).collect()
    }

    pub fn contacts(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().map(|slot| &slot.contact)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// The greedy choice (PROTOCOL.md 3.2): of `candidates`, the one nearest before `key`.
pub fn closest_before<'a>(
    me: NodeId,
    key: Id,
    candidates: impl Iterator<Item = &'a Peer>,
) -> Option<&'a Peer> {
    candidates
        .filter(|peer| peer.id != me && in_oo(me, peer.id, key))
        .max_by_key(|peer| me.distance(peer.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T1.4: the two forms of the slot formula agree for k = 4.
    #[test]
    fn slot_starts_agree_with_the_level_form() {
        let (levels, arity) = (128 / K_BITS, 1u32 << K_BITS);
        for level in 1..=levels {
            for digit in 1..arity {
                let j = (levels - level) * (arity - 1) + digit;
                let by_level = Id(9).plus(u128::from(digit) << ((levels - level) * K_BITS));
                assert_eq!(start(Id(9), j), Some(by_level));
            }
        }
        assert_eq!(start(Id(0), STARTS + 1), None);
    }

    #[test]
    fn only_slots_beyond_the_successor_list_are_wanted() {
        let table = Table::new(Id(0));
        let wanted = table.wanted(Id(1 << 120));
        assert!(wanted.iter().all(|s| s.0 > 1 << 120));
        assert_eq!(wanted.len(), 11);
        assert_eq!(Table::new(Id(5)).wanted(Id(5)).len(), SLOTS);
    }

    #[test]
    fn a_nearer_node_takes_the_slot_and_a_dead_one_frees_it() {
        let mut table = Table::new(Id(0));
        table.set(Id(100), Peer::new(Id(200)));
        table.offer(&Peer::new(Id(150)));
        table.offer(&Peer::new(Id(170)));
        table.offer(&Peer::new(Id(99)));
        let contacts: Vec<_> = table.contacts().map(|p| p.id).collect();
        assert_eq!(contacts, [Id(150)]);
        assert_eq!(table.remove(Id(150)), [Id(100)]);
        assert!(table.is_empty());
    }

    #[test]
    fn greedy_never_overshoots() {
        let peers = [Peer::new(Id(10)), Peer::new(Id(20)), Peer::new(Id(30))];
        let pick = |key| closest_before(Id(5), Id(key), peers.iter()).map(|p| p.id.0);
        assert_eq!(pick(20), Some(10));
        assert_eq!(pick(25), Some(20));
        assert_eq!(pick(3), Some(30), "around the ring");
        assert_eq!(pick(8), None);
    }
}
