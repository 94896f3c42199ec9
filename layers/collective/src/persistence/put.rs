//! Writing and reading a record, as operations (PROTOCOL.md 5.2).

use alloc::boxed::Box;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::calls::Operates;
use dugnad_kernel::ops::join;
use dugnad_kernel::{Cx, Duration, Key, NodeId};

use super::operations::AskerExt;
use super::record::{COPIES, DEGREE, Name, Record, class};
use super::{Answer, Asker, Event, Outcome, Persistence, Request, Response};

/// A place that did not take the record (it moved while it was asked, or does not answer) is asked
/// for again after this, doubled each time; then it is for anti-entropy.
const AGAIN: Duration = Duration::from_millis(500);
const ROUNDS: u32 = 5;
/// Who waits for a write is told after so many rounds, if nobody has it.
const PATIENT_ROUNDS: u32 = 2;
/// Owners that are asked to take a record first, one after the other while the ring moves.
const CLAIM_TRIES: u32 = 8;
/// Pause before an owner that moved is looked for again.
const CLAIM_AGAIN: Duration = Duration::from_millis(200);

/// Somebody waits until enough nodes have a record on disk.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    enough: usize,
    holders: Set<NodeId>,
}

impl Persistence {
    /// Begins a write that goes on after whoever waits for it, as `call`, has heard enough.
    pub(crate) fn begin_put(
        &mut self,
        call: u32,
        record: Record,
        enough: usize,
        cx: &mut Cx<'_, Self>,
    ) {
        self.writing.insert(call, Writing { enough, holders: Set::new() });
        if !self.start("put", move |asker| write(asker, record, Some(call), None), cx) {
            self.on_holders(call, Vec::new(), true, cx);
        }
    }

    /// Brings what is on disk here to the other places of its class; nobody waits for it.
    pub(crate) fn spread(&mut self, record: Record, cx: &mut Cx<'_, Self>) {
        let me = Some(self.me);
        self.start("spread", move |asker| write(asker, record, None, me), cx);
    }

    /// Whoever waits as `call` learns of `holders` when they are enough, or it is `over`.
    pub(crate) fn on_holders(
        &mut self,
        call: u32,
        holders: Vec<NodeId>,
        over: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(writing) = self.writing.get_mut(&call) else { return };
        writing.holders.extend(holders);
        if over || writing.holders.len() >= writing.enough {
            let holders = core::mem::take(&mut writing.holders);
            self.writing.remove(&call);
            cx.emit(Event::Answer { call, answer: Answer::Stored(holders) });
        }
    }
}

/// Brings `record` to every place of its class, but to `skip`, who has it. A write may overlap a
/// change of owners, so every place is asked until one says that the place is its own.
pub(crate) async fn write(
    asker: Asker,
    record: Record,
    waiter: Option<u32>,
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
                    Some(Response::Put { holders, places }) => {
                        let any = !holders.is_empty();
                        tell(asker, waiter, holders, false);
                        // It may own one place and have given away the other while it was asked.
                        (own.into_iter().filter(|x| places & (1 << x) != 0).collect(), any)
                    }
                    // It has no room, and will have none in a moment.
                    Some(Response::Refused) => (own, false),
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
        asker.sleep(AGAIN * (1 << (round - 1))).await;
    }
    tell(&asker, waiter, Vec::new(), true);
    Outcome::Nothing
}

fn tell(asker: &Asker, waiter: Option<u32>, holders: Vec<NodeId>, over: bool) {
    if let Some(call) = waiter {
        asker.report(Outcome::Holders { call, holders, over });
    }
}

/// The owners of these places of the class of `key`.
async fn find(asker: &Asker, key: Key, places: &[u32]) -> Vec<Option<NodeId>> {
    let finds: Vec<_> = places.iter().map(|x| asker.find(class(key, *x))).collect();
    join(finds.into_iter().map(|find| Box::pin(find) as _).collect()).await
}

/// The distinct owners of the class of `key`.
pub(crate) async fn owners(asker: Asker, call: u32, key: Key) -> Outcome {
    let places: Vec<u32> = (0..DEGREE).collect();
    let owners = find(&asker, key, &places).await.into_iter().flatten().collect();
    Outcome::Answer { call, answer: Answer::Owners(owners) }
}

/// The distinct owners of the class of `key`, and those who follow each on the ring.
pub(crate) async fn holders(asker: Asker, call: u32, key: Key) -> Outcome {
    let places: Vec<u32> = (0..DEGREE).collect();
    let mut last: Set<NodeId> = find(&asker, key, &places).await.into_iter().flatten().collect();
    let mut all = last.clone();
    for _ in 0..COPIES {
        let after = last.iter().map(|node| Box::pin(asker.find(node.plus(1))) as _);
        last = join(after.collect()).await.into_iter().flatten().collect();
        all.extend(last.iter().copied());
    }
    Outcome::Answer { call, answer: Answer::Owners(all) }
}

/// The newest version of a record that its class owners know.
pub(crate) async fn get(asker: Asker, call: u32, name: Name) -> Outcome {
    let mut newest: Option<Record> = None;
    let mut answered = false;
    for x in 0..DEGREE {
        let Some(owner) = asker.find(class(name.0, x)).await else { continue };
        let answer = asker.call(owner, Request::Get(name.clone())).await;
        if let Some(Response::Get(record)) = answer {
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
    let answer = if answered { Answer::Found(newest) } else { Answer::Unreachable };
    Outcome::Answer { call, answer }
}

/// The owner of the key takes the record first, if it knows of no other write; then it goes to all
/// places.
pub(crate) async fn claim(
    asker: Asker,
    call: u32,
    record: Record,
    expected: u64,
    enough: usize,
) -> Outcome {
    for _ in 0..CLAIM_TRIES {
        if let Some(owner) = asker.find(record.key).await {
            let request = Request::Claim { record: record.clone(), expected };
            let answer = match asker.call(owner, request).await {
                Some(Response::Put { holders, .. }) if !holders.is_empty() => {
                    return Outcome::Claimed { call, record, enough };
                }
                Some(Response::Taken(theirs)) => Some(Answer::Taken(theirs)),
                Some(Response::Put { .. } | Response::Refused) => Some(Answer::Stored(Set::new())),
                // It moved, or does not answer: whoever owns it now is asked.
                _ => None,
            };
            if let Some(answer) = answer {
                return Outcome::Answer { call, answer };
            }
        }
        asker.sleep(CLAIM_AGAIN).await;
    }
    Outcome::Answer { call, answer: Answer::Stored(Set::new()) }
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
    if asker.persist(record).await {
        holders.push(me);
    }
    let answers = join(asked.into_iter().map(|copy| Box::pin(copy) as _).collect()).await;
    for (node, answer) in copies.into_iter().zip(answers) {
        if answer == Some(Response::Copied) {
            holders.push(node);
        }
    }
    Outcome::Respond { to, call, response: Response::Put { holders, places } }
}

/// A successor's part of a put.
pub(crate) async fn copy(asker: Asker, record: Record, to: NodeId, call: u32) -> Outcome {
    let kept = asker.persist(record).await;
    let response = if kept { Response::Copied } else { Response::Refused };
    Outcome::Respond { to, call, response }
}
