//! What the agent tells its people: events, warnings, and the answers to their questions.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use dugnad_kernel::map::Map;
use dugnad_node::{Answer, AskId};
use serde_json::Value;
use smol::channel::{Receiver, Sender, TrySendError, bounded};

/// Events kept for `dugnad events`.
const EVENTS_MAX: usize = 1_000;
/// Questions of people under way; more are refused.
const ASKS_MAX: usize = 256;
/// Warnings kept for `dugnad status`.
const WARNINGS_MAX: usize = 32;
/// Events that wait for a slow reader.
const QUEUE: usize = 256;

#[derive(Default)]
pub(super) struct Told {
    asks: RefCell<Map<AskId, Sender<Answer>>>,
    next_ask: Cell<AskId>,
    events: RefCell<VecDeque<Value>>,
    followers: RefCell<Vec<Sender<Value>>>,
    warnings: RefCell<VecDeque<String>>,
}

impl Told {
    pub(super) fn with_warnings(warnings: Vec<String>) -> Self {
        Self { warnings: RefCell::new(warnings.into()), ..Self::default() }
    }

    /// A number for a question whose answer nobody waits for.
    pub(super) fn next_ask(&self) -> AskId {
        let ask = self.next_ask.get();
        self.next_ask.set(ask + 1);
        ask
    }

    /// A number for a question, and where its answer will come; `None` if as many wait as may.
    pub(super) fn ask(&self) -> Option<(AskId, Receiver<Answer>)> {
        let mut asks = self.asks.borrow_mut();
        if asks.len() >= ASKS_MAX {
            return None;
        }
        let ask = self.next_ask();
        let (asker, answer) = bounded(1);
        asks.insert(ask, asker);
        Some((ask, answer))
    }

    /// Whoever asked hears no more, or has been answered.
    pub(super) fn end(&self, ask: AskId) -> Option<Sender<Answer>> {
        self.asks.borrow_mut().remove(&ask)
    }

    pub(super) fn event(&self, value: &Value) {
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(value.clone());
        // A follower that is too slow misses events; one that is gone is forgotten.
        self.followers
            .borrow_mut()
            .retain(|to| !matches!(to.try_send(value.clone()), Err(TrySendError::Closed(_))));
    }

    /// The events that were kept, if they are wanted, and those to come, if they are.
    pub(super) fn events(&self, kept: bool, follow: bool) -> Receiver<Value> {
        let events = self.events.borrow();
        let count = if kept { events.len() } else { 0 };
        let (to, from) = bounded(count.max(QUEUE));
        for event in events.iter().skip(events.len() - count) {
            // There is room for all of them.
            _ = to.try_send(event.clone());
        }
        if follow {
            let mut followers = self.followers.borrow_mut();
            // Who went away is noticed here, too, where nothing ever happens.
            followers.retain(|follower| !follower.is_closed());
            followers.push(to);
        }
        from
    }

    pub(super) fn warn(&self, text: String) {
        let mut warnings = self.warnings.borrow_mut();
        warnings.retain(|known| *known != text);
        if warnings.len() == WARNINGS_MAX {
            warnings.pop_front();
        }
        warnings.push_back(text);
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().iter().cloned().collect()
    }
}
