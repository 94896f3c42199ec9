//! dugnad: runs a community's services on slices of the computers its members own.

mod blobs;
mod cli;
mod config;
mod control;
mod disk;
mod gateway;
mod host;
mod identity;
mod invite;
mod link;
mod service;
mod stream;

fn main() -> std::process::ExitCode {
    cli::main(&cli::Hooks { agent: |_, _| Err("this build has no agent".to_owned()) })
}
