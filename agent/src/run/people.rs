//! What the agent does for its own people, through the control socket.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::{Counters, NodeId};
use dugnad_node::{
    Address, Answer, Begin, Command, EventAnswer, ObjectAnswer, Question, ServiceQuestion,
};
use dugnad_resource::execute::Report;
use dugnad_resource::spec::{Tree, key_of};
use serde_json::Value;
use smol::channel::{Receiver, bounded};

use super::{Agent, Ending};
use crate::blobs::{self, Incoming};
use crate::clock;
use crate::config::{Config, Overrides};
use crate::control::{
    AgentApi, Changes, Hold, Local, LogLines, Metrics, Reached, Subscribed, Wanted, shape,
};
use crate::gateway::Which;
use crate::host::RunningView;
use crate::invite::{Invitation, usable_addrs};
use crate::places::Taken;
use crate::seal::Keys;
use crate::stream::Endpoint;

/// The longest any question may take; operations end by themselves long before.
const ASK_LIMIT: Duration = Duration::from_secs(600);
/// A hand-over that has not moved for so long will not.
pub(super) const HAND_OVER: Duration = Duration::from_secs(60);
/// A node that has not joined after this is not well.
const JOINED_WITHIN: Duration = Duration::from_secs(60);
/// Lines and events that wait for a slow reader.
const QUEUE: usize = 256;

impl Agent {
    /// Puts a question to the node.
    pub(super) async fn ask(self: Rc<Self>, question: impl Into<Question>) -> Answer {
        let Some((ask, answer)) = self.told.ask() else {
            return Answer::Failed("too many questions at a time; try again".to_owned());
        };
        if self.commands.send(Command::Ask(ask, question.into())).await.is_err() {
            return Answer::Failed("the agent is ending".to_owned());
        }
        let answered = async { answer.recv().await.ok() };
        let late = async {
            smol::Timer::after(ASK_LIMIT).await;
            None
        };
        let answer = smol::future::or(answered, late).await;
        drop(self.told.end(ask));
        answer.unwrap_or_else(|| Answer::Failed("no answer came; see `dugnad status`".to_owned()))
    }

    /// Waits until others run what runs here.
    ///
    /// # Errors
    /// They do not: nothing has moved for [`HAND_OVER`]. What is still here, a line each.
    async fn hand_over(self: Rc<Self>) -> Result<(), Vec<String>> {
        let here = || -> Vec<String> {
            let replicas = self.node.borrow().status().replicas;
            replicas.into_iter().map(|(_, name, _)| format!("{name} runs here")).collect()
        };
        let alone = self.node.borrow().status().state == "alone";
        if here().is_empty() || (alone && self.links.peers().is_empty()) {
            return Ok(());
        }
        let moved = self.move_away().await;
        if moved.is_err() {
            let drained = self.drained().is_some();
            let told = self.commands.send(Command::HandOver(drained)).await;
            told.map_err(|error| vec![error.to_string()])?;
        }
        moved
    }

    /// Reads the owner's file again. A bad file changes nothing.
    pub(super) fn reload(self: &Rc<Self>) -> Result<Vec<String>, String> {
        let env = |name: &str| std::env::var_os(name);
        let new = Config::load(&self.dirs, &Overrides::default(), &env)?;
        let old = self.config.borrow().clone();
        let mut lines = Vec::new();
        if new.ceilings() != old.ceilings() {
            let ceilings = new.ceilings();
            self.host.set_ceilings(ceilings);
            self.blobs.set_ceiling(ceilings.amounts.disk);
            lines.push("new limits are in force".to_owned());
        }
        if new.ceilings() != old.ceilings() || new.cannot_hold() != old.cannot_hold() {
            let takes_work = new.cannot_hold().is_empty();
            let command = Command::Limits { ceilings: new.ceilings(), takes_work };
            self.input(dugnad_kernel::Input::Command(command));
        }
        if new.cannot_hold() != old.cannot_hold() {
            lines.push(match new.cannot_hold().first() {
                Some(rule) => format!("{rule} cannot be held yet: no services are taken"),
                None => "services are taken again".to_owned(),
            });
        }
        if new.labels() != old.labels() {
            self.input(dugnad_kernel::Input::Command(Command::Labels(new.labels())));
            lines.push("zone and tags are told to whoever asks".to_owned());
        }
        if new.seeds != old.seeds {
            lines.push("new seeds will be dialled".to_owned());
        }
        if new.overlay != old.overlay || new.gateway != old.gateway || new.name != old.name {
            lines.push("a new name or address needs a restart of the agent".to_owned());
        }
        if lines.is_empty() {
            lines.push("nothing changed".to_owned());
        }
        *self.config.borrow_mut() = new;
        Ok(lines)
    }

    fn facts(&self) -> shape::Facts {
        let config = self.config.borrow();
        let gateway = self.gateway.borrow();
        let mut warnings = self.told.warnings();
        warnings.extend(gateway.iter().flat_map(|gateway| gateway.problems()));
        warnings.extend(clock::problem());
        warnings.extend(config.cannot_hold().into_iter().map(|rule| {
            format!("this version cannot hold {rule}: the node takes no services until it is gone")
        }));
        warnings.extend(self.host.problems());
        warnings.extend(self.drained().map(|reason| super::drain::warning(&reason)));
        warnings.extend(self.links.twins());
        warnings.extend(self.links.strangers());
        let traffic = self.traffic.borrow();
        warnings.extend(traffic.floods(Instant::now()));
        let mut services = vec![format!("box: {}", self.host.box_layers())];
        for (what, by) in self.host.enforced() {
            services.push(format!("{what}: {by}"));
        }
        shape::Facts {
            name: config.name.clone(),
            community: self.community.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            arch: self.node.borrow().arch(),
            memory_bytes: resident(),
            up_secs: self.started.elapsed().as_secs(),
            overlay: self.links.local_addr().to_string(),
            gateway: gateway.as_ref().map(|gateway| gateway.addr().to_string()),
            not_enforced: config.not_enforced(),
            services,
            running: self.host.running().iter().map(running).collect(),
            seeds: self.links.seeds().into_iter().map(|(addr, s)| format!("{addr}: {s}")).collect(),
            warnings,
            frames: (traffic.received.clone(), traffic.sent.clone()),
            kept_state: self.host.kept_state(),
            limits: self.places(),
        }
    }

    /// Who may hold how many connections of each kind, and how many are held.
    fn places(&self) -> Vec<(&'static str, &'static str, Taken)> {
        let gateway = self.gateway.borrow();
        let mut all = self.links.limits();
        all.extend(gateway.iter().flat_map(|gateway| gateway.limits()));
        all.push(("connections of the owner's programs", "node", self.own.now()));
        all
    }

    /// Everything that is counted, under one name each.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sum = Counters::default();
        let node = self.node.borrow().status().counters;
        let gateway = self.gateway.borrow();
        let gateway = gateway.iter().flat_map(|gateway| gateway.counters());
        let blobs = [
            ("chunks_fetched", self.blobs.chunks_fetched()),
            ("chunks_served", self.blobs.chunks_served()),
        ];
        let all = self.links.counters().into_iter().chain(gateway).chain(node).chain(blobs);
        sum.extend(all);
        sum.iter().collect()
    }
}

/// One replica here, as its host sees it.
fn running(view: &RunningView) -> Value {
    serde_json::json!({
        "service": view.service,
        "replica": view.id.number,
        "version": view.generation,
        "state": view.state.name(),
        "note": view.note,
        "pid": view.pid,
        "memory_bytes": view.memory,
        "memory_peak_bytes": view.memory_peak,
        "cpu_us": view.cpu_us,
        "processes": view.processes,
        "restarts": view.restarts,
        "at": match view.endpoint {
            Some(Endpoint::Port(addr) | Endpoint::Datagrams(addr)) => Some(addr.to_string()),
            Some(Endpoint::Static(_)) | None => None,
        },
    })
}

/// Resident memory of this process in bytes; 0 if /proc does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes << 10)
}

/// The door for people.
pub(super) struct Api(pub(super) Rc<Agent>);

impl AgentApi for Api {
    fn status(&self) -> Value {
        let mut status = self.0.node.borrow().status();
        status.counters = self.0.counters();
        shape::status(&status, &self.0.facts())
    }

    fn ask(&self, question: Question) -> Local<Answer> {
        let agent = Rc::clone(&self.0);
        match question {
            Question::Service(ServiceQuestion::Why(name)) => Box::pin(agent.why(name)),
            Question::Service(ServiceQuestion::Remove(name)) => Box::pin(async move {
                let question = ServiceQuestion::Remove(name.clone());
                let answer = Rc::clone(&agent).ask(question).await;
                if answer == Answer::Done {
                    agent.remove_state(name).await;
                }
                answer
            }),
            question => Box::pin(agent.ask(question)),
        }
    }

    fn connect(&self, service: String, which: Which) -> Local<Result<Reached, String>> {
        match self.0.gateway.borrow().as_ref() {
            Some(gateway) => Box::pin(gateway.connect(service, which)),
            None => Box::pin(async {
                Err("this node has no gateway: its file says [listen] gateway = \"off\"".to_owned())
            }),
        }
    }

    fn staging(&self) -> (PathBuf, u64) {
        let ceiling = self.0.config.borrow().ceilings().amounts.disk;
        (self.0.dirs.state.join("staging"), ceiling.saturating_sub(self.0.blobs.used()))
    }

    fn ingest(&self, folder: PathBuf) -> Local<io::Result<Tree>> {
        let agent = Rc::clone(&self.0);
        Box::pin(async move {
            let tree = agent.blobs.ingest(folder).await?;
            // The node must know before it is asked to deploy it.
            agent.report(Report::Kept { tree }).await;
            Ok(tree)
        })
    }

    fn keep_value(&self, from: Incoming) -> Local<io::Result<Tree>> {
        Box::pin(Rc::clone(&self.0).keep_value(from))
    }

    fn let_go(&self, tree: Tree) {
        self.0.let_go(tree);
    }

    fn read_value(
        &self,
        tree: Tree,
        sources: Vec<NodeId>,
    ) -> Local<io::Result<blobs::ValueStream>> {
        let agent = Rc::clone(&self.0);
        Box::pin(async move {
            let sources = sources.into_iter().filter(|node| *node != agent.me.id).collect();
            let more = Box::pin(Rc::clone(&agent).beside(tree));
            agent.blobs.read_value(tree, sources, more, agent.open_stream()).await
        })
    }

    fn keys(&self) -> Keys {
        Keys::new(&self.0.dirs.state)
    }

    fn changes(&self, address: Address) -> Local<Result<Changes, ObjectAnswer>> {
        Box::pin(Rc::clone(&self.0).changes(address))
    }

    fn subscribe(
        &self,
        name: String,
        condition: String,
        begin: Begin,
    ) -> Local<Result<Subscribed, EventAnswer>> {
        Box::pin(Rc::clone(&self.0).subscribe(name, condition, begin))
    }

    fn logs(&self, service: &str, tail: usize, follow: bool) -> Local<io::Result<LogLines>> {
        let agent = Rc::clone(&self.0);
        let service = service.to_owned();
        Box::pin(async move {
            let key = key_of(&service);
            let nodes: Vec<NodeId> =
                match Rc::clone(&agent).ask(ServiceQuestion::Resolve(service.clone())).await {
                    Answer::Resolved(view) => view.slots.iter().map(|slot| slot.node).collect(),
                    // The line may be down: what ran here can still be read.
                    _ if !agent.host.local(key).is_empty() => vec![agent.me.id],
                    Answer::Unknown => {
                        let text = format!("there is no service {service}; see `dugnad ps`");
                        return Err(io::Error::new(io::ErrorKind::NotFound, text));
                    }
                    Answer::Failed(text) => return Err(io::Error::other(text)),
                    other => return Err(io::Error::other(format!("unexpected answer {other:?}"))),
                };
            let (to, lines) = bounded(QUEUE);
            let ex = Rc::clone(&agent.ex);
            for node in nodes {
                let (agent, to) = (Rc::clone(&agent), to.clone());
                let task = async move {
                    let copying = async {
                        if let Err(error) = agent.copy_logs(node, key, tail, follow, &to).await {
                            // Nobody may listen any more; then nobody needs to know.
                            _ = to.send((u32::MAX, format!("{}: {error}", node.short()))).await;
                        }
                    };
                    // It ends with its listener, also while nothing is written.
                    smol::future::or(copying, to.closed()).await;
                };
                ex.spawn(task).detach();
            }
            Ok(Box::pin(lines) as LogLines)
        })
    }

    fn healthy(&self) -> Result<(), String> {
        if let Some(error) = self.0.disk_trouble.borrow().as_ref() {
            return Err(format!("the last write to the disk failed: {error}"));
        }
        let status = self.0.node.borrow().status();
        if status.state == "joining" && self.0.started.elapsed() > JOINED_WITHIN {
            return Err("it has not found its community; `dugnad status` tells more".to_owned());
        }
        if self.0.ending.get() == Ending::Copy {
            return Err("another machine runs with this identity".to_owned());
        }
        Ok(())
    }

    fn events(&self, wanted: Wanted) -> Receiver<Value> {
        self.0.told.events(wanted.kept, wanted.follow)
    }

    fn heard(&self, group: &str) -> Result<Receiver<Value>, String> {
        self.0.heard(group)
    }

    fn hold(&self, group: String) -> Local<Result<Hold, Answer>> {
        Box::pin(Rc::clone(&self.0).hold(group))
    }

    fn drain(&self, reason: String) -> Local<Result<(), Vec<String>>> {
        Box::pin(Rc::clone(&self.0).drain(reason))
    }

    fn undrain(&self) -> Local<Result<(), String>> {
        Box::pin(Rc::clone(&self.0).undrain())
    }

    fn leave(&self, now: bool) -> Local<Result<(), Vec<String>>> {
        let agent = Rc::clone(&self.0);
        Box::pin(async move {
            if !now {
                Rc::clone(&agent).hand_over().await?;
            }
            agent.ending.set(Ending::Node);
            agent.commands.send(Command::Leave).await.map_err(|error| vec![error.to_string()])
        })
    }

    fn invite(&self, expires: Duration) -> Local<Result<String, String>> {
        let agent = Rc::clone(&self.0);
        Box::pin(async move {
            if let Some(problem) = clock::problem() {
                return Err(format!(
                    "{problem}, and invite again: the expiry of an invitation is a time"
                ));
            }
            let addrs = usable_addrs(agent.links.local_addr()).map_err(|e| e.to_string())?;
            let expires_unix = Some(clock::now_unix().saturating_add(expires.as_secs()));
            let community = agent.community.clone();
            Ok(Invitation { community, addrs, expires_unix }.to_string())
        })
    }

    fn reload(&self) -> Local<Result<Vec<String>, String>> {
        let agent = Rc::clone(&self.0);
        Box::pin(async move { agent.reload() })
    }

    fn metrics(&self) -> Metrics {
        let status = self.0.node.borrow().status();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Metrics {
            counters: self.0.counters(),
            frames: {
                let traffic = self.0.traffic.borrow();
                (traffic.received.clone(), traffic.sent.clone())
            },
            gauges: vec![
                ("memory_bytes", resident()),
                ("community_size", status.size),
                ("sessions", count(self.0.links.peers().len())),
                ("records", count(status.records)),
                ("packages", count(status.trees.len())),
                ("package_bytes", self.0.blobs.used()),
                ("replicas", count(status.replicas.len())),
                ("managed_services", count(status.managed.len())),
            ],
        }
    }
}
