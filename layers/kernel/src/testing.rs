//! The world around the components of one kind, for tests: nodes that come and go, links that delay
//! and lose and keep the order of each pair, and a clock that jumps to what is due next.
//!
//! What the layers around a component would do the test plays, as an [`Around`]. One seed gives one
//! run.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::component::{Component, Cx, Effect, Input};
use crate::id::NodeId;
use crate::time::{Duration, Time};

/// What stands for the rest of the node and of the community.
pub trait Around<C: Component>: Sized {
    /// The node tells something.
    fn on_event(world: &mut World<C, Self>, at: NodeId, event: C::Event);

    /// A message is about to leave, and was counted; `false` loses it.
    fn carries(_: &mut World<C, Self>, _from: NodeId, _to: NodeId, _: &C::Msg) -> bool {
        true
    }

    /// What the sender hears when `to` cannot be reached, one delay later.
    fn link_down(_: &World<C, Self>, _to: NodeId) -> Option<C::Command> {
        None
    }

    /// After every input.
    fn check(_: &C) {}
}

type Play<C, A> = Box<dyn FnOnce(&mut World<C, A>)>;

enum Todo<C: Component, A> {
    /// For one life of a node: what is under way when it crashes is lost.
    Input(NodeId, u32, Input<C>),
    Play(Play<C, A>),
}

struct Node<C> {
    life: u32,
    component: Option<C>,
}

pub struct World<C: Component, A> {
    pub now: Time,
    pub rng: fastrand::Rng,
    pub around: A,
    /// Messages between different nodes.
    pub sent: usize,
    /// One message of so many is lost.
    pub loss: Option<u32>,
    /// Microseconds a message takes.
    pub delay: Range<u64>,
    nodes: BTreeMap<NodeId, Node<C>>,
    queue: BTreeMap<(Time, u64), Todo<C, A>>,
    sequence: u64,
    /// When the last message of a pair arrives: none overtakes another.
    last: BTreeMap<(NodeId, NodeId), Time>,
    sides: BTreeMap<NodeId, u32>,
}

impl<C: Component, A: Around<C>> World<C, A> {
    #[must_use]
    pub fn new(seed: u64, around: A) -> Self {
        Self {
            now: Time(0),
            rng: fastrand::Rng::with_seed(seed),
            around,
            sent: 0,
            loss: None,
            delay: 1_000..40_000,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            last: BTreeMap::new(),
            sides: BTreeMap::new(),
        }
    }

    /// A node begins, or begins a new life; which one that is, from 1.
    pub fn start(&mut self, id: NodeId, component: C) -> u32 {
        let life = self.life(id) + 1;
        self.nodes.insert(id, Node { life, component: Some(component) });
        life
    }

    /// It is gone, with everything under way to it.
    pub fn crash(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.component = None;
        }
    }

    /// How often it was started.
    #[must_use]
    pub fn life(&self, id: NodeId) -> u32 {
        self.nodes.get(&id).map_or(0, |node| node.life)
    }

    /// `None` while it is not running.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&C> {
        self.nodes.get(&id)?.component.as_ref()
    }

    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut C> {
        self.nodes.get_mut(&id)?.component.as_mut()
    }

    /// Every node there ever was, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The nodes that run, in order.
    pub fn live(&self) -> impl Iterator<Item = (NodeId, &C)> {
        self.nodes.iter().filter_map(|(id, node)| Some((*id, node.component.as_ref()?)))
    }

    /// Only nodes of one side reach each other.
    pub fn cut(&mut self, side: impl Fn(usize) -> u32) {
        let ids = self.ids().into_iter().enumerate();
        self.sides = ids.map(|(number, id)| (id, side(number))).collect();
    }

    /// Whether no cut lies between them.
    #[must_use]
    pub fn reach(&self, a: NodeId, b: NodeId) -> bool {
        self.sides.get(&a).unwrap_or(&0) == self.sides.get(&b).unwrap_or(&0)
    }

    pub fn command(&mut self, id: NodeId, command: C::Command) {
        self.command_after(Duration::ZERO, id, command);
    }

    pub fn command_after(&mut self, after: Duration, id: NodeId, command: C::Command) {
        self.input(self.now + after, id, Input::Command(command));
    }

    /// In the same step, before anything else happens: for an event that must be answered so.
    pub fn command_now(&mut self, id: NodeId, command: C::Command) {
        self.step(id, self.life(id), Input::Command(command));
    }

    /// As if `from` had sent it, whether there is such a node or not.
    pub fn message(&mut self, from: NodeId, to: NodeId, msg: C::Msg) {
        self.input(self.now, to, Input::Message { from, msg });
    }

    /// Something the world does later.
    pub fn after(&mut self, after: Duration, play: impl FnOnce(&mut Self) + 'static) {
        self.put(self.now + after, Todo::Play(Box::new(play)));
    }

    fn input(&mut self, at: Time, id: NodeId, input: Input<C>) {
        self.put(at, Todo::Input(id, self.life(id), input));
    }

    fn put(&mut self, at: Time, todo: Todo<C, A>) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), todo);
    }

    pub fn run(&mut self, span: Duration) {
        self.run_until(self.now + span, |_| false);
    }

    /// Until `stop`, or `end`; whether it was `stop`.
    pub fn run_until(&mut self, end: Time, stop: impl Fn(&Self) -> bool) -> bool {
        loop {
            if stop(self) {
                return true;
            }
            match self.queue.first_entry() {
                Some(next) if next.key().0 <= end => {
                    let ((at, _), todo) = next.remove_entry();
                    self.now = at;
                    match todo {
                        Todo::Input(id, life, input) => self.step(id, life, input),
                        Todo::Play(play) => play(self),
                    }
                }
                _ => {
                    self.now = end;
                    return false;
                }
            }
        }
    }

    fn step(&mut self, id: NodeId, life: u32, input: Input<C>) {
        let node = self.nodes.get_mut(&id).filter(|node| node.life == life);
        let Some(component) = node.and_then(|node| node.component.as_mut()) else { return };
        let mut effects = Vec::new();
        component.handle(input, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        A::check(component);
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => self.carry(id, to, msg),
                Effect::After { delay, timer } => {
                    self.put(self.now + delay, Todo::Input(id, life, Input::Timer(timer)));
                }
                Effect::Emit(event) => A::on_event(self, id, event),
            }
        }
    }

    fn carry(&mut self, from: NodeId, to: NodeId, msg: C::Msg) {
        if from == to {
            self.message(from, to, msg);
            return;
        }
        self.sent += 1;
        let carried = A::carries(self, from, to, &msg);
        let arrives = self.now + Duration::from_micros(self.rng.u64(self.delay.clone()));
        if self.get(to).is_none() || !self.reach(from, to) {
            if let Some(command) = A::link_down(self, to) {
                self.input(arrives, from, Input::Command(command));
            }
            return;
        }
        if !carried || self.loss.is_some_and(|one_of| self.rng.u32(0..one_of) == 0) {
            return;
        }
        let last = self.last.entry((from, to)).or_default();
        *last = arrives.max(*last + Duration::from_micros(1));
        let at = *last;
        self.input(at, to, Input::Message { from, msg });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    /// Passes a number on to the next node until it is 0.
    struct Counter(NodeId);

    impl Component for Counter {
        type Command = u32;
        type Msg = u32;
        type Timer = ();
        type Event = u32;

        fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
            match input {
                Input::Command(count) => cx.send(self.0, count),
                Input::Message { msg, .. } if msg > 0 => cx.send(self.0, msg - 1),
                Input::Message { msg, .. } => cx.emit(msg),
                Input::Timer(()) => {}
            }
        }
    }

    impl Around<Counter> for Vec<u32> {
        fn on_event(world: &mut World<Counter, Self>, _: NodeId, event: u32) {
            world.around.push(event);
        }

        fn link_down(_: &World<Counter, Self>, _: NodeId) -> Option<u32> {
            Some(0)
        }
    }

    fn two() -> World<Counter, Vec<u32>> {
        let mut world = World::new(1, Vec::new());
        world.start(Id(1), Counter(Id(2)));
        world.start(Id(2), Counter(Id(1)));
        world
    }

    #[test]
    fn messages_travel_and_are_counted() {
        let mut world = two();
        world.command(Id(1), 9);
        assert!(world.run_until(Time(10_000_000), |world| world.around == [0]));
        assert_eq!(world.sent, 10);
        assert!(world.now > Time(10_000), "each takes its time");
    }

    #[test]
    fn who_cannot_be_reached_is_told_and_a_life_ends_with_what_is_under_way() {
        let mut world = two();
        world.command(Id(1), 3);
        world.crash(Id(2));
        world.run(Duration::from_millis(35));
        assert!(world.sent > 1, "the sender heard that the link is down, and tried again");
        world.start(Id(2), Counter(Id(1)));
        world.cut(|number| number as u32);
        assert!(!world.reach(Id(1), Id(2)));
        assert_eq!((world.life(Id(1)), world.life(Id(2))), (1, 2));
    }
}
