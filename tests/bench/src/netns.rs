//! A node that goes silent: its packets are dropped, nothing says goodbye.
//!
//! Every agent runs in a network namespace of its own, all on one bridge in a namespace of its
//! own, so that nothing of the machine is touched. Needs root and `ip` (iproute2).

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use dugnad_cluster::{Community, Options, holds, root, until};

use crate::{Row, seconds, speed};

const WHAT: &str = "node goes silent → replacement answers";
const BUDGET: &str = "≤ 20 s";
const NODES: usize = 5;
const TIMES: usize = 3;
const LIMIT: Duration = Duration::from_secs(90);

/// Namespaces that end with the value.
pub(crate) struct Net {
    name: String,
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or(format!("ip {words}: {error}"))
}

impl Net {
    /// Node `n` gets 10.77.0.(n+1).
    fn new() -> Result<Self, String> {
        let net = Self { name: format!("dgb{}", std::process::id()) };
        let hub = net.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for node in 0..NODES {
            let own = net.of(node);
            ip(&format!("netns add {own}"))?;
            ip(&format!("-n {own} link set lo up"))?;
            ip(&format!("-n {hub} link add port{node} type veth peer name eth0 netns {own}"))?;
            ip(&format!("-n {hub} link set port{node} master bridge"))?;
            ip(&format!("-n {hub} link set port{node} up"))?;
            ip(&format!("-n {own} addr add {}/24 dev eth0", Self::address(node)))?;
            ip(&format!("-n {own} link set eth0 up"))?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn of(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn address(node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(node + 1).unwrap_or(u8::MAX))
    }

    /// Pulls the cable of a node, or plugs it in again: neither end is told.
    fn cable(&self, node: usize, plugged: bool) {
        let state = if plugged { "master bridge" } else { "nomaster" };
        if let Err(error) = ip(&format!("-n {} link set port{node} {state}", self.hub())) {
            eprintln!("{error}");
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (0..NODES).map(|node| self.of(node)).chain([self.hub()]) {
            // One that was never made cannot be deleted.
            let _: Result<(), String> = ip(&format!("netns del {name}"));
        }
    }
}

pub(crate) fn silent() -> Row {
    if !root() {
        return Row::new(WHAT, BUDGET, "not measured: needs root".into());
    }
    let net = match Net::new() {
        Ok(net) => net,
        Err(error) => return Row::new(WHAT, BUDGET, format!("not measured: {error}")),
    };
    let inside = |node| ["ip", "netns", "exec", &net.of(node)].map(str::to_owned).to_vec();
    let options = Options {
        addresses: (0..NODES).map(Net::address).collect(),
        before_each: (0..NODES).map(inside).collect(),
        ..Options::default()
    };
    let community = Community::with("bench-silent", NODES, options);
    let _entered = enter(&net.of(0));
    community.deploy(0, &speed::server(&community, "web", 3));
    let mut values = Vec::new();
    for _ in 0..TIMES {
        let on = until("three are ready", LIMIT, || {
            let on = community.ready_on(0, "web")?;
            holds(on.len() == 3, || format!("{on:?}")).map(|()| on)
        });
        let victim = on.iter().copied().find(|node| *node != 0).unwrap_or(1);
        values.push(speed::heal(&community, 0, "web", LIMIT, || net.cable(victim, false)));
        net.cable(victim, true);
        until("all are back and three run", LIMIT, || {
            let alive = community.alive(0)?;
            holds(alive.len() == NODES, || format!("{alive:?}"))?;
            let on = community.ready_on(0, "web")?;
            holds(on.len() == 3, || format!("{on:?}"))
        });
    }
    let (text, worst) = seconds(values);
    Row::new(WHAT, BUDGET, text).kept(worst <= 20.0)
}

/// Requests of this thread go out where node 0 is.
fn enter(namespace: &str) -> std::io::Result<()> {
    let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
