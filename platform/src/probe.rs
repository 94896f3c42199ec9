//! What this kernel and these rights allow. A report, never an error: what cannot be found out
//! counts as not there.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sched::CloneFlags;

use crate::cgroup::{self, Hierarchy};
use crate::{mounts, process};

/// Where the kernel's own file systems are; tests put folders there.
#[derive(Clone, Debug)]
pub struct Roots {
    pub cgroup: PathBuf,
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { cgroup: "/sys/fs/cgroup".into(), proc: "/proc".into() }
    }
}

#[derive(Clone, Debug)]
pub struct Probe {
    pub root: bool,
    /// Where groups with limits can be made.
    pub cgroups: Vec<Hierarchy>,
    /// A process may make a user namespace of its own.
    pub user_namespaces: bool,
    /// Services can get their own view of the file system ([`mounts`]).
    pub mount_namespaces: bool,
    /// A process can be waited for without being its parent.
    pub pidfd: bool,
    /// Bytes of memory in this machine.
    pub memory: u64,
    pub cores: usize,
    /// `x86_64`, `aarch64`, `armv7`, `armv6`, `mipsel`, `riscv64`, or what the compiler calls it.
    pub arch: &'static str,
    /// The clock was never set: it shows a year before 2020.
    pub clock_unset: bool,
}

impl Probe {
    #[must_use]
    pub fn run(roots: &Roots) -> Self {
        let root = nix::unistd::geteuid().is_root();
        Self {
            root,
            cgroups: cgroup::find(roots),
            user_namespaces: process::child_can(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok()
            }),
            mount_namespaces: root && process::child_can(mounts::work),
            pidfd: process::Process::this().is_ok_and(|this| this.pidfd().is_ok()),
            memory: memory(roots).unwrap_or(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            arch: arch(roots),
            clock_unset: clock_unset(SystemTime::now()),
        }
    }
}

fn memory(roots: &Roots) -> Option<u64> {
    let text = fs::read_to_string(roots.proc.join("meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// 32-bit ARM is told apart at run time: a program for ARMv6 may run on a newer processor.
fn arch(roots: &Roots) -> &'static str {
    match std::env::consts::ARCH {
        "arm" => {
            let text = fs::read_to_string(roots.proc.join("cpuinfo")).unwrap_or_default();
            let version = text.lines().find_map(|line| {
                line.strip_prefix("CPU architecture").and_then(|rest| rest.split(':').nth(1))
            });
            // An ARMv6 says 7 there as well; only its model name gives it away.
            let old = text.contains("ARMv6") || version.is_some_and(|v| v.trim().starts_with('6'));
            if old { "armv6" } else { "armv7" }
        }
        "mips" if cfg!(target_endian = "little") => "mipsel",
        other => other,
    }
}

fn clock_unset(now: SystemTime) -> bool {
    const YEAR_2020: Duration = Duration::from_secs(1_577_836_800);
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(true, |since| since < YEAR_2020)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_empty_machine_gives_a_report_not_an_error() {
        let tmp = tempfile::tempdir().unwrap();
        let roots = Roots { cgroup: tmp.path().join("none"), proc: tmp.path().to_path_buf() };
        let probe = Probe::run(&roots);
        assert!(probe.cgroups.is_empty());
        assert_eq!(probe.memory, 0);
        assert!(probe.cores >= 1);
        fs::write(tmp.path().join("meminfo"), "MemTotal:  64 kB\n").unwrap();
        assert_eq!(Probe::run(&roots).memory, 65_536);
    }

    #[test]
    fn a_board_that_starts_in_1970_is_seen() {
        assert!(clock_unset(SystemTime::UNIX_EPOCH + Duration::from_secs(60)));
        assert!(!clock_unset(SystemTime::now()));
    }
}
