#![allow(clippy::unwrap_used)]

use super::*;
use crate::mounts::{Bind, passable};
use crate::process::wait_readable;

fn shell(script: &str, cwd: &std::path::Path) -> (Launch, File) {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let mut launch = Launch::new("/bin/sh", cwd);
    launch.args = vec!["-c".into(), script.into()];
    launch.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    launch.output = Some(write);
    (launch, File::from(read))
}

fn output(launch: Launch, mut read: File) -> String {
    let (mut child, process) = launch.start().unwrap_or_else(|error| panic!("{error}"));
    assert!(process.pid > 1);
    assert!(wait_readable(&read, 10_000).unwrap(), "no output");
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn a_program_gets_its_own_session_no_privileges_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let script = "cut -d' ' -f1,5,6 /proc/self/stat >/dev/null; cut -d' ' -f5,6 /proc/$$/stat; \
                  grep NoNewPrivs /proc/self/status; ulimit -c; readlink /proc/self/fd/0; pwd";
    let (launch, read) = shell(script, tmp.path());
    let text = output(launch, read);
    let lines: Vec<&str> = text.lines().collect();
    let (group, session) = lines[0].split_once(' ').unwrap();
    assert_eq!(group, session);
    assert_eq!(lines[1], "NoNewPrivs:\t1");
    assert_eq!(lines[2], "0");
    assert_eq!(lines[3], "/dev/null");
    assert_eq!(lines[4], tmp.path().canonicalize().unwrap().to_str().unwrap());
}

#[test]
fn the_step_that_failed_is_named() {
    let launch = Launch::new("/bin/true", "/does/not/exist");
    let error = launch.start().unwrap_err().to_string();
    assert!(error.starts_with("cannot enter the service's folder"), "{error}");
    let launch = Launch::new("/does/not/exist", "/");
    let error = launch.start().unwrap_err().to_string();
    assert!(error.starts_with("cannot run /does/not/exist"), "{error}");
}

#[test]
fn as_root_a_service_sees_its_own_folders_only() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().canonicalize().unwrap();
    for name in ["package", "state"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    std::fs::write(dir.join("identity"), "secret").unwrap();
    std::fs::write(dir.join("package/page"), "hello").unwrap();
    std::os::unix::fs::chown(dir.join("state"), Some(60_123), Some(60_123)).unwrap();
    let script = "id -u; id -G; cat page; ls -A /tmp | wc -l; ls .. | tr '\\n' ' '; \
                  echo x > mine 2>/dev/null || echo read-only; echo y > ../state/it && echo wrote; \
                  grep CapEff /proc/self/status";
    let (mut launch, read) = shell(script, &dir.join("package"));
    let binds = [
        Bind { path: dir.join("package"), writable: false },
        Bind { path: dir.join("state"), writable: true },
    ];
    launch.view = Some(View::plan(&dir, &passable, &binds, 1 << 20).unwrap());
    launch.user = Some(60_123);
    let text = output(launch, read);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "60123");
    assert_eq!(lines[1], "60123");
    assert!(lines[2].starts_with("hello"), "{text}");
    assert!(text.contains("package state "), "{text}");
    assert!(!text.contains("identity"), "{text}");
    assert!(text.contains("read-only\n") && text.contains("wrote\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert_eq!(std::fs::read_to_string(dir.join("state/it")).unwrap(), "y\n");
}
