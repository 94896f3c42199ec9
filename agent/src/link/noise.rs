//! Encrypted records over TCP: `[length, two bytes, little endian][ciphertext]`.
//!
//! The first byte inside a record says whose bytes follow ([`VERDICT`], [`FRAMES`], [`BULK`]).
//! Nonces count up with every record, so that one that was changed, left out or sent again does
//! not decrypt, which ends the session.
//!
//! Buffers grow with what passes and are given back when the connection falls silent: an idle
//! session holds [`IDLE`] bytes each way at most.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use futures_util::io::{AsyncRead, AsyncWriteExt};
use smol::net::TcpStream;
use snow::TransportState;

use super::spare;

/// The decision on the session, once, first.
pub(super) const VERDICT: u8 = 0;
/// Bytes of the stream of frames.
pub(super) const FRAMES: u8 = 1;
/// Bytes of the multiplexed streams.
pub(super) const BULK: u8 = 2;

/// The longest ciphertext of a record.
const RECORD_MAX: usize = 65_535;
/// What the cipher adds.
const TAG: usize = 16;
/// The longest content of a record, the byte that says whose it is included.
pub(super) const PLAIN_MAX: usize = RECORD_MAX - TAG;
/// How much an idle buffer keeps.
const IDLE: usize = 1024;
/// How much is read at once while large records arrive.
const BURST: usize = RECORD_MAX + 2;

/// Bytes as they passed the TCP socket.
#[derive(Default)]
pub(super) struct Bytes {
    pub(super) read: Cell<u64>,
    pub(super) written: Cell<u64>,
}

/// Why no record came.
#[derive(Debug)]
pub(super) enum RecordError {
    /// The other side closed or reset the connection, or the network gave up.
    Closed(io::Error),
    /// Changed, replayed, or encrypted with another key.
    Undecryptable,
}

/// The reading half of a connection; also used for the handshake, so that bytes read too early
/// are not lost.
pub(super) struct Reader {
    tcp: TcpStream,
    bytes: std::rc::Rc<Bytes>,
    buffer: Vec<u8>,
    /// The unread part of `buffer`.
    start: usize,
    end: usize,
    plain: Vec<u8>,
}

impl Reader {
    pub(super) fn new(tcp: TcpStream, bytes: std::rc::Rc<Bytes>) -> Self {
        Self { tcp, bytes, buffer: vec![0; IDLE], start: 0, end: 0, plain: Vec::new() }
    }

    /// Waits until `need` bytes (at most [`BURST`]) are in the buffer.
    async fn fill(&mut self, need: usize) -> io::Result<()> {
        if self.end - self.start >= need {
            return Ok(());
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if need > self.buffer.len() {
            let mut larger = spare::take_full(BURST);
            larger[..self.end].copy_from_slice(&self.buffer[..self.end]);
            spare::give_full(std::mem::replace(&mut self.buffer, larger));
        }
        while self.end < need {
            let read = self.read_some().await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes.read.set(self.bytes.read.get() + read as u64);
            self.end += read;
        }
        Ok(())
    }

    async fn read_some(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            let polled = Pin::new(&mut self.tcp).poll_read(cx, &mut self.buffer[self.end..]);
            if polled.is_pending() && self.end == 0 && self.buffer.len() > IDLE {
                // Silence: what a burst needed is for whoever is next.
                spare::give_full(std::mem::replace(&mut self.buffer, vec![0; IDLE]));
                spare::give_full(std::mem::take(&mut self.plain));
            }
            polled
        })
        .await
    }

    /// The next `count` bytes (at most [`BURST`]) as they are.
    pub(super) async fn bytes(&mut self, count: usize) -> io::Result<&[u8]> {
        self.fill(count).await?;
        let from = self.start;
        self.start += count;
        Ok(&self.buffer[from..from + count])
    }

    /// The content of the next record, never empty.
    pub(super) async fn record(
        &mut self,
        noise: &RefCell<TransportState>,
    ) -> Result<&[u8], RecordError> {
        self.fill(2).await.map_err(RecordError::Closed)?;
        let length = [self.buffer[self.start], self.buffer[self.start + 1]];
        let length = usize::from(u16::from_le_bytes(length));
        self.fill(2 + length).await.map_err(RecordError::Closed)?;
        let from = self.start + 2;
        self.start = from + length;
        grow(&mut self.plain, length);
        let sealed = &self.buffer[from..from + length];
        match noise.borrow_mut().read_message(sealed, &mut self.plain) {
            Ok(read) if read > 0 => Ok(&self.plain[..read]),
            Ok(_) | Err(_) => Err(RecordError::Undecryptable),
        }
    }
}

/// Makes `buffer` as long as `length`, or as the longest record if it is to hold more than idle.
fn grow(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        let length = if length > IDLE { BURST } else { length };
        spare::give_full(std::mem::replace(buffer, spare::take_full(length)));
    }
}

/// The writing half of a connection.
pub(super) struct Writer {
    tcp: TcpStream,
    bytes: std::rc::Rc<Bytes>,
    sealed: Vec<u8>,
}

impl Writer {
    pub(super) fn new(tcp: TcpStream, bytes: std::rc::Rc<Bytes>) -> Self {
        Self { tcp, bytes, sealed: Vec::new() }
    }

    pub(super) async fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes).await?;
        self.bytes.written.set(self.bytes.written.get() + bytes.len() as u64);
        Ok(())
    }

    /// Writes one record; `plain` is 1 to [`PLAIN_MAX`] bytes.
    pub(super) async fn record(
        &mut self,
        noise: &RefCell<TransportState>,
        plain: &[u8],
    ) -> io::Result<()> {
        let room = 2 + plain.len() + TAG;
        grow(&mut self.sealed, room);
        let written = noise
            .borrow_mut()
            .write_message(plain, &mut self.sealed[2..])
            .map_err(|e| io::Error::other(format!("cannot encrypt a record: {e}")))?;
        let length = u16::try_from(written).map_err(io::Error::other)?;
        self.sealed[..2].copy_from_slice(&length.to_le_bytes());
        let total = 2 + written;
        self.tcp.write_all(&self.sealed[..total]).await?;
        self.bytes.written.set(self.bytes.written.get() + total as u64);
        Ok(())
    }

    /// Gives the memory of a burst back.
    pub(super) fn rest(&mut self) {
        if self.sealed.len() > IDLE {
            spare::give_full(std::mem::take(&mut self.sealed));
        }
    }
}
