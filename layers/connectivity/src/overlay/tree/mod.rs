//! Telling many nodes something, down a tree made on the way, and collecting what they answer
//! (PROTOCOL.md 4.1-4.4).
//!
//! A broadcast reaches all nodes, a bulk operation those in a set of arcs. Both delegate arcs to
//! children, and both have their answers collected by the same branches; a branch that misses
//! something repairs it with a bulk operation.

pub mod broadcast;
pub mod bulk;
pub mod feedback;
