//! Where on the ring a long value goes: of several names it may have, the one whose places lie at
//! nodes with the most room left. (Byers, Considine, Mitzenmacher: Simple Load Balancing for
//! Distributed Hash Tables: the better of several hashes.) The name of the tree says where it is:
//! whoever looks for it needs to know nothing of the choice.

use alloc::vec::Vec;

use dugnad_kernel::Key;

use super::sums::NodeSums;
use crate::persistence::record::{DEGREE, class};

/// Nodes that must keep a long value, if there are as many.
const COPIES: usize = 2;

/// The room of the nodes of a community, as it was known a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// In the order of the ring.
    nodes: Vec<NodeSums>,
}

/// What speaks for a name, the larger the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    /// Nodes of its places with room for it, as far as they are needed.
    fit: usize,
    /// Parts in a million that stay free on the fullest of them; below 0 where it has no room.
    free: i64,
}

impl Room {
    #[must_use]
    pub fn new(mut nodes: Vec<NodeSums>) -> Self {
        nodes.retain(|node| node.given > 0);
        nodes.sort_by_key(|node| node.node);
        Self { nodes }
    }

    /// Whether there is anything to choose.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        self.nodes.len() > COPIES
    }

    /// Which of these keys of a tree of so many bytes is best; the earlier where two are alike.
    /// What it takes is counted, so that the next does not go to the same places.
    pub fn choose(&mut self, bytes: u64, keys: impl Iterator<Item = Key>) -> usize {
        let worth = |key: Key| self.worth(bytes, &self.owners(key));
        let all = keys.enumerate().map(|(at, key)| (worth(key), at, key));
        let best = all.max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, at, key)) = best else { return 0 };
        for owner in self.owners(key) {
            let node = &mut self.nodes[owner];
            if node.tree_bytes.saturating_add(bytes) <= node.given {
                node.tree_bytes = node.tree_bytes.saturating_add(bytes);
            }
        }
        at
    }

    /// Who owns the places of a key.
    fn owners(&self, key: Key) -> Vec<usize> {
        let mut owners = Vec::new();
        for x in 0..DEGREE {
            let place = class(key, x);
            let after = self.nodes.partition_point(|node| node.node < place);
            let owner = if after == self.nodes.len() { 0 } else { after };
            if !owners.contains(&owner) && owner < self.nodes.len() {
                owners.push(owner);
            }
        }
        owners
    }

    fn worth(&self, bytes: u64, owners: &[usize]) -> Worth {
        let free = |owner: &usize| {
            let node = &self.nodes[*owner];
            let used = node.record_bytes.saturating_add(node.tree_bytes).saturating_add(bytes);
            let left = i128::from(node.given) - i128::from(used);
            i64::try_from(left * 1_000_000 / i128::from(node.given)).unwrap_or(i64::MIN)
        };
        let left: Vec<i64> = owners.iter().map(free).collect();
        let fit = left.iter().filter(|free| **free >= 0).count();
        Worth { fit: fit.min(COPIES), free: left.iter().min().copied().unwrap_or(i64::MIN) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use dugnad_kernel::Id;

    use super::*;

    const GB: u64 = 1 << 30;

    fn node(at: u128, given: u64, used: u64) -> NodeSums {
        NodeSums { node: Id(at), given, tree_bytes: used, ..NodeSums::default() }
    }

    /// Keys all over the ring, always the same.
    fn keys(value: u64, many: u32) -> impl Iterator<Item = Key> + Clone {
        (0..many).map(move |name| {
            Key::of_name("tree", &[&value.to_be_bytes()[..], &name.to_be_bytes()[..]].concat())
        })
    }

    fn community(sizes: &[u64], each: u64) -> Room {
        let nodes = (0..each).flat_map(|one| {
            sizes.iter().enumerate().map(move |(kind, given)| {
                let name = [one.to_be_bytes(), (kind as u64).to_be_bytes()].concat();
                node(Key::of_name("node", &name).0, *given, 0)
            })
        });
        Room::new(nodes.collect())
    }

    /// Two of six have room for 10 GB. Places lie at a quarter of the ring from each other, so not
    /// always is there a name for it; without a choice one in five would do.
    #[test]
    fn who_has_no_room_is_left_out_while_others_have() {
        let mut both = 0;
        for seed in 0..200_u64 {
            let nodes = (0..6_u64).map(|number| {
                let at = Key::of_name("node", &[seed.to_be_bytes(), number.to_be_bytes()].concat());
                node(at.0, if number < 2 { 100 * GB } else { 4 * GB }, 0)
            });
            let mut room = Room::new(nodes.collect());
            let at = room.choose(10 * GB, keys(seed, 256));
            let owners = room.owners(keys(seed, 256).nth(at).unwrap());
            let large = owners.iter().filter(|owner| room.nodes[**owner].given == 100 * GB);
            both += usize::from(large.count() == 2);
        }
        assert!(both >= 150, "{both} of 200");
    }

    /// Nodes of 2, 20 and 200 GB, 10,000 values. With the first name each would keep a third: the
    /// smallest 37 times their part.
    #[test]
    fn shares_follow_the_room_that_owners_give() {
        for (each, most) in [(3, 6.0), (10, 3.0), (30, 3.0)] {
            let sizes = [2 * GB, 20 * GB, 200 * GB];
            let mut room = community(&sizes, each);
            let given: u64 = sizes.iter().sum::<u64>() * each;
            // As much as fills about a third.
            let bytes = given / 3 / 10_000 / 4;
            for value in 0..10_000 {
                room.choose(bytes, keys(value, 256));
            }
            let kept: u64 = room.nodes.iter().map(|node| node.tree_bytes).sum();
            for size in sizes {
                let of = room.nodes.iter().filter(|node| node.given == size);
                let share = of.map(|node| node.tree_bytes).sum::<u64>() as f64 / kept as f64;
                let part = share / ((size * each) as f64 / given as f64);
                let least = if size == sizes[2] { 0.8 } else { 0.5 };
                assert!((least..=most).contains(&part), "{each} each, {size}: {part:.2} times");
            }
        }
    }

    #[test]
    fn one_and_two_nodes_and_none_leave_nothing_to_choose() {
        for many in 0..3_u128 {
            let mut room = Room::new((0..many).map(|at| node(at << 120, GB, 0)).collect());
            assert!(!room.has_choice());
            assert!(room.choose(1, keys(1, 8)) < 8);
        }
        let mut room = Room::new(Vec::from([node(1, 0, 0)]));
        assert_eq!(room.choose(1, keys(1, 8)), 0, "who gives nothing is not there");
    }
}
