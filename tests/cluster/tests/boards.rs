//! A community of different machines: this one, and three boards under emulation. `tests/run
//! boards` builds their programs and runs this where the kernel starts them by itself.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dugnad_cluster::http::get;
use dugnad_cluster::{Community, Options, holds, processes_of, program, say, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Emulated agents take their time, and so does the machine that emulates them.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kind of processor, and what runs its programs here.
const BOARDS: [(&str, &str); 3] =
    [("aarch64", "qemu-aarch64"), ("armv6", "qemu-arm"), ("armv7", "qemu-arm")];

/// Three boards, nodes 1 to 3, of the kinds that were built; node 0 is this machine.
fn boards() -> Vec<(&'static str, &'static str)> {
    let built = std::env::var("DUGNAD_BOARD_KINDS").unwrap_or_default();
    let there =
        |(kind, _): &(&str, &str)| built.is_empty() || built.split(' ').any(|built| built == *kind);
    BOARDS.into_iter().filter(there).cycle().take(3).collect()
}

fn board(folder: &Path, arch: &str) -> PathBuf {
    folder.join(format!("dugnad-{arch}"))
}

/// The kinds of the nodes, this machine's first.
fn kinds() -> Vec<&'static str> {
    let own = std::iter::once(std::env::consts::ARCH);
    own.chain(boards().into_iter().map(|(arch, _)| arch)).collect()
}

fn mixed(folder: &Path) -> Community {
    let mut options = Options::default();
    options.programs.push(program().to_path_buf());
    options.before_each.push(Vec::new());
    for (arch, _) in boards() {
        options.programs.push(board(folder, arch));
        // The oldest of them runs on nothing newer than it has to.
        let cpu = if arch == "armv6" { vec!["env", "QEMU_CPU=arm1176"] } else { Vec::new() };
        options.before_each.push(cpu.into_iter().map(str::to_owned).collect());
    }
    Community::with("boards", kinds().len(), options)
}

fn site(community: &Community) {
    let pages = community.folder("files-site/pages");
    dugnad_cluster::write(&pages.join("index.html"), "from a board");
    let file = community.service_file(
        "site",
        "name = \"site\"\nkind = \"static\"\nreplicas = 4\n[artifacts]\nany = \"pages/\"\n\
         [needs]\nmemory = \"8M\"\ncpu = \"1%\"\ndisk = \"1M\"\n",
    );
    community.deploy(1, &file);
    for node in &community.nodes {
        let page = get(node.gateway, "/site/").unwrap();
        assert_eq!((page.status, page.body.as_slice()), (200, &b"from a board"[..]));
    }
}

/// One program for each kind of processor.
fn server(community: &Community, folder: &Path) -> String {
    let mut artifacts = String::new();
    for arch in kinds().into_iter().collect::<BTreeSet<_>>() {
        let package = community.folder(&format!("files-own/{arch}"));
        let from = if arch == std::env::consts::ARCH {
            program().to_path_buf()
        } else {
            board(folder, arch)
        };
        fs::copy(from, package.join("server")).unwrap();
        fs::set_permissions(package.join("server"), fs::Permissions::from_mode(0o755)).unwrap();
        artifacts.push_str(&format!("{arch} = \"{arch}/\"\n"));
    }
    community.service_file(
        "own",
        &format!(
            "name = \"own\"\nreplicas = 3\nstop_grace = \"1s\"\n\
             command = [\"./server\", \"demo-server\"]\n[artifacts]\n{artifacts}\
             [port]\nhttp = true\n\
             [needs]\nmemory = \"96M\"\ncpu = \"10%\"\ndisk = \"16M\"\nprocesses = 16\n"
        ),
    )
}

/// What runs a process: its own file, or an emulator.
fn runner(pid: i32) -> String {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    exe.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Each node that runs it runs the program for its own processor.
fn each_runs_its_own(community: &Community) {
    for (node, number, pid) in processes_of(&community.mark, "own") {
        let place = community.nodes.iter().position(|n| n.name == node).unwrap();
        let expected = match place.checked_sub(1) {
            None => "server".to_owned(),
            Some(board) => format!("{}-static", boards()[board].1),
        };
        assert_eq!(runner(pid), expected, "replica {number} on {node} ({})", kinds()[place]);
    }
}

#[test]
#[ignore = "needs programs for boards: tests/run boards"]
fn boards_and_this_machine_make_one_community() {
    let folder = PathBuf::from(std::env::var_os("DUGNAD_BOARDS").expect("DUGNAD_BOARDS"));
    let mut community = mixed(&folder);
    for (node, arch) in kinds().into_iter().enumerate() {
        assert_eq!(community.status(node)["arch"], arch);
    }
    site(&community);
    let file = server(&community, &folder);
    community.deploy(0, &file);
    community.wait_exactly(0, "own", 3, PATIENCE);
    each_runs_its_own(&community);
    // Kill a board that runs it: the one that did not so far has to.
    let before = community.ready_on(0, "own").unwrap();
    let spare = (0..4).find(|node| !before.contains(node)).unwrap();
    let victim = before.into_iter().find(|node| *node != 0).unwrap();
    community.kill(victim);
    for (node, _, pid) in processes_of(&community.mark, "own") {
        if node == community.nodes[victim].name {
            // It may have ended with its agent.
            let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    community.wait_exactly(0, "own", 3, PATIENCE);
    assert!(community.ready_on(0, "own").unwrap().contains(&spare));
    each_runs_its_own(&community);
    until("every gateway answers", PATIENCE, || {
        for node in (0..4).filter(|node| *node != victim) {
            let answer = get(community.nodes[node].gateway, "/own/").map_err(|e| e.to_string())?;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            holds(answer.status == 200 && body.contains("of own on node"), || body)?;
        }
        Ok(())
    });
    say(community.start, "a board died, and another took over");
}
