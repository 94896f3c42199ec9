//! Whom a host obeys: the node that answers for a service by its place on the ring, which it has
//! looked up. Whoever else gives an order, with however high a term, is looked up first; the order
//! waits, and is dropped and counted if another node answers for the service.
//!
//! What ends it: a lookup always ends, and after [`TRIES`] of them an order is carried out or
//! dropped. Nobody can be made to look up more than [`WAITING_MAX`] orders at a time.

use alloc::vec::Vec;

use dugnad_kernel::{Cx, Key, NodeId};

use super::{Event, Executor, SEARCH_AGAIN, Timer};
use crate::execute::ToHost;

/// Orders of nodes that have not been looked up, of all services.
pub const WAITING_MAX: usize = 64;
/// Lookups that may name another node before an order is dropped: the ring may be moving.
const TRIES: u8 = 3;

/// An order that waits until it is known whose it should be.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) service: Key,
    from: NodeId,
    order: ToHost,
    tries: u8,
}

impl ToHost {
    const fn service(&self) -> Key {
        match self {
            Self::Reserve { id, .. } | Self::Start { id, .. } | Self::Stop { id, .. } => id.service,
            Self::Probe { service, .. }
            | Self::BeatAck { service, .. }
            | Self::NotManager { service } => *service,
        }
    }
}

impl Executor {
    /// A message of whoever says that it manages a service.
    pub fn on_message(&mut self, from: NodeId, msg: ToHost, cx: &mut Cx<'_, Self>) {
        let service = msg.service();
        let harmless = matches!(msg, ToHost::NotManager { .. });
        if harmless || from == self.me || self.knows(service) == Some(from) {
            return self.obey(from, msg, cx);
        }
        if self.waiting.len() >= WAITING_MAX {
            self.refused_orders += 1;
            return;
        }
        // One question for all that wait for the same answer.
        let asked = self.waiting.iter().any(|waiting| waiting.service == service);
        self.waiting.push(Waiting { service, from, order: msg, tries: 0 });
        if !asked {
            cx.emit(Event::FindManager(service));
        }
    }

    /// It is known who manages a service, or that nobody can be found; what waited for it goes on.
    pub(crate) fn on_looked_up(
        &mut self,
        service: Key,
        manager: Option<NodeId>,
        cx: &mut Cx<'_, Self>,
    ) {
        let (mine, rest): (Vec<Waiting>, Vec<Waiting>) =
            core::mem::take(&mut self.waiting).into_iter().partition(|w| w.service == service);
        self.waiting = rest;
        let mut again = false;
        for mut waiting in mine {
            waiting.tries += 1;
            // With no ring to ask there is nobody else to obey.
            if manager.is_none_or(|manager| manager == waiting.from) {
                self.obey(waiting.from, waiting.order, cx);
            } else if waiting.tries < TRIES {
                again = true;
                self.waiting.push(waiting);
            } else {
                self.refused_orders += 1;
            }
        }
        if again {
            cx.after(SEARCH_AGAIN, Timer::LookUp { service });
        }
    }

    pub(crate) fn on_look_up_timer(&self, service: Key, cx: &mut Cx<'_, Self>) {
        if self.waiting.iter().any(|waiting| waiting.service == service) {
            cx.emit(Event::FindManager(service));
        }
    }
}
