//! The old hierarchies, one mount a controller. Still what many small boards and containers have.

use std::path::Path;

use super::{Hierarchy, Limits, Resource, Setting, Version, own_group, writable};
use crate::file::write_value;

/// Microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;

/// The hierarchy of this resource, if it is mounted and we may make groups in our part of it.
#[must_use]
pub fn find(root: &Path, own: &str, resource: Resource) -> Option<Hierarchy> {
    let mount = root.join(resource.controller());
    if !mount.join("cgroup.procs").exists() {
        return None;
    }
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        names.split(',').any(|name| name == resource.controller()).then_some(path)
    });
    let base = own_group(&mount, path.unwrap_or("/"));
    writable(&base).then(|| Hierarchy { version: Version::V1, base, resources: vec![resource] })
}

/// Kernels before 5.11 count children only when told to; later ones refuse or ignore it.
pub(crate) fn make_hierarchical(dir: &Path) {
    let file = dir.join("memory.use_hierarchy");
    if crate::read_number(&file) == Some(0) {
        if let Err(error) = write_value(&file, "1") {
            log::warn!("the memory ceiling may not hold on the sum: {error}");
        }
    }
}

/// What to write for these limits. `-1` takes an earlier limit away.
#[must_use]
pub fn plan(resource: Resource, limits: &Limits) -> Vec<Setting> {
    let or_none = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |v| v.to_string());
    match resource {
        Resource::Memory => {
            let value = or_none(limits.memory);
            // memory + swap can never be below memory, whichever way the limit moves: once before
            // and once after.
            vec![
                Setting::optional("memory.memsw.limit_in_bytes", &value),
                Setting::new("memory.limit_in_bytes", &value),
                Setting::optional("memory.memsw.limit_in_bytes", &value),
            ]
        }
        Resource::Cpu => {
            let quota = limits.cpu.map(|milli| (u64::from(milli) * PERIOD / 1000).max(1000));
            let mut plan = vec![
                Setting::optional("cpu.cfs_period_us", PERIOD),
                Setting::new("cpu.cfs_quota_us", or_none(quota)),
            ];
            if let Some(milli) = limits.cpu_share {
                // 1024 shares are one core's worth.
                plan.push(Setting::optional("cpu.shares", (u64::from(milli) * 1024 / 1000).max(2)));
            }
            plan
        }
        Resource::Pids => {
            vec![Setting::new("pids.max", limits.pids.map_or("max".to_owned(), |n| n.to_string()))]
        }
    }
}
