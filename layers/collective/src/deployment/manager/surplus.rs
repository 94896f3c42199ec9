//! Which replicas stay when there are more than are wanted: the service file says it
//! (`[partition] reconcile`).

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::map::Map;
use dugnad_kernel::{Cx, Key, NodeId};
use dugnad_resource::spec::Reconcile;

use super::Manager;
use crate::cast::{CastBody, descriptions};
use crate::deployment::service::{ReplicaState, Slot};
use crate::deployment::{Asker, AskerExt, Deployment, Outcome, allocator};

impl Manager {
    /// Whether a replica that serves and is one too many may stay in place of another.
    pub(super) fn may_stay(&self, generation: u64) -> bool {
        let ready = self.live().filter(|slot| slot.state == ReplicaState::Ready).count();
        self.service.spec.reconcile() != Reconcile::KeepReplacement
            && generation == self.service.generation
            && !self.service.spec.one_at_a_time()
            && ready <= 2 * usize::from(self.sum.count)
    }

    /// The higher, the rather it stays.
    pub(super) fn preference(&self, slot: &Slot) -> i64 {
        let planned = !self.extra.contains(&slot.number);
        match self.service.spec.reconcile() {
            Reconcile::KeepReplacement => i64::from(planned),
            Reconcile::KeepOriginal => i64::from(!planned),
            // Numbers grow with every start.
            Reconcile::LongestRunning => 0,
            Reconcile::BestScore => {
                let points = self.scores.as_ref().and_then(|scores| scores.get(&slot.node));
                points.copied().unwrap_or(i64::MIN)
            }
        }
    }
}

impl Deployment {
    /// Asks the nodes of a service with too many replicas what they are like.
    pub(super) fn score_nodes(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key).filter(|m| !m.placing) else { return };
        manager.placing = true;
        let (trees, programs) =
            (allocator::marks(&manager.service.spec), allocator::programs(&manager.service.spec));
        let spec = manager.service.spec.clone();
        let op = move |asker: Asker| async move {
            let (parts, _) = asker.cast(CastBody::Describe { trees, programs }).await;
            let scores = allocator::scores(&spec, &descriptions(&parts));
            Outcome::Scored { service: key, scores }
        };
        if !self.start("score nodes", op, cx) {
            self.on_scored(key, Map::new(), cx);
        }
    }

    /// Who did not answer has the fewest points.
    pub(crate) fn on_scored(
        &mut self,
        key: Key,
        mut scores: Map<NodeId, i64>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        manager.placing = false;
        let hosts: Vec<NodeId> = manager.plan.slots.iter().map(|slot| slot.node).collect();
        for host in hosts {
            scores.entry(host).or_insert(i64::MIN);
        }
        manager.scores = Some(scores);
        self.reconcile(key, cx);
    }
}
