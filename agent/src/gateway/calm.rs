//! A TCP connection that asks the system for bytes only when there may be some.
//!
//! hyper looks for bytes whenever anything happens on a connection, seven times a request; each
//! time that is a system call which says "not yet". Here the first such answer holds until the
//! socket says otherwise.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use smol::Async;
use smol::io::{AsyncRead, AsyncWrite};

pub(super) struct Calm {
    inner: Async<TcpStream>,
    bell: Arc<Bell>,
    /// Rings `bell`.
    waker: Waker,
    /// There was nothing to read, and `bell` was to ring.
    waits: bool,
}

#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    listener: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}

impl Bell {
    fn listen(&self, waker: &Waker) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *listener {
            Some(known) => known.clone_from(waker),
            None => *listener = Some(waker.clone()),
        }
    }
}

impl Calm {
    pub(super) fn new(inner: Async<TcpStream>) -> Self {
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(Arc::clone(&bell));
        Self { inner, bell, waker, waits: false }
    }
}

impl AsyncRead for Calm {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // First the listener, then the look: a bell between the two is not missed.
        self.bell.listen(cx.waker());
        if self.waits && !self.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let polled =
            Pin::new(&mut this.inner).poll_read(&mut Context::from_waker(&this.waker), buf);
        this.waits = polled.is_pending();
        polled
    }
}

impl AsyncWrite for Calm {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Tells the other side that no more comes; it may go on.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.inner.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    struct Tells(usize, Sender<usize>);

    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            self.1.send(self.0).unwrap();
        }
    }

    fn pair() -> (Calm, Calm) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        (Calm::new(Async::new(one).unwrap()), Calm::new(Async::new(other).unwrap()))
    }

    #[test]
    fn bytes_arrive_though_nobody_asks_twice() {
        let (mut one, mut other) = pair();
        smol::block_on(async {
            for round in 0..100u8 {
                let mut buf = [0; 2];
                let reads = other.read_exact(&mut buf);
                let writes = async {
                    one.write_all(&[round]).await.unwrap();
                    smol::future::yield_now().await;
                    one.write_all(&[round]).await
                };
                let (read, wrote) = futures_util::future::join(reads, writes).await;
                read.and(wrote).unwrap();
                assert_eq!(buf, [round; 2]);
            }
            one.close().await.unwrap();
            assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
            other.write_all(b"!").await.unwrap();
            one.read_exact(&mut [0]).await.unwrap();
        });
    }

    /// Whoever asked last is woken, as tasks move on.
    #[test]
    fn the_last_to_ask_is_woken() {
        let (mut one, mut other) = pair();
        let (to, woken) = channel();
        for number in 0..2 {
            let waker = Waker::from(Arc::new(Tells(number, to.clone())));
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut other).poll_read(&mut cx, &mut [0]).is_pending());
        }
        smol::block_on(one.write_all(b"x")).unwrap();
        assert_eq!(woken.recv_timeout(Duration::from_secs(60)), Ok(1));
        assert!(woken.try_recv().is_err(), "the first one is not woken");
        assert!(other.waits && other.bell.rung.load(Ordering::Relaxed));
    }
}
