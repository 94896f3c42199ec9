//! What people ask the overlay itself: who answers for a key, and to tell everybody something.

use alloc::string::ToString;
use dugnad_kernel::map::Map;

use dugnad_connectivity as connectivity;
use dugnad_connectivity::route::Found;
use dugnad_kernel::{Cx, Key, Time};
use dugnad_resource::executor::clip_note;

use crate::views::Own;
use crate::{Answer, AskId, EXECUTOR_CALL, Event, Node};

/// Lookups of people under way; more are refused.
pub(crate) const ASKED_MAX: usize = 64;

/// Lookups under way: call, whose question, and since when.
#[derive(Default)]
pub(crate) struct Asked {
    waiting: Map<u32, (AskId, Time)>,
}

impl Asked {
    pub(crate) fn waits_for(&self, call: u32) -> bool {
        self.waiting.contains_key(&call)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl Node {
    pub(crate) fn on_own_question(&mut self, ask: AskId, question: Own, cx: &mut Cx<'_, Self>) {
        if let Own::Group(question) = question {
            return self.ask_group(ask, question, cx);
        }
        let refused = if !self.overlay.ring().is_member() {
            "this node is not in the ring yet; see `dugnad status`"
        } else if self.asked.len() >= ASKED_MAX {
            "too many lookups at a time; try again"
        } else {
            ""
        };
        if !refused.is_empty() {
            cx.emit(Event::Answer(ask, Answer::Failed(refused.to_string())));
            return;
        }
        match question {
            Own::Lookup(key) => self.look_up(ask, key, cx),
            Own::Announce(text) => {
                self.announce(None, clip_note(&text), cx);
                cx.emit(Event::Answer(ask, Answer::Done));
            }
            Own::Group(_) => {}
        }
    }

    fn look_up(&mut self, ask: AskId, key: Key, cx: &mut Cx<'_, Self>) {
        self.next = self.next.wrapping_add(1);
        let call = EXECUTOR_CALL | (self.next & !EXECUTOR_CALL);
        self.asked.waiting.insert(call, (ask, cx.now));
        self.ring(connectivity::Command::Lookup { call, key }, cx);
    }

    pub(crate) fn on_asked_found(
        &mut self,
        call: u32,
        found: Option<Found>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some((ask, since)) = self.asked.waiting.remove(&call) else { return };
        let answer = match found {
            Some(found) => Answer::Found {
                owner: found.owner.id,
                owner_name: self.names.get(&found.owner.id).cloned().unwrap_or_default(),
                hops: found.hops,
                certain: found.certain,
                took: cx.now.since(since),
            },
            None => Answer::Failed(
                "no node answered for the key; see `dugnad status` and try again".to_string(),
            ),
        };
        cx.emit(Event::Answer(ask, answer));
    }
}
