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
    /// Until nobody is left who might hold it, or `limit` is over.
    Holders(Waiting, Duration),
}

#[derive(Clone, Debug)]
pub enum Reply {
    Records(Answer),
    Holders(Waiting),
}

/// Who holds a tree, and who cannot and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holders {
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
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    pub(crate) root: Hash,
    /// Who has to say whether it holds it.
    pub(crate) asked: Set<NodeId>,
    /// How many must hold it.
    pub(crate) enough: usize,
    /// Wait for all that were asked, also when enough hold it.
    pub(crate) all: bool,
    pub(crate) holders: Holders,
}

impl Waiting {
    /// Enough hold it, or nobody is left who might.
    pub(crate) fn is_over(&self) -> bool {
        let Holders { have, refused } = &self.holders;
        if !self.all && have.len() >= self.enough {
            return true;
        }
        let answered = |node: &NodeId| have.contains(node) || refused.contains_key(node);
        have.len() + refused.len() >= self.enough && self.asked.iter().all(answered)
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
            Ask::Holders(waiting, limit) => {
                let over = waiting.is_over();
                self.held.insert(call, waiting);
                (Awaited::Holders, Some(if over { Duration::ZERO } else { limit }))
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
            Awaited::Holders => Reply::Holders(self.held.remove(&call).unwrap_or_default()),
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
    fn holders(&self, waiting: Waiting, limit: Duration) -> calls::AnsweredOf<Packages, Waiting>;
}

impl AskerExt for Asker {
    fn records(&self, question: Question) -> calls::AnsweredOf<Packages, Answer> {
        self.ask(Ask::Records(question)).read(|reply| match reply {
            Reply::Records(answer) => answer,
            Reply::Holders(_) => Answer::Unreachable,
        })
    }

    fn holders(&self, waiting: Waiting, limit: Duration) -> calls::AnsweredOf<Packages, Waiting> {
        self.ask(Ask::Holders(waiting, limit)).read(|reply| match reply {
            Reply::Holders(waiting) => waiting,
            Reply::Records(_) => Waiting::default(),
        })
    }
}
