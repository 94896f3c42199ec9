//! Content on disk: folders as trees of chunks that are named by their hash and shared by all
//! trees.
//!
//! `D/blobs/ab/<64 hex>` holds up to 256 KiB whose BLAKE3 is the name. A tree is named after its
//! index, the chunk that lists the chunks of its manifest (`manifest.rs`). `D/trees/<root>` marks a
//! tree whose every chunk is here, checked and synced.
//!
//! How to use it: [`Blobs::open`] once at start. [`Blobs::ingest`] turns a folder into a [`Tree`];
//! [`Blobs::fetch`] gets a tree from other nodes, [`Blobs::serve`] answers them (after
//! `read_head` gave `StreamHead::Chunks`). [`Blobs::unpack`] makes a folder of a tree again.
//! [`Blobs::drop_tree`] gives its room back. Disk work runs on the blocking pool. Every future may
//! be dropped at any time; what was stored so far is found again by the next attempt.

mod catalog;
mod fetch;
mod ingest;
mod manifest;
mod offer;
mod relay;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod value;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use dugnad_kernel::{Hash, NodeId};
use dugnad_resource::spec::Tree;
use futures_util::future::{FutureExt as _, LocalBoxFuture, Shared, WeakShared};
use smol::lock::{Mutex, RwLock, Semaphore};

pub(crate) use catalog::{Catalog, Found};
pub(crate) use manifest::{CHUNK, check_link};
pub(crate) use snapshot::{Seen, Snapshot};
pub(crate) use value::{Incoming, ValueStream, WORTH_ASKING};

use crate::stream::{OpenStream, Stream};
use store::Store;

/// Lists of files kept in memory for static services: at most this many, of so many bytes
/// together. The largest tree there may be fits.
const CACHED: usize = 8;
const CACHED_BYTES: usize = 6 << 20;
/// Chunks in memory for others at any time.
const SERVING: usize = 8;

type Fetching = LocalBoxFuture<'static, Result<(), String>>;

/// The store of chunks and trees of this node.
pub(crate) struct Blobs {
    store: Arc<Store>,
    /// Read by whoever adds chunks; written, and only if free, to remove chunks nobody uses.
    gate: Arc<RwLock<()>>,
    /// Fetches under way, by root. Bounded by what the core orders.
    fetching: RefCell<HashMap<Hash, WeakShared<Fetching>>>,
    cached: RefCell<VecDeque<(Tree, Rc<Catalog>)>>,
    reading: Mutex<()>,
    serving: Semaphore,
    moved: Rc<Cell<u64>>,
    served: Cell<u64>,
}

impl Blobs {
    /// Opens the store in `dir` (the node's state directory). `ceiling`: bytes it may take.
    ///
    /// # Errors
    /// Those of the disk, naming the path.
    pub(crate) fn open(dir: &Path, ceiling: u64) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            store: Arc::new(Store::open(dir, ceiling)?),
            gate: Arc::new(RwLock::new(())),
            fetching: RefCell::default(),
            cached: RefCell::default(),
            reading: Mutex::new(()),
            serving: Semaphore::new(SERVING),
            moved: Rc::default(),
            served: Cell::new(0),
        }))
    }

    /// Bytes on disk, in whole blocks.
    #[must_use]
    pub(crate) fn used(&self) -> u64 {
        self.store.used()
    }

    /// Bytes by which all that this node has on disk is above the ceiling.
    pub(crate) async fn over(&self) -> u64 {
        let store = Arc::clone(&self.store);
        smol::unblock(move || store.over()).await.unwrap_or_else(|error| {
            log::warn!("{error}");
            0
        })
    }

    /// The owner changed her mind; nothing is removed by it.
    pub(crate) fn set_ceiling(&self, bytes: u64) {
        self.store.set_ceiling(bytes);
    }

    /// Chunks got from other nodes since the start.
    #[must_use]
    pub(crate) fn chunks_fetched(&self) -> u64 {
        self.moved.get()
    }

    /// Chunks given to other nodes since the start.
    #[must_use]
    pub(crate) fn chunks_served(&self) -> u64 {
        self.served.get()
    }

    /// Whether every chunk of the tree is here and on the medium.
    #[cfg(test)]
    pub(crate) async fn has(&self, tree: Tree) -> bool {
        self.store.complete(tree)
    }

    /// The complete trees here, by root.
    #[must_use]
    pub(crate) fn trees(&self) -> Vec<Tree> {
        self.store.trees()
    }

    /// Stores a folder or a single file; when it returns, the tree is on the medium.
    ///
    /// # Errors
    /// What cannot be stored or read, naming the file; `StorageFull` beyond the ceiling.
    pub(crate) async fn ingest(&self, path: PathBuf) -> io::Result<Tree> {
        let stored = self.try_ingest(path.clone()).await;
        match &stored {
            // What failed before has been swept away now: there may be room.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.try_ingest(path).await,
            Ok(_) | Err(_) => stored,
        }
    }

    async fn try_ingest(&self, path: PathBuf) -> io::Result<Tree> {
        let (store, guard) = (Arc::clone(&self.store), self.gate.read_arc().await);
        let stored = smol::unblock(move || {
            // Lives until the work ends, even if nobody waits for it any more.
            let _guard = guard;
            let stored = ingest::ingest(&store, &path);
            if stored.is_err() {
                store.leave_orphans();
            }
            stored
        })
        .await;
        self.settle().await;
        stored
    }

    /// Gets a tree from `from`, best first: what is missing only, from several at once, every
    /// chunk checked. Two fetches of one tree share the work.
    ///
    /// # Errors
    /// Why it is not here now, for a person: each source and what it said, or that disk is short.
    pub(crate) async fn fetch(
        &self,
        tree: Tree,
        from: Vec<NodeId>,
        open: OpenStream,
    ) -> Result<(), String> {
        if self.store.complete(tree) {
            return Ok(());
        }
        let under_way = self.fetching.borrow().get(&tree.root).and_then(WeakShared::upgrade);
        if let Some(shared) = under_way {
            let done = shared.await;
            if done.is_ok() && self.store.complete(tree) {
                return done;
            }
            // That one had other sources.
        }
        let (store, gate) = (Arc::clone(&self.store), Arc::clone(&self.gate));
        let moved = Rc::clone(&self.moved);
        let work = async move {
            make_room(&store, &gate, tree).await;
            let _guard = gate.read_arc().await;
            fetch::fetch(store, tree, from, open, moved).await
        };
        let shared: Shared<Fetching> = work.boxed_local().shared();
        if let Some(weak) = shared.downgrade() {
            let mut fetching = self.fetching.borrow_mut();
            // Also forgets those whose waiters all went away.
            fetching.retain(|_, weak| weak.upgrade().is_some());
            fetching.insert(tree.root, weak);
        }
        let done = shared.await;
        self.settle().await;
        done
    }

    /// Answers another node's fetch until it ends the stream. Gives the chunks sent.
    ///
    /// # Errors
    /// Those of the stream, and `TimedOut` if the other side stalls.
    pub(crate) async fn serve(&self, stream: Stream) -> io::Result<u64> {
        let sent = Cell::new(0);
        let served = offer::serve(&self.store, &self.serving, stream, &sent).await;
        self.served.set(self.served.get() + sent.get());
        served.map(|()| sent.get())
    }

    /// Keeps a tree readable until the answer is dropped, even if the tree is dropped meanwhile:
    /// whoever is being sent a file gets all of it.
    ///
    /// # Errors
    /// `NotFound`: it is not here, or being removed already.
    pub(crate) fn hold(&self, tree: Tree) -> io::Result<Held> {
        self.store.hold(tree)?;
        Ok(Held { store: Arc::clone(&self.store), gate: Arc::clone(&self.gate), tree })
    }

    /// Forgets a tree and removes the chunks no other tree uses: now, or when the last ingest or
    /// fetch under way has ended and nobody holds it.
    ///
    /// # Errors
    /// Those of the disk, naming the path.
    pub(crate) async fn drop_tree(&self, tree: Tree) -> io::Result<()> {
        self.cached.borrow_mut().retain(|(cached, _)| *cached != tree);
        let store = Arc::clone(&self.store);
        smol::unblock(move || store.drop_tree(tree)).await?;
        self.try_sweep().await
    }

    /// Makes `dest` a folder holding the tree: files 0644 or 0755, folders 0755. `dest` must not
    /// exist, or be an empty folder; it appears at once, complete and on the medium.
    ///
    /// # Errors
    /// Those of the disk, naming the path; `InvalidData` if a chunk was damaged.
    pub(crate) async fn unpack(&self, tree: Tree, dest: PathBuf) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        smol::unblock(move || ingest::unpack(&store, tree, &dest)).await
    }

    /// What is in a tree that is here.
    ///
    /// # Errors
    /// Those of the disk; `InvalidData` if a chunk was damaged.
    pub(crate) async fn catalog(&self, tree: Tree) -> io::Result<Rc<Catalog>> {
        let cached = || self.cached.borrow().iter().find(|(has, _)| *has == tree).cloned();
        if let Some((_, catalog)) = cached() {
            return Ok(catalog);
        }
        // One at a time: reading the largest takes tens of megabytes for a moment.
        let _reading = self.reading.lock().await;
        if let Some((_, catalog)) = cached() {
            return Ok(catalog);
        }
        let store = Arc::clone(&self.store);
        let catalog = Rc::new(smol::unblock(move || store.catalog(tree)).await?);
        let mut cached = self.cached.borrow_mut();
        cached.push_front((tree, Rc::clone(&catalog)));
        let weight = |cached: &VecDeque<(Tree, Rc<Catalog>)>| {
            cached.iter().map(|(_, catalog)| catalog.weight()).sum::<usize>()
        };
        while cached.len() > CACHED || (cached.len() > 1 && weight(&cached) > CACHED_BYTES) {
            cached.pop_back();
        }
        Ok(catalog)
    }

    /// Reads one chunk of a tree that is here and checks its hash. The task needs nothing of
    /// `self`.
    pub(crate) fn read_chunk(&self, hash: Hash) -> smol::Task<io::Result<Vec<u8>>> {
        let store = Arc::clone(&self.store);
        smol::unblock(move || store.read_needed(hash))
    }

    /// What was put off while somebody was writing.
    async fn settle(&self) {
        if let Err(error) = self.try_sweep().await {
            log::warn!("cannot remove unused chunks: {error}");
        }
    }

    async fn try_sweep(&self) -> io::Result<()> {
        match sweeping(&self.store, &self.gate) {
            Some(sweeping) => sweeping.await,
            None => Ok(()),
        }
    }
}

/// Removes what nobody needs, if there is any and nobody is writing.
fn sweeping(store: &Arc<Store>, gate: &Arc<RwLock<()>>) -> Option<smol::Task<io::Result<()>>> {
    if !store.wants_sweep() {
        return None;
    }
    let guard = gate.try_write_arc()?;
    let store = Arc::clone(store);
    Some(smol::unblock(move || {
        let _guard = guard;
        store.sweep()
    }))
}

/// A tree that is read from; see [`Blobs::hold`].
pub(crate) struct Held {
    store: Arc<Store>,
    gate: Arc<RwLock<()>>,
    tree: Tree,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.release(self.tree);
        if let Some(sweeping) = sweeping(&self.store, &self.gate) {
            // Ends by itself on the blocking pool; chunks that could not be removed are found by
            // the next sweep of everything.
            sweeping.detach();
        }
    }
}

/// Removes chunks nobody uses if a tree would not fit otherwise and nobody is writing.
async fn make_room(store: &Arc<Store>, gate: &Arc<RwLock<()>>, tree: Tree) {
    let Some(guard) = gate.try_write_arc() else { return };
    let store = Arc::clone(store);
    let swept = smol::unblock(move || {
        let _guard = guard;
        match store.reserve(tree.bytes) {
            Ok(_) => Ok(()),
            Err(_) => store.sweep_orphans(Some(tree)),
        }
    });
    if let Err(error) = swept.await {
        log::warn!("cannot remove unused chunks: {error}");
    }
}
