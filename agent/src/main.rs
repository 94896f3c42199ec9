//! dugnad: runs a community's services on slices of the computers its members own.

mod blobs;
mod cli;
mod clock;
mod config;
mod control;
mod disk;
mod gateway;
mod host;
mod http_io;
mod identity;
mod invite;
mod limits;
mod link;
mod machine;
mod notify;
mod places;
mod rate;
mod run;
mod seal;
mod service;
mod stream;
mod text;
mod usage;

fn main() -> std::process::ExitCode {
    // A keeper of a service's log is this program, too: it outlives the agent.
    if let Some(code) = host::keeper_main() {
        return code;
    }
    cli::main(&cli::Hooks { agent: run::agent })
}
