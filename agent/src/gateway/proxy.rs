//! One request: which service it is for, which replica gets it, and what happens when one fails.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_resource::spec::{Port, valid_name};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, LOCATION, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use super::body::{Answer, Body, Lent, text};
use super::goal::{Goal, ready, unavailable};
use super::headers::{self, REPLICA};
use super::pick::{Busy, Target, pick};
use super::upstream::{self, Conn, Lease, Upgraded, describe};
use super::which::{self, Which};
use super::{Known, Route, Shared, count, front, once, reliable, statics};
use crate::stream::{Endpoint, within};
use crate::text::percent_decode;

/// How long a replica that agreed to an upgrade may take to hand its bytes over.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);

/// The other side of a connection that is to become a plain pipe, and what keeps it counted.
pub(super) struct Joined {
    pub(super) upgraded: Upgraded,
    pub(super) _busy: Busy,
}

/// Where the answer of a request leaves what its connection is joined to afterwards.
pub(super) type JoinTo = Rc<RefCell<Option<Joined>>>;

/// Answers a request; what goes wrong is an answer, too.
pub(super) async fn answer(
    shared: &Rc<Shared>,
    peer: SocketAddr,
    request: Request<Incoming>,
    join: &JoinTo,
) -> Response<Body> {
    count(&shared.counters.requests);
    let (parts, body) = request.into_parts();
    if let Some(why) = headers::ambiguous(&parts) {
        count(&shared.counters.bad_requests);
        let mut no = text(StatusCode::BAD_REQUEST, format!("not passed on: {why}\n"));
        // What follows on this connection cannot be told from the body.
        no.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return no;
    }
    if parts.method == Method::CONNECT {
        count(&shared.counters.bad_requests);
        return text(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not for services\n");
    }
    let (goal, route, prefix) = match find(shared, &parts).await {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let once = match once::key(&parts, route.reliable) {
        Ok(key) => key.filter(|_| !route.is_static),
        Err(why) => {
            count(&shared.counters.bad_requests);
            return text(StatusCode::BAD_REQUEST, format!("{why}\n"));
        }
    };
    let (metered, begun) = (route.metered, Instant::now());
    let parts = prepare(parts, peer, shared.listen, &prefix);
    let answer = match once {
        Some(key) => reliable::run(&goal, route, (parts, key), body).await,
        None => Trial { goal, join, body: Lent::new(body) }.run(route, parts).await,
    };
    shared.meter.count(metered, begun.elapsed());
    answer
}

/// Which service a request is for, where that runs, and what of the path names it; or the answer.
async fn find<'a>(
    shared: &'a Rc<Shared>,
    parts: &Parts,
) -> Result<(Goal<'a>, Route, String), Response<Body>> {
    let Asked { service, which, prefix } = match service_of(parts) {
        Ok(found) => found,
        Err(Elsewhere::Status) => {
            return Err(front::answer(&shared.backend.listing().await, parts));
        }
        Err(Elsewhere::AddSlash) => return Err(add_slash(parts)),
        Err(Elsewhere::NoName(name)) => {
            count(&shared.counters.unknown);
            return Err(text(StatusCode::NOT_FOUND, format!("no service is called {name:?}\n")));
        }
    };
    let which = match which_of(parts, which) {
        Ok(which) => which,
        Err(why) => {
            count(&shared.counters.bad_requests);
            return Err(text(StatusCode::BAD_REQUEST, format!("{why}\n")));
        }
    };
    let route = match ready(shared, &service).await {
        Known::At(route) => route,
        Known::Unknown => {
            count(&shared.counters.unknown);
            return Err(text(
                StatusCode::NOT_FOUND,
                format!("no service is called {service:?} here\n"),
            ));
        }
        Known::Stopped => {
            let note = format!("{service} is stopped; `dugnad deploy` starts it again\n");
            return Err(unavailable(shared, note, "60"));
        }
        Known::NotYet => {
            let note = "this node has just started, or has lost the others: it does not know yet \
                        which services there are\n";
            return Err(unavailable(shared, note.to_owned(), "5"));
        }
    };
    match route.port {
        Port::Http => {}
        Port::Tcp(_) | Port::Udp(_) => {
            let note = format!("{service} is not a web service: it is on {}\n", route.port);
            return Err(text(StatusCode::NOT_FOUND, note));
        }
        Port::None => {
            let note = format!("{service} has no port\n");
            return Err(text(StatusCode::NOT_FOUND, note));
        }
    }
    Ok((Goal { shared, service, which }, route, prefix))
}

/// Requests that are for the gateway itself.
enum Elsewhere {
    Status,
    AddSlash,
    NoName(String),
}

/// What a request is for.
struct Asked {
    service: String,
    /// What stands behind `@` in the path.
    which: Option<String>,
    /// Of the path, as it was typed: empty if the host names the service.
    prefix: String,
}

/// Which replicas: the path says it, or the header.
fn which_of(parts: &Parts, in_path: Option<String>) -> Result<Which, String> {
    if let Some(typed) = in_path {
        let typed = percent_decode(&typed).ok_or("what stands behind @ is not encoded well")?;
        return Which::parse(&typed);
    }
    let Some(value) = parts.headers.get(REPLICA) else { return Ok(Which::Any) };
    let typed = value.to_str().map_err(|_| "Dugnad-Replica must be text")?;
    Which::parse(typed).map_err(|why| format!("Dugnad-Replica: {why}"))
}

fn service_of(parts: &Parts) -> Result<Asked, Elsewhere> {
    if let Some(name) = headers::service_of_host(parts) {
        return match valid_name(&name) {
            Ok(()) => Ok(Asked { service: name, which: None, prefix: String::new() }),
            Err(_) => Err(Elsewhere::NoName(name)),
        };
    }
    let path = parts.uri.path();
    let rest = path.strip_prefix('/').unwrap_or(path);
    if rest.is_empty() || path == "*" {
        return Err(Elsewhere::Status);
    }
    let (first, inside) =
        rest.split_once('/').map_or((rest, None), |(first, rest)| (first, Some(rest)));
    let (name, which) =
        first.split_once('@').map_or((first, None), |(name, which)| (name, Some(which)));
    if valid_name(name).is_err() {
        let short = name.chars().take(64).collect();
        return Err(Elsewhere::NoName(short));
    }
    match inside {
        Some(_) => Ok(Asked {
            service: name.to_owned(),
            which: which.map(str::to_owned),
            prefix: format!("/{first}"),
        }),
        None => Err(Elsewhere::AddSlash),
    }
}

fn add_slash(parts: &Parts) -> Response<Body> {
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut answer =
        text(StatusCode::PERMANENT_REDIRECT, "a service's address ends with a slash\n");
    if let Ok(to) = HeaderValue::try_from(format!("{}/{query}", parts.uri.path())) {
        answer.headers_mut().insert(LOCATION, to);
    }
    answer
}

/// The request as the replica will see it.
fn prepare(mut parts: Parts, peer: SocketAddr, here: SocketAddr, prefix: &str) -> Parts {
    headers::forward(&mut parts, peer, here, prefix);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = target.strip_prefix(prefix).unwrap_or(target);
    // It was part of a valid one: it is valid.
    parts.uri = Uri::try_from(target).unwrap_or_else(|_| Uri::from_static("/"));
    parts.version = Version::HTTP_11;
    parts
}

/// How one attempt failed.
enum Failed {
    /// The replica has not seen the request.
    NotSent(String),
    /// It may have.
    Lost(String),
}

/// A request on its way from replica to replica.
struct Trial<'a> {
    goal: Goal<'a>,
    join: &'a JoinTo,
    body: Rc<Lent>,
}

impl Trial<'_> {
    async fn run(&self, mut route: Route, parts: Parts) -> Response<Body> {
        let (goal, shared) = (&self.goal, self.goal.shared);
        let (mut tried, mut said) = (Vec::new(), Vec::new());
        let (mut asked_anew, mut repeated) = (false, false);
        let mut there = route.replicas.len();
        route = match which::narrow(shared, &goal.which, route).await {
            Ok(route) => route,
            Err(why) => return goal.cannot_tell(&why),
        };
        loop {
            let next = pick(&route, &*shared.backend, &shared.load, &tried);
            let Some(target) = next else {
                if asked_anew {
                    return goal.give_up(there, &said);
                }
                asked_anew = true;
                let Known::At(fresh) = shared.backend.resolve_fresh(&goal.service).await else {
                    return goal.give_up(there, &said);
                };
                there = fresh.replicas.len();
                route = match which::narrow(shared, &goal.which, fresh).await {
                    Ok(route) => route,
                    Err(why) => return goal.cannot_tell(&why),
                };
                continue;
            };
            tried.push((target.id, target.node));
            if tried.len() > 1 {
                count(&shared.counters.retries);
            }
            let name = format!("{}@{}", target.id.number, target.name);
            match self.attempt(&target, &parts).await {
                Ok(mut answer) => {
                    if let Ok(name) = HeaderValue::try_from(name) {
                        answer.headers_mut().insert(REPLICA, name);
                    }
                    return answer;
                }
                Err(Failed::NotSent(why)) => said.push(format!("{name}: {why}")),
                Err(Failed::Lost(why)) => {
                    said.push(format!("{name}: {why}"));
                    let again = headers::idempotent(&parts.method) && !self.body.begun.get();
                    if repeated || !again {
                        return goal.give_up(there, &said);
                    }
                    repeated = true;
                }
            }
        }
    }

    async fn attempt(&self, target: &Target, parts: &Parts) -> Result<Response<Body>, Failed> {
        let not_sent = |error: io::Error| Failed::NotSent(error.to_string());
        if let Some(Endpoint::Static(tree)) = self.goal.shared.backend.local(target.id) {
            return statics::answer(self.goal.shared, tree, parts).await.map_err(not_sent);
        }
        let key = (target.id, target.node);
        // A kept connection may be closing just now; only what can be sent twice may risk it.
        if headers::idempotent(&parts.method) && self.body.empty {
            if let Some(conn) = self.goal.shared.pool.take(key).await {
                match self.exchange(target, parts, conn).await {
                    // The others are as old: a fresh one tells whether the replica lives.
                    Err(_) => self.goal.shared.pool.clear(key),
                    done => return done,
                }
            }
        }
        let stream = upstream::connect(self.goal.shared, target).await.map_err(not_sent)?;
        let conn = upstream::handshake(&self.goal.shared.ex, stream).await.map_err(not_sent)?;
        self.exchange(target, parts, conn).await
    }

    async fn exchange(
        &self,
        target: &Target,
        parts: &Parts,
        mut conn: Conn,
    ) -> Result<Response<Body>, Failed> {
        let busy = self.goal.shared.load.begin(target.id);
        let body = if self.body.empty { Body::EMPTY } else { Body::Lent(Rc::clone(&self.body)) };
        let asked = &parts.headers;
        let request = Request::from_parts(parts.clone(), body);
        let answer = conn.sender.try_send_request(request).await.map_err(|mut error| {
            let sent = error.take_message().is_none();
            let why = describe(error.error());
            if sent { Failed::Lost(why) } else { Failed::NotSent(why) }
        })?;
        let (mut parts, body) = answer.into_parts();
        let protocol = headers::upgrade(&parts.headers);
        headers::strip_hop(&mut parts.headers);
        // What an older program sends is passed on as ours: its length may be told by its end,
        // which must not end the client's connection, and must not look like an end if it was cut.
        parts.version = Version::HTTP_11;
        headers::back(&mut parts.headers, asked);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let hand_over = async { conn.upgraded.recv().await.map_err(io::Error::other) };
            let upgraded = within(UPGRADE_WITHIN, "the upgrade did not happen", hand_over).await;
            let upgraded = upgraded.map_err(|error| Failed::Lost(error.to_string()))?;
            self.join.replace(Some(Joined { upgraded, _busy: busy }));
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(UPGRADE, protocol);
            }
            return Ok(Response::from_parts(parts, Body::EMPTY));
        }
        let key = (target.id, target.node);
        let lease = Lease { shared: Rc::clone(self.goal.shared), key, conn, _busy: busy };
        let give_back = Some(Box::new(|| lease.give_back()) as Box<dyn FnOnce()>);
        let body = Body::Answer(Answer { body, give_back });
        Ok(Response::from_parts(parts, body))
    }
}
