//! Who on this node subscribed to which events.

use std::rc::Rc;

use dugnad_kernel::map::Map;
use dugnad_node::{Answer, Begin, EventAnswer, EventQuestion, Told};
use serde_json::Value;
use smol::channel::{Receiver, Sender, bounded};

use super::Agent;
use crate::control::{Hold, event_lost, event_told};

/// Events that wait for a slow reader; then its stream ends, and it may go on where it left off.
const QUEUE: usize = 256;

/// By the number of the subscription.
#[derive(Default)]
pub(super) struct Subscribers {
    all: Map<u64, Sender<Value>>,
    next: u64,
}

impl Agent {
    /// The events of a type, and of those that descend from it, for as long as the [`Hold`] lives.
    pub(super) async fn subscribe(
        self: Rc<Self>,
        name: String,
        condition: String,
        begin: Begin,
    ) -> Result<(Hold, Receiver<Value>), EventAnswer> {
        let (to, events) = bounded(QUEUE);
        let sub = {
            let mut subscribers = self.subscribers.borrow_mut();
            subscribers.next += 1;
            let sub = subscribers.next;
            subscribers.all.insert(sub, to);
            sub
        };
        let agent = Rc::clone(&self);
        let hold = Hold::new(move || agent.unsubscribe(sub));
        let question = EventQuestion::Subscribe { sub, name, condition, begin };
        match self.ask(question).await {
            Answer::Events(EventAnswer::Done) => Ok((hold, events)),
            Answer::Events(other) => Err(other),
            Answer::Failed(text) => Err(EventAnswer::Failed(text)),
            other => Err(EventAnswer::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    fn unsubscribe(self: &Rc<Self>, sub: u64) {
        self.subscribers.borrow_mut().all.remove(&sub);
        let agent = Rc::clone(self);
        self.detach(async move {
            // It needs nobody's consent.
            _ = agent.ask(EventQuestion::Unsubscribe { sub }).await;
        });
    }

    pub(super) fn told_event(&self, sub: u64, told: &Told) {
        self.pass_on(sub, event_told(told));
    }

    pub(super) fn lost_events(&self, sub: u64, name: &str, count: u64) {
        self.pass_on(sub, event_lost(name, count));
    }

    fn pass_on(&self, sub: u64, line: Value) {
        let mut subscribers = self.subscribers.borrow_mut();
        if subscribers.all.get(&sub).is_some_and(|to| to.try_send(line).is_err()) {
            // Too slow, or gone: nobody else waits for it.
            subscribers.all.remove(&sub);
        }
    }
}
