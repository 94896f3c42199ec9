//! What questions to the community ask for, and how they are answered (ARCHITECTURE.md,
//! "Operations").

use alloc::vec::Vec;

use dugnad_kernel::calls::{self, AnsweredOf, AskerOf, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Cx, Duration, NodeId};

use super::{Event, ProspectAnswer, Prospector, Timer};
use crate::cast::{CastBody, CastPart};

/// The trees below answer before, whoever fails on the way: their patience is shorter.
const LIMIT: Duration = Duration::from_secs(90);
/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 64;
pub(super) const OPS: &str = "prospector_operations";

/// Tell these, and hear what they say.
#[derive(Clone, Debug)]
pub struct Ask {
    body: CastBody,
    arc: Option<Arc>,
}

/// What they said, and whether all did.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) parts: Vec<Vec<u8>>,
    pub(super) complete: bool,
}

/// What an operation ends with.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(super) ask: u64,
    pub(super) answer: ProspectAnswer,
}

pub(crate) type Asker = AskerOf<Prospector>;

/// What the trees below bring together.
#[derive(Clone, Copy, Debug)]
pub struct Feedback;

impl calls::Awaited for Feedback {
    fn node(&self) -> Option<NodeId> {
        None
    }
}

impl Operates for Prospector {
    type Ask = Ask;
    type Reply = Reply;
    type Outcome = Outcome;
    type Awaited = Feedback;
    const MAX: usize = OPS_MAX;

    fn calls(&mut self) -> &mut CallsOf<Self> {
        &mut self.calls
    }

    fn carry_out(
        &mut self,
        call: CallId,
        ask: Ask,
        cx: &mut Cx<'_, Self>,
    ) -> (Feedback, Option<Duration>) {
        cx.emit(Event::Cast { call, body: ask.body, arc: ask.arc });
        (Feedback, Some(LIMIT))
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        self.on_answered(outcome, cx);
    }

    fn no_answer(&mut self, _: CallId) -> Option<Reply> {
        Some(Reply { parts: Vec::new(), complete: false })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.counters.add("operations_overflow", 1);
    }
}

pub(super) trait AskerExt {
    /// What everybody says, or the nodes on an arc, and whether all of them did.
    fn cast(
        &self,
        body: CastBody,
        arc: Option<Arc>,
    ) -> AnsweredOf<Prospector, (Vec<CastPart>, bool)>;
}

impl AskerExt for Asker {
    fn cast(
        &self,
        body: CastBody,
        arc: Option<Arc>,
    ) -> AnsweredOf<Prospector, (Vec<CastPart>, bool)> {
        self.ask(Ask { body, arc }).read(|Reply { parts, complete }| {
            let parts = parts.iter().filter_map(|part| postcard::from_bytes(part).ok());
            (parts.collect(), complete)
        })
    }
}
