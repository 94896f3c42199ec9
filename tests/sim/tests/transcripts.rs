//! What nodes say to each other about a service, as texts in `tests/sim/transcripts/`: deploy, the
//! death of a manager, an update, a leave. Heartbeats, lookups and comparisons are left out, and so
//! is what a node says to itself.
//!
//! `TRANSCRIPT=write cargo test --profile sim -p dugnad-sim --test transcripts` writes them anew.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use dugnad_kernel::{Duration, NodeId};
use dugnad_node::{Answer, Command, ServiceQuestion};
use dugnad_proof::transcript;
use dugnad_resource::spec::Spec;
use dugnad_sim::report::{community, site};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);

fn check(name: &str, about: &str, text: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    transcript::check(&folder, name, about, text, "dugnad-sim");
}

/// Five nodes at rest, and a site that is about to be deployed at the first.
fn begin(seed: u64) -> (World, Vec<NodeId>, Spec) {
    let mut world = World::new(Options::seed(seed));
    let ids = community(&mut world, 5);
    world.run_for(SECOND * 30);
    let spec = site("site", 2);
    world.give_tree(ids[0], spec.artifacts[0].1);
    (world, ids, spec)
}

fn deploy(world: &mut World, at: NodeId, spec: &Spec) {
    let ask = world.ask(at, ServiceQuestion::Deploy(spec.clone()));
    let done = world.run_until(SECOND * 60, SECOND / 10, |w| w.answers.contains_key(&ask));
    assert!(done, "no answer");
    let Answer::Deployed { missing, .. } = &world.answers[&ask] else { panic!("not deployed") };
    assert!(missing.is_empty(), "{missing:?}");
}

fn manager(world: &World, spec: &Spec) -> NodeId {
    let manages = |id: &NodeId| {
        world.node(*id).unwrap().collective().managers().any(|(k, _)| *k == spec.key())
    };
    world.alive().into_iter().find(manages).unwrap()
}

fn hosts(world: &World, spec: &Spec) -> Vec<NodeId> {
    let runs = |id: &NodeId| {
        let running = &world.machines[id].processes.running;
        running.keys().any(|replica| replica.service == spec.key())
    };
    world.alive().into_iter().filter(runs).collect()
}

#[test]
fn deploy_a_site() {
    let (mut world, ids, spec) = begin(1);
    world.begin_story();
    world.narrate("n0 is asked to deploy a site with two replicas; it has the package");
    deploy(&mut world, ids[0], &spec);
    let about = "A deploy (PROTOCOL.md 10.2): the package is kept by the owners of its places, the \
                 record of what is wanted is claimed at the owner of its key, and whoever that is \
                 reserves places, writes the plan, and starts what it says.";
    let text = world.end_story();
    check("deploy", about, &text);
}

#[test]
fn the_manager_dies() {
    // A manager that runs no replica itself: they stay as they are.
    for seed in 1..50 {
        let (mut world, ids, spec) = begin(seed);
        deploy(&mut world, ids[0], &spec);
        world.run_for(SECOND * 5);
        let (manager, before) = (manager(&world, &spec), hosts(&world, &spec));
        if before.contains(&manager) || manager == ids[0] {
            world.ends_silent = false;
            continue;
        }
        world.begin_story();
        let name = world.machines[&manager].name.clone();
        world.narrate(&format!("{name}, which manages the site and runs none of it, crashes"));
        world.crash(manager, Crash::Process);
        world.run_for(SECOND * 6);
        assert_eq!(hosts(&world, &spec), before, "nothing was started again");
        let about = "The death of a manager (PROTOCOL.md 10.9): the next owner of the key asks \
                     who else knows of the service, then asks the hosts of the plan in a higher \
                     term. The replicas stay as they are.";
        let text = world.end_story();
        check("take-over", about, &text);
        return;
    }
    panic!("no such manager");
}

#[test]
fn a_new_version() {
    let (mut world, ids, spec) = begin(1);
    deploy(&mut world, ids[0], &spec);
    world.run_for(SECOND * 5);
    let mut new = site("site, the second version", 2);
    new.name.clone_from(&spec.name);
    world.give_tree(ids[0], new.artifacts[0].1);
    world.begin_story();
    world.narrate("n0 is asked to deploy another version");
    deploy(&mut world, ids[0], &new);
    world.run_for(SECOND * 3);
    let about = "An update (PROTOCOL.md 10.7): a replica of the new version starts beside the old \
                 one, serves, and then the old one stops; the next when the last is ready.";
    let text = world.end_story();
    check("update", about, &text);
}

#[test]
fn a_host_leaves() {
    let (mut world, ids, spec) = begin(1);
    deploy(&mut world, ids[0], &spec);
    world.run_for(SECOND * 5);
    let manager = manager(&world, &spec);
    let host = hosts(&world, &spec).into_iter().find(|id| *id != manager).unwrap();
    let name = world.machines[&host].name.clone();
    world.begin_story();
    world.narrate(&format!("{name}, which runs a replica, is asked to hand over and leave"));
    world.command(host, Command::HandOver(true));
    let over = |w: &World| w.machines[&host].handed_over;
    assert!(world.run_until(SECOND * 30, SECOND / 10, over), "it does not hand over");
    world.narrate(&format!("nothing runs at {name} any more: it goes"));
    world.command(host, Command::Leave);
    assert!(world.run_until(SECOND * 30, SECOND / 10, |w| w.machines[&host].left));
    world.run_for(SECOND * 2);
    let about = "A leave (PROTOCOL.md 10.7): the replica gets a successor elsewhere, and stops \
                 when that one serves; then the node goes.";
    let text = world.end_story();
    check("leave", about, &text);
}
