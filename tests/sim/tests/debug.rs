use dugnad_kernel::Duration;
use dugnad_sim::report::*;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};
#[test]
fn dbg() {
    let seed = 1;
    let mut world = World::new(Options::seed(seed));
    community(&mut world, 5);
    let wanted = deploy(&mut world, 1, 3);
    let key = *wanted.keys().next().unwrap();
    let manages = |w: &World, id: &dugnad_kernel::NodeId| {
        w.node(*id).is_some_and(|n| n.collective().managers().any(|(k, _)| *k == key))
    };
    let manager = world.alive().into_iter().find(|id| manages(&world, id)).unwrap();
    println!("manager {manager:?} key {key:?} {:?} now {}", check::running(&world), world.now.0);
    world.crash(manager, Crash::Process);
    world.run_for(Duration::from_secs(3));
    world.start(manager);
    println!("start {}", world.now.0);
    for _ in 0..8 {
        world.run_for(Duration::from_secs(10));
        println!("{} {:?}", world.now.0, check::services(&world, &wanted));
        for id in world.alive() {
            let n = world.node(id).unwrap();
            for v in n.collective().views() {
                println!("  {id:?} {v:?}");
            }
            let s = n.status();
            println!("  {id:?} {:?} {:?}", s.replicas, s.counters);
        }
    }
    for (id, m) in &world.machines {
        for (t, h) in &m.happened {
            println!("{id:?} {:?} {} {}", t.0 / 1000, h.by_name, h.text);
        }
        break;
    }
}
#[test]
fn black() {
    let mut world = World::new(Options::seed(1));
    let ids = community(&mut world, 9);
    let wanted = deploy(&mut world, 4, 3);
    let before = check::running(&world);
    for id in &ids {
        world.crash(*id, Crash::Power);
    }
    world.run_for(Duration::from_secs(30));
    for id in &ids {
        println!("start {id:?} {}", world.now.0 / 1000);
        world.start(*id);
        let pause = Duration::from_millis(world.rng.u64(0..2_000));
        world.run_for(pause);
    }
    for _ in 0..80 {
        world.run_for(Duration::from_millis(500));
        let c = check::running(&world) == before;
        let mut l = String::new();
        for id in world.alive() {
            let n = world.node(id).unwrap();
            for v in n.collective().views() {
                if v.name == "site-0" || v.service.short().to_string() == "0KQP" {
                    l += &format!(
                        " {id:?} {:?}",
                        v.slots.iter().map(|s| (s.number, s.node, s.state)).collect::<Vec<_>>()
                    );
                }
            }
        }
        println!("{} {c} {l}", world.now.0 / 1000);
    }
    let _ = wanted;
}
