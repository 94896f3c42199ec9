//! `dugnad lock`: runs a command while a lock is held.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use argh::FromArgs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::table::plain;
use super::{Cx, Failure, Outcome, duration};
use crate::control::exit;
use crate::text::percent_encode;

/// run a command while nobody else in the community holds the lock
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "lock",
    example = "{command_name} backup -- ./backup.sh",
    note = "The command finds the fence in DUGNAD_FENCE: a number that grows with every holder. It \
            ends as the command does. If the lock is lost the command is ended, and this with 3."
)]
pub(super) struct Lock {
    /// letters, digits, '-' and '/'
    #[argh(positional)]
    pub(super) name: String,
    /// how long it stays locked if this machine dies: 2s to 1h (default: 30s)
    #[argh(option, default = "\"30s\".to_owned()", arg_name = "duration")]
    pub(super) ttl: String,
    /// how long to wait for it (default: for ever)
    #[argh(option, arg_name = "duration")]
    pub(super) wait: Option<String>,
    /// after --: the program and its arguments
    #[argh(positional, greedy)]
    pub(super) command: Vec<String>,
}

/// How long a command may take to end when the lock is lost.
const GRACE: Duration = Duration::from_millis(400);

pub(super) fn lock(args: &Lock, cx: &mut Cx<'_>) -> Outcome {
    let words: Vec<&String> = args.command.iter().skip_while(|word| *word == "--").collect();
    let Some((program, rest)) = words.split_first() else {
        return Err(Failure::usage("say what to run: dugnad lock NAME -- COMMAND"));
    };
    let ttl = duration("--ttl", &args.ttl)?.as_millis();
    let wait = args.wait.as_deref().map(|text| duration("--wait", text)).transpose()?;
    let path = format!("/v1/locks/{}?ttl_ms={ttl}", percent_encode(&args.name));
    let client = cx.client()?;
    smol::block_on(async {
        let mut lines = client.post_lines(&path, &serde_json::Value::Null).await?;
        let held = async { Ok::<_, Failure>(lines.next().await?) };
        let late = async {
            match wait {
                Some(wait) => smol::Timer::after(wait).await,
                None => smol::future::pending().await,
            };
            let text = format!("{} is held by somebody else", plain(&args.name));
            Err(Failure::new(exit::TIMED_OUT, text))
        };
        let first = smol::future::or(held, late).await?;
        let fence = first.as_ref().and_then(|line| line["fence"].as_u64());
        let Some(fence) = fence else {
            return Err(Failure::failed("the agent ended before the lock was held"));
        };
        let mut command = Command::new(program);
        command.args(rest).env("DUGNAD_FENCE", fence.to_string()).process_group(0);
        let child = command.spawn();
        let mut child =
            child.map_err(|error| Failure::failed(format!("{}: {error}", plain(program))))?;
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let waiting = smol::unblock(move || child.wait());
        let ended = async { Some(waiting.await) };
        let lost = async {
            while let Ok(Some(line)) = lines.next().await {
                if line["lost"] == true {
                    break;
                }
            }
            None
        };
        match smol::future::or(ended, lost).await {
            Some(status) => Ok(code(status)?),
            None => {
                end(group).await;
                let text = format!("the lock {} was lost; the command was ended", args.name);
                Err(Failure::new(exit::UNMET, text))
            }
        }
    })
}

/// Ends a command that may act no more.
async fn end(group: Pid) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // It may have ended by itself.
        if killpg(group, signal).is_err() {
            return;
        }
        smol::Timer::after(GRACE).await;
    }
}

/// As shells say it.
fn code(status: io::Result<ExitStatus>) -> Result<u8, Failure> {
    let status = status.map_err(|error| Failure::failed(format!("the command: {error}")))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED))
}
