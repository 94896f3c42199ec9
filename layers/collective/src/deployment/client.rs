//! How a person, or the gateway of any node, asks the community (paper 3.4.4, service client).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::{Cx, Duration, Key, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::{Spec, Tree, key_of};

use super::allocator::{self, Choice};
use super::deployer;
use super::manager::{View, descriptions};
use super::service::{Desired, SPEC, Service, SlotState};
use super::trees::{Needed, name_for};
use crate::cast::{CastBody, CastPart};
use crate::persistence::put::{get, owners, put};
use crate::persistence::record::{Record, Version};
use crate::{Ask, Asker, AskerExt, Collective, Event, Outcome, Reply, Request, Response};

/// Nodes that must have a service's record on disk before a deploy counts: the node that was
/// asked may die the moment it answered.
const RECORD_COPIES: usize = 3;
/// Nodes that must hold its packages, the asked one included.
const TREE_COPIES: usize = 2;
/// How long all owners are waited for, and how long [`TREE_COPIES`].
const TREE_QUICK: Duration = Duration::from_secs(3);
const TREE_LIMIT: Duration = Duration::from_secs(300);
/// Answers without news (1.5 s each) after which a wait ends.
const QUIET_POLLS: u32 = 40;
const BLOCKED_POLLS: u32 = 2;
/// Pause before a manager that moved is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: u32 = 150;

#[derive(Clone, Debug)]
pub enum ClientQuestion {
    Nodes,
    Ports,
    Plan(Spec),
    Deploy(Spec),
    Ps,
    Why(String),
    Resolve(String),
    Stop(String),
    Remove(String),
}

#[derive(Clone, Debug)]
pub enum ClientReply {
    Nodes(Vec<Description>),
    Ports(Vec<(String, u16)>),
    Plan { want: u8, because: String, choice: Choice, notes: Vec<String> },
    Deployed { view: View, missing: Vec<String> },
    Ps { views: Vec<View>, complete: bool },
    Why(Vec<String>),
    Resolved(View),
    Done,
    Unmet(Vec<String>),
    Unknown,
    Failed(String),
}

const NO_COPY: &str = "no other node took a copy of the package in time; see `dugnad nodes`";
const NOBODY: &str = "no node answers for the service's place on the ring; \
    see `dugnad status` and try again";

impl Collective {
    pub(crate) fn on_ask(&mut self, ask: u64, question: ClientQuestion, cx: &mut Cx<'_, Self>) {
        if self.place.range.is_none() {
            let text = "this node is not in the ring yet; see `dugnad status`".to_string();
            cx.emit(Event::Answer { ask, reply: ClientReply::Failed(text) });
            return;
        }
        let (me, size, seed) = (self.me, self.place.size, cx.rng.u64(..));
        let name = match &question {
            ClientQuestion::Nodes => "nodes",
            ClientQuestion::Ports => "ports",
            ClientQuestion::Plan(_) => "plan",
            ClientQuestion::Deploy(_) => "deploy",
            ClientQuestion::Ps => "ps",
            ClientQuestion::Why(_) => "why",
            ClientQuestion::Resolve(_) => "resolve",
            ClientQuestion::Stop(_) => "stop",
            ClientQuestion::Remove(_) => "rm",
        };
        let op = |asker| async move {
            let reply = answer(asker, question, me, size, seed).await;
            Outcome::Answer { ask, reply }
        };
        self.start(name, op, cx);
    }
}

async fn answer(
    asker: Asker,
    question: ClientQuestion,
    me: NodeId,
    size: u64,
    seed: u64,
) -> ClientReply {
    match question {
        ClientQuestion::Nodes => ClientReply::Nodes(describe(&asker, None).await),
        ClientQuestion::Ports => {
            let (parts, _) = cast(&asker, CastBody::Ports).await;
            let ports = parts.into_iter().filter_map(|part| match part {
                CastPart::Ports(ports) => Some(ports),
                CastPart::Node(_) | CastPart::Services(_) => None,
            });
            ClientReply::Ports(ports.flatten().collect())
        }
        ClientQuestion::Plan(spec) => plan(&asker, &spec, seed).await,
        ClientQuestion::Deploy(spec) => deploy(&asker, spec, me, size, seed).await,
        ClientQuestion::Ps => {
            let (parts, complete) = cast(&asker, CastBody::Services).await;
            let views = parts.into_iter().filter_map(|part| match part {
                CastPart::Services(views) => Some(views),
                CastPart::Node(_) | CastPart::Ports(_) => None,
            });
            ClientReply::Ps { views: newest(views.flatten().collect()), complete }
        }
        ClientQuestion::Why(name) => {
            let service = key_of(&name);
            match manager(&asker, service, Request::Why { service }).await {
                Some(Response::Why(lines)) => ClientReply::Why(lines),
                Some(Response::Unknown) => ClientReply::Unknown,
                _ => ClientReply::Failed(NOBODY.to_string()),
            }
        }
        ClientQuestion::Resolve(name) => {
            let service = key_of(&name);
            match manager(&asker, service, Request::Query { service, seen: 0 }).await {
                Some(Response::View(view)) => ClientReply::Resolved(view),
                Some(Response::Unknown) => ClientReply::Unknown,
                _ => ClientReply::Failed(NOBODY.to_string()),
            }
        }
        ClientQuestion::Stop(name) => end(&asker, &name, Desired::Stopped, size, me).await,
        ClientQuestion::Remove(name) => end(&asker, &name, Desired::Removed, size, me).await,
    }
}

/// Two nodes may both claim a service while the ring moves: the higher term counts.
fn newest(views: Vec<View>) -> Vec<View> {
    let mut out: Vec<View> = Vec::new();
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
    match asker.ask(Ask::Cast(body)).await {
        Reply::Parts { parts, complete } => {
            let parts = parts.iter().filter_map(|part| postcard::from_bytes(part).ok()).collect();
            (parts, complete)
        }
        _ => (Vec::new(), false),
    }
}

async fn describe(asker: &Asker, spec: Option<&Spec>) -> Vec<Description> {
    let trees = spec.map(|spec| spec.artifacts.iter().map(|(_, tree)| tree.root).collect());
    let program = spec.and_then(Spec::host_program).map(ToString::to_string);
    let body = CastBody::Describe { trees: trees.unwrap_or_default(), program };
    match asker.ask(Ask::Cast(body)).await {
        Reply::Parts { parts, .. } => descriptions(&parts),
        _ => Vec::new(),
    }
}

/// Asks whoever manages the service, again while the ring moves.
async fn manager(asker: &Asker, service: Key, request: Request) -> Option<Response> {
    for _ in 0..6 {
        let owner = asker.ask(Ask::Find(service)).await.owner();
        if let Some(owner) = owner {
            match asker.call(owner, request.clone()).await {
                Reply::Response(Some(Response::NotManager) | None) => {}
                Reply::Response(Some(response)) => return Some(response),
                _ => {}
            }
        }
        asker.ask(Ask::Sleep(AGAIN)).await;
    }
    None
}

async fn plan(asker: &Asker, spec: &Spec, seed: u64) -> ClientReply {
    let nodes = describe(asker, Some(spec)).await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let none = BTreeSet::new();
    let mut choice = allocator::choose(spec, &nodes, &none, &none, &mut rng);
    let (want, because) = deployer::replicas(spec.want);
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
    ClientReply::Plan { want, because, choice, notes }
}

async fn deploy(asker: &Asker, spec: Spec, me: NodeId, size: u64, seed: u64) -> ClientReply {
    let service = spec.key();
    let Ok(known) = get(asker, (service, SPEC.to_vec())).await else {
        return ClientReply::Failed(NOBODY.to_string());
    };
    let old = known.as_ref().and_then(decode);
    let running = old.as_ref().filter(|old| old.desired == Desired::Running);
    if running.is_some_and(|old| old.spec == spec) {
        let generation = running.map_or(0, |old| old.generation);
        return wait_ready(asker, service, generation).await;
    }
    if running.is_none() {
        if let Some(unmet) = impossible(asker, &spec, seed).await {
            return unmet;
        }
    }
    if let Err(reasons) = store_trees(asker, &spec, me, size).await {
        // Nobody shall go on trying to keep what was refused.
        forget_trees(asker, &spec, old.as_ref().map(|old| &old.spec), me).await;
        return ClientReply::Unmet(reasons);
    }
    let generation = old.as_ref().map_or(0, |old| old.generation).saturating_add(1);
    let new = Service { spec, generation, desired: Desired::Running, deployed_from: me };
    if !store(asker, &new, known.as_ref(), me, size).await {
        return ClientReply::Failed(
            "the service could not be written to disk on enough nodes; see `dugnad status`"
                .to_string(),
        );
    }
    if let Some(old) = &old {
        forget_trees(asker, &old.spec, Some(&new.spec), me).await;
    }
    wait_ready(asker, service, generation).await
}

fn decode(record: &Record) -> Option<Service> {
    postcard::from_bytes(record.value.as_ref()?).ok()
}

/// Where no node at all can run it, nothing is stored: one line a reason.
async fn impossible(asker: &Asker, spec: &Spec, seed: u64) -> Option<ClientReply> {
    let nodes = describe(asker, Some(spec)).await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let none = BTreeSet::new();
    let choice = allocator::choose(spec, &nodes, &none, &none, &mut rng);
    if !choice.candidates.is_empty() {
        return None;
    }
    let line = |(_, name, reason): &(NodeId, String, String)| format!("{name}: {reason}");
    Some(ClientReply::Unmet(choice.refused.iter().map(line).collect()))
}

/// Writes the records of the packages and waits until other nodes hold the bytes: all owners of
/// the tree's class if they are quick, enough to survive the asked node in any case.
async fn store_trees(asker: &Asker, spec: &Spec, me: NodeId, size: u64) -> Result<(), Vec<String>> {
    let enough = TREE_COPIES.min(usize::try_from(size).unwrap_or(usize::MAX));
    for tree in distinct_trees(spec) {
        let root = tree.root;
        let mut all = owners(asker, tree.key()).await;
        all.insert(me);
        // Asked before the record is out: the first holder may be quicker than the writing. Where
        // all places are mine that is the mirror, so one other is waited for in any case.
        let (known, quick) = (BTreeSet::from([me]), all.len().max(enough));
        let wait = asker.ask(Ask::Holders { root, known, enough: quick, limit: TREE_QUICK });
        let name = name_for(spec.key());
        let record = get(asker, (tree.key(), name.clone())).await.ok().flatten();
        let counter = record.map_or(0, |record| record.version.counter).saturating_add(1);
        let value = postcard::to_allocvec(&Needed { tree, origin: me }).ok();
        let version = Version { counter, author: me };
        let record = Record { key: tree.key(), name, version, value };
        if put(asker.clone(), record, enough).await.is_empty() {
            return Err(Vec::from([NO_COPY.to_string()]));
        }
        let Reply::Holders { holders, refused } = wait.await else { return Ok(()) };
        if holders.len() >= enough {
            continue;
        }
        if holders.len() + refused.len() >= quick && !refused.is_empty() {
            return Err(no_room(&refused));
        }
        let wait = asker.ask(Ask::Holders { root, known: holders, enough, limit: TREE_LIMIT });
        match wait.await {
            Reply::Holders { holders, .. } if holders.len() >= enough => {}
            Reply::Holders { refused, .. } if !refused.is_empty() => return Err(no_room(&refused)),
            _ => return Err(Vec::from([NO_COPY.to_string()])),
        }
    }
    Ok(())
}

/// Why nobody else keeps the package, a line a node.
fn no_room(refused: &BTreeMap<NodeId, String>) -> Vec<String> {
    let line = |(node, reason): (&NodeId, &String)| {
        format!("{} cannot keep a copy of the package: {reason}", node.short())
    };
    refused.iter().map(line).collect()
}

fn distinct_trees(spec: &Spec) -> Vec<Tree> {
    let mut trees: Vec<Tree> = spec.artifacts.iter().map(|(_, tree)| *tree).collect();
    trees.sort_unstable();
    trees.dedup();
    trees
}

/// Tombstones for packages that `old` needed and `new` does not.
async fn forget_trees(asker: &Asker, old: &Spec, new: Option<&Spec>, me: NodeId) {
    let kept = new.map(distinct_trees).unwrap_or_default();
    for tree in distinct_trees(old).into_iter().filter(|tree| !kept.contains(tree)) {
        let name = name_for(old.key());
        let Ok(Some(known)) = get(asker, (tree.key(), name.clone())).await else { continue };
        let version = Version { counter: known.version.counter.saturating_add(1), author: me };
        put(asker.clone(), Record { key: tree.key(), name, version, value: None }, 1).await;
    }
}

async fn store(
    asker: &Asker,
    service: &Service,
    known: Option<&Record>,
    me: NodeId,
    size: u64,
) -> bool {
    let counter = known.map_or(0, |record| record.version.counter).saturating_add(1);
    let record = Record {
        key: service.spec.key(),
        name: SPEC.to_vec(),
        version: Version { counter, author: me },
        value: postcard::to_allocvec(service).ok(),
    };
    let enough = RECORD_COPIES.min(usize::try_from(size).unwrap_or(usize::MAX));
    !put(asker.clone(), record, enough).await.is_empty()
}

/// Follows the manager until `done` says so, or nothing changes any more.
async fn follow(
    asker: &Asker,
    service: Key,
    done: impl Fn(&View) -> bool,
) -> Result<View, Option<View>> {
    let (mut seen, mut quiet, mut again) = (0, 0, 0);
    let mut last: Option<View> = None;
    while quiet < QUIET_POLLS && again < AGAIN_MAX {
        let owner = asker.ask(Ask::Find(service)).await.owner();
        let answer = match owner {
            Some(owner) => asker.call(owner, Request::Query { service, seen }).await,
            None => Reply::Response(None),
        };
        let Reply::Response(Some(Response::View(view))) = answer else {
            again += 1;
            asker.ask(Ask::Sleep(AGAIN)).await;
            continue;
        };
        if done(&view) {
            return Ok(view);
        }
        quiet = if view.revision == seen { quiet + 1 } else { 0 };
        seen = view.revision;
        let starting = |s: SlotState| matches!(s, SlotState::Reserved | SlotState::Starting);
        let moving = view.slots.iter().any(|slot| starting(slot.state));
        if !view.blocked.is_empty() && !moving && quiet >= BLOCKED_POLLS {
            return Err(Some(view));
        }
        last = Some(view);
    }
    Err(last)
}

async fn wait_ready(asker: &Asker, service: Key, generation: u64) -> ClientReply {
    let ready = |view: &View| view.generation >= generation && view.ready >= view.want;
    match follow(asker, service, ready).await {
        Ok(view) => ClientReply::Deployed { view, missing: Vec::new() },
        Err(Some(view)) => {
            let mut missing = view.blocked.clone();
            for slot in view.slots.iter().filter(|slot| slot.state != SlotState::Ready) {
                let (number, name, note) = (slot.number, &slot.node_name, &slot.note);
                missing.push(format!("replica {number} on {name} is not ready {note}"));
            }
            if missing.is_empty() {
                missing.push(format!("{} of {} replicas are ready", view.ready, view.want));
            }
            ClientReply::Deployed { view, missing }
        }
        Err(None) => ClientReply::Failed(NOBODY.to_string()),
    }
}

async fn end(asker: &Asker, name: &str, desired: Desired, size: u64, me: NodeId) -> ClientReply {
    let service = key_of(name);
    let Ok(known) = get(asker, (service, SPEC.to_vec())).await else {
        return ClientReply::Failed(NOBODY.to_string());
    };
    let Some(old) = known.as_ref().and_then(decode) else { return ClientReply::Unknown };
    if old.desired == Desired::Removed {
        return ClientReply::Unknown;
    }
    let generation = old.generation.saturating_add(1);
    let new = Service { desired, generation, ..old };
    if !store(asker, &new, known.as_ref(), me, size).await {
        return ClientReply::Failed(
            "it could not be written to disk on enough nodes; see `dugnad status`".to_string(),
        );
    }
    if desired == Desired::Removed {
        forget_trees(asker, &new.spec, None, me).await;
    }
    let over = |view: &View| view.generation >= generation && view.slots.is_empty();
    match follow(asker, service, over).await {
        Ok(_) => ClientReply::Done,
        Err(_) => ClientReply::Failed(
            "not every replica said that it stopped; see `dugnad ps`".to_string(),
        ),
    }
}
