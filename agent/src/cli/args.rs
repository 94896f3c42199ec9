//! What can be typed, and what runs it.

use std::path::PathBuf;

use argh::{FromArgs, SubCommands};

use super::{Cx, Outcome, demo, group, read, services, setup, stream};

/// Runs a community's services on slices of the computers its members own.
#[derive(FromArgs, Debug)]
#[argh(
    example = "dugnad init --name attic --community els-veins\n{command_name} agent &\n\
               {command_name} deploy configs/services/site.toml",
    note = "Before and after every command:\n  --dir D           everything lies under D (also: \
            DUGNAD_DIR=D)\n  -o, --output F    table or json, for commands that tell something \
            (also: DUGNAD_OUTPUT=F)",
    error_code(0, "done"),
    error_code(1, "failed"),
    error_code(2, "wrong usage"),
    error_code(
        3,
        "understood, but not all of it can be had now: replicas, places or room are missing"
    ),
    error_code(4, "no agent answers"),
    error_code(5, "refused"),
    error_code(6, "timed out"),
    error_code(130, "interrupted")
)]
pub(super) struct Args {
    #[argh(subcommand)]
    pub(super) command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum Command {
    Init(Init),
    Invite(Invite),
    Join(Join),
    Agent(Agent),
    Status(Status),
    Nodes(Nodes),
    Plan(Plan),
    Deploy(Deploy),
    Ps(Ps),
    Why(Why),
    Lookup(Lookup),
    Logs(Logs),
    Events(Events),
    Announce(Announce),
    Group(Group),
    Stop(Stop),
    Rm(Rm),
    Rollback(Rollback),
    Reload(Reload),
    Leave(Leave),
    Demo(Demo),
    Version(Version),
    Whoami(Whoami),
}

impl Command {
    pub(super) fn run(self, cx: &mut Cx<'_>) -> Outcome {
        match self {
            Self::Init(args) => setup::init(args, cx),
            Self::Invite(args) => setup::invite(&args, cx),
            Self::Join(args) => setup::join(args, cx),
            Self::Agent(args) => super::agent(args, cx),
            Self::Status(Status {}) => read::status(cx),
            Self::Nodes(Nodes {}) => read::nodes(cx),
            Self::Ps(Ps {}) => read::ps(cx),
            Self::Why(args) => read::why(&args, cx),
            Self::Lookup(args) => read::lookup(&args, cx),
            Self::Plan(args) => services::plan(&args, cx),
            Self::Deploy(args) => services::deploy(&args, cx),
            Self::Group(args) => group::group(&args, cx),
            Self::Stop(args) => services::stop(&args, cx),
            Self::Rm(args) => services::rm(&args, cx),
            Self::Rollback(args) => services::rollback(&args, cx),
            Self::Logs(args) => stream::logs(&args, cx),
            Self::Events(args) => stream::events(&args, cx),
            Self::Announce(args) => services::announce(&args, cx),
            Self::Reload(Reload {}) => setup::reload(cx),
            Self::Leave(args) => setup::leave(&args, cx),
            Self::Demo(args) => demo::run(&args, cx),
            Self::Version(Version {}) => super::version(cx),
            Self::Whoami(Whoami {}) => read::whoami(cx),
        }
    }
}

/// Every command, for suggestions and `help`.
pub(super) fn commands() -> impl Iterator<Item = &'static str> {
    <Command as SubCommands>::COMMANDS.iter().map(|command| command.name).chain(["help"])
}

/// Commands that tell nothing, so that `-o json` means nothing.
pub(super) const SILENT: &[&str] = &[
    "init", "invite", "join", "agent", "announce", "stop", "rm", "reload", "leave", "demo", "help",
];

/// begin a new community with this machine as its first node
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "init", example = "{command_name} --name attic --community els-veins")]
pub(super) struct Init {
    /// what this node is called (default: the host's name)
    #[argh(option)]
    pub(super) name: Option<String>,
    /// what the community is called
    #[argh(option)]
    pub(super) community: Option<String>,
    /// make a copied state directory a node of its own, in its community
    #[argh(switch)]
    pub(super) new_identity: bool,
    /// where other nodes reach this one (default: 0.0.0.0:7407)
    #[argh(option, arg_name = "addr:port")]
    pub(super) overlay: Option<String>,
    /// where people reach services, or "off" (default: 127.0.0.1:7480)
    #[argh(option, arg_name = "addr:port")]
    pub(super) gateway: Option<String>,
}

/// print a token that lets one more machine join
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "invite", example = "{command_name} --expires 2h")]
pub(super) struct Invite {
    /// how long it is good for (default: 7d)
    #[argh(option, default = "\"7d\".to_owned()", arg_name = "duration")]
    pub(super) expires: String,
}

/// make this machine a node of the community that a token invites to
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "join", example = "{command_name} 'dugnad1:...' --name attic")]
pub(super) struct Join {
    /// what `dugnad invite` printed; "-" reads it from standard input
    #[argh(positional)]
    pub(super) token: String,
    /// what this node is called (default: the host's name)
    #[argh(option)]
    pub(super) name: Option<String>,
    /// where other nodes reach this one (default: 0.0.0.0:7407)
    #[argh(option, arg_name = "addr:port")]
    pub(super) overlay: Option<String>,
    /// where people reach services, or "off" (default: 127.0.0.1:7480)
    #[argh(option, arg_name = "addr:port")]
    pub(super) gateway: Option<String>,
}

/// run this node in the foreground
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "agent", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Agent {
    /// instead of the owner's file: what this node is called
    #[argh(option)]
    pub(super) name: Option<String>,
    /// instead of the owner's file: where other nodes reach this one
    #[argh(option, arg_name = "addr:port")]
    pub(super) overlay: Option<String>,
    /// instead of the owner's file: where people reach services, or "off"
    #[argh(option, arg_name = "addr:port")]
    pub(super) gateway: Option<String>,
    /// instead of the owner's file: error, warn, info or debug
    #[argh(option, arg_name = "level")]
    pub(super) log: Option<String>,
}

/// how this node is, what it gives and what it has promised
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "status", example = "{command_name} -o json")]
pub(super) struct Status {}

/// the nodes of the community
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "nodes", example = "{command_name} -o json")]
pub(super) struct Nodes {}

/// where a service would run, and why not elsewhere; changes nothing
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "plan", example = "{command_name} wiki.toml")]
pub(super) struct Plan {
    /// the service file
    #[argh(positional)]
    pub(super) file: PathBuf,
}

/// run a service, and wait until its replicas are ready
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "deploy", example = "{command_name} wiki.toml")]
pub(super) struct Deploy {
    /// the service file
    #[argh(positional)]
    pub(super) file: PathBuf,
    /// how long to wait for the replicas (default: 2m); the service is kept wanted after that
    #[argh(option, default = "\"2m\".to_owned()", arg_name = "duration")]
    pub(super) timeout: String,
}

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

/// tell everybody in the community something: it shows in the events of every node
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "announce", example = "{command_name} 'attic reboots at eight'")]
pub(super) struct Announce {
    /// one line of text, at most 200 bytes
    #[argh(positional)]
    pub(super) text: String,
}

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

/// stop a service; it stays known
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "stop", example = "{command_name} wiki")]
pub(super) struct Stop {
    #[argh(positional)]
    pub(super) service: String,
}

/// stop a service and forget it
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rm", example = "{command_name} wiki")]
pub(super) struct Rm {
    #[argh(positional)]
    pub(super) service: String,
    /// what it has written stays where it is; a service of this name takes it up again
    #[argh(switch)]
    pub(super) keep_state: bool,
}

/// go back to the version of a service before the present one
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "rollback", example = "{command_name} wiki")]
pub(super) struct Rollback {
    #[argh(positional)]
    pub(super) service: String,
}

/// make the agent read the owner's file again
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "reload", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Reload {}

/// hand everything over to the others and go
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "leave", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Leave {
    /// go at once: what runs here stops before it runs elsewhere
    #[argh(switch)]
    pub(super) now: bool,
}

/// see it work: a community of real agents on this machine, services, and a failure
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "demo", example = "{command_name} --once")]
pub(super) struct Demo {
    /// end by itself; exit 0 only if every step held
    #[argh(switch)]
    pub(super) once: bool,
    /// how many nodes, 5 to 20 (default: 5)
    #[argh(option, default = "5")]
    pub(super) nodes: usize,
}

/// which dugnad this is
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "version", example = "{command_name} -o json")]
pub(super) struct Version {}

/// which node this is, and of which community
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "whoami", example = "{command_name} -o json")]
pub(super) struct Whoami {}
