//! The way in: `http://any-node:7480/SERVICE/` (or `Host: SERVICE.dugnad.internal`), and ports.
//!
//! How to use it: implement [`Backend`], then [`Gateway::start`]. Call [`Gateway::set_ports`] with
//! the whole list whenever the node emits `Event::Ports`, and hand every accepted stream whose head
//! is `StreamHead::Service` or `StreamHead::Once` to [`Gateway::serve_stream`].
//! [`Gateway::counters`] and [`Gateway::problems`] are for `status` and `/metrics`.
//!
//! The way of a request: `connection.rs` (one client) → `proxy.rs` (which service, which replica,
//! again if one fails; `reliable.rs` for one that is to be done once) → `upstream.rs` (a process,
//! here or behind a link) or `statics.rs` (a folder on this node, straight from its chunks).
//! Bodies stream in both directions and are never held whole. Everything has a bound: connections
//! as [`Limits`] says, [`BUFFER`] or [`PIECE`] bytes a buffer, four buffers a connection, a
//! megabyte of small files (`hot.rs`). HTTP, each TCP port and other nodes have places apart, and
//! one client has half of them at most: nobody keeps the others out.
//!
//! A stream to a replica on another node begins with `StreamHead::Service`; the other agent answers
//! one byte: 0 and the stream is the replica's, or the length of a text that says why not. So a
//! refused connection is known before any request was sent, and the next replica can be asked.

mod body;
mod calm;
mod clock;
mod compress;
mod connection;
mod datagrams;
mod front;
mod goal;
mod headers;
mod hot;
mod meter;
mod once;
mod pick;
mod ports;
mod proxy;
mod reliable;
mod splice;
mod statics;
#[cfg(test)]
mod tests;
mod upstream;
mod which;

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::condition::Condition;
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::spec::{Load, Port};
use smol::{Async, LocalExecutor, Task};

use crate::blobs::Blobs;
use crate::limits::Limits;
use crate::places::{Places, Taken};
pub(crate) use meter::Metered;
pub(crate) use pick::Busy;
pub(crate) use which::Which;

use crate::stream::{Endpoint, Later, Stream, StreamHead};

/// Bytes of each buffer for what a client sends; also the longest head of a request.
const BUFFER: usize = 16 * 1024;
/// Bytes that are passed on at once of what a replica sends.
const PIECE: usize = 32 * 1024;

/// Where requests to a service can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) port: Port,
    pub(crate) is_static: bool,
    /// Its requests that may not be repeated are done at most once, and sent until answered.
    pub(crate) reliable: bool,
    /// What of its load is to be reported.
    pub(crate) metered: Option<Metered>,
    /// Ready ones only; the node (this one for local ones) and its name.
    pub(crate) replicas: Vec<(ReplicaId, NodeId, String)>,
}

/// What this node knows of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    At(Route),
    /// It is to run nowhere.
    Stopped,
    /// There is none of that name.
    Unknown,
    /// This node cannot tell: it has just started, or the ring is moving.
    NotYet,
}

/// One service, as a visitor of `/` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) ready: usize,
    pub(crate) want: usize,
    pub(crate) stopped: bool,
}

/// What `/` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) node: String,
    pub(crate) community: String,
    /// Of those this node knows, by name.
    pub(crate) services: Vec<Listed>,
}

/// What the gateway must know of the node it is on.
pub(crate) trait Backend {
    /// Where a service can be reached, from a cache if there is one.
    fn resolve(&self, name: &str) -> Later<Known>;
    /// The same, asking anew: what was known has turned out to be wrong.
    fn resolve_fresh(&self, name: &str) -> Later<Known>;
    /// Where a replica on this node answers; `None` if it is not here.
    fn local(&self, id: ReplicaId) -> Option<Endpoint>;
    /// Opens a stream to another node; its head is not written yet.
    fn open(&self, node: NodeId) -> Later<io::Result<Stream>>;
    /// Of which of these nodes a condition is true now.
    ///
    /// # Errors
    /// Why nobody can tell.
    fn meet(&self, condition: Condition, nodes: Vec<NodeId>) -> Later<Result<Vec<NodeId>, String>>;
    fn blobs(&self) -> Rc<Blobs>;
    /// The load of a service in five seconds, which its manager follows.
    fn load(&self, service: Key, manager: NodeId, load: Load);
    /// For `/`; asks others at most every few seconds, however many ask here.
    fn listing(&self) -> Later<Listing>;
}

/// What was counted since the start.
#[derive(Default)]
struct Counters {
    connections: Cell<u64>,
    requests: Cell<u64>,
    retries: Cell<u64>,
    upgrades: Cell<u64>,
    bad_requests: Cell<u64>,
    unknown: Cell<u64>,
    unavailable: Cell<u64>,
    tcp: Cell<u64>,
    datagrams: Cell<u64>,
    datagrams_dropped: Cell<u64>,
    replayed: Cell<u64>,
    streams: Cell<u64>,
    streams_refused: Cell<u64>,
    full: Cell<u64>,
    accept_failed: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get().wrapping_add(1));
}

/// What every connection needs.
struct Shared {
    ex: Rc<LocalExecutor<'static>>,
    backend: Rc<dyn Backend>,
    listen: SocketAddr,
    counters: Counters,
    load: Rc<pick::Load>,
    meter: Rc<meter::Meter>,
    pool: Rc<upstream::Pool>,
    compressed: compress::Compressed,
    hot: Rc<hot::Hot>,
    checked: which::Checked,
    once: once::Once,
    limits: Limits,
    /// Visitors by HTTP, by address.
    http: Rc<Places<IpAddr>>,
    /// Connections to TCP ports and flows to UDP ports, by service; each port counts its clients
    /// beside.
    tcp: Rc<Places<String>>,
    /// Streams to replicas here, by the node that opened them.
    streams: Rc<Places<NodeId>>,
}

/// The HTTP entry and the ports of this node. Dropped, it accepts no more.
pub(crate) struct Gateway {
    shared: Rc<Shared>,
    ports: Rc<ports::Ports>,
    _accept: Task<()>,
    _report: Task<()>,
}

impl Gateway {
    /// Listens and serves on `ex` from now on.
    ///
    /// # Errors
    /// That the address cannot be listened on, and which key to change.
    pub(crate) fn start(
        ex: Rc<LocalExecutor<'static>>,
        listen: SocketAddr,
        limits: Limits,
        backend: Rc<dyn Backend>,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(listen).and_then(Async::new).map_err(|error| {
            let what = "set [listen] gateway in dugnad.toml to a free address";
            io::Error::new(
                error.kind(),
                format!("gateway: cannot listen on {listen}: {error}; {what}"),
            )
        })?;
        let listen = socket.get_ref().local_addr()?;
        let shared = Rc::new(Shared {
            ex: Rc::clone(&ex),
            backend,
            listen,
            counters: Counters::default(),
            load: Rc::default(),
            meter: Rc::default(),
            pool: upstream::Pool::new(limits.http / 4),
            compressed: compress::Compressed::default(),
            hot: Rc::default(),
            checked: which::Checked::default(),
            once: once::Once::default(),
            limits,
            http: Places::new(limits.http, limits.http / 2),
            tcp: Places::new(limits.tcp, limits.tcp_service),
            streams: Places::new(limits.streams, limits.streams / 2),
        });
        let accept = ex.spawn(connection::accept(Rc::clone(&shared), socket));
        let (meter, backend) = (Rc::clone(&shared.meter), Rc::clone(&shared.backend));
        let report = ex.spawn(async move { meter.report(&backend).await });
        Ok(Self { shared, ports: Rc::default(), _accept: accept, _report: report })
    }

    /// Where it listens; tells the port if 0 was asked for.
    #[must_use]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Listens on exactly these ports, each for a service. What cannot be is a problem, not an
    /// error, and is tried again now and then.
    pub(crate) fn set_ports(&self, wanted: Vec<(String, Port)>) {
        self.ports.set(&self.shared, wanted);
    }

    /// Ports that could not be opened and what to do; one line each.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<String> {
        self.ports.problems()
    }

    /// Serves a stream another node opened. What is for neither a replica
    /// nor requests to one is counted and dropped. Returns at once.
    pub(crate) fn serve_stream(&self, from: NodeId, head: StreamHead, stream: Stream) {
        let (id, once) = match head {
            StreamHead::Service { id } => (id, false),
            StreamHead::Once { id } => (id, true),
            _ => return count(&self.shared.counters.streams_refused),
        };
        let Some(place) = self.shared.streams.take(from) else {
            count(&self.shared.counters.streams_refused);
            return;
        };
        count(&self.shared.counters.streams);
        let shared = Rc::clone(&self.shared);
        let work = async move {
            let stream = place.watch(stream);
            let served = async {
                match once {
                    true => connection::once(shared, id, stream).await,
                    false => connection::serve(shared, id, stream).await,
                }
            };
            smol::future::or(served, place.gives_way()).await;
        };
        self.shared.ex.spawn(work).detach();
    }

    /// Bytes to a replica and back, whatever it speaks; the second value is kept while they flow.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn connect(
        &self,
        service: String,
        which: Which,
    ) -> impl Future<Output = Result<(Stream, Busy), String>> + 'static {
        let shared = Rc::clone(&self.shared);
        async move {
            if let Known::At(Route { port: port @ Port::Udp(_), .. }) =
                shared.backend.resolve(&service).await
            {
                return Err(format!("{service} takes datagrams: send them to {port} of any node"));
            }
            ports::reach(&shared, &service, &which).await
        }
    }

    /// How full each kind of place is: what, per whom, and how many.
    #[must_use]
    pub(crate) fn limits(&self) -> Vec<(&'static str, &'static str, Taken)> {
        let shared = &self.shared;
        vec![
            ("HTTP connections", "client address", shared.http.now()),
            ("TCP connections", "service", shared.tcp.now()),
            ("streams to replicas here", "node", shared.streams.now()),
        ]
    }

    /// Everything counted since the start, by name.
    #[must_use]
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.shared.counters;
        vec![
            ("gateway_connections", counters.connections.get()),
            ("gateway_requests", counters.requests.get()),
            ("gateway_retries", counters.retries.get()),
            ("gateway_upgrades", counters.upgrades.get()),
            ("gateway_bad_requests", counters.bad_requests.get()),
            ("gateway_unknown_service", counters.unknown.get()),
            ("gateway_unavailable", counters.unavailable.get()),
            ("gateway_tcp_connections", counters.tcp.get()),
            ("gateway_datagrams", counters.datagrams.get()),
            ("gateway_datagrams_dropped", counters.datagrams_dropped.get()),
            ("gateway_replayed", counters.replayed.get()),
            ("gateway_streams", counters.streams.get()),
            ("gateway_streams_refused", counters.streams_refused.get()),
            ("gateway_full", counters.full.get()),
            ("gateway_accept_failed", counters.accept_failed.get()),
        ]
    }
}
