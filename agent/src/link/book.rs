//! What is known of each peer: addresses, session, waiting frames, back-off.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::map::Map;
use dugnad_kernel::{NodeId, Peer};
use smol::channel::{Receiver, Sender};

use super::handshake::{ENDED_MAX, SessionId};
use super::queue::Queue;
use super::session::Session;

/// How many peers are known at a time.
pub(super) const PEERS_MAX: usize = 384;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long a peer that could not be dialled is left alone.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
    /// Whether a frame was turned away in this back-off already, and the loop told.
    pub(super) told: bool,
}

impl Backoff {
    pub(super) fn fail(&mut self) {
        let factor = 1u32 << self.failures.min(10);
        self.failures += 1;
        let delay = (BACKOFF_FIRST * factor).min(BACKOFF_MAX);
        // Three to five quarters: peers that failed together do not come back together.
        let jitter = delay.mul_f32(0.75 + fastrand::f32() / 2.0);
        self.until = Some(Instant::now() + jitter);
        self.told = false;
    }

    /// How long it still lasts.
    pub(super) fn left(&self) -> Option<Duration> {
        self.until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// A peer as the links see it.
pub(super) struct Entry {
    pub(super) peer: Peer,
    pub(super) session: Option<Rc<Session>>,
    /// Waits for a session, or for the session to write it.
    pub(super) queue: Rc<RefCell<Queue>>,
    pub(super) dialling: bool,
    /// Its addresses are those it gave in a handshake.
    told_itself: bool,
    pub(super) backoff: Backoff,
    /// The latest sessions that ended here, oldest first.
    pub(super) ended: Vec<SessionId>,
    /// Closes when the last of those who tell the loop about this peer has done so.
    last: Option<Receiver<()>>,
    /// For eviction: the entry with the smallest goes first.
    used: u64,
}

/// A place in the row of those who tell the loop about one peer. Ups, frames and Downs of a peer
/// come from several tasks; the places keep them in the order of what happened.
pub(super) struct Place {
    before: Option<Receiver<()>>,
    _after: Sender<()>,
}

impl Place {
    /// Waits until all earlier ones are done; this one is done when it is dropped.
    pub(super) async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            // Nothing is ever sent: the error says that the other end was dropped.
            let _: Result<(), _> = before.recv().await;
        }
    }
}

impl Entry {
    fn new(peer: Peer, queue: Queue) -> Self {
        Self {
            peer,
            session: None,
            queue: Rc::new(RefCell::new(queue)),
            dialling: false,
            told_itself: false,
            backoff: Backoff::default(),
            ended: Vec::new(),
            last: None,
            used: 0,
        }
    }

    pub(super) fn live(&self) -> Option<&Rc<Session>> {
        self.session.as_ref().filter(|session| !session.is_dead())
    }

    pub(super) fn place(&mut self) -> Place {
        let (sender, receiver) = smol::channel::bounded(1);
        Place { before: self.last.replace(receiver), _after: sender }
    }

    pub(super) fn note_ended(&mut self, session: SessionId) {
        if self.ended.len() >= ENDED_MAX {
            self.ended.remove(0);
        }
        self.ended.push(session);
    }

    /// Takes what is newer or more in `news`.
    fn merge(&mut self, news: &Peer) {
        let newer = news.inc > self.peer.inc;
        if newer {
            self.backoff = Backoff::default();
        }
        // Where it lives it says itself; others only add where else it may be looked for, and
        // only if it has started again since.
        if self.told_itself && !newer {
            return;
        }
        let (first, second) = if newer && !self.told_itself {
            (&news.addrs, &self.peer.addrs)
        } else {
            (&self.peer.addrs, &news.addrs)
        };
        let addrs: Vec<SocketAddr> = first.iter().chain(second).copied().collect();
        self.set_addrs(&addrs);
        self.peer.inc = self.peer.inc.max(news.inc);
    }

    /// Puts an address that answered first.
    pub(super) fn prefer(&mut self, addr: SocketAddr) {
        let mut addrs = vec![addr];
        addrs.extend_from_slice(&self.peer.addrs);
        self.set_addrs(&addrs);
    }

    /// Keeps the first addresses, each once.
    fn set_addrs(&mut self, addrs: &[SocketAddr]) {
        self.peer.addrs.clear();
        for addr in addrs {
            // More than four are not kept.
            if !self.peer.addrs.contains(addr) && self.peer.addrs.push(*addr).is_err() {
                break;
            }
        }
    }
}

/// Whether it makes sense to dial it.
pub(super) fn diallable(addr: &SocketAddr) -> bool {
    !addr.ip().is_unspecified() && !addr.ip().is_multicast() && addr.port() != 0
}

/// All known peers, at most [`PEERS_MAX`].
#[derive(Default)]
pub(super) struct Book {
    entries: RefCell<Map<NodeId, Entry>>,
    clock: Cell<u64>,
    /// Bytes that wait in all queues.
    queued: Rc<Cell<usize>>,
}

impl Book {
    /// Does something with the entry of a peer, if it is known.
    pub(super) fn with<T>(&self, id: NodeId, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(&id)?;
        self.clock.set(self.clock.get() + 1);
        entry.used = self.clock.get();
        Some(f(entry))
    }

    /// Learns of a peer, or more of it. When full, the least used peer without session, dial or
    /// waiting frames is forgotten; if there is none, nothing is learnt.
    pub(super) fn learn(&self, news: &Peer) -> bool {
        let mut news = news.clone();
        news.addrs.retain(diallable);
        if self.with(news.id, |entry| entry.merge(&news)).is_some() {
            return true;
        }
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= PEERS_MAX {
            let idle = entries.iter().filter(|(_, entry)| {
                // Whoever still has to tell the loop something keeps the place in the row.
                let told = entry.last.as_ref().is_none_or(Receiver::is_closed);
                let idle = entry.session.is_none() && !entry.dialling;
                idle && told && entry.queue.borrow().is_empty()
            });
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id) else {
                return false;
            };
            entries.remove(&oldest);
        }
        self.clock.set(self.clock.get() + 1);
        let id = news.id;
        let mut entry = Entry::new(news, Queue::new(Rc::clone(&self.queued)));
        entry.used = self.clock.get();
        entries.insert(id, entry);
        true
    }

    /// Learns of a peer from itself: where it says it is, it is, and nowhere else.
    pub(super) fn learn_from(&self, itself: &Peer) -> bool {
        self.with(itself.id, |entry| {
            if itself.inc >= entry.peer.inc {
                entry.peer.addrs.clear();
                entry.told_itself = false;
            }
        });
        let learnt = self.learn(itself);
        self.with(itself.id, |entry| entry.told_itself |= itself.inc >= entry.peer.inc);
        learnt
    }

    pub(super) fn drop_address(&self, id: NodeId, addr: SocketAddr) {
        self.with(id, |entry| entry.peer.addrs.retain(|known| *known != addr));
    }

    pub(super) fn sessions(&self) -> Vec<Rc<Session>> {
        let entries = self.entries.borrow();
        entries.values().filter_map(|entry| entry.live().cloned()).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.borrow().len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    fn peer(inc: u32, addrs: &[&str]) -> Peer {
        let mut peer = Peer::new(Id(7));
        peer.inc = inc;
        peer.addrs.extend(addrs.iter().map(|addr| addr.parse().unwrap()));
        peer
    }

    #[test]
    fn where_a_node_lives_it_says_itself() {
        let book = Book::default();
        let known = || book.with(Id(7), |entry| entry.peer.addrs.to_vec()).unwrap();
        let is = |addrs: &[&str]| assert_eq!(known(), peer(0, addrs).addrs.to_vec());
        book.learn(&peer(1, &["10.0.0.66:1"]));
        book.learn(&peer(1, &["10.0.0.7:1"]));
        is(&["10.0.0.66:1", "10.0.0.7:1"]);
        book.learn_from(&peer(1, &["10.0.0.7:1"]));
        book.learn(&peer(1, &["10.0.0.66:1"]));
        is(&["10.0.0.7:1"]);
        // It may have moved: both are tried, its own word first.
        book.learn(&peer(2, &["10.0.0.8:1"]));
        is(&["10.0.0.7:1", "10.0.0.8:1"]);
        book.learn_from(&peer(2, &["10.0.0.8:1"]));
        book.learn(&peer(2, &["10.0.0.66:1"]));
        is(&["10.0.0.8:1"]);
    }
}
