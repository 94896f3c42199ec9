//! How a node is described to those who look for a place (paper 3.3).

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Hash, Peer};
use serde::{Deserialize, Serialize};

use crate::spec::Arch;

/// Bounds: descriptions travel in messages of 64 KiB, many at a time.
pub const NAME_MAX: usize = 32;
pub const PROGRAMS_MAX: usize = 16;

/// What a node calls itself, cut to [`NAME_MAX`] characters: others remember many of them.
#[must_use]
pub fn clip_name(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}

/// What does not change while the agent runs. The agent fills it in at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// What its owner calls it.
    pub name: String,
    pub arch: Arch,
    /// Replicas on the same home fail together: a hash of the network the node sees itself in.
    pub home: u32,
    /// Version of the agent.
    pub version: String,
}

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub peer: Peer,
    pub profile: Profile,
    /// What is not promised to anybody yet.
    pub free: Amounts,
    /// What its owner gives in all.
    pub gives: Amounts,
    /// Whether it takes new work.
    pub takes_work: bool,
    /// Seconds since its agent started.
    pub up_secs: u32,
    /// Replicas it runs.
    pub replicas: u16,
    /// Packages it already holds, of those that were asked about.
    pub holds: Vec<Hash>,
    /// Programs of the host it has, of those that were asked about.
    pub programs: Vec<String>,
}
