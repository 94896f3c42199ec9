//! The simulator: the node that ships, in virtual time, from one seed.
//!
//! Nothing of `layers/` is replaced. The simulator stands where the agent stands: it carries out
//! effects with a network, disks, hosts and a clock of its own. One heap orders everything by
//! (time, sequence); every node and every part of the world has its own generator, so that a new
//! consumer of randomness does not shift the others. The same arguments give the same run, bit
//! for bit: [`World::trace`] is a hash of every message delivered and every order carried out.

pub mod check;
pub mod host;
pub mod net;
pub mod overlay;
pub mod plot;
pub mod promise;
pub mod report;
pub mod silence;
mod story;
pub mod swarm;
pub mod world;

pub use world::{Options, World};
