//! Small kernel files, with errors that say which file and what was written.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where the kernel's own file systems are; tests put folders there.
#[derive(Clone, Debug)]
pub struct Roots {
    pub cgroup: PathBuf,
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { cgroup: "/sys/fs/cgroup".into(), proc: "/proc".into() }
    }
}

/// `error` with `what` in front; its kind stays.
#[must_use]
pub fn explain(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Writes `value` to a file that exists.
///
/// # Errors
/// The system's error, naming the file and the value.
pub fn write_value(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| {
            explain(&error, &format!("cannot write \"{value}\" to {}", path.display()))
        })
}

/// The number a small file starts with, if it is there and holds one.
#[must_use]
pub fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Bytes of all files under a folder; a link counts as itself.
///
/// # Errors
/// The system's, of the first folder that cannot be read.
pub fn weigh(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            weigh(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(bytes)
}

/// The number after `name` in a file of lines `name number`.
pub(crate) fn read_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == name { value.trim().parse().ok() } else { None }
    })
}
