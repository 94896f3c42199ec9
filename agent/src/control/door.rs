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
//!
//! ```text
//! curl --unix-socket $DUGNAD_SOCKET -X POST --data 'hello' http://d/v1/groups/choir/send
//! ```
//!
//! A service may do no more than this: it cannot deploy, stop or read what is not its own. Groups,
//! connections and messages a second are bounded for each replica. The store will stand beside
//! `/v1/groups`.

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
use smol_hyper::rt::{FuturesIo, SmolTimer};

use super::body::Payload;
use super::http::{Query, Reply, failed, json_response};
use super::shape::Trouble;
use super::{AgentApi, Hold, exit, groups, socket};

/// Connections of one replica at a time: some listen, one asks.
const CONNECTIONS_MAX: usize = 16;
/// Groups one replica is in; a node can be in sixteen.
const GROUPS_MAX: usize = 4;
/// Messages one replica sends: so many a second, so many at once (PROTOCOL.md 4.9; a service speaks
/// more often than a person).
const SENDS_A_SECOND: u32 = 10;
const SENDS_AT_ONCE: u32 = 20;
const SEND_EVERY: Duration = Duration::from_millis(1_000 / SENDS_A_SECOND as u64);

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
        backend: Rc<dyn AgentApi>,
    ) -> io::Result<Self> {
        let listener = Async::new(socket::bind(&socket, 0o600)?)?;
        if user.is_some() {
            chown(&socket, user, user)?;
        }
        let spawner = Rc::clone(&ex);
        let accept = ex.spawn(async move {
            let door = Rc::new(Door {
                backend,
                open: Cell::new(0),
                holds: RefCell::default(),
                sends: Cell::new((Instant::now(), 0)),
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
    backend: Rc<dyn AgentApi>,
    open: Cell<usize>,
    /// Memberships of this replica, by name.
    holds: RefCell<Map<String, Hold>>,
    /// Since when it has how many messages to its credit, counted down.
    sends: Cell<(Instant, u32)>,
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
            .serve_connection(FuturesIo::new(stream), service);
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
                let (manner, body) = (groups::manner(&query), groups::read_message(request).await?);
                self.may_send(Instant::now())?;
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

    fn may_send(&self, now: Instant) -> Result<(), Trouble> {
        let (since, used) = self.sends.get();
        let earned = now.duration_since(since).as_millis() * u128::from(SENDS_A_SECOND) / 1_000;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        // What was earned is paid back; the time that made no whole message counts for the next.
        let (since, used) = match used.checked_sub(earned) {
            Some(used) => (since + SEND_EVERY * earned, used),
            None => (now, 0),
        };
        if used >= SENDS_AT_ONCE {
            self.sends.set((since, used));
            let text = format!("a service may send {SENDS_A_SECOND} messages a second");
            return Err(Trouble::new(429, exit::REFUSED, text));
        }
        self.sends.set((since, used + 1));
        Ok(())
    }
}
