//! The JSON that scripts rely on. Keys are only ever added.

use std::time::{SystemTime, UNIX_EPOCH};

use dugnad_fabric::Amounts;
use dugnad_kernel::NodeId;
use dugnad_kernel::map::Map;
use dugnad_node::{
    Answer, Brief, GroupMode, GroupPolicy, GroupView, Happened, NodeState, NodeView, PlanView,
    ProspectAnswer, ReplicaState, ServiceView, Slot, Status,
};
use dugnad_resource::condition::Value as Attribute;
use dugnad_resource::describe::Description;
use dugnad_resource::spec::{Arch, Port, Tree};
use serde_json::{Value, json};

use super::exit;
use crate::host::Kept;
use crate::places::Taken;

/// What the agent knows of itself beside the node's [`Status`].
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) community: String,
    pub(crate) version: &'static str,
    pub(crate) arch: Arch,
    /// Resident memory of the agent, in bytes.
    pub(crate) memory_bytes: u64,
    pub(crate) up_secs: u64,
    /// Where it really listens.
    pub(crate) overlay: String,
    /// `None` is off.
    pub(crate) gateway: Option<String>,
    /// `Config::not_enforced`.
    pub(crate) not_enforced: Vec<String>,
    /// How services are held to their limits and kept in, one line each.
    pub(crate) services: Vec<String>,
    /// Every replica here, as its host sees it.
    pub(crate) running: Vec<Value>,
    /// Addresses that were dialled without knowing who is there, and how that went.
    pub(crate) seeds: Vec<String>,
    /// Anything else its owner should know, one line each.
    pub(crate) warnings: Vec<String>,
    /// State that stopped replicas left here.
    pub(crate) kept_state: Vec<Kept>,
    /// How many may hold this node's connections, and how many do: what, per whom, how many.
    pub(crate) limits: Vec<(&'static str, &'static str, Taken)>,
    /// Frames received and sent since the start, by kind of message.
    pub(crate) frames: FramesByKind,
}

/// Received, sent.
pub(crate) type FramesByKind = (Map<&'static str, u64>, Map<&'static str, u64>);

fn amounts(amounts: Amounts) -> Value {
    json!({
        "memory_bytes": amounts.memory,
        "cpu_millis": amounts.cpu,
        "disk_bytes": amounts.disk,
        "processes": amounts.processes,
    })
}

fn counters(counters: &[(&'static str, u64)]) -> Value {
    counters.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

/// `dugnad status`.
#[must_use]
pub(crate) fn status(status: &Status, facts: &Facts) -> Value {
    let replicas: Vec<_> = status
        .replicas
        .iter()
        .map(|(id, service, state)| {
            json!({"service": service, "replica": id.number, "state": replica_state(*state)})
        })
        .collect();
    json!({
        "node": status.me.id.to_string(),
        "name": facts.name,
        "community": facts.community,
        "state": status.state,
        "version": facts.version,
        "arch": facts.arch.name(),
        "memory_bytes": facts.memory_bytes,
        "up_secs": facts.up_secs,
        "overlay": facts.overlay,
        "gateway": facts.gateway,
        "size": status.size,
        "predecessor": status.predecessor.map(|id| id.to_string()),
        "successors": status.successors.iter().map(NodeId::to_string).collect::<Vec<_>>(),
        "gives": amounts(status.ceilings.amounts),
        "upload_bytes_per_sec": status.ceilings.upload,
        "promised": amounts(status.promised),
        "replicas": replicas,
        "manages": status.managed,
        "records": status.records,
        "trees": status.trees.len(),
        "tree_bytes": status.trees.iter().map(|tree| tree.bytes).sum::<u64>(),
        "operations": status.operations,
        "counters": counters(&status.counters),
        "limits": facts.limits.iter().map(limit).collect::<Vec<_>>(),
        "frames": {"received": facts.frames.0, "sent": facts.frames.1},
        "not_enforced": facts.not_enforced,
        "services": facts.services,
        "running": facts.running,
        "seeds": facts.seeds,
        "kept_state": facts.kept_state.iter().map(|kept| {
            let secs = kept.since.elapsed().unwrap_or_default().as_secs();
            json!({"service": kept.service, "secs": secs, "bytes": kept.bytes})
        }).collect::<Vec<_>>(),
        "warnings": facts.warnings,
    })
}

/// One kind of place for connections. The idlest gives way to a new one; those that turned out to
/// be in use when somebody else wanted in are counted as refused.
fn limit((what, per, taken): &(&'static str, &'static str, Taken)) -> Value {
    json!({
        "what": what,
        "most": taken.most,
        "per": per,
        "each": taken.each,
        "now": taken.now,
        "gave_way": taken.gave_way,
        "refused": taken.refused,
    })
}

/// One row of `dugnad nodes`.
#[must_use]
pub(crate) fn node(view: &NodeView) -> Value {
    let profile = view.profile.as_ref();
    let state = match view.state {
        NodeState::Alive => "alive",
        NodeState::Suspect => "suspect",
        NodeState::Gone => "gone",
    };
    json!({
        "node": view.peer.id.to_string(),
        "name": (!view.name.is_empty()).then_some(view.name.as_str()),
        "arch": profile.map(|profile| profile.arch.name()),
        "state": state,
        "link": match (view.me, view.linked) {
            (true, _) => "self",
            (false, true) => "direct",
            (false, false) => "none",
        },
        "addrs": view.peer.addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "home": profile.map(|profile| format!("{:08x}", profile.home)),
        "version": profile.map(|profile| profile.version.as_str()),
        "up_secs": view.up_secs,
        "replicas": view.replicas,
        "availability": view.availability.as_ref().map(|known| json!({
            "up_ppm": known.up(),
            "session_secs": known.session,
            "seen_hours": known.seen,
        })),
        "free": amounts(view.free),
        "gives": amounts(view.gives),
    })
}

/// A reserved place is on its way to a replica; scripts know four states.
const fn replica_state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Reserved | ReplicaState::Starting => "starting",
        ReplicaState::Ready => "ready",
        ReplicaState::Draining => "draining",
        ReplicaState::Lost => "lost",
    }
}

fn replica(slot: &Slot) -> Value {
    json!({
        "replica": slot.number,
        "node": slot.node.to_string(),
        "node_name": slot.node_name,
        "state": replica_state(slot.state),
        "note": slot.note,
    })
}

/// One row of `dugnad ps`.
#[must_use]
pub(crate) fn service(view: &ServiceView) -> Value {
    json!({
        "service": view.name,
        "version": view.generation,
        "want": view.want,
        "ready": view.ready,
        "replicas": view.slots.iter().map(replica).collect::<Vec<_>>(),
        "stopped": view.is_stopped(),
        "kind": if view.is_static() { "static" } else { "process" },
        "port": match view.port {
            Port::None => Value::Null,
            Port::Http => json!("http"),
            Port::Tcp(port) => json!(port),
            Port::Udp(port) => json!(format!("{port}/udp")),
        },
        "manager": view.manager.to_string(),
        "because": view.because,
        "predicted_ppm": view.predicted.map(|predicted| predicted.up),
        "reachable": view.predicted.is_none_or(|predicted| predicted.enough),
    })
}

fn plan(view: &PlanView) -> Value {
    let places = |places: &[(NodeId, String, String)]| {
        places
            .iter()
            .map(|(node, name, why)| json!({"node": node.to_string(), "name": name, "why": why}))
            .collect::<Vec<_>>()
    };
    json!({
        "want": view.want,
        "because": view.because,
        "predicted_ppm": view.predicted.map(|predicted| predicted.up),
        "reachable": view.predicted.is_none_or(|predicted| predicted.enough),
        "chosen": places(&view.chosen),
        "refused": places(&view.refused),
        "notes": view.notes,
    })
}

/// A stored folder.
#[must_use]
pub(crate) fn tree(tree: &Tree) -> Value {
    json!({"root": tree.root.to_string(), "bytes": tree.bytes})
}

/// One line of `dugnad events`; `at` is the clock of this node.
#[must_use]
pub(crate) fn event(at: SystemTime, happened: &Happened) -> Value {
    let unix = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "at": humantime::format_rfc3339_millis(at).to_string(),
        "unix_ms": u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        "node": happened.by.to_string(),
        "node_name": happened.by_name,
        "service": happened.service,
        "text": happened.text,
    })
}

/// One membership of this node.
fn group(view: &GroupView) -> Value {
    json!({
        "group": view.name,
        "members": view.members,
        "form": match view.mode { GroupMode::Mesh => "mesh", GroupMode::Ring => "ring" },
        "members_only": view.policy == GroupPolicy::Members,
        "epoch": view.epoch,
        "state": if view.joined { "member" } else { "joining" },
        "kept": view.kept,
        "listeners": view.listeners,
        "heard": view.delivered,
    })
}

/// What a search or a census found, what it cost, and how old it is.
fn prospected(answer: ProspectAnswer) -> Result<Told, Trouble> {
    let (what, found, cost) = match answer {
        ProspectAnswer::Found { nodes, cost } => {
            ("nodes", nodes.iter().map(described).collect::<Value>(), cost)
        }
        ProspectAnswer::Census { nodes, cost } => {
            ("nodes", nodes.iter().map(brief).collect(), cost)
        }
        ProspectAnswer::Checked(nodes) => {
            let nodes: Value = nodes.iter().map(ToString::to_string).collect();
            return Ok(Told { value: json!({"nodes": nodes}), complete: true });
        }
        ProspectAnswer::Failed(text) => return Err(Trouble::failed(text)),
    };
    let value = json!({
        what: found,
        "asked": cost.asked,
        "messages": cost.messages,
        "micros": u64::try_from(cost.took.as_micros()).unwrap_or(u64::MAX),
        // Each node answered for itself, now; whom to ask was known from a sample of this age.
        "age_secs": cost.sample_age,
    });
    Ok(Told { value, complete: cost.complete })
}

/// Attributes with their values, as conditions know them.
pub(super) fn attributes(all: &[(String, Attribute)]) -> Value {
    let value = |value: &Attribute| match value {
        Attribute::Number(number) => json!(number),
        Attribute::Text(text) => json!(text),
        Attribute::Words(words) => json!(words),
    };
    all.iter().map(|(name, known)| (name.clone(), value(known))).collect()
}

/// A node and its attributes, in the units conditions keep them in: bytes, thousandths of a core,
/// millionths, seconds.
fn described(node: &Description) -> Value {
    let attributes = attributes(&node.attributes());
    json!({
        "node": node.peer.id.to_string(),
        "name": node.profile.name,
        "version": node.profile.version,
        "attributes": attributes,
    })
}

fn brief(node: &Brief) -> Value {
    json!({
        "arch": node.arch.name(),
        "zone": node.zone,
        "cores": node.cores,
        "up_millionths": node.up,
        "work": node.takes_work,
        "replicas": node.replicas,
        "gives": amounts(node.gives),
        "free": amounts(node.free),
    })
}

/// What did not work: HTTP status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(super) status: u16,
    pub(super) exit: u8,
    pub(crate) text: String,
    pub(super) reasons: Vec<String>,
}

impl Trouble {
    pub(super) fn new(status: u16, exit: u8, text: impl Into<String>) -> Self {
        Self { status, exit, text: text.into(), reasons: Vec::new() }
    }

    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::new(500, exit::FAILED, text)
    }

    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(400, exit::USAGE, text)
    }

    pub(super) fn unknown(service: &str) -> Self {
        Self::new(
            404,
            exit::FAILED,
            format!("no service is called \"{service}\" here; see: dugnad ps"),
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({"error": self.text, "exit": self.exit, "reasons": self.reasons})
    }
}

/// An answer as JSON, and whether all of the community had a part in it.
pub(super) struct Told {
    pub(super) value: Value,
    pub(super) complete: bool,
}

/// The JSON of an answer about `service` (empty where the question was about none).
pub(super) fn answer(answer: Answer, about: &str) -> Result<Told, Trouble> {
    let told = |value| Ok(Told { value, complete: true });
    match answer {
        Answer::Nodes(nodes) => told(nodes.iter().map(node).collect()),
        Answer::Plan(view) => told(plan(&view)),
        Answer::Deployed { service: view, missing } => {
            told(json!({"service": service(&view), "missing": missing}))
        }
        Answer::Ps { services, complete } => {
            Ok(Told { value: services.iter().map(service).collect(), complete })
        }
        Answer::Why(lines) => told(json!(lines)),
        Answer::Resolved(view) => told(service(&view)),
        Answer::Found { owner, owner_name, hops, certain, took } => told(json!({
            "owner": owner.to_string(),
            "owner_name": owner_name,
            "hops": hops,
            "certain": certain,
            "micros": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        })),
        Answer::Groups(groups) => told(groups.iter().map(group).collect()),
        // What is said of objects and events is said in `store` and `events`.
        Answer::Events(other) => Err(Trouble::failed(format!("unexpected answer {other:?}"))),
        Answer::Object(other) => Err(Trouble::failed(format!("unexpected answer {other:?}"))),
        Answer::Prospect(answer) => prospected(answer),
        Answer::Done => told(json!({})),
        Answer::Unmet(reasons) => {
            let text = "it cannot be met now";
            Err(Trouble { reasons, ..Trouble::new(409, exit::UNMET, text) })
        }
        Answer::Unknown => Err(Trouble::unknown(about)),
        Answer::Conflict(text) => Err(Trouble::new(409, exit::REFUSED, text)),
        Answer::Failed(text) => Err(Trouble::failed(text)),
    }
}
