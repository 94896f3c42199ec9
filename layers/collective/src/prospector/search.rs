//! Finding some nodes a condition is true of.

use alloc::vec::Vec;

use dugnad_kernel::calls::AnsweredOf;
use dugnad_kernel::{Arc, Id, NodeId};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::Description;

use super::operations::{Asker, AskerExt, Outcome};
use super::{Cost, ProspectAnswer, Prospector, Request, Response, sample};
use crate::cast::{CastBody, CastPart};

/// A community of so many is asked as a whole.
pub(super) const ALL: u64 = 32;
/// The first arc holds about so many nodes, or four times as many as are wanted.
const FIRST: u64 = 16;
/// Each arc is so many times as long as the one before.
const GROWTH: u128 = 4;

/// Asks everybody, or arc after arc from `start` on, until there are `want`.
pub(super) async fn find(
    asker: Asker,
    ask: u64,
    condition: Condition,
    want: usize,
    size: u64,
    start: u128,
) -> Outcome {
    let mut nodes: Vec<Description> = Vec::new();
    let mut cost = Cost { complete: true, ..Cost::default() };
    if size > ALL {
        from_sample(&asker, &condition, want, &mut nodes, &mut cost).await;
        if nodes.len() >= want {
            return Outcome::Answer { ask, answer: ProspectAnswer::Found { nodes, cost } };
        }
    }
    let mut arcs = Arcs::new(size, want, start);
    while let Some(arc) = arcs.next() {
        let body = CastBody::Find { condition: condition.clone(), brief: false };
        let (parts, complete) = asker.cast(body, arc).await;
        let asked = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        cost.asked = cost.asked.saturating_add(asked);
        // Each node is asked once and answers once; this one does not write to itself.
        let own = if arc.is_none() { 1 } else { 0 };
        cost.messages = cost.messages.saturating_add(asked.saturating_sub(own).saturating_mul(2));
        cost.complete &= complete;
        for part in parts {
            if let CastPart::Node(mut node) = part {
                node.clip();
                // Its owner of the part and what it claims are checked where the node is used.
                if nodes.iter().all(|known| known.peer.id != node.peer.id) {
                    nodes.push(*node);
                }
            }
        }
        if nodes.len() >= want {
            break;
        }
    }
    nodes.truncate(want);
    Outcome::Answer { ask, answer: ProspectAnswer::Found { nodes, cost } }
}

/// Asks who keeps the sample whom to ask, and those whether it is so.
async fn from_sample(
    asker: &Asker,
    condition: &Condition,
    want: usize,
    nodes: &mut Vec<Description>,
    cost: &mut Cost,
) {
    let Some(keeper) = asker.find(sample::key()).await else { return };
    let number = u16::try_from(want).unwrap_or(u16::MAX);
    let request = Request::Search { condition: condition.clone(), want: number };
    cost.messages += 2;
    let Some(Response::Hits { peers, age_secs }) = asker.call(keeper, request).await else {
        return;
    };
    cost.sample_age = age_secs;
    let mut left = peers.as_slice();
    // As many at a time as are missing.
    while nodes.len() < want && !left.is_empty() {
        let (now, later) = left.split_at((want - nodes.len()).min(left.len()));
        left = later;
        asker.report(Outcome::Met(now.to_vec()));
        let checks = ask_each(asker, condition, now.iter().map(|peer| peer.id));
        let asked = u32::try_from(checks.len()).unwrap_or(u32::MAX);
        (cost.asked, cost.messages) = (cost.asked + asked, cost.messages + 2 * asked);
        for (check, peer) in checks.into_iter().zip(now) {
            if let Some(Response::Is(mut node)) = check.await {
                node.clip();
                if node.peer.id == peer.id && nodes.iter().all(|n| n.peer.id != peer.id) {
                    nodes.push(*node);
                }
            }
        }
    }
}

fn ask_each(
    asker: &Asker,
    condition: &Condition,
    nodes: impl Iterator<Item = NodeId>,
) -> Vec<AnsweredOf<Prospector, Option<Response>>> {
    let check = |node| asker.call(node, Request::Check { condition: condition.clone() });
    nodes.map(check).collect()
}

/// Of which of these nodes it is true.
pub(super) async fn check(
    asker: Asker,
    ask: u64,
    condition: Condition,
    nodes: Vec<NodeId>,
) -> Outcome {
    let checks = ask_each(&asker, &condition, nodes.iter().copied());
    let mut so = Vec::new();
    for (check, node) in checks.into_iter().zip(nodes) {
        if matches!(check.await, Some(Response::Is(said)) if said.peer.id == node) {
            so.push(node);
        }
    }
    Outcome::Answer { ask, answer: ProspectAnswer::Checked(so) }
}

/// The parts of the ring that are asked one after the other.
struct Arcs {
    /// Where the next one begins; `None` when everybody was asked.
    from: Option<Id>,
    start: Id,
    width: u128,
    left: u128,
    whole: bool,
}

impl Arcs {
    fn new(size: u64, want: usize, start: u128) -> Self {
        let first = FIRST.max(4 * want as u64);
        let width = u128::MAX / u128::from(size.max(1)) * u128::from(first.min(size.max(1)));
        let whole = size <= ALL || first >= size;
        Self { from: Some(Id(start)), start: Id(start), width, left: u128::MAX, whole }
    }

    /// `Some(None)` is everybody.
    fn next(&mut self) -> Option<Option<Arc>> {
        let from = self.from?;
        if self.whole {
            self.from = None;
            return Some(None);
        }
        if self.width >= self.left {
            self.from = None;
            return Some(Some(Arc::new(from, self.start)));
        }
        let to = from.plus(self.width);
        self.left -= self.width;
        self.width = self.width.saturating_mul(GROWTH);
        self.from = Some(to);
        Some(Some(Arc::new(from, to)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn arcs_cover_the_ring_once() {
        for (size, want) in [(33, 1), (100, 3), (1_000, 3), (10_000, 256), (40, 200)] {
            let mut arcs = Arcs::new(size, want, 7 << 100);
            let (mut count, mut end, mut sum) = (0, Id(7 << 100), 0_u128);
            while let Some(arc) = arcs.next() {
                let Some(arc) = arc else {
                    assert!(want as u64 * 4 >= size);
                    end = Id(7 << 100);
                    continue;
                };
                assert_eq!(arc.lo, end);
                sum = sum.wrapping_add(arc.lo.distance(arc.hi));
                end = arc.hi;
                count += 1;
            }
            assert_eq!(end, Id(7 << 100), "{size} {want}");
            assert_eq!(sum, 0, "all of the ring, once");
            assert!(count <= 7, "{count} arcs of {size}");
        }
    }
}
