//! Whether a replica would be better off elsewhere: looked at every hour, as nodes come and others
//! fill up (self-configuration, paper 3.4.4; PROTOCOL.md 10.16).
//!
//! A move costs a start, and perhaps a package on its way: it must pay clearly, the new replica is
//! ready before the old one ends, and a service moves one at a time. A service that keeps state, or
//! of which only one may run, stays where it is.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::map::Set;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Hash, Key, NodeId};
use dugnad_resource::describe::{Description, PROGRAMS_MAX};

use super::Manager;
use crate::cast::{CastBody, descriptions};
use crate::deployment::service::{Desired, ReplicaState};
use crate::deployment::{Asker, AskerExt, Deployment, Outcome, Timer, allocator};

/// How often it is looked, and how much later at most: not all managers at the same moment, for
/// the same empty node.
const EVERY: Duration = Duration::from_secs(3_600);
const JITTER_MS: u64 = 1_800_000;
/// Services that are looked at together; of more, these at random.
const SERVICES: usize = 32;

impl Manager {
    /// Whether all is as it should be, and a replica may move.
    fn is_settled(&self) -> bool {
        let spec = &self.service.spec;
        let may = self.service.desired == Desired::Running && !spec.keeps_state();
        let as_planned = self.plan.slots.len() == usize::from(self.sum.count)
            && self.plan.slots.iter().all(|slot| {
                slot.state == ReplicaState::Ready && slot.generation == self.service.generation
            });
        may && as_planned && !spec.one_at_a_time() && !self.placing && self.taking_over.is_empty()
    }
}

impl Deployment {
    /// Appoints the next look, if none is: one for all services managed here.
    pub(super) fn improve_later(&mut self, cx: &mut Cx<'_, Self>) {
        if !self.improving {
            self.improving = true;
            let jitter = Duration::from_millis(cx.rng.u64(0..JITTER_MS));
            cx.after(EVERY + jitter, Timer::Improve);
        }
    }

    pub(crate) fn on_improve(&mut self, cx: &mut Cx<'_, Self>) {
        self.improving = false;
        if self.managers.is_empty() || self.ending {
            return;
        }
        let settled = self.managers.iter().filter(|(_, manager)| manager.is_settled());
        let mut keys: Vec<Key> = settled.map(|(key, _)| *key).collect();
        cx.rng.shuffle(&mut keys);
        keys.truncate(SERVICES);
        let specs =
            || keys.iter().filter_map(|key| self.managers.get(key)).map(|m| &m.service.spec);
        let trees: Set<Hash> = specs().flat_map(allocator::marks).collect();
        let mut programs: Set<String> = specs().flat_map(allocator::programs).collect();
        programs = programs.into_iter().take(PROGRAMS_MAX).collect();
        if !keys.is_empty() {
            let (trees, programs) = (trees.into_iter().collect(), programs.into_iter().collect());
            let body = CastBody::Describe { trees, programs };
            self.start("look for better places", move |asker| look(asker, keys, body), cx);
        }
        self.improve_later(cx);
    }

    /// What each move takes counts for the next.
    pub(crate) fn on_looked(
        &mut self,
        keys: Vec<Key>,
        mut nodes: Vec<Description>,
        cx: &mut Cx<'_, Self>,
    ) {
        for key in keys {
            // It may have changed meanwhile.
            let Some(manager) = self.managers.get_mut(&key).filter(|m| m.is_settled()) else {
                continue;
            };
            let slots: Vec<(u32, NodeId)> =
                manager.plan.slots.iter().map(|slot| (slot.number, slot.node)).collect();
            let avoid = manager.avoid.keys().copied().collect();
            let spec = &manager.service.spec;
            let Some(better) = allocator::better(spec, &nodes, &slots, &avoid) else { continue };
            allocator::moved(spec, &mut nodes, &better);
            manager.moving = Some(better.number);
            let text = better.to_string();
            manager.note(text.clone());
            self.tell_people(key, "service.changed", text, cx);
            self.reconcile(key, cx);
            self.touch(key, cx);
        }
    }
}

async fn look(asker: Asker, keys: Vec<Key>, body: CastBody) -> Outcome {
    let (parts, complete) = asker.cast(body).await;
    let nodes = if complete { descriptions(&parts) } else { Vec::new() };
    Outcome::Looked { keys, nodes }
}
