//! `cargo sim -- --nodes 100 --services 20 --crash 30 --seed 7`: one run and its report.

use argh::FromArgs;
use dugnad_kernel::Duration;
use dugnad_sim::net::NetOptions;
use dugnad_sim::report::{community, crash_many, deploy, traffic};
use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

/// Runs a simulated community through a mass crash and prints what happened.
#[derive(FromArgs)]
struct Args {
    /// nodes (default 100)
    #[argh(option, default = "100")]
    nodes: usize,
    /// services of three replicas (default 20)
    #[argh(option, default = "20")]
    services: usize,
    /// percent of the nodes that crash at once (default 30)
    #[argh(option, default = "30")]
    crash: usize,
    /// crash by power cut (silence) and not by killed processes
    #[argh(switch)]
    power: bool,
    /// percent of messages that are retransmitted (default 0)
    #[argh(option, default = "0")]
    loss: u8,
    /// seed (default 1)
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() {
    let args: Args = argh::from_env();
    let net = NetOptions { loss: f64::from(args.loss) / 100.0, ..NetOptions::default() };
    let mut world = World::new(Options { net, ..Options::seed(args.seed) });
    community(&mut world, args.nodes);
    say(&format!("{:7.1} s  {} nodes in one ring", seconds(&world), args.nodes));
    let wanted = deploy(&mut world, args.services, 3);
    say(&format!("{:7.1} s  {} services ready", seconds(&world), wanted.len()));
    let kind = if args.power { Crash::Power } else { Crash::Process };
    let at = seconds(&world);
    let gone = crash_many(&mut world, args.crash, kind);
    let limit = Duration::from_secs(600);
    let healed =
        world.run_until(limit, Duration::from_millis(100), |w| check::services(w, &wanted).is_ok());
    let text = if healed { "all services back" } else { "NOT healed" };
    let took = seconds(&world) - at;
    say(&format!("{:7.1} s  {} crashed; {text} after {took:.1} s", seconds(&world), gone.len()));
    if let Err(wrong) = check::services(&world, &wanted) {
        say(&wrong);
    }
    world.run_for(Duration::from_secs(120));
    let before = traffic(&world);
    world.run_for(Duration::from_secs(600));
    let after = traffic(&world);
    let per = 10 * world.alive().len().max(1) as u64;
    let (messages, bytes) = ((after.0 - before.0) / per, (after.1 - before.1) / per);
    say(&format!("idle: {messages} messages, {bytes} bytes sent per node and minute"));
    say(&format!("{} messages delivered, trace {}", world.delivered, world.trace()));
    std::process::exit(i32::from(!healed));
}

fn seconds(world: &World) -> f64 {
    world.now.0 as f64 / 1e6
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn say(line: &str) {
    println!("{line}");
}
