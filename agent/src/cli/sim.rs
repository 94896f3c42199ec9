//! `dugnad sim`: what a service can expect, in weeks in which machines come and go. The simulator
//! is a program of its own; this finds it and hands it the service.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use argh::FromArgs;

use super::services::{read_file, weighed};
use super::{Cx, Failure, Outcome};
use crate::control::exit;

/// The program.
const NAME: &str = "dugnad-sim";

/// simulate weeks in which machines come and go, and what becomes of a service
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "sim",
    example = "{command_name} wiki/service.toml --nodes 20 --churn home\n\
               {command_name} wiki/service.toml --trace ours.csv --plot wiki.svg",
    note = "It runs the code of the agent in virtual time, with dugnad-sim, which lies beside\n\
            this program or in PATH: cargo build --release -p dugnad-sim. A trace has a line\n\
            NODE,SECONDS,up or NODE,SECONDS,down for each machine that starts or ends."
)]
pub(super) struct Sim {
    /// the service file
    #[argh(positional)]
    pub(super) file: PathBuf,
    /// how many machines (default: 20)
    #[argh(option, default = "20", arg_name = "count")]
    pub(super) nodes: usize,
    /// how they come and go: office, home or mixed (default)
    #[argh(option, arg_name = "model")]
    pub(super) churn: Option<String>,
    /// instead: a file that says it
    #[argh(option, arg_name = "file")]
    pub(super) trace: Option<PathBuf>,
    /// days that count (default: 14)
    #[argh(option, default = "14", arg_name = "days")]
    pub(super) days: u64,
    /// days before, in which the machines are measured (default: 7)
    #[argh(option, default = "7", arg_name = "days")]
    pub(super) before: u64,
    /// another run of chance (default: 1)
    #[argh(option, default = "1", arg_name = "number")]
    pub(super) seed: u64,
    /// draw availability and replicas over time
    #[argh(option, arg_name = "svg")]
    pub(super) plot: Option<PathBuf>,
}

pub(super) fn run(args: &Sim, cx: &mut Cx<'_>) -> Outcome {
    let spec = postcard::to_allocvec(&weighed(&read_file(&args.file)?)?)
        .map_err(|error| Failure::failed(format!("{}: {error}", args.file.display())))?;
    let program = find(cx.env).ok_or_else(|| {
        Failure::failed(format!(
            "there is no {NAME} beside this program or in PATH; build it: cargo build --release -p \
             {NAME}"
        ))
    })?;
    let mut command = Command::new(&program);
    command.args(["service", "--stdin"]);
    for (flag, number) in [
        ("--nodes", args.nodes as u64),
        ("--days", args.days),
        ("--before", args.before),
        ("--seed", args.seed),
    ] {
        command.arg(flag).arg(number.to_string());
    }
    let files = [("--trace", &args.trace), ("--plot", &args.plot)];
    for (flag, path) in files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?))) {
        command.arg(flag).arg(path);
    }
    if let Some(churn) = &args.churn {
        command.arg("--churn").arg(churn);
    }
    let failed = |error: io::Error| Failure::failed(format!("{}: {error}", program.display()));
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended already; its exit code says more.
        _ = stdin.write_all(&spec);
    }
    let status = child.wait().map_err(failed)?;
    Ok(if status.success() { exit::DONE } else { exit::FAILED })
}

/// The simulator, beside this program or in PATH.
fn find(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let path = env("PATH").unwrap_or_default();
    let mut all = beside.into_iter().chain(std::env::split_paths(&path));
    all.find_map(|dir| Some(dir.join(NAME)).filter(|file| file.is_file()))
}
