//! What this node keeps on disk: every key begins with a letter that says what it is of.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_collective::persistence::record::Name;
use dugnad_resource::execute::ReplicaId;

const RUN: u8 = b'x';
const RECORD: u8 = b'r';
const MEMBERSHIP: u8 = b'g';

/// What lies under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskKey {
    /// A [`dugnad_resource::execute::Run`]: `x`, the service, the number.
    Run(ReplicaId),
    /// A [`dugnad_collective::persistence::record::Record`]: `r`, its key, its name.
    Record(Name),
    /// A group this node is a member of; nothing lies there: `g`, the name.
    Membership(String),
}

/// What a key is of. The rest of it stands in the value, too, except of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    Run,
    Record,
    /// Its name.
    Membership(&'a str),
}

impl DiskKey {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Run(id) => {
                let number = id.number.to_be_bytes();
                [&[RUN], &id.service.0.to_be_bytes()[..], &number].concat()
            }
            Self::Record((key, name)) => [&[RECORD], &key.0.to_be_bytes()[..], name].concat(),
            Self::Membership(name) => [&[MEMBERSHIP], name.as_bytes()].concat(),
        }
    }

    /// `None` if nothing this version knows lies under such a key.
    #[must_use]
    pub fn kind(bytes: &[u8]) -> Option<Kept<'_>> {
        match bytes.split_first()? {
            (&RUN, _) => Some(Kept::Run),
            (&RECORD, _) => Some(Kept::Record),
            (&MEMBERSHIP, name) => core::str::from_utf8(name).ok().map(Kept::Membership),
            _ => None,
        }
    }
}
