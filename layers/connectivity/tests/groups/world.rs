//! Many nodes with groups; directory, links and failure detector are played.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_connectivity::group::directory::{
    DirectoryAnswer, DirectoryAsk, GroupRecord, Mode, Policy, directory_key, group_id,
};
use dugnad_connectivity::group::{Answer, Command, Event, GroupCast, Groups, Manner, Msg};
use dugnad_kernel::map::Set;
use dugnad_kernel::{Component, Cx, Duration, Effect, Id, Input, Key, NodeId, Peer, Time};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const NAME: &str = "choir";

pub(crate) struct Member {
    /// `None` while it is dead.
    pub(crate) groups: Option<Groups>,
    pub(crate) inc: u32,
    pub(crate) watch: Set<NodeId>,
    /// What was delivered, in order: from whom, and what.
    pub(crate) heard: Vec<(NodeId, Vec<u8>)>,
}

pub(crate) enum Happening {
    Input(NodeId, u32, Input<Groups>),
    /// The directory decides when the question reaches it.
    Directory {
        node: NodeId,
        call: u32,
        key: Key,
        ask: DirectoryAsk,
    },
    /// Whoever watches `dead` finds out.
    Detect {
        by: NodeId,
        dead: NodeId,
    },
}

/// Many nodes, one honest directory.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) queue: BTreeMap<(Time, u64), Happening>,
    pub(crate) sequence: u64,
    /// Last arrival by pair: links are first in, first out.
    pub(crate) last: BTreeMap<(NodeId, NodeId), u64>,
    pub(crate) directory: BTreeMap<Key, (u64, Option<Vec<u8>>)>,
    pub(crate) answers: BTreeMap<u32, Answer>,
    pub(crate) calls: u32,
    pub(crate) side: BTreeMap<NodeId, u32>,
    /// One message of so many is lost.
    pub(crate) loss: Option<u32>,
    pub(crate) sent: usize,
    pub(crate) packets: usize,
    pub(crate) writes: usize,
    pub(crate) rng: fastrand::Rng,
}

impl World {
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            now: Time(0),
            members: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            last: BTreeMap::new(),
            directory: BTreeMap::new(),
            answers: BTreeMap::new(),
            calls: 0,
            side: BTreeMap::new(),
            loss: None,
            sent: 0,
            packets: 0,
            writes: 0,
            rng: fastrand::Rng::with_seed(seed),
        };
        for _ in 0..count {
            let id = Id(world.rng.u128(..));
            let (watch, heard) = (Set::new(), Vec::new());
            world.members.insert(id, Member { groups: None, inc: 0, watch, heard });
            world.start(id);
        }
        world
    }

    pub(crate) fn start(&mut self, id: NodeId) {
        let member = self.members.get_mut(&id).unwrap();
        member.inc += 1;
        let peer = Peer { inc: member.inc, ..Peer::new(id) };
        member.groups = Some(Groups::new(peer));
        member.watch.clear();
    }

    /// Its agent is started again; the others see a session with a new life.
    pub(crate) fn restart(&mut self, id: NodeId) {
        self.start(id);
        let inc = self.members[&id].inc;
        for other in self.ids().into_iter().filter(|other| *other != id) {
            let peer = Peer { inc, ..Peer::new(id) };
            self.put(other, Input::Command(Command::LinkUp(peer)));
        }
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    pub(crate) fn at(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), happening);
    }

    pub(crate) fn put(&mut self, id: NodeId, input: Input<Groups>) {
        let inc = self.members[&id].inc;
        self.at(Duration::ZERO, Happening::Input(id, inc, input));
    }

    /// Asks one node for something that is answered under the number returned.
    pub(crate) fn ask(&mut self, id: NodeId, command: impl FnOnce(u32) -> Command) -> u32 {
        self.calls += 1;
        let command = command(self.calls);
        self.put(id, Input::Command(command));
        self.calls
    }

    pub(crate) fn create(&mut self, id: NodeId) -> u32 {
        let (name, policy) = (NAME.to_owned(), Policy::Open);
        self.ask(id, |call| Command::Create { call, name, policy })
    }

    pub(crate) fn join(&mut self, id: NodeId) -> u32 {
        self.ask(id, |call| Command::Join { call, name: NAME.to_owned(), found: false })
    }

    pub(crate) fn leave(&mut self, id: NodeId) -> u32 {
        self.ask(id, |call| Command::Leave { call, name: NAME.to_owned() })
    }

    pub(crate) fn send(&mut self, id: NodeId, body: &[u8]) -> u32 {
        let (name, body) = (NAME.to_owned(), body.to_vec());
        self.ask(id, |call| Command::Send { call, name, body, manner: Manner::BestEffort })
    }

    pub(crate) fn send_reliably(&mut self, id: NodeId, body: &[u8]) -> u32 {
        let (name, body) = (NAME.to_owned(), body.to_vec());
        self.ask(id, |call| Command::Send { call, name, body, manner: Manner::Reliable })
    }

    pub(crate) fn crash(&mut self, id: NodeId) {
        self.members.get_mut(&id).unwrap().groups = None;
        self.lose(id);
    }

    /// Whoever watches it finds out after the time the detector takes.
    pub(crate) fn lose(&mut self, dead: NodeId) {
        for by in self.ids() {
            let after = Duration::from_millis(self.rng.u64(1_500..14_000));
            self.at(after, Happening::Detect { by, dead });
        }
    }

    pub(crate) fn cut(&mut self, sides: impl Fn(usize) -> u32) {
        let ids = self.ids();
        for (number, id) in ids.iter().enumerate() {
            self.side.insert(*id, sides(number));
        }
        ids.into_iter().for_each(|id| self.lose(id));
    }

    pub(crate) fn reach(&self, a: NodeId, b: NodeId) -> bool {
        self.side.get(&a).unwrap_or(&0) == self.side.get(&b).unwrap_or(&0)
    }

    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.queue.first_key_value().is_some_and(|((due, _), _)| *due <= end) {
            let ((due, _), happening) = self.queue.pop_first().unwrap();
            self.now = due;
            match happening {
                Happening::Input(id, inc, input) => self.step(id, inc, input),
                Happening::Directory { node, call, key, ask } => {
                    self.on_directory(node, call, key, ask);
                }
                Happening::Detect { by, dead } => {
                    let gone = self.members[&dead].groups.is_none() || !self.reach(by, dead);
                    if gone && self.members[&by].watch.contains(&dead) {
                        self.put(by, Input::Command(Command::Dead(dead)));
                    }
                }
            }
        }
        self.now = end;
    }

    pub(crate) fn on_directory(&mut self, node: NodeId, call: u32, key: Key, ask: DirectoryAsk) {
        let (version, value) = self.directory.entry(key).or_default();
        let answer = match ask {
            DirectoryAsk::Cas { expected, value: new } if expected == *version => {
                (*version, *value) = (*version + 1, new);
                self.writes += 1;
                DirectoryAnswer::Written { version: *version }
            }
            DirectoryAsk::Cas { .. } | DirectoryAsk::Get => {
                DirectoryAnswer::Is { version: *version, value: value.clone() }
            }
        };
        let after = Duration::from_millis(self.rng.u64(1..100));
        let command = Input::Command(Command::Directory { call, answer });
        let inc = self.members[&node].inc;
        self.at(after, Happening::Input(node, inc, command));
    }

    pub(crate) fn step(&mut self, id: NodeId, inc: u32, input: Input<Groups>) {
        let member = self.members.get_mut(&id).unwrap();
        let Some(groups) = member.groups.as_mut().filter(|_| member.inc == inc) else { return };
        let mut effects = Vec::new();
        groups.handle(input, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        for (_, size, most) in groups.sizes() {
            assert!(size <= most);
        }
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => self.carry(id, to, msg),
                Effect::After { delay, timer } => {
                    self.at(delay, Happening::Input(id, inc, Input::<Groups>::Timer(timer)));
                }
                Effect::Emit(event) => self.event(id, event),
            }
        }
    }

    pub(crate) fn carry(&mut self, from: NodeId, to: NodeId, msg: Msg) {
        let inc = self.members.get(&to).map_or(0, |member| member.inc);
        if from == to {
            self.at(Duration::ZERO, Happening::Input(to, inc, Input::Message { from, msg }));
            return;
        }
        self.sent += 1;
        let cast = match &msg {
            Msg::Cast { cast: GroupCast::Packet(_), .. } => true,
            Msg::Ring { msg, .. } => matches!(
                **msg,
                dugnad_connectivity::Msg::Cast(
                    dugnad_connectivity::tree::broadcast::CastMsg::Down { .. }
                )
            ),
            _ => false,
        };
        self.packets += usize::from(cast);
        let delay = self.rng.u64(1_000..40_000);
        let live = self.members.get(&to).is_some_and(|member| member.groups.is_some());
        if !live || !self.reach(from, to) {
            let sender = self.members[&from].inc;
            let down = Input::Command(Command::LinkDown(to));
            self.at(Duration::from_micros(delay), Happening::Input(from, sender, down));
            return;
        }
        if self.loss.is_some_and(|one_of| self.rng.u32(0..one_of) == 0) {
            return;
        }
        let last = self.last.entry((from, to)).or_default();
        let at = (self.now.0 + delay).max(*last + 1);
        *last = at;
        let after = Duration::from_micros(at - self.now.0);
        self.at(after, Happening::Input(to, inc, Input::Message { from, msg }));
    }

    pub(crate) fn event(&mut self, id: NodeId, event: Event) {
        match event {
            Event::Directory { call, key, ask } => {
                let after = Duration::from_millis(self.rng.u64(1..100));
                self.at(after, Happening::Directory { node: id, call, key, ask });
            }
            Event::Answer { call, answer } => {
                assert_eq!(self.answers.insert(call, answer), None, "answered twice");
            }
            Event::Deliver { from, body, .. } => {
                self.members.get_mut(&id).unwrap().heard.push((from, body));
            }
            Event::Watch(set) => {
                for news in &set {
                    let dead = self.members[news].groups.is_none() || !self.reach(id, *news);
                    if dead {
                        let after = Duration::from_secs(9);
                        self.at(after, Happening::Detect { by: id, dead: *news });
                    }
                }
                self.members.get_mut(&id).unwrap().watch = set;
            }
            Event::Contact(_) | Event::Doubt(_) => {}
        }
    }

    pub(crate) fn record(&self) -> Option<GroupRecord> {
        let (_, value) = self.directory.get(&directory_key(group_id(NAME)))?;
        GroupRecord::decode(value.as_ref()?)
    }

    /// Who is inside, as each says of itself.
    pub(crate) fn inside(&self) -> BTreeSet<NodeId> {
        let joined = |groups: &Groups| groups.views().any(|v| v.name == NAME && v.joined);
        let of = |(id, m): (&NodeId, &Member)| m.groups.as_ref().filter(|g| joined(g)).map(|_| *id);
        self.members.iter().filter_map(of).collect()
    }

    pub(crate) fn modes(&self) -> BTreeSet<bool> {
        let views = self.members.values().filter_map(|m| m.groups.as_ref());
        views.flat_map(Groups::views).map(|view| view.mode == Mode::Ring).collect()
    }

    /// All inside have heard exactly these, each once, in any order.
    pub(crate) fn all_heard(&self, bodies: &[&[u8]]) -> Result<(), String> {
        for id in self.inside() {
            let heard = &self.members[&id].heard;
            for body in bodies {
                let count = heard.iter().filter(|(_, heard)| heard == body).count();
                if count != 1 {
                    return Err(format!("{id:?} heard {body:?} {count} times"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn sample_lives(&self) -> bool {
        let inside = self.inside();
        self.record().is_some_and(|r| r.sample.iter().any(|peer| inside.contains(&peer.id)))
    }
}

/// A group of `count` of the nodes.
pub(crate) fn group_of(seed: u64, count: usize, nodes: usize) -> World {
    let mut world = World::new(seed, nodes);
    let ids = world.ids();
    let call = world.create(ids[0]);
    world.run(SECOND);
    assert_eq!(world.answers.get(&call), Some(&Answer::Done));
    for id in ids.into_iter().take(count).skip(1) {
        world.join(id);
        world.run(SECOND / 10);
    }
    world.run(SECOND * 90);
    assert_eq!(world.inside().len(), count, "seed {seed}");
    world
}
