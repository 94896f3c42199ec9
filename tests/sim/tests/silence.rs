//! A community that is left alone falls silent, whatever happened before, at every small size.

use dugnad_kernel::Duration;
use dugnad_node::{Command, ServiceQuestion};
use dugnad_sim::report::{community, site};
use dugnad_sim::silence::silent;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World};

const SECOND: Duration = Duration::from_secs(1);
const SEEDS: u64 = 200;

/// Deploys, updates, stops and removals, deaths, returns, leaves and joins; then nothing.
fn eventful(world: &mut World, size: usize) {
    let first = community(world, size)[0];
    let mut names = 0;
    let mut backup = None;
    for _ in 0..world.rng.usize(1..8) {
        let alive = world.alive();
        let from = alive[world.rng.usize(0..alive.len())];
        match world.rng.u8(0..12) {
            0..=4 => {
                let replicas = world.rng.u8(1..4);
                let name = if names > 0 && world.rng.bool() {
                    format!("site-{}", world.rng.u32(0..names))
                } else {
                    names += 1;
                    format!("site-{}", names - 1)
                };
                let mut spec = site(&name, replicas);
                spec.artifacts[0].1.root =
                    dugnad_kernel::Hash::of(&world.rng.u8(0..3).to_be_bytes());
                world.give_tree(from, spec.artifacts[0].1);
                world.ask(from, ServiceQuestion::Deploy(spec));
            }
            5 if names > 0 => {
                let name = format!("site-{}", world.rng.u32(0..names));
                world.ask(from, ServiceQuestion::Stop(name));
            }
            6 if names > 0 => {
                let name = format!("site-{}", world.rng.u32(0..names));
                world.ask(from, ServiceQuestion::Remove(name));
            }
            7 if alive.len() > 1 => {
                world.crash(from, Crash::Process);
                let pause = Duration::from_millis(world.rng.u64(0..40_000));
                world.run_for(pause);
                world.start(from);
            }
            8 if alive.len() > 1 && from != first => {
                world.command(from, Command::Leave);
                world.run_until(SECOND * 30, SECOND / 10, |w| w.machines[&from].left);
                world.crash(from, Crash::Power);
            }
            9 if alive.len() < 9 => {
                let id = world.add(&[first]);
                world.start(id);
            }
            10 => backup = world.backup(from).map(|state| (from, state)),
            11 => {
                if let Some((id, state)) = backup.take().filter(|(id, _)| !world.machines[id].left)
                {
                    world.crash(id, Crash::Power);
                    world.run_for(SECOND);
                    world.restore(id, state);
                    world.start(id);
                }
            }
            _ => {}
        }
        let pause = Duration::from_millis(world.rng.u64(0..30_000));
        world.run_for(pause);
    }
}

#[test]
fn whatever_happened_a_small_community_falls_silent() {
    let mut loud = Vec::new();
    for size in 1..=9usize {
        for seed in 1..=SEEDS {
            let mut world =
                World::new(Options { encode: false, ..Options::seed(seed * 10 + size as u64) });
            eventful(&mut world, size);
            if let Err(wrong) = silent(&mut world) {
                loud.push(format!("size {size}, seed {seed}: {wrong}"));
            }
        }
    }
    assert!(loud.is_empty(), "{} runs: {}", loud.len(), loud[..loud.len().min(40)].join("\n"));
}
