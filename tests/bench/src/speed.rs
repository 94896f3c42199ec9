//! How fast a community deploys and heals.

use std::time::{Duration, Instant};

use dugnad_cluster::{Community, holds, http, slim_program, until};

use crate::{Row, seconds};

const TIMES: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);

/// The program's own small server as a service: a package of its real size.
pub(crate) fn server(community: &Community, name: &str, replicas: usize) -> String {
    let package = community.folder("package");
    let program = package.join("server");
    if !program.exists() {
        slim_program(&program);
    }
    let text = format!(
        "name = \"{name}\"\nreplicas = {replicas}\ncommand = [\"./server\", \"demo-server\"]\n\
         [artifacts]\n{} = \"{}\"\n[needs]\nmemory = \"16M\"\ncpu = \"2%\"\ndisk = \"16M\"\n\
         processes = 8\n[port]\nhttp = true\n",
        std::env::consts::ARCH,
        package.display()
    );
    community.service_file(name, &text)
}

/// Deploys with the package already on every node.
pub(crate) fn deploy() -> Vec<Row> {
    let community = Community::new("bench-deploy", 5);
    community.deploy(0, &server(&community, "everywhere", 5));
    let timed = |replicas: usize| {
        let mut values = Vec::new();
        for round in 0..TIMES {
            let name = format!("fresh-{replicas}-{round}");
            let file = server(&community, &name, replicas);
            let start = Instant::now();
            community.ok(round % 5, &["deploy", &file]);
            values.push(start.elapsed().as_secs_f64());
            community.ok(0, &["rm", &name]);
        }
        seconds(values)
    };
    let ((one, worst_one), (three, worst_three)) = (timed(1), timed(3));
    vec![
        Row::new("deploy, package present, 1 replica", "≤ 0.4 s", one).kept(worst_one <= 0.4),
        Row::new("deploy, package present, 3 replicas", "≤ 0.5 s", three).kept(worst_three <= 0.5),
    ]
}

/// Numbers of the ready replicas.
fn ready(community: &Community, node: usize, name: &str) -> Result<Vec<u64>, String> {
    let service = community.service(node, name)?;
    let replicas = service["replicas"].as_array().into_iter().flatten();
    let ready = replicas.filter(|replica| replica["state"] == "ready");
    Ok(ready.filter_map(|replica| replica["replica"].as_u64()).collect())
}

/// From the moment a node is gone until a replica that was not there before answers a request.
pub(crate) fn heal(
    community: &Community,
    asked: usize,
    name: &str,
    limit: Duration,
    mut take_away: impl FnMut(),
) -> f64 {
    let before = until("ready", LIMIT, || ready(community, asked, name));
    let start = Instant::now();
    take_away();
    until("a replacement answers", limit, || {
        let now = ready(community, asked, name)?;
        let new = now.iter().find(|number| !before.contains(number));
        let number = new.ok_or_else(|| format!("{now:?} after {before:?}"))?;
        let gateway = community.nodes[asked].gateway;
        let mut connection = http::Connection::open(gateway).map_err(|e| e.to_string())?;
        let header = format!("Dugnad-Replica: {number}");
        let answer = connection.ask("GET", &format!("/{name}/"), &[&header]);
        let answer = answer.map_err(|error| error.to_string())?;
        holds(answer.status == 200, || format!("status {}", answer.status))
    });
    start.elapsed().as_secs_f64()
}

/// `kill -9` of an agent that runs a replica.
pub(crate) fn kill() -> Row {
    let mut community = Community::new("bench-kill", 5);
    community.deploy(0, &server(&community, "web", 3));
    let mut values = Vec::new();
    for _ in 0..TIMES {
        let on = until("three are ready", LIMIT, || {
            let on = community.ready_on(0, "web")?;
            holds(on.len() == 3, || format!("{on:?}")).map(|()| on)
        });
        let victim = on.iter().copied().find(|node| *node != 0).unwrap_or(1);
        let pid = community.pid(victim);
        values.push(heal(&community, 0, "web", LIMIT, || {
            // The process is ours and alive: the signal arrives.
            let _: nix::Result<()> = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }));
        community.kill(victim);
        community.start(victim);
        community.wait_whole();
        community.wait_exactly(0, "web", 3, LIMIT);
    }
    let (text, worst) = seconds(values);
    Row::new("`kill -9` of an agent → replacement answers", "≤ 5 s", text).kept(worst <= 5.0)
}
