//! Reading and changing a register, as an operation (PROTOCOL.md 8.2).

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use dugnad_kernel::{Duration, Key, NodeId};

use super::operations::{Asker, AskerExt, Outcome, ask_members, hear};
use super::register::{Cell, Change, Done, RequestId};
use super::view::{Ballot, Known, View};
use super::{Answer, Question, Request, Response};

/// Attempts until it is given up: views change, and others write.
const TRIES: u32 = 12;
/// Pause before another attempt after somebody was in the way, doubled so often.
const PAUSE: Duration = Duration::from_millis(20);
const DOUBLINGS: u32 = 5;

/// Where an operation runs.
pub(super) struct At {
    pub(super) known: Rc<RefCell<Known>>,
    pub(super) me: NodeId,
    /// Tells the attempts of this node apart.
    pub(super) attempt: u64,
    /// Nodes that may know which views there are.
    pub(super) others: Vec<NodeId>,
    pub(super) now_ms: u64,
    /// The highest ballot this node knows of.
    pub(super) counter: u64,
}

impl At {
    /// The newest view of the key's range; asks around where none is known.
    async fn view(&self, asker: &Asker, key: Key) -> Option<View> {
        let known = || self.known.borrow().of(key).cloned();
        if let Some(view) = known() {
            return Some(view);
        }
        for node in &self.others {
            if let Some(answer) = asker.call(*node, Request::Views).await {
                if let Response::Views { views, .. } = &answer {
                    views.iter().for_each(|view| _ = self.known.borrow_mut().learn(view));
                }
                if known().is_some() {
                    return known();
                }
            }
        }
        None
    }

    /// Whether a newer view than this is known by now.
    fn has_newer(&self, view: &View, key: Key) -> bool {
        self.known.borrow().of(key).is_some_and(|known| known.number > view.number)
    }

    fn learn(&self, asker: &Asker, answers: &[Response]) {
        for answer in answers {
            if let Response::OtherView { views } | Response::Decided { next: views } = answer {
                views.iter().for_each(|view| _ = self.known.borrow_mut().learn(view));
            }
        }
        hear(asker, answers);
    }
}

/// Why an attempt brought nothing.
enum Failed {
    /// The members know of a newer view, or of a higher ballot.
    Again,
    /// A majority did not answer.
    NoMajority,
    /// A member has as many registers as may be.
    Full,
}

/// A change, and how far its attempts came.
struct Writing<'a> {
    key: Key,
    id: RequestId,
    name: &'a str,
    change: &'a Change,
    /// The highest ballot that was seen.
    counter: u64,
    /// Whether some member may have taken the value.
    sent: bool,
}

/// What became of an attempt that was chosen.
struct Chosen {
    cell: Cell,
    done: Done,
    before: Option<Vec<u8>>,
}

pub(super) async fn exec(
    asker: Asker,
    at: At,
    (key, call): (Key, u32),
    id: RequestId,
    question: Question,
) -> Outcome {
    let (name, change) = match &question {
        Question::Read { .. } => ("", &Change::Settle),
        Question::Change { name, change, .. } => (name.as_str(), change),
    };
    let mut writing = Writing { key, id, name, change, counter: at.counter, sent: false };
    for round in 0..TRIES {
        let Some(view) = at.view(&asker, key).await else { break };
        let done = match &question {
            Question::Read { .. } => read(&asker, &at, &view, &mut writing).await,
            Question::Change { .. } => {
                let members = view.members.len();
                let written = write(&asker, &at, &view, &mut writing).await;
                written.map(|Chosen { done, before, .. }| Answer::Done { done, members, before })
            }
        };
        match done {
            Ok(answer) => return Outcome::Ended { key, call, answer },
            Err(Failed::Full) => return Outcome::Ended { key, call, answer: Answer::Busy },
            // A newer view may have a majority, and knows what became of it.
            Err(_) if at.has_newer(&view, key) => asker.jitter(PAUSE).await,
            Err(Failed::NoMajority) => break,
            // It knows better now. Only who is in the way again lets the others go first.
            Err(Failed::Again) if round == 0 => {}
            Err(Failed::Again) => asker.jitter(PAUSE * (1 << round.min(DOUBLINGS))).await,
        }
    }
    let unknown = writing.sent && !matches!(question, Question::Read { .. });
    let answer = if unknown { Answer::Unknown } else { Answer::Unavailable };
    Outcome::Ended { key, call, answer }
}

/// What a majority has, all of it in one view. Where they do not agree, the newest may not have
/// been chosen: it is written back first.
async fn read(
    asker: &Asker,
    at: &At,
    view: &View,
    writing: &mut Writing<'_>,
) -> Result<Answer, Failed> {
    let request = Request::Query { view: view.id(), key: writing.key };
    let is_cell = |answer: &Response| matches!(answer, Response::Cell { .. });
    let answers = ask_members(asker, view, &request, view.majority(), is_cell).await;
    at.learn(asker, &answers);
    let mut cells = Vec::new();
    for answer in &answers {
        if let Response::Cell { promised, accepted, cell } = answer {
            writing.counter = writing.counter.max(promised.counter);
            cells.push((*accepted, cell));
        }
    }
    let told = |cell: &Cell| Answer::Cell { revision: cell.revision, value: cell.value.clone() };
    if cells.len() < view.majority() {
        return Err(short_of(view, &answers));
    }
    let Some((accepted, cell)) = cells.first() else { return Err(Failed::NoMajority) };
    if cells.iter().all(|(other, _)| other == accepted) {
        return Ok(told(cell));
    }
    Ok(told(&write(asker, at, view, writing).await?.cell))
}

/// Too few answers of the kind that counts: whether another attempt may fare better.
fn short_of(view: &View, answers: &[Response]) -> Failed {
    if answers.iter().any(|answer| matches!(answer, Response::Full)) {
        return Failed::Full;
    }
    if answers.len() < view.majority() { Failed::NoMajority } else { Failed::Again }
}

/// The first half of an attempt: a majority accepts nothing below the ballot any more, and this is
/// the newest it has.
async fn prepare(
    asker: &Asker,
    at: &At,
    view: &View,
    writing: &mut Writing<'_>,
) -> Result<(Ballot, Cell), Failed> {
    let (key, need) = (writing.key, view.majority());
    writing.counter = writing.counter.saturating_add(1);
    let ballot = Ballot { counter: writing.counter, by: at.me, attempt: at.attempt };
    let request = Request::Prepare { view: view.id(), key, ballot };
    let is_promise = |answer: &Response| matches!(answer, Response::Promised { .. });
    let answers = ask_members(asker, view, &request, need, is_promise).await;
    at.learn(asker, &answers);
    let mut newest: Option<(Ballot, Cell)> = None;
    let mut promises = 0;
    for answer in &answers {
        match answer {
            Response::Promised { accepted, cell } => {
                promises += 1;
                if newest.as_ref().is_none_or(|(known, _)| known < accepted) {
                    newest = Some((*accepted, cell.clone()));
                }
            }
            Response::Refused { promised } => {
                writing.counter = writing.counter.max(promised.counter);
            }
            _ => {}
        }
    }
    if promises < need {
        return Err(short_of(view, &answers));
    }
    Ok((ballot, newest.map(|(_, cell)| cell).unwrap_or_default()))
}

/// Both halves of one attempt, in one view.
async fn write(
    asker: &Asker,
    at: &At,
    view: &View,
    writing: &mut Writing<'_>,
) -> Result<Chosen, Failed> {
    let (key, need) = (writing.key, view.majority());
    let (ballot, old) = prepare(asker, at, view, writing).await?;
    let (cell, done) = old.after(writing.id, at.now_ms, writing.name, writing.change);
    let before = old.value.filter(|_| cell.revision != old.revision);
    writing.sent = true;
    let request = Request::Accept { view: view.id(), key, ballot, cell: cell.clone() };
    let is_accepted = |answer: &Response| matches!(answer, Response::Accepted);
    let answers = ask_members(asker, view, &request, need, is_accepted).await;
    at.learn(asker, &answers);
    for answer in &answers {
        if let Response::Refused { promised } = answer {
            writing.counter = writing.counter.max(promised.counter);
        }
    }
    if answers.iter().filter(|answer| is_accepted(answer)).count() < need {
        return Err(short_of(view, &answers));
    }
    Ok(Chosen { cell, done, before })
}
