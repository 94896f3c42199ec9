//! Telling who asked that an object is another now.
//!
//! A node that watches asks the owner of the key, again every [`RENEW`]; the owner tells it of
//! every change until [`LEASE`] has passed without. What both missed while the ring moved shows in
//! the answer to the next question. Nothing is sent for objects nobody watches.

use dugnad_kernel::calls::Operates;
use dugnad_kernel::map::Map;
use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};

use super::item::{self, Address, Manner};
use super::operations::{Asker, AskerExt, Outcome, Unreachable};
use super::read::{self, NOBODY, unknown};
use super::{Event, Msg, ObjectAnswer, Objects, Request, Response, Timer};
use crate::persistence::record::Record;

/// How long an owner tells of changes without being asked again.
pub(super) const LEASE: Duration = Duration::from_secs(90);
const RENEW: Duration = Duration::from_secs(30);
/// Objects others watch here, and nodes that watch one.
pub(super) const WATCHERS_MAX: usize = 1_024;
const WATCHERS_EACH: usize = 64;
/// Objects this node watches for its people.
pub(super) const WATCHING_MAX: usize = 256;

/// Who watches what here, and until when.
#[derive(Debug, Default)]
pub(super) struct Watchers(Map<Key, Map<NodeId, Time>>);

impl Watchers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.retain(|_, all| {
            all.remove(&node);
            !all.is_empty()
        });
    }

    fn tidy(&mut self, now: Time) {
        self.0.retain(|_, all| {
            all.retain(|_, until| *until > now);
            !all.is_empty()
        });
    }

    /// Whether there was room.
    pub(super) fn add(&mut self, key: Key, node: NodeId, now: Time) -> bool {
        self.tidy(now);
        if self.0.len() >= WATCHERS_MAX && !self.0.contains_key(&key) {
            return false;
        }
        let all = self.0.entry(key).or_default();
        let room = all.len() < WATCHERS_EACH || all.contains_key(&node);
        if room {
            all.insert(node, now + LEASE);
        }
        room
    }

    fn of(&mut self, key: Key, now: Time) -> impl Iterator<Item = NodeId> {
        self.tidy(now);
        self.0.get(&key).cloned().unwrap_or_default().into_iter().map(|(node, _)| node)
    }
}

/// An object this node watches.
#[derive(Debug)]
pub(super) struct Watching {
    address: Address,
    manner: Manner,
    /// How it was when somebody was told last.
    seen: ObjectAnswer,
    /// Of the timer that is to ask next.
    round: u32,
}

impl Objects {
    pub(super) fn watch(&mut self, ask: u64, address: Address, cx: &mut Cx<'_, Self>) {
        let key = address.key();
        if let Some(watching) = self.watching.get(&key) {
            let answer = watching.seen.clone();
            return cx.emit(Event::Answer { ask, answer });
        }
        let full = self.watching.len() >= WATCHING_MAX;
        let known = self.namespace(&address.namespace, cx.now);
        let op = |asker| begin(asker, ask, known, address);
        if full || !self.start("watch object", op, cx) {
            let answer = ObjectAnswer::Failed("this node watches enough; try again".into());
            cx.emit(Event::Answer { ask, answer });
        }
    }

    /// The first answer about a watched object is there.
    pub(super) fn begin_watch(
        &mut self,
        address: Address,
        manner: Manner,
        seen: ObjectAnswer,
        cx: &mut Cx<'_, Self>,
    ) {
        let key = address.key();
        if self.watching.len() < WATCHING_MAX || self.watching.contains_key(&key) {
            self.watching.insert(key, Watching { address, manner, seen, round: 0 });
            self.renew(key, 0, cx);
        }
    }

    pub(super) fn unwatch(&mut self, ask: u64, address: &Address, cx: &mut Cx<'_, Self>) {
        self.watching.remove(&address.key());
        cx.emit(Event::Answer { ask, answer: ObjectAnswer::Done });
    }

    /// Asks the owner of a watched object to tell of changes, and for how it is.
    pub(super) fn renew(&mut self, key: Key, round: u32, cx: &mut Cx<'_, Self>) {
        let Some(watching) = self.watching.get_mut(&key).filter(|w| w.round == round) else {
            return;
        };
        watching.round = watching.round.wrapping_add(1);
        cx.after(RENEW, Timer::Renew { key, round: watching.round });
        let manner = watching.manner;
        self.start("renew watch", |asker| ask_owner(asker, key, manner), cx);
    }

    /// Another version of a record is here: those who watch it hear of it.
    pub(super) fn tell_watchers(&mut self, record: &Record, cx: &mut Cx<'_, Self>) {
        if !item::is_object(&record.name) || self.watchers.len() == 0 {
            return;
        }
        let watchers = self.watchers.of(record.key, cx.now);
        for node in watchers {
            cx.send(node, Msg::Changed { record: record.clone() });
        }
    }

    /// The owner of something watched here tells of another version.
    pub(super) fn on_told(&mut self, record: &Record, cx: &mut Cx<'_, Self>) {
        let Some(watching) = self.watching.get(&record.key) else {
            self.count("change_of_what_nobody_watches");
            return;
        };
        if watching.manner == Manner::Last && record.fits() {
            return self.on_seen(record.key, read::last(record), cx);
        }
        // The values others wrote count, too.
        let key = record.key;
        self.start("look again", |asker| ask_owner(asker, key, Manner::Merge), cx);
    }

    /// How a watched object is now.
    pub(super) fn on_seen(&mut self, key: Key, answer: ObjectAnswer, cx: &mut Cx<'_, Self>) {
        let Some(watching) = self.watching.get_mut(&key) else { return };
        if is_news(&watching.seen, &answer) {
            watching.seen = answer.clone();
            cx.emit(Event::Changed { address: watching.address.clone(), answer });
        }
    }
}

/// Whether `new` is a later state of an object than `old`.
fn is_news(old: &ObjectAnswer, new: &ObjectAnswer) -> bool {
    use ObjectAnswer::{Absent, Found};
    match (old, new) {
        (
            Found { version: old, context: None, .. } | Absent { version: old, context: None },
            Found { version: new, context: None, .. } | Absent { version: new, context: None },
        ) => new > old,
        (Found { .. } | Absent { .. }, Found { .. } | Absent { .. }) => old != new,
        // It could not be read just now.
        _ => false,
    }
}

async fn begin(
    asker: Asker,
    ask: u64,
    known: Option<item::Namespace>,
    address: Address,
) -> Outcome {
    let answer = match read::namespace(&asker, known, &address.namespace).await {
        Err(Unreachable) => ObjectAnswer::Failed(NOBODY.into()),
        Ok(None) => unknown(&address.namespace),
        Ok(Some(namespace)) if namespace.manner == Manner::Strong => ObjectAnswer::Refused(
            "a strong namespace cannot be watched yet; get the key from time to time".into(),
        ),
        Ok(Some(namespace)) => {
            let answer = read::look(&asker, namespace.manner, &address).await;
            if matches!(answer, ObjectAnswer::Found { .. } | ObjectAnswer::Absent { .. }) {
                let (manner, seen) = (namespace.manner, answer.clone());
                asker.report(Outcome::Watch { address, manner, seen });
            }
            answer
        }
    };
    Outcome::Answer { ask, answer }
}

/// Has the owner tell of changes from now on, and hears how it is.
async fn ask_owner(asker: Asker, key: Key, manner: Manner) -> Outcome {
    let Some(owner) = asker.find(key).await else { return Outcome::Nothing };
    let Some(Response::Read { records }) = asker.call(owner, Request::Watch { key }).await else {
        // It moved, or does not answer: the next question finds another.
        return Outcome::Nothing;
    };
    let records = records.iter().filter(|record| record.fits() && record.key == key);
    let answer = match manner {
        Manner::Merge => read::all(&read::merge_records(records)),
        // It is not watched so.
        Manner::Strong => return Outcome::Nothing,
        Manner::Last => match records.into_iter().find(|record| record.name == item::OBJECT) {
            Some(record) => read::last(record),
            None => return Outcome::Nothing,
        },
    };
    Outcome::Seen { key, answer }
}
