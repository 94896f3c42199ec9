//! How many replicas a goal takes, looked at now and then: nodes come and go, and are measured.

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::{Spec, Want};

use super::Manager;
use crate::cast::{CastBody, descriptions};
use crate::deployment::allocator;
use crate::deployment::deployer::{self, Sum};
use crate::deployment::{Asker, AskerExt, Deployment, Outcome, Timer};

/// How often the nodes are looked at, and how soon by a manager that has not seen them yet.
const REVIEW: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(60);
/// Looks in a row that must agree before there are fewer replicas.
const FEWER: u8 = 3;

/// The sum for the nodes that can run it now, and those that do.
pub(crate) fn sum(spec: &Spec, nodes: &[Description], staying: &[NodeId]) -> Sum {
    let can = |node: &&Description| {
        staying.contains(&node.peer.id)
            || (node.takes_work
                && allocator::unfit(spec, node).is_none()
                && spec.needs.short_of(node.free).is_none())
    };
    let nodes: Vec<&Description> = nodes.iter().filter(can).collect();
    match (spec.want, spec.goal()) {
        (Want::Load(scale), Some(goal)) => deployer::at_least(scale, goal, &nodes),
        (want, _) => deployer::replicas(want, &nodes),
    }
}

impl Manager {
    fn has_goal(&self) -> bool {
        self.service.spec.goal().is_some()
    }

    /// How many replicas the goal took when the nodes were last looked at.
    pub(super) fn goal_count(&self) -> u8 {
        match self.service.spec.want {
            Want::Load(_) => self.floor,
            _ => self.sum.count,
        }
    }

    /// What the goal takes: so many, or where the load decides never fewer.
    pub(super) fn take_goal(&mut self, sum: Sum) {
        self.floor = sum.count;
        self.sum = match self.service.spec.want {
            Want::Load(_) if sum.count < self.sum.count => {
                Sum { predicted: sum.predicted, ..self.sum.clone() }
            }
            _ => sum,
        };
    }
}

impl Deployment {
    /// Appoints the next look, if it has a goal and none is appointed.
    pub(super) fn review_later(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        self.reviews = self.reviews.wrapping_add(1).max(1);
        let review = self.reviews;
        let Some(manager) = self.managers.get_mut(&key) else { return };
        if manager.has_goal() && manager.review == 0 {
            manager.review = review;
            let soon = manager.sum.predicted.is_none();
            cx.after(if soon { SOON } else { REVIEW }, Timer::Review { key, review });
        }
    }

    pub(crate) fn on_review(&mut self, key: Key, review: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key).filter(|m| m.review == review) else {
            return;
        };
        if !manager.has_goal() || self.ending {
            manager.review = 0;
            return;
        }
        let spec = manager.service.spec.clone();
        let staying: Vec<NodeId> = manager.staying().map(|slot| slot.node).collect();
        let look = move |asker| look(asker, key, review, spec, staying);
        if !self.start("look at the nodes", look, cx) {
            self.on_reviewed(key, review, None, cx);
        }
    }

    pub(crate) fn on_reviewed(
        &mut self,
        key: Key,
        review: u32,
        sum: Option<(Want, Sum)>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(manager) = self.managers.get_mut(&key).filter(|m| m.review == review) else {
            return;
        };
        manager.review = 0;
        // It may be wanted otherwise by now.
        let sum = sum.filter(|(want, _)| *want == manager.service.spec.want);
        if let Some((_, mut sum)) = sum {
            let before = manager.goal_count();
            let fewer = sum.count < before;
            manager.fewer = if fewer { manager.fewer.saturating_add(1) } else { 0 };
            if fewer && manager.fewer < FEWER && manager.sum.predicted.is_some() {
                sum.count = before;
            }
            let old = manager.sum.clone();
            manager.take_goal(sum);
            if manager.sum != old {
                manager.note(manager.sum.because.clone());
                self.touch(key, cx);
            }
        }
        // It appoints the next look, too.
        self.reconcile(key, cx);
        self.review_later(key, cx);
    }
}

async fn look(asker: Asker, key: Key, review: u32, spec: Spec, staying: Vec<NodeId>) -> Outcome {
    let (trees, programs) = (Vec::new(), allocator::programs(&spec));
    let (parts, complete) = asker.cast(CastBody::Describe { trees, programs }).await;
    let sum = complete.then(|| (spec.want, sum(&spec, &descriptions(&parts), &staying)));
    Outcome::Reviewed { service: key, review, sum }
}
