//! Processes, recognised for sure: a process id alone may name another process later.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill as send};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::file::explain;

pub use nix::sys::signal::Signal as Sig;

/// A process id and when it started: together they name one process until the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since boot.
    pub start: u64,
}

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
struct Stat {
    state: char,
    group: i32,
    session: i32,
    start: u64,
    /// Ticks of the processor it used, its ended children aside.
    ticks: u64,
    /// Bytes.
    resident: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything, even brackets.
    let rest = text.get(text.rfind(')')? + 2..)?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // SAFETY: asks for a constant of the system. Some boards have pages of 16 KB.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
        resident: fields.get(21)?.parse::<u64>().ok()? * page,
    })
}

impl Process {
    /// # Errors
    /// There is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}"));
        stat(pid).map(|stat| Self { pid, start: stat.start }).ok_or_else(gone)
    }

    /// # Errors
    /// /proc is not mounted.
    pub fn this() -> io::Result<Self> {
        i32::try_from(std::process::id()).map_err(io::Error::other).and_then(Self::of)
    }

    /// Whether exactly this process still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid)
            .is_some_and(|stat| stat.start == self.start && !matches!(stat.state, 'Z' | 'X'))
    }

    /// A descriptor that becomes readable when the process ends, for any process.
    ///
    /// # Errors
    /// Kernels before 5.3 have none; or the process is gone.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        // SAFETY: the call takes two plain integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = Errno::result(fd).map_err(|error| {
            explain(&error.into(), &format!("cannot watch process {}", self.pid))
        })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The id may have been given to another process before it was opened.
        match stat(self.pid) {
            Some(stat) if stat.start == self.start => Ok(fd),
            Some(_) | None => Err(io::Error::new(io::ErrorKind::NotFound, "the process ended")),
        }
    }

    /// Sends a signal to its process group, if it is still itself.
    pub fn signal_group(&self, signal: Sig) {
        if stat(self.pid).is_none_or(|stat| stat.start == self.start) {
            // ESRCH: the group is empty, which is what signals are sent for.
            let _: Result<(), Errno> = send(Pid::from_raw(-self.pid), signal);
        }
    }
}

/// SIGKILL for one process; one that is already gone is fine.
pub fn kill(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

/// Sends a signal to one process; one that is already gone is fine.
pub fn signal(pid: i32, signal: Sig) {
    if pid > 1 {
        let _: Result<(), Errno> = send(Pid::from_raw(pid), signal);
    }
}

/// How to find the processes of a service where no cgroup holds them together.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    /// The service's first process: leader of its session and process group.
    pub leader: i32,
    /// A user id nobody else has.
    pub user: Option<u32>,
    /// `NAME=value` in its environment: finds those that left the session.
    pub cookie: &'a str,
}

impl Members<'_> {
    /// Everything that belongs to it now, from one pass over /proc.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
        pids.filter(|&pid| self.has(pid)).collect()
    }

    fn has(&self, pid: i32) -> bool {
        let Some(stat) = stat(pid) else { return false };
        if matches!(stat.state, 'Z' | 'X') {
            return false;
        }
        stat.session == self.leader
            || stat.group == self.leader
            || self.user.is_some_and(|user| user_of(pid) == Some(user))
            || fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
                environ.split(|byte| *byte == 0).any(|word| word == self.cookie.as_bytes())
            })
    }

    /// Bytes of memory they have together; shared pages count for each.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.pids().into_iter().filter_map(stat).map(|stat| stat.resident).sum()
    }

    /// Microseconds of processor time that those used which run now.
    #[must_use]
    pub fn cpu_us(&self) -> u64 {
        // SAFETY: asks for a constant of the system.
        let second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
        let ticks: u64 = self.pids().into_iter().filter_map(stat).map(|stat| stat.ticks).sum();
        ticks.saturating_mul(1_000_000) / second.max(1)
    }
}

fn user_of(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

/// Runs `attempt` in a child process and says if it worked. For attempts that change the process;
/// they may only make system calls.
pub(crate) fn child_can(attempt: fn() -> bool) -> bool {
    // SAFETY: the child only makes system calls and leaves with _exit; no lock is taken there.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            let code = i32::from(!attempt());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => return code == 0,
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return false,
            }
        },
        Err(_) => false,
    }
}

/// Lets this process outlive signals that are meant for others of its name.
pub fn ignore_termination() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        let old = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
        if let Err(error) = old {
            log::debug!("cannot ignore {signal}: {error}");
        }
    }
}

/// Waits until `fd` has something to read, at most `millis` (-1: for good). False when it had not.
///
/// # Errors
/// The system's.
pub fn wait_readable(fd: &impl AsRawFd, millis: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd that lives through the call.
    match Errno::result(unsafe { libc::poll(&raw mut poll, 1, millis) }) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let this = Process::this().unwrap();
        assert!(this.is_alive());
        assert!(!Process { start: this.start + 1, ..this }.is_alive());
        assert!(Process { start: this.start + 1, ..this }.pidfd().is_err());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let pidfd = process.pidfd();
        // Either it ended before it could be opened, or the descriptor says when it ends.
        if let Ok(pidfd) = pidfd {
            assert!(wait_readable(&pidfd, 10_000).unwrap());
            assert!(!process.is_alive());
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn the_cookie_finds_a_process_that_left_its_session() {
        // It says when it runs: in the middle of an exec it has no environment to be found by.
        let mut child = std::process::Command::new("setsid")
            .args(["sh", "-c", "echo; read -r _"])
            .env("DUGNAD_COOKIE_TEST", "17")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let members = Members { leader: -5, user: None, cookie: "DUGNAD_COOKIE_TEST=17" };
        let pid = i32::try_from(child.id()).unwrap();
        assert!(members.pids().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(members.pids().is_empty());
    }
}
