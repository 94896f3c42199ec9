//! The load of services whose number of replicas follows it, as it goes through this node.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::map::Map;
use dugnad_kernel::{Key, NodeId};
use dugnad_resource::spec::{Load, Measure};
use smol::Timer;

use super::Backend;
use crate::notify::Notify;

/// The time a report is about. Tests do not wait for it.
const WINDOW: Duration =
    Duration::from_millis(if cfg!(test) { 50 } else { Load::WINDOW_MS as u64 });
/// Services counted at a time; the load of more is not reported.
const SERVICES_MAX: usize = 256;

/// What is to be counted of a service, and who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metered {
    pub(crate) service: Key,
    pub(crate) manager: NodeId,
    pub(crate) on: Measure,
}

/// Counts of the window that is not over yet.
#[derive(Default)]
pub(super) struct Meter {
    counts: RefCell<Map<Key, (NodeId, Load)>>,
    begun: Notify,
}

impl Meter {
    /// A request of a service was answered, or a connection made, after `took`.
    pub(super) fn count(&self, metered: Option<Metered>, took: Duration) {
        let Some(Metered { service, manager, on }) = metered else { return };
        let slow = match on {
            // It is measured where the replicas run.
            Measure::Cpu(_) => return,
            Measure::Requests(_) => false,
            Measure::Answer(most) => took > Duration::from_millis(most.into()),
        };
        let mut counts = self.counts.borrow_mut();
        if counts.is_empty() {
            self.begun.notify();
        }
        if counts.len() >= SERVICES_MAX && !counts.contains_key(&service) {
            return;
        }
        let (to, load) = counts.entry(service).or_insert((manager, Load::default()));
        *to = manager;
        load.requests = load.requests.saturating_add(1);
        load.slow = load.slow.saturating_add(u32::from(slow));
    }

    /// Reports for as long as it is polled; nothing happens while nothing is counted.
    pub(super) async fn report(&self, backend: &Rc<dyn Backend>) {
        loop {
            self.begun.wait().await;
            Timer::after(WINDOW).await;
            let counts = std::mem::take(&mut *self.counts.borrow_mut());
            for (service, (manager, load)) in counts {
                backend.load(service, manager, load);
            }
        }
    }
}
