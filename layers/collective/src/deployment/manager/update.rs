//! From one version to the next: the new replica starts first, serves, and then the old one goes.
//! A version that does not become ready is withdrawn, and the one before it stays.

use alloc::format;
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Key, NodeId};
use dugnad_resource::execute::{ReplicaId, ToHost};
use dugnad_resource::executor::{clip_log, clip_note};
use dugnad_resource::spec::Reconcile;

use crate::deployment::client::forget_packages;
use crate::deployment::service::{
    Desired, FAILED, Failed, PREVIOUS, ReplicaState, SPEC, Service, Slot,
};
use crate::deployment::{Asker, AskerExt, Deployment, Event, Outcome};
use crate::persistence::Question;
use crate::persistence::record::Record;

/// A replica of a new version that comes to an end so often before it was ever ready will not get
/// ready.
const UNREADY_MAX: u32 = 2;

impl Deployment {
    /// Stops what is too much, and only what others already serve for.
    pub(super) fn drop_surplus(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let (want, generation) = (usize::from(manager.sum.count), manager.service.generation);
        let mut stopped = Vec::new();
        loop {
            let staying: Vec<&Slot> = manager.staying().collect();
            let ready = staying.iter().filter(|slot| slot.state == ReplicaState::Ready).count();
            let current = |slot: &&&Slot| slot.generation == generation;
            let pending = staying.iter().filter(current).any(|s| s.state != ReplicaState::Ready);
            let old = staying.iter().any(|slot| slot.generation != generation);
            // A successor that is not ready yet stands beside the one it comes for.
            let room = want + usize::from(old && pending);
            // The one that serves least goes: not ready before ready, another version before the
            // wanted one, then as the service says (by itself: what came back before what was
            // planned), one beside its successor before one that has none yet, young before old.
            let rank = |slot: &&&Slot| {
                let planned = manager.preference(slot);
                let (serves, current) =
                    (slot.state == ReplicaState::Ready, slot.generation == generation);
                let on_its_node =
                    |other: &&Slot| other.node == slot.node && other.generation == generation;
                let alone = !staying.iter().copied().any(|other| on_its_node(&other));
                (serves, current, planned, alone, u32::MAX - slot.number)
            };
            let mut number = None;
            if staying.len() > room && manager.service.spec.reconcile() == Reconcile::BestScore {
                let known = |slot: &&Slot| {
                    manager.scores.as_ref().is_some_and(|s| s.contains_key(&slot.node))
                };
                if ready > want && !staying.iter().copied().all(|slot| known(&slot)) {
                    return self.score_nodes(key, cx);
                }
            }
            if staying.len() > room {
                number = staying.iter().min_by_key(rank).map(|slot| slot.number);
            } else if ready >= want
                || (ready > 0 && !manager.blocked.is_empty())
                || manager.waits_for_its_turn()
            {
                // Who leaves waits for as many as are wanted, or for as many as there is room for;
                // but where only one may run, the next waits for it.
                number = manager.live().find(|slot| manager.goes(slot)).map(|slot| slot.number);
            }
            let Some(out) = number.and_then(|number| manager.drain(number)) else { break };
            stopped.push(out);
        }
        manager.scores = None;
        if stopped.is_empty() {
            return;
        }
        let epoch = manager.plan.epoch;
        let forget = !manager.service.spec.keeps_state();
        for (node, number, name) in stopped {
            manager.note(format!("replica {number} on {name} is no longer needed: it is stopped"));
            let id = ReplicaId { service: key, number };
            cx.emit(Event::ToHost { to: node, msg: ToHost::Stop { id, epoch, forget } });
        }
        self.store_plan(key, cx);
    }

    /// Rolling update: one replica at a time, the next when the last is ready.
    pub(super) fn upgrade_next(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let generation = manager.service.generation;
        let busy = manager
            .staying()
            .any(|slot| slot.generation == generation && slot.state != ReplicaState::Ready);
        let old = manager.staying().find(|slot| slot.generation != generation);
        let Some((number, node)) = old.map(|slot| (slot.number, slot.node)).filter(|_| !busy)
        else {
            return;
        };
        // Two programs must not write to the same state.
        let spec = &manager.service.spec;
        if spec.keeps_state() || spec.one_at_a_time() {
            self.replace_in_place(key, number, cx);
        } else {
            self.look_for_places(key, 1, Some((number, node)), cx);
        }
    }

    /// The old replica ends before the new one starts, on the same node.
    pub(super) fn replace_in_place(&mut self, key: Key, number: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let generation = manager.service.generation;
        let Some(slot) = manager.slot(number) else { return };
        let older = slot.generation < generation;
        let (node, name) = (slot.node, slot.node_name.clone());
        let sibling = manager.staying().any(|s| s.node == node && s.generation == generation);
        if !older || sibling {
            // Back to an earlier version: hosts do not go back, so it is stopped and placed anew.
            // So it is where the new version runs already, and there is no room elsewhere.
            let stopped = manager.drain(number);
            let epoch = manager.plan.epoch;
            if stopped.is_some() {
                let id = ReplicaId { service: key, number };
                let msg = ToHost::Stop { id, epoch, forget: false };
                cx.emit(Event::ToHost { to: node, msg });
            }
            self.store_plan(key, cx);
            return;
        }
        let Some(slot) = manager.slot(number) else { return };
        slot.generation = generation;
        slot.state = ReplicaState::Starting;
        manager.in_place.insert(number);
        let mut sources = Vec::from([manager.service.deployed_from]);
        sources.extend(manager.plan.slots.iter().filter(|s| s.node != node).map(|s| s.node));
        manager.sources.insert(number, sources);
        manager.note(format!("version {generation} goes to {name}, in place of the one there"));
        self.start_replica(key, number, cx);
        self.store_plan(key, cx);
    }

    /// A replica of the new version came to an end before it was ready.
    pub(super) fn on_unready(
        &mut self,
        key: Key,
        number: u32,
        note: &str,
        given_up: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let generation = manager.service.generation;
        let Some(slot) = manager.plan.slots.iter().find(|slot| slot.number == number) else {
            return;
        };
        if slot.generation != generation || manager.service.desired != Desired::Running {
            return;
        }
        let name = slot.node_name.clone();
        let times = manager.unready.entry(number).or_default();
        *times += 1;
        if !given_up && *times < UNREADY_MAX {
            return;
        }
        let in_place = manager.in_place.contains(&number);
        let previous: Option<Service> = self.read(key, PREVIOUS);
        let known = previous.filter(|previous| previous.spec.key() == key && previous.fits());
        let serves = |previous: &Service| {
            let of = |slot: &Slot| slot.generation == previous.generation;
            let serves = |slot: &Slot| of(slot) && slot.state == ReplicaState::Ready;
            previous.generation < generation
                && (in_place || self.managers.get(&key).is_some_and(|m| m.staying().any(serves)))
        };
        let back = known.filter(serves);
        if back.is_some() || given_up {
            let failed = Failed { generation, node_name: name, reason: clip_log(note) };
            self.write(key, FAILED, postcard::to_allocvec(&failed).ok(), cx);
        }
        if let Some(previous) = back {
            self.withdraw(key, previous, note, cx);
        }
    }

    /// The version before is the wanted one again.
    fn withdraw(&mut self, key: Key, previous: Service, note: &str, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let (bad, good) = (manager.service.generation, previous.generation);
        let text = format!(
            "version {bad} did not get ready and is withdrawn, version {good} stays: {}",
            clip_note(note)
        );
        let (spec, kept) = (manager.service.spec.clone(), previous.spec.clone());
        manager.set_service(previous.clone());
        manager.note(text.clone());
        self.count("versions_withdrawn");
        self.write(key, SPEC, postcard::to_allocvec(&previous).ok(), cx);
        let forget = move |asker: Asker| async move {
            forget_packages(&asker, &spec, &[&kept]).await;
            Outcome::Nothing
        };
        self.start("forget a version", forget, cx);
        self.tell_people(key, "service.failed", text, cx);
        self.announce_change(key, cx);
        self.touch(key, cx);
    }

    /// Writes a record of a service this node manages, as its newest version.
    fn write(&mut self, key: Key, name: &[u8], value: Option<Vec<u8>>, cx: &mut Cx<'_, Self>) {
        let version = self.records.read().next_version(key, name, self.me);
        let record = Record { key, name: name.to_vec(), version, value };
        // It counts here at once: what follows must not be decided on the one before.
        let question = Question::TakeIn(Vec::from([record.clone()]));
        cx.emit(Event::Records { call: None, question });
        let op = |asker: Asker| async move {
            asker.put(record, 1).await;
            Outcome::Nothing
        };
        self.start("write", op, cx);
    }

    /// A host is about to leave, or stays after all.
    pub(super) fn on_leaving(
        &mut self,
        from: NodeId,
        key: Key,
        leaving: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(manager) = self.managers.get_mut(&key) else {
            cx.emit(Event::ToHost { to: from, msg: ToHost::NotManager { service: key } });
            return;
        };
        // Who runs nothing of it has nothing to hand over.
        let Some(name) = manager.live().find(|s| s.node == from).map(|s| s.node_name.clone())
        else {
            return;
        };
        let changed =
            if leaving { manager.leaving.insert(from) } else { manager.leaving.remove(&from) };
        if changed {
            let what = if leaving { "is about to leave: its replica moves" } else { "stays" };
            manager.note(format!("{name} {what}"));
            self.reconcile(key, cx);
            self.touch(key, cx);
        }
    }
}
