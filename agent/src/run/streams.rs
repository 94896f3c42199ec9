//! What other nodes' streams and the gateway get: chunks, replicas, logs.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::map::{Map, Set};
use dugnad_kernel::{Input, Key, NodeId, Peer};
use dugnad_node::{
    Answer, Command, ProspectAnswer, ProspectQuestion, ReplicaState, ServiceQuestion, ServiceView,
};
use dugnad_resource::condition::Condition;
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::spec::Load;
use smol::channel::{Sender, bounded};
use smol::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::Agent;
use crate::blobs::Blobs;
use crate::gateway::{Backend, Known, Listed, Listing, Metered, Route};
use crate::stream::{Endpoint, Later, Stream, StreamHead, read_head, write_head};

/// How long a route is believed without news (PROTOCOL.md 10.10).
const ROUTE_FOR: Duration = Duration::from_secs(60);
/// How long a visitor waits for news of a route that is doubted.
const LAST_AFTER: Duration = Duration::from_millis(150);
/// Routes kept; one is forgotten at random to make room.
const ROUTES_MAX: usize = 256;
/// A node that has run for less does not say that there is no such service while somebody is
/// missing: after a power cut those who know of it are starting, too.
const SETTLED: Duration = Duration::from_secs(20);
/// How long the list of services at `/` is shown without asking anew.
const LISTING_FOR: Duration = Duration::from_secs(10);
/// Bytes of one line of a log on its way between nodes.
const LINE_MAX: u64 = 64 * 1024;

/// Where services can be reached, as far as this node heard.
#[derive(Default)]
pub(super) struct Routes {
    known: RefCell<Map<String, Heard>>,
    /// Services whose manager is being asked anew.
    asked: RefCell<Set<String>>,
}

struct Heard {
    route: Route,
    since: Instant,
    /// Something happened to the service since.
    doubted: bool,
}

impl Routes {
    /// What can be believed.
    fn get(&self, name: &str) -> Option<Route> {
        let known = self.known.borrow();
        let heard = known.get(name)?;
        let good = !heard.doubted && heard.since.elapsed() < ROUTE_FOR;
        good.then(|| heard.route.clone())
    }

    /// What was known last: better than nothing.
    fn last(&self, name: &str) -> Option<Route> {
        self.known.borrow().get(name).map(|heard| heard.route.clone())
    }

    fn put(&self, name: String, route: Route) {
        let mut known = self.known.borrow_mut();
        if known.len() >= ROUTES_MAX && !known.contains_key(&name) {
            known.pop_first();
        }
        known.insert(name, Heard { route, since: Instant::now(), doubted: false });
    }

    /// Something happened to this service.
    pub(super) fn doubt(&self, name: Option<&str>) {
        let mut known = self.known.borrow_mut();
        if let Some(heard) = name.and_then(|name| known.get_mut(name)) {
            heard.doubted = true;
        }
    }

    /// It is to run nowhere.
    fn forget(&self, name: &str) {
        self.known.borrow_mut().remove(name);
    }
}

impl Agent {
    /// A stream another node opened.
    pub(super) async fn serve(self: Rc<Self>, from: NodeId, mut stream: Stream) {
        let head = match read_head(&mut stream).await {
            Ok(head) => head,
            Err(error) => {
                self.links.count("stream_without_head");
                log::debug!("a stream of {}: {error}", from.short());
                return;
            }
        };
        let done = match head {
            StreamHead::Chunks => self.blobs.serve(stream).await.map(drop),
            StreamHead::Service { .. } | StreamHead::Once { .. } => {
                if let Some(gateway) = self.gateway.borrow().as_ref() {
                    gateway.serve_stream(from, head, stream);
                }
                Ok(())
            }
            StreamHead::Logs { service, tail, follow } => {
                self.send_logs(service, tail, follow, stream).await
            }
            StreamHead::Ended { id } => self.tell_end(id, stream).await,
        };
        if let Err(error) = done {
            log::debug!("a stream of {} ended: {error}", from.short());
        }
    }

    async fn send_logs(
        &self,
        service: Key,
        tail: u32,
        follow: bool,
        mut stream: Stream,
    ) -> io::Result<()> {
        let tail = usize::try_from(tail).unwrap_or(usize::MAX);
        let lines = self.host.logs(service, tail, follow);
        loop {
            let next = async { Ok(lines.recv().await.ok()) };
            // It has nothing to say: what ends here is that it listens.
            let gone = async { stream.read(&mut [0]).await.map(|_| None) };
            let Some(line) = smol::future::or(next, gone).await? else { break };
            stream.write_all(format!("{} {}\n", line.replica, line.text).as_bytes()).await?;
            stream.flush().await?;
        }
        stream.close().await
    }

    /// Copies the log of the replicas of `service` on `node` to `to`.
    pub(super) async fn copy_logs(
        &self,
        node: NodeId,
        service: Key,
        tail: usize,
        follow: bool,
        to: &Sender<(u32, String)>,
    ) -> io::Result<()> {
        if node == self.me.id {
            let lines = self.host.logs(service, tail, follow);
            while let Ok(line) = lines.recv().await {
                if to.send((line.replica, line.text)).await.is_err() {
                    break;
                }
            }
            return Ok(());
        }
        let mut stream: Stream = Box::pin(self.links.open_stream(node).await?);
        let tail = u32::try_from(tail).unwrap_or(u32::MAX);
        write_head(&mut stream, &StreamHead::Logs { service, tail, follow }).await?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line).await?;
            if line.is_empty() {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&line);
            let Some((number, text)) = line.trim_end_matches('\n').split_once(' ') else {
                continue;
            };
            let replica = number.parse().unwrap_or(u32::MAX);
            if to.send((replica, text.to_owned())).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn resolve(self: Rc<Self>, name: String) -> Known {
        match Rc::clone(&self).ask(ServiceQuestion::Resolve(name.clone())).await {
            Answer::Resolved(view) if view.is_stopped() => {
                self.routes.forget(&name);
                Known::Stopped
            }
            Answer::Resolved(view) => {
                let is_static = view.is_static();
                let ready = view.slots.into_iter().filter(|r| r.state == ReplicaState::Ready);
                let replicas = ready.map(|slot| {
                    let id = ReplicaId { service: view.service, number: slot.number };
                    (id, slot.node, slot.node_name)
                });
                let metered = view.scale.map(|scale| Metered {
                    service: view.service,
                    manager: view.manager,
                    on: scale.on,
                });
                let (port, replicas) = (view.port, replicas.collect());
                let route = Route { port, is_static, reliable: view.reliable, metered, replicas };
                self.routes.put(name, route.clone());
                Known::At(route)
            }
            // The ring is moving, or the line is down: what was known is better than nothing.
            Answer::Failed(_) => {
                let known = self.routes.last(&name).or_else(|| self.local_route(&name));
                known.map_or(Known::NotYet, Known::At)
            }
            // Those who keep the record may be starting, too, after a power cut.
            _ if self.is_new() => self.local_route(&name).map_or(Known::NotYet, Known::At),
            _ => {
                self.routes.forget(&name);
                Known::Unknown
            }
        }
    }

    /// Asks anew, once however many want to know. Who asks waits a moment for the answer, which
    /// comes at once unless the manager has just died; then what was known last has to do.
    fn resolve_soon(self: Rc<Self>, name: String, last: Route) -> Later<Known> {
        if !self.routes.asked.borrow_mut().insert(name.clone()) {
            return Box::pin(async move { Known::At(last) });
        }
        let (to, answer) = bounded(1);
        let agent = Rc::clone(&self);
        self.detach(async move {
            let known = Rc::clone(&agent).resolve(name.clone()).await;
            agent.routes.asked.borrow_mut().remove(&name);
            // Nobody may wait for it any more.
            _ = to.try_send(known);
        });
        Box::pin(async move {
            let answered = async { answer.recv().await.ok() };
            let late = async {
                smol::Timer::after(LAST_AFTER).await;
                None
            };
            smol::future::or(answered, late).await.unwrap_or(Known::At(last))
        })
    }

    /// Whether this node started too lately to know what there is not: somebody it remembers is not
    /// here yet, who may know.
    fn is_new(&self) -> bool {
        if self.started.elapsed() >= SETTLED {
            return false;
        }
        let linked = self.links.peers();
        let remembered = self.remembered.borrow();
        let missing =
            |peer: &Peer| peer.id != self.me.id && !linked.iter().any(|(id, ..)| *id == peer.id);
        let unmet = linked.is_empty() && !self.config.borrow().seeds.is_empty();
        unmet || remembered.peers().any(|peer| missing(&peer))
    }

    /// All services, from the last answer if that is young.
    async fn listing(self: Rc<Self>) -> Listing {
        let node = self.config.borrow().name.clone();
        let community = self.community.name.clone();
        let kept = self.listed.borrow().clone();
        let services = match kept {
            Some((services, at)) if at.elapsed() < LISTING_FOR => services,
            _ => {
                // Also for those who ask while the answer is on its way.
                let old = kept.map(|(services, _)| services).unwrap_or_default();
                self.listed.replace(Some((old.clone(), Instant::now())));
                let services = match Rc::clone(&self).ask(ServiceQuestion::Ps).await {
                    Answer::Ps { services, .. } => services.iter().map(listed).collect(),
                    _ => old,
                };
                self.listed.replace(Some((services.clone(), Instant::now())));
                services
            }
        };
        Listing { node, community, services }
    }

    /// What this node itself runs of a service: enough when there is no network.
    fn local_route(&self, name: &str) -> Option<Route> {
        let key = dugnad_resource::spec::key_of(name);
        let here = self.host.local(key);
        let ready: Vec<_> = here
            .iter()
            .filter(|(_, state, _)| *state == crate::host::State::Ready)
            .map(|(id, _, _)| (*id, self.me.id, self.config.borrow().name.clone()))
            .collect();
        let is_static = here.iter().any(|(_, _, at)| matches!(at, Endpoint::Static(_)));
        let port = dugnad_resource::spec::Port::Http;
        let route = Route { port, is_static, reliable: false, metered: None, replicas: ready };
        (!route.replicas.is_empty()).then_some(route)
    }
}

/// What the gateway knows of its node.
pub(super) struct GatewayBackend(pub(super) Rc<Agent>);

impl Backend for GatewayBackend {
    fn resolve(&self, name: &str) -> Later<Known> {
        let (agent, name) = (Rc::clone(&self.0), name.to_owned());
        let leads = |route: &Route| !route.replicas.is_empty();
        if let Some(route) = agent.routes.get(&name).filter(leads) {
            return Box::pin(async move { Known::At(route) });
        }
        match agent.routes.last(&name).filter(leads) {
            Some(last) => agent.resolve_soon(name, last),
            None => Box::pin(agent.resolve(name)),
        }
    }

    fn resolve_fresh(&self, name: &str) -> Later<Known> {
        Box::pin(Rc::clone(&self.0).resolve(name.to_owned()))
    }

    fn local(&self, id: ReplicaId) -> Option<Endpoint> {
        self.0.host.endpoint(id)
    }

    fn open(&self, node: NodeId) -> Later<io::Result<Stream>> {
        self.0.open_stream()(node)
    }

    fn meet(&self, condition: Condition, nodes: Vec<NodeId>) -> Later<Result<Vec<NodeId>, String>> {
        let asked = Rc::clone(&self.0).ask(ProspectQuestion::Check { condition, nodes });
        Box::pin(async move {
            match asked.await {
                Answer::Prospect(ProspectAnswer::Checked(nodes)) => Ok(nodes),
                Answer::Prospect(ProspectAnswer::Failed(why)) | Answer::Failed(why) => Err(why),
                _ => Err("this node cannot ask others now".to_owned()),
            }
        })
    }

    fn load(&self, service: Key, manager: NodeId, load: Load) {
        self.0.input(Input::Command(Command::Load { service, manager, load }));
    }

    fn blobs(&self) -> Rc<Blobs> {
        Rc::clone(&self.0.blobs)
    }

    fn listing(&self) -> Later<Listing> {
        Box::pin(Rc::clone(&self.0).listing())
    }
}

fn listed(view: &ServiceView) -> Listed {
    Listed {
        name: view.name.clone(),
        port: view.port,
        ready: view.ready as usize,
        want: view.want as usize,
        stopped: view.is_stopped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_doubted_is_still_the_last_that_was_known() {
        let routes = Routes::default();
        let port = dugnad_resource::spec::Port::Http;
        let route =
            Route { port, is_static: true, reliable: false, metered: None, replicas: Vec::new() };
        routes.put("wiki".to_owned(), route.clone());
        routes.doubt(Some("other"));
        routes.doubt(None);
        assert_eq!(routes.get("wiki"), Some(route.clone()));
        routes.doubt(Some("wiki"));
        assert_eq!((routes.get("wiki"), routes.last("wiki")), (None, Some(route.clone())));
        routes.put("wiki".to_owned(), route.clone());
        assert_eq!(routes.get("wiki"), Some(route));
        routes.forget("wiki");
        assert_eq!(routes.last("wiki"), None);
    }
}
