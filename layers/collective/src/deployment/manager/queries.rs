//! What nodes and people ask a manager.

use alloc::format;
use alloc::vec::Vec;

use dugnad_kernel::{Cx, Key, NodeId};

use super::{POLL, WAITING_MAX};
use crate::deployment::{Deployment, Response, Timer};

impl Deployment {
    pub(crate) fn on_query(
        &mut self,
        from: NodeId,
        call: u32,
        key: Key,
        seen: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.manages(key) {
            self.respond(from, call, Response::NotManager, cx);
            return;
        }
        let Some(manager) = self.managers.get_mut(&key) else {
            // While the other holders are asked nobody knows whether there is one.
            let asking = self.recalling.contains(&key);
            let answer = if asking { Response::NotManager } else { Response::Unknown };
            self.respond(from, call, answer, cx);
            return;
        };
        let view = manager.view(key, self.me);
        if view.revision == seen && manager.waiting.len() < WAITING_MAX {
            manager.waiting.push((from, call));
            cx.after(POLL, Timer::Poll { key, from, call });
        } else {
            self.respond(from, call, Response::View(view), cx);
        }
    }

    pub(crate) fn on_poll_due(&mut self, key: Key, from: NodeId, call: u32, cx: &mut Cx<'_, Self>) {
        let Some(manager) = self.managers.get_mut(&key) else { return };
        let before = manager.waiting.len();
        manager.waiting.retain(|waiting| *waiting != (from, call));
        if manager.waiting.len() != before {
            let view = manager.view(key, self.me);
            self.respond(from, call, Response::View(view), cx);
        }
    }

    pub(crate) fn on_why(&mut self, from: NodeId, call: u32, key: Key, cx: &mut Cx<'_, Self>) {
        let response = match self.managers.get(&key) {
            _ if !self.manages(key) || self.recalling.contains(&key) => Response::NotManager,
            None => Response::Unknown,
            Some(manager) => {
                let mut lines = Vec::from([format!(
                    "{} wants {} {}: {}",
                    manager.service.spec.name,
                    manager.sum.count,
                    if manager.sum.count == 1 { "replica" } else { "replicas" },
                    manager.sum.because
                )]);
                lines.extend(manager.history.iter().cloned());
                for slot in &manager.plan.slots {
                    lines.push(format!(
                        "replica {} on {}: {:?} {}",
                        slot.number, slot.node_name, slot.state, slot.note
                    ));
                }
                lines.extend(manager.blocked.iter().map(|reason| format!("missing: {reason}")));
                Response::Why(lines)
            }
        };
        self.respond(from, call, response, cx);
    }
}
