//! Snapshots of folders that others write to meanwhile: the state of services.
//!
//! A service may do to its folder what it likes while the agent, who may read more than the
//! service, walks through it. So each folder is opened from the one above it and no link is
//! followed: what is read lies in the folder.
//!
//! What did not change since the last snapshot is not read again, and what is stored already is
//! not stored again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dugnad_kernel::Hash;
use dugnad_resource::spec::Tree;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::ingest::{self, keep, seal};
use super::manifest::{CHUNK, ENTRIES_MAX, Entry, Manifest, What, check_link, check_path};
use super::store::{Store, at, on_disk};
use super::{Blobs, Held};

/// A file that was changed so shortly before it was read may have been changed again since, in the
/// same tick of its clock.
const SETTLED: Duration = Duration::from_secs(2);
/// Paths that are named when they cannot be kept.
const NAMED: usize = 3;

/// What was read before, by path.
#[derive(Default)]
pub(crate) struct Seen(HashMap<String, (Stamp, Vec<Hash>)>);

/// Another whenever the file is written to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            place: (meta.dev(), meta.ino()),
            size: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        let changed = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        changed.is_some_and(|at| now.duration_since(at).is_ok_and(|since| since >= SETTLED))
    }
}

/// A snapshot; its chunks stay here until it is dropped.
pub(crate) struct Snapshot {
    pub(crate) tree: Tree,
    pub(crate) seen: Seen,
    /// What could not be kept, for people; empty if all could.
    pub(crate) left_out: String,
    /// Bytes that were read for it.
    pub(crate) read: u64,
    _held: Held,
}

impl Blobs {
    /// Stores a folder as it is now. A folder in which nothing changed since `before` costs a look
    /// at each file and writes nothing.
    ///
    /// # Errors
    /// Those of the disk, naming the path; `StorageFull` beyond the ceiling; `FileTooLarge` beyond
    /// `most` bytes.
    pub(crate) async fn snapshot(
        &self,
        dir: PathBuf,
        before: Seen,
        most: u64,
    ) -> io::Result<Snapshot> {
        let (store, guard) = (Arc::clone(&self.store), self.gate.read_arc().await);
        let walked = smol::unblock(move || {
            // Lives until the work ends, even if nobody waits for it any more.
            let _guard = guard;
            let walked = walk(&store, &dir, before, most);
            match &walked {
                Ok(walked) => store.hold(walked.tree)?,
                Err(_) => store.leave_orphans(),
            }
            walked
        })
        .await;
        let Walked { tree, seen, left_out, read } = walked?;
        let (store, gate) = (Arc::clone(&self.store), Arc::clone(&self.gate));
        let held = Held { store, gate, tree };
        self.settle().await;
        Ok(Snapshot { tree, seen, left_out, read, _held: held })
    }

    /// Makes `dest` a folder holding the snapshot: files 0600 or 0700, folders 0700. `dest` must
    /// not exist; it appears at once, complete and on the medium.
    ///
    /// # Errors
    /// Those of the disk, naming the path; `InvalidData` if a chunk was damaged.
    pub(crate) async fn restore(&self, tree: Tree, dest: PathBuf) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        smol::unblock(move || {
            let mut aside = dest.clone().into_os_string();
            aside.push(".new");
            let aside = PathBuf::from(aside);
            ingest::remove_all(&aside)?;
            ingest::unpack(&store, tree, &aside)?;
            close_to_others(&aside)?;
            fs::rename(&aside, &dest).map_err(|error| at(&dest, error))
        })
        .await
    }
}

/// State is its service's alone.
fn close_to_others(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path).map_err(|error| at(path, error))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o700;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| at(path, error))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(|error| at(path, error))? {
            close_to_others(&entry?.path())?;
        }
    }
    Ok(())
}

struct Walked {
    tree: Tree,
    seen: Seen,
    left_out: String,
    read: u64,
}

fn walk(store: &Store, dir: &Path, before: Seen, most: u64) -> io::Result<Walked> {
    let mut walk = Walk {
        store,
        most,
        before: before.0,
        now: Seen::default(),
        entries: Vec::new(),
        bytes: 0,
        read: 0,
        refused: Vec::new(),
        started: SystemTime::now(),
    };
    let top = open(dir).map_err(|error| at(dir, error))?;
    walk.folder(&top, "")?;
    let mut entries = std::mem::take(&mut walk.entries);
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    // The list of files and its index.
    let around = entries.iter().map(|entry| 128 + entry.path.len() as u64).sum::<u64>();
    let _room = store.reserve(2 * on_disk(around))?;
    let tree = seal(store, &Manifest { entries })?;
    if !store.complete(tree) {
        store.sync()?;
        store.mark(tree)?;
    }
    let left_out = walk.left_out();
    Ok(Walked { tree, seen: walk.now, left_out, read: walk.read })
}

struct Walk<'a> {
    store: &'a Store,
    most: u64,
    before: HashMap<String, (Stamp, Vec<Hash>)>,
    now: Seen,
    entries: Vec<Entry>,
    bytes: u64,
    read: u64,
    refused: Vec<String>,
    started: SystemTime,
}

impl Walk<'_> {
    fn folder(&mut self, dir: &File, under: &str) -> io::Result<()> {
        // The folder that was opened, whatever its name leads to by now.
        let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        for entry in fs::read_dir(&here)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else {
                self.refuse(&format!("{under}{}: no UTF-8", name.to_string_lossy()));
                continue;
            };
            let path = format!("{under}{name}");
            let depth = match check_path(&path) {
                Ok(depth) => depth,
                Err(why) => {
                    self.refuse(&format!("{path}: {why}"));
                    continue;
                }
            };
            if self.entries.len() >= ENTRIES_MAX {
                let text = format!("more than {ENTRIES_MAX} files; pack them together");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
            match self.look(&here.join(name), &path, depth) {
                // It went while it was looked at.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn refuse(&mut self, what: &str) {
        self.refused.push(what.to_owned());
    }

    fn look(&mut self, place: &Path, path: &str, depth: usize) -> io::Result<()> {
        let opened = match open(place) {
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                return self.link(place, path, depth);
            }
            // A socket cannot be opened.
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(()),
            opened => opened?,
        };
        let meta = opened.metadata()?;
        if meta.is_dir() {
            self.entries.push(Entry { path: path.to_owned(), what: What::Dir });
            return self.folder(&opened, &format!("{path}/"));
        }
        if !meta.is_file() {
            // A pipe is made anew by whoever needs it.
            return Ok(());
        }
        let executable = meta.permissions().mode() & 0o111 != 0;
        let (size, chunks) = self.file(opened, path, &meta)?;
        self.entries
            .push(Entry { path: path.to_owned(), what: What::File { executable, size, chunks } });
        Ok(())
    }

    fn link(&mut self, place: &Path, path: &str, depth: usize) -> io::Result<()> {
        let target = fs::read_link(place)?;
        let checked = target.to_str().ok_or("no UTF-8").and_then(|target| {
            check_link(depth, target)?;
            Ok(target.to_owned())
        });
        match checked {
            Ok(target) => {
                self.entries.push(Entry { path: path.to_owned(), what: What::Link { target } });
            }
            Err(why) => self.refuse(&format!("{path}: {why}")),
        }
        Ok(())
    }

    /// How long it is, and its chunks.
    fn file(
        &mut self,
        mut file: File,
        path: &str,
        meta: &Metadata,
    ) -> io::Result<(u64, Vec<Hash>)> {
        let (stamp, store) = (Stamp::of(meta), self.store);
        self.bytes = self.bytes.saturating_add(stamp.size);
        if self.bytes > self.most {
            let text = format!("more than the {} bytes that [needs] disk says", self.most);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let known = self.before.remove(path).filter(|(known, _)| *known == stamp);
        if let Some((_, chunks)) = known {
            if chunks.iter().all(|chunk| store.lists(*chunk)) {
                self.now.0.insert(path.to_owned(), (stamp, chunks.clone()));
                return Ok((stamp.size, chunks));
            }
        }
        let _room = store.reserve(on_disk(stamp.size))?;
        let (mut chunks, mut size) = (Vec::new(), 0);
        let mut buffer = vec![0; CHUNK];
        // As long as it was when it was opened, or shorter if it shrinks.
        while size < stamp.size {
            let wanted = usize::try_from(stamp.size - size).unwrap_or(CHUNK).min(CHUNK);
            let length = read_up_to(&mut file, &mut buffer[..wanted])?;
            if length == 0 {
                break;
            }
            chunks.push(keep(store, &buffer[..length])?);
            size += length as u64;
            if length < wanted {
                break;
            }
        }
        self.read += size;
        if size == stamp.size && stamp.is_settled(self.started) {
            self.now.0.insert(path.to_owned(), (stamp, chunks.clone()));
        }
        Ok((size, chunks))
    }

    fn left_out(&self) -> String {
        let more = self.refused.len().saturating_sub(NAMED);
        let named = self.refused.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        if more > 0 { format!("{named}; and {more} more") } else { named }
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Opens a file or folder; not a link, and without waiting for whoever else may open it.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn blobs(dir: &Path) -> std::rc::Rc<Blobs> {
        Blobs::open(dir, 1 << 30).unwrap()
    }

    fn take(blobs: &Blobs, dir: &Path, before: Seen) -> Snapshot {
        smol::block_on(blobs.snapshot(dir.to_owned(), before, 1 << 20)).unwrap()
    }

    /// As if all of it had been written long ago.
    fn settle() {
        std::thread::sleep(SETTLED + Duration::from_secs(1));
    }

    #[test]
    fn only_what_changed_is_read_and_what_did_not_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir_all(state.join("deep/er")).unwrap();
        fs::write(state.join("deep/er/a"), vec![1; 300_000]).unwrap();
        fs::write(state.join("b"), b"two").unwrap();
        settle();
        let blobs = blobs(dir.path());
        let first = take(&blobs, &state, Seen::default());
        assert_eq!((first.read, first.tree.bytes), (300_003, 300_003));
        let used = blobs.used();
        let second = take(&blobs, &state, first.seen);
        assert_eq!((second.read, second.tree, blobs.used()), (0, first.tree, used));
        fs::write(state.join("b"), b"three").unwrap();
        let third = take(&blobs, &state, second.seen);
        assert_eq!((third.read, third.tree.bytes), (5, 300_005));
        // What was just written may be written again without a sign of it: read once more.
        assert_eq!(take(&blobs, &state, third.seen).read, 5);
        let back = dir.path().join("back");
        smol::block_on(blobs.restore(third.tree, back.clone())).unwrap();
        assert_eq!(fs::read(back.join("b")).unwrap(), b"three");
        assert_eq!(fs::read(back.join("deep/er/a")).unwrap(), vec![1; 300_000]);
        let mode = |path: &str| fs::metadata(back.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("b"), mode("deep")), (0o600, 0o700));
    }

    #[test]
    fn nothing_outside_of_the_folder_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir_all(&state).unwrap();
        fs::write(dir.path().join("secret"), b"secret").unwrap();
        symlink("../secret", state.join("out")).unwrap();
        symlink("/etc", state.join("etc")).unwrap();
        symlink("inside", state.join("link")).unwrap();
        fs::write(state.join("inside"), b"in").unwrap();
        nix::unistd::mkfifo(&state.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(state.join("socket")).unwrap();
        let blobs = blobs(dir.path());
        let snapshot = take(&blobs, &state, Seen::default());
        assert_eq!(snapshot.tree.bytes, 2);
        assert!(snapshot.left_out.contains("out: the link leads out of the folder"));
        assert!(snapshot.left_out.contains("etc: the link is absolute"));
        let back = dir.path().join("back");
        smol::block_on(blobs.restore(snapshot.tree, back.clone())).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&back).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["inside", "link"]);
    }

    #[test]
    fn more_than_was_said_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("big"), vec![0; (1 << 20) + 1]).unwrap();
        let kept = tempfile::tempdir().unwrap();
        let blobs = blobs(kept.path());
        let taken = smol::block_on(blobs.snapshot(dir.path().into(), Seen::default(), 1 << 20));
        assert_eq!(taken.map(|s| s.tree).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(blobs.used(), 0);
    }
}
