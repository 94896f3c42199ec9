//! Publishing, and which types there are.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::{Duration, Key};

use super::log::{EVENT_BYTES, EventId, Published};
use super::operations::{Asker, AskerExt, Outcome};
use super::types::{self, EventType, TYPES_MAX, Types, is_built_in, key_of};
use super::{EventAnswer, Request, Response};
use crate::linear::register::{Change, Done};
use crate::linear::{Answer, Question};

/// Tries to reach the rendezvous while the ring moves, and the pause after the first, doubled each
/// time up to a second and a half.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(200);
/// Tries to change a register that others change, too.
const WRITES: u32 = 6;

/// What somebody wants to publish.
pub(super) struct New {
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) id: EventId,
    pub(super) at_ms: u64,
}

/// The register of a type people defined, and of the list of them.
fn type_key(name: &str) -> Key {
    Key::of_name("event type", name.as_bytes())
}

fn index_key() -> Key {
    Key::of_name("event types", b"")
}

/// All types; `Err` if no majority answers.
pub(super) async fn types(asker: &Asker, known: Option<Types>) -> Result<Types, ()> {
    if let Some(known) = known {
        return Ok(known);
    }
    let (revision, index) = asker.read(index_key()).await?;
    let mut names: Vec<String> =
        index.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
    names.truncate(TYPES_MAX);
    let reads: Vec<_> = names.iter().map(|name| asker.read(type_key(name))).collect();
    let mut defined: Vec<EventType> = Vec::new();
    for (read, name) in reads.into_iter().zip(&names) {
        let value = read.await?.1;
        let known = value.and_then(|bytes| postcard::from_bytes::<EventType>(&bytes).ok());
        defined.extend(known.filter(|known| known.name == *name));
    }
    let types = Types::with(defined, revision);
    asker.report(Outcome::Types(types.clone()));
    Ok(types)
}

/// Whether there are other types than those that are known.
pub(super) async fn look(asker: Asker, known: Option<Types>) -> Outcome {
    let Ok((revision, _)) = asker.read(index_key()).await else { return Outcome::Nothing };
    if known.as_ref().is_some_and(|known| known.revision() == revision) {
        return Outcome::Nothing;
    }
    match types(&asker, None).await {
        Ok(types) => Outcome::Grown(types),
        Err(()) => Outcome::Nothing,
    }
}

pub(super) async fn list(asker: Asker, ask: u64) -> Outcome {
    let answer = match types(&asker, None).await {
        Ok(types) => EventAnswer::Types(types.all().to_vec()),
        Err(()) => EventAnswer::Unavailable,
    };
    Outcome::Answer { ask, answer }
}

pub(super) async fn define(asker: Asker, ask: u64, new: EventType) -> Outcome {
    let answer = defined(&asker, new).await.unwrap_or_else(|answer| answer);
    Outcome::Answer { ask, answer }
}

/// `Err` is an answer, too: what kept it from being defined.
async fn defined(asker: &Asker, new: EventType) -> Result<EventAnswer, EventAnswer> {
    new.check().map_err(EventAnswer::Wrong)?;
    let root = new.name.split('.').next().unwrap_or_default();
    if ["node", "service", "store"].contains(&root) {
        let text = format!("types that begin with {root} are the community's own");
        return Err(EventAnswer::Conflict(text));
    }
    let there = types(asker, None).await.map_err(|()| EventAnswer::Unavailable)?;
    if let Some(parent) = new.parents.iter().find(|parent| there.get(parent).is_none()) {
        return Err(EventAnswer::Wrong(there.unknown(parent)));
    }
    if there.get(&new.name).is_none() && there.below(&new.name).len() >= TYPES_MAX {
        return Err(EventAnswer::Wrong(format!("there are {TYPES_MAX} types already")));
    }
    let value = postcard::to_allocvec(&new).ok();
    change(asker, type_key(&new.name), &new.name, |old| {
        match old.and_then(|bytes| postcard::from_bytes::<EventType>(bytes).ok()) {
            Some(old) if old == new => Ok(None),
            Some(old) if !new.continues(&old) => Err(EventAnswer::Conflict(format!(
                "{} is another type already: one may only add attributes; see: dugnad types",
                new.name
            ))),
            Some(_) | None => Ok(value.clone()),
        }
    })
    .await?;
    change(asker, index_key(), "", |old| {
        let mut names: Vec<String> =
            old.and_then(|bytes| postcard::from_bytes(bytes).ok()).unwrap_or_default();
        if names.contains(&new.name) {
            return Ok(None);
        }
        if names.len() >= TYPES_MAX {
            return Err(EventAnswer::Wrong(format!("there are {TYPES_MAX} types already")));
        }
        names.push(new.name.clone());
        Ok(postcard::to_allocvec(&names).ok())
    })
    .await?;
    // Whoever asks next sees it.
    _ = types(asker, None).await;
    Ok(EventAnswer::Done)
}

/// Changes a register from what it is; `to` says `None` if it is right already.
async fn change(
    asker: &Asker,
    key: Key,
    name: &str,
    to: impl Fn(Option<&[u8]>) -> Result<Option<Vec<u8>>, EventAnswer>,
) -> Result<(), EventAnswer> {
    for _ in 0..WRITES {
        let (revision, old) = asker.read(key).await.map_err(|()| EventAnswer::Unavailable)?;
        let Some(value) = to(old.as_deref())? else { return Ok(()) };
        let change = Change::Cas { revision, value: Some(value) };
        let name = format!("event type {name}");
        match asker.linear(Question::Change { key, name, change }).await {
            Answer::Done { done: Done::Written { .. }, .. } => return Ok(()),
            Answer::Unavailable => return Err(EventAnswer::Unavailable),
            // Somebody else wrote, or it may be written: look again.
            _ => {}
        }
    }
    Err(EventAnswer::Failed("too many change it at the same time; try again".to_string()))
}

pub(super) async fn publish(asker: Asker, ask: u64, known: Option<Types>, new: New) -> Outcome {
    let answer = match event(&asker, known, new).await {
        Ok((name, event)) => send(&asker, name, event).await,
        Err(answer) => answer,
    };
    Outcome::Answer { ask, answer }
}

/// The event as its type says; `Err`: what is wrong.
async fn event(
    asker: &Asker,
    mut known: Option<Types>,
    new: New,
) -> Result<(String, Published), EventAnswer> {
    types::valid_name(&new.name).map_err(|why| EventAnswer::Wrong(why.to_string()))?;
    if is_built_in(&new.name) {
        let text =
            format!("{} is what nodes say of themselves; define a type of your own", new.name);
        return Err(EventAnswer::Conflict(text));
    }
    if known.as_ref().is_some_and(|known| known.get(&new.name).is_none()) {
        // It may have been defined a moment ago.
        known = None;
    }
    let types = types(asker, known).await.map_err(|()| EventAnswer::Unavailable)?;
    if types.get(&new.name).is_none() {
        return Err(EventAnswer::Wrong(types.unknown(&new.name)));
    }
    let attributes =
        types::values(&new.attributes, &types.schema(&new.name)).map_err(EventAnswer::Wrong)?;
    let event = Published { id: new.id, at_ms: new.at_ms, attributes, body: new.body };
    let bytes = event.bytes();
    if bytes > EVENT_BYTES {
        return Err(EventAnswer::Wrong(format!(
            "this event has {bytes} bytes, at most {EVENT_BYTES} are taken: put what is long into \
             the store, and say its key"
        )));
    }
    Ok((new.name, event))
}

pub(super) async fn publish_own(asker: Asker, name: String, event: Published) -> Outcome {
    match send(&asker, name, event).await {
        EventAnswer::Published { .. } => Outcome::Nothing,
        _ => Outcome::Unpublished,
    }
}

/// Brings an event to its rendezvous, as often as needed; the log takes it once.
async fn send(asker: &Asker, name: String, event: Published) -> EventAnswer {
    let mut pause = PAUSE;
    for _ in 0..TRIES {
        if let Some(at) = asker.find(key_of(&name)).await {
            let request = Request::Publish { name: name.clone(), event: event.clone() };
            match asker.call(at, request).await {
                Some(Response::Published { place }) => return EventAnswer::Published { place },
                Some(Response::Unavailable) => return EventAnswer::Unavailable,
                Some(Response::Unfit) => {
                    let text = format!("the rendezvous of {name} finds that it is no such event");
                    return EventAnswer::Failed(text);
                }
                // It moved, or died.
                Some(Response::NotHere | Response::Events { .. }) | None => {}
            }
        }
        asker.sleep(pause).await;
        pause = (pause * 2).min(PAUSE * 8);
    }
    EventAnswer::Failed(format!("nobody answers for {name}; see `dugnad status` and try again"))
}
