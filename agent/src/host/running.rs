//! One running process of a replica: waiting for its end, saying why it ended, ending it.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use dugnad_fabric::Bytes;
use dugnad_platform::cgroup::Group;
use dugnad_platform::process::{self, Members, Process, Sig};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use smol::{Async, Timer};

/// How long the rest of a killed service may take to disappear.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at an adopted process, on kernels without pidfd.
const LOOK: Duration = Duration::from_secs(2);
/// How long the keeper may take to write the last words.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes by which a peak may stay below the limit that was met.
const SLACK: u64 = 1 << 20;
/// Bytes of the last log line that go into a reason.
const LINE_MAX: usize = 200;

/// A process that was started or adopted.
pub(super) struct Running {
    pub(super) process: Process,
    /// Our own child; an adopted process is somebody else's.
    child: RefCell<Option<Child>>,
    pidfd: Option<Async<OwnedFd>>,
    keeper: Option<Process>,
    pub(super) group: Group,
    pub(super) user: Option<u32>,
    pub(super) port: Option<u16>,
    /// `NAME=value` of its environment that nobody else has.
    cookie: String,
    since: Instant,
    oom_kills: u64,
    pub(super) was_ready: Cell<bool>,
}

/// What is known of it beside the process.
pub(super) struct Around {
    pub(super) keeper: Option<Process>,
    pub(super) group: Group,
    pub(super) user: Option<u32>,
    pub(super) port: Option<u16>,
    pub(super) cookie: String,
}

/// Becomes ready when the process ends; `None` where the kernel has no such thing.
fn watch(process: &Process) -> Option<Async<OwnedFd>> {
    let fd = process.pidfd().map_err(|error| log::debug!("no pidfd: {error}")).ok()?;
    Async::new_nonblocking(fd).map_err(|error| log::debug!("pidfd not pollable: {error}")).ok()
}

impl Running {
    pub(super) fn new(process: Process, child: Option<Child>, around: Around) -> Self {
        Self {
            process,
            child: RefCell::new(child),
            pidfd: watch(&process),
            keeper: around.keeper,
            oom_kills: around.group.usage().oom_kills,
            group: around.group,
            user: around.user,
            port: around.port,
            cookie: around.cookie,
            since: Instant::now(),
            was_ready: Cell::new(false),
        }
    }

    pub(super) fn lived(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits for its end. `None` if only its parent could know how (it was adopted). May be
    /// called again afterwards.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let own = self.child.borrow().is_some();
        while self.process.is_alive() {
            if let Some(pidfd) = &self.pidfd {
                if let Err(error) = pidfd.readable().await {
                    log::warn!("cannot watch process {}: {error}", self.process.pid);
                    Timer::after(LOOK).await;
                }
            } else if own {
                let id = Id::Pid(Pid::from_raw(self.process.pid));
                // Leaves it to be reaped below.
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                if let Err(error) = smol::unblock(move || waitid(id, flags)).await {
                    log::debug!("waiting for a child that is gone: {error}");
                }
            } else {
                Timer::after(LOOK).await;
            }
        }
        let mut child = self.child.borrow_mut();
        let status = child.as_mut().map(Child::try_wait)?;
        status.unwrap_or_else(|error| {
            log::debug!("no exit code of {}: {error}", self.process.pid);
            None
        })
    }

    /// SIGTERM to all of it, SIGKILL after `grace`; returns when the whole tree is gone.
    pub(super) async fn stop(&self, grace: Duration) {
        self.process.signal_group(Sig::SIGTERM);
        for pid in self.pids() {
            process::signal(pid, Sig::SIGTERM);
        }
        let ended = async {
            self.ended().await;
        };
        let late = async {
            Timer::after(grace).await;
        };
        smol::future::or(ended, late).await;
        self.clear().await;
    }

    /// Kills what is left of it and takes its group away.
    pub(super) async fn clear(&self) {
        let (process, group) = (self.process, self.group.clone());
        let (user, cookie) = (self.user, self.cookie.clone());
        let done = smol::unblock(move || {
            process.signal_group(Sig::SIGKILL);
            if group.is_empty() {
                return kill_members(&Members { leader: process.pid, user, cookie: &cookie });
            }
            group.kill(PATIENCE)
        });
        if let Err(error) = done.await {
            log::warn!("{error}");
        }
        if self.process.is_alive() {
            self.process.signal_group(Sig::SIGKILL);
        }
        let ended = async {
            self.ended().await;
        };
        let late = async {
            Timer::after(PATIENCE).await;
            log::warn!("process {} does not end, not even by SIGKILL", self.process.pid);
        };
        smol::future::or(ended, late).await;
    }

    /// Removes its empty group. What it has counted is gone with it.
    pub(super) async fn remove_group(&self) {
        let group = self.group.clone();
        if let Err(error) = smol::unblock(move || group.remove()).await {
            log::debug!("{error}");
        }
    }

    fn members(&self) -> Members<'_> {
        Members { leader: self.process.pid, user: self.user, cookie: &self.cookie }
    }

    fn pids(&self) -> Vec<i32> {
        if self.group.is_empty() { self.members().pids() } else { self.group.pids() }
    }

    /// Bytes of memory of all of it.
    pub(super) fn memory(&self) -> u64 {
        self.group.usage().memory.unwrap_or_else(|| self.members().resident())
    }

    /// Microseconds of processor time of all of it.
    pub(super) fn cpu_us(&self) -> u64 {
        self.group.usage().cpu_us.unwrap_or_else(|| self.members().cpu_us())
    }

    /// Waits until its last words are in the log. Call it when all of it is gone.
    pub(super) async fn log_closed(&self) {
        if let Some(keeper) = self.keeper {
            let written = async {
                if let Some(end) = watch(&keeper) {
                    if let Err(error) = end.readable().await {
                        log::debug!("cannot watch the keeper: {error}");
                    }
                }
            };
            let late = async {
                Timer::after(LAST_WORDS).await;
            };
            smol::future::or(written, late).await;
        }
    }

    /// Why it ended, with its last words. Call it when all of it is gone.
    pub(super) async fn reason(
        &self,
        status: Option<ExitStatus>,
        memory: u64,
        dir: &Path,
    ) -> String {
        let usage = self.group.usage();
        let mut reason = if usage.oom_kills > self.oom_kills {
            // Some v1 kernels do not count how often a limit was met; then the peak tells.
            let peak = usage.memory_peak.unwrap_or(0);
            killed_for_memory(memory, usage.at_limit > 0 || peak.saturating_add(SLACK) > memory)
        } else {
            describe(status)
        };
        let path = dir.join("log");
        if let Some(line) = smol::unblock(move || last_line(&path)).await {
            // Writing to a String cannot fail.
            let _: Result<(), std::fmt::Error> = write!(reason, "; it last wrote: {line}");
        }
        reason
    }
}

pub(super) fn killed_for_memory(limit: u64, own_limit: bool) -> String {
    if own_limit && limit > 0 {
        format!("killed for memory (limit {})", Bytes(limit))
    } else {
        "killed for memory (all services together reached what the owner gives)".to_owned()
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "ended; an earlier agent started it, so its exit code is not known".to_owned();
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn kill_members(members: &Members<'_>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let alive = members.pids();
        if alive.is_empty() {
            return Ok(());
        }
        alive.iter().for_each(|pid| process::kill(*pid));
        if Instant::now() >= until {
            return Err(io::Error::other(format!("processes {alive:?} do not end")));
        }
        // No event tells when strangers have ended; this is over within a few milliseconds.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The last line of the log that is not empty, shortened.
fn last_line(path: &Path) -> Option<String> {
    last_lines(path, 1).pop()
}

/// The last lines of the log that are not empty, oldest first, each shortened.
pub(super) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    const TAIL: u64 = 4096;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        file.take(TAIL).read_to_end(&mut tail)?;
        Ok(tail)
    };
    // A service that never wrote has no log, and one that cannot be read tells nothing either.
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let lines = text.lines().rev().map(str::trim_end).filter(|line| !line.trim().is_empty());
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect();
    let mut last: Vec<String> = lines.take(count).map(plain).collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn start(script: &str) -> Running {
        let mut launch = dugnad_platform::spawn::Launch::new("/bin/sh", "/");
        launch.args = vec!["-c".into(), script.into()];
        let (child, process) = launch.start().unwrap_or_else(|error| panic!("{error}"));
        let around = Around {
            keeper: None,
            group: Group::default(),
            user: None,
            port: None,
            cookie: "DUGNAD_RUN=unit".to_owned(),
        };
        Running::new(process, Some(child), around)
    }

    #[test]
    fn an_old_kernel_without_pidfd_is_enough() {
        let mut running = start("exit 7");
        running.pidfd = None;
        let status = smol::block_on(running.ended());
        assert_eq!(describe(status), "exited with 7");
        let mut running = start("sleep 1000; sleep 1000");
        running.pidfd = None;
        smol::block_on(running.stop(Duration::from_secs(5)));
        assert!(!running.process.is_alive());
        assert_eq!(describe(smol::block_on(running.ended())), "killed by signal 15");
    }

    #[test]
    fn last_words_are_short_and_printable() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("log");
        assert_eq!(last_line(&path), None);
        std::fs::write(&path, format!("{}\nno \x1b[1mluck\n\n", "x".repeat(9000))).unwrap();
        assert_eq!(last_line(&path).unwrap(), "no [1mluck");
        std::fs::write(&path, "y".repeat(9000)).unwrap();
        assert_eq!(last_line(&path).unwrap().len(), LINE_MAX);
    }
}
