//! Becoming the manager of a service: first what the other holders of its records know, then what
//! the hosts say. A node that was away has yesterday's plan on its disk, and must not act on it.

use alloc::string::ToString;
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::ops::first;
use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::execute::{Epoch, ReplicaId, ToHost};

use super::{Manager, STOP_AGAIN, STOP_DOUBLINGS, TAKE_OVER};
use crate::deployment::service::{Desired, PLAN, Plan, ReplicaState, SPEC, Service};
use crate::deployment::{
    Ask, Asker, AskerExt, Deployment, Event, Outcome, Reply, Request, Response, Timer,
};
use crate::persistence::Question;
use crate::persistence::record::{DEGREE, Record, class};

/// How long the other holders have to be found, and as long again to answer: the same order as
/// the check of a closed connection, because services wait meanwhile when a manager died.
const RECALL: Duration = Duration::from_millis(500);
/// How long hosts have to say what they run: much longer than they need.
const CONFIRM: Duration = Duration::from_secs(10);
/// Records of one service that one answer carries at most, in bytes.
const RECALL_BYTES: usize = 48 * 1024;

impl Deployment {
    /// The records of a service this node answers for are here; it may be the first to know.
    pub(super) fn begin_take_over(&mut self, key: Key, service: Service, cx: &mut Cx<'_, Self>) {
        if !self.recalling.contains(&key) && !self.recall(key, cx) {
            self.take_over(key, service, cx);
        }
    }

    /// Asks the other holders what they know of a service; whether there is anybody to ask.
    pub(super) fn recall(&mut self, key: Key, cx: &mut Cx<'_, Self>) -> bool {
        let (me, others) = (self.me, self.position.copy_holders(self.me));
        if others.is_empty() || !self.recalling.insert(key) {
            return false;
        }
        let asked = self.start("ask the holders", move |asker| recall(asker, key, me, others), cx);
        if !asked {
            self.recalling.remove(&key);
        }
        asked
    }

    /// What the other holders know; the newest counts from now on.
    pub(crate) fn on_recalled(
        &mut self,
        key: Key,
        mut records: Vec<Record>,
        cx: &mut Cx<'_, Self>,
    ) {
        records.retain(|record| record.key == key);
        // It counts as asking until they are taken in: what is news here must not make it ask
        // again.
        let op = |asker: Asker| async move {
            asker.records(Question::TakeIn(records)).await;
            Outcome::TakenIn { service: key }
        };
        if !self.start("take in records", op, cx) {
            self.on_taken_in(key, cx);
        }
    }

    /// What the others knew is here now.
    pub(crate) fn on_taken_in(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        self.recalling.remove(&key);
        if !self.managers.contains_key(&key) {
            if let Some(service) = self.managed_service(key) {
                self.take_over(key, service, cx);
            }
        }
    }

    /// All records of the service that are here, whoever answers for them.
    pub(crate) fn on_recall(&self, from: NodeId, call: u32, key: Key, cx: &mut Cx<'_, Self>) {
        let mut bytes = 0;
        let names = [PLAN, SPEC];
        let store = self.records.read();
        let held = names.iter().filter_map(|name| store.get(key, name));
        let small = held.filter(|record| {
            bytes += record.bytes();
            bytes <= RECALL_BYTES
        });
        self.respond(from, call, Response::Recalled(small.cloned().collect()), cx);
    }

    fn take_over(&mut self, key: Key, service: Service, cx: &mut Cx<'_, Self>) {
        let mut plan: Plan = self.read(key, PLAN).filter(Plan::fits).unwrap_or_default();
        let restarted = self.hold_until.is_some_and(|until| until > cx.now);
        plan.epoch = if self.met_others && !restarted && plan.epoch.manager != self.me {
            plan.epoch.next(self.me)
        } else {
            // It was away, and perhaps so were all it has met: whoever was not has decided in a
            // higher term, and that counts when they meet. Hosts that heard of one say so.
            Epoch { term: plan.epoch.term, manager: self.me }
        };
        let mut manager = Manager::new(service, plan);
        for slot in &mut manager.plan.slots {
            if self.dead.contains_key(&slot.node) {
                slot.state = ReplicaState::Lost;
            } else if slot.state != ReplicaState::Lost {
                manager.taking_over.insert(slot.node);
                // Reserved when the plan was written; what came after only its host knows.
                if slot.state == ReplicaState::Reserved {
                    slot.state = ReplicaState::Starting;
                }
            }
        }
        manager.known_before = manager.plan.slots.iter().map(|slot| slot.number).collect();
        manager.doubt_starts();
        let epoch = manager.plan.epoch;
        for node in &manager.taking_over {
            cx.emit(Event::ToHost { to: *node, msg: ToHost::Probe { service: key, epoch } });
        }
        if !manager.plan.slots.is_empty() {
            manager.note("this node manages it now".to_string());
        }
        let new = manager.plan.slots.is_empty() && manager.service.desired == Desired::Running;
        let waits = !manager.taking_over.is_empty();
        self.managers.insert(key, manager);
        self.confirm_later(key, cx);
        self.stop_again(key, cx);
        self.watch_hosts(cx);
        self.announce_change(key, cx);
        if new {
            self.saw_wanted(key, cx);
        }
        if waits {
            self.later(key, TAKE_OVER, cx);
        } else {
            self.reconcile(key, cx);
        }
        self.touch(key, cx);
    }

    /// Appoints a look at what is doubted.
    pub(super) fn confirm_later(&self, key: Key, cx: &mut Cx<'_, Self>) {
        if self.managers.get(&key).is_some_and(|manager| !manager.unsaid.is_empty()) {
            cx.after(CONFIRM, Timer::Confirm { key });
        }
    }

    /// Hosts that have said what they run, and not that they start what the plan names, are told to
    /// stop it: then they say that there is nothing, and another place is looked for.
    pub(crate) fn on_confirm(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let (unsaid, epoch) = (core::mem::take(&mut manager.unsaid), manager.plan.epoch);
        for slot in &mut manager.plan.slots {
            if slot.state != ReplicaState::Starting || !unsaid.contains(&slot.number) {
                continue;
            }
            if manager.taking_over.contains(&slot.node) || manager.unheard.contains(&slot.node) {
                manager.unsaid.insert(slot.number);
                continue;
            }
            slot.state = ReplicaState::Draining;
            let id = ReplicaId { service: key, number: slot.number };
            cx.emit(Event::ToHost {
                to: slot.node,
                msg: ToHost::Stop { id, epoch, forget: false },
            });
        }
        self.confirm_later(key, cx);
        self.reconcile(key, cx);
    }

    /// What an earlier manager stopped, and whose end it may not have heard of.
    pub(super) fn stop_again(&self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get(&key) else { return };
        let forget = manager.service.forgets();
        let epoch = manager.plan.epoch;
        for slot in manager.plan.slots.iter().filter(|slot| slot.state == ReplicaState::Draining) {
            let id = ReplicaId { service: key, number: slot.number };
            cx.emit(Event::ToHost { to: slot.node, msg: ToHost::Stop { id, epoch, forget } });
        }
    }

    /// Replicas on their way out that nobody has said to have ended: their hosts are told once
    /// more, until they say so or die.
    pub(crate) fn on_stop_due(&mut self, key: Key, tries: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.stopping = manager.is_draining() && !self.ending;
        if manager.stopping {
            self.stop_again(key, cx);
            let doubled = tries.min(STOP_DOUBLINGS);
            cx.after(STOP_AGAIN * (1 << doubled), Timer::Stop { key, tries: doubled + 1 });
        }
    }

    /// Another manager wrote a plan. One of a higher term was decided later, by somebody who knew
    /// more: it counts from now on, and what this node had started is taken in or stopped.
    pub(crate) fn on_plan_record(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(plan) = self.read::<Plan>(key, PLAN).filter(Plan::fits) else { return };
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if plan.epoch.manager == self.me {
            return;
        }
        let epoch = manager.plan.epoch;
        if plan.epoch > manager.decided {
            let mine: Vec<NodeId> = manager.live().map(|slot| slot.node).collect();
            manager.plan.next_number = manager.plan.next_number.max(plan.next_number);
            manager.plan.slots = plan.slots;
            manager.decided = plan.epoch;
            for slot in manager.plan.slots.iter_mut().filter(|s| s.state == ReplicaState::Reserved)
            {
                slot.state = ReplicaState::Starting;
            }
            manager.doubt_starts();
            self.confirm_later(key, cx);
            self.speak_above(key, plan.epoch, mine, cx);
            self.watch_hosts(cx);
            return;
        }
        let known: Set<u32> = manager.plan.slots.iter().map(|slot| slot.number).collect();
        for slot in plan.slots.iter().filter(|slot| !known.contains(&slot.number)) {
            let msg = ToHost::Probe { service: key, epoch };
            cx.emit(Event::ToHost { to: slot.node, msg });
        }
    }
}

/// Asks the successors and the owners of the other places, as far as they answer in time.
async fn recall(asker: Asker, key: Key, me: NodeId, successors: Vec<NodeId>) -> Outcome {
    let mut holders: Set<NodeId> = successors.into_iter().collect();
    let finds = (1..DEGREE).map(|x| asker.ask(Ask::Find(class(key, x))));
    let mut found: Vec<_> = finds.chain([asker.ask(Ask::Sleep(RECALL))]).collect();
    while found.len() > 1 {
        match first(&mut found).await {
            Reply::Over => break,
            Reply::Found(owner) => holders.extend(owner),
            _ => {}
        }
    }
    holders.remove(&me);
    let request = |to| Ask::Call { to, request: Request::Recall { service: key } };
    let calls = holders.into_iter().map(|node| asker.ask(request(node)));
    let mut answers: Vec<_> = calls.chain([asker.ask(Ask::Sleep(RECALL))]).collect();
    let mut records = Vec::new();
    while answers.len() > 1 {
        match first(&mut answers).await {
            Reply::Over => break,
            Reply::Response(Some(Response::Recalled(known))) => records.extend(known),
            _ => {}
        }
    }
    Outcome::Recalled { service: key, records }
}
