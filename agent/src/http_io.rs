//! Streams as hyper takes them, and the wake-up it forgets.
//!
//! hyper 1.12 may write what it could not write a moment ago, find that it went, and then wait for
//! a wake-up. But whoever wrote need not be woken any more: our streams forget a waker once the
//! write it waited for has succeeded. The rest of a long body then never came, one time in three
//! if its reader was slow. So a write that succeeds after it had to wait wakes its own task.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use smol::io::{AsyncRead, AsyncWrite};
use smol_hyper::rt::FuturesIo;

/// A stream for one of hyper's connections.
pub(crate) struct HttpIo<S> {
    inner: FuturesIo<S>,
    /// The last write had to wait.
    waited: bool,
}

impl<S> HttpIo<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner: FuturesIo::new(inner), waited: false }
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner.into_inner()
    }

    fn wrote<T>(&mut self, polled: Poll<T>, cx: &Context<'_>) -> Poll<T> {
        let waited = std::mem::replace(&mut self.waited, polled.is_pending());
        if waited && polled.is_ready() {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> Read for HttpIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> Write for HttpIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use http_body_util::StreamBody;
    use hyper::Response;
    use hyper::body::{Bytes, Frame};
    use hyper::service::service_fn;

    use super::*;

    const BLOCK: usize = 1 << 20;
    const BLOCKS: usize = 50;

    /// Every other write has to wait, and has room by the next look at it, before anybody woke.
    struct Slow<'a> {
        asks: &'a [u8],
        written: &'a mut usize,
        full: bool,
    }

    impl AsyncRead for Slow<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            if self.asks.is_empty() {
                return Poll::Pending;
            }
            Poll::Ready(io::Read::read(&mut self.asks, buf))
        }
    }

    impl AsyncWrite for Slow<'_> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.full = !self.full;
            if self.full {
                return Poll::Pending;
            }
            *self.written += buf.len();
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_long_body_is_written_to_its_end_however_often_it_waits() {
        let mut written = 0;
        let service = service_fn(|_| async {
            let block = || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; BLOCK])));
            let blocks = std::iter::repeat_with(block).take(BLOCKS);
            let body = StreamBody::new(futures_util::stream::iter(blocks));
            Ok::<_, Infallible>(Response::new(body))
        });
        let asks = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let stream = Slow { asks, written: &mut written, full: false };
        let http = hyper::server::conn::http1::Builder::new();
        let mut serving = Box::pin(http.serve_connection(HttpIo::new(stream), service));
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        while woken.0.swap(false, Ordering::Relaxed) {
            let polled = serving.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending(), "{polled:?}");
        }
        drop(serving);
        assert!(written >= BLOCKS * BLOCK, "{written} bytes of {BLOCKS} blocks were written");
    }
}
