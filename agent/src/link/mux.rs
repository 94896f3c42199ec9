//! Streams for bulk data and services: yamux inside the records marked [`BULK`].
//!
//! yamux is started by the first stream of a session, not before, and never sees the frames. Its
//! round-trip pings (every 10 s while it has work) thus cost nothing on an idle link, and no
//! window of its own can hold a frame up.
//!
//! Bounds of one session: [`STREAMS_MAX`] streams opened from each side; a window of 256 KiB for
//! each (yamux guarantees that to every stream), [`WINDOW_EXTRA`] more in all for those on a long
//! path; [`IN_MAX`] bytes received and not yet sorted; about [`OUT_MAX`] bytes not yet encrypted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::io::{AsyncRead, AsyncWrite};
use yamux::{Connection, Mode};

use super::noise::{BULK, PLAIN_MAX};
use super::spare;
use crate::notify::Notify;

/// How many streams each side may have open in one session.
pub(super) const STREAMS_MAX: usize = 64;
/// Both sides' streams, and those one side has closed and the other not yet.
const YAMUX_STREAMS: usize = 4 * STREAMS_MAX;
const YAMUX_CREDIT: usize = 256 * 1024;
const WINDOW_EXTRA: usize = 768 * 1024;
/// Above this the reader of the session waits. yamux may stop reading while it cannot write; if
/// both ends did, neither would ever go on, so there is ample room.
const IN_MAX: usize = 1024 * 1024;
/// The most of a stream that goes into one piece.
const PIECE: usize = 32 * 1024;
/// Above this yamux waits: one piece more must still fit a record.
const OUT_MAX: usize = PLAIN_MAX - PIECE;

/// What yamux sees as its socket.
#[derive(Default)]
struct Pipe {
    inbound: RefCell<VecDeque<Vec<u8>>>,
    /// How much of the first chunk was read.
    offset: Cell<usize>,
    waiting: Cell<usize>,
    reader: RefCell<Option<Waker>>,
    /// Told when `inbound` was read from.
    drained: Notify,
    /// Begins with [`BULK`]: a ready record.
    outbound: RefCell<Vec<u8>>,
    writer: RefCell<Option<Waker>>,
    ended: Cell<bool>,
    /// Told when there is something to send.
    wake_session: Rc<Notify>,
}

fn wake(slot: &RefCell<Option<Waker>>) {
    let waker = slot.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

struct Socket(Rc<Pipe>);

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let pipe = &self.0;
        let mut inbound = pipe.inbound.borrow_mut();
        let Some(chunk) = inbound.front() else {
            if pipe.ended.get() {
                return Poll::Ready(Ok(0));
            }
            *pipe.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let rest = &chunk[pipe.offset.get()..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        if count == rest.len() {
            inbound.pop_front().into_iter().for_each(spare::give);
            pipe.offset.set(0);
        } else {
            pipe.offset.set(pipe.offset.get() + count);
        }
        pipe.waiting.set(pipe.waiting.get() - count);
        pipe.drained.notify();
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let pipe = &self.0;
        if pipe.ended.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut outbound = pipe.outbound.borrow_mut();
        if outbound.len() >= OUT_MAX {
            *pipe.writer.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if outbound.capacity() == 0 {
            *outbound = spare::take(PLAIN_MAX);
        }
        if outbound.is_empty() {
            outbound.push(BULK);
        }
        let count = bytes.len().min(PIECE);
        outbound.extend_from_slice(&bytes[..count]);
        pipe.wake_session.notify();
        Poll::Ready(Ok(count))
    }

    /// The session's writer sends on its own as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The streams of one session.
pub(super) struct Mux {
    pipe: Rc<Pipe>,
    connection: RefCell<Option<Connection<Socket>>>,
    /// Whoever drives [`Mux::next`].
    driver: RefCell<Option<Waker>>,
    started: Cell<bool>,
    dialled: bool,
    opened: Rc<Cell<usize>>,
    accepted: Rc<Cell<usize>>,
}

impl Mux {
    pub(super) fn new(dialled: bool, wake_session: Rc<Notify>) -> Self {
        Self {
            pipe: Rc::new(Pipe { wake_session, ..Pipe::default() }),
            connection: RefCell::default(),
            driver: RefCell::default(),
            started: Cell::new(false),
            dialled,
            opened: Rc::default(),
            accepted: Rc::default(),
        }
    }

    /// Starts yamux; true if it was not running: then [`Self::next`] must be driven.
    pub(super) fn start(&self) -> bool {
        if self.started.replace(true) || self.pipe.ended.get() {
            return false;
        }
        let mut config = yamux::Config::default();
        config
            .set_split_send_size(PIECE)
            .set_max_num_streams(YAMUX_STREAMS)
            .set_max_connection_receive_window(Some(YAMUX_STREAMS * YAMUX_CREDIT + WINDOW_EXTRA));
        let mode = if self.dialled { Mode::Client } else { Mode::Server };
        let socket = Socket(Rc::clone(&self.pipe));
        *self.connection.borrow_mut() = Some(Connection::new(socket, config, mode));
        true
    }

    /// Hands in bytes that arrived; waits while too many are unread.
    pub(super) async fn feed(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.pipe.ended.get() {
            return;
        }
        self.pipe.waiting.set(self.pipe.waiting.get() + bytes.len());
        let mut chunk = spare::take(bytes.len());
        chunk.extend_from_slice(bytes);
        self.pipe.inbound.borrow_mut().push_back(chunk);
        wake(&self.pipe.reader);
        while self.pipe.waiting.get() > IN_MAX && !self.pipe.ended.get() {
            self.pipe.drained.wait().await;
        }
    }

    /// Swaps what is to be sent, a ready record, into the empty `record`.
    pub(super) fn take(&self, record: &mut Vec<u8>) {
        std::mem::swap(&mut *self.pipe.outbound.borrow_mut(), record);
        wake(&self.pipe.writer);
    }

    /// Gives the memory of a burst back.
    pub(super) fn rest(&self) {
        let mut outbound = self.pipe.outbound.borrow_mut();
        if outbound.is_empty() {
            spare::give(std::mem::take(&mut outbound));
        }
    }

    /// Drives yamux until the other side opens a stream; `None` when it is over.
    ///
    /// # Errors
    /// If the other side breaks the protocol.
    pub(super) async fn next(&self) -> Option<Result<Stream, yamux::ConnectionError>> {
        let next = poll_fn(|cx| {
            *self.driver.borrow_mut() = Some(cx.waker().clone());
            match self.connection.borrow_mut().as_mut() {
                Some(connection) => connection.poll_next_inbound(cx),
                None => Poll::Ready(None),
            }
        })
        .await;
        if !matches!(next, Some(Ok(_))) {
            *self.connection.borrow_mut() = None;
        }
        Some(next?.map(|stream| self.stream(stream, &self.accepted)))
    }

    /// How many are open.
    pub(super) fn streams(&self) -> usize {
        self.opened.get() + self.accepted.get()
    }

    /// Whether the other side has more streams open than it may.
    pub(super) fn too_many_accepted(&self) -> bool {
        self.accepted.get() > STREAMS_MAX
    }

    /// Opens a stream; the other side learns of it with the first byte written.
    ///
    /// # Errors
    /// If [`STREAMS_MAX`] are open, or the session ended.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        if self.opened.get() >= STREAMS_MAX {
            let text = format!("{STREAMS_MAX} streams are open to this node already");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        let opened = poll_fn(|cx| match self.connection.borrow_mut().as_mut() {
            Some(connection) => connection.poll_new_outbound(cx).map(Some),
            None => Poll::Ready(None),
        })
        .await;
        // yamux listens to a new stream only when it is polled next.
        wake(&self.driver);
        match opened {
            Some(Ok(stream)) => Ok(self.stream(stream, &self.opened)),
            Some(Err(error)) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
            None => Err(reset()),
        }
    }

    fn stream(&self, stream: yamux::Stream, count: &Rc<Cell<usize>>) -> Stream {
        count.set(count.get() + 1);
        Stream { stream, pipe: Rc::clone(&self.pipe), count: Rc::clone(count), closed: false }
    }

    /// The session is over: so are its streams.
    pub(super) fn end(&self) {
        self.pipe.ended.set(true);
        wake(&self.pipe.reader);
        wake(&self.pipe.writer);
        self.pipe.drained.notify();
    }
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the session with the node ended")
}

/// A stream to another node, in both directions, with flow control of its own.
///
/// Close it ([`AsyncWrite::poll_close`]) to end the sending direction; dropping it unclosed resets
/// it. A reset, or the end of the session, is an error to the reader, not the end of the data,
/// unless this side has closed before: yamux then shows both alike. So protocols that close first
/// must frame what they expect back.
pub(crate) struct Stream {
    stream: yamux::Stream,
    pipe: Rc<Pipe>,
    count: Rc<Cell<usize>>,
    closed: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.count.set(self.count.get().saturating_sub(1));
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, out);
        match polled {
            Poll::Ready(Ok(0)) if !out.is_empty() => {
                let lost = self.pipe.ended.get() || (!self.closed && self.stream.is_closed());
                Poll::Ready(if lost { Err(reset()) } else { Ok(0) })
            }
            other => other,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stream.fmt(f)
    }
}
