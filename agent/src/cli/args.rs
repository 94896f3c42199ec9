//! What can be typed, and what runs it.

use argh::{FromArgs, SubCommands};

use super::connect::{self, Connect};
use super::demo::Demo;
use super::events::{Publish, Type, Types};
use super::group::Group;
use super::lock::Lock;
use super::objects::{Cas, Get, Ls, Namespace, Put, Store, Watch};
use super::prospect::{Census, Describe, Find};
use super::read::{Lookup, Nodes, Ps, Status, Whoami, Why};
use super::services::{Announce, Deploy, Plan, Restart, Rm, Rollback, Scale, Stop};
use super::setup::{Drain, Init, Invite, Join, Leave, Reload, Undrain};
use super::sim::Sim;
use super::stream::{Events, Logs};
use super::{
    Agent, Cx, Outcome, Version, demo, events, group, lock, objects, prospect, read, services,
    setup, sim, stream,
};

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
    Find(Find),
    Describe(Describe),
    Census(Census),
    Plan(Plan),
    Sim(Sim),
    Deploy(Deploy),
    Ps(Ps),
    Why(Why),
    Lookup(Lookup),
    Logs(Logs),
    Connect(Connect),
    Events(Events),
    Announce(Announce),
    Group(Group),
    Put(Put),
    Get(Get),
    Cas(Cas),
    Lock(Lock),
    Ls(Ls),
    Watch(Watch),
    Types(Types),
    Type(Type),
    Publish(Publish),
    Store(Store),
    Namespace(Namespace),
    Stop(Stop),
    Rm(Rm),
    Rollback(Rollback),
    Restart(Restart),
    Scale(Scale),
    Reload(Reload),
    Drain(Drain),
    Undrain(Undrain),
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
            Self::Find(args) => prospect::find(&args, cx),
            Self::Describe(args) => prospect::describe(&args, cx),
            Self::Census(Census {}) => prospect::census(cx),
            Self::Ps(Ps {}) => read::ps(cx),
            Self::Why(args) => read::why(&args, cx),
            Self::Lookup(args) => read::lookup(&args, cx),
            Self::Plan(args) => services::plan(&args, cx),
            Self::Sim(args) => sim::run(&args, cx),
            Self::Deploy(args) => services::deploy(&args, cx),
            Self::Group(args) => group::group(&args, cx),
            Self::Stop(args) => services::stop(&args, cx),
            Self::Rm(args) if args.service.contains('/') => objects::rm(&args.service, cx),
            Self::Rm(args) => services::rm(&args, cx),
            Self::Put(args) => objects::put(args, cx),
            Self::Get(args) => objects::get(&args, cx),
            Self::Cas(args) => objects::cas(args, cx),
            Self::Lock(args) => lock::lock(&args, cx),
            Self::Ls(args) => objects::ls(&args, cx),
            Self::Watch(args) if !args.key.contains('/') => events::watch(&args, cx),
            Self::Watch(args) => objects::watch(&args, cx),
            Self::Types(Types {}) => events::types(cx),
            Self::Type(args) => events::define(&args, cx),
            Self::Publish(args) => events::publish(&args, cx),
            Self::Store(Store {}) => objects::store(cx),
            Self::Namespace(args) => objects::namespace(&args, cx),
            Self::Rollback(args) => services::rollback(&args, cx),
            Self::Restart(args) => services::restart(&args, cx),
            Self::Scale(args) => services::scale(&args, cx),
            Self::Logs(args) => stream::logs(&args, cx),
            Self::Connect(args) => connect::connect(&args, cx),
            Self::Events(args) => stream::events(&args, cx),
            Self::Announce(args) => services::announce(&args, cx),
            Self::Reload(Reload {}) => setup::reload(cx),
            Self::Drain(args) => setup::drain(&args, cx),
            Self::Undrain(Undrain {}) => setup::undrain(cx),
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
    "init", "invite", "join", "agent", "announce", "stop", "rm", "reload", "leave", "demo", "lock",
    "type", "connect", "drain", "undrain", "sim", "help",
];
