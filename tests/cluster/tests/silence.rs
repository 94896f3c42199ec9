//! A node that is cut off without a word: its cable is pulled. Each agent has a network namespace
//! of its own, all are on one bridge.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use dugnad_cluster::{
    Community, Options, PATIENCE, SURPLUS, Wires, holds, say, skip, until, write,
};

#[test]
fn a_silent_node_is_replaced_and_healed_into_one_ring() {
    let test = "a_silent_node_is_replaced_and_healed_into_one_ring";
    if let Some(why) = Wires::missing() {
        return skip(test, why);
    }
    let count = 4;
    let wires = Wires::new(count, 77);
    let options = Options {
        addresses: (0..count).map(|node| wires.address(node)).collect(),
        before_each: (0..count).map(|node| wires.words(node)).collect(),
        ..Options::default()
    };
    let community = Community::with("silence", count, options);
    write(&community.folder("files-hi/pkg").join("index.html"), "hi");
    let file = community.service_file(
        "hi",
        "name = \"hi\"\nreplicas = 2\nstop_grace = \"1s\"\n\
         command = [\"/usr/bin/python3\", \"-m\", \"http.server\", \
         \"--bind\", \"$HOST\", \"$PORT\"]\n\
         [artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n\
         [needs]\nmemory = \"48M\"\ncpu = \"5%\"\ndisk = \"8M\"\n",
    );
    community.deploy(0, &file);
    let on = community.ready_on(0, "hi").unwrap();
    let cut = on[0];
    let asked = (0..count).find(|node| *node != cut).unwrap();

    wires.cable(cut, "out");
    let start = Instant::now();
    say(community.start, &format!("pulled the cable of n{cut}"));
    until("replaced", PATIENCE, || {
        let on = community.ready_on(asked, "hi")?;
        let whole = on.len() == 2 && !on.contains(&cut);
        holds(whole, || format!("{:?}", community.service(asked, "hi")))
    });
    say(community.start, &format!("replaced after {:.1?}", start.elapsed()));
    assert!(start.elapsed() < Duration::from_secs(45), "silence is noticed within about 20 s");
    (0..count).filter(|node| *node != cut).for_each(|node| {
        until("it answers", Duration::from_secs(20), || wires.get(node, "/hi/"));
    });
    // The one that is cut off still serves its own people.
    until("it answers its own", PATIENCE, || wires.get(cut, "/hi/"));
    say(community.start, "everybody is served, also on the cut-off side");

    wires.cable(cut, "in");
    let start = Instant::now();
    for node in 0..count {
        until(&format!("one ring, seen by n{node}"), PATIENCE * 2, || {
            let alive = community.alive(node)?;
            holds(alive.len() == count, || format!("{alive:?}"))
        });
    }
    say(community.start, &format!("one ring again after {:.1?}", start.elapsed()));
    for node in 0..count {
        community.wait_exactly(node, "hi", 2, SURPLUS);
        until("it answers", Duration::from_secs(20), || wires.get(node, "/hi/"));
    }
}
