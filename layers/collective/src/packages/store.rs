//! Having packages kept by the community, and letting them go, as operations.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_resource::spec::Tree;

use super::operations::{Asker, AskerExt, Holders, Outcome, Waiting};
use super::{Needed, name_for};
use crate::persistence::record::{Record, Version};
use crate::persistence::{Answer, Question};

/// Nodes that must keep a package before it counts as stored. Who stores it is one only if it owns
/// one of its places, or is asked to keep it beside an owner: else it lets it go.
const COPIES: usize = 2;
/// How long all owners are waited for, and how long [`COPIES`], on lines of so many bytes a second.
const QUICK: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(300);
const SLOW: u64 = 32 << 10;

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
    let all = owners(asker, key, Question::Owners).await;
    // Asked before the record is out: the first holder may be quicker than the writing. Where
    // all places are one node's that is the mirror, so two are waited for in any case.
    let have = all.iter().copied().filter(|node| *node == me).collect();
    let holders = Holders { have, refused: Map::new() };
    let wait = asker.holders(Waiting { root, asked: all, enough, all: true, holders }, QUICK);
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
    let limit = LIMIT + Duration::from_secs(tree.bytes / SLOW);
    let Holders { have, refused } =
        asker.holders(Waiting { all: false, ..first }, limit).await.holders;
    if have.len() >= enough {
        Ok(())
    } else if refused.is_empty() {
        Err(Vec::from([NO_COPY.to_string()]))
    } else {
        Err(no_room(&refused))
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
    let holders = owners(&asker, tree.key(), Question::Holders).await;
    let from = holders.into_iter().filter(|node| *node != me).collect();
    Outcome::Sources { tree, from }
}

async fn owners(asker: &Asker, key: Key, which: fn(Key) -> Question) -> Set<NodeId> {
    match asker.records(which(key)).await {
        Answer::Owners(owners) => owners,
        _ => Set::new(),
    }
}

/// Whether anybody has it on disk.
async fn put(asker: &Asker, record: Record, enough: usize) -> bool {
    let answer = asker.records(Question::Put { record, enough }).await;
    matches!(answer, Answer::Stored(holders) if !holders.is_empty())
}
