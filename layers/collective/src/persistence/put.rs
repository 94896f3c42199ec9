//! Writing and reading a record, as operations (overlay.md 5.2).

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use dugnad_kernel::ops::{first, join};
use dugnad_kernel::{Key, NodeId};

use super::record::{DEGREE, Name, Record, class};
use crate::{Ask, Asker, AskerExt, Outcome, Reply, Request, Response};

/// Stores `record` at the owners of its class; returns who holds it on disk. Done as soon as
/// `enough` nodes do; the rest is on its way then.
pub(crate) async fn put(asker: Asker, record: Record, enough: usize) -> BTreeSet<NodeId> {
    let mut holders = BTreeSet::new();
    // A place that moved while we asked is asked for once more.
    for _ in 0..2 {
        let owners = owners(&asker, record.key).await;
        let call = |to: &NodeId| asker.call(*to, Request::Put(record.clone()));
        let mut answers: Vec<_> = owners.iter().map(call).collect();
        while !answers.is_empty() && holders.len() < enough {
            if let Reply::Response(Some(Response::Put { holders: more })) =
                first(&mut answers).await
            {
                holders.extend(more);
            }
        }
        if !holders.is_empty() {
            break;
        }
    }
    holders
}

/// The distinct owners of the class of `key`.
pub(crate) async fn owners(asker: &Asker, key: Key) -> BTreeSet<NodeId> {
    let finds = (0..DEGREE).map(|x| asker.ask(Ask::Find(class(key, x))));
    let finds = join(finds.map(|find| Box::pin(find) as _).collect()).await;
    finds.into_iter().filter_map(Reply::owner).collect()
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
    to: NodeId,
    call: u32,
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
    Outcome::Respond { to, call, response: Response::Put { holders } }
}

/// A successor's part of a put.
pub(crate) async fn copy(asker: Asker, record: Record, to: NodeId, call: u32) -> Outcome {
    match asker.ask(Ask::Persist(record)).await {
        Reply::Persisted(true) => Outcome::Respond { to, call, response: Response::Copied },
        _ => Outcome::Respond { to, call, response: Response::Refused },
    }
}
