//! How much of this machine strangers may hold at a time. Every limit on connections stands here;
//! `dugnad status -o json` shows them, and README's table says what gives way.
//!
//! Each connection costs a file descriptor or two, of which the system gives a process so many: the
//! limits share them out, so that the owner's own socket is answered however many strangers call.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for everything that does not come from outside: the disk, the owner's socket, the
/// pipes and sockets of services.
const OWN: u64 = 72;
/// More than this the agent never needs.
const WANTED: u64 = 8_192;

/// Connections of each kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Sessions with other nodes.
    pub(crate) sessions: usize,
    /// Connections that have not proven who they are.
    pub(crate) handshakes: usize,
    /// Visitors by HTTP.
    pub(crate) http: usize,
    /// Connections to the TCP ports of all services.
    pub(crate) tcp: usize,
    /// Of them, those of one service.
    pub(crate) tcp_service: usize,
    /// Streams of other nodes to replicas here.
    pub(crate) streams: usize,
}

impl Limits {
    /// Raises this process's own limit on descriptors as far as it may be, and shares them out.
    pub(crate) fn of_this_process() -> Self {
        // Without an answer the usual limit is assumed.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
        let wanted = hard.min(WANTED).max(soft);
        let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        let files = if raised.is_ok() { wanted } else { soft };
        log::debug!("{files} file descriptors");
        Self::of(files)
    }

    /// Of so many descriptors.
    pub(crate) fn of(files: u64) -> Self {
        let share = |most: usize, percent: u64| {
            let share = files.saturating_sub(OWN) * percent / 100;
            usize::try_from(share).unwrap_or(most).clamp(4, most)
        };
        // A visitor holds two: its own and that of the replica.
        let tcp = share(512, 10);
        Self {
            sessions: share(128, 25),
            handshakes: share(64, 10),
            http: share(256, 15),
            tcp,
            tcp_service: (tcp / 2).max(4),
            streams: share(256, 15),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(WANTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_shared_and_many_are_enough() {
        let many = Limits::of(WANTED);
        assert_eq!((many.sessions, many.handshakes, many.http, many.tcp), (128, 64, 256, 512));
        assert_eq!(many, Limits::of(u64::MAX / 100));
        for files in [100, 256, 1_024, 4_096] {
            let few = Limits::of(files);
            let held = few.sessions + few.handshakes + 2 * (few.http + few.tcp) + few.streams;
            let held = held as u64;
            assert!(held <= files.saturating_sub(OWN).max(44), "{files}: {few:?} holds {held}");
        }
    }
}
