//! The whole node as one component: the paper's layers, one `handle`.
//!
//! Data goes one way round: an [`Input`] enters at the layer it belongs to, what that layer has to
//! tell goes up as its events, and everything that must happen outside leaves as [`Effect`]s.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod api;
mod asked;
mod casts;
pub mod disk;
mod groups;
mod kinds;
mod known;
pub mod life;
mod views;

pub use api::*;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_collective as collective;
use dugnad_collective::Collective;
use dugnad_collective::linear;
use dugnad_collective::persistence::record::Record;
use dugnad_collective::position::RingPosition;
use dugnad_connectivity as connectivity;
use dugnad_connectivity::overlay::{self, Overlay};
use dugnad_connectivity::{Connectivity, group};
use dugnad_fabric::Ceilings;
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, Component, Cx, Duration, Effect, Hash, Input, NodeId, Peer};
use dugnad_resource::describe::{Profile, clip_name};
use dugnad_resource::execute::{Order, Run, ToHost, ToManager};
use dugnad_resource::executor::{self, Executor};
use dugnad_resource::spec::{Port, valid_name};
use serde::{Deserialize, Serialize};

use asked::{Asked, Why, Writer};
use disk::{DiskKey, Kept};
use groups::GroupState;
use known::Deferred;

/// Everything one node can say to another. The position of a variant is its number on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Connectivity(connectivity::Msg),
    Collective(collective::Msg),
    ToHost(ToHost),
    ToManager(ToManager),
    /// To who begins anew: since when the sender saw it no more, in milliseconds since 1970.
    /// Nothing follows.
    Away {
        since: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Connectivity(connectivity::Timer),
    Collective(collective::Timer),
    Executor(executor::Timer),
    /// Write down that this node lives.
    Note {
        round: u32,
    },
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

/// Names of nodes that are remembered for people.
const NAMES_MAX: usize = 512;
/// Deaths that are remembered until somebody has said so, and how long.
const UNSAID_MAX: usize = 64;
const UNSAID: Duration = Duration::from_secs(60);
/// Services with a TCP port of their own that are remembered.
const PORTS_MAX: usize = 256;

pub struct Node {
    connectivity: Connectivity,
    executor: Executor,
    collective: Collective,
    groups: GroupState,
    profile: Profile,
    programs: Vec<u32>,
    started: Option<dugnad_kernel::Time>,
    range: Option<Arc>,
    deferred: Deferred,
    asked: Asked,
    ports: Map<String, Port>,
    names: Map<NodeId, String>,
    malformed_records: u64,
    kept_state: Set<Hash>,
    life: life::Life,
    /// Nodes that died, until somebody said so: with it whoever should have may have died.
    unsaid: Vec<(NodeId, dugnad_kernel::Time)>,
    /// Whether [`Event::HandedOver`] was said.
    told_handed_over: bool,
}

impl Component for Node {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        let me = self.connectivity.ring().me().id;
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
            groups: GroupState::default(),
            connectivity: Connectivity::new(me),
            executor,
            profile,
            programs: config.programs,
            started: None,
            range: None,
            deferred: Deferred::default(),
            asked: Asked::default(),
            ports: Map::new(),
            names: Map::new(),
            malformed_records: 0,
            kept_state: Set::new(),
            life: life::Life::default(),
            unsaid: Vec::new(),
            told_handed_over: false,
        }
    }

    #[must_use]
    pub const fn connectivity(&self) -> &Connectivity {
        &self.connectivity
    }

    /// The ring of the community.
    #[must_use]
    pub const fn overlay(&self) -> &Overlay {
        self.connectivity.overlay()
    }

    #[must_use]
    pub const fn collective(&self) -> &Collective {
        &self.collective
    }

    #[must_use]
    pub const fn groups(&self) -> &group::Groups {
        self.connectivity.groups()
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
            ("lookups", self.asked.calls(), asked::CALLS_MAX),
            ("writes", self.asked.writes(), asked::WRITES_MAX),
            ("names", self.names.len(), NAMES_MAX),
            ("ports", self.ports.len(), PORTS_MAX),
        ];
        let layers = self.connectivity.sizes().chain(self.collective.sizes());
        own.into_iter().chain(layers).chain(self.executor.sizes()).chain(self.groups.sizes())
    }

    fn step(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Connectivity(msg) => self.feed_connectivity(Input::Message { from, msg }, cx),
                Msg::Collective(msg) => self.feed_collective(Input::Message { from, msg }, cx),
                Msg::ToManager(msg) => {
                    self.community(collective::Command::ToManager { from, msg }, cx);
                }
                Msg::ToHost(msg) => self.tell_host(from, msg, cx),
                Msg::Away { since } => self.life.was_seen(since),
            },
            Input::Timer(Timer::Connectivity(timer)) => {
                self.feed_connectivity(Input::Timer(timer), cx);
            }
            Input::Timer(Timer::Collective(timer)) => self.feed_collective(Input::Timer(timer), cx),
            Input::Timer(Timer::Executor(timer)) => self.feed_executor(Input::Timer(timer), cx),
            Input::Timer(Timer::Note { round }) => self.on_note(round, cx),
            Input::Timer(Timer::Rejoin { name }) => self.rejoin_group(name, cx),
        }
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Boot { records, trees, alone } => self.boot(records, trees, alone, cx),
            Command::LinkUp(peer) => {
                self.life_back(&peer, cx);
                self.community(collective::Command::LinkUp(peer.id), cx);
                self.connect(connectivity::Command::LinkUp(peer), cx);
            }
            Command::LinkDown(id) => {
                self.life_lost(id, cx.now);
                self.connect(connectivity::Command::LinkDown(id), cx);
                self.community(collective::Command::LinkDown(id), cx);
            }
            Command::Persisted(token) => self.on_written(token, true, cx),
            Command::NotPersisted(token) => self.on_written(token, false, cx),
            Command::Host(report) => {
                self.community(collective::Command::Report(report.clone()), cx);
                self.host(executor::Command::Report(report), cx);
            }
            Command::Ask(ask, Question::Service(question)) => {
                self.community(collective::Command::Ask { ask, question }, cx);
            }
            Command::Ask(ask, Question::Object(question)) => {
                self.community(collective::Command::Object { ask, question }, cx);
            }
            Command::Ask(ask, Question::Prospect(question)) => {
                self.community(collective::Command::Prospect { ask, question }, cx);
            }
            Command::Ask(ask, Question::Events(question)) => {
                self.community(collective::Command::Events { ask, question }, cx);
            }
            Command::Ask(ask, Question::Group(question)) => self.ask_group(ask, question, cx),
            Command::Ask(ask, Question::Lookup(key)) => self.on_lookup(ask, key, cx),
            Command::Ask(ask, Question::Announce(text)) => self.on_announce(ask, &text, cx),
            Command::Limits { ceilings, takes_work } => {
                self.host(executor::Command::Limits { ceilings, takes_work }, cx);
                self.saw_self("node.change", cx);
            }
            Command::KeptState(kept) => self.kept_state = kept,
            Command::Labels(labels) => {
                self.profile.labels = labels;
                self.saw_self("node.change", cx);
            }
            Command::Clock(unix_ms) => {
                self.on_clock(unix_ms, cx);
                self.community(collective::Command::Clock(unix_ms), cx);
            }
            Command::Addresses { addrs, home } => {
                self.profile.home = home;
                self.connectivity.set_addrs(addrs);
            }
            Command::HandOver(leaving) => {
                self.told_handed_over = false;
                self.host(executor::Command::HandOver(leaving), cx);
            }
            Command::Load { service, manager, load } => {
                cx.send(manager, Msg::ToManager(ToManager::Load { service, load }));
            }
            Command::Leave => {
                self.saw_self("node.leave", cx);
                self.note_end(cx);
                self.host(executor::Command::Ending, cx);
                self.community(collective::Command::Ending, cx);
                self.connect(connectivity::Command::Leave, cx);
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
        let mut registers = linear::Kept::default();
        for (key, value) in records {
            let taken = match DiskKey::kind(&key) {
                Some(Kept::Run) => {
                    postcard::from_bytes::<Run>(&value).map(|run| runs.push(run)).is_ok()
                }
                Some(Kept::Record) => {
                    postcard::from_bytes::<Record>(&value).map(|r| stored.push(r)).is_ok()
                }
                Some(Kept::Membership(name)) => self.groups.restore(name),
                Some(Kept::Life) => {
                    postcard::from_bytes(&value).map(|noted| self.life.restore(noted)).is_ok()
                }
                Some(Kept::Member) => {
                    registers.member = postcard::from_bytes(&value).ok();
                    registers.member.is_some()
                }
                Some(Kept::View) => {
                    postcard::from_bytes(&value).map(|v| registers.replicas.push(v)).is_ok()
                }
                Some(Kept::Register(key)) => postcard::from_bytes(&value)
                    .map(|register| registers.registers.push((key, register)))
                    .is_ok(),
                None => false,
            };
            self.malformed_records += u64::from(!taken);
        }
        self.note_first(cx);
        self.host(executor::Command::Restore(runs), cx);
        let inc = self.connectivity.ring().me().inc;
        let records = stored;
        let restore = collective::Command::Restore { records, registers, trees, inc, alone };
        self.community(restore, cx);
        self.ring(overlay::Command::Boot { alone }, cx);
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
                Effect::Emit(executor::Event::SaveRun(run)) => {
                    let (id, value) = (run.id, postcard::to_allocvec(&run).ok());
                    self.write(Writer::Run(id), Vec::from([(DiskKey::Run(id), value)]), cx);
                }
                Effect::Emit(executor::Event::Forget(id)) => {
                    self.write(Writer::Nobody, Vec::from([(DiskKey::Run(id), None)]), cx);
                }
                Effect::Emit(executor::Event::FindManager(service)) => {
                    self.look_up(Why::Manager(service), service, cx);
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

    /// To the ring of the community.
    fn ring(&mut self, command: overlay::Command, cx: &mut Cx<'_, Self>) {
        self.connect(connectivity::Command::Overlay(command), cx);
    }

    fn connect(&mut self, command: connectivity::Command, cx: &mut Cx<'_, Self>) {
        self.feed_connectivity(Input::Command(command), cx);
    }

    fn feed_connectivity(&mut self, input: Input<Connectivity>, cx: &mut Cx<'_, Self>) {
        use connectivity::Event as E;
        let (connectivity, wrap) = (&mut self.connectivity, Msg::Connectivity);
        for event in cx.child(connectivity, input, wrap, Timer::Connectivity) {
            match event {
                E::Overlay(event) => self.on_overlay_event(event, cx),
                E::Suspect(_) | E::Refuted(_) => {}
                E::Dead(id) => self.on_dead(id, cx),
                E::Directory { call, key, ask } => {
                    self.community(collective::Command::Directory { call, key, ask }, cx);
                }
                E::Answer { call, answer } => self.on_group_answer(call, answer, cx),
                E::Judge { gid, token } => self.judge(gid, token, cx),
                E::Deliver { name, from, body } => {
                    let from_name = self.name_of(from);
                    cx.emit(Event::GroupMessage { group: name, from, from_name, body });
                }
            }
        }
    }

    fn on_overlay_event(&mut self, event: overlay::Event, cx: &mut Cx<'_, Self>) {
        use overlay::Event as E;
        match event {
            E::Contact(peer) => cx.emit(Event::Contact(peer)),
            E::Joined => self.on_joined(cx),
            E::RangeChanged | E::NeighboursChanged => self.place_changed(cx),
            E::Found { call, found } => self.on_found(call, found, cx),
            E::Feedback { call, feedback } => {
                if let Some(Why::Feedback(seeker)) = self.asked.over(call) {
                    let (parts, complete) = (feedback.parts, feedback.complete);
                    self.community(collective::Command::Feedback { seeker, parts, complete }, cx);
                }
            }
            E::Restarted(id) => {
                self.place_changed(cx);
                self.host(executor::Command::Dead(id), cx);
                self.community(collective::Command::Restarted(id), cx);
            }
            E::Left => cx.emit(Event::Left),
            E::Cast { id, body, feedback } | E::Bulk { id, body, feedback, .. } => {
                let part = self.on_cast(&body, cx);
                if feedback {
                    self.ring(overlay::Command::AnswerCast { id, part }, cx);
                }
            }
            // Whom to watch stays below.
            E::Watch(_) | E::Doubt(_) => {}
        }
    }

    fn on_joined(&mut self, cx: &mut Cx<'_, Self>) {
        self.place_changed(cx);
        self.rejoin_groups(cx);
        self.host(executor::Command::Joined, cx);
        if self.connectivity.ring().alone() {
            return;
        }
        let text = alloc::format!("{} joined", self.profile.name);
        self.announce(None, text, cx);
        self.saw_self("node.join", cx);
        let question = collective::deployment::client::ServiceQuestion::Ports;
        self.community(collective::Command::Ask { ask: views::PORTS_ASK, question }, cx);
    }

    /// Tells the collective layer what this node answers for now.
    fn place_changed(&mut self, cx: &mut Cx<'_, Self>) {
        let ring = self.connectivity.ring();
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
        let (succs, size) = (ring.succs().to_vec(), self.connectivity.overlay().size());
        let position = RingPosition { range: new, succs, size };
        self.community(collective::Command::Moved { position, gained }, cx);
        self.say_unsaid(cx);
    }

    fn on_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        self.life_lost(id, cx.now);
        if self.unsaid.len() < UNSAID_MAX {
            self.unsaid.push((id, cx.now));
        }
        self.place_changed(cx);
        self.host(executor::Command::Dead(id), cx);
        self.community(collective::Command::Dead(id), cx);
    }

    fn community(&mut self, command: collective::Command, cx: &mut Cx<'_, Self>) {
        self.feed_collective(Input::Command(command), cx);
    }

    fn feed_collective(&mut self, input: Input<Collective>, cx: &mut Cx<'_, Self>) {
        for event in cx.child(&mut self.collective, input, Msg::Collective, Timer::Collective) {
            match event {
                collective::Event::Lookup { seeker, key } => {
                    self.look_up(Why::Collective(seeker), key, cx);
                }
                collective::Event::Cast { seeker, body, arc } => self.cast(seeker, body, arc, cx),
                collective::Event::Persist { token, writes } => {
                    let writes = writes.into_iter();
                    let writes = writes.map(|(name, value)| (DiskKey::Record(name), value));
                    let writer = token.map_or(Writer::Nobody, Writer::Records);
                    self.write(writer, writes.collect(), cx);
                }
                collective::Event::PersistRegisters { token, writes } => {
                    let writes = writes.into_iter();
                    let writes = writes.map(|(key, value)| (DiskKey::Registers(key), value));
                    self.write(Writer::Registers(token), writes.collect(), cx);
                }
                collective::Event::Order(order) => self.on_order(order, cx),
                collective::Event::ToHost { to, msg } => cx.send(to, Msg::ToHost(msg)),
                collective::Event::Watch(set) => {
                    self.connect(connectivity::Command::Watch(set), cx);
                }
                collective::Event::Directory { call, answer } => {
                    let command = group::Command::Directory { call, answer };
                    self.connect(connectivity::Command::Group(command), cx);
                }
                collective::Event::Answer { ask, reply } => self.on_reply(ask, reply, cx),
                collective::Event::Object { ask, answer } => {
                    self.answer_known(ask, Answer::Object(answer), cx);
                }
                collective::Event::Prospect { ask, answer } => {
                    self.answer_known(ask, Answer::Prospect(answer), cx);
                }
                collective::Event::Events { ask, answer } => {
                    self.answer_known(ask, Answer::Events(answer), cx);
                }
                collective::Event::Met(peer) => self.ring(overlay::Command::Learn(peer), cx),
                collective::Event::Describe { to, call, condition } => {
                    let node = self.described_if(&condition, cx);
                    self.community(collective::Command::Described { to, call, node }, cx);
                }
                collective::Event::Told { sub, told } => cx.emit(Event::Told { sub, told }),
                collective::Event::Lost { sub, name, count } => {
                    cx.emit(Event::Lost { sub, name, count });
                }
                collective::Event::ObjectChanged { address, answer } => {
                    cx.emit(Event::ObjectChanged { address, answer });
                }
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
    fn remember_port(&mut self, name: String, port: Option<Port>) {
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

/// How a program of the host is known in [`Config::programs`].
#[must_use]
pub fn program_hash(path: &str) -> u32 {
    let hash = dugnad_kernel::Hash::of(path.as_bytes()).0;
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}
