//! The world: nodes, time, and the carrying out of effects.

mod clock;
mod crash;
mod turns;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{Component, Cx, Duration, Effect, Hash, Id, Input, NodeId, Peer, Time, wire};
use dugnad_node::{
    Address, Answer, AskId, Command, Config, Event, Happened, Msg, Node, ObjectAnswer, Question,
    Timer, Told,
};
use dugnad_resource::describe::{Labels, Profile};
use dugnad_resource::execute::{Order, ReplicaId, Report, Run};
use dugnad_resource::spec::{Arch, Tree};

use crate::host::{Disk, Processes};
use crate::net::{GIVE_UP, Listener, Net, NetOptions, Sent};
use crate::silence::silent;
use crate::story::Story;

pub use clock::BIRTH_MS;
pub use crash::Crash;

/// More than this is a storm of messages, not a plan.
const QUEUE_MAX: usize = 2_000_000;

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub net: NetOptions,
    /// Every message is encoded and decoded; off, only its size is taken on trust.
    pub encode: bool,
}

impl Options {
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self { seed, net: NetOptions::default(), encode: true }
    }
}

pub struct Machine {
    pub name: String,
    pub node: Option<Node>,
    pub disk: Disk,
    pub processes: Processes,
    rng: fastrand::Rng,
    inc: u32,
    /// Changes at every start and stop: timers and answers of an earlier life are void.
    life: u64,
    home: u32,
    /// What its owner says of it.
    pub labels: Labels,
    ceilings: Ceilings,
    seeds: Vec<NodeId>,
    pub sent: u64,
    pub bytes: u64,
    /// Peers whose address it was told.
    book: BTreeSet<NodeId>,
    /// Messages to peers whose address it never learned: lost.
    pub unknown: u64,
    pub happened: Vec<(Time, Happened)>,
    /// Messages of groups, in order: the group, from whom, and what.
    pub heard: Vec<(String, NodeId, Vec<u8>)>,
    /// Changes of objects it watches, in order.
    pub changes: Vec<(Address, ObjectAnswer)>,
    /// Events it subscribed to, in order, with the subscription.
    pub told: Vec<(u64, Told)>,
    /// Events it was never told, because they were dropped before.
    pub lost: u64,
    /// Milliseconds its clock is ahead of the right time; `None` if it was never set.
    clock: Option<i64>,
    pub left: bool,
    pub handed_over: bool,
    /// On top of what a sync takes anyway.
    slow_sync: Duration,
    /// When the last order is carried out: one after the other.
    last_order: Time,
}

enum Happening {
    Deliver { from: NodeId, to: NodeId, epoch: u64, msg: Packet },
    Timer { node: NodeId, life: u64, timer: Timer },
    Command { node: NodeId, life: u64, command: Box<Command> },
    LinkUp { a: NodeId, b: NodeId, epoch: u64 },
    LinkDown { node: NodeId, peer: NodeId, epoch: Option<u64> },
    Synced { node: NodeId, life: u64, token: u64, writes: Vec<(Vec<u8>, Option<Vec<u8>>)> },
    Redial { node: NodeId, life: u64, tries: u32 },
    Host { node: NodeId, life: u64, order: Box<Order> },
}

enum Packet {
    Bytes(Vec<u8>),
    Value(Box<Msg>),
}

struct Queued(Time, u64, Happening);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    pub now: Time,
    options: Options,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    pub net: Net,
    pub machines: BTreeMap<NodeId, Machine>,
    /// The world's own choices (which node, when).
    pub rng: fastrand::Rng,
    hash: blake3::Hasher,
    pub answers: BTreeMap<AskId, Answer>,
    next_ask: AskId,
    pub delivered: u64,
    /// Messages sent, by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Prints every message and order as it happens.
    pub verbose: bool,
    pub(crate) story: Option<Story>,
    /// Whether the community must fall silent when the scenario is over.
    pub ends_silent: bool,
    /// Packages whose programs end at once.
    pub broken: BTreeSet<Hash>,
    /// Programs every machine has.
    pub programs: Vec<u32>,
    /// Replicas that were started, in order: when, where, which.
    pub starts: Vec<(Time, NodeId, ReplicaId)>,
    /// Replicas that wait for another of their service to end.
    waiting: Vec<(NodeId, Run)>,
    /// Packages that exist somewhere, whoever asks.
    effects: Vec<Effect<Node>>,
}

impl World {
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            now: Time(0),
            queue: BinaryHeap::new(),
            sequence: 0,
            net: Net::new(options.net.clone(), options.seed),
            machines: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(options.seed),
            hash: blake3::Hasher::new(),
            answers: BTreeMap::new(),
            next_ask: 0,
            delivered: 0,
            kinds: BTreeMap::new(),
            verbose: false,
            story: None,
            ends_silent: true,
            broken: BTreeSet::new(),
            programs: Vec::new(),
            starts: Vec::new(),
            waiting: Vec::new(),
            effects: Vec::new(),
            options,
        }
    }

    /// Hash of everything that happened so far.
    #[must_use]
    pub fn trace(&self) -> String {
        self.hash.finalize().to_hex()[..16].to_string()
    }

    /// A new machine; `seeds` are dialled at every start. It is not started yet.
    pub fn add(&mut self, seeds: &[NodeId]) -> NodeId {
        let number = self.machines.len();
        let id = Id(fastrand::Rng::with_seed(self.options.seed ^ (number as u64) << 20).u128(..));
        let amounts = Amounts { memory: 512 << 20, cpu: 2_000, disk: 4 << 30, processes: 512 };
        let machine = Machine {
            name: format!("n{number}"),
            node: None,
            disk: Disk::default(),
            processes: Processes::default(),
            rng: fastrand::Rng::with_seed(self.options.seed.wrapping_mul(31) + number as u64),
            inc: 0,
            life: 0,
            home: u32::try_from(number / 2).unwrap_or(0),
            labels: Labels::default(),
            ceilings: Ceilings { amounts, upload: None },
            seeds: seeds.to_vec(),
            sent: 0,
            bytes: 0,
            book: BTreeSet::new(),
            unknown: 0,
            happened: Vec::new(),
            heard: Vec::new(),
            left: false,
            handed_over: false,
            changes: Vec::new(),
            told: Vec::new(),
            lost: 0,
            clock: Some(0),
            slow_sync: Duration::ZERO,
            last_order: Time(0),
        };
        self.machines.insert(id, machine);
        id
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.machines.keys().copied().collect()
    }

    pub fn alive(&self) -> Vec<NodeId> {
        self.machines.iter().filter(|(_, m)| m.node.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.machines.get(&id)?.node.as_ref()
    }

    /// Starts the agent of a machine from what its disk holds.
    pub fn start(&mut self, id: NodeId) {
        // What stood before a power cut means nothing to the new process, and it says so.
        self.close_all(id);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.life += 1;
        machine.inc += 1;
        machine.left = false;
        machine.book.clear();
        let me = Peer { id, inc: machine.inc, addrs: heapless_addr(id) };
        let mut profile = Profile::plain(&machine.name, Arch::X86_64, machine.home);
        profile.labels = machine.labels.clone();
        let programs = self.programs.clone();
        let config = Config { me, profile, ceilings: machine.ceilings, programs };
        machine.node = Some(Node::new(config));
        let records = machine.disk.durable.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let trees = machine.disk.trees.iter().copied().collect();
        let alone = machine.seeds.is_empty() && machine.inc == 1;
        let life = machine.life;
        self.tell_clock(id);
        self.input(id, Input::Command(Command::Boot { records, trees, alone }));
        self.at(self.now, Happening::Redial { node: id, life, tries: 0 });
    }

    pub fn ask(&mut self, id: NodeId, question: impl Into<Question>) -> AskId {
        self.next_ask += 1;
        let ask = self.next_ask;
        self.input(id, Input::Command(Command::Ask(ask, question.into())));
        ask
    }

    pub fn command(&mut self, id: NodeId, command: Command) {
        self.input(id, Input::Command(command));
    }

    /// The machine has this package (somebody put it there).
    pub fn give_tree(&mut self, id: NodeId, tree: Tree) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.disk.trees.insert(tree);
        }
        self.input(id, Input::Command(Command::Host(Report::Kept { tree })));
    }

    /// Cuts the network into groups; sessions across break when the kernel gives up.
    pub fn partition(&mut self, groups: BTreeMap<NodeId, u32>) {
        self.net.partition(groups);
        let ids = self.ids();
        for (i, a) in ids.iter().enumerate() {
            for b in &ids[i + 1..] {
                if let (false, Some(epoch)) = (self.net.reach(*a, *b), self.net.epoch(*a, *b)) {
                    let (time, epoch) = (self.now + GIVE_UP, Some(epoch));
                    self.at(time, Happening::LinkDown { node: *a, peer: *b, epoch });
                    self.at(time, Happening::LinkDown { node: *b, peer: *a, epoch });
                }
            }
        }
    }

    pub fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.queue.peek().is_some_and(|next| next.0.0 <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until `done` holds, looked at every `every`; false if `limit` came first.
    pub fn run_until(
        &mut self,
        limit: Duration,
        every: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run_for(every);
        }
        done(self)
    }

    /// Carries out the next happening.
    pub fn step(&mut self) -> bool {
        let Some(Reverse(Queued(time, _, happening))) = self.queue.pop() else { return false };
        self.now = time;
        match happening {
            Happening::Deliver { from, to, epoch, msg } => self.deliver(from, to, epoch, msg),
            Happening::Timer { node, life, timer } => {
                if self.lives(node, life) {
                    self.input(node, Input::Timer(timer));
                }
            }
            Happening::Command { node, life, command } => {
                if self.lives(node, life) && self.still_true(node, &command) {
                    self.input(node, Input::Command(*command));
                }
            }
            Happening::LinkUp { a, b, epoch } => self.link_up(a, b, epoch),
            Happening::LinkDown { node, peer, epoch } => self.link_down(node, peer, epoch),
            Happening::Synced { node, life, token, writes } => {
                if self.lives(node, life) {
                    if let Some(machine) = self.machines.get_mut(&node) {
                        machine.disk.apply(writes);
                    }
                    self.input(node, Input::Command(Command::Persisted(token)));
                }
            }
            Happening::Redial { node, life, tries } => self.redial(node, life, tries),
            Happening::Host { node, life, order } => {
                if self.lives(node, life) {
                    self.carry_out(node, *order);
                }
            }
        }
        true
    }

    /// A service that was stopped meanwhile does not get ready.
    fn still_true(&self, node: NodeId, command: &Command) -> bool {
        let running = self.machines.get(&node).map(|m| &m.processes.running);
        match command {
            Command::Host(Report::Started { id } | Report::Ready { id }) => {
                running.is_some_and(|running| running.contains_key(id))
            }
            _ => true,
        }
    }

    fn lives(&self, node: NodeId, life: u64) -> bool {
        self.machines.get(&node).is_some_and(|m| m.life == life && m.node.is_some())
    }

    fn at(&mut self, time: Time, happening: Happening) {
        self.sequence += 1;
        assert!(self.queue.len() < QUEUE_MAX, "a storm: {QUEUE_MAX} happenings are planned");
        self.queue.push(Reverse(Queued(time, self.sequence, happening)));
    }

    fn note(&mut self, what: &[u8], node: NodeId, more: &[u8]) {
        if self.verbose && what != b"msg" {
            let (what, more) = (String::from_utf8_lossy(what), String::from_utf8_lossy(more));
            eprintln!("{:9.3} {} {what} {more}", self.now.0 as f64 / 1e6, node.short());
        }
        self.hash.update(&self.now.0.to_le_bytes());
        self.hash.update(what);
        self.hash.update(&node.0.to_le_bytes());
        self.hash.update(more);
    }

    fn input(&mut self, id: NodeId, input: Input<Node>) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(node) = machine.node.as_mut() else { return };
        let mut effects = std::mem::take(&mut self.effects);
        node.handle(input, &mut Cx::new(self.now, &mut machine.rng, &mut effects));
        let life = machine.life;
        for effect in effects.drain(..) {
            self.effect(id, life, effect);
        }
        self.effects = effects;
    }

    fn effect(&mut self, id: NodeId, life: u64, effect: Effect<Node>) {
        match effect {
            Effect::Send { to, msg } => self.send(id, to, msg),
            Effect::After { delay, timer } => {
                self.at(self.now + delay, Happening::Timer { node: id, life, timer });
            }
            Effect::Emit(event) => self.event(id, life, event),
        }
    }

    fn event(&mut self, id: NodeId, life: u64, event: Event) {
        match event {
            Event::Persist { token, writes } => {
                let slow = self.machines.get(&id).map_or(Duration::ZERO, |m| m.slow_sync);
                let sync = Duration::from_micros(self.rng.u64(500..8_000)) + slow;
                let synced = Happening::Synced { node: id, life, token, writes };
                self.at(self.now + sync, synced);
            }
            Event::Host(order) => {
                let delay = Duration::from_millis(self.rng.u64(1..20));
                self.note(b"order", id, format!("{order:?}").as_bytes());
                self.tell_order(id, &order);
                let mut time = self.now + delay;
                if let Some(machine) = self.machines.get_mut(&id) {
                    time = time.max(machine.last_order + Duration::from_micros(1));
                    machine.last_order = time;
                }
                let order = Box::new(order);
                self.at(time, Happening::Host { node: id, life, order });
            }
            Event::Answer(ask, answer) => {
                self.answers.insert(ask, answer);
            }
            Event::Happened(happened) => {
                let now = self.now;
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.happened.push((now, happened));
                }
            }
            Event::Left => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.left = true;
                }
            }
            Event::Contact(peer) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.book.insert(peer.id);
                }
            }
            Event::Ports(_) => {}
            Event::ObjectChanged { address, answer } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.changes.push((address, answer));
                }
            }
            Event::Told { sub, told } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.told.push((sub, told));
                }
            }
            Event::Lost { count, .. } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.lost += count;
                }
            }
            Event::HandedOver => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.handed_over = true;
                }
            }
            Event::GroupMessage { group, from, body, .. } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.heard.push((group, from, body));
                }
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        let kind = msg.kind();
        self.tell_message(from, to, &msg);
        let (bytes, packet) = match wire::encode(&msg) {
            Ok(frame) if self.options.encode => {
                (frame.len(), Packet::Bytes(frame[wire::HEADER..].to_vec()))
            }
            Ok(frame) => (frame.len(), Packet::Value(Box::new(msg))),
            Err(too_large) => panic!("{} sent {too_large}: {msg:?}", from.short()),
        };
        if let Some(machine) = self.machines.get_mut(&from) {
            if !machine.book.contains(&to) {
                machine.unknown += 1;
                return;
            }
            machine.sent += 1;
            *self.kinds.entry(kind).or_default() += 1;
            machine.bytes += bytes as u64;
        }
        let listener = self.listener(to);
        match self.net.send(self.now, from, to, listener) {
            Sent::At { time, epoch } => {
                self.at(time, Happening::Deliver { from, to, epoch, msg: packet });
            }
            Sent::Opens { time, epoch } => {
                self.at(time, Happening::LinkUp { a: from, b: to, epoch });
                self.at(time, Happening::Deliver { from, to, epoch, msg: packet });
            }
            Sent::Refused { time } => {
                self.at(time, Happening::LinkDown { node: from, peer: to, epoch: None });
            }
            Sent::Lost => {}
        }
    }

    fn listener(&self, id: NodeId) -> Listener {
        let alive = self.machines.get(&id).is_some_and(|m| m.node.is_some());
        if alive { Listener::Alive } else { Listener::Closed }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, epoch: u64, msg: Packet) {
        if self.net.epoch(from, to) != Some(epoch) || !self.net.reach(from, to) {
            return;
        }
        let msg = match msg {
            Packet::Bytes(bytes) => {
                self.note(b"msg", to, &bytes);
                match wire::decode(&bytes) {
                    Ok(msg) => msg,
                    Err(dropped) => panic!("a message does not decode: {dropped}"),
                }
            }
            Packet::Value(msg) => *msg,
        };
        self.delivered += 1;
        if self.verbose {
            let (from, to) = (from.short(), to.short());
            eprintln!("{:9.3} {from} -> {to} {msg:?}", self.now.0 as f64 / 1e6);
        }
        self.input(to, Input::Message { from, msg });
    }

    fn link_up(&mut self, a: NodeId, b: NodeId, epoch: u64) {
        if self.net.epoch(a, b) != Some(epoch) {
            return;
        }
        let both = [(a, b), (b, a)];
        if both.iter().any(|(x, _)| self.node(*x).is_none()) {
            self.net.close(a, b);
            self.at(self.now, Happening::LinkDown { node: a, peer: b, epoch: None });
            return;
        }
        for (me, other) in both {
            let inc = self.machines.get(&other).map_or(0, |m| m.inc);
            let peer = Peer { id: other, inc, addrs: heapless_addr(other) };
            if let Some(machine) = self.machines.get_mut(&me) {
                machine.book.insert(other);
            }
            self.input(me, Input::Command(Command::LinkUp(peer)));
        }
    }

    fn link_down(&mut self, node: NodeId, peer: NodeId, epoch: Option<u64>) {
        if let Some(epoch) = epoch {
            // A newer session stands already, or the far end came back meanwhile.
            match self.net.epoch(node, peer) {
                Some(current) if current == epoch => self.net.close(node, peer),
                Some(_) => return,
                None => {}
            }
        }
        self.input(node, Input::Command(Command::LinkDown(peer)));
    }

    /// As the agent does: seeds are dialled, with back-off, until there is a session.
    fn redial(&mut self, node: NodeId, life: u64, tries: u32) {
        if !self.lives(node, life) || !self.net.peers(node).is_empty() {
            return;
        }
        let seeds = self.machines.get(&node).map(|m| m.seeds.clone()).unwrap_or_default();
        for seed in seeds {
            let listener = self.listener(seed);
            if let Sent::Opens { time, epoch } = self.net.send(self.now, node, seed, listener) {
                self.at(time, Happening::LinkUp { a: node, b: seed, epoch });
            }
        }
        let wait = Duration::from_millis(500 << tries.min(6));
        self.at(self.now + wait, Happening::Redial { node, life, tries: tries + 1 });
    }

    /// Other addresses to dial at the next start (peers it met).
    pub fn set_seeds(&mut self, id: NodeId, seeds: Vec<NodeId>) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.seeds = seeds;
        }
    }

    fn report(&mut self, id: NodeId, after_ms: u64, report: Report) {
        let life = self.machines.get(&id).map_or(0, |m| m.life);
        let command = Box::new(Command::Host(report));
        let delay = Duration::from_millis(after_ms);
        self.at(self.now + delay, Happening::Command { node: id, life, command });
    }

    fn carry_out(&mut self, id: NodeId, order: Order) {
        match order {
            Order::Fetch { id: replica, tree, from } => match self.fetch(id, tree, &from) {
                Ok(ms) => self.report(id, ms, Report::Fetched { id: replica }),
                Err(reason) => self.report(id, 50, Report::FetchFailed { id: replica, reason }),
            },
            Order::KeepPackage { tree, from } => match self.fetch(id, tree, &from) {
                Ok(ms) => self.report(id, ms, Report::Kept { tree }),
                Err(reason) => self.report(id, 50, Report::KeepFailed { tree, reason }),
            },
            Order::ForgetState { .. } => {}
            Order::Drop { tree } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.disk.trees.remove(&tree);
                }
            }
            Order::Start(run) => {
                let replica = run.id;
                if self.waits_for_its_turn(id, &run) {
                    return;
                }
                self.starts.push((self.now, id, replica));
                if run.package.is_some_and(|tree| self.broken.contains(&tree.root)) {
                    // As the host does: a few starts, then it is given up.
                    let reason = || "ended with exit status 1\nno such file: config".to_owned();
                    for ms in [40, 600, 1_700, 3_800] {
                        self.report(id, ms, Report::Unready { id: replica, reason: reason() });
                    }
                    self.report(id, 7_900, Report::Failed { id: replica, reason: reason() });
                    return;
                }
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.processes.running.insert(replica, run);
                }
                self.report(id, 20, Report::Started { id: replica });
                let ready = self.rng.u64(50..400);
                self.report(id, ready, Report::Ready { id: replica });
            }
            Order::Stop { id: replica, .. } => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.processes.running.remove(&replica);
                }
                self.report(id, 20, Report::Stopped { id: replica });
                self.waits_no_more(id, replica);
                self.next_turn(Some(replica.service));
            }
        }
    }

    /// The bytes move if a source that lives and is reachable has them.
    fn fetch(&mut self, id: NodeId, tree: Tree, from: &[NodeId]) -> Result<u64, String> {
        let has = |m: &Machine| m.disk.trees.contains(&tree);
        let here = self.machines.get(&id).is_some_and(has);
        let book = self.machines.get(&id).map(|m| &m.book);
        let source = from.iter().find(|source| {
            if book.is_none_or(|book| !book.contains(source)) {
                return false;
            }
            let machine = self.machines.get(source);
            machine.is_some_and(|m| m.node.is_some() && has(m)) && self.net.reach(id, **source)
        });
        if !here && source.is_none() {
            return Err(format!("none of {} sources has it", from.len()));
        }
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.disk.trees.insert(tree);
        }
        Ok(if here { 1 } else { self.rng.u64(20..300) })
    }
}

/// Silence is asserted of every scenario, wherever it ends: see [`silent`].
impl Drop for World {
    fn drop(&mut self) {
        let calm = self.ends_silent && self.net.is_whole() && !std::thread::panicking();
        if calm && (1..=9).contains(&self.alive().len()) {
            if let Err(loud) = silent(self) {
                panic!("{loud}");
            }
        }
    }
}

/// Addresses do not matter here, but records carry them, so that messages have their real size.
fn heapless_addr(id: NodeId) -> dugnad_kernel::peer::Addrs {
    let octets = (id.0 >> 96).to_be_bytes();
    let addr = std::net::Ipv4Addr::new(10, octets[13], octets[14], octets[15]);
    std::iter::once(std::net::SocketAddr::from((addr, 7407))).collect()
}
