//! Groups of processes with limits: one parent `dugnad-<id>` with the owner's ceilings on the sum,
//! one child a replica with what that replica may use.
//!
//! What to write where is decided by pure functions ([`v1::plan`], [`v2::plan`]); writing is
//! trivial. Groups are made below the group the agent itself is in, so no limit that somebody put
//! on the agent is escaped (the one exception is in [`v2::base`]).

pub mod v1;
pub mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::file::{Roots, explain, read_field, read_number, write_value};
use crate::process;

/// What a group may use; `None` is no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of one core, a hard ceiling.
    pub cpu: Option<u32>,
    /// Thousandths of one core it gets when others want them, too; more while nobody else does.
    pub cpu_share: Option<u32>,
    /// When memory runs out, all of the group ends rather than one of its processes (v2 only).
    pub end_together: bool,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// What an agent that is gone has left of the group named `name`, wherever it may have made it.
#[must_use]
pub fn left_by(roots: &Roots, name: &str) -> Group {
    Group::of(find(roots).iter().map(|hierarchy| hierarchy.base.join(name)).collect())
}

/// What the kernel can count and hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Memory,
    Cpu,
    Pids,
}

impl Resource {
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name of its controller.
    #[must_use]
    pub const fn controller(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A place in a mounted hierarchy where this agent may make groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    /// The folder our parent group goes into.
    pub base: PathBuf,
    /// What it can limit. Empty for a v2 hierarchy that only helps to find and end processes.
    pub resources: Vec<Resource>,
}

/// Every hierarchy this agent may use, v2 first; a resource appears once.
#[must_use]
pub fn find(roots: &Roots) -> Vec<Hierarchy> {
    let own = fs::read_to_string(roots.proc.join("self/cgroup")).unwrap_or_default();
    let mut found: Vec<Hierarchy> = v2::find(&roots.cgroup, &own).into_iter().collect();
    for resource in Resource::ALL {
        if found.iter().all(|hierarchy| !hierarchy.resources.contains(&resource)) {
            found.extend(v1::find(&roots.cgroup, &own, resource));
        }
    }
    found
}

/// The folder a line of `/proc/self/cgroup` names inside a mount, or the mount itself where the
/// name comes from outside of our view (a container that sees only its own part).
pub(crate) fn own_group(mount: &Path, path: &str) -> PathBuf {
    let inside = mount.join(path.trim_start_matches('/'));
    if !path.contains("..") && inside.is_dir() { inside } else { mount.to_path_buf() }
}

pub(crate) fn writable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

/// The group above all replicas.
#[derive(Clone, Debug)]
pub struct Parent {
    dirs: Vec<(Hierarchy, PathBuf)>,
    problems: Vec<String>,
}

impl Parent {
    /// Makes `name` in every hierarchy and puts `limits` on the sum of what will be in it. What
    /// does not work is left out and said in [`Parent::problems`]: the agent runs with less.
    #[must_use]
    pub fn create(hierarchies: Vec<Hierarchy>, name: &str, limits: &Limits) -> Self {
        let mut parent = Self { dirs: Vec::new(), problems: Vec::new() };
        for mut hierarchy in hierarchies {
            let dir = hierarchy.base.join(name);
            if hierarchy.version == Version::V2 {
                v2::enable(&mut hierarchy, &mut parent.problems);
            }
            if let Err(error) = make(&dir) {
                parent.problems.push(error.to_string());
                continue;
            }
            if hierarchy.version == Version::V2 {
                v2::pass_on(&dir, &mut hierarchy.resources, &mut parent.problems);
            } else {
                v1::make_hierarchical(&dir);
            }
            parent.dirs.push((hierarchy, dir));
        }
        parent.set(limits);
        parent
    }

    /// Changes the ceilings; what was written wrongly is in [`Parent::problems`].
    pub fn set(&mut self, limits: &Limits) {
        for (hierarchy, dir) in &self.dirs {
            apply(hierarchy, dir, limits, &mut self.problems);
        }
    }

    /// The group of one replica, made anew with these limits.
    ///
    /// # Errors
    /// A limit that could not be set: nothing runs outside of its limits.
    pub fn group(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let mut problems = Vec::new();
        let mut dirs = Vec::new();
        for (hierarchy, parent) in &self.dirs {
            let dir = parent.join(name);
            make(&dir)?;
            apply(hierarchy, &dir, limits, &mut problems);
            dirs.push(dir);
        }
        match problems.into_iter().next() {
            Some(problem) => Err(io::Error::other(problem)),
            None => Ok(Group { dirs }),
        }
    }

    /// Names of the groups inside.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for entry in self.dirs.iter().filter_map(|(_, dir)| fs::read_dir(dir).ok()).flatten() {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The group of this name as it is now, limits untouched.
    #[must_use]
    pub fn existing(&self, name: &str) -> Group {
        let dirs = self.dirs.iter().map(|(_, dir)| dir.join(name)).filter(|dir| dir.is_dir());
        Group { dirs: dirs.collect() }
    }

    /// All that is in it and below, as one.
    #[must_use]
    pub fn whole(&self) -> Group {
        Group { dirs: self.dirs.iter().map(|(_, dir)| dir.clone()).collect() }
    }

    /// The hierarchy version that limits this resource, if any does.
    #[must_use]
    pub fn limits(&self, resource: Resource) -> Option<Version> {
        let of = |(hierarchy, _): &(Hierarchy, PathBuf)| {
            hierarchy.resources.contains(&resource).then_some(hierarchy.version)
        };
        self.dirs.iter().find_map(of)
    }

    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(explain(&error, &format!("cannot make the cgroup {}", dir.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn apply(hierarchy: &Hierarchy, dir: &Path, limits: &Limits, problems: &mut Vec<String>) {
    for &resource in &hierarchy.resources {
        let plan = match hierarchy.version {
            Version::V1 => v1::plan(resource, limits),
            Version::V2 => v2::plan(resource, limits),
        };
        for Setting { file, value, optional } in plan {
            match write_value(&dir.join(file), &value) {
                Err(error) if optional => log::debug!("left out: {error}"),
                Err(error) => problems.push(error.to_string()),
                Ok(()) => {}
            }
        }
    }
}

/// One value for one file of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub file: &'static str,
    pub value: String,
    /// Not every kernel has the file; the limit holds without it.
    pub optional: bool,
}

impl Setting {
    pub(crate) fn new(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), optional: false }
    }

    pub(crate) fn optional(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), optional: true }
    }
}

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes now and at most so far.
    pub memory: Option<u64>,
    pub memory_peak: Option<u64>,
    /// Microseconds of CPU.
    pub cpu_us: Option<u64>,
    pub pids: Option<u64>,
    /// Processes the kernel killed for memory.
    pub oom_kills: u64,
    /// How often it ran against its own memory limit.
    pub at_limit: u64,
}

/// One group, in all hierarchies it exists in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    dirs: Vec<PathBuf>,
}

impl Group {
    /// A group known from earlier by its folders; those that are gone are left out.
    #[must_use]
    pub fn of(dirs: Vec<PathBuf>) -> Self {
        Self { dirs: dirs.into_iter().filter(|dir| dir.is_dir()).collect() }
    }

    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    /// Process ids in it, not in groups below it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.dirs.first().map(|dir| pids_of(dir)).unwrap_or_default()
    }

    /// Ends every process in it and below, and waits until they are gone, at most `patience`.
    /// The wait looks again every few milliseconds: v1 has no event for an empty group.
    ///
    /// # Errors
    /// Processes that are still there afterwards.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        let Some(first) = self.dirs.first() else { return Ok(()) };
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            for dir in &self.dirs {
                // Where the kernel has it: all at once, no fork can slip through.
                let at_once = dir.join("cgroup.kill");
                if at_once.exists() {
                    if let Err(error) = write_value(&at_once, "1") {
                        log::debug!("ending the group one by one: {error}");
                    }
                }
            }
            let alive = all_pids(first);
            if alive.is_empty() {
                return Ok(());
            }
            for pid in &alive {
                process::kill(*pid);
            }
            if Instant::now() >= until {
                let what = format!("{} processes of {} do not end", alive.len(), first.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the group; it must be empty.
    ///
    /// # Errors
    /// Naming the folder that could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| remove_tree(dir))
    }

    #[must_use]
    pub fn usage(&self) -> Usage {
        let any = |files: &[&str]| {
            let mut paths = self.dirs.iter().flat_map(|dir| files.iter().map(|f| dir.join(f)));
            paths.find_map(|path| read_number(&path))
        };
        let field = |file: &str, name: &str| {
            self.dirs.iter().find_map(|dir| read_field(&dir.join(file), name))
        };
        Usage {
            memory: any(&["memory.current", "memory.usage_in_bytes"]),
            memory_peak: any(&["memory.peak", "memory.max_usage_in_bytes"]),
            cpu_us: field("cpu.stat", "usage_usec")
                .or_else(|| any(&["cpuacct.usage"]).map(|nanos| nanos / 1000)),
            pids: any(&["pids.current"]),
            oom_kills: field("memory.events", "oom_kill")
                .or_else(|| field("memory.oom_control", "oom_kill"))
                .unwrap_or(0),
            // v1 counts memory with swap first: either limit is the group's own.
            at_limit: field("memory.events", "max").unwrap_or_else(|| {
                any(&["memory.failcnt"]).unwrap_or(0) + any(&["memory.memsw.failcnt"]).unwrap_or(0)
            }),
        }
    }
}

fn pids_of(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn all_pids(dir: &Path) -> Vec<i32> {
    let mut pids = pids_of(dir);
    for child in below(dir) {
        pids.extend(all_pids(&child));
    }
    pids
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in below(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(explain(&error, &format!("cannot remove the cgroup {}", dir.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
