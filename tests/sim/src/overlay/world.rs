//! The world: nodes, time, and the carrying out of effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dugnad_connectivity::route::Found;
use dugnad_connectivity::{Command, Connectivity, Event, Msg, Timer, overlay};
use dugnad_kernel::{Component, Cx, Duration, Effect, Id, Input, Key, NodeId, Peer, Time};

use super::check::{Checks, Seen};
use super::fault::{Gone, Held};
use super::measure::{Asked, Lookups, Traffic};
use super::queue::Queue;
use crate::net::{IdMap, Net, NetOptions, mix};

/// How closely the invariants are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// Only what lookups need to be judged.
    Off,
    /// What the event's node holds, after every event.
    Node,
    /// The whole ring, too, after every event that changed a ring.
    Every,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub net: NetOptions,
    pub watch: Watch,
    /// Prints every message to stderr; so does `SIM_VERBOSE=1`.
    pub verbose: bool,
}

impl Options {
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self {
            seed,
            net: NetOptions::default(),
            watch: Watch::Every,
            verbose: std::env::var_os("SIM_VERBOSE").is_some(),
        }
    }
}

/// One node and what the world knows of it.
pub struct Machine {
    pub id: NodeId,
    pub overlay: Option<Box<Connectivity>>,
    pub(super) rng: fastrand::Rng,
    pub inc: u32,
    /// Changes at every start and stop: timers of an earlier life are void.
    pub(super) life: u32,
    pub(super) gone: Gone,
    /// It ended because it left.
    pub left: bool,
    /// Nodes that are dialled at every start until one answers.
    pub seeds: Vec<u32>,
    pub sent: u64,
    pub bytes: u64,
    /// It handles nothing before; what comes waits in `deferred`.
    pub(super) busy_until: Time,
    /// What each event costs it, in microseconds.
    pub(super) slow_us: u64,
    pub(super) deferred: VecDeque<Todo>,
    pub(super) seen: Seen,
    /// Whether it is dialling seeds.
    pub(super) dialling: bool,
}

/// What a node is given.
pub(super) enum Todo {
    Message { from: u32, msg: Box<Msg> },
    Timer(Timer),
    Command(Box<Command>),
}

pub(super) enum Happening {
    Deliver {
        from: u32,
        to: u32,
        epoch: u64,
        msg: Box<Msg>,
    },
    /// A message of a node to itself, or one the links should not have passed (a replay).
    Direct {
        from: u32,
        to: u32,
        life: u32,
        msg: Box<Msg>,
    },
    Timer {
        node: u32,
        life: u32,
        timer: Timer,
    },
    LinkUp {
        a: u32,
        b: u32,
        epoch: u64,
    },
    LinkDown {
        node: u32,
        peer: NodeId,
        life: u32,
    },
    Redial {
        node: u32,
        life: u32,
        tries: u32,
    },
    Wake {
        node: u32,
        life: u32,
    },
    /// Data of this session may have been unacknowledged for too long.
    Break {
        from: u32,
        to: u32,
        epoch: u64,
    },
    /// A way is open again: what was held arrives.
    Release {
        from: u32,
        to: u32,
    },
}

pub struct World {
    pub now: Time,
    pub options: Options,
    pub(super) queue: Queue<Happening>,
    pub net: Net,
    pub nodes: Vec<Machine>,
    pub(super) index: IdMap<u32>,
    /// The workload's own choices.
    pub rng: fastrand::Rng,
    hash: u64,
    effects: Vec<Effect<Connectivity>>,
    pub traffic: Traffic,
    pub lookups: Lookups,
    next_call: u32,
    pub checks: Checks,
    /// Messages that wait for a cut way to open, in order.
    pub(super) held: BTreeMap<(u32, u32), Held>,
    /// Ways on which data arrives, but no acknowledgement comes back.
    pub(super) unacked: BTreeSet<(u32, u32)>,
    pub(super) recent: VecDeque<(u32, u32, Box<Msg>)>,
    pub delivered: u64,
    /// Messages to nodes that had left.
    pub to_gone: u64,
    /// Messages to peers whose address the sender does not know: lost.
    pub unknown: u64,
    /// Deaths declared of nodes that lived, by nodes that lived.
    pub false_deaths: u64,
    pub deaths: u64,
    /// Broadcasts: who got them, in which life.
    pub casts: BTreeMap<(NodeId, u32), Vec<(u32, u32)>>,
    /// Ended broadcasts with feedback: call, whether complete.
    pub feedbacks: Vec<(u32, bool)>,
    /// How long a world that was made whole took to be in order.
    pub settled_after: Duration,
    /// Counters of overlays that are gone.
    counters: BTreeMap<&'static str, u64>,
}

impl World {
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            now: Time(0),
            queue: Queue::default(),
            net: Net::new(options.net.clone(), options.seed),
            nodes: Vec::new(),
            index: IdMap::default(),
            rng: fastrand::Rng::with_seed(mix(options.seed, 1)),
            hash: options.seed,
            effects: Vec::new(),
            traffic: Traffic::default(),
            lookups: Lookups::default(),
            next_call: 0,
            checks: Checks::new(options.watch),
            held: BTreeMap::new(),
            unacked: BTreeSet::new(),
            recent: VecDeque::new(),
            delivered: 0,
            to_gone: 0,
            unknown: 0,
            false_deaths: 0,
            deaths: 0,
            casts: BTreeMap::new(),
            feedbacks: Vec::new(),
            settled_after: Duration::ZERO,
            counters: BTreeMap::new(),
            options,
        }
    }

    /// Hash of everything that happened so far: the same for the same arguments.
    #[must_use]
    pub fn trace(&self) -> String {
        format!("{:016x}", self.hash)
    }

    pub(super) fn note(&mut self, word: u64) {
        self.hash = mix(self.hash, word);
    }

    /// The id of the node with this number and (re)birth.
    fn id_of(&self, number: u32, birth: u32) -> NodeId {
        let seed = mix(mix(self.options.seed, 2), u64::from(number) << 32 | u64::from(birth));
        Id(fastrand::Rng::with_seed(seed).u128(..))
    }

    /// A new node, not started yet; `seeds` are dialled at every start.
    pub fn add(&mut self, seeds: &[u32]) -> u32 {
        let number = self.nodes.len() as u32;
        let id = self.id_of(number, 0);
        let seed = mix(mix(self.options.seed, 3), u64::from(number));
        self.index.insert(id, number);
        self.nodes.push(Machine {
            id,
            overlay: None,
            rng: fastrand::Rng::with_seed(seed),
            inc: 0,
            life: 0,
            gone: Gone::Closed,
            left: false,
            seeds: seeds.to_vec(),
            sent: 0,
            bytes: 0,
            busy_until: Time(0),
            slow_us: 0,
            deferred: VecDeque::new(),
            seen: Seen::default(),
            dialling: false,
        });
        number
    }

    /// A node that is gone makes room for a new one, with another id.
    pub fn replace(&mut self, number: u32, seeds: &[u32]) {
        let Some(machine) = self.nodes.get(number as usize) else { return };
        let (old, birth) = (machine.id, machine.life + 1);
        let id = self.id_of(number, birth);
        self.net.forget(old);
        self.index.remove(&old);
        self.index.insert(id, number);
        let machine = &mut self.nodes[number as usize];
        machine.id = id;
        machine.inc = 0;
        machine.seeds = seeds.to_vec();
    }

    #[must_use]
    pub fn id(&self, number: u32) -> NodeId {
        self.nodes[number as usize].id
    }

    #[must_use]
    pub fn overlay(&self, number: u32) -> Option<&Connectivity> {
        self.nodes.get(number as usize)?.overlay.as_deref()
    }

    #[must_use]
    pub fn number(&self, id: NodeId) -> Option<u32> {
        self.index.get(&id).copied()
    }

    /// Whether the node runs and is a member of a ring.
    #[must_use]
    pub fn is_inside(&self, number: u32) -> bool {
        self.overlay(number).is_some_and(|overlay| overlay.ring().is_member())
    }

    /// Numbers of the nodes that run.
    #[must_use]
    pub fn alive(&self) -> Vec<u32> {
        let all = 0..self.nodes.len() as u32;
        all.filter(|n| self.nodes[*n as usize].overlay.is_some()).collect()
    }

    /// As [`Self::alive`], by id.
    #[must_use]
    pub fn alive_by_id(&self) -> Vec<(NodeId, u32)> {
        let mut ids: Vec<_> = self.alive().into_iter().map(|n| (self.id(n), n)).collect();
        ids.sort_unstable();
        ids
    }

    /// A node that runs, chosen by the workload.
    pub fn some(&mut self) -> Option<u32> {
        let count = self.nodes.len();
        for _ in 0..64 {
            let number = self.rng.usize(0..count.max(1));
            if self.nodes.get(number).is_some_and(|m| m.overlay.is_some()) {
                return Some(number as u32);
            }
        }
        self.alive().first().copied()
    }

    /// A few members, through which a newcomer joins.
    pub fn ways_in(&mut self) -> Vec<u32> {
        let mut some: Vec<u32> = (0..12).filter_map(|_| self.some()).collect();
        some.retain(|number| self.is_inside(*number));
        some.dedup();
        some.truncate(3);
        some
    }

    pub(super) fn peer(&self, number: u32) -> Peer {
        let machine = &self.nodes[number as usize];
        Peer { id: machine.id, inc: machine.inc, addrs: addrs(machine.id) }
    }

    /// Starts a node without memory of an earlier life, with a higher incarnation.
    pub fn start(&mut self, number: u32) {
        let alone = self.nodes[number as usize].seeds.is_empty();
        let me = self.reborn(number);
        self.install(number, Connectivity::new(me));
        self.command(number, Command::Overlay(overlay::Command::Boot { alone }));
        let life = self.nodes[number as usize].life;
        self.queue.push(self.now, Happening::Redial { node: number, life, tries: 0 });
    }

    fn reborn(&mut self, number: u32) -> Peer {
        self.close_all(number);
        let machine = &mut self.nodes[number as usize];
        machine.life += 1;
        machine.inc += 1;
        machine.busy_until = self.now;
        machine.slow_us = 0;
        machine.seen = Seen::default();
        machine.left = false;
        machine.dialling = false;
        self.peer(number)
    }

    fn install(&mut self, number: u32, overlay: Connectivity) {
        self.nodes[number as usize].overlay = Some(Box::new(overlay));
        self.note(0x73_7461_7274 ^ u64::from(number));
    }

    /// A ring of `count` nodes that stands, as if all had joined long ago.
    pub fn plant(&mut self, count: u32) {
        self.plant_thinned(count, 100);
    }

    /// The same, but only this percentage of the table slots has a contact.
    pub fn plant_thinned(&mut self, count: u32, percent: u64) {
        let first = self.nodes.len() as u32;
        for _ in 0..count {
            self.add(&[]);
        }
        let numbers = first..first + count;
        for number in numbers.clone() {
            let seed = if number == first { first + 1 } else { first };
            self.nodes[number as usize].seeds = vec![seed % (first + count)];
        }
        let mut peers: Vec<(Peer, u32)> = numbers.map(|n| (self.reborn(n), n)).collect();
        peers.sort_unstable_by_key(|(peer, _)| peer.id);
        let at = |place: usize| peers[place % peers.len()].0.clone();
        let owner = |key: Key| at(peers.partition_point(|(peer, _)| peer.id < key));
        let reach = dugnad_connectivity::config::SUCCESSORS.min(peers.len() - 1);
        for (place, (me, number)) in peers.iter().enumerate() {
            let succs = (1..=reach).map(|step| at(place + step)).collect();
            let pred = at(place + peers.len() - 1);
            let kept = |key: Key| {
                let lot = mix(me.id.0 as u64, key.0 as u64 ^ (key.0 >> 64) as u64) % 100;
                if lot < percent { owner(key) } else { me.clone() }
            };
            let overlay = Connectivity::planted(me.clone(), pred, succs, kept);
            self.install(*number, overlay);
        }
        for (_, number) in &peers {
            self.command(*number, Command::Overlay(overlay::Command::Boot { alone: false }));
        }
    }

    /// A command of the layer above or of the driver.
    pub fn command(&mut self, number: u32, command: Command) {
        self.offer(number, Todo::Command(Box::new(command)));
    }

    /// Looks up `key` from a node; the answer is judged when it comes.
    pub fn lookup(&mut self, from: u32, key: Key) -> u32 {
        self.next_call += 1;
        let call = self.next_call;
        self.lookups.asked += 1;
        self.lookups.open.insert(call, Asked { from, key, at: self.now });
        self.command(from, Command::Overlay(overlay::Command::Lookup { call, key }));
        call
    }

    /// Broadcasts from a node.
    pub fn cast(&mut self, from: u32, feedback: bool) -> u32 {
        self.next_call += 1;
        let call = self.next_call;
        self.command(
            from,
            Command::Overlay(overlay::Command::Cast { call, body: vec![0; 16], feedback }),
        );
        call
    }

    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.checks.wrong().is_none() && self.queue.next().is_some_and(|at| at <= end) {
            self.step();
        }
        if self.checks.wrong().is_none() {
            self.now = end;
        }
    }

    /// Runs until `done` holds, looked at every `every`; false if `limit` or a violation came.
    pub fn run_until(
        &mut self,
        limit: Duration,
        every: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> bool {
        let end = self.now + limit;
        while self.now < end && self.checks.wrong().is_none() {
            if done(self) {
                return true;
            }
            self.run_for(every);
        }
        self.checks.wrong().is_none() && done(self)
    }

    /// Carries out the next happening.
    pub fn step(&mut self) -> bool {
        let Some((time, happening)) = self.queue.pop() else { return false };
        self.now = time;
        match happening {
            Happening::Deliver { from, to, epoch, msg } => self.deliver(from, to, epoch, msg),
            Happening::Direct { from, to, life, msg } => {
                if self.lives(to, life) {
                    self.offer(to, Todo::Message { from, msg });
                }
            }
            Happening::Timer { node, life, timer } => {
                if self.lives(node, life) {
                    self.offer(node, Todo::Timer(timer));
                }
            }
            Happening::LinkUp { a, b, epoch } => self.link_up(a, b, epoch),
            Happening::LinkDown { node, peer, life } => {
                // A newer session may stand already.
                if self.lives(node, life) && self.net.epoch(self.id(node), peer).is_none() {
                    self.command(node, Command::LinkDown(peer));
                    self.dial_again(node);
                }
            }
            Happening::Redial { node, life, tries } => self.redial(node, life, tries),
            Happening::Wake { node, life } => self.wake(node, life),
            Happening::Break { from, to, epoch } => self.break_session(from, to, epoch),
            Happening::Release { from, to } => self.release(from, to),
        }
        true
    }

    pub(super) fn lives(&self, number: u32, life: u32) -> bool {
        self.nodes.get(number as usize).is_some_and(|m| m.life == life && m.overlay.is_some())
    }

    /// Gives a node something to handle, now or when it has time.
    pub(super) fn offer(&mut self, number: u32, todo: Todo) {
        let machine = &mut self.nodes[number as usize];
        if machine.overlay.is_none() {
            return;
        }
        if self.now < machine.busy_until || !machine.deferred.is_empty() {
            if machine.deferred.is_empty() {
                let wake = Happening::Wake { node: number, life: machine.life };
                self.queue.push(machine.busy_until, wake);
            }
            machine.deferred.push_back(todo);
            return;
        }
        self.handle(number, todo);
    }

    fn wake(&mut self, number: u32, life: u32) {
        while self.lives(number, life) {
            let machine = &mut self.nodes[number as usize];
            if self.now < machine.busy_until {
                let at = machine.busy_until;
                self.queue.push(at, Happening::Wake { node: number, life });
                return;
            }
            let Some(todo) = machine.deferred.pop_front() else { return };
            self.handle(number, todo);
        }
    }

    fn handle(&mut self, number: u32, todo: Todo) {
        let machine = &mut self.nodes[number as usize];
        if machine.slow_us > 0 {
            machine.busy_until = self.now + Duration::from_micros(machine.slow_us);
        }
        let input = match todo {
            Todo::Message { from, msg } => {
                self.delivered += 1;
                self.checks.arrived(&msg);
                let from = self.id(from);
                if self.options.verbose {
                    self.say(number, &format!("<- {} {msg:?}", from.short()));
                }
                Input::Message { from, msg: *msg }
            }
            Todo::Timer(timer) => Input::Timer(timer),
            Todo::Command(command) => {
                if self.options.verbose {
                    self.say(number, &format!("{command:?}"));
                }
                Input::Command(*command)
            }
        };
        self.input(number, input);
        self.note(u64::from(number));
        self.note(self.now.0);
        self.touched(number);
    }

    pub(super) fn say(&self, number: u32, what: &str) {
        let name = self.id(number).short();
        eprintln!("{:9.3} {number} {name} {what}", self.now.0 as f64 / 1e6);
    }

    fn input(&mut self, number: u32, input: Input<Connectivity>) {
        let machine = &mut self.nodes[number as usize];
        let Some(overlay) = machine.overlay.as_mut() else { return };
        let mut effects = std::mem::take(&mut self.effects);
        overlay.handle(input, &mut Cx::new(self.now, &mut machine.rng, &mut effects));
        let life = machine.life;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, msg } => self.send(number, to, msg),
                Effect::After { delay, timer } => {
                    let timer = Happening::Timer { node: number, life, timer };
                    self.queue.push(self.now + delay, timer);
                }
                Effect::Emit(event) => self.event(number, event),
            }
        }
        self.effects = effects;
    }

    fn event(&mut self, number: u32, event: Event) {
        if self.options.verbose && !matches!(event, Event::Overlay(overlay::Event::Contact(_))) {
            self.say(number, &format!("{event:?}"));
        }
        match event {
            Event::Overlay(overlay::Event::Found { call, found }) => {
                self.found(call, found.as_ref())
            }
            Event::Overlay(overlay::Event::Cast { id, feedback, .. }) => {
                let life = self.nodes[number as usize].life;
                let reached = self.casts.entry((id.origin, id.number)).or_default();
                if reached.contains(&(number, life)) {
                    let name = self.nodes[number as usize].id.short();
                    self.checks.is_wrong(self.now, format!("I6: {name} got {id:?} twice"));
                } else {
                    reached.push((number, life));
                }
                if feedback {
                    // In the same step, before anything else.
                    self.input(
                        number,
                        Input::Command(Command::Overlay(overlay::Command::AnswerCast {
                            id,
                            part: None,
                        })),
                    );
                }
            }
            Event::Overlay(overlay::Event::Feedback { call, feedback }) => {
                self.feedbacks.push((call, feedback.complete))
            }
            Event::Dead(id) => {
                self.deaths += 1;
                let live = self.index.get(&id).is_some_and(|n| self.overlay(*n).is_some());
                if live {
                    self.false_deaths += 1;
                    self.checks.disturbed(self.now);
                }
            }
            Event::Overlay(overlay::Event::Left) => self.ended(number),
            _ => {}
        }
    }

    fn found(&mut self, call: u32, found: Option<&Found>) {
        let Some(asked) = self.lookups.open.remove(&call) else { return };
        let Some(found) = found else {
            self.lookups.failed += 1;
            return;
        };
        let right = self.checks.owned(found.owner.id, asked.key, asked.at);
        self.lookups.unsure += u64::from(!found.certain);
        if right {
            self.lookups.right += 1;
            self.lookups.hop(found.hops);
            let took = self.now.since(asked.at).as_millis();
            self.lookups.took_ms.push(u32::try_from(took).unwrap_or(u32::MAX));
        } else if found.certain {
            self.lookups.wrong_certain += 1;
            if self.options.verbose {
                self.say(asked.from, &format!("WRONG {:?} {found:?}", asked.key));
            }
        } else {
            self.lookups.wrong_unsure += 1;
        }
    }

    /// The counters of all overlays that ever ran, summed.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.counters.clone();
        for overlay in self.nodes.iter().filter_map(|m| m.overlay.as_deref()) {
            for (name, count) in overlay.counters() {
                *all.entry(name).or_default() += count;
            }
        }
        all
    }

    /// What the overlays counted, and what the world saw of rare things.
    #[must_use]
    pub fn rare(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.counters();
        all.extend(self.checks.sometimes.iter().map(|(name, count)| (*name, *count)));
        all.insert("unsure_answer", self.lookups.unsure);
        all.insert("false_death", self.false_deaths);
        all
    }

    /// Keeps what a node counted before it goes.
    pub(super) fn harvest(&mut self, number: u32) {
        let Some(overlay) = self.nodes[number as usize].overlay.take() else { return };
        for (name, count) in overlay.counters() {
            *self.counters.entry(name).or_default() += count;
        }
        let before = self.lookups.open.len();
        self.lookups.open.retain(|_, asked| asked.from != number);
        self.lookups.abandoned += (before - self.lookups.open.len()) as u64;
    }
}

/// Addresses do not matter here, but records carry them, so that messages have their real size.
fn addrs(id: NodeId) -> dugnad_kernel::peer::Addrs {
    let octets = (id.0 >> 96).to_be_bytes();
    let addr = std::net::Ipv4Addr::new(10, octets[13], octets[14], octets[15]);
    std::iter::once(std::net::SocketAddr::from((addr, 7407))).collect()
}
