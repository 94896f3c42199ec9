//! The two records of a service: what is wanted, and the plan that meets it (PROTOCOL.md 10.2).

use super::deployer::Predicted;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::execute::{Epoch, HostState};
use dugnad_resource::spec::{Kind, Port, Scale, Spec};
use serde::{Deserialize, Serialize};

/// Names of the records under the service's key.
pub const SPEC: &[u8] = b"spec";
pub const PLAN: &[u8] = b"plan";
/// The [`Service`] before the present one: what an update falls back to.
pub const PREVIOUS: &[u8] = b"prev";
/// The last version that was given up: a [`Failed`].
pub const FAILED: &[u8] = b"fail";
/// Replicas a plan names, those that are on their way out included.
pub const SLOTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Desired {
    /// As many replicas as are wanted.
    Running,
    /// No replica; it stays known.
    Stopped,
    /// No replica, and nothing it has written.
    Removed,
    /// Removed, but what it has written stays with the hosts that kept it.
    RemovedButState,
}

impl Desired {
    #[must_use]
    pub const fn is_removed(self) -> bool {
        matches!(self, Self::Removed | Self::RemovedButState)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub spec: Spec,
    /// Grows with every deploy.
    pub generation: u64,
    pub desired: Desired,
    /// The node it was deployed from: it has the packages.
    pub deployed_from: NodeId,
}

/// Where the replicas are. Written before anything is started, so that the next manager finds
/// every replica that may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub epoch: Epoch,
    pub next_number: u32,
    pub slots: Vec<Slot>,
}

/// A version that did not get ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub generation: u64,
    /// Where it was tried last.
    pub node_name: String,
    /// Why, and below it the last lines of its log.
    pub reason: String,
}

impl Failed {
    /// Why it was given up, for whoever deployed it.
    #[must_use]
    pub(crate) fn told(&self) -> String {
        let Self { node_name, reason, .. } = self;
        match reason.split_once('\n') {
            Some((reason, log)) => {
                let log = log.trim_end();
                format!("on {node_name}: {reason}\nlast lines of its log:\n{log}")
            }
            None => format!("on {node_name}: {reason}"),
        }
    }
}

/// What a manager says about its service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub name: String,
    pub service: Key,
    pub generation: u64,
    pub desired: Desired,
    pub port: Port,
    /// Whether the gateways see to it that each request is done at most once.
    pub reliable: bool,
    pub kind: Kind,
    pub want: u8,
    pub because: String,
    /// If a goal was set and the nodes were looked at.
    pub predicted: Option<Predicted>,
    /// If it follows its load: nodes report that to its manager.
    pub scale: Option<Scale>,
    pub ready: u8,
    pub manager: NodeId,
    /// Differs whenever anything above differs.
    pub revision: u64,
    pub slots: Vec<Slot>,
    /// Why it is not (yet) as wanted, one line a reason.
    pub blocked: Vec<String>,
}

impl ServiceView {
    /// Whether nothing of it is wanted now.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.desired != Desired::Running
    }

    #[must_use]
    pub fn is_static(&self) -> bool {
        self.kind == Kind::Static
    }
}

/// Deploys of one service; a generation beyond this was not reached by deploying.
pub const GENERATION_MAX: u64 = 1 << 48;

impl Service {
    /// Whether a replica that is stopped now leaves nothing behind.
    #[must_use]
    pub fn forgets(&self) -> bool {
        matches!(self.desired, Desired::Removed) || !self.spec.keeps_state()
    }

    /// Whether its numbers are within their bounds; records come from other nodes.
    #[must_use]
    pub const fn fits(&self) -> bool {
        self.generation <= GENERATION_MAX
    }
}

impl Plan {
    /// Whether its numbers are within their bounds; records come from other nodes.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.epoch.fits() && self.slots.len() <= SLOTS_MAX
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub number: u32,
    pub node: NodeId,
    pub node_name: String,
    pub generation: u64,
    pub state: ReplicaState,
    pub note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Its host holds room; nothing was started.
    Reserved,
    /// Its host was told to run it and has not said that it serves.
    Starting,
    /// It serves.
    Ready,
    /// Its host was told to stop it and has not said that it ended.
    Draining,
    /// Its node is dead; kept until it is replaced.
    Lost,
}

impl ReplicaState {
    /// What a host's report means for the plan.
    #[must_use]
    pub const fn of_host(state: HostState) -> Self {
        match state {
            HostState::Reserved => Self::Reserved,
            HostState::Fetching | HostState::Starting | HostState::Unready => Self::Starting,
            HostState::Ready => Self::Ready,
            HostState::Stopping => Self::Draining,
            HostState::Failed | HostState::Gone => Self::Lost,
        }
    }
}
