//! Small pieces of packages that were asked for lately, so that a page many want is read once.
//!
//! A piece is named by the hash of its bytes and was checked against it: it never gets old.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use dugnad_kernel::Hash;
use dugnad_kernel::map::Map;
use hyper::body::Bytes;
use smol::Task;

use crate::blobs::Blobs;

/// Longer ones are read at each use: they would push out many, and the disk is soon worth the way.
const LONGEST: usize = 64 * 1024;
/// Bytes and pieces kept in all.
const KEPT: usize = 1 << 20;
const PIECES: usize = 256;

#[derive(Default)]
pub(super) struct Hot {
    /// With the time of the last use, in uses.
    pieces: RefCell<Map<Hash, (Cell<u64>, Bytes)>>,
    uses: Cell<u64>,
    bytes: Cell<usize>,
}

/// A piece that is here, or on its way from the disk.
pub(super) enum Piece {
    Here(Bytes),
    Coming(Hash, Task<io::Result<Vec<u8>>>),
}

impl Hot {
    pub(super) fn piece(&self, blobs: &Blobs, hash: Hash) -> Piece {
        self.uses.set(self.uses.get() + 1);
        match self.pieces.borrow().get(&hash) {
            Some((used, bytes)) => {
                used.set(self.uses.get());
                Piece::Here(bytes.clone())
            }
            None => Piece::Coming(hash, blobs.read_chunk(hash)),
        }
    }

    /// All of a piece.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) async fn read(&self, blobs: &Blobs, hash: Hash) -> io::Result<Bytes> {
        let mut piece = self.piece(blobs, hash);
        std::future::poll_fn(|cx| piece.poll(self, cx)).await
    }

    fn keep(&self, hash: Hash, bytes: &Bytes) {
        if bytes.len() > LONGEST {
            return;
        }
        let mut pieces = self.pieces.borrow_mut();
        let used = Cell::new(self.uses.get());
        if pieces.insert(hash, (used, bytes.clone())).is_none() {
            self.bytes.set(self.bytes.get() + bytes.len());
        }
        while self.bytes.get() > KEPT || pieces.len() > PIECES {
            let oldest = pieces.iter().min_by_key(|(_, (used, _))| used.get());
            let Some(oldest) = oldest.map(|(hash, _)| *hash) else { return };
            if let Some((_, bytes)) = pieces.remove(&oldest) {
                self.bytes.set(self.bytes.get() - bytes.len());
            }
        }
    }
}

impl Piece {
    /// The bytes as soon as they are here; they are then kept for others.
    pub(super) fn poll(&mut self, hot: &Hot, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self {
            Self::Here(bytes) => Poll::Ready(Ok(std::mem::take(bytes))),
            Self::Coming(hash, task) => {
                let bytes = Bytes::from(ready!(Pin::new(task).poll(cx))?);
                hot.keep(*hash, &bytes);
                Poll::Ready(Ok(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(hot: &Hot, number: u64, length: usize) {
        hot.uses.set(hot.uses.get() + 1);
        hot.keep(Hash::of(&number.to_le_bytes()), &Bytes::from(vec![1; length]));
    }

    #[test]
    fn the_latest_stay_within_the_bounds() {
        let hot = Hot::default();
        for number in 0..40 {
            hold(&hot, number, LONGEST);
        }
        assert_eq!((hot.pieces.borrow().len(), hot.bytes.get()), (16, KEPT));
        assert!(hot.pieces.borrow().contains_key(&Hash::of(&39_u64.to_le_bytes())));
        hold(&hot, 40, LONGEST + 1);
        assert_eq!(hot.pieces.borrow().len(), 16, "too long to be kept");
        for number in 100..1_000 {
            hold(&hot, number, 10);
        }
        assert_eq!((hot.pieces.borrow().len(), hot.bytes.get()), (PIECES, 10 * PIECES));
        hold(&hot, 999, 10);
        assert_eq!(hot.bytes.get(), 10 * PIECES, "counted once");
    }
}
