//! A stage for transcripts: overlays that ship, named by letters in the order of the ring, on
//! links with a clock. A script says who comes, goes, crashes or sleeps, and when; what follows is
//! kept as text. Everything random depends on the node and the instant only, so that a change of
//! one step does not move all that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem;

use dugnad_connectivity::ring::{self, Ring, Status};
use dugnad_connectivity::{Command, Connectivity, Event, Msg, Timer, overlay};
use dugnad_kernel::{Arc, Component, Cx, Duration, Effect, Input, NodeId, Peer, Time};
use fastrand::Rng;

use crate::check;
use crate::words::{self, Ops, name, node};

/// One way, unless a script says otherwise.
const LATENCY: Duration = Duration::from_millis(10);

enum Happening {
    Message { from: NodeId, to: NodeId, msg: Msg },
    Timer { node: NodeId, timer: Timer },
    Link { node: NodeId, peer: NodeId, up: bool },
}

impl Happening {
    const fn at(&self) -> NodeId {
        match self {
            Self::Message { to, .. } => *to,
            Self::Timer { node, .. } | Self::Link { node, .. } => *node,
        }
    }
}

/// What is told besides what changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    Nothing,
    /// All but what goes on in a quiet ring, too.
    Story,
    /// Those, and questions between neighbours.
    Stabilization,
    /// Story, and who asks whom whether a peer lives.
    Detection,
}

pub struct Stage {
    now: Time,
    /// When the story began.
    zero: Time,
    sequence: u64,
    nodes: BTreeMap<NodeId, Connectivity>,
    queue: BTreeMap<(Time, u64), Happening>,
    asleep: BTreeMap<NodeId, Vec<Happening>>,
    /// The smaller id first.
    sessions: BTreeSet<(NodeId, NodeId)>,
    slow: BTreeMap<(NodeId, NodeId), Duration>,
    /// When the last message of a link arrives: the next does not overtake it.
    last: BTreeMap<(NodeId, NodeId), Time>,
    /// Only nodes on the same side of a cut reach each other.
    cut: BTreeSet<NodeId>,
    /// Nobody failed yet, so every id has one owner.
    calm: bool,
    ops: Ops,
    tell: Tell,
    text: String,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Stage {
    /// A ring of these nodes that has been quiet for a while, with successor lists of `length`.
    #[must_use]
    pub fn ring(letters: &str, length: usize) -> Self {
        let mut stage = Self {
            now: Time(0),
            zero: Time(0),
            sequence: 0,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            asleep: BTreeMap::new(),
            sessions: BTreeSet::new(),
            slow: BTreeMap::new(),
            last: BTreeMap::new(),
            cut: BTreeSet::new(),
            calm: true,
            ops: Ops::default(),
            tell: Tell::Nothing,
            text: String::new(),
        };
        let mut first = None;
        for letter in letters.chars() {
            stage.enter(letter, first, length);
            first = first.or(Some(letter));
            stage.run(5_000);
        }
        stage.run(300_000);
        stage.zero = stage.now;
        stage.ops = Ops::default();
        let _ = writeln!(stage.text, "the ring:");
        stage.list();
        stage
    }

    /// What is told from now on.
    pub fn tell(&mut self, tell: Tell) {
        self.tell = tell;
    }

    fn enter(&mut self, letter: char, via: Option<char>, length: usize) {
        let id = node(letter);
        let ring = Ring::with_length(Peer::new(id), length);
        self.nodes.insert(id, Connectivity::with_ring(ring));
        self.step(
            id,
            Input::Command(Command::Overlay(overlay::Command::Boot { alone: via.is_none() })),
        );
        if let Some(via) = via {
            self.dial(id, node(via));
        }
    }

    /// A line of the narrator.
    pub fn say(&mut self, what: &str) {
        let _ = writeln!(self.text, "\n-- {what}");
    }

    /// A new node that knows `via`.
    pub fn starts(&mut self, letter: char, via: char) {
        self.say(&format!("{letter} starts and knows {via}"));
        self.enter(letter, Some(via), dugnad_connectivity::config::SUCCESSORS);
    }

    pub fn command(&mut self, letter: char, what: &str, command: Command) {
        self.say(&format!("{letter} {what}"));
        self.step(node(letter), Input::Command(command));
    }

    /// Its process is gone; whoever has a session with it sees that end.
    pub fn crashes(&mut self, letter: char) {
        self.say(&format!("{letter} crashes"));
        self.calm = false;
        self.ends(node(letter));
    }

    fn ends(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.queue.retain(|_, what| what.at() != id || matches!(what, Happening::Message { .. }));
        let ends = |(a, b): &(NodeId, NodeId)| *a == id || *b == id;
        for (a, b) in self.end_sessions(ends) {
            let peer = if a == id { b } else { a };
            self.later(id, peer, Happening::Link { node: peer, peer: id, up: false });
        }
    }

    fn end_sessions(
        &mut self,
        which: impl Fn(&(NodeId, NodeId)) -> bool,
    ) -> BTreeSet<(NodeId, NodeId)> {
        let (ended, left) = mem::take(&mut self.sessions).into_iter().partition(which);
        self.sessions = left;
        ended
    }

    /// From now on what comes to it waits; its sessions stay.
    pub fn sleeps(&mut self, letter: char) {
        self.say(&format!("{letter} sleeps"));
        self.calm = false;
        self.asleep.insert(node(letter), Vec::new());
    }

    pub fn wakes(&mut self, letter: char) {
        self.say(&format!("{letter} wakes"));
        for what in self.asleep.remove(&node(letter)).into_iter().flatten() {
            self.push(self.now, what);
        }
    }

    /// What `from` says to `to` takes so long from now on.
    pub fn slow(&mut self, from: char, to: char, millis: u64) {
        self.slow.insert((node(from), node(to)), Duration::from_millis(millis));
    }

    /// These and the others do not reach each other from now on.
    pub fn cut(&mut self, letters: &str) {
        self.say(&format!("the cable between {letters} and the others is pulled"));
        self.calm = false;
        self.cut = letters.chars().map(node).collect();
        let cut = mem::take(&mut self.cut);
        let apart = |a: &NodeId, b: &NodeId| cut.contains(a) != cut.contains(b);
        self.queue.retain(|_, what| match what {
            Happening::Message { from, to, .. } => !apart(from, to),
            Happening::Timer { .. } | Happening::Link { .. } => true,
        });
        for (a, b) in self.end_sessions(|(a, b)| apart(a, b)) {
            self.later(a, b, Happening::Link { node: b, peer: a, up: false });
            self.later(b, a, Happening::Link { node: a, peer: b, up: false });
        }
        self.cut = cut;
    }

    pub fn heal(&mut self) {
        self.say("the cable is plugged in again");
        self.cut.clear();
    }

    fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        self.nodes.contains_key(&to) && self.cut.contains(&from) == self.cut.contains(&to)
    }

    fn push(&mut self, at: Time, what: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), what);
    }

    /// On the link from `from` to `to`, behind what is on it.
    fn later(&mut self, from: NodeId, to: NodeId, what: Happening) {
        let latency = self.slow.get(&(from, to)).copied().unwrap_or(LATENCY);
        let last = self.last.entry((from, to)).or_default();
        *last = (*last).max(self.now + latency);
        let at = *last;
        self.push(at, what);
    }

    fn dial(&mut self, from: NodeId, to: NodeId) {
        if !self.reaches(from, to) {
            self.push(self.now + LATENCY, Happening::Link { node: from, peer: to, up: false });
        } else if self.sessions.insert(pair(from, to)) {
            self.later(from, to, Happening::Link { node: to, peer: from, up: true });
            self.later(to, from, Happening::Link { node: from, peer: to, up: true });
        }
    }

    /// Lets so many milliseconds pass.
    pub fn run(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.happen();
        }
        self.now = end;
    }

    /// Runs until `from` has sent `to` a message of this kind.
    ///
    /// # Panics
    /// If that takes longer than ten seconds.
    pub fn until_sent(&mut self, from: char, to: char, kind: &str) {
        let end = self.now + Duration::from_secs(10);
        let is_it = |what: &Happening| match what {
            Happening::Message { from: f, to: t, msg } => {
                (*f, *t) == (node(from), node(to)) && words::kind(msg) == kind
            }
            Happening::Timer { .. } | Happening::Link { .. } => false,
        };
        while !self.queue.values().any(is_it) {
            assert!(self.now < end, "{from} sent {to} no {kind}\n{}", self.text);
            self.happen();
        }
    }

    fn happen(&mut self) {
        let Some(((at, _), what)) = self.queue.pop_first() else { return };
        self.now = self.now.max(at);
        if let Some(waiting) = self.asleep.get_mut(&what.at()) {
            waiting.push(what);
            return;
        }
        let node = what.at();
        let input = match what {
            Happening::Message { from, to, msg } => return self.deliver(from, to, msg),
            Happening::Timer { timer, .. } => Input::Timer(timer),
            Happening::Link { peer, up: true, .. } => {
                Input::Command(Command::LinkUp(Peer::new(peer)))
            }
            Happening::Link { peer, up: false, .. } => Input::Command(Command::LinkDown(peer)),
        };
        if self.nodes.contains_key(&node) {
            self.step(node, input);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        let told = self.is_told(&msg);
        let before = self.text.len();
        let line = words::message(&msg, &mut self.ops);
        let lost = if self.nodes.contains_key(&to) { "" } else { "  (nobody is there)" };
        self.line(&format!("{} -> {}  {line}{lost}", name(from), name(to)));
        let after = self.text.len();
        if self.nodes.contains_key(&to) {
            self.step(to, Input::Message { from, msg });
        }
        if !told && self.text.len() == after {
            self.text.truncate(before);
        }
    }

    /// Whether a message is part of the story even where it changes nothing.
    fn is_told(&self, msg: &Msg) -> bool {
        let kind = words::kind(msg);
        match (self.tell, kind.as_str()) {
            (Tell::Nothing, _) | (_, "Ack" | "Probe" | "ProbeRes") => false,
            (Tell::Stabilization, _) if !matches!(msg, Msg::Detect(_)) => true,
            (_, "Query" | "QueryRes" | "Moved" | "Notify" | "ListChanged") => false,
            (tell, _) => tell == Tell::Detection || !matches!(msg, Msg::Detect(_)),
        }
    }

    fn line(&mut self, what: &str) {
        let millis = self.now.since(self.zero).as_millis();
        let _ = writeln!(self.text, "{:>4}.{:03}  {what}", millis / 1_000, millis % 1_000);
    }

    fn step(&mut self, id: NodeId, input: Input<Connectivity>) {
        let before = self.state(id);
        let mut effects = Vec::new();
        let mut inputs = vec![input];
        let (mut told, mut left) = (Vec::new(), false);
        let seed =
            self.now.since(self.zero).as_micros() as u64 ^ u64::from(check::number(id)) << 48;
        let mut rng = Rng::with_seed(seed);
        while let Some(input) = inputs.pop() {
            let mut cx = Cx::new(self.now, &mut rng, &mut effects);
            if let Some(overlay) = self.nodes.get_mut(&id) {
                overlay.handle(input, &mut cx);
            }
            for effect in mem::take(&mut effects) {
                match effect {
                    Effect::Send { to, msg } => self.send(id, to, msg),
                    Effect::After { delay, timer } => {
                        self.push(self.now + delay, Happening::Timer { node: id, timer });
                    }
                    Effect::Emit(event) => {
                        left |= event == Event::Overlay(overlay::Event::Left);
                        told.extend(words::event(&event));
                        inputs.extend(answer(id, &event));
                    }
                }
            }
        }
        let after = self.state(id);
        let news = before.iter().zip(&after).filter(|(old, new)| old != new);
        let mut news: Vec<String> = news.map(|(_, new)| new.clone()).collect();
        told.append(&mut news);
        if self.tell != Tell::Nothing && !told.is_empty() {
            self.line(&format!("     {}: {}", name(id), told.join("; ")));
        }
        if left {
            self.ends(id);
        }
        if self.calm {
            let wrong = check::partition(self.claims().into_iter());
            assert_eq!(wrong, Ok(()), "{}", self.text);
        }
    }

    fn state(&mut self, id: NodeId) -> Vec<String> {
        let Self { nodes, ops, .. } = self;
        nodes.get(&id).map(|overlay| words::state(overlay.ring(), ops)).unwrap_or_default()
    }

    fn send(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        if from != to {
            self.dial(from, to);
        }
        if self.reaches(from, to) {
            self.later(from, to, Happening::Message { from, to, msg });
        }
    }

    /// Of all nodes, and of points on their way.
    fn claims(&self) -> Vec<Arc> {
        let point = |what: &Happening| match what {
            Happening::Message {
                to,
                msg: Msg::Overlay(overlay::Msg::Ring(ring::Msg::JoinPoint { pred, .. })),
                ..
            } => Some(Arc::new(pred.id, *to)),
            Happening::Message {
                from,
                msg: Msg::Overlay(overlay::Msg::Ring(ring::Msg::LeavePoint { pred, .. })),
                ..
            } => Some(Arc::new(pred.id, *from)),
            _ => None,
        };
        let nodes = self.nodes.values().filter_map(|overlay| overlay.ring().claim());
        nodes.chain(self.queue.values().filter_map(point)).collect()
    }

    /// Who owns what, and who is next.
    pub fn list(&mut self) {
        for (id, overlay) in &self.nodes {
            if !overlay.ring().is_member() {
                continue;
            }
            let state = words::state(overlay.ring(), &mut self.ops);
            let _ = writeln!(self.text, "          {}: {}", name(*id), state[1..3].join("; "));
        }
    }

    /// Lets everything end, and demands that the ring is as it should be.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn end(mut self) -> String {
        self.tell = Tell::Nothing;
        self.run(120_000);
        self.say("in the end:");
        self.list();
        let gone = |overlay: &Connectivity| overlay.ring().status() == Status::Gone;
        let live = self.nodes.iter().filter(|(_, overlay)| !gone(overlay));
        let rings = live.map(|(id, overlay)| (*id, overlay.ring())).collect();
        assert_eq!(check::ideal(&rings), Ok(()), "{}", self.text);
        self.text
    }
}

/// The layer above answers in the same step.
fn answer(me: NodeId, event: &Event) -> Option<Input<Connectivity>> {
    let (Event::Overlay(overlay::Event::Cast { id, feedback: true, .. })
    | Event::Overlay(overlay::Event::Bulk { id, feedback: true, .. })) = event
    else {
        return None;
    };
    let part = Some(vec![check::number(me)]);
    Some(Input::Command(Command::Overlay(overlay::Command::AnswerCast { id: *id, part })))
}
