//! What a node tells of the objects it keeps, without their values.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::NodeId;
use serde::{Deserialize, Serialize};

/// One object, without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub path: String,
    /// Its stamp; 0 where values are kept beside each other.
    pub version: u64,
    /// Of all its values.
    pub bytes: u64,
    pub values: u8,
}

/// What one node keeps of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSums {
    pub node: NodeId,
    pub name: String,
    /// Bytes of disk its owner gives.
    pub given: u64,
    /// Objects this node answers for: each belongs to one.
    pub keys: u32,
    /// Objects that lie here, whoever answers for them.
    pub copies: u32,
    /// Records of all kinds, and their bytes.
    pub records: u32,
    pub record_bytes: u64,
    /// Blobs and packages that are here, and their bytes.
    pub trees: u32,
    pub tree_bytes: u64,
    /// Blobs and packages that should be here and are not yet.
    pub missing: u32,
    /// Neighbours that hold copies and were not compared with since the ring moved.
    pub uncompared: u32,
    /// Of the keys: by namespace, how many and the bytes of their values.
    pub namespaces: Vec<(String, u32, u64)>,
}

impl NodeSums {
    pub(crate) fn bytes_of(&self, namespace: &str) -> u64 {
        let own = self.namespaces.iter().filter(|(name, ..)| name == namespace);
        own.map(|(.., bytes)| *bytes).sum()
    }
}
