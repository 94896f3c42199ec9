//! Byte streams between two agents, and what is said first on each of them.
//!
//! The link opens a stream, [`write_head`] says what it is for, and whoever accepted it reads that
//! with [`read_head`] and hands the stream on: `Chunks` to [`crate::blobs::Blobs::serve`],
//! `Service` to [`crate::gateway::Gateway::serve_stream`], `Logs` to the host.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};
use smol::Timer;
use smol::future::FutureExt as _;
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// How long the other side may take to say what a stream is for.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// Bytes in both directions.
pub(crate) trait ReadWrite: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite + ?Sized> ReadWrite for T {}

/// A stream of any make: TCP, or one of the many inside a link.
pub(crate) type Stream = Pin<Box<dyn ReadWrite>>;

/// A boxed future of this thread.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// Opens a stream to a node. The head is not written yet.
pub(crate) type OpenStream = Rc<dyn Fn(NodeId) -> Later<io::Result<Stream>>>;

/// Where a replica on this node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A process that listens there.
    Port(SocketAddr),
    /// A process that takes datagrams there.
    Datagrams(SocketAddr),
    /// A folder the agent itself serves.
    Static(Tree),
}

/// What a stream between agents is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StreamHead {
    /// Chunks are asked for by hash and sent back.
    Chunks,
    /// Connects to a replica on the accepting node.
    Service { id: ReplicaId },
    /// What a service wrote: the last `tail` lines, and then what follows if `follow`.
    Logs { service: Key, tail: u32, follow: bool },
    /// A 0 comes back every 4 s while the replica runs on the accepting node, and a 1 when it does
    /// not any more.
    Ended { id: ReplicaId },
    /// Requests by HTTP for a replica on the accepting node, each to be done at most once.
    Once { id: ReplicaId },
}

/// Says what a fresh stream is for: one byte of length, then the head. Flushes.
///
/// # Errors
/// Those of the stream.
pub(crate) async fn write_head<S: AsyncWrite + Unpin>(
    stream: &mut S,
    head: &StreamHead,
) -> io::Result<()> {
    let mut bytes = vec![0];
    bytes.extend(postcard::to_allocvec(head).map_err(io::Error::other)?);
    bytes[0] = u8::try_from(bytes.len() - 1).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads what an accepted stream is for. Takes at most 256 bytes and 5 s.
///
/// # Errors
/// Those of the stream; `TimedOut`; `InvalidData` if it is no head of this version.
pub(crate) async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<StreamHead> {
    let read = async {
        let mut length = [0];
        stream.read_exact(&mut length).await?;
        let mut bytes = [0; u8::MAX as usize];
        let bytes = &mut bytes[..usize::from(length[0])];
        stream.read_exact(bytes).await?;
        match postcard::take_from_bytes(bytes) {
            Ok((head, [])) => Ok(head),
            Ok(_) | Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the stream does not begin with a head this version knows",
            )),
        }
    };
    within(HEAD_WITHIN, "the other side did not say what the stream is for", read).await
}

/// Ends `work` with `TimedOut` and this text if it takes longer than `limit`.
///
/// # Errors
/// Those of `work`, and `TimedOut`.
pub(crate) async fn within<T>(
    limit: Duration,
    text: &str,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    work.or(async {
        Timer::after(limit).await;
        let text = format!("{text} within {} s", limit.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
    .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use smol::io::Cursor;

    #[test]
    fn heads_read_back_what_was_written() {
        let heads = [
            StreamHead::Chunks,
            StreamHead::Service { id: ReplicaId { service: Key::of_name("svc", b"w"), number: 9 } },
            StreamHead::Logs { service: Key::of_name("svc", b"w"), tail: u32::MAX, follow: true },
            StreamHead::Once { id: ReplicaId { service: Key::of_name("svc", b"w"), number: 9 } },
        ];
        for head in heads {
            let mut wire = Cursor::new(Vec::new());
            smol::block_on(write_head(&mut wire, &head)).unwrap();
            wire.set_position(0);
            assert_eq!(smol::block_on(read_head(&mut wire)).unwrap(), head);
        }
    }

    #[test]
    fn strange_heads_are_refused() {
        for bytes in [&[][..], &[0], &[1, 9], &[2, 0, 0], &[5, 1], &[255; 300]] {
            assert!(smol::block_on(read_head(&mut Cursor::new(bytes))).is_err(), "{bytes:?}");
        }
    }
}
