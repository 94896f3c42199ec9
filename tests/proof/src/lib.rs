//! The claims of PROTOCOL.md 2, checked on the component that ships.
//!
//! - [`schedule`]: joins, leaves and lookups in any order the links allow; who owns what is checked
//!   after every step (T2.1-T2.3). - [`check`]: the invariants. - [`stage`]: scenarios told as
//!   texts, in `transcripts/`; [`words`]: how they read; [`transcript`]: compares them.
//! - [`model`]: a few rings and all that may happen next; [`explore`]: all states of that (T2.7).

pub mod check;
pub mod explore;
pub mod model;
pub mod schedule;
pub mod stage;
pub mod transcript;
pub mod words;
