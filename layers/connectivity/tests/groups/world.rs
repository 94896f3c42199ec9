//! Many nodes with groups; directory and failure detector are played.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use dugnad_connectivity::group::directory::{
    DirectoryAnswer, DirectoryAsk, GroupRecord, Mode, Policy, directory_key, group_id,
};
use dugnad_connectivity::group::{Answer, Command, Event, GroupCast, Groups, Manner, Msg};
use dugnad_connectivity::tree::broadcast::CastMsg;
use dugnad_kernel::map::Set;
use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Duration, Id, Key, NodeId, Peer};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const NAME: &str = "choir";

/// One honest directory, and what the members heard and were answered.
#[derive(Default)]
pub(crate) struct Choir {
    pub(crate) watch: BTreeMap<NodeId, Set<NodeId>>,
    /// What was delivered to whom, in order: from whom, and what.
    pub(crate) heard: BTreeMap<NodeId, Vec<(NodeId, Vec<u8>)>>,
    pub(crate) directory: BTreeMap<Key, (u64, Option<Vec<u8>>)>,
    pub(crate) answers: BTreeMap<u32, Answer>,
    pub(crate) calls: u32,
    pub(crate) packets: usize,
    pub(crate) writes: usize,
}

type Nodes = testing::World<Groups, Choir>;

impl Around<Groups> for Choir {
    fn on_event(world: &mut Nodes, at: NodeId, event: Event) {
        match event {
            Event::Directory { call, key, ask } => {
                let there = Duration::from_millis(world.rng.u64(1..100));
                let back = Duration::from_millis(world.rng.u64(1..100));
                world.after(there, move |world| {
                    let answer = world.around.decide(key, ask);
                    world.command_after(back, at, Command::Directory { call, answer });
                });
            }
            Event::Answer { call, answer } => {
                assert_eq!(world.around.answers.insert(call, answer), None, "answered twice");
            }
            Event::Deliver { from, body, .. } => {
                world.around.heard.entry(at).or_default().push((from, body));
            }
            Event::Watch(set) => {
                for id in &set {
                    if gone(world, at, *id) {
                        detect(world, Duration::from_secs(9), at, *id);
                    }
                }
                world.around.watch.insert(at, set);
            }
            // A member is what is asked for if its id ends in that byte, but for the last two bits.
            Event::Judge { gid, token } => {
                let fits = at.0 as u8 & 3 == token.that[0] & 3;
                let after = Duration::from_millis(1);
                world.command_after(after, at, Command::Judged { gid, token, fits });
            }
            Event::Contact(_) | Event::Doubt(_) => {}
        }
    }

    fn carries(world: &mut Nodes, _: NodeId, _: NodeId, msg: &Msg) -> bool {
        let cast = match msg {
            Msg::Cast { cast: GroupCast::Packet(_), .. } => true,
            Msg::Ring { msg, .. } => {
                matches!(**msg, dugnad_connectivity::overlay::Msg::Cast(CastMsg::Down { .. }))
            }
            _ => false,
        };
        world.around.packets += usize::from(cast);
        true
    }

    fn link_down(_: &Nodes, to: NodeId) -> Option<Command> {
        Some(Command::LinkDown(to))
    }

    fn check(groups: &Groups) {
        for (name, size, most) in groups.sizes() {
            assert!(size <= most, "{size} {name}, at most {most}");
        }
    }
}

impl Choir {
    fn decide(&mut self, key: Key, ask: DirectoryAsk) -> DirectoryAnswer {
        let (version, value) = self.directory.entry(key).or_default();
        match ask {
            DirectoryAsk::Cas { expected, value: new } if expected == *version => {
                (*version, *value) = (*version + 1, new);
                self.writes += 1;
                DirectoryAnswer::Written { version: *version }
            }
            DirectoryAsk::Cas { .. } | DirectoryAsk::Get => {
                DirectoryAnswer::Is { version: *version, value: value.clone() }
            }
        }
    }
}

fn gone(world: &Nodes, by: NodeId, id: NodeId) -> bool {
    world.get(id).is_none() || !world.reach(by, id)
}

/// Whoever watches `dead` then finds out, if it still is.
fn detect(world: &mut Nodes, after: Duration, by: NodeId, dead: NodeId) {
    world.after(after, move |world| {
        let watches = world.around.watch.get(&by).is_some_and(|watch| watch.contains(&dead));
        if watches && gone(world, by, dead) {
            world.command(by, Command::Dead(dead));
        }
    });
}

pub(crate) struct World(Nodes);

impl Deref for World {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Nodes {
        &mut self.0
    }
}

impl World {
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let mut world = Self(Nodes::new(seed, Choir::default()));
        for _ in 0..count {
            let id = Id(world.rng.u128(..));
            world.begin(id);
        }
        world
    }

    pub(crate) fn begin(&mut self, id: NodeId) {
        let inc = self.life(id) + 1;
        self.start(id, Groups::new(Peer { inc, ..Peer::new(id) }));
        self.around.watch.remove(&id);
    }

    /// Its agent is started again; the others see a session with a new life.
    pub(crate) fn restart(&mut self, id: NodeId) {
        self.begin(id);
        let inc = self.life(id);
        for other in self.ids().into_iter().filter(|other| *other != id) {
            let peer = Peer { inc, ..Peer::new(id) };
            self.command(other, Command::LinkUp(peer));
        }
    }

    pub(crate) fn heard(&self, id: NodeId) -> &[(NodeId, Vec<u8>)] {
        self.around.heard.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Asks one node for something that is answered under the number returned.
    pub(crate) fn ask(&mut self, id: NodeId, command: impl FnOnce(u32) -> Command) -> u32 {
        self.around.calls += 1;
        let call = self.around.calls;
        self.command(id, command(call));
        call
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
        self.0.crash(id);
        self.lose(id);
    }

    /// Whoever watches it finds out after the time the detector takes.
    pub(crate) fn lose(&mut self, dead: NodeId) {
        for by in self.ids() {
            let after = Duration::from_millis(self.rng.u64(1_500..14_000));
            detect(self, after, by, dead);
        }
    }

    pub(crate) fn cut(&mut self, sides: impl Fn(usize) -> u32) {
        self.0.cut(sides);
        self.ids().into_iter().for_each(|id| self.lose(id));
    }

    pub(crate) fn record(&self) -> Option<GroupRecord> {
        let (_, value) = self.around.directory.get(&directory_key(group_id(NAME)))?;
        GroupRecord::decode(value.as_ref()?)
    }

    /// Who is inside, as each says of itself.
    pub(crate) fn inside(&self) -> BTreeSet<NodeId> {
        let joined = |groups: &Groups| groups.views().any(|v| v.name == NAME && v.joined);
        self.live().filter(|(_, groups)| joined(groups)).map(|(id, _)| id).collect()
    }

    pub(crate) fn modes(&self) -> BTreeSet<bool> {
        let views = self.live().flat_map(|(_, groups)| groups.views());
        views.map(|view| view.mode == Mode::Ring).collect()
    }

    /// All inside have heard exactly these, each once, in any order.
    pub(crate) fn all_heard(&self, bodies: &[&[u8]]) -> Result<(), String> {
        for id in self.inside() {
            let heard = self.heard(id);
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
    assert_eq!(world.around.answers.get(&call), Some(&Answer::Done));
    for id in ids.into_iter().take(count).skip(1) {
        world.join(id);
        world.run(SECOND / 10);
    }
    world.run(SECOND * 90);
    assert_eq!(world.inside().len(), count, "seed {seed}");
    world
}
