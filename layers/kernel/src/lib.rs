//! What every layer is made of: components and their effects, operations, time, identifiers, the
//! wire.
//!
//! Nothing here, or in any layer above, knows a clock, a socket, a file, a thread or a hash map:
//! `no_std` makes the compiler hold that line (ARCHITECTURE.md, "Invariants").

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod arc;
pub mod calls;
pub mod component;
pub mod counters;
pub mod hlc;
pub mod id;
pub mod map;
pub mod ops;
pub mod peer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod wire;

pub use arc::{Arc, ArcSet};
pub use component::{Component, Cx, Effect, Input};
pub use counters::Counters;
pub use hlc::Hlc;
pub use id::{CommunityId, Hash, Id, Key, NodeId};
pub use peer::Peer;
pub use time::{Duration, Time};
