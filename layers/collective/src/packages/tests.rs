//! Packages alone: records and hosts are played.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Duration, Hash, Id, NodeId};
use dugnad_resource::execute::{Order, Report};
use dugnad_resource::spec::Tree;

use super::{Command, Event, Packages, Question, SMALL};
use crate::persistence;
use crate::played::Played;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Community {
    played: Played,
    /// The bytes that lie on each machine.
    bytes: BTreeMap<NodeId, BTreeSet<Tree>>,
    /// Machines without room.
    full: BTreeSet<NodeId>,
    answers: BTreeMap<u32, Result<(), Vec<String>>>,
    fetches: usize,
}

type World = testing::World<Packages, Community>;

impl Around<Packages> for Community {
    fn on_event(world: &mut World, at: NodeId, event: Event) {
        let after = Duration::from_millis(world.rng.u64(1..100));
        match event {
            Event::Records { call, question } => {
                let (answer, changed) = world.around.played.answer(question);
                world.command_after(after, at, Command::Records { call, answer });
                for id in world.ids() {
                    if let Some(name) = changed.clone() {
                        world.command_after(after, id, Command::Changed(name));
                    }
                }
            }
            Event::Order(Order::KeepPackage { tree, from }) => {
                world.around.fetches += 1;
                let has = |id: &NodeId| {
                    world.get(*id).is_some() && world.around.bytes[id].contains(&tree)
                };
                let report = if world.around.full.contains(&at) {
                    Report::KeepFailed { tree, reason: "no room".into() }
                } else if from.iter().chain([&at]).any(has) {
                    world.around.bytes.get_mut(&at).unwrap().insert(tree);
                    Report::Kept { tree }
                } else {
                    Report::KeepFailed { tree, reason: "nobody has it".into() }
                };
                world.command_after(after, at, Command::Report(report));
            }
            Event::Order(Order::Drop { tree }) => {
                world.around.bytes.get_mut(&at).unwrap().remove(&tree);
            }
            Event::Order(other) => panic!("{other:?} is not for packages"),
            Event::Answer { call, answer } => {
                assert!(world.around.answers.insert(call, answer).is_none(), "answered twice");
            }
        }
    }

    fn check(packages: &Packages) {
        for (name, size, most) in packages.sizes() {
            assert!(size <= most, "{size} {name}, at most {most}");
        }
    }
}

fn world(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, Community::default());
    for _ in 0..count {
        let id = Id(world.rng.u128(..));
        let records = world.around.played.join(id);
        world.start(id, Packages::new(id, records));
        world.around.bytes.insert(id, BTreeSet::new());
    }
    tell(&mut world);
    world
}

fn tell(world: &mut World) {
    for id in world.ids() {
        if world.get(id).is_some() {
            let position = world.around.played.position(id);
            world.command(id, Command::Moved(position));
        }
    }
}

fn tree(bytes: u64) -> Tree {
    Tree { root: Hash::of(&bytes.to_le_bytes()), bytes }
}

/// The machine has the bytes, and asks that they be kept; what it is answered.
fn store(world: &mut World, at: NodeId, tree: Tree) -> Result<(), Vec<String>> {
    world.around.bytes.get_mut(&at).unwrap().insert(tree);
    let question = Question::Store { service: Id(7), trees: vec![tree] };
    world.command(at, Command::Ask { call: 1, question });
    world.run(SECOND * 20);
    world.around.answers.remove(&1).unwrap()
}

fn holders(world: &World, tree: Tree) -> usize {
    let bytes = world.around.bytes.iter().filter(|(id, _)| world.get(**id).is_some());
    bytes.filter(|(_, trees)| trees.contains(&tree)).count()
}

/// Whoever owns a place of it keeps it, whoever comes to own one gets it, and when no service needs
/// it nobody keeps it. Then nobody says anything.
#[test]
fn a_package_is_where_it_belongs() {
    for seed in 0..200 {
        let count = 1 + seed as usize % 9;
        let mut world = world(seed, count);
        let at = world.ids()[world.rng.clone().usize(0..count)];
        let tree = tree(if seed % 2 == 0 { SMALL } else { SMALL + 1 });
        assert_eq!(store(&mut world, at, tree), Ok(()), "{count} nodes");
        assert!(holders(&world, tree) >= count.min(2));
        for owner in world.around.played.owners(tree.key()) {
            assert!(world.around.bytes[&owner].contains(&tree), "an owner has nothing");
        }
        let owners = world.around.played.owners(tree.key());
        if let Some(dead) = owners.into_iter().find(|id| *id != at && count > 2) {
            world.crash(dead);
            world.around.played.members.remove(&dead);
            tell(&mut world);
            world.run(SECOND * 120);
            for owner in world.around.played.owners(tree.key()) {
                assert!(world.around.bytes[&owner].contains(&tree), "the new owner has nothing");
            }
        }
        let (sent, fetches) = (world.sent, world.around.fetches);
        world.run(SECOND * 3_600);
        assert_eq!((world.sent, world.around.fetches), (sent, fetches), "silence");
        let question = Question::Forget { service: Id(7), trees: vec![tree] };
        world.command(at, Command::Ask { call: 2, question });
        world.run(SECOND * 10);
        assert_eq!(world.around.answers.remove(&2), Some(Ok(())));
        // What lies with whoever stored it, and belongs elsewhere, goes when its disk needs room.
        world.around.bytes.remove(&at);
        assert_eq!(holders(&world, tree), 0, "{count} nodes keep what nobody needs");
    }
}

/// Where nobody else has room, whoever stores it learns why, machine by machine.
#[test]
fn who_has_no_room_says_so() {
    for count in 2..6 {
        let mut world = world(count as u64, count);
        let at = world.ids()[0];
        world.around.full = world.ids().into_iter().filter(|id| *id != at).collect();
        let reasons = store(&mut world, at, tree(9)).unwrap_err();
        assert!(reasons.iter().all(|reason| reason.ends_with("no room")), "{reasons:?}");
        assert!(!reasons.is_empty());
    }
}

/// An owner without room has it kept beside it: two nodes have it when the one that stored it is
/// told so, where those who look for it will find it. Where that cannot be, it is told why.
#[test]
fn who_has_no_room_has_it_kept_beside_it() {
    let mut beside = 0;
    for seed in 0..500 {
        let count = 2 + seed as usize % 8;
        let mut world = world(seed, count);
        let ids = world.ids();
        let at = ids[world.rng.usize(0..count)];
        world.around.full = ids.iter().copied().filter(|_| world.rng.usize(0..3) > 0).collect();
        let (tree, full) = (tree(SMALL + seed), world.around.full.clone());
        let answer = store(&mut world, at, tree);
        let owners = world.around.played.owners(tree.key());
        let (found, _) = world.around.played.answer(persistence::Question::Holders(tree.key()));
        let persistence::Answer::Owners(found) = found else { panic!() };
        let keeps = |id: &&NodeId| world.around.bytes[id].contains(&tree) && found.contains(id);
        let keepers: Vec<NodeId> = ids.iter().filter(keeps).copied().collect();
        match answer {
            Ok(()) => assert!(keepers.len() >= 2, "{count} nodes: {keepers:?}"),
            Err(reasons) => {
                assert!(!reasons.is_empty());
                let room = owners.iter().filter(|id| !full.contains(id) || **id == at).count();
                assert!(room < 2, "seed {seed}: {room} of the owners have room: {reasons:?}");
            }
        }
        beside += keepers.iter().filter(|id| !owners.contains(id)).count();
        // Owners try again, less and less often; nobody else says anything.
        world.run(SECOND * 7_200);
        let sent = world.sent;
        world.run(SECOND * 7_200);
        let most = 8 * 4 * full.len();
        assert!(world.sent - sent <= most, "seed {seed}: {} messages", world.sent - sent);
    }
    assert!(beside > 100, "{beside} kept beside an owner");
}

/// One that cannot be fetched is tried again, less and less often.
#[test]
fn what_nobody_has_is_not_looked_for_all_the_time() {
    let mut world = world(4, 5);
    let at = world.ids()[0];
    assert_eq!(store(&mut world, at, tree(9)), Ok(()));
    world.around.bytes.values_mut().for_each(BTreeSet::clear);
    for id in world.ids() {
        let records = world.around.played.join(id);
        world.start(id, Packages::new(id, records));
    }
    tell(&mut world);
    world.run(SECOND * 3_600);
    let before = world.around.fetches;
    world.run(SECOND * 3_600);
    let tries = world.around.fetches - before;
    assert!((1..=5 * 2 * 5).contains(&tries), "{tries} tries of five nodes in an hour");
}
