//! A copied SD card: two machines with one identity.
#![allow(clippy::unwrap_used)]

use std::fs;

use dugnad_cluster::{Community, Options, PATIENCE, Wires, holds, skip, until};

#[test]
fn the_later_of_two_machines_with_one_identity_ends_and_says_why() {
    let test = "the_later_of_two_machines_with_one_identity_ends_and_says_why";
    if let Some(why) = Wires::missing() {
        return skip(test, why);
    }
    let (count, copy) = (3, 2);
    let wires = Wires::new(count, 79);
    let options = Options {
        addresses: (0..count).map(|node| wires.address(node)).collect(),
        before_each: (0..count).map(|node| wires.words(node)).collect(),
        ..Options::default()
    };
    let mut community = Community::found("copy", count, options);
    (0..copy).for_each(|node| community.start(node));
    until("two see each other", PATIENCE, || {
        let alive = community.alive(0)?;
        holds(alive.len() == 2, || format!("{alive:?}"))
    });
    let known = community.nodes[0].dir.join("peers");
    until("n0 has written down whom it met", PATIENCE, || {
        let text = fs::read_to_string(&known).map_err(|error| error.to_string())?;
        holds(text.contains(&wires.address(1).to_string()), || text.clone())
    });
    // What a copy of the card of n0 holds, but for its address.
    for name in ["identity", "node", "incarnation", "peers"] {
        let from = community.nodes[0].dir.join(name);
        fs::copy(from, community.nodes[copy].dir.join(name)).unwrap();
    }
    community.start(copy);
    let ended = community.wait_end_within(copy, PATIENCE * 2);
    assert!(!ended.success(), "{ended}");
    assert!(community.log(copy).contains("init --new-identity"), "{}", community.log(copy));
    // The first one was never put out, and everybody knows.
    for node in 0..copy {
        let alive = community.alive(node).unwrap();
        assert_eq!(alive.len(), 2, "{alive:?}");
        let told = format!("{}", community.json(node, &["events"]).unwrap_or_default())
            + &community.ok(node, &["events"]).out
            + &community.status(node)["warnings"].to_string();
        assert!(told.contains("identity"), "n{node}: {told}");
    }
    // It starts nothing, until it is a node of its own.
    let again = community.try_start(copy, &[]).unwrap_err();
    assert!(again.contains("ended"), "{again}");
    community.ok(copy, &["init", "--new-identity"]);
    community.start(copy);
    community.wait_whole();
}
