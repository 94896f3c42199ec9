//! Single values as trees of one file: written as they come, read as they are wanted, never whole
//! in memory.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use dugnad_kernel::{Hash, NodeId};
use dugnad_resource::spec::Tree;
use futures_util::Stream as Chunks;
use smol::channel::Receiver;

use super::fetch::{self, OUTSTANDING, Want};
use super::ingest::{keep, seal};
use super::manifest::{CHUNK, Entry, Index, Manifest, What};
use super::store::{Store, invalid, on_disk};
use super::{Blobs, Held};
use crate::stream::{OpenStream, Stream};

/// The path of the file in the tree.
const FILE: &str = "value";
/// Room on disk that is asked for at a time, while a value of unknown length comes.
const STEP: u64 = 4 << 20;

/// A value on its way, in order. An error ends it.
pub(crate) type ValueStream = Pin<Box<dyn Chunks<Item = io::Result<Vec<u8>>>>>;

/// Blocks of a value that is being sent to this node; an error says that the rest will not come.
pub(crate) type Incoming = Receiver<io::Result<Vec<u8>>>;

impl Blobs {
    /// Stores what comes; when it returns, the tree is on the medium.
    ///
    /// # Errors
    /// Those of the disk and of the sender; `StorageFull` beyond the ceiling.
    pub(crate) async fn keep_value(&self, from: Incoming) -> io::Result<Tree> {
        let (store, guard) = (Arc::clone(&self.store), self.gate.read_arc().await);
        let stored = smol::unblock(move || {
            // Lives until the work ends, even if nobody waits for it any more.
            let _guard = guard;
            let stored = write(&store, &mut Blocks { from, block: Vec::new(), at: 0 });
            if stored.is_err() {
                store.leave_orphans();
            }
            stored
        })
        .await;
        self.settle().await;
        stored
    }

    /// Reads a value: from here if it is here, else from one of `sources` after the other.
    ///
    /// # Errors
    /// Nobody has its list of chunks; each source and what it said.
    pub(crate) async fn read_value(
        self: &Rc<Self>,
        tree: Tree,
        sources: Vec<NodeId>,
        open: OpenStream,
    ) -> io::Result<ValueStream> {
        let held = self.store.complete(tree).then(|| self.hold(tree)).and_then(Result::ok);
        let reader = match held {
            Some(held) => Reader::Here { blobs: Rc::clone(self), _held: held },
            None => Reader::There(Relay::new(open, sources)),
        };
        let mut reading = Reading { reader, todo: VecDeque::new() };
        let index = reading.all(vec![Want { hash: tree.root, length: None }]).await?;
        let index = Index::decode(tree, &index).map_err(invalid)?;
        let bytes = reading.all(index.manifest_wants()).await?;
        let manifest = Manifest::decode(&bytes).map_err(invalid)?;
        if manifest.entries.len() != 1 || manifest.bytes() != tree.bytes {
            return Err(invalid(format!("tree {}: it is no single value", tree.root)));
        }
        reading.todo = manifest.chunks().map(|(hash, n)| Want::exactly(hash, n)).collect();
        Ok(Box::pin(futures_util::stream::unfold(reading, |mut reading| async move {
            let chunk = reading.next().await?;
            if chunk.is_err() {
                reading.todo.clear();
            }
            Some((chunk, reading))
        })))
    }
}

/// Splits what comes into chunks and stores them.
fn write(store: &Store, from: &mut impl Read) -> io::Result<Tree> {
    let (mut chunks, mut size) = (Vec::new(), 0);
    let (mut room, mut left) = (store.reserve(STEP)?, STEP);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut length = 0;
        while length < CHUNK {
            match from.read(&mut buffer[length..])? {
                0 => break,
                read => length += read,
            }
        }
        if length == 0 {
            break;
        }
        let takes = on_disk(length as u64);
        if takes > left {
            // What was promised is written by now, and counted as used.
            drop(room);
            (room, left) = (store.reserve(STEP)?, STEP);
        }
        left -= takes;
        chunks.push(keep(store, &buffer[..length])?);
        size += length as u64;
        if length < CHUNK {
            break;
        }
    }
    drop(room);
    let _room = store.reserve(2 * on_disk(64 + chunks.len() as u64 * 32))?;
    let what = What::File { executable: false, size, chunks };
    let manifest = Manifest { entries: vec![Entry { path: FILE.to_owned(), what }] };
    let tree = seal(store, &manifest)?;
    store.sync()?;
    store.mark(tree)?;
    Ok(tree)
}

/// What comes in blocks, to read.
struct Blocks {
    from: Incoming,
    block: Vec<u8>,
    at: usize,
}

impl Read for Blocks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            match self.from.recv_blocking() {
                Ok(block) => (self.block, self.at) = (block?, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.block[self.at..];
        let taken = rest.len().min(into.len());
        into[..taken].copy_from_slice(&rest[..taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Where the chunks of a value come from.
enum Reader {
    Here { blobs: Rc<Blobs>, _held: Held },
    There(Relay),
}

struct Reading {
    reader: Reader,
    todo: VecDeque<Want>,
}

impl Reading {
    /// These chunks, one after the other, together.
    async fn all(&mut self, wants: Vec<Want>) -> io::Result<Vec<u8>> {
        self.todo = wants.into();
        let mut all = Vec::new();
        while let Some(chunk) = self.next().await {
            all.extend(chunk?);
        }
        Ok(all)
    }

    async fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        match &mut self.reader {
            Reader::Here { blobs, .. } => {
                let want = self.todo.pop_front()?;
                Some(blobs.read_chunk(want.hash).await)
            }
            Reader::There(relay) => relay.next(&mut self.todo).await,
        }
    }
}

/// Chunks of another node, passed on without being kept.
struct Relay {
    open: OpenStream,
    sources: VecDeque<NodeId>,
    now: Option<(NodeId, Stream)>,
    /// Asked for and not yet come.
    asked: VecDeque<Want>,
    failures: Vec<String>,
}

impl Relay {
    fn new(open: OpenStream, sources: Vec<NodeId>) -> Self {
        let sources = sources.into();
        Self { open, sources, now: None, asked: VecDeque::new(), failures: Vec::new() }
    }

    /// The next of `todo`; each source is asked until it fails.
    async fn next(&mut self, todo: &mut VecDeque<Want>) -> Option<io::Result<Vec<u8>>> {
        loop {
            if self.asked.is_empty() && todo.is_empty() {
                return None;
            }
            let (node, mut stream) = match self.now.take() {
                Some(now) => now,
                None => {
                    let Some(node) = self.sources.pop_front() else {
                        return Some(Err(self.nobody()));
                    };
                    match fetch::open(&self.open, node).await {
                        Ok(stream) => (node, stream),
                        Err(error) => {
                            self.failures.push(format!("node {}: {error}", node.short()));
                            continue;
                        }
                    }
                }
            };
            match self.ask(&mut stream, todo).await {
                Ok(bytes) => {
                    self.now = Some((node, stream));
                    return Some(Ok(bytes));
                }
                Err(error) => {
                    self.failures.push(format!("node {}: {error}", node.short()));
                    while let Some(want) = self.asked.pop_back() {
                        todo.push_front(want);
                    }
                }
            }
        }
    }

    async fn ask(&mut self, stream: &mut Stream, todo: &mut VecDeque<Want>) -> io::Result<Vec<u8>> {
        let mut wire: Vec<Hash> = Vec::new();
        while self.asked.len() < OUTSTANDING {
            let Some(want) = todo.pop_front() else { break };
            wire.push(want.hash);
            self.asked.push_back(want);
        }
        let Some(want) = self.asked.front().copied() else { return Ok(Vec::new()) };
        let bytes = fetch::exchange(stream, &wire, want).await?;
        self.asked.pop_front();
        Ok(bytes)
    }

    fn nobody(&self) -> io::Error {
        let said = if self.failures.is_empty() {
            "no node is known to have it".to_owned()
        } else {
            self.failures.join("; ")
        };
        io::Error::new(io::ErrorKind::NotFound, format!("the value cannot be fetched: {said}"))
    }
}
