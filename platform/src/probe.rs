//! What this kernel and these rights allow. A report, never an error: what cannot be found out
//! counts as not there.

use std::fs;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use nix::sched::CloneFlags;

use crate::cgroup::{self, Hierarchy};
pub use crate::file::Roots;
use crate::{mounts, process};

#[derive(Clone, Debug)]
pub struct Probe {
    pub root: bool,
    /// Where groups with limits can be made.
    pub cgroups: Vec<Hierarchy>,
    /// Major and minor number of the kernel, where /proc tells it.
    pub kernel: Option<(u32, u32)>,
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

/// The oldest kernel this was written for; what it lacks is found out one by one.
const KERNEL_MIN: (u32, u32) = (4, 9);

impl Probe {
    /// What is missing here and what that means, for the owner, a line each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some((major, minor)) = self.kernel.filter(|kernel| *kernel < KERNEL_MIN) {
            lines.push(format!(
                "kernel {major}.{minor} is older than {}.{}, the oldest dugnad is made for: \
                 what fails here may be its fault",
                KERNEL_MIN.0, KERNEL_MIN.1
            ));
        }
        if !self.pidfd {
            lines.push(
                "this kernel (or emulator) has no pidfd: the end of a service that an earlier \
                 agent started is noticed a second late"
                    .to_owned(),
            );
        }
        if self.root && !self.mount_namespaces {
            lines.push(
                "mount namespaces do not work here: services see all files that everybody may read"
                    .to_owned(),
            );
        }
        lines
    }

    #[must_use]
    pub fn run(roots: &Roots) -> Self {
        let root = nix::unistd::geteuid().is_root();
        Self {
            root,
            cgroups: cgroup::find(roots),
            kernel: kernel(roots),
            user_namespaces: process::child_can(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok()
            }),
            mount_namespaces: root && process::child_can(mounts::work),
            pidfd: process::Process::this().is_ok_and(|this| this.pidfd().is_ok()),
            memory: memory(roots).unwrap_or(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            arch: arch(),
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

/// The kind of processor this program runs on, by the name services know it by. 32-bit ARM is told
/// apart at run time: a program for ARMv6 may run on a newer processor.
#[must_use]
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "arm" => {
            let uname = nix::sys::utsname::uname();
            let machine = uname.as_ref().ok().and_then(|uname| uname.machine().to_str());
            arm(machine.unwrap_or_default())
        }
        "mips" if cfg!(target_endian = "little") => "mipsel",
        other => other,
    }
}

/// `machine` as `uname -m` has it: armv6l, armv7l, armv8l, or aarch64 for a 32-bit program there.
fn arm(machine: &str) -> &'static str {
    let newer = ["armv7", "armv8", "aarch64"].iter().any(|name| machine.starts_with(name));
    if newer { "armv7" } else { "armv6" }
}

fn kernel(roots: &Roots) -> Option<(u32, u32)> {
    let release = fs::read_to_string(roots.proc.join("sys/kernel/osrelease")).ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the users `ids` exist here. In the user namespace of a container root may be alone.
#[must_use]
pub fn has_users(roots: &Roots, ids: &Range<u32>) -> bool {
    ["uid_map", "gid_map"].iter().all(|map| {
        // Without the file there are no user namespaces.
        let Ok(text) = fs::read_to_string(roots.proc.join("self").join(map)) else { return true };
        text.lines().any(|line| {
            let numbers: Vec<u64> =
                line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let [first, _, count] = numbers[..] else { return false };
            first <= u64::from(ids.start) && u64::from(ids.end) <= first + count
        })
    })
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
    fn an_old_kernel_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let roots = Roots { cgroup: tmp.path().join("none"), proc: tmp.path().to_path_buf() };
        fs::create_dir_all(tmp.path().join("sys/kernel")).unwrap();
        for (release, old) in [("3.18.140-perf\n", true), ("4.9.0\n", false), ("6.12\n", false)] {
            fs::write(tmp.path().join("sys/kernel/osrelease"), release).unwrap();
            let told = Probe::run(&roots).problems().join("\n");
            assert_eq!(told.contains("is older than 4.9"), old, "{release}: {told}");
        }
    }

    #[test]
    fn a_container_that_maps_only_root_has_no_users() {
        let tmp = tempfile::tempdir().unwrap();
        let roots = Roots { cgroup: tmp.path().join("none"), proc: tmp.path().to_path_buf() };
        assert!(has_users(&roots, &(60_000..65_000)), "no user namespaces at all");
        fs::create_dir(tmp.path().join("self")).unwrap();
        let maps = |uid: &str, gid: &str| {
            fs::write(tmp.path().join("self/uid_map"), uid).unwrap();
            fs::write(tmp.path().join("self/gid_map"), gid).unwrap();
        };
        let all = "         0          0 4294967295\n";
        maps(all, all);
        assert!(has_users(&roots, &(60_000..65_000)));
        maps("0 1000 1\n", all);
        assert!(!has_users(&roots, &(60_000..65_000)));
        maps(all, "0 1000 1\n1 100000 65535\n");
        assert!(has_users(&roots, &(60_000..65_000)));
        maps(all, "0 1000 1\n1 100000 60000\n");
        assert!(!has_users(&roots, &(60_000..65_000)));
    }

    #[test]
    fn kinds_of_arm_are_told_apart() {
        for (machine, arch) in [("armv6l", "armv6"), ("armv7l", "armv7"), ("aarch64", "armv7")] {
            assert_eq!(arm(machine), arch);
        }
    }

    #[test]
    fn a_board_that_starts_in_1970_is_seen() {
        assert!(clock_unset(SystemTime::UNIX_EPOCH + Duration::from_secs(60)));
        assert!(!clock_unset(SystemTime::now()));
    }
}
