//! What questions to the community ask for, and how they are answered (ARCHITECTURE.md,
//! "Operations").

use alloc::vec::Vec;

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Cx, Duration, Key, NodeId, Peer};
use dugnad_resource::describe::Description;

use super::{Event, Msg, ProspectAnswer, Prospector, Request, Response, Timer};
use crate::cast::{CastBody, CastPart};

/// The trees below answer before, whoever fails on the way: their patience is shorter.
const LIMIT: Duration = Duration::from_secs(90);
/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 64;
pub(super) const OPS: &str = "prospector_operations";

/// How long one node may take to answer another.
const CALL: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call {
        to: NodeId,
        request: Request,
    },
    /// Tell these, and hear what they say.
    Cast {
        body: CastBody,
        arc: Option<Arc>,
    },
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    /// What they said, and whether all did.
    Parts {
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
}

/// What an operation ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Answer {
        ask: u64,
        answer: ProspectAnswer,
    },
    /// How nodes can be reached that are about to be asked.
    Met(Vec<Peer>),
    /// A sample of the community.
    Drawn(Vec<Description>),
}

pub(crate) type Asker = AskerOf<Prospector>;

/// What will answer a question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    Call {
        to: NodeId,
    },
    Lookup,
    /// What the trees below bring together.
    Feedback,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } => Some(*to),
            Self::Lookup | Self::Feedback => None,
        }
    }
}

impl Operates for Prospector {
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
                cx.send(to, Msg::Request { call, request });
                (Awaited::Call { to }, Some(CALL))
            }
            Ask::Cast { body, arc } => {
                cx.emit(Event::Cast { call, body, arc });
                (Awaited::Feedback, Some(LIMIT))
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Answer { ask, answer } => self.on_answered(ask, answer, cx),
            Outcome::Met(peers) => peers.into_iter().for_each(|peer| cx.emit(Event::Met(peer))),
            Outcome::Drawn(nodes) => self.on_drawn(nodes, cx),
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Call { .. } => Reply::Response(None),
            Awaited::Lookup => Reply::Found(None),
            Awaited::Feedback => Reply::Parts { parts: Vec::new(), complete: false },
        })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.counters.add("operations_overflow", 1);
    }
}

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(super) trait AskerExt {
    /// Who answers for the key; `None` if nobody was found.
    fn find(&self, key: Key) -> AnsweredOf<Prospector, Option<NodeId>>;
    /// `None`: no answer came in time.
    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Prospector, Option<Response>>;
    /// What everybody says, or the nodes on an arc, and whether all of them did.
    fn cast(&self, body: CastBody, arc: Option<Arc>) -> AnsweredOf<Prospector, Said>;
}

/// What nodes said, and whether all did.
type Said = (Vec<CastPart>, bool);

impl AskerExt for Asker {
    fn find(&self, key: Key) -> AnsweredOf<Prospector, Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Prospector, Option<Response>> {
        self.ask(Ask::Call { to, request }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn cast(&self, body: CastBody, arc: Option<Arc>) -> AnsweredOf<Prospector, Said> {
        self.ask(Ask::Cast { body, arc }).read(|reply| match reply {
            Reply::Parts { parts, complete } => {
                let parts = parts.iter().filter_map(|part| postcard::from_bytes(part).ok());
                (parts.collect(), complete)
            }
            _ => (Vec::new(), false),
        })
    }
}
