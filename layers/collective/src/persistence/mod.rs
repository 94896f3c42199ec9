//! The persistence module (paper 3.4.3): mutable records, kept by the community.

pub mod directory;
pub mod put;
pub mod record;
pub mod store;
pub mod sync;
