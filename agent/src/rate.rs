//! How often something may happen: one each so often, and some at once after a rest.

use std::cell::Cell;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) each: Duration,
    pub(crate) at_once: u32,
}

impl Rate {
    /// How many a second, for a person to read.
    #[must_use]
    pub(crate) fn a_second(self) -> u128 {
        1_000 / self.each.as_millis().max(1)
    }
}

/// What of a [`Rate`] is used: since when, and how many.
pub(crate) struct Bucket {
    pub(crate) rate: Rate,
    used: Cell<(Instant, u32)>,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, used: Cell::new((Instant::now(), 0)) }
    }

    /// Whether it may happen once more now; then it counts.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let (since, used) = self.used.get();
        let earned = now.duration_since(since).as_nanos() / self.rate.each.as_nanos().max(1);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        // What was earned is paid back; the time that made no whole one counts for the next.
        let (since, used) = match used.checked_sub(earned) {
            Some(used) => (since + self.rate.each * earned, used),
            None => (now, 0),
        };
        let may = used < self.rate.at_once;
        self.used.set((since, used + u32::from(may)));
        may
    }
}
