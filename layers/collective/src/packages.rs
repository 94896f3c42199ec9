//! Packages as the community keeps them: one record a tree and service; the owners of the tree's
//! class hold the bytes (PROTOCOL.md 5; bytes never pass through the core).

mod operations;
mod store;

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Counters, Cx, Duration, Hash, Input, Key, NodeId};
use dugnad_resource::execute::{Order, Report};
use dugnad_resource::executor::clip_note;
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};

use crate::persistence;
use crate::persistence::record::{DEGREE, Name, RECORDS_MAX, Record, class};
use crate::persistence::store::Records;
use crate::position::RingPosition;
use operations::{Holders, Reply, Waiting};

pub(crate) use operations::OPS_MAX;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// I hold the tree you stored.
    Held { root: Hash },
    /// I own a place of this tree, and it is small, or I have no room for it: keep it beside me,
    /// and tell `origin`, who waits for it.
    Mirror { tree: Tree, origin: NodeId },
    /// I cannot keep the tree you stored; I asked `beside` in my place, which will tell you.
    NotHeld { root: Hash, reason: String, beside: Option<NodeId> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire { call: CallId },
    /// Try again to get what is missing here.
    KeepAgain,
}

/// What the rest of this node may ask; [`Event::Answer`] follows.
#[derive(Clone, Debug)]
pub enum Question {
    /// These are here; have the community keep them as long as `service` needs them.
    Store { service: Key, trees: Vec<Tree> },
    /// `service` needs these no more.
    Forget { service: Key, trees: Vec<Tree> },
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Trees that are on disk here.
    Restore(Vec<Tree>),
    Moved(RingPosition),
    /// What the host says.
    Report(Report),
    /// Another version of this record is here now.
    Changed(Name),
    /// The answer to [`Event::Records`].
    Records {
        call: CallId,
        answer: persistence::Answer,
    },
    Ask {
        call: u32,
        question: Question,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Order(Order),
    /// Asks the persistence module.
    Records {
        call: CallId,
        question: persistence::Question,
    },
    /// `Err`: why they are not kept, a line a reason.
    Answer {
        call: u32,
        answer: Result<(), Vec<String>>,
    },
}

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

/// Which trees this node keeps, fetches, and wants kept by others.
pub struct Packages {
    me: NodeId,
    position: RingPosition,
    records: Records,
    calls: CallsOf<Self>,
    trees: Set<Tree>,
    /// Trees on their way here, and who waits to hear of it.
    fetching: Map<Tree, Set<NodeId>>,
    /// Trees whose first source failed.
    second_try: Set<Tree>,
    /// Trees a predecessor wants mirrored, whose record is not here yet.
    mirrors: Set<(Tree, NodeId)>,
    /// Trees on their way here because a predecessor asked for it, and not as an owner's.
    for_others: Set<Tree>,
    /// Fetches that failed in a row, and whether another try is planned.
    keep_failures: u32,
    keep_planned: bool,
    held: Map<CallId, Waiting>,
    counters: Counters,
}

impl Component for Packages {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Held { root } => self.on_held(from, root, cx),
                Msg::Mirror { tree, origin } => self.on_mirror(tree, origin, cx),
                Msg::NotHeld { root, reason, beside } => {
                    self.on_not_held(from, root, &reason, beside, cx);
                }
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::KeepAgain) => self.keep_again(cx),
        }
    }
}

impl Packages {
    /// `records`: those of this node's persistence module.
    #[must_use]
    pub fn new(me: NodeId, records: Records) -> Self {
        Self {
            me,
            position: RingPosition::default(),
            records,
            calls: CallsOf::<Self>::default(),
            trees: Set::new(),
            fetching: Map::new(),
            second_try: Set::new(),
            mirrors: Set::new(),
            for_others: Set::new(),
            keep_failures: 0,
            keep_planned: false,
            held: Map::new(),
            counters: Counters::default(),
        }
    }

    /// The trees kept here.
    #[must_use]
    pub const fn trees(&self) -> &Set<Tree> {
        &self.trees
    }

    /// Trees that should be here and are not yet.
    #[must_use]
    pub fn missing(&self) -> usize {
        let store = self.records.read();
        let mine = store.iter().filter(|record| self.position.owns_class_of(record.key));
        let trees: Set<Tree> = mine.filter_map(needed).map(|needed| needed.tree).collect();
        trees.iter().filter(|tree| !self.trees.contains(*tree)).count()
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("package_operations", self.calls.len(), OPS_MAX),
            ("fetching", self.fetching.len(), RECORDS_MAX),
            ("mirrors_awaited", self.mirrors.len(), MIRRORS_MAX),
            ("holders_awaited", self.held.len(), OPS_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Restore(trees) => self.trees.extend(trees),
            Command::Moved(position) => self.on_moved(position, cx),
            Command::Report(report) => self.on_report(&report, cx),
            Command::Changed((key, name)) if is_name(&name) => self.on_changed(key, &name, cx),
            Command::Changed(_) => {}
            Command::Records { call, answer } => self.answer(call, Reply::Records(answer), cx),
            Command::Ask { call, question } => {
                let me = self.me;
                let started = match question {
                    Question::Store { service, trees } => {
                        let size = self.position.size;
                        let op = move |asker| store::store(asker, call, me, size, service, trees);
                        self.start("store packages", op, cx)
                    }
                    Question::Forget { service, trees } => {
                        let op = move |asker| store::forget(asker, call, me, service, trees);
                        self.start("forget packages", op, cx)
                    }
                };
                if !started {
                    let busy = String::from("this node is busy; try again");
                    cx.emit(Event::Answer { call, answer: Err(Vec::from([busy])) });
                }
            }
        }
    }

    fn on_moved(&mut self, position: RingPosition, cx: &mut Cx<'_, Self>) {
        let next = |position: &RingPosition| position.succs.first().map(|peer| peer.id);
        let moved = self.position.range != position.range;
        let next_moved = next(&self.position) != next(&position);
        self.position = position;
        if moved || next_moved {
            self.want_all(|_| true, cx);
        }
    }

    /// Makes sure of the bytes of those trees whose class this node owns a part of.
    fn want_all(&mut self, which: impl Fn(&Tree) -> bool, cx: &mut Cx<'_, Self>) {
        let store = self.records.read();
        let mine = store.iter().filter(|record| self.position.owns_class_of(record.key));
        let mine: Vec<Needed> =
            mine.filter_map(needed).filter(|needed| which(&needed.tree)).collect();
        drop(store);
        for needed in mine {
            self.want_tree(needed, cx);
        }
    }

    /// Tries again to get the trees that are missing here.
    fn keep_again(&mut self, cx: &mut Cx<'_, Self>) {
        self.keep_planned = false;
        let here = self.trees.clone();
        self.want_all(|tree| !here.contains(tree), cx);
    }

    /// Has a small tree kept by the next successor, too; and any tree if all places are mine.
    fn mirror(&self, needed: Needed, cx: &mut Cx<'_, Self>) {
        let Needed { tree, origin } = needed;
        let key = tree.key();
        let mine = |x: u32| self.position.owns(class(key, x));
        let only = (0..DEGREE).all(mine);
        let owns = (0..DEGREE).any(mine);
        if owns && (only || tree.bytes <= SMALL) && self.trees.contains(&tree) {
            if let Some(next) = self.position.copy_holders(self.me).first() {
                cx.send(*next, Msg::Mirror { tree, origin });
            }
        }
    }

    /// An owner asks to keep a small tree beside it; the copy of the record says it is needed.
    /// `origin` waits for it: several services may share the tree, each stored by another node.
    /// Nobody is asked on: two owners beside each other would ask each other for ever. Only the
    /// arrival of the bytes, which happens once, makes an asked node ask the next.
    fn on_mirror(&mut self, tree: Tree, origin: NodeId, cx: &mut Cx<'_, Self>) {
        let of = |record: &Record| needed(record).is_some_and(|needed| needed.tree == tree);
        let here = self.records.read().iter().any(|record| record.key == tree.key() && of(record));
        if here {
            self.keep_beside(Needed { tree, origin }, cx);
        } else if self.mirrors.len() < MIRRORS_MAX {
            // The copy of the record may come later than the request.
            self.mirrors.insert((tree, origin));
        } else {
            self.count("mirror_overflow");
        }
    }

    fn on_changed(&mut self, key: Key, name: &[u8], cx: &mut Cx<'_, Self>) {
        let Some(needed) = self.records.get(key, name).as_ref().and_then(needed) else {
            self.drop_unneeded(key, cx);
            return;
        };
        let asked: Vec<(Tree, NodeId)> =
            self.mirrors.iter().filter(|(tree, _)| *tree == needed.tree).copied().collect();
        for (tree, origin) in asked {
            self.mirrors.remove(&(tree, origin));
            self.keep_beside(Needed { tree, origin }, cx);
        }
        if self.position.owns_class_of(key) {
            self.want_tree(needed, cx);
        }
    }

    /// Keeps a tree because an owner asked for it.
    fn keep_beside(&mut self, needed: Needed, cx: &mut Cx<'_, Self>) {
        if !self.fetching.contains_key(&needed.tree) {
            self.for_others.insert(needed.tree);
        }
        self.keep_tree(needed, cx);
    }

    /// As an owner of its class: keeps the tree, and has it kept beside this node.
    fn want_tree(&mut self, needed: Needed, cx: &mut Cx<'_, Self>) {
        self.for_others.remove(&needed.tree);
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
            cx.emit(Event::Order(Order::KeepPackage { tree: needed.tree, from }));
        }
        false
    }

    /// No service needs the tree any more.
    fn drop_unneeded(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let alive = |r: &&Record| r.key == key && needed(r).is_some();
        if self.records.read().iter().any(|record| alive(&record)) {
            return;
        }
        if let Some(tree) = self.trees.iter().copied().find(|tree| tree.key() == key) {
            self.trees.remove(&tree);
            cx.emit(Event::Order(Order::Drop { tree }));
        }
    }

    fn on_sources(&mut self, tree: Tree, from: Vec<NodeId>, cx: &mut Cx<'_, Self>) {
        if self.fetching.contains_key(&tree) {
            cx.emit(Event::Order(Order::KeepPackage { tree, from }));
        }
    }

    /// What the host says about trees. A package fetched to run is as good as one kept.
    fn on_report(&mut self, report: &Report, cx: &mut Cx<'_, Self>) {
        match report {
            Report::Kept { tree } => {
                self.trees.insert(*tree);
                self.second_try.remove(tree);
                self.for_others.remove(tree);
                self.keep_failures = 0;
                for origin in self.fetching.remove(tree).unwrap_or_default() {
                    self.tell_held(tree.root, origin, cx);
                    self.mirror(Needed { tree: *tree, origin }, cx);
                }
            }
            Report::KeepFailed { tree, reason } => self.on_keep_failed(*tree, reason, cx),
            Report::LetGo { tree } => self.drop_unneeded(tree.key(), cx),
            _ => {}
        }
    }

    fn on_keep_failed(&mut self, tree: Tree, reason: &str, cx: &mut Cx<'_, Self>) {
        self.count("keep_failed");
        if self.fetching.get(&tree).is_none_or(Set::is_empty) {
            return;
        }
        if self.second_try.insert(tree) {
            let me = self.me;
            self.start("find holders", move |asker| store::find_holders(asker, tree, me), cx);
            return;
        }
        self.second_try.remove(&tree);
        if !core::mem::replace(&mut self.keep_planned, true) {
            cx.after(KEEP_AGAIN * (1 << self.keep_failures), Timer::KeepAgain);
            self.keep_failures = (self.keep_failures + 1).min(KEEP_DOUBLINGS);
        }
        // An owner without room asks one beside it. Who was asked so asks nobody: no request goes
        // round, and an owner asks again only when it has tried again itself.
        let others = self.position.copy_holders(self.me);
        let beside = (!self.for_others.remove(&tree) && !others.is_empty())
            .then(|| others[cx.rng.usize(..others.len())]);
        for origin in self.fetching.remove(&tree).unwrap_or_default() {
            if origin == self.me {
                self.on_not_held(self.me, tree.root, reason, beside, cx);
            } else {
                let reason = clip_note(reason);
                cx.send(origin, Msg::NotHeld { root: tree.root, reason, beside });
            }
            if let Some(beside) = beside {
                self.count("kept_beside");
                cx.send(beside, Msg::Mirror { tree, origin });
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

    fn on_held(&mut self, from: NodeId, root: Hash, cx: &mut Cx<'_, Self>) {
        let mut met = Vec::new();
        for (call, waiting) in self.held.iter_mut().filter(|(_, w)| w.root == root) {
            waiting.holders.have.insert(from);
            waiting.holders.refused.remove(&from);
            if waiting.is_over() {
                met.push(*call);
            }
        }
        for call in met {
            self.give_up(call, cx);
        }
    }

    /// A node that should keep a tree cannot: whoever waits for it learns why.
    fn on_not_held(
        &mut self,
        from: NodeId,
        root: Hash,
        reason: &str,
        beside: Option<NodeId>,
        cx: &mut Cx<'_, Self>,
    ) {
        let mut over = Vec::new();
        for (call, waiting) in self.held.iter_mut().filter(|(_, w)| w.root == root) {
            let Holders { have, refused } = &mut waiting.holders;
            if !have.contains(&from) && refused.len() < REFUSED_MAX {
                refused.insert(from, clip_note(reason));
                waiting.asked.extend(beside);
            }
            if waiting.is_over() {
                over.push(*call);
            }
        }
        for call in over {
            self.give_up(call, cx);
        }
    }
}

#[cfg(test)]
mod tests;
