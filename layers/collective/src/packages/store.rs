//! Having packages kept by the community, and letting them go, as operations.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_resource::spec::Tree;

use super::operations::{Asker, AskerExt, Outcome};
use super::{Needed, name_for};
use crate::persistence::record::{Record, Version};
use crate::persistence::{Answer, Question};

/// Nodes that must hold a package before it counts as stored, the one that has it included.
const COPIES: usize = 2;
/// How long all owners are waited for, and how long [`COPIES`].
const QUICK: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(300);

const NO_COPY: &str = "no other node took a copy of the package in time; see `dugnad nodes`";

pub(super) async fn store(
    asker: Asker,
    call: u32,
    me: NodeId,
    size: u64,
    service: Key,
    trees: Vec<Tree>,
) -> Outcome {
    let mut answer = Ok(());
    for tree in trees {
        answer = store_one(&asker, me, size, service, tree).await;
        if answer.is_err() {
            break;
        }
    }
    Outcome::Answer { call, answer }
}

/// Writes the record of the package and waits until other nodes hold the bytes: all owners of the
/// tree's class if they are quick, enough to survive this node in any case.
async fn store_one(
    asker: &Asker,
    me: NodeId,
    size: u64,
    service: Key,
    tree: Tree,
) -> Result<(), Vec<String>> {
    let enough = COPIES.min(usize::try_from(size).unwrap_or(usize::MAX));
    let (root, key) = (tree.root, tree.key());
    let mut all = owners(asker, key).await;
    all.insert(me);
    // Asked before the record is out: the first holder may be quicker than the writing. Where
    // all places are mine that is the mirror, so one other is waited for in any case.
    let (known, quick) = (Set::from([me]), all.len().max(enough));
    let wait = asker.holders(root, known, quick, QUICK);
    let name = name_for(service);
    let counter = match asker.records(Question::Get((key, name.clone()))).await {
        Answer::Found(Some(record)) => record.version.counter,
        _ => 0,
    };
    let version = Version { counter: counter.saturating_add(1), author: me };
    let value = postcard::to_allocvec(&Needed { tree, origin: me }).ok();
    if !put(asker, Record { key, name, version, value }, enough).await {
        return Err(Vec::from([NO_COPY.to_string()]));
    }
    let first = wait.await;
    if first.have.len() >= enough {
        return Ok(());
    }
    if first.have.len() + first.refused.len() >= quick && !first.refused.is_empty() {
        return Err(no_room(&first.refused));
    }
    let second = asker.holders(root, first.have, enough, LIMIT).await;
    if second.have.len() >= enough {
        Ok(())
    } else if second.refused.is_empty() {
        Err(Vec::from([NO_COPY.to_string()]))
    } else {
        Err(no_room(&second.refused))
    }
}

/// Why nobody else keeps the package, a line a node.
fn no_room(refused: &Map<NodeId, String>) -> Vec<String> {
    let line = |(node, reason): (&NodeId, &String)| {
        format!("{} cannot keep a copy of the package: {reason}", node.short())
    };
    refused.iter().map(line).collect()
}

/// Tombstones for what `service` needed.
pub(super) async fn forget(
    asker: Asker,
    call: u32,
    me: NodeId,
    service: Key,
    trees: Vec<Tree>,
) -> Outcome {
    for tree in trees {
        let (key, name) = (tree.key(), name_for(service));
        if let Answer::Found(Some(known)) = asker.records(Question::Get((key, name.clone()))).await
        {
            let counter = known.version.counter.saturating_add(1);
            let version = Version { counter, author: me };
            put(&asker, Record { key, name, version, value: None }, 1).await;
        }
    }
    Outcome::Answer { call, answer: Ok(()) }
}

pub(super) async fn find_holders(asker: Asker, tree: Tree, me: NodeId) -> Outcome {
    let from = owners(&asker, tree.key()).await.into_iter().filter(|node| *node != me).collect();
    Outcome::Sources { tree, from }
}

async fn owners(asker: &Asker, key: Key) -> Set<NodeId> {
    match asker.records(Question::Owners(key)).await {
        Answer::Owners(owners) => owners,
        _ => Set::new(),
    }
}

/// Whether anybody has it on disk.
async fn put(asker: &Asker, record: Record, enough: usize) -> bool {
    let answer = asker.records(Question::Put { record, enough }).await;
    matches!(answer, Answer::Stored(holders) if !holders.is_empty())
}
