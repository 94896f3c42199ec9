//! Mistakes, broken disks and broken clocks: a clear message, the right exit code, nothing lost.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dugnad_cluster::http::get_text;
use dugnad_cluster::{
    Community, Options, PATIENCE, holds, installed, root, run, say, skip, until, write,
};
use nix::sys::signal::{Signal, kill};

/// A command fails with this code and says all of these words.
#[track_caller]
fn fails(community: &Community, node: usize, words: &[&str], code: i32, says: &[&str]) {
    let said = community.cli(node, words);
    let told = said.all();
    say(
        community.start,
        &format!("{} → {}: {}", words[0], said.code, told.trim().replace('\n', " | ")),
    );
    assert_eq!(said.code, code, "{words:?}: {told}");
    for word in says {
        assert!(told.contains(word), "{words:?}: no {word:?} in {told}");
    }
}

const FOLDER: &str = "[artifacts]\nany = \"www/\"\n";

/// A program of another processor: a real header, nothing else.
fn foreign_program(path: &Path) {
    let mut elf = vec![0_u8; 64];
    elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    elf[16] = 2;
    // 243 is RISC-V, which is none of our test machines.
    elf[18] = 243;
    elf[20] = 1;
    write(path, elf);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn mistakes_in_service_files_are_explained() {
    let mut community = Community::new("files", 2);
    let www =
        |name: &str| write(&community.folder(&format!("files-{name}/www")).join("index.html"), "x");
    ["key", "type", "name", "mem", "good"].into_iter().for_each(www);
    let file = |name: &str, text: &str| community.service_file(name, text);

    let f = file("key", &format!("name = \"a\"\nreplicsa = 2\n{FOLDER}"));
    fails(&community, 0, &["deploy", &f], 1, &["service.toml:2:", "replicsa"]);
    let f = file("type", &format!("name = \"a\"\nreplicas = \"many\"\n{FOLDER}"));
    fails(&community, 0, &["deploy", &f], 1, &["service.toml:2:", "replicas"]);
    let f = file("name", &format!("name = \"a/b\"\n{FOLDER}"));
    fails(&community, 0, &["deploy", &f], 1, &["service.toml:1:", "a/b"]);
    let f = file("missing", "name = \"a\"\n[artifacts]\nany = \"nowhere/\"\n");
    fails(&community, 0, &["deploy", &f], 1, &["nowhere", "service.toml:3:"]);
    foreign_program(&community.folder("files-elf/pkg").join("server"));
    let arch = std::env::consts::ARCH;
    let elf = |key: &str| {
        format!(
            "name = \"a\"\ncommand = [\"./server\"]\n\
             [artifacts]\n{key} = \"pkg/\"\n[port]\nhttp = true\n"
        )
    };
    let f = file("elf", &elf(arch));
    fails(&community, 0, &["deploy", &f], 1, &["server", "riscv64"]);
    fails(&community, 0, &["deploy", "/no/such/file.toml"], 1, &["/no/such/file.toml"]);
    fails(&community, 0, &["rm", "nosuch"], 1, &["nosuch"]);
    fails(&community, 0, &["why", "../x"], 2, &["../x"]);
    fails(&community, 0, &["depoly", "x"], 2, &["deploy"]);
    fails(&community, 0, &["deploy"], 2, &[]);

    // Nobody can: one line for each node, and nothing is left of it.
    let f =
        file("mem", "name = \"big\"\ncommand = [\"/usr/bin/env\"]\n[needs]\nmemory = \"64G\"\n");
    fails(&community, 0, &["plan", &f], 3, &["n0", "n1", "memory"]);
    fails(&community, 0, &["deploy", &f, "--timeout", "20s"], 3, &["n0", "n1", "memory"]);
    let f = file("program", "name = \"prog\"\ncommand = [\"/usr/bin/no-such-program\"]\n");
    fails(&community, 1, &["deploy", &f, "--timeout", "20s"], 3, &["n0", "n1", "no-such-program"]);
    let many = file("good", &format!("name = \"good\"\nreplicas = 5\n{FOLDER}"));
    fails(&community, 0, &["deploy", &many, "--timeout", "20s"], 3, &["2/5"]);

    // Nothing of it hurt anybody.
    let f = file("good", &format!("name = \"good\"\nreplicas = 2\n{FOLDER}"));
    community.deploy(0, &f);
    let services = community.json(1, &["ps"]).unwrap();
    assert_eq!(services.as_array().unwrap().len(), 1, "{services}");
    community.kill(1);
    fails(&community, 1, &["ps"], 4, &["agent"]);
}

#[test]
fn who_may_not_join_is_told_why() {
    let mut community = Community::found("tokens", 3, Options::default());
    community.start(0);
    let token = community.token();
    let dir = community.folder("stranger");
    let dir = dir.to_str().unwrap();
    let try_join = |token: &str, code: i32, says: &[&str]| {
        fails(&community, 0, &["join", token, "--dir", dir, "--name", "x"], code, says);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "a refused join leaves nothing");
    };
    // Addresses may be edited by hand; the rest carries a checksum.
    let at = token.find(':').unwrap() + 5;
    let other = if &token[at..=at] == "b" { "c" } else { "b" };
    let mistyped = format!("{}{other}{}", &token[..at], &token[at + 1..]);
    try_join(&mistyped, 5, &["damaged"]);
    try_join("dugnad1:nonsense", 5, &["damaged"]);
    try_join("hello", 5, &["dugnad invite"]);
    let short = community.ok(0, &["invite", "--expires", "1s"]).out.trim().to_owned();
    // The token itself says to the second when it ends.
    std::thread::sleep(Duration::from_millis(2100));
    try_join(&short, 5, &["expired"]);
    fails(&community, 0, &["join", "--dir", dir], 2, &["token"]);
    fails(&community, 0, &["invite", "--expires", "soon"], 2, &["soon"]);
    // An agent without init or join.
    fails(&community, 0, &["agent", "--dir", dir], 1, &["init", "join"]);
    // A folder that has a node already keeps it.
    fails(&community, 1, &["join", &token], 1, &["already"]);
    fails(&community, 1, &["init", "--community", "other"], 1, &["already"]);
    a_foreigner_is_refused_and_told(&community);
}

/// A token with the secret of another community: members refuse the session, and it is told.
fn a_foreigner_is_refused_and_told(community: &Community) {
    let other = Community::found("other", 1, Options::default());
    let foreign = other.token();
    let seeds = community.nodes[0].overlay.to_string();
    let stranger = community.folder("foreign");
    let at = stranger.to_str().unwrap();
    community.ok(
        0,
        &[
            "join",
            &foreign,
            "--dir",
            at,
            "--name",
            "x",
            "--overlay",
            &format!("{}:7999", community.nodes[2].overlay.ip()),
            "--gateway",
            "off",
        ],
    );
    let config = fs::read_to_string(stranger.join("dugnad.toml")).unwrap();
    let config = config.replace(&other.nodes[0].overlay.to_string(), &seeds);
    write(&stranger.join("dugnad.toml"), config);
    let mut agent = community
        .prepare(2, &["agent", "--dir", at])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the foreigner is counted", PATIENCE, || {
        let refused =
            community.counter(0, "refused_community") + community.counter(0, "refused_secret");
        holds(refused > 0, || community.status(0)["counters"].to_string())
    });
    let told = until("the foreigner is told", PATIENCE, || {
        let said = community.cli(0, &["status", "--dir", at, "-o", "json"]);
        holds(said.out.contains(&seeds), || said.all()).map(|()| said.out)
    });
    say(
        community.start,
        &format!(
            "the foreigner's own status: {}",
            told.split("\"seeds\":").nth(1).unwrap_or("?").chars().take(200).collect::<String>()
        ),
    );
    assert_eq!(community.alive(0).unwrap(), ["n0"]);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn what_is_taken_or_not_ones_own_is_refused() {
    let mut community = Community::new("taken", 2);
    let pid = community.pid(0).to_string();
    // Two agents on one folder.
    fails(&community, 0, &["agent"], 1, &[&pid]);
    assert_eq!(community.status(0)["name"], "n0");
    // Ports that are taken.
    community.kill(1);
    let (overlay, gateway) = (community.nodes[1].overlay, community.nodes[1].gateway);
    let taken = TcpListener::bind(gateway).unwrap();
    fails(&community, 1, &["agent"], 1, &[&gateway.to_string(), "gateway"]);
    drop(taken);
    let taken = TcpListener::bind(overlay).unwrap();
    fails(&community, 1, &["agent"], 1, &[&overlay.to_string(), "overlay"]);
    drop(taken);
    community.start(1);
    community.wait_whole();

    // The identity of another node in this folder.
    community.kill(1);
    let keep = community.folder("aside");
    fs::copy(community.nodes[1].dir.join("identity"), keep.join("identity")).unwrap();
    fs::copy(community.nodes[0].dir.join("identity"), community.nodes[1].dir.join("identity"))
        .unwrap();
    fails(&community, 1, &["agent"], 1, &["holds the state of node"]);
    fs::copy(keep.join("identity"), community.nodes[1].dir.join("identity")).unwrap();

    // A mistake in the owner's file is shown with its line; an agent that runs keeps its own.
    let config = community.nodes[1].dir.join("dugnad.toml");
    let good = fs::read_to_string(&config).unwrap();
    write(&config, format!("{good}\n[limits2]\ncpu = 1\n"));
    fails(&community, 1, &["agent"], 1, &["dugnad.toml", "limits2"]);
    write(&config, &good);
    community.start(1);
    write(&config, good.replace("512M", "lots"));
    fails(&community, 1, &["reload"], 1, &["dugnad.toml", "lots"]);
    assert_eq!(community.status(1)["gives"]["memory_bytes"], 512 << 20);
    write(&config, good.replace("512M", "256M"));
    community.ok(1, &["reload"]);
    assert_eq!(community.status(1)["gives"]["memory_bytes"], 256 << 20);
    community.wait_whole();
}

/// Overwrites the start and the middle of every file below.
fn spoil(dir: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += spoil(&path);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        for at in (0..bytes.len().min(4096)).chain(middle..bytes.len().min(middle + 4096)) {
            bytes[at] = 0xA5;
        }
        fs::write(&path, bytes).unwrap();
        count += 1;
    }
    count
}

#[test]
fn a_spoilt_database_is_replaced_from_the_others() {
    let mut community = Community::new("spoilt", 3);
    write(&community.folder("files-page/www").join("index.html"), "the page");
    let f = community.service_file("page", &format!("name = \"page\"\nreplicas = 3\n{FOLDER}"));
    community.deploy(0, &f);
    let id = community.status(1)["node"].clone();
    let records = community.status(1)["records"].as_u64().unwrap();
    assert!(records > 0);
    community.kill(1);
    let databases: Vec<_> = ["db", "records", "sled"]
        .iter()
        .map(|name| community.nodes[1].dir.join(name))
        .filter(|dir| dir.is_dir())
        .collect();
    assert_eq!(
        databases.len(),
        1,
        "{:?}",
        fs::read_dir(&community.nodes[1].dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect::<Vec<_>>()
    );
    let count = spoil(&databases[0]);
    say(community.start, &format!("spoilt {count} files of the database"));
    community.start(1);
    let status = community.status(1);
    assert_eq!(status["node"], id, "the identity stays");
    let told = format!("{} {}", status["warnings"], community.log(1));
    say(community.start, &format!("warnings: {}", status["warnings"]));
    assert!(status["warnings"].as_array().is_some_and(|w| !w.is_empty()), "{told}");
    community.wait_whole();
    until("records came back", PATIENCE, || {
        let now = community.status(1)["records"].as_u64().unwrap();
        holds(now >= records, || format!("{now} of {records}"))
    });
    community.wait_exactly(1, "page", 3, PATIENCE);
    assert_eq!(get_text(community.nodes[1].gateway, "/page/").unwrap(), "the page");
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily, as the agent may still be there when a test fails.
        let _: std::io::Result<_> = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Moves a node's folder to a disk of 32 MB.
fn on_a_small_disk(community: &Community, dir: &Path) -> Unmount {
    let aside = community.folder("aside");
    run(&["cp", "-a", &format!("{}/.", dir.display()), aside.to_str().unwrap()]);
    run(&["mount", "-t", "tmpfs", "-o", "size=32m", "none", dir.to_str().unwrap()]);
    let unmount = Unmount(dir.to_owned());
    run(&["cp", "-a", &format!("{}/.", aside.display()), dir.to_str().unwrap()]);
    unmount
}

/// A service of 60 MB, of which no two chunks are the same: those would be stored once.
fn large(community: &Community) -> String {
    let folder = community.folder("files-large/www");
    write(&folder.join("index.html"), "large");
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u8
    });
    let noise: Vec<u8> = noise.take(60 << 20).collect();
    write(&folder.join("large.bin"), noise);
    community.service_file("large", &format!("name = \"large\"\nreplicas = 2\n{FOLDER}"))
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let test = "a_full_disk_is_said_and_survived";
    if !root() {
        return skip(test, "mounting a small tmpfs needs root");
    }
    let mut community = Community::found("full", 2, Options::default());
    let small = community.nodes[1].dir.clone();
    let _unmount = on_a_small_disk(&community, &small);
    community.start(0);
    community.start(1);
    community.wait_whole();
    let f = large(&community);
    // Through the small node: no room for the package.
    fails(&community, 1, &["deploy", &f, "--timeout", "30s"], 1, &["No space left"]);
    let staging = fs::read_dir(small.join("staging")).map_or(0, Iterator::count);
    assert_eq!(staging, 0, "a refused package is not kept half");
    // Through the other: it says that it is not as wanted, and ends in time.
    let said = community.cli(0, &["deploy", &f, "--timeout", "10s"]);
    say(community.start, &format!("deploy → {}: {}", said.code, said.all().trim()));
    // The package's second copy has no place: said at once, and by whom.
    assert_eq!(said.code, 3, "{}", said.all());
    assert!(said.all().contains(&community.nodes[1].short), "{}", said.all());
    // To the last byte: what runs goes on, what is asked is answered.
    let page = community.folder("files-page/www");
    write(&page.join("index.html"), "the page");
    let page = |name: &str| {
        let text = format!("name = \"{name}\"\nreplicas = 2\n[artifacts]\nany = \"{}\"\n", "www/");
        community.service_file("page", &text)
    };
    community.deploy(0, &page("page"));
    let filled = fs::write(small.join("fill"), vec![0; 40 << 20]);
    say(community.start, &format!("filled the disk of n1: {filled:?}"));
    assert_eq!(get_text(community.nodes[1].gateway, "/page/").unwrap(), "the page");
    assert_eq!(community.alive(1).unwrap().len(), 2);
    let said = community.cli(0, &["deploy", &page("second"), "--timeout", "5s"]);
    say(community.start, &format!("deploy → {}: {}", said.code, said.all().trim()));
    say(community.start, &format!("warnings of n1: {}", community.status(1)["warnings"]));
    // Its end and start on the full disk lose nothing; with room again, all is as before.
    let again = page("third");
    community.kill(1);
    let started = community.try_start(1, &[]);
    let log = community.log(1);
    let last = log.lines().last().unwrap_or_default();
    say(community.start, &format!("started on the full disk: {started:?}: {last}"));
    if started.is_err() {
        assert!(last.contains("No space left") && last.contains("n1"), "{log}");
    }
    fs::remove_file(small.join("fill")).unwrap();
    if started.is_err() {
        community.start(1);
    }
    community.wait_whole();
    assert_eq!(get_text(community.nodes[1].gateway, "/page/").unwrap(), "the page");
    community.deploy(1, &again);
    community.kill(1);
}

#[test]
fn a_clock_at_1970_is_said_and_survived() {
    let test = "a_clock_at_1970_is_said_and_survived";
    let lib = |arch: &str| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1");
    let libs = [lib("x86_64"), lib("aarch64"), "/usr/lib/faketime/libfaketime.so.1".to_owned()];
    let Some(lib) = installed(&libs.each_ref().map(String::as_str)) else {
        return skip(test, "no libfaketime (apt install faketime)");
    };
    let linked = Command::new("ldd").arg(dugnad_cluster::program()).output();
    if linked.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("statically")) {
        return skip(test, "a static program takes no libfaketime: test it with the dynamic build");
    }
    let mut community = Community::found("clock", 2, Options::default());
    community.start(0);
    let env = [
        ("LD_PRELOAD", lib.as_str()),
        ("FAKETIME", "@1970-01-01 00:00:30"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    community.try_start(1, &env).unwrap();
    community.wait_whole();
    let warnings = community.status(1)["warnings"].to_string();
    say(community.start, &format!("warnings: {warnings}"));
    assert!(warnings.contains("clock"), "{warnings}");
    // A token of 1970 would be dead before it is read.
    let said = community.cli(1, &["invite"]);
    assert!(said.code != 0 && said.err.contains("clock"), "{}", said.all());
    assert!(said.out.is_empty(), "{}", said.out);
    write(&community.folder("files-page/www").join("index.html"), "the page");
    let f = community.service_file("page", &format!("name = \"page\"\nreplicas = 2\n{FOLDER}"));
    community.deploy(1, &f);
    assert_eq!(get_text(community.nodes[1].gateway, "/page/").unwrap(), "the page");
    // Set right by a restart: the same node, nothing lost.
    kill(community.pid(1), Signal::SIGTERM).unwrap();
    assert!(community.wait_end(1).success());
    community.start(1);
    community.wait_whole();
    community.wait_exactly(1, "page", 2, PATIENCE);
    assert!(!community.status(1)["warnings"].to_string().contains("clock"));
    community.ok(1, &["invite"]);
}
