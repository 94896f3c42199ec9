//! What operations of the deployment ask for, and how they are answered (ARCHITECTURE.md,
//! "Operations").

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Id, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::execute::ToHost;
use dugnad_resource::spec::Want;

use super::client::ServiceAnswer;
use super::deployer::Sum;
use super::{Deployment, Event, Msg, OPS_MAX, Request, Response, Timer, manager};
use crate::cast::CastBody;
use crate::persistence::record::{Name, Record};
use crate::{packages, persistence};

/// How long one node may take to answer another.
const CALL: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call { to: NodeId, request: Request },
    Cast(CastBody),
    Reserve { to: NodeId, msg: ToHost },
    Records(persistence::Question),
    Packages(packages::Question),
    Sleep(Duration),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    Parts { parts: Vec<Vec<u8>>, complete: bool },
    Reserved(Result<(), String>),
    Records(persistence::Answer),
    Packages(Result<(), Vec<String>>),
    Over,
}

/// What an operation ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Nothing,
    Answer {
        ask: u64,
        reply: ServiceAnswer,
    },
    Placed(manager::Placed),
    /// Points of all nodes as places for one replica of it.
    Scored {
        service: Key,
        scores: Map<NodeId, i64>,
    },
    /// All nodes as they are now; none if some did not answer.
    Looked {
        keys: Vec<Key>,
        nodes: Vec<Description>,
    },
    /// How many replicas a goal takes now; `None` if not all nodes answered.
    Reviewed {
        service: Key,
        review: u32,
        sum: Option<(Want, Sum)>,
    },
    Recalled {
        service: Key,
        records: Vec<Record>,
    },
    TakenIn {
        service: Key,
    },
    PlanStored {
        service: Key,
        term: u64,
        stored: bool,
    },
}

pub(crate) type Asker = AskerOf<Deployment>;

/// What will answer a question that is out.
#[derive(Clone, Debug)]
pub enum Awaited {
    Call { to: NodeId },
    Reserve { to: NodeId, service: Key, number: u32 },
    Lookup,
    Feedback,
    Records,
    Packages,
    Pause,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } | Self::Reserve { to, .. } => Some(*to),
            Self::Lookup | Self::Feedback | Self::Records | Self::Packages | Self::Pause => None,
        }
    }
}

impl Operates for Deployment {
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
            Ask::Cast(body) => {
                cx.emit(Event::Cast { call: Some(call), body });
                (Awaited::Feedback, None)
            }
            Ask::Reserve { to, msg } => {
                let (service, number) = match &msg {
                    ToHost::Reserve { id, .. } => (id.service, id.number),
                    _ => (Id::default(), 0),
                };
                cx.emit(Event::ToHost { to, msg });
                (Awaited::Reserve { to, service, number }, Some(CALL))
            }
            Ask::Records(question) => {
                cx.emit(Event::Records { call: Some(call), question });
                (Awaited::Records, None)
            }
            Ask::Packages(question) => {
                cx.emit(Event::Packages { call, question });
                (Awaited::Packages, None)
            }
            Ask::Sleep(limit) => (Awaited::Pause, Some(limit)),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Answer { ask, reply } => cx.emit(Event::Answer { ask, reply }),
            Outcome::Placed(placed) => self.on_placed(placed, cx),
            Outcome::Scored { service, scores } => self.on_scored(service, scores, cx),
            Outcome::Looked { keys, nodes } => self.on_looked(keys, nodes, cx),
            Outcome::Reviewed { service, review, sum } => {
                self.on_reviewed(service, review, sum, cx);
            }
            Outcome::Recalled { service, records } => self.on_recalled(service, records, cx),
            Outcome::TakenIn { service } => self.on_taken_in(service, cx),
            Outcome::PlanStored { service, term, stored } => {
                self.on_plan_stored(service, term, stored, cx);
            }
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Call { .. } => Reply::Response(None),
            Awaited::Reserve { .. } => Reply::Reserved(Err("does not answer".into())),
            Awaited::Lookup => Reply::Found(None),
            Awaited::Feedback => Reply::Parts { parts: Vec::new(), complete: false },
            Awaited::Records => Reply::Records(persistence::Answer::Unreachable),
            Awaited::Packages => Reply::Packages(Err(Vec::new())),
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

type Answered<T> = AnsweredOf<Deployment, T>;

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(crate) trait AskerExt {
    /// Who answers for the key; `None` if nobody was found.
    fn find(&self, key: Key) -> Answered<Option<NodeId>>;
    /// `None`: no answer came in time.
    fn call(&self, to: NodeId, request: Request) -> Answered<Option<Response>>;
    /// What the nodes answer, and whether all did.
    fn cast(&self, body: CastBody) -> Answered<(Vec<Vec<u8>>, bool)>;
    /// `Err`: why the host refuses.
    fn reserve(&self, to: NodeId, msg: ToHost) -> Answered<Result<(), String>>;
    fn records(&self, question: persistence::Question) -> Answered<persistence::Answer>;
    /// The newest version of a record that its owners know; `Err` if none of them answered.
    fn get(&self, name: Name) -> Answered<Result<Option<Record>, ()>>;
    /// Who has the record on disk: as many as `enough`, or nobody if it failed.
    fn put(&self, record: Record, enough: usize) -> Answered<Set<NodeId>>;
    /// `Err`: why the packages are not kept, a line a reason.
    fn packages(&self, question: packages::Question) -> Answered<Result<(), Vec<String>>>;
    fn sleep(&self, limit: Duration) -> Answered<()>;
}

impl AskerExt for Asker {
    fn find(&self, key: Key) -> Answered<Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call(&self, to: NodeId, request: Request) -> Answered<Option<Response>> {
        self.ask(Ask::Call { to, request }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn cast(&self, body: CastBody) -> Answered<(Vec<Vec<u8>>, bool)> {
        self.ask(Ask::Cast(body)).read(|reply| match reply {
            Reply::Parts { parts, complete } => (parts, complete),
            _ => (Vec::new(), false),
        })
    }

    fn reserve(&self, to: NodeId, msg: ToHost) -> Answered<Result<(), String>> {
        self.ask(Ask::Reserve { to, msg }).read(|reply| match reply {
            Reply::Reserved(result) => result,
            _ => Err(String::new()),
        })
    }

    fn records(&self, question: persistence::Question) -> Answered<persistence::Answer> {
        self.ask(Ask::Records(question)).read(|reply| match reply {
            Reply::Records(answer) => answer,
            _ => persistence::Answer::Unreachable,
        })
    }

    fn get(&self, name: Name) -> Answered<Result<Option<Record>, ()>> {
        self.ask(Ask::Records(persistence::Question::Get(name))).read(|reply| match reply {
            Reply::Records(persistence::Answer::Found(record)) => Ok(record),
            _ => Err(()),
        })
    }

    fn put(&self, record: Record, enough: usize) -> Answered<Set<NodeId>> {
        let question = persistence::Question::Put { record, enough };
        self.ask(Ask::Records(question)).read(|reply| match reply {
            Reply::Records(persistence::Answer::Stored(holders)) => holders,
            _ => Set::new(),
        })
    }

    fn packages(&self, question: packages::Question) -> Answered<Result<(), Vec<String>>> {
        self.ask(Ask::Packages(question)).read(|reply| match reply {
            Reply::Packages(answer) => answer,
            _ => Err(Vec::new()),
        })
    }

    fn sleep(&self, limit: Duration) -> Answered<()> {
        self.ask(Ask::Sleep(limit)).read(drop)
    }
}
