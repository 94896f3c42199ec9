//! Chunks of other nodes in their order, passed on without being kept: from several nodes at a
//! time, whose lines may each be slow.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;

use dugnad_kernel::{Hash, NodeId};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::fetch::{self, Want};
use crate::stream::{Later, OpenStream, Stream};

/// Nodes that are asked at the same time.
const STREAMS: usize = 3;
/// Chunks asked for and not yet come, of one node.
const OUTSTANDING: usize = 4;
/// Chunks between the one that is passed on next and the last that is asked for. They wait in
/// memory if they come first.
const AHEAD: usize = STREAMS * OUTSTANDING;

/// One node that has the chunks.
struct Source {
    node: NodeId,
    stream: Option<Stream>,
    /// Asked for and not yet come, with their places.
    asked: VecDeque<(usize, Want)>,
}

/// A node with one more chunk, or why it is not asked any more.
type Step = (Source, io::Result<Vec<u8>>);

pub(super) struct Relay {
    open: OpenStream,
    /// Who was not asked yet.
    sources: VecDeque<NodeId>,
    /// Who else may have it.
    more: Option<Later<Vec<NodeId>>>,
    tried: Vec<NodeId>,
    idle: Vec<Source>,
    working: FuturesUnordered<Pin<Box<dyn Future<Output = Step>>>>,
    /// Came before its turn, by place.
    early: BTreeMap<usize, Vec<u8>>,
    /// Was asked of a node that failed.
    again: BTreeMap<usize, Want>,
    /// Places that were given away, and that were passed on.
    begun: usize,
    passed_on: usize,
    failures: Vec<String>,
}

impl Relay {
    pub(super) fn new(open: OpenStream, sources: Vec<NodeId>, more: Later<Vec<NodeId>>) -> Self {
        Self {
            open,
            sources: sources.into(),
            more: Some(more),
            tried: Vec::new(),
            idle: Vec::new(),
            working: FuturesUnordered::new(),
            early: BTreeMap::new(),
            again: BTreeMap::new(),
            begun: 0,
            passed_on: 0,
            failures: Vec::new(),
        }
    }

    /// The next of `todo`, in order. A node that fails is not asked any more, others are.
    pub(super) async fn next(&mut self, todo: &mut VecDeque<Want>) -> Option<io::Result<Vec<u8>>> {
        loop {
            if let Some(bytes) = self.early.remove(&self.passed_on) {
                self.passed_on += 1;
                return Some(Ok(bytes));
            }
            if self.passed_on == self.begun && todo.is_empty() {
                return None;
            }
            self.put_to_work(todo);
            match self.working.next().await {
                Some((mut source, Ok(bytes))) => {
                    if let Some((place, _)) = source.asked.pop_front() {
                        self.early.insert(place, bytes);
                    }
                    self.idle.push(source);
                }
                Some((source, Err(error))) => {
                    self.failures.push(format!("node {}: {error}", source.node.short()));
                    self.again.extend(source.asked);
                }
                None => {
                    let Some(more) = self.more.take() else { return Some(Err(self.nobody())) };
                    let found = more.await;
                    self.sources.extend(found.iter().filter(|node| !self.tried.contains(node)));
                }
            }
        }
    }

    /// Gives every node that waits something to do, and asks more nodes while there is more to do.
    fn put_to_work(&mut self, todo: &mut VecDeque<Want>) {
        for source in std::mem::take(&mut self.idle) {
            if source.asked.is_empty() && !self.has_work(todo) {
                self.idle.push(source);
            } else {
                self.ask(source, todo);
            }
        }
        while self.working.len() < STREAMS && self.has_work(todo) {
            let Some(node) = self.sources.pop_front() else { break };
            self.tried.push(node);
            self.ask(Source { node, stream: None, asked: VecDeque::new() }, todo);
        }
    }

    fn has_work(&self, todo: &VecDeque<Want>) -> bool {
        !self.again.is_empty() || (!todo.is_empty() && self.begun < self.passed_on + AHEAD)
    }

    fn ask(&mut self, mut source: Source, todo: &mut VecDeque<Want>) {
        let mut wire = Vec::new();
        while source.asked.len() < OUTSTANDING && self.has_work(todo) {
            let (place, want) = match self.again.pop_first() {
                Some(again) => again,
                None => {
                    let Some(want) = todo.pop_front() else { break };
                    self.begun += 1;
                    (self.begun - 1, want)
                }
            };
            wire.push(want.hash);
            source.asked.push_back((place, want));
        }
        let open = self.open.clone();
        self.working.push(Box::pin(async move {
            let came = step(&open, &mut source, &wire).await;
            (source, came)
        }));
    }

    /// Gives up: there is nothing to come any more.
    fn nobody(&mut self) -> io::Error {
        self.again.clear();
        self.early.clear();
        self.passed_on = self.begun;
        let said = if self.failures.is_empty() {
            "no node is known to have it".to_owned()
        } else {
            self.failures.join("; ")
        };
        io::Error::new(io::ErrorKind::NotFound, format!("the value cannot be fetched: {said}"))
    }
}

/// Asks for more, and waits for the first that was asked for.
async fn step(open: &OpenStream, source: &mut Source, more: &[Hash]) -> io::Result<Vec<u8>> {
    let stream = match &mut source.stream {
        Some(stream) => stream,
        none => none.insert(fetch::open(open, source.node).await?),
    };
    let Some((_, want)) = source.asked.front() else { return Ok(Vec::new()) };
    fetch::exchange(stream, more, *want).await
}
