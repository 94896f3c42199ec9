//! Reading the logs that keepers write, once or for as long as somebody listens.

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use dugnad_kernel::Key;
use dugnad_platform::explain;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use smol::Async;
use smol::channel::{Receiver, Sender};

use super::record::Folder;

/// One line of a service's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// Number of the replica that wrote it.
    pub(crate) replica: u32,
    pub(crate) text: String,
}

/// Lines that wait for a slow reader; then reading stops until there is room again.
const QUEUE: usize = 256;
/// Those who follow at a time.
pub(super) const FOLLOWERS_MAX: usize = 32;
/// A longer line comes in pieces of this many bytes.
const LINE_MAX: usize = 16 * 1024;
const BLOCK: usize = 64 * 1024;

pub(super) fn open(
    taps: Rc<Taps>,
    services: PathBuf,
    service: Key,
    tail: usize,
    follow: bool,
) -> (Receiver<LogLine>, impl Future<Output = ()>) {
    let (lines, receiver) = smol::channel::bounded(QUEUE);
    let task = async move {
        let gone = lines.clone();
        let work = async {
            if let Err(error) = send(&taps, services, service, tail, follow, lines.clone()).await {
                // Nobody may listen any more; then nobody needs to know.
                _ = lines.send(LogLine { replica: u32::MAX, text: error.to_string() }).await;
            }
        };
        // Nobody listens any more: also stop waiting for the next line.
        smol::future::or(work, gone.closed()).await;
    };
    (receiver, task)
}

async fn send(
    taps: &Rc<Taps>,
    services: PathBuf,
    service: Key,
    tail: usize,
    follow: bool,
    lines: Sender<LogLine>,
) -> io::Result<()> {
    let mut watch = if follow { Some(taps.follow(&services)?) } else { None };
    let mut readers: BTreeMap<u32, Reader> = BTreeMap::new();
    let mut first = true;
    loop {
        for folder in find(&services, service).await {
            let number = folder.id().map_or(0, |id| id.number);
            if let Some(watch) = &mut watch {
                watch.add(&folder.0)?;
            }
            // A replica that appears later is read from its beginning.
            let lines_wanted = if first { tail } else { usize::MAX };
            if let Entry::Vacant(place) = readers.entry(number) {
                let (mut reader, last) =
                    smol::unblock(move || Reader::open(folder, lines_wanted)).await;
                if !deliver(&lines, number, last).await {
                    return Ok(());
                }
                if !follow && !deliver(&lines, number, reader.rest()).await {
                    return Ok(());
                }
                place.insert(reader);
            }
        }
        let Some(watch) = &mut watch else { return Ok(()) };
        if !first {
            for (number, reader) in &mut readers {
                loop {
                    let mut taken = std::mem::take(reader);
                    let (back, got, more) = smol::unblock(move || {
                        let (got, more) = taken.more();
                        (taken, got, more)
                    })
                    .await;
                    *reader = back;
                    if !deliver(&lines, *number, got).await {
                        return Ok(());
                    }
                    if !more {
                        break;
                    }
                }
            }
        }
        // Once more at once: lines written before the watch stood cause no event.
        if !first {
            watch.changed().await?;
        }
        first = false;
    }
}

async fn deliver(lines: &Sender<LogLine>, replica: u32, texts: Vec<String>) -> bool {
    for text in texts {
        if lines.send(LogLine { replica, text }).await.is_err() {
            return false;
        }
    }
    true
}

async fn find(services: &Path, service: Key) -> Vec<Folder> {
    let services = services.to_path_buf();
    let folders = smol::unblock(move || super::folders(&services)).await;
    let ours = |folder: &Folder| folder.id().is_some_and(|id| id.service == service);
    folders.into_iter().filter(ours).collect()
}

/// Everybody who follows a log here. They share one inotify instance, of which the kernel has 128
/// for all programs of a user; it is open while somebody follows.
#[derive(Default)]
pub(super) struct Taps(RefCell<Weak<Tap>>);

struct Tap {
    inotify: Async<Inotify>,
    followers: RefCell<Vec<Rc<Follower>>>,
}

/// The watches of one who follows, and whether one of them saw something.
#[derive(Default)]
struct Follower {
    watches: RefCell<Vec<WatchDescriptor>>,
    news: Cell<bool>,
}

/// One who follows. The kernel keeps the queue short: equal events are one.
struct Watch {
    tap: Rc<Tap>,
    me: Rc<Follower>,
}

impl Taps {
    fn follow(&self, services: &Path) -> io::Result<Watch> {
        let standing = self.0.borrow().upgrade();
        let tap = match standing {
            Some(tap) => tap,
            None => {
                let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
                    .map_err(|e| explain(&e.into(), "cannot follow logs (inotify)"))?;
                let inotify = Async::new_nonblocking(inotify)?;
                let tap = Rc::new(Tap { inotify, followers: RefCell::default() });
                self.0.replace(Rc::downgrade(&tap));
                tap
            }
        };
        if tap.followers.borrow().len() >= FOLLOWERS_MAX {
            let text = format!("{FOLLOWERS_MAX} follow logs on this node already; end some");
            return Err(io::Error::other(text));
        }
        let me = Rc::<Follower>::default();
        tap.followers.borrow_mut().push(Rc::clone(&me));
        let watch = Watch { tap, me };
        watch.add_for(services, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        Ok(watch)
    }
}

impl Tap {
    /// Tells the followers what happened since the last time; whichever of them was woken first.
    fn drain(&self) -> io::Result<()> {
        loop {
            let events = match self.inotify.get_ref().read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for follower in self.followers.borrow().iter() {
                let watches = follower.watches.borrow();
                // An overflow names no watch: it may have been anybody's.
                let theirs = |event: &InotifyEvent| {
                    watches.contains(&event.wd) || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
                };
                if events.iter().any(theirs) {
                    follower.news.set(true);
                }
            }
        }
    }
}

impl Watch {
    fn add(&self, folder: &Path) -> io::Result<()> {
        self.add_for(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)
    }

    /// Adding it again changes nothing.
    fn add_for(&self, path: &Path, flags: AddWatchFlags) -> io::Result<()> {
        match self.tap.inotify.get_ref().add_watch(path, flags) {
            Ok(watch) => {
                let mut watches = self.me.watches.borrow_mut();
                if !watches.contains(&watch) {
                    watches.push(watch);
                }
                Ok(())
            }
            // It was deleted a moment ago.
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(explain(&error.into(), &format!("cannot follow {}", path.display()))),
        }
    }

    async fn changed(&self) -> io::Result<()> {
        while !self.me.news.take() {
            self.tap.inotify.readable().await?;
            self.tap.drain()?;
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut followers = self.tap.followers.borrow_mut();
        followers.retain(|follower| !Rc::ptr_eq(follower, &self.me));
        for watch in self.me.watches.borrow().iter() {
            let theirs = |follower: &Rc<Follower>| follower.watches.borrow().contains(watch);
            if !followers.iter().any(theirs) {
                // A folder that was deleted took its watch with it.
                _ = self.tap.inotify.get_ref().rm_watch(*watch);
            }
        }
    }
}

/// Where reading one replica's log has come to.
#[derive(Default)]
struct Reader {
    folder: Option<Folder>,
    file: Option<File>,
    /// A line whose end is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    /// Opens it and gives the last `tail` lines.
    fn open(folder: Folder, tail: usize) -> (Self, Vec<String>) {
        // `log` first: if it is rotated in between, it is also `log.1` and read once.
        let mut file = File::open(folder.0.join("log")).ok();
        let inode = file.as_ref().and_then(inode);
        let mut reader = Self { folder: Some(folder.clone()), file: None, partial: Vec::new() };
        let mut last = VecDeque::new();
        let mut keep = |lines: Vec<String>| {
            for line in lines {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
        };
        if let Ok(mut before) = File::open(folder.0.join("log.1")) {
            if self::inode(&before) != inode {
                while let Some(lines) = reader.block(&mut before) {
                    keep(lines);
                }
                keep(reader.rest());
            }
        }
        if let Some(file) = &mut file {
            while let Some(lines) = reader.block(file) {
                keep(lines);
            }
        }
        reader.file = file;
        (reader, last.into())
    }

    /// What was written since, and whether there may be more at once.
    fn more(&mut self) -> (Vec<String>, bool) {
        if let Some(mut file) = self.file.take() {
            let lines = self.block(&mut file);
            self.file = Some(file);
            if let Some(lines) = lines {
                return (lines, true);
            }
        }
        let Some(folder) = &self.folder else { return (Vec::new(), false) };
        let Ok(now) = File::open(folder.0.join("log")) else { return (Vec::new(), false) };
        let (old, new) = (self.file.as_ref().and_then(inode), inode(&now));
        if old == new {
            return (Vec::new(), false);
        }
        // Rotated. The old file was read to an end that may have moved before the change.
        let mut lines = Vec::new();
        if let Some(mut file) = self.file.replace(now) {
            while let Some(rest) = self.block(&mut file) {
                lines.extend(rest);
            }
            lines.extend(self.rest());
            let before = File::open(folder_of(&self.folder).join("log.1")).ok();
            if before.as_ref().and_then(inode) != old {
                lines.push("[lines skipped: they were written faster than read]".to_owned());
            }
        }
        (lines, true)
    }

    /// The lines of the next block; `None` at the end of the file.
    fn block(&mut self, file: &mut File) -> Option<Vec<String>> {
        let mut block = vec![0; BLOCK];
        let count = file.read(&mut block).ok().filter(|count| *count > 0)?;
        let mut lines = Vec::new();
        for piece in block[..count].split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LINE_MAX {
                lines.extend(self.rest());
            }
        }
        Some(lines)
    }

    fn rest(&mut self) -> Vec<String> {
        if self.partial.is_empty() {
            return Vec::new();
        }
        let bytes = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&bytes);
        vec![text.trim_end_matches(['\n', '\r']).to_owned()]
    }
}

fn folder_of(folder: &Option<Folder>) -> &Path {
    folder.as_ref().map_or(Path::new(""), |folder| &folder.0)
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().as_ref().map(fs::Metadata::ino)
}
