//! A node that is cut off without a word: its cable is pulled. Each agent has a network namespace
//! of its own, all are on one bridge.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use dugnad_cluster::{
    Community, Options, PATIENCE, SURPLUS, holds, installed, root, run, say, skip, until, write,
};

/// Namespaces `PREFIX-0..` of nodes and `PREFIX-sw`, which holds the bridge.
struct Wires {
    prefix: String,
    count: usize,
}

impl Wires {
    fn new(count: usize) -> Self {
        let prefix = format!("dgd{}", std::process::id());
        let wires = Self { prefix, count };
        let switch = wires.name("sw");
        run(&["ip", "netns", "add", &switch]);
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge"]);
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"]);
        for node in 0..count {
            let (name, port) = (wires.name(&node.to_string()), format!("p{node}"));
            run(&["ip", "netns", "add", &name]);
            run(&[
                "ip", "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &name,
            ]);
            run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            run(&[
                "ip",
                "-n",
                &name,
                "addr",
                "add",
                &format!("{}/24", address(node)),
                "dev",
                "eth0",
            ]);
            run(&["ip", "-n", &name, "link", "set", "eth0", "up"]);
            run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        }
        wires
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Pulls the cable of a node at the switch, or puts it back: packets vanish, nothing is said.
    fn cable(&self, node: usize, state: &str) {
        run(&["ip", "-n", &self.name("sw"), "link", "set", &format!("p{node}"), "nomaster"]);
        if state == "in" {
            run(&[
                "ip",
                "-n",
                &self.name("sw"),
                "link",
                "set",
                &format!("p{node}"),
                "master",
                "br0",
            ]);
        }
    }

    fn words(&self, node: usize) -> Vec<String> {
        let net = format!("--net=/run/netns/{}", self.name(&node.to_string()));
        vec!["nsenter".to_owned(), net]
    }

    /// A page, asked from inside a node's network.
    fn get(&self, node: usize, path: &str) -> Result<String, String> {
        let words = self.words(node);
        let url = format!("http://{}:7480{path}", address(node));
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["curl", "-sS", "--fail-with-body", "--max-time", "10", &url])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        let nodes = (0..self.count).map(|node| node.to_string());
        for what in nodes.chain(["sw".to_owned()]) {
            // It may not have been made.
            let _: std::io::Result<_> =
                Command::new("ip").args(["netns", "del", &self.name(&what)]).output();
        }
    }
}

fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 214, 77, u8::try_from(node + 1).unwrap())
}

#[test]
fn a_silent_node_is_replaced_and_healed_into_one_ring() {
    let test = "a_silent_node_is_replaced_and_healed_into_one_ring";
    if !root() {
        return skip(test, "network namespaces need root");
    }
    if installed(&["/usr/sbin/ip", "/sbin/ip"]).is_none() || installed(&["/usr/bin/curl"]).is_none()
    {
        return skip(test, "it needs ip (iproute2) and curl");
    }
    let probe = format!("dgd{}-probe", std::process::id());
    if !Command::new("ip").args(["netns", "add", &probe]).output().unwrap().status.success() {
        return skip(test, "this kernel or container allows no network namespaces");
    }
    run(&["ip", "netns", "del", &probe]);
    let count = 4;
    let wires = Wires::new(count);
    let options = Options {
        addresses: (0..count).map(address).collect(),
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
