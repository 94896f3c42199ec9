//! What operations on packages ask for, and how they are answered (ARCHITECTURE.md, "Operations").

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::{self, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Hash, NodeId};
use dugnad_resource::spec::Tree;

use super::{Event, Packages, Timer};
use crate::persistence::{Answer, Question};

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 128;

#[derive(Clone, Debug)]
pub enum Ask {
    Records(Question),
    /// Until `enough` nodes hold the tree or say that they cannot, or `limit` is over.
    Holders {
        root: Hash,
        known: Set<NodeId>,
        enough: usize,
        limit: Duration,
    },
}

#[derive(Clone, Debug)]
pub enum Reply {
    Records(Answer),
    Holders(Holders),
}

/// Who holds a tree, and who cannot and why.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    pub have: Set<NodeId>,
    pub refused: Map<NodeId, String>,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// Who else may have the tree that could not be fetched.
    Sources {
        tree: Tree,
        from: Vec<NodeId>,
    },
    Answer {
        call: u32,
        answer: Result<(), Vec<String>>,
    },
}

pub(crate) type Asker = AskerOf<Packages>;

/// What will answer a question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Awaited {
    Records,
    Holders,
}

impl calls::Awaited for Awaited {
    fn node(&self) -> Option<NodeId> {
        None
    }
}

/// Somebody waits until enough nodes hold a tree.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) root: Hash,
    pub(crate) enough: usize,
    pub(crate) holders: Holders,
}

impl Waiting {
    /// Enough hold it, or nobody is left who might.
    pub(crate) fn is_over(&self) -> bool {
        self.holders.have.len() + self.holders.refused.len() >= self.enough
    }
}

impl Operates for Packages {
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
            Ask::Records(question) => {
                cx.emit(Event::Records { call, question });
                (Awaited::Records, None)
            }
            Ask::Holders { root, known, enough, limit } => {
                let met = known.len() >= enough;
                let holders = Holders { have: known, refused: Map::new() };
                self.held.insert(call, Waiting { root, enough, holders });
                (Awaited::Holders, Some(if met { Duration::ZERO } else { limit }))
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        match outcome {
            Outcome::Sources { tree, from } => self.on_sources(tree, from, cx),
            Outcome::Answer { call, answer } => cx.emit(Event::Answer { call, answer }),
        }
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Awaited::Records => Reply::Records(Answer::Unreachable),
            Awaited::Holders => {
                let waiting = self.held.remove(&call);
                Reply::Holders(waiting.map(|waiting| waiting.holders).unwrap_or_default())
            }
        })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.count("operations_overflow");
    }
}

/// Questions with the answers that belong to them.
pub(crate) trait AskerExt {
    fn records(&self, question: Question) -> calls::AnsweredOf<Packages, Answer>;
    fn holders(
        &self,
        root: Hash,
        known: Set<NodeId>,
        enough: usize,
        limit: Duration,
    ) -> calls::AnsweredOf<Packages, Holders>;
}

impl AskerExt for Asker {
    fn records(&self, question: Question) -> calls::AnsweredOf<Packages, Answer> {
        self.ask(Ask::Records(question)).read(|reply| match reply {
            Reply::Records(answer) => answer,
            Reply::Holders(_) => Answer::Unreachable,
        })
    }

    fn holders(
        &self,
        root: Hash,
        known: Set<NodeId>,
        enough: usize,
        limit: Duration,
    ) -> calls::AnsweredOf<Packages, Holders> {
        self.ask(Ask::Holders { root, known, enough, limit }).read(|reply| match reply {
            Reply::Holders(holders) => holders,
            Reply::Records(_) => Holders::default(),
        })
    }
}
