//! The whole node as one component: the paper's layers, one `handle`.
//!
//! Data goes one way round: an [`Input`] enters at the layer it belongs to, what that layer has to
//! tell goes up as its events, and everything that must happen outside leaves as [`Effect`]s.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod api;
mod asked;
mod casts;
mod groups;
mod kinds;
mod known;
mod views;

pub use api::*;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_collective as collective;
use dugnad_collective::Collective;
use dugnad_collective::persistence::record::Record;
use dugnad_collective::persistence::store::Place;
use dugnad_connectivity as connectivity;
use dugnad_connectivity::{Overlay, group};
use dugnad_fabric::Ceilings;
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, Component, Cx, Effect, Hash, Input, Key, NodeId, Peer};
use dugnad_resource::describe::{Profile, clip_name};
use dugnad_resource::execute::{Order, ReplicaId, Run, ToHost, ToManager};
use dugnad_resource::executor::{self, Executor};
use dugnad_resource::spec::valid_name;
use serde::{Deserialize, Serialize};

use asked::Asked;
use groups::GroupState;
use known::Deferred;

/// Everything one node can say to another. The position of a variant is its number on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Overlay(connectivity::Msg),
    Collective(collective::Msg),
    ToHost(ToHost),
    ToManager(ToManager),
    Group(group::Msg),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Overlay(connectivity::Timer),
    Collective(collective::Timer),
    Executor(executor::Timer),
    Group(group::Timer),
    /// Try once more to take up a kept membership.
    Rejoin {
        name: String,
    },
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub me: Peer,
    pub profile: Profile,
    pub ceilings: Ceilings,
    /// [`program_hash`] of every program of the host a service may ask for, sorted.
    pub programs: Vec<u32>,
}

/// Calls and tokens of the executor carry this bit, so that answers find their layer.
const EXECUTOR_CALL: u32 = 1 << 31;
const EXECUTOR_TOKEN: u64 = 1 << 63;
/// Names of nodes that are remembered for people.
const NAMES_MAX: usize = 512;
/// Services with a TCP port of their own that are remembered.
const PORTS_MAX: usize = 256;

pub struct Node {
    overlay: Overlay,
    executor: Executor,
    collective: Collective,
    groups: GroupState,
    profile: Profile,
    programs: Vec<u32>,
    started: Option<dugnad_kernel::Time>,
    range: Option<Arc>,
    /// Services whose manager the executor looks for, by call.
    finding: Map<u32, Key>,
    /// Run records on their way to the disk, by token.
    keeping: Map<u64, ReplicaId>,
    next: u32,
    deferred: Deferred,
    asked: Asked,
    ports: Map<String, u16>,
    names: Map<NodeId, String>,
    malformed_records: u64,
    kept_state: Set<Hash>,
    /// Whether [`Event::HandedOver`] was said.
    told_handed_over: bool,
}

impl Component for Node {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        let me = self.overlay.ring().me().id;
        let mut inputs = VecDeque::from([input]);
        // What the node says to itself takes the same way as what others say, at once.
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.step(input, &mut Cx::new(cx.now, cx.rng, &mut effects));
            // Addresses first: the driver must know them before it sends.
            let is_contact = |e: &Effect<Self>| matches!(e, Effect::Emit(Event::Contact(_)));
            effects.sort_by_key(|effect| !is_contact(effect));
            let mut effects = VecDeque::from(effects);
            while let Some(effect) = effects.pop_front() {
                match effect {
                    Effect::Send { to, msg } if to == me => {
                        inputs.push_back(Input::Message { from: me, msg });
                    }
                    Effect::Send { to, msg } if self.may_send(to, &msg) => cx.send(to, msg),
                    Effect::Send { to, msg } => {
                        let mut more = Vec::new();
                        self.send_later(to, msg, &mut Cx::new(cx.now, cx.rng, &mut more));
                        effects.extend(more);
                    }
                    Effect::After { delay, timer } => cx.after(delay, timer),
                    Effect::Emit(event) => cx.emit(event),
                }
            }
        }
    }
}

impl Node {
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (me, profile) = (config.me, config.profile);
        let executor = Executor::new(me.id, profile.name.clone(), profile.arch, config.ceilings);
        Self {
            collective: Collective::new(me.id),
            groups: GroupState::new(me.clone()),
            overlay: Overlay::new(me),
            executor,
            profile,
            programs: config.programs,
            started: None,
            range: None,
            finding: Map::new(),
            keeping: Map::new(),
            next: 0,
            deferred: Deferred::default(),
            asked: Asked::default(),
            ports: Map::new(),
            names: Map::new(),
            malformed_records: 0,
            kept_state: Set::new(),
            told_handed_over: false,
        }
    }

    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    #[must_use]
    pub const fn collective(&self) -> &Collective {
        &self.collective
    }

    #[must_use]
    pub const fn groups(&self) -> &group::Groups {
        &self.groups.groups
    }

    #[must_use]
    pub const fn executor(&self) -> &Executor {
        &self.executor
    }

    #[must_use]
    pub const fn arch(&self) -> dugnad_resource::spec::Arch {
        self.profile.arch
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> + '_ {
        let own = [
            ("asked", self.asked.len(), asked::ASKED_MAX),
            ("names", self.names.len(), NAMES_MAX),
            ("ports", self.ports.len(), PORTS_MAX),
            ("managers_sought", self.finding.len(), executor::REPLICAS_MAX),
            ("runs_written", self.keeping.len(), 2 * executor::REPLICAS_MAX),
        ];
        let layers = self.overlay.sizes().chain(self.collective.sizes());
        own.into_iter().chain(layers).chain(self.executor.sizes()).chain(self.groups.sizes())
    }

    fn step(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Overlay(msg) => self.feed_overlay(Input::Message { from, msg }, cx),
                Msg::Collective(msg) => self.feed_collective(Input::Message { from, msg }, cx),
                Msg::ToManager(msg) => {
                    self.community(collective::Command::ToManager { from, msg }, cx);
                }
                Msg::ToHost(msg) => self.tell_host(from, msg, cx),
                Msg::Group(msg) => self.feed_groups(Input::Message { from, msg }, cx),
            },
            Input::Timer(Timer::Overlay(timer)) => self.feed_overlay(Input::Timer(timer), cx),
            Input::Timer(Timer::Collective(timer)) => self.feed_collective(Input::Timer(timer), cx),
            Input::Timer(Timer::Executor(timer)) => self.feed_executor(Input::Timer(timer), cx),
            Input::Timer(Timer::Group(timer)) => self.feed_groups(Input::Timer(timer), cx),
            Input::Timer(Timer::Rejoin { name }) => self.rejoin_group(name, cx),
        }
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Boot { records, trees, alone } => self.boot(records, trees, alone, cx),
            Command::LinkUp(peer) => {
                self.community(collective::Command::LinkUp(peer.id), cx);
                self.ring(connectivity::Command::LinkUp(peer.clone()), cx);
                self.feed_groups(Input::Command(group::Command::LinkUp(peer)), cx);
            }
            Command::LinkDown(id) => {
                self.ring(connectivity::Command::LinkDown(id), cx);
                self.community(collective::Command::LinkDown(id), cx);
                self.feed_groups(Input::Command(group::Command::LinkDown(id)), cx);
            }
            Command::Persisted(token) if token & EXECUTOR_TOKEN != 0 => {
                if let Some(id) = self.keeping.remove(&token) {
                    self.host(executor::Command::Persisted(id), cx);
                }
            }
            Command::Persisted(token) => {
                self.community(collective::Command::Persisted(token), cx);
            }
            Command::NotPersisted(token) if token & EXECUTOR_TOKEN != 0 => {
                if let Some(id) = self.keeping.remove(&token) {
                    self.host(executor::Command::NotPersisted(id), cx);
                }
            }
            Command::NotPersisted(token) => {
                self.community(collective::Command::NotPersisted(token), cx);
            }
            Command::Host(report) => {
                self.community(collective::Command::Report(report.clone()), cx);
                self.host(executor::Command::Report(report), cx);
            }
            Command::Ask(ask, question) => match views::question(question) {
                Ok(question) => self.community(collective::Command::Ask { ask, question }, cx),
                Err(own) => self.on_own_question(ask, own, cx),
            },
            Command::Limits { ceilings, takes_work } => {
                self.host(executor::Command::Limits { ceilings, takes_work }, cx);
            }
            Command::KeptState(kept) => self.kept_state = kept,
            Command::Addresses { addrs, home } => {
                self.profile.home = home;
                self.groups.groups.set_addrs(addrs.clone());
                self.overlay.set_addrs(addrs);
            }
            Command::HandOver(leaving) => {
                self.told_handed_over = false;
                self.host(executor::Command::HandOver(leaving), cx);
            }
            Command::Leave => {
                self.host(executor::Command::Ending, cx);
                self.community(collective::Command::Ending, cx);
                self.feed_groups(Input::Command(group::Command::Depart), cx);
                self.ring(connectivity::Command::Leave, cx);
            }
        }
    }

    /// Local services first: they need no network.
    fn boot(
        &mut self,
        records: Vec<(Vec<u8>, Vec<u8>)>,
        trees: Vec<dugnad_resource::spec::Tree>,
        alone: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        self.started = Some(cx.now);
        let (mut runs, mut stored) = (Vec::new(), Vec::new());
        for (key, value) in records {
            let taken = match key.first() {
                Some(b'x') => postcard::from_bytes::<Run>(&value).map(|run| runs.push(run)),
                Some(b'r') => postcard::from_bytes::<Record>(&value).map(|r| stored.push(r)),
                Some(b'g') if self.groups.restore(&key) => Ok(()),
                _ => Err(postcard::Error::DeserializeBadEncoding),
            };
            if taken.is_err() {
                self.malformed_records += 1;
            }
        }
        self.host(executor::Command::Restore(runs), cx);
        let lived = self.overlay.ring().me().inc > 1;
        self.community(collective::Command::Restore { records: stored, lived }, cx);
        self.community(collective::Command::Trees(trees), cx);
        self.ring(connectivity::Command::Boot { alone }, cx);
    }

    fn tell_host(&mut self, from: NodeId, msg: ToHost, cx: &mut Cx<'_, Self>) {
        let mut effects = Vec::new();
        let mut inner = Cx::new(cx.now, cx.rng, &mut effects);
        self.executor.on_message(from, msg, &mut inner);
        self.executor_effects(effects, cx);
    }

    fn host(&mut self, command: executor::Command, cx: &mut Cx<'_, Self>) {
        self.feed_executor(Input::Command(command), cx);
    }

    fn feed_executor(&mut self, input: Input<Executor>, cx: &mut Cx<'_, Self>) {
        let mut effects = Vec::new();
        self.executor.handle(input, &mut Cx::new(cx.now, cx.rng, &mut effects));
        self.executor_effects(effects, cx);
    }

    fn executor_effects(&mut self, effects: Vec<Effect<Executor>>, cx: &mut Cx<'_, Self>) {
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => cx.send(to, Msg::ToManager(msg)),
                Effect::After { delay, timer } => cx.after(delay, Timer::Executor(timer)),
                Effect::Emit(executor::Event::Order(order)) => self.order_known(order, cx),
                Effect::Emit(executor::Event::Keep(run)) => {
                    self.next = self.next.wrapping_add(1);
                    let token = EXECUTOR_TOKEN | u64::from(self.next);
                    self.keeping.insert(token, run.id);
                    let value = postcard::to_allocvec(&run).ok();
                    let writes = Vec::from([(run_key(run.id), value)]);
                    cx.emit(Event::Persist { token, writes });
                }
                Effect::Emit(executor::Event::Forget(id)) => {
                    self.next = self.next.wrapping_add(1);
                    let token = EXECUTOR_TOKEN | u64::from(self.next);
                    let writes = Vec::from([(run_key(id), None)]);
                    cx.emit(Event::Persist { token, writes });
                }
                Effect::Emit(executor::Event::FindManager(service)) => {
                    if self.finding.values().any(|known| *known == service) {
                        continue;
                    }
                    self.next = self.next.wrapping_add(1);
                    let call = EXECUTOR_CALL | (self.next & !EXECUTOR_CALL);
                    self.finding.insert(call, service);
                    self.ring(connectivity::Command::Lookup { call, key: service }, cx);
                }
            }
        }
        self.tell_handed_over(cx);
    }

    fn tell_handed_over(&mut self, cx: &mut Cx<'_, Self>) {
        let over = self.executor.handing_over() && self.executor.replicas().next().is_none();
        if over && !core::mem::replace(&mut self.told_handed_over, true) {
            cx.emit(Event::HandedOver);
        }
    }

    fn ring(&mut self, command: connectivity::Command, cx: &mut Cx<'_, Self>) {
        self.feed_overlay(Input::Command(command), cx);
    }

    fn feed_overlay(&mut self, input: Input<Overlay>, cx: &mut Cx<'_, Self>) {
        for event in cx.child(&mut self.overlay, input, Msg::Overlay, Timer::Overlay) {
            self.on_overlay_event(event, cx);
        }
    }

    fn on_overlay_event(&mut self, event: connectivity::Event, cx: &mut Cx<'_, Self>) {
        match event {
            connectivity::Event::Contact(peer) => cx.emit(Event::Contact(peer)),
            connectivity::Event::Joined => self.on_joined(cx),
            connectivity::Event::RangeChanged | connectivity::Event::NeighboursChanged => {
                self.place_changed(cx);
            }
            connectivity::Event::Found { call, .. } if self.deferred.waits_for(call) => {
                self.on_address_found(call, cx);
            }
            connectivity::Event::Found { call, found } if self.asked.waits_for(call) => {
                self.on_asked_found(call, found, cx);
            }
            connectivity::Event::Found { call, found } if call & EXECUTOR_CALL != 0 => {
                if let Some(service) = self.finding.remove(&call) {
                    let manager = found.map(|found| found.owner.id);
                    self.host(executor::Command::Manager { service, manager }, cx);
                }
            }
            connectivity::Event::Found { call, found } => {
                self.community(collective::Command::Found { call, found }, cx);
            }
            connectivity::Event::Cast { id, body, feedback } => {
                let part = self.on_cast(&body, cx);
                if feedback {
                    self.ring(connectivity::Command::AnswerCast { id, part }, cx);
                }
            }
            connectivity::Event::Feedback { call, feedback } => {
                let (parts, complete) = (feedback.parts, feedback.complete);
                self.community(collective::Command::Feedback { call, parts, complete }, cx);
            }
            connectivity::Event::Suspect(_)
            | connectivity::Event::Refuted(_)
            | connectivity::Event::Bulk { .. } => {}
            connectivity::Event::Dead(id) => self.on_dead(id, cx),
            connectivity::Event::Restarted(id) => {
                self.place_changed(cx);
                self.host(executor::Command::Dead(id), cx);
                self.community(collective::Command::Restarted(id), cx);
            }
            connectivity::Event::Left => cx.emit(Event::Left),
            connectivity::Event::Doubt(_) => {}
        }
    }

    fn on_joined(&mut self, cx: &mut Cx<'_, Self>) {
        self.place_changed(cx);
        self.rejoin_groups(cx);
        self.host(executor::Command::Joined, cx);
        if self.overlay.ring().alone() {
            return;
        }
        let text = alloc::format!("{} joined", self.profile.name);
        self.announce(None, text, cx);
        let question = collective::deployment::client::ClientQuestion::Ports;
        self.community(collective::Command::Ask { ask: views::PORTS_ASK, question }, cx);
    }

    /// Tells the collective layer what this node answers for now.
    fn place_changed(&mut self, cx: &mut Cx<'_, Self>) {
        let ring = self.overlay.ring();
        let (old, new) = (self.range, ring.claim());
        let gained = match (old, new) {
            (Some(old), Some(new)) if in_oo(new.lo, old.lo, new.hi) || new.lo == new.hi => {
                let gained = Arc::new(new.lo, old.lo);
                // With a hand-over the items come by themselves.
                (old.lo != new.lo && !ring.certain(old.lo, cx.now)).then_some(gained)
            }
            _ => None,
        };
        self.range = new;
        let place = Place { range: new, succs: ring.succs().to_vec(), size: self.overlay.size() };
        self.community(collective::Command::Place { place, gained }, cx);
    }

    fn on_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        // One voice is enough: the one that takes over.
        let ring = self.overlay.ring();
        if ring.pred().id == id || ring.owns(id) {
            let text = alloc::format!("{} is gone", self.name_of(id));
            self.announce(None, text, cx);
        }
        self.place_changed(cx);
        self.host(executor::Command::Dead(id), cx);
        self.community(collective::Command::Dead(id), cx);
        self.feed_groups(Input::Command(group::Command::Dead(id)), cx);
    }

    fn community(&mut self, command: collective::Command, cx: &mut Cx<'_, Self>) {
        self.feed_collective(Input::Command(command), cx);
    }

    fn feed_collective(&mut self, input: Input<Collective>, cx: &mut Cx<'_, Self>) {
        for event in cx.child(&mut self.collective, input, Msg::Collective, Timer::Collective) {
            match event {
                collective::Event::Lookup { call, key } => {
                    self.ring(connectivity::Command::Lookup { call, key }, cx);
                }
                collective::Event::Cast { call, body, feedback } => {
                    self.cast(call, body, feedback, cx);
                }
                collective::Event::Persist { token, writes } => {
                    cx.emit(Event::Persist { token, writes });
                }
                collective::Event::Order(order) => self.on_order(order, cx),
                collective::Event::ToHost { to, msg } => cx.send(to, Msg::ToHost(msg)),
                collective::Event::Watch(set) => {
                    self.groups.watched_above = set;
                    self.watch_all(cx);
                }
                collective::Event::Directory { call, answer } => {
                    let command = group::Command::Directory { call, answer };
                    self.feed_groups(Input::Command(command), cx);
                }
                collective::Event::Answer { ask, reply } => self.on_reply(ask, reply, cx),
            }
        }
    }

    fn on_order(&mut self, order: Order, cx: &mut Cx<'_, Self>) {
        if let Order::Drop { tree } = &order {
            // Something that runs here still needs it.
            if self.executor.packages().any(|package| package == *tree) {
                return;
            }
        }
        self.order_known(order, cx);
    }

    fn name_of(&self, id: NodeId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| alloc::format!("{}", id.short()))
    }

    fn remember_name(&mut self, id: NodeId, name: &str) {
        if self.names.len() < NAMES_MAX || self.names.contains_key(&id) {
            self.names.insert(id, clip_name(name));
        }
    }

    /// `None` forgets the port of a service.
    fn remember_port(&mut self, name: String, port: Option<u16>) {
        let known = self.ports.contains_key(&name);
        match port {
            Some(port) if known || (self.ports.len() < PORTS_MAX && valid_name(&name).is_ok()) => {
                self.ports.insert(name, port);
            }
            Some(_) => {}
            None => {
                self.ports.remove(&name);
            }
        }
    }
}

/// Key on disk of what runs here: `x`, the service, the number.
fn run_key(id: ReplicaId) -> Vec<u8> {
    let mut key = Vec::from([b'x']);
    key.extend_from_slice(&id.service.0.to_be_bytes());
    key.extend_from_slice(&id.number.to_be_bytes());
    key
}

/// How a program of the host is known in [`Config::programs`].
#[must_use]
pub fn program_hash(path: &str) -> u32 {
    let hash = dugnad_kernel::Hash::of(path.as_bytes()).0;
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}
