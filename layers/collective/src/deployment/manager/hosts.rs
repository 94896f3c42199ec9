//! What a manager hears of the hosts of its replicas.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Key, NodeId};
use dugnad_resource::describe::clip_name;
use dugnad_resource::execute::{Epoch, HostState, ReplicaId, ToHost, ToManager};
use dugnad_resource::executor::{clip_log, clip_note};

use super::{AVOID, AVOID_DOUBLINGS, TAKE_OVER};
use crate::deployment::operations::Awaited;
use crate::deployment::service::{Desired, ReplicaState, Slot};
use crate::deployment::{Deployment, Event, Reply};

impl Deployment {
    /// The answer of a host to a reservation.
    pub(crate) fn on_reserved(
        &mut self,
        from: NodeId,
        service: Key,
        number: u32,
        result: Result<(), String>,
        cx: &mut Cx<'_, Self>,
    ) {
        let asked = |out: &Awaited| match out {
            Awaited::Reserve { to, service: s, number: n } => {
                *to == from && *s == service && *n == number
            }
            _ => false,
        };
        if let Some(call) = self.calls.find(asked) {
            self.answer(call, Reply::Reserved(result), cx);
        }
    }

    pub(crate) fn watch_hosts(&self, cx: &mut Cx<'_, Self>) {
        let hosts = self.managers.values().flat_map(|m| m.plan.slots.iter());
        let live = hosts.filter(|slot| slot.state != ReplicaState::Lost).map(|slot| slot.node);
        cx.emit(Event::Watch(live.filter(|node| *node != self.me).collect()));
    }

    /// Its services may have outlived its agent, or start again: it is asked, not given up.
    pub(crate) fn on_node_restarted(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        self.ask_again(node, |state| state != ReplicaState::Draining, cx);
    }

    /// A node given up too early is reached again: what it runs counts, if it runs.
    pub(crate) fn on_node_back(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        self.ask_again(node, |state| state == ReplicaState::Lost, cx);
        for (key, manager) in &self.managers {
            // Until it answers it has not said what it runs.
            if manager.unheard.contains(&node) {
                let msg = ToHost::Probe { service: *key, epoch: manager.plan.epoch };
                cx.emit(Event::ToHost { to: node, msg });
            }
        }
    }

    fn ask_again(&mut self, node: NodeId, which: fn(ReplicaState) -> bool, cx: &mut Cx<'_, Self>) {
        for (key, manager) in &mut self.managers {
            let mut runs = false;
            let slots = manager.plan.slots.iter_mut().filter(|slot| slot.node == node);
            for slot in slots.filter(|slot| which(slot.state)) {
                runs = true;
                slot.state = ReplicaState::Starting;
                slot.note = "its node started again".to_string();
            }
            if runs {
                let msg = ToHost::Probe { service: *key, epoch: manager.plan.epoch };
                cx.emit(Event::ToHost { to: node, msg });
            }
        }
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
            manager.unheard.remove(&node);
            let mut name = String::new();
            for slot in manager.plan.slots.iter_mut().filter(|slot| slot.node == node) {
                slot.state = ReplicaState::Lost;
                slot.note = "its node is gone".to_string();
                name.clone_from(&slot.node_name);
            }
            let text = format!("{name} lost; {} of {} ready", manager.ready(), manager.sum.count);
            manager.note(text.clone());
            self.tell_people(key, "service.replica", text, cx);
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
                let reason = clip_note(&reason);
                self.on_reserved(from, id.service, id.number, Err(reason), cx);
            }
            ToManager::Beat { id, generation, state, note, node_name } => {
                // Views and plans carry them: what a host says must not make those too large.
                let (note, node_name) = (clip_log(&note), clip_name(&node_name));
                let beat = Beat { from, id, generation, state, note, node_name };
                self.on_beat(beat, cx);
            }
            ToManager::Nothing { service } => self.on_nothing(from, service, cx),
            ToManager::Deposed { service, epoch } => self.on_deposed(from, service, epoch, cx),
            ToManager::Leaving { service, leaving } => self.on_leaving(from, service, leaving, cx),
            ToManager::Load { service, load } => self.on_load(from, service, load, cx),
        }
    }

    /// A host saw a higher term. If the key is still mine, mine must be higher yet.
    fn on_deposed(&mut self, from: NodeId, key: Key, epoch: Epoch, cx: &mut Cx<'_, Self>) {
        self.count("deposed");
        let me = self.me;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        // Refused in an earlier term of mine: the present one is on its way there.
        if manager.plan.epoch >= epoch {
            return;
        }
        if !epoch.may_follow(manager.plan.epoch) {
            self.count("epoch_out_of_bounds");
            return;
        }
        // Reserved under the old term, and never started under it: these lapse by themselves.
        manager.plan.slots.retain(|slot| slot.state != ReplicaState::Reserved);
        // Whoever spoke in it decided something: that is found out before anything is done.
        if epoch.manager != me {
            self.recall(key, cx);
        }
        self.speak_above(key, epoch, Vec::from([from]), cx);
    }

    /// From now on in a term above `epoch`, as soon as the hosts of the plan and `also` have said
    /// what they run.
    pub(super) fn speak_above(
        &mut self,
        key: Key,
        epoch: Epoch,
        also: Vec<NodeId>,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.plan.epoch = manager.plan.epoch.max(epoch.next(me));
        manager.sources.clear();
        manager.taking_over.extend(manager.plan.slots.iter().map(|slot| slot.node));
        manager.taking_over.extend(also);
        manager.probe_again = true;
        // Not at once: two that both believe to own the key would race at the speed of the wire.
        self.later(key, TAKE_OVER, cx);
    }

    /// A host of the plan that knows nothing of the service (it lost its disk, or never began).
    fn on_nothing(&mut self, from: NodeId, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.taking_over.remove(&from);
        manager.unheard.remove(&from);
        manager.plan.slots.retain(|slot| slot.node != from);
        self.reconcile(key, cx);
        self.touch(key, cx);
    }

    fn on_beat(&mut self, beat: Beat, cx: &mut Cx<'_, Self>) {
        let Beat { from, id, state, .. } = beat;
        let key = id.service;
        let Some(manager) = self.managers.get_mut(&key) else {
            cx.emit(Event::ToHost { to: from, msg: ToHost::NotManager { service: key } });
            // It runs, so there is a record of it; after a merge of rings perhaps not here yet.
            if self.manages(key) && !self.ending {
                self.recall(key, cx);
            }
            return;
        };
        let epoch = manager.plan.epoch;
        manager.taking_over.remove(&from);
        manager.unheard.remove(&from);
        let known = manager.slot(id.number).is_some_and(|slot| slot.node == from);
        if known && state != HostState::Reserved {
            manager.unsaid.remove(&id.number);
        }
        let runs = matches!(
            state,
            HostState::Fetching | HostState::Starting | HostState::Ready | HostState::Unready
        );
        if runs && !known {
            // It did not say that it runs what an old plan names there: it is told to stop that,
            // and says that there is nothing, if so.
            let ghost = |slot: &&mut Slot| {
                slot.node == from
                    && matches!(slot.state, ReplicaState::Starting | ReplicaState::Lost)
                    && !manager.sources.contains_key(&slot.number)
            };
            for slot in manager.plan.slots.iter_mut().filter(ghost) {
                slot.state = ReplicaState::Draining;
                let id = ReplicaId { service: key, number: slot.number };
                let msg = ToHost::Stop { id, epoch, forget: false };
                cx.emit(Event::ToHost { to: from, msg });
            }
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
        manager.forget_number(number);
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
        self.on_unready(key, number, &note, true, cx);
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let (times, until) = manager.avoid.entry(from).or_insert((0, now));
        *until = now + AVOID * (1 << (*times).min(AVOID_DOUBLINGS));
        *times += 1;
        manager.plan.slots.retain(|slot| slot.number != number || slot.node != from);
        manager.forget_number(number);
        let text = format!("failed on {name}: {}", clip_note(&note));
        manager.note(text.clone());
        self.tell_people(key, "service.failed", text, cx);
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
        let new = ReplicaState::of_host(state);
        let log = note;
        let note = clip_note(&log);
        if slot.state == ReplicaState::Draining && new != ReplicaState::Draining {
            // It was away when it was told to stop.
            let (node, epoch) = (slot.node, manager.plan.epoch);
            let forget = manager.service.forgets();
            cx.emit(Event::ToHost { to: node, msg: ToHost::Stop { id, epoch, forget } });
            return;
        }
        let same = slot.state == new && slot.note == note && slot.generation == generation;
        // Its host has the package: the one before may end for it.
        let arrives = state == HostState::Starting
            && manager.service.spec.one_at_a_time()
            && manager.arrived.insert(number);
        if same && !arrives {
            return;
        }
        let known = manager.known_before.remove(&number) && new == ReplicaState::Ready;
        let Some(slot) = manager.slot(number) else { return };
        let was = slot.state;
        slot.state = new;
        slot.generation = generation;
        slot.note = note;
        let text = match (was, new) {
            _ if known => None,
            (ReplicaState::Ready, ReplicaState::Ready) => None,
            (_, ReplicaState::Ready) => {
                Some(format!("replica {number} ready on {}", slot.node_name))
            }
            (ReplicaState::Ready, _) => {
                Some(format!("replica {number} on {}: {}", slot.node_name, slot.note))
            }
            _ => None,
        };
        if new == ReplicaState::Ready {
            manager.unready.remove(&number);
            manager.in_place.remove(&number);
        }
        if let Some(text) = text {
            manager.note(text.clone());
            self.tell_people(key, "service.replica", text, cx);
        }
        if state == HostState::Unready && was == ReplicaState::Starting {
            self.on_unready(key, number, &log, false, cx);
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
        // One that serves is worth more than one that may: it stays until that one is ready.
        let serving = manager.live().filter(|slot| slot.state == ReplicaState::Ready).count();
        let serves = state == HostState::Ready && serving < usize::from(manager.sum.count);
        let wanted = serves || manager.live().count() < usize::from(manager.sum.count);
        // Who stays is then decided among all of them.
        let wanted = wanted || (state == HostState::Ready && manager.may_stay(generation));
        let undecided =
            !manager.taking_over.is_empty() || (wanted && !here && !taken && manager.placing);
        if running && undecided {
            // It may be the one that is being looked for, or there is a later one that has not
            // reported yet: asked again when that is over.
            manager.returned.insert(from);
            return;
        }
        if running && wanted && !here && !taken {
            let slot = Slot {
                number: id.number,
                node: from,
                node_name,
                generation,
                state: ReplicaState::of_host(state),
                note: "came back".to_string(),
            };
            manager.plan.next_number = manager.plan.next_number.max(id.number.saturating_add(1));
            manager.plan.slots.push(slot);
            manager.extra.insert(id.number);
            self.watch_hosts(cx);
            self.store_plan(key, cx);
            self.reconcile(key, cx);
            self.touch(key, cx);
            return;
        }
        let forget = !manager.service.spec.keeps_state();
        let text = format!("a replica came back on {node_name} and is not needed");
        manager.note(text);
        self.count("returned_surplus");
        cx.emit(Event::ToHost { to: from, msg: ToHost::Stop { id, epoch, forget } });
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
