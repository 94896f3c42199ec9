//! Which objects there are, and what each node keeps.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::map::Map;
use dugnad_kernel::{Key, NodeId};

use super::item::{Address, KEY_MAX, Namespace, Object};
use super::operations::{Asker, AskerExt, Outcome, Unreachable};
use super::read::{self, NOBODY, unknown};
use super::siblings::{Siblings, merge};
use super::strong;
use super::sums::{Listed, NodeSums};
use super::{ObjectAnswer, Objects, Request, Response};
use crate::cast::{CastBody, CastPart};

/// Objects in one answer, and bytes of their paths.
pub(super) const PAGE: usize = 256;
const PAGE_BYTES: usize = 40 * 1024;
/// Namespaces one node tells of.
const NAMESPACES_MAX: usize = 64;
/// Nodes that are asked at the same time.
const ASKED: usize = 16;

/// What somebody wants to see of a namespace.
pub(super) struct Page {
    pub(super) namespace: String,
    pub(super) prefix: String,
    pub(super) after: String,
}

impl Objects {
    /// Calls `with` for every object here, removed ones left out.
    fn each(&self, mut with: impl FnMut(Key, Address, Listed)) {
        let store = self.records.read();
        // The store is in the order of keys: each comes behind the ones before.
        let mut merging: Map<Key, Vec<(NodeId, Siblings)>> = Map::new();
        for record in store.iter() {
            if let Some(object) = Object::of(record) {
                let (version, bytes) = (record.version.counter, object.content.bytes());
                let path = object.address.path.clone();
                let listed = Listed { path, version, bytes, values: 1 };
                with(record.key, object.address, listed);
            } else if let Some(own) = Siblings::of(record) {
                merging.entry(record.key).or_default().push(own);
            }
        }
        for (key, all) in merging {
            let merged = merge(all.iter().map(|(node, siblings)| (*node, siblings)));
            let Some((_, first)) = all.first() else { continue };
            if !merged.values.is_empty() {
                let bytes = merged.values.iter().map(super::item::Content::bytes).sum();
                let values = u8::try_from(merged.values.len()).unwrap_or(u8::MAX);
                let path = first.address.path.clone();
                let listed = Listed { path, version: 0, bytes, values };
                with(key, first.address.clone(), listed);
            }
        }
    }

    /// Calls `with` for every object in registers here: whether this node is the first to keep it.
    fn each_strong(&self, mut with: impl FnMut(bool, Address, Listed)) {
        let keeper = self.registers.read();
        for (cell, leads) in keeper.values() {
            let content = cell.value.as_deref().and_then(strong::decode);
            if let (Ok(address), Some(content)) = (Address::parse(&cell.name), content) {
                let (path, bytes) = (address.path.clone(), content.bytes());
                with(leads, address, Listed { path, version: 0, bytes, values: 1 });
            }
        }
    }

    pub(super) fn list_here(&self, namespace: &str, prefix: &str, after: &str) -> Response {
        let mut objects = Vec::new();
        self.each(|key, address, listed| {
            let wanted = address.namespace == namespace
                && listed.path.starts_with(prefix)
                && listed.path.as_str() > after
                && self.position.owns(key);
            if wanted {
                objects.push(listed);
            }
        });
        self.each_strong(|_, address, listed| {
            let wanted = address.namespace == namespace
                && listed.path.starts_with(prefix)
                && listed.path.as_str() > after;
            if wanted {
                objects.push(listed);
            }
        });
        objects.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        objects.dedup_by(|a, b| a.path == b.path);
        let all = objects.len();
        let mut bytes = 0;
        let fits = |listed: &&Listed| {
            bytes += listed.path.len() + 24;
            bytes <= PAGE_BYTES
        };
        let count = objects.iter().take(PAGE).take_while(fits).count();
        objects.truncate(count);
        Response::Listed { more: count < all, objects }
    }

    /// What this node keeps of objects; its parent knows the rest. `only`: of one namespace.
    #[must_use]
    pub fn sums(&self, only: Option<&str>) -> NodeSums {
        let mut sums = NodeSums { node: self.me, ..NodeSums::default() };
        let mut namespaces: Map<String, (u32, u64)> = Map::new();
        let mut count = |answers: bool, address: Address, listed: Listed| {
            if only.is_some_and(|only| only != address.namespace) {
                return;
            }
            sums.copies = sums.copies.saturating_add(1);
            if !answers {
                return;
            }
            sums.keys = sums.keys.saturating_add(1);
            let known = namespaces.contains_key(&address.namespace);
            if known || namespaces.len() < NAMESPACES_MAX {
                let (keys, bytes) = namespaces.entry(address.namespace).or_default();
                *keys = keys.saturating_add(1);
                *bytes = bytes.saturating_add(listed.bytes);
            }
        };
        self.each(|key, address, listed| count(self.position.owns(key), address, listed));
        self.each_strong(&mut count);
        let line = |(name, (keys, bytes)): (&String, &(u32, u64))| (name.clone(), *keys, *bytes);
        sums.namespaces = namespaces.iter().map(line).collect();
        sums
    }
}

/// What every node keeps, of one namespace or of all; and whether all answered.
pub(super) async fn ask_all(asker: &Asker, namespace: Option<String>) -> (Vec<NodeSums>, bool) {
    let (parts, complete) = asker.cast(CastBody::Objects { namespace }).await;
    let sums = parts.into_iter().filter_map(|part| match part {
        CastPart::Objects(sums) => Some(*sums),
        _ => None,
    });
    (sums.collect(), complete)
}

/// A person asks what every node keeps.
pub(super) async fn sums(asker: Asker, ask: u64) -> Outcome {
    let (nodes, complete) = ask_all(&asker, None).await;
    Outcome::Answer { ask, answer: ObjectAnswer::Sums { nodes, complete } }
}

pub(super) async fn list(asker: Asker, ask: u64, known: Option<Namespace>, page: Page) -> Outcome {
    let answer = match read::namespace(&asker, known, &page.namespace).await {
        Err(Unreachable) => ObjectAnswer::Failed(NOBODY.to_string()),
        Ok(None) => unknown(&page.namespace),
        Ok(Some(_)) => page_of(&asker, &page).await,
    };
    Outcome::Answer { ask, answer }
}

/// The first objects after the one that was shown last: each node tells its own, in order, and
/// what lies behind the last of a node that has more is for the next page.
async fn page_of(asker: &Asker, page: &Page) -> ObjectAnswer {
    let (nodes, mut complete) = ask_all(asker, Some(page.namespace.clone())).await;
    let has = |sums: &&NodeSums| sums.copies > 0;
    let nodes: Vec<NodeId> = nodes.iter().filter(has).map(|sums| sums.node).collect();
    let mut found: Map<String, Listed> = Map::new();
    let mut until: Option<String> = None;
    for some in nodes.chunks(ASKED) {
        let calls = some.iter().map(|node| {
            let Page { namespace, prefix, after } = page;
            let (namespace, prefix, after) = (namespace.clone(), prefix.clone(), after.clone());
            asker.call(*node, Request::List { namespace, prefix, after })
        });
        for call in calls.collect::<Vec<_>>() {
            let Some(Response::Listed { objects, more }) = call.await else {
                complete = false;
                continue;
            };
            if let Some(last) = objects.last().filter(|_| more) {
                if until.as_ref().is_none_or(|until| last.path < *until) {
                    until = Some(last.path.clone());
                }
            }
            let fits = |listed: &Listed| listed.path.len() <= KEY_MAX;
            for listed in objects.into_iter().filter(fits).take(PAGE) {
                found.insert(listed.path.clone(), listed);
            }
            if found.len() > PAGE {
                found = found.into_iter().take(PAGE).collect();
                until = found.last_key_value().map(|(path, _)| path.clone());
            }
        }
    }
    let more = until.is_some();
    let shown = |listed: &Listed| until.as_ref().is_none_or(|until| listed.path <= *until);
    let objects = found.into_values().filter(shown).collect();
    ObjectAnswer::Listed { objects, more, complete }
}
