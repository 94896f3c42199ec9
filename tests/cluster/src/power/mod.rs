//! What a medium may hold after the power failed: from a record of everything a program wrote and
//! synced (`strace`), the folder is built anew as it may have been at any moment, without what was
//! not synced by then, or with a part of it.
//!
//! The rules are those of POSIX and no file system's: data of a file is there once that file was
//! synced, a name once its folder was, and before that anything may be: pages of 4 KiB each for
//! itself, some cut off at a sector, names of a folder in their order. Real file systems keep more.

mod medium;
mod trace;

pub use medium::{Dice, Medium};
pub use trace::{Event, Trace, What, strace};
