//! Ports of services: every TCP connection goes to one replica, byte for byte, and so do the
//! datagrams of one client to a UDP port.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use dugnad_kernel::map::Map;
use dugnad_resource::spec::Port;
use hyper::body::Bytes;
use smol::channel::{Sender, TrySendError, bounded};
use smol::{Async, Task, Timer};

use super::goal::ready;
use super::pick::{Busy, pick};
use super::splice::splice;
use super::which::{self, Which};
use super::{Known, Shared, connection, count, datagrams, upstream};
use crate::places::{Place, Places, source};
use crate::stream::Stream;

/// More services with ports of their own than that are a problem, too.
const PORTS_MAX: usize = 128;

/// A port that could not be opened is tried again after this, doubled up to the longest: nobody
/// says when another program gives it back.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Ports {
    open: RefCell<Map<Port, Open>>,
    problems: RefCell<Vec<String>>,
    /// Tries again while some wanted port is not open; replaced when others are wanted.
    again: RefCell<Option<Task<()>>>,
}

struct Open {
    service: String,
    /// Accepts until dropped. Connections that stand go on.
    _accept: Task<()>,
}

impl Ports {
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.borrow().clone()
    }

    pub(super) fn set(self: &Rc<Self>, shared: &Rc<Shared>, wanted: Vec<(String, Port)>) {
        let missing = self.open_all(shared, wanted.clone());
        let task = missing.then(|| {
            let (shared, ports) = (Rc::clone(shared), Rc::downgrade(self));
            shared.ex.clone().spawn(async move {
                let mut pause = AGAIN;
                loop {
                    Timer::after(pause).await;
                    pause = (pause * 2).min(AGAIN_MAX);
                    let Some(ports) = ports.upgrade() else { return };
                    if !ports.open_all(&shared, wanted.clone()) {
                        return;
                    }
                }
            })
        });
        self.again.replace(task);
    }

    /// Whether one of them could not be opened and may be later.
    fn open_all(&self, shared: &Rc<Shared>, wanted: Vec<(String, Port)>) -> bool {
        let mut missing = false;
        let mut problems = Vec::new();
        let mut owner: Map<Port, String> = Map::new();
        for (service, port) in wanted {
            if owner.len() >= PORTS_MAX {
                problems.push(format!(
                    "{service}: {port} is not open: {PORTS_MAX} ports are open already"
                ));
            } else if let Some(first) = owner.get(&port).filter(|first| **first != service) {
                problems.push(format!(
                    "{service}: {port} belongs to {first}; give it another in [port] and deploy it \
                     again"
                ));
            } else {
                owner.insert(port, service);
            }
        }
        let mut open = self.open.borrow_mut();
        open.retain(|port, open| owner.get(port) == Some(&open.service));
        for (port, service) in owner {
            if open.contains_key(&port) {
                continue;
            }
            match listen(shared, &service, port) {
                Ok(accept) => {
                    open.insert(port, Open { service, _accept: accept });
                }
                Err(why) => {
                    missing = true;
                    problems.push(why);
                }
            }
        }
        for problem in &problems {
            if !self.problems.borrow().contains(problem) {
                log::warn!("{problem}");
            }
        }
        self.problems.replace(problems);
        missing
    }
}

fn listen(shared: &Rc<Shared>, service: &str, port: Port) -> Result<Task<()>, String> {
    let at = |number| SocketAddr::new(shared.listen.ip(), number);
    let why = |error: io::Error| {
        let todo = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "it is opened as soon as what uses it here gives it back; or give the service \
                 another port"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need rights; give the service a higher port"
            }
            _ => "give the service another port",
        };
        let addr = shared.listen.ip();
        format!("{service}: {port} is not open on this node: {addr}: {error}; {todo}")
    };
    let (on, service) = (Rc::clone(shared), service.to_owned());
    match port {
        Port::Tcp(number) => {
            let socket = TcpListener::bind(at(number)).and_then(Async::new).map_err(why)?;
            Ok(shared.ex.spawn(accept(on, service, socket)))
        }
        Port::Udp(number) => {
            let socket = UdpSocket::bind(at(number)).and_then(Async::new).map_err(why)?;
            Ok(shared.ex.spawn(flows(on, service, socket)))
        }
        Port::None | Port::Http => Err(format!("{service} has no port of its own")),
    }
}

async fn accept(shared: Rc<Shared>, service: String, socket: Async<TcpListener>) {
    let most = shared.limits.tcp_service;
    let clients = Places::new(most, most / 2);
    loop {
        let (stream, peer) = connection::next(&shared, &socket).await;
        count(&shared.counters.tcp);
        let client = clients.take(source(peer.ip()));
        let place = client.and_then(|client| Some((client, shared.tcp.take(service.clone())?)));
        let Some((client, place)) = place else {
            count(&shared.counters.full);
            continue;
        };
        begin(&shared, &service, peer, (client, place), stream);
    }
}

/// Joins one client to a replica, until one of them ends or its place goes to another client.
fn begin(
    shared: &Rc<Shared>,
    service: &str,
    peer: SocketAddr,
    (client, place): (Place<IpAddr>, Place<String>),
    stream: Stream,
) {
    let (on, service) = (Rc::clone(shared), service.to_owned());
    let work = async move {
        let stream = place.watch(client.watch(stream));
        let gives_way = async {
            smol::future::or(client.gives_way(), place.gives_way()).await;
            Err("it was idle longest, and gave way to another".to_owned())
        };
        let served = connection(&on, &service, stream);
        if let Err(why) = smol::future::or(served, gives_way).await {
            log::debug!("{service}: client {peer}: {why}");
        }
    };
    shared.ex.spawn(work).detach();
}

/// Datagrams of one client that wait for their replica.
const WAIT_MAX: usize = 64;

/// Serves a UDP port: who has not sent for a minute is another client when it sends again, and may
/// get another replica.
async fn flows(shared: Rc<Shared>, service: String, socket: Async<UdpSocket>) {
    let socket = Rc::new(socket);
    let most = shared.limits.tcp_service;
    let clients = Places::new(most, most / 2);
    let mut flows: Map<SocketAddr, Sender<Vec<u8>>> = Map::new();
    let mut buffer = vec![0; datagrams::LONGEST];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // What an answer to somebody who is gone brings.
            Err(error) => {
                log::debug!("{service}: a datagram: {error}");
                continue;
            }
        };
        count(&shared.counters.datagrams);
        let datagram = buffer[..length].to_vec();
        let Err(closed) = send(&shared, flows.get(&peer), datagram) else { continue };
        flows.retain(|_, flow| !flow.is_closed());
        let client = clients.take(source(peer.ip()));
        let place = client.and_then(|client| Some((client, shared.tcp.take(service.clone())?)));
        let Some((client, place)) = place else {
            count(&shared.counters.datagrams_dropped);
            continue;
        };
        let (to, from) = bounded(WAIT_MAX);
        // It is empty.
        _ = to.try_send(closed);
        flows.insert(peer, to);
        let stream = datagrams::client(from, Rc::clone(&socket), peer);
        begin(&shared, &service, peer, (client, place), stream);
    }
}

/// Gives a datagram to the flow of its client, if there is one; otherwise gives it back.
fn send(shared: &Shared, flow: Option<&Sender<Vec<u8>>>, datagram: Vec<u8>) -> Result<(), Vec<u8>> {
    let Some(flow) = flow else { return Err(datagram) };
    match flow.try_send(datagram) {
        Ok(()) => Ok(()),
        Err(TrySendError::Closed(datagram)) => Err(datagram),
        Err(TrySendError::Full(_)) => {
            count(&shared.counters.datagrams_dropped);
            Ok(())
        }
    }
}

/// Joins a client to a replica.
async fn connection(shared: &Rc<Shared>, service: &str, client: Stream) -> Result<(), String> {
    let (replica, _busy) = reach(shared, service, &Which::Any).await?;
    let done = splice(client, Bytes::new(), replica, Bytes::new()).await;
    done.map_err(|error| error.to_string())
}

/// A connection to a replica. Nothing was sent yet, so every replica may be tried.
pub(super) async fn reach(
    shared: &Rc<Shared>,
    service: &str,
    which: &Which,
) -> Result<(Stream, Busy), String> {
    let mut tried = Vec::new();
    let mut said = Vec::new();
    let mut asked_anew = false;
    let Known::At(mut route) = ready(shared, service).await else {
        return Err(format!("no service {service} runs now; see `dugnad ps`"));
    };
    shared.meter.count(route.metered, Duration::ZERO);
    let mut there = route.replicas.len();
    route = which::narrow(shared, which, route).await?;
    loop {
        let Some(target) = pick(&route, &*shared.backend, &shared.load, &tried) else {
            if asked_anew {
                count(&shared.counters.unavailable);
                return Err(match said.is_empty() {
                    false => format!("no replica of {service} answers: {}", said.join("; ")),
                    true if there > 0 => format!("{there} replicas are ready, none that is meant"),
                    true => format!("{service} has no ready replica now"),
                });
            }
            asked_anew = true;
            let Known::At(fresh) = shared.backend.resolve_fresh(service).await else {
                return Err(format!("no service {service} runs now; see `dugnad ps`"));
            };
            there = fresh.replicas.len();
            route = which::narrow(shared, which, fresh).await?;
            continue;
        };
        tried.push((target.id, target.node));
        match upstream::connect(shared, &target).await {
            Ok(replica) => return Ok((replica, shared.load.begin(target.id))),
            Err(error) => {
                count(&shared.counters.retries);
                said.push(format!("{}@{}: {error}", target.id.number, target.name));
            }
        }
    }
}
