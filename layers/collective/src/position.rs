//! Where a node stands on the ring, as the components of this layer need it.

use alloc::vec::Vec;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, Key, NodeId, Peer};

use crate::persistence::record::{COPIES, DEGREE, belongs, class};

/// What the ring says about this node.
#[derive(Clone, Debug, Default)]
pub struct RingPosition {
    /// `None` while it is not a member.
    pub range: Option<Arc>,
    pub succs: Vec<Peer>,
    /// Estimated size of the community.
    pub size: u64,
}

/// Nodes between an owner and who holds its copies: one, and two that may have died unnoticed.
const BETWEEN: usize = COPIES + 1;
/// An owner lies so many average distances before who holds its copies at most: a random ring has
/// such a gap once in 10^12.
const GAPS: u128 = 32;

impl RingPosition {
    /// Whether `from` may own a place of `key` and `me` hold its copies. Nobody knows all of the
    /// ring, so this refuses what cannot be, and lets through some that is not.
    pub(crate) fn may_copy(&self, me: NodeId, from: NodeId, key: Key) -> bool {
        let Some(range) = self.range else { return true };
        if from.distance(me) / GAPS > u128::MAX / u128::from(self.size.max(1)) {
            return false;
        }
        // In a small ring the one before is among those that follow.
        let pred = Some(range.lo).filter(|pred| self.succs.iter().all(|peer| peer.id != *pred));
        let known = || self.succs.iter().map(|peer| peer.id).chain(pred);
        (0..DEGREE).map(|x| class(key, x)).any(|at| {
            let before = |id: &NodeId| at.distance(*id) < at.distance(me);
            let others = known().filter(|id| *id != me && *id != from);
            before(&from) && others.filter(before).count() <= BETWEEN
        })
    }

    /// Whether this node answers for the key.
    #[must_use]
    pub fn owns(&self, key: Key) -> bool {
        self.range.is_some_and(|range| range.contains(key))
    }

    /// Whether it answers for a place of the key's class.
    pub(crate) fn owns_class_of(&self, key: Key) -> bool {
        self.range.is_some_and(|range| belongs(key, &range))
    }

    /// Who holds copies of what `me` answers for.
    pub(crate) fn copy_holders(&self, me: NodeId) -> Vec<NodeId> {
        let others = self.succs.iter().map(|p| p.id).filter(|id| *id != me);
        others.take(COPIES).collect()
    }

    /// What of `before` is not this node's any more.
    pub(crate) fn lost_since(&self, before: Option<Arc>) -> Option<Arc> {
        let (old, new) = (before?, self.range?);
        let shrunk = old.hi == new.hi && new.lo != old.lo && in_oo(old.lo, new.lo, old.hi);
        shrunk.then(|| Arc::new(old.lo, new.lo))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    /// A ring of `count` nodes, in order.
    fn ring(count: usize, rng: &mut fastrand::Rng) -> Vec<NodeId> {
        let mut ids: Vec<NodeId> = (0..count).map(|_| Id(rng.u128(..))).collect();
        ids.sort_unstable();
        ids
    }

    /// What the node at `at` knows, with as many dead ones in its list as the check allows for.
    fn position(ids: &[NodeId], at: usize, rng: &mut fastrand::Rng) -> RingPosition {
        let count = ids.len();
        let id = |step: usize| ids[(at + step) % count];
        let mut succs: Vec<Peer> = (1..count.min(13)).map(|step| Peer::new(id(step))).collect();
        succs.extend((0..2).map(|_| Peer::new(Id(rng.u128(..)))));
        let size = u64::try_from(count).unwrap_or(1) * rng.u64(3..30) / 10;
        RingPosition { range: Some(Arc::new(id(count - 1), ids[at])), succs, size }
    }

    #[test]
    fn copies_of_owners_are_taken() {
        let mut rng = fastrand::Rng::with_seed(12);
        for count in (2..40).chain([100, 300]) {
            let ids = ring(count, &mut rng);
            for _ in 0..50 {
                let (at, key) = (rng.usize(0..count), Id(rng.u128(..)));
                let position = position(&ids, at, &mut rng);
                for step in 1..=COPIES.min(count - 1) {
                    let owner = (at + count - step) % count;
                    let range = Arc::new(ids[(owner + count - 1) % count], ids[owner]);
                    if belongs(key, &range) {
                        assert!(position.may_copy(ids[at], ids[owner], key), "{count} nodes");
                    }
                }
            }
        }
    }

    #[test]
    fn few_copies_of_others_are_taken() {
        let mut rng = fastrand::Rng::with_seed(13);
        let ids = ring(200, &mut rng);
        let mut taken = 0;
        for _ in 0..1_000 {
            let (at, from) = (rng.usize(0..200), rng.usize(0..200));
            let position = position(&ids, at, &mut rng);
            taken += u32::from(position.may_copy(ids[at], ids[from], Id(rng.u128(..))));
        }
        assert!(taken < 200, "{taken} of 1000");
    }
}
