//! Bodies of answers and requests: bytes that are here, or come one after the other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use hyper::body::{Body, Bytes, Frame, SizeHint};

pub(super) enum Payload {
    Whole(Option<Bytes>),
    Stream {
        blocks: Pin<Box<dyn Stream<Item = io::Result<Bytes>>>>,
        /// Bytes that are still to come, if that is known.
        left: Option<u64>,
    },
}

impl Payload {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    pub(super) fn stream(stream: impl Stream<Item = Bytes> + 'static) -> Self {
        Self::Stream { blocks: Box::pin(stream.map(Ok)), left: None }
    }

    /// So many bytes; an error ends the connection, so that nobody takes a part for the whole.
    pub(super) fn sized(
        stream: impl Stream<Item = io::Result<Bytes>> + 'static,
        bytes: u64,
    ) -> Self {
        Self::Stream { blocks: Box::pin(stream), left: Some(bytes) }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { blocks, left } => blocks.as_mut().poll_next(cx).map(|block| {
                let frame = |block: Bytes| {
                    if let Some(left) = left {
                        *left = left.saturating_sub(block.len() as u64);
                    }
                    Frame::data(block)
                };
                block.map(|block| block.map(frame))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Stream { left: Some(0), .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}
