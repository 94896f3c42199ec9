//! Gateways on real sockets, with real upstreams, asked by real clients (curl among them).
#![allow(clippy::unwrap_used)]

mod folder;
mod hostile;
mod once;
mod pass;
mod retry;
mod tcp;
mod udp;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::condition::Value;
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::spec::{Load, Measure, Port, Tree, key_of};
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{LocalExecutor, Timer};
use tempfile::TempDir;

use super::clock::Clock;
use super::*;
use crate::stream::read_head;

thread_local! {
    static LIMITS: Cell<Option<(Duration, Duration)>> = const { Cell::new(None) };
}

/// Shorter limits for one test; each has its own thread.
pub(super) fn hurry(clock: Clock) -> Clock {
    match LIMITS.get() {
        Some((head, idle)) => clock.with(head, idle),
        None => clock,
    }
}

/// A node's backend, told what to say.
pub(super) struct Fake {
    routes: RefCell<HashMap<String, Route>>,
    /// What asking anew gives, one after the other; then `routes` again.
    fresh: RefCell<Vec<Route>>,
    asked_anew: Cell<u32>,
    /// Zones of nodes, and how often somebody asked for them.
    zones: RefCell<HashMap<NodeId, String>>,
    checks: Cell<u32>,
    /// What was measured.
    loads: RefCell<Vec<(Key, NodeId, Load)>>,
    local: RefCell<HashMap<ReplicaId, Endpoint>>,
    nodes: Rc<RefCell<HashMap<NodeId, SocketAddr>>>,
    blobs: Rc<Blobs>,
    dir: TempDir,
}

impl Backend for Fake {
    fn resolve(&self, name: &str) -> Later<Known> {
        let route = self.routes.borrow().get(name).cloned();
        let known = match name {
            "asleep" => Known::Stopped,
            "later" => Known::NotYet,
            _ => route.map_or(Known::Unknown, Known::At),
        };
        Box::pin(async move { known })
    }

    fn resolve_fresh(&self, name: &str) -> Later<Known> {
        self.asked_anew.set(self.asked_anew.get() + 1);
        let next = self.fresh.borrow_mut().pop();
        match next {
            Some(route) => {
                self.routes.borrow_mut().insert(name.to_owned(), route.clone());
                Box::pin(async move { Known::At(route) })
            }
            None => self.resolve(name),
        }
    }

    fn local(&self, id: ReplicaId) -> Option<Endpoint> {
        self.local.borrow().get(&id).copied()
    }

    fn open(&self, node: NodeId) -> Later<io::Result<Stream>> {
        let addr = self.nodes.borrow().get(&node).copied();
        Box::pin(async move {
            let addr = addr.ok_or_else(|| io::Error::other("no link to that node"))?;
            Ok(Box::pin(TcpStream::connect(addr).await?) as Stream)
        })
    }

    fn meet(&self, condition: Condition, nodes: Vec<NodeId>) -> Later<Result<Vec<NodeId>, String>> {
        self.checks.set(self.checks.get() + 1);
        let zones = self.zones.borrow().clone();
        Box::pin(async move {
            let meets = |node: &NodeId| {
                let zone = zones.get(node).cloned().unwrap_or_default();
                condition.matches([("zone".to_owned(), Value::Text(zone))].as_slice())
            };
            Ok(nodes.into_iter().filter(meets).collect())
        })
    }

    fn blobs(&self) -> Rc<Blobs> {
        Rc::clone(&self.blobs)
    }

    fn load(&self, service: Key, manager: NodeId, load: Load) {
        self.loads.borrow_mut().push((service, manager, load));
    }

    fn listing(&self) -> Later<Listing> {
        let listed = |name: &str, port, stopped| Listed {
            name: name.to_owned(),
            port,
            ready: 1,
            want: 2,
            stopped,
        };
        let services = vec![
            listed("asleep", Port::Http, true),
            listed("chat", Port::Tcp(6667), false),
            listed("wiki", Port::Http, false),
        ];
        let (node, community) = ("attic".to_owned(), "a <small> community".to_owned());
        Box::pin(async move { Listing { node, community, services } })
    }
}

pub(super) struct World {
    ex: Rc<LocalExecutor<'static>>,
    nodes: Rc<RefCell<HashMap<NodeId, SocketAddr>>>,
}

pub(super) struct Node {
    ex: Rc<LocalExecutor<'static>>,
    id: NodeId,
    fake: Rc<Fake>,
    gateway: Rc<Gateway>,
}

fn replica(service: &str, number: u32) -> ReplicaId {
    ReplicaId { service: key_of(service), number }
}

impl World {
    fn run(work: impl AsyncFnOnce(Self)) {
        let ex = Rc::new(LocalExecutor::new());
        let world = Self { ex: Rc::clone(&ex), nodes: Rc::default() };
        let limit = async {
            Timer::after(Duration::from_secs(100)).await;
            panic!("took longer than 100 s")
        };
        smol::block_on(ex.run(work(world).or(limit)));
    }

    /// A node with a gateway that others reach over a stream.
    async fn node(&self, number: u8) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let fake = Rc::new(Fake {
            routes: RefCell::default(),
            fresh: RefCell::default(),
            asked_anew: Cell::new(0),
            zones: RefCell::default(),
            checks: Cell::new(0),
            loads: RefCell::default(),
            local: RefCell::default(),
            nodes: Rc::clone(&self.nodes),
            blobs: Blobs::open(dir.path(), 1 << 40).unwrap(),
            dir,
        });
        let backend: Rc<dyn Backend> = Rc::<Fake>::clone(&fake);
        let listen = "127.0.0.1:0".parse().unwrap();
        let gateway = Rc::new(
            Gateway::start(Rc::clone(&self.ex), listen, Limits::default(), backend).unwrap(),
        );
        let id = NodeId::of_name("node", &[number]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.nodes.borrow_mut().insert(id, listener.local_addr().unwrap());
        let to = Rc::clone(&gateway);
        self.ex
            .spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let head = read_head(&mut stream).await.unwrap();
                    to.serve_stream(NodeId::of_name("node", &[0]), head, Box::pin(stream));
                }
            })
            .detach();
        Node { ex: Rc::clone(&self.ex), id, fake, gateway }
    }
}

impl Node {
    fn addr(&self) -> SocketAddr {
        self.gateway.addr()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    fn count(&self, name: &str) -> u64 {
        let found = self.gateway.counters().into_iter().find(|(counter, _)| *counter == name);
        found.unwrap().1
    }

    /// Makes a service known here, with replicas on these nodes, numbered from 1.
    fn route(&self, service: &str, port: Port, on: &[&Self]) {
        let replicas = (1..)
            .zip(on)
            .map(|(number, node)| (replica(service, number), node.id, format!("node-{number}")));
        let (is_static, reliable) = (false, false);
        let route =
            Route { port, is_static, reliable, metered: None, replicas: replicas.collect() };
        self.fake.routes.borrow_mut().insert(service.to_owned(), route);
    }

    fn runs(&self, service: &str, number: u32, at: Endpoint) {
        self.fake.local.borrow_mut().insert(replica(service, number), at);
    }

    /// A service with one replica, on this node.
    fn serves(&self, service: &str, at: SocketAddr) {
        self.route(service, Port::Http, &[self]);
        self.runs(service, 1, Endpoint::Port(at));
    }

    async fn folder(&self, service: &str, folder: &std::path::Path) -> Tree {
        let tree = self.fake.blobs.ingest(folder.to_owned()).await.unwrap();
        self.route(service, Port::Http, &[self]);
        self.runs(service, 1, Endpoint::Static(tree));
        tree
    }

    /// Sends bytes and reads until the gateway closes.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.addr()).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end, too.
        let _: io::Result<usize> = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Runs curl with `-s` and these arguments.
async fn curl(args: &[&str]) -> Output {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "60", "--noproxy", "*"]).args(args);
    smol::unblock(move || command.output().unwrap()).await
}

async fn text(args: &[&str]) -> String {
    String::from_utf8(curl(args).await.stdout).unwrap()
}

/// Reads the head of an HTTP message; what was read behind it comes as well.
async fn head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        if let Some(end) = seen.windows(4).position(|part| part == b"\r\n\r\n") {
            let rest = seen.split_off(end + 4);
            return (String::from_utf8(seen).unwrap(), rest);
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return (String::new(), seen),
            Ok(read) => seen.extend(&buffer[..read]),
        }
    }
}

/// An upstream: `serve` gets every connection and its number.
async fn upstream<F>(node: &Node, serve: impl Fn(TcpStream, u32) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let ex = Rc::clone(&node.ex);
    node.ex
        .spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                ex.spawn(serve(stream, number)).detach();
            }
        })
        .detach();
    addr
}

/// An upstream that answers every request with what it saw of it and the connection's number.
async fn mirror(node: &Node) -> SocketAddr {
    upstream(node, |mut stream, number| async move {
        loop {
            let (head, mut body) = head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            let length = head
                .lines()
                .filter_map(|line| line.strip_prefix("content-length: "))
                .map(|length| length.parse::<usize>().unwrap())
                .sum();
            while body.len() < length {
                let mut more = [0; 1024];
                match stream.read(&mut more).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => body.extend(&more[..read]),
                }
            }
            let seen = format!("conn: {number}\n{head}{}", String::from_utf8_lossy(&body));
            let length = seen.len();
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if !head.starts_with("HEAD") {
                answer.push_str(&seen);
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// An address nobody listens on.
fn nowhere() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
