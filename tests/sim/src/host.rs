//! A pretend machine under a node: its disk and the services it runs.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_resource::execute::{ReplicaId, Run};
use dugnad_resource::spec::Tree;

/// What survives a power cut: batches that were synced.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub durable: BTreeMap<Vec<u8>, Vec<u8>>,
    pub trees: BTreeSet<Tree>,
    pub writes: u64,
}

impl Disk {
    pub fn apply(&mut self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        self.writes += 1;
        for (key, value) in writes {
            match value {
                Some(value) => self.durable.insert(key, value),
                None => self.durable.remove(&key),
            };
        }
    }
}

/// Processes that run on the machine, with what they were started as.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    pub running: BTreeMap<ReplicaId, Run>,
}
