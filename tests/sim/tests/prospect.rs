//! Looking for nodes, under faults: what is found is so, what is there is found, nothing goes on.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_node::{Answer, Command, Cost, ProspectAnswer, ProspectQuestion, Question};
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::{Description, Labels};
use dugnad_sim::report::community;
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(90);

/// Every tenth node has a panel on its roof, every hundredth a clock that is right.
fn label(world: &mut World, ids: &[NodeId]) -> BTreeSet<NodeId> {
    let solar: BTreeSet<NodeId> = ids.iter().step_by(10).copied().collect();
    for (number, id) in ids.iter().enumerate() {
        let mut tags: Vec<String> = Vec::new();
        tags.extend(solar.contains(id).then(|| "solar".to_owned()));
        tags.extend((number % 100 == 0).then(|| "clock".to_owned()));
        let zone = if number % 2 == 0 { "even" } else { "odd" }.to_owned();
        world.command(*id, Command::Labels(Labels { zone, tags, uplink: None }));
    }
    solar
}

fn find(world: &mut World, id: NodeId, typed: &str, want: u16) -> (Vec<Description>, Cost) {
    let condition = Condition::parse(typed, &NODE).unwrap();
    let ask = world.ask(id, ProspectQuestion::Find { condition, want });
    assert!(world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask)), "no answer");
    match world.answers.get(&ask).cloned() {
        Some(Answer::Prospect(ProspectAnswer::Found { nodes, cost })) => (nodes, cost),
        other => panic!("{other:?}"),
    }
}

fn peers(nodes: &[Description]) -> BTreeSet<NodeId> {
    nodes.iter().map(|node| node.peer.id).collect()
}

/// Messages from a node to who keeps the sample, and back.
fn way(world: &mut World, id: NodeId) -> u64 {
    let ask = world.ask(id, Question::Lookup(Key::of_name("prospector", b"sample")));
    assert!(world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask)), "no answer");
    match world.answers.get(&ask) {
        Some(Answer::Found { hops, .. }) => u64::from(*hops) + 1,
        other => panic!("{other:?}"),
    }
}

/// From every node alike, and each node is asked once.
#[test]
fn a_small_community_is_asked_as_a_whole() {
    for size in [1, 2, 3, 12] {
        let mut world = World::new(Options::seed(900 + size as u64));
        let ids = community(&mut world, size);
        let solar = label(&mut world, &ids);
        for id in &ids {
            let (nodes, cost) = find(&mut world, *id, "tags~solar zone=even", 256);
            assert_eq!(peers(&nodes), solar, "{size} nodes");
            assert_eq!((cost.asked as usize, cost.complete), (size, true));
            assert_eq!(cost.messages as usize, 2 * (size - 1));
            let (nodes, _) = find(&mut world, *id, "memory>=1T", 256);
            assert!(nodes.is_empty());
            let (nodes, _) = find(&mut world, *id, "", 2);
            assert_eq!(nodes.len(), size.min(2), "no more than were wanted");
        }
        let ask = world.ask(ids[0], ProspectQuestion::Census);
        world.run_for(SECOND);
        match world.answers.get(&ask) {
            Some(Answer::Prospect(ProspectAnswer::Census { nodes, cost })) => {
                assert_eq!((nodes.len(), cost.complete), (size, true));
                assert_eq!(nodes.iter().filter(|n| n.zone == "even").count(), size.div_ceil(2));
            }
            other => panic!("{other:?}"),
        }
        silent(&mut world).unwrap();
    }
}

/// Searches for one node by three attributes, of which at least one node in a hundred is so: how
/// many of them find it with 64 nodes asked.
fn within_a_budget(world: &mut World, ids: &[NodeId]) {
    let (mut satisfied, mut asked) = (0, 0);
    for round in 0..100 {
        let (zone, tag) = (["odd", "even"][round % 2], ["solar", "clock"][round / 2 % 2]);
        let (zone, tag) = if tag == "clock" || zone == "odd" { ("even", tag) } else { (zone, tag) };
        let typed = format!("zone={zone} tags~{tag} memory>={}M", 1 + round);
        let (nodes, cost) = find(world, ids[round * 7 % ids.len()], &typed, 1);
        assert!(!nodes.is_empty(), "{typed}: what is there is found");
        satisfied += u32::from(cost.asked <= 64);
        asked += cost.asked;
    }
    println!(
        "{} nodes: {satisfied} of 100 searches ask at most 64 nodes, {asked} in all",
        ids.len()
    );
    assert!(satisfied >= 95);
}

#[test]
fn a_large_community_is_asked_in_part_and_whole_if_it_must() {
    let size = std::env::var("NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut world = World::new(Options::seed(950));
    let ids = community(&mut world, size);
    let solar = label(&mut world, &ids);
    let shares = [("zone=odd", 50), ("tags~solar", 10), ("tags~clock", 1)];
    // Nobody has asked so far: there is no sample yet.
    let (nodes, cost) = find(&mut world, ids[5], "zone=odd", 3);
    assert!(nodes.len() == 3 && nodes.iter().all(|node| node.zone() == "odd") && cost.complete);
    world.run_for(SECOND * 5);
    let log = f64::from(u32::try_from(size).unwrap()).log2();
    for (typed, share) in shares {
        let mut messages = Vec::new();
        for id in ids.iter().step_by(size / 20) {
            world.run_for(SECOND * 3);
            let (nodes, cost) = find(&mut world, *id, typed, 3);
            assert!(cost.complete && nodes.len() <= 3, "{typed}");
            messages.push(u64::from(cost.messages) + way(&mut world, *id));
        }
        messages.sort_unstable();
        let median = messages[messages.len() / 2];
        let goal = 2.0 * log + 9.0;
        println!("{size} nodes, 3 of {share} %: {median} messages in the median, goal {goal:.0}");
        // Where there are fewer than are wanted, everybody is asked.
        if size * share >= 300 {
            assert!(median as f64 <= goal, "{typed}: {messages:?}");
        }
    }
    within_a_budget(&mut world, &ids);
    let (nodes, cost) = find(&mut world, ids[9], "tags~solar", 256);
    assert_eq!((peers(&nodes), cost.complete), (solar, true), "all there are");
    let ask = world.ask(ids[3], ProspectQuestion::Census);
    world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask));
    match world.answers.get(&ask) {
        Some(Answer::Prospect(ProspectAnswer::Census { nodes, cost })) => {
            assert_eq!((nodes.len(), cost.complete), (size, true));
        }
        other => panic!("{other:?}"),
    }
    // An hour after the last question nobody draws samples any more.
    world.run_for(SECOND * 3_700);
    world.kinds.clear();
    world.run_for(SECOND * 300);
    assert_eq!(world.kinds.get("bulk_down"), None, "it fell asleep");
    silent(&mut world).unwrap();
}

/// What answers is so, what lives is found, and an answer with a hole says so.
#[test]
fn crashes_in_the_middle_of_a_search() {
    for seed in 0..8 {
        let mut world = World::new(Options::seed(960 + seed));
        let ids = community(&mut world, 60);
        let solar = label(&mut world, &ids);
        world.run_for(SECOND);
        let asker = ids[1];
        let condition = Condition::parse("tags~solar", &NODE).unwrap();
        let ask = world.ask(asker, ProspectQuestion::Find { condition, want: 256 });
        world.run_for(Duration::from_millis(30 * seed));
        let dead: Vec<NodeId> = ids.iter().skip(20).step_by(10).copied().collect();
        for id in &dead {
            world.crash(*id, Crash::Process);
        }
        assert!(world.run_until(ANSWER, SECOND / 20, |w| w.answers.contains_key(&ask)));
        let Some(Answer::Prospect(ProspectAnswer::Found { nodes, cost })) =
            world.answers.get(&ask).cloned()
        else {
            panic!("seed {seed}");
        };
        let found = peers(&nodes);
        assert!(found.is_subset(&solar), "seed {seed}");
        let lives = solar.iter().filter(|id| !dead.contains(id)).copied().collect();
        assert!(!cost.complete || found.is_superset(&lives), "seed {seed}: a hole unsaid");
        world.run_for(SECOND * 30);
        let (nodes, cost) = find(&mut world, asker, "tags~solar", 256);
        assert_eq!((peers(&nodes), cost.complete), (lives, true), "seed {seed}");
    }
}
