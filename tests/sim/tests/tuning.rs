//! Services that follow their load.

#![expect(clippy::unwrap_used, reason = "tests")]

use dugnad_kernel::{Duration, NodeId};
use dugnad_node::{Answer, Command, ServiceQuestion, ServiceView};
use dugnad_resource::spec::{GOAL, Load, Measure, Scale, Spec, Want};
use dugnad_sim::report::{community, site};
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);

fn spec(max: u8) -> Spec {
    let scale = Scale { min: 1, max, on: Measure::Requests(50) };
    Spec { want: Want::Load(scale), ..site("site", 1) }
}

fn deploy(world: &mut World, from: NodeId, spec: Spec) {
    for (_, tree) in &spec.artifacts {
        world.give_tree(from, *tree);
    }
    let ask = world.ask(from, ServiceQuestion::Deploy(spec));
    assert!(world.run_until(SECOND * 120, SECOND / 10, |w| w.answers.contains_key(&ask)));
    assert!(matches!(world.answers.get(&ask), Some(Answer::Deployed { .. })));
}

fn view(world: &mut World, from: NodeId) -> ServiceView {
    let ask = world.ask(from, ServiceQuestion::Resolve("site".to_owned()));
    assert!(world.run_until(SECOND * 60, SECOND / 10, |w| w.answers.contains_key(&ask)));
    match world.answers.get(&ask).cloned() {
        Some(Answer::Resolved(view)) => view,
        other => panic!("{other:?}"),
    }
}

/// So many requests a second through the living nodes, for a time, as their gateways report them:
/// each where it last heard the manager was, which it looks up every minute.
fn load(world: &mut World, rate: u32, windows: u32) -> u64 {
    let (mut reports, mut manager) = (0, None);
    for window in 0..windows {
        let alive = world.alive();
        if window % 12 == 0 || !alive.iter().any(|id| Some(*id) == manager) {
            manager = Some(view(world, alive[0]).manager);
        }
        let count = u32::try_from(alive.len()).unwrap();
        for id in alive {
            let requests = (rate * 5).div_ceil(count);
            let load = Load { requests, ..Load::default() };
            let service = spec(1).key();
            world.command(id, Command::Load { service, manager: manager.unwrap(), load });
            reports += 1;
        }
        world.run_for(WINDOW);
    }
    reports
}

/// Ten times the load, and back: it is followed within half a minute, as far as there are nodes,
/// and given back after it; then all is silent.
#[test]
fn a_step_of_the_load_is_followed() {
    for size in [1, 2, 3, 8] {
        let mut world = World::new(Options::seed(9_400 + size as u64));
        let ids = community(&mut world, size);
        deploy(&mut world, ids[0], spec(6));
        let before = load(&mut world, 20, 6);
        assert_eq!(view(&mut world, ids[0]).want, 1, "{size}");
        let during = load(&mut world, 190, 6);
        let now = view(&mut world, ids[size - 1]);
        assert_eq!(now.want, 4, "{size}: {}", now.because);
        assert_eq!(usize::from(now.ready), size.min(4), "{size}: {:?}", now.blocked);
        assert!(now.because.contains("requests a second"), "{}", now.because);
        let after = load(&mut world, 20, 40);
        assert_eq!(view(&mut world, ids[0]).want, 1, "{size}");
        let sent = world.kinds.get("load").copied().unwrap_or(0);
        // What the manager's own node measures does not travel.
        assert!(sent <= before + during + after, "{size}: {sent}");
        silent(&mut world).unwrap();
        assert!(!world.kinds.contains_key("load"), "{size}: it was counted anew");
        assert_eq!(view(&mut world, ids[0]).slots.len(), 1, "{size}");
    }
}

/// With a goal besides, the load never leaves fewer than that takes.
#[test]
fn a_goal_is_the_least_the_load_leaves() {
    for (size, least) in [(1, 1), (3, 2), (8, 2)] {
        let mut world = World::new(Options::seed(9_480 + size as u64));
        let ids = community(&mut world, size);
        let mut spec = spec(6);
        // Two from 99.5 % on.
        spec.env.push((GOAL.to_owned(), "995000".to_owned()));
        deploy(&mut world, ids[0], spec);
        let first = view(&mut world, ids[0]);
        assert_eq!(usize::from(first.want), least, "{size}: {}", first.because);
        assert_eq!(first.predicted.unwrap().enough, size == 8, "{size}: {}", first.because);
        load(&mut world, 190, 6);
        let grown = view(&mut world, ids[0]);
        assert_eq!(grown.want, 4, "{size}: {}", grown.because);
        // Hours without visitors, in which the nodes are looked at again.
        load(&mut world, 5, 40);
        world.run_for(Duration::from_secs(5 * 3_600));
        let last = view(&mut world, ids[0]);
        assert_eq!((usize::from(last.want), last.slots.len()), (least, least), "{}", last.because);
        silent(&mut world).unwrap();
    }
}

/// Whoever manages it next goes on with as many replicas as there are.
#[test]
fn the_next_manager_goes_on() {
    for seed in 0..20 {
        let mut world = World::new(Options::seed(9_450 + seed));
        let ids = community(&mut world, 7);
        deploy(&mut world, ids[0], spec(5));
        load(&mut world, 140, 6);
        let before = view(&mut world, ids[0]);
        assert_eq!((before.want, before.ready), (3, 3), "seed {seed}: {}", before.because);
        world.crash(before.manager, Crash::Process);
        world.run_for(WINDOW);
        load(&mut world, 140, 12);
        let left = world.alive()[0];
        let next = view(&mut world, left);
        assert_ne!(next.manager, before.manager);
        assert_eq!((next.want, next.ready), (3, 3), "seed {seed}: {}", next.because);
        load(&mut world, 10, 30);
        let last = view(&mut world, left);
        assert_eq!((last.want, last.slots.len()), (1, 1), "seed {seed}: {}", last.because);
        silent(&mut world).unwrap();
    }
}
