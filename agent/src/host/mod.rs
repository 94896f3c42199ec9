//! The host: starts, watches and stops the services this node runs, each in a box.
//!
//! The loop gives it [`Order`]s with [`Host::order`] and gets [`Report`]s from the channel it
//! passed to [`Host::new`]. One task a replica carries that replica's orders out one after another
//! ([`replica`]); replicas do not wait for each other. Services outlive the agent: what runs is
//! written down in `D/services/NAME.NUMBER/run` ([`record`]), and the next agent adopts it. The
//! log of a service is kept by a small process of its own ([`keeper`]), so `main` must begin with
//! [`keeper_main`].
//!
//! ```text
//! if let Some(code) = host::keeper_main() { return code; }           // first line of main
//! let host = Host::new(ex, config, reports)?;                         // adopts what runs
//! host.order(order);                                                  // whenever the core says so
//! host.forget_unordered();                                            // once, after boot
//! ```
//!
//! State of a service that was removed waits a day in `D/trash/NAME.NUMBER.SECONDS`.
//!
//! In `D/services/NAME.NUMBER/`: `package/` (unpacked, read-only for the service), `state/`,
//! `log` and `log.1`, `run`, `tmp/` (only where the box has no private /tmp).

mod contract;
mod deadline;
mod elf;
mod health;
mod keeper;
mod launch;
mod lease;
mod load;
mod logs;
mod record;
mod replica;
mod room;
mod running;
mod shared;
mod state;

use std::any::Any;
use std::cell::RefCell;
use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use dugnad_fabric::Ceilings;
use dugnad_kernel::map::{Map, Set};
use dugnad_kernel::{Key, NodeId};
use dugnad_platform::cgroup::{Group, Limits, Parent, Resource, Version};
use dugnad_platform::explain;
use dugnad_platform::probe::{Probe, Roots, has_users};
use dugnad_resource::execute::{Order, ReplicaId, Report, Run};
use dugnad_resource::spec::{Arch, Spec, Tree, key_of};
use smol::channel::{Receiver, Sender};
use smol::{LocalExecutor, Task};

use crate::notify::Changed;
pub(crate) use crate::stream::Endpoint;
pub(crate) use contract::{DOMAIN, NAMESPACES, USES};
pub(crate) use keeper::keeper_main;
pub(crate) use lease::{AskLease, LeaseNews};
pub(crate) use logs::LogLine;
use record::{Folder, make_dir};
use replica::Replica;
pub(crate) use room::Over;
use running::{Around, Running};
use shared::{Entry, Shared};
pub(crate) use state::{Found, Note, StateStore, Written};

/// Orders that wait for one replica. More are refused: the core asks for one thing at a time.
const ORDERS_MAX: usize = 32;
/// How often the trash is looked through.
const EMPTY_TRASH: Duration = Duration::from_secs(3600);
/// What a replica waits for is tried again after this. Tests do not wait for it.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 3_000 });
/// The group the keepers of logs are in.
const KEEPERS: &str = "logs";

/// Answers at a replica's socket, for that user alone, until the result is dropped.
pub(crate) type OpenDoor = Rc<dyn Fn(PathBuf, Option<u32>, &Spec) -> io::Result<Box<dyn Any>>>;

/// Keeps a stored package on disk until the result is dropped.
pub(crate) type Hold = Rc<dyn Fn(Tree) -> io::Result<Box<dyn Any>>>;

/// Puts a stored package into a folder.
pub(crate) type Unpack = Rc<dyn Fn(Tree, PathBuf) -> Pin<Box<dyn Future<Output = io::Result<()>>>>>;

pub(crate) struct HostConfig {
    /// The agent's state directory D.
    pub(crate) dir: PathBuf,
    pub(crate) node_id: NodeId,
    pub(crate) node_name: String,
    /// Where this node answers for all services, as services on it reach it.
    pub(crate) gateway: Option<SocketAddr>,
    pub(crate) arch: Arch,
    /// The owner's ceilings on the sum of all services.
    pub(crate) ceilings: Ceilings,
    /// What services get as `DUGNAD_SOCKET`, but each replica in a folder of its own beside it:
    /// `run/dugnad.sock` says `run/NAME.NUMBER/dugnad.sock`. A service with a view of its own sees
    /// that folder.
    pub(crate) socket: PathBuf,
    pub(crate) door: OpenDoor,
    pub(crate) hold: Hold,
    pub(crate) unpack: Unpack,
    pub(crate) state: Rc<dyn StateStore>,
    pub(crate) lease: AskLease,
    pub(crate) over: Over,
}

/// What a replica on this node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Ready,
    /// It was ready and is not, or waits to be started again.
    Unready,
    Stopping,
    /// It will not be started again.
    Failed,
}

impl State {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// State that a stopped replica left here.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// Name of the service.
    pub(crate) service: String,
    /// When the replica stopped.
    pub(crate) since: SystemTime,
    /// `None` where it could not be counted.
    pub(crate) bytes: Option<u64>,
}

/// One replica, for people to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningView {
    pub(crate) id: ReplicaId,
    pub(crate) service: String,
    pub(crate) generation: u64,
    pub(crate) state: State,
    /// Why it is in this state, if there is more to say.
    pub(crate) note: String,
    pub(crate) pid: Option<i32>,
    /// Bytes; `None` without a process, or where only a pass over /proc would tell.
    pub(crate) memory: Option<u64>,
    pub(crate) memory_peak: Option<u64>,
    /// Microseconds of CPU since it started.
    pub(crate) cpu_us: Option<u64>,
    pub(crate) processes: Option<u64>,
    pub(crate) restarts: u32,
    pub(crate) endpoint: Option<Endpoint>,
}

pub(crate) struct Host {
    shared: Rc<Shared>,
    tasks: RefCell<Map<ReplicaId, Task<()>>>,
    adopted: Vec<Run>,
    ordered: RefCell<Set<ReplicaId>>,
    taps: Rc<logs::Taps>,
}

impl Host {
    /// Probes the machine, makes the group for all services, and adopts what an earlier agent
    /// left running.
    ///
    /// # Errors
    /// `D/services` cannot be made or read.
    pub(crate) fn new(
        ex: Rc<LocalExecutor<'static>>,
        mut config: HostConfig,
        reports: Sender<Report>,
    ) -> io::Result<Rc<Self>> {
        make_dir(&config.dir, 0o755)?;
        // Services see the same path as we do, so it must hold no links.
        config.dir = fs::canonicalize(&config.dir)
            .map_err(|e| explain(&e, &format!("cannot use {}", config.dir.display())))?;
        if let (Some(parent), Some(name)) = (config.socket.parent(), config.socket.file_name()) {
            // Not there yet: then it is as it was written.
            if let Ok(parent) = fs::canonicalize(parent) {
                config.socket = parent.join(name);
            }
        }
        let services = config.dir.join("services");
        make_dir(&services, 0o711)?;
        let probe = Probe::run(&Roots::default());
        let own_users = probe.root && has_users(&Roots::default(), &launch::USERS);
        let name = group_name(config.node_id);
        let parent = Parent::create(probe.cgroups.clone(), &name, &limits(&config.ceilings));
        for problem in parent.problems() {
            log::warn!("{problem}");
        }
        let keepers = parent.group(KEEPERS, &Limits::default()).unwrap_or_else(|error| {
            log::warn!("logs are kept outside of the services' group: {error}");
            Group::default()
        });
        let shared = Rc::new(Shared {
            ex,
            config,
            services,
            probe,
            own_users,
            parent: RefCell::new(parent),
            keepers,
            reports,
            entries: RefCell::default(),
            changed: Changed::default(),
        });
        let mut host = Self {
            shared,
            tasks: RefCell::default(),
            adopted: Vec::new(),
            ordered: RefCell::default(),
            taps: Rc::default(),
        };
        let services = host.shared.services.clone();
        host.shared.ex.spawn(keep_emptying(services)).detach();
        host.adopt();
        Ok(Rc::new(host))
    }

    fn adopt(&mut self) {
        for folder in folders(&self.shared.services) {
            let Some(record) = folder.load() else { continue };
            let run = record.run.clone();
            let fits = Folder::of(&self.shared.services, &run.spec.name, run.id) == folder;
            if !fits || run.id.service != run.spec.key() || !record.is_alive() {
                continue;
            }
            let around = Around {
                keeper: record.keeper(),
                group: Group::of(record.groups.clone()),
                user: record.user,
                port: record.port,
                cookie: launch::cookie(&self.shared, &run),
            };
            let running = Running::new(record.process(), None, around);
            log::info!("adopted {} {} (pid {})", run.spec.name, run.id.number, running.process.pid);
            self.adopted.push(run.clone());
            let run = Rc::new(run);
            self.spawn(run.id, Some((run, running)));
        }
    }

    fn spawn(&self, id: ReplicaId, adopted: Option<(Rc<Run>, Running)>) -> Sender<Order> {
        let (sender, orders) = smol::channel::bounded(ORDERS_MAX);
        let entry = Entry::new(sender.clone());
        self.shared.entries.borrow_mut().insert(id, entry);
        if let Some((run, running)) = &adopted {
            self.shared.begin(run);
            self.shared.set_process(run, running);
        }
        let replica = Replica::new(Rc::clone(&self.shared), id, orders);
        let task = self.shared.ex.spawn(replica.live(adopted));
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|_, task| !task.is_finished());
        tasks.insert(id, task);
        sender
    }

    /// Takes an order; returns at once. What comes of it is reported.
    pub(crate) fn order(&self, order: Order) {
        let id = match &order {
            Order::Start(run) => run.id,
            Order::Stop { id, .. } => *id,
            Order::ForgetState { service } => return self.forget_state(*service),
            Order::Fetch { .. } | Order::KeepPackage { .. } | Order::Drop { .. } => {
                log::debug!("not for the host: {order:?}");
                return;
            }
        };
        self.ordered.borrow_mut().insert(id);
        self.pass(id, order);
    }

    fn pass(&self, id: ReplicaId, order: Order) {
        let known = self.shared.entries.borrow().get(&id).map(|entry| entry.orders.clone());
        let orders = known.unwrap_or_else(|| self.spawn(id, None));
        if orders.try_send(order).is_err() {
            let reason = format!("{ORDERS_MAX} orders wait already");
            log::warn!("replica {} of {}: {reason}", id.number, id.service.short());
            let reports = self.shared.reports.clone();
            let report = async move {
                // Without a receiver the agent is ending.
                let _: Result<(), _> = reports.send(Report::Failed { id, reason }).await;
            };
            self.shared.ex.spawn(report).detach();
        }
    }

    /// Where requests to a replica go, once it has started.
    pub(crate) fn endpoint(&self, id: ReplicaId) -> Option<Endpoint> {
        self.shared.entries.borrow().get(&id)?.endpoint
    }

    /// The replicas of a service on this node that have an address.
    pub(crate) fn local(&self, service: Key) -> Vec<(ReplicaId, State, Endpoint)> {
        let entries = self.shared.entries.borrow();
        let ours = entries.iter().filter(|(id, _)| id.service == service);
        ours.filter_map(|(id, entry)| Some((*id, entry.state, entry.endpoint?))).collect()
    }

    /// Everything this node runs or tries to.
    pub(crate) fn running(&self) -> Vec<RunningView> {
        let entries = self.shared.entries.borrow();
        entries.iter().filter_map(|(id, entry)| entry.view(*id)).collect()
    }

    /// What an earlier agent left running and this one watches now.
    #[cfg(test)]
    pub(crate) fn adopted(&self) -> Vec<Run> {
        self.adopted.clone()
    }

    /// What holds services to each limit, for people.
    pub(crate) fn enforced(&self) -> Vec<(&'static str, &'static str)> {
        let parent = self.shared.parent.borrow();
        let by = |resource, v2, v1, else_| match parent.limits(resource) {
            Some(Version::V2) => v2,
            Some(Version::V1) => v1,
            None => else_,
        };
        let processes = if self.shared.own_users {
            "rlimit of the service's own user"
        } else {
            "nothing: no writable cgroup with pids"
        };
        vec![
            (
                "memory",
                by(Resource::Memory, "cgroup v2 memory", "cgroup v1 memory", "rlimit + sampling"),
            ),
            (
                "cpu",
                by(
                    Resource::Cpu,
                    "cgroup v2 cpu",
                    "cgroup v1 cpu",
                    "nothing: no writable cgroup with cpu",
                ),
            ),
            ("processes", by(Resource::Pids, "cgroup v2 pids", "cgroup v1 pids", processes)),
            ("disk", "looked at: who has more than it asked for ends when all together do"),
        ]
    }

    /// The layers of the box around every service, for people.
    pub(crate) fn box_layers(&self) -> String {
        let probe = &self.shared.probe;
        let parent = self.shared.parent.borrow();
        let mut layers = Vec::new();
        if self.shared.own_users {
            layers.push("own uid".to_owned());
        }
        if self.shared.own_users && probe.mount_namespaces {
            layers.push("own view of files".to_owned());
        }
        layers.push("rlimits".to_owned());
        for (version, name) in [(Version::V2, "v2"), (Version::V1, "v1")] {
            let held = Resource::ALL.into_iter().filter(|r| parent.limits(*r) == Some(version));
            let held: Vec<_> = held.map(Resource::controller).collect();
            if !held.is_empty() {
                layers.push(format!("cgroup {name} ({})", held.join(", ")));
            }
        }
        layers.push("no_new_privs".to_owned());
        layers.join(", ")
    }

    /// What this machine lacks, and what that means for services, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut lines = self.shared.probe.problems();
        if self.shared.probe.root && !self.shared.own_users {
            lines.push(
                "only root exists here (a container that maps no other users): services run as \
                 the user of the agent, and can read what it can"
                    .to_owned(),
            );
        }
        lines
    }

    /// Changes the ceilings on the sum of all services, at once.
    pub(crate) fn set_ceilings(&self, ceilings: Ceilings) {
        let mut parent = self.shared.parent.borrow_mut();
        let before = parent.problems().len();
        parent.set(&limits(&ceilings));
        for problem in parent.problems().iter().skip(before) {
            log::warn!("{problem}");
        }
    }

    /// The last `tail` lines of every replica of a service that has a folder here; with `follow`
    /// also what it writes from now on, until the receiver is dropped.
    pub(crate) fn logs(&self, service: Key, tail: usize, follow: bool) -> Receiver<LogLine> {
        let services = self.shared.services.clone();
        let (receiver, task) = logs::open(Rc::clone(&self.taps), services, service, tail, follow);
        self.shared.ex.spawn(task).detach();
        receiver
    }

    /// Ends and deletes what an earlier agent left and nobody has ordered since: processes,
    /// folders, groups. Each goes through the queue of its replica, so an order that comes
    /// meanwhile waits for it; each is reported as stopped. State that was to be kept when its
    /// replica stopped stays.
    pub(crate) fn forget_unordered(&self) {
        let ordered = self.ordered.borrow().clone();
        let mut left: Map<ReplicaId, bool> = Map::new();
        for name in self.shared.parent.borrow().names() {
            // Processes that an agent started and died before writing it down.
            left.extend(replica_of(&name).map(|id| (id, true)));
        }
        for folder in folders(&self.shared.services) {
            left.extend(folder.id().map(|id| (id, !folder.is_kept())));
        }
        left.extend(self.adopted.iter().map(|run| (run.id, true)));
        for (id, forget) in left.into_iter().filter(|(id, _)| !ordered.contains(id)) {
            log::info!("nobody wants replica {} of {} here", id.number, id.service.short());
            self.pass(id, Order::Stop { id, forget });
        }
    }

    /// Returns when a replica does not run here, or any more.
    pub(crate) async fn ended(&self, id: ReplicaId) {
        self.shared.ended(id).await;
    }

    /// State that stopped replicas left here.
    pub(crate) fn kept_state(&self) -> Vec<Kept> {
        let kept = folders(&self.shared.services).into_iter().filter_map(|folder| {
            let (service, _) = folder.name().rsplit_once('.')?;
            let (since, bytes) = (folder.kept_since()?, folder.kept_bytes());
            Some(Kept { service: service.to_owned(), since, bytes })
        });
        kept.collect()
    }

    /// The service was removed: what its stopped replicas left here goes, too.
    pub(crate) fn forget_state(&self, service: Key) {
        for folder in folders(&self.shared.services) {
            let left = folder.id().filter(|id| id.service == service && folder.is_kept());
            if let Some(id) = left {
                self.pass(id, Order::Stop { id, forget: true });
            }
        }
    }

    /// Services outlive the agent. If there are none, our groups need not stay behind.
    pub(crate) fn tidy(&self) {
        if let Err(error) = self.shared.parent.borrow().whole().remove() {
            log::debug!("{error}");
        }
    }

    /// Stops everything and waits until it is gone; folders stay.
    pub(crate) async fn stop_all(&self) {
        let ids: Vec<ReplicaId> = self.shared.entries.borrow().keys().copied().collect();
        for id in &ids {
            self.pass(*id, Order::Stop { id: *id, forget: false });
        }
        for id in ids {
            let task = self.tasks.borrow_mut().remove(&id);
            if let Some(task) = task {
                task.await;
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tidy();
    }
}

/// Deletes what has been in the trash for long enough, now and then.
async fn keep_emptying(services: PathBuf) {
    loop {
        let folder = services.clone();
        let emptied = smol::unblock(move || record::empty_trash(&folder, SystemTime::now())).await;
        if let Err(error) = emptied {
            log::warn!("{error}");
        }
        smol::Timer::after(EMPTY_TRASH).await;
    }
}

/// The group above all services of a node.
pub(crate) fn group_name(node: NodeId) -> String {
    format!("dugnad-{}", node.short()).to_lowercase()
}

fn limits(ceilings: &Ceilings) -> Limits {
    let amounts = ceilings.amounts;
    Limits {
        memory: (amounts.memory > 0).then_some(amounts.memory),
        cpu: (amounts.cpu > 0).then_some(amounts.cpu),
        cpu_share: None,
        end_together: false,
        pids: (amounts.processes > 0).then_some(amounts.processes),
    }
}

/// All folders of replicas.
fn folders(services: &Path) -> Vec<Folder> {
    let entries = fs::read_dir(services).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| Folder(entry.path())).collect();
    folders.retain(|folder| folder.id().is_some() && folder.0.is_dir());
    folders.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    folders
}

/// The replica that a folder or group of this name is for.
fn replica_of(name: &str) -> Option<ReplicaId> {
    let (service, number) = name.rsplit_once('.')?;
    Some(ReplicaId { service: key_of(service), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests;
