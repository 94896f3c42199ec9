//! Connections from clients, and the streams of other nodes that ask for a folder here.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dugnad_resource::execute::ReplicaId;
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::{HttpService, service_fn};
use smol::io::AsyncWriteExt as _;
use smol::{Async, Timer};

use super::body::Body;
use super::calm::Calm;
use super::clock::{Clock, Heard, clocked};
use super::proxy::JoinTo;
use super::splice::splice;
use super::{BUFFER, Shared, count, once, proxy, statics, upstream};
use crate::http_io::HttpIo;
use crate::places::source;
use crate::stream::{Endpoint, Stream};

/// After accept failed (no file descriptor is left), how long until the next try: nothing tells
/// when one is free again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What a visitor is told for whom there is no place.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
    Connection: close\r\nContent-Type: text/plain\r\nContent-Length: 44\r\n\r\n\
    this node serves as many visitors as it can\n";

pub(super) async fn accept(shared: Rc<Shared>, socket: Async<std::net::TcpListener>) {
    loop {
        let (mut stream, peer) = next(&shared, &socket).await;
        count(&shared.counters.connections);
        let Some(place) = shared.http.take(source(peer.ip())) else {
            count(&shared.counters.full);
            // As much as the system takes at once.
            _ = poll_fn(|cx| Poll::Ready(stream.as_mut().poll_write(cx, FULL))).await;
            continue;
        };
        let shared = Rc::clone(&shared);
        let ex = Rc::clone(&shared.ex);
        ex.spawn(async move {
            let stream = place.watch(stream);
            smol::future::or(connection(shared, peer, stream), place.gives_way()).await;
        })
        .detach();
    }
}

/// The next connection from outside.
pub(super) async fn next(
    shared: &Shared,
    socket: &Async<std::net::TcpListener>,
) -> (Stream, SocketAddr) {
    loop {
        let accepted = socket.accept().await;
        match accepted.and_then(|(stream, peer)| Ok((tuned(stream)?, peer))) {
            Ok(accepted) => return accepted,
            Err(error) => {
                count(&shared.counters.accept_failed);
                if shared.counters.accept_failed.get().is_power_of_two() {
                    log::warn!("gateway: cannot accept a connection: {error}");
                }
                Timer::after(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn tuned(stream: Async<std::net::TcpStream>) -> io::Result<Stream> {
    stream.get_ref().set_nodelay(true)?;
    // A client that vanished without a word is noticed in the end.
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
    Ok(Box::pin(Calm::new(stream)))
}

fn builder(clock: Clock) -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(clock)
        .header_read_timeout(Clock::LIMIT)
        .max_buf_size(BUFFER)
        .writev(true)
        .half_close(false);
    builder
}

/// Serves one client until it goes.
async fn connection(shared: Rc<Shared>, peer: SocketAddr, stream: Stream) {
    let join: JoinTo = Rc::default();
    let (heard, clock) = clocked(stream);
    #[cfg(test)]
    let clock = super::tests::hurry(clock);
    let to = Rc::clone(&join);
    let from = Rc::clone(&shared);
    let service = service_fn(move |request| {
        let (shared, to) = (Rc::clone(&from), Rc::clone(&to));
        Box::pin(async move {
            let answer = proxy::answer(&shared, peer, request, &to).await;
            Ok::<_, Infallible>(answer)
        })
    });
    let conn = builder(clock).serve_connection(HttpIo::new(heard), service);
    match drive(conn).await {
        Ok((stream, rest)) => {
            let joined = join.borrow_mut().take();
            let ended = match joined {
                Some(joined) => {
                    count(&shared.counters.upgrades);
                    let (replica, first) = joined.upgraded;
                    splice(stream, rest, replica, first).await
                }
                None => close(stream).await,
            };
            if let Err(error) = ended {
                log::debug!("connection of {peer}: {error}");
            }
        }
        Err(error) => log::debug!("connection of {peer}: {error}"),
    }
}

/// Serves a folder on this node to another node's gateway. The stream is kept from request to
/// request, so each looks anew at what the replica serves now. One that cannot be answered ends
/// the stream without a word: the gateway then asks another replica.
pub(super) async fn folder(shared: Rc<Shared>, id: ReplicaId, stream: Stream) {
    let (heard, clock) = clocked(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, now) = (Rc::clone(&shared), shared.backend.local(id));
        Box::pin(async move {
            let Some(Endpoint::Static(tree)) = now else {
                return Err(io::Error::other("the replica is not here any more"));
            };
            let (parts, _) = request.into_parts();
            statics::answer(&shared, tree, &parts).await
        })
    });
    carry(builder(clock).serve_connection(HttpIo::new(heard), service)).await;
}

/// Does requests of another node's gateway for a replica here, each at most once.
pub(super) async fn once(shared: Rc<Shared>, id: ReplicaId, stream: Stream) {
    let (heard, clock) = clocked(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Rc::clone(&shared);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let answer = match once::whole(body).await {
                Ok(body) => once::answer(&shared, id, parts, body).await,
                Err(refused) => refused,
            };
            Ok::<_, Infallible>(answer)
        })
    });
    carry(builder(clock).serve_connection(HttpIo::new(heard), service)).await;
}

/// Serves a stream of another node until it ends.
async fn carry<S>(conn: Connection<HttpIo<Heard>, S>)
where
    S: HttpService<Incoming, ResBody = Body> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let ended = match drive(conn).await {
        Ok((stream, _)) => close(stream).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = ended {
        log::debug!("stream of another node: {error}");
    }
}

async fn drive<S>(mut conn: Connection<HttpIo<Heard>, S>) -> hyper::Result<(Stream, Bytes)>
where
    S: HttpService<Incoming, ResBody = Body> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    poll_fn(|cx| conn.poll_without_shutdown(cx)).await?;
    let parts = conn.into_parts();
    Ok((parts.io.into_inner().into_inner(), parts.read_buf))
}

async fn close(mut stream: Stream) -> io::Result<()> {
    stream.close().await
}

/// The far end of [`upstream::connect`]: joins a stream from another node to a replica here.
pub(super) async fn serve(shared: Rc<Shared>, id: ReplicaId, mut stream: Stream) {
    let served = match shared.backend.local(id) {
        Some(at @ (Endpoint::Port(_) | Endpoint::Datagrams(_))) => {
            match upstream::local(at).await {
                Ok(replica) => match admit(&mut stream).await {
                    Ok(()) => splice(stream, Bytes::new(), replica, Bytes::new()).await,
                    Err(error) => Err(error),
                },
                Err(error) => {
                    count(&shared.counters.streams_refused);
                    refuse(&mut stream, &format!("its port does not answer: {error}")).await
                }
            }
        }
        Some(Endpoint::Static(_)) => match admit(&mut stream).await {
            Ok(()) => {
                folder(shared, id, stream).await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        None => {
            count(&shared.counters.streams_refused);
            refuse(&mut stream, &format!("replica {} is not on this node", id.number)).await
        }
    };
    if let Err(error) = served {
        log::debug!("stream to replica {}: {error}", id.number);
    }
}

async fn admit(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(&[0]).await?;
    stream.flush().await
}

async fn refuse(stream: &mut Stream, why: &str) -> io::Result<()> {
    let why = &why.as_bytes()[..why.len().min(usize::from(u8::MAX))];
    let mut bytes = vec![u8::try_from(why.len()).unwrap_or(u8::MAX)];
    bytes.extend(why);
    stream.write_all(&bytes).await?;
    stream.close().await
}
