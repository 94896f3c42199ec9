//! Who a node is and where it can be dialled.

use core::net::SocketAddr;

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// How many addresses a peer record holds (PROTOCOL.md 0.4).
pub const ADDRS_MAX: usize = 4;

/// Where a node listens, best first.
pub type Addrs = Vec<SocketAddr, ADDRS_MAX>;

/// A node as others know it. The link proves that whoever answers at an address owns the id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub id: NodeId,
    /// Grows at every start of the node: a record with a higher incarnation is the newer one.
    pub inc: u32,
    /// Where it listens, best first. Empty if it can only dial out.
    pub addrs: Addrs,
}

impl Peer {
    #[must_use]
    pub const fn new(id: NodeId) -> Self {
        Self { id, inc: 0, addrs: Vec::new() }
    }
}
