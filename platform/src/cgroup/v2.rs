//! The unified hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Hierarchy, Limits, Resource, Setting, Version, make, own_group, writable};
use crate::file::write_value;

const PERIOD: u64 = 100_000;
/// Where the agent itself goes: a group that passes controllers on may hold no processes. A
/// systemd unit says the same with `DelegateSubgroup=agent`.
pub const AGENT: &str = "agent";

/// The unified hierarchy, whole or beside v1 (`unified/`), if we may make groups in it.
#[must_use]
pub fn find(root: &Path, own: &str) -> Option<Hierarchy> {
    let mount = [root.to_path_buf(), root.join("unified")]
        .into_iter()
        .find(|mount| mount.join("cgroup.controllers").exists())?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let base = base(&mount, path)?;
    let resources = available(&base);
    Some(Hierarchy { version: Version::V2, base, resources })
}

fn available(dir: &Path) -> Vec<Resource> {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let has = |resource: &Resource| text.split_whitespace().any(|w| w == resource.controller());
    Resource::ALL.into_iter().filter(has).collect()
}

/// Where our groups go: the agent's own group if nobody else lives in it. Else, as root, the top
/// of the hierarchy, but only when nothing between it and us limits memory or CPU: no limit that
/// somebody set on the agent is escaped.
#[must_use]
pub fn base(mount: &Path, path: &str) -> Option<PathBuf> {
    let mut own = own_group(mount, path);
    if own != mount && own.file_name().is_some_and(|name| name == AGENT) {
        own.pop();
    }
    let ours = || {
        let procs = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
        let me = std::process::id().to_string();
        procs.lines().all(|pid| pid == me)
    };
    if writable(&own) && (own == mount || ours()) {
        return Some(own);
    }
    let unlimited = own.ancestors().take_while(|dir| *dir != mount).all(|dir| {
        ["memory.max", "cpu.max"].iter().all(|file| {
            fs::read_to_string(dir.join(file)).map_or(true, |value| value.starts_with("max"))
        })
    });
    (unlimited && writable(mount)).then(|| mount.to_path_buf())
}

/// Makes the controllers available to our parent group; what cannot be is taken out.
pub(crate) fn enable(hierarchy: &mut Hierarchy, problems: &mut Vec<String>) {
    let procs = hierarchy.base.join("cgroup.procs");
    let me = std::process::id().to_string();
    let inside = fs::read_to_string(&procs).unwrap_or_default().lines().any(|pid| pid == me);
    // Only the top of the hierarchy may hold processes and pass controllers on; `cgroup.type`
    // exists everywhere but there.
    if inside && !hierarchy.resources.is_empty() && hierarchy.base.join("cgroup.type").exists() {
        let agent = hierarchy.base.join(AGENT);
        let moved = make(&agent).and_then(|()| write_value(&agent.join("cgroup.procs"), &me));
        if let Err(error) = moved {
            problems.push(error.to_string());
        }
    }
    pass_on(&hierarchy.base.clone(), &mut hierarchy.resources, problems);
}

/// Lets the groups below `dir` have these controllers; those it cannot give are taken out.
pub(crate) fn pass_on(dir: &Path, resources: &mut Vec<Resource>, problems: &mut Vec<String>) {
    resources.retain(|resource| {
        let word = format!("+{}", resource.controller());
        match write_value(&dir.join("cgroup.subtree_control"), &word) {
            Ok(()) => true,
            Err(error) => {
                problems.push(error.to_string());
                false
            }
        }
    });
}

/// What to write for these limits. `max` takes an earlier limit away.
#[must_use]
pub fn plan(resource: Resource, limits: &Limits) -> Vec<Setting> {
    let or_max = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |v| v.to_string());
    match resource {
        Resource::Memory => {
            let mut plan = vec![Setting::new("memory.max", or_max(limits.memory))];
            if limits.memory.is_some() {
                // Swap would only make the limit slow.
                plan.push(Setting::optional("memory.swap.max", 0));
            }
            if limits.end_together {
                plan.push(Setting::optional("memory.oom.group", 1));
            }
            plan
        }
        Resource::Cpu => {
            let quota = limits.cpu.map(|milli| (u64::from(milli) * PERIOD / 1000).max(1000));
            let mut plan = vec![Setting::new("cpu.max", format!("{} {PERIOD}", or_max(quota)))];
            if let Some(milli) = limits.cpu_share {
                // 100 is the kernel's default weight: one core's worth.
                let weight = (u64::from(milli) / 10).clamp(1, 10_000);
                plan.push(Setting::optional("cpu.weight", weight));
            }
            plan
        }
        Resource::Pids => vec![Setting::new("pids.max", or_max(limits.pids.map(u64::from)))],
    }
}
