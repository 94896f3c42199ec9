//! Who keeps a group's record, when it is written, and the form the group has by it.
//!
//! In a mesh the member with the lowest id keeps it, in a ring the owner of the group's id. It is
//! written when the members changed, a minute later or at once if hardly anybody it names is there
//! any more, and once an hour in any case. Two may believe that it is theirs to keep: the writes
//! are compare-and-swap, the loser reads and looks again.

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Input, NodeId, Peer};

use super::directory::{GroupRecord, Mode};
use super::messages::{GroupId, Timer};
use super::{Group, Groups, Phase, enter};
use crate::config::{
    GROUP_MESH, GROUP_REFRESH, GROUP_RENEW, GROUP_SAMPLE_LOW, GROUP_SHRINK, GROUP_URGENT,
};
use crate::overlay;

impl Groups {
    /// Says what is to be done after the members, or what is known of them, changed.
    pub(super) fn review(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        self.update_watch(cx);
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.phase != Phase::In || group.writing || !group.keeps_record(me, gid) {
            return;
        }
        let size = group.size();
        if group.mode == Mode::Mesh && group.members.len() >= GROUP_MESH {
            self.write_record(gid, Some(Mode::Ring), cx);
            return;
        }
        let small = usize::try_from(size).is_ok_and(|size| size <= 2 * GROUP_SHRINK);
        let settled = group.ring_stands() && group.members.is_empty();
        if settled && small && !group.counting {
            self.count_members(gid, cx);
            return;
        }
        let delay = match group.record_is_stale(me) {
            Some(true) => GROUP_URGENT,
            Some(false) => GROUP_REFRESH,
            None => return,
        };
        let due = cx.now + delay;
        if group.refresh.is_none_or(|planned| due < planned) {
            group.refresh = Some(due);
            cx.after(delay, Timer::Refresh { gid, life: group.life });
        }
    }

    pub(super) fn on_refresh(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.refresh.is_none_or(|planned| planned > cx.now) {
            return;
        }
        group.refresh = None;
        let mine = group.phase == Phase::In && group.keeps_record(me, gid);
        if mine && !group.writing && group.record_is_stale(me).is_some() {
            self.write_record(gid, None, cx);
        }
    }

    /// Writes the record, with another form if the group has to change it. Who does not know the
    /// record reads it first.
    pub(super) fn write_record(&mut self, gid: GroupId, mode: Option<Mode>, cx: &mut Cx<'_, Self>) {
        let me = self.me.clone();
        let Some(group) = self.groups.get_mut(&gid) else { return };
        if group.writing {
            return;
        }
        group.writing = true;
        let (expected, record) = match &group.record {
            None => (0, None),
            Some((version, record)) => {
                let base = record.clone().unwrap_or_else(|| group.new_record(me.id));
                let mut others = group.known(me.id);
                if mode == Some(Mode::Mesh) {
                    others.clone_from(&group.counted);
                }
                cx.rng.shuffle(&mut others);
                let mut next = base.next(&me, &others, group.size(), cx.rng.u64(..));
                next.epoch = next.epoch.max(group.epoch);
                next.mode = group.mode;
                if let Some(mode) = mode {
                    next.mode = mode;
                    next.epoch = next.epoch.saturating_add(1);
                }
                (*version, Some(next))
            }
        };
        let who = self.who(gid, cx);
        let op = |asker| enter::write(asker, who, expected, record);
        self.start("write the record of a group", op, cx);
    }

    pub(super) fn on_record(
        &mut self,
        gid: GroupId,
        version: u64,
        record: Option<GroupRecord>,
        wrote: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.record = Some((version, record.clone()));
        if let Some(record) = record {
            let newer = record.epoch > group.epoch;
            if wrote {
                group.changed = false;
                group.epoch = record.epoch;
                match (group.mode, record.mode) {
                    (Mode::Mesh, Mode::Ring) => return self.grow(gid, cx),
                    (Mode::Ring, Mode::Mesh) => return self.shrink(gid, cx),
                    (Mode::Mesh, Mode::Mesh) | (Mode::Ring, Mode::Ring) => {}
                }
            } else if newer && record.mode != group.mode {
                return self.follow(gid, record.epoch, record.mode, record.sample, cx);
            } else {
                group.epoch = group.epoch.max(record.epoch);
                self.meet(gid, record.sample, cx);
            }
        }
        self.review(gid, cx);
    }

    /// The record names members I do not know: the other half of a group that was cut in two.
    fn meet(&mut self, gid: GroupId, sample: Vec<Peer>, cx: &mut Cx<'_, Self>) {
        let me = self.me.id;
        for peer in sample.into_iter().filter(|peer| peer.id != me) {
            let Some(group) = self.groups.get(&gid) else { return };
            if group.members.contains_key(&peer.id) {
                continue;
            }
            self.contact(&peer, cx);
            match group.mode {
                Mode::Mesh => self.say_hello(gid, peer.id, cx),
                Mode::Ring => {
                    self.feed(gid, Input::Command(overlay::Command::LinkUp(peer)), cx);
                }
            }
        }
    }

    /// The record must not get too old while the group lives.
    pub(super) fn renew_later(&self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        let delay = GROUP_RENEW * cx.rng.u32(80..120) / 100;
        cx.after(delay, Timer::Renew { gid, life: group.life });
    }
}

impl Group {
    /// Where the record was lost: from what a member knows.
    fn new_record(&self, me: NodeId) -> GroupRecord {
        GroupRecord {
            epoch: self.epoch,
            mode: self.mode,
            policy: self.policy,
            creator: me,
            sample: Vec::new(),
            size: 0,
            seq: 0,
            nonce: 0,
        }
    }

    /// `None` if the record says what there is to say; else whether it is urgent: hardly anybody
    /// it names is known to be there.
    fn record_is_stale(&self, me: NodeId) -> Option<bool> {
        let Some((_, Some(record))) = &self.record else { return Some(true) };
        let known = self.known(me);
        let live = |peer: &&Peer| peer.id == me || known.iter().any(|known| known.id == peer.id);
        let live = record.sample.iter().filter(live).count();
        let urgent = live < GROUP_SAMPLE_LOW.min(known.len() + 1);
        (urgent || self.changed).then_some(urgent)
    }
}
