//! The one boundary of the core: a component takes an input and leaves effects.

use alloc::vec::Vec;

use crate::id::NodeId;
use crate::time::{Duration, Time};

/// A protocol state machine. It owns its state; it never reads a clock, a socket or a global.
pub trait Component: Sized {
    type Command;
    type Msg;
    type Timer;
    type Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>);
}

pub enum Input<C: Component> {
    /// The parent, or the person behind it, wants something.
    Command(C::Command),
    /// Another node's component of the same kind sent this. The link proved who `from` is.
    Message { from: NodeId, msg: C::Msg },
    /// A delay asked for with [`Cx::after`] is over.
    Timer(C::Timer),
}

pub enum Effect<C: Component> {
    Send { to: NodeId, msg: C::Msg },
    After { delay: Duration, timer: C::Timer },
    Emit(C::Event),
}

/// What a component may use while it handles one input.
pub struct Cx<'a, C: Component> {
    /// Read once per input, so that one step sees one instant.
    pub now: Time,
    pub rng: &'a mut fastrand::Rng,
    effects: &'a mut Vec<Effect<C>>,
}

impl<'a, C: Component> Cx<'a, C> {
    pub const fn new(
        now: Time,
        rng: &'a mut fastrand::Rng,
        effects: &'a mut Vec<Effect<C>>,
    ) -> Self {
        Self { now, rng, effects }
    }

    pub fn send(&mut self, to: NodeId, msg: C::Msg) {
        self.effects.push(Effect::Send { to, msg });
    }

    /// Asks for `timer` after `delay`. There is no cancel: a timer carries what shows it is stale.
    pub fn after(&mut self, delay: Duration, timer: C::Timer) {
        self.effects.push(Effect::After { delay, timer });
    }

    pub fn emit(&mut self, event: C::Event) {
        self.effects.push(Effect::Emit(event));
    }

    /// Lets a child handle `input`; its messages and timers leave wrapped, its events are returned.
    #[must_use]
    pub fn child<D: Component>(
        &mut self,
        child: &mut D,
        input: Input<D>,
        wrap_msg: impl Fn(D::Msg) -> C::Msg,
        wrap_timer: impl Fn(D::Timer) -> C::Timer,
    ) -> Vec<D::Event> {
        let mut effects = Vec::new();
        child.handle(input, &mut Cx::new(self.now, self.rng, &mut effects));
        let mut events = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => self.send(to, wrap_msg(msg)),
                Effect::After { delay, timer } => self.after(delay, wrap_timer(timer)),
                Effect::Emit(event) => events.push(event),
            }
        }
        events
    }
}
