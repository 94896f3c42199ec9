//! The network between nodes: sessions that are FIFO and at most once, as the agent's links are.
//!
//! Loss below a session is delay (a retransmission); only a session that breaks loses messages,
//! and both ends learn of it, the far one late if the cable was cut. A peer that cannot be dialled
//! is left alone for a while, as the agent leaves it. Every link draws from a generator of its
//! own, made from the seed and the pair: what one pair does never shifts another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use dugnad_kernel::{Duration, NodeId, Time};

/// How long a dial or unacknowledged data waits before a session counts as broken.
pub const GIVE_UP: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
/// How long a peer that could not be dialled is left alone: doubles (agent/src/link/book.rs).
const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A lost packet is sent again after this and twice the way, then after twice as long, ...
const RETRANSMIT_US: u64 = 200_000;
const RETRANSMITS_MAX: u32 = 5;

/// One way, of a pair of nodes (PROTOCOL.md 12.2); jitter of up to a quarter comes on top.
#[derive(Clone, Debug, PartialEq)]
pub enum Latency {
    /// Milliseconds, uniform.
    Range(Range<u64>),
    /// 0.3 to 2 ms.
    Lan,
    /// Log-normal, median 45 ms, 99th percentile 250 ms.
    Home,
    /// Log-normal, median 80 ms, 99th percentile 900 ms.
    Mobile,
}

impl Latency {
    fn draw(&self, rng: &mut fastrand::Rng) -> u64 {
        let micros = match self {
            Self::Range(ms) => rng.u64(ms.start * 1000..ms.end * 1000),
            Self::Lan => rng.u64(300..2_000),
            // sigma = ln(p99 / median) / 2.326
            Self::Home => (45_000.0 * (0.737 * normal(rng)).exp()) as u64,
            Self::Mobile => (80_000.0 * (1.041 * normal(rng)).exp()) as u64,
        };
        micros.clamp(100, 1_500_000)
    }
}

/// Standard normal (Box-Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Bursts of loss on a link (Gilbert): 30 % for a second, every half minute or so.
const BURST_LOSS: f64 = 0.3;
const BURST_US: f64 = 1_000_000.0;
const BURST_GAP_US: f64 = 30_000_000.0;

#[derive(Clone, Debug)]
pub struct NetOptions {
    pub latency: Latency,
    /// Probability that a packet is lost and sent once more.
    pub loss: f64,
    /// Whether links have bursts of loss, too.
    pub bursts: bool,
    /// Share of the pairs that can never connect (non-transitive links).
    pub blocked: f64,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { latency: Latency::Range(1..40), loss: 0.0, bursts: false, blocked: 0.0 }
    }
}

/// What a dialler meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// A process that accepts.
    Alive,
    /// A machine without the process: the dial is refused at once.
    Closed,
    /// Nothing: the dial times out.
    Silent,
}

/// What one side knows of its attempts to dial the other.
#[derive(Clone, Copy, Debug, Default)]
struct Dial {
    failures: u8,
    /// Whether a message was turned away in this back-off already, and the sender told.
    told: bool,
    /// When the attempt under way fails, and until when there is no other.
    fails_at: u64,
    retry_at: u64,
}

struct Link {
    rng: fastrand::Rng,
    /// Of the session that stands or stood last; no two are the same. What was sent under an
    /// older one is lost.
    epoch: u64,
    up: bool,
    base_us: u32,
    /// Latest arrival scheduled, by direction (low to high, high to low).
    last: [u64; 2],
    dials: [Dial; 2],
    burst_until: u64,
    burst_next: u64,
}

/// Ids are random already.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = mix(self.0, u64::from_le_bytes(word));
        }
    }
}

/// A hash map that is only asked by key.
pub type IdMap<V> = HashMap<NodeId, V, BuildHasherDefault<IdHasher>>;

/// One step of a hash that is good enough for traces and for generators of pairs.
#[must_use]
pub const fn mix(state: u64, word: u64) -> u64 {
    let mut x = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

pub struct Net {
    options: NetOptions,
    seed: u64,
    links: Vec<Link>,
    /// Links of each node: the other end, and the place in `links`; sorted.
    ends: IdMap<Vec<(NodeId, u32)>>,
    free: Vec<u32>,
    epochs: u64,
    /// Pairs that cannot reach each other: nodes of different groups,
    groups: BTreeMap<NodeId, u32>,
    /// except this share of the pairs,
    leak: f64,
    /// and single ways from the first to the second.
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
    /// Lost with a dial that is failing, or while the peer is left alone; nobody is told.
    Lost,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    if a < b { (a, b) } else { (b, a) }
}

impl Net {
    #[must_use]
    pub fn new(options: NetOptions, seed: u64) -> Self {
        Self {
            options,
            seed,
            links: Vec::new(),
            ends: IdMap::default(),
            free: Vec::new(),
            epochs: 0,
            groups: BTreeMap::new(),
            leak: 0.0,
            cut: BTreeSet::new(),
        }
    }

    /// A number of the pair, the same whenever it is asked for.
    fn pair_seed(&self, a: NodeId, b: NodeId, what: u64) -> u64 {
        let (low, high) = pair(a, b);
        let words = [low.0 as u64, (low.0 >> 64) as u64, high.0 as u64, (high.0 >> 64) as u64];
        words.into_iter().fold(mix(self.seed, what), mix)
    }

    /// Whether a choice with this probability falls on the pair.
    fn chosen(&self, a: NodeId, b: NodeId, what: u64, share: f64) -> bool {
        share > 0.0 && ((self.pair_seed(a, b, what) >> 11) as f64) < share * (1u64 << 53) as f64
    }

    /// Whether packets pass from `a` to `b`.
    #[must_use]
    pub fn reach(&self, a: NodeId, b: NodeId) -> bool {
        let together = self.groups.is_empty() || {
            let group = |id| self.groups.get(&id).copied().unwrap_or(0);
            group(a) == group(b) || self.chosen(a, b, 1, self.leak)
        };
        together
            && (self.cut.is_empty() || !self.cut.contains(&(a, b)))
            && !self.chosen(a, b, 2, self.options.blocked)
    }

    /// Puts each node into a group; different groups do not reach each other.
    pub fn partition(&mut self, groups: BTreeMap<NodeId, u32>) {
        self.partition_leaky(groups, 0.0);
    }

    /// The same, but a share of the pairs across still can.
    pub fn partition_leaky(&mut self, groups: BTreeMap<NodeId, u32>, leak: f64) {
        self.groups = groups;
        self.leak = leak;
    }

    /// Both ways.
    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Packets from `a` no longer reach `b`.
    pub fn cut_one_way(&mut self, a: NodeId, b: NodeId) {
        self.cut.insert((a, b));
    }

    pub fn heal(&mut self) {
        self.groups.clear();
        self.cut.clear();
    }

    /// This share of the pairs cannot connect from now on.
    pub fn block(&mut self, share: f64) {
        self.options.blocked = share;
    }

    /// No packet is lost from now on, and all pairs can connect.
    pub fn calm(&mut self) {
        self.options.loss = 0.0;
        self.options.bursts = false;
        self.options.blocked = 0.0;
    }

    /// Whether anything is cut at the moment.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.groups.is_empty() && self.cut.is_empty() && self.options.blocked == 0.0
    }

    fn place(&self, a: NodeId, b: NodeId) -> Option<u32> {
        let ends = self.ends.get(&a)?;
        let at = ends.binary_search_by_key(&b, |(peer, _)| *peer).ok()?;
        ends.get(at).map(|(_, place)| *place)
    }

    fn link(&self, a: NodeId, b: NodeId) -> Option<&Link> {
        self.links.get(self.place(a, b)? as usize)
    }

    #[must_use]
    pub fn epoch(&self, a: NodeId, b: NodeId) -> Option<u64> {
        self.link(a, b).filter(|link| link.up).map(|link| link.epoch)
    }

    /// Sessions of `id` that stand.
    #[must_use]
    pub fn peers(&self, id: NodeId) -> Vec<NodeId> {
        let ends = self.ends.get(&id).map_or(&[][..], Vec::as_slice);
        let up = |place: u32| self.links.get(place as usize).is_some_and(|link| link.up);
        ends.iter().filter(|(_, place)| up(*place)).map(|(peer, _)| *peer).collect()
    }

    pub fn close(&mut self, a: NodeId, b: NodeId) {
        let Some(place) = self.place(a, b) else { return };
        if let Some(link) = self.links.get_mut(place as usize) {
            link.up = false;
        }
    }

    /// The node will never come back: its links are forgotten.
    pub fn forget(&mut self, id: NodeId) {
        for (peer, place) in self.ends.remove(&id).unwrap_or_default() {
            if let Some(ends) = self.ends.get_mut(&peer) {
                ends.retain(|(other, _)| *other != id);
            }
            self.free.push(place);
        }
    }

    fn open_link(&mut self, a: NodeId, b: NodeId) -> u32 {
        if let Some(place) = self.place(a, b) {
            return place;
        }
        let mut rng = fastrand::Rng::with_seed(self.pair_seed(a, b, 0));
        let base_us = u32::try_from(self.options.latency.draw(&mut rng)).unwrap_or(u32::MAX);
        let burst_next = (rng.f64() * BURST_GAP_US) as u64;
        let reused = self.free.pop();
        let link = Link {
            rng,
            epoch: 0,
            up: false,
            base_us,
            last: [0; 2],
            dials: [Dial::default(); 2],
            burst_until: 0,
            burst_next,
        };
        let place = match reused {
            Some(place) => {
                self.links[place as usize] = link;
                place
            }
            None => {
                self.links.push(link);
                u32::try_from(self.links.len() - 1).unwrap_or(u32::MAX)
            }
        };
        for (me, other) in [(a, b), (b, a)] {
            let ends = self.ends.entry(me).or_default();
            let at = ends.partition_point(|(peer, _)| *peer < other);
            ends.insert(at, (other, place));
        }
        place
    }

    /// A message from `from` to `to`; `listener` says what a dial would meet there.
    pub fn send(&mut self, now: Time, from: NodeId, to: NodeId, listener: Listener) -> Sent {
        let place = self.open_link(from, to);
        let (there, back) = (self.reach(from, to), self.reach(to, from));
        let options = &self.options;
        let Some(link) = self.links.get_mut(place as usize) else { return Sent::Lost };
        let direction = usize::from(from > to);
        if link.up {
            let at = (now.0 + link.delay(now, options)).max(link.last[direction] + 1);
            link.last[direction] = at;
            return Sent::At { time: Time(at), epoch: link.epoch };
        }
        let dial = &mut link.dials[direction];
        if now.0 < dial.fails_at {
            return Sent::Lost;
        }
        if now.0 < dial.retry_at {
            let told = std::mem::replace(&mut dial.told, true);
            return if told { Sent::Lost } else { Sent::Refused { time: Time(now.0 + 1) } };
        }
        let delay = link.delay(now, options);
        if !there || !back || listener != Listener::Alive {
            let refused = there && back && listener == Listener::Closed;
            let time = if refused { Time(now.0 + 2 * delay) } else { now + CONNECT };
            link.fail(direction, time);
            return Sent::Refused { time };
        }
        link.up = true;
        self.epochs += 1;
        link.epoch = self.epochs;
        link.dials = [Dial::default(); 2];
        // Connection and handshake: two round trips.
        let at = now.0 + 4 * delay;
        link.last = [at, at];
        Sent::Opens { time: Time(at), epoch: link.epoch }
    }

    /// How long a packet takes from `a` to `b` now.
    pub fn way(&mut self, now: Time, a: NodeId, b: NodeId) -> Duration {
        let place = self.open_link(a, b);
        let options = &self.options;
        let link = self.links.get_mut(place as usize);
        Duration::from_micros(link.map_or(0, |link| link.delay(now, options)))
    }

    /// Links between nodes that ever spoke, sessions that stand.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        let up = self.links.iter().filter(|link| link.up).count();
        (self.links.len() - self.free.len(), up)
    }
}

impl Link {
    fn delay(&mut self, now: Time, options: &NetOptions) -> u64 {
        let base = u64::from(self.base_us);
        let mut delay = base + self.rng.u64(0..base / 4 + 1);
        let burst = options.bursts && self.in_burst(now.0);
        let loss = if burst { BURST_LOSS } else { options.loss };
        let mut wait = RETRANSMIT_US + 2 * base;
        let mut tries = 0;
        while loss > 0.0 && tries < RETRANSMITS_MAX && self.rng.f64() < loss {
            delay += wait;
            wait *= 2;
            tries += 1;
        }
        delay
    }

    fn in_burst(&mut self, now: u64) -> bool {
        while self.burst_next <= now {
            let long = -BURST_US * (1.0 - self.rng.f64()).ln();
            let gap = -BURST_GAP_US * (1.0 - self.rng.f64()).ln();
            self.burst_until = self.burst_next + long as u64;
            self.burst_next = self.burst_until + gap as u64 + 1;
        }
        now < self.burst_until
    }

    fn fail(&mut self, direction: usize, at: Time) {
        let jitter = self.rng.u32(75..125);
        let dial = &mut self.dials[direction];
        let backoff = (BACKOFF * (1 << dial.failures.min(10))).min(BACKOFF_MAX) * jitter / 100;
        dial.failures = dial.failures.saturating_add(1);
        dial.fails_at = at.0;
        dial.retry_at = (at + backoff).0;
        dial.told = false;
    }
}
