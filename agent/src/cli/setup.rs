//! Commands about the node itself: `init`, `join`, `invite`, `reload`, `leave`. The first two
//! only write files; no agent need run.

use std::fs;
use std::io::{self, BufRead as _, Read as _};
use std::path::Path;
use std::time::Duration;

use argh::FromArgs;
use dugnad_kernel::NodeId;

use super::{ASK_LIMIT, Cx, Failure, Outcome, duration, within};
use crate::clock::{self, now_unix};
use crate::config::{Config, Dirs, Env, Overrides, file};
use crate::control::{ClientError, exit};
use crate::identity::{self, Community, Identity};
use crate::invite::{self, Expiry, Invitation, InviteError};
use crate::text::percent_encode;

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

/// make the agent read the owner's file again
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "reload", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Reload {}

/// have others run what runs here, and take nothing new until `undrain`, also after a restart
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "drain",
    example = "{command_name} --reason 'a new disk'",
    note = "It stays a member: it stores, passes on and answers for services. If something has no \
            other place it goes on here and this ends with 3; it moves as soon as there is one."
)]
pub(super) struct Drain {
    /// what others are told
    #[argh(option, default = "String::new()", arg_name = "text")]
    pub(super) reason: String,
}

/// take work again after `drain`
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "undrain", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Undrain {}

/// hand everything over to the others and go
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "leave", example = "{command_name} --dir /srv/dugnad")]
pub(super) struct Leave {
    /// go at once: what runs here stops before it runs elsewhere
    #[argh(switch)]
    pub(super) now: bool,
}

/// Stands for `-` on the command line.
pub(super) const STDIN: &str = "stdin:";
/// Bytes of a token at most, with room to spare.
const TOKEN_MAX: u64 = 4096;

/// What `init` and `join` write into the owner's file, beside what stands there.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) name: Option<String>,
    pub(super) overlay: Option<String>,
    pub(super) gateway: Option<String>,
    pub(super) seeds: Vec<String>,
}

/// Makes the node's files under `dirs` and its place in `community`; nothing may be there yet.
pub(super) fn settle(
    dirs: &Dirs,
    community: &Community,
    wishes: &Wishes,
    env: Env<'_>,
) -> Result<(NodeId, Config), Failure> {
    let fail = |error: io::Error| Failure::failed(error.to_string());
    if let Ok(there) = Community::load(&dirs.state) {
        return Err(Failure::failed(format!(
            "{} already holds a node of \"{}\"; start it with: dugnad agent{}, or name another \
             folder with --dir",
            dirs.state.display(),
            there.name,
            dirs.flag()
        )));
    }
    // The owner's file first: if a wish is wrong, nothing else was made.
    let config = write_config(dirs, wishes, env)?;
    make_private(&dirs.state)?;
    // Left by a first try that went no further: a key without a community is nobody yet.
    let identity = match Identity::create(&dirs.state) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Identity::load(&dirs.state),
        created => created,
    };
    let identity = identity.map_err(fail)?;
    let node = identity::node_id(&identity, community);
    identity::record_node(&dirs.state, node).map_err(fail)?;
    // Last, as it is what makes the folder a node.
    community.save(&dirs.state).map_err(fail)?;
    Ok((node, config))
}

fn make_private(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::failed(format!("{}: cannot make: {error}", dir.display())))
}

fn write_config(dirs: &Dirs, wishes: &Wishes, env: Env<'_>) -> Result<Config, Failure> {
    let path = &dirs.config;
    let fail = |error: io::Error| Failure::failed(format!("{}: {error}", path.display()));
    let flags = Overrides {
        name: wishes.name.clone(),
        overlay: wishes.overlay.clone(),
        gateway: wishes.gateway.clone(),
        log: None,
    };
    // Checks both the file that is there and the flags.
    let config = Config::load(dirs, &flags, env).map_err(Failure::failed)?;
    let before =
        if path.exists() { fs::read_to_string(path).map_err(fail)? } else { String::new() };
    let mut text = before.clone();
    if text.is_empty() {
        text.push_str("# The owner's file. Every key and its default: configs/dugnad.toml\n");
    }
    let quoted = |value: &str| format!("\"{value}\"");
    text = file::set(&text, "node", "name", &quoted(&config.name));
    if !wishes.seeds.is_empty() {
        let seeds: Vec<_> = wishes.seeds.iter().map(|seed| quoted(seed)).collect();
        text = file::set(&text, "community", "seeds", &format!("[{}]", seeds.join(", ")));
    }
    for (key, value) in [("overlay", &wishes.overlay), ("gateway", &wishes.gateway)] {
        if let Some(value) = value {
            text = file::set(&text, "listen", key, &quoted(value));
        }
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_private_unless_there(folder)?;
    let written = Config::parse(path, &text, &crate::config::HostFacts::probe());
    let wanted = |written: &Config| {
        written.name == config.name
            && (wishes.seeds.is_empty() || written.seeds == wishes.seeds)
            && (wishes.overlay.is_none() || written.overlay == config.overlay)
            && (wishes.gateway.is_none() || written.gateway == config.gateway)
    };
    if !written.as_ref().is_ok_and(wanted) {
        // A layout that line-wise editing does not understand; better to ask than to guess.
        let seeds = wishes.seeds.iter().map(|seed| quoted(seed)).collect::<Vec<_>>().join(", ");
        return Err(Failure::failed(format!(
            "{}: cannot be edited as it is written; put into it: [node] name = \"{}\", \
             [community] seeds = [{seeds}], and try again",
            path.display(),
            config.name
        )));
    }
    if text != before {
        let aside = path.with_extension("toml.new");
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, path)).map_err(fail)?;
    }
    Ok(config)
}

fn make_private_unless_there(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() { Ok(()) } else { make_private(folder) }
}

fn who(node: NodeId, config: &Config) -> String {
    format!("{}-{}", node.short(), config.name)
}

pub(super) fn init(args: Init, cx: &mut Cx<'_>) -> Outcome {
    let dirs = cx.dirs()?;
    let Init { name, community, new_identity, overlay, gateway } = args;
    if new_identity {
        return anew(&dirs, cx);
    }
    let Some(community) = community else {
        return Err(Failure::usage("say what the community is called: --community NAME"));
    };
    let community =
        Community::create(&community).map_err(|error| Failure::usage(error.to_string()))?;
    let wishes = Wishes { name, overlay, gateway, seeds: Vec::new() };
    let (node, config) = settle(&dirs, &community, &wishes, cx.env)?;
    let (who, flag) = (who(node, &config), dirs.flag());
    cx.say(format!(
        "community \"{}\" begins with node {who}\nstart it:      dugnad agent{flag}\n\
         invite others: dugnad invite{flag}",
        community.name
    ));
    Ok(exit::DONE)
}

/// Makes a copied state directory a node of its own in the same community. What belongs to the
/// node it is a copy of goes; packages and the peers it knew stay.
fn anew(dirs: &Dirs, cx: &mut Cx<'_>) -> Outcome {
    let fail = |error: io::Error| Failure::failed(error.to_string());
    let _lock = identity::DirLock::take(&dirs.state).map_err(fail)?;
    let community = Community::load(&dirs.state).map_err(fail)?;
    let identity = Identity::replace(&dirs.state).map_err(fail)?;
    let node = identity::node_id(&identity, &community);
    identity::record_node(&dirs.state, node).map_err(fail)?;
    cx.say(format!(
        "this is now node {} of \"{}\", and no longer the one it was a copy of\nstart it: dugnad \
         agent{}",
        node.short(),
        community.name,
        dirs.flag()
    ));
    Ok(exit::DONE)
}

pub(super) fn join(args: Join, cx: &mut Cx<'_>) -> Outcome {
    let dirs = cx.dirs()?;
    let Join { token, name, overlay, gateway } = args;
    let refused = |error: InviteError| Failure::new(exit::REFUSED, error.to_string());
    let token = if token == STDIN { first_line()? } else { token };
    let invitation: Invitation = token.parse().map_err(refused)?;
    if invitation.check_expiry(now_unix()).map_err(refused)? == Expiry::ClockUnset {
        cx.say(
            "this machine's clock was never set: whether the invitation expired was not checked",
        );
    }
    let seeds = invitation.addrs.iter().map(ToString::to_string).collect();
    let wishes = Wishes { name, overlay, gateway, seeds };
    let (node, config) = settle(&dirs, &invitation.community, &wishes, cx.env)?;
    cx.say(format!(
        "this is now node {} of \"{}\"\nstart it: dugnad agent{}",
        who(node, &config),
        invitation.community.name,
        dirs.flag()
    ));
    Ok(exit::DONE)
}

/// A token from standard input: as an argument every user of the machine could read it.
fn first_line() -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::stdin().lock().take(TOKEN_MAX).read_line(&mut line);
    read.map_err(|error| Failure::failed(format!("cannot read the token: {error}")))?;
    Ok(line.trim().to_owned())
}

/// A token made from the node's files.
pub(super) fn token(dirs: &Dirs, config: &Config, expires: Duration) -> Result<String, Failure> {
    let fail = |error: io::Error| Failure::failed(error.to_string());
    let community = Community::load(&dirs.state).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::failed(format!(
            "{} holds no node yet; begin a community with: dugnad init{}",
            dirs.state.display(),
            dirs.flag()
        )),
        _ => Failure::failed(error.to_string()),
    })?;
    let addrs = invite::usable_addrs(config.overlay).map_err(fail)?;
    if addrs.is_empty() {
        return Err(Failure::failed(format!(
            "nobody could reach this node: it listens on {}, and the machine has no address for it",
            config.overlay
        )));
    }
    if let Some(problem) = clock::problem() {
        return Err(Failure::failed(format!(
            "{problem}, and invite again: the expiry of an invitation is a time"
        )));
    }
    let expires_unix = Some(now_unix().saturating_add(expires.as_secs()));
    Ok(Invitation { community, addrs, expires_unix }.to_string())
}

/// The agent knows best where it can be reached; without one the files tell.
pub(super) fn invite(args: &Invite, cx: &mut Cx<'_>) -> Outcome {
    let expires = duration("--expires", &args.expires)?;
    if expires < Duration::from_secs(1) {
        return Err(Failure::usage("--expires: must be at least 1s"));
    }
    let (dirs, client) = (cx.dirs()?, cx.client()?);
    let path = format!("/v1/invite?secs={}", expires.as_secs());
    let asked = smol::block_on(within(ASK_LIMIT, async {
        match client.post(&path, None).await {
            Err(ClientError::NoAgent(_)) => Ok(None),
            Err(error) => Err(error),
            Ok(answered) => Ok(answered.value["token"].as_str().map(str::to_owned)),
        }
    }))?;
    let token = match asked {
        Some(token) => token,
        None => {
            let config = Config::load(&dirs, &Overrides::default(), cx.env);
            token(&dirs, &config.map_err(Failure::failed)?, expires)?
        }
    };
    writeln!(cx.out, "{token}")?;
    Ok(exit::DONE)
}

pub(super) fn reload(cx: &mut Cx<'_>) -> Outcome {
    let client = cx.client()?;
    let answered = smol::block_on(within(ASK_LIMIT, client.post("/v1/reload", None)))?;
    let changed = answered.value["changed"].as_array().cloned().unwrap_or_default();
    if changed.is_empty() {
        cx.say("nothing changed");
    }
    for line in &changed {
        cx.say(super::read::text(line));
    }
    Ok(exit::DONE)
}

/// Names of the services with a replica on this node.
fn services_here(status: &serde_json::Value) -> String {
    let replicas = status["replicas"].as_array().into_iter().flatten();
    let mut names: Vec<&str> = replicas.filter_map(|r| r["service"].as_str()).collect();
    names.dedup();
    names.join(", ")
}

/// Services have to be started elsewhere first; the agent gives up by itself if they cannot be.
const LEAVE_LIMIT: Duration = Duration::from_secs(900);
/// How often it is looked at what is still here.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn drain(args: &Drain, cx: &mut Cx<'_>) -> Outcome {
    let reason = percent_encode(&args.reason).replace('/', "%2F");
    go(&format!("/v1/drain?reason={reason}"), cx)?;
    cx.say("nothing runs here any more, and nothing new will until: dugnad undrain");
    Ok(exit::DONE)
}

pub(super) fn undrain(cx: &mut Cx<'_>) -> Outcome {
    let client = cx.client()?;
    smol::block_on(within(ASK_LIMIT, client.post("/v1/undrain", None)))?;
    cx.say("this node takes work again");
    Ok(exit::DONE)
}

pub(super) fn leave(args: &Leave, cx: &mut Cx<'_>) -> Outcome {
    go(if args.now { "/v1/leave?now=1" } else { "/v1/leave" }, cx)?;
    cx.say("this node has left; its agent may be stopped");
    Ok(exit::DONE)
}

/// Asks for something that has others run what runs here, and tells what it waits for.
fn go(path: &str, cx: &mut Cx<'_>) -> Result<(), Failure> {
    let client = cx.client()?;
    smol::block_on(within(LEAVE_LIMIT, async {
        let leaving = async { client.post(path, None).await.map(drop) };
        let telling = async {
            let mut told = String::new();
            loop {
                // The agent may be gone already.
                let status = client.get("/v1/status").await.map(|answered| answered.value);
                let here = status.map(|status| services_here(&status)).unwrap_or_default();
                if !here.is_empty() && here != told {
                    cx.say(format!("waiting until others run what runs here: {here}"));
                    told = here;
                }
                smol::Timer::after(LOOK).await;
            }
        };
        smol::future::or(leaving, telling).await
    }))?;
    Ok(())
}
