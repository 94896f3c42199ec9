//! `dugnad demo`, as a stranger's first minute.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dugnad_cluster::{PATIENCE, program, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Processes with this folder in their environment or work folder.
fn left(dir: &Path) -> Vec<Pid> {
    let dir = dir.canonicalize().unwrap();
    dugnad_cluster::Mark { word: "nothing".to_owned(), dir }.processes()
}

/// Control groups of the demo's nodes that its services are in, where they are mounted.
fn groups(dir: &Path) -> BTreeSet<PathBuf> {
    let mounts: Vec<PathBuf> = fs::read_dir("/sys/fs/cgroup")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    let mut found = BTreeSet::new();
    for pid in left(dir) {
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        for path in lines.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let Some(at) = path.find("/dugnad-") else { continue };
            let end = path[at + 1..].find('/').map_or(path.len(), |slash| at + 1 + slash);
            let places = mounts.iter().map(PathBuf::as_path).chain([Path::new("/sys/fs/cgroup")]);
            found.extend(places.map(|mount| mount.join(&path[1..end])).filter(|dir| dir.is_dir()));
        }
    }
    found
}

fn demo(dir: &Path) -> Command {
    let mut command = Command::new(program());
    command.arg("demo").env("TMPDIR", dir).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn once_shows_a_service_heal_and_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let output = demo(tmp.path()).arg("--once").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    eprintln!("{told}");
    assert!(output.status.success(), "{}", output.status);
    assert!(told.contains("healed in") && told.contains("0 failed"), "visits failed");
    assert_eq!(left(tmp.path()), []);
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn interrupted_it_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut child = demo(tmp.path()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    // In the middle of its work, when services run.
    let line = told.find(|line| line.as_ref().is_ok_and(|line| line.contains("hello has")));
    eprintln!("interrupted after: {:?}", line.unwrap().unwrap());
    assert!(!left(tmp.path()).is_empty());
    let groups = groups(tmp.path());
    eprintln!("services are in {} control groups", groups.len());
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = told.map_while(Result::ok).collect();
    let status = until("it ends", Duration::from_secs(20).min(PATIENCE), || {
        child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    eprintln!("{status}: {rest:?}");
    groups.iter().for_each(|group| assert!(!group.exists(), "{} is left", group.display()));
    assert_eq!(left(tmp.path()), []);
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0, "files are left");
}
