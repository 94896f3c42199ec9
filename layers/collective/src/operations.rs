//! What operations ask the component for, and how it finds the answers (ARCHITECTURE.md,
//! "Operations").

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::DirectoryAnswer;
use dugnad_connectivity::route::Found;
use dugnad_kernel::calls::Awaited;
use dugnad_kernel::ops::{CallId, Step};
use dugnad_kernel::{Arc, Cx, Duration, Hash, Id, Key, NodeId, ops};
use dugnad_resource::execute::ToHost;
use dugnad_resource::spec::Tree;

use crate::cast::CastBody;
use crate::deployment::{self, client::ClientReply, trees::Waiting};
use crate::persistence::put;
use crate::persistence::record::{Record, disk_key};
use crate::persistence::store::encode;
use crate::{CALL, Collective, Event, Msg, Request, Response, Timer};

/// Answers awaited at a time; more are refused to start.
pub(crate) const OPS_MAX: usize = 512;

/// What an operation may wait for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Find(Key),
    Call {
        to: NodeId,
        request: Request,
        limit: Duration,
    },
    Persist(Record),
    Cast(CastBody),
    Digest {
        to: NodeId,
        arc: Arc,
    },
    Reserve {
        to: NodeId,
        msg: ToHost,
    },
    /// Until `enough` nodes hold the tree, or `limit` is over.
    Holders {
        root: Hash,
        known: Set<NodeId>,
        enough: usize,
        limit: Duration,
    },
    Sleep(Duration),
    /// At all places of its class; answered when `enough` nodes have it on disk.
    Put {
        record: Record,
        enough: usize,
    },
    /// To whoever waits for a write as `call`; has no answer.
    Stored {
        call: CallId,
        holders: Vec<NodeId>,
        over: bool,
    },
    /// Also to the other places of its class; does not wait for them.
    Spread(Record),
}

#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Found(Option<Found>),
    Response(Option<Response>),
    Persisted(bool),
    Parts { parts: Vec<Vec<u8>>, complete: bool },
    Reserved(Result<(), String>),
    Holders { holders: Set<NodeId>, refused: Map<NodeId, String> },
    Over,
}

impl Reply {
    pub(crate) fn owner(self) -> Option<NodeId> {
        match self {
            Self::Found(found) => found.map(|found| found.owner.id),
            _ => None,
        }
    }
}

/// What an operation ends with.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Nothing,
    Respond { to: NodeId, call: u32, response: Response },
    Holders { tree: Tree, from: Vec<NodeId> },
    Answer { ask: u64, reply: ClientReply },
    Placed(deployment::manager::Placed),
    Recalled { key: Key, records: Vec<Record> },
    PlanStored { service: Key, term: u64, stored: bool },
    Directory { call: u32, answer: DirectoryAnswer },
    Decided { key: Key, record: Option<Record>, to: NodeId, call: u32, response: Response },
}

pub(crate) type Asker = ops::Asker<Ask, Reply>;

/// Shorthand for operations.
pub(crate) trait AskerExt {
    fn call(&self, to: NodeId, request: Request) -> ops::Pending<Reply>;
}

impl AskerExt for Asker {
    fn call(&self, to: NodeId, request: Request) -> ops::Pending<Reply> {
        self.ask(Ask::Call { to, request, limit: CALL })
    }
}

/// What is known about a question that is out.
#[derive(Clone, Debug)]
pub(crate) enum Out {
    Call { to: NodeId },
    Persist { token: u64 },
    Reserve { to: NodeId, service: Key, number: u32 },
    Holders,
    Other,
}

impl Awaited for Out {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } | Self::Reserve { to, .. } => Some(*to),
            Self::Persist { .. } | Self::Holders | Self::Other => None,
        }
    }
}

impl Collective {
    /// Whether there was room for one more.
    pub(crate) fn start<F>(
        &mut self,
        name: &'static str,
        op: impl FnOnce(Asker) -> F,
        cx: &mut Cx<'_, Self>,
    ) -> bool
    where
        F: Future<Output = Outcome> + 'static,
    {
        let room = self.calls.len() < OPS_MAX;
        if room {
            let step = self.calls.start(name, op);
            self.carry_out(step, cx);
        } else {
            self.count("operations_overflow");
        }
        room
    }

    pub(crate) fn answer(&mut self, call: CallId, reply: Reply, cx: &mut Cx<'_, Self>) {
        let step = self.calls.answer(call, reply);
        self.carry_out(step, cx);
    }

    pub(crate) fn carry_out(&mut self, step: Step<Ask, Outcome>, cx: &mut Cx<'_, Self>) {
        for (call, ask) in step.asks {
            self.ask(call, ask, cx);
        }
        for outcome in step.done {
            match outcome {
                Outcome::Nothing => {}
                Outcome::Respond { to, call, response } => self.respond(to, call, response, cx),
                Outcome::Holders { tree, from } => self.on_holders(tree, from, cx),
                Outcome::Answer { ask, reply } => cx.emit(Event::Answer { ask, reply }),
                Outcome::Placed(placed) => self.on_placed(placed, cx),
                Outcome::Recalled { key, records } => self.on_recalled(key, &records, cx),
                Outcome::PlanStored { service, term, stored } => {
                    self.on_plan_stored(service, term, stored, cx);
                }
                Outcome::Directory { call, answer } => {
                    cx.emit(Event::Directory { call, answer });
                }
                Outcome::Decided { key, record, to, call, response } => {
                    self.respond(to, call, response, cx);
                    self.on_decided(key, record.as_ref(), cx);
                }
            }
        }
    }

    fn ask(&mut self, call: CallId, ask: Ask, cx: &mut Cx<'_, Self>) {
        let (out, limit) = match ask {
            Ask::Find(key) => {
                cx.emit(Event::Lookup { call, key });
                (Out::Other, None)
            }
            Ask::Call { to, request, limit } => {
                cx.send(to, Msg::Request { call, request });
                (Out::Call { to }, Some(limit))
            }
            Ask::Persist(record) => {
                let token = self.next_token();
                let writes = Vec::from([(disk_key(record.key, &record.name), encode(&record))]);
                cx.emit(Event::Persist { token, writes });
                (Out::Persist { token }, Some(CALL * 5))
            }
            Ask::Cast(body) => {
                cx.emit(Event::Cast { call, body, feedback: true });
                (Out::Other, None)
            }
            Ask::Digest { to, arc } => {
                self.send_digest(to, arc, cx);
                (Out::Other, Some(Duration::ZERO))
            }
            Ask::Reserve { to, msg } => {
                let (service, number) = match &msg {
                    ToHost::Reserve { id, .. } => (id.service, id.number),
                    _ => (Id::default(), 0),
                };
                cx.emit(Event::ToHost { to, msg });
                (Out::Reserve { to, service, number }, Some(CALL))
            }
            Ask::Holders { root, known: holders, enough, limit } => {
                let met = holders.len() >= enough;
                let refused = Map::new();
                self.held.insert(call, Waiting { root, enough, holders, refused });
                if met {
                    cx.after(Duration::ZERO, Timer::Expire { call });
                }
                (Out::Holders, Some(limit))
            }
            Ask::Sleep(limit) => (Out::Other, Some(limit)),
            Ask::Put { record, enough } => {
                self.calls.asked(call, Out::Other);
                return self.begin_put(call, record, enough, cx);
            }
            Ask::Stored { call, holders, over } => return self.on_stored(call, holders, over, cx),
            Ask::Spread(record) => {
                let me = Some(self.me);
                self.start("spread", move |asker| put::write(asker, record, None, me), cx);
                (Out::Other, Some(Duration::ZERO))
            }
        };
        self.calls.asked(call, out);
        if let Some(limit) = limit {
            cx.after(limit, Timer::Expire { call });
        }
    }
}
