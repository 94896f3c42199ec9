//! Requests that are done at most once, though they are sent again until they are answered.
//!
//! Such a request carries an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), its
//! client's or the gateway's own. The same key leads to the same replica while the service is where
//! it is. The replica's node remembers which keys it has handed to it, and what the replica said:
//! whoever comes again with the key gets that answer, and the replica does not see it twice. What
//! nobody can tell (the replica died while it worked on it) is told as that, again and again, and
//! never tried anew.
//!
//! A node remembers [`KEYS_MAX`] keys and [`BYTES_MAX`] bytes of answers for [`KEPT`], and only
//! while its agent runs.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::Hash;
use dugnad_kernel::map::Map;
use dugnad_resource::execute::ReplicaId;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode};
use smol::Timer;
use smol::channel::{Sender, bounded};

use super::body::{Body, text};
use super::{Shared, headers, upstream};
use crate::notify::Changed;

pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// From node to node, on an answer that is none: the replica has not seen the request.
pub(super) const NOT_SENT: HeaderName = HeaderName::from_static("dugnad-not-sent");

/// Bytes of a body that is sent again if need be, and of an answer that is kept.
pub(super) const BODY_MAX: usize = 64 * 1024;
const ANSWER_MAX: usize = 64 * 1024;
/// Keys a node remembers, and bytes of their answers; the oldest that is done gives way.
const KEYS_MAX: usize = 4_096;
const BYTES_MAX: usize = 4 << 20;
/// How long it remembers them.
const KEPT: Duration = Duration::from_secs(600);
/// Bytes of a key.
const KEY_MAX: usize = 255;

/// The key a request must be done once for, if it is one that may not be repeated anyway.
///
/// # Errors
/// What is wrong with the one it has.
pub(super) fn key(parts: &Parts, reliable: bool) -> Result<Option<HeaderValue>, String> {
    if headers::idempotent(&parts.method) || headers::upgrade(&parts.headers).is_some() {
        return Ok(None);
    }
    let mut said = parts.headers.get_all(&KEY).iter();
    match (said.next(), said.next()) {
        (None, _) if reliable => Ok(Some(fresh())),
        (None, _) => Ok(None),
        (Some(key), None) if (1..=KEY_MAX).contains(&key.len()) => Ok(Some(key.clone())),
        (Some(_), None) => Err(format!("an Idempotency-Key has 1 to {KEY_MAX} bytes")),
        (Some(_), Some(_)) => Err("more than one Idempotency-Key".to_owned()),
    }
}

/// A key nobody else has.
fn fresh() -> HeaderValue {
    let key = format!("dugnad-{:032x}", fastrand::u128(..));
    // It is hexadecimal.
    HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static("dugnad"))
}

/// A body that can be sent more than once.
///
/// # Errors
/// The answer for whoever sent it.
pub(super) async fn whole(body: Incoming) -> Result<Bytes, Response<Body>> {
    match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let limit = BODY_MAX / 1024;
            let note = format!(
                "a request that is to be done once has at most {limit} KiB: it is kept until it \
                 is answered\n"
            );
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, note))
        }
        Err(error) => Err(text(StatusCode::BAD_REQUEST, format!("its body broke off: {error}\n"))),
    }
}

/// What a node knows of the requests it was to do once.
#[derive(Default)]
pub(super) struct Once {
    seen: RefCell<Seens>,
}

type Seens = Map<Hash, Rc<Seen>>;

struct Seen {
    /// Of the whole request.
    asked: Hash,
    at: Instant,
    done: RefCell<Option<Done>>,
    changed: Changed,
}

#[derive(Clone)]
enum Done {
    Answered(StatusCode, HeaderMap, Bytes),
    /// The replica has not seen it, and whoever asks again begins anew.
    NotSent(String),
    /// It was done; its answer was too long to keep.
    TooLong,
    /// The replica may have done it.
    Unknown(String),
}

impl Once {
    /// The one of this name, and whether it is new.
    fn begin(&self, name: Hash, asked: Hash) -> Result<(Rc<Seen>, bool), &'static str> {
        let mut seen = self.seen.borrow_mut();
        seen.retain(|_, seen| seen.done.borrow().is_none() || seen.at.elapsed() < KEPT);
        if let Some(known) = seen.get(&name) {
            return Ok((Rc::clone(known), false));
        }
        if seen.len() >= KEYS_MAX && !remove_oldest(&mut seen) {
            return Err("as many requests as can be remembered are being done");
        }
        let new = Rc::new(Seen {
            asked,
            at: Instant::now(),
            done: RefCell::default(),
            changed: Changed::default(),
        });
        seen.insert(name, Rc::clone(&new));
        Ok((new, true))
    }

    /// Forgets the oldest answers while there are more than [`BYTES_MAX`] bytes of them.
    fn make_room(&self) {
        let mut seen = self.seen.borrow_mut();
        let bytes = |seen: &Seens| seen.values().map(|seen| seen.bytes()).sum::<usize>();
        while bytes(&seen) > BYTES_MAX && remove_oldest(&mut seen) {}
    }

    fn forget(&self, name: Hash) {
        self.seen.borrow_mut().remove(&name);
    }
}

/// Of those that are done, if there is one.
fn remove_oldest(seen: &mut Seens) -> bool {
    let done = seen.iter().filter(|(_, seen)| seen.done.borrow().is_some());
    let oldest = done.min_by_key(|(_, seen)| seen.at).map(|(name, _)| *name);
    oldest.is_some_and(|name| seen.remove(&name).is_some())
}

impl Seen {
    fn bytes(&self) -> usize {
        match &*self.done.borrow() {
            Some(Done::Answered(_, _, body)) => body.len(),
            _ => 0,
        }
    }

    fn end(&self, done: Done) {
        self.done.replace(Some(done));
        self.changed.ring();
    }
}

/// Whose key this is: one visitor does not get the answers of another by guessing a key.
fn name(id: ReplicaId, parts: &Parts) -> Hash {
    let mut bytes = id.service.0.to_be_bytes().to_vec();
    bytes.extend(id.number.to_be_bytes());
    for header in [&KEY, &AUTHORIZATION, &COOKIE] {
        for value in parts.headers.get_all(header) {
            bytes.extend(value.len().to_be_bytes());
            bytes.extend(value.as_bytes());
        }
        bytes.push(0);
    }
    Hash::of(&bytes)
}

fn asked(parts: &Parts, body: &Bytes) -> Hash {
    let head = format!("{} {}\n", parts.method, parts.uri);
    Hash::of(&[head.as_bytes(), body].concat())
}

/// Does a request for a replica on this node, or says what came of it before. An answer with
/// [`NOT_SENT`] says that the replica has not seen it.
pub(super) async fn answer(
    shared: &Rc<Shared>,
    id: ReplicaId,
    parts: Parts,
    body: Bytes,
) -> Response<Body> {
    if !parts.headers.contains_key(&KEY) {
        return text(StatusCode::BAD_REQUEST, "a request that is done once has a key\n");
    }
    let (name, asked) = (name(id, &parts), asked(&parts, &body));
    let (seen, new) = match shared.once.begin(name, asked) {
        Ok(seen) => seen,
        Err(full) => return not_sent(full),
    };
    if seen.asked != asked {
        let note = "this Idempotency-Key was used for another request: take a new one\n";
        return text(StatusCode::UNPROCESSABLE_ENTITY, note);
    }
    if new {
        let (to, first) = bounded(1);
        let (on, seen) = (Rc::clone(shared), Rc::clone(&seen));
        // It goes on when whoever asked is gone: he may come again.
        let work = async move {
            let late = async {
                Timer::after(KEPT).await;
                seen.end(Done::Unknown(format!("no answer within {} s", KEPT.as_secs())));
            };
            let work = perform(&on, id, name, &seen, (parts, body), to);
            smol::future::or(work, late).await;
            on.once.make_room();
        };
        shared.ex.spawn(work).detach();
        if let Ok(answer) = first.recv().await {
            return answer;
        }
    } else {
        super::count(&shared.counters.replayed);
    }
    let done = seen.changed.until(|| seen.done.borrow().clone()).await;
    match done {
        Done::Answered(status, headers, body) => {
            let mut answer = Response::new(Body::text(body));
            (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
            if !new {
                answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            }
            answer
        }
        Done::NotSent(why) => not_sent(&why),
        Done::TooLong => {
            let note = "it was done; its answer was longer than what is kept\n";
            text(StatusCode::CONFLICT, note)
        }
        Done::Unknown(why) => {
            let note = format!("it may have been done, and is not tried again: {why}\n");
            text(StatusCode::BAD_GATEWAY, note)
        }
    }
}

fn not_sent(why: &str) -> Response<Body> {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    answer.headers_mut().insert(NOT_SENT, HeaderValue::from_static("true"));
    answer
}

/// Hands it to the replica. `first` gets an answer that is too long to keep.
async fn perform(
    shared: &Rc<Shared>,
    id: ReplicaId,
    name: Hash,
    seen: &Seen,
    (parts, body): (Parts, Bytes),
    first: Sender<Response<Body>>,
) {
    let mut conn = match upstream::fresh(shared, id).await {
        Ok(conn) => conn,
        Err(error) => {
            shared.once.forget(name);
            return seen.end(Done::NotSent(error.to_string()));
        }
    };
    let request = Request::from_parts(parts, Body::text(body));
    let answer = match conn.sender.send_request(request).await {
        Ok(answer) => answer,
        Err(error) => return seen.end(Done::Unknown(error.to_string())),
    };
    let (mut parts, mut rest) = answer.into_parts();
    headers::strip_hop(&mut parts.headers);
    parts.headers.remove(&NOT_SENT);
    let mut kept = Vec::new();
    loop {
        match rest.frame().await {
            None => break,
            Some(Err(error)) => {
                return seen.end(Done::Unknown(format!("its answer broke off: {error}")));
            }
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                kept.extend(data);
            }
        }
        if kept.len() > ANSWER_MAX {
            seen.end(Done::TooLong);
            let body = Body::Long { first: Some(kept.into()), rest, _conn: Box::new(conn) };
            // Nobody may wait any more.
            _ = first.try_send(Response::from_parts(parts, body));
            return;
        }
    }
    seen.end(Done::Answered(parts.status, parts.headers, kept.into()));
}

/// The order in which replicas are tried: the same for one key through every gateway.
pub(super) fn rank(id: ReplicaId, key: &HeaderValue) -> Hash {
    let head = [&id.service.0.to_be_bytes()[..], &id.number.to_be_bytes()].concat();
    Hash::of(&[&head, key.as_bytes()].concat())
}
