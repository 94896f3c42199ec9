//! Groups (PROTOCOL.md 4.5-4.8): some nodes under a name, told things together.
//!
//! A group is found through its record in the directory ([`directory`]). Up to 32 members know each
//! other all (`mesh`); more have a ring of their own (`own_ring`), the same overlay once more.
//! Only members forward and keep state. What takes several round trips is an operation
//! (`enter`). [`Groups`] stands beside the main [`Overlay`] and not in it: so its messages may
//! carry those of an overlay, and those cannot carry groups again.

mod anycast;
pub mod directory;
mod enter;
mod leave;
mod mesh;
mod messages;
mod multicast;
mod operations;
mod own_ring;
mod record;
mod reliable;
mod seen;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{Component, Counters, Cx, Input, NodeId, Peer, Time};

use crate::config::{GROUP_ASKS, GROUP_THAT_MAX, GROUPS_MAX, LIFE_BITS};
use crate::overlay::{self, Overlay};
use directory::{GroupRecord, Mode, Policy, group_id};
use enter::{Entry, How, Who};
use reliable::Reliable;
use seen::Seen;

pub(crate) use operations::{Ask, Out, Outcome, Reply};

pub use messages::{
    Answer, Command, Event, GroupCast, GroupId, Manner, Msg, MsgId, Packet, Refusal, Request,
    Response, Stream, StreamPos, Timer, Token, View, Welcome,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Entering,
    In,
    Leaving,
}

/// One membership.
pub(crate) struct Group {
    name: String,
    /// Timers and operations of an earlier membership are stale.
    life: u32,
    phase: Phase,
    /// Nothing keeps a leaving member any more but its neighbours in the ring.
    going: bool,
    epoch: u32,
    mode: Mode,
    policy: Policy,
    /// The others of a mesh; kept for a while when it becomes a ring.
    members: Map<NodeId, Peer>,
    /// Who may come back, and how often it was greeted in vain.
    lost: Vec<(Peer, u8)>,
    greeting: bool,
    /// The members changed, and are to be compared with those of others.
    comparing: bool,
    ring: Option<Box<Overlay>>,
    /// Whom that ring wants watched.
    near: Set<NodeId>,
    /// Which ring it is: timers of an earlier one are stale.
    instance: u32,
    /// Questions of people that wait for this membership to begin or end.
    waiting: Vec<u32>,
    seen: Seen,
    delivered: u64,
    /// The record as this node last saw it, with its version.
    record: Option<(u64, Option<GroupRecord>)>,
    writing: bool,
    /// The members changed since the record was written.
    changed: bool,
    refresh: Option<Time>,
    /// Everybody was asked who they are, and nothing changed since.
    counting: bool,
    counted: Vec<Peer>,
    /// Since when, and how many messages of outsiders were passed on.
    passed: (Time, u32),
    reliable: Reliable,
    /// For whose message this member is reserved, and until when.
    reserved: Option<(MsgId, Time)>,
}

/// The groups of one node.
pub struct Groups {
    me: Peer,
    groups: Map<GroupId, Group>,
    calls: CallsOf<Self>,
    instances: u32,
    messages: u64,
    watched: Set<NodeId>,
    counters: Counters,
}

impl Component for Groups {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => self.on_message(from, msg, cx),
            Input::Timer(timer) => self.on_timer(timer, cx),
        }
    }
}

impl Groups {
    #[must_use]
    pub fn new(me: Peer) -> Self {
        Self {
            messages: u64::from(me.inc) << 32,
            instances: me.inc.wrapping_mul(64),
            me,
            groups: Map::new(),
            calls: CallsOf::<Self>::default(),
            watched: Set::new(),
            counters: Counters::default(),
        }
    }

    /// Where this node can be dialled now.
    pub fn set_addrs(&mut self, addrs: Addrs) {
        self.me.addrs = addrs;
    }

    /// The memberships of this node.
    pub fn views(&self) -> impl Iterator<Item = View> + '_ {
        self.groups.values().map(|group| View {
            name: group.name.clone(),
            epoch: group.epoch,
            mode: group.mode,
            policy: group.policy,
            members: group.size(),
            joined: group.phase == Phase::In,
            delivered: group.delivered,
        })
    }

    /// Members of a group this node knows, itself not among them.
    #[must_use]
    pub fn known_members(&self, name: &str) -> Vec<NodeId> {
        let known = self.groups.get(&group_id(name)).map(|group| group.known(self.me.id));
        known.unwrap_or_default().into_iter().map(|peer| peer.id).collect()
    }

    /// The own ring of a large group.
    #[must_use]
    pub fn ring_of(&self, name: &str) -> Option<&Overlay> {
        self.groups.get(&group_id(name))?.ring.as_deref()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let members = self.groups.values().map(|group| group.members.len()).max().unwrap_or(0);
        let lost = self.groups.values().map(|group| group.lost.len()).max().unwrap_or(0);
        let reliable = self.groups.values().map(|group| group.reliable.sizes());
        let streams = reliable.clone().map(|(streams, _, _)| streams).max().unwrap_or(0);
        let kept = reliable.map(|(_, kept, _)| kept).max().unwrap_or(0);
        [
            ("group_streams", streams, crate::config::GROUP_STREAMS),
            ("group_kept", kept, crate::config::GROUP_KEPT),
            ("groups", self.groups.len(), GROUPS_MAX),
            ("group_operations", self.calls.len(), Self::MAX),
            ("group_members", members, crate::config::GROUP_MESH_MAX),
            ("group_lost", lost, crate::config::GROUP_LOST_MAX),
        ]
        .into_iter()
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    const fn next_instance(&mut self) -> u32 {
        self.instances = self.instances.wrapping_add(1);
        self.instances % (1 << (32 - LIFE_BITS))
    }

    fn who(&self, gid: GroupId, cx: &mut Cx<'_, Self>) -> Who {
        let life = self.groups.get(&gid).map_or(0, |group| group.life);
        Who { me: self.me.clone(), gid, life, seed: cx.rng.u64(..) }
    }

    fn contact(&self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        if peer.id != self.me.id {
            cx.emit(Event::Contact(peer.clone()));
        }
    }

    /// The group, if this node is in it; whoever believes so wrongly is told.
    fn inside(&mut self, gid: GroupId, from: NodeId, cx: &mut Cx<'_, Self>) -> Option<&mut Group> {
        if !self.groups.contains_key(&gid) && from != self.me.id {
            cx.send(from, Msg::Outside { gid });
        }
        let group = self.groups.get_mut(&gid)?;
        (group.phase != Phase::Entering || group.ring.is_some()).then_some(group)
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Create { call, name, policy } => {
                self.enter(call, name, How::Create(policy), cx)
            }
            Command::Join { call, name, found } => {
                let how = if found { How::Either } else { How::Join };
                self.enter(call, name, how, cx);
            }
            Command::Leave { call, name } => self.leave(call, &name, cx),
            Command::Send { call, name, body, manner } => {
                self.send(call, &name, body, manner, cx);
            }
            Command::Directory { call, answer } => {
                self.answer(call, Reply::Directory(answer), cx);
            }
            Command::Judged { gid, token, fits } => self.on_token(gid, token, fits, cx),
            Command::LinkUp(peer) => self.on_link_up(&peer, cx),
            Command::LinkDown(id) => self.on_link_down(id, cx),
            Command::Dead(id) => self.on_dead(id, cx),
            Command::Depart => self.depart(cx),
        }
    }

    fn on_message(&mut self, from: NodeId, msg: Msg, cx: &mut Cx<'_, Self>) {
        match msg {
            Msg::Request { call, gid, request } => self.on_request(from, call, gid, request, cx),
            Msg::Response { call, response } => {
                if matches!(self.calls.awaited(call), Some(Out::Call(to)) if *to == from) {
                    self.answer(call, Reply::Response(Some(response)), cx);
                }
            }
            Msg::Hello { gid, me, known } => self.on_hello(gid, from, &me, &known, cx),
            Msg::Members { gid, epoch, mode, peers } => {
                self.on_members(gid, from, epoch, mode, peers, cx);
            }
            Msg::Gone { gid, target } => self.on_gone(gid, from, target, cx),
            Msg::Bye { gid } => self.on_left(gid, from, cx),
            Msg::Outside { gid } => {
                self.on_left(gid, from, cx);
                self.feed(gid, Input::Command(overlay::Command::Outside(from)), cx);
            }
            Msg::Cast { gid, cast } => {
                if self.inside(gid, from, cx).is_some() {
                    self.on_direct_cast(gid, from, cast, cx);
                }
            }
            Msg::Token { gid, token } if token.that.is_empty() => {
                self.on_token(gid, token, true, cx);
            }
            Msg::Token { token, .. } if token.that.len() > GROUP_THAT_MAX => {
                self.count("token_too_large");
            }
            Msg::Token { gid, token } => cx.emit(Event::Judge { gid, token }),
            Msg::Taken { id, by } if by.id == from => self.on_token_over(id, Some(by), cx),
            Msg::Taken { .. } => self.count("group_taken_for_another"),
            Msg::NotTaken { id } => self.on_token_over(id, None, cx),
            Msg::Checked { gid, place } => self.on_checked(gid, from, place, cx),
            Msg::Nack { gid, stream, from: first, to } => {
                self.on_nack(gid, from, stream, first, to, cx);
            }
            Msg::Repair { gid, packet } => {
                if self.inside(gid, from, cx).is_some() {
                    self.on_packet(gid, from, packet, cx);
                }
            }
            Msg::Ring { gid, msg } => self.on_ring_message(gid, from, *msg, cx),
        }
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut Cx<'_, Self>) {
        let lives = |gid, life| self.groups.get(&gid).is_some_and(|g: &Group| g.life == life);
        match timer {
            Timer::Expire { call } => self.give_up(call, cx),
            Timer::Ring { gid, instance, timer } => {
                if self.groups.get(&gid).is_some_and(|group| group.instance == instance) {
                    self.feed(gid, Input::Timer(timer), cx);
                }
            }
            Timer::Refresh { gid, life } if lives(gid, life) => self.on_refresh(gid, cx),
            Timer::Lost { gid, life } if lives(gid, life) => self.on_greet_lost(gid, cx),
            Timer::Compare { gid, life } if lives(gid, life) => self.on_compare(gid, cx),
            Timer::Settle { gid, life } if lives(gid, life) => self.on_settled(gid, cx),
            Timer::Renew { gid, life } if lives(gid, life) => {
                self.renew_later(gid, cx);
                if let Some(group) = self.groups.get_mut(&gid) {
                    group.changed = true;
                }
                self.review(gid, cx);
            }
            Timer::Check { gid, life } if lives(gid, life) => self.on_check_due(gid, cx),
            Timer::Nack { gid, life, stream } if lives(gid, life) => {
                self.on_nack_due(gid, stream, cx);
            }
            Timer::Check { .. }
            | Timer::Nack { .. }
            | Timer::Refresh { .. }
            | Timer::Lost { .. }
            | Timer::Compare { .. }
            | Timer::Settle { .. }
            | Timer::Renew { .. } => {}
        }
    }

    fn enter(&mut self, call: u32, name: String, how: How, cx: &mut Cx<'_, Self>) {
        let gid = group_id(&name);
        if let Some(group) = self.groups.get_mut(&gid) {
            let answer = match (group.phase, how) {
                (Phase::Entering, How::Join | How::Either) if group.waiting.len() < GROUP_ASKS => {
                    group.waiting.push(call);
                    return;
                }
                (Phase::Entering | Phase::Leaving, _) => Answer::Busy,
                (Phase::In, How::Create(_)) => Answer::Exists,
                (Phase::In, How::Join | How::Either) => Answer::Done,
            };
            cx.emit(Event::Answer { call, answer });
            return;
        }
        if self.groups.len() >= GROUPS_MAX {
            cx.emit(Event::Answer { call, answer: Answer::Full });
            return;
        }
        let life = self.next_instance();
        self.groups.insert(gid, Group::new(name, life, call, cx.now));
        let who = self.who(gid, cx);
        self.start("enter a group", |asker| enter::enter(asker, who, how), cx);
    }

    fn on_request(
        &mut self,
        from: NodeId,
        call: CallId,
        gid: GroupId,
        request: Request,
        cx: &mut Cx<'_, Self>,
    ) {
        let response = match self.groups.get(&gid) {
            None => Response::Refused(Refusal::NotMember),
            Some(group) if group.phase != Phase::In => Response::Refused(Refusal::Busy),
            Some(_) => match request {
                Request::Join { peer } if peer.id == from => self.welcome(gid, &peer, cx),
                Request::Join { .. } => Response::Refused(Refusal::NotMember),
                Request::Hand { packet } => self.on_hand(gid, from, packet, cx),
                Request::Send { packet, reliable } => self.on_send(gid, from, packet, reliable, cx),
            },
        };
        cx.send(from, Msg::Response { call, response });
    }

    fn welcome(&mut self, gid: GroupId, peer: &Peer, cx: &mut Cx<'_, Self>) -> Response {
        let Some(group) = self.groups.get(&gid) else {
            return Response::Refused(Refusal::NotMember);
        };
        let (epoch, mode, policy) = (group.epoch, group.mode, group.policy);
        let places = group.reliable.places(self.me.id);
        let peers = match mode {
            Mode::Ring if group.ring_stands() => Vec::from([self.me.clone()]),
            Mode::Ring => return Response::Refused(Refusal::Busy),
            Mode::Mesh => {
                let mut peers: Vec<Peer> = group.members.values().cloned().collect();
                peers.retain(|known| known.id != peer.id);
                peers.push(self.me.clone());
                self.add_member(gid, peer, cx);
                let group = self.groups.get(&gid);
                if group.is_none_or(|group| !group.members.contains_key(&peer.id)) {
                    return Response::Refused(Refusal::Busy);
                }
                peers
            }
        };
        Response::Welcome(Welcome { epoch, mode, policy, peers, places })
    }

    fn on_link_up(&mut self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for gid in ids {
            let Some(group) = self.groups.get(&gid) else { continue };
            let member = group.members.contains_key(&peer.id);
            let lost = group.lost.iter().any(|(lost, _)| lost.id == peer.id);
            // What was said on an earlier session may be lost; the two compare.
            if group.mode == Mode::Mesh && (member || lost) {
                self.say_hello(gid, peer.id, cx);
            }
            let Some(group) = self.groups.get(&gid) else { continue };
            if group.ring.as_ref().is_some_and(|ring| ring.peer(peer.id).is_some()) {
                self.feed(gid, Input::Command(overlay::Command::LinkUp(peer.clone())), cx);
            }
        }
    }

    fn on_link_down(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.give_up_on(id, cx);
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for gid in ids {
            self.feed(gid, Input::Command(overlay::Command::LinkDown(id)), cx);
        }
    }

    fn on_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.give_up_on(id, cx);
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for gid in ids {
            self.on_member_dead(gid, id, cx);
            self.feed(gid, Input::Command(overlay::Command::Dead(id)), cx);
        }
    }

    fn update_watch(&mut self, cx: &mut Cx<'_, Self>) {
        let mut set = Set::new();
        for group in self.groups.values().filter(|group| group.phase != Phase::Entering) {
            match &group.ring {
                Some(_) if group.mode == Mode::Ring => set.extend(group.near.iter().copied()),
                _ => set.extend(group.mesh_watched(self.me.id)),
            }
        }
        set.remove(&self.me.id);
        if set != self.watched {
            self.watched.clone_from(&set);
            cx.emit(Event::Watch(set));
        }
    }

    fn answer_waiting(&mut self, gid: GroupId, answer: Answer, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        for call in core::mem::take(&mut group.waiting) {
            cx.emit(Event::Answer { call, answer });
        }
    }

    fn forget(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        self.groups.remove(&gid);
        self.update_watch(cx);
    }

    fn on_entered(&mut self, gid: GroupId, result: Result<Entry, Answer>, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        match result {
            Err(answer) => {
                self.answer_waiting(gid, answer, cx);
                self.forget(gid, cx);
            }
            Ok(Entry::Founded { version, record, lost }) => {
                (group.epoch, group.policy) = (record.epoch, record.policy);
                group.reliable.begin(cx.rng.u64(..), &[], me, cx.now);
                let mode = record.mode;
                group.phase = Phase::In;
                group.record = Some((version, Some(record)));
                lost.iter().filter(|p| p.id != me).for_each(|p| group.remember_lost(p.clone()));
                if mode == Mode::Ring {
                    self.begin_ring(gid, true, &[], cx);
                    for peer in lost.into_iter().filter(|peer| peer.id != me) {
                        self.feed(gid, Input::Command(overlay::Command::Remember(peer)), cx);
                    }
                }
                self.greet_lost_later(gid, cx);
                self.renew_later(gid, cx);
                self.answer_waiting(gid, Answer::Done, cx);
                self.review(gid, cx);
            }
            Ok(Entry::Welcomed { by, welcome }) => {
                (group.epoch, group.policy) = (welcome.epoch, welcome.policy);
                group.reliable.begin(cx.rng.u64(..), &welcome.places, by.id, cx.now);
                self.renew_later(gid, cx);
                let Some(group) = self.groups.get_mut(&gid) else { return };
                match welcome.mode {
                    Mode::Ring => self.begin_ring(gid, false, &[by], cx),
                    Mode::Mesh => {
                        group.phase = Phase::In;
                        self.enter_mesh(gid, &by, &welcome.peers, cx);
                        self.answer_waiting(gid, Answer::Done, cx);
                    }
                }
            }
        }
    }

    fn enter_mesh(&mut self, gid: GroupId, by: &Peer, peers: &[Peer], cx: &mut Cx<'_, Self>) {
        for peer in peers.iter().take(crate::config::GROUP_MESH_MAX) {
            self.add_member(gid, peer, cx);
        }
        self.add_member(gid, by, cx);
        let Some(group) = self.groups.get(&gid) else { return };
        // To `by` as well: whoever it let in after me said hello while I was not inside yet.
        let others: Vec<NodeId> = group.members.keys().copied().collect();
        others.into_iter().for_each(|id| self.say_hello(gid, id, cx));
    }
}

impl Group {
    fn new(name: String, life: u32, call: u32, now: Time) -> Self {
        Self {
            name,
            life,
            phase: Phase::Entering,
            going: false,
            epoch: 0,
            mode: Mode::Mesh,
            policy: Policy::Open,
            members: Map::new(),
            lost: Vec::new(),
            greeting: false,
            comparing: false,
            ring: None,
            near: Set::new(),
            instance: 0,
            waiting: Vec::from([call]),
            seen: Seen::default(),
            delivered: 0,
            record: None,
            writing: false,
            changed: false,
            refresh: None,
            counting: false,
            counted: Vec::new(),
            passed: (now, 0),
            reliable: Reliable::default(),
            reserved: None,
        }
    }
}
