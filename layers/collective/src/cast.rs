//! What is broadcast to the whole community.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::{Hash, Key, NodeId};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::Description;
use dugnad_resource::spec::Port;
use serde::{Deserialize, Serialize};

use crate::deployment::service::ServiceView;
use crate::linear::view::View;
use crate::objects::sums::NodeSums;
use dugnad_resource::describe::Brief;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastBody {
    /// Describe yourself; say which of these packages and programs you have.
    Describe { trees: Vec<Hash>, programs: Vec<String> },
    /// Say what you manage.
    Services,
    /// Which services have a port of their own on every node?
    Ports,
    /// A service came, changed or went.
    Changed { name: String, port: Port, removed: bool },
    /// Something people may want to read about.
    Happened { by: NodeId, by_name: String, service: Option<String>, text: String },
    /// A service was removed for good: what its stopped replicas left goes, too.
    Removed { service: Key },
    /// Say what you keep of objects, of one namespace or of all.
    Objects { namespace: Option<String> },
    /// Who keeps which registers from now on.
    Views(Vec<View>),
    /// Describe yourself if this is true of you. `brief`: only what a census counts.
    Find { condition: Condition, brief: bool },
    /// Describe yourself, with a chance of so many millionths.
    Sample { share: u32 },
}

/// One node's part of the feedback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CastPart {
    Node(Box<Description>),
    Services(Vec<ServiceView>),
    Ports(Vec<(String, Port)>),
    Objects(Box<NodeSums>),
    /// It was not true of this node.
    NotMeant,
    /// To a census.
    Brief(Box<Brief>),
}

/// The node descriptions among the parts of a feedback.
pub(crate) fn descriptions(parts: &[Vec<u8>]) -> Vec<Description> {
    let decoded = parts.iter().filter_map(|part| postcard::from_bytes::<CastPart>(part).ok());
    decoded
        .filter_map(|part| match part {
            CastPart::Node(mut description) => {
                description.clip();
                Some(*description)
            }
            _ => None,
        })
        .collect()
}
