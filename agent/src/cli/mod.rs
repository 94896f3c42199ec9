//! The command line: a client of the agent's control socket, and the place where errors become
//! text and an exit code.
//!
//! `main.rs` calls [`main`] with [`Hooks`]; everything below is reached from there. Values go to
//! stdout bare, everything for people to stderr or as tables.

mod args;
mod connect;
mod demo;
mod events;
mod group;
mod lock;
mod objects;
mod prospect;
mod read;
mod services;
mod setup;
mod sim;
mod stream;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;

use args::{Args, SILENT, commands};
use dugnad_platform::probe::arch;
use serde_json::{Value, json};

use crate::config::units::{Span, Unit};
use crate::config::{Config, Dirs, Env, Overrides};
use crate::control::{Answered, Client, ClientError, exit};

/// The reference of service files, for a node that has only the program.
const SERVICE_FILE: &str = include_str!("../../../configs/services/README.md");

/// What the command line starts but does not know.
pub(crate) struct Hooks {
    /// Runs the agent in the foreground until it is told to end. The error is for people.
    pub(crate) agent: fn(Dirs, Config) -> Result<(), String>,
}

/// Why a command did not do what it should.
#[derive(Debug)]
struct Failure {
    exit: u8,
    text: String,
    reasons: Vec<String>,
}

impl Failure {
    fn new(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), reasons: Vec::new() }
    }

    fn failed(text: impl Into<String>) -> Self {
        Self::new(exit::FAILED, text)
    }

    fn usage(text: impl Into<String>) -> Self {
        Self::new(exit::USAGE, text)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (exit, text) = (error.exit(), error.to_string());
        let reasons = match error {
            ClientError::Answer { reasons, .. } => reasons,
            _ => Vec::new(),
        };
        Self { exit, text, reasons }
    }
}

impl From<io::Error> for Failure {
    /// Of writing to stdout: a reader that has seen enough is no failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(exit::DONE, ""),
            _ => Self::failed(error.to_string()),
        }
    }
}

/// `Ok` carries the exit code, as a command may tell all it has and still say "not satisfied".
type Outcome = Result<u8, Failure>;

/// Where a command runs and writes.
struct Cx<'a> {
    env: Env<'a>,
    root: bool,
    dir: Option<PathBuf>,
    json: bool,
    hooks: &'a Hooks,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Whether to make heads bold.
    bold: bool,
    /// Whether stderr is a terminal, where a line may be written over.
    live: bool,
    /// Whether the last line may be written over.
    over: bool,
}

impl Cx<'_> {
    fn dirs(&self) -> Result<Dirs, Failure> {
        Dirs::resolve(self.dir.as_deref(), self.env, self.root).map_err(Failure::failed)
    }

    fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.dirs()?.client_socket()))
    }

    /// Says something to people.
    fn say(&mut self, text: impl std::fmt::Display) {
        let clear = if std::mem::take(&mut self.over) { "\r\x1b[K" } else { "" };
        // Nobody reads it if stderr is closed; the exit code still tells.
        let _: io::Result<()> = writeln!(self.err, "{clear}{text}");
    }

    /// Says what is being done, on a terminal; the next line takes its place.
    fn now(&mut self, text: &str) {
        if self.live {
            self.over = true;
            // As above.
            let _: io::Result<()> =
                write!(self.err, "\r\x1b[K{text}").and_then(|()| self.err.flush());
        }
    }

    fn print_json(&mut self, value: &Value) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{value}")?)
    }

    /// Says that a list has holes, if it has.
    fn whole(&mut self, answered: Answered) -> Value {
        if !answered.complete {
            self.say("part of the community did not answer: the list may be incomplete");
        }
        answered.value
    }
}

/// Runs the command line of this process.
pub(crate) fn main(hooks: &Hooks) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut words = Vec::with_capacity(args.len());
    for arg in args {
        match arg.into_string() {
            Ok(word) => words.push(word),
            Err(arg) => {
                eprintln!("dugnad: {}: arguments must be UTF-8 text", arg.to_string_lossy());
                return ExitCode::from(exit::USAGE);
            }
        }
    }
    let env = |name: &str| std::env::var_os(name);
    let color = env("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut cx = Cx {
        env: &env,
        root: nix::unistd::geteuid().is_root(),
        dir: None,
        json: false,
        hooks,
        bold: color && io::stdout().is_terminal(),
        live: io::stderr().is_terminal(),
        over: false,
        out: &mut io::stdout(),
        err: &mut io::stderr(),
    };
    ExitCode::from(run(&words, &mut cx))
}

/// Runs one command line; the exit code.
fn run(words: &[String], cx: &mut Cx<'_>) -> u8 {
    match try_run(words, cx) {
        Ok(exit) => exit,
        Err(failure) => {
            if !failure.text.is_empty() {
                let advice = match (failure.exit, cx.dirs()) {
                    (exit::NO_AGENT, Ok(dirs)) => {
                        format!("; start it with: dugnad agent{}", dirs.flag())
                    }
                    _ => String::new(),
                };
                cx.say(format!("dugnad: {}{advice}", failure.text));
            }
            for reason in counted(&failure.reasons) {
                cx.say(format!("  - {}", table::plain(&reason)));
            }
            failure.exit
        }
    }
}

fn try_run(words: &[String], cx: &mut Cx<'_>) -> Outcome {
    let words = take_globals(words, cx)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Part of the demo, and of nobody's day: not in the help.
    if let ["demo-server", rest @ ..] = words.as_slice() {
        return demo::server::run(cx.env, rest).map(|()| exit::DONE).map_err(Failure::failed);
    }
    let words = match words.as_slice() {
        [] | ["help"] => vec!["--help"],
        ["help", "service-file"] => {
            write!(cx.out, "{SERVICE_FILE}")?;
            return Ok(exit::DONE);
        }
        ["help", command, ..] => vec![*command, "--help"],
        ["-V" | "--version", ..] => vec!["version"],
        words => words
            .iter()
            .map(|word| match *word {
                "-h" => "--help",
                // argh takes it for an option without a name.
                "-" => setup::STDIN,
                word => word,
            })
            .collect(),
    };
    let command = words.iter().find(|word| !word.starts_with('-'));
    let known: Vec<&str> = commands().collect();
    if let Some(command) = command.filter(|command| !known.contains(command)) {
        let nearest = suggest(command, &known)
            .map_or_else(String::new, |nearest| format!(" (did you mean `{nearest}`?)"));
        return Err(Failure::usage(format!("no command `{command}`{nearest}; see: dugnad help")));
    }
    if let Some(command) = command.filter(|command| cx.json && SILENT.contains(command)) {
        if (cx.env)("DUGNAD_OUTPUT").is_none() {
            return Err(Failure::usage(format!("`{command}` has nothing to tell as json")));
        }
    }
    match argh::FromArgs::from_args(&["dugnad"], &words) {
        Ok(Args { command }) => command.run(cx),
        Err(early) if early.status.is_ok() => {
            writeln!(cx.out, "{}", early.output.trim_end())?;
            Ok(exit::DONE)
        }
        Err(early) => Err(Failure::usage(early.output.trim_end().to_owned())),
    }
}

/// Takes `--dir D` and `-o F` out of the words, wherever they stand.
fn take_globals(words: &[String], cx: &mut Cx<'_>) -> Result<Vec<String>, Failure> {
    let mut rest = Vec::with_capacity(words.len());
    let mut output = (cx.env)("DUGNAD_OUTPUT").and_then(|value| value.into_string().ok());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        if word == "--" {
            rest.push(word.clone());
            rest.extend(words.cloned());
            break;
        }
        if !matches!(name, "--dir" | "-o" | "--output") {
            rest.push(word.clone());
            continue;
        }
        let value = inline.or_else(|| words.next().cloned()).filter(|value| !value.is_empty());
        let Some(value) = value else {
            return Err(Failure::usage(format!("{name} needs a value")));
        };
        match name {
            "--dir" => cx.dir = Some(PathBuf::from(value)),
            _ => output = Some(value),
        }
    }
    cx.json = match output.as_deref() {
        None | Some("" | "table") => false,
        Some("json") => true,
        Some(other) => {
            return Err(Failure::usage(format!("-o {other}: the output is table or json")));
        }
    };
    Ok(rest)
}

/// Each line once, in the order of the first, with how often it came.
fn counted(lines: &[String]) -> Vec<String> {
    let mut told: Vec<(&String, usize)> = Vec::new();
    for line in lines {
        match told.iter_mut().find(|(known, _)| *known == line) {
            Some((_, times)) => *times += 1,
            None => told.push((line, 1)),
        }
    }
    let text = |(line, times): (&String, usize)| match times {
        1 => line.clone(),
        times => format!("{line} ({times} times)"),
    };
    told.into_iter().map(text).collect()
}

/// The known word nearest to what was typed, if any is near.
fn suggest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|word| (distance(typed, word), *word)).min()?;
    (near.0 <= 1 + typed.len() / 4).then_some(near.1)
}

/// How many letters must be added, dropped, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Waits for an answer, but not for ever.
async fn within<T, E: Into<Failure>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    let late = async {
        smol::Timer::after(limit).await;
        let text = format!("no answer within {}", humantime::format_duration(limit));
        Err(Failure::new(exit::TIMED_OUT, text))
    };
    smol::future::or(async { work.await.map_err(Into::into) }, late).await
}

/// How long commands wait for what the agent can say by asking around.
const ASK_LIMIT: Duration = Duration::from_secs(60);

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

/// A duration given with a flag.
fn duration(flag: &str, text: &str) -> Result<Duration, Failure> {
    let span = Span::parse(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
    Ok(span.0)
}

fn agent(args: Agent, cx: &mut Cx<'_>) -> Outcome {
    let dirs = cx.dirs()?;
    let Agent { name, overlay, gateway, log } = args;
    let flags = Overrides { name, overlay, gateway, log };
    let config = Config::load(&dirs, &flags, cx.env).map_err(Failure::failed)?;
    (cx.hooks.agent)(dirs, config).map_err(Failure::failed)?;
    Ok(exit::DONE)
}

/// which dugnad this is
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "version", example = "{command_name} -o json")]
pub(super) struct Version {}

fn version(cx: &mut Cx<'_>) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    let wire = dugnad_kernel::wire::VERSION;
    if cx.json {
        cx.print_json(&json!({"version": version, "arch": arch(), "wire": wire}))?;
    } else {
        writeln!(cx.out, "dugnad {version} {} (wire version {wire})", arch())?;
    }
    Ok(exit::DONE)
}
