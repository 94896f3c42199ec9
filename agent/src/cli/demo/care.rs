//! What services do by themselves in the demo: a goal becomes replicas, visitors make one grow, and
//! a node that is drained has what it runs taken over.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use super::super::read::text;
use super::super::services::elapsed;
use super::super::{Failure, within};
use super::community::{Community, Node};
use super::{PACE, STEP_LIMIT, Teller, deploy, http};

/// With a goal, and with a load.
pub(super) const SERVICES: [&str; 2] = ["steady", "busy"];
const MOST: u64 = 3;
/// Visitors at a time.
const VISITORS: usize = 4;

/// The two service files; the folder with their page is there.
fn write_services(community: &Community) -> Result<[PathBuf; 2], Failure> {
    let dir = community.dir.join("services");
    let file = |name: &str, wants: String| {
        let path = dir.join(format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\n{wants}\n[artifacts]\nany = \"pages/\"\n\
             [needs]\nmemory = \"8M\"\ncpu = \"1%\"\ndisk = \"1M\"\n"
        );
        fs::write(&path, text).map(|()| path)
    };
    let make = || -> io::Result<[PathBuf; 2]> {
        let load = format!("scale = {{ max = {MOST}, on = \"rps>20\" }}");
        Ok([file(SERVICES[0], "availability = \"99%\"".to_owned())?, file(SERVICES[1], load)?])
    };
    make().map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))
}

pub(super) async fn show(community: &Community, teller: &Teller<'_>) -> Result<(), Failure> {
    let [steady, busy] = write_services(community)?;
    let deployed = within(STEP_LIMIT, deploy(community, teller, steady)).await?;
    teller.say(&format!("  {}", text(&deployed["because"])));
    within(STEP_LIMIT, deploy(community, teller, busy)).await?;
    grow(community, teller).await?;
    drain(community, teller).await
}

/// One service, as its manager tells of it: that asks nobody else, unlike `ps`.
async fn service(node: &Node, name: &str) -> Result<Value, Failure> {
    Ok(node.client.get(&format!("/v1/resolve/{name}")).await?.value)
}

/// Visits until there are as many replicas as may be.
async fn grow(community: &Community, teller: &Teller<'_>) -> Result<(), Failure> {
    let (start, visits) = (Instant::now(), Cell::new(0_u32));
    let visitor = async |number: usize| {
        let node = &community.nodes[number % community.nodes.len()];
        loop {
            if http::get(node.gateway, "/busy/").await.is_ok() {
                visits.set(visits.get() + 1);
            }
            smol::Timer::after(PACE / 2).await;
        }
    };
    let visitors = futures_util::future::join_all((0..VISITORS).map(visitor));
    let visiting = async {
        visitors.await;
        // They never end.
        Err(Failure::failed("nobody visits it"))
    };
    let watching = async {
        loop {
            let busy = service(&community.nodes[0], "busy").await?;
            if busy["ready"].as_u64() >= Some(MOST) {
                return Ok(busy);
            }
            teller.now(&format!("visiting busy: {} ready", text(&busy["ready"])));
            smol::Timer::after(PACE).await;
        }
    };
    let grown = within(STEP_LIMIT, smol::future::or(watching, visiting)).await?;
    let took = elapsed(start.elapsed());
    teller.say(&format!(
        "{} visits made busy grow from 1 replica to {MOST} in {}: {}",
        visits.get(),
        took.trim_start(),
        text(&grown["because"])
    ));
    Ok(())
}

/// Has one node's services run elsewhere, and takes it back.
async fn drain(community: &Community, teller: &Teller<'_>) -> Result<(), Failure> {
    let hello = service(&community.nodes[0], "hello").await?;
    let places = hello["replicas"].as_array().cloned().unwrap_or_default();
    let runs = |node: &&Node| places.iter().any(|replica| replica["node"] == node.id.as_str());
    let Some(node) = community.nodes.iter().skip(1).find(runs) else {
        return Err(Failure::failed("no node runs hello"));
    };
    let start = Instant::now();
    teller.now(&format!("draining {}", node.name));
    within(STEP_LIMIT, node.client.post("/v1/drain?reason=demo", None)).await?;
    let took = start.elapsed();
    for name in super::SERVICES.iter().chain(&SERVICES) {
        let there = service(&community.nodes[0], name).await?;
        let mut left = there["replicas"].as_array().into_iter().flatten();
        let ready = |r: &Value| r["state"] == "ready" && r["node"] == node.id.as_str();
        if left.any(ready) || there["ready"] != there["want"] {
            return Err(Failure::failed(format!("{name} did not move from {}", node.name)));
        }
    }
    let took = elapsed(took);
    teller.say(&format!("drained {}: all it ran runs elsewhere, in {}", node.name, took.trim()));
    within(STEP_LIMIT, node.client.post("/v1/undrain", None)).await?;
    Ok(())
}
