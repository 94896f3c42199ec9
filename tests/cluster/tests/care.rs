//! What its owner does to a node, and anybody to a service, while it is visited: drain, scale,
//! restart.
#![allow(clippy::unwrap_used)]

use dugnad_cluster::http::get;
use dugnad_cluster::{Community, PATIENCE, holds, say, until, write};
use nix::sys::signal::Signal;

/// The front page, through every node that lives.
fn visit(community: &Community) {
    for node in &community.nodes {
        let answer = get(node.gateway, "/page/").unwrap();
        assert_eq!(answer.status, 200, "{}: {}", node.name, answer.text());
    }
}

#[test]
fn a_service_is_cared_for_while_it_is_visited() {
    let mut community = Community::new("care", 4);
    write(&community.folder("files-page/www").join("index.html"), "hello");
    let file = community.service_file("page", "name = \"page\"\n[artifacts]\nany = \"www/\"\n");
    community.deploy(0, &file);
    for (from, count) in [(1, 3), (2, 2), (3, 4)] {
        let said = community.ok(from, &["scale", "page", &count.to_string()]);
        assert!(said.out.contains(&format!("{count}/{count} ready")), "{}", said.all());
        community.wait_exactly(from, "page", count, PATIENCE);
        visit(&community);
    }
    say(community.start, "scaled to 3, 2 and 4");
    community.ok(0, &["scale", "page", "2"]);
    let before = community.service(0, "page").unwrap()["version"].clone();
    community.ok(1, &["restart", "page"]);
    let after = community.service(0, "page").unwrap()["version"].clone();
    assert!(before.as_u64() < after.as_u64(), "{before} {after}");
    community.wait_exactly(0, "page", 2, PATIENCE);
    visit(&community);
    for (words, code) in [
        (&["scale", "page", "0"][..], 2),
        (&["scale", "nothing", "2"], 1),
        (&["restart", "nothing"], 1),
        (&["undrain"], 1),
    ] {
        let said = community.cli(0, words);
        assert_eq!(said.code, code, "{words:?}: {}", said.all());
    }

    say(community.start, "a node is drained");
    let drained = community.ready_on(0, "page").unwrap()[0];
    let asks = (drained + 1) % 4;
    community.ok(drained, &["drain", "--reason", "a new disk"]);
    let on = community.ready_on(asks, "page").unwrap();
    assert!(on.len() == 2 && !on.contains(&drained), "{on:?}");
    visit(&community);
    // It stays so when its agent is started anew, and takes nothing.
    community.signal(drained, Signal::SIGTERM);
    assert!(community.wait_end(drained).success());
    community.start(drained);
    until("it says so", PATIENCE, || {
        let status = community.cli(drained, &["status"]).all();
        holds(status.contains("drained (a new disk)"), || status.clone())
    });
    community.wait_whole();
    let said = community.cli(asks, &["scale", "page", "4"]);
    assert_eq!(said.code, 3, "{}", said.all());
    let on = community.ready_on(asks, "page").unwrap();
    assert!(on.len() == 3 && !on.contains(&drained), "{on:?}");
    community.ok(drained, &["undrain"]);
    community.wait_exactly(asks, "page", 4, PATIENCE);
    visit(&community);
    say(community.start, "it takes work again");
}

/// Visitors make a service grow, and so does what it has to compute; with nobody about it stays.
#[test]
fn a_service_follows_its_load() {
    let community = Community::new("load", 3);
    let start = community.start;
    write(&community.folder("files-page/www").join("index.html"), "hello");
    let text =
        "name = \"page\"\nscale = { max = 3, on = \"rps>20\" }\n[artifacts]\nany = \"www/\"\n";
    let file = community.service_file("page", text);
    community.deploy(0, &file);
    let said = community.cli(1, &["why", "page"]);
    assert!(said.out.contains("1 of 1 to 3 on rps>20"), "{}", said.all());
    let spins = "name = \"spins\"\nscale = { min = 1, max = 2, on = \"cpu>70%\" }\n\
        command = [\"/bin/sh\", \"-c\", \"while :; do :; done\"]\n[port]\nhttp = false\n\
        [needs]\ncpu = \"0.05\"\nmemory = \"4M\"\ndisk = \"1M\"\n";
    let file = community.service_file("spins", spins);
    community.deploy(0, &file);

    say(start, "visitors come");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for node in &community.nodes {
            let over = &over;
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    // One that fails is a visitor all the same.
                    _ = get(node.gateway, "/page/");
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
        }
        community.wait_exactly(1, "page", 3, PATIENCE);
        say(start, "there are as many replicas as may be");
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let said = community.cli(2, &["why", "page"]);
    assert!(said.out.contains("requests a second"), "{}", said.all());
    visit(&community);
    community.wait_exactly(1, "spins", 2, PATIENCE);
    say(start, "what computes has grown, too");
}
