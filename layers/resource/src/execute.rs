//! Running a replica on one node: what the core asks of the host, what the host reports back, and
//! what managers and nodes say to each other about it (overlay.md 10.6).

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::{Key, NodeId};
use serde::{Deserialize, Serialize};

use crate::spec::{Spec, Tree};

/// One replica of one service. The same number never names two replicas of a service at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// Key of the service.
    pub service: Key,
    pub number: u32,
}

/// Everything a host must know to run a replica, with or without a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub id: ReplicaId,
    /// Grows with every deploy of the service.
    pub generation: u64,
    pub spec: Spec,
    /// The package for this node's processor, if the service brings one.
    pub package: Option<Tree>,
}

/// What the core asks of the host. Carried out in order for one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Get the package (and verify every chunk) from any of these nodes, best first.
    Fetch { id: ReplicaId, tree: Tree, from: Vec<NodeId> },
    /// Unpack and start. Starting what already runs with the same generation changes nothing but
    /// the report of its present state.
    Start(Run),
    /// Stop, and with `forget` delete its package and state.
    Stop { id: ReplicaId, forget: bool },
    /// Keep this tree for the community: get it from any of these nodes unless it is here.
    Keep { tree: Tree, from: Vec<NodeId> },
    /// Nobody needs this tree here any more.
    Drop { tree: Tree },
}

/// What the host reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Fetched {
        id: ReplicaId,
    },
    /// None of the sources gave it; the reason names them.
    FetchFailed {
        id: ReplicaId,
        reason: String,
    },
    /// The process exists.
    Started {
        id: ReplicaId,
    },
    /// It passed its health check (again).
    Ready {
        id: ReplicaId,
    },
    /// It was ready and is not, or ended and will be started again here.
    Unready {
        id: ReplicaId,
        reason: String,
    },
    /// It will not be started again here.
    Failed {
        id: ReplicaId,
        reason: String,
    },
    Stopped {
        id: ReplicaId,
    },
    /// A tree asked for with [`Order::Keep`] is here, verified and on disk.
    Kept {
        tree: Tree,
    },
    KeepFailed {
        tree: Tree,
        reason: String,
    },
}
