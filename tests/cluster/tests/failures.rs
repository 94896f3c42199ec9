//! Agents die in every way; services go on, exactly as many as wanted.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dugnad_cluster::http::{self, get_text};
use dugnad_cluster::{Community, PATIENCE, SURPLUS, holds, processes_of, say, slim_program, until};
use nix::sys::signal::Signal;

/// A service `hello` of the program itself.
fn hello(community: &Community, replicas: usize) -> String {
    let package = community.folder("files-hello/pkg");
    let server = package.join("server");
    if !server.exists() {
        slim_program(&server);
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let arch = std::env::consts::ARCH;
    community.service_file(
        "hello",
        &format!(
            "name = \"hello\"\nreplicas = {replicas}\nstop_grace = \"1s\"\n\
             command = [\"./server\", \"demo-server\"]\n[artifacts]\n{arch} = \"pkg/\"\n\
             [port]\nhttp = true\n[needs]\nmemory = \"32M\"\ncpu = \"5%\"\ndisk = \"8M\"\n"
        ),
    )
}

/// A folder of one page.
fn page(community: &Community, replicas: usize) -> String {
    dugnad_cluster::write(&community.folder("files-page/www").join("index.html"), "the page");
    community.service_file(
        "page",
        &format!("name = \"page\"\nreplicas = {replicas}\n[artifacts]\nany = \"www/\"\n"),
    )
}

fn living(community: &Community) -> Vec<usize> {
    (0..community.nodes.len()).filter(|node| community.runs(*node)).collect()
}

/// `hello` answers through every running node.
#[track_caller]
fn answers(community: &Community) {
    for node in living(community) {
        let gateway = community.nodes[node].gateway;
        until(&format!("hello through n{node}"), Duration::from_secs(20), || {
            get_text(gateway, "/hello/")
        });
    }
}

/// Kills these agents, waits for replacement, starts them again, waits until nothing is too much.
fn crash(community: &mut Community, victims: &[usize], want: usize) {
    let before = processes_of(&community.mark, "hello");
    victims.iter().for_each(|victim| community.kill(*victim));
    let start = Instant::now();
    say(community.start, &format!("killed the agents of {victims:?}; processes {before:?}"));
    // Services outlive their agents.
    assert_eq!(processes_of(&community.mark, "hello"), before);
    let asked = living(community)[0];
    until("replaced", PATIENCE, || {
        let on = community.ready_on(asked, "hello")?;
        let seen = || format!("{:?}", community.service(asked, "hello"));
        holds(on.len() == want && on.iter().all(|node| !victims.contains(node)), seen)
    });
    say(community.start, &format!("whole again after {:.1?}", start.elapsed()));
    answers(community);
    for victim in victims {
        community.start(*victim);
    }
    community.wait_whole();
    for node in 0..community.nodes.len() {
        community.wait_exactly(node, "hello", want, SURPLUS);
    }
    answers(community);
}

#[test]
fn agents_crash_and_exactly_the_wanted_replicas_run() {
    let mut community = Community::new("crash", 5);
    community.deploy(0, &hello(&community, 3));
    let on = community.ready_on(0, "hello").unwrap();
    let manager = community.manager(0, "hello");
    let victim = *on.iter().find(|node| **node != manager).unwrap();
    say(community.start, "--- a replica's agent");
    crash(&mut community, &[victim], 3);

    say(community.start, "--- the manager");
    let manager = community.manager(0, "hello");
    crash(&mut community, &[manager], 3);

    say(community.start, "--- the manager and a replica's agent together");
    let manager = community.manager(0, "hello");
    let on = community.ready_on(0, "hello").unwrap();
    let victim = *on.iter().find(|node| **node != manager).unwrap();
    crash(&mut community, &[manager, victim], 3);
}

#[test]
fn what_was_acknowledged_stays_when_the_asked_node_dies() {
    let mut community = Community::new("asked", 4);
    community.deploy(2, &hello(&community, 2));
    community.deploy(2, &page(&community, 2));
    community.kill(2);
    say(community.start, "the asked node was killed as soon as deploy returned");
    for node in [0, 1, 3] {
        for service in ["hello", "page"] {
            until(&format!("{service} on n{node}"), PATIENCE, || {
                let on = community.ready_on(node, service)?;
                let seen = || format!("{:?}", community.service(node, service));
                holds(on.len() == 2 && !on.contains(&2), seen)
            });
        }
        until("the page", PATIENCE, || get_text(community.nodes[node].gateway, "/page/"));
    }
    answers(&community);
    community.start(2);
    community.wait_whole();
    community.wait_exactly(2, "hello", 2, SURPLUS);
}

/// Asks a service all the time through some nodes while `work` goes on; failures, visits.
fn visited(
    community: &mut Community,
    through: &[usize],
    work: impl FnOnce(&mut Community),
) -> (usize, usize) {
    let gateways: Vec<_> = through.iter().map(|node| community.nodes[*node].gateway).collect();
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for gateway in gateways {
            let (stop, asked, failed) = (&stop, &asked, &failed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let answer = get_text(gateway, "/hello/");
                    if answer.is_err() {
                        eprintln!("failed through {gateway}: {answer:?}");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    // A visitor's pace.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(community)));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    (failed.into_inner(), asked.into_inner())
}

#[test]
fn who_is_told_to_end_leaves_without_a_failed_request() {
    let mut community = Community::new("leave", 5);
    community.deploy(0, &hello(&community, 3));
    let on = community.ready_on(0, "hello").unwrap();
    let goes = on[0];
    let through: Vec<usize> = (0..5).filter(|node| *node != goes).collect();
    let (failed, asked) = visited(&mut community, &through, |community| {
        community.signal(goes, Signal::SIGTERM);
        let status = community.wait_end(goes);
        assert!(status.success(), "{status}\n{}", community.log(goes));
        say(community.start, "it ended after SIGTERM, exit 0");
        let asked = through[0];
        until("replaced", PATIENCE, || {
            let on = community.ready_on(asked, "hello")?;
            holds(on.len() == 3 && !on.contains(&goes), || format!("{on:?}"))
        });
    });
    say(community.start, &format!("SIGTERM: {asked} visits, {failed} failed"));
    assert_eq!(failed, 0);
    // It comes back and its services are no more than wanted.
    community.start(goes);
    community.wait_whole();
    community.wait_exactly(goes, "hello", 3, SURPLUS);

    // `leave` takes the services of the node along.
    let (failed, asked) = visited(&mut community, &through, |community| {
        community.ok(goes, &["leave"]);
        let status = community.wait_end(goes);
        assert!(status.success(), "{status}");
        let asked = through[0];
        community.wait_exactly(asked, "hello", 3, SURPLUS);
    });
    say(community.start, &format!("leave: {asked} visits, {failed} failed"));
    assert_eq!(failed, 0);
    until("nothing runs of the one that left", PATIENCE, || {
        let name = format!("n{goes}");
        let left = processes_of(&community.mark, "hello");
        holds(left.iter().all(|(node, ..)| *node != name), || format!("{left:?}"))
    });
}

#[test]
fn all_agents_die_at_once_and_nothing_is_lost() {
    let mut community = Community::new("blackout", 5);
    community.deploy(0, &hello(&community, 3));
    community.deploy(1, &page(&community, 2));
    let before = processes_of(&community.mark, "hello");
    (0..5).for_each(|node| community.signal(node, Signal::SIGKILL));
    (0..5).for_each(|node| assert!(!community.wait_end(node).success()));
    say(community.start, "all agents are dead");
    assert_eq!(processes_of(&community.mark, "hello"), before);

    // One alone: what it runs answers at once, with no other node.
    let alone = community.nodes.iter().position(|node| node.name == before[0].0).unwrap();
    let start = Instant::now();
    community.start(alone);
    let gateway = community.nodes[alone].gateway;
    until("its own service answers", Duration::from_secs(10), || get_text(gateway, "/hello/"));
    say(community.start, &format!("n{alone} alone answers after {:.1?}", start.elapsed()));

    (0..5).filter(|node| *node != alone).for_each(|node| community.start(node));
    community.wait_whole();
    for node in 0..5 {
        community.wait_exactly(node, "hello", 3, SURPLUS);
        community.wait_exactly(node, "page", 2, SURPLUS);
        until("the page", PATIENCE, || get_text(community.nodes[node].gateway, "/page/"));
    }
    answers(&community);
    community.ok(3, &["rm", "hello"]);
    until("removed", PATIENCE, || {
        let left = processes_of(&community.mark, "hello");
        holds(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn the_machine_loses_its_power() {
    let mut community = Community::new("power", 4);
    community.deploy(0, &hello(&community, 2));
    community.deploy(0, &page(&community, 2));
    (0..4).for_each(|node| community.signal(node, Signal::SIGKILL));
    (0..4).for_each(|node| assert!(!community.wait_end(node).success()));
    let left = community.mark.end(&[]);
    assert!(left.is_empty(), "{left:?}");
    say(community.start, "agents, services and keepers of logs are dead");
    (0..4).for_each(|node| community.start(node));
    community.wait_whole();
    for node in 0..4 {
        community.wait_exactly(node, "hello", 2, SURPLUS);
        community.wait_exactly(node, "page", 2, SURPLUS);
    }
    answers(&community);
}

#[test]
fn with_all_seeds_dead_it_finds_the_others() {
    let mut community = Community::new("seeds", 4);
    community.deploy(1, &page(&community, 2));
    // Everybody joined through n0. A node writes down whom it met within seconds.
    until("n3 has written down whom it met", PATIENCE, || {
        let known =
            fs::read_to_string(community.nodes[3].dir.join("peers")).map_err(|e| e.to_string())?;
        let addrs = |node: usize| known.contains(&community.nodes[node].overlay.to_string());
        holds(addrs(1) && addrs(2), || known.clone())
    });
    community.kill(0);
    community.kill(3);
    community.start(3);
    until("n3 is back without its seed", PATIENCE, || {
        let alive = community.alive(3)?;
        holds(alive.len() == 3, || format!("{alive:?}"))
    });
    let answer = http::get(community.nodes[3].gateway, "/page/").unwrap();
    assert_eq!(answer.status, 200);
    say(community.start, "n3 rejoined through peers it remembered");
}
