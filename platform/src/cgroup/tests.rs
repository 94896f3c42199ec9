#![allow(clippy::unwrap_used)]

use super::*;

/// A hierarchy of plain files, so that plans and paths are tested without rights.
fn fixture(root: &Path, group: &str, files: &[(&str, &str)]) {
    let dir = root.join(group);
    fs::create_dir_all(&dir).unwrap();
    for (file, value) in files {
        fs::write(dir.join(file), value).unwrap();
    }
}

fn values(plan: Vec<Setting>) -> Vec<(&'static str, String)> {
    plan.into_iter().map(|setting| (setting.file, setting.value)).collect()
}

const LIMITS: Limits = Limits {
    memory: Some(64 << 20),
    cpu: Some(500),
    cpu_share: Some(100),
    end_together: true,
    pids: Some(32),
};

#[test]
fn v2_plans_say_file_and_value() {
    let of = |resource| values(v2::plan(resource, &LIMITS));
    assert_eq!(of(Resource::Memory)[0], ("memory.max", "67108864".into()));
    assert_eq!(of(Resource::Memory)[1], ("memory.swap.max", "0".into()));
    assert_eq!(of(Resource::Memory)[2], ("memory.oom.group", "1".into()));
    let cpu = [("cpu.max", "50000 100000".into()), ("cpu.weight", "10".into())];
    assert_eq!(of(Resource::Cpu), cpu);
    assert_eq!(of(Resource::Pids), [("pids.max", "32".into())]);
    let none = values(v2::plan(Resource::Cpu, &Limits::default()));
    assert_eq!(none, [("cpu.max", "max 100000".into())]);
}

#[test]
fn v1_plans_say_file_and_value() {
    let of = |resource| values(v1::plan(resource, &LIMITS));
    assert_eq!(of(Resource::Memory)[1], ("memory.limit_in_bytes", "67108864".into()));
    assert_eq!(of(Resource::Cpu)[1], ("cpu.cfs_quota_us", "50000".into()));
    assert_eq!(of(Resource::Cpu)[2], ("cpu.shares", "102".into()));
    let none = values(v1::plan(Resource::Memory, &Limits::default()));
    assert_eq!(none[1], ("memory.limit_in_bytes", "-1".into()));
    // A quota below the kernel's least would be refused.
    let tiny = v1::plan(Resource::Cpu, &Limits { cpu: Some(1), ..Limits::default() });
    assert_eq!(values(tiny)[1], ("cpu.cfs_quota_us", "1000".into()));
}

#[test]
fn both_kinds_of_hierarchy_are_found_below_our_own_group() {
    let tmp = tempfile::tempdir().unwrap();
    let roots = Roots { cgroup: tmp.path().join("cg"), proc: tmp.path().join("proc") };
    fixture(&roots.proc, "self", &[("cgroup", "4:memory:/us\n3:cpu,cpuacct:/\n0::/\n")]);
    fixture(&roots.cgroup, "memory", &[("cgroup.procs", "")]);
    fixture(&roots.cgroup, "memory/us", &[("cgroup.procs", "")]);
    fixture(&roots.cgroup, "cpu", &[("cgroup.procs", "")]);
    fixture(&roots.cgroup, "unified", &[("cgroup.controllers", "hugetlb pids\n")]);
    let found = find(&roots);
    let bases: Vec<_> = found.iter().map(|h| (h.base.clone(), h.resources.clone())).collect();
    assert_eq!(
        bases,
        [
            (roots.cgroup.join("unified"), vec![Resource::Pids]),
            (roots.cgroup.join("memory/us"), vec![Resource::Memory]),
            (roots.cgroup.join("cpu"), vec![Resource::Cpu]),
        ]
    );
}

#[test]
fn a_limit_above_the_agent_is_never_escaped() {
    let tmp = tempfile::tempdir().unwrap();
    let mount = tmp.path();
    fixture(mount, "slice", &[("memory.max", "1000\n")]);
    // Somebody else's process lives in our group, so it cannot pass controllers on.
    fixture(mount, "slice/session", &[("memory.max", "max\n"), ("cgroup.procs", "1\n")]);
    assert_eq!(v2::base(mount, "/slice/session"), None);
    fs::write(mount.join("slice/memory.max"), "max\n").unwrap();
    assert_eq!(v2::base(mount, "/slice/session"), Some(mount.to_path_buf()));
    fixture(mount, "unit", &[("cgroup.procs", "")]);
    fixture(mount, "unit/agent", &[("cgroup.procs", &std::process::id().to_string())]);
    assert_eq!(v2::base(mount, "/unit/agent"), Some(mount.join("unit")));
}

#[test]
fn errors_name_the_file_and_the_value() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("memory.max");
    let error = write_value(&path, "12").unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot write \"12\" to {}", path.display())), "{error}");
}

#[test]
fn counters_are_read_from_either_version() {
    let tmp = tempfile::tempdir().unwrap();
    fixture(
        tmp.path(),
        "v2",
        &[
            ("memory.current", "10\n"),
            ("memory.events", "low 0\nmax 4\noom_kill 2\n"),
            ("cpu.stat", "usage_usec 70\n"),
        ],
    );
    let usage = Group::of(vec![tmp.path().join("v2"), tmp.path().join("gone")]).usage();
    assert_eq!((usage.memory, usage.oom_kills, usage.at_limit), (Some(10), 2, 4));
    assert_eq!(usage.cpu_us, Some(70));
    fixture(
        tmp.path(),
        "v1",
        &[
            ("memory.usage_in_bytes", "11\n"),
            ("memory.failcnt", "5\n"),
            ("memory.oom_control", "oom_kill_disable 0\noom_kill 1\n"),
        ],
    );
    let usage = Group::of(vec![tmp.path().join("v1")]).usage();
    assert_eq!((usage.memory, usage.oom_kills, usage.at_limit), (Some(11), 1, 5));
}

#[test]
fn a_v2_parent_passes_controllers_on_and_says_what_it_cannot() {
    let tmp = tempfile::tempdir().unwrap();
    let base = tmp.path();
    fixture(base, "", &[("cgroup.controllers", "memory pids cpu\n"), ("cgroup.procs", "")]);
    fixture(base, "", &[("cgroup.subtree_control", "")]);
    let files = [("memory.max", ""), ("cpu.max", ""), ("pids.max", "")];
    fixture(base, "dugnad-x", &files);
    fixture(base, "dugnad-x", &[("cgroup.subtree_control", "")]);
    fixture(base, "dugnad-x/a.0", &files);
    let find = || v2::find(base, "0::/\n").into_iter().collect();
    let parent = Parent::create(find(), "dugnad-x", &LIMITS);
    assert_eq!(parent.problems(), [] as [&str; 0]);
    assert_eq!(parent.limits(Resource::Memory), Some(Version::V2));
    let read = |file: &str| fs::read_to_string(base.join(file)).unwrap();
    assert_eq!(read("dugnad-x/memory.max"), "67108864");
    assert!(read("dugnad-x/cgroup.subtree_control").starts_with('+'));
    let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
    let group = parent.group("a.0", &limits).unwrap();
    assert_eq!(read("dugnad-x/a.0/memory.max"), "1048576");
    assert_eq!(group.dirs(), [base.join("dugnad-x/a.0")]);
    assert_eq!(parent.names(), ["a.0"]);
    // A limit that cannot be set is an error: nothing runs without it.
    let error = parent.group("b.0", &limits).unwrap_err().to_string();
    assert!(error.contains("b.0/memory.max"), "{error}");

    // Nothing may be passed on: the agent runs, and says what is missing.
    fs::remove_file(base.join("cgroup.subtree_control")).unwrap();
    let parent = Parent::create(find(), "dugnad-x", &LIMITS);
    assert_eq!(parent.limits(Resource::Memory), None);
    assert_eq!(parent.problems().len(), 3, "{:?}", parent.problems());
}
