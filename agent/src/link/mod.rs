//! Links: one encrypted session with each peer, over TCP.
//!
//! A session carries frames (`dugnad_kernel::wire`), first in first out and at most once, and any
//! number of streams beside them for bulk data and services. Frames and streams ride in the same
//! encrypted records but never wait for each other ([`noise`], [`mux`]). Who may be at the other
//! end is decided by the handshake ([`handshake`]); that there is one session only, by
//! [`inner`].
//!
//! ```text
//! let (sender, inbox) = smol::channel::bounded(256);
//! let links = Links::start(ex, LinkConfig { identity, community, .. }, sender)?;
//! links.learn(peer);                      // or links.dial(seed)
//! links.try_send(peer.id, wire::encode(&message)?);
//! match inbox.recv().await? {
//!     LinkEvent::Up(peer) => ..,          // before the first frame of a session
//!     LinkEvent::Frame { from, body } => ..,
//!     LinkEvent::Stream { from, stream } => ..,
//!     LinkEvent::Down(id) => ..,          // the session ended, or the peer could not be dialled
//! }
//! ```
//! Everything runs on the one executor; readers wait while the inbox is full, which in the end
//! slows the sender down. Nothing happens on a timer while sessions are idle.

mod admit;
mod book;
mod counters;
mod dial;
mod handshake;
mod inner;
mod mux;
mod noise;
mod queue;
mod session;
mod spare;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::peer::Addrs;
use dugnad_kernel::{NodeId, Peer};
use smol::net::TcpListener;
use smol::{LocalExecutor, Timer};

pub(crate) use mux::Stream;

use crate::identity::{Community, Identity, node_id};
use crate::limits::Limits;
use handshake::Local;
use inner::{HANDSHAKE_LIMIT, Sessions};

use crate::places::Taken;

/// How long [`Links::close`] waits for the peers.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What the links need to know at start.
pub(crate) struct LinkConfig {
    pub(crate) identity: Identity,
    pub(crate) community: Community,
    pub(crate) incarnation: u32,
    pub(crate) listen: SocketAddr,
    /// What peers are told, best first; the first four that can be dialled count. Port 0 stands
    /// for the port that was bound.
    pub(crate) announce: Vec<SocketAddr>,
    pub(crate) limits: Limits,
}

/// What happens on the links. The events of one peer come in the order in which they happened.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A session with a proven peer stands.
    Up(Peer),
    /// The session ended, or the peer could not be dialled. What was in flight is lost.
    Down(NodeId),
    /// The body of a frame, not decoded; call [`Links::count`] if it is malformed.
    Frame { from: NodeId, body: Vec<u8> },
    /// The peer opened a stream.
    Stream { from: NodeId, stream: Stream },
    /// Two machines run with one identity; `later`: with this node's, and the other was first.
    Twin { text: String, later: bool },
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// All sessions of this node. Clones are the same links.
#[derive(Clone)]
pub(crate) struct Links(Rc<Sessions>);

impl Links {
    /// Binds the address and begins to accept sessions.
    ///
    /// # Errors
    /// If the address cannot be bound; says what to do.
    pub(crate) fn start(
        ex: Rc<LocalExecutor<'static>>,
        config: LinkConfig,
        inbox: smol::channel::Sender<LinkEvent>,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(config.listen)
            .map_err(|error| cannot_listen(config.listen, &error))?;
        let listening = listener.local_addr()?;
        let listener = TcpListener::try_from(listener)?;
        let mut me = Peer::new(node_id(&config.identity, &config.community));
        me.inc = config.incarnation;
        me.addrs = told(&config.announce, listening);
        let local = Local::new(&config.identity, &config.community, me);
        let inner = Rc::new(Sessions::new(ex, inbox, local, listening, config.limits));
        inner.spawn(accept(Rc::clone(&inner), listener));
        Ok(Self(inner))
    }

    /// This node as others are told about it.
    #[must_use]
    pub(crate) fn me(&self) -> Peer {
        Peer { addrs: self.0.local.addrs.borrow().clone(), ..self.0.local.me.clone() }
    }

    /// This machine has other addresses now. Every session ends and is dialled anew: those on an
    /// address that is gone are dead without a word, and the others learn the new one so.
    pub(crate) fn moved(&self, addrs: &[SocketAddr]) {
        *self.0.local.addrs.borrow_mut() = told(addrs, self.0.listening);
        for session in self.0.book.sessions() {
            self.0.session_ended(&session);
            self.0.book.with(session.peer.id, |entry| entry.backoff = book::Backoff::default());
            self.0.start_dial(session.peer.id);
        }
    }

    /// Dials a peer that is known and has no session, unless it did not answer just now.
    pub(crate) fn connect(&self, id: NodeId) {
        let dial = self.0.book.with(id, |entry| {
            entry.live().is_none() && !entry.dialling && entry.backoff.left().is_none()
        });
        if dial == Some(true) {
            self.0.start_dial(id);
        }
    }

    /// How to tell which nodes are neighbours on the ring: there is always room for them.
    pub(crate) fn set_neighbours(&self, is: impl Fn(NodeId) -> bool + 'static) {
        self.0.admission.set_neighbours(Box::new(is));
    }

    /// How full each kind of place is: what, per whom, and how many.
    #[must_use]
    pub(crate) fn limits(&self) -> Vec<(&'static str, &'static str, Taken)> {
        let (inner, limits) = (&self.0, self.0.admission.limits);
        let taken = |most, now, gave_way, refused: &[&'static str]| Taken {
            most,
            each: most / 4,
            now,
            gave_way: inner.counters.get(gave_way),
            refused: refused.iter().map(|name| inner.counters.get(name)).sum(),
        };
        let unproven = inner.admission.unproven_now();
        vec![
            (
                "sessions with nodes",
                "client address",
                taken(limits.sessions, inner.sessions.get(), "sessions_unused", &["refused_busy"]),
            ),
            (
                "connections not yet proven",
                "client address",
                taken(limits.handshakes, unproven, "handshakes_gave_way", &["handshake_silent"]),
            ),
        ]
    }

    #[must_use]
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.0.listening
    }

    /// Remembers where a peer can be dialled. The newest incarnation wins, addresses are merged.
    /// 384 peers are kept; when all of them are in use, a new one is not (`book_full`).
    pub(crate) fn learn(&self, peer: Peer) {
        if peer.id != self.0.local.me.id && !self.0.book.learn(&peer) {
            self.count("book_full");
        }
    }

    /// Dials an address whose owner is not known, once. [`Self::seeds`] tells what came of it.
    pub(crate) fn dial(&self, addr: SocketAddr) {
        let inner = Rc::clone(&self.0);
        self.0.spawn(inner.dial_seed(addr));
    }

    /// The dialled addresses, and what came of each.
    #[must_use]
    pub(crate) fn seeds(&self) -> Vec<(SocketAddr, String)> {
        self.0.seeds()
    }

    /// Queues a whole frame for a peer, and dials it if there is no session. False, and counted,
    /// if it was dropped: the peer is unknown, was not reached just now, or has 64 frames or
    /// 1 MiB waiting (4 MiB for all peers). True does not mean that it arrives.
    pub(crate) fn try_send(&self, to: NodeId, frame: Vec<u8>) -> bool {
        let inner = &self.0;
        if inner.closing.get() {
            self.count("closing");
            return false;
        }
        let taken = inner.book.with(to, |entry| {
            let session = entry.live().cloned();
            if session.is_none() && !entry.dialling && entry.backoff.left().is_some() {
                return Err("backing_off");
            }
            if !entry.queue.borrow_mut().push(frame) {
                return Err("queue_full");
            }
            Ok(session)
        });
        let reason = match taken {
            Some(Ok(Some(session))) => {
                session.wake.notify();
                return true;
            }
            Some(Ok(None)) => {
                inner.start_dial(to);
                return true;
            }
            Some(Err(reason)) => reason,
            None => "unknown_peer",
        };
        inner.counters.add(reason, 1);
        if reason == "backing_off" {
            inner.tell_backing_off(to);
        }
        false
    }

    /// Opens a stream to a peer, over a new session if there is none. The peer learns of it with
    /// the first byte written.
    ///
    /// # Errors
    /// If the peer is unknown, does not answer within 5 s, or has 64 streams of ours open.
    pub(crate) async fn open_stream(&self, to: NodeId) -> io::Result<Stream> {
        let session = self.0.reach(to).await?;
        session::start_mux(&self.0, &session);
        let limit = async {
            Timer::after(HANDSHAKE_LIMIT).await;
            let text = format!("node {to} takes no more streams");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        };
        let stream = smol::future::or(session.mux.open(), limit).await?;
        self.count("streams_opened");
        Ok(stream)
    }

    /// Identities that were seen on two machines at the same time, a line each.
    #[must_use]
    pub(crate) fn twins(&self) -> Vec<String> {
        self.0.twins()
    }

    /// Nodes that belong to another community and meet this one, a line each.
    #[must_use]
    pub(crate) fn strangers(&self) -> Vec<String> {
        self.0.strangers()
    }

    /// Whether there is a session with a peer.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn linked(&self, id: NodeId) -> bool {
        self.0.session(id).is_some()
    }

    /// The sessions: with whom, at which address, and who dialled.
    #[must_use]
    pub(crate) fn peers(&self) -> Vec<(NodeId, SocketAddr, Direction)> {
        let sessions = self.0.book.sessions();
        sessions.iter().map(|s| (s.peer.id, s.addr, s.direction())).collect()
    }

    /// Closes the session with a peer and forgets its addresses. A Down follows if there was one.
    #[cfg(test)]
    pub(crate) fn forget(&self, id: NodeId) {
        if let Some(session) = self.0.session(id) {
            self.0.session_ended(&session);
        }
        self.0.forget(id);
    }

    /// Accepts and dials no more, sends what waits, and closes all sessions; 2 s at most.
    pub(crate) async fn close(&self) {
        self.0.closing.set(true);
        self.0.changed.ring();
        for session in self.0.book.sessions() {
            session.close();
        }
        let ended = self.0.changed.until(|| (self.0.sessions.get() == 0).then_some(()));
        let limit = async {
            Timer::after(CLOSE_LIMIT).await;
        };
        smol::future::or(ended, limit).await;
        for session in self.0.book.sessions() {
            self.0.session_ended(&session);
        }
    }

    /// Everything that was counted, by name. Bytes are as on the TCP socket of sessions.
    #[must_use]
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let (read, written) = self.0.bytes();
        let mut all = self.0.counters.all();
        for (name, value) in &mut all {
            match *name {
                "bytes_in" => *value = read,
                "bytes_out" => *value = written,
                _ => {}
            }
        }
        all
    }

    /// Counts something the loop noticed, such as a malformed message.
    pub(crate) fn count(&self, name: &'static str) {
        self.0.counters.add(name, 1);
    }
}

/// What peers are told of these addresses: what can be dialled, four at most. Loopback is where
/// each of them finds itself, unless all listen there.
fn told(addrs: &[SocketAddr], listening: SocketAddr) -> Addrs {
    let mut out = Addrs::new();
    for mut addr in addrs.iter().copied() {
        if addr.port() == 0 {
            addr.set_port(listening.port());
        }
        // More than four cannot be told.
        let elsewhere = listening.ip().is_unspecified() && addr.ip().is_loopback();
        if elsewhere {
            continue;
        }
        if book::diallable(&addr) && !out.contains(&addr) && out.push(addr).is_err() {
            break;
        }
    }
    out
}

fn cannot_listen(addr: SocketAddr, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program has it: stop that one, or set another [listen] overlay"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this machine does not have that address: correct [listen] overlay"
        }
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 as [listen] overlay",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}{advice}"))
}

async fn accept(inner: Rc<Sessions>, listener: TcpListener) {
    loop {
        let closing = inner.changed.until(|| inner.closing.get().then_some(None));
        let accepted = async { Some(listener.accept().await) };
        match smol::future::or(closing, accepted).await {
            None => return,
            Some(Ok((tcp, addr))) => {
                // A listener on [::] shows IPv4 peers in IPv6 clothes.
                let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
                inner.spawn(Rc::clone(&inner).accepted(tcp, addr));
            }
            Some(Err(error)) => {
                // Out of file descriptors or memory, most likely: no event tells when there are
                // some again.
                inner.counters.add("accept_failed", 1);
                if inner.counters.get("accept_failed").is_power_of_two() {
                    log::warn!("cannot accept a connection on {}: {error}", inner.listening);
                }
                Timer::after(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
