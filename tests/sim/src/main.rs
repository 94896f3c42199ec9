//! `cargo sim -- --nodes 100 --services 20 --crash 30 --seed 7`: one run and its report.

use argh::FromArgs;
use dugnad_kernel::Duration;
use dugnad_sim::net::NetOptions;
use dugnad_sim::report::{community, crash_many, deploy, heal, idle, traffic};
use dugnad_sim::swarm::swarm;
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
    #[argh(subcommand)]
    scenario: Option<Scenario>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Scenario {
    Heal(Heal),
    Idle(Idle),
    Swarm(Swarm),
}

/// Random communities under random faults.
#[derive(FromArgs)]
#[argh(subcommand, name = "swarm")]
struct Swarm {
    /// first seed (default 1)
    #[argh(option, default = "1")]
    seed: u64,
    /// how many seeds (default 1)
    #[argh(option, default = "1")]
    count: u64,
    /// print every message to stderr
    #[argh(switch)]
    verbose: bool,
}

/// How long a service takes to heal after one node died, over many seeds.
#[derive(FromArgs)]
#[argh(subcommand, name = "heal")]
struct Heal {
    /// seeds (default 60)
    #[argh(option, default = "60")]
    seeds: u64,
    /// first seed (default 1)
    #[argh(option, default = "1")]
    from: u64,
}

/// What an idle community sends.
#[derive(FromArgs)]
#[argh(subcommand, name = "idle")]
struct Idle {}

fn main() {
    let args: Args = argh::from_env();
    match args.scenario {
        None => mass_crash(&args),
        Some(Scenario::Heal(heal)) => heal_times(&heal),
        Some(Scenario::Swarm(args)) => swarms(&args),
        Some(Scenario::Idle(Idle {})) => {
            for count in [5, 20, 100] {
                let (messages, bytes) = idle(count);
                say(&format!(
                    "{count} nodes: {messages:.1} messages, {bytes:.0} bytes a node and minute"
                ));
            }
        }
    }
}

fn swarms(args: &Swarm) {
    let mut failed = 0;
    for seed in args.seed..args.seed + args.count {
        if let Err(wrong) = swarm(seed, args.verbose) {
            failed += 1;
            say(&format!("cargo sim swarm --seed {seed}: {wrong}"));
        }
    }
    say(&format!("{failed} of {} did not come into order", args.count));
    std::process::exit(i32::from(failed > 0));
}

fn heal_times(args: &Heal) {
    for kind in [Crash::Process, Crash::Power] {
        let mut times = Vec::new();
        for seed in args.from..args.from + args.seeds {
            match heal(seed, kind).1 {
                Some(took) => times.push((took, seed)),
                None => say(&format!("seed {seed}, {kind:?}: not healed in a minute")),
            }
        }
        times.sort_unstable();
        if let Some((longest, seed)) = times.last() {
            let (median, _) = times[times.len() / 2];
            let count = times.len();
            say(&format!(
                "{kind:?}: median {median:.1?}, longest {longest:.1?} (seed {seed}) of {count}"
            ));
        }
    }
}

fn mass_crash(args: &Args) {
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
