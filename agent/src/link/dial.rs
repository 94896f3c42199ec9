//! Reaching peers.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::NodeId;
use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::sys::socket::{setsockopt, sockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};
use smol::Timer;
use smol::net::TcpStream;

use super::LinkEvent;
use super::admit::For;
use super::handshake::{self, Failure};
use super::inner::{HANDSHAKE_LIMIT, Sessions};
use super::session::Session;

/// How long one address has a start on the next.
const STAGGER: Duration = Duration::from_millis(250);
/// A peer that does not acknowledge data for so long is gone, in milliseconds.
const USER_TIMEOUT_MS: u32 = 15_000;
/// How much may wait in the kernel unsent, in bytes: bulk data in there cannot be overtaken.
const NOT_SENT_MAX: u32 = 64 * 1024;

sockopt_impl!(
    /// Bounds what the kernel holds unsent (tcp(7)).
    NotSentLowWater,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_NOTSENT_LOWAT,
    u32
);

/// Sets what every session wants of TCP. A kernel without one of them does without.
pub(super) fn tune(tcp: &TcpStream) {
    let results = [
        ("TCP_NODELAY", setsockopt(tcp, sockopt::TcpNoDelay, &true)),
        ("TCP_USER_TIMEOUT", setsockopt(tcp, sockopt::TcpUserTimeout, &USER_TIMEOUT_MS)),
        ("TCP_NOTSENT_LOWAT", setsockopt(tcp, NotSentLowWater, &NOT_SENT_MAX)),
    ];
    for (name, result) in results {
        if let Err(errno) = result {
            log::debug!("cannot set {name}: {errno}");
        }
    }
}

/// Gives a handshake [`HANDSHAKE_LIMIT`].
pub(super) async fn limited<T>(
    shake: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let limit = async {
        Timer::after(HANDSHAKE_LIMIT).await;
        Err(Failure::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 seconds")))
    };
    smol::future::or(shake, limit).await
}

impl Sessions {
    /// One attempt at one address.
    async fn attempt(
        self: &Rc<Self>,
        addr: SocketAddr,
        expected: Option<NodeId>,
    ) -> Result<NodeId, Failure> {
        self.counters.add("dials", 1);
        let shake = async {
            if !self.has_room(For::Dialled) {
                return Err(Failure::Refused("sessions_full"));
            }
            let tcp = TcpStream::connect(addr).await.map_err(Failure::Unreachable)?;
            tune(&tcp);
            let wanted = |peer: &_| self.wanted(expected, peer);
            let proven = handshake::dial(&self.local, tcp, addr, wanted).await?;
            self.settle(proven).await
        };
        let result = limited(shake).await;
        if let Err(error) = &result {
            self.counters.add(error.reason(), 1);
            log::debug!("dial {addr}: {error}");
        }
        if let Err(Failure::Oneself { inc }) = result {
            if inc != self.local.me.inc {
                self.twin_of_mine(&addr.to_string());
            }
        }
        result
    }

    /// Dials an address whose owner is not known yet, once.
    pub(super) async fn dial_seed(self: Rc<Self>, addr: SocketAddr) {
        self.set_seed(addr, "connecting".to_owned());
        let state = match self.attempt(addr, None).await {
            Ok(id) | Err(Failure::Duplicate(id)) => format!("linked with {id}"),
            Err(error) => error.to_string(),
        };
        log::debug!("seed {addr}: {state}");
        self.set_seed(addr, state);
    }

    /// Dials a peer unless that is under way; its end is told to the loop.
    pub(super) fn start_dial(self: &Rc<Self>, id: NodeId) {
        let start = self.book.with(id, |entry| !std::mem::replace(&mut entry.dialling, true));
        if start != Some(true) {
            return;
        }
        let inner = Rc::clone(self);
        self.spawn(async move {
            let permit = inner.dials.acquire().await;
            inner.dial_peer(id).await;
            drop(permit);
            inner.dial_ended(id).await;
        });
    }

    /// Tries all addresses of a peer, each with a head start on the next.
    async fn dial_peer(self: &Rc<Self>, id: NodeId) {
        let known = self.book.with(id, |entry| entry.peer.addrs.to_vec()).unwrap_or_default();
        let mut rest = known.into_iter();
        let mut running = FuturesUnordered::new();
        let attempt = |addr| async move { (addr, self.attempt(addr, Some(id)).await) };
        running.extend(rest.next().map(attempt));
        while !running.is_empty() {
            let waiting = rest.len() > 0;
            let next = async {
                if waiting {
                    Timer::after(STAGGER).await;
                    None
                } else {
                    smol::future::pending().await
                }
            };
            match smol::future::or(running.next(), next).await {
                Some((_, Ok(_))) => return,
                Some((_, Err(Failure::Duplicate(_)))) => {
                    // The session that stands may still be on its way here.
                    self.session_within(id, HANDSHAKE_LIMIT).await;
                    return;
                }
                Some((addr, Err(Failure::WrongIdentity(_) | Failure::Oneself { .. }))) => {
                    self.book.drop_address(id, addr);
                }
                Some((_, Err(_))) | None => {}
            }
            running.extend(rest.next().map(attempt));
        }
    }

    /// Waits for a session with a peer.
    async fn session_within(&self, id: NodeId, limit: Duration) -> Option<Rc<Session>> {
        let stands = self.changed.until(|| self.session(id).map(Some));
        let limit = async {
            Timer::after(limit).await;
            None
        };
        smol::future::or(stands, limit).await
    }

    pub(super) fn session(&self, id: NodeId) -> Option<Rc<Session>> {
        self.book.with(id, |entry| entry.live().cloned()).flatten()
    }

    /// A dial is over: without a session it failed.
    async fn dial_ended(self: &Rc<Self>, id: NodeId) {
        let down = self.book.with(id, |entry| {
            entry.dialling = false;
            if entry.live().is_some() {
                entry.backoff = super::book::Backoff::default();
                return None;
            }
            self.counters.add("dials_failed", 1);
            self.counters.add("frames_lost", entry.queue.borrow_mut().clear());
            entry.backoff.fail();
            Some(entry.place())
        });
        self.changed.ring();
        if let Some(mut place) = down.flatten() {
            place.turn().await;
            self.tell(LinkEvent::Down(id)).await;
        }
    }

    /// A frame for a peer that is left alone for now was dropped: tells the loop, once.
    pub(super) fn tell_backing_off(self: &Rc<Self>, id: NodeId) {
        let place = self.book.with(id, |entry| {
            let first = !std::mem::replace(&mut entry.backoff.told, true);
            first.then(|| entry.place())
        });
        if let Some(mut place) = place.flatten() {
            let inner = Rc::clone(self);
            self.spawn(async move {
                place.turn().await;
                inner.tell(LinkEvent::Down(id)).await;
            });
        }
    }

    /// The session with a peer, dialled if there is none.
    ///
    /// # Errors
    /// If the peer is unknown, does not answer, or did not answer just now.
    pub(super) async fn reach(self: &Rc<Self>, id: NodeId) -> io::Result<Rc<Session>> {
        let until = Instant::now() + HANDSHAKE_LIMIT;
        let gone = |kind, text: String| Err(io::Error::new(kind, text));
        if let Some(session) = self.session(id) {
            return Ok(session);
        }
        let state = self.book.with(id, |entry| (entry.peer.addrs.clone(), entry.backoff.left()));
        let Some((addrs, backoff)) = state else {
            return gone(io::ErrorKind::NotFound, format!("node {id} is not known here"));
        };
        let places: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        let places = if places.is_empty() { "no address".to_owned() } else { places.join(", ") };
        if let Some(left) = backoff {
            let text = format!("node {id} did not answer at {places}; next try in {left:.1?}");
            return gone(io::ErrorKind::HostUnreachable, text);
        }
        self.start_dial(id);
        let over = self.changed.until(|| {
            let state = self.book.with(id, |entry| (entry.live().cloned(), entry.dialling));
            match state {
                Some((Some(session), _)) => Some(Some(session)),
                Some((None, true)) => None,
                Some((None, false)) | None => Some(None),
            }
        });
        let limit = async {
            Timer::at(until).await;
            None
        };
        match smol::future::or(over, limit).await {
            Some(session) => Ok(session),
            None => gone(
                io::ErrorKind::HostUnreachable,
                format!("node {id} does not answer at {places}"),
            ),
        }
    }
}
