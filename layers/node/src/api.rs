//! What the node takes from and gives to whatever drives it: the agent, or the simulator.

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

pub use dugnad_collective::deployment::client::ServiceQuestion;
pub use dugnad_collective::deployment::deployer::Predicted;
pub use dugnad_collective::deployment::service::{Desired, ReplicaState, ServiceView, Slot};
pub use dugnad_collective::objects::item::{
    Address, Content, LOCKS, Manner, Namespace, STATE, Seal,
};
pub use dugnad_collective::objects::room::Room;
pub use dugnad_collective::objects::siblings::Context;
pub use dugnad_collective::objects::sums::{Listed, NodeSums};
pub use dugnad_collective::objects::{Expect, ObjectAnswer, ObjectQuestion, Value};
pub use dugnad_collective::prospector::{Cost, ProspectAnswer, ProspectQuestion, WANT_MAX};
pub use dugnad_collective::pubsub::types::EventType;
pub use dugnad_collective::pubsub::{Begin, EventAnswer, EventQuestion, Told};
pub use dugnad_connectivity::group::Manner as GroupManner;
pub use dugnad_connectivity::group::directory::{Mode as GroupMode, Policy as GroupPolicy};
use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{Duration, Hash, Key, NodeId, Peer};
use dugnad_resource::availability::Availability;
pub use dugnad_resource::describe::Brief;
use dugnad_resource::describe::{Labels, Profile};
use dugnad_resource::execute::{Order, ReplicaId, Report};
pub use dugnad_resource::spec::state_mark;
use dugnad_resource::spec::{Load, Port, Tree};
use serde::{Deserialize, Serialize};

/// Names a question of a person; the answer carries it back.
pub type AskId = u64;
/// Names a batch of writes; [`Command::Persisted`] carries it back.
pub type Token = u64;

/// What the driver tells the node.
#[derive(Clone, Debug)]
pub enum Command {
    /// Once, first: what the disk held: records, and trees that are complete. `alone` starts a
    /// ring at once (nobody to join).
    Boot {
        records: Vec<(Vec<u8>, Vec<u8>)>,
        trees: Vec<Tree>,
        alone: bool,
    },
    /// A session with a proven peer stands.
    LinkUp(Peer),
    /// The session ended, or the peer could not be dialled.
    LinkDown(NodeId),
    /// Everything in this batch is on the medium.
    Persisted(Token),
    /// Nothing of this batch is promised: the disk is full or failed.
    NotPersisted(Token),
    Host(Report),
    /// What the machine's clock says now, in milliseconds since 1970: at the start, and when it was
    /// set; `None` while it was never set.
    Clock(Option<u64>),
    Ask(AskId, Question),
    /// The owner's ceilings, and whether she takes work at all.
    Limits {
        ceilings: Ceilings,
        takes_work: bool,
    },
    /// Where this node can be dialled now, and which home it sees itself in.
    Addresses {
        addrs: Addrs,
        home: u32,
    },
    /// Marks ([`state_mark`]) of the services whose state is here though they do not run here.
    KeptState(Set<Hash>),
    /// What its owner says of this node.
    Labels(Labels),
    /// Have what runs here run elsewhere first; [`Event::HandedOver`] follows when nothing is left.
    /// Or, with false, keep it after all.
    HandOver(bool),
    /// This node measured the load of a service, which `manager` looks after.
    Load {
        service: Key,
        manager: NodeId,
        load: Load,
    },
    /// Hand everything over that is of the ring, and go; [`Event::Left`] follows. Nothing is
    /// started any more.
    Leave,
}

/// What the node asks of its driver.
#[derive(Clone, Debug)]
pub enum Event {
    /// Where a peer can be dialled.
    Contact(Peer),
    /// Write these to disk together (`None` deletes), then say [`Command::Persisted`].
    Persist {
        token: Token,
        writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
    Host(Order),
    Answer(AskId, Answer),
    /// Something people may want to read about.
    Happened(Happened),
    /// TCP ports of services, whole list, when it changed.
    Ports(Vec<(String, Port)>),
    /// Somebody said something in a group this node is in.
    GroupMessage {
        group: String,
        from: NodeId,
        from_name: String,
        body: Vec<u8>,
    },
    /// An event that `sub` subscribed to.
    Told {
        sub: u64,
        told: Told,
    },
    /// So many events were dropped before `sub` could be told.
    Lost {
        sub: u64,
        name: String,
        count: u64,
    },
    /// A watched object is another now.
    ObjectChanged {
        address: Address,
        answer: ObjectAnswer,
    },
    /// Nothing runs here any more.
    HandedOver,
    /// The ring no longer counts on this node.
    Left,
}

/// What people ask.
#[derive(Clone, Debug)]
pub enum Question {
    /// The community, about its nodes and services.
    Service(ServiceQuestion),
    /// Which node answers for this key.
    Lookup(Key),
    /// Tell everybody; answers [`Answer::Done`] when it is on its way.
    Announce(String),
    /// Answers [`Answer::Groups`] to a list, else [`Answer::Done`].
    Group(GroupQuestion),
    /// Answers [`Answer::Object`].
    Object(ObjectQuestion),
    /// Answers [`Answer::Prospect`].
    Prospect(ProspectQuestion),
    /// Answers [`Answer::Events`].
    Events(EventQuestion),
}

impl From<EventQuestion> for Question {
    fn from(question: EventQuestion) -> Self {
        Self::Events(question)
    }
}

impl From<ProspectQuestion> for Question {
    fn from(question: ProspectQuestion) -> Self {
        Self::Prospect(question)
    }
}

impl From<ObjectQuestion> for Question {
    fn from(question: ObjectQuestion) -> Self {
        Self::Object(question)
    }
}

impl From<ServiceQuestion> for Question {
    fn from(question: ServiceQuestion) -> Self {
        Self::Service(question)
    }
}

/// What people and services do with groups.
#[derive(Clone, Debug)]
pub enum GroupQuestion {
    /// Those this node is in.
    List,
    /// Be its first member.
    Create { name: String, policy: GroupPolicy },
    /// `keep`: until somebody says otherwise, restarts included; else as long as somebody listens.
    Join { name: String, keep: bool },
    /// Takes back what a join with the same `keep` did.
    Leave { name: String, keep: bool },
    /// To all members, from anybody.
    Send { name: String, body: Vec<u8>, manner: GroupManner },
}

/// A membership of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub name: String,
    pub mode: GroupMode,
    pub policy: GroupPolicy,
    pub epoch: u32,
    /// Members, this node included; an estimate where there are many.
    pub members: u64,
    /// False while it is still on its way in.
    pub joined: bool,
    pub kept: bool,
    pub listeners: u32,
    /// Messages this node heard.
    pub delivered: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nodes(Vec<NodeView>),
    Plan(PlanView),
    /// `missing` is empty if every wanted replica is ready; otherwise one line a reason.
    Deployed {
        service: ServiceView,
        missing: Vec<String>,
    },
    /// `complete` is false if part of the ring did not answer.
    Ps {
        services: Vec<ServiceView>,
        complete: bool,
    },
    Why(Vec<String>),
    Resolved(ServiceView),
    Found {
        owner: NodeId,
        /// Empty if this node never heard it.
        owner_name: String,
        /// Messages until the owner had the question.
        hops: u8,
        /// Whether nobody else can own the key at this instant (PROTOCOL.md 2.9).
        certain: bool,
        /// From the question to the answer.
        took: Duration,
    },
    Groups(Vec<GroupView>),
    Object(ObjectAnswer),
    Prospect(ProspectAnswer),
    Events(EventAnswer),
    Done,
    /// It cannot be met now; one line a reason (exit 3).
    Unmet(Vec<String>),
    /// No service of this name.
    Unknown,
    /// Somebody else changed it at the same time; who, and what to do.
    Conflict(String),
    /// It did not work; what happened and what to do next.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    Alive,
    Suspect,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    pub peer: Peer,
    pub state: NodeState,
    /// Whether this node has a session with it now.
    pub linked: bool,
    /// Whether it is the node that was asked.
    pub me: bool,
    /// What its owner calls it; empty if this node never heard it.
    pub name: String,
    /// Not known of a node that is gone.
    pub profile: Option<Profile>,
    pub free: Amounts,
    pub gives: Amounts,
    pub up_secs: u32,
    pub replicas: u16,
    /// Not known of a node that is gone.
    pub availability: Option<Availability>,
}

/// Where a service would run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanView {
    pub want: u8,
    /// Why so many.
    pub because: String,
    /// What comes of it, if a goal was set.
    pub predicted: Option<Predicted>,
    pub chosen: Vec<(NodeId, String, String)>,
    /// Node, its name, why not.
    pub refused: Vec<(NodeId, String, String)>,
    /// What was relaxed, what is missing.
    pub notes: Vec<String>,
}

/// One line of `dugnad events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// Who saw it.
    pub by: NodeId,
    pub by_name: String,
    pub service: Option<String>,
    pub text: String,
}

/// What one node knows of itself without asking anybody.
#[derive(Clone, Debug)]
pub struct Status {
    pub me: Peer,
    pub state: &'static str,
    pub predecessor: Option<NodeId>,
    pub successors: Vec<NodeId>,
    /// Estimated size of the community.
    pub size: u64,
    pub ceilings: Ceilings,
    pub promised: Amounts,
    pub replicas: Vec<(ReplicaId, String, ReplicaState)>,
    pub managed: Vec<String>,
    pub records: usize,
    pub trees: Vec<Tree>,
    pub operations: Vec<&'static str>,
    /// Counters by name, each name once: messages dropped with their reason, retries, ...
    pub counters: Vec<(&'static str, u64)>,
}
