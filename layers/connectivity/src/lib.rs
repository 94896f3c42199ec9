//! Connectivity (paper 3.2): the DKS ring, and groups of its members.
//!
//! [`Connectivity`] composes and decides nothing but whom to watch: the [`detector`] says who is
//! dead, the [`overlay`] is the ring of the whole community, [`group`] has the groups this node is
//! in.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod config;
pub mod detector;
pub mod group;
pub mod overlay;

pub use overlay::{entry, ring, route, table, tree};

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{Component, Cx, Input, Key, NodeId, Peer};
use serde::{Deserialize, Serialize};

use detector::Detector;
use group::Groups;
use group::directory::DirectoryAsk;
use overlay::Overlay;
use overlay::ring::Ring;
use overlay::table::Table;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Overlay(overlay::Msg),
    Detect(detector::Msg),
    Group(group::Msg),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Overlay(overlay::Timer),
    Detect(detector::Timer),
    Group(group::Timer),
}

#[derive(Clone, Debug)]
pub enum Command {
    /// A session with a peer stands.
    LinkUp(Peer),
    /// It ended, or the peer could not be dialled.
    LinkDown(NodeId),
    /// The layers above want to know when one of these dies.
    Watch(Set<NodeId>),
    /// It did not do what it should have done by now.
    Doubt(NodeId),
    /// Leave all groups, then the ring; [`overlay::Event::Left`] follows.
    Leave,
    /// For the ring of the community: to begin, to look up, to tell all.
    Overlay(overlay::Command),
    Group(group::Command),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What the ring of the community says; whom to watch and whom it doubts stays here.
    Overlay(overlay::Event),
    Suspect(NodeId),
    /// A suspect lives after all.
    Refuted(NodeId),
    Dead(NodeId),
    /// A question to whoever keeps the directory of groups.
    Directory {
        call: u32,
        key: Key,
        ask: DirectoryAsk,
    },
    /// How a command to the groups ended.
    Answer {
        call: u32,
        answer: group::Answer,
    },
    /// Whether this node is what a message to one member of a group is for:
    /// [`group::Command::Judged`] follows.
    Judge {
        gid: group::GroupId,
        token: group::Token,
    },
    /// Somebody said something in a group.
    Deliver {
        name: alloc::string::String,
        from: NodeId,
        body: Vec<u8>,
    },
}

/// What one of the components is to handle next, or what is to be said when those before are done.
enum Work {
    Overlay(Input<Overlay>),
    Detector(Input<Detector>),
    Groups(Input<Groups>),
    Say(Event),
}

/// First in, first out.
type Queue = VecDeque<Work>;

pub struct Connectivity {
    detector: Detector,
    overlay: Overlay,
    groups: Groups,
    /// Neighbours on the ring of the community, watched closely.
    near: Set<NodeId>,
    /// Whom the groups want watched, and whom the layers above.
    of_groups: Set<NodeId>,
    of_above: Set<NodeId>,
}

impl Component for Connectivity {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        let mut queue = Queue::new();
        match input {
            Input::Command(command) => self.on_command(command, &mut queue),
            Input::Message { from, msg } => {
                // Whatever it says, it lives; that comes first.
                if from != self.ring().me().id && !matches!(msg, Msg::Group(_)) {
                    queue.push_back(heard(from));
                    self.work_off(&mut queue, cx);
                }
                queue.push_back(match msg {
                    Msg::Overlay(msg) => Work::Overlay(Input::Message { from, msg }),
                    Msg::Detect(msg) => Work::Detector(Input::Message { from, msg }),
                    Msg::Group(msg) => Work::Groups(Input::Message { from, msg }),
                });
            }
            Input::Timer(timer) => queue.push_back(match timer {
                Timer::Overlay(timer) => Work::Overlay(Input::Timer(timer)),
                Timer::Detect(timer) => Work::Detector(Input::Timer(timer)),
                Timer::Group(timer) => Work::Groups(Input::Timer(timer)),
            }),
        }
        self.work_off(&mut queue, cx);
    }
}

const fn heard(from: NodeId) -> Work {
    Work::Detector(Input::Command(detector::Command::Heard(from)))
}

impl From<Overlay> for Connectivity {
    fn from(overlay: Overlay) -> Self {
        Self {
            groups: Groups::new(overlay.ring().me().clone()),
            detector: Detector::default(),
            overlay,
            near: Set::new(),
            of_groups: Set::new(),
            of_above: Set::new(),
        }
    }
}

impl Connectivity {
    #[must_use]
    pub fn new(me: Peer) -> Self {
        Self::from(Overlay::new(me))
    }

    /// Around a ring that was not entered yet.
    #[must_use]
    pub fn with_ring(ring: Ring) -> Self {
        Self::from(Overlay::with_ring(ring))
    }

    /// In a ring that stands, for simulations and tests: [`Overlay::planted`].
    #[must_use]
    pub fn planted(me: Peer, pred: Peer, succs: Vec<Peer>, owner: impl Fn(Key) -> Peer) -> Self {
        Self::from(Overlay::planted(me, pred, succs, owner))
    }

    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    #[must_use]
    pub const fn detector(&self) -> &Detector {
        &self.detector
    }

    #[must_use]
    pub const fn groups(&self) -> &Groups {
        &self.groups
    }

    #[must_use]
    pub const fn ring(&self) -> &Ring {
        self.overlay.ring()
    }

    #[must_use]
    pub const fn table(&self) -> &Table {
        self.overlay.table()
    }

    /// Where this node can be dialled now; others learn it from its next sessions.
    pub fn set_addrs(&mut self, addrs: Addrs) {
        self.groups.set_addrs(addrs.clone());
        self.overlay.set_addrs(addrs);
    }

    /// What happened how often.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.overlay.counters().chain(self.groups.counters())
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        self.overlay.sizes().chain(self.detector.sizes()).chain(self.groups.sizes())
    }

    fn on_command(&mut self, command: Command, queue: &mut Queue) {
        use detector::Command as D;
        use group::Command as G;
        use overlay::Command as O;
        match command {
            Command::LinkUp(peer) => {
                queue.push_back(heard(peer.id));
                queue.push_back(Work::Overlay(Input::Command(O::LinkUp(peer.clone()))));
                queue.push_back(Work::Groups(Input::Command(G::LinkUp(peer))));
            }
            Command::LinkDown(id) => {
                queue.push_back(Work::Detector(Input::Command(D::LinkDown(id))));
                queue.push_back(Work::Overlay(Input::Command(O::LinkDown(id))));
                queue.push_back(Work::Groups(Input::Command(G::LinkDown(id))));
            }
            Command::Watch(set) => {
                self.of_above = set;
                self.count_on(queue);
            }
            Command::Doubt(id) => queue.push_back(Work::Detector(Input::Command(D::Doubt(id)))),
            Command::Leave => {
                queue.push_back(Work::Groups(Input::Command(G::Depart)));
                queue.push_back(Work::Overlay(Input::Command(O::Leave)));
            }
            Command::Overlay(command) => queue.push_back(Work::Overlay(Input::Command(command))),
            Command::Group(command) => queue.push_back(Work::Groups(Input::Command(command))),
        }
    }

    fn work_off(&mut self, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        while let Some(work) = queue.pop_front() {
            match work {
                Work::Overlay(input) => self.feed_overlay(input, queue, cx),
                Work::Detector(input) => self.feed_detector(input, queue, cx),
                Work::Groups(input) => self.feed_groups(input, queue, cx),
                Work::Say(event) => cx.emit(event),
            }
        }
    }

    /// Whom the groups or the layers above count on, this node not among them.
    fn far(&self) -> Set<NodeId> {
        let mut far: Set<NodeId> = self.of_groups.iter().chain(&self.of_above).copied().collect();
        far.remove(&self.ring().me().id);
        far
    }

    /// That changed.
    fn count_on(&self, queue: &mut Queue) {
        let remembered = overlay::Command::Remembered(self.far());
        queue.push_back(Work::Overlay(Input::Command(remembered)));
        self.watch(queue);
    }

    /// Neighbours closely, the others as well as others watch them, too.
    fn watch(&self, queue: &mut Queue) {
        let watch = detector::Command::Watch { near: self.near.clone(), far: self.far() };
        queue.push_back(Work::Detector(Input::Command(watch)));
    }

    fn feed_overlay(&mut self, input: Input<Overlay>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        for event in cx.child(&mut self.overlay, input, Msg::Overlay, Timer::Overlay) {
            match event {
                overlay::Event::Watch(near) => {
                    self.near = near;
                    self.watch(queue);
                }
                overlay::Event::Doubt(id) => {
                    queue.push_back(Work::Detector(Input::Command(detector::Command::Doubt(id))));
                }
                event => cx.emit(Event::Overlay(event)),
            }
        }
    }

    fn feed_detector(&mut self, input: Input<Detector>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use overlay::Command as O;
        for event in cx.child(&mut self.detector, input, Msg::Detect, Timer::Detect) {
            let (command, said) = match event {
                detector::Event::Suspect(id) => (O::Suspect(id), Event::Suspect(id)),
                detector::Event::Refuted(id) => (O::Refuted(id), Event::Refuted(id)),
                detector::Event::Dead(id) => (O::Dead(id), Event::Dead(id)),
            };
            queue.push_back(Work::Overlay(Input::Command(command)));
            queue.push_back(Work::Say(said));
            if let detector::Event::Dead(id) = event {
                queue.push_back(Work::Groups(Input::Command(group::Command::Dead(id))));
            }
        }
    }

    fn feed_groups(&mut self, input: Input<Groups>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use group::Event as E;
        for event in cx.child(&mut self.groups, input, Msg::Group, Timer::Group) {
            match event {
                E::Directory { call, key, ask } => cx.emit(Event::Directory { call, key, ask }),
                E::Answer { call, answer } => cx.emit(Event::Answer { call, answer }),
                E::Deliver { name, from, body } => cx.emit(Event::Deliver { name, from, body }),
                E::Judge { gid, token } => cx.emit(Event::Judge { gid, token }),
                E::Watch(set) => {
                    self.of_groups = set;
                    self.count_on(queue);
                }
                E::Contact(peer) => {
                    let learn = overlay::Command::Learn(peer);
                    queue.push_back(Work::Overlay(Input::Command(learn)));
                }
                E::Doubt(id) => {
                    queue.push_back(Work::Detector(Input::Command(detector::Command::Doubt(id))));
                }
            }
        }
    }
}
