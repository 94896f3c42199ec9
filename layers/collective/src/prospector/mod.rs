//! The resource prospector (paper 3.4.1, PROTOCOL.md 9.2): which nodes meet a condition, and what
//! the community has in all.
//!
//! Nodes say of themselves whether a condition is true of them, so an answer is as fresh as the
//! question. A small community is asked as a whole; in a larger one arcs of the ring are asked, one
//! after the other and each larger than the one before, until enough were found.

pub mod census;
mod operations;
mod search;

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Component, Counters, Cx, Duration, Input, Time};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::{Brief, Description};

use crate::cast::CastBody;
use crate::position::RingPosition;
use operations::{OPS, Outcome, Reply};

pub(crate) use operations::OPS_MAX;

/// Nodes one question may ask for.
pub const WANT_MAX: u16 = 256;

/// What people, and other components, ask. [`Event::Answer`] follows.
#[derive(Clone, Debug)]
pub enum ProspectQuestion {
    /// Some nodes this is true of, at most `want` (1 to [`WANT_MAX`]).
    Find { condition: Condition, want: u16 },
    /// What there is in all.
    Census,
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
}

/// It sends nothing itself: broadcasts and bulk operations carry its questions.
pub type Msg = core::convert::Infallible;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// What was asked under this call was not answered.
    Expire { call: CallId },
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
    Ask {
        ask: u64,
        question: ProspectQuestion,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
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
                self.answer(call, Reply { parts, complete }, cx);
            }
            Input::Command(Command::Ask { ask, question }) => self.on_ask(ask, question, cx),
            Input::Message { msg, .. } => match msg {},
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
        }
    }
}

impl Prospector {
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [(OPS, self.calls.len(), OPS_MAX)].into_iter()
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
            ProspectQuestion::Census => self.start("census", |asker| census::take(asker, ask), cx),
        };
        if !started {
            self.since.retain(|(known, _)| *known != ask);
            Self::fail(ask, "too many questions at a time; try again", cx);
        }
    }

    fn fail(ask: u64, why: &str, cx: &mut Cx<'_, Self>) {
        cx.emit(Event::Answer { ask, answer: ProspectAnswer::Failed(String::from(why)) });
    }

    /// Says an answer, and how long it took.
    fn on_answered(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        let Outcome { ask, mut answer } = outcome;
        let since = self.since.iter().position(|(known, _)| *known == ask);
        let since = since.map(|at| self.since.swap_remove(at).1);
        match &mut answer {
            ProspectAnswer::Found { cost, .. } | ProspectAnswer::Census { cost, .. } => {
                cost.took = since.map_or(Duration::ZERO, |since| cx.now.since(since));
            }
            ProspectAnswer::Failed(_) => {}
        }
        cx.emit(Event::Answer { ask, answer });
    }
}
