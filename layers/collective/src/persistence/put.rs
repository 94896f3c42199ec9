//! Writing and reading a record, as operations (PROTOCOL.md 5.2).

use alloc::boxed::Box;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::ops::{CallId, join};
use dugnad_kernel::{Cx, Duration, Key, NodeId};

use super::record::{DEGREE, Name, Record, class};
use crate::{Ask, Asker, AskerExt, Collective, Outcome, Reply, Request, Response};

/// A place that did not take the record (it moved while it was asked, or does not answer) is asked
/// for again after this, doubled each time; then it is for anti-entropy.
const AGAIN: Duration = Duration::from_millis(500);
const ROUNDS: u32 = 5;
/// Who waits for a write is told after so many rounds, if nobody has it.
const PATIENT_ROUNDS: u32 = 2;

/// Somebody waits until enough nodes have a record on disk.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    enough: usize,
    holders: Set<NodeId>,
}

/// Stores `record` at the owners of its class; returns who holds it on disk. Done as soon as
/// `enough` nodes do; the rest is on its way then.
pub(crate) async fn put(asker: Asker, record: Record, enough: usize) -> Set<NodeId> {
    match asker.ask(Ask::Put { record, enough }).await {
        Reply::Holders { holders, .. } => holders,
        _ => Set::new(),
    }
}

impl Collective {
    /// Begins a write that goes on after whoever waits for it, as `call`, has heard enough.
    pub(crate) fn begin_put(
        &mut self,
        call: CallId,
        record: Record,
        enough: usize,
        cx: &mut Cx<'_, Self>,
    ) {
        self.writing.insert(call, Writing { enough, holders: Set::new() });
        if !self.start("put", move |asker| write(asker, record, Some(call), None), cx) {
            self.on_stored(call, Vec::new(), true, cx);
        }
    }

    /// Whoever waits as `call` learns of `holders` when they are enough, or it is `over`.
    pub(crate) fn on_stored(
        &mut self,
        call: CallId,
        holders: Vec<NodeId>,
        over: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(writing) = self.writing.get_mut(&call) else { return };
        writing.holders.extend(holders);
        if over || writing.holders.len() >= writing.enough {
            let holders = core::mem::take(&mut writing.holders);
            self.writing.remove(&call);
            self.answer(call, Reply::Holders { holders, refused: Map::new() }, cx);
        }
    }
}

/// Brings `record` to every place of its class, but to `skip`, who has it. A write may overlap a
/// change of owners, so every place is asked until one says that the place is its own.
pub(crate) async fn write(
    asker: Asker,
    record: Record,
    waiter: Option<CallId>,
    skip: Option<NodeId>,
) -> Outcome {
    let mut places: Vec<u32> = (0..DEGREE).collect();
    let mut stored = false;
    for round in 1..=ROUNDS {
        let mut by_owner: Map<NodeId, Vec<u32>> = Map::new();
        for (x, owner) in places.iter().zip(find(&asker, record.key, &places).await) {
            if let Some(owner) = owner {
                by_owner.entry(owner).or_default().push(*x);
            }
        }
        let asked = by_owner.into_iter().map(|(owner, own)| {
            let (asker, record) = (&asker, &record);
            Box::pin(async move {
                if Some(owner) == skip {
                    return (own, false);
                }
                match asker.call(owner, Request::Put(record.clone())).await {
                    Reply::Response(Some(Response::Put { holders, places })) => {
                        let any = !holders.is_empty();
                        tell(asker, waiter, holders, false);
                        // It may own one place and have given away the other while it was asked.
                        (own.into_iter().filter(|x| places & (1 << x) != 0).collect(), any)
                    }
                    // It has no room, and will have none in a moment.
                    Reply::Response(Some(Response::Refused)) => (own, false),
                    _ => (Vec::new(), false),
                }
            }) as _
        });
        let answers: Vec<(Vec<u32>, bool)> = join(asked.collect()).await;
        for (done, any) in answers {
            places.retain(|x| !done.contains(x));
            stored |= any;
        }
        if places.is_empty() || round == ROUNDS {
            break;
        }
        if stored || round >= PATIENT_ROUNDS {
            tell(&asker, waiter, Vec::new(), true);
        }
        asker.ask(Ask::Sleep(AGAIN * (1 << (round - 1)))).await;
    }
    tell(&asker, waiter, Vec::new(), true);
    Outcome::Nothing
}

fn tell(asker: &Asker, waiter: Option<CallId>, holders: Vec<NodeId>, over: bool) {
    if let Some(call) = waiter {
        // Nothing comes back.
        drop(asker.ask(Ask::Stored { call, holders, over }));
    }
}

/// The owners of these places of the class of `key`.
async fn find(asker: &Asker, key: Key, places: &[u32]) -> Vec<Option<NodeId>> {
    let finds: Vec<_> = places.iter().map(|x| asker.ask(Ask::Find(class(key, *x)))).collect();
    let found = join(finds.into_iter().map(|find| Box::pin(find) as _).collect()).await;
    found.into_iter().map(Reply::owner).collect()
}

/// The distinct owners of the class of `key`.
pub(crate) async fn owners(asker: &Asker, key: Key) -> Set<NodeId> {
    let places: Vec<u32> = (0..DEGREE).collect();
    find(asker, key, &places).await.into_iter().flatten().collect()
}

/// The newest version of a record that its class owners know; `Err` if none of them answered.
pub(crate) async fn get(asker: &Asker, name: Name) -> Result<Option<Record>, ()> {
    let mut newest: Option<Record> = None;
    let mut answered = false;
    for x in 0..DEGREE {
        let Some(owner) = asker.ask(Ask::Find(class(name.0, x))).await.owner() else { continue };
        let answer = asker.call(owner, Request::Get(name.clone())).await;
        if let Reply::Response(Some(Response::Get(record))) = answer {
            answered = true;
            if let Some(record) = record {
                if newest.as_ref().is_none_or(|known| known.version < record.version) {
                    newest = Some(record);
                }
            }
            // Two that agree on "nothing", or one that has it: writes reach more than half.
            if newest.is_some() || x > 0 {
                break;
            }
        }
    }
    if answered { Ok(newest) } else { Err(()) }
}

/// An owner's part of a put: on disk here and at the next successors, then acknowledged.
pub(crate) async fn accept(
    asker: Asker,
    me: NodeId,
    record: Record,
    copies: Vec<NodeId>,
    places: u8,
    (to, call): (NodeId, u32),
) -> Outcome {
    let mut holders = Vec::new();
    let ask_copy = |node: &NodeId| asker.call(*node, Request::Copy(record.clone()));
    let asked: Vec<_> = copies.iter().map(ask_copy).collect();
    if matches!(asker.ask(Ask::Persist(record)).await, Reply::Persisted(true)) {
        holders.push(me);
    }
    let answers = join(asked.into_iter().map(|copy| Box::pin(copy) as _).collect()).await;
    for (node, answer) in copies.into_iter().zip(answers) {
        if matches!(answer, Reply::Response(Some(Response::Copied))) {
            holders.push(node);
        }
    }
    Outcome::Respond { to, call, response: Response::Put { holders, places } }
}

/// A successor's part of a put.
pub(crate) async fn copy(asker: Asker, record: Record, to: NodeId, call: u32) -> Outcome {
    match asker.ask(Ask::Persist(record)).await {
        Reply::Persisted(true) => Outcome::Respond { to, call, response: Response::Copied },
        _ => Outcome::Respond { to, call, response: Response::Refused },
    }
}
