//! Commands that only tell: `status`, `nodes`, `ps`, `why`.

use std::fmt::Write as _;

use argh::FromArgs;
use dugnad_fabric::Bytes;
use dugnad_kernel::Id;
use serde_json::Value;

use super::table::{Table, plain};
use super::{ASK_LIMIT, Cx, Failure, Outcome, within};
use crate::clock::now_unix;
use crate::control::exit;

/// how this node is, what it gives and what it has promised
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "status", example = "{command_name} -o json")]
pub(super) struct Status {}

/// the nodes of the community
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "nodes", example = "{command_name} -o json")]
pub(super) struct Nodes {}

/// the services of the community and where their replicas are
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "ps", example = "{command_name} -o json")]
pub(super) struct Ps {}

/// why a service is where it is
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "why", example = "{command_name} wiki")]
pub(super) struct Why {
    #[argh(positional)]
    pub(super) service: String,
}

/// which node answers for a key of the ring, and how far the question travelled
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "lookup", example = "{command_name} wiki")]
pub(super) struct Lookup {
    /// a service's name, or 32 hexadecimal digits
    #[argh(positional)]
    pub(super) key: String,
}

/// which node this is, and of which community
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "whoami", example = "{command_name} -o json")]
pub(super) struct Whoami {}

/// Asks for one value; prints it if it was wanted as JSON, returns it otherwise.
pub(super) fn tell(cx: &mut Cx<'_>, path: &str) -> Result<Option<Value>, Failure> {
    let client = cx.client()?;
    let answered = smol::block_on(within(ASK_LIMIT, client.get(path)))?;
    let value = cx.whole(answered);
    if cx.json {
        cx.print_json(&value)?;
        return Ok(None);
    }
    Ok(Some(value))
}

/// `7Q2F-attic`, as people name a node.
pub(super) fn label(id: &Value, name: &Value) -> String {
    let short = id.as_str().and_then(|id| u128::from_str_radix(id, 16).ok());
    let short = short.map_or_else(|| "?".to_owned(), |id| Id(id).short().to_string());
    name.as_str().map_or(short.clone(), |name| plain(&format!("{short}-{name}")))
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

pub(super) fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |bytes| Bytes(bytes).to_string())
}

/// Thousandths of a core as a percentage.
pub(super) fn percent(value: &Value) -> String {
    value.as_u64().map_or_else(
        || "-".to_owned(),
        |millis| match millis % 10 {
            0 => format!("{}%", millis / 10),
            tenth => format!("{}.{tenth}%", millis / 10),
        },
    )
}

/// The two largest units of a time in seconds.
pub(super) fn span(secs: &Value) -> String {
    let Some(secs) = secs.as_u64() else { return "-".to_owned() };
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => format!("{}m {}s", secs / 60, secs % 60),
        3_600..86_400 => format!("{}h {}m", secs / 3_600, secs % 3_600 / 60),
        _ => format!("{}d {}h", secs / 86_400, secs % 86_400 / 3_600),
    }
}

pub(super) fn status(cx: &mut Cx<'_>) -> Outcome {
    let Some(status) = tell(cx, "/v1/status")? else { return Ok(exit::DONE) };
    let bold = cx.bold;
    write!(cx.out, "{}", status_text(&status, bold))?;
    Ok(exit::DONE)
}

pub(super) fn whoami(cx: &mut Cx<'_>) -> Outcome {
    let Some(me) = tell(cx, "/v1/whoami")? else { return Ok(exit::DONE) };
    let node = label(&me["node"], &me["name"]);
    writeln!(cx.out, "{node}  of \"{}\"  dugnad {}", text(&me["community"]), text(&me["version"]))?;
    Ok(exit::DONE)
}

/// Beginnings of the counters that tell of somebody or something that was not let in.
const REFUSALS: [&str; 5] = ["refused_", "frame_", "undecryptable", "handshake_", "wrong_"];

fn status_text(status: &Value, bold: bool) -> String {
    let mut told = format!(
        "{}  {} of \"{}\"  up {}  dugnad {} {}  {} (agent)\n",
        label(&status["node"], &status["name"]),
        text(&status["state"]),
        text(&status["community"]),
        span(&status["up_secs"]),
        text(&status["version"]),
        text(&status["arch"]),
        bytes(&status["memory_bytes"]),
    );
    let way_in = match status["gateway"].as_str() {
        Some(gateway) => format!("http://{}/SERVICE/", plain(gateway)),
        None => "off".to_owned(),
    };
    let size = text(&status["size"]);
    // Writing into a String cannot fail.
    let _: Result<(), std::fmt::Error> = write!(
        told,
        "listens on {}  way in {way_in}  about {size} node{} in the community\n\n",
        text(&status["overlay"]),
        if size == "1" { "" } else { "s" },
    );
    told.push_str(&given(status).text(bold));
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = list("replicas")
        .iter()
        .map(|r| format!("{}/{} ({})", text(&r["service"]), text(&r["replica"]), text(&r["state"])))
        .collect();
    if names.is_empty() {
        names.push("none".to_owned());
    }
    told.push_str(&format!("\nreplicas here: {}\n", names.join(", ")));
    for line in list("services") {
        told.push_str(&format!("{}\n", text(&line)));
    }
    // Who knocked and was not let in, and what came in damaged.
    let refused: Vec<String> = status["counters"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, count)| REFUSALS.iter().any(|r| name.starts_with(r)) && **count != 0)
        .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
        .collect();
    if !refused.is_empty() {
        told.push_str(&format!("refused: {}\n", refused.join(", ")));
    }
    for key in list("not_enforced") {
        told.push_str(&format!("not acted upon yet: {}\n", text(&key)));
    }
    for (_, line) in kept_state(status) {
        told.push_str(&format!("{line}\n"));
    }
    for warning in list("warnings") {
        told.push_str(&format!("warning: {}\n", text(&warning)));
    }
    told
}

/// What the owner gives, and what of it is promised.
fn given(status: &Value) -> Table {
    let mut table = Table::new(["", "CEILING", "PROMISED"]);
    let (gives, promised) = (&status["gives"], &status["promised"]);
    let mut row = |name: &str, key: &str, unit: fn(&Value) -> String| {
        table.row([name.to_owned(), unit(&gives[key]), unit(&promised[key])]);
    };
    row("cpu", "cpu_millis", percent);
    row("memory", "memory_bytes", bytes);
    row("disk", "disk_bytes", bytes);
    row("processes", "processes", text);
    let upload = match &status["upload_bytes_per_sec"] {
        Value::Null => "unlimited".to_owned(),
        rate => format!("{}/s", bytes(rate)),
    };
    table.row(["upload".to_owned(), upload, "-".to_owned()]);
    table
}

pub(super) fn nodes(cx: &mut Cx<'_>) -> Outcome {
    let Some(nodes) = tell(cx, "/v1/nodes")? else { return Ok(exit::DONE) };
    let mut table = Table::new([
        "NODE",
        "ARCH",
        "STATE",
        "LINK",
        "UP",
        "AVAIL",
        "FREE CPU",
        "FREE MEMORY",
        "REPLICAS",
    ]);
    for node in nodes.as_array().into_iter().flatten() {
        let gone = node["state"] == "gone";
        let unless_gone = |cell: String| if gone { "-".to_owned() } else { cell };
        table.row([
            label(&node["node"], &node["name"]),
            text(&node["arch"]),
            text(&node["state"]),
            text(&node["link"]),
            unless_gone(span(&node["up_secs"])),
            unless_gone(available(&node["availability"])),
            unless_gone(percent(&node["free"]["cpu_millis"])),
            unless_gone(bytes(&node["free"]["memory_bytes"])),
            unless_gone(text(&node["replicas"])),
        ]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}

/// How much of the time it is up; with `?` while it was not seen for an hour yet.
fn available(known: &Value) -> String {
    let up = known["up_ppm"].as_u64().unwrap_or(0);
    let sure = if known["seen_hours"].as_u64().unwrap_or(0) == 0 { "?" } else { "" };
    format!("{}.{}%{sure}", up / 10_000, up / 1_000 % 10)
}

pub(super) fn ps(cx: &mut Cx<'_>) -> Outcome {
    let Some(services) = tell(cx, "/v1/ps")? else { return Ok(exit::DONE) };
    let services = services.as_array().cloned().unwrap_or_default();
    if services.is_empty() {
        cx.say("no services yet; start one with: dugnad deploy FILE");
        return Ok(exit::DONE);
    }
    let mut table = Table::new(["SERVICE", "VERSION", "WANT", "READY", "PORT", "WHERE"]);
    for service in &services {
        let replicas = service["replicas"].as_array().into_iter().flatten();
        let mut places: Vec<_> = replicas
            .map(|replica| {
                let node = label(&replica["node"], &replica["node_name"]);
                match replica["state"].as_str() {
                    Some("ready") => node,
                    other => format!("{node} ({})", other.unwrap_or("?")),
                }
            })
            .collect();
        if let Some(taken) = service["state_taken_unix"].as_u64() {
            let age = Value::from(now_unix().saturating_sub(taken));
            places.push(format!("state kept {} ago", span(&age)));
        }
        let stopped = service["stopped"] == true;
        let want = if stopped { "stopped".to_owned() } else { text(&service["want"]) };
        table.row([
            text(&service["service"]),
            text(&service["version"]),
            want,
            text(&service["ready"]),
            text(&service["port"]),
            places.join("  "),
        ]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}

pub(super) fn lookup(args: &Lookup, cx: &mut Cx<'_>) -> Outcome {
    let plain_key = args.key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if args.key.is_empty() || !plain_key {
        let text = format!("\"{}\" is neither a service's name nor 32 digits", args.key);
        return Err(Failure::usage(text));
    }
    let Some(found) = tell(cx, &format!("/v1/lookup/{}", args.key))? else { return Ok(exit::DONE) };
    let hops = found["hops"].as_u64().unwrap_or_default();
    let doubt = if found["certain"] == true { "" } else { ", not certain: the ring is moving" };
    writeln!(
        cx.out,
        "{} answers for it: {hops} hop{}, {:.1} ms{doubt}",
        label(&found["owner"], &found["owner_name"]),
        if hops == 1 { "" } else { "s" },
        found["micros"].as_f64().unwrap_or_default() / 1e3,
    )?;
    Ok(exit::DONE)
}

pub(super) fn why(args: &Why, cx: &mut Cx<'_>) -> Outcome {
    let name = super::services::name(&args.service)?;
    let Some(lines) = tell(cx, &format!("/v1/why/{name}"))? else { return Ok(exit::DONE) };
    for line in lines.as_array().into_iter().flatten() {
        writeln!(cx.out, "{}", text(line))?;
    }
    let client = cx.client()?;
    let status = smol::block_on(within(ASK_LIMIT, client.get("/v1/status")))?.value;
    for kept in kept_state(&status).iter().filter(|(service, _)| service == name) {
        writeln!(cx.out, "{}", kept.1)?;
    }
    Ok(exit::DONE)
}

/// State that is kept on this node: the service, and a line about it.
fn kept_state(status: &Value) -> Vec<(String, String)> {
    let kept = status["kept_state"].as_array().into_iter().flatten();
    let line = |kept: &Value| {
        let (service, since) = (text(&kept["service"]), span(&kept["secs"]));
        let size = kept["bytes"].as_u64().map(|bytes| format!(" ({})", Bytes(bytes)));
        let size = size.unwrap_or_default();
        let line =
            format!("this node keeps the state of {service}{size}, which stopped {since} ago");
        (service, line)
    };
    kept.map(line).collect()
}
