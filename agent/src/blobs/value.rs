//! Single values as trees of one file: written as they come, read as they are wanted, never whole
//! in memory.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use dugnad_kernel::{Key, NodeId};
use dugnad_node::Room;
use dugnad_resource::spec::Tree;
use futures_util::Stream as Chunks;
use smol::channel::Receiver;

use super::fetch::Want;
use super::ingest::{keep, root_of, seal};
use super::manifest::{CHUNK, Entry, Index, Manifest, What};
use super::relay::Relay;
use super::store::{Store, invalid, on_disk};
use super::{Blobs, Held};
use crate::stream::{Later, OpenStream};

/// The path of the file in the tree, in the first of the names it may have.
const FILE: &str = "value";
/// Names of a value that are compared, so that its places on the ring are where there is room.
const NAMES: usize = 256;
/// Of a long list of chunks fewer: so many bytes are hashed for it at most.
const HASHED_MAX: usize = 64 << 20;
/// Values from this length on, in bytes, are worth asking who has room.
pub(crate) const WORTH_ASKING: u64 = 1 << 20;
/// Room on disk that is asked for at a time, while a value of unknown length comes.
const STEP: u64 = 4 << 20;

/// A value on its way, in order. An error ends it.
pub(crate) type ValueStream = Pin<Box<dyn Chunks<Item = io::Result<Vec<u8>>>>>;

/// Blocks of a value that is being sent to this node; an error says that the rest will not come.
pub(crate) type Incoming = Receiver<io::Result<Vec<u8>>>;

impl Blobs {
    /// Stores what comes; when it returns, the tree is on the medium. `room` says, for so many
    /// bytes, where there is room for them; the value is named so that it belongs there.
    ///
    /// # Errors
    /// Those of the disk and of the sender; `StorageFull` beyond the ceiling.
    pub(crate) async fn keep_value(
        &self,
        from: Incoming,
        room: impl AsyncFnOnce(u64) -> Option<Room>,
    ) -> io::Result<(Tree, Option<Room>)> {
        let (store, guard) = (Arc::clone(&self.store), self.gate.read_arc().await);
        let stored = smol::unblock(move || {
            let written = write(&store, &mut Blocks { from, block: Vec::new(), at: 0 });
            if written.is_err() {
                store.leave_orphans();
            }
            // Lives until the work ends, even if nobody waits for it any more.
            written.map(|written| (written, guard))
        })
        .await;
        let stored = match stored {
            Err(error) => Err(error),
            Ok((value, guard)) => {
                let mut room = room(value.bytes()).await;
                let store = Arc::clone(&self.store);
                smol::unblock(move || {
                    let _guard = guard;
                    let sealed = seal_value(&store, value, room.as_mut());
                    if sealed.is_err() {
                        store.leave_orphans();
                    }
                    sealed.map(|tree| (tree, room))
                })
                .await
            }
        };
        self.settle().await;
        stored
    }

    /// Reads a value: from here if it is here, else from `sources`, and if none of them has it from
    /// those that `more` names.
    ///
    /// # Errors
    /// Nobody has its list of chunks; each source and what it said.
    pub(crate) async fn read_value(
        self: &Rc<Self>,
        tree: Tree,
        sources: Vec<NodeId>,
        more: Later<Vec<NodeId>>,
        open: OpenStream,
    ) -> io::Result<ValueStream> {
        let held = self.store.complete(tree).then(|| self.hold(tree)).and_then(Result::ok);
        let reader = match held {
            Some(held) => Reader::Here { blobs: Rc::clone(self), _held: held },
            None => Reader::There(Relay::new(open, sources, more)),
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

/// Splits what comes into chunks and stores them; the list of them.
fn write(store: &Store, from: &mut impl Read) -> io::Result<Manifest> {
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
    let what = What::File { executable: false, size, chunks };
    Ok(Manifest { entries: vec![Entry { path: FILE.to_owned(), what }] })
}

/// Names the list of chunks so that it belongs where there is room, and stores it.
fn seal_value(store: &Store, mut value: Manifest, room: Option<&mut Room>) -> io::Result<Tree> {
    let _room = store.reserve(2 * on_disk(64 + value.chunks().count() as u64 * 32))?;
    if let Some(room) = room {
        let length = value.encode().map_err(invalid)?.len();
        let names = (HASHED_MAX / length.max(1)).clamp(8, NAMES);
        let keys: Vec<Key> = (0..names)
            .map(|name| {
                value.entries[0].path = file(name);
                root_of(&value).map(|tree| tree.key())
            })
            .collect::<io::Result<_>>()?;
        let best = room.choose(value.bytes(), keys.into_iter());
        value.entries[0].path = file(best);
    }
    let tree = seal(store, &value)?;
    store.sync()?;
    store.mark(tree)?;
    Ok(tree)
}

/// The path of the file in a value's `name`th name.
fn file(name: usize) -> String {
    if name == 0 { FILE.to_owned() } else { format!("{FILE}.{name}") }
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
