//! Records and their places: symmetric replication with f = 4 (PROTOCOL.md 5.1; Ghodsi p. 143-145).
//!
//! The four ids `key + x * 2^126` form a class; the owner of each of them, and that owner's next
//! two successors, hold the record. So one partner is enough at a join, a new owner holds what it
//! takes over before it takes over, and four lookups by different paths find it.

use alloc::vec::Vec;

use dugnad_kernel::{Arc, Duration, Key, NodeId};
use serde::{Deserialize, Serialize};

/// Degree of the replication.
pub const DEGREE: u32 = 4;
/// Successors of an owner that hold copies.
pub const COPIES: usize = 2;
/// Bytes of a record's name and value.
pub const NAME_MAX: usize = 64;
pub const VALUE_MAX: usize = 32 * 1024;
/// Records one node holds; more are refused.
pub const RECORDS_MAX: usize = 32 * 1024;
/// Bytes of all names and values one node holds in memory; more are refused.
pub const STORE_BYTES_MAX: usize = 16 << 20;
/// Of both, what one author may have.
pub const AUTHOR_MAX: usize = RECORDS_MAX / 2;
pub const AUTHOR_BYTES_MAX: usize = STORE_BYTES_MAX / 2;
/// How long it is remembered that an object was removed: who was away for longer brings it back.
pub const TOMBSTONE_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Versions count writes; one beyond this was not reached by writing.
pub const COUNTER_MAX: u64 = 1 << 62;
/// How far a version may lie above the one known here: nobody misses so many writes, and a record
/// that jumped further could never be overwritten.
pub const COUNTER_STEP: u64 = 1 << 20;

/// Last writer wins; the author settles ties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    pub counter: u64,
    pub author: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub key: Key,
    pub name: Vec<u8>,
    pub version: Version,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

/// Identifies a record; orders records on disk and in messages.
pub type Name = (Key, Vec<u8>);

/// The `x`-th id of the class of `key`, `x` in `0..DEGREE`.
#[must_use]
pub fn class(key: Key, x: u32) -> Key {
    key.plus(u128::from(x) << 126)
}

/// Whether the owner of `range` is the `x`-th place of `key`.
#[must_use]
pub fn owns(range: &Arc, key: Key, x: u32) -> bool {
    range.contains(class(key, x))
}

/// Whether the owner of `range` is one of the places of `key`.
#[must_use]
pub fn belongs(key: Key, range: &Arc) -> bool {
    (0..DEGREE).any(|x| owns(range, key, x))
}

impl Record {
    #[must_use]
    pub fn id(&self) -> Name {
        (self.key, self.name.clone())
    }

    /// Bytes of its name and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.name.len() + self.value.as_ref().map_or(0, Vec::len)
    }

    /// As it lies on disk.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        // Plain data into memory cannot fail; `None` would delete, which a later sync repairs.
        postcard::to_allocvec(self).ok()
    }

    /// Whether it is within its bounds; records come from other nodes.
    #[must_use]
    pub fn fits(&self) -> bool {
        let value = self.value.as_ref().map_or(0, Vec::len);
        let counted = self.version.counter <= COUNTER_MAX;
        self.name.len() <= NAME_MAX && value <= VALUE_MAX && counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    /// T5.1: the class is the same whichever member it is built from.
    #[test]
    fn the_class_is_closed() {
        let mut rng = fastrand::Rng::with_seed(51);
        for _ in 0..1_000 {
            let key = Id(rng.u128(..));
            let mut all: Vec<Id> = (0..DEGREE).map(|x| class(key, x)).collect();
            all.sort_unstable();
            for x in 0..DEGREE {
                let mut again: Vec<Id> = (0..DEGREE).map(|y| class(class(key, x), y)).collect();
                again.sort_unstable();
                assert_eq!(all, again);
            }
        }
    }

    #[test]
    fn a_record_belongs_to_the_owners_of_its_class_and_nobody_else() {
        let quarter = 1u128 << 126;
        let range = Arc::new(Id(quarter), Id(quarter + 100));
        assert!(belongs(Id(50), &range));
        assert!(belongs(Id(quarter * 3 + 100), &range));
        assert!(!belongs(Id(0), &range), "the range begins after its lower end");
        assert!(!belongs(Id(101), &range));
    }
}
