//! Agents in network namespaces of their own, all on one bridge.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::{installed, root, run};

/// Namespaces `PREFIX-0..` of nodes and `PREFIX-sw`, which holds the bridge.
pub struct Wires {
    prefix: String,
    count: usize,
    net: [u8; 3],
}

impl Wires {
    /// Why there can be none here.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        if !root() {
            return Some("network namespaces need root");
        }
        if installed(&["/usr/sbin/ip", "/sbin/ip"]).is_none()
            || installed(&["/usr/bin/curl"]).is_none()
        {
            return Some("it needs ip (iproute2) and curl");
        }
        let probe = format!("dgd{}-probe", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &probe]).output();
        if !made.is_ok_and(|made| made.status.success()) {
            return Some("this kernel or container allows no network namespaces");
        }
        run(&["ip", "netns", "del", &probe]);
        None
    }

    /// `net` is the network of the nodes; each test has one of its own.
    #[must_use]
    pub fn new(count: usize, net: u8) -> Self {
        let prefix = format!("dgd{}-{net}", std::process::id());
        let wires = Self { prefix, count, net: [10, 214, net] };
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
                &format!("{}/24", wires.address(node)),
                "dev",
                "eth0",
            ]);
            run(&["ip", "-n", &name, "link", "set", "eth0", "up"]);
            run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        }
        wires
    }

    #[must_use]
    pub fn address(&self, node: usize) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, u8::try_from(node + 1).unwrap_or(u8::MAX))
    }

    /// Takes all addresses of a node, and gives it this one, if any.
    pub fn readdress(&self, node: usize, last: Option<u8>) {
        let name = self.name(&node.to_string());
        run(&["ip", "-n", &name, "addr", "flush", "dev", "eth0"]);
        if let Some(last) = last {
            let [a, b, c] = self.net;
            let addr = format!("{a}.{b}.{c}.{last}/24");
            run(&["ip", "-n", &name, "addr", "add", &addr, "dev", "eth0"]);
        }
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Pulls the cable of a node at the switch, or puts it back: packets vanish, nothing is said.
    pub fn cable(&self, node: usize, state: &str) {
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

    /// The file of a node's namespace.
    #[must_use]
    pub fn namespace(&self, node: usize) -> String {
        format!("/run/netns/{}", self.name(&node.to_string()))
    }

    /// What stands before a command to run it in a node's network.
    #[must_use]
    pub fn words(&self, node: usize) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.namespace(node))]
    }

    /// A page, asked from inside a node's network.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn get(&self, node: usize, path: &str) -> Result<String, String> {
        self.get_at(node, &self.address(node).to_string(), path)
    }

    /// The same at another address of the node.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn get_at(&self, node: usize, host: &str, path: &str) -> Result<String, String> {
        let words = self.words(node);
        let url = format!("http://{host}:7480{path}");
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["curl", "-sS", "--fail-with-body", "--max-time", "10", &url])
            .output()
            .map_err(|error| error.to_string())?;
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
