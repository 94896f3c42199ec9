//! Two ways to wait for what happens outside, and when to change from one to the other.
//!
//! async-io polls on a thread of its own unless the waiting thread does. Left to that thread, a
//! quiet agent wakes least; `smol::block_on` takes turns with it and wakes it some ten times at
//! every turn. But under load each event then costs a change of threads and a system call for
//! itself, where one that polls finds many at once: a third of the requests a second.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use smol::{LocalExecutor, future};

/// So many wakeups within this time are load.
const WAKEUPS: u32 = 100;
const WITHIN: Duration = Duration::from_millis(100);

/// Runs all tasks of `ex` on this thread until `work` is done.
pub(super) fn run<T: 'static>(
    ex: &Rc<LocalExecutor<'static>>,
    work: impl Future<Output = T> + 'static,
) -> T {
    let mut work = ex.spawn(work);
    let mut busy = false;
    loop {
        let next = future::or(async { Some((&mut work).await) }, async {
            changes(busy).await;
            None
        });
        let done = if busy { smol::block_on(ex.run(next)) } else { future::block_on(ex.run(next)) };
        if let Some(done) = done {
            return done;
        }
        busy = !busy;
    }
}

/// Until this thread is woken more often than a quiet agent is, or, if it is busy, less often. It
/// costs no wakeup: it looks whenever there is one.
async fn changes(busy: bool) {
    let mut pace = Pace { busy, since: Instant::now(), wakeups: 0 };
    poll_fn(|_| if pace.changes(Instant::now()) { Poll::Ready(()) } else { Poll::Pending }).await;
}

struct Pace {
    busy: bool,
    since: Instant,
    wakeups: u32,
}

impl Pace {
    /// A wakeup; whether the other way to wait is better from now on.
    fn changes(&mut self, now: Instant) -> bool {
        self.wakeups += 1;
        let many = self.wakeups >= WAKEUPS;
        let over = now.duration_since(self.since) >= WITHIN;
        if many || over {
            (self.since, self.wakeups) = (now, 0);
        }
        if self.busy { over && !many } else { many && !over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether wakeups at this distance end the wait.
    fn ends(busy: bool, distance: Duration) -> bool {
        let start = Instant::now();
        let mut pace = Pace { busy, since: start, wakeups: 0 };
        (1..3 * WAKEUPS).any(|number| pace.changes(start + distance * number))
    }

    #[test]
    fn load_and_silence_are_told_apart() {
        let (often, seldom) = (WITHIN / (2 * WAKEUPS), WITHIN / 10);
        assert!(ends(false, often) && !ends(true, often));
        assert!(ends(true, seldom) && !ends(false, seldom));
    }

    #[test]
    fn work_is_done_whoever_polls() {
        let ex = Rc::new(LocalExecutor::new());
        let done = run(&ex, async {
            for _ in 0..3 * WAKEUPS {
                future::yield_now().await;
            }
            for _ in 0..WAKEUPS {
                smol::Timer::after(Duration::from_micros(50)).await;
            }
            smol::Timer::after(2 * WITHIN).await;
            smol::unblock(|| 7).await
        });
        assert_eq!(done, 7);
    }
}
