//! Datagrams as a stream: two bytes of length (big-endian), then the datagram. So whatever joins
//! streams, here or between nodes, joins datagrams, too.
//!
//! A datagram that cannot be handed over at once is dropped, as every network may drop it: nobody
//! waits for a slow reader. Whatever repeats and orders them is the business of both ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use smol::channel::Receiver;
use smol::io::{AsyncRead, AsyncWrite};
use smol::stream::Stream as _;
use smol::{Async, Timer};

use crate::stream::Stream;

/// Bytes of the longest datagram there is.
pub(super) const LONGEST: usize = 65_535;
/// So long one client and a replica may be silent; after that, what it sends is another flow.
const IDLE: Duration = Duration::from_secs(60);

enum End {
    /// A service's process; the socket is connected to it.
    Replica(Async<UdpSocket>),
    /// One client of a port of this node: what it sent, and the socket to answer from.
    Client { from: Pin<Box<Receiver<Vec<u8>>>>, to: Rc<Async<UdpSocket>>, peer: SocketAddr },
}

struct Datagrams {
    end: End,
    /// A datagram that was received, with its length; read up to `at`.
    received: Vec<u8>,
    at: usize,
    /// What was written of the next one to send.
    sending: Vec<u8>,
    closed: bool,
    used: Instant,
    idle: Timer,
}

/// To the process that takes datagrams at `addr`.
pub(super) fn replica(addr: SocketAddr) -> io::Result<Stream> {
    let socket = Async::<UdpSocket>::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.get_ref().connect(addr)?;
    Ok(Datagrams::stream(End::Replica(socket)))
}

/// To a client that sends to `to`, of whose datagrams `from` brings one after the other. It ends
/// when both have been silent for a minute.
pub(super) fn client(
    from: Receiver<Vec<u8>>,
    to: Rc<Async<UdpSocket>>,
    peer: SocketAddr,
) -> Stream {
    Datagrams::stream(End::Client { from: Box::pin(from), to, peer })
}

impl Datagrams {
    fn stream(end: End) -> Stream {
        Box::pin(Self {
            end,
            received: Vec::new(),
            at: 0,
            sending: Vec::new(),
            closed: false,
            used: Instant::now(),
            idle: Timer::after(IDLE),
        })
    }

    /// Replaces `received` by the next datagram with its length; `false` at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let datagram = match &mut self.end {
            End::Client { from, .. } => match from.as_mut().poll_next(cx) {
                Poll::Ready(Some(datagram)) => datagram,
                Poll::Ready(None) => return Poll::Ready(Ok(false)),
                Poll::Pending => {
                    ready!(self.poll_idle(cx));
                    return Poll::Ready(Ok(false));
                }
            },
            End::Replica(socket) => loop {
                let mut datagram = vec![0; LONGEST];
                match socket.get_ref().recv(&mut datagram) {
                    Ok(length) => {
                        datagram.truncate(length);
                        break datagram;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(socket.poll_readable(cx))?;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
        };
        self.used = Instant::now();
        self.at = 0;
        self.received.clear();
        self.received.extend(length(&datagram)?.to_be_bytes());
        self.received.extend(datagram);
        Poll::Ready(Ok(true))
    }

    /// Ready once both directions were silent for [`IDLE`].
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Pin::new(&mut self.idle).poll(cx));
            let left = IDLE.saturating_sub(self.used.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.idle.set_after(left);
        }
    }

    /// Sends what is whole of `sending`.
    fn send(&mut self) -> io::Result<()> {
        while let Some((head, rest)) = self.sending.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*head));
            let Some(datagram) = rest.get(..length) else { break };
            let sent = match &self.end {
                End::Replica(socket) => socket.get_ref().send(datagram),
                End::Client { to, peer, .. } => to.get_ref().send_to(datagram, *peer),
            };
            match sent {
                Ok(_) => {}
                Err(error) if may_drop(&error) => log::debug!("a datagram is dropped: {error}"),
                Err(error) => return Err(error),
            }
            self.sending.drain(..2 + length);
            self.used = Instant::now();
        }
        Ok(())
    }
}

/// Whether only this datagram is lost: there is no room for it now, or it is longer than the way
/// there takes.
fn may_drop(error: &io::Error) -> bool {
    let too_long = error.raw_os_error() == Some(nix::libc::EMSGSIZE);
    too_long || matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory)
}

fn length(datagram: &[u8]) -> io::Result<u16> {
    u16::try_from(datagram.len()).map_err(io::Error::other)
}

impl AsyncRead for Datagrams {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.at >= this.received.len() && (this.closed || !ready!(this.poll_receive(cx))?) {
            return Poll::Ready(Ok(0));
        }
        let rest = &this.received[this.at..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        this.at += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Datagrams {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sending.extend(buf);
        self.send()?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing is received after it: a socket has no end of its own.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn datagrams_keep_their_borders_however_the_bytes_come() {
        smol::block_on(async {
            let service = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
            let mut stream = replica(service.get_ref().local_addr().unwrap()).unwrap();
            let wire = [&[0, 3][..], b"one", &[0, 0], &[0, 4], b"four"].concat();
            for byte in wire {
                stream.write_all(&[byte]).await.unwrap();
            }
            let mut got = [0; 64];
            for expected in [&b"one"[..], b"", b"four"] {
                let (length, from) = service.recv_from(&mut got).await.unwrap();
                assert_eq!(&got[..length], expected);
                service.send_to(&got[..length], from).await.unwrap();
            }
            let mut back = [0; 13];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"\0\x03one\0\0\0\x04four");
            stream.close().await.unwrap();
            assert_eq!(stream.read(&mut back).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_service_that_is_gone_ends_the_stream() {
        smol::block_on(async {
            let service = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut stream = replica(service.local_addr().unwrap()).unwrap();
            drop(service);
            stream.write_all(&[0, 1, 7]).await.unwrap();
            let error = stream.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn more_than_a_network_carries_is_dropped_and_the_rest_goes_on() {
        smol::block_on(async {
            let service = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
            let mut stream = replica(service.get_ref().local_addr().unwrap()).unwrap();
            let mut wire = vec![0xff, 0xff];
            wire.resize(2 + LONGEST, 7);
            wire.extend([0, 1, 8]);
            stream.write_all(&wire).await.unwrap();
            let mut got = [0; 4];
            let (length, _) = service.recv_from(&mut got).await.unwrap();
            assert_eq!(&got[..length], &[8]);
        });
    }
}
