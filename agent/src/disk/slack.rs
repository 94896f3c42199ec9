//! Letting the threads of sled look for work a little later.

use nix::sys::prctl;

/// Nanoseconds that a timer of sled's threads may ring late; 32 bits hold no more than 4.2 s. Each
/// looks every second whether there is work, though it is told when there is: so they look when the
/// machine is awake anyway.
const SLACK: u32 = 4_000_000_000;

/// While it lives, threads that this one starts begin with [`SLACK`], and its own timers have it,
/// too: only around calls into sled, never where this program waits for a time.
pub(super) struct Slack(Option<u32>);

impl Slack {
    pub(super) fn set() -> Self {
        let before = prctl::get_timerslack().ok().and_then(|slack| u32::try_from(slack).ok());
        let set = before.filter(|_| prctl::set_timerslack(SLACK.into()).is_ok());
        Self(set)
    }
}

impl Drop for Slack {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(|before| prctl::set_timerslack(before.into())) {
            log::warn!("timers of this thread stay {} s late: {error}", SLACK / 1_000_000_000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_late_only_while_it_lives() {
        let before = prctl::get_timerslack();
        let slack = Slack::set();
        assert_ne!(prctl::get_timerslack(), before);
        drop(slack);
        assert_eq!(prctl::get_timerslack(), before);
    }
}
