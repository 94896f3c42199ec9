//! Where the community keeps the state of services: an object of the namespace `state` for each, a
//! folder with a note beside it.

use std::io;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dugnad_kernel::NodeId;
use dugnad_node::{
    Address, Answer, Content, Expect, Manner, ObjectAnswer, ObjectQuestion, STATE, ServiceQuestion,
};
use dugnad_resource::execute::{ReplicaId, Report};
use dugnad_resource::spec::Tree;
use futures_util::StreamExt as _;
use smol::Timer;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Agent, Itself, people};
use crate::blobs::{Seen, Snapshot};
use crate::control::{AgentApi, LockNews, lease};
use crate::host::{AskLease, Found, LeaseNews, Note, StateStore, Written};
use crate::stream::{Later, Stream, StreamHead, within, write_head};

/// A node that cannot be reached so often in a row is not there.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(2);
/// What a node says of a replica: it runs here, again and again; or it does not, once.
const RUNS: u8 = 0;
const ENDED: u8 = 1;
/// How often it says that it runs.
const SAY_AGAIN: Duration = Duration::from_secs(4);
/// A node that is silent for so long is not there.
const SILENT: Duration = Duration::from_secs(10);

pub(super) struct State(pub(super) Itself);

fn address(service: &str) -> Address {
    Address { namespace: STATE.to_owned(), path: service.to_owned() }
}

/// The note beside state, and the state if there is any yet.
fn decode(content: &Content) -> Option<(Note, Option<Tree>)> {
    let (note, tree) = match content {
        Content::Inline(note) => (note, None),
        Content::Folder { tree, note } => (note, Some(*tree)),
        Content::Blob(_) => return None,
    };
    Some((serde_json::from_slice(note).ok()?, tree))
}

/// Why something did not work, for people.
fn why(answer: Answer) -> String {
    match answer {
        Answer::Object(ObjectAnswer::Failed(text) | ObjectAnswer::Refused(text))
        | Answer::Failed(text) => text,
        Answer::Object(ObjectAnswer::Unmet(reasons)) => reasons.join("; "),
        other => format!("unexpected answer {other:?}"),
    }
}

impl Agent {
    async fn find_state(self: Rc<Self>, service: String) -> Result<Option<Found>, String> {
        match self.ask(ObjectQuestion::Get(address(&service))).await {
            Answer::Object(ObjectAnswer::Found { mut values, version, .. }) => {
                let value = values.pop().filter(|_| values.is_empty());
                let value = value.ok_or("it is kept as several values")?;
                let (note, tree) = decode(&value.content).ok_or("its note cannot be read")?;
                Ok(Some(Found { note, tree, sources: value.sources, version }))
            }
            Answer::Object(ObjectAnswer::Absent { .. } | ObjectAnswer::Unknown(_)) => Ok(None),
            other => Err(why(other)),
        }
    }

    async fn write_state(
        self: Rc<Self>,
        service: String,
        note: Note,
        tree: Option<Tree>,
        expect: u64,
    ) -> Written {
        let note = match serde_json::to_vec(&note) {
            Ok(note) => note,
            Err(error) => return Written::Failed(error.to_string()),
        };
        let content = match tree {
            Some(tree) => {
                // The node must know of it before it is asked to have it kept.
                self.report(Report::Kept { tree }).await;
                Content::Folder { tree, note }
            }
            None => Content::Inline(note),
        };
        let question = ObjectQuestion::Put {
            address: address(&service),
            content: Some(content),
            expect: Some(if expect == 0 { Expect::Absent } else { Expect::Version(expect) }),
            context: None,
            manner: Some(Manner::Last),
            create: true,
            seal: None,
        };
        let answer = Rc::clone(&self).ask(question).await;
        if let Some(tree) = tree {
            self.let_go(tree);
        }
        match answer {
            Answer::Object(ObjectAnswer::Written { version, .. }) => Written::At(version),
            Answer::Object(ObjectAnswer::Lost { .. }) => Written::Overtaken,
            other => Written::Failed(why(other)),
        }
    }

    /// The service was removed: so is its state.
    pub(super) async fn remove_state(self: Rc<Self>, service: String) {
        let question = ObjectQuestion::Put {
            address: address(&service),
            content: None,
            expect: None,
            context: None,
            manner: None,
            create: false,
            seal: None,
        };
        match self.ask(question).await {
            Answer::Object(
                ObjectAnswer::Written { .. }
                | ObjectAnswer::Absent { .. }
                | ObjectAnswer::Unknown(_),
            ) => {}
            other => log::warn!("the state of {service} was not removed: {}", why(other)),
        }
    }

    /// How old the state of a service is, for people; `None` if none is kept.
    async fn describe_state(self: Rc<Self>, service: String) -> Option<String> {
        let found = self.find_state(service).await.ok()??;
        let note = &found.note;
        let of = format!("replica {} on {}", note.replica, note.node_name);
        Some(match found.tree {
            Some(tree) => {
                let (bytes, age) = (dugnad_fabric::Bytes(tree.bytes), note.age());
                let last = if note.closed { ", its last" } else { "" };
                format!("its state: {bytes}, kept {age} by {of}{last}")
            }
            None => format!("its state: nothing kept yet by {of}"),
        })
    }

    /// The answer to `why`, with what is kept of the state.
    pub(super) async fn why(self: Rc<Self>, service: String) -> Answer {
        let answer = Rc::clone(&self).ask(ServiceQuestion::Why(service.clone())).await;
        match answer {
            Answer::Why(mut lines) => {
                lines.extend(self.describe_state(service).await);
                Answer::Why(lines)
            }
            other => other,
        }
    }

    async fn await_end(self: Rc<Self>, node: NodeId, id: ReplicaId) {
        if node == self.me.id {
            return self.host.ended(id).await;
        }
        for _ in 0..TRIES {
            match self.ask_end(node, id).await {
                Ok(()) => return,
                Err(error) => log::debug!("replica {} at {}: {error}", id.number, node.short()),
            }
            Timer::after(AGAIN).await;
        }
    }

    async fn ask_end(&self, node: NodeId, id: ReplicaId) -> io::Result<()> {
        let opened = async {
            let mut stream: Stream = Box::pin(self.links.open_stream(node).await?);
            write_head(&mut stream, &StreamHead::Ended { id }).await?;
            Ok(stream)
        };
        let mut stream = within(SILENT, "no answer", opened).await?;
        let mut said = [RUNS];
        while said == [RUNS] {
            within(SILENT, "nothing said", stream.read_exact(&mut said)).await?;
        }
        Ok(())
    }

    /// Tells whoever asks when a replica does not run here any more.
    pub(super) async fn tell_end(&self, id: ReplicaId, mut stream: Stream) -> io::Result<()> {
        loop {
            let ended = async {
                self.host.ended(id).await;
                Ok(Some(ENDED))
            };
            let runs = async {
                Timer::after(SAY_AGAIN).await;
                Ok(Some(RUNS))
            };
            // It has nothing to say: what ends here is that it listens.
            let gone = async { stream.read(&mut [0]).await.map(|_| None) };
            let said = smol::future::or(ended, smol::future::or(runs, gone)).await?;
            let Some(said) = said else { return Ok(()) };
            stream.write_all(&[said]).await?;
            stream.flush().await?;
            if said == ENDED {
                return stream.close().await;
            }
        }
    }
}

/// Leases of services of which only one replica may run.
pub(super) fn ask_lease(itself: Itself) -> AskLease {
    Rc::new(move |service, fence| {
        let Some(agent) = itself.get().and_then(Weak::upgrade) else {
            let news = LeaseNews::Failed(ENDING.to_owned());
            return Box::pin(futures_util::stream::iter([news]));
        };
        let ex = Rc::clone(&agent.ex);
        let backend = Rc::new(people::Api(agent)) as Rc<dyn AgentApi>;
        Box::pin(lease(&ex, &backend, service, fence).map(|news| match news {
            LockNews::Held { fence, until } => LeaseNews::Held { fence, until },
            LockNews::Lost { .. } => LeaseNews::Lost,
            LockNews::Failed(trouble) => LeaseNews::Failed(trouble.text),
        }))
    })
}

impl State {
    fn agent(&self) -> Option<Rc<Agent>> {
        self.0.get()?.upgrade()
    }
}

const ENDING: &str = "the agent is ending";

impl StateStore for State {
    fn read(&self, service: &str) -> Later<Result<Option<Found>, String>> {
        let (agent, service) = (self.agent(), service.to_owned());
        Box::pin(async move { agent.ok_or(ENDING)?.find_state(service).await })
    }

    fn write(&self, service: &str, note: Note, tree: Option<Tree>, expect: u64) -> Later<Written> {
        let (agent, service) = (self.agent(), service.to_owned());
        Box::pin(async move {
            match agent {
                Some(agent) => agent.write_state(service, note, tree, expect).await,
                None => Written::Failed(ENDING.to_owned()),
            }
        })
    }

    fn ended(&self, node: NodeId, id: ReplicaId) -> Later<()> {
        let agent = self.agent();
        Box::pin(async move {
            if let Some(agent) = agent {
                agent.await_end(node, id).await;
            }
        })
    }

    fn snapshot(&self, dir: PathBuf, before: Seen, most: u64) -> Later<io::Result<Snapshot>> {
        let agent = self.agent();
        Box::pin(async move {
            let agent = agent.ok_or_else(|| io::Error::other(ENDING))?;
            agent.blobs.snapshot(dir, before, most).await
        })
    }

    fn restore(&self, tree: Tree, sources: Vec<NodeId>, to: PathBuf) -> Later<Result<(), String>> {
        let agent = self.agent();
        Box::pin(async move {
            let agent = agent.ok_or(ENDING)?;
            let sources = sources.into_iter().filter(|node| *node != agent.me.id).collect();
            if let Err(why) = agent.blobs.fetch(tree, sources, agent.open_stream()).await {
                let beside = Rc::clone(&agent).beside(tree).await;
                let fetched = agent.blobs.fetch(tree, beside, agent.open_stream()).await;
                fetched.map_err(|_| why)?;
            }
            let restored = agent.blobs.restore(tree, to).await;
            // It is here now, and needed no more unless a record says so.
            agent.report(Report::Kept { tree }).await;
            agent.let_go(tree);
            restored.map_err(|error| error.to_string())
        })
    }
}
