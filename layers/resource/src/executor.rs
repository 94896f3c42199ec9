//! The host's side of the remote execution protocol: reserve → fetch → start → ready → watch
//! (PROTOCOL.md 10.6).
//!
//! What runs here is written to disk before it is started, so that a node without a network
//! starts the same replicas again after a power cut.

pub mod orders;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_fabric::{Amounts, Ceilings, Ledger};
use dugnad_kernel::{Component, Cx, Duration, Input, Key, NodeId};

use crate::execute::{Epoch, HostState, Order, ReplicaId, Report, Run, ToHost, ToManager};
use crate::spec::{Arch, Spec, Tree};
use orders::{WAITING_MAX, Waiting};

/// A reservation nobody took up is void after this (PROTOCOL.md 10.6).
pub const RESERVATION: Duration = Duration::from_secs(60);
/// A replica's manager hears of it at least this often.
pub const BEAT: Duration = Duration::from_secs(60);
/// Pause before a manager that was not one is looked for again: the ring is moving. Doubles each
/// time in a row, so many times: nobody may know the service any more.
pub const SEARCH_AGAIN: Duration = Duration::from_secs(2);
pub const SEARCH_DOUBLINGS: u32 = 7;
/// Replicas on one node.
pub const REPLICAS_MAX: usize = 64;
/// Places that wait for one manager to start something in them.
pub const RESERVED_EACH: usize = 32;
/// Services whose epochs are remembered.
pub const EPOCHS_MAX: usize = 512;
/// Characters of a note, and of one that carries the last lines of a log.
pub const NOTE_MAX: usize = 256;
pub const LOG_MAX: usize = 2_000;
/// Replicas of one service on one node at most: the old one, the new one that an update starts
/// beside it, and one that was given up and is on its way out.
pub const OF_ONE_SERVICE: usize = 3;

#[derive(Clone, Debug)]
pub enum Command {
    /// What ran here before the restart.
    Restore(Vec<Run>),
    /// The run record asked for is on disk.
    Persisted(ReplicaId),
    /// It could not be written: without it nothing is started.
    NotPersisted(ReplicaId),
    Report(Report),
    /// Who answers for this service now; `None` if nobody was found.
    Manager {
        service: Key,
        manager: Option<NodeId>,
    },
    Limits {
        ceilings: Ceilings,
        takes_work: bool,
    },
    /// The ring changed around a manager: ask again who it is.
    Dead(NodeId),
    /// The ring can be asked now: tell the managers what runs here.
    Joined,
    /// Have what runs here run elsewhere, or keep it after all.
    HandOver(bool),
    /// The agent ends: nothing is started any more.
    Ending,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Order(Order),
    /// Write the run record; [`Command::Persisted`] follows.
    SaveRun(Run),
    /// Delete the run record.
    Forget(ReplicaId),
    /// Who manages this service? [`Command::Manager`] follows.
    FindManager(Key),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    Beat,
    Expire,
    Search {
        service: Key,
    },
    /// Whoever gave an order for this service was not its manager a moment ago.
    LookUp {
        service: Key,
    },
}

#[derive(Clone, Debug)]
struct Held {
    run: Option<Run>,
    /// Who reserved the place; it has no `run` yet.
    reserved_by: Option<NodeId>,
    state: HostState,
    note: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct Term {
    epoch: Epoch,
    manager: Option<NodeId>,
    /// Who answers for the service by its place on the ring, as last looked up.
    found: Option<NodeId>,
    /// Whether the last beat was acknowledged.
    heard: bool,
    /// Whether a `Timer::Search` is on its way; there is never more than one a service.
    searching: bool,
    /// How often in a row the one that was found did not manage it.
    misses: u32,
}

#[derive(Debug)]
pub struct Executor {
    pub(crate) me: NodeId,
    name: String,
    arch: Arch,
    ledger: Ledger,
    takes_work: bool,
    handing_over: bool,
    ending: bool,
    held: Map<ReplicaId, Held>,
    terms: Map<Key, Term>,
    beating: bool,
    /// Whether a `Timer::Expire` is on its way; there is never more than one.
    expiring: bool,
    refused_epochs: u64,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) refused_orders: u64,
}

impl Component for Executor {
    type Command = Command;
    type Msg = ToManager;
    type Timer = Timer;
    type Event = Event;

    /// Messages from managers come through [`Executor::on_message`]: the two directions have
    /// different types.
    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Timer(Timer::Beat) => self.on_beat_timer(cx),
            Input::Timer(Timer::Search { service }) => {
                if let Some(term) = self.terms.get_mut(&service) {
                    term.searching = false;
                    cx.emit(Event::FindManager(service));
                }
            }
            Input::Timer(Timer::LookUp { service }) => self.on_look_up_timer(service, cx),
            Input::Timer(Timer::Expire) => {
                self.ledger.expire(cx.now);
                let held = &mut self.held;
                let ledger = &self.ledger;
                held.retain(|id, h| h.run.is_some() || ledger.has((id.service, id.number)));
                self.expiring = false;
                self.expire_later(cx);
            }
            // Answers of hosts are for managers.
            Input::Message { .. } => {}
        }
    }
}

impl Executor {
    #[must_use]
    pub const fn new(me: NodeId, name: String, arch: Arch, ceilings: Ceilings) -> Self {
        Self {
            me,
            name,
            arch,
            ledger: Ledger::new(ceilings),
            takes_work: true,
            handing_over: false,
            ending: false,
            held: Map::new(),
            terms: Map::new(),
            beating: false,
            expiring: false,
            refused_epochs: 0,
            waiting: Vec::new(),
            refused_orders: 0,
        }
    }

    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    #[must_use]
    pub const fn takes_work(&self) -> bool {
        self.takes_work && !self.handing_over && !self.ending
    }

    #[must_use]
    pub const fn handing_over(&self) -> bool {
        self.handing_over
    }

    #[must_use]
    pub const fn refused_epochs(&self) -> u64 {
        self.refused_epochs
    }

    /// Orders of nodes that do not manage the service they speak for.
    #[must_use]
    pub const fn refused_orders(&self) -> u64 {
        self.refused_orders
    }

    pub(crate) fn knows(&self, service: Key) -> Option<NodeId> {
        self.terms.get(&service).and_then(|term| term.found)
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("replicas", self.held.len(), REPLICAS_MAX),
            ("epochs", self.terms.len(), EPOCHS_MAX),
            ("orders that wait", self.waiting.len(), WAITING_MAX),
        ]
        .into_iter()
    }

    pub fn replicas(&self) -> impl Iterator<Item = (ReplicaId, &str, HostState)> {
        self.held.iter().map(|(id, held)| {
            (*id, held.run.as_ref().map_or("", |run| run.spec.name.as_str()), held.state)
        })
    }

    /// Packages of what runs here.
    pub fn packages(&self) -> impl Iterator<Item = Tree> + '_ {
        self.held.values().filter_map(|held| held.run.as_ref()?.package)
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Restore(runs) => self.restore(runs, cx),
            Command::Persisted(id) => self.on_persisted(id, cx),
            Command::NotPersisted(id) => {
                self.fail(id, "its disk takes no more records", cx);
            }
            Command::Report(report) => self.on_report(report, cx),
            Command::Manager { service, manager } => {
                if let Some(term) = self.terms.get_mut(&service) {
                    term.found = manager;
                }
                let waits = self.waiting.iter().any(|waiting| waiting.service == service);
                self.on_looked_up(service, manager, cx);
                if let Some(term) = self.terms.get_mut(&service) {
                    term.found = manager;
                }
                // Nothing of it is here but what an order just reserved: nothing to tell.
                let runs =
                    |(id, held): (&ReplicaId, &Held)| id.service == service && held.run.is_some();
                if !waits || self.held.iter().any(runs) {
                    self.on_manager(service, manager, cx);
                }
            }
            Command::Limits { ceilings, takes_work } => {
                self.ledger.set_ceilings(ceilings);
                self.takes_work = takes_work;
            }
            Command::Dead(node) => {
                for term in self.terms.values_mut() {
                    term.manager = term.manager.filter(|manager| *manager != node);
                    term.found = term.found.filter(|found| *found != node);
                }
            }
            Command::Joined => {
                for service in self.services() {
                    cx.emit(Event::FindManager(service));
                }
            }
            Command::HandOver(leaving) => {
                self.handing_over = leaving;
                for service in self.services() {
                    match self.terms.get(&service).and_then(|term| term.manager) {
                        Some(manager) => {
                            cx.send(manager, ToManager::Leaving { service, leaving });
                        }
                        None => cx.emit(Event::FindManager(service)),
                    }
                }
            }
            Command::Ending => self.ending = true,
        }
    }

    fn services(&self) -> Vec<Key> {
        let mut services: Vec<Key> = self.held.keys().map(|id| id.service).collect();
        services.dedup();
        services
    }

    fn restore(&mut self, runs: Vec<Run>, cx: &mut Cx<'_, Self>) {
        for run in runs {
            let (id, needs) = (run.id, run.spec.needs);
            self.ledger.adopt((id.service, id.number), needs);
            let state = HostState::Starting;
            let note = String::new();
            let held = Held { run: Some(run.clone()), reserved_by: None, state, note };
            self.held.insert(id, held);
            cx.emit(Event::Order(Order::Start(run)));
        }
        self.keep_beating(cx);
    }

    /// Carries out what a manager says.
    pub(crate) fn obey(&mut self, from: NodeId, msg: ToHost, cx: &mut Cx<'_, Self>) {
        match msg {
            ToHost::Reserve { id, epoch, needs } => {
                if self.obeys(from, id.service, epoch, cx) {
                    self.on_reserve(from, id, epoch, needs, cx);
                }
            }
            ToHost::Start { id, epoch, generation, spec, sources } => {
                if self.obeys(from, id.service, epoch, cx) {
                    self.on_start(from, id, generation, spec, sources, cx);
                }
            }
            ToHost::Stop { id, epoch, forget } => {
                if self.obeys(from, id.service, epoch, cx) {
                    self.on_stop(id, forget, cx);
                }
            }
            ToHost::Probe { service, epoch } => {
                if self.obeys(from, service, epoch, cx) {
                    self.on_probe(from, service, cx);
                }
            }
            ToHost::BeatAck { service, epoch } => {
                if self.obeys(from, service, epoch, cx) {
                    if let Some(term) = self.terms.get_mut(&service) {
                        term.heard = true;
                    }
                }
            }
            ToHost::NotManager { service } => {
                if let Some(term) = self.terms.get_mut(&service) {
                    if term.manager == Some(from) {
                        term.manager = None;
                        if !core::mem::replace(&mut term.searching, true) {
                            let pause = SEARCH_AGAIN * (1 << term.misses.min(SEARCH_DOUBLINGS));
                            term.misses = term.misses.saturating_add(1);
                            cx.after(pause, Timer::Search { service });
                        }
                    }
                }
            }
        }
    }

    /// Whether this epoch is the highest seen for the service; if so it is remembered.
    fn obeys(&mut self, from: NodeId, service: Key, epoch: Epoch, cx: &mut Cx<'_, Self>) -> bool {
        let known = self.terms.get(&service).map(|term| term.epoch);
        if !epoch.may_follow(known.unwrap_or_default()) {
            self.refused_epochs += 1;
            return false;
        }
        if known.is_none() && self.terms.len() >= EPOCHS_MAX {
            let idle = |key: &Key| !self.held.keys().any(|id| id.service == *key);
            if let Some(key) = self.terms.keys().copied().find(idle) {
                self.terms.remove(&key);
            }
        }
        let term = self.terms.entry(service).or_default();
        if epoch < term.epoch {
            self.refused_epochs += 1;
            cx.send(from, ToManager::Deposed { service, epoch: term.epoch });
            return false;
        }
        term.epoch = epoch;
        term.manager = Some(from);
        term.misses = 0;
        true
    }

    fn on_reserve(
        &mut self,
        from: NodeId,
        id: ReplicaId,
        epoch: Epoch,
        needs: Amounts,
        cx: &mut Cx<'_, Self>,
    ) {
        let other = |(held, h): &(&ReplicaId, &Held)| {
            held.service == id.service && held.number != id.number && h.run.is_some()
        };
        let others = self.held.iter().filter(other).count();
        let waiting = |(held, h): &(&ReplicaId, &Held)| {
            **held != id && h.run.is_none() && h.reserved_by == Some(from)
        };
        let refusal = if !self.takes_work() {
            Some("takes no new work".to_string())
        } else if others + 1 > OF_ONE_SERVICE {
            Some(format!("runs {others} replicas of it already"))
        } else if self.held.len() >= REPLICAS_MAX {
            Some(format!("runs {REPLICAS_MAX} replicas already"))
        } else if self.held.iter().filter(waiting).count() >= RESERVED_EACH {
            Some(format!("keeps {RESERVED_EACH} places for the same manager already"))
        } else {
            self.ledger.expire(cx.now);
            let until = cx.now + RESERVATION;
            let replica = (id.service, id.number);
            self.ledger.promise(replica, needs, until).err().map(|short| short.to_string())
        };
        match refusal {
            Some(reason) => cx.send(from, ToManager::Refused { id, epoch, reason }),
            None => {
                let (state, note) = (HostState::Reserved, String::new());
                let held = Held { run: None, reserved_by: Some(from), state, note };
                self.held.entry(id).or_insert(held);
                self.expire_later(cx);
                cx.send(from, ToManager::Reserved { id, epoch });
            }
        }
    }

    /// Sees to it that places nobody takes up are free again.
    fn expire_later(&mut self, cx: &mut Cx<'_, Self>) {
        let Some(at) = self.ledger.next_expiry() else { return };
        if !core::mem::replace(&mut self.expiring, true) {
            cx.after(at - cx.now, Timer::Expire);
        }
    }

    fn on_start(
        &mut self,
        from: NodeId,
        id: ReplicaId,
        generation: u64,
        spec: Spec,
        sources: Vec<NodeId>,
        cx: &mut Cx<'_, Self>,
    ) {
        let running = self.held.get(&id).and_then(|held| held.run.as_ref());
        if running.is_some_and(|run| run.generation >= generation) {
            self.beat(id, cx);
            return;
        }
        if spec.check().is_err() || spec.key() != id.service {
            let state = HostState::Failed;
            let note = "the service record is not valid".to_string();
            let node_name = self.name.clone();
            cx.send(from, ToManager::Beat { id, generation, state, note, node_name });
            return;
        }
        let upgrade = running.is_some();
        if self.ending {
            return self.gone(from, id, generation, "the agent is ending", cx);
        }
        let is_twin = |(other, held): &(&ReplicaId, &Held)| {
            let same = other.service == id.service && other.number != id.number;
            same && held.run.as_ref().is_some_and(|run| run.generation == generation)
        };
        let twin = self.held.iter().find(is_twin).map(|(other, _)| *other);
        if let Some(twin) = twin.filter(|_| !upgrade) {
            // Given up and met again while a place was looked for: one of a version is enough.
            self.held.remove(&id);
            self.ledger.release((id.service, id.number));
            self.gone(from, id, generation, "runs another replica of this version already", cx);
            // The manager does not know of it, or would not have asked.
            return self.beat(twin, cx);
        }
        if !upgrade && !self.ledger.keep((id.service, id.number)) {
            return self.gone(from, id, generation, "the reservation is over", cx);
        }
        if upgrade {
            self.ledger.adopt((id.service, id.number), spec.needs);
        }
        let package = spec.artifact(self.arch);
        let run = Run { id, generation, spec, package };
        let state = HostState::Fetching;
        let note = String::new();
        self.held.insert(id, Held { run: Some(run.clone()), reserved_by: None, state, note });
        self.keep_beating(cx);
        match package {
            Some(tree) => {
                let from = sources.into_iter().filter(|node| *node != self.me).collect();
                cx.emit(Event::Order(Order::Fetch { id, tree, from }));
            }
            None => cx.emit(Event::SaveRun(run)),
        }
        self.beat(id, cx);
    }

    /// It is not started here.
    fn gone(&self, to: NodeId, id: ReplicaId, generation: u64, why: &str, cx: &mut Cx<'_, Self>) {
        let (note, node_name) = (why.to_string(), self.name.clone());
        cx.send(to, ToManager::Beat { id, generation, state: HostState::Gone, note, node_name });
    }

    fn on_stop(&mut self, id: ReplicaId, forget: bool, cx: &mut Cx<'_, Self>) {
        match self.held.get_mut(&id) {
            Some(held) if held.run.is_some() => {
                held.state = HostState::Stopping;
                cx.emit(Event::Forget(id));
                cx.emit(Event::Order(Order::Stop { id, forget }));
            }
            Some(_) | None => {
                self.held.remove(&id);
                self.ledger.release((id.service, id.number));
                self.tell(id, 0, HostState::Gone, "", cx);
            }
        }
    }

    fn on_probe(&mut self, from: NodeId, service: Key, cx: &mut Cx<'_, Self>) {
        let ids: Vec<ReplicaId> = self
            .held
            .iter()
            .filter(|(id, held)| id.service == service && held.run.is_some())
            .map(|(id, _)| *id)
            .collect();
        if ids.is_empty() {
            cx.send(from, ToManager::Nothing { service });
        }
        for id in ids {
            self.beat(id, cx);
        }
        self.say_leaving(service, cx);
    }

    /// Whoever manages it now may not know yet that this node is about to leave.
    fn say_leaving(&self, service: Key, cx: &mut Cx<'_, Self>) {
        let manager = self.terms.get(&service).and_then(|term| term.manager);
        if let Some(manager) = manager.filter(|_| self.handing_over) {
            cx.send(manager, ToManager::Leaving { service, leaving: true });
        }
    }

    fn on_persisted(&mut self, id: ReplicaId, cx: &mut Cx<'_, Self>) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if held.state != HostState::Fetching || self.ending {
            return;
        }
        if let Some(run) = held.run.clone() {
            held.state = HostState::Starting;
            cx.emit(Event::Order(Order::Start(run)));
            self.beat(id, cx);
        }
    }

    fn on_report(&mut self, report: Report, cx: &mut Cx<'_, Self>) {
        match report {
            Report::Fetched { id } => {
                let fetching = self.held.get(&id).filter(|h| h.state == HostState::Fetching);
                if let Some(run) = fetching.and_then(|held| held.run.clone()) {
                    cx.emit(Event::SaveRun(run));
                }
            }
            Report::FetchFailed { id, reason } => self.fail(id, &reason, cx),
            Report::Waits { id, reason } => self.advance(id, HostState::Starting, &reason, cx),
            Report::Started { id } => self.advance(id, HostState::Starting, "", cx),
            Report::Ready { id } => self.advance(id, HostState::Ready, "", cx),
            Report::Unready { id, reason } => self.advance(id, HostState::Unready, &reason, cx),
            Report::Failed { id, reason } => self.fail(id, &reason, cx),
            Report::Stopped { id } => {
                let stopping = self.held.get(&id).is_some_and(|h| h.state == HostState::Stopping);
                if stopping {
                    self.held.remove(&id);
                    self.ledger.release((id.service, id.number));
                    self.tell(id, 0, HostState::Gone, "", cx);
                }
            }
            Report::Load { id, load } => {
                let known = self.terms.get(&id.service).and_then(|term| term.manager);
                // While there is none nobody follows the load.
                if let Some(manager) = known.filter(|_| self.held.contains_key(&id)) {
                    cx.send(manager, ToManager::Load { service: id.service, load });
                }
            }
            // Trees are kept for the community, not for a replica.
            Report::Kept { .. } | Report::KeepFailed { .. } | Report::LetGo { .. } => {}
        }
    }

    fn advance(&mut self, id: ReplicaId, state: HostState, note: &str, cx: &mut Cx<'_, Self>) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if held.state == HostState::Stopping || (held.state == state && held.note == note) {
            return;
        }
        held.state = state;
        held.note = clip_log(note);
        self.beat(id, cx);
    }

    /// It will not run here: gives its room back and says why.
    fn fail(&mut self, id: ReplicaId, reason: &str, cx: &mut Cx<'_, Self>) {
        let Some(held) = self.held.remove(&id) else { return };
        self.ledger.release((id.service, id.number));
        cx.emit(Event::Forget(id));
        cx.emit(Event::Order(Order::Stop { id, forget: false }));
        let generation = held.run.map_or(0, |run| run.generation);
        self.tell(id, generation, HostState::Failed, &clip_log(reason), cx);
    }

    fn beat(&self, id: ReplicaId, cx: &mut Cx<'_, Self>) {
        if let Some((held, run)) = self.held.get(&id).and_then(|h| Some((h, h.run.as_ref()?))) {
            self.tell(id, run.generation, held.state, &held.note, cx);
        }
    }

    fn tell(
        &self,
        id: ReplicaId,
        generation: u64,
        state: HostState,
        note: &str,
        cx: &mut Cx<'_, Self>,
    ) {
        match self.terms.get(&id.service).and_then(|term| term.manager) {
            Some(manager) => {
                let (note, node_name) = (note.to_string(), self.name.clone());
                cx.send(manager, ToManager::Beat { id, generation, state, note, node_name });
            }
            // Found again at the next beat, or when a new manager probes.
            None => cx.emit(Event::FindManager(id.service)),
        }
    }

    fn keep_beating(&mut self, cx: &mut Cx<'_, Self>) {
        if !self.beating && !self.held.is_empty() {
            self.beating = true;
            cx.after(BEAT, Timer::Beat);
        }
    }

    fn on_beat_timer(&mut self, cx: &mut Cx<'_, Self>) {
        self.beating = false;
        self.keep_beating(cx);
        for service in self.services() {
            let term = self.terms.entry(service).or_default();
            if !term.heard || term.manager.is_none() {
                cx.emit(Event::FindManager(service));
                continue;
            }
            term.heard = false;
            self.beat_all(service, cx);
        }
    }

    fn beat_all(&self, service: Key, cx: &mut Cx<'_, Self>) {
        for id in self.held.keys().filter(|id| id.service == service) {
            self.beat(*id, cx);
        }
    }

    fn on_manager(&mut self, service: Key, manager: Option<NodeId>, cx: &mut Cx<'_, Self>) {
        let Some(manager) = manager else { return };
        let term = self.terms.entry(service).or_default();
        term.manager = Some(manager);
        term.heard = false;
        if !self.held.iter().any(|(id, held)| id.service == service && held.run.is_some()) {
            // Another manager had it stopped, and this one may not know.
            cx.send(manager, ToManager::Nothing { service });
        }
        self.beat_all(service, cx);
        self.say_leaving(service, cx);
    }
}

/// A note for people: its first line, cut to [`NOTE_MAX`] characters.
#[must_use]
pub fn clip_note(note: &str) -> String {
    note.lines().next().unwrap_or_default().chars().take(NOTE_MAX).collect()
}

/// A note with lines of a log below it, cut to [`LOG_MAX`] characters.
#[must_use]
pub fn clip_log(note: &str) -> String {
    note.chars().take(LOG_MAX).collect()
}
