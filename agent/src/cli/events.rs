//! Commands about events: `watch TYPE`, `types`, `publish`, `type define`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use argh::FromArgs;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::objects::Watch;
use super::read::{tell, text};
use super::table::Table;
use super::{ASK_LIMIT, Cx, Failure, Outcome, duration, within};
use crate::config::file;
use crate::control::exit;
use crate::text::percent_encode;

/// the types of events there are, and what their events say
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "types", example = "{command_name} -o json")]
pub(super) struct Types {}

/// tell whoever subscribed that something happened
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "publish",
    example = "{command_name} sensor.temperature celsius=21 room=attic"
)]
pub(super) struct Publish {
    /// a type; see: dugnad types
    #[argh(positional, arg_name = "type")]
    pub(super) name: String,
    /// what its attributes are: NAME=VALUE
    #[argh(positional)]
    pub(super) values: Vec<String>,
}

/// define a type of events
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "type", example = "{command_name} define sensor.toml")]
pub(super) struct Type {
    #[argh(positional)]
    pub(super) verb: String,
    /// a file with type = "..", parents = [..] and [attributes] NAME = "number", "size", "cpu",
    /// "share", "time", "text" or "words"
    #[argh(positional)]
    pub(super) file: PathBuf,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    r#type: String,
    #[serde(default)]
    parents: Vec<String>,
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, String>,
}

/// How long one hook may run.
const HOOK: Duration = Duration::from_secs(60);
/// How often it is looked whether a hook has ended.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before a broken subscription is taken up again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) fn types(cx: &mut Cx<'_>) -> Outcome {
    let Some(types) = tell(cx, "/v1/types")? else { return Ok(exit::DONE) };
    let mut table = Table::new(["TYPE", "PARENTS", "ATTRIBUTES OF ITS OWN"]);
    for known in types.as_array().into_iter().flatten() {
        let parents: Vec<String> =
            known["parents"].as_array().into_iter().flatten().map(text).collect();
        let attributes = known["attributes"].as_object().into_iter().flatten();
        let mut attributes: Vec<_> =
            attributes.map(|(name, kind)| format!("{name}:{}", text(kind))).collect();
        if attributes.len() > 8 {
            let more = attributes.len() - 6;
            attributes.truncate(6);
            attributes.push(format!("and {more} more, as `dugnad describe` has them"));
        }
        let list = |all: Vec<String>| if all.is_empty() { "-".to_owned() } else { all.join(" ") };
        table.row([text(&known["type"]), list(parents), list(attributes)]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}

pub(super) fn define(args: &Type, cx: &mut Cx<'_>) -> Outcome {
    if args.verb != "define" {
        let text = format!("of a type there is `define`, not \"{}\"; see: dugnad types", args.verb);
        return Err(Failure::usage(text));
    }
    let failed = |error: file::Error| Failure::failed(error.to_string());
    let typed = file::read(&args.file).map_err(failed)?;
    let raw: Raw = file::parse(&args.file, &typed).map_err(failed)?;
    let body = json!({ "type": raw.r#type, "parents": raw.parents, "attributes": raw.attributes });
    smol::block_on(within(ASK_LIMIT, cx.client()?.post("/v1/types", Some(&body))))?;
    cx.say(format!("{} is defined; watch it with: dugnad watch {0}", raw.r#type));
    Ok(exit::DONE)
}

pub(super) fn publish(args: &Publish, cx: &mut Cx<'_>) -> Outcome {
    let mut attributes = Map::new();
    for pair in &args.values {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Failure::usage(format!("\"{pair}\" is not NAME=VALUE")));
        };
        if attributes.insert(name.to_owned(), json!(value)).is_some() {
            return Err(Failure::usage(format!("{name} is said twice")));
        }
    }
    let path = format!("/v1/events/{}", percent_encode(&args.name));
    let body = json!({ "attributes": attributes });
    let told = smol::block_on(within(ASK_LIMIT, cx.client()?.post(&path, Some(&body))))?.value;
    if cx.json {
        cx.print_json(&told)?;
    }
    Ok(exit::DONE)
}

/// Prints a line for each event, or runs a program.
pub(super) fn watch(args: &Watch, cx: &mut Cx<'_>) -> Outcome {
    let words: Vec<&str> =
        [&args.key].into_iter().chain(&args.condition).map(String::as_str).collect();
    let filter = percent_encode(&words.join(" "));
    let since = args.since.as_deref().map(|since| duration("--since", since)).transpose()?;
    let mut begin = since.map_or(String::new(), |span| format!("&since={}", span.as_secs()));
    let (client, mut left) = (cx.client()?, args.count);
    let mut began = false;
    while left != Some(0) {
        let path = format!("/v1/events?filter={filter}{begin}");
        let ended = smol::block_on(async {
            let mut lines = client.get_lines(&path).await?;
            if !std::mem::replace(&mut began, true) {
                cx.say(format!("watching {}; Ctrl-C ends it", args.key));
            }
            while left != Some(0) {
                let Some(event) = lines.next().await? else { return Ok(()) };
                if let Some(cursor) = event["cursor"].as_str() {
                    begin = format!("&after={}", percent_encode(cursor));
                }
                left = left.map(|left| left.saturating_sub(1));
                show(args, &event, cx)?;
            }
            Ok::<_, Failure>(())
        });
        match ended {
            // It was too slow, or the agent ended: it goes on where it left off.
            Err(failure) if !began || failure.exit != exit::NO_AGENT => return Err(failure),
            Ok(()) if left == Some(0) => break,
            Ok(()) | Err(_) => {
                cx.say("the subscription broke off; it goes on where it was");
                std::thread::sleep(AGAIN);
            }
        }
    }
    Ok(exit::DONE)
}

fn show(args: &Watch, event: &Value, cx: &mut Cx<'_>) -> Result<(), Failure> {
    if let Some(lost) = event["lost"].as_u64() {
        cx.say(format!(
            "{lost} events of {} were dropped before they were read",
            text(&event["of"])
        ));
        return Ok(());
    }
    match &args.exec {
        Some(hook) => run(hook, event, cx),
        None if cx.json => cx.print_json(event)?,
        None => writeln!(cx.out, "{}", line(event))?,
    }
    // Each line is worth seeing when it comes, also through a pipe.
    Ok(cx.out.flush()?)
}

fn line(event: &Value) -> String {
    let ms = event["at_unix_ms"].as_u64().unwrap_or_default();
    let at = std::time::UNIX_EPOCH + Duration::from_millis(ms);
    let attributes = event["attributes"].as_object().into_iter().flatten();
    let all: Vec<_> = attributes.map(|(name, value)| format!("{name}={}", plain(value))).collect();
    format!("{} {} {}", humantime::format_rfc3339_seconds(at), text(&event["type"]), all.join(" "))
}

/// A value as it can be typed again.
fn plain(value: &Value) -> String {
    let shown = match value {
        Value::Array(words) => words.iter().map(text).collect::<Vec<_>>().join(" "),
        other => text(other),
    };
    if shown.contains(' ') || shown.is_empty() { format!("\"{shown}\"") } else { shown }
}

/// Runs a program for an event: attributes in its environment, all of it on its stdin. What goes
/// wrong is said, and the next event comes.
fn run(hook: &str, event: &Value, cx: &mut Cx<'_>) {
    let mut command = Command::new(hook);
    command.stdin(Stdio::piped()).env("DUGNAD_EVENT", text(&event["type"]));
    for (name, value) in event["attributes"].as_object().into_iter().flatten() {
        command.env(format!("DUGNAD_{}", name.to_uppercase()), plain(value).trim_matches('"'));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return cx.say(format!("{hook}: cannot be run: {error}")),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read it.
        _ = writeln!(stdin, "{event}");
    }
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return cx.say(format!("{hook}: {status}")),
            Err(error) => return cx.say(format!("{hook}: {error}")),
            Ok(None) if begin.elapsed() > HOOK => {
                // It may end in this moment.
                _ = child.kill();
                _ = child.wait();
                let limit = humantime::format_duration(HOOK);
                return cx.say(format!("{hook}: killed after {limit}"));
            }
            Ok(None) => std::thread::sleep(LOOK),
        }
    }
}
