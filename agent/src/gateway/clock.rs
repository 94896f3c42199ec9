//! When a quiet client connection is closed: 60 s between two requests, 30 s for a request's head
//! once its first byte has come.
//!
//! hyper has one limit for both, and asks this timer about it; the stream beside it tells the timer
//! when bytes came.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Sleep;
use smol::Timer;
use smol::io::{AsyncRead, AsyncWrite};

use crate::stream::Stream;

const HEAD: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);

/// A stream that counts how often bytes came.
pub(super) struct Heard {
    inner: Stream,
    reads: Arc<AtomicUsize>,
}

#[derive(Clone)]
pub(super) struct Clock {
    reads: Arc<AtomicUsize>,
    head: Duration,
    idle: Duration,
    alarm: Arc<Mutex<Alarm>>,
}

/// The one timer of a connection. It is not set anew for every request: it is let run, and tells
/// when it ends how much is left.
struct Alarm {
    timer: Timer,
    /// When it ends, if it runs.
    at: Option<Instant>,
}

pub(super) fn clocked(inner: Stream) -> (Heard, Clock) {
    let reads = Arc::new(AtomicUsize::new(0));
    let alarm = Arc::new(Mutex::new(Alarm { timer: Timer::never(), at: None }));
    let clock = Clock { reads: Arc::clone(&reads), head: HEAD, idle: IDLE, alarm };
    (Heard { inner, reads }, clock)
}

impl Clock {
    /// For hyper, which wants to know that there is a limit; the real ones are here.
    pub(super) const LIMIT: Duration = IDLE;

    #[cfg(test)]
    pub(super) fn with(mut self, head: Duration, idle: Duration) -> Self {
        (self.head, self.idle) = (head, idle);
        self
    }
}

impl hyper::rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn Sleep>> {
        let before = self.reads.load(Ordering::Relaxed);
        // Nothing ever came: whoever connects must speak soon.
        let begun = before == 0;
        let until = Instant::now() + if begun { self.head } else { self.idle };
        Box::pin(Wait { clock: self.clone(), before, begun, until })
    }
}

struct Wait {
    clock: Clock,
    before: usize,
    begun: bool,
    until: Instant,
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun && self.clock.reads.load(Ordering::Relaxed) != self.before {
            self.begun = true;
            self.until = Instant::now() + self.clock.head;
        }
        let mut alarm = self.clock.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        alarm.poll(self.until, cx)
    }
}

impl Alarm {
    fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.at.is_none_or(|at| at > until) {
                self.timer.set_at(until);
                self.at = Some(until);
            }
            let ended = ready!(Pin::new(&mut self.timer).poll(cx));
            self.at = None;
            if ended >= until {
                return Poll::Ready(());
            }
        }
    }
}

impl Heard {
    pub(super) fn into_inner(self) -> Stream {
        self.inner
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(self.inner.as_mut().poll_read(cx, buf))?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_close(cx)
    }
}
