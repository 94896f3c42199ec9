//! The service manager: one a service, at the node that owns its key (overlay.md 10.2, 10.7).
//!
//! It holds nothing that is not in the service's two records or known to the hosts: when its node
//! dies, the next owner reads the plan, asks the hosts, and goes on in a higher term.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};
use dugnad_resource::describe::named;
use dugnad_resource::execute::{Epoch, HostState, ReplicaId, ToHost, ToManager};
use dugnad_resource::executor::bounded;
use dugnad_resource::spec::{Kind, Port, Spec};
use serde::{Deserialize, Serialize};

use super::deployer;
use super::service::{Desired, PLAN, Plan, SPEC, Service, Slot, SlotState};
use crate::cast::{CastBody, CastPart};
use crate::deployment::allocator;
use crate::persistence::put::put;
use crate::persistence::record::Record;
use crate::{Ask, Asker, Collective, Event, OPS_MAX, Outcome, Reply, Response, Timer};

/// How long the hosts of a plan have to report to a new manager.
const TAKE_OVER: Duration = Duration::from_millis(1_200);
/// A service that found no place is tried again after this, doubling.
const BLOCKED: Duration = Duration::from_secs(5);
const BLOCKED_DOUBLINGS: u32 = 2;
/// A node where a replica failed is avoided this long, doubling (overlay.md 10.11).
const AVOID: Duration = Duration::from_secs(60);
const AVOID_DOUBLINGS: u32 = 6;
/// A query that sees nothing new is answered after this.
const POLL: Duration = Duration::from_millis(1_500);
const WAITING_MAX: usize = 64;
const HISTORY_MAX: usize = 32;
/// Reasons why no place was found that are kept: views travel in one message.
const BLOCKED_LINES: usize = 64;
/// Copies of a plan to wait for before anything is started.
const PLAN_COPIES: usize = 2;

/// What a manager says about its service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub name: String,
    pub service: Key,
    pub generation: u64,
    pub desired: Desired,
    pub port: Port,
    pub kind: Kind,
    pub want: u8,
    pub because: String,
    pub ready: u8,
    pub manager: NodeId,
    /// Differs whenever anything above differs.
    pub revision: u64,
    pub slots: Vec<Slot>,
    /// Why it is not (yet) as wanted, one line a reason.
    pub blocked: Vec<String>,
}

/// What came of looking for places.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    service: Key,
    term: u64,
    slots: Vec<(Slot, Vec<NodeId>)>,
    blocked: Vec<String>,
}

#[derive(Debug)]
pub struct Manager {
    service: Service,
    want: u8,
    because: String,
    plan: Plan,
    /// Replicas of an earlier term whose state is not news when they report it again.
    old_news: BTreeSet<u32>,
    /// Hosts of an earlier term that have not reported yet.
    taking_over: BTreeSet<NodeId>,
    /// A host obeyed a higher term than ours: ask again in the new one.
    probe_again: bool,
    placing: bool,
    /// Hosts whose replica came back while a place was being looked for.
    returned: BTreeSet<NodeId>,
    blocked: Vec<String>,
    blocked_times: u32,
    avoid: BTreeMap<NodeId, (u32, Time)>,
    /// Who can be asked for the package, by replica number.
    sources: BTreeMap<u32, Vec<NodeId>>,
    /// Counter of the last plan written: two may be on their way at once.
    written: u64,
    revision: u64,
    round: u32,
    waiting: Vec<(NodeId, u32)>,
    history: VecDeque<String>,
}

impl Manager {
    fn new(service: Service, plan: Plan) -> Self {
        let (want, because) = deployer::replicas(service.spec.want);
        Self {
            service,
            want,
            because,
            plan,
            old_news: BTreeSet::new(),
            taking_over: BTreeSet::new(),
            probe_again: false,
            placing: false,
            returned: BTreeSet::new(),
            blocked: Vec::new(),
            blocked_times: 0,
            avoid: BTreeMap::new(),
            sources: BTreeMap::new(),
            written: 0,
            revision: 0,
            round: 0,
            waiting: Vec::new(),
            history: VecDeque::new(),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.service.spec.name
    }

    fn live(&self) -> impl Iterator<Item = &Slot> {
        self.plan.slots.iter().filter(|slot| {
            matches!(slot.state, SlotState::Reserved | SlotState::Starting | SlotState::Ready)
        })
    }

    fn ready(&self) -> usize {
        let current =
            |s: &&Slot| s.state == SlotState::Ready && s.generation == self.service.generation;
        self.plan.slots.iter().filter(current).count()
    }

    #[must_use]
    pub fn view(&self, key: Key) -> View {
        View {
            name: self.service.spec.name.clone(),
            service: key,
            generation: self.service.generation,
            desired: self.service.desired,
            port: self.service.spec.port,
            kind: self.service.spec.kind,
            want: if self.service.desired == Desired::Running { self.want } else { 0 },
            because: self.because.clone(),
            ready: u8::try_from(self.ready()).unwrap_or(u8::MAX),
            manager: self.plan.epoch.manager,
            revision: (self.plan.epoch.term << 32)
                | (self.revision.wrapping_add(1) & u64::from(u32::MAX)),
            slots: self.plan.slots.clone(),
            blocked: self.blocked.clone(),
        }
    }

    fn note(&mut self, text: String) {
        let text = bounded(&text);
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(text);
    }

    fn slot(&mut self, number: u32) -> Option<&mut Slot> {
        self.plan.slots.iter_mut().find(|slot| slot.number == number)
    }
}

impl Collective {
    pub fn managers(&self) -> impl Iterator<Item = (&Key, &Manager)> {
        self.managers.iter()
    }

    /// What this node manages, as it says it in a broadcast.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        let known = |(_, m): &(&Key, &Manager)| {
            m.service.desired != Desired::Removed || !m.plan.slots.is_empty()
        };
        self.managers.iter().filter(known).map(|(key, m)| m.view(*key)).collect()
    }

    pub(crate) fn manages(&self, key: Key) -> bool {
        self.place.range.is_some_and(|range| range.contains(key))
    }

    pub(crate) fn refresh_managers(&mut self, cx: &mut Cx<'_, Self>) {
        let gone: Vec<Key> =
            self.managers.keys().copied().filter(|key| !self.manages(*key)).collect();
        for key in gone {
            self.managers.remove(&key);
        }
        let mine: Vec<Key> = self
            .store
            .iter()
            .filter(|r| r.name == SPEC && self.manages(r.key))
            .map(|r| r.key)
            .collect();
        for key in mine {
            self.on_service_record(key, cx);
        }
        // More or other neighbours may mean more room.
        let blocked: Vec<Key> =
            self.managers.iter().filter(|(_, m)| !m.blocked.is_empty()).map(|(k, _)| *k).collect();
        for key in blocked {
            self.reconcile(key, cx);
        }
        self.watch_hosts(cx);
    }

    pub(crate) fn on_service_record(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        if !self.manages(key) {
            return;
        }
        let Some(service) = self.read::<Service>(key, SPEC) else { return };
        if service.spec.check().is_err() || service.spec.key() != key || !service.fits() {
            self.count("invalid_service_record");
            return;
        }
        let Some(manager) = self.managers.get_mut(&key) else {
            self.take_over(key, service, cx);
            return;
        };
        if manager.service == service {
            return;
        }
        let (want, because) = deployer::replicas(service.spec.want);
        manager.want = want;
        manager.because = because;
        manager.service = service;
        manager.blocked.clear();
        manager.blocked_times = 0;
        manager.avoid.clear();
        self.announce_change(key, cx);
        self.reconcile(key, cx);
        self.touch(key, cx);
    }

    fn announce_change(&self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get(&key) else { return };
        let body = CastBody::Changed {
            name: manager.service.spec.name.clone(),
            port: manager.service.spec.port,
            removed: manager.service.desired != Desired::Running,
        };
        cx.emit(Event::Cast { call: 0, body, feedback: false });
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, key: Key, name: &[u8]) -> Option<T> {
        postcard::from_bytes(self.store.get(key, name)?.value.as_ref()?).ok()
    }

    fn take_over(&mut self, key: Key, service: Service, cx: &mut Cx<'_, Self>) {
        let mut plan: Plan = self.read(key, PLAN).filter(Plan::fits).unwrap_or_default();
        plan.epoch = plan.epoch.next(self.me);
        let mut manager = Manager::new(service, plan);
        for slot in &mut manager.plan.slots {
            if self.dead.contains_key(&slot.node) {
                slot.state = SlotState::Lost;
            } else if slot.state != SlotState::Lost {
                manager.taking_over.insert(slot.node);
            }
        }
        manager.old_news = manager.plan.slots.iter().map(|slot| slot.number).collect();
        let epoch = manager.plan.epoch;
        for node in &manager.taking_over {
            cx.emit(Event::ToHost { to: *node, msg: ToHost::Probe { service: key, epoch } });
        }
        if !manager.plan.slots.is_empty() {
            manager.note("this node manages it now".to_string());
        }
        let waits = !manager.taking_over.is_empty();
        self.managers.insert(key, manager);
        self.watch_hosts(cx);
        self.announce_change(key, cx);
        if waits {
            self.later(key, TAKE_OVER, cx);
        } else {
            self.reconcile(key, cx);
        }
        self.touch(key, cx);
    }

    /// Looks after the service again in `delay`; an earlier appointment is void.
    fn later(&mut self, key: Key, delay: Duration, cx: &mut Cx<'_, Self>) {
        if let Some(manager) = self.managers.get_mut(&key) {
            manager.round = manager.round.wrapping_add(1);
            cx.after(delay, Timer::Service { key, round: manager.round });
        }
    }

    pub(crate) fn on_service_timer(&mut self, key: Key, round: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key).filter(|m| m.round == round) else {
            return;
        };
        if core::mem::take(&mut manager.probe_again) {
            let epoch = manager.plan.epoch;
            for node in &manager.taking_over {
                cx.emit(Event::ToHost { to: *node, msg: ToHost::Probe { service: key, epoch } });
            }
            self.later(key, TAKE_OVER, cx);
            return;
        }
        // Hosts that did not report are slow or dying; the detector says which.
        manager.taking_over.clear();
        self.reconcile(key, cx);
    }

    /// Compares what is with what is wanted, and does the next thing about it.
    fn reconcile(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if !manager.taking_over.is_empty() {
            return;
        }
        if manager.service.desired != Desired::Running {
            self.stop_all(key, cx);
            return;
        }
        let (live, want) = (manager.live().count(), usize::from(manager.want));
        let lost = manager.plan.slots.iter().any(|slot| slot.state == SlotState::Lost);
        if let Some(until) = self.hold_until.filter(|until| lost && live < want && *until > cx.now)
        {
            self.later(key, until - cx.now, cx);
            return;
        }
        if live < want {
            self.place_more(key, want - live, cx);
            return;
        }
        manager.blocked.clear();
        manager.blocked_times = 0;
        let before = manager.plan.slots.len();
        manager.plan.slots.retain(|slot| slot.state != SlotState::Lost);
        let replaced = manager.plan.slots.len() != before;
        if live > want {
            self.drop_surplus(key, live - want, cx);
        } else if replaced {
            self.store_plan(key, cx);
        }
        self.upgrade_next(key, cx);
    }

    fn stop_all(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.blocked.clear();
        let forget = manager.service.desired == Desired::Removed;
        let epoch = manager.plan.epoch;
        manager.plan.slots.retain(|slot| slot.state != SlotState::Lost);
        for slot in &mut manager.plan.slots {
            if slot.state != SlotState::Draining {
                slot.state = SlotState::Draining;
                let id = ReplicaId { service: key, number: slot.number };
                cx.emit(Event::ToHost { to: slot.node, msg: ToHost::Stop { id, epoch, forget } });
            }
        }
    }

    fn drop_surplus(&mut self, key: Key, count: usize, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let epoch = manager.plan.epoch;
        let forget = !manager.service.spec.keep_state;
        for _ in 0..count {
            // The one that serves least goes: not ready before ready, young before old.
            let rank = |slot: &&mut Slot| (slot.state == SlotState::Ready, u32::MAX - slot.number);
            let live = manager.plan.slots.iter_mut().filter(|slot| {
                matches!(slot.state, SlotState::Reserved | SlotState::Starting | SlotState::Ready)
            });
            let Some(slot) = live.min_by_key(rank) else { return };
            slot.state = SlotState::Draining;
            let id = ReplicaId { service: key, number: slot.number };
            let text = format!("one replica too many, stopping the one on {}", slot.node_name);
            cx.emit(Event::ToHost { to: slot.node, msg: ToHost::Stop { id, epoch, forget } });
            manager.note(text);
        }
        self.store_plan(key, cx);
    }

    /// Rolling update: one replica at a time, the next when the last is ready.
    fn upgrade_next(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let generation = manager.service.generation;
        let busy = manager
            .live()
            .any(|slot| slot.generation == generation && slot.state != SlotState::Ready);
        let Some(slot) = manager.plan.slots.iter_mut().find(|s| s.generation < generation && !busy)
        else {
            return;
        };
        slot.generation = generation;
        slot.state = SlotState::Starting;
        let (number, node) = (slot.number, slot.node);
        let text = format!("version {generation} goes to {}", slot.node_name);
        let mut sources = Vec::from([manager.service.deployed_from]);
        sources.extend(manager.plan.slots.iter().filter(|s| s.node != node).map(|s| s.node));
        manager.sources.insert(number, sources);
        manager.note(text);
        self.start_replica(key, number, cx);
        self.store_plan(key, cx);
    }

    fn place_more(&mut self, key: Key, need: usize, cx: &mut Cx<'_, Self>) {
        let now = cx.now;
        let full = self.ops.len() >= OPS_MAX;
        if full {
            self.later(key, BLOCKED, cx);
        }
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if manager.placing || full {
            return;
        }
        manager.placing = true;
        manager.avoid.retain(|_, (_, until)| *until + AVOID > now);
        let live = |slot: &&Slot| slot.state != SlotState::Lost;
        let search = Search {
            key,
            epoch: manager.plan.epoch,
            generation: manager.service.generation,
            spec: manager.service.spec.clone(),
            need,
            first_number: manager.plan.next_number,
            taken: manager.plan.slots.iter().filter(live).map(|slot| slot.node).collect(),
            avoid: manager
                .avoid
                .iter()
                .filter(|(_, (_, until))| *until > now)
                .map(|(node, _)| *node)
                .collect(),
            seed: cx.rng.u64(..),
        };
        self.start("place", |asker| place(asker, search), cx);
    }

    pub(crate) fn on_placed(&mut self, placed: Placed, cx: &mut Cx<'_, Self>) {
        let key = placed.service;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.placing = false;
        let epoch = manager.plan.epoch;
        for node in core::mem::take(&mut manager.returned) {
            cx.emit(Event::ToHost { to: node, msg: ToHost::Probe { service: key, epoch } });
        }
        // Reservations of an older term, or of a service that changed, lapse by themselves.
        if manager.plan.epoch.term != placed.term || manager.service.desired != Desired::Running {
            self.reconcile(key, cx);
            return;
        }
        let found = placed.slots.len();
        for (slot, sources) in placed.slots {
            manager.plan.next_number = manager.plan.next_number.max(slot.number.saturating_add(1));
            manager.note(format!("replica {} goes to {}", slot.number, slot.node_name));
            manager.sources.insert(slot.number, sources);
            manager.plan.slots.push(slot);
        }
        let missing = usize::from(manager.want).saturating_sub(manager.live().count());
        if missing > 0 {
            manager.blocked = placed.blocked;
            manager.blocked.truncate(BLOCKED_LINES);
            let delay = BLOCKED * (1 << manager.blocked_times.min(BLOCKED_DOUBLINGS));
            manager.blocked_times += 1;
            manager.note(format!("no place for {missing} more"));
            self.later(key, delay, cx);
        }
        self.watch_hosts(cx);
        if found > 0 {
            self.store_plan(key, cx);
        }
        self.touch(key, cx);
    }

    fn store_plan(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let mut version = self.store.next_version(key, PLAN, self.me);
        let Some(manager) = self.managers.get_mut(&key) else { return };
        version.counter = version.counter.max(manager.written.saturating_add(1));
        manager.written = version.counter;
        let term = manager.plan.epoch.term;
        let Ok(value) = postcard::to_allocvec(&manager.plan) else { return };
        let record = Record { key, name: PLAN.to_vec(), version, value: Some(value) };
        let copies = PLAN_COPIES.min(usize::try_from(self.place.size).unwrap_or(usize::MAX));
        let op = |asker| async move {
            let stored = !put(asker, record, copies).await.is_empty();
            Outcome::PlanStored { service: key, term, stored }
        };
        self.start("store plan", op, cx);
    }

    /// The plan is on disk here and elsewhere: now what it says may be started.
    pub(crate) fn on_plan_stored(
        &mut self,
        key: Key,
        term: u64,
        stored: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(manager) = self.managers.get_mut(&key).filter(|m| m.plan.epoch.term == term)
        else {
            return;
        };
        if !stored {
            manager.plan.slots.retain(|slot| slot.state != SlotState::Reserved);
            manager.sources.clear();
            manager.blocked = Vec::from(["the plan could not be written to disk".to_string()]);
            self.later(key, BLOCKED, cx);
            self.touch(key, cx);
            return;
        }
        let reserved: Vec<u32> = manager
            .plan
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Reserved)
            .map(|slot| slot.number)
            .collect();
        for number in reserved {
            if let Some(slot) = manager.plan.slots.iter_mut().find(|s| s.number == number) {
                slot.state = SlotState::Starting;
            }
        }
        let starting: Vec<u32> = manager.sources.keys().copied().collect();
        for number in starting {
            self.start_replica(key, number, cx);
        }
        self.touch(key, cx);
    }

    fn start_replica(&mut self, key: Key, number: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let sources = manager.sources.remove(&number).unwrap_or_default();
        let Some(slot) = manager.plan.slots.iter().find(|slot| slot.number == number) else {
            return;
        };
        let msg = ToHost::Start {
            id: ReplicaId { service: key, number },
            epoch: manager.plan.epoch,
            generation: slot.generation,
            spec: manager.service.spec.clone(),
            sources,
        };
        cx.emit(Event::ToHost { to: slot.node, msg });
    }

    /// Something people or waiting queries should hear of.
    fn touch(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.revision += 1;
        let view = manager.view(key);
        for (to, call) in core::mem::take(&mut manager.waiting) {
            self.respond(to, call, Response::View(view.clone()), cx);
        }
    }

    fn tell_people(&self, key: Key, text: String, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get(&key) else { return };
        let body = CastBody::Happened {
            by: self.me,
            by_name: String::new(),
            service: Some(manager.service.spec.name.clone()),
            text,
        };
        cx.emit(Event::Cast { call: 0, body, feedback: false });
    }

    pub(crate) fn watch_hosts(&self, cx: &mut Cx<'_, Self>) {
        let hosts = self.managers.values().flat_map(|m| m.plan.slots.iter());
        let live = hosts.filter(|slot| slot.state != SlotState::Lost).map(|slot| slot.node);
        cx.emit(Event::Watch(live.filter(|node| *node != self.me).collect()));
    }

    pub(crate) fn on_node_dead(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        let touched: Vec<Key> = self
            .managers
            .iter()
            .filter(|(_, m)| m.plan.slots.iter().any(|slot| slot.node == node))
            .map(|(key, _)| *key)
            .collect();
        for key in touched {
            let Some(manager) = self.managers.get_mut(&key) else { continue };
            manager.taking_over.remove(&node);
            let mut name = String::new();
            for slot in manager.plan.slots.iter_mut().filter(|slot| slot.node == node) {
                slot.state = SlotState::Lost;
                slot.note = "its node is gone".to_string();
                name.clone_from(&slot.node_name);
            }
            let text = format!("{name} lost; {} of {} ready", manager.ready(), manager.want);
            manager.note(text.clone());
            self.tell_people(key, text, cx);
            self.reconcile(key, cx);
            self.touch(key, cx);
        }
        self.watch_hosts(cx);
    }

    pub(crate) fn on_to_manager(&mut self, from: NodeId, msg: ToManager, cx: &mut Cx<'_, Self>) {
        self.dead.remove(&from);
        match msg {
            ToManager::Reserved { id, .. } => {
                self.on_reserved(from, id.service, id.number, Ok(()), cx);
            }
            ToManager::Refused { id, reason, .. } => {
                let reason = bounded(&reason);
                self.on_reserved(from, id.service, id.number, Err(reason), cx);
            }
            ToManager::Beat { id, generation, state, note, node_name } => {
                // Views and plans carry them: what a host says must not make those too large.
                let (note, node_name) = (bounded(&note), named(&node_name));
                let beat = Beat { from, id, generation, state, note, node_name };
                self.on_beat(beat, cx);
            }
            ToManager::Nothing { service } => self.on_nothing(from, service, cx),
            ToManager::Deposed { service, epoch } => self.on_deposed(from, service, epoch, cx),
        }
    }

    /// A host saw a higher term. If the key is still mine, mine must be higher yet.
    fn on_deposed(&mut self, from: NodeId, key: Key, epoch: Epoch, cx: &mut Cx<'_, Self>) {
        self.count("deposed");
        let me = self.me;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        // Refused in an earlier term of mine: the present one is on its way there.
        if manager.plan.epoch >= epoch || !epoch.fits() {
            return;
        }
        manager.taking_over.insert(from);
        manager.plan.epoch = epoch.next(me);
        // Reserved under the old term, and never started under it: these lapse by themselves.
        manager.plan.slots.retain(|slot| slot.state != SlotState::Reserved);
        manager.sources.clear();
        manager.taking_over.extend(manager.plan.slots.iter().map(|slot| slot.node));
        manager.probe_again = true;
        // Not at once: two that both believe to own the key would race at the speed of the wire.
        self.later(key, TAKE_OVER, cx);
    }

    /// A host of the plan that knows nothing of the service (it lost its disk, or never began).
    fn on_nothing(&mut self, from: NodeId, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.taking_over.remove(&from);
        manager.plan.slots.retain(|slot| slot.node != from);
        self.reconcile(key, cx);
        self.touch(key, cx);
    }

    fn on_beat(&mut self, beat: Beat, cx: &mut Cx<'_, Self>) {
        let Beat { from, id, state, .. } = beat;
        let key = id.service;
        let Some(manager) = self.managers.get_mut(&key) else {
            cx.emit(Event::ToHost { to: from, msg: ToHost::NotManager { service: key } });
            return;
        };
        let epoch = manager.plan.epoch;
        manager.taking_over.remove(&from);
        let known = manager.slot(id.number).is_some_and(|slot| slot.node == from);
        let runs = matches!(
            state,
            HostState::Fetching | HostState::Starting | HostState::Ready | HostState::Unready
        );
        if runs && !known {
            // A host runs one replica of a service: others that an old plan names are not there.
            manager.plan.slots.retain(|slot| slot.node != from);
        }
        match state {
            HostState::Gone => self.on_replica_gone(key, id.number, from, cx),
            HostState::Failed => self.on_replica_failed(key, id.number, from, beat.note, cx),
            _ if known => self.on_replica_state(beat, cx),
            HostState::Stopping | HostState::Reserved => {}
            HostState::Fetching | HostState::Starting | HostState::Ready | HostState::Unready => {
                self.on_returned(beat, cx);
            }
        }
        cx.emit(Event::ToHost { to: from, msg: ToHost::BeatAck { service: key, epoch } });
    }

    fn on_replica_gone(&mut self, key: Key, number: u32, from: NodeId, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let before = manager.plan.slots.len();
        manager.plan.slots.retain(|slot| slot.number != number || slot.node != from);
        if manager.plan.slots.len() == before {
            return;
        }
        if manager.plan.slots.is_empty() && manager.service.desired != Desired::Running {
            self.store_plan(key, cx);
        }
        self.reconcile(key, cx);
        self.touch(key, cx);
        self.watch_hosts(cx);
    }

    fn on_replica_failed(
        &mut self,
        key: Key,
        number: u32,
        from: NodeId,
        note: String,
        cx: &mut Cx<'_, Self>,
    ) {
        let now = cx.now;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let failed = manager.plan.slots.iter().find(|s| s.number == number && s.node == from);
        let Some(name) = failed.map(|slot| slot.node_name.clone()) else { return };
        let (times, until) = manager.avoid.entry(from).or_insert((0, now));
        *until = now + AVOID * (1 << (*times).min(AVOID_DOUBLINGS));
        *times += 1;
        manager.plan.slots.retain(|slot| slot.number != number || slot.node != from);
        let text = format!("failed on {name}: {note}");
        manager.note(text.clone());
        self.tell_people(key, text, cx);
        self.reconcile(key, cx);
        self.touch(key, cx);
    }

    fn on_replica_state(&mut self, beat: Beat, cx: &mut Cx<'_, Self>) {
        let Beat { id, generation, state, note, .. } = beat;
        let (key, number) = (id.service, id.number);
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let Some(slot) = manager.slot(number) else { return };
        // A report of the version before the one it was just told to run.
        if generation < slot.generation {
            return;
        }
        let new = SlotState::of_host(state);
        if slot.state == SlotState::Draining && new != SlotState::Draining {
            // It was away when it was told to stop.
            let (node, epoch) = (slot.node, manager.plan.epoch);
            let removed = manager.service.desired == Desired::Removed;
            let forget = removed || !manager.service.spec.keep_state;
            cx.emit(Event::ToHost { to: node, msg: ToHost::Stop { id, epoch, forget } });
            return;
        }
        if slot.state == new && slot.note == note && slot.generation == generation {
            return;
        }
        let known = manager.old_news.remove(&number) && new == SlotState::Ready;
        let Some(slot) = manager.slot(number) else { return };
        let was = slot.state;
        slot.state = new;
        slot.generation = generation;
        slot.note = note;
        let text = match (was, new) {
            _ if known => None,
            (SlotState::Ready, SlotState::Ready) => None,
            (_, SlotState::Ready) => Some(format!("replica {number} ready on {}", slot.node_name)),
            (SlotState::Ready, _) => {
                Some(format!("replica {number} on {}: {}", slot.node_name, slot.note))
            }
            _ => None,
        };
        if let Some(text) = text {
            manager.note(text.clone());
            self.tell_people(key, text, cx);
        }
        self.reconcile(key, cx);
        self.touch(key, cx);
    }

    /// A replica that is not in the plan: it came back after it was replaced, or the plan was
    /// lost. Taken in where one is missing, stopped where none is.
    fn on_returned(&mut self, beat: Beat, cx: &mut Cx<'_, Self>) {
        let Beat { from, id, generation, state, node_name, .. } = beat;
        let key = id.service;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let epoch = manager.plan.epoch;
        let running = manager.service.desired == Desired::Running;
        let here = manager.live().any(|slot| slot.node == from);
        let taken = manager.slot(id.number).is_some();
        let wanted = manager.live().count() < usize::from(manager.want);
        if running && wanted && !here && !taken && manager.placing {
            // It may be the one that is being looked for: asked again when that is over.
            manager.returned.insert(from);
            return;
        }
        if running && wanted && !here && !taken {
            let slot = Slot {
                number: id.number,
                node: from,
                node_name,
                generation,
                state: SlotState::of_host(state),
                note: "came back".to_string(),
            };
            manager.plan.next_number = manager.plan.next_number.max(id.number.saturating_add(1));
            manager.plan.slots.push(slot);
            self.watch_hosts(cx);
            self.store_plan(key, cx);
            self.reconcile(key, cx);
            self.touch(key, cx);
            return;
        }
        let forget = !manager.service.spec.keep_state;
        let text = format!("a replica came back on {node_name} and is not needed");
        manager.note(text);
        self.count("returned_surplus");
        cx.emit(Event::ToHost { to: from, msg: ToHost::Stop { id, epoch, forget } });
    }

    pub(crate) fn on_query(
        &mut self,
        from: NodeId,
        call: u32,
        key: Key,
        seen: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.manages(key) {
            self.respond(from, call, Response::NotManager, cx);
            return;
        }
        let Some(manager) = self.managers.get_mut(&key) else {
            self.respond(from, call, Response::Unknown, cx);
            return;
        };
        let view = manager.view(key);
        if view.revision == seen && manager.waiting.len() < WAITING_MAX {
            manager.waiting.push((from, call));
            cx.after(POLL, Timer::Poll { key, from, call });
        } else {
            self.respond(from, call, Response::View(view), cx);
        }
    }

    pub(crate) fn on_poll_due(&mut self, key: Key, from: NodeId, call: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let before = manager.waiting.len();
        manager.waiting.retain(|waiting| *waiting != (from, call));
        if manager.waiting.len() != before {
            let view = manager.view(key);
            self.respond(from, call, Response::View(view), cx);
        }
    }

    pub(crate) fn on_why(&mut self, from: NodeId, call: u32, key: Key, cx: &mut Cx<'_, Self>) {
        let response = match self.managers.get(&key) {
            _ if !self.manages(key) => Response::NotManager,
            None => Response::Unknown,
            Some(manager) => {
                let mut lines = Vec::from([format!(
                    "{} wants {} replicas: {}",
                    manager.service.spec.name, manager.want, manager.because
                )]);
                lines.extend(manager.history.iter().cloned());
                for slot in &manager.plan.slots {
                    lines.push(format!(
                        "replica {} on {}: {:?} {}",
                        slot.number, slot.node_name, slot.state, slot.note
                    ));
                }
                lines.extend(manager.blocked.iter().map(|reason| format!("missing: {reason}")));
                Response::Why(lines)
            }
        };
        self.respond(from, call, response, cx);
    }
}

/// A host's report of one replica.
struct Beat {
    from: NodeId,
    id: ReplicaId,
    generation: u64,
    state: HostState,
    note: String,
    node_name: String,
}

/// Everything the search for places needs to know; the manager may be gone when it ends.
struct Search {
    key: Key,
    epoch: Epoch,
    generation: u64,
    spec: Spec,
    need: usize,
    first_number: u32,
    taken: BTreeSet<NodeId>,
    avoid: BTreeSet<NodeId>,
    seed: u64,
}

/// Asks everybody, orders the answers, reserves until enough have room.
async fn place(asker: Asker, search: Search) -> Outcome {
    let trees = search.spec.artifacts.iter().map(|(_, tree)| tree.root).collect();
    let program = search.spec.host_program().map(ToString::to_string);
    let answer = asker.ask(Ask::Cast(CastBody::Describe { trees, program })).await;
    let nodes = match answer {
        Reply::Parts { parts, .. } => descriptions(&parts),
        _ => Vec::new(),
    };
    let mut rng = fastrand::Rng::with_seed(search.seed);
    let choice = allocator::choose(&search.spec, &nodes, &search.taken, &search.avoid, &mut rng);
    let mut blocked: Vec<String> = choice
        .refused
        .iter()
        .filter(|(node, _, _)| !search.taken.contains(node))
        .map(|(_, name, reason)| format!("{name}: {reason}"))
        .collect();
    let mut candidates = choice.candidates.into_iter();
    let mut slots = Vec::new();
    let mut number = search.first_number;
    while slots.len() < search.need {
        let mut asked = Vec::new();
        for candidate in candidates.by_ref().take(search.need - slots.len()) {
            let id = ReplicaId { service: search.key, number };
            let msg = ToHost::Reserve { id, epoch: search.epoch, needs: search.spec.needs };
            asked.push((number, asker.ask(Ask::Reserve { to: candidate.node, msg }), candidate));
            number = number.saturating_add(1);
        }
        if asked.is_empty() {
            break;
        }
        for (number, answer, candidate) in asked {
            match answer.await {
                Reply::Reserved(Ok(())) => {
                    let sources = holders(&search.spec, &nodes, candidate.node);
                    let slot = Slot {
                        number,
                        node: candidate.node,
                        node_name: candidate.name,
                        generation: search.generation,
                        state: SlotState::Reserved,
                        note: String::new(),
                    };
                    slots.push((slot, sources));
                }
                Reply::Reserved(Err(reason)) => {
                    blocked.push(format!("{}: {reason}", candidate.name));
                }
                _ => {}
            }
        }
    }
    if blocked.is_empty() && slots.len() < search.need {
        let all = nodes.len();
        blocked.push(format!("the community has {all} nodes and each runs one replica at most"));
    }
    let term = search.epoch.term;
    Outcome::Placed(Placed { service: search.key, term, slots, blocked })
}

/// Nodes that hold the package `node` needs.
fn holders(
    spec: &Spec,
    nodes: &[dugnad_resource::describe::Description],
    node: NodeId,
) -> Vec<NodeId> {
    let Some(target) = nodes.iter().find(|n| n.peer.id == node) else { return Vec::new() };
    let Some(tree) = spec.artifact(target.profile.arch) else { return Vec::new() };
    let holds = nodes.iter().filter(|n| n.holds.contains(&tree.root));
    holds.map(|n| n.peer.id).collect()
}

/// The node descriptions among the parts of a feedback.
pub(crate) fn descriptions(parts: &[Vec<u8>]) -> Vec<dugnad_resource::describe::Description> {
    let decoded = parts.iter().filter_map(|part| postcard::from_bytes::<CastPart>(part).ok());
    decoded
        .filter_map(|part| match part {
            CastPart::Node(mut description) => {
                description.profile.name = named(&description.profile.name);
                Some(description)
            }
            CastPart::Services(_) | CastPart::Ports(_) => None,
        })
        .collect()
}
