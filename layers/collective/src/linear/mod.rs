//! Registers that everybody sees alike: linearizable put, get and compare-and-set (PROTOCOL.md 8).
//!
//! The keys are cut into ranges. Each is kept by a view: a handful of members, of which a majority
//! must answer in the same view. Which view comes next the members of a view decide among
//! themselves; the ring says only who should be members, so where the ring is wrong, or cut in two,
//! nothing is decided twice. CATS (Arad, Shafaat, Haridi 2013) has the idea of consistent quorums.

mod exec;
pub mod keeper;
mod operations;
mod reconfigure;
pub mod register;
#[cfg(test)]
mod tests;
pub mod view;

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::map::{Map, Set};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Counters, Cx, Duration, Hlc, Input, Key, NodeId};
use serde::{Deserialize, Serialize};

use crate::position::RingPosition;
use keeper::{Before, Changed, Keeper, REGISTERS_MAX, REPLICAS_MAX, Registers, Replica};
use operations::{Awaited, Reply};
use register::{Cell, Change, Done, Register, RequestId};
use view::{Ballot, Known, Member, Range, View, ViewId};

pub(crate) use operations::OPS_MAX;

/// Answers that wait for the disk, and requests of people that wait for one before them.
const UNSENT_MAX: usize = 4_096;
pub(crate) const WAITING_MAX: usize = 256;

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To the members of a view: what do you have?
    Query { view: ViewId, key: Key },
    /// To the members: promise to accept nothing below this.
    Prepare { view: ViewId, key: Key, ballot: Ballot },
    /// To the members: this is the value now.
    Accept { view: ViewId, key: Key, ballot: Ballot, cell: Cell },
    /// To the members of a view: promise to decide nothing below this.
    Propose { view: ViewId, ballot: Ballot },
    /// To the members: this comes next.
    Choose { view: ViewId, ballot: Ballot, next: Vec<View> },
    /// To all members of the views before and of the next ones: it is decided.
    Commit { prior: Vec<View>, next: Vec<View> },
    /// A member of the next view to those of the one before: what you have, after this key.
    Pull { view: ViewId, range: Range, after: Option<Key> },
    /// To members of a view before: all of the next have it.
    Release { view: ViewId },
    /// To any node: which views do you know, and which member are you?
    Views,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Query`.
    Cell {
        promised: Ballot,
        accepted: Ballot,
        cell: Cell,
    },
    /// To `Prepare`: what was accepted last.
    Promised {
        accepted: Ballot,
        cell: Cell,
    },
    Accepted,
    /// To `Propose`: what was accepted last.
    Proposed {
        accepted: Option<(Ballot, Vec<View>)>,
    },
    /// To `Choose`.
    Chosen,
    /// To `Propose` and `Choose`: it was decided before.
    Decided {
        next: Vec<View>,
    },
    /// Something higher was promised.
    Refused {
        promised: Ballot,
    },
    /// The asked node does not answer in this view; newer ones it knows of.
    OtherView {
        views: Vec<View>,
    },
    /// To `Commit`: whether it answers in the next views, as far as it is a member.
    Committed {
        active: bool,
    },
    /// To `Pull`, in order; with `more` there are further ones.
    Pulled {
        registers: Vec<(Key, Register)>,
        more: bool,
    },
    /// To `Pull`: it has not heard that the view is over.
    NotYet,
    Released,
    Views {
        inc: u32,
        views: Vec<View>,
    },
    /// As many registers as may be.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
    /// A member to the owner of a range's first key on the ring: you look after it.
    Told { views: Vec<View> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire { call: CallId },
    /// Look whether the right nodes keep a range.
    Check { range: Range, round: u32 },
    /// Try again to collect what the members before have.
    Sync { view: ViewId },
    /// The ring has moved: see that whoever looks after a range knows of it.
    Inform,
    /// Try again to write what must be on disk.
    WriteAgain,
    /// A view is over: see that all who come next have entered.
    Finish { view: ViewId, tries: u32 },
}

/// What the rest of this node may ask.
#[derive(Clone, Debug)]
pub enum Question {
    Read {
        key: Key,
    },
    /// `name`: what lists call it.
    Change {
        key: Key,
        name: String,
        change: Change,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `None` if it has no value.
    Cell { revision: u64, value: Option<Vec<u8>> },
    /// By so many members, of which a majority has it on disk. `before`: the value it replaced; it
    /// is not known of a request that took effect before.
    Done { done: Done, members: usize, before: Option<Vec<u8>> },
    /// No majority answers; nothing was changed.
    Unavailable,
    /// It may have been changed or not: the majority went away in between.
    Unknown,
    /// This node, or the members, have as much to do as they can.
    Busy,
}

/// What lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskKey {
    /// Which member this disk is: `u32`.
    Member,
    Replica(ViewId),
    Register(Key),
}

/// All that lies on disk.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Which member this disk is.
    pub member: Option<u32>,
    pub replicas: Vec<Replica>,
    pub registers: Vec<(Key, Register)>,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// What lay on disk. `inc`: the life of the node; `alone`: it begins a community, if it has not
    /// done so before.
    Restore {
        inc: u32,
        alone: bool,
        kept: Kept,
    },
    /// Milliseconds since 1970; `None` if the machine's clock was never set.
    Clock(Option<u64>),
    Moved(RingPosition),
    /// The answer to [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    Persisted(u64),
    NotPersisted(u64),
    /// It will not answer any more.
    Gone(NodeId),
    LinkDown(NodeId),
    /// Views somebody told everybody of.
    Views(Vec<View>),
    /// [`Event::Answer`] follows under `call`.
    Ask {
        call: u32,
        question: Question,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    /// Write these to disk, `None` deletes; [`Command::Persisted`] or [`Command::NotPersisted`]
    /// follows.
    Persist {
        token: u64,
        writes: Vec<(DiskKey, Option<Vec<u8>>)>,
    },
    /// Tell everybody who keeps what now.
    Tell(Vec<View>),
    Answer {
        call: u32,
        answer: Answer,
    },
}

/// What waits until everything before it is on disk.
struct Unsent {
    token: u64,
    /// What this write changed, as it was before.
    before: Vec<Before>,
    answers: Vec<(NodeId, CallId, Response)>,
    /// Views this node answers in from then on.
    entered: Vec<ViewId>,
    /// Whether it must be there in the end: who takes a view over rests on it.
    must: bool,
}

/// Writes that failed and must not have: until they are on disk this node takes no part.
#[derive(Default)]
struct Stuck {
    token: u64,
    changed: Vec<Changed>,
    entered: Vec<ViewId>,
}

/// A request of this node's people.
struct Asked {
    call: u32,
    id: RequestId,
    question: Question,
}

pub struct Linear {
    me: NodeId,
    inc: u32,
    position: RingPosition,
    clock: Hlc,
    keeper: Registers,
    known: Rc<RefCell<Known>>,
    calls: CallsOf<Self>,
    tokens: u64,
    unsent: VecDeque<Unsent>,
    stuck: Option<Stuck>,
    /// Requests by key: the first is under way.
    asked: Map<Key, VecDeque<Asked>>,
    requests: u32,
    /// Of this life.
    attempts: u32,
    /// Ranges that are looked at.
    checking: Map<Range, reconfigure::Check>,
    reconfiguring: Set<Range>,
    /// How often in a row it was of no use to inform others.
    uninformed: u32,
    /// Whether [`Timer::Inform`] is out.
    informing: bool,
    /// Views that are being synced, with failures in a row.
    syncing: Map<ViewId, u32>,
    /// Views that are whole when this write, and all before it, is on disk.
    whole: Map<ViewId, u64>,
    counters: Counters,
}

impl Component for Linear {
    type Command = Command;
    type Msg = Msg;
    type Timer = Timer;
    type Event = Event;

    fn handle(&mut self, input: Input<Self>, cx: &mut Cx<'_, Self>) {
        match input {
            Input::Command(command) => self.on_command(command, cx),
            Input::Message { from, msg } => match msg {
                Msg::Request { call, request } => self.on_request(from, call, request, cx),
                Msg::Response { call, response } => self.on_response(from, call, response, cx),
                Msg::Told { views } => self.learn(&views, cx),
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Check { range, round }) => self.on_check(range, round, cx),
            Input::Timer(Timer::Sync { view }) => self.sync(view, cx),
            Input::Timer(Timer::Inform) => self.inform(cx),
            Input::Timer(Timer::WriteAgain) => self.write_again(cx),
            Input::Timer(Timer::Finish { view, tries }) => self.finish(view, tries, cx),
        }
    }
}

impl Linear {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            inc: 0,
            position: RingPosition::default(),
            clock: Hlc::default(),
            keeper: Registers::new(Keeper::new(Member { node: me, inc: 0 })),
            known: Rc::default(),
            calls: CallsOf::<Self>::default(),
            tokens: 0,
            unsent: VecDeque::new(),
            stuck: None,
            asked: Map::new(),
            requests: 0,
            attempts: 0,
            checking: Map::new(),
            uninformed: 0,
            reconfiguring: Set::new(),
            informing: false,
            syncing: Map::new(),
            whole: Map::new(),
            counters: Counters::default(),
        }
    }

    /// To read what this node keeps, now and later.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.keeper.clone()
    }

    /// The newest view of the range a key lies in, as far as this node heard.
    #[must_use]
    pub fn view_of(&self, key: Key) -> Option<View> {
        self.known.borrow().of(key).cloned()
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("register_operations", self.calls.len(), OPS_MAX),
            ("registers", self.keeper.read().registers().count(), REGISTERS_MAX),
            ("views_kept", self.keeper.read().replicas().count(), REPLICAS_MAX),
            ("views_known", self.known.borrow().len(), view::KNOWN_MAX),
            ("register_answers", self.unsent.len(), UNSENT_MAX),
            ("register_requests", self.waiting(), WAITING_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    fn waiting(&self) -> usize {
        self.asked.values().map(VecDeque::len).sum()
    }

    fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Restore { inc, alone, kept } => self.restore(inc, alone, kept, cx),
            Command::Clock(unix_ms) => self.clock.set(unix_ms, cx.now),
            Command::Moved(position) => {
                self.position = position;
                self.check_all(cx);
                self.uninformed = 0;
                self.plan_inform(cx);
            }
            Command::Found { call, owner } => self.answer(call, Reply::Found(owner), cx),
            Command::Persisted(token) => self.on_persisted(token, cx),
            Command::NotPersisted(token) => self.on_not_persisted(token, cx),
            Command::Gone(node) | Command::LinkDown(node) => self.give_up_on(node, cx),
            Command::Views(views) => self.learn(&views, cx),
            Command::Ask { call, question } => self.on_ask(call, question, cx),
        }
    }

    fn restore(&mut self, inc: u32, alone: bool, kept: Kept, cx: &mut Cx<'_, Self>) {
        let Kept { member, replicas, registers } = kept;
        self.inc = inc;
        // Without a note of who it was it lost its disk, or never had one: it is somebody new.
        let known = member.is_some();
        *self.keeper.write() = Keeper::new(Member { node: self.me, inc: member.unwrap_or(inc) });
        if known {
            for replica in replicas {
                self.known.borrow_mut().learn(&replica.view);
                replica.next.iter().for_each(|next| _ = self.known.borrow_mut().learn(next));
                self.keeper.write().restore(replica);
            }
            for (key, register) in registers {
                self.keeper.write().restore_register(key, register);
            }
        } else {
            self.keeper.write().begin();
            if alone {
                self.keeper.write().found();
                let first = View::first(self.keeper.read().me());
                self.known.borrow_mut().learn(&first);
            }
            self.save(Vec::new(), Vec::new(), true, cx);
        }
        self.plan_finish(&[], cx);
        self.sync_all(cx);
    }

    fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    fn on_request(&mut self, from: NodeId, call: CallId, request: Request, cx: &mut Cx<'_, Self>) {
        if self.stuck.is_some() {
            self.count("register_disk_stuck");
            return;
        }
        if self.unsent.len() >= UNSENT_MAX {
            // The disk does not keep up; who asks hears nothing, as if the message were lost.
            self.count("register_answers_overflow");
            return;
        }
        let heard = match &request {
            Request::Commit { next, .. } => next.clone(),
            _ => Vec::new(),
        };
        let sealed = self.keeper.read().sealed();
        let response = self.keeper.write().answer(request, &self.known.borrow());
        self.save(Vec::from([(from, call, response)]), Vec::new(), false, cx);
        if !heard.is_empty() {
            self.plan_finish(&sealed, cx);
            self.learn(&heard, cx);
            self.sync_all(cx);
        }
    }

    /// Writes what changed; the answers leave when it, and all before it, is on disk. `must`: it
    /// has to be there in the end, if it fails now.
    fn save(
        &mut self,
        answers: Vec<(NodeId, CallId, Response)>,
        entered: Vec<ViewId>,
        must: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let before = self.keeper.write().changes();
        if before.is_empty() {
            match self.unsent.back_mut() {
                // What it says may rest on what is not on disk yet.
                Some(last) => last.answers.extend(answers),
                None => self.send_all(answers, cx),
            }
            return;
        }
        let mut changed: Vec<Changed> = before.iter().map(Before::of).collect();
        changed.sort_unstable();
        changed.dedup();
        let writes = self.keeper.writes(&changed);
        let token = self.token();
        let must = must || changed.iter().any(|changed| matches!(changed, Changed::Replica(_)));
        self.unsent.push_back(Unsent { token, before, answers, entered, must });
        cx.emit(Event::Persist { token, writes });
    }

    fn send_all(&self, answers: Vec<(NodeId, CallId, Response)>, cx: &mut Cx<'_, Self>) {
        for (to, call, response) in answers {
            cx.send(to, Msg::Response { call, response });
        }
    }

    /// The disk writes in order: what was handed to it before is there, too.
    fn on_persisted(&mut self, token: u64, cx: &mut Cx<'_, Self>) {
        if let Some(stuck) = self.stuck.take_if(|stuck| stuck.token == token) {
            for id in stuck.entered {
                self.on_entered(id, cx);
            }
            self.sync_all(cx);
        }
        while self.unsent.front().is_some_and(|first| first.token <= token) {
            let Some(first) = self.unsent.pop_front() else { break };
            self.send_all(first.answers, cx);
            for id in first.entered {
                self.on_entered(id, cx);
            }
        }
        self.enter_whole(token, cx);
    }

    /// The disk is full, or fails. What rests on it, and that may be all that was said after it, is
    /// never said. A register is again what it was; a part in a view, and what came with it, has to
    /// be on disk before this node says anything more.
    fn on_not_persisted(&mut self, token: u64, cx: &mut Cx<'_, Self>) {
        self.count("register_write_failed");
        for (id, _) in core::mem::take(&mut self.whole) {
            cx.after(SYNC_AGAIN, Timer::Sync { view: id });
        }
        if self.stuck.as_ref().is_some_and(|stuck| stuck.token == token) {
            return cx.after(WRITE_AGAIN, Timer::WriteAgain);
        }
        let Some(at) = self.unsent.iter().position(|unsent| unsent.token == token) else { return };
        let Some(failed) = self.unsent.remove(at) else { return };
        self.unsent.iter_mut().skip(at).for_each(|unsent| unsent.answers.clear());
        let changed: Vec<Changed> = failed.before.iter().map(Before::of).collect();
        if !failed.must {
            for before in failed.before.into_iter().rev() {
                let mut later = self.unsent.iter_mut().skip(at).flat_map(|later| &mut later.before);
                match later.find(|later| later.of() == before.of()) {
                    // If that write fails, too, this is what the disk still has.
                    Some(later) => *later = before,
                    None => self.keeper.write().undo(before),
                }
            }
            return;
        }
        let entered = failed.entered;
        let stuck = self.stuck.get_or_insert_default();
        stuck.changed.extend(changed);
        stuck.entered.extend(entered);
        cx.after(WRITE_AGAIN, Timer::WriteAgain);
    }

    /// Tries again to write what must be on disk.
    fn write_again(&mut self, cx: &mut Cx<'_, Self>) {
        let token = self.token();
        let Some(stuck) = &mut self.stuck else { return };
        stuck.token = token;
        stuck.changed.sort_unstable();
        stuck.changed.dedup();
        let writes = self.keeper.writes(&stuck.changed);
        cx.emit(Event::Persist { token, writes });
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if let Response::OtherView { views } | Response::Decided { next: views } = &response {
            let views = views.clone();
            self.learn(&views, cx);
        }
        if matches!(self.calls.awaited(call), Some(Awaited::Call { to }) if *to == from) {
            self.answer(call, Reply::Response(Some(response)), cx);
        } else {
            self.count("late_response");
        }
    }

    fn learn(&mut self, views: &[View], cx: &mut Cx<'_, Self>) {
        for view in views {
            self.known.borrow_mut().learn(view);
        }
        // Also of what is no news: an operation may have heard it first.
        if !views.is_empty() {
            self.check_all(cx);
        }
    }

    fn on_ask(&mut self, call: u32, question: Question, cx: &mut Cx<'_, Self>) {
        if self.waiting() >= WAITING_MAX {
            return cx.emit(Event::Answer { call, answer: Answer::Busy });
        }
        self.requests = self.requests.wrapping_add(1);
        let number = u64::from(self.inc) << 32 | u64::from(self.requests);
        let id = RequestId { by: self.me, number };
        let key = match &question {
            Question::Read { key } | Question::Change { key, .. } => *key,
        };
        let all = self.asked.entry(key).or_default();
        all.push_back(Asked { call, id, question });
        if all.len() == 1 {
            self.begin(key, cx);
        }
    }

    /// Begins the request that is first in line for a key: a register remembers one of each node.
    fn begin(&mut self, key: Key, cx: &mut Cx<'_, Self>) {
        let Some(first) = self.asked.get(&key).and_then(VecDeque::front) else { return };
        let (call, id, question) = (first.call, first.id, first.question.clone());
        self.attempts = self.attempts.wrapping_add(1);
        let own = self.keeper.read().register(key).map(|register| register.promised.counter);
        let counter = own.unwrap_or(0);
        let at = exec::At {
            counter,
            known: Rc::clone(&self.known),
            me: self.me,
            attempt: u64::from(self.inc) << 32 | u64::from(self.attempts),
            others: self.position.succs.iter().map(|peer| peer.id).collect(),
            now_ms: self.clock.unix_ms(cx.now).unwrap_or(0),
        };
        if !self.start("register", |asker| exec::exec(asker, at, (key, call), id, question), cx) {
            self.ended(key, call, Answer::Busy, cx);
        }
    }

    /// A request is over; the next of its key.
    fn ended(&mut self, key: Key, call: u32, answer: Answer, cx: &mut Cx<'_, Self>) {
        cx.emit(Event::Answer { call, answer });
        if let Some(all) = self.asked.get_mut(&key) {
            all.pop_front();
            if all.is_empty() {
                self.asked.remove(&key);
            } else {
                self.begin(key, cx);
            }
        }
    }
}

/// A part of the protocol that a test leaves out, to see that its absence is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Who has heard what comes next answers no more.
    Sealing,
    /// A new member collects from a majority.
    SyncFromMajority,
    /// A repeated request takes effect once.
    Dedupe,
}

#[cfg(test)]
use tests::is_left_out;

/// No part is left out of what ships.
#[cfg(not(test))]
const fn is_left_out(_: Part) -> bool {
    false
}

/// After this a write that failed is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// After this a sync that failed is tried again, doubled each time.
const SYNC_AGAIN: Duration = Duration::from_secs(2);
