//! Who gets in: connections that have not proven who they are, and places for sessions.
//!
//! Nobody can keep the members out by holding connections open: an address has its share, who has
//! not said a word within a second goes, and the oldest unproven one gives way to a new one. Nor
//! can one member with many identities: a quarter of the sessions is for neighbours on the ring
//! and for whom this node itself dials.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::NodeId;

use super::inner::Sessions;
use super::session::Session;
use crate::limits::Limits;
use crate::notify::Notify;
use crate::places::source;

/// Says whether a node is a neighbour on the ring.
pub(crate) type IsNeighbour = Box<dyn Fn(NodeId) -> bool>;

/// What the links admit at a time.
pub(super) struct Admission {
    pub(super) limits: Limits,
    unproven: RefCell<Vec<Rc<Unproven>>>,
    neighbour: RefCell<Option<IsNeighbour>>,
}

/// A connection whose other end has not proven who it is.
pub(super) struct Unproven {
    source: IpAddr,
    /// Rings when it is to make room.
    pub(super) gives_way: Notify,
}

/// For whom a session is to be.
#[derive(Clone, Copy)]
pub(super) enum For {
    /// Somebody called; who it is is not known yet.
    Unknown,
    /// Somebody called and proved to be this node.
    Caller(NodeId),
    /// This node dials.
    Dialled,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, unproven: RefCell::default(), neighbour: RefCell::default() }
    }

    pub(super) fn set_neighbours(&self, is: IsNeighbour) {
        self.neighbour.replace(Some(is));
    }

    fn is_neighbour(&self, id: NodeId) -> bool {
        self.neighbour.borrow().as_ref().is_some_and(|is| is(id))
    }

    /// A place for a new connection; the oldest of the address that has most makes room if need be.
    pub(super) fn enter(&self, ip: IpAddr) -> Rc<Unproven> {
        let source = source(ip);
        let mut unproven = self.unproven.borrow_mut();
        let of = |source: IpAddr| move |other: &&Rc<Unproven>| other.source == source;
        let held = unproven.iter().filter(of(source)).count();
        // Whole communities run on one machine for tests and demos.
        let share = if source.is_loopback() { usize::MAX } else { self.limits.handshakes / 4 };
        let from = if held >= share {
            Some(source)
        } else if unproven.len() >= self.limits.handshakes {
            let sources = unproven.iter().map(|other| other.source);
            sources.max_by_key(|source| unproven.iter().filter(of(*source)).count())
        } else {
            None
        };
        // They stand in the order in which they came.
        if let Some(at) = from.and_then(|from| unproven.iter().position(|o| o.source == from)) {
            unproven.remove(at).gives_way.notify();
        }
        let new = Rc::new(Unproven { source, gives_way: Notify::default() });
        unproven.push(Rc::clone(&new));
        new
    }

    pub(super) fn proven(&self, one: &Rc<Unproven>) {
        self.unproven.borrow_mut().retain(|other| !Rc::ptr_eq(other, one));
    }

    pub(super) fn unproven_now(&self) -> usize {
        self.unproven.borrow().len()
    }

    /// How many sessions are kept for neighbours and for whom this node dials.
    fn kept_free(&self) -> usize {
        self.limits.sessions / 4
    }
}

impl Sessions {
    /// Whether one more session may stand; one that is not used is ended for it.
    pub(super) fn has_room(&self, who: For) -> bool {
        let most = self.admission.limits.sessions;
        let open = most - self.admission.kept_free();
        let neighbour = matches!(who, For::Caller(id) if self.admission.is_neighbour(id));
        // A caller may turn out to be a neighbour.
        let most = if matches!(who, For::Caller(_)) && !neighbour { open } else { most };
        if self.sessions.get() < most || self.end_one(self.unused.get(), false) {
            return true;
        }
        // A neighbour must get in, whoever else is busy here.
        neighbour && self.end_one(Duration::ZERO, true)
    }

    /// Ends the session that was not used longest, for `unused` at least. Whether there was one.
    fn end_one(&self, unused: Duration, even_with_streams: bool) -> bool {
        let now = Instant::now();
        let sessions = self.book.sessions();
        let may = sessions.iter().filter(|session| {
            now - session.used() >= unused
                && (even_with_streams || !session.waits())
                && !self.admission.is_neighbour(session.peer.id)
        });
        let Some(session) = may.min_by_key(|session| session.used()) else { return false };
        self.counters.add("sessions_unused", 1);
        log::debug!("session with {:?} gives way to a new one", session.peer.id);
        self.session_ended(session);
        true
    }

    /// Whether callers at this address hold as many sessions as one address may.
    pub(super) fn has_its_share(&self, ip: IpAddr) -> bool {
        let source = source(ip);
        let theirs = |session: &&Rc<Session>| {
            !session.dialled && crate::places::source(session.addr.ip()) == source
        };
        !source.is_loopback()
            && self.book.sessions().iter().filter(theirs).count()
                >= self.admission.limits.sessions / 4
    }
}
