use dugnad_kernel::Duration;
use dugnad_sim::report::*;
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};
#[test]
fn dbg() {
        let seed = 3;
        let mut world = World::new(Options::seed(seed));
        community(&mut world, 8);
        let wanted = deploy(&mut world, 1, 3);
        let key = *wanted.keys().next().unwrap();
        let manages = |id: &dugnad_kernel::NodeId| {
            world.node(*id).is_some_and(|n| n.collective().managers().any(|(k, _)| *k == key))
        };
        let manager = world.alive().into_iter().find(manages).unwrap();
        let replica =
            check::running(&world)[&key].iter().map(|(n, _)| *n).find(|n| *n != manager).unwrap();
        println!("ring {:?} kill {manager:?} {replica:?}", world.alive());
        let kind = if seed % 3 == 0 { Crash::Power } else { Crash::Process };
        world.crash(manager, kind);
        world.crash(replica, kind);
        for _ in 0..70 { world.run_for(Duration::from_secs(1));
            println!("{}", world.now.0/1000000);
            for id in world.alive() { let n = world.node(id).unwrap(); let r = n.overlay().ring();
                println!("  {id:?} {:?} locked {} pred {:?} {} succs {:?} susp {:?}", r.status(), r.locked(), r.pred().id, r.pred_suspect(), r.succs().iter().map(|p| p.id).collect::<Vec<_>>(), n.overlay().detector().suspects().collect::<Vec<_>>()); }
            println!("  {:?} {:?}", check::ideal_ring(&world), check::services(&world, &wanted));
        }
}
