//! Hybrid logical clock (Kulkarni et al. 2014; PROTOCOL.md 5.6): stamps that grow with every write
//! and stay close to the time of day, on machines whose clocks differ or were never set.
//!
//! A stamp has 48 bits of milliseconds since 1970 and 16 bits that count. The time of day comes
//! from outside, through [`Hlc::set`]: layers have no clock.

use crate::time::{Duration, Time};

/// Bits of the counter below the milliseconds.
const COUNTER_BITS: u32 = 16;
/// A stamp further ahead of the own clock is refused: one broken clock would win for ever.
pub const AHEAD_MAX: Duration = Duration::from_secs(600);

/// The milliseconds since 1970 in a stamp.
#[must_use]
pub const fn millis(stamp: u64) -> u64 {
    stamp >> COUNTER_BITS
}

/// The first stamp of this millisecond since 1970.
#[must_use]
pub const fn stamp(unix_ms: u64) -> u64 {
    unix_ms << COUNTER_BITS
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Hlc {
    /// The highest stamp given or seen.
    last: u64,
    /// What the clock of the machine said, and when it was asked; `None` if it was never set.
    wall: Option<(u64, Time)>,
}

impl Hlc {
    /// The machine's clock says `unix_ms` now; `None`: it was never set, and is not believed.
    pub fn set(&mut self, unix_ms: Option<u64>, now: Time) {
        self.wall = unix_ms.map(|ms| (ms, now));
    }

    /// Milliseconds since 1970, as far as the machine's clock is believed.
    #[must_use]
    pub fn unix_ms(&self, now: Time) -> Option<u64> {
        let (ms, at) = self.wall?;
        Some(ms.saturating_add(u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX)))
    }

    /// A stamp above all that were given or seen here, and above `known`.
    pub fn next(&mut self, known: u64, now: Time) -> u64 {
        let clock = self.unix_ms(now).map_or(0, stamp);
        self.last = clock.max(self.last.saturating_add(1)).max(known.saturating_add(1));
        self.last
    }

    /// Another gave this stamp. One that is too far ahead does not count.
    pub fn observe(&mut self, stamp: u64, now: Time) {
        if !self.is_ahead(stamp, now) {
            self.last = self.last.max(stamp);
        }
    }

    /// Whether a stamp lies more than [`AHEAD_MAX`] ahead of this machine's clock. Where that was
    /// never set nothing does.
    #[must_use]
    pub fn is_ahead(&self, other: u64, now: Time) -> bool {
        let most = u64::try_from(AHEAD_MAX.as_millis()).unwrap_or(u64::MAX);
        self.unix_ms(now).is_some_and(|ms| millis(other) > ms.saturating_add(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn stamps_follow_the_clock_and_never_go_back() {
        let mut hlc = Hlc::default();
        hlc.set(Some(5_000), Time(0));
        assert_eq!(hlc.next(0, Time(0)), stamp(5_000));
        assert_eq!(hlc.next(0, Time(0)), stamp(5_000) + 1, "twice in one millisecond");
        assert_eq!(hlc.next(0, Time(SECOND)), stamp(6_000));
        hlc.set(Some(1_000), Time(SECOND));
        assert_eq!(hlc.next(0, Time(SECOND)), stamp(6_000) + 1, "the clock was set back");
        assert_eq!(hlc.next(stamp(9_000), Time(SECOND)), stamp(9_000) + 1, "above what is known");
    }

    #[test]
    fn a_stamp_of_the_future_counts_only_where_no_clock_contradicts() {
        let mut hlc = Hlc::default();
        let future = stamp(700_000);
        assert!(!hlc.is_ahead(future, Time(0)), "a clock that was never set knows nothing");
        hlc.set(Some(50_000), Time(0));
        assert!(hlc.is_ahead(future, Time(0)));
        hlc.observe(future, Time(0));
        assert!(hlc.next(0, Time(0)) < future);
        assert!(!hlc.is_ahead(future, Time(60 * SECOND)), "ten minutes are allowed");
        hlc.observe(future, Time(60 * SECOND));
        assert!(hlc.next(0, Time(60 * SECOND)) > future);
    }

    #[test]
    fn without_a_clock_stamps_still_grow() {
        let mut hlc = Hlc::default();
        let first = hlc.next(0, Time(0));
        hlc.observe(first + 10, Time(0));
        assert_eq!(hlc.next(0, Time(0)), first + 11);
    }
}
