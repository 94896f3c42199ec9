//! What the links count, by name.

use std::cell::RefCell;

use dugnad_kernel::map::Map;

/// Counters that always show, so that a zero is seen to be a zero.
const KNOWN: [&str; 39] = [
    "sessions_up",
    "sessions_down",
    "sessions_replaced",
    "sessions_unused",
    "sessions_full",
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "streams_opened",
    "streams_accepted",
    "streams_refused",
    "dials",
    "dials_failed",
    "unreachable",
    "backing_off",
    "refused_magic",
    "refused_version",
    "refused_community",
    "refused_secret",
    "refused_identity",
    "refused_incarnation",
    "refused_twin",
    "refused_busy",
    "duplicate_session",
    "wrong_identity",
    "dialled_oneself",
    "handshake_silent",
    "handshakes_gave_way",
    "handshake_incomplete",
    "handshake_malformed",
    "handshake_timeout",
    "frame_version",
    "frame_oversized",
    "undecryptable",
    "record_unknown",
    "queue_full",
    "unknown_peer",
    "frames_lost",
];

pub(super) struct Counters(RefCell<Map<&'static str, u64>>);

impl Default for Counters {
    fn default() -> Self {
        Self(RefCell::new(KNOWN.iter().map(|name| (*name, 0)).collect()))
    }
}

impl Counters {
    pub(super) fn add(&self, name: &'static str, count: u64) {
        *self.0.borrow_mut().entry(name).or_default() += count;
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        self.0.borrow().get(name).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> Vec<(&'static str, u64)> {
        self.0.borrow().iter().map(|(name, count)| (*name, *count)).collect()
    }
}
