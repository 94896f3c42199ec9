//! A small group: everybody knows everybody and is spoken to directly (PROTOCOL.md 4.5).
//!
//! A newcomer gets the list from whoever let it in and says hello to all of it; whoever knows
//! more answers with the rest. So two that come in by different doors meet: a member that let one
//! of them in answers the other's hello. Each member has its next two, by id, watched; who finds
//! one dead tells the others, and the one it was said of says hello if it is wrong. Lost members
//! are remembered and greeted again, so that a group that was cut in two becomes one.
//!
//! A hello may be lost with its link. So a few seconds after its members changed, each member says
//! hello to its next two; who misses one of those the other knows says hello back and is told.

use alloc::vec::Vec;

use dugnad_kernel::{Cx, NodeId, Peer};

use super::directory::Mode;
use super::messages::{GroupId, Msg, Timer};
use super::{Group, Groups, Phase};
use crate::config::{
    GROUP_COMPARE, GROUP_LOST, GROUP_LOST_MAX, GROUP_LOST_TRIES, GROUP_MESH_MAX, GROUP_WATCHED,
};

impl Group {
    /// Those whose death somebody must notice, and it is me.
    pub(crate) fn mesh_watched(&self, me: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut ids: Vec<NodeId> = self.members.keys().copied().collect();
        ids.sort_by_key(|id| me.distance(*id));
        ids.into_iter().take(GROUP_WATCHED)
    }

    /// Remembers somebody who may come back, or lives on the other side of a cut.
    pub(crate) fn remember_lost(&mut self, peer: Peer) {
        self.lost.retain(|(lost, _)| lost.id != peer.id);
        if self.lost.len() == GROUP_LOST_MAX {
            self.lost.remove(0);
        }
        self.lost.push((peer, 0));
    }
}

impl Groups {
    /// Takes `peer` into the mesh; whether that is news.
    pub(crate) fn add_member(&mut self, gid: GroupId, peer: &Peer, cx: &mut Cx<'_, Self>) -> bool {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return false };
        group.lost.retain(|(lost, _)| lost.id != peer.id);
        let known = group.members.get(&peer.id);
        let news = known.is_none_or(|known| known.inc < peer.inc);
        if peer.id == me || !news || (known.is_none() && group.members.len() >= GROUP_MESH_MAX) {
            return false;
        }
        group.members.insert(peer.id, peer.clone());
        group.changed = true;
        self.contact(peer, cx);
        self.compare_later(gid, cx);
        self.review(gid, cx);
        true
    }

    fn compare_later(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if !group.comparing {
            group.comparing = true;
            let delay = GROUP_COMPARE * cx.rng.u32(80..120) / 100;
            cx.after(delay, Timer::Compare { gid, life: group.life });
        }
    }

    /// Says hello to the next two, who answer with what this member misses and ask for what they
    /// miss.
    pub(crate) fn on_compare(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.comparing = false;
        if group.mode == Mode::Mesh && group.phase == Phase::In {
            let next: Vec<NodeId> = group.mesh_watched(me).collect();
            next.into_iter().for_each(|id| self.say_hello(gid, id, cx));
        }
    }

    pub(crate) fn say_hello(&self, gid: GroupId, to: NodeId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        let known = group.members.keys().copied().collect();
        cx.send(to, Msg::Hello { gid, me: self.me.clone(), known });
    }

    pub(crate) fn on_hello(
        &mut self,
        gid: GroupId,
        from: NodeId,
        peer: &Peer,
        known: &[NodeId],
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.inside(gid, from, cx) else { return };
        if group.mode == Mode::Ring {
            self.tell_how_it_stands(gid, from, cx);
            return;
        }
        let epoch = group.epoch;
        let more = group.members.values().filter(|p| p.id != from && !known.contains(&p.id));
        let peers: Vec<Peer> = more.cloned().collect();
        let misses_me = !known.contains(&self.me.id);
        if peer.id == from {
            self.add_member(gid, peer, cx);
        }
        if misses_me || !peers.is_empty() {
            let mut peers = peers;
            peers.push(self.me.clone());
            cx.send(from, Msg::Members { gid, epoch, mode: Mode::Mesh, peers });
        }
        self.ask_for_more(gid, from, known, cx);
    }

    /// Says hello back to one who knows members that are missing here: it answers with them. This
    /// ends, for they are not missing any more then, and who has no room does not ask.
    fn ask_for_more(&self, gid: GroupId, from: NodeId, known: &[NodeId], cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        // Who was found dead here, the other will find dead, too.
        let has = |id: &NodeId| {
            *id == self.me.id
                || group.members.contains_key(id)
                || group.lost.iter().any(|(lost, _)| lost.id == *id)
        };
        if group.members.len() < GROUP_MESH_MAX && !known.iter().all(has) {
            self.say_hello(gid, from, cx);
        }
    }

    /// Answers somebody who believes something else of the group.
    pub(crate) fn tell_how_it_stands(&self, gid: GroupId, to: NodeId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        let mut peers = match group.mode {
            Mode::Mesh => group.members.values().cloned().collect(),
            Mode::Ring => Vec::new(),
        };
        peers.push(self.me.clone());
        cx.send(to, Msg::Members { gid, epoch: group.epoch, mode: group.mode, peers });
    }

    pub(crate) fn on_members(
        &mut self,
        gid: GroupId,
        from: NodeId,
        epoch: u32,
        mode: Mode,
        peers: Vec<Peer>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.inside(gid, from, cx) else { return };
        if mode != group.mode {
            if epoch > group.epoch {
                self.follow(gid, epoch, mode, peers, cx);
            } else {
                self.tell_how_it_stands(gid, from, cx);
            }
            return;
        }
        group.epoch = group.epoch.max(epoch);
        if mode == Mode::Mesh {
            for peer in peers.iter().take(GROUP_MESH_MAX) {
                // Whoever is news to me may not know me either.
                if self.add_member(gid, peer, cx) {
                    self.say_hello(gid, peer.id, cx);
                }
            }
        }
    }

    pub(crate) fn on_gone(
        &mut self,
        gid: GroupId,
        from: NodeId,
        target: NodeId,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me.id;
        let Some(group) = self.inside(gid, from, cx) else { return };
        if target == me {
            let others: Vec<NodeId> = group.members.keys().copied().collect();
            others.into_iter().for_each(|id| self.say_hello(gid, id, cx));
        } else if let Some(peer) = group.members.remove(&target) {
            group.remember_lost(peer);
            group.changed = true;
            self.greet_lost_later(gid, cx);
            self.review(gid, cx);
        }
    }

    /// It left, or says that it is not in the group: nobody to wait for.
    pub(crate) fn on_left(&mut self, gid: GroupId, from: NodeId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.lost.retain(|(lost, _)| lost.id != from);
        if group.members.remove(&from).is_some() {
            group.changed = true;
            self.review(gid, cx);
        }
    }

    /// The detector is sure that a member of the mesh is dead.
    pub(crate) fn on_member_dead(&mut self, gid: GroupId, id: NodeId, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let mine = group.mesh_watched(me).any(|watched| watched == id);
        let Some(peer) = group.members.remove(&id) else { return };
        group.remember_lost(peer);
        group.changed = true;
        if mine {
            // To the dead one, too: if it lives, it says so.
            let others = group.members.keys().copied().chain([id]);
            others.for_each(|to| cx.send(to, Msg::Gone { gid, target: id }));
        }
        self.greet_lost_later(gid, cx);
        self.review(gid, cx);
    }

    pub(crate) fn greet_lost_later(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if !group.lost.is_empty() && !group.greeting {
            group.greeting = true;
            let delay = GROUP_LOST * cx.rng.u32(80..120) / 100;
            cx.after(delay, Timer::Lost { gid, life: group.life });
        }
    }

    pub(crate) fn on_greet_lost(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.greeting = false;
        if group.phase == Phase::In && !group.lost.is_empty() {
            let (peer, tries) = group.lost.remove(0);
            let to = peer.id;
            if tries + 1 < GROUP_LOST_TRIES {
                group.lost.push((peer, tries + 1));
            }
            self.say_hello(gid, to, cx);
        }
        self.greet_lost_later(gid, cx);
    }
}
