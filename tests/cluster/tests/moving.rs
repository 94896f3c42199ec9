//! Addresses that come late and change: a board that starts before its DHCP server, a laptop that
//! wakes in another network.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use dugnad_cluster::{Community, Options, PATIENCE, Wires, holds, skip, until, write};

#[test]
fn addresses_are_followed() {
    let test = "addresses_are_followed";
    if let Some(why) = Wires::missing() {
        return skip(test, why);
    }
    let (count, moving) = (3, 1);
    let wires = Wires::new(count, 78);
    let options = Options {
        addresses: vec![Ipv4Addr::UNSPECIFIED; count],
        before_each: (0..count).map(|node| wires.words(node)).collect(),
        ..Options::default()
    };
    let mut community = Community::found("moving", count, options);
    wires.readdress(moving, None);
    for node in 0..count {
        community.start(node);
    }
    until("the others find each other", PATIENCE, || {
        let alive = community.alive(0)?;
        holds(alive.len() == 2, || format!("{alive:?}"))
    });
    let deploy = |name: &str| {
        write(&community.folder(&format!("files-{name}/www")).join("index.html"), name);
        let text = format!("name = \"{name}\"\nreplicas = 2\n[artifacts]\nany = \"www/\"\n");
        let file = community.service_file(name, &text);
        community.deploy(0, &file);
    };
    for (last, name) in [(20, "first"), (99, "second")] {
        wires.readdress(moving, Some(last));
        let addr = format!("10.214.78.{last}:7407");
        for node in [0, 2] {
            until(&format!("n{node} knows that it is at {addr}"), PATIENCE, || {
                let nodes = community.json(node, &["nodes"])?;
                let found = nodes.as_array().into_iter().flatten().any(|n| {
                    n["state"] == "alive" && n["addrs"][0].as_str() == Some(addr.as_str())
                });
                holds(found, || nodes.to_string())
            });
        }
        deploy(name);
        until("it serves", PATIENCE, || wires.get_at(2, "127.0.0.1", &format!("/{name}/")));
    }
}
