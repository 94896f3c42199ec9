//! Finds and ends what a test left: every process that carries its mark or lives in its folder,
//! and the control groups of its nodes. Nothing else is ever touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Environment variable of everything a test starts.
pub(crate) const VARIABLE: &str = "DUGNAD_CLUSTER_TEST";

/// What tells the processes of one test from all others.
#[derive(Clone, Debug)]
pub struct Mark {
    pub word: String,
    /// Folder of the test, with no links in it.
    pub dir: PathBuf,
}

impl Mark {
    /// Processes of this test: agents and commands carry the word, services have their state below
    /// the folder, keepers of logs work in it.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let dir = self.dir.as_os_str().as_encoded_bytes();
        let word = format!("{VARIABLE}={}", self.word);
        pids()
            .filter(|pid| *pid != Pid::this())
            .filter(|pid| {
                let here = fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| cwd.starts_with(&self.dir));
                here || environment(*pid).iter().any(|variable| {
                    variable == word.as_bytes()
                        || variable.windows(dir.len()).any(|part| part == dir)
                })
            })
            .collect()
    }

    /// Ends all of them, and removes the control groups of `nodes` (full ids). What is left over.
    #[must_use]
    pub fn end(&self, nodes: &[String]) -> Vec<String> {
        let start = Instant::now();
        // A process may start another while we look: look until there is none.
        loop {
            let found = self.processes();
            if found.is_empty() {
                break;
            }
            if start.elapsed() > Duration::from_secs(10) {
                return vec![format!("processes that do not end: {found:?}")];
            }
            for pid in found {
                // It may have ended by itself; the next look tells.
                let _: nix::Result<()> = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        groups(nodes).iter().filter_map(|group| remove_group(group).err()).collect()
    }
}

fn pids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Unreadable ones belong to others, or are gone already.
fn environment(pid: Pid) -> Vec<Vec<u8>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Processes of `service` in the whole test, as (node name, replica, pid). One with children
/// counts once: only the oldest of a family is told.
#[must_use]
pub fn processes_of(mark: &Mark, service: &str) -> Vec<(String, u32, i32)> {
    let mut found = Vec::new();
    for pid in mark.processes() {
        let environment = environment(pid);
        let value = |name: &str| {
            let value =
                environment.iter().find_map(|v| v.strip_prefix(format!("{name}=").as_bytes()));
            value.map(|value| String::from_utf8_lossy(value).into_owned())
        };
        // A health check runs in the same environment.
        if value("DUGNAD_SERVICE").as_deref() == Some(service) && value("DUGNAD_CHECK").is_none() {
            let replica = value("DUGNAD_REPLICA").and_then(|n| n.parse().ok()).unwrap_or(u32::MAX);
            found.push((value("DUGNAD_NODE").unwrap_or_default(), replica, pid.as_raw()));
        }
    }
    found.sort();
    found.dedup_by(|a, b| (&a.0, a.1) == (&b.0, b.1));
    found
}

/// Folders `dugnad-SHORT` of these nodes, wherever control groups are mounted.
fn groups(nodes: &[String]) -> Vec<PathBuf> {
    let names: Vec<String> =
        nodes.iter().map(|node| format!("dugnad-{node}").to_lowercase()).collect();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for mount in mounts.lines().filter(|line| line.contains(" cgroup")) {
        let Some(at) = mount.split(' ').nth(1).map(PathBuf::from) else { continue };
        let places = own.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        for place in places.flat_map(|path| Path::new(path).ancestors()) {
            let base = at.join(place.strip_prefix("/").unwrap_or(place));
            found.extend(names.iter().map(|name| base.join(name)).filter(|dir| dir.is_dir()));
        }
    }
    found.sort();
    found.dedup();
    found
}

fn remove_group(group: &Path) -> Result<(), String> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path())?;
        }
    }
    // The kernel counts a killed process as inside until it was collected.
    let start = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if start.elapsed() > Duration::from_secs(5) => {
                return Err(format!("{}: {error}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
