//! Commands that follow: `logs`, `events`.

use argh::FromArgs;
use serde_json::Value;

use super::read::text;
use super::services::LOOK_UP;
use super::{Cx, Outcome, within};
use crate::control::{Client, exit};

/// what a service wrote to its stdout and stderr
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "logs", example = "{command_name} wiki -f --tail 20")]
pub(super) struct Logs {
    #[argh(positional)]
    pub(super) service: String,
    /// go on with what is written from now on
    #[argh(switch, short = 'f')]
    pub(super) follow: bool,
    /// how many of the last lines (default: 100)
    #[argh(option, default = "100", arg_name = "lines")]
    pub(super) tail: u32,
}

/// what happened in the community, as this node saw it
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "events", example = "{command_name} -f")]
pub(super) struct Events {
    /// go on with what happens from now on
    #[argh(switch, short = 'f')]
    pub(super) follow: bool,
}

pub(super) fn logs(args: &Logs, cx: &mut Cx<'_>) -> Outcome {
    let name = super::services::name(&args.service)?;
    let follow = u8::from(args.follow);
    // Log lines are the service's own bytes: printed as they are, behind the number of the replica
    // where there are several.
    let several = smol::block_on(replicas(&cx.client()?, name)) > 1;
    print(cx, &format!("/v1/logs/{name}?tail={}&follow={follow}", args.tail), |line| {
        let text = line["line"].as_str().unwrap_or_default();
        // Beyond all numbers: not a replica speaks, but the node that could not read its log.
        match line["replica"].as_u64().filter(|number| *number < u64::from(u32::MAX)) {
            Some(number) if several => format!("{number} | {text}"),
            Some(_) | None => text.to_owned(),
        }
    })
}

/// How many replicas a service has; 0 if nobody says so soon.
async fn replicas(client: &Client, service: &str) -> usize {
    let path = format!("/v1/resolve/{service}");
    let known = within(LOOK_UP, client.get(&path)).await;
    known.map_or(0, |known| known.value["replicas"].as_array().map_or(0, Vec::len))
}

pub(super) fn events(args: &Events, cx: &mut Cx<'_>) -> Outcome {
    let follow = u8::from(args.follow);
    print(cx, &format!("/v1/events?follow={follow}"), |event| {
        let service = match event["service"].as_str() {
            Some(service) => format!("{}: ", text(&Value::from(service))),
            None => String::new(),
        };
        format!(
            "{} {} {service}{}",
            text(&event["at"]),
            text(&event["node_name"]),
            text(&event["text"])
        )
    })
}

fn print(cx: &mut Cx<'_>, path: &str, show: impl Fn(&Value) -> String) -> Outcome {
    let client = cx.client()?;
    smol::block_on(async {
        let mut lines = client.get_lines(path).await?;
        while let Some(line) = lines.next().await? {
            if cx.json {
                cx.print_json(&line)?;
            } else {
                writeln!(cx.out, "{}", show(&line))?;
            }
            // Each line is worth seeing when it comes, also through a pipe.
            cx.out.flush()?;
        }
        Ok(exit::DONE)
    })
}
