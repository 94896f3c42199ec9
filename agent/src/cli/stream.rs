//! Commands that follow: `logs`, `events`.

use serde_json::Value;

use super::read::text;
use super::{Cx, Outcome, args};
use crate::control::exit;

pub(super) fn logs(args: &args::Logs, cx: &mut Cx<'_>) -> Outcome {
    let name = super::services::name(&args.service)?;
    let follow = u8::from(args.follow);
    // Log lines are the service's own bytes: printed as they are.
    print(cx, &format!("/v1/logs/{name}?tail={}&follow={follow}", args.tail), |line| {
        line["line"].as_str().unwrap_or_default().to_owned()
    })
}

pub(super) fn events(args: &args::Events, cx: &mut Cx<'_>) -> Outcome {
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
