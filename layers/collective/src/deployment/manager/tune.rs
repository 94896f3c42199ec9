//! Following the load of a service: what nodes report, looked at while they report.

use alloc::format;

use dugnad_kernel::{Cx, Key, NodeId};
use dugnad_resource::spec::{Load, Scale, Want};

use super::Manager;
use crate::deployment::service::Desired;
use crate::deployment::tuner::WINDOW;
use crate::deployment::{Deployment, Timer};

impl Manager {
    /// If it follows its load now.
    pub(super) fn scale(&self) -> Option<Scale> {
        match self.service.spec.want {
            Want::Load(scale) if self.service.desired == Desired::Running => Some(scale),
            _ => None,
        }
    }

    /// The same, with what its goal takes as the least.
    fn bounds(&self) -> Option<Scale> {
        let raised =
            |scale: Scale| Scale { min: scale.min.max(self.floor).min(scale.max), ..scale };
        self.scale().map(raised)
    }
}

impl Deployment {
    pub(super) fn on_load(&mut self, from: NodeId, key: Key, load: Load, cx: &mut Cx<'_, Self>) {
        let manager = self.managers.get_mut(&key).filter(|manager| manager.scale().is_some());
        let Some(manager) = manager else {
            // It was managed here a moment ago, or its load does not matter any more.
            return self.count("load_of_nothing");
        };
        if !manager.tuner.hear(from, load) {
            return self.count("load_overflow");
        }
        self.tune_later(key, cx);
    }

    /// Appoints the next look, unless one is appointed or nothing is to be looked at.
    pub(super) fn tune_later(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let Some(scale) = manager.bounds() else { return };
        if !manager.tuning && !manager.tuner.is_quiet(&scale, manager.sum.count) {
            manager.tuning = true;
            cx.after(WINDOW, Timer::Tune { key });
        }
    }

    pub(crate) fn on_tune(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key).filter(|manager| manager.tuning) else {
            return;
        };
        manager.tuning = false;
        let Some(scale) = manager.bounds().filter(|_| !self.ending) else { return };
        let (count, cpu) = (manager.sum.count, manager.service.spec.needs.cpu);
        if let Some((new, told)) = manager.tuner.look(&scale, count, cpu) {
            let replicas = if new == 1 { "replica" } else { "replicas" };
            manager.sum.count = new;
            manager.sum.because = format!("{new} of {scale}: {told}");
            let text = format!("{new} {replicas} from now on: {told}");
            manager.note(text.clone());
            self.tell_people(key, "service.changed", text, cx);
            self.reconcile(key, cx);
            self.touch(key, cx);
        }
        self.tune_later(key, cx);
    }
}
