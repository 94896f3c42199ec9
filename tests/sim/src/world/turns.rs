//! Services of which only one replica may run: the next waits for the one before, as on real hosts.

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::execute::{Order, ReplicaId, Report, Run};

use super::World;

impl World {
    /// Whether it has to wait for another replica; it begins by itself then.
    pub(super) fn waits_for_its_turn(&mut self, id: NodeId, run: &Run) -> bool {
        if !run.spec.one_at_a_time() || !self.another_runs(id, run.id) {
            return false;
        }
        let reason = "waits for another replica".to_owned();
        self.report(id, 5, Report::Waits { id: run.id, reason });
        self.waiting.push((id, run.clone()));
        true
    }

    /// Whether another replica of the service runs where it can be asked.
    fn another_runs(&self, node: NodeId, replica: ReplicaId) -> bool {
        let other = |at: &NodeId, held: &ReplicaId| {
            held.service == replica.service && (*at != node || held.number != replica.number)
        };
        let machines = self.machines.iter().filter(|(_, machine)| machine.node.is_some());
        machines.into_iter().any(|(at, m)| m.processes.running.keys().any(|held| other(at, held)))
    }

    /// A replica that waits is not wanted any more.
    pub(super) fn waits_no_more(&mut self, id: NodeId, replica: ReplicaId) {
        self.waiting.retain(|(node, run)| (*node, run.id) != (id, replica));
    }

    /// Something ended: whoever waited for it begins.
    pub(super) fn next_turn(&mut self, service: Option<Key>) {
        let waiting = std::mem::take(&mut self.waiting);
        for (id, run) in waiting {
            let asked = service.is_none_or(|service| service == run.id.service);
            if asked && !self.another_runs(id, run.id) {
                if self.machines.get(&id).is_some_and(|machine| machine.node.is_some()) {
                    self.carry_out(id, Order::Start(run));
                }
            } else {
                self.waiting.push((id, run));
            }
        }
    }
}
