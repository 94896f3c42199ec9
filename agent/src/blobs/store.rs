//! Chunk files on disk. Everything here blocks: it is called on the blocking pool only.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dugnad_kernel::Hash;
use dugnad_kernel::map::Map;
use dugnad_resource::spec::Tree;

use super::catalog::Catalog;
use super::manifest::{CHUNK, Index, Manifest};
use crate::usage;

/// Never filled up to the last byte: the owner's own programs live here, too.
const KEEP_FREE: u64 = 16 * 1024 * 1024;
/// Set aside for records and registers, which are small and never refused; an eighth of a ceiling
/// that is low.
const ASIDE: u64 = 64 * 1024 * 1024;
/// How long it counts what was found to lie beside the chunks, and how many times as long as it
/// took to find it.
const COUNTS: Duration = Duration::from_secs(60);
const PAYS: u32 = 100;
/// A file takes whole blocks of this many bytes.
const BLOCK: u64 = 4096;

pub(super) struct Store {
    dir: PathBuf,
    state: Mutex<State>,
    /// Distinguishes files being written.
    next: AtomicUsize,
    beside: Mutex<Beside>,
}

/// What lies beside the chunks: records, logs, and what services have.
#[derive(Default)]
struct Beside {
    bytes: u64,
    /// From then on it is counted again.
    until: Option<Instant>,
}

#[derive(Default)]
struct State {
    ceiling: u64,
    /// Bytes of all chunks and marks on disk, in whole blocks.
    used: u64,
    /// Bytes promised to ingests and fetches under way.
    reserved: u64,
    complete: Map<Hash, Tree>,
    /// Trees dropped while somebody was writing; bounded by the trees there were.
    dropped: Map<Hash, Tree>,
    /// Trees somebody reads from, and how many do; bounded by the answers under way.
    in_use: Map<Hash, (Tree, usize)>,
    /// Chunks no tree uses may be lying about.
    orphans: bool,
}

/// Room on disk promised to one ingest or fetch; given back when dropped.
pub(super) struct Room<'a> {
    store: &'a Store,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        state.reserved = state.reserved.saturating_sub(self.bytes);
    }
}

impl Store {
    pub(super) fn open(dir: &Path, ceiling: u64) -> io::Result<Self> {
        let store = Self {
            dir: dir.to_owned(),
            state: Mutex::new(State { ceiling, ..State::default() }),
            next: AtomicUsize::new(0),
            beside: Mutex::default(),
        };
        for dir in [store.chunks(), store.marks()] {
            fs::create_dir_all(&dir).map_err(|error| at(&dir, error))?;
        }
        sync_dir(dir)?;
        store.scan()?;
        Ok(store)
    }

    /// Counts what is there and removes what an interrupted write left.
    fn scan(&self) -> io::Result<()> {
        let mut used = 0;
        let mut complete = Map::new();
        for shard in list(&self.chunks())? {
            if shard.is_dir() {
                for file in list(&shard)? {
                    used += tidy(&file)?;
                }
            }
        }
        for file in list(&self.marks())? {
            used += tidy(&file)?;
            let name = file.file_name().and_then(|name| name.to_str()).and_then(Hash::from_hex);
            let bytes = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            if let (Some(root), Some(bytes)) = (name, bytes) {
                complete.insert(root, Tree { root, bytes });
            }
        }
        let mut state = self.lock();
        state.used = used;
        state.complete = complete;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunks(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    fn marks(&self) -> PathBuf {
        self.dir.join("trees")
    }

    fn mark_path(&self, root: Hash) -> PathBuf {
        self.marks().join(root.to_string())
    }

    fn chunk_path(&self, hash: Hash) -> PathBuf {
        let name = hash.to_string();
        self.chunks().join(&name[..2]).join(name)
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().used
    }

    pub(super) fn set_ceiling(&self, bytes: u64) {
        self.lock().ceiling = bytes;
    }

    pub(super) fn complete(&self, tree: Tree) -> bool {
        self.lock().complete.get(&tree.root) == Some(&tree)
    }

    pub(super) fn trees(&self) -> Vec<Tree> {
        self.lock().complete.values().copied().collect()
    }

    /// Bytes of everything in the node's folder but the chunks. A look at every file there, if
    /// the last one is a while ago.
    fn beside(&self) -> u64 {
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if beside.until.is_none_or(|until| until <= begun) {
            beside.bytes = usage::taken(&self.dir, &["blobs", "trees"]);
            let took = begun.elapsed();
            beside.until = Some(begun + took + COUNTS.max(took * PAYS));
        }
        beside.bytes
    }

    /// Bytes by which everything together is above the ceiling, or the disk above what stays free.
    pub(super) fn over(&self) -> io::Result<u64> {
        let beside = self.beside();
        let (free, keep) = self.free()?;
        let state = self.lock();
        let above = beside.saturating_add(state.used).saturating_sub(state.ceiling);
        Ok(above.max(keep.saturating_sub(free)))
    }

    /// Bytes that nobody has on this disk, and how many of them are left alone.
    fn free(&self) -> io::Result<(u64, u64)> {
        let stat = nix::sys::statvfs::statvfs(&self.dir)
            .map_err(|errno| at(&self.dir, io::Error::from(errno)))?;
        // Their types differ between processors.
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
        let (block, free, all) =
            (stat.fragment_size() as u64, stat.blocks_available() as u64, stat.blocks() as u64);
        Ok((free.saturating_mul(block), KEEP_FREE.max(all.saturating_mul(block) / 100)))
    }

    /// Bytes that may still be written, and why not more.
    fn room(&self) -> io::Result<(u64, String)> {
        let beside = self.beside();
        let (free, keep) = self.free()?;
        let state = self.lock();
        let free = free.saturating_sub(keep).saturating_sub(state.reserved);
        let aside = beside.max(ASIDE.min(state.ceiling / 8));
        let taken = state.used.saturating_add(state.reserved).saturating_add(aside);
        let below = state.ceiling.saturating_sub(taken);
        Ok(if below <= free {
            let (ceiling, left, aside) = (size(state.ceiling), size(below), size(aside));
            let why = format!(
                "ceiling {ceiling} leaves {left} (limits.disk in dugnad.toml; {aside} are for \
                 records, logs and what services have)"
            );
            (below, why)
        } else {
            let (room, keep, dir) = (size(free), size(keep), self.dir.display());
            let why = format!("{room} can be used in {dir}, {keep} stay free: make room there");
            (free, why)
        })
    }

    /// Promises room for `bytes` more.
    ///
    /// # Errors
    /// `StorageFull`, with the reason for a person.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<Room<'_>> {
        let (room, why) = self.room()?;
        if bytes > room {
            let text = format!("disk: needs {}, {why}", size(bytes));
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.lock().reserved += bytes;
        Ok(Room { store: self, bytes })
    }

    /// Whether a chunk is here and whole. A damaged one is removed.
    pub(super) fn holds(&self, hash: Hash) -> bool {
        self.read(hash).is_ok()
    }

    /// Whether a file of that name is here; says nothing about its bytes.
    pub(super) fn lists(&self, hash: Hash) -> bool {
        self.chunk_path(hash).exists()
    }

    /// A chunk, its hash checked.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` if it was damaged: it is removed then, and with it the marks of
    /// all trees that need it, so that they are fetched again.
    pub(super) fn read(&self, hash: Hash) -> io::Result<Vec<u8>> {
        let path = self.chunk_path(hash);
        match self.read_plain(hash)? {
            Some(bytes) => Ok(bytes),
            None => {
                self.remove_chunk(hash)?;
                self.unmark_users(hash);
                let text = "damaged on disk and removed; fetch its service's package again";
                Err(at(&path, io::Error::new(io::ErrorKind::InvalidData, text)))
            }
        }
    }

    /// A chunk of a tree that should be whole here. If it is missing, the marks of all trees that
    /// need it go, so that they are fetched again.
    pub(super) fn read_needed(&self, hash: Hash) -> io::Result<Vec<u8>> {
        let read = self.read(hash);
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.unmark_users(hash);
        }
        read
    }

    /// `None` if the bytes are not those the name promises.
    fn read_plain(&self, hash: Hash) -> io::Result<Option<Vec<u8>>> {
        let path = self.chunk_path(hash);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| {
                let length = usize::try_from(file.metadata()?.len()).unwrap_or(CHUNK);
                bytes.reserve_exact(length.min(CHUNK) + 1);
                file.take(CHUNK as u64 + 1).read_to_end(&mut bytes)
            })
            .map_err(|error| at(&path, error))?;
        Ok((bytes.len() <= CHUNK && Hash::of(&bytes) == hash).then_some(bytes))
    }

    /// Writes a chunk aside and gives it its name. It is on the medium after [`Self::sync`]; cut
    /// off before, a name may stand for other bytes, which every reader notices.
    pub(super) fn write(&self, hash: Hash, bytes: &[u8]) -> io::Result<()> {
        let path = self.chunk_path(hash);
        let shard = path.parent().unwrap_or(&path).to_owned();
        if !shard.is_dir() {
            match fs::create_dir(&shard) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(at(&shard, error));
                }
                Ok(()) | Err(_) => sync_dir(&self.chunks())?,
            }
        }
        self.place(&path, bytes, false)
    }

    fn place(&self, path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_extension(format!("{number}.tmp"));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&aside)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                if synced { file.sync_all() } else { Ok(()) }
            })
            .and_then(|()| {
                // Under the lock, so that no two writers of one chunk both count it.
                let mut state = self.lock();
                let before = fs::symlink_metadata(path).map_or(0, |meta| on_disk(meta.len()));
                fs::rename(&aside, path)?;
                state.used = state.used.saturating_sub(before) + on_disk(bytes.len() as u64);
                Ok(())
            });
        written.map_err(|error| {
            // The write's own error says more; a file left here is removed at the next start.
            let _: io::Result<()> = fs::remove_file(&aside);
            at(path, error)
        })
    }

    /// Makes all chunks and their names durable: one call for any number of files. One each took
    /// 97 s for forty thousand.
    pub(super) fn sync(&self) -> io::Result<()> {
        let dir = File::open(&self.dir).map_err(|error| at(&self.dir, error))?;
        nix::unistd::syncfs(&dir).map_err(|errno| at(&self.dir, io::Error::from(errno)))
    }

    /// Remembers that every chunk of a tree is here, whole and synced.
    pub(super) fn mark(&self, tree: Tree) -> io::Result<()> {
        if !self.complete(tree) {
            self.place(&self.mark_path(tree.root), format!("{}\n", tree.bytes).as_bytes(), true)?;
            sync_dir(&self.marks())?;
        }
        let mut state = self.lock();
        state.complete.insert(tree.root, tree);
        state.dropped.remove(&tree.root);
        Ok(())
    }

    fn remove_chunk(&self, hash: Hash) -> io::Result<()> {
        self.remove(&self.chunk_path(hash))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let length = match fs::symlink_metadata(path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(path, error)),
        };
        fs::remove_file(path).map_err(|error| at(path, error))?;
        state.used = state.used.saturating_sub(on_disk(length));
        Ok(())
    }

    fn unmark_users(&self, hash: Hash) {
        for tree in self.trees() {
            // A tree whose chunks cannot be listed is not complete either.
            if self.all_chunks(tree).is_none_or(|chunks| chunks.contains(&hash)) {
                if let Err(error) = self.unmark(tree) {
                    log::warn!("{error}");
                }
            }
        }
    }

    /// Forgets that a tree is complete. Its chunks stay.
    pub(super) fn unmark(&self, tree: Tree) -> io::Result<()> {
        self.lock().complete.remove(&tree.root);
        self.remove(&self.mark_path(tree.root))?;
        sync_dir(&self.marks())
    }

    /// The manifest of a tree whose index and manifest chunks are here.
    pub(super) fn manifest(&self, tree: Tree) -> io::Result<Manifest> {
        self.manifest_and_bytes(tree).map(|(manifest, _)| manifest)
    }

    /// The same, to look paths up in.
    pub(super) fn catalog(&self, tree: Tree) -> io::Result<Catalog> {
        let (manifest, bytes) = self.manifest_and_bytes(tree)?;
        Catalog::new(&manifest, bytes).map_err(|error| invalid(error.to_string()))
    }

    fn manifest_and_bytes(&self, tree: Tree) -> io::Result<(Manifest, Vec<u8>)> {
        let index = Index::decode(tree, &self.read_needed(tree.root)?).map_err(invalid)?;
        let mut bytes = Vec::with_capacity(index.manifest as usize);
        for hash in &index.chunks {
            bytes.extend(self.read_needed(*hash)?);
        }
        let manifest = self.check_manifest(tree, &index, &bytes)?;
        Ok((manifest, bytes))
    }

    pub(super) fn check_manifest(
        &self,
        tree: Tree,
        index: &Index,
        bytes: &[u8],
    ) -> io::Result<Manifest> {
        let wrong = |why: String| invalid(format!("tree {}: {why}", tree.root));
        if bytes.len() != index.manifest as usize {
            return Err(wrong("its list of files is cut".to_owned()));
        }
        let manifest = Manifest::decode(bytes).map_err(wrong)?;
        if manifest.bytes() != tree.bytes {
            return Err(wrong("its files do not weigh what was announced".to_owned()));
        }
        Ok(manifest)
    }

    /// Every chunk a tree needs, those of its index and manifest included, as far as is known here.
    fn all_chunks(&self, tree: Tree) -> Option<HashSet<Hash>> {
        let index = self.read_plain(tree.root).ok()??;
        let index = Index::decode(tree, &index).ok()?;
        let mut bytes = Vec::new();
        for hash in &index.chunks {
            bytes.extend(self.read_plain(*hash).ok()??);
        }
        let manifest = self.check_manifest(tree, &index, &bytes).ok()?;
        let mut all: HashSet<_> = manifest.chunks().map(|(hash, _)| hash).collect();
        all.extend(index.chunks);
        all.insert(tree.root);
        Some(all)
    }

    /// Notes that a tree is to go; [`Self::sweep`] removes its chunks when nobody writes.
    pub(super) fn drop_tree(&self, tree: Tree) -> io::Result<()> {
        self.unmark(tree)?;
        self.lock().dropped.insert(tree.root, tree);
        Ok(())
    }

    /// Notes that an ingest failed and may have left chunks nobody uses.
    pub(super) fn leave_orphans(&self) {
        self.lock().orphans = true;
    }

    pub(super) fn wants_sweep(&self) -> bool {
        let state = self.lock();
        state.orphans || state.dropped.keys().any(|root| !state.in_use.contains_key(root))
    }

    /// Keeps the chunks of a tree, even if it is dropped, until as many [`Self::release`]s.
    ///
    /// # Errors
    /// `NotFound`: they are not here, or going already.
    pub(super) fn hold(&self, tree: Tree) -> io::Result<()> {
        let mut state = self.lock();
        let root = &tree.root;
        let here = state.complete.contains_key(root)
            || state.in_use.contains_key(root)
            || state.dropped.contains_key(root);
        if !here {
            let text = format!("package {root} is not here any more");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        state.in_use.entry(tree.root).or_insert((tree, 0)).1 += 1;
        Ok(())
    }

    pub(super) fn release(&self, tree: Tree) {
        let mut state = self.lock();
        if let Some((_, holders)) = state.in_use.get_mut(&tree.root) {
            *holders -= 1;
            if *holders == 0 {
                state.in_use.remove(&tree.root);
            }
        }
    }

    /// Trees whose chunks must stay.
    fn needed(&self) -> Vec<Tree> {
        let state = self.lock();
        let in_use = state.in_use.values().map(|(tree, _)| *tree);
        state.complete.values().copied().chain(in_use).collect()
    }

    /// Removes the chunks of dropped trees that no complete tree uses; those somebody reads from
    /// stay dropped for a later sweep. Nobody may be writing.
    pub(super) fn sweep(&self) -> io::Result<()> {
        let (dropped, orphans) = {
            let mut state = self.lock();
            let all = std::mem::take(&mut state.dropped);
            let used = |root: &Hash| state.in_use.contains_key(root);
            let (later, now): (Map<_, _>, _) = all.into_iter().partition(|(root, _)| used(root));
            state.dropped = later;
            (now, std::mem::take(&mut state.orphans))
        };
        self.sweep_now(dropped, orphans)
    }

    fn sweep_now(&self, dropped: Map<Hash, Tree>, orphans: bool) -> io::Result<()> {
        if orphans {
            return self.sweep_orphans(None);
        }
        let mut gone = HashSet::new();
        for tree in dropped.into_values() {
            match self.all_chunks(tree) {
                Some(chunks) => gone.extend(chunks),
                // Its list is not whole: whatever nobody else needs goes.
                None => return self.sweep_orphans(None),
            }
        }
        for tree in self.needed() {
            if let Some(used) = self.all_chunks(tree) {
                gone.retain(|hash| !used.contains(hash));
            }
        }
        gone.into_iter().try_for_each(|hash| self.remove_chunk(hash))
    }

    /// Removes every chunk that neither a complete tree nor `keep` needs. Nobody may be writing.
    pub(super) fn sweep_orphans(&self, keep: Option<Tree>) -> io::Result<()> {
        let mut used = HashSet::new();
        for tree in self.needed().into_iter().chain(keep) {
            used.insert(tree.root);
            match self.all_chunks(tree) {
                Some(chunks) => used.extend(chunks),
                None if self.complete(tree) => self.unmark(tree)?,
                None => {}
            }
        }
        for shard in list(&self.chunks())? {
            for file in list(&shard)? {
                let hash = file.file_name().and_then(|name| name.to_str()).and_then(Hash::from_hex);
                if hash.is_some_and(|hash| !used.contains(&hash)) {
                    self.remove(&file)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes a file of this length takes.
pub(super) fn on_disk(length: u64) -> u64 {
    length.div_ceil(BLOCK) * BLOCK
}

/// An error that names the path it is about.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

pub(super) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Bytes as people write them: `52M`.
pub(super) fn size(bytes: u64) -> String {
    let units = [(30, 'G'), (20, 'M'), (10, 'K')];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) if bytes >> shift < 10 && bytes & ((1 << shift) - 1) != 0 => {
            format!("{:.1}{unit}", bytes as f64 / f64::from(1_u32 << shift))
        }
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| at(dir, error))
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|error| at(dir, error))
}

/// Removes a file left by an interrupted write; gives the bytes of any other.
fn tidy(file: &Path) -> io::Result<u64> {
    if file.extension().is_some_and(|extension| extension == "tmp") {
        fs::remove_file(file).map_err(|error| at(file, error))?;
        return Ok(0);
    }
    let meta = fs::symlink_metadata(file).map_err(|error| at(file, error))?;
    Ok(on_disk(meta.len()))
}
