//! Nobody is spoken to, and nobody is named to the driver, whose address this node does not know:
//! it is looked up first. An id on the ring is found like any key; its owner is the node itself.

use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_connectivity as connectivity;
use dugnad_kernel::{Cx, NodeId};
use dugnad_resource::execute::Order;

use crate::asked::Why;
use crate::{Answer, AskId, Event, Msg, Node, ObjectAnswer};

/// Messages, orders and answers that wait for an address. Further ones go without: a message is
/// lost as on a broken link, an order or an answer names a node that cannot be reached.
const DEFERRED_MAX: usize = 256;

enum What {
    Send(NodeId, Msg),
    Order(Order),
    Answer(AskId, Answer),
}

struct Waiting {
    missing: Set<NodeId>,
    what: What,
}

#[derive(Default)]
pub(crate) struct Deferred {
    waiting: Vec<Waiting>,
}

impl Node {
    /// Whether a message can go out now. Looking somebody up to ask whether they live says it
    /// already, and looking up must not need looking up: those go out as they are.
    pub(crate) fn may_send(&self, to: NodeId, msg: &Msg) -> bool {
        use connectivity::Msg as M;
        let direct = matches!(
            msg,
            Msg::Connectivity(M::Detect(_) | M::Overlay(connectivity::overlay::Msg::Route(_)))
        );
        direct || self.unknown(core::iter::once(to)).is_empty()
    }

    /// Sends when the address of `to` was found; lost if it is not.
    pub(crate) fn send_later(&mut self, to: NodeId, msg: Msg, cx: &mut Cx<'_, Self>) {
        if self.deferred.waiting.len() < DEFERRED_MAX {
            self.defer(Set::from([to]), What::Send(to, msg), cx);
        }
    }

    pub(crate) fn order_known(&mut self, order: Order, cx: &mut Cx<'_, Self>) {
        let missing = match &order {
            Order::Fetch { from, .. } | Order::KeepPackage { from, .. } => {
                self.unknown(from.iter().copied())
            }
            Order::Start(_)
            | Order::Stop { .. }
            | Order::Drop { .. }
            | Order::ForgetState { .. } => Set::new(),
        };
        self.defer(missing, What::Order(order), cx);
    }

    pub(crate) fn answer_known(&mut self, ask: AskId, answer: Answer, cx: &mut Cx<'_, Self>) {
        let missing = match &answer {
            Answer::Resolved(view) => self.unknown(view.slots.iter().map(|slot| slot.node)),
            Answer::Object(ObjectAnswer::Found { values, .. }) => {
                self.unknown(values.iter().flat_map(|value| value.sources.iter().copied()))
            }
            Answer::Object(ObjectAnswer::Beside(nodes)) => self.unknown(nodes.iter().copied()),
            _ => Set::new(),
        };
        self.defer(missing, What::Answer(ask, answer), cx);
    }

    fn unknown(&self, ids: impl Iterator<Item = NodeId>) -> Set<NodeId> {
        let me = self.connectivity.ring().me().id;
        ids.filter(|id| *id != me && self.overlay().peer(*id).is_none()).collect()
    }

    fn defer(&mut self, missing: Set<NodeId>, what: What, cx: &mut Cx<'_, Self>) {
        if missing.is_empty() || self.deferred.waiting.len() >= DEFERRED_MAX {
            self.release(what, cx);
            return;
        }
        self.deferred.waiting.push(Waiting { missing: missing.clone(), what });
        for id in missing {
            self.look_up(Why::Address(id), id, cx);
        }
    }

    /// A lookup of an address ended; if it found somebody, the overlay has written it down.
    pub(crate) fn on_address_found(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        for waiting in &mut self.deferred.waiting {
            waiting.missing.remove(&id);
        }
        let (ready, rest) = core::mem::take(&mut self.deferred.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| waiting.missing.is_empty());
        self.deferred.waiting = rest;
        let ready: Vec<Waiting> = ready;
        for waiting in ready {
            self.release(waiting.what, cx);
        }
    }

    fn release(&self, what: What, cx: &mut Cx<'_, Self>) {
        match what {
            // Nobody of that id is on the ring.
            What::Send(to, _) if !self.unknown(core::iter::once(to)).is_empty() => {}
            What::Send(to, msg) => cx.send(to, msg),
            What::Order(order) => cx.emit(Event::Host(order)),
            What::Answer(ask, answer) => cx.emit(Event::Answer(ask, answer)),
        }
    }
}
