//! The time of day, and whether it can be believed: boards without a battery begin in 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// 2020-01-01 in seconds since 1970. A clock before it was never set.
pub(crate) const YEAR_2020: u64 = 1_577_836_800;

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What is wrong with the clock and what to do, if it shows.
pub(crate) fn problem() -> Option<String> {
    (now_unix() < YEAR_2020).then(|| {
        "this machine's clock was never set: it says a year before 2020. Set it (`date -s`, or a \
         service such as systemd-timesyncd or ntpd)"
            .to_owned()
    })
}
