//! Messages to all members, and what keeps the reliable ones whole (PROTOCOL.md 4.7).

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Id, NodeId};

use super::directory::{Mode, Policy, group_id};
use super::messages::{
    Answer, Event, GroupCast, GroupId, Manner, Msg, MsgId, Packet, Refusal, Response, Stream,
    StreamPos, Timer,
};
use super::reliable::weight;
use super::{Groups, Phase, anycast, enter};
use crate::config::{
    GROUP_BODY_MAX, GROUP_CHECK, GROUP_CHECK_EVERY, GROUP_CHECK_TRIES, GROUP_NACK,
    GROUP_NACK_AGAIN, GROUP_NACK_JITTER, GROUP_NACK_TRIES, GROUP_OPS_MAX, GROUP_RATE, GROUP_SHRINK,
    GROUP_THAT_MAX,
};
use crate::overlay::tree::feedback::Feedback;

impl Groups {
    pub(super) fn send(
        &mut self,
        call: u32,
        name: &str,
        body: Vec<u8>,
        manner: Manner,
        cx: &mut Cx<'_, Self>,
    ) {
        self.messages = self.messages.wrapping_add(1);
        let id = MsgId { origin: self.me.id, number: self.messages };
        let too_large = body.len() > GROUP_BODY_MAX;
        let reliable = manner == Manner::Reliable;
        let to_one = match manner {
            Manner::ToOne { that } if self.calls.len() < GROUP_OPS_MAX => Some(that),
            _ => None,
        };
        let (packet, gid) = (Packet { id, place: None, body }, group_id(name));
        let member = self.groups.get(&gid).is_some_and(|group| group.phase != Phase::Entering);
        let answer = if too_large || to_one.as_ref().is_some_and(|t| t.len() > GROUP_THAT_MAX) {
            Answer::TooLarge
        } else if let Some(that) = to_one {
            let me = self.me.id;
            let known = self.groups.get(&gid).filter(|_| member).map(|group| group.known(me));
            let (who, known) = (self.who(gid, cx), known.unwrap_or_default());
            let op = |asker| anycast::send_to_one(asker, who, packet, that, known, call);
            self.start("send to one of a group", op, cx);
            return;
        } else if member && self.multicast(gid, packet.clone(), reliable, cx) {
            Answer::Done
        } else if member || self.calls.len() >= GROUP_OPS_MAX {
            Answer::Busy
        } else {
            let who = self.who(gid, cx);
            let op = |asker| enter::send(asker, who, packet, reliable, call);
            self.start("send to a group", op, cx);
            return;
        };
        cx.emit(Event::Answer { call, answer });
    }

    /// Passes a message of an outsider on, not too many a second.
    pub(super) fn on_send(
        &mut self,
        gid: GroupId,
        from: NodeId,
        packet: Packet,
        reliable: bool,
        cx: &mut Cx<'_, Self>,
    ) -> Response {
        let Some(group) = self.groups.get_mut(&gid) else {
            return Response::Refused(Refusal::NotMember);
        };
        if group.policy == Policy::Members {
            return Response::Refused(Refusal::MembersOnly);
        }
        if group.seen.contains(packet.id) {
            // It asked another member before, whose answer was lost.
            return Response::Sent;
        }
        let (since, passed) = &mut group.passed;
        if cx.now.since(*since) >= Duration::from_secs(1) {
            (*since, *passed) = (cx.now, 0);
        }
        *passed += 1;
        let fits = packet.body.len() <= GROUP_BODY_MAX && packet.id.origin == from;
        if *passed > GROUP_RATE || !fits || !self.multicast(gid, packet, reliable, cx) {
            self.count("group_send_refused");
            return Response::Refused(Refusal::Busy);
        }
        Response::Sent
    }

    /// To all members, n-1 messages. False: a reliable one does not fit the window yet.
    fn multicast(
        &mut self,
        gid: GroupId,
        mut packet: Packet,
        reliable: bool,
        cx: &mut Cx<'_, Self>,
    ) -> bool {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return false };
        packet.place = None;
        if reliable {
            let bytes = weight(&packet);
            if !group.reliable.out.has_room(bytes) {
                return false;
            }
            packet.place = Some(group.reliable.out.say(me, bytes));
            group.reliable.keep(&packet);
        }
        self.deliver(gid, packet.clone(), cx);
        self.cast_to_all(gid, &GroupCast::Packet(packet), cx);
        if reliable {
            self.plan_check(gid, cx);
        }
        true
    }

    fn cast_to_all(&mut self, gid: GroupId, cast: &GroupCast, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        for to in group.members.keys() {
            cx.send(*to, Msg::Cast { gid, cast: cast.clone() });
        }
        if group.ring_stands() {
            self.ring_cast(gid, super::own_ring::TELL, cast, cx);
        }
    }

    /// From another member of a mesh.
    pub(super) fn on_direct_cast(
        &mut self,
        gid: GroupId,
        from: NodeId,
        cast: GroupCast,
        cx: &mut Cx<'_, Self>,
    ) {
        if let GroupCast::Check { place } = cast {
            let have = self.on_check(gid, from, place, cx);
            let place = StreamPos { seq: have, ..place };
            cx.send(from, Msg::Checked { gid, place });
        } else {
            self.on_cast(gid, from, cast, cx);
        }
    }

    /// Something for all members came; what this node answers, where an answer is wanted.
    pub(super) fn on_cast(
        &mut self,
        gid: GroupId,
        from: NodeId,
        cast: GroupCast,
        cx: &mut Cx<'_, Self>,
    ) -> Option<Vec<u8>> {
        match cast {
            GroupCast::Packet(packet) => self.on_packet(gid, from, packet, cx),
            GroupCast::Count => return postcard::to_allocvec(&self.me).ok(),
            GroupCast::Check { place } => {
                let behind = self.on_check(gid, from, place, cx) < place.seq;
                return behind.then(|| Vec::from([1]));
            }
            GroupCast::Shrink { epoch, mut members } => {
                let group = self.groups.get(&gid)?;
                if epoch > group.epoch && from != self.me.id {
                    members.truncate(2 * GROUP_SHRINK);
                    self.follow(gid, epoch, Mode::Mesh, members, cx);
                }
            }
        }
        None
    }

    /// A message of a member, or a copy of it from another.
    pub(super) fn on_packet(
        &mut self,
        gid: GroupId,
        from: NodeId,
        packet: Packet,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if packet.body.len() > GROUP_BODY_MAX {
            return;
        }
        let Some(place) = packet.place.filter(|place| place.stream.by != me) else {
            if packet.place.is_none() {
                self.deliver(gid, packet, cx);
            }
            return;
        };
        let (ready, gap) = group.reliable.take(place, packet, from, cx.now);
        self.deliver_all(gid, ready, cx);
        if gap {
            self.ask_later(gid, place.stream, cx);
        }
    }

    fn deliver_all(&mut self, gid: GroupId, ready: Vec<Packet>, cx: &mut Cx<'_, Self>) {
        for packet in ready {
            if let Some(group) = self.groups.get_mut(&gid) {
                group.reliable.keep(&packet);
            }
            self.deliver(gid, packet, cx);
        }
    }

    pub(super) fn deliver(&mut self, gid: GroupId, packet: Packet, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if !group.seen.insert(packet.id) {
            return;
        }
        group.delivered += 1;
        let name = group.name.clone();
        cx.emit(Event::Deliver { name, from: packet.id.origin, body: packet.body });
    }

    /// How far I am with a stream that is as far as `place`.
    fn on_check(
        &mut self,
        gid: GroupId,
        from: NodeId,
        place: StreamPos,
        cx: &mut Cx<'_, Self>,
    ) -> u32 {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return place.seq };
        if place.stream.by == me {
            return place.seq;
        }
        let (have, gap) = group.reliable.check(place, from, cx.now);
        if gap {
            self.ask_later(gid, place.stream, cx);
        }
        have
    }

    fn ask_later(&mut self, gid: GroupId, stream: Stream, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let life = group.life;
        let Some(incoming) = group.reliable.stream(&stream) else { return };
        if incoming.asking.is_none() {
            incoming.asking = Some(0);
            let delay = GROUP_NACK + GROUP_NACK_JITTER * cx.rng.u32(0..100) / 100;
            cx.after(delay, Timer::Nack { gid, life, stream });
        }
    }

    /// Asks for what is missing: whoever sent the last piece, the sender, then anybody.
    pub(super) fn on_nack_due(&mut self, gid: GroupId, stream: Stream, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let others: Vec<NodeId> = group.known(me).into_iter().map(|peer| peer.id).collect();
        let missing = group.reliable.missing(&stream);
        let life = group.life;
        let Some(incoming) = group.reliable.stream(&stream) else { return };
        let (Some((from, to)), Some(tries)) = (missing, incoming.asking) else {
            incoming.asking = None;
            return;
        };
        if tries >= GROUP_NACK_TRIES {
            let (ready, _) = group.reliable.give_up(stream);
            self.deliver_all(gid, ready, cx);
        } else {
            incoming.asking = Some(tries + 1);
            let whom = match tries {
                0 => Some(incoming.via),
                1 => Some(stream.by),
                _ => cx.rng.choice(&others).copied(),
            };
            if let Some(to_whom) = whom.filter(|id| *id != me && *id != Id::default()) {
                cx.send(to_whom, Msg::Nack { gid, stream, from, to });
            }
        }
        cx.after(GROUP_NACK_AGAIN, Timer::Nack { gid, life, stream });
    }

    pub(super) fn on_nack(
        &mut self,
        gid: GroupId,
        from: NodeId,
        stream: Stream,
        first: u32,
        last: u32,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.inside(gid, from, cx) else { return };
        for packet in group.reliable.repair(stream, first, last) {
            cx.send(from, Msg::Repair { gid, packet });
        }
    }

    fn plan_check(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let out = &mut group.reliable.out;
        let unchecked = out.last - out.checked;
        if unchecked >= GROUP_CHECK_EVERY && out.checking.is_none() {
            self.check(gid, cx);
        } else if !out.planned {
            out.planned = true;
            cx.after(GROUP_CHECK, Timer::Check { gid, life: group.life });
        }
    }

    pub(super) fn on_check_due(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let out = &mut group.reliable.out;
        out.planned = false;
        if let Some((seq, tries)) = out.checking {
            if tries >= GROUP_CHECK_TRIES {
                // Somebody neither answers nor is found dead: the others wait no longer for it.
                out.release(seq);
                self.count("group_unchecked");
            }
        }
        self.check(gid, cx);
    }

    /// Asks whether all have everything, and again until they do.
    fn check(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let (stands, alone) = (group.ring_stands(), group.members.is_empty());
        let out = &mut group.reliable.out;
        if out.checked == out.last {
            return;
        }
        if alone && !stands {
            out.release(out.last);
            return;
        }
        let (seq, tries) = out.checking.unwrap_or((out.last, 0));
        out.checking = Some((seq, tries + 1));
        let place = StreamPos { stream: Stream { by: me, life: out.life }, seq };
        if !out.planned {
            out.planned = true;
            cx.after(GROUP_CHECK, Timer::Check { gid, life: group.life });
        }
        let cast = GroupCast::Check { place };
        if stands {
            self.ring_cast(gid, super::own_ring::CHECK, &cast, cx);
            return;
        }
        if tries == 0 {
            out.awaited = group.members.keys().copied().collect();
        }
        // Who left or died is not waited for; who came later began later.
        out.awaited.retain(|id| group.members.contains_key(id));
        if out.awaited.is_empty() {
            return self.all_have(gid, seq, cx);
        }
        for to in &out.awaited {
            cx.send(*to, Msg::Cast { gid, cast: cast.clone() });
        }
    }

    pub(super) fn on_checked(
        &mut self,
        gid: GroupId,
        from: NodeId,
        place: StreamPos,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let out = &mut group.reliable.out;
        let Some((seq, _)) = out.checking else { return };
        let mine = place.stream == Stream { by: self.me.id, life: out.life };
        if mine && place.seq >= seq && out.awaited.remove(&from) && out.awaited.is_empty() {
            self.all_have(gid, seq, cx);
        }
    }

    /// The ring answered a check: silence is consent, if all of it was reached.
    pub(super) fn on_ring_checked(
        &mut self,
        gid: GroupId,
        feedback: &Feedback,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.groups.get(&gid) else { return };
        if let (Some((seq, _)), true, true) =
            (group.reliable.out.checking, feedback.complete, feedback.parts.is_empty())
        {
            self.all_have(gid, seq, cx);
        }
    }

    fn all_have(&mut self, gid: GroupId, seq: u32, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.reliable.out.release(seq);
        if group.reliable.out.last > seq {
            self.plan_check(gid, cx);
        }
    }
}
