//! A large group: a ring of its own, a second instance of the same overlay (PROTOCOL.md 4.5;
//! Ghodsi p. 133-135), and the change between the two forms.
//!
//! The nested overlay shares links and failure detector with the main one: it sends no pings, asks
//! for its neighbours to be watched instead, and is told who died. So another ring costs nothing
//! for peers that are watched anyway. Above [`GROUP_MESH`] members the mesh becomes a ring, at
//! [`GROUP_SHRINK`] it becomes a mesh again; whoever keeps the record decides, by writing it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use dugnad_kernel::{Cx, Input, NodeId, Peer};

use super::directory::Mode;
use super::messages::{Answer, Event, GroupCast, GroupId, Msg, Timer};
use super::{Group, Groups, Phase};
use crate::config::{GROUP_RECOUNT, GROUP_SETTLE, GROUP_SHRINK};
use crate::overlay::tree::feedback::Feedback;
use crate::overlay::{self, Overlay};

/// Calls of a group into its own ring.
const COUNT: u32 = 1;
pub(super) const TELL: u32 = 0;
pub(super) const CHECK: u32 = 2;

impl Group {
    /// Whether the group's own ring carries messages of this node.
    pub(crate) fn ring_stands(&self) -> bool {
        self.mode == Mode::Ring && self.ring.as_ref().is_some_and(|ring| ring.ring().is_member())
    }

    /// Members this node knows, itself not among them.
    pub(crate) fn known(&self, me: NodeId) -> Vec<Peer> {
        let mut known: Vec<Peer> = self.members.values().cloned().collect();
        if let Some(ring) = &self.ring {
            let near = ring.ring().succs().iter().chain([ring.ring().pred()]);
            known.extend(near.chain(ring.table().contacts()).cloned());
        }
        known.sort_by_key(|peer| (peer.id, core::cmp::Reverse(peer.inc)));
        known.dedup_by_key(|peer| peer.id);
        known.retain(|peer| peer.id != me);
        known
    }

    /// How many members there are, this node included.
    pub(crate) fn size(&self) -> u64 {
        let mesh = u64::try_from(self.members.len()).unwrap_or(u64::MAX).saturating_add(1);
        match (&self.ring, self.ring_stands()) {
            (Some(ring), true) => ring.size(),
            _ => mesh,
        }
    }

    /// Whether this node keeps the record: in a mesh the lowest id, in a ring the owner of the
    /// group's id.
    pub(crate) fn keeps_record(&self, me: NodeId, gid: GroupId) -> bool {
        match (&self.ring, self.mode) {
            (Some(ring), Mode::Ring) => ring.ring().owns(gid),
            _ => self.members.first_key_value().is_none_or(|(id, _)| me < *id),
        }
    }
}

impl Groups {
    /// A ring of this group begins here, or is joined through `ways`.
    pub(crate) fn begin_ring(
        &mut self,
        gid: GroupId,
        alone: bool,
        ways: &[Peer],
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me.clone();
        let instance = self.next_instance();
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.mode = Mode::Ring;
        group.instance = instance;
        group.ring = Some(Box::new(Overlay::of_instance(me, instance)));
        group.changed = true;
        cx.after(GROUP_SETTLE, Timer::Settle { gid, life: group.life });
        let boot = overlay::Command::Boot { alone };
        self.feed(gid, Input::Command(boot), cx);
        for peer in ways {
            self.contact(peer, cx);
            self.feed(gid, Input::Command(overlay::Command::LinkUp(peer.clone())), cx);
        }
    }

    /// Somebody changed the form of the group, under a newer epoch.
    pub(crate) fn follow(
        &mut self,
        gid: GroupId,
        epoch: u32,
        mode: Mode,
        peers: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.phase == Phase::Leaving && mode == Mode::Mesh {
            // The ring I was leaving is no more: say it to the mesh.
            (group.mode, group.ring) = (Mode::Mesh, None);
            let others = peers.into_iter().filter(|peer| peer.id != me);
            group.members = others.map(|peer| (peer.id, peer)).collect();
            if group.going {
                self.on_may_go(gid, cx);
            }
            return;
        }
        if group.phase != Phase::In {
            return;
        }
        group.epoch = epoch;
        (group.record, group.counting) = (None, false);
        match mode {
            Mode::Ring => {
                self.begin_ring(gid, false, &peers, cx);
                // Whoever grew it may not have known, or reached, all of this mesh.
                let next = self.groups.get(&gid).into_iter().flat_map(|g| g.mesh_watched(me));
                self.tell_of_ring(gid, next.collect(), cx);
            }
            Mode::Mesh => {
                group.mode = Mode::Mesh;
                group.ring = None;
                group.members.clear();
                for peer in peers {
                    self.add_member(gid, &peer, cx);
                }
                let Some(group) = self.groups.get(&gid) else { return };
                let others: Vec<NodeId> = group.members.keys().copied().collect();
                others.into_iter().for_each(|id| self.say_hello(gid, id, cx));
            }
        }
        self.review(gid, cx);
    }

    /// The mesh got too large and the record says so: the others follow.
    pub(crate) fn grow(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        self.count("group_grew");
        self.begin_ring(gid, true, &[], cx);
        let others = self.groups.get(&gid).into_iter().flat_map(|group| group.members.keys());
        self.tell_of_ring(gid, others.copied().collect(), cx);
    }

    /// Tells members of the mesh this node was in that there is a ring now. Who follows tells its
    /// next two; who has followed says nothing, which ends it.
    fn tell_of_ring(&self, gid: GroupId, whom: Vec<NodeId>, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        for to in whom {
            let peers = Vec::from([self.me.clone()]);
            cx.send(to, Msg::Members { gid, epoch: group.epoch, mode: Mode::Ring, peers });
        }
    }

    /// The ring got small and the record says so: the others are told on the old ring, which ends.
    pub(crate) fn shrink(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let (epoch, members) = (group.epoch, core::mem::take(&mut group.counted));
        self.count("group_shrank");
        self.ring_cast(gid, TELL, &GroupCast::Shrink { epoch, members: members.clone() }, cx);
        self.follow(gid, epoch, Mode::Mesh, members, cx);
    }

    /// Asks all members who they are, if there seem to be few enough for a mesh.
    pub(crate) fn count_members(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.counting = true;
        self.ring_cast(gid, COUNT, &GroupCast::Count, cx);
    }

    /// A broadcast in the group's ring.
    pub(crate) fn ring_cast(
        &mut self,
        gid: GroupId,
        call: u32,
        cast: &GroupCast,
        cx: &mut Cx<'_, Self>,
    ) {
        // Plain data into memory cannot fail.
        let Ok(body) = postcard::to_allocvec(cast) else { return };
        let command = overlay::Command::Cast { call, body, feedback: call != TELL };
        self.feed(gid, Input::Command(command), cx);
    }

    fn on_counted(&mut self, gid: GroupId, feedback: &Feedback, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let all = feedback.parts.iter().map(|part| postcard::from_bytes::<Peer>(part));
        let Ok(mut members) = all.collect::<Result<Vec<Peer>, _>>() else { return };
        if !feedback.complete || members.len() > GROUP_SHRINK {
            // Somebody left and not all know it yet; or it is not small. Later again, for most who
            // leave are nobody's neighbours here.
            let pause = if feedback.complete { GROUP_RECOUNT } else { GROUP_SETTLE };
            cx.after(pause, Timer::Settle { gid, life: group.life });
            return;
        }
        members.retain(|peer| peer.id != self.me.id);
        group.counted = members;
        group.counting = false;
        self.write_record(gid, Some(Mode::Mesh), cx);
    }

    /// Lets the group's own overlay handle something.
    pub(crate) fn feed(&mut self, gid: GroupId, input: Input<Overlay>, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let instance = group.instance;
        let Some(ring) = group.ring.as_mut() else { return };
        let wrap_msg = |msg| Msg::Ring { gid, msg: Box::new(msg) };
        let wrap_timer = |timer| Timer::Ring { gid, instance, timer };
        let events = cx.child(&mut **ring, input, wrap_msg, wrap_timer);
        for event in events {
            self.on_ring_event(gid, event, cx);
        }
    }

    fn on_ring_event(&mut self, gid: GroupId, event: overlay::Event, cx: &mut Cx<'_, Self>) {
        match event {
            overlay::Event::Contact(peer) => cx.emit(Event::Contact(peer)),
            overlay::Event::Joined => self.on_ring_joined(gid, cx),
            overlay::Event::RangeChanged | overlay::Event::NeighboursChanged => {
                if let Some(group) = self.groups.get_mut(&gid) {
                    group.counting = false;
                    group.changed = true;
                }
                self.review(gid, cx);
            }
            overlay::Event::Cast { id, body, feedback } => {
                let cast = postcard::from_bytes(&body).ok();
                let part = cast.and_then(|cast| self.on_cast(gid, id.origin, cast, cx));
                if feedback {
                    let answer = overlay::Command::AnswerCast { id, part };
                    self.feed(gid, Input::Command(answer), cx);
                }
            }
            overlay::Event::Feedback { call: COUNT, feedback } => {
                self.on_counted(gid, &feedback, cx)
            }
            overlay::Event::Feedback { call: CHECK, feedback } => {
                self.on_ring_checked(gid, &feedback, cx);
            }
            overlay::Event::Doubt(id) => cx.emit(Event::Doubt(id)),
            overlay::Event::Watch(near) => {
                if let Some(group) = self.groups.get_mut(&gid) {
                    group.near = near;
                }
            }
            overlay::Event::Left => self.on_ring_left(gid, cx),
            _ => {}
        }
    }

    fn on_ring_joined(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.phase == Phase::Entering {
            group.phase = Phase::In;
            self.answer_waiting(gid, Answer::Done, cx);
        }
        self.review(gid, cx);
    }

    fn on_ring_left(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        if group.phase == Phase::Leaving {
            self.answer_waiting(gid, Answer::Done, cx);
            self.forget(gid, cx);
        }
    }

    /// From the ring of a group.
    pub(crate) fn on_ring_message(
        &mut self,
        gid: GroupId,
        from: NodeId,
        msg: overlay::Msg,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.inside(gid, from, cx) else { return };
        if group.ring.is_some() {
            self.feed(gid, Input::Message { from, msg }, cx);
        } else if group.phase == Phase::In {
            // It missed that the ring became a mesh, or is ahead of me.
            self.tell_how_it_stands(gid, from, cx);
        }
    }

    /// The time a change of form takes is over.
    pub(crate) fn on_settled(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.phase == Phase::Entering {
            self.answer_waiting(gid, Answer::Unreachable, cx);
            self.forget(gid, cx);
        } else if group.ring_stands() {
            group.members.clear();
            group.counting = false;
            self.review(gid, cx);
        } else if group.mode == Mode::Ring {
            let life = group.life;
            cx.after(GROUP_SETTLE, Timer::Settle { gid, life });
        }
    }
}
