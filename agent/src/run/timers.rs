//! The timers the node asked for.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use dugnad_node::Timer;

#[derive(Default)]
pub(super) struct Timers {
    waiting: RefCell<BinaryHeap<Reverse<Due>>>,
    sequence: Cell<u64>,
}

/// Equal deadlines keep the order in which they were asked for.
struct Due(Instant, u64, Timer);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl Timers {
    pub(super) fn after(&self, delay: Duration, timer: Timer) {
        self.sequence.set(self.sequence.get() + 1);
        let due = Due(Instant::now() + delay, self.sequence.get(), timer);
        self.waiting.borrow_mut().push(Reverse(due));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.borrow().peek().map(|Reverse(due)| due.0)
    }

    /// The first one, if it is due.
    pub(super) fn pop(&self, now: Instant) -> Option<Timer> {
        let mut waiting = self.waiting.borrow_mut();
        let due = waiting.peek().is_some_and(|Reverse(due)| due.0 <= now);
        due.then(|| waiting.pop()).flatten().map(|Reverse(Due(_, _, timer))| timer)
    }
}
