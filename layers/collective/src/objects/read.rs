//! Reading objects and how namespaces are kept, as operations.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::map::Map;
use dugnad_kernel::{Key, NodeId};
use dugnad_resource::spec::Tree;

use super::item::{Address, Content, Manner, NAMESPACE, Namespace, OBJECT, Object};
use super::operations::{Asker, AskerExt, Outcome, Unreachable};
use super::siblings::{Merged, Siblings, merge};
use super::strong;
use super::{ObjectAnswer, Request, Response, Value};
use crate::persistence;
use crate::persistence::record::{DEGREE, Name, Record, class};

/// Owners that are asked for concurrent values: each may lack some for a moment.
const READS: usize = 2;

pub(super) const NOBODY: &str =
    "no node answers for the key; see `dugnad status` and try again in a moment";

pub(super) fn unknown(name: &str) -> ObjectAnswer {
    ObjectAnswer::Unknown(format!("there is no namespace {name}; see: dugnad store"))
}

/// How a namespace is kept: as is known, or as is read now.
pub(super) async fn namespace(
    asker: &Asker,
    known: Option<Namespace>,
    name: &str,
) -> Result<Option<Namespace>, Unreachable> {
    if known.is_some() {
        return Ok(known);
    }
    let record = asker.get((Namespace::key_of(name), NAMESPACE.to_vec())).await?;
    let namespace = record.as_ref().and_then(Namespace::of);
    if let Some(namespace) = &namespace {
        asker.report(Outcome::Known(namespace.clone()));
    }
    Ok(namespace)
}

/// A person asks how a namespace is kept.
pub(super) async fn tell(
    asker: Asker,
    ask: u64,
    known: Option<Namespace>,
    name: String,
) -> Outcome {
    let answer = match namespace(&asker, known, &name).await {
        Ok(Some(namespace)) => ObjectAnswer::Namespace(namespace),
        Ok(None) => unknown(&name),
        Err(Unreachable) => ObjectAnswer::Failed(NOBODY.to_string()),
    };
    Outcome::Answer { ask, answer }
}

pub(super) async fn get(
    asker: Asker,
    ask: u64,
    known: Option<Namespace>,
    address: Address,
) -> Outcome {
    let answer = match namespace(&asker, known, &address.namespace).await {
        Err(Unreachable) => ObjectAnswer::Failed(NOBODY.to_string()),
        Ok(None) => unknown(&address.namespace),
        Ok(Some(namespace)) => look(&asker, namespace.manner, &address).await,
    };
    Outcome::Answer { ask, answer }
}

/// What is there now.
pub(super) async fn look(asker: &Asker, manner: Manner, address: &Address) -> ObjectAnswer {
    let key = address.key();
    let found = match manner {
        Manner::Last => asker.get((key, OBJECT.to_vec())).await.map(|record| match record {
            Some(record) => last(&record),
            None => ObjectAnswer::Absent { version: 0, context: None },
        }),
        Manner::Merge => merged(asker, key).await.map(|merged| all(&merged)),
        Manner::Strong => Ok(strong::look(asker, key).await),
    };
    match found {
        Ok(answer) => sources(asker, answer).await,
        Err(Unreachable) => ObjectAnswer::Failed(NOBODY.to_string()),
    }
}

/// What the record of an object says.
pub(super) fn last(record: &Record) -> ObjectAnswer {
    let version = record.version.counter;
    match Object::of(record) {
        Some(object) => {
            let value = Value { content: object.content, sources: Vec::new() };
            ObjectAnswer::Found {
                values: Vec::from([value]),
                version,
                context: None,
                strong: false,
            }
        }
        None => ObjectAnswer::Absent { version, context: None },
    }
}

/// What the records of an object that merges say.
pub(super) fn all(merged: &Merged) -> ObjectAnswer {
    let context = Some(merged.context.clone());
    if merged.values.is_empty() {
        return ObjectAnswer::Absent { version: 0, context };
    }
    let value = |content: &Content| Value { content: content.clone(), sources: Vec::new() };
    let values = merged.values.iter().map(value).collect();
    ObjectAnswer::Found { values, version: 0, context, strong: false }
}

/// Says of blobs who should have them.
async fn sources(asker: &Asker, answer: ObjectAnswer) -> ObjectAnswer {
    let ObjectAnswer::Found { mut values, version, context, strong } = answer else {
        return answer;
    };
    for value in &mut values {
        let Some(tree) = value.content.blob() else { continue };
        let owners = asker.records(persistence::Question::Owners(tree.key())).await;
        if let persistence::Answer::Owners(owners) = owners {
            value.sources = owners.iter().copied().collect();
        }
    }
    ObjectAnswer::Found { values, version, context, strong }
}

/// Who may have a blob when its owners have not.
pub(super) async fn beside(asker: Asker, ask: u64, tree: Tree) -> Outcome {
    let holders = asker.records(persistence::Question::Holders(tree.key())).await;
    let answer = match holders {
        persistence::Answer::Owners(holders) => {
            ObjectAnswer::Beside(holders.iter().copied().collect())
        }
        _ => ObjectAnswer::Failed(NOBODY.to_string()),
    };
    Outcome::Answer { ask, answer }
}

/// The owners of the class of `key`, each once, in the order of the places.
pub(super) async fn owners(asker: &Asker, key: Key) -> Vec<NodeId> {
    let finds: Vec<_> = (0..DEGREE).map(|x| asker.find(class(key, x))).collect();
    let mut owners = Vec::new();
    for find in finds {
        if let Some(owner) = find.await {
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
    }
    owners
}

/// What [`READS`] owners have of an object that merges, the newest of each record.
pub(super) async fn records(
    asker: &Asker,
    key: Key,
    but: Option<NodeId>,
) -> Result<Vec<Record>, Unreachable> {
    let mut newest: Map<Name, Record> = Map::new();
    let (mut answered, mut asked) = (0, false);
    for owner in owners(asker, key).await.into_iter().filter(|owner| Some(*owner) != but) {
        asked = true;
        let Some(Response::Read { records }) = asker.call(owner, Request::Read { key }).await
        else {
            continue;
        };
        for record in records.into_iter().filter(|record| record.fits() && record.key == key) {
            let known = newest.get(&record.id()).map(|known| known.version);
            if known.is_none_or(|known| known < record.version) {
                newest.insert(record.id(), record);
            }
        }
        answered += 1;
        if answered == READS {
            break;
        }
    }
    if answered == 0 && (asked || but.is_none()) {
        return Err(Unreachable);
    }
    Ok(newest.into_values().collect())
}

async fn merged(asker: &Asker, key: Key) -> Result<Merged, Unreachable> {
    let records = records(asker, key, None).await?;
    Ok(merge_records(records.iter()))
}

pub(super) fn merge_records<'a>(records: impl Iterator<Item = &'a Record>) -> Merged {
    let all: Vec<(NodeId, Siblings)> = records.filter_map(Siblings::of).collect();
    merge(all.iter().map(|(node, siblings)| (*node, siblings)))
}
