//! What this node keeps on disk: every key begins with a letter that says what it is of.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_collective::linear;
use dugnad_collective::persistence::record::Name;
use dugnad_kernel::{Id, Key};
use dugnad_resource::execute::ReplicaId;

const RUN: u8 = b'x';
const RECORD: u8 = b'r';
const MEMBERSHIP: u8 = b'g';
const REGISTERS: u8 = b'l';
const LIFE: u8 = b'a';
/// Behind [`REGISTERS`].
const MEMBER: u8 = b'm';
const REPLICA: u8 = b'v';
const REGISTER: u8 = b'r';

/// What lies under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskKey {
    /// A [`dugnad_resource::execute::Run`]: `x`, the service, the number.
    Run(ReplicaId),
    /// A [`dugnad_collective::persistence::record::Record`]: `r`, its key, its name.
    Record(Name),
    /// A group this node is a member of; nothing lies there: `g`, the name.
    Membership(String),
    /// Of registers: `lm`: which member this disk is, `lv`, the first key of a range, how many
    /// bits it has, the number: a view, `lr`, the key: a register.
    Registers(linear::DiskKey),
    /// How much of the time this node was up, a [`crate::life::Noted`]: `a`.
    Life,
}

/// What a key is of. The rest of it stands in the value, too, except of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    Run,
    Record,
    /// Its name.
    Membership(&'a str),
    Member,
    View,
    Register(Key),
    Life,
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
            Self::Life => Vec::from([LIFE]),
            Self::Registers(linear::DiskKey::Member) => Vec::from([REGISTERS, MEMBER]),
            Self::Registers(linear::DiskKey::Replica((range, number))) => {
                let (start, number) = (range.start.0.to_be_bytes(), number.to_be_bytes());
                [&[REGISTERS, REPLICA], &start[..], &[range.bits], &number].concat()
            }
            Self::Registers(linear::DiskKey::Register(key)) => {
                [&[REGISTERS, REGISTER], &key.0.to_be_bytes()[..]].concat()
            }
        }
    }

    /// `None` if nothing this version knows lies under such a key.
    #[must_use]
    pub fn kind(bytes: &[u8]) -> Option<Kept<'_>> {
        match bytes.split_first()? {
            (&RUN, _) => Some(Kept::Run),
            (&RECORD, _) => Some(Kept::Record),
            (&LIFE, []) => Some(Kept::Life),
            (&REGISTERS, &[MEMBER]) => Some(Kept::Member),
            (&REGISTERS, [REPLICA, ..]) => Some(Kept::View),
            (&REGISTERS, [REGISTER, key @ ..]) => {
                let key: [u8; 16] = key.try_into().ok()?;
                Some(Kept::Register(Id(u128::from_be_bytes(key))))
            }
            (&MEMBERSHIP, name) => core::str::from_utf8(name).ok().map(Kept::Membership),
            _ => None,
        }
    }
}
