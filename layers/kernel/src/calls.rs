//! The operations of a component, and what each question they have out waits for.
//!
//! An operation asks ([`crate::ops`]); the component carries the question out and says here what
//! will answer it: a node, the disk, a pause. So an answer is taken only from whom it is awaited,
//! and what a lost node was asked is found and given up.

use alloc::vec::Vec;
use core::future::Future;

use crate::component::{Component, Cx};
use crate::id::NodeId;
use crate::map::Map;
use crate::ops::{Answered, Asker, CallId, FIRST_MAX, Ops, Step};
use crate::time::Duration;

/// What answers a question.
pub trait Awaited {
    /// The node it was put to, if it was put to one.
    fn node(&self) -> Option<NodeId>;
}

/// Operations that ask `Q` and are answered `A`, end with `O`, and whose questions wait for a `W`.
pub struct Calls<Q, A, O, W> {
    ops: Ops<Q, A, O>,
    out: Map<CallId, W>,
}

impl<Q, A, O, W> Default for Calls<Q, A, O, W> {
    fn default() -> Self {
        Self { ops: Ops::default(), out: Map::new() }
    }
}

impl<Q, A, O, W: Awaited> Calls<Q, A, O, W> {
    /// As [`Ops::start`]. Each question of the step is carried out and then [`Self::asked`].
    pub fn start<F>(
        &mut self,
        name: &'static str,
        op: impl FnOnce(Asker<Q, A, O>) -> F,
    ) -> Step<Q, O>
    where
        F: Future<Output = O> + 'static,
    {
        self.ops.start(name, op)
    }

    /// As [`Ops::is_new`].
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.ops.is_new()
    }

    /// As [`Ops::begin`].
    pub fn begin(&mut self, first: CallId) {
        self.ops.begin(first);
    }

    /// `call` is out, and this will answer it.
    pub fn asked(&mut self, call: CallId, awaited: W) {
        self.out.insert(call, awaited);
    }

    /// As [`Ops::answer`]; nothing is awaited under `call` any more.
    pub fn answer(&mut self, call: CallId, answer: A) -> Step<Q, O> {
        self.out.remove(&call);
        self.ops.answer(call, answer)
    }

    /// What is awaited under `call`; `None` if it was answered.
    #[must_use]
    pub fn awaited(&self, call: CallId) -> Option<&W> {
        self.out.get(&call)
    }

    /// The first question of which this is true.
    pub fn find(&self, is: impl Fn(&W) -> bool) -> Option<CallId> {
        self.out.iter().find(|(_, awaited)| is(awaited)).map(|(call, _)| *call)
    }

    /// What `node` was asked and has not answered.
    #[must_use]
    pub fn of_node(&self, node: NodeId) -> Vec<CallId> {
        let of = self.out.iter().filter(|(_, awaited)| awaited.node() == Some(node));
        of.map(|(call, _)| *call).collect()
    }

    /// Operations that run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Names of the running operations, oldest first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.ops.names()
    }
}

/// What operations of `C` ask with and are answered through.
pub type AskerOf<C> = Asker<<C as Operates>::Ask, <C as Operates>::Reply, <C as Operates>::Outcome>;

/// The answer to come to one of its questions.
pub type AnsweredOf<C, T> = Answered<<C as Operates>::Reply, T>;

/// The [`Calls`] of a component that [`Operates`].
pub type CallsOf<C> = Calls<
    <C as Operates>::Ask,
    <C as Operates>::Reply,
    <C as Operates>::Outcome,
    <C as Operates>::Awaited,
>;

/// A component with operations. It says what a question means and what to do with what comes out;
/// starting, answering and giving up are the same for all.
pub trait Operates: Component {
    type Ask;
    type Reply;
    type Outcome: 'static;
    type Awaited: Awaited;

    /// Operations at a time; more are refused.
    const MAX: usize;

    fn calls(&mut self) -> &mut CallsOf<Self>;

    /// Carries a question out: what will answer it, and when it is given up. `None`: never, because
    /// an answer is certain.
    fn carry_out(
        &mut self,
        call: CallId,
        ask: Self::Ask,
        cx: &mut Cx<'_, Self>,
    ) -> (Self::Awaited, Option<Duration>);

    /// Something an operation reported or ended with.
    fn on_outcome(&mut self, outcome: Self::Outcome, cx: &mut Cx<'_, Self>);

    /// What stands for an answer that does not come.
    fn no_answer(&mut self, call: CallId) -> Option<Self::Reply>;

    /// The timer after which `call` is given up: [`Operates::give_up`].
    fn expire(call: CallId) -> Self::Timer;

    /// An operation was refused, because [`Operates::MAX`] others run.
    fn refused(&mut self);

    /// Whether there was room for one more.
    fn start<F>(
        &mut self,
        name: &'static str,
        op: impl FnOnce(AskerOf<Self>) -> F,
        cx: &mut Cx<'_, Self>,
    ) -> bool
    where
        F: Future<Output = Self::Outcome> + 'static,
    {
        let room = self.calls().len() < Self::MAX;
        if room {
            if self.calls().is_new() {
                // Of a copy: what else is left to chance stays as it was.
                let first = cx.rng.clone().u32(1..FIRST_MAX);
                self.calls().begin(first);
            }
            let step = self.calls().start(name, op);
            self.on_step(step, cx);
        } else {
            self.refused();
        }
        room
    }

    /// Hands in an answer; one nobody waits for changes nothing.
    fn answer(&mut self, call: CallId, reply: Self::Reply, cx: &mut Cx<'_, Self>) {
        let step = self.calls().answer(call, reply);
        self.on_step(step, cx);
    }

    /// Hands in what `from` answers; false, and nothing is done, if it was not asked under `call`.
    fn answer_from(
        &mut self,
        from: NodeId,
        call: CallId,
        reply: Self::Reply,
        cx: &mut Cx<'_, Self>,
    ) -> bool {
        let asked = self.calls().awaited(call).and_then(Awaited::node) == Some(from);
        if asked {
            self.answer(call, reply, cx);
        }
        asked
    }

    /// The answer to `call` is overdue.
    fn give_up(&mut self, call: CallId, cx: &mut Cx<'_, Self>) {
        if self.calls().awaited(call).is_some() {
            if let Some(reply) = self.no_answer(call) {
                self.answer(call, reply, cx);
            }
        }
    }

    /// What `node` was asked it will not answer any more.
    fn give_up_on(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        for call in self.calls().of_node(node) {
            self.give_up(call, cx);
        }
    }

    /// Not for others: what one step of the operations brought.
    fn on_step(&mut self, step: Step<Self::Ask, Self::Outcome>, cx: &mut Cx<'_, Self>) {
        for (call, ask) in step.asks {
            let (awaited, limit) = self.carry_out(call, ask, cx);
            self.calls().asked(call, awaited);
            if let Some(limit) = limit {
                cx.after(limit, Self::expire(call));
            }
        }
        for outcome in step.done {
            self.on_outcome(outcome, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    struct At(u128);

    impl Awaited for At {
        fn node(&self) -> Option<NodeId> {
            (self.0 > 0).then_some(Id(self.0))
        }
    }

    #[test]
    fn what_a_node_was_asked_is_known_until_it_is_answered() {
        let mut calls: Calls<u128, u8, u8, At> = Calls::default();
        let step = calls.start("both", |asker| async move {
            let (one, two) = (asker.ask(0), asker.ask(7));
            one.await + two.await
        });
        for (call, at) in &step.asks {
            calls.asked(*call, At(*at));
        }
        let of_seven = calls.of_node(Id(7));
        assert_eq!((of_seven.len(), calls.of_node(Id(0)).len()), (1, 0), "a pause is no node");
        assert_eq!(calls.find(|at| at.0 == 7), Some(of_seven[0]));
        assert!(calls.answer(of_seven[0], 1).done.is_empty());
        assert!(calls.awaited(of_seven[0]).is_none() && calls.of_node(Id(7)).is_empty());
        let pause = calls.find(|at| at.0 == 0).map(|call| calls.answer(call, 2).done);
        assert_eq!((pause, calls.len()), (Some(Vec::from([3])), 0));
    }
}
