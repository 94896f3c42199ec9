//! What people and services have the community keep, under faults.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, Hash, NodeId, Time};
use dugnad_node::{
    Address, Answer, AskId, Content, Context, Expect, Manner, Namespace, ObjectAnswer,
    ObjectQuestion, Seal,
};
use dugnad_resource::spec::Tree;
use dugnad_sim::report::community;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(60);

fn at(key: &str) -> Address {
    Address::parse(key).unwrap()
}

fn inline(value: &str) -> Content {
    Content::Inline(value.as_bytes().to_vec())
}

fn putting(key: &str, content: Option<Content>) -> ObjectQuestion {
    let (expect, context, manner) = (None, None, None);
    ObjectQuestion::Put {
        address: at(key),
        content,
        expect,
        context,
        manner,
        create: true,
        seal: None,
    }
}

fn answered(world: &mut World, ask: AskId) -> ObjectAnswer {
    assert!(world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask)), "no answer");
    match world.answers.get(&ask).cloned() {
        Some(Answer::Object(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

fn ask(world: &mut World, id: NodeId, question: ObjectQuestion) -> ObjectAnswer {
    let ask = world.ask(id, question);
    answered(world, ask)
}

/// Writes; the version it got.
fn put(world: &mut World, id: NodeId, key: &str, value: &str) -> u64 {
    match ask(world, id, putting(key, Some(inline(value)))) {
        ObjectAnswer::Written { version, .. } => version,
        other => panic!("{key}: {other:?}"),
    }
}

/// The values there are, and what replaces them.
fn get(world: &mut World, id: NodeId, key: &str) -> (Vec<String>, Option<Context>) {
    match ask(world, id, ObjectQuestion::Get(at(key))) {
        ObjectAnswer::Found { values, context, .. } => {
            let text = |value: &dugnad_node::Value| match &value.content {
                Content::Inline(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                Content::Blob(tree) | Content::Folder { tree, .. } => {
                    format!("{} bytes", tree.bytes)
                }
            };
            (values.iter().map(text).collect(), context)
        }
        ObjectAnswer::Absent { context, .. } => (Vec::new(), context),
        other => panic!("{key}: {other:?}"),
    }
}

fn list(world: &mut World, id: NodeId, prefix: &str) -> Vec<String> {
    let (namespace, prefix) = prefix.split_once('/').unwrap();
    let mut all: Vec<String> = Vec::new();
    loop {
        let question = ObjectQuestion::List {
            namespace: namespace.into(),
            prefix: prefix.into(),
            after: all.last().cloned().unwrap_or_default(),
        };
        match ask(world, id, question) {
            ObjectAnswer::Listed { objects, more, complete } => {
                assert!(complete);
                all.extend(objects.into_iter().map(|listed| listed.path));
                if !more {
                    return all;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// From every node alike, with one node as with many.
#[test]
fn what_is_put_at_one_node_is_read_at_all() {
    for size in [1, 2, 3, 5, 12] {
        let mut world = World::new(Options::seed(700 + size as u64));
        let ids = community(&mut world, size);
        let (first, last) = (ids[0], *ids.last().unwrap());
        put(&mut world, first, "notes/today", "hola");
        put(&mut world, last, "notes/other/deep", "1");
        for id in &ids {
            assert_eq!(get(&mut world, *id, "notes/today").0, ["hola"], "{size} nodes");
            assert_eq!(list(&mut world, *id, "notes/"), ["other/deep", "today"]);
            assert_eq!(list(&mut world, *id, "notes/o"), ["other/deep"]);
        }
        let version = put(&mut world, last, "notes/today", "adéu");
        assert_eq!(get(&mut world, first, "notes/today").0, ["adéu"], "{size} nodes");
        let expect = |expect| ObjectQuestion::Put {
            address: at("notes/today"),
            content: Some(inline("x")),
            expect: Some(expect),
            context: None,
            manner: None,
            create: false,
            seal: None,
        };
        let lost = ask(&mut world, first, expect(Expect::Version(1)));
        assert_eq!(lost, ObjectAnswer::Lost { version, strong: false });
        let lost = ask(&mut world, first, expect(Expect::Absent));
        assert_eq!(lost, ObjectAnswer::Lost { version, strong: false });
        let won = ask(&mut world, first, expect(Expect::Version(version)));
        assert!(matches!(won, ObjectAnswer::Written { .. }), "{won:?}");
        let removed = ask(&mut world, last, putting("notes/today", None));
        assert!(matches!(removed, ObjectAnswer::Written { .. }), "{removed:?}");
        assert_eq!(get(&mut world, first, "notes/today").0, [""; 0]);
        assert_eq!(list(&mut world, last, "notes/"), ["other/deep"]);
        let absent = ask(&mut world, first, putting("notes/today", None));
        assert!(matches!(absent, ObjectAnswer::Absent { .. }), "{absent:?}");
        let unknown = ask(&mut world, last, ObjectQuestion::Get(at("nowhere/x")));
        assert!(matches!(unknown, ObjectAnswer::Unknown(_)), "{unknown:?}");
    }
}

#[test]
fn long_lists_come_in_pages() {
    let mut world = World::new(Options::seed(71));
    let ids = community(&mut world, 4);
    let mut want = Vec::new();
    for number in 0..600 {
        let path = format!("{number:03}-{}", "x".repeat(number % 300));
        put(&mut world, ids[number % 4], &format!("many/{path}"), "");
        want.push(path);
    }
    assert_eq!(list(&mut world, ids[2], "many/"), want);
    assert_eq!(list(&mut world, ids[1], "many/59"), want[590..]);
}

/// The later write counts although clocks differ; one that is far ahead writes nothing.
#[test]
fn clocks_may_differ_but_not_by_an_hour() {
    let mut world = World::new(Options::seed(72));
    let ids = community(&mut world, 3);
    put(&mut world, ids[0], "notes/x", "first");
    for (ahead, value) in [(Some(-3_600_000), "slow"), (None, "never set"), (Some(300_000), "fast")]
    {
        world.set_clock(ids[1], ahead);
        put(&mut world, ids[1], "notes/x", value);
        assert_eq!(get(&mut world, ids[2], "notes/x").0, [value]);
        put(&mut world, ids[0], "notes/x", "after");
        assert_eq!(get(&mut world, ids[1], "notes/x").0, ["after"], "after {value}");
    }
    world.set_clock(ids[1], Some(3_600_000));
    let refused = ask(&mut world, ids[1], putting("notes/x", Some(inline("future"))));
    assert!(matches!(&refused, ObjectAnswer::Refused(why) if why.contains("ahead")), "{refused:?}");
    for id in &ids {
        assert_eq!(get(&mut world, *id, "notes/x").0, ["after"], "nothing of it is there");
    }
    world.set_clock(ids[1], Some(0));
    put(&mut world, ids[1], "notes/x", "set right");
    assert_eq!(get(&mut world, ids[0], "notes/x").0, ["set right"]);
}

#[test]
fn limits_of_a_namespace_hold() {
    let mut world = World::new(Options::seed(73));
    let ids = community(&mut world, 3);
    let declare = |change: fn(&mut Namespace)| {
        let mut namespace = Namespace::plain("small");
        namespace.quota = 100;
        change(&mut namespace);
        ObjectQuestion::Declare(namespace)
    };
    ask(&mut world, ids[0], declare(|_| {}));
    put(&mut world, ids[1], "small/a", &"x".repeat(60));
    let more = ask(&mut world, ids[2], putting("small/b", Some(inline(&"x".repeat(60)))));
    assert!(matches!(&more, ObjectAnswer::Unmet(why) if why[0].contains("60 bytes of 100")));
    put(&mut world, ids[2], "small/a", &"y".repeat(100));
    ask(&mut world, ids[2], putting("small/a", None));
    put(&mut world, ids[2], "small/b", &"z".repeat(90));
    let change = ask(&mut world, ids[0], declare(|n| n.manner = Manner::Merge));
    assert!(matches!(change, ObjectAnswer::Refused(_)), "{change:?}");
    ask(&mut world, ids[0], declare(|n| n.read_only = true));
    world.run_for(Duration::from_secs(11));
    let locked = ask(&mut world, ids[1], putting("small/c", Some(inline("c"))));
    assert!(matches!(locked, ObjectAnswer::Refused(_)), "{locked:?}");
    assert_eq!(get(&mut world, ids[1], "small/b").0[0].len(), 90, "it is still read");
}

/// A namespace that names a key takes only what says that it is encrypted with that.
#[test]
fn a_sealed_namespace_takes_nothing_in_the_open() {
    let mut world = World::new(Options::seed(7_350));
    let ids = community(&mut world, 3);
    let own = Some(Seal([1; 8]));
    let sealed = Namespace { seal: own, ..Namespace::plain("diary") };
    let made = ask(&mut world, ids[0], ObjectQuestion::Declare(sealed.clone()));
    assert_eq!(made, ObjectAnswer::Namespace(sealed));
    for id in &ids {
        for (seal, may) in [(None, false), (Some(Seal([2; 8])), false), (own, true)] {
            let ObjectQuestion::Put { address, content, expect, context, manner, create, .. } =
                putting("diary/a", Some(inline("x")))
            else {
                continue;
            };
            let check = ObjectQuestion::Check {
                address: address.clone(),
                bytes: 10_000,
                manner,
                create,
                seal,
            };
            let put =
                ObjectQuestion::Put { address, content, expect, context, manner, create, seal };
            for question in [check, put] {
                let answer = ask(&mut world, *id, question);
                let refused = matches!(answer, ObjectAnswer::Refused(_));
                assert_eq!(refused, !may, "{seal:?}: {answer:?}");
            }
        }
    }
    for seal in [None, Some(Seal([2; 8]))] {
        let other = Namespace { seal, ..Namespace::plain("diary") };
        let answer = ask(&mut world, ids[1], ObjectQuestion::Declare(other));
        assert!(matches!(answer, ObjectAnswer::Refused(_)), "{answer:?}");
    }
    let removed = ask(&mut world, ids[2], putting("diary/a", None));
    assert!(matches!(removed, ObjectAnswer::Written { .. }), "{removed:?}");
}

/// Both sides of a cut write: one value where the last counts, both where they merge, the same at
/// all nodes, until somebody who has read them writes.
#[test]
fn after_a_cut_everybody_reads_the_same() {
    for seed in 0..30 {
        let mut world = World::new(Options::seed(7_400 + seed));
        let ids = community(&mut world, 6);
        let merging = Namespace { manner: Manner::Merge, ..Namespace::plain("votes") };
        ask(&mut world, ids[0], ObjectQuestion::Declare(merging));
        put(&mut world, ids[0], "notes/x", "before");
        put(&mut world, ids[0], "votes/x", "before");
        let side: BTreeMap<NodeId, u32> =
            ids.iter().enumerate().map(|(n, id)| (*id, u32::from(n >= 3))).collect();
        world.partition(side);
        world.run_for(Duration::from_secs(120));
        for (id, value) in [(ids[0], "one"), (ids[5], "two")] {
            put(&mut world, id, "notes/x", value);
            put(&mut world, id, "votes/x", value);
        }
        world.net.heal();
        world.run_for(Duration::from_secs(900));
        let last = get(&mut world, ids[2], "notes/x").0;
        assert!(last == ["one"] || last == ["two"], "seed {seed}: {last:?}");
        for id in &ids {
            assert_eq!(get(&mut world, *id, "notes/x").0, last, "seed {seed}");
            let (mut both, _) = get(&mut world, *id, "votes/x");
            both.sort();
            assert_eq!(both, ["one", "two"], "seed {seed}");
        }
        put(&mut world, ids[4], "votes/x", "settled");
        assert_eq!(get(&mut world, ids[1], "votes/x").0, ["settled"], "seed {seed}");
    }
}

/// A line for each change, wherever the owner of the key goes.
#[test]
fn who_watches_hears_of_every_change() {
    for seed in 0..10 {
        let mut world = World::new(Options::seed(7_500 + seed));
        let ids = community(&mut world, 5);
        put(&mut world, ids[0], "notes/x", "0");
        let watcher = ids[4];
        ask(&mut world, watcher, ObjectQuestion::Watch(at("notes/x")));
        world.run_for(SECOND);
        for number in 1..4 {
            put(&mut world, ids[number % 3], "notes/x", &number.to_string());
            world.run_for(SECOND);
        }
        let key = at("notes/x").key();
        let owns = |id: &NodeId| world.node(*id).unwrap().overlay().ring().owns(key);
        let owner = ids.iter().copied().find(owns).unwrap();
        if owner != watcher {
            world.crash(owner, Crash::Power);
            world.run_for(Duration::from_secs(60));
        }
        let asker = world.alive()[0];
        put(&mut world, asker, "notes/x", "4");
        ask(&mut world, asker, putting("notes/x", None));
        world.run_for(Duration::from_secs(31));
        let heard: Vec<Option<Vec<u8>>> = world.machines[&watcher]
            .changes
            .iter()
            .map(|(_, answer)| match answer {
                ObjectAnswer::Found { values, .. } => match &values[0].content {
                    Content::Inline(bytes) => Some(bytes.clone()),
                    Content::Blob(_) | Content::Folder { .. } => None,
                },
                _ => None,
            })
            .collect();
        let value = |text: &str| Some(text.as_bytes().to_vec());
        let want = [value("1"), value("2"), value("3"), value("4"), None];
        assert_eq!(heard, want, "seed {seed}");
        ask(&mut world, watcher, ObjectQuestion::Unwatch(at("notes/x")));
    }
}

/// The bytes of a long value are at others before it counts, and go when it is replaced.
#[test]
fn blobs_come_and_go_with_their_object() {
    for size in [1, 2, 3, 7] {
        let mut world = World::new(Options::seed(760 + size as u64));
        let ids = community(&mut world, size);
        let tree = |n: u8| Tree { root: Hash([n; 32]), bytes: 5 << 20 };
        for n in 1..4 {
            let at = ids[usize::from(n) % size];
            world.give_tree(at, tree(n));
            let question = putting("files/big", Some(Content::Blob(tree(n))));
            let written = ask(&mut world, at, question);
            assert!(matches!(written, ObjectAnswer::Written { .. }), "{size}: {written:?}");
            world.run_for(Duration::from_secs(30));
            let has =
                |n| world.machines.values().filter(|m| m.disk.trees.contains(&tree(n))).count();
            assert!(has(n) >= 2.min(size), "{size} nodes: {} have it", has(n));
            if n > 1 {
                assert_eq!(has(n - 1), 0, "{size} nodes: the old one stays");
            }
        }
        let asker = ids[0];
        ask(&mut world, asker, putting("files/big", None));
        world.run_for(Duration::from_secs(30));
        assert!(world.machines.values().all(|m| m.disk.trees.is_empty()), "{size} nodes");
    }
}

/// A write, from when it was asked for until it was answered.
struct Write {
    ask: AskId,
    value: String,
    from: Time,
    until: Option<Time>,
}

impl Write {
    fn done(&self, world: &World) -> bool {
        let answer = world.answers.get(&self.ask);
        matches!(answer, Some(Answer::Object(ObjectAnswer::Written { .. })))
    }
}

/// Runs for a while and notes which writes are answered when.
fn run_noting(world: &mut World, span: Duration, writes: &mut BTreeMap<String, Vec<Write>>) {
    let end = world.now + span;
    while world.now < end {
        world.run_for(SECOND / 100);
        for write in writes.values_mut().flatten().filter(|write| write.until.is_none()) {
            write.until = world.answers.contains_key(&write.ask).then_some(world.now);
        }
    }
}

/// What was acknowledged is not lost while nodes crash, at most two at a time, and come back: a key
/// never ends with a value whose write was over before one was asked for that was acknowledged.
#[test]
fn what_was_acknowledged_survives_crashes() {
    for seed in 0..200 {
        let mut world = World::new(Options::seed(77_000 + seed));
        let size = 4 + usize::try_from(seed).unwrap() % 4;
        let ids = community(&mut world, size);
        put(&mut world, ids[0], "notes/0", "begin");
        let mut writes: BTreeMap<String, Vec<Write>> = BTreeMap::new();
        for number in 0..40_u32 {
            let alive = world.alive();
            let at = alive[world.rng.usize(0..alive.len())];
            let key = format!("notes/{}", world.rng.u8(0..4));
            let value = number.to_string();
            let ask = world.ask(at, putting(&key, Some(inline(&value))));
            let write = Write { ask, value, from: world.now, until: None };
            writes.entry(key).or_default().push(write);
            let pause = Duration::from_millis(world.rng.u64(50..4_000));
            run_noting(&mut world, pause, &mut writes);
            let down: Vec<NodeId> =
                ids.iter().copied().filter(|id| world.node(*id).is_none()).collect();
            match world.rng.u8(0..6) {
                0 if down.len() < 2 => {
                    let alive = world.alive();
                    let victim = alive[world.rng.usize(0..alive.len())];
                    let how = if world.rng.bool() { Crash::Power } else { Crash::Process };
                    world.crash(victim, how);
                }
                1 | 2 if !down.is_empty() => {
                    world.start(down[0]);
                    run_noting(&mut world, Duration::from_secs(40), &mut writes);
                }
                _ => {}
            }
        }
        for id in &ids {
            if world.node(*id).is_none() {
                world.start(*id);
            }
        }
        run_noting(&mut world, Duration::from_secs(120), &mut writes);
        for (key, writes) in &writes {
            let reader = world.alive()[0];
            let (values, _) = get(&mut world, reader, key);
            let last = values.first().and_then(|value| writes.iter().find(|w| w.value == *value));
            let over = last.map_or(Some(Time(0)), |write| write.until);
            let lost = writes.iter().find(|w| w.done(&world) && over.is_some_and(|o| w.from > o));
            let lost = lost.map(|write| &write.value);
            assert_eq!(lost, None, "seed {seed}: {key} is {values:?}");
        }
    }
}

/// Writes to a strong namespace: the revision.
fn strong(world: &mut World, id: NodeId, value: &str, expect: Option<Expect>) -> ObjectAnswer {
    let (content, manner) = (Some(inline(value)), Some(Manner::Strong));
    let address = at("reg/x");
    let put = ObjectQuestion::Put {
        address,
        content,
        expect,
        context: None,
        manner,
        create: true,
        seal: None,
    };
    ask(world, id, put)
}

/// A strong namespace at every small size: one order for everybody, a true degree, and silence.
#[test]
fn a_strong_namespace_has_one_order_for_everybody() {
    for (size, members) in [(1, 1), (2, 1), (3, 3), (5, 5), (9, 5)] {
        let mut world = World::new(Options::seed(7_800 + size as u64));
        let ids = community(&mut world, size);
        world.run_for(Duration::from_secs(120));
        for (id, revision) in ids.iter().zip(1..) {
            let expect = match revision {
                1 => Expect::Absent,
                later => Expect::Version(later - 1),
            };
            let value = revision.to_string();
            let written = strong(&mut world, *id, &value, Some(expect));
            assert_eq!(written, ObjectAnswer::Chosen { revision, members }, "{size} nodes");
            let lost = strong(&mut world, ids[0], "x", Some(Expect::Version(revision + 1)));
            assert_eq!(lost, ObjectAnswer::Lost { version: revision, strong: true });
            for reader in &ids {
                let read = get(&mut world, *reader, "reg/x").0;
                assert_eq!(read.first(), Some(&value), "{size} nodes");
            }
        }
        assert_eq!(list(&mut world, ids[0], "reg/"), ["x"]);
    }
}

/// Three that start at once: all keep registers within a minute, though who is to look after them
/// may not be found at first.
#[test]
fn three_that_start_at_once_all_keep_registers() {
    for seed in 0..200 {
        let mut world = World::new(Options::seed(7_850 + seed));
        let first = world.add(&[]);
        world.start(first);
        let ids = [first, world.add(&[first]), world.add(&[first])];
        for id in &ids[1..] {
            let pause = Duration::from_millis(world.rng.u64(0..200));
            world.run_for(pause);
            world.start(*id);
        }
        world.run_for(SECOND * 50);
        let written = strong(&mut world, first, "1", None);
        assert_eq!(written, ObjectAnswer::Chosen { revision: 1, members: 3 }, "seed {seed}");
    }
}

/// The founder and others die one by one and are replaced; what was written stays readable, also
/// after everybody lost power together.
#[test]
fn a_strong_value_outlives_those_who_kept_it() {
    for seed in 0..12 {
        let mut world = World::new(Options::seed(7_900 + seed));
        let ids = community(&mut world, 6);
        world.run_for(Duration::from_secs(120));
        let written = strong(&mut world, ids[3], "kept", None);
        assert!(matches!(written, ObjectAnswer::Chosen { .. }), "seed {seed}: {written:?}");
        for id in &ids[..2] {
            world.crash(*id, Crash::Power);
            world.run_for(Duration::from_secs(180));
            let reader = world.alive()[0];
            assert_eq!(get(&mut world, reader, "reg/x").0, ["kept"], "seed {seed}");
        }
        for id in world.alive() {
            world.crash(id, Crash::Power);
        }
        for id in &ids {
            world.start(*id);
        }
        world.run_for(Duration::from_secs(120));
        for id in &ids {
            assert_eq!(get(&mut world, *id, "reg/x").0, ["kept"], "seed {seed}");
        }
    }
}
