//! The time of day, and whether it can be believed: boards without a battery begin in 1970.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dugnad_kernel::Time;
use nix::time::{ClockId, clock_gettime};

/// 2020-01-01 in seconds since 1970. A clock before it was never set.
pub(crate) const YEAR_2020: u64 = 1_577_836_800;

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Time since the machine started, also that in which it slept.
pub(crate) fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// What is wrong with the clock and what to do, if it shows.
pub(crate) fn problem() -> Option<String> {
    (now_unix() < YEAR_2020).then(|| {
        "this machine's clock was never set: it says a year before 2020. Set it (`date -s`, or a \
         service such as systemd-timesyncd or ntpd)"
            .to_owned()
    })
}

/// What the node was last told of the time of day.
#[derive(Debug, Default)]
pub(crate) struct Told(Cell<Option<Option<u64>>>);

/// A clock that is off by less was not set, but measured.
const SET_MS: u64 = 500;

impl Told {
    /// What the clock says now, if the node does not know it: at first, when it was set, and after
    /// the machine slept, which `now` does not count. Inside: `None` while it was never set.
    pub(crate) fn news(&self, now: Time) -> Option<Option<u64>> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let set = (unix_ms / 1_000 >= YEAR_2020).then_some(unix_ms);
        let start = set.map(|unix_ms| unix_ms.saturating_sub(now.0 / 1_000));
        let same = match (self.0.get(), start) {
            (Some(Some(before)), Some(start)) => start.abs_diff(before) < SET_MS,
            (Some(None), None) => true,
            _ => false,
        };
        if same {
            return None;
        }
        self.0.set(Some(start));
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_told_at_first_and_when_it_was_set() {
        let told = Told::default();
        assert!(told.news(Time(0)).is_some_and(|set| set.is_some()));
        assert_eq!(told.news(Time(0)), None);
        // Ten seconds passed for the node, and none for the clock.
        assert!(told.news(Time(10_000_000)).is_some());
        assert_eq!(told.news(Time(10_000_000)), None);
    }
}
