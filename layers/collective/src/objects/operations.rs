//! What operations on objects ask for, and how they are answered (ARCHITECTURE.md, "Operations").

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Key, NodeId};

use super::item::{Address, Content, Manner, Namespace};
use super::siblings::Context;
use super::{Event, Msg, ObjectAnswer, Objects, Request, Response, Timer};
use crate::cast::{CastBody, CastPart};
use crate::persistence::record::{Name, Record};
use crate::{linear, packages, persistence};

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 256;
/// How long one node may take to answer another, and to keep one more value.
const CALL: Duration = Duration::from_secs(2);
const ADD: Duration = Duration::from_secs(6);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call { to: NodeId, request: Request },
    Cast(CastBody),
    Records(persistence::Question),
    Packages(packages::Question),
    Linear(linear::Question),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    Parts { parts: Vec<Vec<u8>>, complete: bool },
    Records(persistence::Answer),
    Packages(Result<(), Vec<String>>),
    Linear(linear::Answer),
}

/// A write that needs a stamp.
#[derive(Clone, Debug)]
pub struct Stamping {
    pub(super) ask: u64,
    pub(super) address: Address,
    pub(super) content: Option<Content>,
    /// The record there was.
    pub(super) known: Option<Record>,
    /// Whether nothing may have come between.
    pub(super) claim: bool,
    pub(super) wanted: usize,
}

/// One more value for an object that merges.
#[derive(Clone, Debug)]
pub struct Adding {
    pub(super) address: Address,
    pub(super) content: Option<Content>,
    pub(super) context: Option<Context>,
    /// What other owners have.
    pub(super) others: Vec<Record>,
    pub(super) to: NodeId,
    pub(super) call: CallId,
}

/// What an operation reports or ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Nothing,
    Answer {
        ask: u64,
        answer: ObjectAnswer,
    },
    /// How a namespace is kept, as was read now.
    Known(Namespace),
    /// So many bytes are in a namespace.
    Used {
        namespace: String,
        bytes: u64,
    },
    /// Others find this node's clock right.
    ClockRight,
    /// All is well: give it a stamp and write it.
    Stamp(Box<Stamping>),
    /// This node knows enough of the object to take one more value.
    Add(Box<Adding>),
    /// It is on disk, or not; nobody waits for this record any more.
    Added {
        record: Record,
        to: NodeId,
        call: CallId,
        response: Response,
    },
    /// Watch it from now on; this is how it is.
    Watch {
        address: Address,
        manner: Manner,
        seen: ObjectAnswer,
    },
    /// How a watched object is.
    Seen {
        key: Key,
        answer: ObjectAnswer,
    },
}

pub(crate) type Asker = AskerOf<Objects>;

/// What will answer a question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    Call { to: NodeId },
    Lookup,
    Feedback,
    Records,
    Packages,
    Linear,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } => Some(*to),
            Self::Lookup | Self::Feedback | Self::Records | Self::Packages | Self::Linear => None,
        }
    }
}

impl Operates for Objects {
    type Ask = Ask;
    type Reply = Reply;
    type Outcome = Outcome;
    type Awaited = Awaited;
    const MAX: usize = OPS_MAX;

    fn calls(&mut self) -> &mut CallsOf<Self> {
        &mut self.calls
    }

    fn carry_out(
        &mut self,
        call: CallId,
        ask: Ask,
        cx: &mut Cx<'_, Self>,
    ) -> (Awaited, Option<Duration>) {
        match ask {
            Ask::Find(key) => {
                cx.emit(Event::Lookup { call, key });
                (Awaited::Lookup, None)
            }
            Ask::Call { to, request } => {
                let limit = if matches!(request, Request::Add { .. }) { ADD } else { CALL };
                cx.send(to, Msg::Request { call, request });
                (Awaited::Call { to }, Some(limit))
            }
            Ask::Cast(body) => {
                cx.emit(Event::Cast { call, body });
                (Awaited::Feedback, None)
            }
            Ask::Records(question) => {
                cx.emit(Event::Records { call, question });
                (Awaited::Records, None)
            }
            Ask::Packages(question) => {
                cx.emit(Event::Packages { call, question });
                (Awaited::Packages, None)
            }
            Ask::Linear(question) => {
                cx.emit(Event::Linear { call, question });
                (Awaited::Linear, None)
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Answer { ask, answer } => cx.emit(Event::Answer { ask, answer }),
            Outcome::Known(namespace) => self.learn(namespace, cx.now),
            Outcome::Used { namespace, bytes } => self.on_used(namespace, bytes, cx.now),
            Outcome::ClockRight => self.clock_right = Some(cx.now),
            Outcome::Stamp(stamping) => self.stamp(*stamping, cx),
            Outcome::Add(adding) => self.add_here(*adding, cx),
            Outcome::Added { record, to, call, response } => {
                if self.adding.get(&record.key) == Some(&record) {
                    self.adding.remove(&record.key);
                }
                cx.send(to, Msg::Response { call, response });
            }
            Outcome::Watch { address, manner, seen } => {
                self.begin_watch(address, manner, seen, cx);
            }
            Outcome::Seen { key, answer } => self.on_seen(key, answer, cx),
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Call { .. } => Reply::Response(None),
            Awaited::Lookup => Reply::Found(None),
            Awaited::Feedback => Reply::Parts { parts: Vec::new(), complete: false },
            Awaited::Records => Reply::Records(persistence::Answer::Unreachable),
            Awaited::Packages => Reply::Packages(Err(Vec::new())),
            Awaited::Linear => Reply::Linear(linear::Answer::Unavailable),
        })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.count("operations_overflow");
    }
}

/// Nobody answers for it now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unreachable;

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(crate) trait AskerExt {
    /// Who answers for the key; `None` if nobody was found.
    fn find(&self, key: Key) -> AnsweredOf<Objects, Option<NodeId>>;
    /// `None`: no answer came.
    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Objects, Option<Response>>;
    /// What the community answers, and whether all of it did.
    fn cast(&self, body: CastBody) -> AnsweredOf<Objects, (Vec<CastPart>, bool)>;
    fn records(&self, question: persistence::Question) -> AnsweredOf<Objects, persistence::Answer>;
    /// The newest version of a record; `Err` if nobody answers for it.
    fn get(&self, name: Name) -> AnsweredOf<Objects, Result<Option<Record>, Unreachable>>;
    /// What the registers say.
    fn linear(&self, question: linear::Question) -> AnsweredOf<Objects, linear::Answer>;
    /// `Err`: why not, a line a reason.
    fn packages(
        &self,
        question: packages::Question,
    ) -> AnsweredOf<Objects, Result<(), Vec<String>>>;
}

impl AskerExt for Asker {
    fn find(&self, key: Key) -> AnsweredOf<Objects, Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Objects, Option<Response>> {
        self.ask(Ask::Call { to, request }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn cast(&self, body: CastBody) -> AnsweredOf<Objects, (Vec<CastPart>, bool)> {
        self.ask(Ask::Cast(body)).read(|reply| match reply {
            Reply::Parts { parts, complete } => {
                let parts = parts.iter().filter_map(|part| postcard::from_bytes(part).ok());
                (parts.collect(), complete)
            }
            _ => (Vec::new(), false),
        })
    }

    fn records(&self, question: persistence::Question) -> AnsweredOf<Objects, persistence::Answer> {
        self.ask(Ask::Records(question)).read(|reply| match reply {
            Reply::Records(answer) => answer,
            _ => persistence::Answer::Unreachable,
        })
    }

    fn get(&self, name: Name) -> AnsweredOf<Objects, Result<Option<Record>, Unreachable>> {
        self.ask(Ask::Records(persistence::Question::Get(name))).read(|reply| match reply {
            Reply::Records(persistence::Answer::Found(record)) => Ok(record),
            _ => Err(Unreachable),
        })
    }

    fn linear(&self, question: linear::Question) -> AnsweredOf<Objects, linear::Answer> {
        self.ask(Ask::Linear(question)).read(|reply| match reply {
            Reply::Linear(answer) => answer,
            _ => linear::Answer::Unavailable,
        })
    }

    fn packages(
        &self,
        question: packages::Question,
    ) -> AnsweredOf<Objects, Result<(), Vec<String>>> {
        self.ask(Ask::Packages(question)).read(|reply| match reply {
            Reply::Packages(answer) => answer,
            _ => Err(Vec::new()),
        })
    }
}
