//! Reads what `strace` recorded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that changes files, or makes changes durable.
const CALLS: &str = "openat,open,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,\
    fallocate,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,\
    symlinkat,fsync,fdatasync,syncfs,sync,lseek,copy_file_range,sendfile,splice,chmod,fchmod,\
    fchmodat";

/// `command`, recorded to a file. Its process stays the child that is started.
#[must_use]
pub fn strace(command: &Command, log: &Path) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-D", "-f", "-ttt", "-xx", "-y", "--seccomp-bpf", "-s", "4000000", "-o"]);
    traced.arg(log).args(["-e", &format!("trace={CALLS}"), "-e", "signal=none"]);
    traced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Open {
        fd: u32,
        path: PathBuf,
        create: bool,
        truncate: bool,
        append: bool,
        mode: u32,
    },
    /// At the file's position where no place is given.
    Write {
        fd: u32,
        path: PathBuf,
        at: Option<u64>,
        data: Vec<u8>,
    },
    Seek {
        fd: u32,
        to: u64,
    },
    Truncate {
        path: PathBuf,
        length: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    MakeDir {
        path: PathBuf,
        mode: u32,
    },
    Mode {
        path: PathBuf,
        mode: u32,
    },
    Sync {
        path: PathBuf,
    },
    SyncAll,
}

/// A call that succeeded.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it began, in microseconds since 1970.
    pub at: u64,
    /// How many calls had ended when this one began.
    pub after: usize,
    pub what: What,
}

/// In the order in which they ended.
#[derive(Debug, Default)]
pub struct Trace {
    pub events: Vec<Event>,
}

impl Trace {
    /// Reads what was recorded; only what concerns files below `root`.
    ///
    /// # Errors
    /// A line, or a call below `root`, that is not understood.
    pub fn read(log: &Path, root: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let mut trace = Self::default();
        let mut begun: BTreeMap<&str, (u64, usize, String)> = BTreeMap::new();
        for line in text.lines() {
            let shown = || line.chars().take(200).collect::<String>();
            let parts = line.split_once(' ').and_then(|(process, rest)| {
                let (at, rest) = rest.trim_start().split_once(' ')?;
                Some((process, at, rest))
            });
            let Some((process, at, rest)) = parts else {
                return Err(format!("not understood: {}", shown()));
            };
            let at = at.replace('.', "").parse().map_err(|_| format!("no time: {}", shown()))?;
            let rest = rest.trim_start();
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            let (at, after, call) = if let Some(first) = rest.strip_suffix("<unfinished ...>") {
                begun.insert(process, (at, trace.events.len(), first.trim_end().to_owned()));
                continue;
            } else if rest.starts_with("<... ") {
                let end = rest.split_once("resumed>").map(|(_, end)| end);
                match (begun.remove(process), end) {
                    (Some((at, after, first)), Some(end)) => (at, after, first + end),
                    _ => return Err(format!("nothing to resume: {}", shown())),
                }
            } else {
                (at, trace.events.len(), rest.to_owned())
            };
            match call_of(&call, root) {
                Ok(Some(what)) => trace.events.push(Event { at, after, what }),
                Ok(None) => {}
                Err(why) => return Err(format!("{why}: {}", shown())),
            }
        }
        Ok(trace)
    }
}

/// `Ok(None)` for what changes nothing below `root`.
fn call_of(call: &str, root: &Path) -> Result<Option<What>, &'static str> {
    let (name, rest) = call.split_once('(').ok_or("no call")?;
    // A process that was ended within a call.
    let Some((arguments, told)) = rest.rsplit_once(") = ") else { return Ok(None) };
    if told.starts_with(['-', '?']) {
        return Ok(None);
    }
    match name_call(name, arguments, root) {
        Some(what) => what,
        None => data_call(name, arguments, told, root),
    }
}

/// A call that changes names; `None` for every other.
fn name_call(
    name: &str,
    arguments: &str,
    root: &Path,
) -> Option<Result<Option<What>, &'static str>> {
    let words: Vec<&str> = arguments.split(", ").collect();
    let word = |at: usize| words.get(at).copied().ok_or("too few arguments");
    let below = |path: &Path| path.starts_with(root);
    let here = |what: What, path: &Path| Ok(below(path).then_some(what));
    let what = || match name {
        "rename" | "renameat" | "renameat2" => {
            let (from, to) = match name {
                "rename" => (named(word(0)?, None)?, named(word(1)?, None)?),
                _ => (named(word(1)?, Some(word(0)?))?, named(word(3)?, Some(word(2)?))?),
            };
            if below(&from) != below(&to) {
                return Err("a name from outside");
            }
            here(What::Rename { from, to: to.clone() }, &to)
        }
        "unlink" | "rmdir" | "unlinkat" => {
            let path = match name {
                "unlinkat" => named(word(1)?, Some(word(0)?))?,
                _ => named(word(0)?, None)?,
            };
            here(What::Remove { path: path.clone() }, &path)
        }
        "mkdir" | "mkdirat" => {
            let at = usize::from(name == "mkdirat");
            let path = named(word(at)?, (at == 1).then_some(words[0]))?;
            let mode = u32::from_str_radix(word(at + 1)?, 8).map_err(|_| "no mode")? & !0o022;
            here(What::MakeDir { path: path.clone(), mode }, &path)
        }
        "chmod" | "fchmod" | "fchmodat" => {
            let (path, mode) = match name {
                "chmod" => (named(word(0)?, None)?, word(1)?),
                "fchmod" => (file(word(0)?)?.1, word(1)?),
                _ => (named(word(1)?, Some(word(0)?))?, word(2)?),
            };
            let mode = u32::from_str_radix(mode, 8).map_err(|_| "no mode")?;
            here(What::Mode { path: path.clone(), mode }, &path)
        }
        _ => Err("no call of names"),
    };
    const NAMES: [&str; 11] = [
        "rename",
        "renameat",
        "renameat2",
        "unlink",
        "unlinkat",
        "rmdir",
        "mkdir",
        "mkdirat",
        "chmod",
        "fchmod",
        "fchmodat",
    ];
    NAMES.contains(&name).then(what)
}

/// A call that changes data, or makes something durable.
fn data_call(
    name: &str,
    arguments: &str,
    told: &str,
    root: &Path,
) -> Result<Option<What>, &'static str> {
    let words: Vec<&str> = arguments.split(", ").collect();
    let word = |at: usize| words.get(at).copied().ok_or("too few arguments");
    let below = |path: &Path| path.starts_with(root);
    let here = |what: What, path: &Path| Ok(below(path).then_some(what));
    match name {
        "openat" | "open" | "creat" => {
            let flags = if name == "openat" { word(2)? } else { word(1)? };
            let (fd, path) = file(told)?;
            let has = |flag: &str| flags.split('|').any(|word| word == flag);
            let mode = words.last().and_then(|last| u32::from_str_radix(last, 8).ok());
            let mode = mode.unwrap_or(0o666) & !0o022;
            let (create, truncate, append) = (has("O_CREAT"), has("O_TRUNC"), has("O_APPEND"));
            here(What::Open { fd, path: path.clone(), create, truncate, append, mode }, &path)
        }
        "write" | "writev" | "pwrite64" => {
            let (fd, path) = file(word(0)?)?;
            if !below(&path) {
                return Ok(None);
            }
            let mut data = strings(arguments)?;
            data.truncate(number(told)? as usize);
            let at = if name == "pwrite64" { Some(number(word(3)?)?) } else { None };
            Ok(Some(What::Write { fd, path, at, data }))
        }
        "lseek" => {
            let (fd, path) = file(word(0)?)?;
            here(What::Seek { fd, to: number(told)? }, &path)
        }
        "ftruncate" => {
            let (_, path) = file(word(0)?)?;
            here(What::Truncate { path: path.clone(), length: number(word(1)?)? }, &path)
        }
        "fsync" | "fdatasync" => {
            let (_, path) = file(word(0)?)?;
            here(What::Sync { path: path.clone() }, &path)
        }
        "syncfs" => here(What::SyncAll, &file(word(0)?)?.1),
        "sync" => Ok(Some(What::SyncAll)),
        // Nothing uses them so far; if something does, what it writes would not be seen.
        _ if strings(arguments).is_ok_and(|names| below(&path_of(names))) => Err("unknown call"),
        _ => match words.iter().filter_map(|word| file(word).ok()).any(|(_, path)| below(&path)) {
            true => Err("unknown call"),
            false => Ok(None),
        },
    }
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.trim().parse().map_err(|_| "not a number")
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// `5<\x2f\x74>`: number and path of an open file. One that was removed has no path of ours.
fn file(text: &str) -> Result<(u32, PathBuf), &'static str> {
    let (fd, rest) = text.trim().split_once('<').ok_or("no path of a file")?;
    let (path, rest) = rest.split_once('>').ok_or("no path of a file")?;
    let fd = fd.parse().map_err(|_| "no number of a file")?;
    let gone = rest.contains("(deleted)");
    Ok((fd, if gone { PathBuf::new() } else { path_of(hex(path)?) }))
}

/// A path as an argument, and the folder it is relative to.
fn named(text: &str, from: Option<&str>) -> Result<PathBuf, &'static str> {
    let path = path_of(strings(text)?);
    match from.and_then(|from| from.split_once('<')?.1.strip_suffix('>')) {
        Some(from) => Ok(path_of(hex(from)?).join(path)),
        None if path.is_absolute() => Ok(path),
        None => Err("a path that is not absolute"),
    }
}

/// All texts in quotes, one after the other.
fn strings(text: &str) -> Result<Vec<u8>, &'static str> {
    let parts: Vec<&str> = text.split('"').collect();
    let mut all = Vec::new();
    for pair in parts[1..].chunks(2) {
        if pair.get(1).is_some_and(|after| after.starts_with("...")) {
            return Err("more bytes than were recorded");
        }
        all.extend(hex(pair[0])?);
    }
    Ok(all)
}

fn hex(text: &str) -> Result<Vec<u8>, &'static str> {
    if !text.starts_with("\\x") {
        return if text.contains('\\') { Err("odd text") } else { Ok(text.as_bytes().to_vec()) };
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).ok_or("not hexadecimal");
    let bytes = text.as_bytes().chunks(4).map(|four| match four {
        [b'\\', b'x', high, low] => {
            u8::try_from(digit(high)? * 16 + digit(low)?).map_err(|_| "not hexadecimal")
        }
        _ => Err("not hexadecimal"),
    });
    bytes.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_also_those_that_another_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let (log, root) = (dir.path().join("log"), Path::new("/d"));
        // /d/a is \x2f\x64\x2f\x61
        let text = "7 1.000001 openat(AT_FDCWD<\\x2f>, \"\\x2f\\x64\\x2f\\x61\", \
             O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 5<\\x2f\\x64\\x2f\\x61>\n\
             7 1.000002 fsync(5<\\x2f\\x64\\x2f\\x61> <unfinished ...>\n\
             8 1.000003 pwrite64(5<\\x2f\\x64\\x2f\\x61>, \"\\x01\\x02\", 2, 9) = 2\n\
             7 1.000004 <... fsync resumed>) = 0\n\
             8 1.000005 rename(\"\\x2f\\x61\", \"\\x2f\\x62\") = -1 EPERM (no)\n\
             8 1.000006 +++ exited with 0 +++\n";
        std::fs::write(&log, text).unwrap();
        let events = Trace::read(&log, root).unwrap().events;
        let path = PathBuf::from("/d/a");
        assert_eq!(events.len(), 3);
        assert!(matches!(&events[0].what, What::Open { create: true, truncate: true, .. }));
        let data = vec![1, 2];
        let write = What::Write { fd: 5, path: path.clone(), at: Some(9), data };
        assert_eq!(events[1].what, write);
        assert_eq!(events[2].what, What::Sync { path });
        assert_eq!((events[2].at, events[2].after), (1_000_002, 1), "the write was not waited for");
    }

    #[test]
    fn what_would_be_missed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text = "7 1.000001 sendfile(4<\\x2f\\x64\\x2f\\x61>, 3<\\x2f\\x78>, NULL, 9) = 9\n";
        std::fs::write(&log, text).unwrap();
        assert!(Trace::read(&log, Path::new("/d")).unwrap_err().starts_with("unknown call"));
        assert!(Trace::read(&log, Path::new("/other")).unwrap().events.is_empty());
    }
}
