//! What operations on registers ask for, and how they are answered (ARCHITECTURE.md,
//! "Operations").

use alloc::vec::Vec;

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::{CallId, first};
use dugnad_kernel::{Cx, Duration, Key, NodeId};

use super::register::Register;
use super::view::{Range, View, ViewId};
use super::{Answer, Event, Linear, Msg, Request, Response, Timer};

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 512;
/// How long one node may take to answer another: its disk is in it.
const CALL: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub enum Ask {
    Find(Key),
    Call {
        to: NodeId,
        request: Request,
    },
    Sleep(Duration),
    /// About so long: two who are in each other's way must not try again at the same time.
    Jitter(Duration),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Found(Option<NodeId>),
    Response(Option<Response>),
    Over,
}

/// What an operation reports or ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Nothing,
    /// To whoever looks after a range.
    Tell {
        to: NodeId,
        views: Vec<View>,
    },
    /// A request of this node's people is over.
    Ended {
        key: Key,
        call: u32,
        answer: Answer,
    },
    /// Views it heard of.
    Heard(Vec<View>),
    /// Who looks after a range could not be told of it, or nobody knew.
    Uninformed,
    /// What members of a view before have, for one that syncs.
    Page {
        view: ViewId,
        registers: Vec<(Key, Register)>,
    },
    /// Whether a majority of each view before gave all it has.
    Synced {
        view: ViewId,
        all: bool,
    },
    /// All who come next were told once more.
    Told {
        view: ViewId,
        tries: u32,
    },
    /// Whether the right nodes keep the range now; what is new.
    Checked {
        range: Range,
        done: bool,
        news: Vec<View>,
    },
}

pub(crate) type Asker = AskerOf<Linear>;

/// What will answer a question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    Lookup,
    Call { to: NodeId },
    Pause,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call { to } => Some(*to),
            Self::Lookup | Self::Pause => None,
        }
    }
}

impl Operates for Linear {
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
            Ask::Sleep(limit) => (Awaited::Pause, Some(limit)),
            Ask::Jitter(limit) => {
                let part = cx.rng.u32(50..150);
                (Awaited::Pause, Some(limit * part / 100))
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Tell { to, views } => cx.send(to, Msg::Told { views }),
            Outcome::Ended { key, call, answer } => self.ended(key, call, answer, cx),
            Outcome::Heard(views) => self.learn(&views, cx),
            Outcome::Uninformed => self.on_uninformed(cx),
            Outcome::Page { .. } if self.stuck.is_some() => {}
            Outcome::Page { view, registers } => {
                self.keeper.write().take_in(view, &registers);
                self.save(Vec::new(), Vec::new(), true, cx);
            }
            Outcome::Synced { view, all } => {
                self.on_synced(view, all && self.stuck.is_none(), cx);
            }
            Outcome::Told { view, tries } => self.on_told_again(view, tries, cx),
            Outcome::Checked { range, done, news } => self.on_checked(range, done, &news, cx),
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Lookup => Reply::Found(None),
            Awaited::Call { .. } => Reply::Response(None),
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

/// Questions with the answers that belong to them: asked at once, and perhaps awaited later.
pub(crate) trait AskerExt {
    /// Who answers for the key on the ring; `None` if nobody was found.
    fn find(&self, key: Key) -> AnsweredOf<Linear, Option<NodeId>>;
    /// `None`: no answer came.
    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Linear, Option<Response>>;
    fn sleep(&self, limit: Duration) -> AnsweredOf<Linear, ()>;
    fn jitter(&self, limit: Duration) -> AnsweredOf<Linear, ()>;
}

impl AskerExt for Asker {
    fn find(&self, key: Key) -> AnsweredOf<Linear, Option<NodeId>> {
        self.ask(Ask::Find(key)).read(|reply| match reply {
            Reply::Found(owner) => owner,
            _ => None,
        })
    }

    fn call(&self, to: NodeId, request: Request) -> AnsweredOf<Linear, Option<Response>> {
        self.ask(Ask::Call { to, request }).read(|reply| match reply {
            Reply::Response(response) => response,
            _ => None,
        })
    }

    fn sleep(&self, limit: Duration) -> AnsweredOf<Linear, ()> {
        self.ask(Ask::Sleep(limit)).read(drop)
    }

    fn jitter(&self, limit: Duration) -> AnsweredOf<Linear, ()> {
        self.ask(Ask::Jitter(limit)).read(drop)
    }
}

/// Asks all members of a view the same. Ends as soon as `enough` gave an answer that is `good`, or
/// no more can come; all answers that came.
pub(super) async fn ask_members(
    asker: &Asker,
    view: &View,
    request: &Request,
    enough: usize,
    good: fn(&Response) -> bool,
) -> Vec<Response> {
    let ask = |member: &super::view::Member| asker.call(member.node, request.clone());
    let mut out: Vec<_> = view.members.iter().map(ask).collect();
    let mut answers = Vec::new();
    while !out.is_empty() && answers.iter().filter(|answer| good(answer)).count() < enough {
        answers.extend(first(&mut out).await);
    }
    answers
}

/// Makes known what answers say of views.
pub(super) fn hear(asker: &Asker, answers: &[Response]) {
    let views: Vec<View> = answers
        .iter()
        .filter_map(|answer| match answer {
            Response::OtherView { views } | Response::Decided { next: views } => Some(views),
            Response::Views { views, .. } => Some(views),
            _ => None,
        })
        .flatten()
        .cloned()
        .collect();
    if !views.is_empty() {
        asker.report(Outcome::Heard(views));
    }
}
