//! From a [`Run`] to a process in its box: folders, package, user, limits, environment, program.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::Hash;
use dugnad_kernel::map::Map;
use dugnad_platform::cgroup::{Limits, Resource};
use dugnad_platform::explain;
use dugnad_platform::mounts::{Bind, View, passable};
use dugnad_platform::process::Process;
use dugnad_platform::spawn::{Launch, Rlimits, StartError};
use dugnad_resource::execute::Run;
use dugnad_resource::spec::{Port, Tree};

use smol::LocalExecutor;

use super::record::{Folder, Record, make_dir, remove_all};
use super::running::{Around, PATIENCE, Running};
use super::{Shared, contract, elf, folders, keeper};

/// Users for services: below those systemd gives away by itself, above those of people.
/// Between those that systemd gives to homes and containers and those of its dynamic users.
pub(super) const USERS: std::ops::Range<u32> = 60_578..61_184;
/// Services go first when the machine runs out of memory.
const OOM_SCORE: u16 = 500;
const FILES: u64 = 8192;
/// Bytes of a private /tmp. Its pages count as the service's memory.
const SCRATCH: u64 = 16 << 20;
/// Where names are looked up first.
const HOSTS: &str = "/etc/hosts";

/// Why a replica did not start.
pub(super) enum Fail {
    /// Trying again changes nothing.
    Final(String),
    Again(String),
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        Self::Again(error.to_string())
    }
}

/// What the box of one replica is made of, so that a health check can run in the same one.
pub(super) struct Prepared {
    env: Map<String, String>,
    cwd: PathBuf,
    has_package: bool,
    user: Option<u32>,
    view: Option<View>,
    rlimits: Rlimits,
    /// No cgroup holds its memory: it has to be looked at.
    pub(super) sample_memory: bool,
    /// Health checks run so far, to tell their processes apart.
    checks: Cell<u64>,
    ex: Rc<LocalExecutor<'static>>,
}

/// The variable only this replica of this node has.
pub(super) fn cookie(shared: &Shared, run: &Run) -> String {
    format!("DUGNAD_RUN={}/{}/{}", shared.config.node_id, run.id.service, run.id.number)
}

impl Prepared {
    /// The box as `user` and `port` make it. Nothing is made on disk here.
    pub(super) fn new(
        shared: &Shared,
        run: &Run,
        user: Option<u32>,
        port: Option<u16>,
    ) -> io::Result<Self> {
        let folder = shared.folder(run);
        let has_package = run.package.is_some();
        let state = folder.state();
        let cwd = if has_package { folder.package() } else { state.clone() };
        let private_tmp = user.is_some() && shared.probe.mount_namespaces;
        let view = if private_tmp { Some(view(shared, run, &folder)?) } else { None };
        let tmp = if private_tmp { PathBuf::from("/tmp") } else { folder.tmp() };
        let mut env =
            contract::environment(&shared.config, &shared.socket_of(run), run, port, &state, &tmp);
        if let Some((name, value)) = cookie(shared, run).split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
        if let Some((fence, _)) = shared.lease(run.id) {
            env.insert("DUGNAD_FENCE".to_owned(), fence.to_string());
        }
        let needs = run.spec.needs;
        let parent = shared.parent.borrow();
        let sample_memory = parent.limits(Resource::Memory).is_none();
        let rlimits = Rlimits {
            // Stacks of threads count, too: twice the limit, and the sum is looked at.
            data: (sample_memory && needs.memory > 0).then(|| (needs.memory * 2).max(128 << 20)),
            processes: (user.is_some()
                && parent.limits(Resource::Pids).is_none()
                && needs.processes > 0)
                .then_some(u64::from(needs.processes)),
            files: Some(FILES),
        };
        let (checks, ex) = (Cell::new(0), Rc::clone(&shared.ex));
        Ok(Self { ex, env, cwd, has_package, user, view, rlimits, sample_memory, checks })
    }

    /// The program of a command: `/path` of the host, `./path` of the package, or a name that is
    /// looked for in the package and then in `PATH`.
    fn program(&self, word: &str) -> PathBuf {
        if word.contains('/') {
            return self.cwd.join(word);
        }
        let packaged = self.cwd.join(word);
        if self.has_package && packaged.is_file() {
            return packaged;
        }
        let path = self.env.get("PATH").map_or("", String::as_str);
        let found = path.split(':').map(|dir| Path::new(dir).join(word)).find(|p| p.is_file());
        found.unwrap_or(packaged)
    }

    fn launch(&self, words: &[String], group: dugnad_platform::cgroup::Group) -> Option<Launch> {
        let mut words = words.iter().map(|word| contract::expand(word, &self.env));
        let mut launch = Launch::new(self.program(&words.next()?), &self.cwd);
        launch.args = words.map(OsString::from).collect();
        launch.env = self.env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        launch.rlimits = self.rlimits;
        launch.group = (!group.is_empty()).then_some(group);
        launch.user = self.user;
        launch.view.clone_from(&self.view);
        launch.oom_score = Some(OOM_SCORE);
        Some(launch)
    }

    /// Runs a health check's command in the box of the running service.
    pub(super) async fn exec(
        &self,
        command: &[String],
        running: &Running,
        limit: Duration,
    ) -> Result<(), String> {
        let Some(mut launch) = self.launch(command, running.group.clone()) else {
            return Err("the health check has no command".to_owned());
        };
        self.checks.set(self.checks.get() + 1);
        // Its own cookie, so that ending a check that is late does not end the service.
        let cookie = format!("DUGNAD_CHECK={}/{}", running.process.pid, self.checks.get());
        if let Some((name, value)) = cookie.split_once('=') {
            launch.env.push((name.into(), value.into()));
        }
        let started = smol::unblock(move || launch.start()).await;
        let (child, process) = started.map_err(|error| error.to_string())?;
        let around =
            Around { keeper: None, group: Default::default(), user: None, port: None, cookie };
        let check = Running::new(process, Some(child), around);
        let name = command[0].clone();
        let (tell, told) = smol::channel::bounded(1);
        // A task of its own: whoever waits for the check may go, the process still gets reaped.
        let task = async move {
            let ended = async { Some(check.ended().await) };
            let late = async {
                smol::Timer::after(limit).await;
                None
            };
            let outcome = match smol::future::or(ended, late).await {
                Some(Some(status)) if status.success() => Ok(()),
                Some(Some(status)) => Err(format!("{name} ended with {status}")),
                Some(None) => Err(format!("{name} ended, nobody knows how")),
                None => {
                    check.clear().await;
                    Err(format!("{name} took longer than {} ms", limit.as_millis()))
                }
            };
            // Nobody waits any more.
            let _: Result<(), _> = tell.send(outcome).await;
        };
        self.ex.spawn(task).detach();
        told.recv().await.unwrap_or_else(|_| Err("the check was given up".to_owned()))
    }
}

fn view(shared: &Shared, run: &Run, folder: &Folder) -> io::Result<View> {
    let mut binds = vec![Bind { path: folder.state(), writable: true }];
    if run.package.is_some() {
        binds.push(Bind { path: folder.package(), writable: false });
    }
    // The socket's folder rather than the socket: the next agent makes a new socket in it. Not if
    // that would show the agent's own folder.
    if let Some(dir) = shared.socket_of(run).parent() {
        if dir.is_dir() && !shared.services.starts_with(dir) {
            binds.push(Bind { path: dir.to_path_buf(), writable: false });
        }
    }
    let mut view = View::plan(&shared.config.dir, &passable, &binds, SCRATCH)?;
    if hosts(shared, run).is_some() {
        view.show_instead(&folder.hosts(), Path::new(HOSTS))?;
    }
    Ok(view)
}

/// What the service sees as `/etc/hosts`, if its file names services it uses.
fn hosts(shared: &Shared, run: &Run) -> Option<String> {
    let (_, uses) = run.spec.env.iter().find(|(name, _)| name == contract::USES)?;
    let machine = fs::read_to_string(HOSTS).ok()?;
    Some(contract::hosts(&machine, shared.config.gateway?.ip(), uses))
}

/// Starts the replica. `unpacked` is the package that is already in its folder.
pub(super) async fn start(
    shared: &Shared,
    run: &Run,
    unpacked: &mut Option<Tree>,
) -> Result<(Running, Prepared), Fail> {
    let folder = shared.folder(run);
    let user = shared.user_for(run.id);
    make_folder(shared, run, &folder).await?;
    if let Some(tree) = run.package {
        if *unpacked != Some(tree) {
            unpack(shared, &folder, tree).await?;
            *unpacked = Some(tree);
        }
    }
    let port = match run.spec.port {
        Port::None => None,
        Port::Http | Port::Tcp(_) | Port::Udp(_) => Some(shared.free_port()?),
    };
    let prepared = Prepared::new(shared, run, user, port)?;
    if user.is_some() && prepared.view.is_none() {
        check_passable(&folder).map_err(Fail::Final)?;
    }
    let (group, tmp) = (limits(run), prepared.view.is_none());
    let hosts = prepared.view.as_ref().and_then(|_| hosts(shared, run));
    let group = {
        let (parent, folder) = (shared.parent.borrow().clone(), folder.clone());
        smol::unblock(move || -> io::Result<_> {
            prepare_folders(&folder, user, tmp)?;
            if let Some(hosts) = hosts {
                fs::write(folder.hosts(), hosts)?;
            }
            // What an agent that died in the middle may have left.
            parent.existing(folder.name()).kill(PATIENCE)?;
            parent.group(folder.name(), &group)
        })
        .await?
    };
    let Some(launch) = prepared.launch(&run.spec.command, group.clone()) else {
        return Err(Fail::Final("the service has no command".to_owned()));
    };
    let keepers = shared.keepers.clone();
    let arch = shared.config.arch;
    let until = shared.lease(run.id).map(|(_, until)| until);
    let booted = smol::unblock(move || boot(launch, &folder, keepers, until, arch)).await;
    let (child, process, (keeper_child, keeper)) = match booted {
        Ok(booted) => booted,
        Err(fail) => {
            let group = group.clone();
            if let Err(error) = smol::unblock(move || group.remove()).await {
                log::debug!("{error}");
            }
            return Err(fail);
        }
    };
    shared.reap(keeper_child, keeper);
    let mut record = Record::new(run.clone(), process, Some(keeper));
    (record.port, record.user, record.groups) = (port, user, group.dirs().to_vec());
    let cookie = cookie(shared, run);
    let around = Around { keeper: Some(keeper), group, user, port, cookie };
    let running = Running::new(process, Some(child), around);
    let folder = shared.folder(run);
    if let Err(error) = smol::unblock(move || folder.save(&record)).await {
        // It runs; only the next agent will not know it.
        log::warn!("{error}");
    }
    Ok((running, prepared))
}

async fn make_folder(shared: &Shared, run: &Run, folder: &Folder) -> io::Result<()> {
    let (folder, services) = (folder.clone(), shared.services.clone());
    let keeps = run.spec.keeps_state();
    smol::unblock(move || {
        folder.make()?;
        if keeps { take_up_state(&services, &folder) } else { Ok(()) }
    })
    .await
}

/// The share of CPU is what was promised; the ceiling on the sum is what the owner gives. A service
/// may have more than its share while nobody else wants it, so that it starts fast.
fn limits(run: &Run) -> Limits {
    let needs = run.spec.needs;
    Limits {
        memory: (needs.memory > 0).then_some(needs.memory),
        cpu: None,
        cpu_share: (needs.cpu > 0).then_some(needs.cpu),
        end_together: true,
        pids: (needs.processes > 0).then_some(needs.processes),
    }
}

type Booted = (Child, Process, (Child, Process));

/// The blocking part: program checked, keeper and service started.
fn boot(
    mut launch: Launch,
    folder: &Folder,
    keepers: dugnad_platform::cgroup::Group,
    until: Option<Duration>,
    arch: dugnad_resource::spec::Arch,
) -> Result<Booted, Fail> {
    elf::check(&launch.program, arch).map_err(Fail::Final)?;
    let (output, keeper_child, keeper) = keeper::start(&folder.0, keepers, until)?;
    launch.output = Some(output);
    // If the service does not start, its end of the pipe closes and the keeper ends.
    match launch.start() {
        Ok((child, process)) => Ok((child, process, (keeper_child, keeper))),
        Err(error) => {
            let mut keeper_child = keeper_child;
            if let Err(error) = keeper_child.wait() {
                log::debug!("the keeper was gone: {error}");
            }
            Err(why(&error))
        }
    }
}

fn why(error: &StartError) -> Fail {
    let text = error.to_string();
    match error.error.kind() {
        _ if !error.program => Fail::Again(text),
        io::ErrorKind::NotFound => Fail::Final(format!(
            "{text}; the program, or the interpreter in its first line, is not there (services \
             have \
             a /tmp of their own)"
        )),
        io::ErrorKind::PermissionDenied => {
            Fail::Final(format!("{text}; is it executable, and may everybody read its folder?"))
        }
        _ => Fail::Again(text),
    }
}

async fn unpack(shared: &Shared, folder: &Folder, tree: Tree) -> Result<(), Fail> {
    let (aside, package) = (folder.0.join("package.new"), folder.package());
    {
        let aside = aside.clone();
        smol::unblock(move || remove_all(&aside)).await?;
    }
    let done = (shared.config.unpack)(tree, aside.clone()).await;
    done.map_err(|error| Fail::Again(format!("cannot unpack {}: {error}", short(tree.root))))?;
    let done = smol::unblock(move || {
        make_dir(&aside, 0o755)?;
        open_to_all(&aside)?;
        remove_all(&package)?;
        fs::rename(&aside, &package)
            .map_err(|error| explain(&error, &format!("cannot make {}", package.display())))
    });
    Ok(done.await?)
}

fn short(hash: Hash) -> String {
    hash.to_string().chars().take(12).collect()
}

/// Services have users of their own: what may be read by its owner may be read by all.
fn open_to_all(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o777;
    let executable = meta.is_dir() || mode & 0o100 != 0;
    let wanted = if executable { mode | 0o555 } else { mode | 0o444 };
    if wanted != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted))
            .map_err(|error| explain(&error, &format!("cannot open {} to all", path.display())))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// State belongs to the service and not to the number of a replica: what an earlier one left here
/// is the next one's, the newest if there are several.
pub(super) fn take_up_state(services: &Path, folder: &Folder) -> io::Result<()> {
    if folder.state().exists() {
        return Ok(());
    }
    let service = folder.id().map(|id| id.service);
    let left = folders(services).into_iter().filter(|other| {
        let same = other.id().map(|id| id.service) == service;
        same && other != folder && other.is_kept() && other.state().exists()
    });
    let Some(newest) = left.max_by_key(Folder::kept_since) else { return Ok(()) };
    folder.take_turn(&newest)?;
    fs::rename(newest.state(), folder.state())
        .map_err(|error| explain(&error, &format!("cannot move {}", newest.state().display())))?;
    log::info!("{} takes up the state that {} left", folder.name(), newest.name());
    newest.delete(false)
}

fn prepare_folders(folder: &Folder, user: Option<u32>, tmp: bool) -> io::Result<()> {
    folder.set_kept(false)?;
    let (state, scratch) = (folder.state(), folder.tmp());
    make_dir(&state, 0o700)?;
    remove_all(&scratch)?;
    if tmp {
        make_dir(&scratch, 0o700)?;
    }
    let Some(user) = user else { return Ok(()) };
    let own = |path: &Path| {
        chown(path, Some(user), Some(user))
            .map_err(|error| explain(&error, &format!("cannot give {} away", path.display())))
    };
    if tmp {
        own(&scratch)?;
    }
    // All of it only when it belonged to another user before.
    if fs::metadata(&state)?.uid() != user {
        give(&state, user)?;
        own(&state)?;
    }
    Ok(())
}

fn give(dir: &Path, user: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        lchown(entry.path(), Some(user), Some(user))?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user)?;
        }
    }
    Ok(())
}

/// Without a view of its own, a service's user must be able to get to its folder.
fn check_passable(folder: &Folder) -> Result<(), String> {
    match folder.0.ancestors().find(|dir| !passable(dir)) {
        Some(dir) => Err(format!(
            "users of services cannot pass {dir}: run chmod o+x {dir}, or keep the agent's folder \
             elsewhere",
            dir = dir.display()
        )),
        None => Ok(()),
    }
}

impl Shared {
    /// A port nobody listens on, by TCP or UDP, and no other replica was given.
    fn free_port(&self) -> io::Result<u16> {
        let explained = |e: io::Error| explain(&e, "no free port of 127.0.0.1 for the service");
        let mut held = Vec::new();
        loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(explained)?;
            let port = listener.local_addr().map_err(explained)?.port();
            if !self.has_port(port) && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
            // Held, so that the kernel offers another one.
            held.push(listener);
        }
    }

    /// The user a replica runs as: the same one every time, unless another has it now.
    pub(super) fn user_for(&self, id: dugnad_resource::execute::ReplicaId) -> Option<u32> {
        if !self.own_users {
            return None;
        }
        let span = USERS.end - USERS.start;
        let first = (id.service.0 >> 64) as u32;
        let place = first.wrapping_add(id.number.wrapping_mul(7919)) % span;
        let users = self.users_beside(id);
        let mut free = (0..span).map(|step| USERS.start + (place + step) % span);
        // With more replicas than users two would share one; never the agent's own.
        free.find(|user| !users.contains(user)).or(Some(USERS.start + place))
    }
}
