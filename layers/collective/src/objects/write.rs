//! Writing objects, and declaring namespaces, as operations.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, NodeId, Time};
use dugnad_resource::spec::Tree;

use super::item::{
    Address, Content, INLINE_MAX, Manner, NAMESPACE, Namespace, OBJECT, Object, Seal,
};
use super::operations::{Adding, Asker, AskerExt, Outcome, Stamping, Unreachable};
use super::read::{self, NOBODY, merge_records, unknown};
use super::siblings::{Context, Full, Siblings};
use super::strong;
use super::sums::NodeSums;
use super::{Expect, KNOWN_MAX, ObjectAnswer, Objects, Request, Response, list};
use crate::packages;
use crate::persistence::record::{Record, Version};
use crate::persistence::{Answer, Question};

/// Nodes that should have a value on disk before its writer is told: any two may die then.
const COPIES: usize = 3;
/// Neighbours that are asked whether this node's clock is right.
pub(super) const CLOCKS: usize = 3;

const NOT_WRITTEN: &str = "no node could write it to disk; see `dugnad status` and `dugnad store`";

/// What is to be written.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) address: Address,
    pub(super) content: Option<Content>,
    pub(super) expect: Option<Expect>,
    pub(super) context: Option<Context>,
    pub(super) manner: Option<Manner>,
    pub(super) create: bool,
    pub(super) seal: Option<Seal>,
}

/// What is wanted of the namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create {
    /// How it must be kept; `None`: as it is.
    pub(super) manner: Option<Manner>,
    /// Whether it is made if there is none.
    pub(super) make: bool,
    /// With which key the value is encrypted.
    pub(super) seal: Option<Seal>,
}

/// What this node knows when a write begins.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) me: NodeId,
    pub(super) size: u64,
    pub(super) known: Option<Namespace>,
    /// Bytes in the namespace.
    pub(super) used: Option<u64>,
    /// This node's clock, if others are to be asked whether it is right.
    pub(super) clock: Option<u64>,
    pub(super) others: Vec<NodeId>,
}

fn failed(text: &str) -> ObjectAnswer {
    ObjectAnswer::Failed(text.to_string())
}

/// All that can speak against a write, and the blob to safety; the stamp comes last.
pub(super) async fn prepare(asker: Asker, ask: u64, facts: Facts, wanted: Wanted) -> Outcome {
    match try_prepare(&asker, ask, facts, wanted).await {
        Ok(outcome) => outcome,
        Err(answer) => Outcome::Answer { ask, answer },
    }
}

async fn try_prepare(
    asker: &Asker,
    ask: u64,
    facts: Facts,
    wanted: Wanted,
) -> Result<Outcome, ObjectAnswer> {
    let Wanted { address, content, expect, context, manner, create, seal } = wanted;
    let create = Create { manner, make: create && content.is_some(), seal };
    let bytes = content.as_ref().map(Content::bytes);
    let (namespace, known) = may_write(asker, &facts, &address, bytes, create).await?;
    let copies = usize::try_from(facts.size).unwrap_or(usize::MAX).clamp(1, COPIES);
    match namespace.manner {
        Manner::Merge => return add(asker, ask, address, content, context, copies).await,
        Manner::Strong => {
            let answer = strong::put(asker, &address, content, expect).await;
            return Ok(Outcome::Answer { ask, answer });
        }
        Manner::Last => {}
    }
    clock_is_right(asker, &facts).await?;
    expected(known.as_ref(), expect)?;
    if content.is_none() && known.as_ref().and_then(Object::of).is_none() {
        let version = known.map_or(0, |record| record.version.counter);
        return Err(ObjectAnswer::Absent { version, context: None });
    }
    let before = known.as_ref().and_then(Object::of).and_then(|object| object.content.blob());
    if let Some(tree) =
        content.as_ref().and_then(Content::blob).filter(|tree| before != Some(*tree))
    {
        let question = packages::Question::Store { service: address.key(), trees: [tree].into() };
        if let Err(reasons) = asker.packages(question).await {
            forget(asker, &address, tree).await;
            return Err(ObjectAnswer::Unmet(reasons));
        }
    }
    let claim = expect.is_some();
    let stamping = Stamping { ask, address, content, known, claim, wanted: copies };
    Ok(Outcome::Stamp(Box::new(stamping)))
}

/// What a namespace does with two writes at once.
const fn words(manner: Manner) -> &'static str {
    match manner {
        Manner::Last => "keeps the last value",
        Manner::Merge => "keeps concurrent values",
        Manner::Strong => "is strong",
    }
}

/// Before the bytes of a long value come: whether there is any use in it.
pub(super) async fn check(
    asker: Asker,
    ask: u64,
    facts: Facts,
    address: Address,
    bytes: u64,
    create: Create,
) -> Outcome {
    let may = may_write(&asker, &facts, &address, Some(bytes), create).await;
    let answer = match may {
        Ok((namespace, _)) if namespace.manner == Manner::Merge && bytes > INLINE_MAX as u64 => {
            too_long()
        }
        Ok(_) => ObjectAnswer::Done,
        Err(answer) => answer,
    };
    Outcome::Answer { ask, answer }
}

/// The namespace to write so many bytes to (`None`: something is removed), and what is there now
/// where the last write counts. `create`: the namespace is made if there is none.
async fn may_write(
    asker: &Asker,
    facts: &Facts,
    address: &Address,
    bytes: Option<u64>,
    create: Create,
) -> Result<(Namespace, Option<Record>), ObjectAnswer> {
    let name = &address.namespace;
    let known = read::namespace(asker, facts.known.clone(), name).await;
    let namespace = match known.map_err(|Unreachable| failed(NOBODY))? {
        Some(namespace) => namespace,
        None if create.make => {
            let manner = create.manner.unwrap_or_default();
            let new = Namespace { manner, ..Namespace::plain(name) };
            make(asker, facts.me, new, None).await?
        }
        None => return Err(unknown(name)),
    };
    if create.manner.is_some_and(|manner| manner != namespace.manner) {
        let kept = words(namespace.manner);
        return Err(ObjectAnswer::Refused(format!(
            "namespace {name} {kept}: leave the flag out, or use another namespace"
        )));
    }
    if bytes.is_some() && create.seal != namespace.seal {
        return Err(ObjectAnswer::Refused(format!(
            "the value is not encrypted as namespace {name} wants it; see: dugnad namespace {name}"
        )));
    }
    if namespace.read_only {
        return Err(ObjectAnswer::Refused(format!(
            "namespace {name} is read-only; open it: dugnad namespace {name} --writable"
        )));
    }
    let known = match namespace.manner {
        Manner::Last => asker.get((address.key(), OBJECT.to_vec())).await,
        Manner::Merge | Manner::Strong => Ok(None),
    };
    let known = known.map_err(|Unreachable| failed(NOBODY))?;
    if let Some(bytes) = bytes {
        within_quota(asker, facts, &namespace, bytes, bytes_of(known.as_ref())).await?;
    }
    Ok((namespace, known))
}

fn too_long() -> ObjectAnswer {
    let text = format!("a namespace that merges keeps values of up to {INLINE_MAX} bytes");
    ObjectAnswer::Refused(text)
}

/// Writes how a namespace is kept, if nobody else does at the same time; how it is kept then.
async fn make(
    asker: &Asker,
    me: NodeId,
    namespace: Namespace,
    known: Option<&Record>,
) -> Result<Namespace, ObjectAnswer> {
    let expected = known.map_or(0, |record| record.version.counter);
    let record = Record {
        key: Namespace::key_of(&namespace.name),
        name: NAMESPACE.to_vec(),
        version: Version { counter: expected.saturating_add(1), author: me },
        value: postcard::to_allocvec(&namespace).ok(),
    };
    match asker.records(Question::Claim { record, expected, enough: 1 }).await {
        Answer::Stored(holders) if !holders.is_empty() => {
            asker.report(Outcome::Known(namespace.clone()));
            Ok(namespace)
        }
        Answer::Taken(Some(theirs)) => {
            let conflict = "the namespace was changed by somebody else just now; try again";
            Namespace::of(&theirs).filter(|_| expected == 0).ok_or_else(|| failed(conflict))
        }
        _ => Err(failed(NOT_WRITTEN)),
    }
}

/// A person says how a namespace is to be kept.
pub(super) async fn declare(asker: Asker, ask: u64, me: NodeId, wanted: Namespace) -> Outcome {
    let answer = match try_declare(&asker, me, wanted).await {
        Ok(namespace) => ObjectAnswer::Namespace(namespace),
        Err(answer) => answer,
    };
    Outcome::Answer { ask, answer }
}

async fn try_declare(
    asker: &Asker,
    me: NodeId,
    wanted: Namespace,
) -> Result<Namespace, ObjectAnswer> {
    let known = asker.get((Namespace::key_of(&wanted.name), NAMESPACE.to_vec())).await;
    let known = known.map_err(|Unreachable| failed(NOBODY))?;
    let old = known.as_ref().and_then(Namespace::of);
    if old.as_ref() == Some(&wanted) {
        return Ok(wanted);
    }
    let name = &wanted.name;
    if old.as_ref().is_some_and(|old| old.seal != wanted.seal) {
        return Err(ObjectAnswer::Refused(format!(
            "namespace {name} exists, and whether and how it is sealed cannot change; choose \
             another name"
        )));
    }
    if let Some(old) = old.filter(|old| old.manner != wanted.manner) {
        let name = &old.name;
        let manner = words(old.manner);
        return Err(ObjectAnswer::Refused(format!(
            "namespace {name} {manner}, and that cannot change; choose another name"
        )));
    }
    make(asker, me, wanted, known.as_ref()).await
}

/// Bytes of the value a record holds.
fn bytes_of(record: Option<&Record>) -> u64 {
    record.and_then(Object::of).map_or(0, |object| object.content.bytes())
}

/// Whether the namespace has room for `more` bytes in the place of `old`.
async fn within_quota(
    asker: &Asker,
    facts: &Facts,
    namespace: &Namespace,
    more: u64,
    old: u64,
) -> Result<(), ObjectAnswer> {
    let name = &namespace.name;
    let used = match facts.used {
        Some(used) => used,
        None => {
            let (nodes, _) = list::ask_all(asker, Some(name.clone())).await;
            let own = |node: &NodeSums| node.bytes_of(name);
            let bytes = nodes.iter().map(own).fold(0, u64::saturating_add);
            asker.report(Outcome::Used { namespace: name.clone(), bytes });
            bytes
        }
    };
    if more <= old || used.saturating_sub(old).saturating_add(more) <= namespace.quota {
        return Ok(());
    }
    let (has, most) = (used, namespace.quota);
    Err(ObjectAnswer::Unmet(Vec::from([format!(
        "namespace {name} holds {has} bytes of {most}, and the value has {more}: remove something, \
         or raise it: dugnad namespace {name} --quota SIZE"
    )])))
}

/// A node whose clock is far ahead would win over everybody for as long.
async fn clock_is_right(asker: &Asker, facts: &Facts) -> Result<(), ObjectAnswer> {
    let Some(unix_ms) = facts.clock else { return Ok(()) };
    let ask = |node: &NodeId| asker.call(*node, Request::Clock { unix_ms });
    let asked: Vec<_> = facts.others.iter().map(ask).collect();
    let (mut right, mut ahead) = (0, Vec::new());
    for answer in asked {
        match answer.await {
            Some(Response::Clock { ahead_ms: 0 }) => right += 1,
            Some(Response::Clock { ahead_ms }) => ahead.push(ahead_ms),
            // Who does not answer says nothing about the clock.
            _ => {}
        }
    }
    if ahead.len() <= right {
        asker.report(Outcome::ClockRight);
        return Ok(());
    }
    let minutes = ahead.iter().min().map_or(0, |ms| ms / 60_000);
    Err(ObjectAnswer::Refused(format!(
        "the clock of this node is {minutes} min ahead of its neighbours': what it writes would \
         win over all that comes after; set it (`date -s`, or a service such as ntpd) and try again"
    )))
}

fn expected(known: Option<&Record>, expect: Option<Expect>) -> Result<(), ObjectAnswer> {
    let there = known.filter(|record| Object::of(record).is_some());
    let version = there.map_or(0, |record| record.version.counter);
    let met = match expect {
        None => true,
        Some(Expect::Absent) => there.is_none(),
        Some(Expect::Version(expected)) => there.is_some() && expected == version,
    };
    if met { Ok(()) } else { Err(ObjectAnswer::Lost { version, strong: false }) }
}

/// The object at `address` needs the blob no more.
async fn forget(asker: &Asker, address: &Address, tree: Tree) {
    let question = packages::Question::Forget { service: address.key(), trees: [tree].into() };
    // What is not forgotten now wastes room; nothing else depends on it.
    _ = asker.packages(question).await;
}

impl Objects {
    pub(super) fn on_used(&mut self, namespace: String, bytes: u64, now: Time) {
        self.used.retain(|_, (_, at)| now.since(*at) < super::USED_FOR);
        if self.used.len() < KNOWN_MAX {
            self.used.insert(namespace, (bytes, now));
        }
    }

    /// A write got past everything that could speak against it.
    pub(super) fn stamp(&mut self, stamping: Stamping, cx: &mut Cx<'_, Self>) {
        let known = stamping.known.as_ref().map_or(0, |record| record.version.counter);
        let counter = self.clock.next(known, cx.now);
        if let Some((used, _)) = self.used.get_mut(&stamping.address.namespace) {
            let more = stamping.content.as_ref().map_or(0, Content::bytes);
            *used = used.saturating_add(more).saturating_sub(bytes_of(stamping.known.as_ref()));
        }
        let (me, ask) = (self.me, stamping.ask);
        let version = Version { counter, author: me };
        if !self.start("write object", move |asker| write(asker, version, stamping), cx) {
            let answer = failed("this node is busy; try again");
            cx.emit(super::Event::Answer { ask, answer });
        }
    }

    /// Another node has one more value for an object that merges.
    pub(super) fn on_add(
        &mut self,
        from: NodeId,
        call: CallId,
        address: Address,
        content: Option<Content>,
        context: Option<Context>,
        cx: &mut Cx<'_, Self>,
    ) {
        let key = address.key();
        let fits = address.fits()
            && content.as_ref().is_none_or(|content| content.fits() && content.blob().is_none())
            && context.as_ref().is_none_or(Context::fits);
        if !fits || !self.position.owns_class_of(key) {
            let response = Response::NotOwner;
            return cx.send(from, super::Msg::Response { call, response });
        }
        let adding = Adding { address, content, context, others: Vec::new(), to: from, call };
        let own = self.records.get(key, &Siblings::name(self.me)).is_some();
        if own || self.adding.contains_key(&key) {
            return self.add_here(adding, cx);
        }
        // It may have written there before, and lost its disk: a number is never given twice.
        let me = self.me;
        let op = move |asker| async move {
            let others = read::records(&asker, key, Some(me)).await;
            Outcome::Add(Box::new(Adding { others: others.unwrap_or_default(), ..adding }))
        };
        self.start("add object", op, cx);
    }

    /// Takes one more value; in one step, so that no two are taken for one.
    pub(super) fn add_here(&mut self, adding: Adding, cx: &mut Cx<'_, Self>) {
        let Adding { address, content, context, others, to, call } = adding;
        let (me, key) = (self.me, address.key());
        let name = Siblings::name(me);
        let mut all: Vec<Record> = self.records.read().under(key).cloned().collect();
        all.extend(others);
        all.extend(self.adding.get(&key).cloned());
        let seen = context.unwrap_or_else(|| merge_records(newest(&all).into_iter()).context);
        let own = newest(&all).into_iter().find(|record| record.name == name);
        let before = own.map_or(0, |record| record.version.counter);
        let mut siblings = own
            .and_then(Siblings::of)
            .map_or_else(|| Siblings::new(address.clone()), |(_, siblings)| siblings);
        if let Err(Full) = siblings.write(me, &seen, content) {
            return cx.send(to, super::Msg::Response { call, response: Response::Full });
        }
        let version = Version { counter: before.saturating_add(1), author: me };
        let record = Record { key, name, version, value: postcard::to_allocvec(&siblings).ok() };
        all.push(record.clone());
        let context = merge_records(newest(&all).into_iter()).context;
        self.adding.insert(key, record.clone());
        let enough = usize::try_from(self.position.size).unwrap_or(usize::MAX).clamp(1, COPIES);
        let op = move |asker: Asker| async move {
            let question = Question::Put { record: record.clone(), enough };
            let holders = match asker.records(question).await {
                Answer::Stored(holders) => holders.iter().copied().collect(),
                _ => Vec::new(),
            };
            let response = Response::Added { holders, context };
            Outcome::Added { record, to, call, response }
        };
        if !self.start("keep value", op, cx) {
            self.adding.remove(&key);
        }
    }
}

/// Of each record the newest.
fn newest(all: &[Record]) -> Vec<&Record> {
    let newer = |record: &Record| {
        all.iter().any(|other| other.name == record.name && other.version > record.version)
    };
    let mut newest: Vec<&Record> = all.iter().filter(|record| !newer(record)).collect();
    newest.dedup_by(|a, b| a.id() == b.id());
    newest
}

async fn write(asker: Asker, version: Version, stamping: Stamping) -> Outcome {
    let Stamping { ask, address, content, known, claim, wanted, .. } = stamping;
    let object = content.clone().map(|content| Object { address: address.clone(), content });
    let value = object.and_then(|object| postcard::to_allocvec(&object).ok());
    let record = Record { key: address.key(), name: OBJECT.to_vec(), version, value };
    let question = if claim {
        let expected = known.as_ref().map_or(0, |record| record.version.counter);
        Question::Claim { record, expected, enough: wanted }
    } else {
        Question::Put { record, enough: wanted }
    };
    let old = known.as_ref().and_then(Object::of).and_then(|object| object.content.blob());
    let new = content.as_ref().and_then(Content::blob);
    let version = version.counter;
    let (answer, useless) = match asker.records(question).await {
        Answer::Stored(holders) if !holders.is_empty() => {
            let copies = holders.len();
            (ObjectAnswer::Written { version, copies, wanted, context: None }, old)
        }
        Answer::Taken(theirs) => {
            let there = theirs.as_ref().filter(|record| Object::of(record).is_some());
            let version = there.map_or(0, |record| record.version.counter);
            (ObjectAnswer::Lost { version, strong: false }, new)
        }
        _ => (failed(NOT_WRITTEN), new),
    };
    asker.report(Outcome::Answer { ask, answer });
    if let Some(tree) = useless.filter(|_| old != new) {
        forget(&asker, &address, tree).await;
    }
    Outcome::Nothing
}

/// One more value for an object that merges: an owner takes it.
async fn add(
    asker: &Asker,
    ask: u64,
    address: Address,
    content: Option<Content>,
    context: Option<Context>,
    wanted: usize,
) -> Result<Outcome, ObjectAnswer> {
    if content.as_ref().is_some_and(|content| content.blob().is_some()) {
        return Err(too_long());
    }
    for owner in read::owners(asker, address.key()).await {
        let (address, content, context) = (address.clone(), content.clone(), context.clone());
        match asker.call(owner, Request::Add { address, content, context }).await {
            Some(Response::Added { holders, context }) if !holders.is_empty() => {
                let (copies, context) = (holders.len(), Some(context));
                let answer = ObjectAnswer::Written { version: 0, copies, wanted, context };
                return Ok(Outcome::Answer { ask, answer });
            }
            Some(Response::Full) => {
                return Err(ObjectAnswer::Refused(
                    "too many values stand beside each other here: read them, and write one that \
                     takes their place"
                        .to_string(),
                ));
            }
            // It moved, or could not write: the next place.
            _ => {}
        }
    }
    Err(failed(NOT_WRITTEN))
}
