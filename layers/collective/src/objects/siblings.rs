//! Concurrent values of one object, kept apart until somebody who has seen them writes again:
//! dotted version vectors (Preguiça et al. 2012; PROTOCOL.md 7.3).
//!
//! Each node that takes writes for an object has a record of its own there, the [`Siblings`] it
//! wrote; only that node writes it, so the last version of the record is always the right one. A
//! value is known by its dot, the node and how many it wrote before. Whoever writes says what it
//! has seen, the [`Context`]; every value in there is replaced.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::NodeId;
use dugnad_kernel::map::Map;
use serde::{Deserialize, Serialize};

use super::item::{Address, Content, INLINE_MAX, SIBLINGS};
use crate::persistence::record::Record;

/// Values one node keeps beside each other; the next write must have seen some.
pub const SIBLINGS_MAX: usize = 6;
/// Nodes in a context: as many as ever took writes for one object.
pub const CONTEXT_MAX: usize = 64;

/// How many values of each node somebody has seen: all up to that number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context(Map<NodeId, u64>);

impl Context {
    #[must_use]
    pub fn seen(&self, node: NodeId) -> u64 {
        self.0.get(&node).copied().unwrap_or(0)
    }

    fn raise(&mut self, node: NodeId, counter: u64) {
        let seen = self.0.entry(node).or_default();
        *seen = counter.max(*seen);
    }

    pub fn join(&mut self, other: &Self) {
        for (node, counter) in &other.0 {
            self.raise(*node, *counter);
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        self.0.len() <= CONTEXT_MAX
    }

    /// As it is told to programs, which give it back: 48 digits a node.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.iter().map(|(node, counter)| format!("{node}{counter:016x}")).collect()
    }

    /// `None` if it is not what [`Self::to_text`] made.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if !text.is_ascii() || text.len() % 48 != 0 || text.len() / 48 > CONTEXT_MAX {
            return None;
        }
        let pair = |at: usize| {
            let node = u128::from_str_radix(&text[at..at + 32], 16).ok()?;
            let counter = u64::from_str_radix(&text[at + 32..at + 48], 16).ok()?;
            Some((dugnad_kernel::Id(node), counter))
        };
        (0..text.len()).step_by(48).map(pair).collect::<Option<_>>().map(Self)
    }
}

/// One value, or that there is none: whoever removed an object did not see what others wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sibling {
    pub counter: u64,
    pub content: Option<Content>,
}

/// What one node wrote for an object: the value of its record there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Siblings {
    pub address: Address,
    /// What was seen by those who wrote here.
    replaced: Context,
    /// How many values were written here.
    top: u64,
    values: Vec<Sibling>,
}

impl Siblings {
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, replaced: Context::default(), top: 0, values: Vec::new() }
    }

    /// Name of the record of `node`.
    #[must_use]
    pub fn name(node: NodeId) -> Vec<u8> {
        [SIBLINGS, &node.0.to_be_bytes()].concat()
    }

    /// Whose record this is the name of.
    #[must_use]
    pub fn node(name: &[u8]) -> Option<NodeId> {
        let id: [u8; 16] = name.strip_prefix(SIBLINGS)?.try_into().ok()?;
        Some(dugnad_kernel::Id(u128::from_be_bytes(id)))
    }

    /// What a record holds, and of whom.
    #[must_use]
    pub fn of(record: &Record) -> Option<(NodeId, Self)> {
        let node = Self::node(&record.name)?;
        let siblings: Self = postcard::from_bytes(record.value.as_ref()?).ok()?;
        let inline = |sibling: &Sibling| match &sibling.content {
            Some(Content::Inline(bytes)) => bytes.len() <= INLINE_MAX,
            Some(Content::Blob(_) | Content::Folder { .. }) => false,
            None => true,
        };
        let fits = siblings.values.len() <= SIBLINGS_MAX
            && siblings.values.iter().all(inline)
            && siblings.replaced.fits()
            && siblings.address.fits();
        (fits && siblings.address.key() == record.key).then_some((node, siblings))
    }

    /// Takes one more value at `me`, by somebody who has seen `context`.
    ///
    /// # Errors
    /// As many as may be stand beside each other already.
    pub fn write(
        &mut self,
        me: NodeId,
        context: &Context,
        content: Option<Content>,
    ) -> Result<(), Full> {
        let seen = context.seen(me);
        if self.values.iter().filter(|sibling| sibling.counter > seen).count() >= SIBLINGS_MAX {
            return Err(Full);
        }
        self.values.retain(|sibling| sibling.counter > seen);
        self.replaced.join(context);
        self.top = self.top.max(self.replaced.seen(me)) + 1;
        self.values.push(Sibling { counter: self.top, content });
        Ok(())
    }
}

/// Too many values beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What all records of one object say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The values nobody has replaced, oldest node first.
    pub values: Vec<Content>,
    /// Who writes with this replaces them all.
    pub context: Context,
}

#[must_use]
pub fn merge<'a>(all: impl Iterator<Item = (NodeId, &'a Siblings)> + Clone) -> Merged {
    let mut context = Context::default();
    for (_, siblings) in all.clone() {
        context.join(&siblings.replaced);
    }
    let replaced = context.clone();
    let mut values = Vec::new();
    for (node, siblings) in all {
        context.raise(node, siblings.top);
        let alive = siblings.values.iter().filter(|s| s.counter > replaced.seen(node));
        values.extend(alive.filter_map(|sibling| sibling.content.clone()));
    }
    Merged { values, context }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeMap, BTreeSet};
    use dugnad_kernel::Id;

    fn address() -> Address {
        Address { namespace: "n".into(), path: "p".into() }
    }

    fn value(number: u32) -> Content {
        Content::Inline(number.to_be_bytes().to_vec())
    }

    fn merged(nodes: &BTreeMap<NodeId, Siblings>) -> Merged {
        merge(nodes.iter().map(|(node, siblings)| (*node, siblings)))
    }

    fn write(nodes: &mut BTreeMap<NodeId, Siblings>, at: NodeId, context: &Context, number: u32) {
        let siblings = nodes.entry(at).or_insert_with(|| Siblings::new(address()));
        assert_eq!(siblings.write(at, context, Some(value(number))), Ok(()));
    }

    #[test]
    fn who_has_seen_a_value_replaces_it_and_who_has_not_does_not() {
        let mut nodes = BTreeMap::new();
        let (a, b) = (Id(1), Id(2));
        write(&mut nodes, a, &Context::default(), 1);
        let seen = merged(&nodes).context;
        write(&mut nodes, b, &seen, 2);
        assert_eq!(merged(&nodes).values, [value(2)]);
        write(&mut nodes, a, &seen, 3);
        assert_eq!(merged(&nodes).values, [value(3), value(2)], "neither had seen the other");
        let seen = merged(&nodes).context;
        write(&mut nodes, b, &seen, 4);
        assert_eq!(merged(&nodes).values, [value(4)]);
    }

    #[test]
    fn a_removal_leaves_what_it_did_not_see() {
        let mut nodes = BTreeMap::new();
        let (a, b) = (Id(1), Id(2));
        write(&mut nodes, a, &Context::default(), 1);
        let seen = merged(&nodes).context;
        write(&mut nodes, b, &seen, 2);
        if let Some(siblings) = nodes.get_mut(&a) {
            assert_eq!(siblings.write(a, &seen, None), Ok(()));
        }
        assert_eq!(merged(&nodes).values, [value(2)]);
        let seen = merged(&nodes).context;
        if let Some(siblings) = nodes.get_mut(&a) {
            assert_eq!(siblings.write(a, &seen, None), Ok(()));
        }
        assert_eq!(merged(&nodes).values, []);
    }

    #[test]
    fn no_more_than_a_few_stand_beside_each_other() {
        let mut siblings = Siblings::new(address());
        for number in 0..SIBLINGS_MAX {
            let number = u32::try_from(number).unwrap_or(0);
            assert_eq!(siblings.write(Id(1), &Context::default(), Some(value(number))), Ok(()));
        }
        assert_eq!(siblings.write(Id(1), &Context::default(), None), Err(Full));
        let seen = merge([(Id(1), &siblings)].into_iter()).context;
        assert_eq!(siblings.write(Id(1), &seen, Some(value(9))), Ok(()));
        assert_eq!(merge([(Id(1), &siblings)].into_iter()).values, [value(9)]);
    }

    #[test]
    fn a_context_reads_back_what_it_says() {
        let mut nodes = BTreeMap::new();
        write(&mut nodes, Id(1), &Context::default(), 1);
        write(&mut nodes, Id(u128::MAX), &Context::default(), 2);
        let context = merged(&nodes).context;
        assert_eq!(Context::from_text(&context.to_text()), Some(context));
        assert_eq!(Context::from_text(""), Some(Context::default()));
        for bad in ["1", &"g".repeat(48), &"é".repeat(24), &"0".repeat(48 * (CONTEXT_MAX + 1))] {
            assert_eq!(Context::from_text(bad), None, "{bad}");
        }
    }

    /// Against what everybody would keep who remembers everything: the set of the values that are
    /// in nobody's past (T7.8).
    #[test]
    fn exactly_the_values_without_a_successor_stay() {
        let mut rng = fastrand::Rng::with_seed(78);
        for _ in 0..2_000 {
            let count = rng.usize(1..5);
            // What each node has: as yet unsynced copies of everybody's record.
            let mut copies: Vec<BTreeMap<NodeId, Siblings>> = vec![BTreeMap::new(); count];
            // Which values each node has heard of, and which of them are replaced.
            let mut heard: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); count];
            let mut past: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
            for number in 0..rng.u32(1..14) {
                let at = rng.usize(0..count);
                if rng.bool() && count > 1 {
                    let from = rng.usize(0..count);
                    let theirs: Vec<(NodeId, Siblings)> =
                        copies[from].iter().map(|(node, s)| (*node, s.clone())).collect();
                    for (node, siblings) in theirs {
                        let mine = copies[at].get(&node).map_or(0, |siblings| siblings.top);
                        if mine < siblings.top {
                            copies[at].insert(node, siblings);
                        }
                    }
                    let news = heard[from].clone();
                    heard[at].extend(news);
                }
                let context = merged(&copies[at]).context;
                let me = Id(at as u128);
                write(&mut copies[at], me, &context, number);
                past.insert(number, heard[at].clone());
                heard[at].insert(number);
            }
            let mut all: BTreeMap<NodeId, Siblings> = BTreeMap::new();
            for (node, siblings) in copies.into_iter().flatten() {
                let newer = all.get(&node).is_none_or(|known| known.top < siblings.top);
                if newer {
                    all.insert(node, siblings);
                }
            }
            let replaced: BTreeSet<u32> = past.values().flatten().copied().collect();
            let want: BTreeSet<u32> =
                past.keys().copied().filter(|number| !replaced.contains(number)).collect();
            let merged = merged(&all);
            let have = merged.values.iter().filter_map(|value| match value {
                Content::Inline(bytes) => bytes.as_slice().try_into().ok().map(u32::from_be_bytes),
                Content::Blob(_) | Content::Folder { .. } => None,
            });
            assert_eq!(have.collect::<BTreeSet<u32>>(), want);
            assert!(merged.context.len() <= count, "no more nodes than took writes");
        }
    }
}
