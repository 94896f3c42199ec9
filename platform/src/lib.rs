//! What the operating system can hold a service to.
//!
//! Imports nothing of ours and knows nothing of communities: it probes the kernel ([`probe`]),
//! sets limits on groups of processes ([`cgroup`]), starts a program inside a box ([`spawn`]) and
//! recognises, watches and ends processes ([`process`]). Every error names the file and the value.
//!
//! The only crate with `unsafe`; each block says why it is sound.

pub mod cgroup;
mod file;
#[allow(unsafe_code)]
pub mod mounts;
pub mod probe;
#[allow(unsafe_code)]
pub mod process;
#[allow(unsafe_code)]
pub mod spawn;

pub use file::{explain, read_number, weigh, write_value};
