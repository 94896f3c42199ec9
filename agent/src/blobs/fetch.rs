//! Getting a tree from other nodes: its index, its manifest, then what is missing of its chunks.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dugnad_kernel::{Hash, NodeId};
use dugnad_resource::spec::Tree;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::manifest::{CHUNK, Index};
use super::offer::LACKS;
use super::store::{Store, on_disk};
use crate::stream::{OpenStream, Stream, StreamHead, within, write_head};

/// Sources asked at the same time.
const STREAMS: usize = 4;
/// Chunks asked for and not yet come, of one source.
pub(super) const OUTSTANDING: usize = 8;
/// Sources beyond these are not tried.
const SOURCES_MAX: usize = 16;
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// A chunk that takes longer: the next source is asked.
const CHUNK_WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn fetch(
    store: Arc<Store>,
    tree: Tree,
    from: Vec<NodeId>,
    open: OpenStream,
    moved: Rc<Cell<u64>>,
) -> Result<(), String> {
    let mut nodes = HashSet::new();
    let sources = from.into_iter().filter(|node| nodes.insert(*node)).take(SOURCES_MAX);
    let fetch = Fetch {
        store: Arc::clone(&store),
        tree,
        open,
        todo: RefCell::default(),
        idle: RefCell::new(sources.map(|node| Source { node, stream: None }).collect()),
        failures: RefCell::default(),
        moved,
    };
    let text = |error: io::Error| error.to_string();

    let around = store.reserve(on_disk(CHUNK as u64)).map_err(text)?;
    fetch.get(missing(&store, vec![Want { hash: tree.root, length: None }]).await).await?;
    let index = store.read(tree.root).map_err(text)?;
    let index = Index::decode(tree, &index)?;
    drop(around);

    let around = store.reserve(on_disk(u64::from(index.manifest))).map_err(text)?;
    fetch.get(missing(&store, index.manifest_wants()).await).await?;
    drop(around);

    let here = Arc::clone(&store);
    let manifest = smol::unblock(move || here.manifest(tree)).await.map_err(text)?;
    let wants: Vec<_> =
        manifest.chunks().map(|(hash, length)| Want::exactly(hash, length)).collect();
    drop(manifest);
    let wants = missing(&store, wants).await;
    let bytes = wants.iter().map(|want| on_disk(want.length.unwrap_or(CHUNK) as u64)).sum();
    // Counts twice what is written until the fetch ends: too careful, never too late.
    let _room = store.reserve(bytes).map_err(text)?;
    fetch.get(wants).await?;

    let here = Arc::clone(&store);
    smol::unblock(move || here.sync().and_then(|()| here.mark(tree))).await.map_err(text)
}

/// Those of `wants` that are not here and whole, each once.
async fn missing(store: &Arc<Store>, wants: Vec<Want>) -> Vec<Want> {
    let store = Arc::clone(store);
    smol::unblock(move || {
        let mut seen = HashSet::new();
        let lacks = |want: &Want| !store.lists(want.hash) || !store.holds(want.hash);
        wants.into_iter().filter(|want| seen.insert(want.hash) && lacks(want)).collect()
    })
    .await
}

/// A chunk that is wanted.
#[derive(Clone, Copy)]
pub(super) struct Want {
    pub(super) hash: Hash,
    /// Bytes it must have, if that is known.
    pub(super) length: Option<usize>,
}

impl Want {
    pub(super) fn exactly(hash: Hash, length: usize) -> Self {
        Self { hash, length: Some(length) }
    }
}

impl Index {
    /// The chunks of the manifest, in order.
    pub(super) fn manifest_wants(&self) -> Vec<Want> {
        let last = self.manifest as usize % CHUNK;
        let mut wants: Vec<_> =
            self.chunks.iter().map(|hash| Want::exactly(*hash, CHUNK)).collect();
        if let (Some(want), true) = (wants.last_mut(), last > 0) {
            want.length = Some(last);
        }
        wants
    }
}

struct Source {
    node: NodeId,
    stream: Option<Stream>,
}

/// Why a source is not asked any more.
enum Failed {
    /// It did not give what it should.
    Source(String),
    /// This node cannot keep what it gets: no source can help.
    Here(String),
}

struct Fetch {
    store: Arc<Store>,
    tree: Tree,
    open: OpenStream,
    todo: RefCell<VecDeque<Want>>,
    /// Sources that may be asked, best first.
    idle: RefCell<VecDeque<Source>>,
    failures: RefCell<Vec<String>>,
    moved: Rc<Cell<u64>>,
}

impl Fetch {
    /// Gets all of these, from as many sources as it takes.
    async fn get(&self, wants: Vec<Want>) -> Result<(), String> {
        let useful = wants.len().div_ceil(OUTSTANDING).min(STREAMS);
        self.todo.replace(wants.into());
        let mut working = FuturesUnordered::new();
        loop {
            while working.len() < useful && !self.todo.borrow().is_empty() {
                let Some(source) = self.idle.borrow_mut().pop_front() else { break };
                working.push(self.work(source));
            }
            match working.next().await {
                Some((source, Ok(()))) => self.idle.borrow_mut().push_front(source),
                Some((source, Err(Failed::Source(why)))) => {
                    log::debug!("tree {:?} from {}: {why}", self.tree.root, source.node.short());
                    let why = format!("node {}: {why}", source.node.short());
                    self.failures.borrow_mut().push(why);
                }
                Some((_, Err(Failed::Here(why)))) => return Err(why),
                None if self.todo.borrow().is_empty() => return Ok(()),
                None => return Err(self.nobody()),
            }
        }
    }

    fn nobody(&self) -> String {
        let root = self.tree.root.to_string();
        let failures = self.failures.borrow().join("; ");
        let said = if failures.is_empty() { "no node is known to have it" } else { &failures };
        format!("package {} could not be fetched: {said}", &root[..12])
    }

    /// Asks one source until nothing is left to do or it fails.
    async fn work(&self, mut source: Source) -> (Source, Result<(), Failed>) {
        let mut asked = VecDeque::new();
        let done = self.ask(&mut source, &mut asked).await;
        if done.is_err() {
            source.stream = None;
            self.todo.borrow_mut().extend(asked);
        }
        (source, done)
    }

    async fn ask(&self, source: &mut Source, asked: &mut VecDeque<Want>) -> Result<(), Failed> {
        let at_source = |error: io::Error| Failed::Source(error.to_string());
        let mut stream = match source.stream.take() {
            Some(stream) => stream,
            None => open(&self.open, source.node).await.map_err(at_source)?,
        };
        loop {
            let mut wire = Vec::new();
            while asked.len() < OUTSTANDING {
                let Some(want) = self.todo.borrow_mut().pop_front() else { break };
                wire.push(want.hash);
                asked.push_back(want);
            }
            let Some(want) = asked.front().copied() else {
                source.stream = Some(stream);
                return Ok(());
            };
            let bytes = exchange(&mut stream, &wire, want).await.map_err(at_source)?;
            let store = Arc::clone(&self.store);
            smol::unblock(move || store.write(want.hash, &bytes))
                .await
                .map_err(|error| Failed::Here(error.to_string()))?;
            self.moved.set(self.moved.get() + 1);
            asked.pop_front();
        }
    }
}

/// A stream on which a node is asked for chunks.
pub(super) async fn open(open: &OpenStream, node: NodeId) -> io::Result<Stream> {
    let open = async {
        let mut stream = open(node).await?;
        write_head(&mut stream, &StreamHead::Chunks).await?;
        Ok(stream)
    };
    within(OPEN_WITHIN, "no stream could be opened", open).await
}

/// Asks for more chunks, and reads the one that comes next.
pub(super) async fn exchange(
    stream: &mut Stream,
    more: &[Hash],
    next: Want,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let wire: Vec<u8> = more.iter().flat_map(|hash| hash.0).collect();
        stream.write_all(&wire).await?;
        stream.flush().await?;
        answer(stream, next).await
    };
    within(CHUNK_WITHIN, "sent nothing", exchange).await
}

/// Reads one chunk and checks it.
async fn answer(stream: &mut Stream, want: Want) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length);
    let said = |text: &str| {
        let text = format!("{text} {:?}", want.hash);
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    if length == LACKS {
        return said("does not have chunk");
    }
    let length = length as usize;
    if length > CHUNK || want.length.is_some_and(|wanted| wanted != length) {
        return said("sent a wrong length for chunk");
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    let bytes = smol::unblock(move || (Hash::of(&bytes), bytes)).await;
    if bytes.0 != want.hash {
        return said("sent other bytes than those of chunk");
    }
    Ok(bytes.1)
}
