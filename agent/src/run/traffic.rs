//! What goes over the links by kind of message, and who says far too much.
//!
//! A protocol that answers itself for ever looks from outside like a busy processor and nothing
//! else. So frames are counted by kind, and a peer that floods this node is named.

use std::time::{Duration, Instant};

use dugnad_kernel::NodeId;
use dugnad_kernel::map::Map;

/// More frames than this in a second, [`SECONDS`] times in a row, are a flood. The busiest honest
/// peer, while a node with many services joins, sends some tens a second.
const FRAMES_A_SECOND: u64 = 1_000;
const SECONDS: u32 = 5;
/// `status` tells of a flood for so long after it ended.
const TOLD: Duration = Duration::from_secs(600);
/// Peers followed at a time; there are fewer sessions.
const PEERS_MAX: usize = 256;

/// Frames by kind since the start, and the peers that send them.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) received: Map<&'static str, u64>,
    pub(super) sent: Map<&'static str, u64>,
    peers: Map<NodeId, Peer>,
}

/// The current second of one peer.
struct Peer {
    since: Instant,
    kinds: Map<&'static str, u64>,
    /// Seconds of flood in a row.
    loud: u32,
    flood: Option<Flood>,
}

struct Flood {
    last: Instant,
    text: String,
}

impl Traffic {
    pub(super) fn sent(&mut self, kind: &'static str) {
        *self.sent.entry(kind).or_default() += 1;
    }

    /// Counts a frame of `from`; what to warn of if a flood has just become one.
    pub(super) fn received(
        &mut self,
        from: NodeId,
        kind: &'static str,
        now: Instant,
    ) -> Option<String> {
        *self.received.entry(kind).or_default() += 1;
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&from) {
            let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.since);
            oldest.map(|(id, _)| *id).map(|id| self.peers.remove(&id));
        }
        let fresh = Peer { since: now, kinds: Map::new(), loud: 0, flood: None };
        let peer = self.peers.entry(from).or_insert(fresh);
        let warning = peer.second_over(from, now);
        *peer.kinds.entry(kind).or_default() += 1;
        warning
    }

    /// Floods that last or ended a short while ago, a line each.
    pub(super) fn floods(&self, now: Instant) -> Vec<String> {
        let floods = self.peers.values().filter_map(|peer| peer.flood.as_ref());
        floods.filter(|flood| now - flood.last < TOLD).map(|flood| flood.text.clone()).collect()
    }
}

impl Peer {
    fn second_over(&mut self, id: NodeId, now: Instant) -> Option<String> {
        let past = now - self.since;
        if past < Duration::from_secs(1) {
            return None;
        }
        let kinds = std::mem::take(&mut self.kinds);
        self.since = now;
        let frames: u64 = kinds.values().sum();
        // A pause of two seconds is no flood, however much came before it.
        let loud = frames > FRAMES_A_SECOND && past < Duration::from_secs(2);
        self.loud = if loud { self.loud.saturating_add(1) } else { 0 };
        if self.loud < SECONDS {
            return None;
        }
        let (kind, count) = kinds.iter().max_by_key(|(_, count)| **count)?;
        let text = format!(
            "node {} sends {frames} frames a second, {count} of them {kind}: a fault of dugnad or \
             of that node; please report it with `dugnad status -o json` of both",
            id.short()
        );
        self.flood = Some(Flood { last: now, text: text.clone() });
        (self.loud == SECONDS).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    fn second(traffic: &mut Traffic, from: NodeId, start: Instant, frames: u64) -> Vec<String> {
        let at = |n: u64| start + Duration::from_micros(1_000_000 * n / frames.max(1));
        (0..frames).filter_map(|n| traffic.received(from, "tree_mirror", at(n))).collect()
    }

    #[test]
    fn a_flood_is_told_once_while_it_lasts_and_named_by_kind() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        let mut warnings = Vec::new();
        for s in 0..20 {
            warnings.extend(second(&mut traffic, Id(7), start + Duration::from_secs(s), 1_200));
            assert!(second(&mut traffic, Id(8), start + Duration::from_secs(s), 900).is_empty());
        }
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("tree_mirror"), "{warnings:?}");
        let end = start + Duration::from_secs(20);
        assert_eq!(traffic.floods(end).len(), 1);
        assert!(traffic.floods(end + TOLD).is_empty());
        assert_eq!(traffic.received.get("tree_mirror"), Some(&(20 * 2_100)));
    }

    #[test]
    fn bursts_with_pauses_are_no_flood() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        for s in 0..20 {
            let at = start + Duration::from_secs(s * 3);
            assert!(second(&mut traffic, Id(7), at, 5_000).is_empty());
        }
    }

    #[test]
    fn peers_are_bounded() {
        let (mut traffic, now) = (Traffic::default(), Instant::now());
        for id in 0..1_000 {
            traffic.received(Id(id), "ping", now);
        }
        assert_eq!(traffic.peers.len(), PEERS_MAX);
    }
}
