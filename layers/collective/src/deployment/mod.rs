//! Service deployment (paper 3.4.4), which uses all the others.
//!
//! `deployer` decides how many replicas, `allocator` where, `manager` keeps them there
//! (self-healing), `client` is how a person or another node asks.

pub mod allocator;
pub mod client;
pub mod deployer;
pub mod manager;
mod operations;
pub mod service;
mod tuner;

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Counters, Cx, Duration, Input, Key, NodeId, Time};
use dugnad_resource::condition::Value;
use dugnad_resource::execute::{ToHost, ToManager};
use serde::{Deserialize, Serialize};

use crate::cast::CastBody;
use crate::persistence::record::{Name, RECORDS_MAX, Record};
use crate::persistence::store::Records;
use crate::position::RingPosition;
use crate::{packages, persistence};
use client::{ServiceAnswer, ServiceQuestion};
use manager::Manager;
use operations::Awaited;
use service::ServiceView;

pub(crate) use operations::{Ask, Asker, AskerExt, Outcome, Reply};

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 512;
/// How long the hosts of a plan found on disk have to come back after a restart.
const HOLD: Duration = Duration::from_secs(60);
/// Dead nodes that are remembered.
const DEAD_MAX: usize = 512;
/// Peers remembered while it lasts.
const MET_MAX: usize = 256;

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To a manager: your view of the service, as soon as it differs from revision `seen`.
    Query { service: Key, seen: u64 },
    /// To a manager: what happened to the service?
    Why { service: Key },
    /// What do you hold of this service, whoever answers for it?
    Recall { service: Key },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Query`: how the service stands.
    View(ServiceView),
    /// It owns the key and knows no such service.
    Unknown,
    /// The asked node does not manage the service, or does not know yet.
    NotManager,
    /// What happened, a line each.
    Why(Vec<String>),
    /// The records of the service that lie here.
    Recalled(Vec<Record>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire { call: CallId },
    /// Look after one service: a take-over is over, a back-off ended.
    Service { key: Key, round: u32 },
    /// Hosts that have not said that a replica ended are told again to stop it.
    Stop { key: Key, tries: u32 },
    /// Look again how many replicas a goal takes.
    Review { key: Key, review: u32 },
    /// Hosts had the time to say what they run.
    Confirm { key: Key },
    /// Look whether replicas would be better off elsewhere.
    Improve,
    /// Look at what was reported of a service's load.
    Tune { key: Key },
    /// A manager's answer to a waiting query is due, changed or not.
    Poll { key: Key, from: NodeId, call: CallId },
}

#[derive(Clone, Debug)]
pub enum Command {
    /// This node has lived before.
    Lived,
    Moved(RingPosition),
    /// Another version of this record is here now.
    Changed(Name),
    /// Who answers for the key of [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    /// What came back of [`Event::Cast`].
    Feedback {
        call: CallId,
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
    /// The answer to [`Event::Records`].
    Records {
        call: CallId,
        answer: persistence::Answer,
    },
    /// The answer to [`Event::Packages`].
    Packages {
        call: CallId,
        answer: Result<(), Vec<String>>,
    },
    ToManager {
        from: NodeId,
        msg: ToManager,
    },
    Dead(NodeId),
    /// It lives in a new life: what it runs must be asked anew.
    Restarted(NodeId),
    LinkUp(NodeId),
    LinkDown(NodeId),
    /// [`Event::Answer`] follows.
    Ask {
        ask: u64,
        question: ServiceQuestion,
    },
    /// The agent ends: what this node manages it leaves as it is.
    Ending,
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    /// Tell everybody. `call`: who waits for the feedback, if somebody does.
    Cast {
        call: Option<CallId>,
        body: CastBody,
    },
    /// Asks the persistence module. `call`: who waits for the answer, if somebody does.
    Records {
        call: Option<CallId>,
        question: persistence::Question,
    },
    /// Asks [`packages`].
    Packages {
        call: CallId,
        question: packages::Question,
    },
    ToHost {
        to: NodeId,
        msg: ToHost,
    },
    /// Somebody may have subscribed to such events.
    Saw {
        name: &'static str,
        attributes: Vec<(String, Value)>,
    },
    /// Watch these nodes: they run replicas managed here.
    Watch(Set<NodeId>),
    Answer {
        ask: u64,
        reply: ServiceAnswer,
    },
}

/// The services this node manages, and the questions of its people.
pub struct Deployment {
    pub(crate) me: NodeId,
    pub(crate) position: RingPosition,
    pub(crate) records: Records,
    pub(crate) calls: CallsOf<Self>,
    pub(crate) managers: Map<Key, Manager>,
    /// Services whose other holders are being asked.
    pub(crate) recalling: Set<Key>,
    /// Names looks at the nodes apart.
    reviews: u32,
    /// Whether a look for better places is appointed.
    improving: bool,
    /// Whether this life of the node was ever in a ring with others.
    pub(crate) met_others: bool,
    pub(crate) ending: bool,
    pub(crate) dead: Map<NodeId, Time>,
    /// After a restart with plans on disk: power may have failed for everybody, so hosts get time
    /// to come back before their replicas are given away.
    pub(crate) hold_until: Option<Time>,
    /// Who was linked while that lasts: when they go, they are gone.
    pub(crate) met: Set<NodeId>,
    counters: Counters,
}

impl Component for Deployment {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Request { call, request } => self.on_request(from, call, request, cx),
                Msg::Response { call, response } => self.on_response(from, call, response, cx),
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Review { key, review }) => self.on_review(key, review, cx),
            Input::Timer(Timer::Confirm { key }) => self.on_confirm(key, cx),
            Input::Timer(Timer::Improve) => self.on_improve(cx),
            Input::Timer(Timer::Service { key, round }) => self.on_service_timer(key, round, cx),
            Input::Timer(Timer::Tune { key }) => self.on_tune(key, cx),
            Input::Timer(Timer::Stop { key, tries }) => self.on_stop_due(key, tries, cx),
            Input::Timer(Timer::Poll { key, from, call }) => self.on_poll_due(key, from, call, cx),
        }
    }
}

impl Deployment {
    /// `records`: those of this node's persistence module.
    #[must_use]
    pub fn new(me: NodeId, records: Records) -> Self {
        Self {
            me,
            position: RingPosition::default(),
            records,
            calls: CallsOf::<Self>::default(),
            managers: Map::new(),
            recalling: Set::new(),
            reviews: 0,
            improving: false,
            met_others: false,
            ending: false,
            dead: Map::new(),
            hold_until: None,
            met: Set::new(),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("service_operations", self.calls.len(), OPS_MAX),
            ("dead", self.dead.len(), DEAD_MAX),
            ("managers", self.managers.len(), RECORDS_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    /// It says something: it lives.
    pub(crate) fn heard(&mut self, from: NodeId) {
        self.dead.remove(&from);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Lived => self.hold_until = Some(cx.now + HOLD),
            Command::Moved(position) => {
                let moved = self.position.range != position.range;
                self.position = position;
                let others = !self.position.copy_holders(self.me).is_empty();
                self.met_others |= self.position.range.is_some() && others;
                if moved {
                    self.refresh_managers(cx);
                }
            }
            Command::Changed((key, name)) => self.on_changed(key, &name, cx),
            Command::Found { call, owner } => self.answer(call, Reply::Found(owner), cx),
            Command::Feedback { call, parts, complete } => {
                self.answer(call, Reply::Parts { parts, complete }, cx);
            }
            Command::Records { call, answer } => self.answer(call, Reply::Records(answer), cx),
            Command::Packages { call, answer } => self.answer(call, Reply::Packages(answer), cx),
            Command::ToManager { from, msg } => self.on_to_manager(from, msg, cx),
            Command::Dead(node) => self.on_dead(node, cx),
            Command::Restarted(node) => {
                self.give_up_on(node, cx);
                self.on_node_restarted(node, cx);
            }
            Command::LinkUp(node) => {
                if self.hold_until.is_some_and(|until| until > cx.now) && self.met.len() < MET_MAX {
                    self.met.insert(node);
                }
                self.on_node_back(node, cx);
            }
            Command::LinkDown(node) => self.give_up_on(node, cx),
            Command::Ask { ask, question } => self.on_ask(ask, question, cx),
            Command::Ending => self.ending = true,
        }
    }

    fn on_request(&mut self, from: NodeId, call: CallId, request: Request, cx: &mut Cx<'_, Self>) {
        match request {
            Request::Query { service, seen } => self.on_query(from, call, service, seen, cx),
            Request::Why { service } => self.on_why(from, call, service, cx),
            Request::Recall { service } => self.on_recall(from, call, service, cx),
        }
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if matches!(self.calls.awaited(call), Some(Awaited::Call { to }) if *to == from) {
            self.answer(call, Reply::Response(Some(response)), cx);
        } else {
            self.count("late_response");
        }
    }

    fn on_changed(&mut self, key: Key, name: &[u8], cx: &mut Cx<'_, Self>) {
        if name == service::SPEC {
            self.on_service_record(key, cx);
        } else if name == service::PLAN {
            self.on_plan_record(key, cx);
        }
    }

    fn on_dead(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        if self.dead.len() >= DEAD_MAX {
            let oldest = self.dead.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id);
            oldest.map(|id| self.dead.remove(&id));
        }
        self.dead.insert(node, cx.now);
        self.give_up_on(node, cx);
        self.on_node_dead(node, cx);
    }

    pub(crate) fn respond(
        &self,
        to: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        cx.send(to, Msg::Response { call, response });
    }
}

#[cfg(test)]
mod tests;
