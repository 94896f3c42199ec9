//! Objects of a namespace that is strong: registers, and blobs that stand in them.

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::Key;

use super::item::{Address, Content};
use super::operations::{Asker, AskerExt};
use super::{Expect, ObjectAnswer, Value};
use crate::linear::register::{Change, Done};
use crate::linear::{Answer, Question};
use crate::packages;

/// What is there now, for everybody.
pub(super) async fn look(asker: &Asker, key: Key) -> ObjectAnswer {
    match asker.linear(Question::Read { key }).await {
        Answer::Cell { revision, value } => match value.as_deref().and_then(decode) {
            Some(content) => {
                let value = Value { content, sources: Vec::new() };
                let (values, context) = (Vec::from([value]), None);
                ObjectAnswer::Found { values, version: revision, context, strong: true }
            }
            None => ObjectAnswer::Absent { version: revision, context: None },
        },
        answer => failed(&answer),
    }
}

pub(super) fn decode(bytes: &[u8]) -> Option<Content> {
    postcard::from_bytes(bytes).ok()
}

fn failed(answer: &Answer) -> ObjectAnswer {
    match answer {
        Answer::Unknown => ObjectAnswer::Unavailable { maybe: true },
        Answer::Busy | Answer::Done { done: Done::Busy, .. } => {
            ObjectAnswer::Failed(String::from("too many write at the same time; try again"))
        }
        _ => ObjectAnswer::Unavailable { maybe: false },
    }
}

/// Writes it, or removes it.
pub(super) async fn put(
    asker: &Asker,
    address: &Address,
    content: Option<Content>,
    expect: Option<Expect>,
) -> ObjectAnswer {
    let key = address.key();
    let lost = |version| ObjectAnswer::Lost { version, strong: true };
    let revision = match (expect, &content) {
        (Some(Expect::Version(expected)), _) => Some(expected),
        (None, Some(_)) => None,
        (Some(Expect::Absent), _) | (None, None) => {
            let old = asker.linear(Question::Read { key }).await;
            let Answer::Cell { revision, value: old } = old else { return failed(&old) };
            match (expect, old.as_deref().and_then(decode)) {
                (Some(_), Some(_)) => return lost(revision),
                (None, None) => {
                    return ObjectAnswer::Absent { version: revision, context: None };
                }
                // What is expected not to be there is expected to be as it was just read.
                (Some(_), None) => Some(revision),
                (None, Some(_)) => None,
            }
        }
    };
    let new = content.as_ref().and_then(Content::blob);
    if let Some(tree) = new {
        let question = packages::Question::Store { service: key, trees: [tree].into() };
        if let Err(reasons) = asker.packages(question).await {
            return ObjectAnswer::Unmet(reasons);
        }
    }
    let value = content.and_then(|content| postcard::to_allocvec(&content).ok());
    let change = match revision {
        Some(revision) => Change::Cas { revision, value },
        None => Change::Put { value },
    };
    let name = [address.namespace.as_str(), "/", &address.path].concat();
    let answer = asker.linear(Question::Change { key, name, change }).await;
    let (answer, useless) = match answer {
        Answer::Done { done: Done::Written { revision }, members, before } => {
            let before = before.as_deref().and_then(decode);
            let before = before.as_ref().and_then(Content::blob).filter(|old| Some(*old) != new);
            (ObjectAnswer::Chosen { revision, members }, before)
        }
        Answer::Done { done: Done::Lost { revision }, .. } => (lost(revision), new),
        // It may be written yet.
        Answer::Unknown => (failed(&answer), None),
        _ => (failed(&answer), new),
    };
    if let Some(tree) = useless {
        let question = packages::Question::Forget { service: key, trees: [tree].into() };
        // What is not forgotten now wastes room; nothing else depends on it.
        _ = asker.packages(question).await;
    }
    answer
}
