//! Publish and subscribe (paper 3.4.1, PROTOCOL.md 9.3).
//!
//! Each type of events has a rendezvous, the owner of its key on the ring: who publishes and who
//! subscribes meets there. It decides nothing by itself. The log of a type lies in registers, and
//! their order is the order of events, whoever appends; so a rendezvous may die, move or exist
//! twice at any moment.

pub mod log;
mod operations;
mod publish;
mod rendezvous;
mod subscriber;
pub mod types;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::map::Map;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Counters, Cx, Duration, Id, Input, Key, NodeId, Time};
use dugnad_resource::condition::{Condition, Value};
use serde::{Deserialize, Serialize};

use crate::linear;
use crate::position::RingPosition;
use log::Published;
use operations::Reply;
use rendezvous::Rendezvous;
use subscriber::{Feed, Subscription};
use types::{EventType, Types};

pub(crate) use operations::OPS_MAX;

/// Types this node is the rendezvous of at a time, and types it follows for its people.
const TYPES_HERE_MAX: usize = 256;
/// Subscriptions of this node's people.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 256;
/// Conditions one node has at a rendezvous; more are one that is true of all.
const FILTERS_MAX: usize = 16;
/// Bytes of them together.
const FILTERS_BYTES: usize = 2 * 1024;
/// How long it is known which types there are.
const TYPES_KNOWN: Duration = Duration::from_secs(30);

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To a rendezvous: append this to the log of the type.
    Publish { name: String, event: Published },
    /// To a rendezvous: what there is from a place on that one of these is true of, and from then
    /// on what comes. Without a place: only what comes.
    Subscribe { name: String, from: Option<u64>, filters: Vec<Condition> },
    /// To a rendezvous: what there is, before a place.
    Read { name: String, start: Start, until: u64, filter: Condition },
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    Place(u64),
    /// Milliseconds since 1970.
    Since(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Publish`: it is in the log, at this place; 0: nobody has wanted such events lately, and
    /// it was not kept.
    Published { place: u64 },
    /// To `Subscribe` and `Read`: events with their places, in order, and where to go on. `lost`:
    /// so many were dropped before they could be read.
    Events { events: Vec<(u64, Published)>, next: u64, lost: u64 },
    /// The asked node does not answer for this type.
    NotHere,
    /// No majority of those who keep the log answers.
    Unavailable,
    /// The event is not as its type says, or there is no such type.
    Unfit,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
    /// From a rendezvous, over others of these nodes: events, and the place behind the last.
    Events { name: String, events: Vec<(u64, Published)>, next: u64, to: Vec<Receiver> },
    /// A rendezvous that was: ask who it is now.
    Moved { name: String },
}

/// A node that is to hear of events, and the place up to which it was told before. Its id is bytes:
/// a number of that length takes three more, and an event goes with hundreds of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    node: [u8; 16],
    up_to: u64,
}

impl Receiver {
    #[must_use]
    pub fn new(node: NodeId, up_to: u64) -> Self {
        Self { node: node.0.to_be_bytes(), up_to }
    }

    fn node(&self) -> NodeId {
        Id(u128::from_be_bytes(self.node))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire { call: CallId },
    /// Tell the rendezvous of a type that its events are still wanted.
    Renew { name: String, round: u32 },
    /// Look whether there are new types, which may descend from those people subscribed to.
    Descendants,
}

/// What people and services ask. [`Event::Answer`] follows.
#[derive(Clone, Debug)]
pub enum EventQuestion {
    Types,
    Define(EventType),
    /// Values as people write them.
    Publish {
        name: String,
        attributes: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// [`Event::Told`] follows under `sub` for each event of the type, or of one that descends from
    /// it, that this is true of.
    Subscribe {
        sub: u64,
        name: String,
        condition: String,
        begin: Begin,
    },
    Unsubscribe {
        sub: u64,
    },
}

/// Which events somebody wants who subscribes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    Now,
    /// Those that were published since then and are still there, too; milliseconds since 1970.
    Since(u64),
    /// Those after these places, by type: where somebody left off.
    After(Vec<(String, u64)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventAnswer {
    Types(Vec<EventType>),
    /// It is in the log; 0: nobody wanted it.
    Published {
        place: u64,
    },
    Done,
    /// What is wrong with the question.
    Wrong(String),
    /// Something else has this name.
    Conflict(String),
    /// No majority answers.
    Unavailable,
    Failed(String),
}

/// An event, to who subscribed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub name: String,
    pub place: u64,
    pub event: Published,
}

#[derive(Clone, Debug)]
pub enum Command {
    Moved(RingPosition),
    /// Milliseconds since 1970; `None` if the machine's clock was never set.
    Clock(Option<u64>),
    /// The answer to [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    /// The answer to [`Event::Linear`].
    Linear {
        call: CallId,
        answer: linear::Answer,
    },
    /// It will not answer any more.
    Gone(NodeId),
    LinkDown(NodeId),
    /// Something this node saw itself, of a built-in type.
    Saw {
        name: &'static str,
        attributes: Vec<(String, Value)>,
        /// What names it, if others may see it, too.
        of: Option<(NodeId, u64)>,
    },
    Ask {
        ask: u64,
        question: EventQuestion,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    /// Asks the registers.
    Linear {
        call: CallId,
        question: linear::Question,
    },
    Answer {
        ask: u64,
        answer: EventAnswer,
    },
    Told {
        sub: u64,
        told: Told,
    },
    /// So many events were dropped before this subscriber could be told.
    Lost {
        sub: u64,
        name: String,
        count: u64,
    },
}

pub struct PubSub {
    me: NodeId,
    position: RingPosition,
    calls: CallsOf<Self>,
    /// Milliseconds since 1970 at a moment of this node's own time.
    clock: Option<(u64, Time)>,
    types: Option<(Types, Time)>,
    /// Whether [`Timer::Descendants`] is out.
    looking: bool,
    meeting: Map<String, Rendezvous>,
    /// How many there were.
    meetings: u32,
    feeds: Map<String, Feed>,
    subscriptions: Map<u64, Subscription>,
    counters: Counters,
}

impl Component for PubSub {
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
                Msg::Events { name, events, next, to } => {
                    self.on_events(&name, events, next, &to, cx);
                }
                Msg::Moved { name } => self.on_moved(from, &name, cx),
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Renew { name, round }) => self.on_renew(name, round, cx),
            Input::Timer(Timer::Descendants) => self.on_descendants(cx),
        }
    }
}

impl PubSub {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            position: RingPosition::default(),
            calls: CallsOf::<Self>::default(),
            clock: None,
            types: None,
            looking: false,
            meeting: Map::new(),
            meetings: 0,
            feeds: Map::new(),
            subscriptions: Map::new(),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    fn count(&mut self, what: &'static str) {
        self.counters.add(what, 1);
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("event_operations", self.calls.len(), OPS_MAX),
            ("event_rendezvous", self.meeting.len(), TYPES_HERE_MAX),
            ("event_feeds", self.feeds.len(), TYPES_HERE_MAX),
            ("event_subscriptions", self.subscriptions.len(), SUBSCRIPTIONS_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    /// Milliseconds since 1970; 0 if nobody knows.
    fn now_ms(&self, now: Time) -> u64 {
        self.clock.map_or(0, |(ms, at)| {
            ms.saturating_add(u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX))
        })
    }

    /// The types there are, if that was read a moment ago.
    fn known_types(&self, now: Time) -> Option<Types> {
        let known = self.types.as_ref().filter(|(_, at)| now.since(*at) < TYPES_KNOWN);
        known.map(|(types, _)| types.clone())
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Moved(position) => {
                self.position = position;
                self.leave_meetings(cx);
            }
            Command::Clock(ms) => self.clock = ms.map(|ms| (ms, cx.now)),
            Command::Found { call, owner } => self.answer(call, Reply::Found(owner), cx),
            Command::Linear { call, answer } => self.answer(call, Reply::Linear(answer), cx),
            Command::Gone(node) => {
                self.give_up_on(node, cx);
                self.forget_subscriber(node);
                self.rendezvous_gone(node, cx);
            }
            Command::LinkDown(node) => {
                self.give_up_on(node, cx);
                self.rendezvous_gone(node, cx);
            }
            Command::Saw { name, attributes, of } => self.publish_own(name, attributes, of, cx),
            Command::Ask { ask, question } => self.on_ask(ask, question, cx),
        }
    }

    fn on_ask(&mut self, ask: u64, question: EventQuestion, cx: &mut Cx<'_, Self>) {
        if let EventQuestion::Unsubscribe { sub } = question {
            self.unsubscribe(sub);
            return cx.emit(Event::Answer { ask, answer: EventAnswer::Done });
        }
        if self.position.range.is_none() {
            let text = "this node is not in the ring yet; see `dugnad status`".to_string();
            return cx.emit(Event::Answer { ask, answer: EventAnswer::Failed(text) });
        }
        let known = self.known_types(cx.now);
        let (id, at_ms) = (cx.rng.u64(..), self.now_ms(cx.now));
        let me = self.me;
        let started = match question {
            EventQuestion::Types => self.start("types", |asker| publish::list(asker, ask), cx),
            EventQuestion::Define(new) => {
                self.start("define type", |asker| publish::define(asker, ask, new), cx)
            }
            EventQuestion::Publish { name, attributes, body } => {
                let id = log::EventId { by: me, number: id };
                let new = publish::New { name, attributes, body, id, at_ms };
                self.start("publish", |asker| publish::publish(asker, ask, known, new), cx)
            }
            EventQuestion::Subscribe { sub, name, condition, begin } => {
                let wanted = subscriber::Wanted { sub, name, condition, begin };
                self.start("subscribe", |asker| subscriber::open(asker, ask, known, wanted), cx)
            }
            EventQuestion::Unsubscribe { .. } => true,
        };
        if !started {
            let text = "too many questions at a time; try again".to_string();
            cx.emit(Event::Answer { ask, answer: EventAnswer::Failed(text) });
        }
    }

    /// This node saw something. Nobody waits for it: without a majority it is counted and gone.
    fn publish_own(
        &mut self,
        name: &'static str,
        attributes: Vec<(String, Value)>,
        of: Option<(NodeId, u64)>,
        cx: &mut Cx<'_, Self>,
    ) {
        if self.position.range.is_none() {
            return self.count("event_unpublished");
        }
        let (by, number) = of.unwrap_or_else(|| (self.me, cx.rng.u64(..)));
        let (id, at_ms) = (log::EventId { by, number }, self.now_ms(cx.now));
        let event = Published { id, at_ms, attributes, body: Vec::new() };
        let name = name.to_string();
        self.start("publish", |asker| publish::publish_own(asker, name, event), cx);
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.answer_from(from, call, Reply::Response(Some(response)), cx) {
            self.count("late_response");
        }
    }
}
