//! The log of a service: a small process of its own reads what the service writes and keeps the
//! last megabyte in `log` and `log.1`.
//!
//! Why a process: a service must survive its agent. With the agent at the other end of the pipe it
//! would die of SIGPIPE with it; with a FIFO it would block after 64 KB while the agent is away;
//! with a plain file nobody would bound it meanwhile. The keeper is this same program
//! (`dugnad keep-log`), reads standard input, writes into the folder it was started in, and ends
//! when the last process of the service has closed the pipe. It sleeps while nothing is written.
//!
//! A flood is thinned to what flash can take; the reader of the log is told what is missing. What
//! cannot be written (a full disk, a folder that is gone) is dropped and counted, and the reader is
//! told when it can be again: nothing that happens to a log ends a service.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use dugnad_platform::cgroup::Group;
use dugnad_platform::explain;
use dugnad_platform::process::{self, Process, Sig};
use dugnad_platform::spawn::Launch;
use nix::fcntl::OFlag;

use super::deadline::Deadline;
use super::record::{Folder, Record};
use super::running::PATIENCE;

/// Bytes of `log`, and of `log.1` before it.
pub(super) const HALF: u64 = 512 * 1024;
const BUFFER: usize = 64 * 1024;
/// Bytes that are written at once, and bytes a second after that.
const BURST: u64 = 4 * HALF;
const RATE: u64 = 512 * 1024;
/// The word on the command line that makes this program a keeper.
const COMMAND: &str = "keep-log";
/// The variable with the time its service must end, in milliseconds since the machine started.
const UNTIL: &str = "DUGNAD_UNTIL";
/// How often it looks whether that has come.
const LOOK: i32 = 1_000;

/// To be called first in `main`: `Some` if this process was started as a keeper and is done.
pub(crate) fn keeper_main() -> Option<ExitCode> {
    if std::env::args().nth(1)? != COMMAND {
        return None;
    }
    process::ignore_termination();
    Some(match raw_stdin().and_then(|input| keep(input, Path::new("."))) {
        Ok(()) => ExitCode::SUCCESS,
        // Standard error goes nowhere; the exit code is all that can be said.
        Err(_) => ExitCode::FAILURE,
    })
}

/// Starts a keeper for this folder. Returns the end of the pipe for the service. `until`: when the
/// service must end unless the keeper is told of a later time ([`super::deadline`]).
///
/// # Errors
/// No pipe, no process.
pub(super) fn start(
    folder: &Path,
    group: Group,
    until: Option<Duration>,
) -> io::Result<(OwnedFd, Child, Process)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut launch = Launch::new("/proc/self/exe", folder);
    let name = folder.file_name().unwrap_or_default().to_owned();
    launch.args = arguments().into_iter().map(Into::into).chain([name]).collect();
    launch.input = Some(read);
    launch.group = (!group.is_empty()).then_some(group);
    if let Some(until) = until {
        launch.env.push((UNTIL.into(), until.as_millis().to_string().into()));
    }
    #[cfg(test)]
    launch.env.push(("DUGNAD_TEST_KEEPER".into(), "1".into()));
    let started = launch.start();
    let (child, process) =
        started.map_err(|error| explain(&error.error, "cannot start the keeper of the log"))?;
    Ok((write, child, process))
}

/// In tests this program is the test runner: one of its tests is the keeper.
fn arguments() -> Vec<&'static str> {
    if cfg!(test) {
        let path = concat!(module_path!(), "::tests::the_keeper_process");
        vec!["--exact", path.split_once("::").map_or(path, |(_, path)| path), "--nocapture"]
    } else {
        vec![COMMAND]
    }
}

/// Standard input without std's buffer, which poll could not see into.
fn raw_stdin() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Copies `input` into the ring until it ends.
fn keep(mut input: File, dir: &Path) -> io::Result<()> {
    let mut ring = Ring::new(dir);
    let mut deadline = deadline(dir)?;
    let mut budget = Budget { bytes: BURST, at: Instant::now() };
    let mut buffer = vec![0; BUFFER];
    // The latest bytes there was no budget for, and the lines before them that are gone.
    let mut held: Vec<u8> = Vec::with_capacity(BUFFER);
    let mut skipped = 0;
    loop {
        let mut wait = if held.is_empty() { -1 } else { budget.millis_until(held.len()) };
        if let Some(lease) = &mut deadline {
            if lease.is_over() {
                deadline = None;
                ring.write(b"[ended: its lease ran out]\n");
                end_service(dir);
                continue;
            }
            wait = if wait < 0 { LOOK } else { wait.min(LOOK) };
        }
        let ready = process::wait_readable(&input, wait)?;
        let count = match ready.then(|| input.read(&mut buffer)).transpose() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?.unwrap_or(0),
        };
        let ended = ready && count == 0;
        if !held.is_empty() && (ended || budget.allows(held.len())) {
            if skipped > 0 {
                ring.write(
                    format!("[{skipped} lines skipped: more than {RATE} bytes/s]\n").as_bytes(),
                );
                skipped = 0;
            }
            ring.write(&held);
            held.clear();
        }
        if ended {
            return Ok(());
        }
        if !ready && held.is_empty() {
            continue;
        }
        let new = &buffer[..count];
        if held.is_empty() && budget.allows(count) {
            ring.write(new);
        } else if count > 0 {
            skipped += lines(&held);
            held.clear();
            held.extend_from_slice(new);
        }
    }
}

/// Until when its service may run, if that is bounded.
fn deadline(dir: &Path) -> io::Result<Option<Deadline>> {
    let until = std::env::var(UNTIL).ok().and_then(|millis| millis.parse().ok());
    until.map(|millis| Deadline::begin(dir, Duration::from_millis(millis))).transpose()
}

/// Kills the service: its agent has not, and another replica may run from now on.
fn end_service(dir: &Path) {
    let Some(record) = Folder(dir.to_path_buf()).load().filter(Record::is_alive) else { return };
    record.process().signal_group(Sig::SIGKILL);
    if !record.groups.is_empty() {
        // What cannot be killed so was killed above, or is in nobody's group.
        _ = Group::of(record.groups.clone()).kill(PATIENCE);
    }
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

struct Budget {
    bytes: u64,
    at: Instant,
}

impl Budget {
    fn refill(&mut self) {
        let earned = self.at.elapsed().as_millis() as u64 * RATE / 1000;
        if earned > 0 {
            self.bytes = (self.bytes + earned).min(BURST);
            self.at = Instant::now();
        }
    }

    fn allows(&mut self, count: usize) -> bool {
        self.refill();
        let allowed = self.bytes >= count as u64;
        if allowed {
            self.bytes -= count as u64;
        }
        allowed
    }

    fn millis_until(&mut self, count: usize) -> i32 {
        self.refill();
        let missing = (count as u64).saturating_sub(self.bytes);
        i32::try_from(missing * 1000 / RATE).unwrap_or(i32::MAX).max(1)
    }
}

/// `log` up to [`HALF`], then it becomes `log.1`.
struct Ring {
    dir: PathBuf,
    /// None: it could not be opened or written, and is opened anew with the next line.
    file: Option<File>,
    size: u64,
    /// Lines that could not be written since the last that could, and why.
    lost: Option<(usize, io::Error)>,
}

impl Ring {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), file: None, size: 0, lost: None }
    }

    /// What cannot be written is lost, and the log says so once it can be written again.
    fn write(&mut self, bytes: &[u8]) {
        let note = self.lost.as_ref().map(|(lost, why)| format!("[{lost} lines lost: {why}]\n"));
        let written = self.append(note.unwrap_or_default().as_bytes()).and_then(|()| {
            self.lost = None;
            self.append(bytes)
        });
        if let Err(error) = written {
            self.file = None;
            let before = self.lost.take().map_or(0, |(lost, _)| lost);
            self.lost = Some((before + lines(bytes).max(1), error));
        }
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        // Somebody may have deleted it: what goes into such a file nobody ever reads.
        if self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|m| m.nlink() == 0)) {
            self.file = None;
        }
        if self.file.is_none() {
            self.open()?;
        }
        while self.size + bytes.len() as u64 > HALF {
            // Lines stay whole where they can.
            let room = usize::try_from(HALF.saturating_sub(self.size)).unwrap_or(0);
            let fits = &bytes[..room.min(bytes.len())];
            let cut = fits.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let cut = if cut == 0 && self.size == 0 { fits.len() } else { cut };
            self.put(&bytes[..cut])?;
            bytes = &bytes[cut..];
            fs::rename(self.dir.join("log"), self.dir.join("log.1"))?;
            self.open()?;
        }
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.size += bytes.len() as u64;
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640);
        let file = options.open(self.dir.join("log"))?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Not a test: the process that [`start`] makes of the test runner.
    #[test]
    fn the_keeper_process() {
        if std::env::var_os("DUGNAD_TEST_KEEPER").is_some() {
            process::ignore_termination();
            keep(raw_stdin().unwrap(), Path::new(".")).unwrap();
        }
    }

    fn sizes(dir: &Path) -> (u64, u64) {
        let of = |name| fs::metadata(dir.join(name)).map_or(0, |meta| meta.len());
        (of("log"), of("log.1"))
    }

    #[test]
    fn the_ring_is_bounded_and_keeps_lines_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let mut ring = Ring::new(tmp.path());
        for number in 0..40_000 {
            ring.write(format!("line {number:06} {}\n", "x".repeat(40)).as_bytes());
        }
        let (log, before) = sizes(tmp.path());
        assert!(log <= HALF && before <= HALF && before > HALF - 100, "{log} {before}");
        let text = fs::read_to_string(tmp.path().join("log.1")).unwrap();
        assert!(text.starts_with("line ") && text.ends_with("x\n"));
        // One line longer than everything.
        ring.write(&vec![b'y'; 3 * HALF as usize]);
        let (log, before) = sizes(tmp.path());
        assert!(log <= HALF && before <= HALF, "{log} {before}");
        // The next keeper goes on where this one stopped.
        let mut next = Ring::new(tmp.path());
        next.open().unwrap();
        assert_eq!(next.size, log);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_counted_and_goes_on() {
        let tmp = tempfile::tempdir().unwrap();
        let read = |dir: &Path| fs::read_to_string(dir.join("log")).unwrap_or_default();
        let mut ring = Ring::new(tmp.path());
        ring.write(b"before\n");
        // Somebody tidies up, then a folder is in the way of the new file.
        fs::remove_file(tmp.path().join("log")).unwrap();
        ring.write(b"after\n");
        assert_eq!(read(tmp.path()), "after\n");
        fs::remove_file(tmp.path().join("log")).unwrap();
        fs::create_dir(tmp.path().join("log")).unwrap();
        ring.write(b"one\ntwo\n");
        ring.write(b"three\n");
        fs::remove_dir(tmp.path().join("log")).unwrap();
        ring.write(b"four\n");
        assert_eq!(read(tmp.path()), "[3 lines lost: Is a directory (os error 21)]\nfour\n");
        // The same when the log is full and the old one cannot be moved away.
        ring.write(&b"x\n".repeat(HALF as usize / 2 - 20));
        _ = fs::remove_file(tmp.path().join("log.1"));
        fs::create_dir_all(tmp.path().join("log.1/full")).unwrap();
        ring.write(&b"y\n".repeat(HALF as usize / 2));
        assert!(ring.lost.is_some());
        fs::remove_dir_all(tmp.path().join("log.1")).unwrap();
        ring.write(b"end\n");
        assert!(read(tmp.path()).ends_with("end\n"), "{:?}", ring.lost);
    }

    #[test]
    fn a_full_disk_does_not_end_what_is_logged() {
        let full = Path::new("/dev/full");
        let tmp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(full, tmp.path().join("log")).unwrap();
        let mut ring = Ring::new(tmp.path());
        ring.write(b"one\ntwo\n");
        ring.write(b"three\n");
        assert_eq!(ring.lost.as_ref().map(|(lost, _)| *lost), Some(3));
        fs::remove_file(tmp.path().join("log")).unwrap();
        ring.write(b"four\n");
        let text = fs::read_to_string(tmp.path().join("log")).unwrap();
        assert_eq!(text, "[3 lines lost: No space left on device (os error 28)]\nfour\n");
    }

    #[test]
    fn a_flood_is_thinned_and_its_end_is_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let writer = std::thread::spawn(move || {
            let mut write = File::from(write);
            let block = format!("{}\n", "z".repeat(1023)).repeat(64);
            for _ in 0..1000 {
                write.write_all(block.as_bytes()).unwrap();
            }
            write.write_all(b"the end\n").unwrap();
        });
        keep(File::from(read), tmp.path()).unwrap();
        writer.join().unwrap();
        let (log, before) = sizes(tmp.path());
        assert!(log <= HALF && before <= HALF, "{log} {before}");
        let text = fs::read_to_string(tmp.path().join("log")).unwrap();
        assert!(text.ends_with("the end\n"), "the last words are kept");
        let old = fs::read_to_string(tmp.path().join("log.1")).unwrap();
        assert!((old + &text).contains("lines skipped"), "the reader is told");
    }
}
