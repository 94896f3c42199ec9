//! Collective (paper 3.4): what the community does together. One component a node,
//! [`Collective`]: the persistence module and the service deployment.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod cast;
pub mod deployment;
mod operations;
pub mod persistence;

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::{DirectoryAnswer, DirectoryAsk};
use dugnad_connectivity::route::Found;
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::calls::Calls;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Component, Cx, Duration, Hash, Input, Key, NodeId, Time};
use dugnad_resource::execute::{Order, Report, TERM_STEP, ToHost, ToManager};
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};

use cast::CastBody;
use deployment::client::{ClientQuestion, ClientReply};
use deployment::manager::Manager;
use deployment::service::View;
use deployment::trees::Waiting;
use persistence::directory::{self, Decide, Decided, Directory};
use persistence::put::Writing;
use persistence::record::{COUNTER_STEP, Name, Record};
use persistence::store::{Place, Store};
use persistence::sync::{ANTI_ENTROPY, SyncMsg};

pub(crate) use operations::{Ask, Asker, AskerExt, OPS_MAX, Out, Outcome, Reply};

/// How far the version of a record of this name may lie above the one known here; `None` if the
/// components here write no such records.
pub(crate) fn step_of_kind(name: &[u8]) -> Option<u64> {
    use deployment::manager::reconcile::TERM_SHIFT;
    use deployment::service::{FAILED, PLAN, PREVIOUS, SPEC};
    if name == PLAN {
        // Each term has versions of its own.
        return Some(TERM_STEP << TERM_SHIFT);
    }
    let known = [SPEC, PREVIOUS, FAILED, directory::GROUP].contains(&name)
        || deployment::trees::is_name(name);
    known.then_some(COUNTER_STEP)
}

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To an owner of the record's class.
    Put(Record),
    /// From an owner to its successors.
    Copy(Record),
    Get(Name),
    /// To a manager: your view of the service, as soon as it differs from revision `seen`.
    Query {
        service: Key,
        seen: u64,
    },
    Why {
        service: Key,
    },
    /// To the owner of the key: read or change the record of a group.
    Decide {
        key: Key,
        decide: Decide,
    },
    /// What do you hold of this service, whoever answers for it?
    Recall {
        key: Key,
    },
    /// To the owner of the key: take this record if the version you know counts `expected` writes.
    Claim {
        record: Record,
        expected: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Who has it on disk, and which places of its class are the asked one's: a bit each.
    Put {
        holders: Vec<NodeId>,
        places: u8,
    },
    Copied,
    Refused,
    Get(Option<Record>),
    NotOwner,
    View(View),
    /// It owns the key and knows no such service.
    Unknown,
    NotManager,
    Why(Vec<String>),
    Decided(Decided),
    Recalled(Vec<Record>),
    /// Somebody else wrote first: this.
    Taken(Option<Record>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    Request {
        call: u32,
        request: Request,
    },
    Response {
        call: u32,
        response: Response,
    },
    Sync(SyncMsg),
    /// I hold the tree you stored.
    Held {
        root: Hash,
    },
    /// I own a place of this small tree; keep it, too, and tell `origin`, who waits for it.
    Mirror {
        tree: Tree,
        origin: NodeId,
    },
    /// I cannot keep the tree you stored.
    NotHeld {
        root: Hash,
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire {
        call: CallId,
    },
    Sync,
    AntiEntropy,
    /// Look after one service: a take-over is over, a back-off ended.
    Service {
        key: Key,
        round: u32,
    },
    /// A manager's answer to a waiting query is due, changed or not.
    Poll {
        key: Key,
        from: NodeId,
        call: u32,
    },
    KeepAgain,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// What the disk held, and whether this node has lived before.
    Restore {
        records: Vec<Record>,
        lived: bool,
    },
    /// Trees that are on disk here.
    Trees(Vec<Tree>),
    Place {
        place: Place,
        gained: Option<Arc>,
    },
    Found {
        call: u32,
        found: Option<Found>,
    },
    Feedback {
        call: u32,
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
    Persisted(u64),
    NotPersisted(u64),
    Report(Report),
    ToManager {
        from: NodeId,
        msg: ToManager,
    },
    Dead(NodeId),
    /// It lives in a new life: what it runs must be asked anew.
    Restarted(NodeId),
    LinkUp(NodeId),
    LinkDown(NodeId),
    Ask {
        ask: u64,
        question: ClientQuestion,
    },
    /// Of the directory of groups; [`Event::Directory`] follows under `call`.
    Directory {
        call: u32,
        key: Key,
        ask: DirectoryAsk,
    },
    /// The agent ends: what this node manages it leaves as it is.
    Ending,
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: u32,
        key: Key,
    },
    Cast {
        call: u32,
        body: CastBody,
        feedback: bool,
    },
    Persist {
        token: u64,
        writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
    Order(Order),
    ToHost {
        to: NodeId,
        msg: ToHost,
    },
    /// Watch these nodes: they run replicas managed here.
    Watch(Set<NodeId>),
    Answer {
        ask: u64,
        reply: ClientReply,
    },
    Directory {
        call: u32,
        answer: DirectoryAnswer,
    },
}

/// What of `old` is not in `new`, while both end at the same node.
fn lost(old: Option<Arc>, new: Option<Arc>) -> Option<Arc> {
    let (old, new) = (old?, new?);
    let shrunk = old.hi == new.hi && new.lo != old.lo && in_oo(old.lo, new.lo, old.hi);
    shrunk.then(|| Arc::new(old.lo, new.lo))
}

/// How long one node may take to answer another.
const CALL: Duration = Duration::from_secs(2);
/// How long the hosts of a plan found on disk have to come back after a restart.
const HOLD: Duration = Duration::from_secs(60);
/// Dead nodes that are remembered.
const DEAD_MAX: usize = 512;
/// Peers remembered while it lasts.
const MET_MAX: usize = 256;

pub struct Collective {
    pub(crate) me: NodeId,
    pub(crate) place: Place,
    /// What it answered for before it went out of the ring, until it is in again.
    range_before: Option<Arc>,
    pub(crate) store: Store,
    pub(crate) calls: Calls<Ask, Reply, Outcome, Out>,
    tokens: u64,
    pub(crate) trees: Set<Tree>,
    /// Trees on their way here, and who waits to hear of it.
    pub(crate) fetching: Map<Tree, Set<NodeId>>,
    /// Trees whose first source failed.
    pub(crate) second_try: Set<Tree>,
    /// Trees a predecessor wants mirrored, whose record is not here yet.
    pub(crate) mirrors: Set<(Tree, NodeId)>,
    /// Fetches that failed in a row, and whether another try is planned.
    pub(crate) keep_failures: u32,
    pub(crate) keep_planned: bool,
    pub(crate) held: Map<CallId, Waiting>,
    pub(crate) writing: Map<CallId, Writing>,
    pub(crate) managers: Map<Key, Manager>,
    /// Services whose other holders are being asked.
    pub(crate) recalling: Set<Key>,
    /// Whether this life of the node was ever in a ring with others.
    pub(crate) met_others: bool,
    pub(crate) ending: bool,
    pub(crate) dead: Map<NodeId, Time>,
    /// After a restart with plans on disk: power may have failed for everybody, so hosts get time
    /// to come back before their replicas are given away.
    pub(crate) hold_until: Option<Time>,
    /// Who was linked while that lasts: when they go, they are gone.
    pub(crate) met: Set<NodeId>,
    pub(crate) directory: Directory,
    counters: Map<&'static str, u64>,
    ticking: bool,
}

impl Component for Collective {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => self.on_message(from, msg, cx),
            Input::Timer(timer) => self.on_timer(timer, cx),
        }
    }
}

impl Collective {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            place: Place::default(),
            range_before: None,
            store: Store::default(),
            calls: Calls::default(),
            tokens: 0,
            trees: Set::new(),
            fetching: Map::new(),
            second_try: Set::new(),
            mirrors: Set::new(),
            keep_failures: 0,
            keep_planned: false,
            held: Map::new(),
            writing: Map::new(),
            hold_until: None,
            met: Set::new(),
            managers: Map::new(),
            recalling: Set::new(),
            met_others: false,
            ending: false,
            dead: Map::new(),
            directory: Directory::default(),
            counters: Map::new(),
            ticking: false,
        }
    }

    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    #[must_use]
    pub const fn trees(&self) -> &Set<Tree> {
        &self.trees
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter().map(|(name, count)| (*name, *count))
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        use persistence::record::{RECORDS_MAX, STORE_BYTES_MAX};
        [
            ("records", self.store.len(), RECORDS_MAX),
            ("record_bytes", self.store.bytes(), STORE_BYTES_MAX),
            ("operations", self.calls.len(), OPS_MAX),
            ("dead", self.dead.len(), DEAD_MAX),
            ("managers", self.managers.len(), RECORDS_MAX),
            ("fetching", self.fetching.len(), RECORDS_MAX),
            ("holders_awaited", self.held.len(), OPS_MAX),
            ("directory_waiting", self.directory.waiting(), directory::WAITING_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    pub(crate) const fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Restore { records, lived } => {
                if lived {
                    self.hold_until = Some(cx.now + HOLD);
                }
                self.store.restore(records);
            }
            Command::Trees(trees) => self.trees.extend(trees),
            Command::Place { place, gained } => self.on_place(place, gained, cx),
            Command::Found { call, found } => self.answer(call, Reply::Found(found), cx),
            Command::Feedback { call, parts, complete } => {
                self.answer(call, Reply::Parts { parts, complete }, cx);
            }
            Command::Persisted(token) => self.on_persisted(token, true, cx),
            Command::NotPersisted(token) => self.on_persisted(token, false, cx),
            Command::Report(report) => self.on_tree_report(&report, cx),
            Command::ToManager { from, msg } => self.on_to_manager(from, msg, cx),
            Command::Dead(node) => self.on_dead(node, cx),
            Command::Restarted(node) => {
                self.store.synced.remove(&node);
                self.fail_calls(node, cx);
                self.on_node_restarted(node, cx);
            }
            Command::LinkUp(node) => {
                if self.hold_until.is_some_and(|until| until > cx.now) && self.met.len() < MET_MAX {
                    self.met.insert(node);
                }
                self.on_node_back(node, cx);
            }
            Command::LinkDown(node) => self.on_link_down(node, cx),
            Command::Ask { ask, question } => self.on_ask(ask, question, cx),
            Command::Directory { call, key, ask } => self.ask_directory(call, key, ask, cx),
            Command::Ending => self.ending = true,
        }
    }

    fn on_message(&mut self, from: NodeId, msg: Msg, cx: &mut Cx<'_, Self>) {
        self.dead.remove(&from);
        match msg {
            Msg::Request { call, request } => self.on_request(from, call, request, cx),
            Msg::Response { call, response } => {
                let awaited =
                    matches!(self.calls.awaited(call), Some(Out::Call { to }) if *to == from);
                if awaited {
                    self.answer(call, Reply::Response(Some(response)), cx);
                } else {
                    self.count("late_response");
                }
            }
            Msg::Sync(msg) => self.on_sync(from, msg, cx),
            Msg::Held { root } => self.on_held(from, root, cx),
            Msg::Mirror { tree, origin } => self.on_mirror(tree, origin, cx),
            Msg::NotHeld { root, reason } => self.on_not_held(from, root, &reason, cx),
        }
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut Cx<'_, Self>) {
        match timer {
            Timer::Expire { call } => self.on_expired(call, cx),
            Timer::Sync => self.on_sync_timer(cx),
            Timer::AntiEntropy => self.on_anti_entropy(cx),
            Timer::Service { key, round } => self.on_service_timer(key, round, cx),
            Timer::Poll { key, from, call } => self.on_poll_due(key, from, call, cx),
            Timer::KeepAgain => self.keep_again(cx),
        }
    }

    /// The ring moved: what I answer for, and whom I copy to.
    fn on_place(&mut self, place: Place, gained: Option<Arc>, cx: &mut Cx<'_, Self>) {
        let moved = self.place.range != place.range;
        // Who was alone and joins has lost what it answered for, too.
        let lost = lost(self.place.range.or(self.range_before), place.range);
        self.range_before =
            self.place.range.or(self.range_before).filter(|_| place.range.is_none());
        let next = |place: &Place| place.succs.first().map(|peer| peer.id);
        let next_moved = next(&self.place) != next(&place);
        self.place = place;
        self.met_others |= self.place.range.is_some() && !self.copy_holders().is_empty();
        self.forget_synced();
        if !self.ticking {
            self.ticking = true;
            cx.after(ANTI_ENTROPY, Timer::AntiEntropy);
        }
        if self.place.range.is_some() {
            self.plan_sync(cx);
        }
        if moved {
            self.directory.moved();
            self.refresh_managers(cx);
        }
        if moved || next_moved {
            self.refresh_trees(cx);
        }
        if let Some(arc) = gained {
            self.repair(arc, &[1, 2, 3], cx);
        }
        // Where two rings merge, the new owner may lie on the other side of the cut and know
        // nothing of what was written on mine; who joins asks for it, too.
        if let Some(arc) = lost {
            self.repair(arc, &[0], cx);
        }
    }

    pub(crate) fn on_record_changed(&mut self, record: &Record, cx: &mut Cx<'_, Self>) {
        if record.name == deployment::service::SPEC {
            self.on_service_record(record.key, cx);
        } else if record.name == deployment::service::PLAN {
            self.on_plan_record(record.key, cx);
        } else if deployment::trees::is_name(&record.name) {
            self.on_tree_record(record, cx);
        }
    }

    fn on_persisted(&mut self, token: u64, done: bool, cx: &mut Cx<'_, Self>) {
        let of = |out: &Out| matches!(out, Out::Persist { token: waiting } if *waiting == token);
        if let Some(call) = self.calls.find(of) {
            self.answer(call, Reply::Persisted(done), cx);
        }
    }

    fn on_dead(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        if self.dead.len() >= DEAD_MAX {
            let oldest = self.dead.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id);
            oldest.map(|id| self.dead.remove(&id));
        }
        self.dead.insert(node, cx.now);
        self.store.synced.remove(&node);
        self.fail_calls(node, cx);
        self.on_node_dead(node, cx);
    }

    fn on_link_down(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        // What was in flight is lost: compare again.
        if self.store.synced.remove(&node).is_some() {
            self.plan_sync(cx);
        }
        self.fail_calls(node, cx);
    }

    /// Answers that will not come.
    fn fail_calls(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        for call in self.calls.of_node(node) {
            self.on_expired(call, cx);
        }
    }

    fn on_expired(&mut self, call: CallId, cx: &mut Cx<'_, Self>) {
        let reply = match self.calls.awaited(call) {
            Some(Out::Call { .. }) => Reply::Response(None),
            Some(Out::Persist { .. }) => Reply::Persisted(false),
            Some(Out::Reserve { .. }) => Reply::Reserved(Err("does not answer".into())),
            Some(Out::Holders) => return self.answer_holders(call, cx),
            Some(Out::Other) => Reply::Over,
            None => return,
        };
        self.answer(call, reply, cx);
    }

    pub(crate) fn respond(&self, to: NodeId, call: u32, response: Response, cx: &mut Cx<'_, Self>) {
        cx.send(to, Msg::Response { call, response });
    }
}
