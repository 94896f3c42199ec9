//! Commands about objects: `put`, `get`, `ls`, `rm`, `watch`, `store`, `namespace`.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argh::FromArgs;
use dugnad_fabric::Bytes;
use dugnad_kernel::map::Map;
use dugnad_node::Address;
use dugnad_resource::spec::valid_name;
use serde_json::{Value, json};
use smol::channel::bounded;

use super::read::{label, text};
use super::table::{Table, plain};
use super::{ASK_LIMIT, Cx, Failure, Outcome, setup, within};
use crate::config::units::{Size, Unit};
use crate::control::{BlockSender, exit};
use crate::text::percent_encode;

/// keep a value for the community, under a key
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "put",
    example = "{command_name} notes/today 'we meet at eight'\n\
               {command_name} photos/hall.jpg < hall.jpg"
)]
pub(super) struct Put {
    /// NAMESPACE/PATH
    #[argh(positional)]
    pub(super) key: String,
    /// the value; - or nothing reads it from stdin
    #[argh(positional)]
    pub(super) value: Option<String>,
    /// everybody sees each write before or after every other; a majority of those who keep it has
    /// to be there
    #[argh(switch)]
    pub(super) strong: bool,
    /// of two writes at the same time the later counts; any node will do (this is how a new
    /// namespace is kept if nothing is said)
    #[argh(switch)]
    pub(super) any: bool,
    /// only if the value is at this version
    #[argh(option, arg_name = "version")]
    pub(super) if_version: Option<String>,
    /// only if there is none
    #[argh(switch)]
    pub(super) if_absent: bool,
}

/// print the value under a key
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "get", example = "{command_name} notes/today")]
pub(super) struct Get {
    /// NAMESPACE/PATH
    #[argh(positional)]
    pub(super) key: String,
    /// only if the namespace is strong
    #[argh(switch)]
    pub(super) strong: bool,
    /// only if it is not: from any node that has it; a write of a moment ago may not show
    #[argh(switch)]
    pub(super) any: bool,
}

/// write a value if it is still at a revision; only in a strong namespace
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "cas", example = "{command_name} notes/today 18 'we meet at nine'")]
pub(super) struct Cas {
    /// NAMESPACE/PATH
    #[argh(positional)]
    pub(super) key: String,
    /// the revision it must be at; 0: it must not be there
    #[argh(positional)]
    pub(super) old_revision: u64,
    /// the value; - reads it from stdin
    #[argh(positional)]
    pub(super) value: String,
}

/// list the keys that begin so
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "ls", example = "{command_name} notes/2026")]
pub(super) struct Ls {
    /// NAMESPACE or NAMESPACE/BEGINNING
    #[argh(positional)]
    pub(super) prefix: String,
}

/// print a line at every event of a type, or at every change of the value under a key
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "watch",
    example = "{command_name} 'node.join memory>=1G' --exec ./hook.sh\n\
               {command_name} notes/today --count 1",
    note = "A hook finds the event's type in DUGNAD_EVENT, its attributes in DUGNAD_NAME, and\n\
            all of it as JSON on its stdin. It may run for a minute; the next event waits for it."
)]
pub(super) struct Watch {
    /// a type of events and a condition (see: dugnad types), or NAMESPACE/PATH
    #[argh(positional)]
    pub(super) key: String,
    /// the rest of the condition
    #[argh(positional)]
    pub(super) condition: Vec<String>,
    /// of events: run this program for each
    #[argh(option, arg_name = "program")]
    pub(super) exec: Option<String>,
    /// of events: first those of this time, such as 10m, as far as they are kept
    #[argh(option, arg_name = "duration")]
    pub(super) since: Option<String>,
    /// first a line with how it is now
    #[argh(switch)]
    pub(super) now: bool,
    /// end after so many lines
    #[argh(option, arg_name = "lines")]
    pub(super) count: Option<u64>,
}

/// what the nodes keep, how many copies there are, and what is being repaired
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "store", example = "{command_name} -o json")]
pub(super) struct Store {}

/// how a namespace is kept; with flags, make it or change it
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "namespace",
    example = "{command_name} notes\n{command_name} votes --merge --quota 10M --share ballot\n\
               {command_name} diary --sealed\n\
               {command_name} diary --show-key | ssh attic dugnad namespace diary --key -",
    note = "Values of a sealed namespace are encrypted before they leave this node: nodes that\n\
            keep them see names and sizes. Who loses every copy of the key loses the values."
)]
pub(super) struct Namespace {
    #[argh(positional)]
    pub(super) name: String,
    /// two writes that do not know of each other both stay; only for a new namespace
    #[argh(switch)]
    pub(super) merge: bool,
    /// each write is before or after every other for everybody; only for a new namespace
    #[argh(switch)]
    pub(super) strong: bool,
    /// only nodes that have its key read and write values; only for a new namespace
    #[argh(switch)]
    pub(super) sealed: bool,
    /// print the key as this node has it
    #[argh(switch)]
    pub(super) show_key: bool,
    /// this node has the key from now on; - reads it from stdin
    #[argh(option, arg_name = "key")]
    pub(super) key: Option<String>,
    /// bytes of all its values, such as 500M (default: 256M)
    #[argh(option, arg_name = "size")]
    pub(super) quota: Option<String>,
    /// nobody writes
    #[argh(switch)]
    pub(super) read_only: bool,
    /// people and services may write again
    #[argh(switch)]
    pub(super) writable: bool,
    /// a service whose file names the namespace may use it
    #[argh(option, arg_name = "service")]
    pub(super) share: Vec<String>,
    /// a service may use it no longer
    #[argh(option, arg_name = "service")]
    pub(super) unshare: Vec<String>,
}

/// A long value may take as long as the line needs.
const VALUE_LIMIT: Duration = Duration::from_secs(24 * 3_600);
/// How often it is told how much went.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

fn path(key: &str) -> Result<String, Failure> {
    let parsed = Address::parse(key);
    parsed.map_err(|why| Failure::usage(format!("\"{}\" is no key: {why}", plain(key))))?;
    Ok(format!("/v1/store/{}", percent_encode(key)))
}

/// How the namespace must be kept, as a query.
fn kept(strong: bool, any: bool) -> Result<&'static str, Failure> {
    match (strong, any) {
        (true, true) => Err(Failure::usage("say --strong or --any, not both")),
        (true, false) => Ok("?kept=strong"),
        (false, true) => Ok("?kept=any"),
        (false, false) => Ok(""),
    }
}

pub(super) fn put(args: Put, cx: &mut Cx<'_>) -> Outcome {
    let path = format!("{}{}", path(&args.key)?, kept(args.strong, args.any)?);
    let mut headers = Vec::new();
    if let Some(version) = &args.if_version {
        headers.push(("if-match", version.as_str()));
    }
    if args.if_absent {
        headers.push(("if-none-match", "*"));
    }
    send(&args.key, &path, &headers, args.value, cx)
}

pub(super) fn cas(args: Cas, cx: &mut Cx<'_>) -> Outcome {
    let path = format!("{}?kept=strong", path(&args.key)?);
    let version = format!("{:016x}", args.old_revision);
    let headers = match args.old_revision {
        0 => ("if-none-match", "*"),
        _ => ("if-match", version.as_str()),
    };
    send(&args.key, &path, &[headers], Some(args.value), cx)
}

/// How much there is to read, if stdin is a file.
fn length_of_stdin() -> Option<u64> {
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(meta.len().saturating_sub(file.stream_position().ok()?))
}

/// Writes a value: what was typed, or what comes from stdin.
fn send(
    key: &str,
    path: &str,
    headers: &[(&'static str, &str)],
    value: Option<String>,
    cx: &mut Cx<'_>,
) -> Outcome {
    let client = cx.client()?;
    let typed = value.as_deref().filter(|value| *value != setup::STDIN);
    let length = typed.map_or_else(length_of_stdin, |value| Some(value.len() as u64));
    let length = length.map(|length| length.to_string());
    // What does not fit is refused before it is sent.
    let mut headers = headers.to_vec();
    headers.extend(length.as_deref().map(|length| ("content-length", length)));
    let (blocks, from) = bounded(4);
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let reading = smol::unblock(move || {
        let mut out = BlockSender::new(blocks, counted);
        match value.filter(|value| value != setup::STDIN) {
            Some(value) => io::copy(&mut value.as_bytes(), &mut out)?,
            None => io::copy(&mut io::stdin().lock(), &mut out)?,
        };
        io::Write::flush(&mut out)
    });
    let written = smol::block_on(within(VALUE_LIMIT, async {
        let writing = client.write(path, &headers, Some(from));
        let both = futures_util::future::join(reading, writing);
        let telling = async {
            loop {
                smol::Timer::after(LOOK_AGAIN).await;
                cx.now(&format!("{key}: {}", Bytes(sent.load(Ordering::Relaxed) as u64)));
            }
        };
        let (read, written) = smol::future::or(both, telling).await;
        match read {
            // The agent stopped reading: its answer says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::failed(format!("cannot read the value: {error}")))
            }
            Ok(()) | Err(_) => Ok(written?),
        }
    }))?;
    tell_written(&written.value, "kept", cx)
}

pub(super) fn rm(key: &str, cx: &mut Cx<'_>) -> Outcome {
    let (client, path) = (cx.client()?, path(key)?);
    let written = smol::block_on(within(ASK_LIMIT, client.write(&path, &[], None)))?;
    tell_written(&written.value, "removed", cx)
}

fn tell_written(written: &Value, what: &str, cx: &mut Cx<'_>) -> Outcome {
    if cx.json {
        cx.print_json(written)?;
        return Ok(exit::DONE);
    }
    if let Some(revision) = written["revision"].as_u64() {
        let where_to = match written["members"].as_u64() {
            Some(1) => "on one node".to_owned(),
            members => format!("on a majority of {} nodes", members.unwrap_or_default()),
        };
        cx.say(format!("ok rev {revision}: {} {what} {where_to}", text(&written["key"])));
        return Ok(exit::DONE);
    }
    let (copies, wanted) = (written["copies"].as_u64(), written["wanted"].as_u64());
    let few = if copies < wanted { "; the others hear of it when they are back" } else { "" };
    let nodes = if copies == Some(1) { "node" } else { "nodes" };
    let version = written["version"].as_str();
    let version =
        version.map_or_else(String::new, |version| format!(", version {}", plain(version)));
    cx.say(format!(
        "{} {what} on {} {nodes}{version}{few}",
        text(&written["key"]),
        text(&written["copies"]),
    ));
    Ok(exit::DONE)
}

pub(super) fn get(args: &Get, cx: &mut Cx<'_>) -> Outcome {
    let path = format!("{}{}", path(&args.key)?, kept(args.strong, args.any)?);
    let client = cx.client()?;
    smol::block_on(within(VALUE_LIMIT, async {
        let mut bulk = client.read(&path).await?;
        if !bulk.several && !cx.json {
            while let Some(bytes) = bulk.next().await? {
                cx.out.write_all(&bytes)?;
            }
            cx.out.flush()?;
            return Ok(exit::DONE);
        }
        let (several, version) = (bulk.several, bulk.version.clone());
        let mut all = Vec::new();
        while let Some(bytes) = bulk.next().await? {
            all.extend_from_slice(&bytes);
            if all.len() > JSON_MAX {
                let text = "the value is too long for JSON; get it without -o json";
                return Err(Failure::failed(text));
            }
        }
        let values = if several {
            let value: Value = serde_json::from_slice(&all).unwrap_or_default();
            value["values"].as_array().cloned().unwrap_or_default()
        } else {
            vec![match String::from_utf8(all) {
                Ok(text) => json!({ "text": text }),
                Err(_) => {
                    return Err(Failure::failed("the value is no text; get it without -o json"));
                }
            }]
        };
        if cx.json {
            let mut told = json!({ "key": args.key, "version": version, "values": values });
            if let Some(revision) = bulk.revision {
                told["revision"] = json!(revision);
            }
            cx.print_json(&told)?;
            return Ok(exit::DONE);
        }
        for value in &values {
            let shown = if value["hex"].is_null() { &value["text"] } else { &value["hex"] };
            writeln!(cx.out, "{}", shown.as_str().unwrap_or_default())?;
        }
        cx.say(format!(
            "{} values stand beside each other: whoever wrote one did not know of the others; \
             put one to take their place",
            values.len()
        ));
        Ok(exit::DONE)
    }))
}

/// A value as JSON is whole in memory.
const JSON_MAX: usize = 1 << 20;

pub(super) fn ls(args: &Ls, cx: &mut Cx<'_>) -> Outcome {
    let (namespace, prefix) = args.prefix.split_once('/').unwrap_or((&args.prefix, ""));
    valid_name(namespace).map_err(|_| {
        Failure::usage(format!("\"{}\" begins no key: NAMESPACE/BEGINNING", plain(&args.prefix)))
    })?;
    let client = cx.client()?;
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let (prefix, from) = (percent_encode(prefix), percent_encode(&after));
        let path = format!("/v1/store/{namespace}?prefix={prefix}&after={from}");
        let answered = smol::block_on(within(ASK_LIMIT, client.get(&path)))?;
        let page = cx.whole(answered);
        all.extend(page["objects"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) if *next > *after => after = next.to_owned(),
            _ => break,
        }
    }
    if cx.json {
        cx.print_json(&Value::Array(all))?;
        return Ok(exit::DONE);
    }
    let mut table = Table::new(["KEY", "SIZE", "VALUES", "WRITTEN"]);
    for object in &all {
        table.row([
            text(&object["key"]),
            object["bytes"].as_u64().map_or_else(|| "-".to_owned(), |n| Bytes(n).to_string()),
            text(&object["values"]),
            object["modified_unix_ms"].as_u64().map_or_else(|| "-".to_owned(), date),
        ]);
    }
    let shown = if all.is_empty() { String::new() } else { table.text(cx.bold) };
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}

/// A time of day as people read it, to the second.
fn date(unix_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

pub(super) fn watch(args: &Watch, cx: &mut Cx<'_>) -> Outcome {
    if args.exec.is_some() || args.since.is_some() || !args.condition.is_empty() {
        let text = "of a key there are --now and --count; see: dugnad help watch";
        return Err(Failure::usage(text));
    }
    let now = if args.now { "now" } else { "1" };
    let (client, path) = (cx.client()?, format!("{}?watch={now}", path(&args.key)?));
    smol::block_on(async {
        let mut lines = client.get_lines(&path).await?;
        let mut left = args.count;
        while left != Some(0) {
            let Some(line) = lines.next().await? else {
                return Err(Failure::failed("the agent ended the watch; watch again"));
            };
            if cx.json {
                cx.print_json(&line)?;
            } else {
                writeln!(cx.out, "{}", change(&line))?;
            }
            // Each line is worth seeing when it comes, also through a pipe.
            cx.out.flush()?;
            left = left.map(|left| left.saturating_sub(1));
        }
        Ok(exit::DONE)
    })
}

fn change(line: &Value) -> String {
    let key = text(&line["key"]);
    if let Value::String(error) = &line["error"] {
        return format!("{key} ({})", plain(error));
    }
    let what = match (&line["text"], &line["hex"], &line["bytes"]) {
        (Value::String(value), ..) => plain(value),
        (_, Value::String(hex), _) => plain(hex),
        (.., Value::Number(bytes)) => format!("({})", Bytes(bytes.as_u64().unwrap_or_default())),
        _ if line["removed"] == true => "(removed)".to_owned(),
        _ => format!("({} values)", text(&line["values"])),
    };
    format!("{key} {what}")
}

pub(super) fn store(cx: &mut Cx<'_>) -> Outcome {
    let Some(nodes) = super::read::tell(cx, "/v1/store")? else { return Ok(exit::DONE) };
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let sum = |key: &str| nodes.iter().filter_map(|node| node[key].as_u64()).sum::<u64>();
    let bytes = |value: &Value| Bytes(value.as_u64().unwrap_or_default()).to_string();
    let mut table =
        Table::new(["NODE", "GIVES", "USED", "KEYS", "COPIES", "PACKAGES", "REPAIRING"]);
    for node in &nodes {
        let repairing = match (node["missing"].as_u64(), node["uncompared"].as_u64()) {
            (Some(0), Some(0)) => "-".to_owned(),
            (Some(0), _) => "comparing".to_owned(),
            (missing, _) => format!("{} to fetch", missing.unwrap_or_default()),
        };
        table.row([
            label(&node["node"], &node["name"]),
            bytes(&node["given_bytes"]),
            bytes(&node["used_bytes"]),
            text(&node["keys"]),
            text(&node["copies"]),
            text(&node["trees"]),
            repairing,
        ]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    let (keys, copies) = (sum("keys"), sum("copies"));
    if keys > 0 {
        let degree = copies as f64 / keys as f64;
        writeln!(
            cx.out,
            "\n{keys} keys, each on {degree:.1} nodes in the mean of {}",
            nodes.len()
        )?;
    }
    let mut namespaces = Table::new(["NAMESPACE", "KEYS", "SIZE"]);
    let all = by_namespace(&nodes);
    for (name, keys, bytes) in &all {
        namespaces.row([name.clone(), keys.to_string(), Bytes(*bytes).to_string()]);
    }
    if !all.is_empty() {
        let shown = namespaces.text(cx.bold);
        write!(cx.out, "\n{shown}")?;
    }
    Ok(exit::DONE)
}

/// Keys and bytes of each namespace, over all nodes.
fn by_namespace(nodes: &[Value]) -> Vec<(String, u64, u64)> {
    let mut all: Map<String, (u64, u64)> = Map::new();
    let each = nodes.iter().filter_map(|node| node["namespaces"].as_array()).flatten();
    for namespace in each {
        let sums = all.entry(text(&namespace["namespace"])).or_default();
        sums.0 += namespace["keys"].as_u64().unwrap_or_default();
        sums.1 += namespace["bytes"].as_u64().unwrap_or_default();
    }
    all.into_iter().map(|(name, (keys, bytes))| (name, keys, bytes)).collect()
}

pub(super) fn namespace(args: &Namespace, cx: &mut Cx<'_>) -> Outcome {
    let name = &args.name;
    valid_name(name).map_err(|why| Failure::usage(format!("\"{}\": {why}", plain(name))))?;
    if args.show_key || args.key.is_some() {
        return namespace_key(args, cx);
    }
    if args.read_only && args.writable {
        return Err(Failure::usage("say --read-only or --writable, not both"));
    }
    let quota = match &args.quota {
        Some(text) => {
            let size =
                Size::parse(text).map_err(|why| Failure::usage(format!("--quota: {why}")))?;
            Some(size.0)
        }
        None => None,
    };
    let (client, path) = (cx.client()?, format!("/v1/namespaces/{name}"));
    if args.merge && args.strong {
        return Err(Failure::usage("say --merge or --strong, not both"));
    }
    let changes = args.merge
        || args.strong
        || args.sealed
        || quota.is_some()
        || args.read_only
        || args.writable
        || !args.share.is_empty()
        || !args.unshare.is_empty();
    let known = smol::block_on(within(ASK_LIMIT, client.get(&path)));
    let told = if changes {
        // One that is not there yet begins plain.
        let mut said = known.map_or_else(|_| json!({}), |known| known.value);
        for (wanted, name) in
            [(args.merge, "merge"), (args.strong, "strong"), (args.sealed, "sealed")]
        {
            if wanted {
                said[name] = json!(true);
            }
        }
        if let Some(quota) = quota {
            said["quota_bytes"] = json!(quota);
        }
        if args.read_only || args.writable {
            said["read_only"] = json!(args.read_only);
        }
        let before = said["shared"].as_array().cloned().unwrap_or_default();
        let before = before.iter().filter_map(Value::as_str).map(str::to_owned);
        let mut shared: Vec<String> = before.chain(args.share.iter().cloned()).collect();
        shared.retain(|service| !args.unshare.contains(service));
        shared.sort();
        shared.dedup();
        said["shared"] = json!(shared);
        smol::block_on(within(ASK_LIMIT, client.put(&path, &said)))?.value
    } else {
        known?.value
    };
    tell_namespace(&told, cx)?;
    if args.sealed && !cx.json && told["key_here"] == true {
        let keep = "whoever loses every copy of its key loses what is in it; keep one elsewhere:";
        cx.say(format!("{keep} dugnad namespace {name} --show-key"));
    }
    Ok(exit::DONE)
}

fn tell_namespace(told: &Value, cx: &mut Cx<'_>) -> Outcome {
    if cx.json {
        cx.print_json(told)?;
    } else {
        writeln!(cx.out, "{}", namespace_text(told))?;
    }
    Ok(exit::DONE)
}

/// The key of a sealed namespace: from this node, or to it.
fn namespace_key(args: &Namespace, cx: &mut Cx<'_>) -> Outcome {
    let (client, path) = (cx.client()?, format!("/v1/namespaces/{}/key", args.name));
    let Some(key) = &args.key else {
        let told = smol::block_on(within(ASK_LIMIT, client.get(&path)))?.value;
        if cx.json {
            cx.print_json(&told)?;
        } else {
            writeln!(cx.out, "{}", text(&told["key"]))?;
        }
        return Ok(exit::DONE);
    };
    let key = match key.as_str() {
        setup::STDIN => {
            let mut line = String::new();
            let read = io::BufRead::read_line(&mut io::stdin().lock(), &mut line);
            read.map_err(|error| Failure::failed(format!("cannot read the key: {error}")))?;
            line
        }
        given => given.to_owned(),
    };
    let said = json!({ "key": key.trim() });
    let told = smol::block_on(within(ASK_LIMIT, client.put(&path, &said)))?;
    tell_namespace(&told.value, cx)
}

fn namespace_text(told: &Value) -> String {
    let manner = match (&told["merge"], &told["strong"]) {
        (Value::Bool(true), _) => "concurrent values stay",
        (_, Value::Bool(true)) => "strong",
        _ => "the last write counts",
    };
    let open = if told["read_only"] == true { "read-only" } else { "writable" };
    let quota = Bytes(told["quota_bytes"].as_u64().unwrap_or_default());
    let shared = told["shared"].as_array().cloned().unwrap_or_default();
    let shared = match shared.as_slice() {
        [] => String::new(),
        some => {
            let names: Vec<String> = some.iter().map(text).collect();
            format!(", shared with {}", names.join(", "))
        }
    };
    let sealed = match (told["seal"].is_string(), &told["key_here"]) {
        (false, _) => "",
        (true, Value::Bool(true)) => ", sealed (this node has the key)",
        (true, _) => ", sealed (this node does not have the key)",
    };
    format!("{}: {manner}, {open}, up to {quota}{sealed}{shared}", text(&told["namespace"]))
}
