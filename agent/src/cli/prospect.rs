//! Looking for nodes: `find`, `describe`, `census`.

use std::collections::BTreeMap;

use argh::FromArgs;
use dugnad_fabric::Bytes;
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::{Condition, Kind};
use serde_json::Value;

use super::read::{bytes, label, percent, span, tell, text};
use super::table::Table;
use super::{Cx, Failure, Outcome};
use crate::control::exit;
use crate::text::percent_encode;

/// nodes that meet a condition
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "find",
    example = "{command_name} 'memory>=256M arch=aarch64 zone!=attic tags~solar' --limit 3",
    note = "A condition is one or more of NAME=VALUE, !=, >=, <=, >, <, NAME~WORD, NAME!~WORD,\n\
            NAME in A,B, NAME prefix TEXT, NAME exists; all must hold.\n\
            `dugnad describe` shows the names."
)]
pub(super) struct Find {
    /// what must be true of a node; nothing is true of all
    #[argh(positional, greedy)]
    pub(super) condition: Vec<String>,
    /// so many are enough (default: 256)
    #[argh(option, arg_name = "nodes")]
    pub(super) limit: Option<u16>,
}

/// what conditions can ask of a node, and how it stands
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "describe", example = "{command_name} attic")]
pub(super) struct Describe {
    /// its name, or as `dugnad nodes` names it; without, the node that is asked
    #[argh(positional)]
    pub(super) node: Option<String>,
}

/// what the community has in all
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "census", example = "{command_name} -o json")]
pub(super) struct Census {}

pub(super) fn find(args: &Find, cx: &mut Cx<'_>) -> Outcome {
    let (limit, typed) = limit(args)?;
    Condition::parse(&typed, &NODE).map_err(|error| Failure::usage(error.to_string()))?;
    let path = format!("/v1/find?where={}&limit={limit}", percent_encode(&typed));
    let Some(found) = tell(cx, &path)? else { return Ok(exit::DONE) };
    let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
    if nodes.is_empty() {
        let text = format!("no node meets this{}; see: dugnad describe", cost(&found));
        return Err(Failure::new(exit::UNMET, text));
    }
    let mut table = Table::new([
        "NODE",
        "ZONE",
        "ARCH",
        "CORES",
        "FREE CPU",
        "FREE MEMORY",
        "FREE DISK",
        "REPLICAS",
        "TAGS",
    ]);
    for node in &nodes {
        let has = &node["attributes"];
        table.row([
            label(&node["node"], &node["name"]),
            text(&has["zone"]),
            text(&has["arch"]),
            text(&has["cores"]),
            percent(&has["cpu"]),
            bytes(&has["memory"]),
            bytes(&has["disk"]),
            text(&has["replicas"]),
            words(&has["tags"]),
        ]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    let count = nodes.len();
    cx.say(format!("{count} node{}{}", if count == 1 { "" } else { "s" }, cost(&found)));
    Ok(exit::DONE)
}

/// How many are wanted, and the condition. argh takes all that stands behind the first word of
/// the condition for part of it, `--limit` too.
fn limit(args: &Find) -> Result<(u16, String), Failure> {
    let mut limit = args.limit.unwrap_or(dugnad_node::WANT_MAX);
    let mut typed: Vec<&str> = Vec::new();
    let mut said = args.condition.iter();
    while let Some(word) = said.next() {
        let value = match (word.as_str(), word.strip_prefix("--limit=")) {
            ("--limit", _) => said.next().map(String::as_str),
            (_, Some(value)) => Some(value),
            (word, None) => {
                typed.push(word);
                continue;
            }
        };
        let number = value.and_then(|value| value.parse().ok());
        limit = number.ok_or_else(|| Failure::usage("--limit needs a number of nodes"))?;
    }
    if !(1..=dugnad_node::WANT_MAX).contains(&limit) {
        let text = format!("--limit is 1 to {}", dugnad_node::WANT_MAX);
        return Err(Failure::usage(text));
    }
    Ok((limit, typed.join(" ")))
}

/// What an answer cost.
fn cost(found: &Value) -> String {
    format!(
        "; {} asked, {} messages, {:.1} ms, each answered for itself now",
        text(&found["asked"]),
        text(&found["messages"]),
        found["micros"].as_f64().unwrap_or_default() / 1e3,
    )
}

fn words(value: &Value) -> String {
    let all: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

pub(super) fn describe(args: &Describe, cx: &mut Cx<'_>) -> Outcome {
    let found = match &args.node {
        None => {
            let me =
                smol::block_on(super::within(super::ASK_LIMIT, cx.client()?.get("/v1/whoami")))?;
            let id = me.value["node"].as_str().and_then(|id| u128::from_str_radix(id, 16).ok());
            let short = id.map(|id| dugnad_kernel::Id(id).short().to_string());
            known(cx, &format!("node={}", short.unwrap_or_default()))?
        }
        Some(node) => named(cx, node)?,
    };
    let Some(node) = found else {
        let node = args.node.as_deref().unwrap_or("this one");
        let text = format!("no node of the community answers to \"{node}\"; see: dugnad nodes");
        return Err(Failure::failed(text));
    };
    if cx.json {
        cx.print_json(&node)?;
        return Ok(exit::DONE);
    }
    let mut table = Table::new(["ATTRIBUTE", "VALUE"]);
    for attribute in NODE {
        let value = &node["attributes"][attribute.name];
        let shown = match attribute.kind {
            _ if value.is_null() => "-".to_owned(),
            // Which programs it has it says of those it is asked for.
            Kind::Words if attribute.name == "programs" => "(ask: programs~NAME)".to_owned(),
            Kind::Bytes if attribute.name == "uplink" => format!("{}/s", bytes(value)),
            Kind::Bytes => bytes(value),
            Kind::Cpu => percent(value),
            Kind::Share => share(value),
            Kind::Seconds => span(value),
            Kind::Count | Kind::Text => text(value),
            Kind::Words => words(value),
        };
        table.row([attribute.name.to_owned(), shown]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}

/// Millionths as a percentage.
fn share(value: &Value) -> String {
    let millionths = value.as_u64().unwrap_or_default();
    format!("{}.{}%", millionths / 10_000, millionths % 10_000 / 1_000)
}

/// A node by its name, by four characters of its id, or by both as `nodes` shows them.
fn named(cx: &mut Cx<'_>, node: &str) -> Result<Option<Value>, Failure> {
    if node.is_empty() || node.contains(['"', '/']) || node.contains(char::is_control) {
        return Err(Failure::usage(format!("\"{node}\" is no name of a node")));
    }
    if let Some(found) = known(cx, &format!("name=\"{node}\""))? {
        return Ok(Some(found));
    }
    let (short, name) = node.split_once('-').map_or((node, None), |(s, n)| (s, Some(n)));
    let name = name.map_or(String::new(), |name| format!(" name=\"{name}\""));
    known(cx, &format!("node=\"{}\"{name}", short.to_uppercase()))
}

/// The first node that meets a condition.
fn known(cx: &Cx<'_>, condition: &str) -> Result<Option<Value>, Failure> {
    let path = format!("/v1/find?where={}&limit=1", percent_encode(condition));
    let client = cx.client()?;
    let found = smol::block_on(super::within(super::ASK_LIMIT, client.get(&path)))?.value;
    Ok(found["nodes"].as_array().and_then(|nodes| nodes.first()).cloned())
}

/// What nodes of one kind have together.
#[derive(Default)]
struct Sum {
    nodes: u64,
    cores: u64,
    replicas: u64,
    gives: [u64; 3],
    free: [u64; 3],
}

impl Sum {
    fn add(&mut self, node: &Value) {
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        self.nodes += 1;
        self.cores += number(&node["cores"]);
        self.replicas += number(&node["replicas"]);
        for (at, key) in ["cpu_millis", "memory_bytes", "disk_bytes"].into_iter().enumerate() {
            self.gives[at] += number(&node["gives"][key]);
            self.free[at] += number(&node["free"][key]);
        }
    }

    fn row(&self, name: String) -> [String; 7] {
        let of = |at: usize| format!("{} of {}", Bytes(self.free[at]), Bytes(self.gives[at]));
        let cpu = |value: u64| percent(&Value::from(value));
        [
            name,
            self.nodes.to_string(),
            self.cores.to_string(),
            format!("{} of {}", cpu(self.free[0]), cpu(self.gives[0])),
            of(1),
            of(2),
            self.replicas.to_string(),
        ]
    }
}

pub(super) fn census(cx: &mut Cx<'_>) -> Outcome {
    let Some(found) = tell(cx, "/v1/census")? else { return Ok(exit::DONE) };
    let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
    let (mut kinds, mut zones): (BTreeMap<String, Sum>, BTreeMap<String, u64>) = Default::default();
    let (mut all, mut up) = (Sum::default(), [0_u64; 10]);
    for node in &nodes {
        kinds.entry(text(&node["arch"])).or_default().add(node);
        all.add(node);
        *zones.entry(text(&node["zone"])).or_default() += 1;
        let tenth = node["up_millionths"].as_u64().unwrap_or_default() / 100_000;
        up[usize::try_from(tenth).unwrap_or_default().min(9)] += 1;
    }
    let mut table =
        Table::new(["ARCH", "NODES", "CORES", "FREE CPU", "FREE MEMORY", "FREE DISK", "REPLICAS"]);
    for (kind, sum) in &kinds {
        table.row(sum.row(kind.clone()));
    }
    table.row(all.row("all".to_owned()));
    let mut told = table.text(cx.bold);
    let zones: Vec<_> = zones.iter().map(|(zone, count)| format!("{zone} {count}")).collect();
    told.push_str(&format!("\nzones: {}\n", zones.join(", ")));
    let up: Vec<_> = up
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(tenth, count)| format!("{}-{}% {count}", tenth * 10, tenth * 10 + 10))
        .collect();
    told.push_str(&format!("up: {} (assumed, not measured yet)\n", up.join(", ")));
    write!(cx.out, "{told}")?;
    cx.say(format!("{} nodes{}", nodes.len(), cost(&found)));
    Ok(exit::DONE)
}
