//! A node that goes silent: its packets are dropped, nothing says goodbye.
//!
//! Every agent runs in a network namespace of its own, all on one bridge in a namespace of its
//! own, so that nothing of the machine is touched. Needs root and `ip` (iproute2).

use std::time::Duration;

use dugnad_cluster::{Community, Options, Wires, holds, until};

use crate::{Row, seconds, speed};

const WHAT: &str = "node goes silent → replacement answers";
const BUDGET: &str = "≤ 20 s";
const NODES: usize = 5;
/// No other bench or test has this network.
const NET: u8 = 77;
const TIMES: usize = 3;
const LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn silent() -> Row {
    if let Some(why) = Wires::missing() {
        return Row::new(WHAT, BUDGET, format!("not measured: {why}"));
    }
    let wires = Wires::new(NODES, NET);
    let options = Options {
        addresses: (0..NODES).map(|node| wires.address(node)).collect(),
        before_each: (0..NODES).map(|node| wires.words(node)).collect(),
        ..Options::default()
    };
    let community = Community::with("bench-silent", NODES, options);
    if let Err(error) = enter(&wires.namespace(0)) {
        return Row::new(WHAT, BUDGET, format!("not measured: {error}"));
    }
    community.deploy(0, &speed::server(&community, "web", 3));
    let mut values = Vec::new();
    for _ in 0..TIMES {
        let on = until("three are ready", LIMIT, || {
            let on = community.ready_on(0, "web")?;
            holds(on.len() == 3, || format!("{on:?}")).map(|()| on)
        });
        let victim = on.iter().copied().find(|node| *node != 0).unwrap_or(1);
        values.push(speed::heal(&community, 0, "web", LIMIT, || wires.cable(victim, "out")));
        wires.cable(victim, "in");
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

/// From now on what this thread asks goes out in this namespace.
pub(crate) fn enter(namespace: &str) -> std::io::Result<()> {
    let file = std::fs::File::open(namespace)?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
