//! What is broadcast to the whole community.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::{Hash, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::Port;
use serde::{Deserialize, Serialize};

use crate::deployment::manager::View;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastBody {
    /// Describe yourself; say which of these packages and programs you have.
    Describe { trees: Vec<Hash>, program: Option<String> },
    /// Say what you manage.
    Services,
    /// Which services have a TCP port of their own?
    Ports,
    /// A service came, changed or went.
    Changed { name: String, port: Port, removed: bool },
    /// Something people may want to read about.
    Happened { by: NodeId, by_name: String, service: Option<String>, text: String },
    /// A service was removed for good: what its stopped replicas left goes, too.
    Removed { service: Key },
}

/// One node's part of the feedback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastPart {
    Node(Box<Description>),
    Services(Vec<View>),
    Ports(Vec<(String, u16)>),
}
