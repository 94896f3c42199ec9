//! The resource prospector (paper 3.4.2, PROTOCOL.md 9.2): which nodes meet a condition, and what
//! the community has in all.
//!
//! Nodes say of themselves whether a condition is true of them, so an answer is as fresh as the
//! question. A small community is asked as a whole. In a larger one a sample of it is looked
//! through first; what that does not give is sought on arcs of the ring, one after the other and
//! each larger than the one before, until enough were found.

pub mod census;
mod operations;
mod sample;
mod search;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Component, Counters, Cx, Duration, Input, Key, NodeId, Peer, Time};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::{Brief, Description};

use crate::cast::CastBody;
use crate::position::RingPosition;
use operations::{OPS, Reply};
use sample::Sample;
use serde::{Deserialize, Serialize};

pub(crate) use operations::OPS_MAX;

/// Nodes one question may ask for.
pub const WANT_MAX: u16 = 256;

/// Nodes one question may name: a service has no more replicas.
pub const CHECK_MAX: usize = 16;

/// What people, and other components, ask. [`Event::Answer`] follows.
#[derive(Clone, Debug)]
pub enum ProspectQuestion {
    /// Some nodes this is true of, at most `want` (1 to [`WANT_MAX`]).
    Find { condition: Condition, want: u16 },
    /// What there is in all.
    Census,
    /// Of which of these nodes (at most [`CHECK_MAX`]) it is true now; each is asked.
    Check { condition: Condition, nodes: Vec<NodeId> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProspectAnswer {
    Found {
        /// No more than were wanted, in no order.
        nodes: Vec<Description>,
        cost: Cost,
    },
    Census {
        nodes: Vec<Brief>,
        cost: Cost,
    },
    /// To `Check`: it is true of these, and they said so.
    Checked(Vec<NodeId>),
    /// Why not, for people.
    Failed(String),
}

/// What an answer cost, and how whole it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Nodes that answered.
    pub asked: u32,
    /// Messages it took, those to find the way and to repair it left out.
    pub messages: u32,
    pub took: Duration,
    /// Whether everybody who was to be asked answered.
    pub complete: bool,
    /// Seconds since the sample was drawn that told whom to ask; 0 without one. What is said of a
    /// node it has said itself, now.
    pub sample_age: u32,
}

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To who keeps the sample: some nodes this seems to be true of.
    Search { condition: Condition, want: u16 },
    /// Is this true of you?
    Check { condition: Condition },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Search`: of these it was true when the sample was drawn.
    Hits { peers: Vec<Peer>, age_secs: u32 },
    /// To `Search`: there is no sample here yet, or no more.
    NoSample,
    /// To `Check`: yes, this node is so.
    Is(Box<Description>),
    /// To `Check`: no.
    NotMeant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// What was asked under this call was not answered.
    Expire { call: CallId },
    /// The sample is to be drawn anew.
    Draw { round: u32 },
}

#[derive(Clone, Debug)]
pub enum Command {
    Moved(RingPosition),
    /// What came back of [`Event::Cast`].
    Feedback {
        call: CallId,
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
    /// The answer to [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    /// The answer to [`Event::Describe`]; `None` if the condition is not true.
    Described {
        to: NodeId,
        call: CallId,
        node: Option<Description>,
    },
    /// It will not answer any more.
    Gone(NodeId),
    LinkDown(NodeId),
    Ask {
        ask: u64,
        question: ProspectQuestion,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    /// How a node can be reached that others spoke of.
    Met(Peer),
    /// Is this true of this node, and how is it?
    Describe {
        to: NodeId,
        call: CallId,
        condition: Condition,
    },
    /// Tell everybody, or the nodes on an arc, and hear what they say.
    Cast {
        call: CallId,
        body: CastBody,
        arc: Option<Arc>,
    },
    Answer {
        ask: u64,
        answer: ProspectAnswer,
    },
}

#[derive(Default)]
pub struct Prospector {
    position: RingPosition,
    sample: Sample,
    /// Of the timer that draws the next one.
    round: u32,
    calls: CallsOf<Self>,
    /// When each question came that is not answered yet.
    since: Vec<(u64, Time)>,
    counters: Counters,
}

impl Component for Prospector {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(Command::Moved(position)) => self.position = position,
            Input::Command(Command::Feedback { call, parts, complete }) => {
                self.answer(call, Reply::Parts { parts, complete }, cx);
            }
            Input::Command(Command::Found { call, owner }) => {
                self.answer(call, Reply::Found(owner), cx);
            }
            Input::Command(Command::Described { to, call, node }) => {
                Self::on_described(to, call, node, cx);
            }
            Input::Command(Command::Gone(node) | Command::LinkDown(node)) => {
                self.give_up_on(node, cx);
            }
            Input::Command(Command::Ask { ask, question }) => self.on_ask(ask, question, cx),
            Input::Message { from, msg: Msg::Request { call, request } } => {
                self.on_request(from, call, request, cx);
            }
            Input::Message { from, msg: Msg::Response { call, response } } => {
                self.on_response(from, call, response, cx);
            }
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Draw { round }) if round == self.round => self.draw(cx),
            // Of a sample that was dropped meanwhile.
            Input::Timer(Timer::Draw { .. }) => {}
        }
    }
}

impl Prospector {
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            (OPS, self.calls.len(), OPS_MAX),
            ("prospector_sample", self.sampled(), sample::SAMPLED_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    fn on_ask(&mut self, ask: u64, question: ProspectQuestion, cx: &mut Cx<'_, Self>) {
        if self.position.range.is_none() {
            return Self::fail(ask, "this node is not in the ring yet; see `dugnad status`", cx);
        }
        let (size, start) = (self.position.size, cx.rng.u128(..));
        self.since.push((ask, cx.now));
        let started = match question {
            ProspectQuestion::Find { condition, want } => {
                let want = usize::from(want.clamp(1, WANT_MAX));
                let op = |asker| search::find(asker, ask, condition, want, size, start);
                self.start("find", op, cx)
            }
            ProspectQuestion::Census => {
                self.start("census", |asker| census::take(asker, ask, size), cx)
            }
            ProspectQuestion::Check { condition, mut nodes } => {
                nodes.truncate(CHECK_MAX);
                self.start("check", |asker| search::check(asker, ask, condition, nodes), cx)
            }
        };
        if !started {
            self.since.retain(|(known, _)| *known != ask);
            Self::fail(ask, "too many questions at a time; try again", cx);
        }
    }

    fn fail(ask: u64, why: &str, cx: &mut Cx<'_, Self>) {
        cx.emit(Event::Answer { ask, answer: ProspectAnswer::Failed(String::from(why)) });
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.answer_from(from, call, Reply::Response(Some(response)), cx) {
            self.counters.add("late_response", 1);
        }
    }

    /// Says an answer, and how long it took.
    fn on_answered(&mut self, ask: u64, mut answer: ProspectAnswer, cx: &mut Cx<'_, Self>) {
        let since = self.since.iter().position(|(known, _)| *known == ask);
        let since = since.map(|at| self.since.swap_remove(at).1);
        match &mut answer {
            ProspectAnswer::Found { cost, .. } | ProspectAnswer::Census { cost, .. } => {
                cost.took = since.map_or(Duration::ZERO, |since| cx.now.since(since));
            }
            ProspectAnswer::Checked(_) | ProspectAnswer::Failed(_) => {}
        }
        cx.emit(Event::Answer { ask, answer });
    }
}
