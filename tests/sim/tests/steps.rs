//! A manager that dies between any two steps of what it does: the next one finishes it or undoes
//! it, nothing runs twice, and no place stays reserved. `STEPS=1` tries every step.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_node::{Answer, AskId, ServiceQuestion};
use dugnad_resource::spec::Spec;
use dugnad_sim::report::{community, site};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const NODES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Deploy,
    Update,
    Scale,
    Drain,
    Remove,
}

/// The owner of a key as everybody will see it.
fn owner(world: &World, key: Key) -> NodeId {
    let alive = world.alive();
    *alive.iter().find(|id| **id >= key).unwrap_or(&alive[0])
}

fn begin(world: &mut World, act: Act, from: NodeId, spec: &Spec) -> AskId {
    let deploy = |world: &mut World, spec: &Spec| {
        for (_, tree) in &spec.artifacts {
            world.give_tree(from, *tree);
        }
        world.ask(from, ServiceQuestion::Deploy(spec.clone()))
    };
    match act {
        Act::Deploy => deploy(world, spec),
        Act::Update => deploy(world, &Spec { env: vec![("V".into(), "2".into())], ..spec.clone() }),
        Act::Scale => world.ask(from, ServiceQuestion::Scale(spec.name.clone(), 3)),
        Act::Drain => {
            let running = check::running(world);
            let mut hosts = running[&spec.key()].iter().map(|(node, _)| *node);
            let host = hosts.find(|node| *node != owner(world, spec.key())).unwrap();
            world.command(host, dugnad_node::Command::HandOver(true));
            world.ask(from, ServiceQuestion::Ps)
        }
        Act::Remove => world.ask(from, ServiceQuestion::Remove(spec.name.clone())),
    }
}

/// A community with the service, if it is there before; who asks.
fn ready(act: Act, spec: &Spec) -> (World, NodeId) {
    let mut world = World::new(Options::seed(9_800 + act as u64));
    let ids = community(&mut world, NODES);
    let from = *ids.iter().find(|id| **id != owner(&world, spec.key())).unwrap();
    if act != Act::Deploy {
        let ask = begin(&mut world, Act::Deploy, from, spec);
        assert!(world.run_until(MINUTE, SECOND, |w| w.answers.contains_key(&ask)));
        world.run_for(SECOND * 5);
    }
    (world, from)
}

/// Everything that is promised runs, and everything that is wanted; whatever is wanted now.
fn settled(world: &World, spec: &Spec) -> Result<(), String> {
    let key = spec.key();
    let views = world.alive().into_iter().filter_map(|id| world.node(id));
    let view = views.flat_map(|node| node.collective().views()).find(|view| view.service == key);
    let want = view.filter(|view| !view.is_stopped()).map_or(0, |view| usize::from(view.want));
    check::services(world, &BTreeMap::from([(key, want)]))?;
    let running = check::running(world);
    for id in world.alive() {
        let here = running.values().flatten().filter(|(node, _)| *node == id).count() as u64;
        let promised = world.node(id).unwrap().status().promised.memory;
        if promised != here * spec.needs.memory {
            return Err(format!("{id:?} runs {here} and has promised {promised} bytes"));
        }
    }
    Ok(())
}

#[test]
fn a_manager_may_die_at_any_step() {
    let step = std::env::var("STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let spec = site("step", 2);
    for act in [Act::Deploy, Act::Update, Act::Scale, Act::Drain, Act::Remove] {
        let (mut world, from) = ready(act, &spec);
        let ask = begin(&mut world, act, from, &spec);
        let mut steps = 0;
        // A drain is over when its replica serves elsewhere: some seconds later.
        let (start, least) = (world.now, if act == Act::Drain { SECOND * 4 } else { SECOND });
        while !world.answers.contains_key(&ask) || world.now.since(start) < least {
            assert!(world.step(), "{act:?}: no answer");
            steps += 1;
        }
        let mut runs = 0;
        for at in (0..steps).step_by(step) {
            let (mut world, from) = ready(act, &spec);
            let ask = begin(&mut world, act, from, &spec);
            (0..at).for_each(|_| assert!(world.step()));
            let manager = owner(&world, spec.key());
            world.crash(manager, Crash::Power);
            let healed = world.run_until(MINUTE * 10, SECOND * 5, |w| settled(w, &spec).is_ok());
            assert!(healed, "{act:?}, step {at}: {:?}", settled(&world, &spec));
            // Whoever was told that it is there finds it there.
            if matches!(world.answers.get(&ask), Some(Answer::Deployed { missing, .. })
                if missing.is_empty())
            {
                let runs = check::running(&world).get(&spec.key()).map_or(0, Vec::len);
                assert!(runs >= 2, "{act:?}, step {at}: {runs} run");
            }
            // And it comes back: nothing begins anew.
            world.start(manager);
            let healed = world.run_until(MINUTE * 10, SECOND * 5, |w| settled(w, &spec).is_ok());
            assert!(healed, "{act:?}, step {at}, back: {:?}", settled(&world, &spec));
            runs += 1;
        }
        println!("{act:?}: {steps} steps, died at {runs} of them");
    }
}
