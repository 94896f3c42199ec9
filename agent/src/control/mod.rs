//! The agent's own door: HTTP and JSON on a Unix socket, for the command line and for scripts.
//!
//! The agent implements [`AgentApi`] and calls [`Control::start`]; the command line uses
//! [`Client`]. What an endpoint answers is made in [`shape`], so that `-o json` prints it as it
//! came.
//!
//! | endpoint | gives |
//! |---|---|
//! | `GET /v1/status`, `/v1/nodes`, `/v1/ps`, `/v1/why/NAME` | one JSON value |
//! | `GET /v1/lookup/KEY` (32 hexadecimal digits, or a service's name) | one JSON value |
//! | `POST /v1/announce`, body: one line of text as a JSON string | one JSON value |
//! | `POST /v1/plan`, body: the spec | one JSON value |
//! | `POST /v1/ingest`, body: a folder ([`upload`]) | the stored tree |
//! | `POST /v1/deploy`, body: the spec | lines: `{"progress":..}`, last `{"result":..}` or error |
//! | `POST /v1/stop/NAME`, `/v1/rm/NAME` (`?keep_state=1`), `/v1/rollback/NAME` | one JSON value |
//! | `POST /v1/leave` (`?now=1`), `/v1/reload`, `/v1/invite?secs=N` | one JSON value |
//! | `POST /v1/connect/NAME?which=W` | bytes to a replica and back: [`connect`] |
//! | `GET /v1/logs/NAME?tail=N&follow=1`, `/v1/events?follow=1` | one JSON object a line |
//! | `GET /v1/find?where=CONDITION&limit=N`, `/v1/census` | one JSON value |
//! | `GET /v1/groups` | one JSON value |
//! | `POST /v1/groups/NAME/create?members_only=1`, `.../join`, `.../leave` | one JSON value |
//! | `POST /v1/groups/NAME/send?reliable=1`, body: the message | one JSON value |
//! | `GET /v1/groups/NAME/messages` | one JSON object a line |
//! | `/v1/events?filter=..`, `/v1/events/TYPE`, `/v1/types` | events: [`events`] |
//! | `/v1/store/...`, `/v1/namespaces/NAME` | objects: [`store`] |
//! | `POST /v1/locks/NAME?ttl_ms=N` | lines while it is held: [`lock`] |
//! | `GET /healthz`, `/metrics` | text |
//!
//! An error is `{"error": TEXT, "exit": CODE, "reasons": [..]}`; the code is the command line's.
//!
//! Services have a door of their own, with less behind it: [`door`].
//!
//! A package travels over the socket as a stream of its files instead of as a path: the agent may
//! run as another user who cannot read the caller's files, and an agent that opens any path it is
//! told would lend its rights to everybody who may talk to it.

mod body;
mod client;
mod connect;
mod door;
mod events;
mod groups;
mod http;
mod lock;
mod metrics;
mod namespaces;
mod sealed;
mod server;
pub(crate) mod shape;
mod socket;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod upload;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::gateway::{Busy, Which};
use dugnad_kernel::NodeId;
use dugnad_node::{Address, Answer, Begin, EventAnswer, ObjectAnswer, Question};
use dugnad_resource::spec::Tree;
use futures_util::Stream;
use serde_json::Value;
use smol::channel::Receiver;

use crate::blobs::{Incoming, ValueStream};
use crate::seal::Keys;

pub(crate) use client::{Answered, Client, ClientError};
pub(crate) use door::ServiceDoor;
pub(crate) use events::{event_lost, event_told};
pub(crate) use groups::message as group_message;
pub(crate) use lock::{News as LockNews, lease};
pub(crate) use metrics::Metrics;
pub(crate) use server::{CONNECTIONS_MAX, Control};
pub(crate) use store::Who;
pub(crate) use upload::Sender as BlockSender;

/// A future that stays on the agent's one thread.
pub(crate) type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// Lines of a service's log, each with the number of the replica that wrote it.
/// Bytes to a replica and back; the second is kept while they flow.
pub(crate) type Reached = (crate::stream::Stream, Busy);
pub(crate) type LogLines = Pin<Box<dyn Stream<Item = (u32, String)>>>;

/// Exit codes of the command line, as README and man page document them.
pub(crate) mod exit {
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    /// Accepted or understood, but not satisfied (yet).
    pub(crate) const UNMET: u8 = 3;
    pub(crate) const NO_AGENT: u8 = 4;
    /// Refused by an owner's rule, an invitation or a signature.
    pub(crate) const REFUSED: u8 = 5;
    pub(crate) const TIMED_OUT: u8 = 6;
    pub(crate) const INTERRUPTED: u8 = 130;
}

/// A watched object: until when, its changes, and how it is now.
pub(crate) type Changes = (Hold, Receiver<ObjectAnswer>, ObjectAnswer);

/// Events somebody subscribed to: until when, and each as it comes.
pub(crate) type Subscribed = (Hold, Receiver<Value>);

/// Which events somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Those the agent still remembers, first.
    pub(crate) kept: bool,
    /// Those to come, until the receiver is dropped.
    pub(crate) follow: bool,
}

/// Something that ends when nobody holds it any more.
pub(crate) struct Hold(Option<Box<dyn FnOnce()>>);

impl Hold {
    pub(crate) fn new(end: impl FnOnce() + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// What the agent does for its own people. Object safe; everything stays on the agent's thread.
pub(crate) trait AgentApi {
    /// See [`shape::status`].
    fn status(&self) -> Value;

    /// Puts a question to the node; questions time out by themselves.
    fn ask(&self, question: Question) -> Local<Answer>;

    /// Where uploads are unpacked (a folder of its own, on the disk of the store; emptied at
    /// start) and how many bytes one may have.
    fn staging(&self) -> (PathBuf, u64);

    /// Stores a local folder. The caller removes the folder afterwards.
    fn ingest(&self, folder: PathBuf) -> Local<io::Result<Tree>>;

    /// Stores a value that comes in blocks; when it returns, the value is on the medium.
    fn keep_value(&self, from: Incoming) -> Local<io::Result<Tree>>;

    /// A value that was kept: others have it now, or it is not needed after all. It stays here if
    /// this node is one of those that should have it.
    fn let_go(&self, tree: Tree);

    /// The bytes of a value, from here or from one of `sources`.
    ///
    /// # Errors
    /// Nobody has it; each source and what it said.
    fn read_value(&self, tree: Tree, sources: Vec<NodeId>) -> Local<io::Result<ValueStream>>;

    /// The keys of sealed namespaces this node has.
    fn keys(&self) -> Keys;

    /// How an object is, and how it is after every change for as long as the [`Hold`] lives. The
    /// channel is bounded; for a reader that is too slow it ends.
    ///
    /// # Errors
    /// Why it cannot be watched.
    fn changes(&self, address: Address) -> Local<Result<Changes, ObjectAnswer>>;

    /// The events of a type and of those that descend from it, as [`event_told`] makes them, for as
    /// long as the [`Hold`] lives. The channel is bounded; for a reader that is too slow it ends.
    ///
    /// # Errors
    /// Why nobody can subscribe so.
    fn subscribe(
        &self,
        name: String,
        condition: String,
        begin: Begin,
    ) -> Local<Result<Subscribed, EventAnswer>>;

    /// The last `tail` lines of a service's log, from every replica, and, with `follow`, those to
    /// come, until the stream is dropped. Whatever stands behind it is bounded.
    ///
    /// # Errors
    /// `NotFound` if there is no such service.
    fn logs(&self, service: &str, tail: usize, follow: bool) -> Local<io::Result<LogLines>>;

    /// Events as [`shape::event`] makes them, through a bounded channel.
    fn events(&self, wanted: Wanted) -> Receiver<Value>;

    /// What is said in a group from now on, as [`group_message`] makes it; the channel is bounded.
    ///
    /// # Errors
    /// As many as may do listen to it.
    fn heard(&self, group: &str) -> Result<Receiver<Value>, String>;

    /// Makes this node a member for as long as the result lives.
    fn hold(&self, group: String) -> Local<Result<Hold, Answer>>;

    /// Hands everything over and leaves the community; with `now`, services that run here stop
    /// before they run elsewhere.
    ///
    /// # Errors
    /// Nobody else can run what runs here; this node stays.
    fn leave(&self, now: bool) -> Local<Result<(), Vec<String>>>;

    /// Has others run what runs here, and takes nothing new until [`AgentApi::undrain`].
    ///
    /// # Errors
    /// What is still here, a line each; it stays drained.
    fn drain(&self, reason: String) -> Local<Result<(), Vec<String>>>;

    /// Takes work again.
    ///
    /// # Errors
    /// It was not drained.
    fn undrain(&self) -> Local<Result<(), String>>;

    /// A token for one more node.
    fn invite(&self, expires: Duration) -> Local<Result<String, String>>;

    /// Reads the owner's file again; the lines say what changed. A bad file changes nothing.
    fn reload(&self) -> Local<Result<Vec<String>, String>>;

    fn metrics(&self) -> Metrics;

    /// Whether the agent does its work; the text says what is wrong.
    ///
    /// # Errors
    /// Its disk takes no writes, it has not found its community, or it is a copy.
    fn healthy(&self) -> Result<(), String>;

    /// Bytes to a replica of a service and back; [`Busy`] is kept while they flow.
    ///
    /// # Errors
    /// Why there is none.
    fn connect(&self, service: String, which: Which) -> Local<Result<Reached, String>>;
}
