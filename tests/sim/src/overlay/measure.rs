//! What a run is measured by: traffic by kind, lookups against the oracle, the hash of the trace.

use std::collections::BTreeMap;

use dugnad_connectivity::{
    Msg, detector, entry::EntryMsg, overlay, ring, route, tree::broadcast::CastMsg,
};
use dugnad_kernel::{Key, Time, wire};
use postcard::ser_flavors::Flavor;

use crate::net::mix;

/// Bytes of a frame around the body of an overlay message: header, and which layer it is for.
const FRAME: u64 = wire::HEADER as u64 + 1;

/// Counts and hashes bytes instead of keeping them.
#[derive(Default)]
struct Digest {
    bytes: u64,
    hash: u64,
}

impl Flavor for Digest {
    type Output = Self;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.bytes += 1;
        self.hash = self.hash.rotate_left(8) ^ u64::from(byte).wrapping_mul(0x0100_0000_01b3);
        Ok(())
    }

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.bytes += data.len() as u64;
        for chunk in data.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.hash = mix(self.hash, u64::from_le_bytes(word));
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Self> {
        Ok(self)
    }
}

/// Bytes of the frame that would carry `msg` (before encryption and TCP), and a hash of it.
#[must_use]
pub fn digest(msg: &Msg) -> (u64, u64) {
    let digest = postcard::serialize_with_flavor(msg, Digest::default()).unwrap_or_default();
    (digest.bytes + FRAME, digest.hash)
}

/// Kinds of messages that reports tell apart.
#[must_use]
pub fn kind(msg: &Msg) -> &'static str {
    match msg {
        Msg::Overlay(overlay::Msg::Ring(msg)) => match msg {
            ring::Msg::Query { .. } | ring::Msg::QueryRes { .. } | ring::Msg::Notify { .. } => {
                "stabilize"
            }
            _ => "ring",
        },
        Msg::Overlay(overlay::Msg::Route(msg)) => match msg {
            route::RouteMsg::Hop(hop) => match hop.purpose {
                route::Purpose::Join { .. } => "join-hop",
                route::Purpose::Merge => "merge",
                _ => "hop",
            },
            route::RouteMsg::Ack { .. } => "ack",
            route::RouteMsg::Found { .. } => "found",
            _ => "route",
        },
        Msg::Overlay(overlay::Msg::Cast(CastMsg::Down { .. })) => "cast-down",
        Msg::Overlay(overlay::Msg::Cast(_)) => "cast",
        Msg::Detect(msg) => match msg {
            detector::Msg::Ping | detector::Msg::Pong => "ping",
            _ => "detect",
        },
        Msg::Overlay(overlay::Msg::Entry(EntryMsg::Probe | EntryMsg::ProbeRes { .. })) => "probe",
        Msg::Overlay(overlay::Msg::Entry(_)) => "merge",
        Msg::Overlay(overlay::Msg::Bulk(_)) => "bulk",
        // Kinds that no report tells apart yet.
        #[allow(unreachable_patterns)]
        _ => "other",
    }
}

/// Messages and bytes sent, by kind.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    kinds: Vec<(&'static str, u64, u64)>,
}

impl Traffic {
    pub fn add(&mut self, kind: &'static str, bytes: u64) {
        match self.kinds.iter_mut().find(|(known, _, _)| *known == kind) {
            Some((_, messages, sum)) => {
                *messages += 1;
                *sum += bytes;
            }
            None => self.kinds.push((kind, 1, bytes)),
        }
    }

    #[must_use]
    pub fn total(&self) -> (u64, u64) {
        self.kinds.iter().fold((0, 0), |(m, b), (_, messages, bytes)| (m + messages, b + bytes))
    }

    #[must_use]
    pub fn of(&self, kind: &str) -> (u64, u64) {
        let known = self.kinds.iter().find(|(known, _, _)| *known == kind);
        known.map_or((0, 0), |(_, messages, bytes)| (*messages, *bytes))
    }

    /// What was sent since `earlier`, most bytes first.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |(kind, m, b): &(&'static str, u64, u64)| {
            let (m0, b0) = earlier.of(kind);
            (*kind, m - m0, b - b0)
        };
        let mut kinds: Vec<_> = self.kinds.iter().map(less).collect();
        kinds.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        Self { kinds }
    }

    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        self.kinds.iter().copied()
    }
}

/// A lookup under way.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub from: u32,
    pub key: Key,
    pub at: Time,
}

/// What became of lookups.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    pub open: BTreeMap<u32, Asked>,
    pub asked: u64,
    /// The answer named the owner at some instant of the lookup.
    pub right: u64,
    /// Wrong answers that said they were certain: inconsistencies.
    pub wrong_certain: u64,
    pub wrong_unsure: u64,
    pub unsure: u64,
    /// Ended without an answer.
    pub failed: u64,
    /// The asker went away first.
    pub abandoned: u64,
    /// How many took that many hops.
    pub hops: Vec<u64>,
    /// Milliseconds of those that were right.
    pub took_ms: Vec<u32>,
}

impl Lookups {
    pub fn hop(&mut self, hops: u8) {
        let hops = usize::from(hops);
        if self.hops.len() <= hops {
            self.hops.resize(hops + 1, 0);
        }
        self.hops[hops] += 1;
    }

    /// Mean, 99th percentile, longest.
    #[must_use]
    pub fn hops_summary(&self) -> (f64, usize, usize) {
        let count: u64 = self.hops.iter().sum();
        let sum: u64 = self.hops.iter().enumerate().map(|(hops, n)| hops as u64 * n).sum();
        let mut below = 0;
        let p99 = self.hops.iter().position(|n| {
            below += n;
            below * 100 >= count * 99
        });
        let mean = sum as f64 / count.max(1) as f64;
        (mean, p99.unwrap_or(0), self.hops.len().saturating_sub(1))
    }

    /// Median, 99th percentile, longest, in milliseconds.
    #[must_use]
    pub fn time_summary(&self) -> (u32, u32, u32) {
        let mut sorted = self.took_ms.clone();
        sorted.sort_unstable();
        let at =
            |share: usize| sorted.get((sorted.len() * share / 100).min(sorted.len().max(1) - 1));
        let at = |share| at(share).copied().unwrap_or(0);
        (at(50), at(99), at(100))
    }

    /// Share of the ended lookups that named the right owner.
    #[must_use]
    pub fn success(&self) -> f64 {
        self.right as f64 / self.ended().max(1) as f64
    }

    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.right + self.wrong_certain + self.wrong_unsure + self.failed
    }
}

/// Kilobytes of this process that are in memory (Linux), 0 elsewhere.
#[must_use]
pub fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}
