//! `dugnad demo`, as a stranger's first minute.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use dugnad_cluster::{PATIENCE, program, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Processes with this folder in their environment or work folder.
fn left(dir: &std::path::Path) -> Vec<Pid> {
    let dir = dir.canonicalize().unwrap();
    dugnad_cluster::Mark { word: "nothing".to_owned(), dir }.processes()
}

fn demo(dir: &std::path::Path) -> Command {
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
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn interrupted_it_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut child = demo(tmp.path()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    // In the middle of its work, when services run.
    let line = told.find(|line| line.as_ref().is_ok_and(|line| line.contains("site has")));
    eprintln!("interrupted after: {:?}", line.unwrap().unwrap());
    assert!(!left(tmp.path()).is_empty());
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = told.map_while(Result::ok).collect();
    let status = until("it ends", Duration::from_secs(20).min(PATIENCE), || {
        child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    eprintln!("{status}: {rest:?}");
    assert_eq!(left(tmp.path()), []);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "files are left");
}
