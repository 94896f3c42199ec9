//! Which messages were delivered already.

use alloc::collections::VecDeque;
use dugnad_kernel::map::Set;

use super::messages::MsgId;
use crate::config::GROUP_SEEN;

/// The last [`GROUP_SEEN`] messages; older ones are forgotten and would be delivered again.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    order: VecDeque<MsgId>,
    set: Set<MsgId>,
}

impl Seen {
    pub(crate) fn contains(&self, id: MsgId) -> bool {
        self.set.contains(&id)
    }

    /// Whether it is new.
    pub(crate) fn insert(&mut self, id: MsgId) -> bool {
        if !self.set.insert(id) {
            return false;
        }
        if self.order.len() == GROUP_SEEN {
            if let Some(oldest) = self.order.pop_front() {
                self.set.remove(&oldest);
            }
        }
        self.order.push_back(id);
        true
    }
}
