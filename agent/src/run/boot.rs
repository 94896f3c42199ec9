//! The start of the agent, and its end, one step after the other.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_signal::Signal;
use dugnad_kernel::{Hash, Input, NodeId, Peer};
use dugnad_node::disk::{self, DiskKey};
use dugnad_node::{Command, Config as NodeConfig, Node, program_hash};
use dugnad_platform::probe::arch;
use dugnad_resource::describe::Profile;
use dugnad_resource::spec::Arch;
use smol::channel::{Receiver, bounded};
use smol::{LocalExecutor, Task};

use super::state::{State, ask_lease};
use super::timers::Timers;
use super::told::Told;
use super::{Agent, CLOSE_LIMIT, Ending, Itself, Sources, people, streams};
use crate::blobs::Blobs;
use crate::clock;
use crate::config::{Config, Dirs};
use crate::control::{self, Control};
use crate::disk::{Disk, DiskEvent};
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

async fn live(ex: Rc<LocalExecutor<'static>>, dirs: Dirs, config: Config) -> io::Result<()> {
    let state = dirs.state.clone();
    let kept = Kept::open(&state, config.ceilings().amounts.disk)?;
    let _lock = kept.lock;
    let signals = async_signal::Signals::new([Signal::Term, Signal::Int, Signal::Hup])?;
    let limits = Limits::of_this_process();
    let (link_events, links) = bounded(INBOX);
    let announce = usable_addrs(config.overlay)?;
    let link_config = LinkConfig {
        identity: kept.identity,
        community: kept.community.clone(),
        incarnation: kept.incarnation,
        listen: config.overlay,
        announce: announce.clone(),
        limits,
    };
    let links_handle = Links::start(Rc::clone(&ex), link_config, link_events)?;
    let me = links_handle.me();

    let (reports_in, reports) = bounded(INBOX);
    let itself: Itself = Rc::default();
    let host_config = host_config(&state, me.id, &config, &kept.blobs, &itself)?;
    let host = Host::new(Rc::clone(&ex), host_config, reports_in.clone())?;
    let trees = kept.blobs.trees();
    let alone = config.seeds.is_empty() && kept.remembered.peers().next().is_none();
    let (commands_in, commands) = bounded(INBOX);
    let agent = Rc::new(Agent {
        ex: Rc::clone(&ex),
        dirs,
        community: kept.community,
        node: RefCell::new(node(me.clone(), &config, &announce)?),
        me,
        started: Instant::now(),
        rng: RefCell::new(fastrand::Rng::new()),
        timers: Timers::default(),
        links: links_handle,
        disk: kept.disk,
        blobs: kept.blobs,
        host,
        limits,
        own: Places::new(control::CONNECTIONS_MAX, control::CONNECTIONS_MAX),
        gateway: RefCell::default(),
        remembered: RefCell::new(kept.remembered),
        commands: commands_in,
        reports: reports_in,
        told: Told::with_warnings(kept.notes),
        routes: streams::Routes::default(),
        listed: RefCell::default(),
        listeners: RefCell::default(),
        readers: RefCell::default(),
        room: RefCell::default(),
        subscribers: RefCell::default(),
        clock: clock::Told::default(),
        disk_trouble: RefCell::default(),
        traffic: RefCell::default(),
        ending: Cell::default(),
        left: Cell::new(false),
        handed_over: RefCell::default(),
        dial_soon: bounded(1),
        config: RefCell::new(config),
    });
    _ = itself.set(Rc::downgrade(&agent)); // Once.
    agent.begin(Command::Boot { records: kept.records, trees, alone });
    let served = agent.serve_people()?;
    ready_line(&agent);
    let sources = Sources { links, disk: kept.disk_events, reports, commands, signals };
    agent.run(sources).await;
    drop(served);
    agent.end(&state).await
}

/// What is in the state directory.
struct Kept {
    /// Held as long as the agent runs.
    lock: DirLock,
    identity: Identity,
    community: Community,
    incarnation: u32,
    disk: Disk,
    disk_events: Receiver<DiskEvent>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// What opening it had to say.
    notes: Vec<String>,
    blobs: Rc<Blobs>,
    remembered: Remembered,
}

impl Kept {
    fn open(state: &Path, room: u64) -> io::Result<Self> {
        // Before anything is opened: a second agent on the directory must change nothing.
        let lock = DirLock::take(state)?;
        let identity = Identity::load(state)?;
        let community = Community::load(state)?;
        check_node(state, node_id(&identity, &community))?;
        check_copy(state)?;
        let incarnation = next_incarnation(state)?;
        let (to, disk_events) = bounded(INBOX);
        let (disk, mut records, notes, damaged) = Disk::open(state, to)?;
        if damaged {
            // What ran here may be yesterday's: the managers say what is to run, as far as it is
            // known.
            records.retain(|(key, _)| DiskKey::kind(key) != Some(disk::Kept::Run));
        }
        let blobs = Blobs::open(state, room)?;
        let remembered = Remembered::load(state);
        Ok(Self {
            lock,
            identity,
            community,
            incarnation,
            disk,
            disk_events,
            records,
            notes,
            blobs,
            remembered,
        })
    }
}

/// Where services on this node find the gateway.
fn near(gateway: SocketAddr) -> SocketAddr {
    let ip = match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, gateway.port())
}

fn host_config(
    state: &Path,
    id: NodeId,
    config: &Config,
    blobs: &Rc<Blobs>,
    itself: &Itself,
) -> io::Result<HostConfig> {
    let (state_store, asked) = (Rc::new(State(Rc::clone(itself))), Rc::clone(itself));
    let (itself, held, unpacked) = (Rc::clone(itself), Rc::clone(blobs), Rc::clone(blobs));
    let counted = Rc::clone(blobs);
    Ok(HostConfig {
        dir: state.to_owned(),
        node_id: id,
        node_name: config.name.clone(),
        gateway: config.gateway.map(near),
        arch: own_arch()?,
        ceilings: config.ceilings(),
        socket: service_socket(state)?,
        // Replicas of an earlier agent are adopted before there is an agent to ask; their tasks
        // run only after.
        door: Rc::new(move |socket, user, spec| {
            let agent = itself.get().and_then(Weak::upgrade);
            let agent = agent.ok_or_else(|| io::Error::other("the agent is ending"))?;
            Ok(Box::new(agent.open_door(socket, user, spec)?) as Box<dyn Any>)
        }),
        hold: Rc::new(move |tree| Ok(Box::new(held.hold(tree)?) as Box<dyn Any>)),
        unpack: Rc::new(move |tree, to| {
            let blobs = Rc::clone(&unpacked);
            Box::pin(async move { blobs.unpack(tree, to).await })
        }),
        state: state_store,
        lease: ask_lease(asked),
        over: Rc::new(move || {
            let blobs = Rc::clone(&counted);
            Box::pin(async move { blobs.over().await })
        }),
    })
}

fn node(me: Peer, config: &Config, announce: &[SocketAddr]) -> io::Result<Node> {
    let profile = Profile {
        name: config.name.clone(),
        arch: own_arch()?,
        home: home(announce),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: crate::machine::probe(),
        labels: config.labels(),
    };
    let ceilings = config.ceilings();
    Ok(Node::new(NodeConfig { me, profile, ceilings, programs: programs() }))
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
    /// Local services first: they need no network.
    fn begin(self: &Rc<Self>, boot: Command) {
        let weak = Rc::downgrade(self);
        self.links.set_neighbours(move |id| {
            weak.upgrade().is_some_and(|agent| agent.node.borrow().is_neighbour(id))
        });
        if let Some(problem) = clock::problem() {
            log::warn!("{problem}");
        }
        let (ceilings, rules) = {
            let config = self.config.borrow();
            (config.ceilings(), config.cannot_hold())
        };
        if !rules.is_empty() {
            log::warn!("this version cannot hold {}: no services are taken", rules.join(", "));
            self.input(Input::Command(Command::Limits { ceilings, takes_work: false }));
        }
        self.input(Input::Command(boot));
        self.drain_again();
        self.host.forget_unordered();
        self.tell_kept();
    }

    /// Opens the gateway and the control socket, and begins what goes on beside the loop. It ends
    /// when the result is dropped.
    fn serve_people(self: &Rc<Self>) -> io::Result<(Control, [Task<()>; 3])> {
        self.open_gateway()?;
        let control = Control::start(
            Rc::clone(&self.ex),
            self.dirs.socket.clone(),
            0o660,
            Rc::clone(&self.own),
            Rc::new(people::Api(Rc::clone(self))),
        )?;
        let beside = [
            self.ex.spawn(Rc::clone(self).keep_dialling()),
            self.ex.spawn(Rc::clone(self).keep_remembering()),
            self.ex.spawn(Rc::clone(self).follow_addresses()),
        ];
        Ok((control, beside))
    }

    /// Everything that has to be in order before the process ends.
    async fn end(&self, state: &Path) -> io::Result<()> {
        self.gateway.borrow_mut().take();
        if matches!(self.ending.get(), Ending::Node | Ending::Copy) {
            self.host.stop_all().await;
        }
        // Tasks that are still there hold the host: its own drop would come too late.
        self.host.tidy();
        self.remembered.borrow_mut().save_now()?;
        if !self.disk.finish(CLOSE_LIMIT) {
            log::warn!("the disk is slow: what was said last is not written");
        }
        smol::future::or(self.links.close(), async {
            smol::Timer::after(CLOSE_LIMIT).await;
        })
        .await;
        if self.ending.get() == Ending::Copy {
            record_copy(state)?;
            check_copy(state)?;
        }
        log::info!("ended");
        Ok(())
    }

    fn open_gateway(self: &Rc<Self>) -> io::Result<()> {
        let listen = self.config.borrow().gateway;
        if let Some(listen) = listen {
            let backend = Rc::new(streams::GatewayBackend(Rc::clone(self)));
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
fn service_socket(state: &Path) -> io::Result<PathBuf> {
    let folder = state.join("run");
    fs::create_dir_all(&folder).map_err(|error| at(&folder, &error))?;
    Ok(folder.join("dugnad.sock"))
}

/// The kind of processor this machine has: what it can start.
fn own_arch() -> io::Result<Arch> {
    let name = arch();
    Arch::parse(name)
        .ok_or_else(|| io::Error::other(format!("dugnad does not know the processor kind {name}")))
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
