//! Bounded places for connections: so many in all, and so many for each source. When they are
//! taken, the one that has been idle longest gives way to a new one.
//!
//! ```text
//! let places = Places::new(256, 128);
//! let Some(place) = places.take(client.ip()) else { return };     // all were used just now
//! let stream = place.watch(stream);                                // every byte counts as use
//! smol::future::or(serve(stream), place.gives_way()).await;
//! ```

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smol::io::{AsyncRead, AsyncWrite};

use crate::notify::Notify;
use crate::stream::Stream;

/// What was used within this time does not give way.
const IN_USE: Duration = Duration::from_secs(1);

/// Places for connections from sources of one kind.
pub(crate) struct Places<K> {
    most: usize,
    each: usize,
    taken: RefCell<Vec<Rc<Seat<K>>>>,
    gave_way: Cell<u64>,
    refused: Cell<u64>,
}

struct Seat<K> {
    source: K,
    used: Cell<Instant>,
    gives_way: Notify,
}

/// One of the places, free again when this is dropped.
pub(crate) struct Place<K> {
    places: Rc<Places<K>>,
    seat: Rc<Seat<K>>,
}

/// How full the places are, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) most: usize,
    pub(crate) each: usize,
    pub(crate) now: usize,
    /// Idle ones that were ended for a new one, since the start.
    pub(crate) gave_way: u64,
    /// New ones that were turned away because all were in use, since the start.
    pub(crate) refused: u64,
}

impl<K: Clone + PartialEq> Places<K> {
    /// `most` in all, `each` for one source.
    pub(crate) fn new(most: usize, each: usize) -> Rc<Self> {
        Rc::new(Self {
            most,
            each,
            taken: RefCell::default(),
            gave_way: Cell::new(0),
            refused: Cell::new(0),
        })
    }

    /// A place, if need be that of the idlest: of the same source if that has its share, of all
    /// otherwise. `None`, and counted, if all of them were used within the last second.
    pub(crate) fn take(self: &Rc<Self>, source: K) -> Option<Place<K>> {
        let mut taken = self.taken.borrow_mut();
        let mut same = taken.iter().filter(|seat| seat.source == source).count();
        while same >= self.each || taken.len() >= self.most {
            let own = same >= self.each;
            let may = taken.iter().enumerate().filter(|(_, seat)| !own || seat.source == source);
            let idlest = may.min_by_key(|(_, seat)| seat.used.get());
            let idlest = idlest.filter(|(_, seat)| seat.used.get().elapsed() >= IN_USE);
            let Some(at) = idlest.map(|(at, _)| at) else {
                self.refused.set(self.refused.get() + 1);
                return None;
            };
            let seat = taken.swap_remove(at);
            same -= usize::from(seat.source == source);
            seat.gives_way.notify();
            self.gave_way.set(self.gave_way.get() + 1);
        }
        let seat = Seat { source, used: Cell::new(Instant::now()), gives_way: Notify::default() };
        let seat = Rc::new(seat);
        taken.push(Rc::clone(&seat));
        Some(Place { places: Rc::clone(self), seat })
    }

    pub(crate) fn now(&self) -> Taken {
        Taken {
            most: self.most,
            each: self.each,
            now: self.taken.borrow().len(),
            gave_way: self.gave_way.get(),
            refused: self.refused.get(),
        }
    }
}

impl<K> Place<K> {
    /// Ends when the place went to another connection.
    pub(crate) async fn gives_way(&self) {
        self.seat.gives_way.wait().await;
    }

    /// The same stream; what is read or written on it counts as use of the place.
    pub(crate) fn watch(&self, inner: Stream) -> Stream
    where
        K: 'static,
    {
        Box::pin(Watched { inner, seat: Rc::clone(&self.seat) })
    }
}

impl<K> Drop for Place<K> {
    fn drop(&mut self) {
        self.places.taken.borrow_mut().retain(|seat| !Rc::ptr_eq(seat, &self.seat));
    }
}

/// Whose a connection is: an IPv4 address, or the network of an IPv6 one, of which a machine has as
/// many as it likes.
pub(crate) fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64))
        }
        ip => ip,
    }
}

struct Watched<K> {
    inner: Stream,
    seat: Rc<Seat<K>>,
}

impl<K> Watched<K> {
    fn used(&self, moved: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(moved, Poll::Ready(Ok(count)) if count > 0) {
            self.seat.used.set(Instant::now());
        }
        moved
    }
}

impl<K> AsyncRead for Watched<K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let moved = self.inner.as_mut().poll_read(cx, buf);
        self.used(moved)
    }
}

impl<K> AsyncWrite for Watched<K> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = self.inner.as_mut().poll_write(cx, buf);
        self.used(moved)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let moved = self.inner.as_mut().poll_write_vectored(cx, bufs);
        self.used(moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_close(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn age<K>(place: &Place<K>, by: Duration) {
        place.seat.used.set(place.seat.used.get().checked_sub(by).unwrap());
    }

    #[test]
    fn the_idlest_gives_way_and_what_is_used_stays() {
        let places = Places::new(3, 2);
        let all: Vec<_> = ["a", "a", "b"].map(|source| places.take(source).unwrap()).into();
        assert!(places.take("c").is_none(), "all are in use");
        age(&all[1], 3 * IN_USE);
        age(&all[2], 2 * IN_USE);
        let new = places.take("c").unwrap();
        smol::block_on(all[1].gives_way());
        assert_eq!((places.now().now, places.now().gave_way, places.now().refused), (3, 1, 1));
        drop(new);
        drop(all);
        assert_eq!(places.now().now, 0);
    }

    #[test]
    fn who_has_its_share_makes_room_of_its_own() {
        let places = Places::new(10, 2);
        let [first, second, other] = ["a", "a", "b"].map(|source| places.take(source).unwrap());
        age(&other, 9 * IN_USE);
        assert!(places.take("a").is_none());
        age(&second, 2 * IN_USE);
        let third = places.take("a").unwrap();
        smol::block_on(second.gives_way());
        drop((first, third, other));
    }

    #[test]
    fn a_machine_has_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
