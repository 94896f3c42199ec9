//! The agent's side of the control socket.

use std::cell::Cell;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::{Id, Key};
use dugnad_node::{ProspectQuestion, Question, ServiceQuestion, WANT_MAX};
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::Condition;
use dugnad_resource::spec::{REPLICAS_MAX, Spec, key_of};
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use smol::channel::{Receiver, bounded};
use smol::net::unix::UnixStream;
use smol::{Async, LocalExecutor, Task};
use smol_hyper::rt::SmolTimer;

use super::body::Payload;
use super::http::{Query, Reply, below, failed, json_response, lines, service, text, whole};
use super::shape::{self, Told, Trouble};
use super::store::{self, Who};
use super::{AgentApi, Wanted, connect, events, exit, groups, lock, namespaces, socket, upload};
use crate::http_io::HttpIo;
use crate::places::Places;
use crate::text::percent_decode;

/// Connections at a time; people and scripts of one machine need few. The idlest gives way.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// A spec has a few kilobytes.
const SPEC_MAX: usize = 512 << 10;
const TAIL_MAX: usize = 10_000;
/// Bytes of what a person tells everybody.
const ANNOUNCE_MAX: usize = 200;
/// Uploads at a time: each may fill as much of the disk as the agent has room for.
const UPLOADS_MAX: usize = 2;

/// The running control socket; dropping it closes the socket and takes its file away.
pub(crate) struct Control {
    socket: PathBuf,
    _accept: Task<()>,
}

impl Control {
    /// Listens at `socket` with this file mode and answers from `backend`, on `ex`.
    ///
    /// # Errors
    /// Another agent answers there, or the socket or the staging folder cannot be made.
    pub(crate) fn start(
        ex: Rc<LocalExecutor<'static>>,
        socket: PathBuf,
        mode: u32,
        places: Rc<Places<()>>,
        backend: Rc<dyn AgentApi>,
    ) -> io::Result<Self> {
        let listener = Async::new(socket::bind(&socket, mode)?)?;
        // What a crash left behind; nobody else uses the folder.
        remove(&backend.staging().0);
        let door = Rc::new(Door {
            ex: Rc::clone(&ex),
            backend,
            places,
            staged: Cell::new(0),
            uploads: Cell::new(0),
        });
        let accept = ex.spawn(async move {
            let mut failures = 0_u32;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => door.admit(stream.into()),
                    Err(error) => {
                        failures = failures.wrapping_add(1);
                        if failures.is_power_of_two() {
                            log::warn!("control socket: {error}");
                        }
                        // Out of descriptors: trying again at once would spin.
                        smol::Timer::after(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(Self { socket, _accept: accept })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.socket) {
            log::debug!("{}: {error}", self.socket.display());
        }
    }
}

/// The parts of a path.
type Place<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>);

fn nothing_at((first, second, third, fourth): Place<'_>) -> Trouble {
    let rest = [second, third, fourth].into_iter().flatten();
    let path: String = rest.map(|part| format!("/{part}")).collect();
    Trouble::new(404, exit::USAGE, format!("nothing is at /{first}{path}"))
}

struct Door {
    ex: Rc<LocalExecutor<'static>>,
    backend: Rc<dyn AgentApi>,
    places: Rc<Places<()>>,
    /// Names staging folders apart.
    staged: Cell<u64>,
    uploads: Cell<usize>,
}

impl Door {
    fn admit(self: &Rc<Self>, stream: UnixStream) {
        let Some(place) = self.places.take(()) else { return };
        let door = Rc::clone(self);
        let serving = async move {
            let service = service_fn(|request| Rc::clone(&door).serve(request));
            let connection = http1::Builder::new()
                .timer(SmolTimer::new())
                .max_buf_size(64 << 10)
                .serve_connection(HttpIo::new(place.watch(Box::pin(stream))), service);
            let serving = async {
                if let Err(error) = connection.await {
                    // People interrupt `logs -f`; nothing is wrong then.
                    log::debug!("control connection: {error}");
                }
            };
            smol::future::or(serving, place.gives_way()).await;
        };
        self.ex.spawn(serving).detach();
    }

    async fn serve(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Payload>, Infallible> {
        Ok(self.route(request).await.unwrap_or_else(|trouble| failed(&trouble)))
    }

    /// Which node this is: what scripts want of `status`, and no more.
    fn whoami(&self) -> Value {
        let status = self.backend.status();
        let told = ["node", "name", "community", "version"];
        told.iter().map(|key| ((*key).to_owned(), status[*key].clone())).collect()
    }

    async fn route(self: Rc<Self>, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        if let Some(rest) = below(&path, "/v1/store") {
            return store::route(&self.backend, &Who::Person, rest, request).await;
        }
        if let (Some(name), &Method::POST) = (below(&path, "/v1/locks"), request.method()) {
            let name = name.trim_matches('/');
            return lock::route(&self.ex, &self.backend, &Who::Person, name, &query);
        }
        if let Some(name) = below(&path, "/v1/namespaces") {
            return namespaces::route(&self.backend, name.trim_matches('/'), request).await;
        }
        if below(&path, "/v1/types").is_some() {
            return events::route(&self.backend, &Who::Person, ("types", None), &query, request)
                .await;
        }
        if let Some(name) =
            below(&path, "/v1/events").filter(|r| !r.is_empty() || query.has("filter"))
        {
            let name = Some(name.trim_matches('/')).filter(|name| !name.is_empty());
            return events::route(&self.backend, &Who::Person, ("events", name), &query, request)
                .await;
        }
        let mut parts = path.trim_start_matches('/').split('/');
        let place = (parts.next().unwrap_or_default(), parts.next(), parts.next(), parts.next());
        let get = match *request.method() {
            Method::GET => true,
            Method::POST => false,
            _ => return Err(Trouble::new(405, exit::USAGE, "only GET and POST are known")),
        };
        match place {
            ("v1", Some("groups"), name, verb) => {
                groups::route(&self.backend, get, (name, verb), &query, request).await
            }
            _ if get => self.get(place, &query).await,
            _ => self.post(place, &query, request).await,
        }
    }

    async fn get(&self, place: Place<'_>, query: &Query) -> Reply {
        match place {
            ("healthz", None, None, None) => Ok(self.healthz()),
            ("metrics", None, None, None) => Ok(text(self.backend.metrics().text())),
            ("v1", Some("status"), None, None) => Ok(json_response(&self.backend.status())),
            ("v1", Some("whoami"), None, None) => Ok(json_response(&self.whoami())),
            ("v1", Some("nodes"), None, None) => self.ask(ServiceQuestion::Nodes, "").await,
            ("v1", Some("ps"), None, None) => self.ps().await,
            ("v1", Some("events"), None, None) => {
                let wanted = Wanted { kept: true, follow: query.has("follow") };
                Ok(lines(self.backend.events(wanted)))
            }
            ("v1", Some("logs"), Some(name), None) => self.logs(service(name)?, query).await,
            ("v1", Some("why"), Some(name), None) => {
                self.ask(ServiceQuestion::Why(service(name)?), name).await
            }
            ("v1", Some("lookup"), Some(what), None) => {
                self.ask(Question::Lookup(key(what)?), what).await
            }
            ("v1", Some("find"), None, None) => self.find(query).await,
            ("v1", Some("census"), None, None) => self.ask(ProspectQuestion::Census, "").await,
            ("v1", Some("resolve"), Some(name), None) => {
                self.ask(ServiceQuestion::Resolve(service(name)?), name).await
            }
            _ => Err(nothing_at(place)),
        }
    }

    async fn post(
        self: &Rc<Self>,
        place: Place<'_>,
        query: &Query,
        request: Request<Incoming>,
    ) -> Reply {
        match place {
            ("v1", Some("connect"), Some(name), None) => {
                connect::route(&self.ex, &self.backend, service(name)?, query, request).await
            }
            ("v1", Some("announce"), None, None) => {
                let text = read_text(request).await?;
                self.ask(Question::Announce(text), "").await
            }
            ("v1", Some("plan"), None, None) => {
                let spec = read_spec(request).await?;
                let name = spec.name.clone();
                self.ask(ServiceQuestion::Plan(spec), &name).await
            }
            ("v1", Some("deploy"), None, None) => {
                let spec = read_spec(request).await?;
                Ok(self.deploy(spec))
            }
            ("v1", Some("ingest"), None, None) => self.ingest(request).await,
            ("v1", Some("drain"), None, None) => {
                let reason = query.get("reason").and_then(percent_decode).unwrap_or_default();
                self.backend.drain(reason).await.map_err(|reasons| {
                    let text = "drained, and takes nothing new; not everything has another place";
                    Trouble { reasons, ..Trouble::new(409, exit::UNMET, text) }
                })?;
                Ok(json_response(&json!({"done": true})))
            }
            ("v1", Some("undrain"), None, None) => {
                self.backend.undrain().await.map_err(Trouble::failed)?;
                Ok(json_response(&json!({"done": true})))
            }
            ("v1", Some("leave"), None, None) => {
                self.backend.leave(query.has("now")).await.map_err(|reasons| {
                    let text = "nobody else takes over what runs here, so this node stays; make \
                                room elsewhere, or go all the same with `dugnad leave --now`";
                    Trouble { reasons, ..Trouble::new(409, exit::UNMET, text) }
                })?;
                Ok(json_response(&json!({})))
            }
            ("v1", Some("reload"), None, None) => {
                let changed = self.backend.reload().await.map_err(Trouble::failed)?;
                Ok(json_response(&json!({ "changed": changed })))
            }
            ("v1", Some("invite"), None, None) => {
                let secs = query.number("secs").ok_or_else(|| {
                    Trouble::usage("say how long it is good for: /v1/invite?secs=604800")
                })?;
                let invited = self.backend.invite(Duration::from_secs(secs)).await;
                Ok(json_response(&json!({ "token": invited.map_err(Trouble::failed)? })))
            }
            ("v1", Some(verb), Some(name), None) => self.order(verb, name, query).await,
            _ => Err(nothing_at(place)),
        }
    }

    /// What is to become of a service.
    async fn order(&self, verb: &str, name: &str, query: &Query) -> Reply {
        let named = service(name)?;
        let question = match verb {
            "stop" => ServiceQuestion::Stop(named),
            "rm" if query.has("keep_state") => ServiceQuestion::RemoveButState(named),
            "rm" => ServiceQuestion::Remove(named),
            "rollback" => ServiceQuestion::RollBack(named),
            "restart" => ServiceQuestion::Restart(named),
            "scale" => {
                let count = query.get("replicas").and_then(|count| count.parse().ok());
                let count = count.filter(|count| (1..=REPLICAS_MAX).contains(count));
                let text = || Trouble::usage(format!("replicas must be 1 to {REPLICAS_MAX}"));
                ServiceQuestion::Scale(named, count.ok_or_else(text)?)
            }
            _ => return Err(nothing_at(("v1", Some(verb), Some(name), None))),
        };
        self.ask(question, name).await
    }

    fn healthz(&self) -> Response<Payload> {
        match self.backend.healthy() {
            Ok(()) => text("ok\n".to_owned()),
            Err(why) => {
                let mut response = text(format!("{why}\n"));
                *response.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        }
    }

    async fn ask(&self, question: impl Into<Question>, about: &str) -> Reply {
        let Told { value, complete } =
            shape::answer(self.backend.ask(question.into()).await, about)?;
        Ok(whole(json_response(&value), complete))
    }

    /// Nodes that meet `where`.
    async fn find(&self, query: &Query) -> Reply {
        let typed = percent_decode(query.get("where").unwrap_or_default())
            .ok_or_else(|| Trouble::usage("where is no UTF-8 text"))?;
        let condition = Condition::parse(&typed, &NODE);
        let condition = condition.map_err(|error| Trouble::usage(error.to_string()))?;
        let want = query.number("limit").unwrap_or(u64::from(WANT_MAX));
        let want = u16::try_from(want).ok().filter(|want| (1..=WANT_MAX).contains(want));
        let want = want.ok_or_else(|| Trouble::usage(format!("limit is 1 to {WANT_MAX}")))?;
        self.ask(ProspectQuestion::Find { condition, want }, "").await
    }

    /// The services, each with the age of what is kept of its state.
    async fn ps(&self) -> Reply {
        let Told { mut value, complete } =
            shape::answer(self.backend.ask(ServiceQuestion::Ps.into()).await, "")?;
        if value.as_array().is_some_and(|services| !services.is_empty()) {
            for (name, taken) in store::states(&self.backend).await {
                let mut services = value.as_array_mut().into_iter().flatten();
                if let Some(service) = services.find(|service| service["service"] == name) {
                    service["state_taken_unix"] = json!(taken);
                }
            }
        }
        Ok(whole(json_response(&value), complete))
    }

    async fn logs(&self, service: String, query: &Query) -> Reply {
        let tail =
            query.number("tail").map_or(TAIL_MAX, |tail| usize::try_from(tail).unwrap_or(TAIL_MAX));
        let logs = self.backend.logs(&service, tail.min(TAIL_MAX), query.has("follow")).await;
        let logs = logs.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Trouble::new(404, exit::FAILED, error.to_string()),
            _ => Trouble::failed(error.to_string()),
        })?;
        Ok(lines(logs.map(|(replica, line)| json!({ "replica": replica, "line": line }))))
    }

    /// Answers with lines: what happens to the service until the question is answered, then that.
    fn deploy(self: &Rc<Self>, spec: Spec) -> Response<Payload> {
        let (to, from) = bounded(16);
        let door = Rc::clone(self);
        let telling = async move {
            let name = spec.name.clone();
            let mut events = door.backend.events(Wanted { kept: false, follow: true });
            let mut answer = door.backend.ask(ServiceQuestion::Deploy(spec).into());
            let told = loop {
                let progress = async { Err(next_about(&mut events, &name).await) };
                let answered = async { Ok(answer.as_mut().await) };
                match smol::future::or(answered, progress).await {
                    Ok(answer) => break shape::answer(answer, &name),
                    // A caller that went away does not stop the deploy, only the telling.
                    Err(event) => {
                        if to.send(json!({ "progress": event })).await.is_err() {
                            return;
                        }
                    }
                }
            };
            while let Ok(event) = events.try_recv() {
                if event["service"] == name && to.send(json!({ "progress": event })).await.is_err()
                {
                    return;
                }
            }
            let last = told.map_or_else(|t| t.json(), |told| json!({ "result": told.value }));
            // The caller may have gone; there is nobody else to tell.
            let _: Result<(), _> = to.send(last).await;
        };
        self.ex.spawn(telling).detach();
        lines(from)
    }

    async fn ingest(&self, request: Request<Incoming>) -> Reply {
        let _counted = Uploading::begin(&self.uploads)?;
        let (root, bytes_max) = self.backend.staging();
        self.staged.set(self.staged.get() + 1);
        let staged = Staged(root.join(self.staged.get().to_string()));
        let folder = staged.0.clone();
        let (blocks, from) = bounded::<Bytes>(upload::BLOCKS);
        let unpacking = smol::unblock(move || {
            fs::create_dir_all(&folder)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", folder.display())))?;
            let unpacked = upload::unpack(&mut upload::Reader::new(from), &folder, bytes_max);
            if unpacked.is_err() {
                // Here as well as in `Staged`: after a broken connection this ends later than it.
                remove(&folder);
            }
            unpacked
        });
        let mut body = request.into_body();
        let receiving = async move {
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return };
                if let Ok(data) = frame.into_data() {
                    if blocks.send(data).await.is_err() {
                        return;
                    }
                }
            }
        };
        let ((), unpacked) = futures_util::future::join(receiving, unpacking).await;
        unpacked.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Trouble::new(400, exit::FAILED, error.to_string()),
            io::ErrorKind::FileTooLarge => Trouble::new(413, exit::UNMET, error.to_string()),
            _ => Trouble::failed(error.to_string()),
        })?;
        let stored = self.backend.ingest(staged.0.clone()).await;
        let stored = stored.map_err(|error| Trouble::failed(format!("cannot store: {error}")))?;
        Ok(json_response(&shape::tree(&stored)))
    }
}

/// An unpacked upload; removed when it goes out of use.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.0);
        smol::unblock(move || remove(&folder)).detach();
    }
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("{}: cannot remove: {error}", folder.display());
        }
        Ok(()) | Err(_) => {}
    }
}

/// Counts an upload while it lasts.
struct Uploading<'a>(&'a Cell<usize>);

impl<'a> Uploading<'a> {
    fn begin(count: &'a Cell<usize>) -> Result<Self, Trouble> {
        if count.get() >= UPLOADS_MAX {
            let text = "the agent is storing other packages; try again in a moment";
            return Err(Trouble::new(503, exit::FAILED, text));
        }
        count.set(count.get() + 1);
        Ok(Self(count))
    }
}

impl Drop for Uploading<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The next event about a service; never, when there are no more events.
async fn next_about(events: &mut Receiver<Value>, service: &str) -> Value {
    loop {
        match events.recv().await {
            Ok(event) if event["service"] == service => return event,
            Ok(_) => {}
            Err(_) => smol::future::pending().await,
        }
    }
}

/// 32 hexadecimal digits, or the name of a service.
fn key(what: &str) -> Result<Key, Trouble> {
    match u128::from_str_radix(what, 16) {
        Ok(id) if what.len() == 32 => Ok(Id(id)),
        _ => service(what).map(|name| key_of(&name)),
    }
}

/// What a person wants to say: one line, not too long.
async fn read_text(request: Request<Incoming>) -> Result<String, Trouble> {
    let body = Limited::new(request.into_body(), SPEC_MAX).collect().await;
    let body = body.map_err(|error| Trouble::usage(format!("cannot read the text: {error}")))?;
    let text: String = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Trouble::usage(format!("this is no JSON string: {error}")))?;
    let text = text.trim().to_owned();
    if text.is_empty() || text.len() > ANNOUNCE_MAX || text.contains(char::is_control) {
        let text = format!("an announcement is one line of 1 to {ANNOUNCE_MAX} bytes");
        return Err(Trouble::usage(text));
    }
    Ok(text)
}

async fn read_spec(request: Request<Incoming>) -> Result<Spec, Trouble> {
    let body = Limited::new(request.into_body(), SPEC_MAX).collect().await;
    let body = body.map_err(|error| Trouble::usage(format!("cannot read the spec: {error}")))?;
    let spec: Spec = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Trouble::usage(format!("this is no spec: {error}")))?;
    spec.check().map_err(Trouble::usage)?;
    Ok(spec)
}
