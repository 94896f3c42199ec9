//! The directory of groups (PROTOCOL.md 4.5): one record a group, changed only by compare-and-swap.
//!
//! The owner of the record's key decides, one question at a time: it compares the version, writes
//! the next one to its disk and to a copy, and answers then. Who owns the key anew asks the other
//! places first, so that it decides on what was written last. That is as strong as the ring: while
//! a cut lasts, or a false death is not yet refuted, a key may have two owners and both may decide.
//! Then last writer wins, and the groups, having one id, merge. Registers would be stronger, and
//! would leave the smaller part of a community without groups (ARCHITECTURE.md, "Services go on in
//! a cut").

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity::group::directory::{DirectoryAnswer, DirectoryAsk};
use dugnad_kernel::calls::Operates;
use dugnad_kernel::ops::{CallId, first};
use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};

use super::operations::AskerExt;
use super::record::{DEGREE, Name, Record, VALUE_MAX, Version, class};
use super::{Answer, Asker, Outcome, Persistence, Request, Response};

/// Name of the record under the group's key.
pub const GROUP: &[u8] = b"grp";
/// Questions that wait for one before them; further ones are told to try again.
pub const WAITING_MAX: usize = 64;
/// How long the owner may take: it may have three others to ask and a disk to wait for.
const DECIDE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(300);
/// A group whose members did not renew its record for so long has none (PROTOCOL.md 4.8).
const TTL: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug)]
struct Question {
    from: NodeId,
    call: CallId,
    decide: DirectoryAsk,
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

fn is(record: Option<&Record>) -> DirectoryAnswer {
    let version = record.map_or(0, |record| record.version.counter);
    DirectoryAnswer::Is { version, value: record.and_then(|record| record.value.clone()) }
}

impl Persistence {
    pub(crate) fn on_decide(
        &mut self,
        from: NodeId,
        call: CallId,
        key: Key,
        decide: DirectoryAsk,
        cx: &mut Cx<'_, Self>,
    ) {
        let too_large =
            matches!(&decide, DirectoryAsk::Cas { value: Some(v), .. } if v.len() > VALUE_MAX);
        if !self.position.owns(key) || too_large {
            let response = if too_large { Response::Refused } else { Response::NotOwner };
            self.respond(from, call, response, cx);
            return;
        }
        let full = self.directory.waiting() >= WAITING_MAX;
        let question = Question { from, call, decide };
        match self.directory.busy.get_mut(&key) {
            Some(_) if full => {
                self.count("directory_full");
                self.respond(from, call, Response::Decided(DirectoryAnswer::Failed), cx);
            }
            Some(waiting) => waiting.push_back(question),
            None => {
                self.directory.busy.insert(key, VecDeque::new());
                self.decide(key, question, cx);
            }
        }
    }

    fn decide(&mut self, key: Key, question: Question, cx: &mut Cx<'_, Self>) {
        let known = self.records.get(key, GROUP);
        let asks = self.directory.asked.insert(key);
        let at = Owner { me: self.me, copies: self.position.copy_holders(self.me), asks };
        let Question { from, call, decide } = question;
        let op = move |asker| decide_at_owner(asker, at, key, known, decide, from, call);
        if !self.start("decide", op, cx) {
            self.on_decided(key, None, cx);
            self.respond(from, call, Response::Decided(DirectoryAnswer::Failed), cx);
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
        let Some(range) = self.position.range else { return };
        let mine = |record: &&Record| record.name == GROUP && range.contains(record.key);
        let live = |record: &&Record| mine(record) && record.value.is_some();
        let store = self.records.read();
        let records: Map<Key, u64> =
            store.iter().filter(live).map(|r| (r.key, r.version.counter)).collect();
        drop(store);
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
            self.start("expire a group", move |asker| ask_owner(asker, None, key, ask), cx);
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

/// Asks whoever owns the key. `call`: who waits for the answer, if somebody does.
pub(crate) async fn ask_owner(
    asker: Asker,
    call: Option<u32>,
    key: Key,
    ask: DirectoryAsk,
) -> Outcome {
    let mut answer = DirectoryAnswer::Failed;
    // The owner may be about to change.
    for _ in 0..3 {
        if let Some(to) = asker.find(key).await {
            let request = Request::Decide { key, decide: ask.clone() };
            match asker.call_within(to, request, DECIDE).await {
                Some(Response::Decided(decided)) => {
                    answer = decided;
                    break;
                }
                Some(Response::NotOwner) => {}
                // It may have written before it went: who asks looks again.
                _ => break,
            }
        }
        asker.sleep(AGAIN).await;
    }
    let told = |call| Outcome::Answer { call, answer: Answer::Directory(answer) };
    call.map_or(Outcome::Nothing, told)
}

async fn decide_at_owner(
    asker: Asker,
    at: Owner,
    key: Key,
    mut known: Option<Record>,
    decide: DirectoryAsk,
    to: NodeId,
    call: CallId,
) -> Outcome {
    if at.asks {
        for x in 1..DEGREE {
            let Some(owner) = asker.find(class(key, x)).await else { continue };
            if owner == at.me {
                continue;
            }
            let name: Name = (key, GROUP.to_vec());
            if let Some(Response::Get(Some(record))) = asker.call(owner, Request::Get(name)).await {
                if record.fits() && known.as_ref().is_none_or(|k| k.version < record.version) {
                    known = Some(record);
                }
            }
        }
    }
    let version = known.as_ref().map_or(0, |record| record.version.counter);
    let (decided, record) = match decide {
        DirectoryAsk::Cas { expected, value } if expected == version => {
            let version = Version { counter: version.saturating_add(1), author: at.me };
            let record = Record { key, name: GROUP.to_vec(), version, value };
            if keep(&asker, &at, &record).await {
                (DirectoryAnswer::Written { version: version.counter }, Some(record))
            } else {
                (DirectoryAnswer::Failed, known)
            }
        }
        DirectoryAsk::Get | DirectoryAsk::Cas { .. } => (is(known.as_ref()), known),
    };
    Outcome::Decided { key, record, to, call, response: Response::Decided(decided) }
}

/// On disk here and at a copy, where there is somebody to hold one; then to the other places.
async fn keep(asker: &Asker, at: &Owner, record: &Record) -> bool {
    let call = |node: &NodeId| asker.call(*node, Request::Copy(record.clone()));
    let mut copies: Vec<_> = at.copies.iter().map(call).collect();
    let alone = copies.is_empty();
    if !asker.persist(record.clone()).await {
        return false;
    }
    let mut copied = alone;
    while !copied && !copies.is_empty() {
        copied = first(&mut copies).await == Some(Response::Copied);
    }
    if copied {
        asker.report(Outcome::Spread(record.clone()));
    }
    copied
}
