//! `cargo sim -- --nodes 100 --services 20 --crash 30 --seed 7`: whole nodes, one mass crash.
//! `cargo sim -- --nodes 10000 --profile churn --seed 7`: overlays alone, one run and its report.

use std::path::PathBuf;

use argh::FromArgs;
use dugnad_kernel::Duration;
use dugnad_sim::net::{Latency, NetOptions};
use dugnad_sim::overlay::profile::{Plan, Profile, run};
use dugnad_sim::overlay::swarm::{self as swarm, Part, nodes_of};
use dugnad_sim::overlay::{Watch, figures};
use dugnad_sim::report::{community, crash_many, deploy, heal, idle, traffic};
use dugnad_sim::{plot, promise};

use dugnad_sim::world::Crash;
use dugnad_sim::{Options, World, check};

/// Runs a simulated community and prints what happened: whole nodes through a mass crash, or,
/// with --profile, overlays alone.
#[derive(FromArgs)]
struct Args {
    /// nodes (default 100; with --profile swarm, as the seed says)
    #[argh(option)]
    nodes: Option<usize>,
    /// services of three replicas (default 20)
    #[argh(option, default = "20")]
    services: usize,
    /// percent of the nodes that crash at once (default 30)
    #[argh(option, default = "30")]
    crash: usize,
    /// crash by power cut (silence) and not by killed processes
    #[argh(switch)]
    power: bool,
    /// percent of packets that are lost and sent again (default 0)
    #[argh(option, default = "0.0")]
    loss: f64,
    /// seed (default 1)
    #[argh(option, default = "1")]
    seed: u64,
    /// overlays alone: idle, churn, graceful, kill-half, growth, merge, storm or swarm
    #[argh(option)]
    profile: Option<Run>,
    /// simulated minutes that are measured, with --profile (default 10)
    #[argh(option, default = "10")]
    minutes: u64,
    /// median session of a node in minutes, with --profile churn and graceful (default 10)
    #[argh(option, default = "10.0")]
    session: f64,
    /// lookups per second of the whole community, with --profile (default 0)
    #[argh(option, default = "0.0")]
    lookups: f64,
    /// lan, home or mobile, with --profile (default: 1 to 40 ms, uniform)
    #[argh(option, from_str_fn(latency))]
    latency: Option<Latency>,
    /// links have bursts of loss, with --profile
    #[argh(switch)]
    bursts: bool,
    /// percent of the pairs that can never connect, with --profile (default 0)
    #[argh(option, default = "0.0")]
    blocked: f64,
    /// how many seeds from --seed on, with --profile swarm (default 1)
    #[argh(option, default = "1")]
    count: u64,
    /// only these faults, by number, with --profile swarm
    #[argh(option, from_str_fn(numbers))]
    only: Option<Vec<usize>>,
    /// these nodes never start, with --profile swarm
    #[argh(option, from_str_fn(numbers))]
    without: Option<Vec<usize>>,
    /// do not look for a smaller schedule that fails, with --profile swarm
    #[argh(switch)]
    no_shrink: bool,
    /// check the whole ring after every step that changed one, with --profile
    #[argh(switch)]
    check: bool,
    /// print every message to stderr, with --profile
    #[argh(switch)]
    verbose: bool,
    #[argh(subcommand)]
    scenario: Option<Scenario>,
}

/// What to do with overlays alone.
enum Run {
    Profile(Profile),
    Swarm,
}

impl std::str::FromStr for Run {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "swarm" { Ok(Self::Swarm) } else { name.parse().map(Self::Profile) }
    }
}

/// `3,7,12`, or `none`.
fn numbers(list: &str) -> Result<Vec<usize>, String> {
    let parse = |n: &str| n.parse().map_err(|_| format!("{n} is no number"));
    list.split(',').filter(|n| *n != "none").map(parse).collect()
}

fn latency(name: &str) -> Result<Latency, String> {
    match name {
        "lan" => Ok(Latency::Lan),
        "home" => Ok(Latency::Home),
        "mobile" => Ok(Latency::Mobile),
        _ => Err("one of lan, home, mobile".into()),
    }
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Scenario {
    Heal(Heal),
    Idle(Idle),
    Swarm(Swarm),
    Figures(Figures),
    Service(Service),
}

/// Measures what is asked of the overlay in numbers; all of it takes a while.
#[derive(FromArgs)]
#[argh(subcommand, name = "figures")]
struct Figures {
    /// as small as the tests do
    #[argh(switch)]
    small: bool,
    /// which; all if none is named
    #[argh(positional)]
    names: Vec<String>,
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

/// What becomes of services in weeks in which machines come and go.
#[derive(FromArgs)]
#[argh(subcommand, name = "service")]
struct Service {
    /// nodes (default 20)
    #[argh(option, default = "20")]
    nodes: usize,
    /// how they come and go: office, home or mixed (default)
    #[argh(option, default = "promise::Churn::Mixed")]
    churn: promise::Churn,
    /// instead: a file of lines NODE,SECONDS,up or down
    #[argh(option)]
    trace: Option<PathBuf>,
    /// days that count (default 14)
    #[argh(option, default = "14")]
    days: u64,
    /// days before, in which the nodes are measured (default 7)
    #[argh(option, default = "7")]
    before: u64,
    /// seed (default 1)
    #[argh(option, default = "1")]
    seed: u64,
    /// so many services with goals from 90 to 99.9 percent (default 1)
    #[argh(option, default = "1")]
    services: usize,
    /// instead: a service that `dugnad sim` writes to stdin
    #[argh(switch)]
    stdin: bool,
    /// draw the first service into this SVG file
    #[argh(option)]
    plot: Option<PathBuf>,
}

/// What an idle community sends.
#[derive(FromArgs)]
#[argh(subcommand, name = "idle")]
struct Idle {}

fn main() {
    let args: Args = argh::from_env();
    match args.scenario {
        None if matches!(args.profile, Some(Run::Profile(_))) => overlays(&args),
        None if matches!(args.profile, Some(Run::Swarm)) => overlay_swarms(&args),
        None => mass_crash(&args),
        Some(Scenario::Figures(figures)) => measure(&figures),
        Some(Scenario::Heal(heal)) => heal_times(&heal),
        Some(Scenario::Service(args)) => match service(&args) {
            Ok(()) => {}
            Err(why) => {
                eprintln!("{why}");
                std::process::exit(1);
            }
        },
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

fn service(args: &Service) -> Result<(), String> {
    let all = args.before + args.days;
    let changes = match &args.trace {
        Some(path) => {
            let wrong = |why: String| format!("{}: {why}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
            promise::parse(&text, args.nodes).map_err(wrong)?
        }
        None => promise::churn(args.churn, args.nodes, all, args.seed),
    };
    let specs = if args.stdin {
        let mut bytes = Vec::new();
        let read = std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes);
        read.map_err(|error| format!("stdin: {error}"))?;
        vec![postcard::from_bytes(&bytes).map_err(|error| format!("stdin: {error}"))?]
    } else {
        promise::goals(args.services)
    };
    let (nodes, seed, before, days) = (args.nodes, args.seed, args.before, args.days);
    let plan = promise::Plan { nodes, seed, before, days, changes };
    let live = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let kept = promise::run(&plan, &specs, |day| {
        if live {
            eprint!("\rday {day} of {all}");
        }
    })?;
    if live {
        eprint!("\r\x1b[K");
    }
    say(promise::table(&kept).trim_end());
    match (&args.plot, kept.first()) {
        (Some(path), Some(first)) => plot::draw(path, first),
        _ => Ok(()),
    }
}

fn overlays(args: &Args) {
    let Some(Run::Profile(profile)) = args.profile else { return };
    let nodes = u32::try_from(args.nodes.unwrap_or(100)).unwrap_or(u32::MAX);
    let net = NetOptions {
        latency: args.latency.clone().unwrap_or(NetOptions::default().latency),
        loss: args.loss / 100.0,
        bursts: args.bursts,
        blocked: args.blocked / 100.0,
    };
    let plan = Plan {
        net,
        watch: if args.check { Watch::Every } else { Watch::Node },
        minutes: args.minutes,
        session: args.session,
        lookups: args.lookups,
        verbose: args.verbose,
        ..Plan::new(profile, nodes, args.seed)
    };
    let started = std::time::Instant::now();
    let (_, report) = run(&plan);
    say(report.text.trim_end());
    say(&format!("  took {:.1} s of this machine", started.elapsed().as_secs_f64()));
    std::process::exit(i32::from(report.wrong.is_some()));
}

fn measure(args: &Figures) {
    let mut missed = 0;
    for (name, what, measure) in figures::ALL {
        if !args.names.is_empty() && !args.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        say(&format!("{name}: {what}"));
        for figure in measure(!args.small) {
            let verdict = if figure.met { "" } else { "  MISSED" };
            missed += i32::from(!figure.met);
            say(&format!(
                "  {:<50} {:10.3}  ({}){verdict}",
                figure.what, figure.value, figure.gate
            ));
        }
    }
    std::process::exit(i32::from(missed > 0));
}

fn overlay_swarms(args: &Args) {
    let mut failed = 0;
    let mut settled = Vec::new();
    let mut rare = std::collections::BTreeMap::new();
    for seed in args.seed..args.seed + args.count {
        let nodes = args.nodes.and_then(|n| u32::try_from(n).ok()).unwrap_or(nodes_of(seed));
        let swarm = swarm::Swarm::of(seed, nodes);
        let without = args.without.iter().flatten().filter_map(|n| u32::try_from(*n).ok());
        let part = Part {
            only: args.only.clone().map(|only| only.into_iter().collect()),
            without: without.collect(),
        };
        match swarm.play(&part, args.verbose) {
            Ok(world) => {
                settled.push((world.settled_after, seed));
                for (name, count) in world.rare() {
                    *rare.entry(name).or_insert(0) += count;
                }
                if args.count == 1 {
                    let (lines, trace) = (swarm.faults.len(), world.trace());
                    say(&format!("{}: fine, {lines} faults, trace {trace}", swarm.line(&part)));
                }
            }
            Err(failure) => {
                failed += 1;
                say(&format!("{}: {failure}", swarm.line(&part)));
                if !args.no_shrink && !args.verbose {
                    let (part, failure) = swarm.shrink(&part, failure, 300);
                    say(&format!("{}: {failure}\n{}", swarm.line(&part), swarm.story(&part)));
                }
            }
        }
    }
    settled.sort_unstable();
    let at = |share: usize| settled.get(settled.len().saturating_sub(1) * share / 100);
    say(&format!(
        "{failed} of {} failed; in order after: median {:?}, longest {:?}",
        args.count,
        at(50),
        at(100)
    ));
    say(&format!("rare things: {rare:?}"));
    std::process::exit(i32::from(failed > 0));
}

fn swarms(args: &Swarm) {
    let mut failed = 0;
    for seed in args.seed..args.seed + args.count {
        if let Err(wrong) = dugnad_sim::swarm::swarm(seed, args.verbose) {
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
    let net = NetOptions { loss: args.loss / 100.0, ..NetOptions::default() };
    let mut world = World::new(Options { net, ..Options::seed(args.seed) });
    let nodes = args.nodes.unwrap_or(100);
    community(&mut world, nodes);
    say(&format!("{:7.1} s  {nodes} nodes in one ring", seconds(&world)));
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
