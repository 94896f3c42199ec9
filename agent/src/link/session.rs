//! One session with one peer: a task that reads, one that writes, and one for the streams.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::{NodeId, Peer, wire};
use smol::net::TcpStream;
use snow::TransportState;

use super::book::Place;
use super::handshake::{Proven, SessionId};
use super::inner::{BUSY, Sessions, TWIN};
use super::mux::{Mux, Stream};
use super::noise::{BULK, Bytes, FRAMES, PLAIN_MAX, Reader, RecordError, VERDICT, Writer};
use super::queue::Queue;
use super::spare;
use super::{Direction, LinkEvent};
use crate::notify::Notify;

/// Frames are gathered up to this before they are encrypted together.
const GATHER: usize = 16 * 1024;
/// What an idle buffer keeps.
const IDLE: usize = 1024;
/// A session that ended sooner did not help: the next dial waits.
const SHORT_LIVED: Duration = Duration::from_secs(5);

pub(super) struct Session {
    pub(super) peer: Peer,
    pub(super) addr: SocketAddr,
    pub(super) id: SessionId,
    pub(super) dialled: bool,
    since: Instant,
    /// When a frame or bulk data last went either way.
    used: Cell<Instant>,
    /// When something last came.
    heard: Cell<Instant>,
    noise: RefCell<TransportState>,
    tcp: TcpStream,
    pub(super) bytes: Rc<Bytes>,
    pub(super) queue: Rc<RefCell<Queue>>,
    pub(super) mux: Mux,
    /// There is something to write, or the session is to end.
    pub(super) wake: Rc<Notify>,
    dead: Cell<bool>,
    closing: Cell<bool>,
}

/// What the tasks of a session need apart from the session.
pub(super) struct Halves {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// To be sent first, if the decision is ours.
    pub(super) verdict: Option<u8>,
    pub(super) place: Place,
}

impl Session {
    pub(super) fn new(proven: Proven, queue: Rc<RefCell<Queue>>) -> (Self, Reader, Writer) {
        let wake = Rc::new(Notify::default());
        let now = Instant::now();
        let session = Self {
            peer: proven.peer,
            addr: proven.addr,
            id: proven.session,
            dialled: proven.dialled,
            since: now,
            used: Cell::new(now),
            heard: Cell::new(now),
            noise: proven.noise,
            tcp: proven.tcp,
            bytes: proven.bytes,
            queue,
            mux: Mux::new(proven.dialled, Rc::clone(&wake)),
            wake,
            dead: Cell::new(false),
            closing: Cell::new(false),
        };
        (session, proven.reader, proven.writer)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    pub(super) fn was_short(&self) -> bool {
        self.since.elapsed() < SHORT_LIVED
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    pub(super) fn used(&self) -> Instant {
        self.used.get()
    }

    /// Whether something is to be sent, or a stream is open.
    pub(super) fn waits(&self) -> bool {
        !self.queue.borrow().is_empty() || self.mux.streams() > 0
    }

    pub(super) fn direction(&self) -> Direction {
        if self.dialled { Direction::Out } else { Direction::In }
    }

    /// Ends the session at once; true if it was alive. What was not sent is lost.
    pub(super) fn kill(&self) -> bool {
        if self.dead.replace(true) {
            return false;
        }
        // Wakes the reader; an error means that the connection is gone already.
        let _: io::Result<()> = self.tcp.shutdown(Shutdown::Both);
        self.mux.end();
        self.wake.notify();
        true
    }

    /// Ends the session when all that waits is sent. What still arrives is dropped.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.wake.notify();
    }
}

/// Starts the tasks of a session.
pub(super) fn spawn(inner: &Rc<Sessions>, session: &Rc<Session>, halves: Halves) {
    let Halves { reader, writer, verdict, place } = halves;
    let (links, own) = (Rc::clone(inner), Rc::clone(session));
    inner.spawn(async move {
        if write(&links, &own, writer, verdict).await.is_err() {
            links.session_ended(&own);
        }
    });
    let (links, own) = (Rc::clone(inner), Rc::clone(session));
    inner.spawn(async move { read(&links, &own, reader, place).await });
}

/// Tells the loop everything that happens in this session, from Up to Down.
async fn read(inner: &Rc<Sessions>, session: &Rc<Session>, mut reader: Reader, mut place: Place) {
    place.turn().await;
    let id = session.peer.id;
    inner.tell(LinkEvent::Up(session.peer.clone())).await;
    let end = read_records(inner, session, &mut reader).await;
    match end {
        End::Closed(error) => log::debug!("session with {id:?} ended: {error}"),
        End::Broken(reason) => {
            // A session we ended ourselves may be cut inside a record: that is no offence.
            if !session.is_dead() {
                inner.counters.add(reason, 1);
                // A hostile member must not fill the log: 1st, 2nd, 4th, 8th, ... time.
                let often = inner.counters.get(reason).is_power_of_two();
                let level = if often { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "session with {id:?} at {} closed: {reason}", session.addr);
            }
        }
    }
    inner.session_ended(session);
    inner.tell(LinkEvent::Down(id)).await;
}

enum End {
    Closed(io::Error),
    /// The peer broke the protocol, in the way the counter names.
    Broken(&'static str),
}

async fn read_records(inner: &Rc<Sessions>, session: &Rc<Session>, reader: &mut Reader) -> End {
    let mut partial = Vec::new();
    loop {
        let record = match reader.record(&session.noise).await {
            Ok(record) => record,
            Err(RecordError::Closed(error)) => return End::Closed(error),
            Err(RecordError::Undecryptable) => return End::Broken("undecryptable"),
        };
        let now = Instant::now();
        session.used.set(now);
        session.heard.set(now);
        match record {
            [FRAMES, bytes @ ..] => {
                partial.extend_from_slice(bytes);
                if let Err(reason) = pass_frames(inner, session, &mut partial).await {
                    return End::Broken(reason);
                }
            }
            [BULK, bytes @ ..] => {
                start_mux(inner, session);
                session.mux.feed(bytes).await;
            }
            [VERDICT, BUSY] => {
                inner.counters.add("refused_busy", 1);
                return End::Closed(io::Error::other("it has as many sessions as it takes"));
            }
            [VERDICT, TWIN] => {
                inner.met_as_twin(session.peer.id);
                let text = "it has a session with another machine of this identity";
                return End::Closed(io::Error::other(text));
            }
            _ => return End::Broken("record_unknown"),
        }
    }
}

/// Hands complete frames to the loop and keeps the rest.
async fn pass_frames(
    inner: &Sessions,
    session: &Session,
    partial: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let mut from = 0;
    while let Some(&header) = partial[from..].first_chunk::<{ wire::HEADER }>() {
        let length = wire::body_length(header).map_err(|dropped| match dropped {
            wire::Dropped::Version(_) => "frame_version",
            _ => "frame_oversized",
        })?;
        let start = from + wire::HEADER;
        let Some(body) = partial.get(start..start + length) else { break };
        let frame = LinkEvent::Frame { from: session.peer.id, body: body.to_vec() };
        inner.counters.add("frames_in", 1);
        if !session.closing.get() {
            inner.tell(frame).await;
        }
        from = start + length;
    }
    partial.drain(..from);
    if partial.is_empty() && partial.capacity() > IDLE {
        *partial = Vec::new();
    }
    Ok(())
}

async fn write(
    inner: &Sessions,
    session: &Session,
    mut writer: Writer,
    verdict: Option<u8>,
) -> io::Result<()> {
    if let Some(code) = verdict {
        writer.record(&session.noise, &[VERDICT, code]).await?;
    }
    let mut gathered = vec![FRAMES];
    let mut bulk = Vec::new();
    while !session.is_dead() {
        // In turns, so that neither holds the other up for more than one record.
        let frames = gather(session, &mut gathered);
        let mut from = 0;
        while from + 1 < gathered.len() {
            let to = gathered.len().min(from + PLAIN_MAX);
            // The byte before the rest was sent already; now it says whose the rest is.
            gathered[from] = FRAMES;
            writer.record(&session.noise, &gathered[from..to]).await?;
            from = to - 1;
        }
        inner.counters.add("frames_out", frames);
        gathered.truncate(1);
        session.mux.take(&mut bulk);
        let sent_bulk = !bulk.is_empty();
        if sent_bulk {
            writer.record(&session.noise, &bulk).await?;
            bulk.clear();
        }
        if frames > 0 || sent_bulk {
            session.used.set(Instant::now());
        } else {
            if session.closing.get() {
                return session.tcp.shutdown(Shutdown::Write);
            }
            writer.rest();
            if gathered.capacity() > IDLE {
                gathered = vec![FRAMES];
            }
            spare::give(std::mem::take(&mut bulk));
            session.mux.rest();
            session.wake.wait().await;
        }
    }
    Ok(())
}

/// Appends waiting frames to `record`; how many.
fn gather(session: &Session, record: &mut Vec<u8>) -> u64 {
    let mut queue = session.queue.borrow_mut();
    let mut frames = 0;
    while record.len() < GATHER {
        let Some(frame) = queue.pop() else { break };
        record.extend_from_slice(&frame);
        frames += 1;
    }
    frames
}

/// Makes sure that streams of this session are driven.
pub(super) fn start_mux(inner: &Rc<Sessions>, session: &Rc<Session>) {
    if !session.mux.start() {
        return;
    }
    let (links, own) = (Rc::clone(inner), Rc::clone(session));
    inner.spawn(async move {
        let from: NodeId = own.peer.id;
        while let Some(next) = own.mux.next().await {
            match next {
                Ok(stream) if own.mux.too_many_accepted() => {
                    links.counters.add("streams_refused", 1);
                    drop::<Stream>(stream);
                }
                Ok(stream) => {
                    links.counters.add("streams_accepted", 1);
                    links.tell(LinkEvent::Stream { from, stream }).await;
                }
                Err(error) => {
                    log::debug!("streams with {from:?} ended: {error}");
                    break;
                }
            }
        }
        // Without streams the session is no use: both ends start over.
        links.session_ended(&own);
    });
}
