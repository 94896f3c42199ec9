//! One register at one member: CASPaxos (Rystsov 2018; PROTOCOL.md 8.2). Pure.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::NodeId;
use serde::{Deserialize, Serialize};

use super::view::Ballot;
use super::{Part, is_left_out};

/// Bytes of a value.
pub const VALUE_MAX: usize = 16 * 1024;
/// Nodes whose last request a register remembers.
const LAST_MAX: usize = 32;
/// A request is remembered for so many milliseconds at least: nobody repeats one that is older.
const REMEMBERED_MS: u64 = 60_000;

/// Names a request; its repetition has the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    pub by: NodeId,
    /// Grows with every request of the node, also over its lives.
    pub number: u64,
}

/// What is to be done with a register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// `None` removes the value.
    Put { value: Option<Vec<u8>> },
    /// As `Put`, if the register is at this revision; 0: if it was never written.
    Cas { revision: u64, value: Option<Vec<u8>> },
    /// Writes back what there is, so that everybody agrees on it.
    Settle,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// The register is at this revision by it.
    Written { revision: u64 },
    /// It was at another revision; nothing was changed.
    Lost { revision: u64 },
    /// Too many nodes wrote at the same time.
    Busy,
}

/// The last request of a node, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    id: RequestId,
    /// Milliseconds since 1970 by the clock of that node.
    at_ms: u64,
    done: Done,
}

/// What a register holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Where it lies, for lists; empty if nobody said so.
    pub name: String,
    /// How often it was written.
    pub revision: u64,
    pub value: Option<Vec<u8>>,
    last: Vec<Last>,
}

impl Cell {
    /// What it is after a change, and what became of that. A request that took effect before does
    /// not do so again.
    #[must_use]
    pub fn after(&self, id: RequestId, now_ms: u64, name: &str, change: &Change) -> (Self, Done) {
        let last = self.last.iter().find(|last| last.id == id && !is_left_out(Part::Dedupe));
        if let Some(last) = last {
            return (self.clone(), last.done);
        }
        let mut next = self.clone();
        let (expected, value) = match change {
            Change::Settle => return (next, Done::Written { revision: self.revision }),
            Change::Put { value } => (self.revision, value),
            Change::Cas { revision, value } => (*revision, value),
        };
        if expected != self.revision {
            return (next, Done::Lost { revision: self.revision });
        }
        let done = Done::Written { revision: self.revision.saturating_add(1) };
        next.last.retain(|last| last.id.by != id.by);
        if next.last.len() >= LAST_MAX {
            let oldest = next.last.iter().map(|last| last.at_ms).min().unwrap_or(0);
            if now_ms.saturating_sub(oldest) < REMEMBERED_MS {
                return (self.clone(), Done::Busy);
            }
            next.last.retain(|last| last.at_ms != oldest);
        }
        next.last.push(Last { id, at_ms: now_ms, done });
        next.revision = self.revision.saturating_add(1);
        next.value.clone_from(value);
        next.name = name.into();
        (next, done)
    }

    /// Bytes of the requests it remembers, at most.
    #[must_use]
    pub fn size_of_last(&self) -> usize {
        self.last.len() * 48
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        let value = self.value.as_ref().map_or(0, Vec::len);
        value <= VALUE_MAX && self.last.len() <= LAST_MAX && self.name.len() <= NAME_MAX
    }
}

/// Bytes of the name of a register.
const NAME_MAX: usize = 512;

/// A register as one member has it; on disk before it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// No attempt below this is accepted.
    pub promised: Ballot,
    /// The attempt the cell came with.
    pub accepted: Ballot,
    pub cell: Cell,
}

impl Register {
    /// Promises to accept nothing below `ballot`; `false`: it has promised more.
    pub fn prepare(&mut self, ballot: Ballot) -> bool {
        let may = ballot > self.promised;
        if may {
            self.promised = ballot;
        }
        may
    }

    /// Accepts the cell; `false`: it has promised more.
    pub fn accept(&mut self, ballot: Ballot, cell: Cell) -> bool {
        let may = ballot >= self.promised;
        if may {
            (self.promised, self.accepted, self.cell) = (ballot, ballot, cell);
        }
        may
    }

    /// What two members of an earlier view have, together.
    pub fn join(&mut self, other: &Self) {
        self.promised = self.promised.max(other.promised);
        if other.accepted > self.accepted {
            self.accepted = other.accepted;
            self.cell = other.cell.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    fn id(by: u128, number: u64) -> RequestId {
        RequestId { by: Id(by), number }
    }

    fn put(value: &str) -> Change {
        Change::Put { value: Some(value.into()) }
    }

    #[test]
    fn a_repeated_request_takes_effect_once() {
        let (cell, done) = Cell::default().after(id(1, 1), 0, "x", &put("a"));
        assert_eq!(done, Done::Written { revision: 1 });
        let (cell, done) = cell.after(id(2, 1), 0, "x", &put("b"));
        assert_eq!(done, Done::Written { revision: 2 });
        let (again, done) = cell.after(id(1, 1), 0, "x", &put("a"));
        assert_eq!((&again, done), (&cell, Done::Written { revision: 1 }));
        let cas = Change::Cas { revision: 1, value: None };
        assert_eq!(cell.after(id(1, 2), 0, "x", &cas).1, Done::Lost { revision: 2 });
    }

    #[test]
    fn too_many_writers_at_once_are_told_so() {
        let mut cell = Cell::default();
        for by in 0..32 {
            let (next, done) = cell.after(id(by, 1), 1_000, "x", &put("a"));
            assert!(matches!(done, Done::Written { .. }));
            cell = next;
        }
        assert_eq!(cell.after(id(99, 1), 2_000, "x", &put("a")).1, Done::Busy);
        let (cell, done) = cell.after(id(0, 2), 2_000, "x", &put("a"));
        assert_eq!(done, Done::Written { revision: 33 }, "who wrote before has a place");
        let (_, done) = cell.after(id(99, 1), 62_000, "x", &put("a"));
        assert_eq!(done, Done::Written { revision: 34 }, "the oldest is over");
    }

    #[test]
    fn nothing_below_a_promise_is_accepted() {
        let ballot = |counter| Ballot { counter, ..Ballot::default() };
        let mut register = Register::default();
        assert!(register.prepare(ballot(2)) && !register.prepare(ballot(2)));
        assert!(!register.accept(ballot(1), Cell::default()));
        assert!(register.accept(ballot(2), Cell { revision: 1, ..Cell::default() }));
        assert!(register.prepare(ballot(3)) && !register.accept(ballot(2), Cell::default()));
        let mut other = Register { promised: ballot(9), ..Register::default() };
        other.join(&register);
        assert_eq!((other.promised, other.cell.revision), (ballot(9), 1));
    }
}
