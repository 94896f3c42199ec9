//! Groups: who on this node listens, and who holds a membership.

use std::rc::Rc;

use dugnad_kernel::NodeId;
use dugnad_kernel::map::Map;
use dugnad_node::{Answer, GroupQuestion, Question};
use serde_json::Value;
use smol::channel::{Receiver, Sender, TrySendError, bounded};

use super::Agent;
use crate::control::{Hold, group_message};

/// Messages that wait for a slow reader; further ones are dropped for it, and said.
const QUEUE: usize = 256;
/// Listeners of one group; a further one takes the place of none and hears nothing.
const LISTENERS_MAX: usize = 64;

/// Listeners by group.
pub(super) type Listeners = Map<String, Vec<Sender<Value>>>;

impl Agent {
    /// What is said in a group from now on.
    ///
    /// # Errors
    /// As many as may listen to the group do.
    pub(super) fn heard(&self, group: &str) -> Result<Receiver<Value>, String> {
        let (to, from) = bounded(QUEUE);
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|_, all| {
            all.retain(|to| !to.is_closed());
            !all.is_empty()
        });
        let all = listeners.entry(group.to_owned()).or_default();
        if all.len() >= LISTENERS_MAX {
            return Err(format!("{LISTENERS_MAX} listen to {group} on this node already"));
        }
        all.push(to);
        Ok(from)
    }

    pub(super) fn group_message(&self, group: &str, from: NodeId, name: &str, body: &[u8]) {
        let mut listeners = self.listeners.borrow_mut();
        let Some(all) = listeners.get_mut(group) else { return };
        let line = group_message(group, &from.to_string(), name, body);
        all.retain(|to| match to.try_send(line.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.links.count("group_message_dropped");
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }

    /// A membership for as long as the result lives.
    pub(super) async fn hold(self: Rc<Self>, name: String) -> Result<Hold, Answer> {
        let question = GroupQuestion::Join { name: name.clone(), keep: false };
        match Rc::clone(&self).ask(Question::Group(question)).await {
            Answer::Done => Ok(Hold::new(move || {
                let agent = Rc::clone(&self);
                self.detach(async move {
                    let question = GroupQuestion::Leave { name, keep: false };
                    if let Answer::Failed(why) = agent.ask(Question::Group(question)).await {
                        log::debug!("a listener left: {why}");
                    }
                });
            })),
            other => Err(other),
        }
    }
}
