//! Persistence alone: many nodes with a ring that is told to them, disks that may be slow, crashes
//! and losses. Nobody uses the records.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dugnad_collective::persistence::record::{
    COUNTER_STEP, DEGREE, Name, Record, TOMBSTONE_KEPT, Version, class,
};
use dugnad_collective::persistence::{
    Answer, Command, Event, Msg, Persistence, Question, Versions,
};
use dugnad_collective::position::RingPosition;
use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Arc, Duration, Id, Key, NodeId, Peer, Time, hlc};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Who is on the ring, what lies on disks, and what was answered.
#[derive(Default)]
struct Ring {
    members: BTreeSet<NodeId>,
    /// What each node was told last of what it answers for.
    ranges: BTreeMap<NodeId, Arc>,
    disks: BTreeMap<NodeId, BTreeMap<Name, Vec<u8>>>,
    answers: BTreeMap<u32, Answer>,
    calls: u32,
}

type World = testing::World<Persistence, Ring>;

impl Around<Persistence> for Ring {
    fn on_event(world: &mut World, at: NodeId, event: Event) {
        match event {
            Event::Lookup { call, key } => {
                let after = Duration::from_millis(world.rng.u64(1..200));
                let life = world.life(at);
                world.after(after, move |world| {
                    let owner = world.around.owner(key);
                    if world.life(at) == life {
                        world.command(at, Command::Found { call, owner });
                    }
                });
            }
            Event::Persist { token, writes } => {
                let after = Duration::from_millis(world.rng.u64(1..300));
                let life = world.life(at);
                world.after(after, move |world| {
                    // A write that had not ended when the power failed never was.
                    if world.life(at) != life || world.get(at).is_none() {
                        return;
                    }
                    let disk = world.around.disks.entry(at).or_default();
                    for (name, value) in writes {
                        match value {
                            Some(value) => disk.insert(name, value),
                            None => disk.remove(&name),
                        };
                    }
                    if let Some(token) = token {
                        world.command(at, Command::Persisted(token));
                    }
                });
            }
            Event::Changed(_) => {}
            Event::Answer { call, answer } => {
                assert!(world.around.answers.insert(call, answer).is_none(), "answered twice");
            }
        }
    }

    fn link_down(_: &World, to: NodeId) -> Option<Command> {
        Some(Command::LinkDown(to))
    }

    fn check(persistence: &Persistence) {
        for (name, size, most) in persistence.sizes() {
            assert!(size <= most, "{size} {name}, at most {most}");
        }
    }
}

impl Ring {
    fn owner(&self, key: Key) -> Option<NodeId> {
        self.members.range(key..).next().or_else(|| self.members.first()).copied()
    }

    /// The member `steps` after `id`.
    fn after(&self, id: NodeId, steps: usize) -> NodeId {
        let later = self.members.range(id.plus(1)..).chain(&self.members);
        later.cycle().nth(steps - 1).copied().unwrap()
    }
}

fn any_name(name: &[u8]) -> Option<Versions> {
    Some(if name == b"stamped" {
        Versions::Stamped
    } else {
        Versions::Counted { step: COUNTER_STEP }
    })
}

fn world(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, Ring::default());
    for _ in 0..count {
        let id = Id(world.rng.u128(..));
        begin(&mut world, id);
    }
    tell(&mut world);
    world
}

/// A node begins with what lies on its disk, and comes to the ring.
fn begin(world: &mut World, id: NodeId) {
    world.start(id, Persistence::new(id, any_name));
    let disk = world.around.disks.entry(id).or_default();
    let records = disk.values().map(|bytes| postcard::from_bytes(bytes).unwrap()).collect();
    world.command(id, Command::Restore(records));
    world.around.members.insert(id);
}

/// Everybody learns what it answers for now.
fn tell(world: &mut World) {
    let members: Vec<NodeId> = world.around.members.iter().copied().collect();
    let size = members.len() as u64;
    for (place, id) in members.iter().enumerate() {
        let pred = members[(place + members.len() - 1) % members.len()];
        let range = Arc::new(pred, *id);
        let others = members.len() - 1;
        let succs = (1..=others.min(12)).map(|step| Peer::new(world.around.after(*id, step)));
        let position = RingPosition { range: Some(range), succs: succs.collect(), size };
        let old = world.around.ranges.insert(*id, range);
        let grown = old.filter(|old| old.lo != pred && !old.contains(pred));
        let gained = grown.map(|old| Arc::new(pred, old.lo));
        world.command(*id, Command::Moved { position, gained });
    }
}

fn crash(world: &mut World, id: NodeId) {
    world.crash(id);
    let after = Duration::from_millis(world.rng.u64(100..9_000));
    world.after(after, move |world| {
        if world.get(id).is_some() {
            return;
        }
        world.around.members.remove(&id);
        world.around.ranges.remove(&id);
        for other in world.ids() {
            world.command(other, Command::Gone(id));
        }
        tell(world);
    });
}

fn ask(world: &mut World, at: NodeId, question: Question) -> u32 {
    world.around.calls += 1;
    let call = world.around.calls;
    world.command(at, Command::Ask { call, question });
    call
}

fn record(key: Key, counter: u64, author: NodeId, value: &str) -> Record {
    let version = Version { counter, author };
    Record { key, name: b"n".to_vec(), version, value: Some(value.into()) }
}

fn any(world: &mut World) -> NodeId {
    let live: Vec<NodeId> = world.live().map(|(id, _)| id).collect();
    live[world.rng.usize(0..live.len())]
}

/// Whether every node finds these versions, or newer ones.
fn all_find(world: &mut World, acknowledged: &BTreeMap<Key, Version>) {
    let ids: Vec<NodeId> = world.live().map(|(id, _)| id).collect();
    for (key, version) in acknowledged {
        for id in &ids {
            let call = ask(world, *id, Question::Get((*key, b"n".to_vec())));
            world.run(5 * SECOND);
            match world.around.answers.remove(&call) {
                Some(Answer::Found(Some(found))) => {
                    assert!(
                        found.version >= *version,
                        "{:?} instead of {version:?}",
                        found.version
                    );
                }
                other => panic!("{other:?} instead of {version:?}"),
            }
        }
    }
}

/// What was acknowledged is found by everybody, in whatever order nodes crashed and came back, one
/// at a time; and then nobody says anything.
#[test]
fn what_was_acknowledged_stays() {
    for seed in 0..300 {
        let count = 1 + seed as usize % 12;
        let mut world = world(seed, count);
        world.loss = (seed % 3 == 0).then_some(50);
        world.run(10 * SECOND);
        let mut asked: BTreeMap<u32, (Key, Version)> = BTreeMap::new();
        for step in 1..40 {
            let key = class(Id(u128::from(world.rng.u8(0..6)) << 100), world.rng.u32(0..DEGREE));
            let at = any(&mut world);
            let put = record(key, step, at, "value");
            let enough = count.min(3);
            let version = put.version;
            let call = ask(&mut world, at, Question::Put { record: put, enough });
            asked.insert(call, (key, version));
            match world.rng.u8(0..6) {
                0 if world.live().count() == count && count > 1 => {
                    let id = any(&mut world);
                    crash(&mut world, id);
                }
                1 => {
                    let down = world.ids().into_iter().find(|id| world.get(*id).is_none());
                    if let Some(id) = down {
                        begin(&mut world, id);
                        tell(&mut world);
                    }
                }
                _ => {}
            }
            let pause = Duration::from_millis(world.rng.u64(1..4_000));
            world.run(pause);
        }
        for id in world.ids() {
            if world.get(id).is_none() {
                begin(&mut world, id);
            }
        }
        tell(&mut world);
        world.run(MINUTE);
        let mut acknowledged: BTreeMap<Key, Version> = BTreeMap::new();
        for (call, (key, version)) in asked {
            if let Some(Answer::Stored(holders)) = world.around.answers.get(&call) {
                if !holders.is_empty() {
                    let newest = acknowledged.entry(key).or_insert(version);
                    *newest = version.max(*newest);
                }
            }
        }
        assert!(!acknowledged.is_empty());
        world.loss = None;
        all_find(&mut world, &acknowledged);
        world.run(40 * MINUTE);
        let before = world.sent;
        world.run(10 * MINUTE);
        // A comparison with two successors and along one image, every ten minutes.
        assert!(world.sent - before <= count * 60, "{} messages of {count}", world.sent - before);
    }
}

/// Power fails everywhere the moment a write is acknowledged: it is on the disks.
#[test]
fn what_was_acknowledged_was_on_disk() {
    for seed in 0..300 {
        let count = 1 + seed as usize % 5;
        let mut world = world(seed, count);
        world.run(SECOND);
        let (key, at) = (Id(world.rng.u128(..)), any(&mut world));
        let put = record(key, 1, at, "value");
        let version = put.version;
        let call = ask(&mut world, at, Question::Put { record: put, enough: count.min(3) });
        let end = world.now + MINUTE;
        assert!(world.run_until(end, |world| world.around.answers.contains_key(&call)));
        assert!(matches!(&world.around.answers[&call], Answer::Stored(on) if !on.is_empty()));
        for id in world.ids() {
            world.crash(id);
        }
        for id in world.ids() {
            begin(&mut world, id);
        }
        tell(&mut world);
        world.run(MINUTE);
        all_find(&mut world, &BTreeMap::from([(key, version)]));
    }
}

/// Of two that claim a name at once, one has it, and the other is told whose it is.
#[test]
fn one_of_two_claims_wins() {
    for seed in 0..200 {
        let count = 1 + seed as usize % 9;
        let mut world = world(seed, count);
        world.run(SECOND);
        let key = Id(world.rng.u128(..));
        let (one, other) = (any(&mut world), any(&mut world));
        let claim = |value| {
            let author = if value == "one" { one } else { other };
            let record = record(key, 1, author, value);
            Question::Claim { record, expected: 0, enough: count.min(3) }
        };
        let first = ask(&mut world, one, claim("one"));
        let pause = Duration::from_millis(world.rng.u64(0..300));
        world.run(pause);
        let second = ask(&mut world, other, claim("other"));
        world.run(10 * SECOND);
        let won = |call| matches!(&world.around.answers[&call], Answer::Stored(s) if !s.is_empty());
        let taken = |call| matches!(&world.around.answers[&call], Answer::Taken(Some(_)));
        assert!(won(first) != won(second), "seed {seed}: both or neither");
        assert!(taken(first) || taken(second), "seed {seed}: nobody is told");
    }
}

/// A node alone answers itself, and sends nothing.
#[test]
fn one_node_needs_nobody() {
    let mut world = world(1, 1);
    let id = world.ids()[0];
    let put = record(Id(7), 1, id, "value");
    let call = ask(&mut world, id, Question::Put { record: put, enough: 1 });
    world.run(MINUTE);
    assert!(matches!(&world.around.answers[&call], Answer::Stored(holders) if holders.len() == 1));
    assert_eq!(world.sent, 0);
    let bytes = &world.around.disks[&id][&(Id(7), b"n".to_vec())];
    let kept: Record = postcard::from_bytes(bytes).unwrap();
    assert_eq!(kept.value.as_deref(), Some(&b"value"[..]));
}

/// An answer nobody asked for, or from somebody else, changes nothing.
#[test]
fn answers_of_strangers_are_counted() {
    let mut world = world(3, 2);
    let (me, other) = (world.ids()[0], world.ids()[1]);
    world.run(SECOND);
    let response = dugnad_collective::persistence::Response::Copied;
    world.message(other, me, Msg::Response { call: 77, response });
    world.run(SECOND);
    let late = world.get(me).unwrap().counters().find(|(name, _)| *name == "late_response");
    assert_eq!(late, Some(("late_response", 1)));
    assert!(world.now > Time(0));
}

/// A stamp of the future is refused by whoever knows better, and taken where no clock says so.
#[test]
fn a_stamp_of_the_future_is_refused() {
    let mut world = world(61, 4);
    let now = 1_800_000_000_000;
    let ids = world.ids();
    for id in &ids {
        world.command(*id, Command::Clock(Some(now)));
    }
    world.run(SECOND);
    let key = Id(61 << 100);
    let hour = u64::try_from(Duration::from_secs(3_600).as_millis()).unwrap();
    let stamped = |unix_ms| Record {
        key,
        name: b"stamped".to_vec(),
        version: Version { counter: hlc::stamp(unix_ms), author: ids[0] },
        value: Some(vec![1]),
    };
    let early = ask(&mut world, ids[0], Question::Put { record: stamped(now + hour), enough: 2 });
    world.run(MINUTE);
    assert!(matches!(&world.around.answers[&early], Answer::Stored(holders) if holders.is_empty()));
    for id in &ids {
        world.command(*id, Command::Clock(None));
    }
    let unknown = ask(&mut world, ids[0], Question::Put { record: stamped(now + hour), enough: 2 });
    world.run(MINUTE);
    assert!(
        matches!(&world.around.answers[&unknown], Answer::Stored(holders) if holders.len() > 1)
    );
}

/// Tombstones of stamped records go after a month, everywhere, and do not come back; others stay.
#[test]
fn old_tombstones_are_forgotten() {
    let mut world = world(62, 5);
    let now = 1_800_000_000_000;
    let ids = world.ids();
    for id in &ids {
        world.command(*id, Command::Clock(Some(now)));
    }
    world.run(SECOND);
    let key = Id(62 << 100);
    let version = Version { counter: hlc::stamp(now), author: ids[0] };
    for (name, counter) in [(&b"stamped"[..], version.counter), (b"counted", 1)] {
        let version = Version { counter, ..version };
        let record = Record { key, name: name.to_vec(), version, value: None };
        ask(&mut world, ids[0], Question::Put { record, enough: 2 });
    }
    world.run(MINUTE);
    let here = |world: &World, name: &[u8]| {
        world.live().filter(|(_, node)| node.records().get(key, name).is_some()).count()
    };
    assert!(here(&world, b"stamped") > 0 && here(&world, b"counted") > 0);
    let later = u64::try_from((TOMBSTONE_KEPT + MINUTE).as_millis()).unwrap();
    // One clock lags: it keeps what it has, and gives it to nobody.
    for id in &ids[1..] {
        world.command(*id, Command::Clock(Some(now + later)));
    }
    world.run(MINUTE * 40);
    let kept = world.get(ids[0]).unwrap().records().get(key, b"stamped").is_some();
    assert_eq!(here(&world, b"stamped"), usize::from(kept));
    world.command(ids[0], Command::Clock(Some(now + later)));
    world.run(MINUTE * 20);
    assert_eq!(here(&world, b"stamped"), 0);
    assert!(here(&world, b"counted") > 0, "a count says nothing about time");
    assert!(
        world.around.disks.values().all(|disk| !disk.contains_key(&(key, b"stamped".to_vec())))
    );
}
