//! Connections to replicas: to a port on this node, or through a stream to another node.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::TcpStream;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dugnad_kernel::NodeId;
use dugnad_resource::execute::ReplicaId;
use hyper::body::Bytes;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use smol::channel::{Receiver, bounded};
use smol::io::AsyncReadExt as _;
use smol::{Async, LocalExecutor, Task, Timer};

use super::body::Body;
use super::calm::Calm;
use super::pick::{Busy, Target};
use super::{PIECE, Shared, datagrams};
use crate::http_io::HttpIo;
use crate::stream::{Endpoint, Stream, StreamHead, within, write_head};

/// How long connecting to a replica may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long an idle connection to a replica is kept.
const IDLE: Duration = Duration::from_secs(60);

/// Bytes of a replica's, once both have agreed to talk something else than HTTP.
pub(super) type Upgraded = (Stream, Bytes);

/// An HTTP connection to a replica.
pub(super) struct Conn {
    pub(super) sender: SendRequest<Body>,
    pub(super) upgraded: Receiver<Upgraded>,
    /// Ends with it.
    _driver: Task<()>,
}

type Key = (ReplicaId, NodeId);

/// Idle connections, newest last.
pub(super) struct Pool {
    /// So many are kept in all, half of them to one replica. With few, a burst of visitors would
    /// have a connection opened and closed for each request.
    most: usize,
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    next: Cell<u64>,
}

struct Idle {
    number: u64,
    conn: Conn,
    /// Closes it in time.
    _timer: Task<()>,
}

impl Pool {
    pub(super) fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most, idle: RefCell::default(), next: Cell::new(0) })
    }

    /// One that is ready for a request.
    pub(super) async fn take(&self, key: Key) -> Option<Conn> {
        let conn = self.take_open(key)?;
        // The last answer may have been read only just now: then its driver, which was woken before
        // this task, has to run. One that is not ready after that waits for something else.
        for _ in 0..2 {
            if conn.sender.is_ready() {
                break;
            }
            smol::future::yield_now().await;
        }
        Some(conn).filter(|conn| conn.sender.is_ready())
    }

    /// A ready one, or else the newest that is open.
    fn take_open(&self, key: Key) -> Option<Conn> {
        let mut idle = self.idle.borrow_mut();
        let conns = idle.get_mut(&key)?;
        conns.retain(|idle| !idle.conn.sender.is_closed());
        let ready = conns.iter().rposition(|idle| idle.conn.sender.is_ready());
        let found = ready.or(conns.len().checked_sub(1)).map(|at| conns.remove(at).conn);
        if conns.is_empty() {
            idle.remove(&key);
        }
        found
    }

    pub(super) fn clear(&self, key: Key) {
        let old = self.idle.borrow_mut().remove(&key);
        drop(old);
    }

    fn put(self: &Rc<Self>, ex: &LocalExecutor<'static>, key: Key, conn: Conn) {
        let mut idle = self.idle.borrow_mut();
        let full = idle.values().map(Vec::len).sum::<usize>() >= self.most;
        let conns = idle.entry(key).or_default();
        if full || conns.len() >= self.most.div_ceil(2) || conn.sender.is_closed() {
            if conns.is_empty() {
                idle.remove(&key);
            }
            return;
        }
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let pool = Rc::downgrade(self);
        let timer = ex.spawn(async move {
            Timer::after(IDLE).await;
            if let Some(pool) = Weak::upgrade(&pool) {
                pool.forget(key, number);
            }
        });
        conns.push(Idle { number, conn, _timer: timer });
    }

    fn forget(&self, key: Key, number: u64) {
        let mut idle = self.idle.borrow_mut();
        let mut old = None;
        if let Some(conns) = idle.get_mut(&key) {
            let at = conns.iter().position(|idle| idle.number == number);
            old = at.map(|at| conns.remove(at));
            if conns.is_empty() {
                idle.remove(&key);
            }
        }
        drop(idle);
        if let Some(old) = old {
            // This runs in the timer of `old`, which must not be cancelled from inside.
            old._timer.detach();
        }
    }
}

/// A connection in use for one request.
pub(super) struct Lease {
    pub(super) shared: Rc<Shared>,
    pub(super) key: Key,
    pub(super) conn: Conn,
    pub(super) _busy: Busy,
}

impl Lease {
    pub(super) fn give_back(self) {
        self.shared.pool.put(&self.shared.ex, self.key, self.conn);
    }
}

/// Bytes to a replica and back, before anything was said on them.
pub(super) async fn connect(shared: &Shared, target: &Target) -> io::Result<Stream> {
    match shared.backend.local(target.id) {
        Some(at) => local(at).await,
        None => {
            let open = shared.backend.open(target.node);
            let remote = async {
                let mut stream = open.await?;
                write_head(&mut stream, &StreamHead::Service { id: target.id }).await?;
                let mut refusal = [0];
                stream.read_exact(&mut refusal).await?;
                if refusal[0] > 0 {
                    let mut why = vec![0; usize::from(refusal[0])];
                    stream.read_exact(&mut why).await?;
                    return Err(io::Error::other(String::from_utf8_lossy(&why).into_owned()));
                }
                Ok(stream)
            };
            within(CONNECT_WITHIN + CONNECT_WITHIN / 2, "no answer", remote).await
        }
    }
}

pub(super) async fn local(at: Endpoint) -> io::Result<Stream> {
    let addr = match at {
        Endpoint::Port(addr) => addr,
        Endpoint::Datagrams(addr) => return datagrams::replica(addr),
        Endpoint::Static(_) => {
            let why = "a folder on this node is not reached over a connection";
            return Err(io::Error::other(why));
        }
    };
    let connect = Async::<TcpStream>::connect(addr);
    let stream = within(CONNECT_WITHIN, "no connection", connect).await?;
    stream.get_ref().set_nodelay(true)?;
    Ok(Box::pin(Calm::new(stream)))
}

/// Makes it an HTTP connection that runs on its own.
pub(super) async fn handshake(ex: &LocalExecutor<'static>, stream: Stream) -> io::Result<Conn> {
    let (sender, conn) = Builder::new()
        .max_buf_size(PIECE)
        .writev(true)
        .handshake(HttpIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let (done, upgraded) = bounded(1);
    let driver = ex.spawn(async move {
        if let Ok(stream) = drive(conn).await {
            // Nobody waits for it unless an upgrade was agreed on: then it just closes.
            let _: Result<(), _> = done.try_send(stream);
        }
    });
    Ok(Conn { sender, upgraded, _driver: driver })
}

async fn drive(mut conn: Connection<HttpIo<Stream>, Body>) -> hyper::Result<Upgraded> {
    poll_fn(|cx| conn.poll_without_shutdown(cx)).await?;
    let parts = conn.into_parts();
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// A connection to the process of a replica here.
pub(super) async fn fresh(shared: &Shared, id: ReplicaId) -> io::Result<Conn> {
    let missing = || io::Error::other(format!("replica {} is not on this node", id.number));
    let stream = local(shared.backend.local(id).ok_or_else(missing)?).await?;
    handshake(&shared.ex, stream).await
}

/// What hyper says, with its cause.
pub(super) fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
