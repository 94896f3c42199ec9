//! Starting a program inside a box. The order of the steps is in one function: [`Inside::enter`].
//!
//! The child does not die with the agent: it has a session of its own and nobody's death signal.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid};

use crate::cgroup::Group;
use crate::file::explain;
use crate::mounts::View;
use crate::process::Process;

/// Limits the kernel holds one process to, whatever cgroups there are. `None` leaves what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rlimits {
    /// Bytes of private writable memory of one process. Not its address space: runtimes reserve
    /// far more of that than they use.
    pub data: Option<u64>,
    /// Processes of the user: only with a user of its own, it counts all of them.
    pub processes: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
}

/// Everything about one program to start.
#[derive(Debug)]
pub struct Launch {
    /// Absolute, or relative to `cwd`.
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
    /// Standard output and error; `None` is /dev/null.
    pub output: Option<OwnedFd>,
    /// Standard input; `None` is /dev/null.
    pub input: Option<OwnedFd>,
    pub rlimits: Rlimits,
    pub group: Option<Group>,
    /// User and group id to run as; needs root.
    pub user: Option<u32>,
    pub view: Option<View>,
    /// Offer it to the kernel first when memory runs out (0..=1000).
    pub oom_score: Option<u16>,
}

/// Why a program did not start.
#[derive(Debug)]
pub struct StartError {
    /// What was being done, for a person: `cannot run ./wiki`.
    pub what: String,
    pub error: io::Error,
    /// The box stood; it is the program itself that cannot be run.
    pub program: bool,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

impl Launch {
    /// A program with nothing around it.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, cwd: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: cwd.into(),
            output: None,
            input: None,
            rlimits: Rlimits::default(),
            group: None,
            user: None,
            view: None,
            oom_score: None,
        }
    }

    /// Starts it. Blocks until the program runs or has failed to.
    ///
    /// # Errors
    /// [`StartError`] with the step that failed; nothing runs then.
    pub fn start(self) -> Result<(Child, Process), StartError> {
        let failed = |what: &str, error: io::Error| {
            let what = what.to_owned();
            StartError { what, error, program: false }
        };
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env);
        command.stdin(self.input.map_or_else(Stdio::null, Stdio::from));
        if let Some(output) = self.output {
            let second = output.try_clone().map_err(|e| failed("cannot share the log", e))?;
            command.stdout(output).stderr(second);
        } else {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let (heard, told) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .map_err(|error| failed("cannot make a pipe", error.into()))?;
        let group = self.group.unwrap_or_default();
        let inside = Inside {
            groups: open_groups(&group).map_err(|e| failed("cannot open the cgroup", e))?,
            cwd: CString::new(self.cwd.as_os_str().as_bytes())
                .map_err(|e| failed("cannot use this folder", e.into()))?,
            rlimits: self.rlimits,
            user: self.user,
            view: self.view,
            oom_score: self.oom_score.map(|score| score.to_string()),
            told: told.as_raw_fd(),
        };
        // SAFETY: `enter` makes system calls only; everything it needs was allocated before.
        unsafe { command.pre_exec(move || inside.enter()) };
        let spawned = command.spawn();
        drop(told);
        match spawned {
            Ok(child) => {
                let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
                match Process::of(pid) {
                    Ok(process) => Ok((child, process)),
                    Err(error) => Err(failed("cannot see the new process", error)),
                }
            }
            Err(error) => {
                let step = last_step(heard);
                Err(match step {
                    Some(step) => failed(step.what(), error),
                    None => {
                        let what = format!("cannot run {}", self.program.display());
                        StartError { what, error, program: true }
                    }
                })
            }
        }
    }
}

fn open_groups(group: &Group) -> io::Result<Vec<File>> {
    let open = |dir: &PathBuf| {
        let path = dir.join("cgroup.procs");
        let opened = File::options().write(true).open(&path);
        opened.map_err(|error| explain(&error, &format!("cannot open {}", path.display())))
    };
    group.dirs().iter().map(open).collect()
}

/// The steps of [`Inside::enter`], so that the parent can say which one failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session,
    Cgroup,
    OomScore,
    Rlimits,
    View,
    Folder,
    User,
    NoNewPrivileges,
    Files,
}

impl Step {
    const ALL: [Self; 9] = [
        Self::Session,
        Self::Cgroup,
        Self::OomScore,
        Self::Rlimits,
        Self::View,
        Self::Folder,
        Self::User,
        Self::NoNewPrivileges,
        Self::Files,
    ];

    const fn what(self) -> &'static str {
        match self {
            Self::Session => "cannot make a session for the service",
            Self::Cgroup => "cannot put the service into its cgroup",
            Self::OomScore => "cannot set the service's oom score",
            Self::Rlimits => "cannot set the service's rlimits",
            Self::View => "cannot make the service's view of the file system",
            Self::Folder => "cannot enter the service's folder",
            Self::User => "cannot become the service's user",
            Self::NoNewPrivileges => "cannot give up gaining privileges",
            Self::Files => "cannot close the agent's files",
        }
    }
}

fn last_step(heard: OwnedFd) -> Option<Step> {
    let mut byte = [0];
    let read = File::from(heard).read(&mut byte).ok()?;
    if read == 0 { None } else { Step::ALL.into_iter().find(|step| *step as u8 == byte[0]) }
}

/// What the child needs between fork and exec; made before, because there it must not allocate.
struct Inside {
    groups: Vec<File>,
    cwd: CString,
    rlimits: Rlimits,
    user: Option<u32>,
    view: Option<View>,
    oom_score: Option<String>,
    told: RawFd,
}

impl Inside {
    /// All steps, top to bottom. Standard input, output and error are already in place.
    fn enter(&self) -> io::Result<()> {
        let step = |step: Step, done: Result<(), Errno>| {
            done.map_err(|error| {
                // SAFETY: one byte from our stack to our own descriptor. If the parent does not
                // get it, it still gets the error itself.
                unsafe { libc::write(self.told, (&raw const step).cast(), 1) };
                io::Error::from(error)
            })
        };
        // A group of its own for signals; no terminal.
        step(Step::Session, nix::unistd::setsid().map(drop))?;
        // Limits before anything of the service runs. "0" is whoever writes it.
        for group in &self.groups {
            step(Step::Cgroup, nix::unistd::write(group, b"0").map(drop))?;
        }
        step(Step::OomScore, self.offer_to_oom())?;
        step(Step::Rlimits, self.limit())?;
        // Needs root, so it comes before the user.
        if let Some(view) = &self.view {
            step(Step::View, view.enter())?;
        }
        step(Step::Folder, nix::unistd::chdir(self.cwd.as_c_str()))?;
        // From root to another user the kernel drops all capabilities.
        if let Some(user) = self.user {
            step(Step::User, become_user(user))?;
        }
        step(Step::NoNewPrivileges, no_new_privileges())?;
        step(Step::Files, close_later())
    }

    fn offer_to_oom(&self) -> Result<(), Errno> {
        let Some(score) = &self.oom_score else { return Ok(()) };
        let mode = nix::sys::stat::Mode::empty();
        match nix::fcntl::open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY, mode) {
            Ok(file) => nix::unistd::write(file.as_fd(), score.as_bytes()).map(drop),
            // No /proc: then it is an equal among equals.
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn limit(&self) -> Result<(), Errno> {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        let limits = [
            (Resource::RLIMIT_DATA, self.rlimits.data),
            (Resource::RLIMIT_NPROC, self.rlimits.processes),
            (Resource::RLIMIT_NOFILE, self.rlimits.files),
        ];
        for (resource, value) in limits {
            let Some(value) = value else { continue };
            // Never above what the agent itself has.
            let (_, most) = nix::sys::resource::getrlimit(resource)?;
            let value = value.min(most);
            setrlimit(resource, value, value)?;
        }
        Ok(())
    }
}

fn become_user(user: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

fn no_new_privileges() -> Result<(), Errno> {
    // SAFETY: plain integers; a flag of this process that can only be set.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Everything above standard error closes at exec, whoever opened it without that flag.
fn close_later() -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_long = 4;
    // SAFETY: plain integers; only sets a flag on descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    match Errno::result(done) {
        // Kernels before 5.11: everything we open has the flag already.
        Ok(_) | Err(Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
