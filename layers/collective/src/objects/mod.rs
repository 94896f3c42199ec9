//! Objects: what people and services have the community keep for them (paper 3.4.3; PROTOCOL.md 7).
//!
//! An object is a value under `namespace/path`. Short values are records of the persistence module,
//! long ones are blobs, kept as packages are. Of two writes the later one counts, by the stamp of a
//! hybrid logical clock; or, in a namespace that merges, both stay until somebody who has read both
//! writes again.

pub mod item;
mod list;
mod operations;
mod read;
pub mod room;
pub mod siblings;
mod strong;
pub mod sums;
mod watch;
mod write;

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_kernel::calls::{CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Component, Counters, Cx, Duration, Hlc, Input, Key, NodeId, Time};
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};

use crate::cast::CastBody;
use crate::linear::keeper::Registers;
use crate::persistence::record::{Name, Record};
use crate::persistence::store::Records;
use crate::position::RingPosition;
use crate::{linear, packages, persistence};
use item::{Address, Content, Manner, Namespace, Seal};
use operations::Reply;
use siblings::Context;
use sums::{Listed, NodeSums};
use watch::{Watchers, Watching};

pub(crate) use operations::OPS_MAX;

/// Namespaces whose record is remembered, and for how long.
const KNOWN_MAX: usize = 64;
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// How long what a namespace holds in all is believed.
const USED_FOR: Duration = Duration::from_secs(30);
/// How often a node that writes asks others whether its clock is right.
const CLOCK_FOR: Duration = Duration::from_secs(60);

/// A request between nodes; its answer is a [`Response`] to the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To an owner of the key's class: what lies under the key.
    Read { key: Key },
    /// To an owner of the key's class, of an object that merges: one more value, or none any more,
    /// by somebody who has seen `context`; `None`: what you have.
    Add { address: Address, content: Option<Content>, context: Option<Context> },
    /// To a node: those objects you answer for whose path begins so and comes after `after`.
    List { namespace: String, prefix: String, after: String },
    /// To the owner of the key: tell me when it changes, for [`watch::LEASE`]. Answered as `Read`.
    Watch { key: Key },
    /// To a neighbour on the ring: is this too far ahead of your clock?
    Clock { unix_ms: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To `Read` and `Watch`.
    Read { records: Vec<Record> },
    /// To `Add`: who has it on disk, and what writes from now on must have seen to replace it.
    Added { holders: Vec<NodeId>, context: Context },
    /// To `Add`: as many values as may be stand beside each other.
    Full,
    /// To `List`, in order; with `more` there are further ones.
    Listed { objects: Vec<Listed>, more: bool },
    /// To `Clock`: so many milliseconds beyond what is allowed; 0 if it is right.
    Clock { ahead_ms: u64 },
    /// The asked node does not answer for the key, or as many watch as may.
    NotOwner,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// Answered with `Response` to the same call.
    Request { call: CallId, request: Request },
    /// To the `Request` of this call.
    Response { call: CallId, response: Response },
    /// To who watches it: there is another version of this record.
    Changed { record: Record },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to this call is overdue.
    Expire { call: CallId },
    /// Ask the owner of a watched object once more.
    Renew { key: Key, round: u32 },
}

/// What is expected of an object that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is at this version.
    Version(u64),
    Absent,
}

/// What people and services ask.
#[derive(Clone, Debug)]
pub enum ObjectQuestion {
    Get(Address),
    /// `content: None` removes it. `create`: make the namespace if there is none.
    Put {
        address: Address,
        content: Option<Content>,
        expect: Option<Expect>,
        context: Option<Context>,
        /// How the namespace must be kept, and is made; `None`: as it is.
        manner: Option<Manner>,
        create: bool,
        /// With which key `content` is encrypted; it must be that of the namespace.
        seal: Option<Seal>,
    },
    /// Whether so many bytes may be written there; [`ObjectAnswer::Done`] if so.
    Check {
        address: Address,
        bytes: u64,
        manner: Option<Manner>,
        create: bool,
        seal: Option<Seal>,
    },
    /// At most 256 objects whose path begins with `prefix` and comes after `after`.
    List {
        namespace: String,
        prefix: String,
        after: String,
    },
    /// [`Event::Changed`] follows at every change, until [`Self::Unwatch`].
    Watch(Address),
    Unwatch(Address),
    /// How a namespace is kept.
    Namespace(String),
    /// Keep it so from now on; its manner cannot change.
    Declare(Namespace),
    /// What every node keeps.
    Sums,
    /// Who may have a blob when none of its [`Value::sources`] has: those that keep it in the place
    /// of a node without room.
    Beside(Tree),
}

/// A value, and for a blob who should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub content: Content,
    pub sources: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectAnswer {
    /// One value, or several that do not know of each other; `context` replaces them all.
    Found {
        values: Vec<Value>,
        version: u64,
        context: Option<Context>,
        strong: bool,
    },
    /// There is none, at this version.
    Absent {
        version: u64,
        context: Option<Context>,
    },
    /// On disk at `copies` nodes, of at least `wanted`.
    Written {
        version: u64,
        copies: usize,
        wanted: usize,
        context: Option<Context>,
    },
    /// What was expected is not so: the version now, 0 if there is none.
    Lost {
        version: u64,
        strong: bool,
    },
    /// In a namespace that is strong: at this revision, by so many members, of which a majority
    /// has it on disk.
    Chosen {
        revision: u64,
        members: usize,
    },
    /// A majority of those who keep it does not answer; whether it may have been written.
    Unavailable {
        maybe: bool,
    },
    Listed {
        objects: Vec<Listed>,
        more: bool,
        complete: bool,
    },
    Namespace(Namespace),
    Sums {
        nodes: Vec<NodeSums>,
        complete: bool,
    },
    /// To [`ObjectQuestion::Beside`].
    Beside(Vec<NodeId>),
    Done,
    /// No such namespace.
    Unknown(String),
    /// Not within what somebody set; why, and what to do.
    Refused(String),
    /// No room for it now; one line a reason.
    Unmet(Vec<String>),
    /// It did not work; what happened and what to do next.
    Failed(String),
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Milliseconds since 1970; `None` if the machine's clock was never set.
    Clock(Option<u64>),
    Moved(RingPosition),
    /// Another version of this record is here now.
    Changed(Name),
    /// The answer to [`Event::Lookup`].
    Found {
        call: CallId,
        owner: Option<NodeId>,
    },
    /// What came back of [`Event::Cast`].
    Feedback {
        call: CallId,
        parts: Vec<Vec<u8>>,
        complete: bool,
    },
    /// The answer to [`Event::Records`].
    Records {
        call: CallId,
        answer: persistence::Answer,
    },
    /// The answer to [`Event::Packages`].
    Packages {
        call: CallId,
        answer: Result<(), Vec<String>>,
    },
    /// The answer to [`Event::Linear`].
    Linear {
        call: CallId,
        answer: linear::Answer,
    },
    /// It will not answer any more.
    Gone(NodeId),
    LinkDown(NodeId),
    /// [`Event::Answer`] follows.
    Ask {
        ask: u64,
        question: ObjectQuestion,
    },
}

#[derive(Clone, Debug)]
pub enum Event {
    Lookup {
        call: CallId,
        key: Key,
    },
    Cast {
        call: CallId,
        body: CastBody,
    },
    Records {
        call: CallId,
        question: persistence::Question,
    },
    Packages {
        call: CallId,
        question: packages::Question,
    },
    /// Asks the registers.
    Linear {
        call: CallId,
        question: linear::Question,
    },
    Answer {
        ask: u64,
        answer: ObjectAnswer,
    },
    /// A watched object is another now: what [`ObjectQuestion::Get`] would answer.
    Changed {
        address: Address,
        answer: ObjectAnswer,
    },
}

/// The objects this node answers for and asks for.
pub struct Objects {
    me: NodeId,
    position: RingPosition,
    records: Records,
    registers: Registers,
    clock: Hlc,
    calls: CallsOf<Self>,
    /// How namespaces are kept, as was read lately.
    known: Map<String, (Namespace, Time)>,
    /// Bytes in a namespace, as was counted lately, and since.
    used: Map<String, (u64, Time)>,
    /// When others last found this node's clock right.
    clock_right: Option<Time>,
    /// What this node wrote of objects that merge and does not have on disk yet.
    adding: Map<Key, Record>,
    /// Objects others watch here.
    watchers: Watchers,
    /// Objects this node watches for its people.
    watching: Map<Key, Watching>,
    counters: Counters,
}

impl Component for Objects {
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
                Msg::Changed { record } => self.on_told(&record, cx),
            },
            Input::Timer(Timer::Expire { call }) => self.give_up(call, cx),
            Input::Timer(Timer::Renew { key, round }) => self.renew(key, round, cx),
        }
    }
}

impl Objects {
    /// `records`: those of this node's persistence module; `registers`: what it keeps of those.
    #[must_use]
    pub fn new(me: NodeId, records: Records, registers: Registers) -> Self {
        Self {
            me,
            position: RingPosition::default(),
            records,
            registers,
            clock: Hlc::default(),
            calls: CallsOf::<Self>::default(),
            known: Map::new(),
            used: Map::new(),
            clock_right: None,
            adding: Map::new(),
            watchers: Watchers::default(),
            watching: Map::new(),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter()
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        [
            ("object_operations", self.calls.len(), OPS_MAX),
            ("namespaces_known", self.known.len(), KNOWN_MAX),
            ("namespaces_counted", self.used.len(), KNOWN_MAX),
            ("objects_adding", self.adding.len(), OPS_MAX),
            ("object_watchers", self.watchers.len(), watch::WATCHERS_MAX),
            ("objects_watched", self.watching.len(), watch::WATCHING_MAX),
        ]
        .into_iter()
    }

    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.calls.names()
    }

    fn count(&mut self, what: &'static str) {
        self.counters.count(what);
    }

    fn on_command(&mut self, command: Command, cx: &mut Cx<'_, Self>) {
        match command {
            Command::Clock(unix_ms) => {
                self.clock.set(unix_ms, cx.now);
                self.clock_right = None;
            }
            Command::Moved(position) => self.position = position,
            Command::Changed((key, name)) => self.on_changed(key, &name, cx),
            Command::Found { call, owner } => self.answer(call, Reply::Found(owner), cx),
            Command::Feedback { call, parts, complete } => {
                self.answer(call, Reply::Parts { parts, complete }, cx);
            }
            Command::Records { call, answer } => self.answer(call, Reply::Records(answer), cx),
            Command::Packages { call, answer } => self.answer(call, Reply::Packages(answer), cx),
            Command::Linear { call, answer } => self.answer(call, Reply::Linear(answer), cx),
            Command::Gone(node) => {
                self.watchers.forget(node);
                self.give_up_on(node, cx);
            }
            Command::LinkDown(node) => self.give_up_on(node, cx),
            Command::Ask { ask, question } => self.on_ask(ask, question, cx),
        }
    }

    fn on_ask(&mut self, ask: u64, question: ObjectQuestion, cx: &mut Cx<'_, Self>) {
        if self.position.range.is_none() {
            let text = "this node is not in the ring yet; see `dugnad status`";
            let answer = ObjectAnswer::Failed(text.into());
            return cx.emit(Event::Answer { ask, answer });
        }
        let known = |this: &Self, name: &str| this.namespace(name, cx.now);
        let started = match question {
            ObjectQuestion::Get(address) => {
                let known = known(self, &address.namespace);
                self.start("get object", |asker| read::get(asker, ask, known, address), cx)
            }
            ObjectQuestion::Put { address, content, expect, context, manner, create, seal } => {
                let wanted =
                    write::Wanted { address, content, expect, context, manner, create, seal };
                let facts = self.facts(&wanted.address.namespace, cx.now);
                self.start("put object", |asker| write::prepare(asker, ask, facts, wanted), cx)
            }
            ObjectQuestion::Check { address, bytes, manner, create, seal } => {
                let facts = self.facts(&address.namespace, cx.now);
                let create = write::Create { manner, make: create, seal };
                let op = |asker| write::check(asker, ask, facts, address, bytes, create);
                self.start("check object", op, cx)
            }
            ObjectQuestion::List { namespace, prefix, after } => {
                let known = known(self, &namespace);
                let page = list::Page { namespace, prefix, after };
                self.start("list objects", |asker| list::list(asker, ask, known, page), cx)
            }
            ObjectQuestion::Watch(address) => return self.watch(ask, address, cx),
            ObjectQuestion::Unwatch(address) => return self.unwatch(ask, &address, cx),
            ObjectQuestion::Namespace(name) => {
                let known = known(self, &name);
                self.start("namespace", |asker| read::tell(asker, ask, known, name), cx)
            }
            ObjectQuestion::Declare(namespace) => {
                let me = self.me;
                let op = |asker| write::declare(asker, ask, me, namespace);
                self.start("declare namespace", op, cx)
            }
            ObjectQuestion::Sums => self.start("sums", |asker| list::sums(asker, ask), cx),
            ObjectQuestion::Beside(tree) => {
                self.start("find holders", |asker| read::beside(asker, ask, tree), cx)
            }
        };
        if !started {
            let answer = ObjectAnswer::Failed("this node is busy; try again".into());
            cx.emit(Event::Answer { ask, answer });
        }
    }

    /// How a namespace is kept, if that was read lately.
    fn namespace(&self, name: &str, now: Time) -> Option<Namespace> {
        let (namespace, at) = self.known.get(name)?;
        (now.since(*at) < KNOWN_FOR).then(|| namespace.clone())
    }

    fn learn(&mut self, namespace: Namespace, now: Time) {
        self.known.retain(|_, (_, at)| now.since(*at) < KNOWN_FOR);
        if self.known.len() < KNOWN_MAX {
            self.known.insert(namespace.name.clone(), (namespace, now));
        }
    }

    fn facts(&self, name: &str, now: Time) -> write::Facts {
        let used = self.used.get(name).filter(|(_, at)| now.since(*at) < USED_FOR);
        let right = self.clock_right.is_some_and(|at| now.since(at) < CLOCK_FOR);
        let others = self.position.succs.iter().map(|peer| peer.id).filter(|id| *id != self.me);
        write::Facts {
            me: self.me,
            size: self.position.size,
            known: self.namespace(name, now),
            used: used.map(|(bytes, _)| *bytes),
            clock: self.clock.unix_ms(now).filter(|_| !right),
            others: others.take(write::CLOCKS).collect(),
        }
    }

    fn on_changed(&mut self, key: Key, name: &[u8], cx: &mut Cx<'_, Self>) {
        let Some(record) = self.records.get(key, name) else { return };
        if name == item::OBJECT {
            self.clock.observe(record.version.counter, cx.now);
        } else if let Some(namespace) = Namespace::of(&record) {
            self.learn(namespace, cx.now);
        }
        self.tell_watchers(&record, cx);
    }

    fn on_request(&mut self, from: NodeId, call: CallId, request: Request, cx: &mut Cx<'_, Self>) {
        let response = match request {
            Request::Read { key } | Request::Watch { key } if !self.position.owns_class_of(key) => {
                Response::NotOwner
            }
            Request::Read { key } => self.read_here(key),
            Request::Watch { key } => {
                if self.watchers.add(key, from, cx.now) {
                    self.read_here(key)
                } else {
                    self.count("watchers_overflow");
                    Response::NotOwner
                }
            }
            Request::Add { address, content, context } => {
                return self.on_add(from, call, address, content, context, cx);
            }
            Request::List { namespace, prefix, after } => {
                self.list_here(&namespace, &prefix, &after)
            }
            Request::Clock { unix_ms } => {
                let mine = self.clock.unix_ms(cx.now);
                let ahead = mine.map_or(0, |mine| unix_ms.saturating_sub(mine));
                let too_far = self.clock.is_ahead(dugnad_kernel::hlc::stamp(unix_ms), cx.now);
                Response::Clock { ahead_ms: if too_far { ahead } else { 0 } }
            }
        };
        cx.send(from, Msg::Response { call, response });
    }

    fn read_here(&self, key: Key) -> Response {
        let store = self.records.read();
        let objects = store.under(key).filter(|record| item::is_object(&record.name));
        Response::Read { records: objects.cloned().collect() }
    }

    fn on_response(
        &mut self,
        from: NodeId,
        call: CallId,
        response: Response,
        cx: &mut Cx<'_, Self>,
    ) {
        if !self.answer_from(from, call, Reply::Response(Some(response)), cx) {
            self.count("late_response");
        }
    }
}
