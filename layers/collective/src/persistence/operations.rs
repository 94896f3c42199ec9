//! What operations of the persistence module ask for, and how they are answered
//! (ARCHITECTURE.md, "Operations").

use alloc::vec::Vec;
use dugnad_kernel::calls::{self, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Cx, Duration, Key, NodeId};

use super::record::Record;
use super::{Answer, Event, Msg, OPS_MAX, Persistence, Request, Response, Timer};

/// How long one node may take to answer another, and the disk to take a write.
const CALL: Duration = Duration::from_secs(2);
const DISK: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call { to: NodeId, request: Request, limit: Duration },
    Persist(Record),
    Sleep(Duration),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    Persisted(bool),
    Over,
}

/// What an operation reports or ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Nothing,
    Respond {
        to: NodeId,
        call: u32,
        response: Response,
    },
    Answer {
        call: u32,
        answer: Answer,
    },
    /// To whoever waits for a write as `call`.
    Holders {
        call: u32,
        holders: Vec<NodeId>,
        over: bool,
    },
    /// Also to the other places of its class.
    Spread(Record),
    /// Compare with `to` what both hold of the classes in `arc`.
    Digest {
        to: NodeId,
        arc: Arc,
    },
    Claimed {
        call: u32,
        record: Record,
        enough: usize,
    },
    Decided {
        key: Key,
        record: Option<Record>,
        to: NodeId,
        call: u32,
        response: Response,
    },
}

pub(crate) type Asker = AskerOf<Persistence>;

/// What will answer a question that is out.
#[derive(Clone, Debug)]
pub enum Awaited {
    Call { to: NodeId },
    Persist { token: u64 },
    Lookup,
    Pause,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } => Some(*to),
            Self::Persist { .. } | Self::Lookup | Self::Pause => None,
        }
    }
}

impl Operates for Persistence {
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
            Ask::Call { to, request, limit } => {
                cx.send(to, Msg::Request { call, request });
                (Awaited::Call { to }, Some(limit))
            }
            Ask::Persist(record) => {
                self.tokens += 1;
                let token = self.tokens;
                let writes = Vec::from([(record.id(), record.encode())]);
                cx.emit(Event::Persist { token: Some(token), writes });
                (Awaited::Persist { token }, Some(DISK))
            }
            Ask::Sleep(limit) => (Awaited::Pause, Some(limit)),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Respond { to, call, response } => self.respond(to, call, response, cx),
            Outcome::Answer { call, answer } => cx.emit(Event::Answer { call, answer }),
            Outcome::Holders { call, holders, over } => self.on_holders(call, holders, over, cx),
            Outcome::Spread(record) => self.spread(record, cx),
            Outcome::Digest { to, arc } => self.send_digest(to, arc, cx),
            Outcome::Claimed { call, record, enough } => self.begin_put(call, record, enough, cx),
            Outcome::Decided { key, record, to, call, response } => {
                self.respond(to, call, response, cx);
                self.on_decided(key, record.as_ref(), cx);
            }
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Call { .. } => Reply::Response(None),
            Awaited::Persist { .. } => Reply::Persisted(false),
            Awaited::Lookup => Reply::Found(None),
            Awaited::Pause => Reply::Over,
        })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.count("operations_overflow");
    }
}

type Answered<T> = calls::AnsweredOf<Persistence, T>;

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(crate) trait AskerExt {
    /// Who answers for the key; `None` if nobody was found.
    fn find(&self, key: Key) -> Answered<Option<NodeId>>;
    /// `None`: no answer came within `limit`.
    fn call_within(
        &self,
        to: NodeId,
        request: Request,
        limit: Duration,
    ) -> Answered<Option<Response>>;
    fn call(&self, to: NodeId, request: Request) -> Answered<Option<Response>> {
        self.call_within(to, request, CALL)
    }
    /// Whether it is on disk now.
    fn persist(&self, record: Record) -> Answered<bool>;
    fn sleep(&self, limit: Duration) -> Answered<()>;
}

impl AskerExt for Asker {
    fn find(&self, key: Key) -> Answered<Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call_within(
        &self,
        to: NodeId,
        request: Request,
        limit: Duration,
    ) -> Answered<Option<Response>> {
        self.ask(Ask::Call { to, request, limit }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn persist(&self, record: Record) -> Answered<bool> {
        self.ask(Ask::Persist(record)).read(|reply| matches!(reply, Reply::Persisted(true)))
    }

    fn sleep(&self, limit: Duration) -> Answered<()> {
        self.ask(Ask::Sleep(limit)).read(drop)
    }
}
