//! The start of the agent, and its end, one step after the other.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BinaryHeap, VecDeque};
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};

use dugnad_kernel::map::Map;
use dugnad_kernel::{Hash, Input};
use dugnad_node::{Command, Config as NodeConfig, Node, program_hash};
use dugnad_platform::probe::arch;
use dugnad_resource::describe::Profile;
use dugnad_resource::spec::Arch;
use smol::LocalExecutor;
use smol::channel::bounded;

use super::{Agent, CLOSE_LIMIT, Sources, people, serve};
use crate::blobs::Blobs;
use crate::clock;
use crate::config::{Config, Dirs};
use crate::control::{self, Control};
use crate::disk::Disk;
use crate::gateway::Gateway;
use crate::host::{Host, HostConfig};
use crate::identity::{
    Community, DirLock, Identity, Remembered, at, check_copy, check_node, next_incarnation,
    node_id, record_copy,
};
use crate::invite::usable_addrs;
use crate::limits::Limits;
use crate::link::{LinkConfig, Links};
use crate::places::Places;
use crate::text::one_line;

/// Keys of what ran here begin with this (`dugnad_node`).
const RUNS: u8 = b'x';
/// Inputs that wait for the loop, by source. Readers of links wait when theirs is full; nothing
/// in the loop itself ever does.
const INBOX: usize = 256;
/// Who was met is written down so long after the start, and then this often.
const REMEMBER: Duration = Duration::from_secs(60);
const REMEMBER_FIRST: Duration = Duration::from_secs(5);

/// Runs the agent in the foreground until it is told to end.
pub(crate) fn agent(dirs: Dirs, config: Config) -> Result<(), String> {
    let level = config.log.word().parse().unwrap_or(log::LevelFilter::Info);
    env_logger::Builder::new()
        .filter_level(level)
        .parse_env("DUGNAD_LOG_FILTER")
        .format(|to, record| {
            let time = humantime::format_rfc3339_seconds(SystemTime::now());
            // What others say may hold anything; a log is shown on terminals.
            writeln!(to, "{time} {:<5} {}", record.level(), one_line(&record.args().to_string()))
        })
        .init();
    let ex = Rc::new(LocalExecutor::new());
    super::pace::run(&ex, live(Rc::clone(&ex), dirs, config)).map_err(|error| error.to_string())
}

async fn live(ex: Rc<LocalExecutor<'static>>, dirs: Dirs, config: Config) -> std::io::Result<()> {
    use async_signal::Signal;
    // Before anything is opened: a second agent on the directory must change nothing.
    let state = dirs.state.clone();
    let _lock = DirLock::take(&state)?;
    let identity = Identity::load(&state)?;
    let community = Community::load(&state)?;
    let id = node_id(&identity, &community);
    check_node(&state, id)?;
    check_copy(&state)?;
    let incarnation = next_incarnation(&state)?;
    let signals = async_signal::Signals::new([Signal::Term, Signal::Int, Signal::Hup])?;

    let (disk_events, disk) = bounded(INBOX);
    let (disk_handle, mut records, notes, damaged) = Disk::open(&state, disk_events)?;
    if damaged {
        // What ran here may be yesterday's: the managers say what is to run, as far as it is known.
        records.retain(|(key, _)| key.first() != Some(&RUNS));
    }
    let blobs = Blobs::open(&state, config.ceilings().amounts.disk)?;
    let remembered = Remembered::load(&state);

    let limits = Limits::of_this_process();
    let (link_events, links) = bounded(INBOX);
    let announce = usable_addrs(config.overlay)?;
    let link_config = LinkConfig {
        identity,
        community: community.clone(),
        incarnation,
        listen: config.overlay,
        announce: announce.clone(),
        limits,
    };
    let links_handle = Links::start(Rc::clone(&ex), link_config, link_events)?;
    let me = links_handle.me();

    let arch = own_arch()?;
    let (reports_in, reports) = bounded(INBOX);
    let itself: Rc<OnceCell<Weak<Agent>>> = Rc::default();
    let host_config = HostConfig {
        dir: state.clone(),
        node_id: id,
        node_name: config.name.clone(),
        arch,
        ceilings: config.ceilings(),
        socket: service_socket(&state)?,
        door: {
            // Replicas of an earlier agent are adopted before there is an agent to ask; their tasks
            // run only after.
            let itself = Rc::clone(&itself);
            Rc::new(move |socket, user| {
                let agent = itself.get().and_then(Weak::upgrade);
                let agent = agent.ok_or_else(|| std::io::Error::other("the agent is ending"))?;
                Ok(Box::new(agent.open_door(socket, user)?) as Box<dyn Any>)
            })
        },
        hold: {
            let blobs = Rc::clone(&blobs);
            Rc::new(move |tree| Ok(Box::new(blobs.hold(tree)?) as Box<dyn Any>))
        },
        unpack: {
            let blobs = Rc::clone(&blobs);
            Rc::new(move |tree, to| {
                let blobs = Rc::clone(&blobs);
                Box::pin(async move { blobs.unpack(tree, to).await })
            })
        },
    };
    let host = Host::new(Rc::clone(&ex), host_config, reports_in.clone())?;

    let profile = Profile {
        name: config.name.clone(),
        arch,
        home: home(&announce),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let node = Node::new(NodeConfig {
        me: me.clone(),
        profile,
        ceilings: config.ceilings(),
        programs: programs(),
    });
    let trees = blobs.trees();
    let alone = config.seeds.is_empty() && remembered.peers().next().is_none();

    let (commands_in, commands) = bounded(INBOX);
    let agent = Rc::new(Agent {
        ex: Rc::clone(&ex),
        dirs,
        community,
        me,
        started: Instant::now(),
        node: RefCell::new(node),
        rng: RefCell::new(fastrand::Rng::new()),
        timers: RefCell::new(BinaryHeap::new()),
        sequence: Cell::new(0),
        links: links_handle,
        disk: disk_handle,
        blobs,
        host,
        limits,
        own: Places::new(control::CONNECTIONS_MAX, control::CONNECTIONS_MAX),
        gateway: RefCell::new(None),
        remembered: RefCell::new(remembered),
        commands: commands_in,
        reports: reports_in,
        asks: RefCell::new(Map::new()),
        next_ask: Cell::new(0),
        routes: serve::Routes::default(),
        listed: RefCell::default(),
        events: RefCell::new(VecDeque::new()),
        followers: RefCell::new(Vec::new()),
        listeners: RefCell::default(),
        warnings: RefCell::new(notes.into()),
        disk_trouble: RefCell::default(),
        traffic: RefCell::default(),
        leaving: Cell::new(false),
        leaving_for_good: Cell::new(false),
        left: Cell::new(false),
        is_copy: Cell::new(false),
        handed_over: RefCell::new(None),
        dial_soon: bounded(1),
        config: RefCell::new(config),
    });
    // It is set once.
    _ = itself.set(Rc::downgrade(&agent));
    let weak = Rc::downgrade(&agent);
    agent.links.set_neighbours(move |id| {
        weak.upgrade().is_some_and(|agent| agent.node.borrow().is_neighbour(id))
    });
    if let Some(problem) = clock::problem() {
        log::warn!("{problem}");
    }

    let (ceilings, rules) = {
        let config = agent.config.borrow();
        (config.ceilings(), config.cannot_hold())
    };
    if !rules.is_empty() {
        log::warn!("this version cannot hold {}: no services are taken", rules.join(", "));
        let command = Command::Limits { ceilings, takes_work: false };
        agent.input(Input::Command(command));
    }

    // Local services first: they need no network.
    agent.input(Input::Command(Command::Boot { records, trees, alone }));
    agent.host.forget_unordered();
    agent.tell_kept();
    agent.open_gateway()?;
    let control = Control::start(
        Rc::clone(&ex),
        agent.dirs.socket.clone(),
        0o660,
        Rc::clone(&agent.own),
        Rc::new(people::Api(Rc::clone(&agent))),
    )?;
    ready_line(&agent);
    let dialling = ex.spawn(Rc::clone(&agent).keep_dialling());
    let remembering = ex.spawn(Rc::clone(&agent).keep_remembering());
    let following = ex.spawn(Rc::clone(&agent).follow_addresses());

    agent.run(Sources { links, disk, reports, commands, signals }).await;

    drop((control, dialling, remembering, following));
    agent.gateway.borrow_mut().take();
    if agent.leaving_for_good.get() || agent.is_copy.get() {
        agent.host.stop_all().await;
    }
    // Tasks that are still there hold the host: its own drop would come too late.
    agent.host.tidy();
    agent.remembered.borrow_mut().save_now()?;
    smol::future::or(agent.links.close(), async {
        smol::Timer::after(CLOSE_LIMIT).await;
    })
    .await;
    if agent.is_copy.get() {
        record_copy(&state)?;
        check_copy(&state)?;
    }
    log::info!("ended");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "one line on stdout is the promise of `dugnad agent`")]
fn ready_line(agent: &Agent) {
    let config = agent.config.borrow();
    let gateway = agent.gateway.borrow().as_ref().map(|gateway| gateway.addr().to_string());
    println!(
        "dugnad {} {} node {}-{} community \"{}\" overlay {} gateway {}",
        env!("CARGO_PKG_VERSION"),
        own_arch().map_or("unknown", Arch::name),
        agent.me.id.short(),
        config.name,
        agent.community.name,
        agent.links.local_addr(),
        gateway.as_deref().unwrap_or("off"),
    );
}

impl Agent {
    fn open_gateway(self: &Rc<Self>) -> std::io::Result<()> {
        let listen = self.config.borrow().gateway;
        if let Some(listen) = listen {
            let backend = Rc::new(serve::Ways(Rc::clone(self)));
            let gateway = Gateway::start(Rc::clone(&self.ex), listen, self.limits, backend)?;
            *self.gateway.borrow_mut() = Some(gateway);
        }
        Ok(())
    }

    /// Writes down who was met, seldom and only if it changed.
    async fn keep_remembering(self: Rc<Self>) {
        smol::Timer::after(REMEMBER_FIRST).await;
        loop {
            if let Err(error) = self.remembered.borrow_mut().save_if_changed() {
                self.warn(error.to_string());
            }
            smol::Timer::after(REMEMBER).await;
        }
    }
}

/// What services ask. Not the control socket: whoever may talk to that may administer the node.
/// Each replica has a folder of its own beside this one, because boxes show the whole folder.
fn service_socket(state: &Path) -> std::io::Result<PathBuf> {
    let folder = state.join("run");
    fs::create_dir_all(&folder).map_err(|error| at(&folder, &error))?;
    Ok(folder.join("dugnad.sock"))
}

/// The kind of processor this machine has: what it can start.
fn own_arch() -> std::io::Result<Arch> {
    let name = arch();
    Arch::parse(name).ok_or_else(|| {
        std::io::Error::other(format!("dugnad does not know the processor kind {name}"))
    })
}

/// Nodes behind one address share power and line: the network part of the first address.
pub(super) fn home(announce: &[SocketAddr]) -> u32 {
    let network = match announce.first().map(SocketAddr::ip) {
        Some(std::net::IpAddr::V4(ip)) => ip.octets()[..3].to_vec(),
        Some(std::net::IpAddr::V6(ip)) => ip.octets()[..8].to_vec(),
        None => Vec::new(),
    };
    let hash = Hash::of(&network).0;
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// Programs of this machine that a service may ask for by their full path.
fn programs() -> Vec<u32> {
    let folders = ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let mut hashes: Vec<u32> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(Path::new(folder)).ok())
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            // Follows links: busybox and alternatives are made of them.
            let executable = fs::metadata(&path).ok()?;
            let runs = executable.is_file() && executable.permissions().mode() & 0o111 != 0;
            runs.then(|| path.to_str().map(program_hash))?
        })
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}
