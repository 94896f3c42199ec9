//! A folder in memory, with what of it is durable and what is not yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::trace::{Event, What};

/// What the system keeps or loses as a whole.
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Always the same, so that a cut that was found can be looked at again.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Dir {
        mode: u32,
    },
    /// Which of the contents.
    File {
        content: usize,
    },
}

#[derive(Clone, Debug)]
enum Data {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

/// A file, under whatever names.
#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// As programs see it.
    now: Vec<u8>,
    mode: u32,
    /// Since the last sync, with the number of the event.
    pending: Vec<(usize, Data)>,
}

impl Data {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Truncate(length) => to.resize(*length, 0),
            Self::Write { at, bytes } => put(to, *at, bytes),
        }
    }
}

fn put(to: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[at..end].copy_from_slice(bytes);
}

#[derive(Clone, Debug)]
enum Naming {
    Add(PathBuf, Entry),
    Remove(PathBuf),
    Move(PathBuf, PathBuf),
}

type Names = BTreeMap<PathBuf, Entry>;

impl Naming {
    fn folders(&self) -> Vec<PathBuf> {
        let parent = |path: &Path| path.parent().unwrap_or(path).to_owned();
        match self {
            Self::Add(path, _) | Self::Remove(path) => vec![parent(path)],
            Self::Move(from, to) => vec![parent(from), parent(to)],
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(path, entry) => {
                names.insert(path.clone(), *entry);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Move(from, to) => {
                let moved: Vec<PathBuf> =
                    names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    let below = path.strip_prefix(from).unwrap_or(&path);
                    let new =
                        if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
                    if let Some(entry) = names.remove(&path) {
                        names.insert(new, entry);
                    }
                }
            }
        }
    }
}

/// The folder at one moment.
#[derive(Clone, Debug)]
pub struct Medium {
    root: PathBuf,
    contents: Vec<Content>,
    durable: Names,
    now: Names,
    pending: Vec<(usize, Naming)>,
    /// Where the next write of an open file goes; `None` at its end.
    positions: BTreeMap<u32, Option<u64>>,
    applied: usize,
}

impl Medium {
    /// A folder as it is on disk, all of it durable.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let mut medium = Self {
            root: root.to_owned(),
            contents: Vec::new(),
            durable: Names::new(),
            now: Names::new(),
            pending: Vec::new(),
            positions: BTreeMap::new(),
            applied: 0,
        };
        medium.load(root);
        medium.now = medium.durable.clone();
        medium
    }

    fn load(&mut self, path: &Path) {
        let is = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mode = is.permissions().mode() & 0o7777;
        if is.is_dir() {
            self.durable.insert(path.to_owned(), Entry::Dir { mode });
            for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
                self.load(&entry.unwrap_or_else(|e| panic!("{}: {e}", path.display())).path());
            }
        } else if is.is_file() {
            let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let content = self.contents.len();
            let (durable, now) = (bytes.clone(), bytes);
            self.contents.push(Content { durable, now, mode, pending: Vec::new() });
            self.durable.insert(path.to_owned(), Entry::File { content });
        }
    }

    /// What happened next.
    pub fn apply(&mut self, event: &Event) {
        let number = self.applied;
        self.applied += 1;
        match &event.what {
            What::Open { fd, path, create, truncate, append, mode } => {
                self.positions.insert(*fd, (!append).then_some(0));
                if *create && !self.now.contains_key(path) {
                    let content = self.contents.len();
                    self.contents.push(Content { mode: *mode, ..Content::default() });
                    self.name(number, Naming::Add(path.clone(), Entry::File { content }));
                } else if *truncate {
                    self.change(number, path, Data::Truncate(0));
                }
            }
            What::Write { fd, path, at, data } => {
                let position = self.positions.get(fd).copied().flatten();
                let end = self.content(path).map_or(0, |content| content.now.len());
                let place = at.or(position).map_or(end, |place| place as usize);
                if at.is_none() && position.is_some() {
                    self.positions.insert(*fd, Some((place + data.len()) as u64));
                }
                self.change(number, path, Data::Write { at: place, bytes: data.clone() });
            }
            What::Seek { fd, to } => {
                self.positions.entry(*fd).and_modify(|at| *at = at.map(|_| *to));
            }
            What::Truncate { path, length } => {
                self.change(number, path, Data::Truncate(*length as usize));
            }
            What::Rename { from, to } => {
                // A folder under a new name: only where something damaged is moved aside. What
                // was named before is taken as durable, so that paths stay what they are.
                if matches!(self.now.get(from), Some(Entry::Dir { .. })) {
                    self.names_are_durable(|_, _| true);
                }
                self.name(number, Naming::Move(from.clone(), to.clone()));
            }
            What::Remove { path } => self.name(number, Naming::Remove(path.clone())),
            What::MakeDir { path, mode } => {
                self.name(number, Naming::Add(path.clone(), Entry::Dir { mode: *mode }));
            }
            What::Mode { path, mode } => {
                if let Some(content) = self.content(path) {
                    content.mode = *mode;
                }
            }
            What::Sync { path } => match self.now.get(path) {
                Some(Entry::File { content }) => {
                    let content = *content;
                    self.data_is_durable(content, event.after);
                }
                Some(Entry::Dir { .. }) => {
                    self.names_are_durable(|at, folder| at < event.after && folder == path);
                }
                None => {}
            },
            What::SyncAll => {
                (0..self.contents.len()).for_each(|at| self.data_is_durable(at, event.after));
                self.names_are_durable(|at, _| at < event.after);
            }
        }
    }

    fn content(&mut self, path: &Path) -> Option<&mut Content> {
        match self.now.get(path) {
            Some(Entry::File { content }) => self.contents.get_mut(*content),
            _ => None,
        }
    }

    fn change(&mut self, number: usize, path: &Path, data: Data) {
        if let Some(content) = self.content(path) {
            data.apply(&mut content.now);
            content.pending.push((number, data));
        }
    }

    fn name(&mut self, number: usize, naming: Naming) {
        naming.apply(&mut self.now);
        self.pending.push((number, naming));
    }

    fn data_is_durable(&mut self, content: usize, before: usize) {
        let content = &mut self.contents[content];
        let (durable, pending) = (&mut content.durable, std::mem::take(&mut content.pending));
        for (at, data) in pending {
            if at < before {
                data.apply(durable);
            } else {
                content.pending.push((at, data));
            }
        }
    }

    fn names_are_durable(&mut self, which: impl Fn(usize, &Path) -> bool) {
        for (at, naming) in std::mem::take(&mut self.pending) {
            if naming.folders().iter().any(|folder| which(at, folder)) {
                naming.apply(&mut self.durable);
            } else {
                self.pending.push((at, naming));
            }
        }
    }

    /// Whether what programs see is what is in the folder now.
    ///
    /// # Errors
    /// The first file that differs: then something was not recorded.
    ///
    /// # Panics
    /// The folder cannot be read.
    pub fn is_what_is_there(&self) -> Result<(), String> {
        let there = Self::of(&self.root);
        let paths: BTreeSet<&PathBuf> = self.now.keys().chain(there.now.keys()).collect();
        for path in paths {
            let same = match (self.now.get(path), there.now.get(path)) {
                (Some(Entry::Dir { .. }), Some(Entry::Dir { .. })) => true,
                (Some(Entry::File { content: a }), Some(Entry::File { content: b })) => {
                    self.contents[*a].now == there.contents[*b].now
                }
                _ => false,
            };
            if !same {
                return Err(format!("{} is not as it was recorded", path.display()));
            }
        }
        Ok(())
    }

    /// Writes to `to` what may be left if the power fails now. Of what is not durable `keep` per
    /// cent stay.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn cut(&self, to: &Path, keep: usize, dice: &mut Dice) {
        let mut names = self.durable.clone();
        // Of the names of each folder the first few.
        let mut lost: BTreeSet<PathBuf> = BTreeSet::new();
        for (_, naming) in &self.pending {
            let folders = naming.folders();
            if dice.below(100) >= keep {
                lost.extend(folders.iter().cloned());
            }
            if folders.iter().all(|folder| !lost.contains(folder)) {
                naming.apply(&mut names);
            }
        }
        let mut made: BTreeSet<PathBuf> = BTreeSet::new();
        for (path, entry) in &names {
            let below = path.strip_prefix(&self.root).unwrap_or(path);
            let new = to.join(below);
            // A folder that was lost took along what is in it.
            if path != &self.root && !path.parent().is_some_and(|parent| made.contains(parent)) {
                continue;
            }
            let mode = match entry {
                Entry::Dir { mode } => {
                    made.insert(path.clone());
                    fs::create_dir(&new).map(|()| *mode)
                }
                Entry::File { content } => {
                    let content = &self.contents[*content];
                    fs::write(&new, left_of(content, keep, dice)).map(|()| content.mode)
                }
            };
            mode.and_then(|mode| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
                .unwrap_or_else(|error| panic!("{}: {error}", new.display()));
        }
    }
}

/// A file after the power failed.
fn left_of(content: &Content, keep: usize, dice: &mut Dice) -> Vec<u8> {
    let mut left = content.durable.clone();
    for (_, data) in &content.pending {
        match data {
            Data::Truncate(_) if dice.below(100) < keep => data.apply(&mut left),
            Data::Truncate(_) => {}
            Data::Write { at, bytes } => {
                let mut from = 0;
                while from < bytes.len() {
                    let place = at + from;
                    let length = (PAGE - place % PAGE).min(bytes.len() - from);
                    let torn = dice.below(10) == 0;
                    let kept = if torn { length.min(dice.below(8) * SECTOR) } else { length };
                    if dice.below(100) < keep {
                        put(&mut left, place, &bytes[from..from + kept]);
                    }
                    from += length;
                }
            }
        }
    }
    left
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event(after: usize, what: What) -> Event {
        Event { at: 0, after, what }
    }

    /// Opens a file in the folder, writes, and syncs what is asked for.
    fn written(root: &Path, sync_file: bool, sync_dir: bool) -> Medium {
        let mut medium = Medium::of(root);
        let path = root.join("a");
        let open = What::Open {
            fd: 3,
            path: path.clone(),
            create: true,
            truncate: false,
            append: false,
            mode: 0o644,
        };
        medium.apply(&event(0, open));
        let data = vec![7; 10_000];
        medium.apply(&event(1, What::Write { fd: 3, path: path.clone(), at: None, data }));
        if sync_file {
            medium.apply(&event(2, What::Sync { path }));
        }
        if sync_dir {
            medium.apply(&event(3, What::Sync { path: root.to_owned() }));
        }
        medium
    }

    #[test]
    fn what_was_synced_stays_and_nothing_else_has_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        for (number, (file, folder, left)) in
            [(true, true, Some(10_000)), (true, false, None), (false, true, Some(0))]
                .into_iter()
                .enumerate()
        {
            let to = dir.path().join(number.to_string());
            written(&root, file, folder).cut(&to, 0, &mut Dice(1));
            let is = fs::read(to.join("a")).ok().map(|bytes| bytes.len());
            assert_eq!(is, left, "file {file}, folder {folder}");
        }
        // With luck everything is there, but for what a sector cut off.
        let to = dir.path().join("lucky");
        written(&root, false, false).cut(&to, 100, &mut Dice(1));
        assert!(!fs::read(to.join("a")).unwrap().is_empty());
    }

    #[test]
    fn a_write_during_a_sync_is_not_covered_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a"), "old").unwrap();
        let mut medium = Medium::of(&root);
        let path = root.join("a");
        let data = b"new".to_vec();
        medium.apply(&event(0, What::Write { fd: 3, path: path.clone(), at: Some(0), data }));
        medium.apply(&event(0, What::Sync { path: path.clone() }));
        let to = dir.path().join("cut");
        medium.cut(&to, 0, &mut Dice(1));
        assert_eq!(fs::read(to.join("a")).unwrap(), b"old");
        assert!(medium.is_what_is_there().is_err(), "the folder has still the old value");
    }

    #[test]
    fn a_name_that_was_moved_is_there_under_one_of_both() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a"), "one").unwrap();
        let mut medium = Medium::of(&root);
        let (from, to) = (root.join("a"), root.join("b"));
        medium.apply(&event(0, What::Rename { from, to }));
        for keep in [0, 100] {
            let to = dir.path().join(keep.to_string());
            medium.cut(&to, keep, &mut Dice(1));
            assert_eq!(to.join("a").exists(), keep == 0);
            assert_eq!(to.join("b").exists(), keep == 100);
        }
    }
}
