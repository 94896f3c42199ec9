//! What the collective layer takes from and gives to the rest of the node.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_connectivity::group::directory::{DirectoryAnswer, DirectoryAsk};
use dugnad_kernel::map::Set;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Key, NodeId, Peer};
use dugnad_resource::condition::{Condition, Value};
use dugnad_resource::describe::Description;
use dugnad_resource::execute::{Order, Report, ToHost, ToManager};
use dugnad_resource::spec::Tree;

use crate::cast::CastBody;
use crate::deployment::client::{ServiceAnswer, ServiceQuestion};
use crate::linear::{self, view::View};
use crate::objects::item::Address;
use crate::objects::{ObjectAnswer, ObjectQuestion};
use crate::persistence::record::{Name, Record};
use crate::position::RingPosition;
use crate::prospector::{ProspectAnswer, ProspectQuestion};
use crate::pubsub::{self, EventAnswer, EventQuestion};

/// Whose lookup or broadcast it is, to be handed back with what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeker {
    Persistence(CallId),
    Deployment(CallId),
    Objects(CallId),
    Linear(CallId),
    Prospector(CallId),
    PubSub(CallId),
}

#[derive(Clone, Debug)]
pub enum Command {
    /// What the disk held, and whether this node has lived before.
    Restore {
        records: Vec<Record>,
        registers: linear::Kept,
        trees: Vec<Tree>,
        /// The life of this node, from 1.
        inc: u32,
        /// It begins a community.
        alone: bool,
    },
    /// Milliseconds since 1970 as the machine's clock has it now; `None` if it was never set.
    Clock(Option<u64>),
    /// What this node answers for now. `gained`: without a hand-over by who had it before.
    Moved {
        position: RingPosition,
        gained: Option<Arc>,
    },
    /// The answer to [`Event::Lookup`].
    Found {
        seeker: Seeker,
        owner: Option<NodeId>,
    },
    /// What came back of [`Event::Cast`].
    Feedback {
        seeker: Seeker,
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
    Persisted(u64),
    NotPersisted(u64),
    /// Of registers.
    RegistersPersisted(u64),
    RegistersNotPersisted(u64),
    /// Who keeps which registers, as somebody told everybody.
    Views(Vec<View>),
    Report(Report),
    ToManager {
        from: NodeId,
        msg: ToManager,
    },
    Dead(NodeId),
    /// It lives in a new life: what it runs must be asked anew.
    Restarted(NodeId),
    LinkUp(NodeId),
    LinkDown(NodeId),
    Ask {
        ask: u64,
        question: ServiceQuestion,
    },
    /// [`Event::Object`] follows.
    Object {
        ask: u64,
        question: ObjectQuestion,
    },
    /// The answer to [`Event::Describe`]; `None` if the condition is not true.
    Described {
        to: NodeId,
        call: CallId,
        node: Option<Description>,
    },
    /// [`Event::Prospect`] follows.
    Prospect {
        ask: u64,
        question: ProspectQuestion,
    },
    /// [`Event::Events`] follows.
    Events {
        ask: u64,
        question: EventQuestion,
    },
    /// This node saw something that others may want to know.
    Saw {
        name: &'static str,
        attributes: Vec<(String, Value)>,
        /// What names it, if others may see it, too: a node, and which life of it.
        of: Option<(NodeId, u64)>,
    },
    /// Of the directory of groups; [`Event::Directory`] follows under `call`.
    Directory {
        call: u32,
        key: Key,
        ask: DirectoryAsk,
    },
    /// The agent ends: what this node manages it leaves as it is.
    Ending,
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        seeker: Seeker,
        key: Key,
    },
    /// Tell everybody, or the nodes on an arc. `seeker`: who waits for the feedback, if somebody
    /// does.
    Cast {
        seeker: Option<Seeker>,
        body: CastBody,
        arc: Option<Arc>,
    },
    /// Records on their way to the disk; `None` deletes. With a token [`Command::Persisted`] or
    /// [`Command::NotPersisted`] follows.
    Persist {
        token: Option<u64>,
        writes: Vec<(Name, Option<Vec<u8>>)>,
    },
    /// The same for registers.
    PersistRegisters {
        token: u64,
        writes: Vec<(linear::DiskKey, Option<Vec<u8>>)>,
    },
    Order(Order),
    ToHost {
        to: NodeId,
        msg: ToHost,
    },
    /// Watch these nodes: they run replicas managed here.
    Watch(Set<NodeId>),
    Answer {
        ask: u64,
        reply: ServiceAnswer,
    },
    Object {
        ask: u64,
        answer: ObjectAnswer,
    },
    /// A watched object is another now.
    ObjectChanged {
        address: Address,
        answer: ObjectAnswer,
    },
    Directory {
        call: u32,
        answer: DirectoryAnswer,
    },
    Prospect {
        ask: u64,
        answer: ProspectAnswer,
    },
    /// How a node can be reached that others spoke of.
    Met(Peer),
    /// Is this true of this node, and how is it?
    Describe {
        to: NodeId,
        call: CallId,
        condition: Condition,
    },
    Events {
        ask: u64,
        answer: EventAnswer,
    },
    /// An event somebody here subscribed to.
    Told {
        sub: u64,
        told: pubsub::Told,
    },
    /// So many events were dropped before a subscriber here could be told.
    Lost {
        sub: u64,
        name: String,
        count: u64,
    },
}
