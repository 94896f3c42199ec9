//! The state behind [`super::Links`], and the rule that makes two ends agree on one session.
//!
//! Both ends may dial at the same moment, and either may believe in a session that is dead on the
//! other side. So **one end decides: the node with the lower id**. After the handshake it says in
//! the first record whether the connection becomes the session; the other obeys, and sends
//! nothing before. It accepts
//! - if it has no session with the peer, or the peer's incarnation is higher than the session's;
//! - if the dialler tells that just that session has ended on its side;
//!
//! and refuses otherwise ([`DUPLICATE`]): then the session that stands is the one. A refused
//! dialler keeps its frames for it. So a tie never costs a frame or a Down, and whenever a
//! session is replaced, which may have cost frames in flight, there is a Down before the Up.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::map::Map;
use dugnad_kernel::{NodeId, Peer};
use smol::LocalExecutor;
use smol::channel::Sender;
use smol::lock::Semaphore;
use smol::net::TcpStream;

use super::LinkEvent;
use super::admit::{Admission, For};
use super::book::Book;
use super::counters::Counters;
use super::handshake::{self, Failure, Local, Proven, SessionId};
use super::noise::VERDICT;
use super::session::{self, Halves, Session};
use crate::limits::Limits;
use crate::notify::Changed;

/// How long a handshake may take, connecting included.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A session that carried nothing for so long gives way to a new one when there are as many as may
/// be ([`Limits`]). Watched peers are pinged more often, so theirs never do.
const UNUSED: Duration = Duration::from_secs(60);
/// How many peers are dialled at a time.
const DIALS_MAX: usize = 32;
/// Warnings of identities that are used twice.
const TWINS_MAX: usize = 8;
/// How many seeds are remembered for the user.
const SEEDS_MAX: usize = 64;

const ACCEPT: u8 = 0;
const DUPLICATE: u8 = 1;
const STALE: u8 = 2;
/// There is no place. This and [`TWIN`] are also said by the end that does not decide, as the first
/// record of a session it does not want.
pub(super) const BUSY: u8 = 3;
/// A session with another machine of the same identity stands.
pub(super) const TWIN: u8 = 4;
/// A session something came over within this time is with a machine that runs.
const RUNS: Duration = Duration::from_secs(20);
/// Who is refused as a twin for so long is not met by its own past, which is over by then.
const CERTAIN: Duration = Duration::from_secs(30);
/// A refusal so long after the last one is a new matter. Peers are dialled more often.
const FORGOTTEN: Duration = Duration::from_secs(90);

pub(super) struct Sessions {
    ex: Rc<LocalExecutor<'static>>,
    inbox: Sender<LinkEvent>,
    pub(super) local: Local,
    pub(super) listening: SocketAddr,
    pub(super) book: Book,
    pub(super) counters: Counters,
    /// Rings when a session stands, a dial ended, or all is closing.
    pub(super) changed: Changed,
    pub(super) dials: Semaphore,
    seeds: RefCell<Map<SocketAddr, String>>,
    pub(super) admission: Admission,
    pub(super) sessions: Cell<usize>,
    /// [`UNUSED`], or less in tests.
    pub(super) unused: Cell<Duration>,
    pub(super) closing: Cell<bool>,
    /// Who called last and belongs to another community.
    stranger: Cell<Option<Stranger>>,
    /// Identities that two machines use at the same time, a line each for the owner.
    twins: RefCell<Vec<String>>,
    /// When this node was first and last refused because another machine has its identity.
    refused_as_twin: Cell<Option<(Instant, Instant)>>,
    /// Bytes of sessions that ended.
    past: Cell<(u64, u64)>,
}

impl Sessions {
    pub(super) fn new(
        ex: Rc<LocalExecutor<'static>>,
        inbox: Sender<LinkEvent>,
        local: Local,
        listening: SocketAddr,
        limits: Limits,
    ) -> Self {
        Self {
            ex,
            inbox,
            local,
            listening,
            book: Book::default(),
            counters: Counters::default(),
            changed: Changed::default(),
            dials: Semaphore::new(DIALS_MAX),
            seeds: RefCell::default(),
            admission: Admission::new(limits),
            sessions: Cell::new(0),
            unused: Cell::new(UNUSED),
            closing: Cell::new(false),
            stranger: Cell::new(None),
            twins: RefCell::default(),
            refused_as_twin: Cell::new(None),
            past: Cell::new((0, 0)),
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.ex.spawn(task).detach();
    }

    /// Tells the loop; waits while its inbox is full. Nobody listens any more at the very end.
    pub(super) async fn tell(&self, event: LinkEvent) {
        if self.inbox.send(event).await.is_err() {
            self.closing.set(true);
        }
    }

    fn decides(&self, peer: NodeId) -> bool {
        self.local.me.id < peer
    }

    /// A connection came in.
    pub(super) async fn accepted(self: Rc<Self>, tcp: TcpStream, addr: SocketAddr) {
        if self.closing.get() {
            return;
        }
        let unproven = self.admission.enter(addr.ip());
        let busy = self.has_its_share(addr.ip()) || !self.has_room(For::Unknown);
        let shake = async {
            super::dial::tune(&tcp);
            let proven = handshake::listen(&self.local, tcp, addr, busy).await?;
            self.settle(proven).await
        };
        let gives_way = async {
            unproven.gives_way.wait().await;
            Err(Failure::Refused("handshakes_gave_way"))
        };
        let result = smol::future::or(super::dial::limited(shake), gives_way).await;
        self.admission.proven(&unproven);
        if let Err(error) = result {
            self.counters.add(error.reason(), 1);
            log::debug!("connection from {addr} refused: {error}");
            match error {
                Failure::Refused("refused_community" | "refused_secret") => {
                    self.stranger_called(Stranger::Elsewhere(addr.ip()));
                }
                Failure::Refused("refused_version") => {
                    self.stranger_called(Stranger::OtherVersion(addr.ip()));
                }
                _ => {}
            }
        }
    }

    /// Somebody called who cannot be let in: said once, and rarely again.
    fn stranger_called(&self, stranger: Stranger) {
        let known = self.stranger.replace(Some(stranger));
        if known != Some(stranger) && !self.closing.get() {
            let reasons = ["refused_community", "refused_secret", "refused_version"];
            let calls: u64 = reasons.iter().map(|reason| self.counters.get(reason)).sum();
            if calls.is_power_of_two() {
                log::warn!("{stranger}");
            }
        }
    }

    /// What the owner should know of nodes that cannot be linked with, a line each.
    pub(super) fn strangers(&self) -> Vec<String> {
        let seeds = self.seeds();
        let elsewhere = seeds.iter().filter(|(_, state)| state.contains("another community"));
        let asked = elsewhere.map(|(addr, _)| {
            format!(
                "the node at {addr} belongs to another community: this node needs an invitation of \
                 its own (`dugnad invite` there, `dugnad join` here), or other seeds"
            )
        });
        let other = seeds.iter().filter(|(_, state)| state.contains("another wire version"));
        let other = other.map(|(addr, _)| {
            format!(
                "the node at {addr} runs another wire version of dugnad than this one ({}): bring \
                 both to the same",
                env!("CARGO_PKG_VERSION")
            )
        });
        let called = self.stranger.get().map(|stranger| stranger.to_string());
        asked.chain(other).chain(called).collect()
    }

    /// Whether a dial that reached `peer` should go on, and which sessions with it ended here.
    pub(super) fn wanted(
        &self,
        expected: Option<NodeId>,
        peer: &Peer,
    ) -> Result<Vec<SessionId>, Failure> {
        if expected.is_some_and(|id| id != peer.id) {
            return Err(Failure::WrongIdentity(peer.id));
        }
        let known = self.book.with(peer.id, |entry| {
            let stands = entry.live().is_some_and(|session| session.peer.inc >= peer.inc);
            if stands { Err(Failure::Duplicate(peer.id)) } else { Ok(entry.ended.clone()) }
        });
        known.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Both ends are proven: makes this connection the session, or not.
    pub(super) async fn settle(self: &Rc<Self>, mut proven: Proven) -> Result<NodeId, Failure> {
        let id = proven.peer.id;
        if self.closing.get() {
            return Err(Failure::Refused("closing"));
        }
        if !self.book.learn_from(&proven.peer) {
            return Err(Failure::Refused("book_full"));
        }
        let whom = if proven.dialled { For::Dialled } else { For::Caller(id) };
        if !self.decides(id) && self.session(id).is_none() && !self.has_room(whom) {
            // The other side may be gone; it is refused all the same.
            let busy = proven.writer.record(&proven.noise, &[VERDICT, BUSY]);
            let _: io::Result<()> = busy.await;
            return Err(Failure::Refused("sessions_full"));
        }
        if self.decides(id) {
            let verdict = self.decide(&proven, whom);
            if verdict == ACCEPT {
                self.install(proven, Some(ACCEPT));
                return Ok(id);
            }
            if verdict == STALE || verdict == TWIN {
                self.twin_seen(id, proven.addr);
            }
            // The other side may be gone; it is refused all the same.
            let _: io::Result<()> = proven.writer.record(&proven.noise, &[VERDICT, verdict]).await;
            return Err(refusal(verdict, id));
        }
        // If no decision arrives, the other end may still have taken it for the session: it is
        // noted as ended, so that the next dial replaces it.
        let session = proven.session;
        let abandoned = Abandoned { inner: self, id, session, armed: Cell::new(true) };
        let verdict = proven.read_verdict().await?;
        if verdict != ACCEPT {
            abandoned.armed.set(false);
            match verdict {
                STALE => self.twin_of_mine(&format!("node {}", id.short())),
                TWIN => self.met_as_twin(id),
                _ => {}
            }
            return Err(refusal(verdict, id));
        }
        let newer = self.book.with(id, |entry| {
            entry.live().is_some_and(|session| session.peer.inc > proven.peer.inc)
        });
        if newer == Some(true) {
            return Err(refusal(STALE, id));
        }
        if self.is_twin(&proven) {
            abandoned.armed.set(false);
            self.twin_seen(id, proven.addr);
            // It may be gone; it is refused all the same.
            _ = proven.writer.record(&proven.noise, &[VERDICT, TWIN]).await;
            return Err(refusal(TWIN, id));
        }
        abandoned.armed.set(false);
        self.install(proven, None);
        Ok(id)
    }

    /// Whether the same node is linked from another machine, which runs. A machine that lost power
    /// and comes back under another address waits until its old session is silent.
    fn is_twin(&self, proven: &Proven) -> bool {
        self.session(proven.peer.id).is_some_and(|session| {
            let earlier = session.peer.inc < proven.peer.inc;
            earlier && elsewhere(session.addr, proven.addr) && session.heard().elapsed() < RUNS
        })
    }

    /// Two machines claim to be one node, and the one that is linked is not this.
    fn twin_seen(&self, id: NodeId, addr: SocketAddr) {
        let session = self.session(id).filter(|session| elsewhere(session.addr, addr));
        let Some(other) = session.map(|session| session.addr.ip()) else { return };
        self.tell_twin(format!(
            "two machines run with the identity of node {}: {} and {other}; one of the two state \
             directories is a copy: make that machine a node of its own with `dugnad init \
             --new-identity`",
            id.short(),
            addr.ip(),
        ));
    }

    /// Somebody was found with this node's own identity.
    pub(super) fn twin_of_mine(&self, whom: &str) {
        self.tell_twin(format!(
            "another machine runs with this node's identity (met through {whom}): one of the two \
             state directories is a copy; make that machine a node of its own with `dugnad init \
             --new-identity`"
        ));
    }

    fn tell_twin(&self, text: String) {
        let mut twins = self.twins.borrow_mut();
        if !twins.contains(&text) && twins.len() < TWINS_MAX {
            twins.push(text.clone());
            drop(twins);
            self.tell_later(LinkEvent::Twin { text, later: false });
        }
    }

    /// A peer has a session with another machine of this identity. Said long enough, it is not this
    /// node's own past: the other was there first.
    pub(super) fn met_as_twin(&self, peer: NodeId) {
        self.twin_of_mine(&format!("node {}", peer.short()));
        let now = Instant::now();
        let (first, last) = self.refused_as_twin.get().unwrap_or((now, now));
        let first = if now - last > FORGOTTEN { now } else { first };
        self.refused_as_twin.set(Some((first, now)));
        if now - first >= CERTAIN {
            let text =
                "this state directory is a copy: the other machine was there first".to_owned();
            self.tell_later(LinkEvent::Twin { text, later: true });
        }
    }

    fn tell_later(&self, event: LinkEvent) {
        let inbox = self.inbox.clone();
        self.spawn(async move {
            // Without the loop nobody needs to know.
            _ = inbox.send(event).await;
        });
    }

    pub(super) fn twins(&self) -> Vec<String> {
        self.twins.borrow().clone()
    }

    fn decide(&self, proven: &Proven, whom: For) -> u8 {
        let standing = self.book.with(proven.peer.id, |entry| {
            entry.live().map(|session| (session.id, session.peer.inc))
        });
        match standing.flatten() {
            None if !self.has_room(whom) => BUSY,
            None => ACCEPT,
            Some((_, inc)) if proven.peer.inc > inc && self.is_twin(proven) => TWIN,
            Some((_, inc)) if proven.peer.inc > inc => ACCEPT,
            Some((_, inc)) if proven.peer.inc < inc => STALE,
            Some((id, _)) if proven.ended.contains(&id) => ACCEPT,
            Some(_) => DUPLICATE,
        }
    }

    /// The connection is the session with its peer from now on.
    fn install(self: &Rc<Self>, mut proven: Proven, verdict: Option<u8>) {
        let id = proven.peer.id;
        let old = self.book.with(id, |entry| entry.session.take()).flatten();
        if let Some(old) = old {
            self.counters.add("sessions_replaced", 1);
            self.session_ended(&old);
            // What waited was meant for the session that is gone.
            self.counters.add("frames_lost", old.queue.borrow_mut().clear());
        }
        let started = self.book.with(id, |entry| {
            if proven.dialled {
                entry.prefer(proven.addr);
            }
            entry.peer.inc = proven.peer.inc;
            proven.peer.addrs = entry.peer.addrs.clone();
            let queue = Rc::clone(&entry.queue);
            let place = entry.place();
            let (session, reader, writer) = Session::new(proven, queue);
            let session = Rc::new(session);
            entry.session = Some(Rc::clone(&session));
            (session, Halves { reader, writer, verdict, place })
        });
        if let Some((session, halves)) = started {
            self.sessions.set(self.sessions.get() + 1);
            self.counters.add("sessions_up", 1);
            log::debug!("session with {id:?} at {} ({})", session.addr, session.direction());
            session::spawn(self, &session, halves);
            self.changed.ring();
        }
    }

    /// A session ended, whoever noticed first. Waiting frames are lost with it.
    pub(super) fn session_ended(&self, session: &Rc<Session>) {
        if !session.kill() {
            return;
        }
        self.sessions.set(self.sessions.get() - 1);
        self.counters.add("sessions_down", 1);
        let (read, written) = self.past.get();
        let bytes = &session.bytes;
        self.past.set((read + bytes.read.get(), written + bytes.written.get()));
        self.book.with(session.peer.id, |entry| {
            entry.note_ended(session.id);
            if entry.session.as_ref().is_some_and(|current| Rc::ptr_eq(current, session)) {
                entry.session = None;
                self.counters.add("frames_lost", session.queue.borrow_mut().clear());
                if session.dialled && session.was_short() {
                    entry.backoff.fail();
                }
            }
        });
        self.changed.ring();
    }

    /// Forgets where a peer is. The entry stays until its place is needed.
    #[cfg(test)]
    pub(super) fn forget(&self, id: NodeId) {
        self.book.with(id, |entry| {
            entry.peer.addrs.clear();
            self.counters.add("frames_lost", entry.queue.borrow_mut().clear());
        });
    }

    /// Bytes read from and written to sockets of sessions.
    pub(super) fn bytes(&self) -> (u64, u64) {
        self.book.sessions().iter().fold(self.past.get(), |(read, written), session| {
            (read + session.bytes.read.get(), written + session.bytes.written.get())
        })
    }

    pub(super) fn set_seed(&self, addr: SocketAddr, state: String) {
        let mut seeds = self.seeds.borrow_mut();
        if seeds.len() < SEEDS_MAX || seeds.contains_key(&addr) {
            seeds.insert(addr, state);
        }
    }

    pub(super) fn seeds(&self) -> Vec<(SocketAddr, String)> {
        self.seeds.borrow().iter().map(|(addr, state)| (*addr, state.clone())).collect()
    }
}

/// Whether these are addresses of different machines, as far as they can be compared.
fn elsewhere(a: SocketAddr, b: SocketAddr) -> bool {
    let (a, b) = (a.ip(), b.ip());
    // One machine has many loopback addresses, and one of each family.
    let one = a == b || (a.is_loopback() && b.is_loopback());
    a.is_ipv4() == b.is_ipv4() && !one
}

fn refusal(verdict: u8, id: NodeId) -> Failure {
    match verdict {
        DUPLICATE => Failure::Duplicate(id),
        STALE => Failure::Refused("refused_incarnation"),
        BUSY => Failure::Refused("refused_busy"),
        TWIN => Failure::Refused("refused_twin"),
        _ => Failure::Refused("handshake_malformed"),
    }
}

/// Notes a session as ended if the wait for its decision is given up.
struct Abandoned<'a> {
    inner: &'a Sessions,
    id: NodeId,
    session: SessionId,
    armed: Cell<bool>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if self.armed.get() {
            self.inner.book.with(self.id, |entry| entry.note_ended(self.session));
        }
    }
}

/// A caller that cannot be let in, and that the owner may have meant to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stranger {
    /// It belongs to another community: most likely somebody has joined with a wrong token.
    Elsewhere(IpAddr),
    /// Another wire version.
    OtherVersion(IpAddr),
}

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Elsewhere(ip) => write!(
                f,
                "a node of another community calls from {ip}: if it should be one of this, it \
                 needs an invitation of this one (`dugnad invite`)"
            ),
            Self::OtherVersion(ip) => write!(
                f,
                "a node with another wire version of dugnad calls from {ip}, this one is {}: \
                 bring both to the same",
                env!("CARGO_PKG_VERSION")
            ),
        }
    }
}
