//! What the ring says, is told and waits for (PROTOCOL.md 2.2, 2.3).

use alloc::vec::Vec;

use dugnad_kernel::{NodeId, Peer};
use serde::{Deserialize, Serialize};

use crate::config::SUCCESSORS;

/// Where a node stands (PROTOCOL.md 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// In no ring.
    Out,
    /// Asked to join; nothing is mine yet.
    JoinReq,
    /// Has its range; the predecessor may not know yet.
    Joining,
    /// Has its range, and no operation locks it.
    Inside,
    /// Gave part of its range to a joiner, whose predecessor has not acknowledged yet.
    PredJoining,
    /// Asked its successor for leave, under its own lock.
    LeaveReq,
    /// Granted leave to its predecessor; the range has not come yet.
    PredLeaveReq,
    /// Took over its predecessor's range, which is still being told.
    PredLeaving,
    /// Gave its range away; the one before may not know yet.
    Leaving,
    /// Out again; points the way for a moment.
    Gone,
}

/// Every message of 2.3; `op` is a random number chosen by the joiner or leaver. `JoinReq` itself
/// is routed, so it travels as [`crate::overlay::route::Purpose::Join`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Successor to joiner: locked, ask again.
    JoinRetry { op: u64, after_ms: u16 },
    /// Successor to joiner: what lies between `pred` and you is yours from now on.
    JoinPoint { op: u64, pred: Peer, succs: Vec<Peer> },
    /// Joiner to predecessor: I am between you and your successor.
    NewSucc { op: u64, joiner: Peer, succ: NodeId, succs: Vec<Peer> },
    /// Predecessor to successor: the last word under the old belief.
    NewSuccAck { op: u64, joiner: NodeId },
    /// Successor to joiner: everybody knows.
    JoinDone { op: u64 },
    /// Leaver to successor: lock yourself for me.
    LeaveReq { op: u64 },
    /// Successor to leaver: locked, ask again.
    LeaveRetry { op: u64, after_ms: u16 },
    /// Successor to leaver: locked for you.
    LeaveGrant { op: u64 },
    /// Leaver to successor: my range, from `pred` on, is yours from now on.
    LeavePoint { op: u64, pred: Peer },
    /// Successor to predecessor: `leaver` goes, I follow you with this list.
    UpdateSucc { op: u64, leaver: NodeId, succs: Vec<Peer> },
    /// Predecessor to leaver: I know.
    UpdateSuccAck { op: u64 },
    /// Leaver to successor: everybody knows.
    LeaveDone { op: u64 },
    /// To the successor, or one who may be: who is before you, and who after?
    Query { call: u32 },
    /// The answer; `pred` is the asked one itself if it has none to recommend.
    QueryRes { call: u32, pred: Peer, succs: Vec<Peer> },
    /// From a node that left: ask these instead.
    Moved { call: u32, succs: Vec<Peer> },
    /// To the successor: I am before you.
    Notify { me: Peer },
    /// From the successor: my list changed, ask me. So a list deep in the ring is right after
    /// seconds and not after a quiet round for each of its entries.
    ListChanged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The lease on the hosted lock, or on one's own, ends.
    Lock { op: u64 },
    /// The join asked for under `op` was not answered, or may be tried again.
    Retry { op: u64 },
    /// A leave that was refused, or came while locked for somebody else.
    LeaveAgain,
    /// The next round of stabilisation.
    Stabilize { round: u32 },
    /// A `Query` was not answered in time.
    Query { call: u32 },
    /// The time in which a node that left still points the way is over.
    Grace,
    /// A leave that found no lock goes without.
    LeaveLimit,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Be the first node of a ring.
    Create,
    /// Join through a node that says it is inside.
    Join {
        via: NodeId,
    },
    /// The way in turned out to be closed.
    GiveUpJoin {
        via: NodeId,
    },
    /// A routed join request reached its owner.
    JoinReq {
        op: u64,
        joiner: Peer,
    },
    Leave,
    /// The detector is sure, or a new incarnation showed up.
    Dead(NodeId),
    /// Its session ended or it could not be dialled.
    LinkDown(NodeId),
    /// A live node that might be a better neighbour (merge, or a table entry after losses).
    Candidate(Peer),
    /// As `Candidate`, if nothing better is being asked.
    Hint(Peer),
    /// Nobody else is known to live: the whole ring is mine.
    Alone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Route a join request for me through `via`.
    RouteJoin {
        via: NodeId,
        op: u64,
    },
    Joined,
    /// The join did not work out; try another way in.
    JoinFailed,
    /// What I own is now `(pred, me]`.
    RangeChanged,
    NeighboursChanged,
    /// A merge put `by` where `old` was; `old` has its place behind it.
    Displaced {
        old: Peer,
        by: NodeId,
    },
    /// Every successor is dead: name any live node.
    Stranded,
    /// A farther node says it is my predecessor: it found the one I count on dead.
    Doubt(NodeId),
    Left,
}

impl Msg {
    /// The peer records it carries, no more than an honest node sends.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        let (one, list): (Option<&Peer>, &[Peer]) = match self {
            Self::JoinPoint { pred, succs, .. } | Self::QueryRes { pred, succs, .. } => {
                (Some(pred), succs)
            }
            Self::NewSucc { joiner, succs, .. } => (Some(joiner), succs),
            Self::LeavePoint { pred, .. } => (Some(pred), &[]),
            Self::UpdateSucc { succs, .. } | Self::Moved { succs, .. } => (None, succs),
            Self::Notify { me } => (Some(me), &[]),
            Self::JoinRetry { .. }
            | Self::NewSuccAck { .. }
            | Self::JoinDone { .. }
            | Self::LeaveReq { .. }
            | Self::LeaveRetry { .. }
            | Self::LeaveGrant { .. }
            | Self::UpdateSuccAck { .. }
            | Self::LeaveDone { .. }
            | Self::Query { .. }
            | Self::ListChanged => (None, &[]),
        };
        one.into_iter().chain(list.iter().take(SUCCESSORS))
    }
}
