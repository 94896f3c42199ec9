//! How a person, or the gateway of any node, asks the community (paper 3.4.4, service client).

mod change;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::{Port, Spec, Tree, Want, key_of};

use super::allocator::{self, Candidate, Choice};
use super::deployer::{Predicted, Sum};
use super::manager::review;
use super::service::{
    Desired, FAILED, Failed, PREVIOUS, ReplicaState, SPEC, Service, ServiceView, Slot,
};
use super::{Asker, AskerExt, Deployment, Event, Outcome, Request, Response};
use crate::cast::{CastBody, CastPart, descriptions};
use crate::packages;
use crate::persistence::record::{Record, Version};
use crate::persistence::{Answer, Question};

/// Nodes that must have a service's record on disk before a deploy counts: the node that was
/// asked may die the moment it answered.
const RECORD_COPIES: usize = 3;
/// Answers without news (1.5 s each) after which a wait ends.
const QUIET_POLLS: u32 = 40;
const BLOCKED_POLLS: u32 = 2;
/// Pause before a manager that moved is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: u32 = 150;

/// What people ask about nodes and services.
#[derive(Clone, Debug)]
pub enum ServiceQuestion {
    /// Who is there, and what each has.
    Nodes,
    /// Which services have a TCP port of their own.
    Ports,
    /// Where would it run, and why not elsewhere. Changes nothing.
    Plan(Spec),
    /// Store the packages (which the asked node holds) and what is wanted, and wait for the
    /// replicas.
    Deploy(Spec),
    /// All services.
    Ps,
    /// What happened to a service.
    Why(String),
    /// Where requests to this service can go.
    Resolve(String),
    /// Stop its replicas, keep the service known.
    Stop(String),
    /// Stop its replicas and forget it, and what they have written.
    Remove(String),
    /// Stop its replicas and forget it; the state of a service that keeps it stays.
    RemoveButState(String),
    /// Deploy the version before once more. Answers as a deploy.
    RollBack(String),
    /// Start all replicas anew, one after the other. Answers as a deploy.
    Restart(String),
    /// So many replicas from now on. Answers as a deploy.
    Scale(String, u8),
}

#[derive(Clone, Debug)]
pub enum ServiceAnswer {
    Nodes(Vec<Description>),
    Ports(Vec<(String, Port)>),
    Plan {
        want: u8,
        because: String,
        /// If a goal was set.
        predicted: Option<Predicted>,
        choice: Choice,
        notes: Vec<String>,
    },
    Deployed {
        view: ServiceView,
        missing: Vec<String>,
    },
    Ps {
        views: Vec<ServiceView>,
        complete: bool,
    },
    Why(Vec<String>),
    Resolved(ServiceView),
    Done,
    Unmet(Vec<String>),
    Unknown,
    /// Somebody else was first.
    Conflict(String),
    Failed(String),
}

const NO_ROOM: &str =
    "the service could not be written to disk on enough nodes; see `dugnad status`";
const NOBODY: &str = "no node answers for the service's place on the ring; \
    see `dugnad status` and try again";

impl Deployment {
    pub(crate) fn on_ask(&mut self, ask: u64, question: ServiceQuestion, cx: &mut Cx<'_, Self>) {
        if self.position.range.is_none() {
            let text = "this node is not in the ring yet; see `dugnad status`".to_string();
            cx.emit(Event::Answer { ask, reply: ServiceAnswer::Failed(text) });
            return;
        }
        let (me, size) = (self.me, self.position.size);
        let name = match &question {
            ServiceQuestion::Nodes => "nodes",
            ServiceQuestion::Ports => "ports",
            ServiceQuestion::Plan(_) => "plan",
            ServiceQuestion::Deploy(_) => "deploy",
            ServiceQuestion::Ps => "ps",
            ServiceQuestion::Why(_) => "why",
            ServiceQuestion::Resolve(_) => "resolve",
            ServiceQuestion::Stop(_) => "stop",
            ServiceQuestion::Remove(_) | ServiceQuestion::RemoveButState(_) => "rm",
            ServiceQuestion::RollBack(_) => "rollback",
            ServiceQuestion::Restart(_) => "restart",
            ServiceQuestion::Scale(..) => "scale",
        };
        let op = |asker| async move {
            let reply = answer(asker, question, me, size).await;
            Outcome::Answer { ask, reply }
        };
        self.start(name, op, cx);
    }
}

async fn answer(asker: Asker, question: ServiceQuestion, me: NodeId, size: u64) -> ServiceAnswer {
    match question {
        ServiceQuestion::Nodes => ServiceAnswer::Nodes(describe(&asker, None).await),
        ServiceQuestion::Ports => {
            let (parts, _) = cast(&asker, CastBody::Ports).await;
            let ports = parts.into_iter().filter_map(|part| match part {
                CastPart::Ports(ports) => Some(ports),
                _ => None,
            });
            ServiceAnswer::Ports(ports.flatten().collect())
        }
        ServiceQuestion::Plan(spec) => plan(&asker, &spec).await,
        ServiceQuestion::Deploy(spec) => deploy(&asker, spec, me, size).await,
        ServiceQuestion::Ps => {
            let (parts, complete) = cast(&asker, CastBody::Services).await;
            let views = parts.into_iter().filter_map(|part| match part {
                CastPart::Services(views) => Some(views),
                _ => None,
            });
            ServiceAnswer::Ps { views: newest(views.flatten().collect()), complete }
        }
        ServiceQuestion::Why(name) => {
            let service = key_of(&name);
            match manager(&asker, service, Request::Why { service }).await {
                Some(Response::Why(lines)) => ServiceAnswer::Why(lines),
                Some(Response::Unknown) => ServiceAnswer::Unknown,
                _ => ServiceAnswer::Failed(NOBODY.to_string()),
            }
        }
        ServiceQuestion::Resolve(name) => {
            let service = key_of(&name);
            match manager(&asker, service, Request::Query { service, seen: 0 }).await {
                // What was removed is not merely stopped.
                Some(Response::View(view))
                    if view.desired.is_removed() && view.slots.is_empty() =>
                {
                    ServiceAnswer::Unknown
                }
                Some(Response::View(view)) => ServiceAnswer::Resolved(view),
                Some(Response::Unknown) => ServiceAnswer::Unknown,
                _ => ServiceAnswer::Failed(NOBODY.to_string()),
            }
        }
        ServiceQuestion::Stop(name) => end(&asker, &name, Desired::Stopped, size, me).await,
        ServiceQuestion::Remove(name) => end(&asker, &name, Desired::Removed, size, me).await,
        ServiceQuestion::RemoveButState(name) => {
            end(&asker, &name, Desired::RemovedButState, size, me).await
        }
        ServiceQuestion::RollBack(name) => roll_back(&asker, &name, me, size).await,
        ServiceQuestion::Restart(name) => change::restart(&asker, &name, me, size).await,
        ServiceQuestion::Scale(name, count) => change::scale(&asker, &name, count, me, size).await,
    }
}

/// Two nodes may both claim a service while the ring moves: the higher term counts.
fn newest(views: Vec<ServiceView>) -> Vec<ServiceView> {
    let mut out: Vec<ServiceView> = Vec::new();
    for view in views {
        match out.iter_mut().find(|known| known.service == view.service) {
            Some(known) if known.revision < view.revision => *known = view,
            Some(_) => {}
            None => out.push(view),
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

async fn cast(asker: &Asker, body: CastBody) -> (Vec<CastPart>, bool) {
    let (parts, complete) = asker.cast(body).await;
    (parts.iter().filter_map(|part| postcard::from_bytes(part).ok()).collect(), complete)
}

async fn describe(asker: &Asker, spec: Option<&Spec>) -> Vec<Description> {
    let trees = spec.map(allocator::marks);
    let programs = spec.map(allocator::programs).unwrap_or_default();
    let body = CastBody::Describe { trees: trees.unwrap_or_default(), programs };
    descriptions(&asker.cast(body).await.0)
}

/// Asks whoever manages the service, again while the ring moves.
async fn manager(asker: &Asker, service: Key, request: Request) -> Option<Response> {
    for _ in 0..6 {
        if let Some(owner) = asker.find(service).await {
            match asker.call(owner, request.clone()).await {
                Some(Response::NotManager) | None => {}
                Some(response) => return Some(response),
            }
        }
        asker.sleep(AGAIN).await;
    }
    None
}

async fn plan(asker: &Asker, spec: &Spec) -> ServiceAnswer {
    if let Some(taken) = port_taken(asker, spec).await {
        return ServiceAnswer::Unmet(Vec::from([taken]));
    }
    let nodes = describe(asker, Some(spec)).await;
    let none = Set::new();
    // What runs stays where it is, also through an update, if the new version can run there.
    let now = view_of(asker, spec.key(), 0).await;
    // Only its manager knows the load.
    let loaded = now.as_ref().filter(|now| now.scale.is_some_and(|s| spec.want == Want::Load(s)));
    let loaded = loaded.map(|now| (now.want, now.because.clone()));
    let mut stay = places(now);
    stay.retain(|place| {
        let node = nodes.iter().find(|node| node.peer.id == place.node);
        node.is_none_or(|node| allocator::unfit(spec, node).is_none())
    });
    let staying: Vec<NodeId> = stay.iter().map(|place| place.node).collect();
    let mut sum = review::sum(spec, &nodes, &staying);
    if let Some((want, because)) = loaded {
        (sum.count, sum.because) = (want, because);
    }
    let want = sum.count;
    stay.truncate(usize::from(want));
    let taken: Set<NodeId> = stay.iter().map(|place| place.node).collect();
    let mut choice = allocator::choose(spec, &nodes, &taken, &none);
    choice.refused.retain(|(node, ..)| !taken.contains(node));
    stay.append(&mut choice.candidates);
    choice.candidates = stay;
    let mut notes = Vec::new();
    let found = choice.candidates.len();
    if found < usize::from(want) {
        notes.push(format!("{found} of {want} replicas have a place now"));
    }
    for spare in choice.candidates.split_off(found.min(usize::from(want))) {
        choice.refused.push((spare.node, spare.name, "not needed".to_string()));
    }
    let homes = |node: NodeId| nodes.iter().find(|n| n.peer.id == node).map(|n| n.profile.home);
    let mut used: Vec<_> = choice.candidates.iter().map(|c| homes(c.node)).collect();
    used.sort_unstable();
    used.dedup();
    if used.len() < choice.candidates.len() {
        notes.push("some replicas share a home: no other home has room".to_string());
    }
    let Sum { because, predicted, .. } = sum;
    ServiceAnswer::Plan { want, because, predicted, choice, notes }
}

/// Where a service runs now.
fn places(view: Option<ServiceView>) -> Vec<Candidate> {
    let running = view.filter(|view| view.desired == Desired::Running);
    let slots = running.into_iter().flat_map(|view| view.slots);
    let live = slots.filter(|slot| {
        matches!(slot.state, ReplicaState::Reserved | ReplicaState::Starting | ReplicaState::Ready)
    });
    live.map(|slot| Candidate {
        node: slot.node,
        name: slot.node_name,
        why: format!("replica {} runs there", slot.number),
    })
    .collect()
}

async fn deploy(asker: &Asker, spec: Spec, me: NodeId, size: u64) -> ServiceAnswer {
    let service = spec.key();
    let Ok(known) = asker.get((service, SPEC.to_vec())).await else {
        return ServiceAnswer::Failed(NOBODY.to_string());
    };
    let old = known.as_ref().and_then(decode);
    let running = old.as_ref().filter(|old| old.desired == Desired::Running);
    if running.is_some_and(|old| old.spec == spec) {
        let generation = running.map_or(0, |old| old.generation);
        return wait_ready(asker, service, generation).await;
    }
    if let Some(taken) = port_taken(asker, &spec).await {
        return ServiceAnswer::Unmet(Vec::from([taken]));
    }
    if running.is_none() {
        if let Some(unmet) = impossible(asker, &spec).await {
            return unmet;
        }
    }
    let before: Option<Service> = previous(asker, service).await;
    let kept: Vec<&Spec> = old.iter().chain(&before).map(|service| &service.spec).collect();
    if let Err(reasons) = store_packages(asker, &spec).await {
        // Nobody shall go on trying to keep what was refused.
        forget_packages(asker, &spec, &kept).await;
        return ServiceAnswer::Unmet(reasons);
    }
    let generation = next_generation(known.as_ref(), old.as_ref());
    let new = Service { spec, generation, desired: Desired::Running, deployed_from: me };
    // Before the new one counts: it may have to be taken back at once.
    if let Some(old) = running {
        if !store_previous(asker, old, me).await {
            return ServiceAnswer::Failed(NO_ROOM.to_string());
        }
    }
    match store(asker, &new, known.as_ref(), me, size).await {
        Stored::Yes => {}
        Stored::No => return ServiceAnswer::Failed(NO_ROOM.to_string()),
        Stored::Taken(other) => {
            let theirs = other.filter(|theirs| theirs.desired == Desired::Running);
            if theirs.as_ref().is_some_and(|theirs| theirs.spec == new.spec) {
                return wait_ready(asker, service, 0).await;
            }
            let kept: Vec<&Spec> =
                kept.into_iter().chain(theirs.as_ref().map(|t| &t.spec)).collect();
            forget_packages(asker, &new.spec, &kept).await;
            return ServiceAnswer::Conflict(conflict(&new.spec.name, theirs.as_ref()));
        }
    }
    // The one before stays, for a rollback; what was before that goes.
    if let (Some(_), Some(before)) = (running, &before) {
        let kept: Vec<&Spec> = old.iter().map(|o| &o.spec).chain([&new.spec]).collect();
        forget_packages(asker, &before.spec, &kept).await;
    }
    wait_ready(asker, service, generation).await
}

/// Grows with every deploy, also after a version was taken back.
fn next_generation(known: Option<&Record>, old: Option<&Service>) -> u64 {
    let written = known.map_or(0, |record| record.version.counter);
    old.map_or(0, |old| old.generation).max(written).saturating_add(1)
}

async fn previous(asker: &Asker, service: Key) -> Option<Service> {
    let record = asker.get((service, PREVIOUS.to_vec())).await.ok().flatten()?;
    decode(&record).filter(|previous| previous.spec.key() == service && previous.fits())
}

async fn store_previous(asker: &Asker, old: &Service, me: NodeId) -> bool {
    let (key, name) = (old.spec.key(), PREVIOUS.to_vec());
    let Ok(known) = asker.get((key, name.clone())).await else { return false };
    let counter = known.map_or(0, |record| record.version.counter).saturating_add(1);
    let version = Version { counter, author: me };
    let value = postcard::to_allocvec(old).ok();
    !asker.put(Record { key, name, version, value }, 1).await.is_empty()
}

fn conflict(name: &str, theirs: Option<&Service>) -> String {
    match theirs {
        Some(theirs) => format!(
            "{name} was deployed by node {} at the same time, as version {}: that one counts; \
             look at it with `dugnad ps`, and deploy again if yours is to take its place",
            theirs.deployed_from.short(),
            theirs.generation
        ),
        None => format!(
            "{name} was changed by somebody else at the same time; see `dugnad ps`, then try again"
        ),
    }
}

/// Which other service has the port this one wants, if so.
async fn port_taken(asker: &Asker, spec: &Spec) -> Option<String> {
    let port = spec.port.of_every_node()?;
    let (parts, _) = cast(asker, CastBody::Ports).await;
    let ports = parts.into_iter().filter_map(|part| match part {
        CastPart::Ports(ports) => Some(ports),
        _ => None,
    });
    let (holder, _) = ports.flatten().find(|(name, taken)| *taken == port && *name != spec.name)?;
    Some(format!(
        "{port} belongs to the service {holder}; choose another in [port], or end that \
         one: dugnad stop {holder}"
    ))
}

/// The version before is deployed again, as a new one.
async fn roll_back(asker: &Asker, name: &str, me: NodeId, size: u64) -> ServiceAnswer {
    let service = key_of(name);
    let Ok(known) = asker.get((service, SPEC.to_vec())).await else {
        return ServiceAnswer::Failed(NOBODY.to_string());
    };
    let old = known.as_ref().and_then(decode).filter(|old| old.desired == Desired::Running);
    let Some(old) = old else { return ServiceAnswer::Unknown };
    let before = previous(asker, service).await;
    let Some(before) = before.filter(|before| before.generation != old.generation) else {
        let text = format!(
            "no version before version {} of {name} is kept; deploy the one you want",
            old.generation
        );
        return ServiceAnswer::Failed(text);
    };
    let generation = next_generation(known.as_ref(), Some(&old));
    let new = Service { generation, desired: Desired::Running, ..before };
    if !store_previous(asker, &old, me).await {
        return ServiceAnswer::Failed(NO_ROOM.to_string());
    }
    match store(asker, &new, known.as_ref(), me, size).await {
        Stored::Yes => wait_ready(asker, service, generation).await,
        Stored::No => ServiceAnswer::Failed(NO_ROOM.to_string()),
        Stored::Taken(other) => ServiceAnswer::Conflict(conflict(name, other.as_ref())),
    }
}

fn decode(record: &Record) -> Option<Service> {
    postcard::from_bytes(record.value.as_ref()?).ok()
}

/// Where no node at all can run it, nothing is stored: one line a reason.
async fn impossible(asker: &Asker, spec: &Spec) -> Option<ServiceAnswer> {
    let nodes = describe(asker, Some(spec)).await;
    let none = Set::new();
    let choice = allocator::choose(spec, &nodes, &none, &none);
    if !choice.candidates.is_empty() {
        return None;
    }
    let line = |(_, name, reason): &(NodeId, String, String)| format!("{name}: {reason}");
    Some(ServiceAnswer::Unmet(choice.refused.iter().map(line).collect()))
}

/// The packages of a service, each once.
fn distinct_trees(spec: &Spec) -> Vec<Tree> {
    let mut trees: Vec<Tree> = spec.artifacts.iter().map(|(_, tree)| *tree).collect();
    trees.sort_unstable();
    trees.dedup();
    trees
}

/// Has the community keep the packages of a service.
async fn store_packages(asker: &Asker, spec: &Spec) -> Result<(), Vec<String>> {
    let (service, trees) = (spec.key(), distinct_trees(spec));
    asker.packages(packages::Question::Store { service, trees }).await
}

/// Lets go of the packages that `old` needed and none of `kept` does.
pub(super) async fn forget_packages(asker: &Asker, old: &Spec, kept: &[&Spec]) {
    let kept: Vec<Tree> = kept.iter().flat_map(|spec| distinct_trees(spec)).collect();
    let mut trees = distinct_trees(old);
    trees.retain(|tree| !kept.contains(tree));
    let service = old.key();
    // What is not forgotten now wastes room until the service is removed; nothing else depends on
    // it.
    _ = asker.packages(packages::Question::Forget { service, trees }).await;
}

/// How a write of the service's record ended.
enum Stored {
    Yes,
    /// Not on enough disks.
    No,
    /// Somebody else wrote first.
    Taken(Option<Service>),
}

/// Writes the record, if what was `known` is still what counts: the owner of its key decides.
async fn store(
    asker: &Asker,
    service: &Service,
    known: Option<&Record>,
    me: NodeId,
    size: u64,
) -> Stored {
    let expected = known.map_or(0, |record| record.version.counter);
    let record = Record {
        key: service.spec.key(),
        name: SPEC.to_vec(),
        version: Version { counter: expected.saturating_add(1), author: me },
        value: postcard::to_allocvec(service).ok(),
    };
    let enough = usize::try_from(size).unwrap_or(usize::MAX).min(RECORD_COPIES);
    match asker.records(Question::Claim { record, expected, enough }).await {
        Answer::Stored(holders) if !holders.is_empty() => Stored::Yes,
        Answer::Taken(theirs) => Stored::Taken(theirs.as_ref().and_then(decode)),
        _ => Stored::No,
    }
}

/// Why the manager was not followed any longer.
enum Ended {
    /// Nothing changes any more; what was seen last.
    Quiet(Option<ServiceView>),
    /// The version was given up.
    Failed { view: ServiceView, failed: Failed },
}

/// Follows the manager until `done` says so, nothing changes any more, or the version that is
/// waited for was given up.
async fn follow(
    asker: &Asker,
    service: Key,
    waits_for: Option<u64>,
    done: impl Fn(&ServiceView) -> bool,
) -> Result<ServiceView, Ended> {
    let (mut seen, mut quiet, mut again) = (0, 0, 0);
    let mut last: Option<ServiceView> = None;
    while quiet < QUIET_POLLS && again < AGAIN_MAX {
        let Some(view) = view_of(asker, service, seen).await else {
            again += 1;
            asker.sleep(AGAIN).await;
            continue;
        };
        if done(&view) {
            return Ok(view);
        }
        if let Some(generation) = waits_for {
            if let Some(failed) = given_up(asker, service, generation).await {
                // The manager writes that down before it goes back to the version before.
                asker.sleep(AGAIN).await;
                let view = view_of(asker, service, 0).await.unwrap_or(view);
                return Err(Ended::Failed { view, failed });
            }
        }
        quiet = if view.revision == seen { quiet + 1 } else { 0 };
        seen = view.revision;
        let starting =
            |s: ReplicaState| matches!(s, ReplicaState::Reserved | ReplicaState::Starting);
        let moving = view.slots.iter().any(|slot| starting(slot.state));
        if !view.blocked.is_empty() && !moving && quiet >= BLOCKED_POLLS {
            return Err(Ended::Quiet(Some(view)));
        }
        last = Some(view);
    }
    Err(Ended::Quiet(last))
}

/// What the manager says, as soon as it differs from revision `seen`.
async fn view_of(asker: &Asker, service: Key, seen: u64) -> Option<ServiceView> {
    let owner = asker.find(service).await?;
    match asker.call(owner, Request::Query { service, seen }).await {
        Some(Response::View(view)) => Some(view),
        _ => None,
    }
}

/// What the manager wrote down when it gave this version up, if it did.
async fn given_up(asker: &Asker, service: Key, generation: u64) -> Option<Failed> {
    let record = asker.get((service, FAILED.to_vec())).await.ok().flatten()?;
    let failed: Failed = postcard::from_bytes(record.value.as_ref()?).ok()?;
    (failed.generation == generation).then_some(failed)
}

async fn wait_ready(asker: &Asker, service: Key, generation: u64) -> ServiceAnswer {
    let current = |view: &ServiceView| {
        let of =
            |slot: &&Slot| slot.state == ReplicaState::Ready && slot.generation == view.generation;
        view.slots.iter().filter(of).count() >= usize::from(view.want)
    };
    let ready = |view: &ServiceView| view.generation >= generation && current(view);
    match follow(asker, service, Some(generation), ready).await {
        Ok(view) => {
            let short = view.predicted.filter(|predicted| !predicted.enough);
            let missing = short.map(|_| view.because.clone()).into_iter().collect();
            ServiceAnswer::Deployed { view, missing }
        }
        Err(Ended::Failed { view, failed }) => ServiceAnswer::Failed(gave_up(&view, &failed)),
        Err(Ended::Quiet(Some(view))) => not_ready(view),
        Err(Ended::Quiet(None)) => ServiceAnswer::Failed(NOBODY.to_string()),
    }
}

/// What is missing of a service nothing more happens with.
fn not_ready(view: ServiceView) -> ServiceAnswer {
    let mut missing = view.blocked.clone();
    for slot in view.slots.iter().filter(|slot| slot.state != ReplicaState::Ready) {
        let (number, name, note) = (slot.number, &slot.node_name, &slot.note);
        missing.push(format!("replica {number} on {name} is not ready {note}"));
    }
    if missing.is_empty() {
        missing.push(format!("{} of {} replicas are ready", view.ready, view.want));
    }
    ServiceAnswer::Deployed { view, missing }
}

fn gave_up(view: &ServiceView, failed: &Failed) -> String {
    let (name, version, why) = (&view.name, failed.generation, failed.told());
    if view.generation == failed.generation {
        return format!(
            "{name} does not get ready {why}\nit is tried again on other nodes; give it up with \
             `dugnad rm {name}`, or deploy a version that works"
        );
    }
    let stays = view.generation;
    format!("version {version} of {name} did not get ready {why}\nversion {stays} stays")
}

async fn end(asker: &Asker, name: &str, desired: Desired, size: u64, me: NodeId) -> ServiceAnswer {
    let service = key_of(name);
    let Ok(known) = asker.get((service, SPEC.to_vec())).await else {
        return ServiceAnswer::Failed(NOBODY.to_string());
    };
    let Some(old) = known.as_ref().and_then(decode) else { return ServiceAnswer::Unknown };
    if old.desired.is_removed() {
        return ServiceAnswer::Unknown;
    }
    let generation = next_generation(known.as_ref(), Some(&old));
    let new = Service { desired, generation, ..old };
    match store(asker, &new, known.as_ref(), me, size).await {
        Stored::Yes => {}
        Stored::No => return ServiceAnswer::Failed(NO_ROOM.to_string()),
        Stored::Taken(other) => return ServiceAnswer::Conflict(conflict(name, other.as_ref())),
    }
    if desired.is_removed() {
        forget_packages(asker, &new.spec, &[]).await;
        if let Some(before) = previous(asker, service).await {
            forget_packages(asker, &before.spec, &[]).await;
        }
    }
    let over = |view: &ServiceView| view.generation >= generation && view.slots.is_empty();
    match follow(asker, service, None, over).await {
        Ok(_) => ServiceAnswer::Done,
        Err(_) => ServiceAnswer::Failed(
            "not every replica said that it stopped; see `dugnad ps`".to_string(),
        ),
    }
}
