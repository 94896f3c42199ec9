//! A goal of availability becomes replicas, and how much nodes are up is measured.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use dugnad_kernel::{Duration, NodeId};
use dugnad_node::{Answer, NodeView, ServiceQuestion, ServiceView};
use dugnad_resource::spec::{Spec, Want};
use dugnad_sim::report::{community, site};
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn goal(name: &str, ppm: u32) -> Spec {
    Spec { want: Want::Availability(ppm), ..site(name, 1) }
}

/// The view, and what is missing.
fn deploy(world: &mut World, from: NodeId, spec: Spec) -> (ServiceView, Vec<String>) {
    for (_, tree) in &spec.artifacts {
        world.give_tree(from, *tree);
    }
    let ask = world.ask(from, ServiceQuestion::Deploy(spec));
    assert!(world.run_until(SECOND * 120, SECOND / 10, |w| w.answers.contains_key(&ask)));
    match world.answers.get(&ask).cloned() {
        Some(Answer::Deployed { service, missing }) => (service, missing),
        other => panic!("{other:?}"),
    }
}

fn view(world: &mut World, from: NodeId, name: &str) -> ServiceView {
    let ask = world.ask(from, ServiceQuestion::Resolve(name.to_owned()));
    assert!(world.run_until(SECOND * 60, SECOND / 10, |w| w.answers.contains_key(&ask)));
    match world.answers.get(&ask).cloned() {
        Some(Answer::Resolved(view)) => view,
        other => panic!("{other:?}"),
    }
}

fn nodes(world: &mut World, from: NodeId) -> Vec<NodeView> {
    let ask = world.ask(from, ServiceQuestion::Nodes);
    assert!(world.run_until(SECOND * 60, SECOND / 10, |w| w.answers.contains_key(&ask)));
    match world.answers.get(&ask).cloned() {
        Some(Answer::Nodes(nodes)) => nodes,
        other => panic!("{other:?}"),
    }
}

/// New nodes are taken to be up 70 % of the time: three do not make 99 %, twelve do. The service
/// runs all the same, and the same plan is made everywhere.
#[test]
fn a_goal_becomes_as_many_replicas_as_the_nodes_make_of_it() {
    for (size, enough) in [(1, false), (2, false), (3, false), (12, true)] {
        let mut world = World::new(Options::seed(3_000 + size as u64));
        let ids = community(&mut world, size);
        let (deployed, missing) = deploy(&mut world, ids[size / 2], goal("site", 995_000));
        let predicted = deployed.predicted.unwrap();
        assert_eq!(predicted.enough, enough, "{size}: {}", deployed.because);
        assert_eq!(missing.is_empty(), enough, "{size}: {missing:?}");
        assert_eq!(usize::from(deployed.want), size.min(2), "{size}: {}", deployed.because);
        assert_eq!(deployed.ready, deployed.want);
        let mut plans = BTreeSet::new();
        for id in &ids {
            let spec = goal("site", 995_000);
            let ask = world.ask(*id, ServiceQuestion::Plan(spec));
            assert!(world.run_until(SECOND * 60, SECOND / 10, |w| w.answers.contains_key(&ask)));
            let Some(Answer::Plan(plan)) = world.answers.get(&ask) else { panic!("no plan") };
            plans.insert((plan.want, plan.predicted.unwrap().up, plan.because.clone()));
        }
        assert_eq!(plans.len(), 1, "{size}: {plans:?}");
        silent(&mut world).unwrap();
    }
}

/// More nodes make a goal reachable, fewer do not, and the service says so within the hour.
#[test]
fn a_goal_is_looked_at_again_when_the_nodes_are_others() {
    let mut world = World::new(Options::seed(3_050));
    let ids = community(&mut world, 3);
    let (deployed, missing) = deploy(&mut world, ids[0], goal("site", 999_000));
    assert!(!deployed.predicted.unwrap().enough && missing.len() == 1, "{missing:?}");
    for _ in 0..9 {
        let id = world.add(&[ids[0]]);
        world.start(id);
        world.run_for(SECOND);
    }
    world.run_for(HOUR + HOUR / 2);
    let later = view(&mut world, ids[1], "site");
    assert!(later.predicted.unwrap().enough, "{}", later.because);
    assert_eq!((later.ready, later.want), (2, 2), "{}", later.because);
    // Most go again: it says so, and goes on with what there is.
    for id in world.alive().into_iter().filter(|id| !ids.contains(id)).skip(1) {
        world.crash(id, Crash::Process);
    }
    world.run_for(HOUR + HOUR / 2);
    let last = view(&mut world, ids[1], "site");
    assert!(!last.predicted.unwrap().enough && last.ready == last.want, "{}", last.because);
    silent(&mut world).unwrap();
}

/// A node that is off every night says so of itself after some days, one that is always on the
/// opposite, and neither writes more than a few notes a day.
#[test]
fn ups_and_downs_are_measured() {
    for size in [2, 4] {
        let mut world = World::new(Options::seed(3_100 + size as u64));
        let ids = community(&mut world, size);
        let (steady, off) = (ids[0], ids[size - 1]);
        world.run_for(SECOND * 60);
        let before = world.machines[&steady].disk.writes;
        for _ in 0..4 {
            world.run_for(HOUR * 14);
            world.crash(off, Crash::Power);
            world.run_for(HOUR * 10);
            world.start(off);
        }
        world.run_for(HOUR * 2);
        let known = |world: &mut World, of: NodeId| {
            let all = nodes(world, ids[size / 2 - 1]);
            all.into_iter().find(|node| node.peer.id == of).unwrap().availability.unwrap()
        };
        let (always, daily) = (known(&mut world, steady), known(&mut world, off));
        println!("{size}: always {} daily {}, {} s", always.up(), daily.up(), daily.session);
        assert!(always.up() > 900_000, "{}", always.up());
        // Hours in which it was down are believed sooner than those in which it was up.
        assert!((430_000..600_000).contains(&daily.up()), "{}", daily.up());
        let session = daily.session;
        assert!((10 * 3_600..16 * 3_600).contains(&session), "{session}");
        assert!(always.session > 90 * 3_600, "{}", always.session);
        // Four days: the members of the ring change twice a day, and notes are written at most
        // ten times.
        let writes = world.machines[&steady].disk.writes - before;
        assert!(writes < 60, "{writes} writes");
        assert!(world.kinds.get("away").copied().unwrap_or(0) <= 4 * (size as u64 - 1));
        silent(&mut world).unwrap();
    }
}
