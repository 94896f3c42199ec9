//! Packages as the community keeps them: one record a tree and service; the owners of the tree's
//! class hold the bytes (PROTOCOL.md 5; bytes never pass through the core).

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Hash, Key, NodeId};
use dugnad_resource::execute::{Order, Report};
use dugnad_resource::executor::clip_note;
use dugnad_resource::spec::{Spec, Tree};
use serde::{Deserialize, Serialize};

use crate::persistence::put::{get, owners, put};
use crate::persistence::record::{DEGREE, Record, Version, class};
use crate::{Asker, Collective, Event, Msg, Outcome, Reply, Timer};

/// A tree that could not be fetched is tried again after this, doubled so often: whoever has it
/// may be off for good.
pub(crate) const KEEP_AGAIN: Duration = Duration::from_secs(30);
const KEEP_DOUBLINGS: u32 = 5;

/// Trees up to this size are also kept by the owners' next successors: they cost little, and 30 %
/// of the nodes may crash at once.
const SMALL: u64 = 4 << 20;
/// Requests to mirror that wait for the record.
const MIRRORS_MAX: usize = 64;
/// Nodes that are told when one tree is here; several services may share it.
const ORIGINS_MAX: usize = 16;
/// Refusals to keep one tree that are remembered.
const REFUSED_MAX: usize = 16;

/// The value of a tree's record; its name is the key of the service that needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    pub tree: Tree,
    /// Who had it first.
    pub origin: NodeId,
}

/// Bytes of such a name.
const NAME_BYTES: usize = 16;

/// Whether a record of this name is that of a tree.
pub(crate) const fn is_name(name: &[u8]) -> bool {
    name.len() == NAME_BYTES
}

/// Name of the record that says `service` needs a tree.
#[must_use]
pub fn name_for(service: Key) -> Vec<u8> {
    service.0.to_be_bytes().to_vec()
}

fn needed(record: &Record) -> Option<Needed> {
    let needed: Needed = postcard::from_bytes(record.value.as_ref()?).ok()?;
    (needed.tree.key() == record.key && record.name.len() == NAME_BYTES).then_some(needed)
}

impl Collective {
    /// Makes sure of the bytes of every tree whose class this node owns a part of.
    pub(crate) fn refresh_trees(&mut self, cx: &mut Cx<'_, Self>) {
        let mine: Vec<Needed> = self
            .store
            .iter()
            .filter(|record| self.owns_class_of(record.key))
            .filter_map(needed)
            .collect();
        for needed in mine {
            self.want_tree(needed, cx);
        }
    }

    /// Tries again to get the trees that are missing here.
    pub(crate) fn keep_again(&mut self, cx: &mut Cx<'_, Self>) {
        self.keep_planned = false;
        let mine = self.store.iter().filter(|record| self.owns_class_of(record.key));
        let needed: Vec<Needed> = mine.filter_map(needed).collect();
        for needed in
            needed.into_iter().filter(|n| !self.trees.contains(&n.tree)).collect::<Vec<_>>()
        {
            self.want_tree(needed, cx);
        }
    }

    /// Has a small tree kept by the next successor, too; and any tree if all places are mine.
    fn mirror(&self, needed: Needed, cx: &mut Cx<'_, Self>) {
        let Needed { tree, origin } = needed;
        let key = tree.key();
        let mine = |x: u32| self.place.range.is_some_and(|r| r.contains(class(key, x)));
        let only = (0..DEGREE).all(mine);
        let owns = (0..DEGREE).any(mine);
        if owns && (only || tree.bytes <= SMALL) && self.trees.contains(&tree) {
            if let Some(next) = self.copy_holders().first() {
                cx.send(*next, Msg::Mirror { tree, origin });
            }
        }
    }

    /// An owner asks to keep a small tree beside it; the copy of the record says it is needed.
    /// `origin` waits for it: several services may share the tree, each stored by another node.
    /// Nobody is asked on: two owners beside each other would ask each other for ever. Only the
    /// arrival of the bytes, which happens once, makes an asked node ask the next.
    pub(crate) fn on_mirror(&mut self, tree: Tree, origin: NodeId, cx: &mut Cx<'_, Self>) {
        let mut known = self.store.iter().filter(|r| r.key == tree.key()).filter_map(needed);
        let here = known.any(|needed| needed.tree == tree);
        drop(known);
        if here {
            self.keep_tree(Needed { tree, origin }, cx);
        } else if self.mirrors.len() < MIRRORS_MAX {
            // The copy of the record may come later than the request.
            self.mirrors.insert((tree, origin));
        } else {
            self.count("mirror_overflow");
        }
    }

    pub(crate) fn on_tree_record(&mut self, record: &Record, cx: &mut Cx<'_, Self>) {
        let Some(needed) = needed(record) else {
            self.drop_unneeded(record.key, cx);
            return;
        };
        let asked: Vec<(Tree, NodeId)> =
            self.mirrors.iter().filter(|(tree, _)| *tree == needed.tree).copied().collect();
        for (tree, origin) in asked {
            self.mirrors.remove(&(tree, origin));
            self.keep_tree(Needed { tree, origin }, cx);
        }
        if self.owns_class_of(record.key) {
            self.want_tree(needed, cx);
        }
    }

    /// As an owner of its class: keeps the tree, and has it kept beside this node.
    fn want_tree(&mut self, needed: Needed, cx: &mut Cx<'_, Self>) {
        if self.keep_tree(needed, cx) {
            self.mirror(needed, cx);
        }
    }

    /// Whether the tree is here; if not it is fetched, once.
    fn keep_tree(&mut self, needed: Needed, cx: &mut Cx<'_, Self>) -> bool {
        if self.trees.contains(&needed.tree) {
            self.tell_held(needed.tree.root, needed.origin, cx);
            return true;
        }
        let new = !self.fetching.contains_key(&needed.tree);
        let origins = self.fetching.entry(needed.tree).or_default();
        if origins.len() < ORIGINS_MAX {
            origins.insert(needed.origin);
        }
        if new {
            // Who stored it has it, and mostly still lives.
            let from = Vec::from([needed.origin]);
            cx.emit(Event::Order(Order::Keep { tree: needed.tree, from }));
        }
        false
    }

    /// No service needs the tree any more.
    fn drop_unneeded(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let alive = |r: &&Record| r.key == key && needed(r).is_some();
        if self.store.iter().any(|record| alive(&record)) {
            return;
        }
        if let Some(tree) = self.trees.iter().copied().find(|tree| tree.key() == key) {
            self.trees.remove(&tree);
            cx.emit(Event::Order(Order::Drop { tree }));
        }
    }

    pub(crate) fn on_holders(&mut self, tree: Tree, from: Vec<NodeId>, cx: &mut Cx<'_, Self>) {
        if self.fetching.contains_key(&tree) {
            cx.emit(Event::Order(Order::Keep { tree, from }));
        }
    }

    /// What the host says about trees. A package fetched to run is as good as one kept.
    pub(crate) fn on_tree_report(&mut self, report: &Report, cx: &mut Cx<'_, Self>) {
        match report {
            Report::Kept { tree } => {
                self.trees.insert(*tree);
                self.second_try.remove(tree);
                self.keep_failures = 0;
                for origin in self.fetching.remove(tree).unwrap_or_default() {
                    self.tell_held(tree.root, origin, cx);
                    self.mirror(Needed { tree: *tree, origin }, cx);
                }
            }
            Report::KeepFailed { tree, reason } => self.on_keep_failed(*tree, reason, cx),
            _ => {}
        }
    }

    fn on_keep_failed(&mut self, tree: Tree, reason: &str, cx: &mut Cx<'_, Self>) {
        self.count("keep_failed");
        let first = self.fetching.get(&tree).and_then(|origins| origins.first().copied());
        let Some(origin) = first else { return };
        if self.second_try.insert(tree) {
            let (needed, me) = (Needed { tree, origin }, self.me);
            self.start("find holders", |asker| find_holders(asker, needed, me), cx);
            return;
        }
        self.second_try.remove(&tree);
        if !core::mem::replace(&mut self.keep_planned, true) {
            cx.after(KEEP_AGAIN * (1 << self.keep_failures), Timer::KeepAgain);
            self.keep_failures = (self.keep_failures + 1).min(KEEP_DOUBLINGS);
        }
        for origin in self.fetching.remove(&tree).unwrap_or_default() {
            if origin != self.me {
                let (root, reason) = (tree.root, clip_note(reason));
                cx.send(origin, Msg::NotHeld { root, reason });
            }
        }
    }

    fn tell_held(&mut self, root: Hash, origin: NodeId, cx: &mut Cx<'_, Self>) {
        if origin == self.me {
            self.on_held(self.me, root, cx);
        } else {
            cx.send(origin, Msg::Held { root });
        }
    }

    pub(crate) fn on_held(&mut self, from: NodeId, root: Hash, cx: &mut Cx<'_, Self>) {
        let mut met = Vec::new();
        for (call, waiting) in self.held.iter_mut().filter(|(_, w)| w.root == root) {
            waiting.holders.insert(from);
            waiting.refused.remove(&from);
            if waiting.is_over() {
                met.push(*call);
            }
        }
        for call in met {
            self.answer_holders(call, cx);
        }
    }

    /// A node that should keep a tree cannot: whoever waits for it learns why.
    pub(crate) fn on_not_held(
        &mut self,
        from: NodeId,
        root: Hash,
        reason: &str,
        cx: &mut Cx<'_, Self>,
    ) {
        let mut over = Vec::new();
        for (call, waiting) in self.held.iter_mut().filter(|(_, w)| w.root == root) {
            if !waiting.holders.contains(&from) && waiting.refused.len() < REFUSED_MAX {
                waiting.refused.insert(from, clip_note(reason));
            }
            if waiting.is_over() {
                over.push(*call);
            }
        }
        for call in over {
            self.answer_holders(call, cx);
        }
    }

    /// Enough nodes hold the tree, or the time is over.
    pub(crate) fn answer_holders(&mut self, call: CallId, cx: &mut Cx<'_, Self>) {
        if let Some(waiting) = self.held.remove(&call) {
            let Waiting { holders, refused, .. } = waiting;
            self.answer(call, Reply::Holders { holders, refused }, cx);
        }
    }
}

/// Somebody waits until enough nodes hold a tree.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) root: Hash,
    pub(crate) enough: usize,
    pub(crate) holders: Set<NodeId>,
    /// Who cannot, and why.
    pub(crate) refused: Map<NodeId, String>,
}

impl Waiting {
    /// Enough hold it, or nobody is left who might.
    fn is_over(&self) -> bool {
        self.holders.len() + self.refused.len() >= self.enough
    }
}

async fn find_holders(asker: Asker, needed: Needed, me: NodeId) -> Outcome {
    let owners = owners(&asker, needed.tree.key()).await;
    let from = owners.into_iter().filter(|node| *node != me).collect();
    Outcome::Holders { tree: needed.tree, from }
}

/// The packages of a service, each once.
pub(crate) fn distinct_trees(spec: &Spec) -> Vec<Tree> {
    let mut trees: Vec<Tree> = spec.artifacts.iter().map(|(_, tree)| *tree).collect();
    trees.sort_unstable();
    trees.dedup();
    trees
}

/// Tombstones for packages that `old` needed and none of `kept` does.
pub(crate) async fn forget_trees(asker: &Asker, old: &Spec, kept: &[&Spec], me: NodeId) {
    let kept: Vec<Tree> = kept.iter().flat_map(|spec| distinct_trees(spec)).collect();
    for tree in distinct_trees(old).into_iter().filter(|tree| !kept.contains(tree)) {
        let name = name_for(old.key());
        let Ok(Some(known)) = get(asker, (tree.key(), name.clone())).await else { continue };
        let version = Version { counter: known.version.counter.saturating_add(1), author: me };
        put(asker.clone(), Record { key: tree.key(), name, version, value: None }, 1).await;
    }
}
