//! Running a replica on one node: what the core asks of the host, what the host reports back, and
//! what managers and nodes say to each other about it (PROTOCOL.md 10.6).

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Key, NodeId};
use serde::{Deserialize, Serialize};

use crate::spec::{Load, Spec, Tree};

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
    KeepPackage { tree: Tree, from: Vec<NodeId> },
    /// Nobody needs this tree here any more.
    Drop { tree: Tree },
    /// The service was removed: delete the state that its stopped replicas left here.
    ForgetState { service: Key },
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
    /// It cannot start yet: what it waits for.
    Waits {
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
    /// A tree asked for with [`Order::KeepPackage`] is here, verified and on disk.
    Kept {
        tree: Tree,
    },
    KeepFailed {
        tree: Tree,
        reason: String,
    },
    /// What a replica uses of the processor, every five seconds, if its service follows that.
    Load {
        id: ReplicaId,
        load: Load,
    },
    /// Nothing here needs the tree any more, unless a record that lies here says so.
    LetGo {
        tree: Tree,
    },
}

/// Which manager speaks, and in which term: nodes obey the highest they have seen and refuse the
/// rest, so a deposed manager moves nothing (PROTOCOL.md 10.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch {
    pub term: u64,
    pub manager: NodeId,
}

/// Terms of one service; a term beyond this was not reached by taking over.
pub const TERM_MAX: u64 = u32::MAX as u64;
/// How far a term may lie above the last one known: nobody misses so many take-overs, and without a
/// bound one message would use all terms up.
pub const TERM_STEP: u64 = 1 << 16;

impl Epoch {
    /// The first epoch of `manager` that hosts obey more than this one.
    #[must_use]
    pub const fn next(self, manager: NodeId) -> Self {
        Self { term: self.term.saturating_add(1), manager }
    }

    /// Whether it is within its bounds; epochs come from other nodes.
    #[must_use]
    pub const fn fits(&self) -> bool {
        self.term < TERM_MAX
    }

    /// Whether it may follow the one known here.
    #[must_use]
    pub const fn may_follow(&self, known: Self) -> bool {
        self.fits() && self.term <= known.term.saturating_add(TERM_STEP)
    }
}

/// State of a replica, as its host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostState {
    /// Room is held for it.
    Reserved,
    /// Its package is on its way.
    Fetching,
    /// Its process exists, and has not passed its health check yet.
    Starting,
    /// It serves.
    Ready,
    /// Was ready or ended, and is started again here.
    Unready,
    /// Will not be started again here.
    Failed,
    /// It was told to end.
    Stopping,
    /// Nothing of it is left here.
    Gone,
}

/// From a manager to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// Hold room for a replica for a minute.
    Reserve { id: ReplicaId, epoch: Epoch, needs: Amounts },
    /// Run it; idempotent. The package may be had from `sources`.
    Start { id: ReplicaId, epoch: Epoch, generation: u64, spec: Spec, sources: Vec<NodeId> },
    /// Stop it; `forget`: and delete its package and state. Idempotent.
    Stop { id: ReplicaId, epoch: Epoch, forget: bool },
    /// Report every replica of this service; I manage it now.
    Probe { service: Key, epoch: Epoch },
    /// The beat was heard.
    BeatAck { service: Key, epoch: Epoch },
    /// I do not manage this service.
    NotManager { service: Key },
}

/// From a host to the manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToManager {
    /// To `Reserve`: the room is held.
    Reserved { id: ReplicaId, epoch: Epoch },
    /// To `Reserve`: there is none, and why.
    Refused { id: ReplicaId, epoch: Epoch, reason: String },
    /// State of one replica: on every change, and every minute.
    Beat { id: ReplicaId, generation: u64, state: HostState, note: String, node_name: String },
    /// The answer to a probe where nothing of the service is.
    Nothing { service: Key },
    /// A higher epoch was seen: you are deposed.
    Deposed { service: Key, epoch: Epoch },
    /// Of a service that follows its load, every five seconds while there is some: what this node
    /// measured, as its host or as a way in.
    Load { service: Key, load: Load },
    /// This node is about to leave: have its replica run elsewhere, then stop it here. Or it stays
    /// after all.
    Leaving { service: Key, leaving: bool },
}
