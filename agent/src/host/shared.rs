//! What the tasks of all replicas share: the machine, and the table of what each is doing.

use std::any::Any;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Child;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::map::Map;
use dugnad_platform::cgroup::{Group, Parent};
use dugnad_platform::probe::Probe;
use dugnad_platform::process::Process;
use dugnad_resource::execute::{Order, ReplicaId, Report, Run};
use dugnad_resource::spec::Port;
use smol::channel::Sender;
use smol::{Async, LocalExecutor};

use super::record::{Folder, make_dir};
use super::running::Running;
use super::{Endpoint, HostConfig, RunningView, State};
use crate::notify::Changed;

pub(super) struct Shared {
    pub(super) ex: Rc<LocalExecutor<'static>>,
    pub(super) config: HostConfig,
    /// `D/services`.
    pub(super) services: PathBuf,
    pub(super) probe: Probe,
    /// Each service can get a user of its own.
    pub(super) own_users: bool,
    pub(super) parent: RefCell<Parent>,
    /// Where the keepers of logs are.
    pub(super) keepers: Group,
    pub(super) reports: Sender<Report>,
    /// One entry a replica that was ordered and not stopped: bounded by what the core promised.
    pub(super) entries: RefCell<Map<ReplicaId, Entry>>,
    /// Rings when a replica has ended.
    pub(super) changed: Changed,
}

pub(super) struct Entry {
    pub(super) orders: Sender<Order>,
    /// `None` before its first start and after its stop.
    run: Option<Rc<Run>>,
    pub(super) state: State,
    note: String,
    pub(super) endpoint: Option<Endpoint>,
    process: Option<Process>,
    group: Group,
    port: Option<u16>,
    user: Option<u32>,
    /// Its fence, and until when it may run: of a service of which only one may.
    lease: Option<(u64, Duration)>,
    restarts: u32,
    /// Its last end came early.
    young: bool,
}

impl Entry {
    pub(super) fn new(orders: Sender<Order>) -> Self {
        Self {
            orders,
            run: None,
            state: State::Starting,
            note: String::new(),
            endpoint: None,
            process: None,
            group: Group::default(),
            port: None,
            user: None,
            lease: None,
            restarts: 0,
            young: true,
        }
    }

    pub(super) fn view(&self, id: ReplicaId) -> Option<RunningView> {
        let run = self.run.as_ref()?;
        let usage = self.process.map(|_| self.group.usage()).unwrap_or_default();
        Some(RunningView {
            id,
            service: run.spec.name.clone(),
            generation: run.generation,
            state: self.state,
            note: self.note.clone(),
            pid: self.process.map(|process| process.pid),
            memory: usage.memory,
            memory_peak: usage.memory_peak,
            cpu_us: usage.cpu_us,
            processes: usage.pids,
            restarts: self.restarts,
            endpoint: self.endpoint,
        })
    }
}

impl Shared {
    pub(super) fn folder(&self, run: &Run) -> Folder {
        Folder::of(&self.services, &run.spec.name, run.id)
    }

    /// Where a replica finds its door.
    pub(super) fn socket_of(&self, run: &Run) -> PathBuf {
        let socket = &self.config.socket;
        match (socket.parent(), socket.file_name()) {
            (Some(dir), Some(name)) => dir.join(self.folder(run).name()).join(name),
            _ => socket.clone(),
        }
    }

    /// Opens the door of a replica. Its folder stays when the agent ends: a box that was told of
    /// it shows the next agent's socket, too. Only we may write to it.
    pub(super) fn open_door(&self, run: &Run, user: Option<u32>) -> Option<Box<dyn Any>> {
        let socket = self.socket_of(run);
        let opened = socket.parent().map_or(Ok(()), |dir| make_dir(dir, 0o755));
        match opened.and_then(|()| (self.config.door)(socket, user, &run.spec)) {
            Ok(door) => Some(door),
            Err(error) => {
                log::warn!("{} {} has no socket: {error}", run.spec.name, run.id.number);
                None
            }
        }
    }

    /// The replica runs no more.
    pub(super) fn close_door(&self, run: &Run, door: Option<Box<dyn Any>>) {
        drop(door);
        if let Some(dir) = self.socket_of(run).parent() {
            // It is made anew where it is needed.
            let _: io::Result<()> = fs::remove_dir(dir);
        }
    }

    fn with(&self, id: ReplicaId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&id) {
            change(entry);
        }
    }

    /// A generation of a replica begins.
    pub(super) fn begin(&self, run: &Rc<Run>) {
        self.with(run.id, |entry| {
            entry.run = Some(Rc::clone(run));
            entry.state = State::Starting;
            entry.note.clear();
            entry.restarts = 0;
        });
    }

    /// It was stopped; returns what it was.
    pub(super) fn end(&self, id: ReplicaId) -> Option<Rc<Run>> {
        let mut run = None;
        self.with(id, |entry| {
            run = entry.run.take();
            entry.endpoint = None;
        });
        self.changed.ring();
        run
    }

    /// Whether it was started and has not been stopped.
    pub(super) fn runs(&self, id: ReplicaId) -> bool {
        self.entries.borrow().get(&id).is_some_and(|entry| entry.run.is_some())
    }

    /// Returns when nothing of this replica runs here and its last state is where it belongs.
    pub(super) async fn ended(&self, id: ReplicaId) {
        self.changed.until(|| (!self.runs(id)).then_some(())).await;
    }

    pub(super) async fn report(&self, report: Report) {
        // Without a receiver the agent is ending.
        let _: Result<(), _> = self.reports.send(report).await;
    }

    /// It cannot start yet.
    pub(super) async fn waits(&self, id: ReplicaId, why: &str) {
        self.set_state(id, State::Starting, why);
        self.report(Report::Waits { id, reason: why.to_owned() }).await;
    }

    /// What a replica runs, or would.
    pub(super) fn run(&self, id: ReplicaId) -> Option<Rc<Run>> {
        self.entries.borrow().get(&id)?.run.clone()
    }

    /// Takes a stopped replica out of the table; false if it is not stopped.
    pub(super) fn forget(&self, id: ReplicaId) -> bool {
        let mut entries = self.entries.borrow_mut();
        let stopped = entries.get(&id).is_none_or(|entry| entry.run.is_none());
        if stopped {
            entries.remove(&id);
        }
        stopped
    }

    pub(super) fn set_state(&self, id: ReplicaId, state: State, note: &str) {
        self.with(id, |entry| {
            entry.state = state;
            note.clone_into(&mut entry.note);
        });
    }

    pub(super) fn set_lease(&self, id: ReplicaId, fence: u64, until: Duration) {
        self.with(id, |entry| entry.lease = Some((fence, until)));
    }

    pub(super) fn lease(&self, id: ReplicaId) -> Option<(u64, Duration)> {
        self.entries.borrow().get(&id)?.lease
    }

    pub(super) fn set_note(&self, id: ReplicaId, note: &str) {
        self.with(id, |entry| note.clone_into(&mut entry.note));
    }

    pub(super) fn set_endpoint(&self, id: ReplicaId, endpoint: Endpoint) {
        self.with(id, |entry| entry.endpoint = Some(endpoint));
    }

    pub(super) fn set_process(&self, run: &Run, running: &Running) {
        let id = run.id;
        let at = |port| {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match run.spec.port {
                Port::Udp(_) => Endpoint::Datagrams(addr),
                Port::None | Port::Http | Port::Tcp(_) => Endpoint::Port(addr),
            }
        };
        self.with(id, |entry| {
            entry.process = Some(running.process);
            entry.group = running.group.clone();
            entry.port = running.port;
            entry.user = running.user;
            entry.endpoint = running.port.map(at);
        });
    }

    /// Its process is gone.
    pub(super) fn set_ended(&self, id: ReplicaId) {
        self.with(id, |entry| {
            entry.process = None;
            entry.group = Group::default();
            entry.port = None;
            entry.endpoint = None;
        });
    }

    pub(super) fn restarted(&self, id: ReplicaId) {
        self.with(id, |entry| entry.restarts = entry.restarts.saturating_add(1));
    }

    pub(super) fn set_young(&self, id: ReplicaId, young: bool) {
        self.with(id, |entry| entry.young = young);
    }

    pub(super) fn was_young(&self, id: ReplicaId) -> bool {
        self.entries.borrow().get(&id).is_none_or(|entry| entry.young)
    }

    /// State, note, and whether it has a process.
    pub(super) fn state(&self, id: ReplicaId) -> Option<(State, String, bool)> {
        let entries = self.entries.borrow();
        let entry = entries.get(&id)?;
        let is_static = matches!(entry.endpoint, Some(Endpoint::Static(_)));
        Some((entry.state, entry.note.clone(), is_static || entry.process.is_some()))
    }

    pub(super) fn has_port(&self, port: u16) -> bool {
        self.entries.borrow().values().any(|entry| entry.port == Some(port))
    }

    /// Users of the other replicas.
    pub(super) fn users_beside(&self, id: ReplicaId) -> Vec<u32> {
        let entries = self.entries.borrow();
        let others = entries.iter().filter(|(other, _)| **other != id);
        others.filter_map(|(_, entry)| entry.user).collect()
    }

    /// Waits in the background for a child of ours that ends by itself.
    pub(super) fn reap(&self, mut child: Child, process: Process) {
        let watched = process.pidfd().and_then(Async::new_nonblocking);
        let reap = async move {
            let Ok(pidfd) = watched else {
                // A thread that sleeps: the kernel has nothing better.
                if let Err(error) = smol::unblock(move || child.wait()).await {
                    log::debug!("a child was gone: {error}");
                }
                return;
            };
            loop {
                match child.try_wait() {
                    Ok(None) => {}
                    Ok(Some(_)) | Err(_) => return,
                }
                if let Err(error) = pidfd.readable().await {
                    log::debug!("cannot watch a child: {error}");
                    return;
                }
            }
        };
        self.ex.spawn(reap).detach();
    }
}
