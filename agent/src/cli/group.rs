//! `dugnad group`: nodes under a name that are told things together.

use std::io::{self, Read};

use serde_json::Value;

use super::read::{label, tell, text};
use super::table::Table;
use super::{ASK_LIMIT, Cx, Failure, Outcome, args, within};
use crate::control::exit;

pub(super) fn group(args: &args::Group, cx: &mut Cx<'_>) -> Outcome {
    match &args.command {
        args::GroupCommand::Create(args) => {
            let closed = u8::from(args.members_only);
            let path = format!("{}/create?members_only={closed}", path(&args.group)?);
            order(cx, &path, &format!("{} created; this node is its first member", args.group))
        }
        args::GroupCommand::Join(args) => {
            order(cx, &format!("{}/join", path(&args.group)?), &format!("joined {}", args.group))
        }
        args::GroupCommand::Leave(args) => {
            order(cx, &format!("{}/leave", path(&args.group)?), &format!("left {}", args.group))
        }
        args::GroupCommand::Send(args) => send(args, cx),
        args::GroupCommand::Listen(args) => listen(args, cx),
        args::GroupCommand::List(args::GroupList {}) => list(cx),
    }
}

fn path(name: &str) -> Result<String, Failure> {
    let valid = dugnad_resource::spec::valid_name(name);
    valid.map_err(|why| Failure::usage(format!("\"{name}\" is no group: {why}")))?;
    Ok(format!("/v1/groups/{name}"))
}

fn order(cx: &mut Cx<'_>, path: &str, done: &str) -> Outcome {
    let client = cx.client()?;
    smol::block_on(within(ASK_LIMIT, client.post(path, None)))?;
    cx.say(done);
    Ok(exit::DONE)
}

fn send(args: &args::GroupSend, cx: &mut Cx<'_>) -> Outcome {
    let (reliable, one) = (u8::from(args.reliable), u8::from(args.one));
    let path = format!("{}/send?reliable={reliable}&one={one}", path(&args.group)?);
    let client = cx.client()?;
    let body = if args.text == "-" {
        let mut body = Vec::new();
        // One more than fits, so that the agent says that it is too much.
        let read = io::stdin().take((16 << 10) + 1).read_to_end(&mut body);
        read.map_err(|error| Failure::failed(format!("cannot read stdin: {error}")))?;
        body
    } else {
        args.text.clone().into_bytes()
    };
    smol::block_on(within(ASK_LIMIT, client.post_bytes(&path, body)))?;
    Ok(exit::DONE)
}

fn listen(args: &args::GroupListen, cx: &mut Cx<'_>) -> Outcome {
    let (client, path) = (cx.client()?, format!("{}/messages", path(&args.group)?));
    smol::block_on(async {
        let mut lines = client.get_lines(&path).await?;
        cx.say(format!("listening to {}", args.group));
        let mut left = args.count;
        while left != Some(0) {
            let Some(line) = lines.next().await? else { break };
            if cx.json {
                cx.print_json(&line)?;
            } else {
                let said = if line["hex"].is_null() { &line["text"] } else { &line["hex"] };
                writeln!(cx.out, "{} {}", label(&line["node"], &line["node_name"]), text(said))?;
            }
            // Each line is worth seeing when it comes, also through a pipe.
            cx.out.flush()?;
            left = left.map(|left| left.saturating_sub(1));
        }
        Ok(exit::DONE)
    })
}

fn list(cx: &mut Cx<'_>) -> Outcome {
    let Some(groups) = tell(cx, "/v1/groups")? else { return Ok(exit::DONE) };
    let groups = groups.as_array().cloned().unwrap_or_default();
    if groups.is_empty() {
        cx.say("this node is in no group; be in one with: dugnad group create NAME");
        return Ok(exit::DONE);
    }
    let mut table = Table::new(["GROUP", "MEMBERS", "FORM", "STATE", "KEPT", "LISTENERS", "HEARD"]);
    for group in &groups {
        let yes = |value: &Value| if value == true { "yes" } else { "no" }.to_owned();
        table.row([
            text(&group["group"]),
            text(&group["members"]),
            text(&group["form"]),
            text(&group["state"]),
            yes(&group["kept"]),
            text(&group["listeners"]),
            text(&group["heard"]),
        ]);
    }
    let shown = table.text(cx.bold);
    write!(cx.out, "{shown}")?;
    Ok(exit::DONE)
}
