//! What groups say, are told and wait for (PROTOCOL.md 4.8).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Key, NodeId, Peer};
use serde::{Deserialize, Serialize};

pub use super::directory::GroupId;
use super::directory::{DirectoryAnswer, DirectoryAsk, Mode, Policy};
use crate::overlay;

/// Names one message everywhere: who said it, and its own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MsgId {
    pub origin: NodeId,
    pub number: u64,
}

/// All that one membership says reliably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stream {
    pub by: NodeId,
    pub life: u64,
}

/// One message of a stream; they count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPos {
    pub stream: Stream,
    pub seq: u32,
}

/// One message to all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub id: MsgId,
    /// Where it stands in what a member says reliably; nowhere, if it is best effort.
    pub place: Option<StreamPos>,
    /// At most [`crate::config::GROUP_BODY_MAX`] bytes.
    pub body: Vec<u8>,
}

/// How a message is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// To all members, once, as well as it goes.
    BestEffort,
    /// To all, in order for each sender and exactly once, also if messages are lost.
    Reliable,
    /// To one other member, whichever is free.
    ToOne {
        /// What it must be, for whoever is above a member to judge; nothing: any member.
        that: Vec<u8>,
    },
}

/// Looks for a member that takes a message (PROTOCOL.md 4.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Of the message that will follow.
    pub id: MsgId,
    /// Who did not take it, at most [`crate::config::GROUP_ANYCAST_VISITS`].
    pub visited: Vec<NodeId>,
    /// What whoever takes it must be, at most [`crate::config::GROUP_THAT_MAX`] bytes.
    pub that: Vec<u8>,
}

/// What goes to every member, directly in a mesh or as a broadcast of the group's ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupCast {
    /// What a member said.
    Packet(Packet),
    /// Who are you? (With feedback, before a ring that got small becomes a mesh.)
    Count,
    /// These few are all: a mesh will do from now on.
    Shrink { epoch: u32, members: Vec<Peer> },
    /// The last one of my stream so far: what is missing? (With feedback in a ring.)
    Check { place: StreamPos },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Let me in.
    Join { peer: Peer },
    /// From somebody outside: tell all members.
    Send { packet: Packet, reliable: bool },
    /// You took my token: here is the message.
    Hand { packet: Packet },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Join`: the asker is a member now.
    Welcome(Welcome),
    /// The message is on its way to the members.
    Sent,
    /// Nothing was done, and why.
    Refused(Refusal),
}

/// What a newcomer is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub epoch: u32,
    pub mode: Mode,
    pub policy: Policy,
    /// All members of a mesh, without the newcomer; the way in of a ring.
    pub peers: Vec<Peer>,
    /// How far each stream is: the newcomer hears what comes after.
    pub places: Vec<StreamPos>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It is not in the group (any more).
    NotMember,
    /// Not now: ask again.
    Busy,
    /// Only members may send.
    MembersOnly,
}

/// Between nodes, about one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, gid: GroupId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
    /// I am in the mesh; those are the others I know.
    Hello { gid: GroupId, me: Peer, known: Vec<NodeId> },
    /// How it stands with the group. In a mesh: members you did not name; in a ring: ways in.
    Members { gid: GroupId, epoch: u32, mode: Mode, peers: Vec<Peer> },
    /// This member of the mesh is dead.
    Gone { gid: GroupId, target: NodeId },
    /// I leave the mesh.
    Bye { gid: GroupId },
    /// I am not in this group.
    Outside { gid: GroupId },
    /// Straight to one member of a mesh.
    Cast { gid: GroupId, cast: GroupCast },
    /// I have everything of your stream up to here; the answer to a check in a mesh.
    Checked { gid: GroupId, place: StreamPos },
    /// Send me these, both ends included.
    Nack { gid: GroupId, stream: Stream, from: u32, to: u32 },
    /// To whoever said `Nack`: what it lacks.
    Repair { gid: GroupId, packet: Packet },
    /// To one member: take this, or pass it on.
    Token { gid: GroupId, token: Token },
    /// I am reserved for the message of this token.
    Taken { id: MsgId, by: Peer },
    /// Nobody on the token's way was free.
    NotTaken { id: MsgId },
    /// The ring of a large group. No group nests in it: the overlay has no such message.
    Ring { gid: GroupId, msg: Box<overlay::Msg> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this question is overdue, or a pause is over.
    Expire { call: CallId },
    /// Of one ring of a group; the next ring of the same group has another number.
    Ring { gid: GroupId, instance: u32, timer: overlay::Timer },
    /// Compare the record with the members.
    Refresh { gid: GroupId, life: u32 },
    /// Compare the members of a mesh with what the next two know.
    Compare { gid: GroupId, life: u32 },
    /// Say hello to somebody who was lost.
    Lost { gid: GroupId, life: u32 },
    /// The change from mesh to ring, or the way into the ring, has had its time.
    Settle { gid: GroupId, life: u32 },
    /// The record must not get too old.
    Renew { gid: GroupId, life: u32 },
    /// See whether all have what was said reliably.
    Check { gid: GroupId, life: u32 },
    /// Something of this stream is missing.
    Nack { gid: GroupId, life: u32, stream: Stream },
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Be the first member. [`Event::Answer`] follows under `call`, as for all that have one.
    Create {
        call: u32,
        name: String,
        policy: Policy,
    },
    /// `found`: begin it if there is none (a member that restarts, and everybody else did, too).
    Join {
        call: u32,
        name: String,
        found: bool,
    },
    Leave {
        call: u32,
        name: String,
    },
    /// To all members, this node if it is one, too; from anybody.
    Send {
        call: u32,
        name: String,
        body: Vec<u8>,
        manner: Manner,
    },
    /// What the directory said to [`Event::Directory`].
    Directory {
        call: CallId,
        answer: DirectoryAnswer,
    },
    /// Whether this node is what the token of [`Event::Judge`] is for.
    Judged {
        gid: GroupId,
        token: Token,
        fits: bool,
    },
    LinkUp(Peer),
    LinkDown(NodeId),
    /// The detector is sure.
    Dead(NodeId),
    /// This node goes: tell the members now, and ask nobody.
    Depart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Directory {
        call: CallId,
        key: Key,
        ask: DirectoryAsk,
    },
    Answer {
        call: u32,
        answer: Answer,
    },
    /// A message for the people and services of this node.
    Deliver {
        name: String,
        from: NodeId,
        body: Vec<u8>,
    },
    /// A token came for a member that is something: [`Command::Judged`] follows.
    Judge {
        gid: GroupId,
        token: Token,
    },
    /// Watch these nodes: groups count on them.
    Watch(Set<NodeId>),
    Contact(Peer),
    /// It did not do what it should have done by now.
    Doubt(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Exists,
    /// There is no such group.
    Unknown,
    /// Only members may.
    NotMember,
    /// As many groups as a node can be in.
    Full,
    TooLarge,
    /// Try again later; of a reliable message: others are on their way still.
    Busy,
    /// No member was free to take it, or is what was asked for.
    Nobody,
    /// Neither the directory nor a member answered.
    Unreachable,
}

/// One membership, for people to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub name: String,
    pub epoch: u32,
    pub mode: Mode,
    pub policy: Policy,
    /// Members, this node included; an estimate in a ring.
    pub members: u64,
    /// Whether it is inside already.
    pub joined: bool,
    /// Messages delivered here.
    pub delivered: u64,
}
