//! `dugnad group`: nodes under a name that are told things together.

use std::io::{self, Read};

use argh::FromArgs;
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::Condition;
use serde_json::Value;

use super::read::{label, tell, text};
use super::table::Table;
use super::{ASK_LIMIT, Cx, Failure, Outcome, within};
use crate::control::exit;
use crate::text::percent_encode;

/// tell things to several nodes together
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "group",
    example = "{command_name} create choir\n{command_name} listen choir\n\
               {command_name} send choir 'we sing at eight'"
)]
pub(super) struct Group {
    #[argh(subcommand)]
    pub(super) command: GroupCommand,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum GroupCommand {
    Create(GroupCreate),
    Join(GroupJoin),
    Leave(GroupLeave),
    Send(GroupSend),
    Listen(GroupListen),
    List(GroupList),
}

/// begin a group with this node as its first member
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "create", example = "{command_name} choir --members-only")]
pub(super) struct GroupCreate {
    #[argh(positional)]
    pub(super) group: String,
    /// only members may send
    #[argh(switch)]
    pub(super) members_only: bool,
}

/// make this node a member, until it leaves
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "join", example = "{command_name} choir")]
pub(super) struct GroupJoin {
    #[argh(positional)]
    pub(super) group: String,
}

/// make this node a member no longer
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "leave", example = "{command_name} choir")]
pub(super) struct GroupLeave {
    #[argh(positional)]
    pub(super) group: String,
}

/// tell all members something; from any node
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "send", example = "{command_name} choir 'we sing at eight'")]
pub(super) struct GroupSend {
    #[argh(positional)]
    pub(super) group: String,
    /// what to tell, at most 16 KiB; - reads it from stdin
    #[argh(positional)]
    pub(super) text: String,
    /// in order for each sender and exactly once, also if messages are lost
    #[argh(switch)]
    pub(super) reliable: bool,
    /// to one other member only, whichever is free
    #[argh(switch)]
    pub(super) one: bool,
    /// with --one: only a member on a node that is so, such as 'zone=attic memory>=1G'
    #[argh(option, long = "where", arg_name = "condition")]
    pub(super) place: Option<String>,
}

/// print what is said in a group; this node is a member while it lasts
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "listen", example = "{command_name} choir --count 1")]
pub(super) struct GroupListen {
    #[argh(positional)]
    pub(super) group: String,
    /// end after so many messages
    #[argh(option, arg_name = "messages")]
    pub(super) count: Option<u64>,
}

/// the groups this node is in
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "list", example = "{command_name} -o json")]
pub(super) struct GroupList {}

pub(super) fn group(args: &Group, cx: &mut Cx<'_>) -> Outcome {
    match &args.command {
        GroupCommand::Create(args) => {
            let closed = u8::from(args.members_only);
            let path = format!("{}/create?members_only={closed}", path(&args.group)?);
            order(cx, &path, &format!("{} created; this node is its first member", args.group))
        }
        GroupCommand::Join(args) => {
            order(cx, &format!("{}/join", path(&args.group)?), &format!("joined {}", args.group))
        }
        GroupCommand::Leave(args) => {
            order(cx, &format!("{}/leave", path(&args.group)?), &format!("left {}", args.group))
        }
        GroupCommand::Send(args) => send(args, cx),
        GroupCommand::Listen(args) => listen(args, cx),
        GroupCommand::List(GroupList {}) => list(cx),
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

fn send(args: &GroupSend, cx: &mut Cx<'_>) -> Outcome {
    let (reliable, one) = (u8::from(args.reliable), u8::from(args.one));
    let mut path = format!("{}/send?reliable={reliable}&one={one}", path(&args.group)?);
    if let Some(typed) = &args.place {
        Condition::parse(typed, &NODE).map_err(|error| Failure::usage(error.to_string()))?;
        if !args.one {
            return Err(Failure::usage("--where goes with --one: it says which member"));
        }
        path += &format!("&where={}", percent_encode(typed));
    }
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

fn listen(args: &GroupListen, cx: &mut Cx<'_>) -> Outcome {
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
