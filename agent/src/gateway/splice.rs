//! Two streams joined: what comes from one goes to the other, until both have ended.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use smol::Timer;

use super::PIECE;
use crate::stream::Stream;

/// How long both directions may be silent, and how long one may once the other has ended.
const IDLE: Duration = Duration::from_secs(3600);
const HALF_OPEN: Duration = Duration::from_secs(300);

/// Joins two streams. `from_a` and `from_b` were read of them already and go first.
pub(super) async fn splice(
    mut a: Stream,
    from_a: Bytes,
    mut b: Stream,
    from_b: Bytes,
) -> io::Result<()> {
    let (mut there, mut back) = (Way::new(&from_a), Way::new(&from_b));
    drop((from_a, from_b));
    let mut moved_at = Instant::now();
    let mut timer = Timer::after(HALF_OPEN);
    poll_fn(|cx| {
        let before = (there.moved, back.moved);
        let there_done = there.poll(cx, &mut a, &mut b)?.is_ready();
        let back_done = back.poll(cx, &mut b, &mut a)?.is_ready();
        if there_done && back_done {
            return Poll::Ready(Ok(()));
        }
        if before != (there.moved, back.moved) {
            moved_at = Instant::now();
        }
        // The timer is not set anew for every piece: it looks now and then how long it was quiet.
        while Pin::new(&mut timer).poll(cx).is_ready() {
            let limit = if there_done || back_done { HALF_OPEN } else { IDLE };
            if moved_at.elapsed() >= limit {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.set_after(HALF_OPEN);
        }
        Poll::Pending
    })
    .await
}

/// One direction.
struct Way {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    moved: u64,
    ended: bool,
    closed: bool,
    unflushed: bool,
}

impl Way {
    fn new(first: &[u8]) -> Self {
        let mut buffer = vec![0; PIECE.max(first.len())];
        buffer[..first.len()].copy_from_slice(first);
        let end = first.len();
        Self { buffer, start: 0, end, moved: 0, ended: false, closed: false, unflushed: false }
    }

    /// Ready when the source has ended and the sink was told so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
    ) -> Poll<io::Result<()>> {
        // A fast pair must not keep the thread for itself.
        for _ in 0..16 {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while self.start < self.end {
                let part = &self.buffer[self.start..self.end];
                let written = ready!(to.as_mut().poll_write(cx, part))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += written;
                self.moved = self.moved.wrapping_add(1);
                self.unflushed = true;
            }
            if self.ended {
                ready!(to.as_mut().poll_close(cx))?;
                self.closed = true;
                continue;
            }
            match from.as_mut().poll_read(cx, &mut self.buffer)? {
                Poll::Ready(0) => self.ended = true,
                Poll::Ready(read) => (self.start, self.end) = (0, read),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(to.as_mut().poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
