//! Other overlays beside ours: libp2p's Kademlia and mainline. A program of its own measures them
//!, `dht/`; it is built here, which takes minutes the first time.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Row;
use crate::overlay::NODES;

const LOOKUPS: usize = 200;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dht")
}

pub(crate) fn rows() -> Vec<Row> {
    let manifest = folder().join("Cargo.toml");
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--manifest-path"]).arg(&manifest);
    command.args(["--", &NODES.to_string(), &LOOKUPS.to_string()]);
    let text = match command.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            let last = error.lines().last().unwrap_or("it says nothing");
            return vec![Row::new("other overlays", "", format!("not measured: {last}"))];
        }
        Err(error) => return vec![Row::new("other overlays", "", format!("cargo: {error}"))],
    };
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, requests, p50, p99] = words[..] else {
                return Row::new("other overlays", "", line.to_owned());
            };
            Row::new(
                format!("the same of {name}, {NODES} nodes in one process"),
                "",
                format!("{requests} requests a lookup; p50 {p50} ms, p99 {p99} ms"),
            )
        })
        .collect()
}
