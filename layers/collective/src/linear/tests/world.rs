//! Nodes with disks that fail as disks do, a ring that is sometimes wrong, and clients.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Arc, Duration, Id, Key, NodeId, Peer, Time};

use super::super::register::{Change, Done};
use super::super::{Answer, Command, DiskKey, Event, Kept, Linear, Question};
use super::check::{Request, Told, What};
use crate::position::RingPosition;

pub(super) const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Ring {
    members: BTreeSet<NodeId>,
    disks: BTreeMap<NodeId, BTreeMap<DiskKey, Vec<u8>>>,
    /// When the last write of a node is on its disk: they keep their order.
    written: BTreeMap<NodeId, Time>,
    /// One write of so many fails.
    pub(super) bad_disk: Option<u32>,
    /// By call: at which node, and what was asked of which register when.
    calls: BTreeMap<u32, (NodeId, Key, What, Time)>,
    pub(super) history: BTreeMap<Key, Vec<Request>>,
    pub(super) answers: BTreeMap<u32, Answer>,
    next: u32,
    size: u64,
    pub(super) views: usize,
}

pub(super) type World = testing::World<Linear, Ring>;

impl Around<Linear> for Ring {
    fn on_event(world: &mut World, at: NodeId, event: Event) {
        match event {
            Event::Lookup { call, key } => {
                let owner = world.around.owner(key);
                world.command_after(SECOND / 50, at, Command::Found { call, owner });
            }
            Event::Persist { token, writes } => {
                let fails = world.around.bad_disk.is_some_and(|n| world.rng.u32(0..n) == 0);
                let after = Duration::from_micros(world.rng.u64(200..20_000));
                let last = world.around.written.get(&at).copied().unwrap_or(Time(0));
                let time = (world.now + after).max(last);
                world.around.written.insert(at, time);
                let life = world.life(at);
                world.after(time.since(world.now), move |world| {
                    // A write that had not ended when the power failed never was.
                    if world.life(at) != life || world.get(at).is_none() {
                        return;
                    }
                    if fails {
                        return world.command_now(at, Command::NotPersisted(token));
                    }
                    let disk = world.around.disks.entry(at).or_default();
                    for (key, value) in writes {
                        match value {
                            Some(value) => disk.insert(key, value),
                            None => disk.remove(&key),
                        };
                    }
                    world.command_now(at, Command::Persisted(token));
                });
            }
            Event::Tell(views) => {
                world.around.views += 1;
                for id in world.ids() {
                    if id != at && world.rng.u8(0..4) > 0 && world.get(id).is_some() {
                        world.command_after(SECOND / 10, id, Command::Views(views.clone()));
                    }
                }
            }
            Event::Answer { call, answer } => world.around.answered(call, answer, world.now),
        }
    }

    fn link_down(_: &World, to: NodeId) -> Option<Command> {
        Some(Command::LinkDown(to))
    }

    fn check(linear: &Linear) {
        for (name, size, most) in linear.sizes() {
            assert!(size <= most, "{size} {name}, at most {most}");
        }
    }
}

fn number(value: &[u8]) -> u32 {
    u32::from_le_bytes(value.try_into().unwrap_or_default())
}

impl Ring {
    fn answered(&mut self, call: u32, answer: Answer, now: Time) {
        let (_, key, what, from) = self.calls.remove(&call).unwrap_or_else(|| panic!("twice"));
        let told = match &answer {
            Answer::Cell { revision, value } => {
                Some(Told::Value(*revision, value.as_deref().map(number)))
            }
            Answer::Done { done: Done::Written { revision }, .. } => Some(Told::Written(*revision)),
            Answer::Done { done: Done::Lost { revision }, .. } => Some(Told::Lost(*revision)),
            Answer::Unknown => Some(Told::Unknown),
            // Nothing was changed, they say: it has no place at all.
            Answer::Done { done: Done::Busy, .. } | Answer::Unavailable | Answer::Busy => None,
        };
        self.answers.insert(call, answer);
        if let Some(told) = told {
            let until = (told != Told::Unknown).then_some(now);
            self.history.entry(key).or_default().push(Request { what, from, until, told });
        }
    }

    /// Requests whose node died before it answered may have happened.
    fn give_up(&mut self, node: NodeId) {
        let calls = std::mem::take(&mut self.calls);
        for (call, (at, key, what, from)) in calls {
            if at != node {
                self.calls.insert(call, (at, key, what, from));
                continue;
            }
            let request = Request { what, from, until: None, told: Told::Unknown };
            self.history.entry(key).or_default().push(request);
        }
    }

    fn owner(&self, key: Key) -> Option<NodeId> {
        self.members.range(key..).next().or_else(|| self.members.first()).copied()
    }

    fn position(&self, id: NodeId) -> RingPosition {
        let members: Vec<NodeId> = self.members.iter().copied().collect();
        let at = members.partition_point(|other| *other < id);
        let of = |step: usize| members[(at + step) % members.len()];
        let others = members.len() - 1;
        let succs = (1..=others.min(12)).map(|step| Peer::new(of(step))).collect();
        let range = Some(Arc::new(of(members.len() - 1), id));
        RingPosition { range, succs, size: self.size.max(members.len() as u64) }
    }
}

/// A community of so many nodes, founded by the first.
pub(super) fn community(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, Ring::default());
    for n in 0..count {
        let id = Id(world.rng.u128(..));
        start(&mut world, id, n == 0);
    }
    world
}

pub(super) fn join(world: &mut World) -> NodeId {
    let id = Id(world.rng.u128(..));
    start(world, id, false);
    id
}

/// A node begins with what lies on its disk, and comes to the ring.
pub(super) fn start(world: &mut World, id: NodeId, founds: bool) {
    let inc = world.start(id, Linear::new(id));
    let disk = world.around.disks.entry(id).or_default().clone();
    let mut kept = Kept::default();
    for (key, bytes) in disk {
        match key {
            DiskKey::Member => kept.member = postcard::from_bytes(&bytes).ok(),
            DiskKey::Replica(_) => kept.replicas.extend(postcard::from_bytes(&bytes).ok()),
            DiskKey::Register(key) => {
                kept.registers
                    .extend(postcard::from_bytes(&bytes).ok().map(|register| (key, register)));
            }
        }
    }
    let alone = founds && inc == 1;
    world.command_now(id, Command::Restore { inc, alone, kept });
    let unix_ms = 1_800_000_000_000 + world.now.0 / 1_000;
    world.command_now(id, Command::Clock(Some(unix_ms)));
    world.around.members.insert(id);
    tell_ring(world);
}

/// The power fails; its neighbours notice after a while.
pub(super) fn crash(world: &mut World, id: NodeId) {
    world.crash(id);
    world.around.give_up(id);
    let life = world.life(id);
    let after = Duration::from_millis(world.rng.u64(500..8_000));
    world.after(after, move |world| {
        if world.life(id) == life && world.get(id).is_none() && world.around.members.len() > 1 {
            world.around.members.remove(&id);
            tell_ring(world);
        }
    });
}

/// Everything that lay on its disk is gone; or all registers, and it does not know.
pub(super) fn lose_disk(world: &mut World, id: NodeId, unnoticed: bool) {
    let disk = world.around.disks.entry(id).or_default();
    disk.retain(|key, _| unnoticed && !matches!(key, DiskKey::Register(_)));
}

/// Everybody hears how the ring is, one after the other, and sometimes what it is not.
pub(super) fn tell_ring(world: &mut World) {
    for id in world.ids() {
        if world.get(id).is_none() || !world.around.members.contains(&id) {
            continue;
        }
        let after = Duration::from_millis(world.rng.u64(1..2_000));
        world.after(after, move |world| {
            if world.get(id).is_some() && world.around.members.contains(&id) {
                let position = world.around.position(id);
                world.command_now(id, Command::Moved(position));
            }
        });
    }
}

/// A node believes for a while that it is alone, or that it answers for everything.
pub(super) fn mislead(world: &mut World, id: NodeId) {
    let mut position = world.around.position(id);
    if world.rng.bool() {
        position.succs.clear();
    } else {
        position.succs.reverse();
    }
    position.range = Some(Arc::new(id, id));
    world.command(id, Command::Moved(position));
    let after = Duration::from_millis(world.rng.u64(1_000..60_000));
    world.after(after, tell_ring);
}

pub(super) fn set_size(world: &mut World, size: u64) {
    world.around.size = size;
    tell_ring(world);
}

/// A client asks at a node.
pub(super) fn ask(world: &mut World, at: NodeId, key: Key, what: What) -> u32 {
    world.around.next += 1;
    let call = world.around.next;
    world.around.calls.insert(call, (at, key, what.clone(), world.now));
    let name = String::from("k");
    let value = |value: u32| Some(value.to_le_bytes().to_vec());
    let question = match what {
        What::Read => Question::Read { key },
        What::Put(new) => Question::Change { key, name, change: Change::Put { value: value(new) } },
        What::Cas(revision, new) => {
            let change = Change::Cas { revision, value: value(new) };
            Question::Change { key, name, change }
        }
    };
    world.command(at, Command::Ask { call, question });
    call
}
