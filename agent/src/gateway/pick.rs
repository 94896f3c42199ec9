//! Which replica gets the next request: one on this node if there is one, else the less busy of
//! two drawn at random.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use dugnad_kernel::NodeId;
use dugnad_resource::execute::ReplicaId;

use super::{Backend, Route};

/// A replica and the node it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) id: ReplicaId,
    pub(super) node: NodeId,
    pub(super) name: String,
}

/// Requests and connections under way, by replica. Bounded by the connections.
#[derive(Default)]
pub(super) struct Load(RefCell<HashMap<ReplicaId, u32>>);

/// One request under way.
pub(crate) struct Busy {
    load: Rc<Load>,
    id: ReplicaId,
}

impl Load {
    pub(super) fn begin(self: &Rc<Self>, id: ReplicaId) -> Busy {
        *self.0.borrow_mut().entry(id).or_default() += 1;
        Busy { load: Rc::clone(self), id }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.0.borrow().is_empty()
    }

    fn of(&self, id: ReplicaId) -> u32 {
        self.0.borrow().get(&id).copied().unwrap_or(0)
    }
}

#[cfg(test)]
impl Busy {
    pub(crate) fn nothing() -> Self {
        let id = ReplicaId { service: dugnad_kernel::Key::of_name("svc", b"test"), number: 0 };
        Rc::<Load>::default().begin(id)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut load = self.load.0.borrow_mut();
        if let Some(count) = load.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                load.remove(&self.id);
            }
        }
    }
}

/// The next to try. Not one of `tried`.
pub(super) fn pick(
    route: &Route,
    backend: &dyn Backend,
    load: &Load,
    tried: &[(ReplicaId, NodeId)],
) -> Option<Target> {
    let left = route.replicas.iter().filter(|(id, node, _)| !tried.contains(&(*id, *node)));
    let (here, away): (Vec<_>, Vec<_>) = left.partition(|(id, ..)| backend.local(*id).is_some());
    let from = if here.is_empty() { away } else { here };
    let first = from.get(fastrand::usize(..from.len().max(1)))?;
    let second = from.get(fastrand::usize(..from.len()))?;
    let (id, node, name) = if load.of(second.0) < load.of(first.0) { second } else { first };
    Some(Target { id: *id, node: *node, name: name.clone() })
}
