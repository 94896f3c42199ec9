//! The network between nodes: sessions that are FIFO and at most once, as the agent's links are.
//!
//! Loss below a session is delay (a retransmission); only a session that breaks loses messages,
//! and both ends learn of it, the far one late if the cable was cut.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::{Duration, NodeId, Time};

/// How long a dial or unacknowledged data waits before a session counts as broken.
pub const GIVE_UP: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct NetOptions {
    /// One way, per pair; jitter on top.
    pub latency_ms: std::ops::Range<u64>,
    /// Probability that a message is retransmitted once more.
    pub loss: f64,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { latency_ms: 1..40, loss: 0.0 }
    }
}

#[derive(Clone, Debug, Default)]
struct Session {
    /// Changes with every reset: what was sent under an older one is lost.
    epoch: u64,
    up: bool,
    /// Latest arrival scheduled, by direction (low to high, high to low).
    last: [u64; 2],
    base_us: u64,
}

pub struct Net {
    options: NetOptions,
    rng: fastrand::Rng,
    sessions: BTreeMap<(NodeId, NodeId), Session>,
    /// Pairs that cannot reach each other: nodes of different groups.
    groups: BTreeMap<NodeId, u32>,
    cut: BTreeSet<(NodeId, NodeId)>,
}

/// What became of a message handed to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It arrives then, if the session is still of this epoch.
    At { time: Time, epoch: u64 },
    /// There is no session: one is being made, and stands then.
    Opens { time: Time, epoch: u64 },
    /// Nobody answers there; known to the sender at this time.
    Refused { time: Time },
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    if a < b { (a, b) } else { (b, a) }
}

impl Net {
    #[must_use]
    pub fn new(options: NetOptions, seed: u64) -> Self {
        Self {
            options,
            rng: fastrand::Rng::with_seed(seed ^ 0x006e_6574),
            sessions: BTreeMap::new(),
            groups: BTreeMap::new(),
            cut: BTreeSet::new(),
        }
    }

    /// Whether packets pass between the two.
    #[must_use]
    pub fn reach(&self, a: NodeId, b: NodeId) -> bool {
        let group = |id| self.groups.get(&id).copied().unwrap_or(0);
        group(a) == group(b) && !self.cut.contains(&pair(a, b))
    }

    /// Puts each node into a group; different groups do not reach each other.
    pub fn partition(&mut self, groups: BTreeMap<NodeId, u32>) {
        self.groups = groups;
    }

    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cut.insert(pair(a, b));
    }

    pub fn heal(&mut self) {
        self.groups.clear();
        self.cut.clear();
    }

    #[must_use]
    pub fn epoch(&self, a: NodeId, b: NodeId) -> Option<u64> {
        self.sessions.get(&pair(a, b)).filter(|s| s.up).map(|s| s.epoch)
    }

    /// Sessions of `id` that stand.
    #[must_use]
    pub fn peers(&self, id: NodeId) -> Vec<NodeId> {
        let of = |(a, b): &(NodeId, NodeId)| {
            if *a == id { Some(*b) } else { (*b == id).then_some(*a) }
        };
        self.sessions.iter().filter(|(_, s)| s.up).filter_map(|(key, _)| of(key)).collect()
    }

    pub fn close(&mut self, a: NodeId, b: NodeId) {
        if let Some(session) = self.sessions.get_mut(&pair(a, b)) {
            session.up = false;
            session.epoch += 1;
        }
    }

    /// A message from `from` to `to`; `alive` says whether a process listens there.
    pub fn send(&mut self, now: Time, from: NodeId, to: NodeId, alive: bool) -> Sent {
        let reach = self.reach(from, to);
        let delay = self.delay(from, to);
        let key = pair(from, to);
        let session = self.sessions.entry(key).or_default();
        if session.up {
            let direction = usize::from(from > to);
            let at = (now.0 + delay).max(session.last[direction] + 1);
            session.last[direction] = at;
            return Sent::At { time: Time(at), epoch: session.epoch };
        }
        if !reach {
            return Sent::Refused { time: now + CONNECT };
        }
        if !alive {
            return Sent::Refused { time: Time(now.0 + 2 * delay) };
        }
        session.up = true;
        session.epoch += 1;
        // Connection and handshake: two round trips.
        let at = now.0 + 4 * delay;
        session.last = [at, at];
        Sent::Opens { time: Time(at), epoch: session.epoch }
    }

    fn delay(&mut self, a: NodeId, b: NodeId) -> u64 {
        let range = self.options.latency_ms.clone();
        let session = self.sessions.entry(pair(a, b)).or_default();
        if session.base_us == 0 {
            session.base_us = self.rng.u64(range.start * 1000..range.end * 1000).max(100);
        }
        let base = session.base_us;
        let mut delay = base + self.rng.u64(0..base / 4 + 1);
        while self.options.loss > 0.0 && self.rng.f64() < self.options.loss {
            delay += 200_000 + base;
        }
        delay
    }
}
