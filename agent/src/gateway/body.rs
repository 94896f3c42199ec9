//! The bodies that pass through the gateway. None is ever held whole.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::PIECE;
use super::hot::{Hot, Piece};
use crate::blobs::{Blobs, CHUNK, Catalog, Held};

pub(super) enum Body {
    /// A short text of our own, or nothing.
    Text(Option<Bytes>),
    /// A request's, lent to an attempt that may fail.
    Lent(Rc<Lent>),
    /// A replica's answer, and the connection it comes on.
    Answer(Answer),
    /// An answer of which the first part was read already, and what it comes on.
    Long {
        first: Option<Bytes>,
        rest: Incoming,
        _conn: Box<dyn Any>,
    },
    File(FileBody),
}

impl Body {
    pub(super) const EMPTY: Self = Self::Text(None);

    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()).filter(|text| !text.is_empty()))
    }
}

/// The body of a request that may have to be sent again.
pub(super) struct Lent {
    body: RefCell<Incoming>,
    /// Part of it was given away: it cannot be sent from the start again.
    pub(super) begun: Cell<bool>,
    /// There was never any.
    pub(super) empty: bool,
}

impl Lent {
    pub(super) fn new(body: Incoming) -> Rc<Self> {
        let empty = body.is_end_stream();
        Rc::new(Self { body: RefCell::new(body), begun: Cell::new(false), empty })
    }
}

pub(super) struct Answer {
    pub(super) body: Incoming,
    /// Gives its connection back for the next request, once the body has been read to its end.
    pub(super) give_back: Option<Box<dyn FnOnce()>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let (true, Some(give_back)) = (self.body.is_end_stream(), self.give_back.take()) {
            give_back();
        }
    }
}

/// A range of a static file, read chunk by chunk as the client takes it.
pub(super) struct FileBody {
    blobs: Rc<Blobs>,
    hot: Rc<Hot>,
    catalog: Rc<Catalog>,
    entry: usize,
    /// Where in the file the next byte is.
    at: u64,
    left: u64,
    ready: Bytes,
    reading: Option<Piece>,
    /// A new version of the service must not take the rest of this answer away.
    _held: Rc<Held>,
}

impl FileBody {
    pub(super) fn new(
        (blobs, hot): (Rc<Blobs>, Rc<Hot>),
        (catalog, held): (Rc<Catalog>, Rc<Held>),
        entry: usize,
        at: u64,
        length: u64,
    ) -> Self {
        let (ready, reading) = (Bytes::new(), None);
        Self { blobs, hot, catalog, entry, at, left: length, ready, reading, _held: held }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.ready.is_empty() {
            let inside = usize::try_from(self.at % CHUNK as u64).unwrap_or(0);
            let mut reading = match self.reading.take() {
                Some(reading) => reading,
                None => {
                    let number = usize::try_from(self.at / CHUNK as u64).unwrap_or(usize::MAX);
                    let Some(hash) = self.catalog.chunk(self.entry, number) else {
                        return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                    };
                    self.hot.piece(&self.blobs, hash)
                }
            };
            let Poll::Ready(chunk) = reading.poll(&self.hot, cx) else {
                self.reading = Some(reading);
                return Poll::Pending;
            };
            let mut chunk = chunk?;
            if chunk.len() <= inside {
                return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
            }
            self.ready = chunk.split_off(inside);
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            self.ready.truncate(left);
        }
        let part = self.ready.split_to(self.ready.len().min(PIECE));
        self.at += part.len() as u64;
        self.left -= part.len() as u64;
        Poll::Ready(Some(Ok(part)))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match self.get_mut() {
            Self::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::File(file) => {
                let part = ready!(file.poll(cx));
                return Poll::Ready(part.map(|part| Ok(Frame::data(part?))));
            }
            Self::Lent(lent) => {
                let frame = ready!(Pin::new(&mut *lent.body.borrow_mut()).poll_frame(cx));
                lent.begun.set(lent.begun.get() || frame.is_some());
                frame
            }
            Self::Long { first, rest, .. } => match first.take() {
                Some(first) => return Poll::Ready(Some(Ok(Frame::data(first)))),
                None => ready!(Pin::new(rest).poll_frame(cx)),
            },
            Self::Answer(answer) => {
                let frame = ready!(Pin::new(&mut answer.body).poll_frame(cx));
                match (&frame, answer.give_back.take()) {
                    (None, Some(give_back)) => give_back(),
                    (Some(Ok(_)), give_back) => answer.give_back = give_back,
                    // A broken connection is not used again.
                    (None | Some(Err(_)), _) => {}
                }
                frame
            }
        };
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::File(file) => file.left == 0,
            Self::Lent(lent) => lent.body.borrow().is_end_stream(),
            Self::Answer(answer) => answer.body.is_end_stream(),
            Self::Long { first, rest, .. } => first.is_none() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::File(file) => SizeHint::with_exact(file.left),
            Self::Lent(lent) => lent.body.borrow().size_hint(),
            Self::Answer(answer) => answer.body.size_hint(),
            // Told by its end.
            Self::Long { .. } => SizeHint::default(),
        }
    }
}

/// An answer of the gateway's own.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Body::text(text));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}
