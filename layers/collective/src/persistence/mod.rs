//! The persistence module (paper 3.4.3): mutable records, kept by the community (PROTOCOL.md 5).
//!
//! It keeps, copies and answers for records; what they mean, and who asked for them, it does not
//! know. Whoever wants to read what lies here holds [`Records`]; only this component writes.

pub mod directory;
mod operations;
pub mod put;
pub mod record;
pub mod store;
pub mod sync;

use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::{DirectoryAnswer, DirectoryAsk};
use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Component, Counters, Cx, Hlc, Input, Key, NodeId};
use serde::{Deserialize, Serialize};

use crate::position::RingPosition;
use directory::Directory;
use operations::Awaited;
use put::Writing;
use record::{Name, RECORDS_MAX, Record, STORE_BYTES_MAX};
use store::Records;
use sync::{ANTI_ENTROPY, SyncMsg, Synced};

pub(crate) use operations::{Asker, Outcome, Reply};

/// Operations at a time; more are refused.
pub(crate) const OPS_MAX: usize = 512;

/// How the versions of a kind of record grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// They count writes, and may lie so far above the one known here.
    Counted { step: u64 },
    /// They are stamps of a hybrid logical clock; tombstones are forgotten after
    /// [`record::TOMBSTONE_KEPT`].
    Stamped,
}

/// How the versions of records of this name grow; `None` if nobody in this community writes records
/// of such a name.
pub(crate) type VersionsOf = fn(&[u8]) -> Option<Versions>;

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To an owner of the record's class.
    Put(Record),
    /// From an owner to its successors.
    Copy(Record),
    /// To an owner of the name's class.
    Get(Name),
    /// To the owner of the key: read or change the record of a group.
    Decide { key: Key, decide: DirectoryAsk },
    /// To the owner of the key: take this record if the version you know counts `expected` writes.
    Claim { record: Record, expected: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Who has it on disk, and which places of its class are the asked one's: a bit each.
    Put { holders: Vec<NodeId>, places: u8 },
    /// The copy is on disk.
    Copied,
    /// No room, no disk, or not within bounds.
    Refused,
    /// The version known here, if any.
    Get(Option<Record>),
    /// The asked node answers for no place of the class (to `Put`, `Get`), or not for the key.
    NotOwner,
    /// To `Decide`: how the record stands.
    Decided(DirectoryAnswer),
    /// Somebody else wrote first: this.
    Taken(Option<Record>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
    /// Two nodes compare what both should hold.
    Sync(SyncMsg),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire {
        call: CallId,
    },
    /// Compare with the copy holders.
    Sync,
    AntiEntropy,
}

/// What the rest of this node may ask; an [`Answer`] follows.
#[derive(Clone, Debug)]
pub enum Question {
    /// The newest version its owners know.
    Get(Name),
    /// Write it to all places of its class; answered when `enough` nodes have it on disk.
    Put { record: Record, enough: usize },
    /// As `Put`, if what the owner of the key knows counts `expected` writes.
    Claim { record: Record, expected: u64, enough: usize },
    /// Who answers for the places of the key's class?
    Owners(Key),
    /// The same, and who holds copies of what they answer for.
    Holders(Key),
    /// Keep these here, as if another holder had brought them.
    TakeIn(Vec<Record>),
    /// Of the directory of groups.
    Directory { key: Key, ask: DirectoryAsk },
}

#[derive(Clone, Debug)]
pub enum Answer {
    Found(Option<Record>),
    /// Who has it on disk; nobody if it failed.
    Stored(Set<NodeId>),
    /// Somebody else wrote first: this.
    Taken(Option<Record>),
    Owners(Set<NodeId>),
    TakenIn,
    Directory(DirectoryAnswer),
    /// No owner answered, or too much is under way.
    Unreachable,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// What the disk held.
    Restore(Vec<Record>),
    /// Milliseconds since 1970 as the machine's clock has it now; `None` if it was never set.
    Clock(Option<u64>),
    /// What this node answers for now. `gained`: without a hand-over by who had it before.
    Moved {
        position: RingPosition,
        gained: Option<Arc>,
    },
    /// Who answers for the key of [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    Persisted(u64),
    NotPersisted(u64),
    /// It will not answer: dead, or in a new life.
    Gone(NodeId),
    /// What was in flight to it is lost.
    LinkDown(NodeId),
    /// [`Event::Answer`] follows under `call`.
    Ask {
        call: u32,
        question: Question,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    /// Write these to disk, `None` deletes; with a token [`Command::Persisted`] or
    /// [`Command::NotPersisted`] follows.
    Persist {
        token: Option<u64>,
        writes: Vec<(Name, Option<Vec<u8>>)>,
    },
    /// Another version of this record is here now.
    Changed(Name),
    Answer {
        call: u32,
        answer: Answer,
    },
}

/// The records of one node, and its part in keeping those of the community.
pub struct Persistence {
    pub(crate) me: NodeId,
    versions_of: VersionsOf,
    clock: Hlc,
    pub(crate) position: RingPosition,
    /// What it answered for before it went out of the ring, until it is in again.
    range_before: Option<Arc>,
    pub(crate) records: Records,
    calls: CallsOf<Self>,
    pub(crate) tokens: u64,
    /// Writes somebody waits for, by the call that waits.
    pub(crate) writing: Map<u32, Writing>,
    pub(crate) synced: Synced,
    pub(crate) directory: Directory,
    counters: Counters,
    ticking: bool,
}

impl Component for Persistence {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Request { call, request } => self.on_request(from, call, request, cx),
                Msg::Response { call, response } => self.on_response(from, call, response, cx),
                Msg::Sync(msg) => self.on_sync(from, msg, cx),
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Sync) => self.on_sync_timer(cx),
            Input::Timer(Timer::AntiEntropy) => self.on_anti_entropy(cx),
        }
    }
}

impl Persistence {
    #[must_use]
    pub fn new(me: NodeId, versions_of: VersionsOf) -> Self {
        Self {
            me,
            versions_of,
            clock: Hlc::default(),
            position: RingPosition::default(),
            range_before: None,
            records: Records::default(),
            calls: CallsOf::<Self>::default(),
            tokens: 0,
            writing: Map::new(),
            synced: Synced::default(),
            directory: Directory::default(),
            counters: Counters::default(),
            ticking: false,
        }
    }

    /// To read what lies here, now and later.
    #[must_use]
    pub fn records(&self) -> Records {
        self.records.clone()
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let store = self.records.read();
        [
            ("records", store.len(), RECORDS_MAX),
            ("record_bytes", store.bytes(), STORE_BYTES_MAX),
            ("record_operations", self.calls.len(), OPS_MAX),
            ("directory_waiting", self.directory.waiting(), directory::WAITING_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    /// Copy holders that were not compared with since the ring moved: what they lack is not known.
    #[must_use]
    pub fn uncompared(&self) -> usize {
        let holders = self.position.copy_holders(self.me).into_iter();
        holders.filter(|id| !self.synced.is_compared(*id)).count()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Restore(records) => self.records.write().restore(records),
            Command::Clock(unix_ms) => self.clock.set(unix_ms, cx.now),
            Command::Moved { position, gained } => self.on_moved(position, gained, cx),
            Command::Found { call, owner } => self.answer(call, Reply::Found(owner), cx),
            Command::Persisted(token) => self.on_persisted(token, true, cx),
            Command::NotPersisted(token) => self.on_persisted(token, false, cx),
            Command::Gone(node) => {
                self.synced.forget(node);
                self.give_up_on(node, cx);
            }
            Command::LinkDown(node) => {
                // What was in flight is lost: compare again.
                if self.synced.forget(node) {
                    self.plan_sync(cx);
                }
                self.give_up_on(node, cx);
            }
            Command::Ask { call, question } => self.on_question(call, question, cx),
        }
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if matches!(self.calls.awaited(call), Some(Awaited::Call { to }) if *to == from) {
            self.answer(call, Reply::Response(Some(response)), cx);
        } else {
            self.count("late_response");
        }
    }

    /// The ring moved: what I answer for, and whom I copy to.
    fn on_moved(&mut self, position: RingPosition, gained: Option<Arc>, cx: &mut Cx<'_, Self>) {
        let moved = self.position.range != position.range;
        // Who was alone and joins has lost what it answered for, too.
        let before = self.position.range.or(self.range_before);
        let lost = position.lost_since(before);
        self.range_before = before.filter(|_| position.range.is_none());
        self.position = position;
        self.forget_synced();
        if !self.ticking {
            self.ticking = true;
            cx.after(ANTI_ENTROPY, Timer::AntiEntropy);
        }
        if self.position.range.is_some() {
            self.plan_sync(cx);
        }
        if moved {
            self.directory.moved();
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

    fn on_question(&mut self, call: u32, question: Question, cx: &mut Cx<'_, Self>) {
        let started = match question {
            Question::Put { record, enough } => return self.begin_put(call, record, enough, cx),
            Question::TakeIn(records) => {
                self.take_in(&records, cx);
                cx.emit(Event::Answer { call, answer: Answer::TakenIn });
                return;
            }
            Question::Get(name) => self.start("get", |asker| put::get(asker, call, name), cx),
            Question::Owners(key) => {
                self.start("find owners", |asker| put::owners(asker, call, key), cx)
            }
            Question::Holders(key) => {
                self.start("find holders of records", |asker| put::holders(asker, call, key), cx)
            }
            Question::Claim { record, expected, enough } => {
                let op = |asker| put::claim(asker, call, record, expected, enough);
                self.start("claim", op, cx)
            }
            Question::Directory { key, ask } => {
                let op = |asker| directory::ask_owner(asker, Some(call), key, ask);
                self.start("directory", op, cx)
            }
        };
        if !started {
            cx.emit(Event::Answer { call, answer: Answer::Unreachable });
        }
    }

    fn on_persisted(&mut self, token: u64, done: bool, cx: &mut Cx<'_, Self>) {
        let of = |out: &Awaited| matches!(out, Awaited::Persist { token: t } if *t == token);
        if let Some(call) = self.calls.find(of) {
            self.answer(call, Reply::Persisted(done), cx);
        }
    }

    pub(crate) fn respond(&self, to: NodeId, call: u32, response: Response, cx: &mut Cx<'_, Self>) {
        cx.send(to, Msg::Response { call, response });
    }
}
