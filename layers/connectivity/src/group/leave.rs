//! Out of a group: first out of its record, then out of its mesh or ring.

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Input};

use super::messages::{Answer, Event, GroupId, Msg};
use super::{Groups, Phase, enter, group_id};
use crate::config::GROUP_ASKS;
use crate::overlay;

impl Groups {
    pub(super) fn leave(&mut self, call: u32, name: &str, cx: &mut Cx<'_, Self>) {
        let (gid, me) = (group_id(name), self.me.id);
        let Some(group) = self.groups.get_mut(&gid) else {
            cx.emit(Event::Answer { call, answer: Answer::NotMember });
            return;
        };
        if group.phase != Phase::In || group.waiting.len() >= GROUP_ASKS {
            cx.emit(Event::Answer { call, answer: Answer::Busy });
            return;
        }
        group.phase = Phase::Leaving;
        group.waiting.push(call);
        let others = group.known(me);
        let who = self.who(gid, cx);
        self.start("leave a group", |asker| enter::leave(asker, who, others), cx);
    }

    pub(super) fn depart(&mut self, cx: &mut Cx<'_, Self>) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for gid in ids {
            self.say_bye(gid, cx);
        }
    }

    fn say_bye(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        let Some(group) = self.groups.get(&gid) else { return };
        for to in group.members.keys() {
            cx.send(*to, Msg::Bye { gid });
        }
        self.feed(gid, Input::Command(overlay::Command::Leave), cx);
    }

    /// The record names me no more.
    pub(super) fn on_may_go(&mut self, gid: GroupId, cx: &mut Cx<'_, Self>) {
        self.say_bye(gid, cx);
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.going = true;
        if group.ring.is_none() {
            self.answer_waiting(gid, Answer::Done, cx);
            self.forget(gid, cx);
        }
    }
}
