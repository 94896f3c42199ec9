//! The service manager: one a service, at the node that owns its key (PROTOCOL.md 10.2, 10.7).
//!
//! It holds nothing that is not in the service's two records or known to the hosts: when its node
//! dies, the next owner reads the plan, asks the hosts, and goes on in a higher term.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};
use dugnad_resource::condition::Value;
use dugnad_resource::execute::{Epoch, ToHost};
use dugnad_resource::executor::clip_note;
use dugnad_resource::spec::{REPLICAS_MAX, Want};
use serde::Deserialize;

mod hosts;
mod improve;
mod queries;
pub(crate) mod reconcile;
pub(crate) mod review;
mod surplus;
mod take_over;
mod tune;
mod update;

use super::deployer::{self, Sum};
use super::service::{Desired, Plan, ReplicaState, SPEC, Service, ServiceView, Slot};
use super::tuner::Tuner;
use super::{Deployment, Event, Response, Timer};
use crate::cast::CastBody;

/// How long the hosts of a plan have to report to a new manager.
const TAKE_OVER: Duration = Duration::from_millis(1_200);
/// A service that found no place is tried again after this, doubling.
const BLOCKED: Duration = Duration::from_secs(5);
const BLOCKED_DOUBLINGS: u32 = 2;
/// A node where a replica failed is avoided this long, doubling (PROTOCOL.md 10.11).
const AVOID: Duration = Duration::from_secs(60);
const AVOID_DOUBLINGS: u32 = 6;
/// A host that does not say that it stopped a replica is told again after this, doubling: it may
/// have said so to somebody else who believed to manage the service.
const STOP_AGAIN: Duration = Duration::from_secs(30);
const STOP_DOUBLINGS: u32 = 4;
/// A query that sees nothing new is answered after this.
const POLL: Duration = Duration::from_millis(1_500);
const WAITING_MAX: usize = 64;
const HISTORY_MAX: usize = 32;
/// Reasons why no place was found that are kept: views travel in one message.
const BLOCKED_LINES: usize = 64;
/// Copies of a plan to wait for before anything is started.
const PLAN_COPIES: usize = 2;

/// What came of looking for places.
#[derive(Clone, Debug)]
pub struct Placed {
    service: Key,
    term: u64,
    /// The replica a new version was to be placed beside.
    beside: Option<u32>,
    slots: Vec<(Slot, Vec<NodeId>)>,
    blocked: Vec<String>,
    /// If all nodes were looked at: for what was wanted then.
    sum: Option<(Want, Sum)>,
}

#[derive(Debug)]
pub struct Manager {
    service: Service,
    /// How many replicas; of a goal it follows from the nodes, and is looked at again.
    sum: Sum,
    /// If it follows its load: how many its goal takes.
    floor: u8,
    /// Names the timer that looks again, and how often in a row fewer would have done.
    review: u32,
    fewer: u8,
    /// What was reported of its load, and whether a look at that is appointed.
    tuner: Tuner,
    tuning: bool,
    plan: Plan,
    /// Whose decisions the plan holds: the epoch this manager speaks in may be raised before it
    /// knows what was decided in the one before.
    decided: Epoch,
    /// Hosts of an earlier term that have not reported yet.
    taking_over: Set<NodeId>,
    /// Hosts of the plan that have not said what they run: asked when they can be reached.
    pub(super) unheard: Set<NodeId>,
    /// A host obeyed a higher term than ours: ask again in the new one.
    probe_again: bool,
    placing: bool,
    /// Replicas of an earlier term whose state is not news when they report it again.
    known_before: Set<u32>,
    /// Replicas the plan names as starting, and whose hosts have not said so.
    unsaid: Set<u32>,
    /// Hosts whose replica came back while a place was being looked for.
    returned: Set<NodeId>,
    blocked: Vec<String>,
    blocked_times: u32,
    avoid: Map<NodeId, (u32, Time)>,
    /// Replicas that came back by themselves: the first to go if there are too many.
    extra: Set<u32>,
    /// Points of its nodes, while it is to be decided by them who goes.
    scores: Option<Map<NodeId, i64>>,
    /// Hosts that are about to leave.
    leaving: Set<NodeId>,
    /// The replica that moves to a better place.
    moving: Option<u32>,
    /// Whether hosts are to be told again to stop what is on its way out.
    stopping: bool,
    /// Replicas that have all they need, and may wait for the one before to end.
    arrived: Set<u32>,
    /// Replicas that a new version replaced where they are.
    in_place: Set<u32>,
    /// How often a replica came to an end before it was ready.
    unready: Map<u32, u32>,
    /// Who can be asked for the package, by replica number.
    sources: Map<u32, Vec<NodeId>>,
    /// Counter of the last plan written: two may be on their way at once.
    written: u64,
    revision: u64,
    round: u32,
    waiting: Vec<(NodeId, u32)>,
    history: VecDeque<String>,
}

impl Manager {
    fn new(service: Service, plan: Plan) -> Self {
        let mut sum = deployer::at_first(service.spec.want);
        let live = plan.slots.iter().filter(|slot| slot.state != ReplicaState::Draining);
        let live = u8::try_from(live.count()).unwrap_or(REPLICAS_MAX);
        // Who managed it before has looked at the nodes, or at the load.
        match service.spec.want {
            Want::Availability(_) => sum.count = sum.count.max(live),
            Want::Load(scale) if live > scale.min => {
                sum.count = live.min(scale.max);
                sum.because = format!("{} of {scale}", sum.count);
            }
            Want::Load(_) | Want::Replicas(_) | Want::Single => {}
        }
        Self {
            service,
            sum,
            floor: 0,
            review: 0,
            fewer: 0,
            tuner: Tuner::default(),
            tuning: false,
            decided: plan.epoch,
            plan,
            taking_over: Set::new(),
            unheard: Set::new(),
            probe_again: false,
            placing: false,
            known_before: Set::new(),
            unsaid: Set::new(),
            returned: Set::new(),
            blocked: Vec::new(),
            blocked_times: 0,
            avoid: Map::new(),
            extra: Set::new(),
            scores: None,
            leaving: Set::new(),
            moving: None,
            stopping: false,
            arrived: Set::new(),
            in_place: Set::new(),
            unready: Map::new(),
            sources: Map::new(),
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
            matches!(
                slot.state,
                ReplicaState::Reserved | ReplicaState::Starting | ReplicaState::Ready
            )
        })
    }

    /// What the plan names as starting, and nobody has confirmed: a manager that died may have
    /// written it down and never told the host.
    fn doubt_starts(&mut self) {
        let starts = |slot: &&Slot| slot.state == ReplicaState::Starting;
        let sources = &self.sources;
        let doubted = self.plan.slots.iter().filter(starts).map(|slot| slot.number);
        self.unsaid.extend(doubted.filter(|number| !sources.contains_key(number)));
    }

    /// Whether some replica has not been said to have ended.
    fn is_draining(&self) -> bool {
        self.plan.slots.iter().any(|slot| slot.state == ReplicaState::Draining)
    }

    /// Live, and neither on a node that is about to leave nor on its way to a better one.
    fn staying(&self) -> impl Iterator<Item = &Slot> {
        self.live().filter(|slot| !self.goes(slot))
    }

    /// Whether a replica is to end when another serves in its place.
    fn goes(&self, slot: &Slot) -> bool {
        self.leaving.contains(&slot.node) || self.moving == Some(slot.number)
    }

    /// Whether a successor has all it needs and begins when the one before has ended.
    fn waits_for_its_turn(&self) -> bool {
        self.service.spec.one_at_a_time()
            && self.staying().any(|slot| self.arrived.contains(&slot.number))
    }

    /// Replicas that serve, of whatever version; never more than are wanted.
    fn ready(&self) -> usize {
        let ready = self.plan.slots.iter().filter(|slot| slot.state == ReplicaState::Ready).count();
        ready.min(usize::from(self.sum.count))
    }

    /// Marks a replica as on its way out; where it is, its number, the name of the node.
    fn drain(&mut self, number: u32) -> Option<(NodeId, u32, String)> {
        // After a merge an old plan may name another replica by the same number.
        let live = |slot: &&mut Slot| slot.number == number && slot.state != ReplicaState::Draining;
        let slot =
            self.plan.slots.iter_mut().filter(|s| s.state != ReplicaState::Lost).find(live)?;
        slot.state = ReplicaState::Draining;
        let out = (slot.node, number, slot.node_name.clone());
        self.forget_number(number);
        Some(out)
    }

    fn forget_number(&mut self, number: u32) {
        self.extra.remove(&number);
        self.arrived.remove(&number);
        self.in_place.remove(&number);
        self.unready.remove(&number);
        self.sources.remove(&number);
    }

    fn set_service(&mut self, service: Service) {
        if service.spec.want != self.service.spec.want {
            let count = self.sum.count;
            self.sum = deployer::at_first(service.spec.want);
            if let (Want::Load(_), Want::Load(scale)) = (self.service.spec.want, service.spec.want)
            {
                self.sum.count = count.clamp(scale.min, scale.max);
            }
            self.tuner = Tuner::default();
        }
        if service.spec.goal() != self.service.spec.goal() {
            self.floor = 0;
        }
        self.service = service;
        self.blocked.clear();
        self.blocked_times = 0;
        self.avoid.clear();
        self.unready.clear();
    }

    #[must_use]
    pub fn view(&self, key: Key, me: NodeId) -> ServiceView {
        ServiceView {
            name: self.service.spec.name.clone(),
            service: key,
            generation: self.service.generation,
            desired: self.service.desired,
            port: self.service.spec.port,
            reliable: self.service.spec.reliable(),
            kind: self.service.spec.kind,
            want: if self.service.desired == Desired::Running { self.sum.count } else { 0 },
            because: self.sum.because.clone(),
            predicted: self.sum.predicted,
            scale: self.scale(),
            ready: u8::try_from(self.ready()).unwrap_or(u8::MAX),
            manager: me,
            revision: (self.plan.epoch.term << 32)
                | (self.revision.wrapping_add(1) & u64::from(u32::MAX)),
            slots: self.plan.slots.clone(),
            blocked: self.blocked.clone(),
        }
    }

    fn note(&mut self, text: String) {
        let text = clip_note(&text);
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(text);
    }

    fn slot(&mut self, number: u32) -> Option<&mut Slot> {
        self.plan.slots.iter_mut().find(|slot| slot.number == number)
    }
}

impl Deployment {
    pub fn managers(&self) -> impl Iterator<Item = (&Key, &Manager)> {
        self.managers.iter()
    }

    /// What this node manages, as it says it in a broadcast.
    #[must_use]
    pub fn views(&self) -> Vec<ServiceView> {
        let known =
            |(_, m): &(&Key, &Manager)| !m.service.desired.is_removed() || !m.plan.slots.is_empty();
        self.managers.iter().filter(known).map(|(key, m)| m.view(*key, self.me)).collect()
    }

    pub(crate) fn manages(&self, key: Key) -> bool {
        self.position.owns(key)
    }

    pub(crate) fn refresh_managers(&mut self, cx: &mut Cx<'_, Self>) {
        let gone: Vec<Key> =
            self.managers.keys().copied().filter(|key| !self.manages(*key)).collect();
        for key in gone {
            // Hosts look for the new manager at once, and not at their next beat.
            let slots = self.managers.remove(&key).map(|m| m.plan.slots).unwrap_or_default();
            for slot in slots {
                let msg = ToHost::NotManager { service: key };
                cx.emit(Event::ToHost { to: slot.node, msg });
            }
        }
        let store = self.records.read();
        let mine = store.iter().filter(|r| r.name == SPEC && self.manages(r.key));
        let mine: Vec<Key> = mine.map(|r| r.key).collect();
        drop(store);
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
        let Some(service) = self.managed_service(key) else { return };
        let Some(manager) = self.managers.get_mut(&key) else {
            self.begin_take_over(key, service, cx);
            return;
        };
        if manager.service == service {
            return;
        }
        let removed = service.desired == Desired::Removed;
        manager.set_service(service);
        self.announce_change(key, cx);
        self.saw_wanted(key, cx);
        if removed {
            // Only now, when it happens: a record of a removal that somebody kept while the service
            // was deployed anew must not delete what that has written.
            let body = CastBody::Removed { service: key };
            cx.emit(Event::Cast { call: None, body });
        }
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
        cx.emit(Event::Cast { call: None, body });
    }

    /// The service of this key, if this node is to manage it and its record is sound.
    fn managed_service(&mut self, key: Key) -> Option<Service> {
        if !self.manages(key) || self.ending {
            return None;
        }
        let service: Service = self.read(key, SPEC)?;
        if service.spec.check().is_err() || service.spec.key() != key || !service.fits() {
            self.count("invalid_service_record");
            return None;
        }
        Some(service)
    }

    pub(super) fn read<T: for<'a> Deserialize<'a>>(&self, key: Key, name: &[u8]) -> Option<T> {
        postcard::from_bytes(self.records.read().get(key, name)?.value.as_ref()?).ok()
    }

    /// Something people or waiting queries should hear of.
    fn touch(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.revision += 1;
        if manager.is_draining() && !core::mem::replace(&mut manager.stopping, true) {
            cx.after(STOP_AGAIN, Timer::Stop { key, tries: 1 });
        }
        let view = manager.view(key, self.me);
        for (to, call) in core::mem::take(&mut manager.waiting) {
            self.respond(to, call, Response::View(view.clone()), cx);
        }
    }

    /// Tells people of it: everybody now, and who subscribed to this type of events.
    fn tell_people(&self, key: Key, name: &'static str, text: String, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get(&key) else { return };
        let service = manager.service.spec.name.clone();
        self.saw(name, &service, text.clone(), cx);
        let (by, by_name) = (self.me, String::new());
        let body = CastBody::Happened { by, by_name, service: Some(service), text };
        cx.emit(Event::Cast { call: None, body });
    }

    /// For who subscribed to this type of events.
    fn saw(&self, name: &'static str, service: &str, text: String, cx: &mut Cx<'_, Self>) {
        let text = Value::Text(text);
        let (by, of) = (Value::Text(self.me.short().to_string()), Value::Text(service.into()));
        let attributes = [("by", by), ("service", of), ("text", text)];
        let attributes = attributes.map(|(name, value)| (name.to_string(), value)).into();
        cx.emit(Event::Saw { name, attributes });
    }

    /// A service is wanted, in a new version, or no more.
    fn saw_wanted(&self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get(&key) else { return };
        let (service, name) = (&manager.service, &manager.service.spec.name);
        match service.desired {
            Desired::Running => {
                let text = format!("version {}", service.generation);
                self.saw("service.deployed", name, text, cx);
            }
            Desired::Stopped => self.saw("service.changed", name, "stopped".to_string(), cx),
            Desired::Removed | Desired::RemovedButState => {
                self.saw("service.changed", name, "removed".to_string(), cx);
            }
        }
    }
}
