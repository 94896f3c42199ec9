//! Comparing what is with what is wanted: finding places, writing the plan, starting, stopping.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::execute::{Epoch, ReplicaId, ToHost};
use dugnad_resource::spec::{Spec, Want};

use super::review;
use super::{AVOID, BLOCKED, BLOCKED_DOUBLINGS, BLOCKED_LINES, PLAN_COPIES, Placed, TAKE_OVER};
use crate::cast::{CastBody, descriptions};
use crate::deployment::allocator::{self, marks};
use crate::deployment::deployer::Sum;
use crate::deployment::service::{Desired, PLAN, ReplicaState, Slot};
use crate::deployment::{Asker, AskerExt, Deployment, Event, OPS_MAX, Outcome, Timer};
use crate::persistence::record::Record;

/// The bits of a plan's version below its term: writes within one term.
pub(crate) const TERM_SHIFT: u32 = 28;

impl Deployment {
    /// Looks after the service again in `delay`; an earlier appointment is void.
    pub(super) fn later(&mut self, key: Key, delay: Duration, cx: &mut Cx<'_, Self>) {
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
            self.stop_again(key, cx);
            self.later(key, TAKE_OVER, cx);
            return;
        }
        // Hosts that did not report are slow or dying; the detector says which. The question may
        // be lost, too: one that was on its way into the ring then had no address.
        let silent = core::mem::take(&mut manager.taking_over);
        manager.unheard.extend(silent);
        let hosts: Vec<NodeId> = manager.plan.slots.iter().map(|slot| slot.node).collect();
        manager.unheard.retain(|node| hosts.contains(node));
        self.reconcile(key, cx);
    }

    /// Compares what is with what is wanted, and does the next thing about it.
    pub(super) fn reconcile(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if !manager.taking_over.is_empty() || self.ending {
            return;
        }
        // Who left and comes again is a host like any other.
        let hosts: Set<NodeId> = manager.live().map(|slot| slot.node).collect();
        manager.leaving.retain(|node| hosts.contains(node));
        let moves = manager.moving.filter(|number| manager.live().any(|s| s.number == *number));
        manager.moving = moves;
        if !manager.placing {
            let epoch = manager.plan.epoch;
            for node in core::mem::take(&mut manager.returned) {
                cx.emit(Event::ToHost { to: node, msg: ToHost::Probe { service: key, epoch } });
            }
        }
        if manager.service.desired != Desired::Running {
            self.stop_all(key, cx);
            return;
        }
        self.review_later(key, cx);
        self.tune_later(key, cx);
        self.improve_later(cx);
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let (live, want) = (manager.staying().count(), usize::from(manager.sum.count));
        let restarted = self.hold_until.is_some_and(|until| until > cx.now);
        let unsaid = manager.decided < manager.plan.epoch && !restarted;
        // A host that was not seen since this node started may just be starting, too.
        let missing =
            |slot: &Slot| slot.state == ReplicaState::Lost && !self.met.contains(&slot.node);
        let starting = manager.plan.slots.iter().any(missing);
        if let Some(until) =
            self.hold_until.filter(|until| starting && live < want && *until > cx.now)
        {
            self.later(key, until - cx.now, cx);
            return;
        }
        if live < want {
            self.look_for_places(key, want - live, None, cx);
            return;
        }
        manager.blocked.clear();
        manager.blocked_times = 0;
        let before = manager.plan.slots.len();
        manager.plan.slots.retain(|slot| slot.state != ReplicaState::Lost);
        let replaced = manager.plan.slots.len() != before;
        // Whoever manages it after a merge must see in which term this was decided; but not of one
        // that may just have been away: see `take_over`.
        if replaced || unsaid {
            self.store_plan(key, cx);
        }
        self.drop_surplus(key, cx);
        self.upgrade_next(key, cx);
    }

    pub(super) fn stop_all(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.blocked.clear();
        let forget = manager.service.desired.is_removed() && manager.service.forgets();
        let epoch = manager.plan.epoch;
        manager.plan.slots.retain(|slot| slot.state != ReplicaState::Lost);
        for slot in &mut manager.plan.slots {
            if slot.state != ReplicaState::Draining {
                slot.state = ReplicaState::Draining;
                let id = ReplicaId { service: key, number: slot.number };
                cx.emit(Event::ToHost { to: slot.node, msg: ToHost::Stop { id, epoch, forget } });
            }
        }
    }

    /// Looks for places, `beside` the replica (number, node) that a new version comes for, if any.
    pub(super) fn look_for_places(
        &mut self,
        key: Key,
        need: usize,
        beside: Option<(u32, NodeId)>,
        cx: &mut Cx<'_, Self>,
    ) {
        let now = cx.now;
        let full = self.calls.len() >= OPS_MAX;
        if full {
            self.later(key, BLOCKED, cx);
        }
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if manager.placing || full {
            return;
        }
        manager.placing = true;
        manager.avoid.retain(|_, (_, until)| *until + AVOID > now);
        // Beside the old one is the best place for the new one, unless there is a new one: that has
        // taken the place of another, which is gone.
        let generation = manager.service.generation;
        let elsewhere = |slot: &&Slot| {
            slot.state != ReplicaState::Lost
                && (beside.is_none_or(|(_, node)| node != slot.node)
                    || slot.generation == generation)
        };
        let search = Search {
            key,
            epoch: manager.plan.epoch,
            generation: manager.service.generation,
            spec: manager.service.spec.clone(),
            need,
            staying: manager.staying().map(|slot| slot.node).collect(),
            least: manager.sum.predicted.map(|_| manager.goal_count()),
            first_number: manager.plan.next_number,
            taken: manager.plan.slots.iter().filter(elsewhere).map(|slot| slot.node).collect(),
            beside,
            avoid: manager
                .avoid
                .iter()
                .filter(|(_, (_, until))| *until > now)
                .map(|(node, _)| *node)
                .collect(),
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
        // It may have been scaled meanwhile.
        if let Some((want, sum)) = placed.sum {
            if want == manager.service.spec.want {
                manager.take_goal(sum);
            }
        }
        let found = placed.slots.len();
        if found == 0 && manager.moving.take().is_some() {
            // The better place is gone: it stays.
            self.reconcile(key, cx);
            return;
        }
        if let (Some(number), 0) = (placed.beside, found) {
            // No room for both: better a short gap than no update.
            self.replace_in_place(key, number, cx);
            self.touch(key, cx);
            return;
        }
        for (slot, sources) in placed.slots {
            manager.plan.next_number = manager.plan.next_number.max(slot.number.saturating_add(1));
            manager.note(format!("replica {} goes to {}", slot.number, slot.node_name));
            manager.sources.insert(slot.number, sources);
            manager.plan.slots.push(slot);
        }
        let missing = usize::from(manager.sum.count).saturating_sub(manager.staying().count());
        if missing > 0 {
            manager.blocked = placed.blocked;
            manager.blocked.truncate(BLOCKED_LINES);
            let delay = BLOCKED * (1 << manager.blocked_times.min(BLOCKED_DOUBLINGS));
            manager.blocked_times += 1;
            manager.note(format!("no place for {missing} more"));
            self.later(key, delay, cx);
            self.drop_surplus(key, cx);
        }
        self.watch_hosts(cx);
        if found > 0 {
            self.store_plan(key, cx);
        }
        self.touch(key, cx);
    }

    pub(super) fn store_plan(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        if self.ending {
            // It would not reach everybody before this node is gone; the next manager writes.
            return;
        }
        let mut version = self.records.read().next_version(key, PLAN, self.me);
        let Some(manager) = self.managers.get_mut(&key) else { return };
        // A plan of a lower term never wins, however often it was written.
        let of_term = manager.plan.epoch.term << TERM_SHIFT;
        version.counter = version.counter.max(manager.written.saturating_add(1)).max(of_term);
        manager.written = version.counter;
        let term = manager.plan.epoch.term;
        manager.decided = manager.plan.epoch;
        let Ok(value) = postcard::to_allocvec(&manager.plan) else { return };
        let record = Record { key, name: PLAN.to_vec(), version, value: Some(value) };
        let copies = PLAN_COPIES.min(usize::try_from(self.position.size).unwrap_or(usize::MAX));
        let op = |asker: Asker| async move {
            let stored = !asker.put(record, copies).await.is_empty();
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
            manager.plan.slots.retain(|slot| slot.state != ReplicaState::Reserved);
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
            .filter(|slot| slot.state == ReplicaState::Reserved)
            .map(|slot| slot.number)
            .collect();
        for number in reserved {
            if let Some(slot) = manager.plan.slots.iter_mut().find(|s| s.number == number) {
                slot.state = ReplicaState::Starting;
            }
        }
        let starting: Vec<u32> = manager.sources.keys().copied().collect();
        for number in starting {
            self.start_replica(key, number, cx);
        }
        self.touch(key, cx);
    }

    pub(super) fn start_replica(&mut self, key: Key, number: u32, cx: &mut Cx<'_, Self>) {
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
}

/// Everything the search for places needs to know; the manager may be gone when it ends.
struct Search {
    key: Key,
    epoch: Epoch,
    generation: u64,
    spec: Spec,
    need: usize,
    /// Nodes whose replica stays.
    staying: Vec<NodeId>,
    /// How many replicas there are to be, if the nodes were looked at: here it does not get less.
    least: Option<u8>,
    first_number: u32,
    taken: Set<NodeId>,
    /// The replica it comes for, and its node.
    beside: Option<(u32, NodeId)>,
    avoid: Set<NodeId>,
}

/// How many replicas a goal takes with these nodes, which must be all there are; without a goal
/// they do not matter.
fn sum(search: &Search, nodes: &[Description]) -> Option<Sum> {
    search.spec.goal()?;
    let sum = review::sum(&search.spec, nodes, &search.staying);
    Some(Sum { count: sum.count.max(search.least.unwrap_or(0)), ..sum })
}

/// Asks everybody, orders the answers, reserves until enough have room.
async fn place(asker: Asker, search: Search) -> Outcome {
    let trees = marks(&search.spec);
    let programs = allocator::programs(&search.spec);
    let (parts, complete) = asker.cast(CastBody::Describe { trees, programs }).await;
    let nodes = descriptions(&parts);
    let sum = sum(&search, &nodes).filter(|_| complete);
    let need = match (&sum, search.beside) {
        (Some(sum), None) => {
            let need = usize::from(sum.count).saturating_sub(search.staying.len());
            // The load may want more.
            let load = matches!(search.spec.want, Want::Load(_));
            if load { search.need.max(need) } else { search.need.min(need) }
        }
        _ => search.need,
    };
    let choice = allocator::choose(&search.spec, &nodes, &search.taken, &search.avoid);
    let mut blocked: Vec<String> = choice
        .refused
        .iter()
        .filter(|(node, _, _)| !search.taken.contains(node))
        .map(|(_, name, reason)| format!("{name}: {reason}"))
        .collect();
    // Where the old one is, its state and its visitors are.
    let (near, far): (Vec<_>, Vec<_>) = choice
        .candidates
        .into_iter()
        .partition(|candidate| search.beside.is_some_and(|(_, node)| node == candidate.node));
    let mut candidates = near.into_iter().chain(far);
    let mut slots = Vec::new();
    let mut number = search.first_number;
    while slots.len() < need {
        let mut asked = Vec::new();
        for candidate in candidates.by_ref().take(need - slots.len()) {
            let id = ReplicaId { service: search.key, number };
            let msg = ToHost::Reserve { id, epoch: search.epoch, needs: search.spec.needs };
            asked.push((number, asker.reserve(candidate.node, msg), candidate));
            number = number.saturating_add(1);
        }
        if asked.is_empty() {
            break;
        }
        for (number, answer, candidate) in asked {
            match answer.await {
                Ok(()) => {
                    let sources = holders(&search.spec, &nodes, candidate.node);
                    let slot = Slot {
                        number,
                        node: candidate.node,
                        node_name: candidate.name,
                        generation: search.generation,
                        state: ReplicaState::Reserved,
                        note: String::new(),
                    };
                    slots.push((slot, sources));
                }
                Err(reason) => blocked.push(format!("{}: {reason}", candidate.name)),
            }
        }
    }
    if blocked.is_empty() && slots.len() < need {
        let all = nodes.len();
        blocked.push(format!("the community has {all} nodes and each runs one replica at most"));
    }
    let term = search.epoch.term;
    let beside = search.beside.map(|(number, _)| number);
    let sum = sum.map(|sum| (search.spec.want, sum));
    Outcome::Placed(Placed { service: search.key, term, beside, slots, blocked, sum })
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
