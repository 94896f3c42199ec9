//! A world of overlays alone: `dugnad_connectivity::Overlay` as it ships, ten thousand of them in
//! one thread and in virtual time (PROTOCOL.md 12).
//!
//! - [`world`]: nodes, time, the carrying out of effects. - [`fault`]: what can go wrong.
//! - [`check`]: what must hold after every event. - [`measure`]: traffic, lookups, the trace.
//! - [`profile`]: whole runs with a report, `cargo sim -- --profile P`. - [`swarm`]: random faults
//!   from a seed, and the smaller schedule of one that failed. - [`figures`]: what is asked of
//!   the overlay in numbers, measured.
//!
//! Nodes are called by number, in the order in which they were added; their ids are random. One
//! seed decides everything: each node, each link and the workload have a generator of their own.

pub mod check;
pub mod fault;
pub mod figures;
mod links;
pub mod measure;
pub mod profile;
pub mod queue;
pub mod swarm;
pub mod world;

pub use fault::Gone;
pub use world::{Options, Watch, World};
