//! What a service finds behind `DUGNAD_SOCKET`: HTTP and JSON on a Unix socket of its own.
//!
//! | endpoint | does |
//! |---|---|
//! | `GET /v1/groups` | the groups this replica has joined |
//! | `POST /v1/groups/NAME/join`, `.../leave` | be in a group, until it leaves or ends |
//! | `POST /v1/groups/NAME/send`, body: the message | to all members, from members and others |
//! | `POST /v1/groups/NAME/send?reliable=1` | the same, in order and exactly once |
//! | `POST /v1/groups/NAME/send?one=1` | to one other member, whichever is free |
//! | `GET /v1/groups/NAME/messages` | one JSON object a line, for as long as it reads |
//! | `GET`, `PUT`, `DELETE /v1/store/NAMESPACE/PATH` | objects ([`super::store`]) |
//! | `GET /v1/events?filter=TYPE CONDITION`, `/v1/types` | events ([`super::events`]) |
//! | `POST /v1/events/TYPE` | publishes; its own types begin with its name |
//! | `POST /v1/connect/NAME?which=W` | bytes to another service ([`super::connect`]) |
//! | `POST /v1/locks/NAME?ttl_ms=N` | a lock, while it reads ([`super::lock`]) |
//!
//! ```text
//! curl --unix-socket $DUGNAD_SOCKET -X POST --data 'hello' http://d/v1/groups/choir/send
//! curl --unix-socket $DUGNAD_SOCKET -T photo.jpg http://d/v1/store/$DUGNAD_SERVICE/photo.jpg
//! ```
//!
//! Its own namespace is the one of its name; others must stand in its file and be shared with it.
//!
//! A service may do no more than this: it cannot deploy, stop or read what is not its own. Groups,
//! connections, and messages and writes a second, are bounded for each replica.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::map::Map;
use dugnad_node::GroupQuestion;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use serde_json::Value;
use smol::net::unix::UnixStream;
use smol::{Async, LocalExecutor, Task};
use smol_hyper::rt::SmolTimer;

use super::body::Payload;
use super::http::{Query, Reply, below, failed, json_response};
use super::shape::Trouble;
use super::store::{self, Who};
use super::{AgentApi, Hold, connect, events, exit, groups, lock, socket};
use crate::http_io::HttpIo;
use crate::rate::{Bucket, Rate};

/// Connections of one replica at a time: some listen, one asks.
const CONNECTIONS_MAX: usize = 16;
/// Groups one replica is in; a node can be in sixteen.
const GROUPS_MAX: usize = 4;
/// Messages one replica sends: so many a second, so many at once (PROTOCOL.md 4.9; a service speaks
/// more often than a person).
const SENDS: Rate = Rate { each: Duration::from_millis(100), at_once: 20 };
/// Writes to the store of one replica: each goes to the disks of up to twelve nodes.
const WRITES: Rate = Rate { each: Duration::from_millis(50), at_once: 100 };

/// Whether it may do that once more now.
fn take(bucket: &Bucket, what: &str) -> Result<(), Trouble> {
    if bucket.take(Instant::now()) {
        return Ok(());
    }
    let text = format!("a service may {what} {} times a second", bucket.rate.a_second());
    Err(Trouble::new(429, exit::REFUSED, text))
}

/// The open door of one replica; dropping it closes it and ends its memberships.
pub(crate) struct ServiceDoor {
    socket: PathBuf,
    _accept: Task<()>,
}

impl ServiceDoor {
    /// Listens at `socket`, for `user` alone.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn open(
        ex: Rc<LocalExecutor<'static>>,
        socket: PathBuf,
        user: Option<u32>,
        who: Who,
        backend: Rc<dyn AgentApi>,
    ) -> io::Result<Self> {
        let listener = Async::new(socket::bind(&socket, 0o600)?)?;
        if user.is_some() {
            chown(&socket, user, user)?;
        }
        let spawner = Rc::clone(&ex);
        let accept = ex.spawn(async move {
            let door = Rc::new(Door {
                ex: Rc::clone(&spawner),
                backend,
                open: Cell::new(0),
                holds: RefCell::default(),
                sends: Bucket::new(SENDS),
                writes: Bucket::new(WRITES),
                who,
            });
            // Connections end with the door.
            let mut serving: Vec<Task<()>> = Vec::new();
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        serving.retain(|task| !task.is_finished());
                        if door.open.get() < CONNECTIONS_MAX {
                            serving.push(spawner.spawn(Rc::clone(&door).serve(stream.into())));
                        }
                    }
                    Err(error) => {
                        log::warn!("a service's socket: {error}");
                        // Out of descriptors: trying again at once would spin.
                        smol::Timer::after(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(Self { socket, _accept: accept })
    }
}

impl Drop for ServiceDoor {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.socket) {
            log::debug!("{}: {error}", self.socket.display());
        }
    }
}

struct Door {
    ex: Rc<LocalExecutor<'static>>,
    backend: Rc<dyn AgentApi>,
    open: Cell<usize>,
    /// Memberships of this replica, by name.
    holds: RefCell<Map<String, Hold>>,
    sends: Bucket,
    writes: Bucket,
    who: Who,
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a Cell<usize>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Door {
    async fn serve(self: Rc<Self>, stream: UnixStream) {
        self.open.set(self.open.get() + 1);
        let _counted = Open(&self.open);
        let service = service_fn(|request| Rc::clone(&self).answer(request));
        let connection = http1::Builder::new()
            .timer(SmolTimer::new())
            .max_buf_size(64 << 10)
            .serve_connection(HttpIo::new(stream), service);
        if let Err(error) = connection.await {
            log::debug!("a service's connection: {error}");
        }
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Payload>, Infallible> {
        Ok(self.route(request).await.unwrap_or_else(|trouble| failed(&trouble)))
    }

    async fn route(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        if let Some(rest) = below(&path, "/v1/store") {
            if request.method() != Method::GET {
                take(&self.writes, "write")?;
            }
            return store::route(&self.backend, &self.who, rest, request).await;
        }
        if let (Some(name), &Method::POST) = (below(&path, "/v1/locks"), request.method()) {
            take(&self.writes, "write")?;
            let query = Query(request.uri().query().unwrap_or_default().to_owned());
            let name = name.trim_matches('/');
            return lock::route(&self.ex, &self.backend, &self.who, name, &query);
        }
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        if let (Some(name), &Method::POST) = (below(&path, "/v1/connect"), request.method()) {
            let name = super::http::service(name.trim_matches('/'))?;
            return connect::route(&self.ex, &self.backend, name, &query, request).await;
        }
        for kind in ["types", "events"] {
            if let Some(name) = below(&path, &format!("/v1/{kind}")) {
                if request.method() != Method::GET {
                    take(&self.sends, "publish")?;
                }
                let name = Some(name.trim_matches('/')).filter(|name| !name.is_empty());
                let place = (kind, name);
                return events::route(&self.backend, &self.who, place, &query, request).await;
            }
        }
        let mut parts = path.trim_start_matches('/').split('/');
        let place = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let get = match *request.method() {
            Method::GET => true,
            Method::POST => false,
            _ => return Err(Trouble::new(405, exit::USAGE, "only GET and POST are known")),
        };
        match (get, place) {
            (true, (Some("v1"), Some("groups"), None, None, None)) => self.list().await,
            (_, (Some("v1"), Some("groups"), Some(name), Some(verb), None)) => {
                self.group(get, groups::group(name)?, verb, request).await
            }
            _ => Err(Trouble::new(404, exit::USAGE, format!("nothing is at {path}"))),
        }
    }

    async fn list(&self) -> Reply {
        let all = groups::ask(&self.backend, GroupQuestion::List).await?;
        let holds = self.holds.borrow();
        let mine = |group: &&Value| group["group"].as_str().is_some_and(|n| holds.contains_key(n));
        let all = all.as_array().into_iter().flatten();
        Ok(json_response(&all.filter(mine).cloned().collect()))
    }

    async fn group(
        &self,
        get: bool,
        name: String,
        verb: &str,
        request: Request<Incoming>,
    ) -> Reply {
        match (get, verb) {
            (false, "join") => {
                let holds = self.holds.borrow().len();
                if !self.holds.borrow().contains_key(&name) {
                    if holds >= GROUPS_MAX {
                        let text = format!("a service can be in {GROUPS_MAX} groups");
                        return Err(Trouble::new(429, exit::REFUSED, text));
                    }
                    let hold = self.backend.hold(name.clone()).await;
                    let hold = hold.map_err(groups::not_held)?;
                    self.holds.borrow_mut().insert(name, hold);
                }
                Ok(groups::done())
            }
            (false, "leave") => {
                self.holds.borrow_mut().remove(&name);
                Ok(groups::done())
            }
            (false, "send") => {
                let query = Query(request.uri().query().unwrap_or_default().to_owned());
                let (manner, body) =
                    (groups::manner(&query)?, groups::read_message(request).await?);
                take(&self.sends, "send")?;
                let question = GroupQuestion::Send { name, body, manner };
                groups::ask(&self.backend, question).await?;
                Ok(groups::done())
            }
            (true, "messages") => groups::messages(&self.backend, name).await,
            _ => {
                let text = "of a group there are join, leave, send (POST) and messages (GET)";
                Err(Trouble::new(404, exit::USAGE, text))
            }
        }
    }
}
