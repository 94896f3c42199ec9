//! Reliable multicast: each sender's messages in its order, each once (PROTOCOL.md 4.7).
//!
//! A member numbers what it multicasts reliably; that is a [`Stream`]. A receiver delivers a stream
//! in order, holds what came too early and asks for what is missing: first whoever sent it the last
//! piece, then others; every member keeps the last messages to answer with. Every sixteen messages,
//! or two seconds after the last one, the sender checks that all have everything: in a mesh it asks
//! each member, in a ring it is a broadcast with feedback in which only those answer who lack
//! something. So there is one round of acknowledgements for sixteen messages, or for what came in
//! two seconds, and the last message of all is not forgotten.
//!
//! Who comes in is told how far each stream is and begins there; a stream it was not told of began
//! later, and is heard from its first message on. What nobody has any more is given up, and
//! counted: the window is what a cut or a crash can cost.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{NodeId, Time};

use super::messages::{Packet, Stream, StreamPos};
use crate::config::{GROUP_KEPT, GROUP_KEPT_BYTES, GROUP_REPAIR, GROUP_STREAMS};

/// Bytes a message takes in memory, about; also the empty one.
pub(crate) fn weight(packet: &Packet) -> usize {
    packet.body.len() + 64
}

/// One stream as a receiver has it.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The first that was not delivered.
    next: u32,
    /// The last one known to exist.
    latest: u32,
    held: Map<u32, Packet>,
    /// Who sent the last piece.
    pub(crate) via: NodeId,
    /// Asking for what is missing: how often in vain.
    pub(crate) asking: Option<u32>,
    touched: Time,
}

impl Incoming {
    const fn new(next: u32, via: NodeId, now: Time) -> Self {
        let latest = next.saturating_sub(1);
        Self { next, latest, held: Map::new(), via, asking: None, touched: now }
    }

    /// The first gap, both ends included.
    fn gap(&self) -> Option<(u32, u32)> {
        if self.next > self.latest {
            return None;
        }
        let end = self.held.keys().next().map_or(self.latest, |first| first.saturating_sub(1));
        Some((self.next, end))
    }
}

/// What this member says reliably.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Tells this membership from an earlier one.
    pub(crate) life: u64,
    /// The last one said, and the last one all are known to have.
    pub(crate) last: u32,
    pub(crate) checked: u32,
    bytes: VecDeque<usize>,
    /// What is being checked, how often in vain, and of whom in a mesh an answer is awaited.
    pub(crate) checking: Option<(u32, u32)>,
    pub(crate) awaited: Set<NodeId>,
    /// A check is planned.
    pub(crate) planned: bool,
}

impl Outgoing {
    /// Whether one more fits the window.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.len() < GROUP_KEPT
            && self.bytes.iter().sum::<usize>() + bytes <= GROUP_KEPT_BYTES
    }

    pub(crate) fn say(&mut self, me: NodeId, bytes: usize) -> StreamPos {
        self.last = self.last.saturating_add(1);
        self.bytes.push_back(bytes);
        StreamPos { stream: Stream { by: me, life: self.life }, seq: self.last }
    }

    /// All have everything up to `seq`, or nobody waits for them any longer.
    pub(crate) fn release(&mut self, seq: u32) {
        while self.checked < seq.min(self.last) {
            self.checked += 1;
            self.bytes.pop_front();
        }
        self.checking = None;
        self.awaited.clear();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Reliable {
    pub(crate) out: Outgoing,
    streams: Map<Stream, Incoming>,
    /// Whether streams that are not here began after this member came in.
    whole: bool,
    kept: VecDeque<Packet>,
    kept_bytes: usize,
    held_bytes: usize,
    /// Given up.
    pub(crate) lost: u64,
}

impl Reliable {
    /// A membership begins, with what its door told of the streams.
    pub(crate) fn begin(&mut self, life: u64, told: &[StreamPos], via: NodeId, now: Time) {
        self.out.life = life;
        self.whole = true;
        for place in told.iter().take(GROUP_STREAMS) {
            let next = place.seq.saturating_add(1);
            self.streams.entry(place.stream).or_insert_with(|| Incoming::new(next, via, now));
        }
    }

    /// How far each stream is, for a newcomer.
    pub(crate) fn places(&self, me: NodeId) -> Vec<StreamPos> {
        let own = StreamPos { stream: Stream { by: me, life: self.out.life }, seq: self.out.last };
        let place = |(stream, incoming): (&Stream, &Incoming)| StreamPos {
            stream: *stream,
            seq: incoming.next.saturating_sub(1),
        };
        let others = self.streams.iter().map(place);
        core::iter::once(own).chain(others).take(GROUP_STREAMS).collect()
    }

    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.streams.len(), self.kept.len(), self.kept_bytes + self.held_bytes)
    }

    pub(crate) fn stream(&mut self, stream: &Stream) -> Option<&mut Incoming> {
        self.streams.get_mut(stream)
    }

    /// Remembers a message for those who will ask for it.
    pub(crate) fn keep(&mut self, packet: &Packet) {
        self.kept_bytes += weight(packet);
        self.kept.push_back(packet.clone());
        while self.kept.len() > GROUP_KEPT || self.kept_bytes > GROUP_KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.kept_bytes -= weight(&oldest);
        }
    }

    /// What is kept of a stream between two places, not too much at once.
    pub(crate) fn repair(&self, stream: Stream, from: u32, to: u32) -> Vec<Packet> {
        let wanted = |packet: &&Packet| {
            packet.place.is_some_and(|p| p.stream == stream && p.seq >= from && p.seq <= to)
        };
        self.kept.iter().filter(wanted).take(GROUP_REPAIR).cloned().collect()
    }

    fn incoming(
        &mut self,
        place: StreamPos,
        via: NodeId,
        now: Time,
        unheard: u32,
    ) -> &mut Incoming {
        if !self.streams.contains_key(&place.stream) && self.streams.len() >= GROUP_STREAMS {
            let oldest = self.streams.iter().min_by_key(|(_, i)| i.touched).map(|(s, _)| *s);
            if let Some(incoming) = oldest.and_then(|oldest| self.streams.remove(&oldest)) {
                self.held_bytes -= incoming.held.values().map(weight).sum::<usize>();
            }
            // From now on a stream that is not here may be one that was forgotten.
            self.whole = false;
        }
        let next = if self.whole { 1 } else { unheard };
        let new = || Incoming::new(next, via, now);
        let incoming = self.streams.entry(place.stream).or_insert_with(new);
        (incoming.via, incoming.touched) = (via, now);
        incoming
    }

    /// A message of a stream; what can be delivered now, in order, and whether there is a gap.
    pub(crate) fn take(
        &mut self,
        place: StreamPos,
        packet: Packet,
        via: NodeId,
        now: Time,
    ) -> (Vec<Packet>, bool) {
        let room = self.held_bytes + weight(&packet) <= GROUP_KEPT_BYTES;
        let window = u32::try_from(GROUP_KEPT).unwrap_or(u32::MAX);
        let incoming = self.incoming(place, via, now, place.seq);
        let known = place.seq < incoming.next || incoming.held.contains_key(&place.seq);
        if known {
            return (Vec::new(), incoming.gap().is_some());
        }
        incoming.latest = incoming.latest.max(place.seq);
        let mut given_up = 0;
        if place.seq.saturating_sub(incoming.next) >= window {
            // Nobody keeps what is missing any more.
            let next = place.seq.saturating_sub(window - 1);
            given_up = next - incoming.next;
            incoming.next = next;
        }
        let mut added = 0;
        if room || place.seq == incoming.next {
            added = weight(&packet);
            incoming.held.insert(place.seq, packet);
        }
        self.held_bytes += added;
        self.lost += u64::from(given_up);
        self.drain(place.stream)
    }

    /// What can be delivered of a stream, in order; whether there is a gap.
    fn drain(&mut self, stream: Stream) -> (Vec<Packet>, bool) {
        let Some(incoming) = self.streams.get_mut(&stream) else { return (Vec::new(), false) };
        let mut ready = Vec::new();
        while let Some((seq, packet)) = incoming.held.pop_first() {
            if seq > incoming.next {
                incoming.held.insert(seq, packet);
                break;
            }
            self.held_bytes -= weight(&packet);
            if seq == incoming.next {
                incoming.next = incoming.next.saturating_add(1);
                ready.push(packet);
            }
        }
        if !ready.is_empty() {
            incoming.asking = incoming.asking.map(|_| 0);
        }
        (ready, incoming.gap().is_some())
    }

    /// The sender says that it has come so far; how far this member is, and whether something is
    /// missing.
    pub(crate) fn check(&mut self, place: StreamPos, via: NodeId, now: Time) -> (u32, bool) {
        let incoming = self.incoming(place, via, now, place.seq.saturating_add(1));
        incoming.latest = incoming.latest.max(place.seq);
        (incoming.next.saturating_sub(1), incoming.gap().is_some())
    }

    /// What is missing first of a stream.
    pub(crate) fn missing(&self, stream: &Stream) -> Option<(u32, u32)> {
        self.streams.get(stream)?.gap()
    }

    /// Nobody has it: goes on behind the gap.
    pub(crate) fn give_up(&mut self, stream: Stream) -> (Vec<Packet>, bool) {
        let Some(incoming) = self.streams.get_mut(&stream) else { return (Vec::new(), false) };
        if let Some((from, to)) = incoming.gap() {
            self.lost += u64::from(to - from) + 1;
            incoming.next = to.saturating_add(1);
            incoming.asking = incoming.asking.map(|_| 0);
        }
        self.drain(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::MsgId;
    use super::*;
    use dugnad_kernel::Id;

    const STREAM: Stream = Stream { by: Id(1), life: 7 };

    fn packet(seq: u32) -> Packet {
        let id = MsgId { origin: Id(1), number: u64::from(seq) };
        Packet { id, place: Some(place(seq)), body: Vec::from([1; 1_000]) }
    }

    fn place(seq: u32) -> StreamPos {
        StreamPos { stream: STREAM, seq }
    }

    fn take(reliable: &mut Reliable, seq: u32) -> (Vec<u32>, bool) {
        let (ready, gap) = reliable.take(place(seq), packet(seq), Id(2), Time(1));
        (ready.iter().filter_map(|p| p.place).map(|p| p.seq).collect(), gap)
    }

    fn member() -> Reliable {
        let mut reliable = Reliable::default();
        reliable.begin(3, &[], Id(2), Time(0));
        reliable
    }

    #[test]
    fn a_stream_is_delivered_in_order_and_once() {
        let mut reliable = member();
        assert_eq!(take(&mut reliable, 2), (Vec::new(), true), "its first is missing");
        assert_eq!(reliable.missing(&STREAM), Some((1, 1)));
        assert_eq!(take(&mut reliable, 4), (Vec::new(), true));
        assert_eq!(take(&mut reliable, 1), (Vec::from([1, 2]), true));
        assert_eq!(take(&mut reliable, 2), (Vec::new(), true), "twice");
        assert_eq!(take(&mut reliable, 3), (Vec::from([3, 4]), false));
        assert_eq!(reliable.sizes().2, 0, "nothing is held");
    }

    #[test]
    fn the_last_one_is_missed_by_a_check() {
        let mut reliable = member();
        take(&mut reliable, 1);
        assert_eq!(reliable.check(place(1), Id(2), Time(1)), (1, false));
        assert_eq!(reliable.check(place(3), Id(2), Time(1)), (1, true));
        assert_eq!(reliable.missing(&STREAM), Some((2, 3)));
        let (ready, gap) = reliable.give_up(STREAM);
        assert_eq!((ready.len(), gap, reliable.lost), (0, false, 2));
        assert_eq!(take(&mut reliable, 4), (Vec::from([4]), false));
    }

    #[test]
    fn a_newcomer_begins_where_its_door_was() {
        let mut reliable = Reliable::default();
        reliable.begin(3, &[place(9)], Id(2), Time(0));
        assert_eq!(take(&mut reliable, 9), (Vec::new(), false), "before its time");
        assert_eq!(take(&mut reliable, 10), (Vec::from([10]), false));
    }

    /// Whatever the order and however far apart, memory stays within its bounds.
    #[test]
    fn what_is_held_and_kept_is_bounded() {
        let (mut reliable, mut rng) = (member(), fastrand::Rng::with_seed(4));
        for _ in 0..20_000 {
            let life = rng.u64(0..400);
            let stream = Stream { by: Id(1), life };
            let at = StreamPos { stream, seq: rng.u32(..) >> rng.u32(0..32) };
            let packet = Packet { place: Some(at), ..packet(at.seq) };
            reliable.keep(&packet);
            reliable.take(at, packet, Id(2), Time(rng.u64(..)));
            if rng.bool() {
                reliable.give_up(stream);
            }
            let (streams, kept, bytes) = reliable.sizes();
            assert!(streams <= GROUP_STREAMS && kept <= GROUP_KEPT);
            assert!(bytes <= 2 * GROUP_KEPT_BYTES + 2_000, "{bytes}");
        }
    }

    #[test]
    fn the_window_closes_and_opens() {
        let mut out = Outgoing::default();
        for _ in 0..GROUP_KEPT {
            assert!(out.has_room(10));
            out.say(Id(1), 10);
        }
        assert!(!out.has_room(10));
        out.release(16);
        assert!(out.has_room(10));
        assert_eq!(out.checked, 16);
    }
}
