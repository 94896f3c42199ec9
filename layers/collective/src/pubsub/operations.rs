//! What operations on events ask for, and how they are answered (ARCHITECTURE.md, "Operations").

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::condition::Condition;

use super::log::{EventId, Log, Published};
use super::types::Types;
use super::{Begin, Event, EventAnswer, Msg, PubSub, Request, Response, Timer};
use crate::linear;

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 256;
/// Registers of a log that are read at a time.
const READS: usize = 8;
/// How long a rendezvous may take: it has registers read and written.
const CALL: Duration = Duration::from_secs(6);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call { to: NodeId, request: Request },
    Linear(linear::Question),
    Sleep(Duration),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    Linear(linear::Answer),
    Over,
}

/// What became of the requests that were served together.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Which rendezvous it was.
    pub(super) number: u32,
    /// There is no such type.
    pub(super) unknown: bool,
    pub(super) log: Option<Log>,
    pub(super) wanted_ms: Option<u64>,
    /// Nobody has wanted such events lately.
    pub(super) nobody: bool,
    /// Not as the type says.
    pub(super) unfit: Vec<EventId>,
}

/// A subscription that was found good.
#[derive(Clone, Debug)]
pub struct Opened {
    pub(super) sub: u64,
    pub(super) name: String,
    pub(super) condition: Condition,
    pub(super) begin: Begin,
    /// The type and what descends from it.
    pub(super) types: Vec<String>,
}

/// What an operation reports or ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Nothing,
    /// Something this node saw could not be published.
    Unpublished,
    Answer {
        ask: u64,
        answer: EventAnswer,
    },
    /// The types there are, as was read now.
    Types(Types),
    /// There are others than before.
    Grown(Types),
    /// What came of the requests that waited at a rendezvous.
    Served {
        name: String,
        served: Served,
    },
    /// Somebody's subscription is found good.
    Opened {
        ask: u64,
        opened: Opened,
    },
    /// A rendezvous answered a subscription, or nobody did.
    Renewed {
        name: String,
        at: Option<NodeId>,
        response: Option<Response>,
    },
    /// The events from before somebody subscribed were read, up to where the feed goes on.
    CaughtUp {
        sub: u64,
        name: String,
        read: Vec<(u64, Published)>,
        lost: u64,
    },
}

pub(super) type Asker = AskerOf<PubSub>;

/// What will answer a question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    Call { to: NodeId },
    Lookup,
    Linear,
    Pause,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } => Some(*to),
            Self::Lookup | Self::Linear | Self::Pause => None,
        }
    }
}

impl Operates for PubSub {
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
            Ask::Linear(question) => {
                cx.emit(Event::Linear { call, question });
                (Awaited::Linear, None)
            }
            Ask::Sleep(limit) => (Awaited::Pause, Some(limit)),
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Unpublished => self.count("event_unpublished"),
            Outcome::Answer { ask, answer } => cx.emit(Event::Answer { ask, answer }),
            Outcome::Types(types) => self.types = Some((types, cx.now)),
            Outcome::Grown(types) => self.on_grown(&types, cx),
            Outcome::Served { name, served } => self.on_served(&name, served, cx),
            Outcome::Opened { ask, opened } => self.on_opened(ask, opened, cx),
            Outcome::Renewed { name, at, response } => self.on_renewed(&name, at, response, cx),
            Outcome::CaughtUp { sub, name, read, lost } => {
                self.on_caught_up(sub, &name, read, lost, cx);
            }
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Call { .. } => Reply::Response(None),
            Awaited::Lookup => Reply::Found(None),
            Awaited::Linear => Reply::Linear(linear::Answer::Unavailable),
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

/// Revision and value of a register; `Err`: no majority answers.
type Held = Result<(u64, Option<Vec<u8>>), ()>;

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(super) trait AskerExt {
    /// Who answers for the key; `None` if nobody was found.
    fn find(&self, key: Key) -> AnsweredOf<PubSub, Option<NodeId>>;
    /// `None`: no answer came in time.
    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<PubSub, Option<Response>>;
    fn linear(&self, question: linear::Question) -> AnsweredOf<PubSub, linear::Answer>;
    fn read(&self, key: Key) -> AnsweredOf<PubSub, Held>;
    fn sleep(&self, limit: Duration) -> AnsweredOf<PubSub, ()>;
}

impl AskerExt for Asker {
    fn find(&self, key: Key) -> AnsweredOf<PubSub, Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<PubSub, Option<Response>> {
        self.ask(Ask::Call { to, request }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn linear(&self, question: linear::Question) -> AnsweredOf<PubSub, linear::Answer> {
        self.ask(Ask::Linear(question)).read(|reply| match reply {
            Reply::Linear(answer) => answer,
            _ => linear::Answer::Unavailable,
        })
    }

    fn read(&self, key: Key) -> AnsweredOf<PubSub, Held> {
        self.ask(Ask::Linear(linear::Question::Read { key })).read(|reply| match reply {
            Reply::Linear(linear::Answer::Cell { revision, value }) => Ok((revision, value)),
            _ => Err(()),
        })
    }

    fn sleep(&self, limit: Duration) -> AnsweredOf<PubSub, ()> {
        self.ask(Ask::Sleep(limit)).read(drop)
    }
}

/// Reads a log whole; `Err` if no majority answers.
pub(super) async fn load(asker: &Asker, name: &str) -> Result<Log, ()> {
    use super::log::{SLOTS, key};
    let mut log = Log::new();
    // The first tells whether anybody answers at all, and whether there are others.
    let (revision, value) = asker.read(key(name, 0)).await?;
    log.learn(0, revision, value.as_deref());
    let end = if value.is_some() { SLOTS } else { 1 };
    let indices: Vec<u64> = (1..end).collect();
    for some in indices.chunks(READS) {
        let reads: Vec<_> = some.iter().map(|index| asker.read(key(name, *index))).collect();
        for (index, read) in some.iter().zip(reads) {
            let (revision, value) = read.await?;
            log.learn(*index, revision, value.as_deref());
        }
        // The ring of slots was not filled so far.
        if log.ends_before(some) {
            break;
        }
    }
    // Somebody may append meanwhile; each reading again brings it at least as far.
    for _ in 0..2 * SLOTS {
        let Some(index) = log.torn() else { return Ok(log) };
        let (revision, value) = asker.read(key(name, index)).await?;
        log.learn(index, revision, value.as_deref());
    }
    // It does not fit together: somebody wrote what is no log. What is newest counts.
    Ok(log)
}
