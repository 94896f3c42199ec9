//! A request that is to be done once, from the side of the gateway: it stays with one replica, and
//! is sent again until that one's node says what came of it (`once.rs`).

use std::io;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use smol::Timer;

use super::body::Body;
use super::goal::Goal;
use super::headers::{self, REPLICA};
use super::pick::Target;
use super::upstream::{self, describe};
use super::{Known, Route, count, once, which};
use crate::stream::{StreamHead, within, write_head};

/// Pauses before it is sent to the same node again: a line that broke is there again within
/// seconds, and a node that is gone is known to be gone.
const AGAIN: [u64; 5] = [200, 400, 800, 1_600, 3_200];
/// How long a stream to another node may take to open.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// How one attempt failed.
enum Failed {
    /// No replica has seen it.
    NotSent(String),
    /// Whether it was seen its node knows.
    Lost(String),
}

/// Sends it until it is answered, or nobody can tell whether it was done.
pub(super) async fn run(
    goal: &Goal<'_>,
    route: Route,
    (mut parts, key): (Parts, HeaderValue),
    body: Incoming,
) -> Response<Body> {
    parts.headers.insert(once::KEY, key.clone());
    let body = match once::whole(body).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let (mut route, mut said, mut asked_anew) = (route, Vec::new(), false);
    loop {
        let there = route.replicas.len();
        let targets = match which::narrow(goal.shared, &goal.which, route).await {
            Ok(route) => targets(route, &key),
            Err(why) => return goal.cannot_tell(&why),
        };
        for target in targets {
            let name = format!("{}@{}", target.id.number, target.name);
            match until_known(goal, &target, &parts, &body).await {
                Ok(mut answer) => {
                    if let Ok(name) = HeaderValue::try_from(name) {
                        answer.headers_mut().insert(REPLICA, name);
                    }
                    return answer;
                }
                Err(Failed::NotSent(why)) => said.push(format!("{name}: {why}")),
                Err(Failed::Lost(why)) => {
                    let note = "it may have been done; with the same Idempotency-Key it is safe \
                                to ask again";
                    return goal.give_up(there, &[format!("{name}: {why}; {note}")]);
                }
            }
            count(&goal.shared.counters.retries);
        }
        if asked_anew {
            return goal.give_up(there, &said);
        }
        asked_anew = true;
        let Known::At(fresh) = goal.shared.backend.resolve_fresh(&goal.service).await else {
            return goal.give_up(there, &said);
        };
        route = fresh;
    }
}

/// In the order every gateway tries them in for this key.
fn targets(route: Route, key: &HeaderValue) -> Vec<Target> {
    let target = |(id, node, name)| Target { id, node, name };
    let mut all: Vec<Target> = route.replicas.into_iter().map(target).collect();
    all.sort_by_key(|target| once::rank(target.id, key));
    all
}

/// Once it may have been seen by this replica, only this one can say what came of it.
async fn until_known(
    goal: &Goal<'_>,
    target: &Target,
    parts: &Parts,
    body: &Bytes,
) -> Result<Response<Body>, Failed> {
    let mut lost = None;
    for pause in AGAIN.map(Some).into_iter().chain([None]) {
        match attempt(goal, target, parts, body).await {
            Ok(answer) => return Ok(answer),
            Err(Failed::NotSent(why)) if lost.is_none() => return Err(Failed::NotSent(why)),
            Err(Failed::NotSent(why) | Failed::Lost(why)) => lost = Some(why),
        }
        if let Some(pause) = pause {
            count(&goal.shared.counters.retries);
            Timer::after(Duration::from_millis(pause)).await;
        }
    }
    Err(Failed::Lost(lost.unwrap_or_default()))
}

async fn attempt(
    goal: &Goal<'_>,
    target: &Target,
    parts: &Parts,
    body: &Bytes,
) -> Result<Response<Body>, Failed> {
    let (shared, busy) = (goal.shared, goal.shared.load.begin(target.id));
    let answer = if shared.backend.local(target.id).is_some() {
        once::answer(shared, target.id, parts.clone(), body.clone()).await
    } else {
        let open = shared.backend.open(target.node);
        let stream = async {
            let mut stream = open.await?;
            write_head(&mut stream, &StreamHead::Once { id: target.id }).await?;
            Ok(stream)
        };
        let not_sent = |error: io::Error| Failed::NotSent(error.to_string());
        let stream = within(OPEN_WITHIN, "no stream", stream).await.map_err(not_sent)?;
        let mut conn = upstream::handshake(&shared.ex, stream).await.map_err(not_sent)?;
        let request = Request::from_parts(parts.clone(), Body::text(body.clone()));
        let lost = |error: hyper::Error| Failed::Lost(describe(&error));
        let (parts, rest) = conn.sender.send_request(request).await.map_err(lost)?.into_parts();
        Response::from_parts(parts, Body::Long { first: None, rest, _conn: Box::new(conn) })
    };
    let (mut head, body) = answer.into_parts();
    if head.headers.contains_key(once::NOT_SENT) {
        return Err(Failed::NotSent(first_line(body).await));
    }
    headers::strip_hop(&mut head.headers);
    headers::back(&mut head.headers, &parts.headers);
    drop(busy);
    Ok(Response::from_parts(head, body))
}

/// What a node says of a request its replica has not seen.
async fn first_line(body: Body) -> String {
    let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}
