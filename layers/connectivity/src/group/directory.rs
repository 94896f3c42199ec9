//! Where a group is found: one record under the key of its name (PROTOCOL.md 4.5).
//!
//! The record names a sample of the members and how they are joined. It changes only by compare-
//! and-swap. Who keeps it is none of this layer's business: [`super::Event::Directory`] goes out,
//! [`super::Command::Directory`] comes back.

use alloc::vec::Vec;

use dugnad_kernel::{Id, Key, NodeId, Peer};
use serde::{Deserialize, Serialize};

use crate::config::{GROUP_SAMPLE, PENDING_MAX};

/// A group is its key in the directory, and so the same on both sides of a cut.
pub type GroupId = Key;

/// How the members are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Everybody knows everybody.
    Mesh,
    /// A ring of their own.
    Ring,
}

/// Who may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Open,
    Members,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Grows with every change of the mode and every take-over.
    pub epoch: u32,
    pub mode: Mode,
    pub policy: Policy,
    pub creator: NodeId,
    /// Some members, at most [`GROUP_SAMPLE`].
    pub sample: Vec<Peer>,
    /// Members, about.
    pub size: u32,
    /// Grows with every write.
    pub seq: u64,
    /// Tells two writes apart that say the same otherwise.
    pub nonce: u64,
}

/// A question to whoever keeps the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryAsk {
    Get,
    /// Write `value` (`None` deletes) if the version is still `expected`.
    Cas {
        expected: u64,
        value: Option<Vec<u8>>,
    },
}

/// Versions count writes, deletions included; 0 is "never written".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectoryAnswer {
    /// How it stands; to a `Cas`: somebody else wrote first.
    Is {
        version: u64,
        value: Option<Vec<u8>>,
    },
    Written {
        version: u64,
    },
    /// Nobody could say, or too many ask: nothing is promised.
    Failed,
}

#[must_use]
pub fn group_id(name: &str) -> GroupId {
    Id::of_name("grp/1", name.as_bytes())
}

/// Where the record of a group lies.
#[must_use]
pub const fn directory_key(gid: GroupId) -> Key {
    gid
}

impl GroupRecord {
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        // Plain data into memory cannot fail.
        postcard::to_allocvec(self).ok()
    }

    /// `None` if it is no record of this version; a sample that is too long is cut.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record: Self = postcard::from_bytes(bytes).ok()?;
        record.sample.truncate(GROUP_SAMPLE);
        Some(record)
    }

    /// The next version of it, with these members; `me` is one of them.
    #[must_use]
    pub(crate) fn next(&self, me: &Peer, others: &[Peer], size: u64, nonce: u64) -> Self {
        let mut sample = Vec::from([me.clone()]);
        sample.extend(others.iter().filter(|peer| peer.id != me.id).cloned());
        sample.truncate(GROUP_SAMPLE);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Self { sample, size, seq: self.seq.saturating_add(1), nonce, ..self.clone() }
    }
}

// A record must fit the store below with room to spare: 16 peers of at most 100 bytes each.
const _: () = assert!(GROUP_SAMPLE * 128 < 32 * 1024 && GROUP_SAMPLE < PENDING_MAX);
