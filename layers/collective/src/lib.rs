//! Collective (paper 3.4): what the community does together.
//!
//! [`Collective`] composes and decides nothing: each component has its own state, messages and
//! timers, and asks the others through the events that are passed on here. A new component is one
//! field, one variant of [`Msg`] and one of [`Timer`], and nothing in its siblings.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod api;
pub mod cast;
pub mod deployment;
pub mod linear;
pub mod objects;
pub mod packages;
pub mod persistence;
#[cfg(test)]
mod played;
pub mod position;
pub mod prospector;
pub mod pubsub;
mod queue;

use alloc::vec::Vec;
use core::cell::Ref;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::DirectoryAnswer;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Cx, Input, Key, NodeId};
use dugnad_resource::execute::TERM_STEP;
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};

pub use api::{Command, Event, Seeker};
use cast::CastBody;
use deployment::Deployment;
use deployment::manager::Manager;
use deployment::service::ServiceView;
use linear::Linear;
use objects::Objects;
use objects::siblings::Siblings;
use objects::sums::NodeSums;
use packages::Packages;
use persistence::record::COUNTER_STEP;
use persistence::store::Store;
use persistence::{Answer, Persistence, Question, Versions};
use prospector::Prospector;
use pubsub::PubSub;
use queue::{Give, Queue, Work, feedback, found, gone, link_down, moved};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Persistence(persistence::Msg),
    Packages(packages::Msg),
    Deployment(deployment::Msg),
    Objects(objects::Msg),
    Linear(linear::Msg),
    PubSub(pubsub::Msg),
    Prospector(prospector::Msg),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Persistence(persistence::Timer),
    Packages(packages::Timer),
    Deployment(deployment::Timer),
    Objects(objects::Timer),
    Linear(linear::Timer),
    Prospector(prospector::Timer),
    PubSub(pubsub::Timer),
}

/// Who asked the persistence module, or the packages, and waits.
#[derive(Clone, Copy, Debug)]
enum Caller {
    Packages(CallId),
    Deployment(CallId),
    Objects(CallId),
    PubSub(CallId),
    /// The groups of the layer below.
    Groups(u32),
}

/// How the versions of records of this name grow; `None` if the components here write no such
/// records.
fn versions_of(name: &[u8]) -> Option<Versions> {
    use deployment::manager::reconcile::TERM_SHIFT;
    use deployment::service::{FAILED, PLAN, PREVIOUS, SPEC};
    use objects::item::{NAMESPACE, OBJECT};
    if name == PLAN {
        // Each term has versions of its own.
        return Some(Versions::Counted { step: TERM_STEP << TERM_SHIFT });
    }
    if name == OBJECT {
        return Some(Versions::Stamped);
    }
    let known = [SPEC, PREVIOUS, FAILED, NAMESPACE, persistence::directory::GROUP].contains(&name)
        || packages::is_name(name)
        || Siblings::node(name).is_some();
    known.then_some(Versions::Counted { step: COUNTER_STEP })
}

pub struct Collective {
    persistence: Persistence,
    packages: Packages,
    deployment: Deployment,
    objects: Objects,
    linear: Linear,
    prospector: Prospector,
    pubsub: PubSub,
    /// Questions of one component to another that are not answered yet.
    asked: Map<u32, Caller>,
    next: u32,
}

impl Component for Collective {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        let mut queue = Queue::new();
        match input {
            Input::Command(command) => self.on_command(command, &mut queue),
            Input::Message { from, msg } => {
                self.deployment.heard(from);
                queue.push_back(match msg {
                    Msg::Persistence(msg) => Work::Persistence(Input::Message { from, msg }),
                    Msg::Packages(msg) => Work::Packages(Input::Message { from, msg }),
                    Msg::Deployment(msg) => Work::Deployment(Input::Message { from, msg }),
                    Msg::Objects(msg) => Work::Objects(Input::Message { from, msg }),
                    Msg::Linear(msg) => Work::Linear(Input::Message { from, msg }),
                    Msg::PubSub(msg) => Work::PubSub(Input::Message { from, msg }),
                    Msg::Prospector(msg) => Work::Prospector(Input::Message { from, msg }),
                });
            }
            Input::Timer(timer) => queue.push_back(match timer {
                Timer::Persistence(timer) => Work::Persistence(Input::Timer(timer)),
                Timer::Packages(timer) => Work::Packages(Input::Timer(timer)),
                Timer::Deployment(timer) => Work::Deployment(Input::Timer(timer)),
                Timer::Objects(timer) => Work::Objects(Input::Timer(timer)),
                Timer::Linear(timer) => Work::Linear(Input::Timer(timer)),
                Timer::Prospector(timer) => Work::Prospector(Input::Timer(timer)),
                Timer::PubSub(timer) => Work::PubSub(Input::Timer(timer)),
            }),
        }
        while let Some(work) = queue.pop_front() {
            match work {
                Work::Persistence(input) => self.feed_persistence(input, &mut queue, cx),
                Work::Packages(input) => self.feed_packages(input, &mut queue, cx),
                Work::Deployment(input) => self.feed_deployment(input, &mut queue, cx),
                Work::Objects(input) => self.feed_objects(input, &mut queue, cx),
                Work::Linear(input) => self.feed_linear(input, &mut queue, cx),
                Work::Prospector(input) => self.feed_prospector(input, cx),
                Work::PubSub(input) => self.feed_pubsub(input, &mut queue, cx),
            }
        }
    }
}

impl Collective {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        let persistence = Persistence::new(me, versions_of);
        let records = persistence.records();
        let linear = Linear::new(me);
        Self {
            packages: Packages::new(me, records.clone()),
            deployment: Deployment::new(me, records.clone()),
            objects: Objects::new(me, records, linear.registers()),
            linear,
            prospector: Prospector::default(),
            pubsub: PubSub::new(me),
            persistence,
            asked: Map::new(),
            next: 0,
        }
    }

    #[must_use]
    pub fn store(&self) -> Ref<'_, Store> {
        self.persistence.records.read()
    }

    /// The trees kept here.
    #[must_use]
    pub const fn trees(&self) -> &Set<Tree> {
        self.packages.trees()
    }

    pub fn managers(&self) -> impl Iterator<Item = (&Key, &Manager)> {
        self.deployment.managers()
    }

    /// What this node manages, as it says it in a broadcast.
    #[must_use]
    pub fn views(&self) -> Vec<ServiceView> {
        self.deployment.views()
    }

    /// What this node keeps, of one namespace or of all, without its name and what it gives.
    #[must_use]
    pub fn sums(&self, namespace: Option<&str>) -> NodeSums {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let store = self.store();
        let trees = self.packages.trees();
        NodeSums {
            records: count(store.len()),
            record_bytes: store.bytes() as u64,
            trees: count(trees.len()),
            tree_bytes: trees.iter().map(|tree| tree.bytes).sum(),
            missing: count(self.packages.missing()),
            uncompared: count(self.persistence.uncompared()),
            ..self.objects.sums(namespace)
        }
    }

    /// What happened how often; a name may come more than once.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let own = self.persistence.counters().chain(self.packages.counters());
        own.chain(self.deployment.counters())
            .chain(self.objects.counters())
            .chain(self.linear.counters())
            .chain(self.prospector.counters())
            .chain(self.pubsub.counters())
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let most = packages::OPS_MAX
            + deployment::OPS_MAX
            + persistence::OPS_MAX
            + objects::OPS_MAX
            + linear::WAITING_MAX
            + pubsub::OPS_MAX;
        let own = [("asked_inside", self.asked.len(), most)].into_iter();
        let parts = self.persistence.sizes().chain(self.packages.sizes());
        own.chain(parts)
            .chain(self.deployment.sizes())
            .chain(self.objects.sizes())
            .chain(self.linear.sizes())
            .chain(self.prospector.sizes())
            .chain(self.pubsub.sizes())
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        let own = self.persistence.operations().chain(self.packages.operations());
        own.chain(self.deployment.operations())
            .chain(self.objects.operations())
            .chain(self.linear.operations())
            .chain(self.prospector.operations())
            .chain(self.pubsub.operations())
    }

    fn on_command(&mut self, command: Command, queue: &mut Queue) {
        use deployment::Command as D;
        use linear::Command as L;
        use objects::Command as O;
        use packages::Command as K;
        use persistence::Command as P;
        use prospector::Command as S;
        use pubsub::Command as V;
        match command {
            Command::Restore { records, registers, trees, inc, alone } => {
                if inc > 1 {
                    queue.deploy(D::Lived);
                }
                queue.persist(P::Restore(records));
                queue.line(L::Restore { inc, alone, kept: registers });
                queue.package(K::Restore(trees));
            }
            Command::Clock(unix_ms) => {
                queue.persist(P::Clock(unix_ms));
                queue.object(O::Clock(unix_ms));
                queue.line(L::Clock(unix_ms));
                queue.event(V::Clock(unix_ms));
            }
            Command::Moved { position, gained } => moved(&position, gained, queue),
            Command::Found { seeker, owner } => found(seeker, owner, queue),
            Command::Feedback { seeker, parts, complete } => {
                feedback(seeker, parts, complete, queue);
            }
            Command::Persisted(token) => queue.persist(P::Persisted(token)),
            Command::NotPersisted(token) => queue.persist(P::NotPersisted(token)),
            Command::RegistersPersisted(token) => queue.line(L::Persisted(token)),
            Command::RegistersNotPersisted(token) => queue.line(L::NotPersisted(token)),
            Command::Views(views) => queue.line(L::Views(views)),
            Command::Report(report) => queue.package(K::Report(report)),
            Command::ToManager { from, msg } => queue.deploy(D::ToManager { from, msg }),
            Command::Dead(node) => {
                gone(node, queue);
                queue.deploy(D::Dead(node));
            }
            Command::Restarted(node) => {
                gone(node, queue);
                queue.deploy(D::Restarted(node));
            }
            Command::LinkUp(node) => queue.deploy(D::LinkUp(node)),
            Command::LinkDown(node) => link_down(node, queue),
            Command::Ask { ask, question } => queue.deploy(D::Ask { ask, question }),
            Command::Object { ask, question } => queue.object(O::Ask { ask, question }),
            Command::Prospect { ask, question } => queue.prospect(S::Ask { ask, question }),
            Command::Described { to, call, node } => {
                queue.prospect(S::Described { to, call, node });
            }
            Command::Events { ask, question } => queue.event(V::Ask { ask, question }),
            Command::Saw { name, attributes, of } => {
                queue.event(V::Saw { name, attributes, of });
            }
            Command::Directory { call, key, ask } => {
                self.ask(Some(Caller::Groups(call)), Question::Directory { key, ask }, queue);
            }
            Command::Ending => queue.deploy(D::Ending),
        }
    }

    fn called(&mut self, caller: Option<Caller>) -> u32 {
        self.next = self.next.wrapping_add(1);
        if let Some(caller) = caller {
            self.asked.insert(self.next, caller);
        }
        self.next
    }

    fn ask(&mut self, caller: Option<Caller>, question: Question, queue: &mut Queue) {
        let call = self.called(caller);
        queue.persist(persistence::Command::Ask { call, question });
    }

    fn feed_persistence(
        &mut self,
        input: Input<Persistence>,
        queue: &mut Queue,
        cx: &mut Cx<'_, Self>,
    ) {
        use persistence::Event as E;
        for event in cx.child(&mut self.persistence, input, Msg::Persistence, Timer::Persistence) {
            match event {
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::Persistence(call), key });
                }
                E::Persist { token, writes } => cx.emit(Event::Persist { token, writes }),
                E::Changed(name) => {
                    queue.package(packages::Command::Changed(name.clone()));
                    queue.object(objects::Command::Changed(name.clone()));
                    queue.deploy(deployment::Command::Changed(name));
                }
                E::Answer { call, answer } => self.on_answer(call, answer, queue, cx),
            }
        }
    }

    fn on_answer(&mut self, call: u32, answer: Answer, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        match self.asked.remove(&call) {
            Some(Caller::Packages(call)) => {
                queue.package(packages::Command::Records { call, answer });
            }
            Some(Caller::Deployment(call)) => {
                queue.deploy(deployment::Command::Records { call, answer });
            }
            Some(Caller::Objects(call)) => {
                queue.object(objects::Command::Records { call, answer });
            }
            Some(Caller::Groups(call)) => {
                let answer = match answer {
                    Answer::Directory(answer) => answer,
                    _ => DirectoryAnswer::Failed,
                };
                cx.emit(Event::Directory { call, answer });
            }
            // Nobody waits for it; events need no records.
            Some(Caller::PubSub(_)) | None => {}
        }
    }

    fn feed_packages(&mut self, input: Input<Packages>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use packages::Event as E;
        for event in cx.child(&mut self.packages, input, Msg::Packages, Timer::Packages) {
            match event {
                E::Order(order) => cx.emit(Event::Order(order)),
                E::Records { call, question } => {
                    self.ask(Some(Caller::Packages(call)), question, queue);
                }
                E::Answer { call, answer } => match self.asked.remove(&call) {
                    Some(Caller::Deployment(call)) => {
                        queue.deploy(deployment::Command::Packages { call, answer });
                    }
                    Some(Caller::Objects(call)) => {
                        queue.object(objects::Command::Packages { call, answer });
                    }
                    // Nobody else asks the packages.
                    Some(Caller::Packages(_) | Caller::PubSub(_) | Caller::Groups(_)) | None => {}
                },
            }
        }
    }

    fn feed_deployment(
        &mut self,
        input: Input<Deployment>,
        queue: &mut Queue,
        cx: &mut Cx<'_, Self>,
    ) {
        use deployment::Event as E;
        for event in cx.child(&mut self.deployment, input, Msg::Deployment, Timer::Deployment) {
            match event {
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::Deployment(call), key });
                }
                E::Cast { call, body } => {
                    let seeker = call.map(Seeker::Deployment);
                    cx.emit(Event::Cast { seeker, body, arc: None });
                }
                E::Records { call, question } => {
                    self.ask(call.map(Caller::Deployment), question, queue);
                }
                E::Packages { call, question } => {
                    let call = self.called(Some(Caller::Deployment(call)));
                    queue.package(packages::Command::Ask { call, question });
                }
                E::ToHost { to, msg } => cx.emit(Event::ToHost { to, msg }),
                E::Watch(nodes) => cx.emit(Event::Watch(nodes)),
                E::Saw { name, attributes } => {
                    queue.event(pubsub::Command::Saw { name, attributes, of: None });
                }
                E::Answer { ask, reply } => cx.emit(Event::Answer { ask, reply }),
            }
        }
    }

    fn feed_objects(&mut self, input: Input<Objects>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use objects::Event as E;
        for event in cx.child(&mut self.objects, input, Msg::Objects, Timer::Objects) {
            match event {
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::Objects(call), key });
                }
                E::Cast { call, body } => {
                    let seeker = Some(Seeker::Objects(call));
                    cx.emit(Event::Cast { seeker, body, arc: None });
                }
                E::Records { call, question } => {
                    self.ask(Some(Caller::Objects(call)), question, queue);
                }
                E::Packages { call, question } => {
                    let call = self.called(Some(Caller::Objects(call)));
                    queue.package(packages::Command::Ask { call, question });
                }
                E::Linear { call, question } => {
                    let call = self.called(Some(Caller::Objects(call)));
                    queue.line(linear::Command::Ask { call, question });
                }
                E::Answer { ask, answer } => cx.emit(Event::Object { ask, answer }),
                E::Changed { address, answer } => {
                    cx.emit(Event::ObjectChanged { address, answer });
                }
            }
        }
    }

    fn feed_linear(&mut self, input: Input<Linear>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use linear::Event as E;
        for event in cx.child(&mut self.linear, input, Msg::Linear, Timer::Linear) {
            match event {
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::Linear(call), key });
                }
                E::Persist { token, writes } => cx.emit(Event::PersistRegisters { token, writes }),
                E::Tell(views) => {
                    let body = CastBody::Views(views);
                    cx.emit(Event::Cast { seeker: None, body, arc: None });
                }
                E::Answer { call, answer } => match self.asked.remove(&call) {
                    Some(Caller::Objects(call)) => {
                        queue.object(objects::Command::Linear { call, answer });
                    }
                    Some(Caller::PubSub(call)) => {
                        queue.event(pubsub::Command::Linear { call, answer });
                    }
                    // Nobody else asks the registers.
                    _ => {}
                },
            }
        }
    }

    fn feed_prospector(&mut self, input: Input<Prospector>, cx: &mut Cx<'_, Self>) {
        use prospector::Event as E;
        for event in cx.child(&mut self.prospector, input, Msg::Prospector, Timer::Prospector) {
            match event {
                E::Cast { call, body, arc } => {
                    cx.emit(Event::Cast { seeker: Some(Seeker::Prospector(call)), body, arc });
                }
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::Prospector(call), key });
                }
                E::Met(peer) => cx.emit(Event::Met(peer)),
                E::Describe { to, call, condition } => {
                    cx.emit(Event::Describe { to, call, condition });
                }
                E::Answer { ask, answer } => cx.emit(Event::Prospect { ask, answer }),
            }
        }
    }

    fn feed_pubsub(&mut self, input: Input<PubSub>, queue: &mut Queue, cx: &mut Cx<'_, Self>) {
        use pubsub::Event as E;
        for event in cx.child(&mut self.pubsub, input, Msg::PubSub, Timer::PubSub) {
            match event {
                E::Lookup { call, key } => {
                    cx.emit(Event::Lookup { seeker: Seeker::PubSub(call), key });
                }
                E::Linear { call, question } => {
                    let call = self.called(Some(Caller::PubSub(call)));
                    queue.line(linear::Command::Ask { call, question });
                }
                E::Answer { ask, answer } => cx.emit(Event::Events { ask, answer }),
                E::Told { sub, told } => cx.emit(Event::Told { sub, told }),
                E::Lost { sub, name, count } => cx.emit(Event::Lost { sub, name, count }),
            }
        }
    }
}
