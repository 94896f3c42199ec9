//! The directory of groups (PROTOCOL.md 4.5): one record a group, changed only by compare-and-swap.
//!
//! The owner of the record's key decides, one question at a time: it compares the version, writes
//! the next one to its disk and to a copy, and answers then. Who owns the key anew asks the other
//! places first, so that it decides on what was written last. That is as strong as the ring: while
//! a cut lasts, or a false death is not yet refuted, a key may have two owners and both may decide.
//! Then last writer wins, and the groups, having one id, merge. The linearizable store will take
//! this file's place.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::{DirectoryAnswer, DirectoryAsk};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};
use serde::{Deserialize, Serialize};

use super::record::{DEGREE, Name, Record, VALUE_MAX, Version, class};
use crate::{Ask, Asker, AskerExt, Collective, Outcome, Reply, Request, Response};

/// Name of the record under the group's key.
pub const GROUP: &[u8] = b"grp";
/// Questions that wait for one before them; further ones are told to try again.
pub const WAITING_MAX: usize = 64;
/// How long the owner may take: it may have three others to ask and a disk to wait for.
const DECIDE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(300);
/// A group whose members did not renew its record for so long has none (PROTOCOL.md 4.8).
const TTL: Duration = Duration::from_secs(24 * 3_600);

/// What the owner is to do with the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decide {
    Get,
    Cas { expected: u64, value: Option<Vec<u8>> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decided {
    /// How it stands; to a `Cas`: somebody else wrote first.
    Is {
        version: u64,
        value: Option<Vec<u8>>,
    },
    Written {
        version: u64,
    },
    /// Too many questions, or the disk failed: nothing is promised.
    Failed,
}

#[derive(Debug)]
struct Question {
    from: NodeId,
    call: CallId,
    decide: Decide,
}

/// The owner's side.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Keys a question is being decided for, and those that wait.
    busy: Map<Key, VecDeque<Question>>,
    /// Keys whose other places were asked since this node's range changed.
    asked: Set<Key>,
    /// Which version of a record was seen first when.
    seen: Map<Key, (u64, Time)>,
}

impl Directory {
    pub(crate) fn moved(&mut self) {
        self.asked.clear();
    }

    /// Questions that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.busy.values().map(VecDeque::len).sum()
    }
}

fn is(record: Option<&Record>) -> Decided {
    let version = record.map_or(0, |record| record.version.counter);
    Decided::Is { version, value: record.and_then(|record| record.value.clone()) }
}

impl Collective {
    /// The community's own question, or a person's.
    pub(crate) fn ask_directory(
        &mut self,
        call: CallId,
        key: Key,
        ask: DirectoryAsk,
        cx: &mut Cx<'_, Self>,
    ) {
        self.start("directory", move |asker| ask_owner(asker, call, key, ask), cx);
    }

    pub(crate) fn on_decide(
        &mut self,
        from: NodeId,
        call: CallId,
        key: Key,
        decide: Decide,
        cx: &mut Cx<'_, Self>,
    ) {
        let too_large =
            matches!(&decide, Decide::Cas { value: Some(v), .. } if v.len() > VALUE_MAX);
        if !self.place.range.is_some_and(|range| range.contains(key)) || too_large {
            let response = if too_large { Response::Refused } else { Response::NotOwner };
            self.respond(from, call, response, cx);
            return;
        }
        let full = self.directory.waiting() >= WAITING_MAX;
        let question = Question { from, call, decide };
        match self.directory.busy.get_mut(&key) {
            Some(_) if full => {
                self.count("directory_full");
                self.respond(from, call, Response::Decided(Decided::Failed), cx);
            }
            Some(waiting) => waiting.push_back(question),
            None => {
                self.directory.busy.insert(key, VecDeque::new());
                self.decide(key, question, cx);
            }
        }
    }

    fn decide(&mut self, key: Key, question: Question, cx: &mut Cx<'_, Self>) {
        let known = self.store.get(key, GROUP).cloned();
        let asks = self.directory.asked.insert(key);
        let at = Owner { me: self.me, copies: self.copy_holders(), asks };
        let Question { from, call, decide } = question;
        let op = move |asker| decide_at_owner(asker, at, key, known, decide, from, call);
        let before = self.calls.len();
        self.start("decide", op, cx);
        if self.calls.len() == before && self.directory.busy.contains_key(&key) {
            // No room for another operation, and so no outcome of it.
            self.on_decided(key, None, cx);
            self.respond(from, call, Response::Decided(Decided::Failed), cx);
        }
    }

    /// The record is on disk; here it counts from now on. The next question.
    pub(crate) fn on_decided(&mut self, key: Key, record: Option<&Record>, cx: &mut Cx<'_, Self>) {
        if let Some(record) = record {
            self.apply(record, cx);
        }
        let next = self.directory.busy.get_mut(&key).and_then(VecDeque::pop_front);
        match next {
            Some(question) => self.decide(key, question, cx),
            None => _ = self.directory.busy.remove(&key),
        }
    }

    /// Takes records away that nobody renewed for a day.
    pub(crate) fn expire_groups(&mut self, cx: &mut Cx<'_, Self>) {
        let Some(range) = self.place.range else { return };
        let mine = |record: &&Record| record.name == GROUP && range.contains(record.key);
        let live = |record: &&Record| mine(record) && record.value.is_some();
        let records: Map<Key, u64> =
            self.store.iter().filter(live).map(|r| (r.key, r.version.counter)).collect();
        self.directory.seen.retain(|key, (version, _)| records.get(key) == Some(version));
        let mut old = Vec::new();
        for (key, version) in records {
            let (_, since) = *self.directory.seen.entry(key).or_insert((version, cx.now));
            if cx.now.since(since) >= TTL {
                old.push((key, version));
            }
        }
        for (key, expected) in old {
            let ask = DirectoryAsk::Cas { expected, value: None };
            self.start("expire a group", move |asker| expire(asker, key, ask), cx);
        }
    }
}

/// Where a decision is made.
struct Owner {
    me: NodeId,
    copies: Vec<NodeId>,
    /// Whether the other places have to be asked first.
    asks: bool,
}

async fn expire(asker: Asker, key: Key, ask: DirectoryAsk) -> Outcome {
    ask_owner(asker, 0, key, ask).await;
    Outcome::Nothing
}

async fn ask_owner(asker: Asker, call: CallId, key: Key, ask: DirectoryAsk) -> Outcome {
    let decide = match ask {
        DirectoryAsk::Get => Decide::Get,
        DirectoryAsk::Cas { expected, value } => Decide::Cas { expected, value },
    };
    let mut answer = DirectoryAnswer::Failed;
    // The owner may be about to change.
    for _ in 0..3 {
        if let Some(to) = asker.ask(Ask::Find(key)).await.owner() {
            let request = Request::Decide { key, decide: decide.clone() };
            match asker.ask(Ask::Call { to, request, limit: DECIDE }).await {
                Reply::Response(Some(Response::Decided(Decided::Is { version, value }))) => {
                    answer = DirectoryAnswer::Is { version, value };
                    break;
                }
                Reply::Response(Some(Response::Decided(Decided::Written { version }))) => {
                    answer = DirectoryAnswer::Written { version };
                    break;
                }
                Reply::Response(Some(Response::NotOwner)) => {}
                // It may have written before it went: who asks looks again.
                _ => break,
            }
        }
        asker.ask(Ask::Sleep(AGAIN)).await;
    }
    Outcome::Directory { call, answer }
}

async fn decide_at_owner(
    asker: Asker,
    at: Owner,
    key: Key,
    mut known: Option<Record>,
    decide: Decide,
    to: NodeId,
    call: CallId,
) -> Outcome {
    if at.asks {
        for x in 1..DEGREE {
            let Some(owner) = asker.ask(Ask::Find(class(key, x))).await.owner() else { continue };
            if owner == at.me {
                continue;
            }
            let name: Name = (key, GROUP.to_vec());
            if let Reply::Response(Some(Response::Get(Some(record)))) =
                asker.call(owner, Request::Get(name)).await
            {
                if record.fits() && known.as_ref().is_none_or(|k| k.version < record.version) {
                    known = Some(record);
                }
            }
        }
    }
    let version = known.as_ref().map_or(0, |record| record.version.counter);
    let (decided, record) = match decide {
        Decide::Cas { expected, value } if expected == version => {
            let version = Version { counter: version.saturating_add(1), author: at.me };
            let record = Record { key, name: GROUP.to_vec(), version, value };
            if keep(&asker, &at, &record).await {
                (Decided::Written { version: version.counter }, Some(record))
            } else {
                (Decided::Failed, known)
            }
        }
        Decide::Get | Decide::Cas { .. } => (is(known.as_ref()), known),
    };
    Outcome::Decided { key, record, to, call, response: Response::Decided(decided) }
}

/// On disk here and at a copy, where there is somebody to hold one; then to the other places.
async fn keep(asker: &Asker, at: &Owner, record: &Record) -> bool {
    let call = |node: &NodeId| asker.call(*node, Request::Copy(record.clone()));
    let mut copies: Vec<_> = at.copies.iter().map(call).collect();
    let alone = copies.is_empty();
    if !matches!(asker.ask(Ask::Persist(record.clone())).await, Reply::Persisted(true)) {
        return false;
    }
    let mut copied = alone;
    while !copied && !copies.is_empty() {
        let answer = dugnad_kernel::ops::first(&mut copies).await;
        copied = matches!(answer, Reply::Response(Some(Response::Copied)));
    }
    if copied {
        asker.ask(Ask::Spread(record.clone())).await;
    }
    copied
}
