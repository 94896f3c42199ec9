//! Communities of real agents for tests: each an own process with an own folder and loopback
//! address, set up with `init`, `invite` and `join` as a person would. Everything a test started
//! ends when its [`Community`] is dropped, also services, whose agents may be dead.
//!
//! The program is `DUGNAD_BIN`, or what cargo builds in the profile of the test. Nothing here
//! needs the internet. A test that lacks a program or a right says `SKIPPED` and why.

mod binary;
mod community;
pub mod history;
pub mod http;
pub mod power;
mod sweep;
mod wires;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub use binary::{program, slim_program};
pub use community::{Community, Node, Options, Said, create, write};
pub use sweep::{Mark, processes_of};
pub use wires::Wires;

/// How long anything may take that has no budget of its own. Machines that build at the same time
/// are slow; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a replica too many may run after its agent or its manager came back: hosts and manager
/// compare what they know once a minute.
pub const SURPLUS: Duration = Duration::from_secs(100);

/// Looks every 50 ms until `look` finds something.
///
/// # Panics
/// After `limit`, with what was last seen.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => {
                assert!(start.elapsed() < limit, "not within {limit:?}: {what}; last seen: {seen}");
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `Ok` if it holds, else what is there instead.
///
/// # Errors
/// It does not hold.
pub fn holds(condition: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(seen()) }
}

/// Tells what a test does, with the time since `start`.
pub fn say(start: Instant, text: &str) {
    eprintln!("{:>6.1}s {text}", start.elapsed().as_secs_f64());
}

/// Says loudly that something was not tested.
pub fn skip(test: &str, why: &str) {
    eprintln!("\n!!! SKIPPED {test}: {why}\n");
}

/// Whether the test runs as root.
#[must_use]
pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The first of these programs that is there.
#[must_use]
pub fn installed(paths: &[&str]) -> Option<String> {
    paths.iter().find(|path| Path::new(path).exists()).map(|path| (*path).to_owned())
}

/// Runs a program to its end; its output.
///
/// # Panics
/// It is not there, or fails.
#[track_caller]
pub fn run(words: &[&str]) -> Output {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {}: {told}", output.status);
    output
}
