//! Operations of several round trips, written top to bottom as `async fn` and polled by the
//! component that owns them (ARCHITECTURE.md, "Operations").
//!
//! The only thing an operation can wait for is the answer to a question it asked through its
//! [`Asker`]; nothing else can wake it. So there is no executor, and the same inputs give the
//! same run, bit for bit. Dropping an operation cancels it. What others may know before its end it
//! [reports](Asker::report) on its way.

use crate::map::Map;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

/// Names one question of one operation. Never used twice by the same component; where its numbers
/// begin is left to chance ([`Ops::begin`]).
pub type CallId = u32;

/// Numbers begin below this: four bytes on the wire.
pub const FIRST_MAX: CallId = 1 << 28;

type Slot<A> = Rc<RefCell<Option<A>>>;

struct Outbox<Q, A, O> {
    next: Cell<CallId>,
    asked: RefCell<Vec<(CallId, Q, Slot<A>)>>,
    reported: RefCell<Vec<O>>,
}

/// How an operation asks the world something.
pub struct Asker<Q, A, O>(Rc<Outbox<Q, A, O>>);

impl<Q, A, O> Clone for Asker<Q, A, O> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<Q, A, O> Asker<Q, A, O> {
    /// Hands out something before the end; the operation does not wait for what becomes of it.
    pub fn report(&self, outcome: O) {
        self.0.reported.borrow_mut().push(outcome);
    }

    /// Asks; the future is ready when the component hands the answer to [`Ops::answer`].
    pub fn ask(&self, question: Q) -> Pending<A> {
        let call = self.0.next.get();
        self.0.next.set(call.wrapping_add(1));
        let slot = Slot::default();
        self.0.asked.borrow_mut().push((call, question, Rc::clone(&slot)));
        Pending(slot)
    }
}

/// The answer to come.
pub struct Pending<A>(Slot<A>);

impl<A> Future for Pending<A> {
    type Output = A;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<A> {
        self.0.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<A> Pending<A> {
    /// The answer as what it means to this question.
    pub const fn read<T>(self, read: fn(A) -> T) -> Answered<A, T> {
        Answered { pending: self, read }
    }
}

/// The answer to come, of the type that belongs to its question.
pub struct Answered<A, T> {
    pending: Pending<A>,
    read: fn(A) -> T,
}

impl<A, T> Future for Answered<A, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let read = self.read;
        Pin::new(&mut self.pending).poll(cx).map(read)
    }
}

/// The first answer among several; its place in `pending` is given up.
pub async fn first<F: Future + Unpin>(pending: &mut Vec<F>) -> F::Output {
    core::future::poll_fn(|cx| {
        for place in 0..pending.len() {
            if let Poll::Ready(answer) = Pin::new(&mut pending[place]).poll(cx) {
                drop(pending.swap_remove(place));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

/// Runs several futures of one operation side by side; results in the order of `futures`.
pub async fn join<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut slots: Vec<(Option<T>, _)> = futures.into_iter().map(|f| (None, f)).collect();
    core::future::poll_fn(|cx| {
        let mut open = false;
        for (result, future) in &mut slots {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => open = true,
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    slots.into_iter().filter_map(|(result, _)| result).collect()
}

/// What came out of driving the operations once.
pub struct Step<Q, O> {
    /// What operations reported on their way, and what they ended with.
    pub done: Vec<O>,
    /// New questions. Each must be answered once, with an answer or a timeout.
    pub asks: Vec<(CallId, Q)>,
}

type Running<O> = Pin<Box<dyn Future<Output = O>>>;

/// The operations of one component.
pub struct Ops<Q, A, O> {
    outbox: Rc<Outbox<Q, A, O>>,
    running: Map<u32, (&'static str, Running<O>)>,
    waiting: Map<CallId, (u32, Slot<A>)>,
    next: u32,
}

impl<Q, A, O> Default for Ops<Q, A, O> {
    fn default() -> Self {
        let (asked, reported) = (RefCell::default(), RefCell::default());
        let outbox = Outbox { next: Cell::new(0), asked, reported };
        Self { outbox: Rc::new(outbox), running: Map::new(), waiting: Map::new(), next: 0 }
    }
}

impl<Q, A, O> Ops<Q, A, O> {
    /// Whether nothing was asked so far.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.outbox.next.get() == 0
    }

    /// Numbers questions from `first` on. Another number in each life of a node: what others still
    /// answer to the one before must not be taken for the answer to a new question.
    pub fn begin(&mut self, first: CallId) {
        if self.is_new() {
            self.outbox.next.set(first);
        }
    }

    /// Starts an operation and runs it to its first question.
    pub fn start<F>(
        &mut self,
        name: &'static str,
        op: impl FnOnce(Asker<Q, A, O>) -> F,
    ) -> Step<Q, O>
    where
        F: Future<Output = O> + 'static,
    {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let future = Box::pin(op(Asker(Rc::clone(&self.outbox))));
        self.running.insert(number, (name, future));
        self.drive(number)
    }

    /// Hands in an answer. One nobody waits for (late, twice) changes nothing.
    pub fn answer(&mut self, call: CallId, answer: A) -> Step<Q, O> {
        let Some((number, slot)) = self.waiting.remove(&call) else {
            return Step { done: Vec::new(), asks: Vec::new() };
        };
        *slot.borrow_mut() = Some(answer);
        self.drive(number)
    }

    /// Whether anybody still waits for `call`.
    #[must_use]
    pub fn waits_for(&self, call: CallId) -> bool {
        self.waiting.contains_key(&call)
    }

    /// Names of the running operations, oldest first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.running.values().map(|(name, _)| *name)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn drive(&mut self, number: u32) -> Step<Q, O> {
        let mut step = Step { done: Vec::new(), asks: Vec::new() };
        let Some((_, future)) = self.running.get_mut(&number) else { return step };
        let ended = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for (call, question, slot) in self.outbox.asked.borrow_mut().drain(..) {
            // A question whose future was dropped in the same step still goes out: it was asked.
            self.waiting.insert(call, (number, slot));
            step.asks.push((call, question));
        }
        step.done.append(&mut self.outbox.reported.borrow_mut());
        if let Poll::Ready(output) = ended {
            self.running.remove(&number);
            self.waiting.retain(|_, (owner, _)| *owner != number);
            step.done.push(output);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sum_of_two(asker: Asker<u8, Option<u32>, u32>) -> u32 {
        let mut answers: Vec<_> = (0..3).map(|n| asker.ask(n)).collect();
        let mut sum = 0;
        for _ in 0..2 {
            sum += first(&mut answers).await.unwrap_or(0);
        }
        sum
    }

    #[test]
    fn answers_may_come_in_any_order_and_late_ones_are_ignored() {
        let mut ops = Ops::default();
        let step = ops.start("sum", sum_of_two);
        let calls: Vec<_> = step.asks.iter().map(|(call, _)| *call).collect();
        assert_eq!(calls.len(), 3);
        assert!(ops.answer(calls[2], Some(5)).done.is_empty());
        assert!(ops.answer(calls[2], Some(50)).done.is_empty(), "answered twice");
        assert_eq!(ops.answer(calls[0], None).done, [5]);
        assert!(ops.is_empty());
        assert!(!ops.waits_for(calls[1]));
        assert!(ops.answer(calls[1], Some(1)).done.is_empty(), "late");
    }

    #[test]
    fn a_report_comes_before_the_end() {
        let mut ops: Ops<u8, u8, &str> = Ops::default();
        let step = ops.start("two steps", |asker| async move {
            asker.report("asked");
            asker.ask(1).await;
            asker.report("answered");
            "over"
        });
        assert_eq!(step.done, ["asked"]);
        assert_eq!(ops.answer(step.asks[0].0, 2).done, ["answered", "over"]);
    }

    #[test]
    fn an_answer_to_an_earlier_life_is_nobodys() {
        let (mut before, mut after) = (Ops::default(), Ops::default());
        before.begin(70);
        after.begin(9_000);
        let asked = before.start("sum", sum_of_two).asks;
        let again = after.start("sum", sum_of_two).asks;
        after.begin(70);
        for (call, _) in &asked {
            assert!(!after.waits_for(*call));
            assert!(after.answer(*call, Some(1)).done.is_empty());
        }
        assert!(after.waits_for(again[0].0) && !after.is_new());
    }

    #[test]
    fn an_operation_without_questions_ends_at_once() {
        let mut ops: Ops<(), (), u8> = Ops::default();
        assert_eq!(ops.start("now", |_| async { 7 }).done, [7]);
    }
}
