//! Says which watched peers are dead (PROTOCOL.md 10.8).
//!
//! A closed connection is a hint that is checked at once: ping again (which dials again) and ask
//! others; nobody reaches it, it is dead within two seconds. Silence is judged slowly. Whatever a
//! peer sends counts as a sign of life, so on a busy link no ping is sent at all.

use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Component, Cx, Duration, Input, NodeId, Time};
use serde::{Deserialize, Serialize};

use crate::config::{
    CLOSED_CONFIRM, GOSSIP, HEARTBEAT, HEARTBEAT_FAR, HEARTBEAT_SLACK, HELPERS, LINKED_MAX,
    PING_ANSWER, SILENCE_CONFIRM, WATCHED_MAX,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Pong` at once.
    Ping,
    /// To whoever pinged.
    Pong,
    /// Please ping `target` for me.
    PingReq { target: NodeId },
    /// `target` answered me.
    Reached { target: NodeId },
    /// I am sure that `target` is dead. A hint: whoever watches it checks for itself, at once.
    Gone { target: NodeId },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Look who was silent for too long.
    Tick,
    /// The check that began as number `check` must be over.
    Confirm { target: NodeId, check: u32 },
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Watch exactly these: neighbours closely, the others as well as others watch them, too.
    Watch { near: Set<NodeId>, far: Set<NodeId> },
    /// Any message came from this peer, or a session with it stands.
    Heard(NodeId),
    /// The session ended or the peer could not be dialled.
    LinkDown(NodeId),
    /// The peer did not do what it should have done by now.
    Doubt(NodeId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Suspect(NodeId),
    /// A suspect answered after all.
    Refuted(NodeId),
    Dead(NodeId),
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    heard: Time,
    /// How long it may be silent before it is pinged.
    every: Duration,
    /// When it was asked for a sign of life, if it has given none since.
    pinged: Option<Time>,
    /// The check under way.
    check: Option<u32>,
}

#[derive(Default)]
pub struct Detector {
    watched: Map<NodeId, Watched>,
    /// Who asked me to ping whom.
    for_others: Map<NodeId, Set<NodeId>>,
    /// Whether a `Tick` is on its way; there is never more than one.
    ticking: bool,
    last_check: u32,
    /// Peers with a session, to be asked for indirect probes, and when they were heard last.
    linked: Map<NodeId, Time>,
}

impl Watched {
    /// When the next thing must be done about it: asked for a sign of life, or suspected.
    fn due(&self) -> Option<Time> {
        let silent = self.heard + self.every;
        let due = self.pinged.map_or(silent, |pinged| pinged + PING_ANSWER);
        self.check.is_none().then_some(due)
    }
}

impl Component for Detector {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(Command::Watch { near, far }) => self.watch(&near, &far, cx),
            Input::Command(Command::Heard(id)) => self.heard(id, cx),
            Input::Command(Command::LinkDown(id)) => self.on_closed(id, cx),
            Input::Command(Command::Doubt(id)) => self.on_doubt(id, cx),
            Input::Message { from, msg: Msg::Ping } => cx.send(from, Msg::Pong),
            // That it came was already counted as `Heard`.
            Input::Message { msg: Msg::Pong, .. } => {}
            Input::Message { from, msg: Msg::PingReq { target } } => {
                self.on_ping_req(from, target, cx);
            }
            Input::Message { msg: Msg::Reached { target }, .. } => self.heard(target, cx),
            Input::Message { msg: Msg::Gone { target }, .. } => self.on_doubt(target, cx),
            Input::Timer(Timer::Tick) => self.on_tick(cx),
            Input::Timer(Timer::Confirm { target, check }) => self.on_confirm(target, check, cx),
        }
    }
}

impl Detector {
    /// Peers a check is under way for.
    pub fn suspects(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.watched.iter().filter(|(_, w)| w.check.is_some()).map(|(id, _)| *id)
    }

    #[must_use]
    pub fn is_suspect(&self, id: NodeId) -> bool {
        self.watched.get(&id).is_some_and(|w| w.check.is_some())
    }

    #[must_use]
    pub fn is_linked(&self, id: NodeId) -> bool {
        self.linked.contains_key(&id)
    }

    pub fn linked(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.linked.keys().copied()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("watched", self.watched.len(), WATCHED_MAX),
            ("heard", self.linked.len(), LINKED_MAX),
            ("probes", self.for_others.len(), WATCHED_MAX),
        ]
        .into_iter()
    }

    fn watch(&mut self, near: &Set<NodeId>, far: &Set<NodeId>, cx: &mut Cx<'_, Self>) {
        self.watched.retain(|id, _| near.contains(id) || far.contains(id));
        for id in near.iter().chain(far.difference(near)).take(WATCHED_MAX) {
            let every = if near.contains(id) { HEARTBEAT } else { HEARTBEAT_FAR };
            if let Some(known) = self.watched.get_mut(id) {
                known.every = every;
                continue;
            }
            // Somebody who was not heard of lately may be dead for as long: find out at once.
            let heard = self.linked.get(id).copied();
            let fresh = heard.is_some_and(|heard| cx.now.since(heard) < HEARTBEAT);
            let pinged = (!fresh).then_some(cx.now);
            if pinged.is_some() {
                cx.send(*id, Msg::Ping);
            }
            let heard = heard.unwrap_or(cx.now);
            self.watched.insert(*id, Watched { heard, every, pinged, check: None });
        }
        self.tick_later(cx);
    }

    /// Plans the next look at the watched peers, when the first of them is due.
    fn tick_later(&mut self, cx: &mut Cx<'_, Self>) {
        let due = self.watched.values().filter_map(Watched::due).min();
        let (false, Some(due)) = (self.ticking, due) else { return };
        self.ticking = true;
        // The jitter keeps two that watch each other from asking in the same instant.
        let jitter = HEARTBEAT_SLACK * cx.rng.u32(0..100) / 100;
        cx.after(due.since(cx.now).max(HEARTBEAT_SLACK) + jitter, Timer::Tick);
    }

    fn heard(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        if self.linked.len() < LINKED_MAX || self.linked.contains_key(&id) {
            self.linked.insert(id, cx.now);
        }
        if let Some(askers) = self.for_others.remove(&id) {
            for asker in askers {
                cx.send(asker, Msg::Reached { target: id });
            }
        }
        let Some(watched) = self.watched.get_mut(&id) else { return };
        watched.heard = cx.now;
        watched.pinged = None;
        if watched.check.take().is_some() {
            cx.emit(Event::Refuted(id));
            self.tick_later(cx);
        }
    }

    fn on_closed(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.linked.remove(&id);
        self.for_others.remove(&id);
        if self.watched.get(&id).is_some_and(|w| w.check.is_none()) {
            self.check(id, CLOSED_CONFIRM, cx);
        }
    }

    /// Somebody else found it dead. Not believed, but checked, unless it was heard of just now.
    fn on_doubt(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let quiet = |w: &Watched| w.check.is_none() && cx.now.since(w.heard) >= HEARTBEAT / 5;
        if self.watched.get(&id).is_some_and(quiet) {
            self.check(id, CLOSED_CONFIRM, cx);
        }
    }

    fn check(&mut self, id: NodeId, confirm: core::time::Duration, cx: &mut Cx<'_, Self>) {
        self.last_check = self.last_check.wrapping_add(1);
        let check = self.last_check;
        if let Some(watched) = self.watched.get_mut(&id) {
            watched.check = Some(check);
        }
        cx.emit(Event::Suspect(id));
        cx.send(id, Msg::Ping);
        let mut helpers: Vec<NodeId> = self.linked().filter(|h| *h != id).collect();
        cx.rng.shuffle(&mut helpers);
        for helper in helpers.into_iter().take(HELPERS) {
            cx.send(helper, Msg::PingReq { target: id });
        }
        cx.after(confirm, Timer::Confirm { target: id, check });
    }

    fn on_ping_req(&mut self, from: NodeId, target: NodeId, cx: &mut Cx<'_, Self>) {
        let full = self.for_others.len() >= WATCHED_MAX;
        if full && !self.for_others.contains_key(&target) {
            return;
        }
        let askers = self.for_others.entry(target).or_default();
        if askers.len() < WATCHED_MAX {
            askers.insert(from);
        }
        cx.send(target, Msg::Ping);
    }

    fn on_tick(&mut self, cx: &mut Cx<'_, Self>) {
        self.ticking = false;
        let soon = cx.now + HEARTBEAT_SLACK;
        let mut suspects = Vec::new();
        for (id, watched) in &mut self.watched {
            match watched.due() {
                Some(due) if due <= cx.now && watched.pinged.is_some() => suspects.push(*id),
                // One wakeup serves all that are due about now.
                Some(due) if due <= soon && watched.pinged.is_none() => {
                    watched.pinged = Some(cx.now);
                    cx.send(*id, Msg::Ping);
                }
                Some(_) | None => {}
            }
        }
        for id in suspects {
            self.check(id, SILENCE_CONFIRM, cx);
        }
        self.tick_later(cx);
    }

    fn on_confirm(&mut self, target: NodeId, check: u32, cx: &mut Cx<'_, Self>) {
        if self.watched.get(&target).is_some_and(|w| w.check == Some(check)) {
            self.watched.remove(&target);
            self.linked.remove(&target);
            for peer in self.linked().take(GOSSIP) {
                cx.send(peer, Msg::Gone { target });
            }
            cx.emit(Event::Dead(target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::{Effect, Id};

    fn step(detector: &mut Detector, now: Time, input: Input<Detector>) -> Vec<Effect<Detector>> {
        let (mut rng, mut effects) = (fastrand::Rng::with_seed(1), Vec::new());
        detector.handle(input, &mut Cx::new(now, &mut rng, &mut effects));
        effects
    }

    fn events(effects: &[Effect<Detector>]) -> Vec<Event> {
        let event = |e: &Effect<Detector>| match e {
            Effect::Emit(event) => Some(event.clone()),
            Effect::Send { .. } | Effect::After { .. } => None,
        };
        effects.iter().filter_map(event).collect()
    }

    fn watching(id: Id) -> Detector {
        let mut detector = Detector::default();
        let watch = Command::Watch { near: Set::from([id]), far: Set::new() };
        step(&mut detector, Time(0), Input::Command(watch));
        detector
    }

    #[test]
    fn a_closed_connection_is_checked_at_once_and_only_once() {
        let mut detector = watching(Id(7));
        let effects = step(&mut detector, Time(1), Input::Command(Command::LinkDown(Id(7))));
        assert_eq!(events(&effects), [Event::Suspect(Id(7))]);
        let pings = effects.iter().filter(|e| matches!(e, Effect::Send { msg: Msg::Ping, .. }));
        assert_eq!(pings.count(), 1);
        let again = step(&mut detector, Time(2), Input::Command(Command::LinkDown(Id(7))));
        assert!(again.is_empty());
        let confirm = Timer::Confirm { target: Id(7), check: 1 };
        let dead = step(&mut detector, Time(9), Input::Timer(confirm));
        assert_eq!(events(&dead), [Event::Dead(Id(7))]);
    }

    #[test]
    fn any_sign_of_life_refutes_and_makes_the_check_stale() {
        let mut detector = watching(Id(7));
        step(&mut detector, Time(1), Input::Command(Command::LinkDown(Id(7))));
        let heard = step(&mut detector, Time(2), Input::Command(Command::Heard(Id(7))));
        assert_eq!(events(&heard), [Event::Refuted(Id(7))]);
        let confirm = Timer::Confirm { target: Id(7), check: 1 };
        assert!(step(&mut detector, Time(9), Input::Timer(confirm)).is_empty());
    }

    #[test]
    fn a_busy_link_is_never_pinged() {
        let mut detector = watching(Id(7));
        let tick = Time(0) + HEARTBEAT;
        step(&mut detector, Time(5_900_000), Input::Command(Command::Heard(Id(7))));
        let effects = step(&mut detector, tick, Input::Timer(Timer::Tick));
        assert_eq!(effects.len(), 1, "only the next tick");
    }
}
