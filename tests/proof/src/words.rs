//! How messages, states and events read in a transcript: the essentials, not all fields.

use std::collections::BTreeMap;

use dugnad_connectivity::entry::EntryMsg;
use dugnad_connectivity::ring::{self, Ring, Status};
use dugnad_connectivity::route::{Hop, Purpose, RouteMsg};
use dugnad_connectivity::tree::broadcast::CastMsg;
use dugnad_connectivity::tree::bulk::BulkMsg;
use dugnad_connectivity::{Event, Msg, overlay};
use dugnad_kernel::{Arc, ArcSet, Id, NodeId, Peer};

use crate::check::{number, place};

/// The node called `letter`.
#[must_use]
pub fn node(letter: char) -> NodeId {
    place(u8::try_from(u32::from(letter) - u32::from('a')).unwrap_or(0))
}

#[must_use]
pub fn name(id: NodeId) -> char {
    char::from(b'a' + number(id))
}

fn names<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> String {
    let names: Vec<String> = peers.into_iter().map(|peer| name(peer.id).to_string()).collect();
    names.join(" ")
}

#[must_use]
pub fn arc(arc: Arc) -> String {
    let whole = if arc.lo == arc.hi { " all" } else { "" };
    format!("({}, {}]{whole}", name(arc.lo), name(arc.hi))
}

/// A set whose arcs end at nodes or just before them.
fn arcs(set: &ArcSet) -> String {
    let at = |x: u128| Id(x) == place(number(Id(x)));
    let one = |(lo, hi): &(u128, u128)| {
        let lo =
            if at(*lo) { format!("[{}", name(Id(*lo))) } else { format!("({}", name(Id(*lo))) };
        let next = hi.wrapping_add(1);
        let hi =
            if at(*hi) { format!("{}]", name(Id(*hi))) } else { format!("{})", name(Id(next))) };
        format!("{lo}, {hi}")
    };
    let all: Vec<String> = set.runs().iter().map(one).collect();
    if all.is_empty() { "nothing".into() } else { all.join(" ") }
}

/// Operations by the order in which they appear: their numbers are random.
#[derive(Default)]
pub struct Ops(BTreeMap<u64, usize>);

impl Ops {
    pub fn short(&mut self, op: u64) -> String {
        let next = self.0.len() + 1;
        format!("#{}", self.0.entry(op).or_insert(next))
    }
}

/// The name of a message: what a script waits for.
#[must_use]
pub fn kind(msg: &Msg) -> String {
    use overlay::Msg as O;
    let inner = match msg {
        Msg::Detect(msg) => format!("{msg:?}"),
        Msg::Group(msg) => format!("{msg:?}"),
        Msg::Overlay(msg) => match msg {
            O::Route(RouteMsg::Hop(Hop { purpose: Purpose::Join { .. }, .. })) => "JoinReq".into(),
            O::Route(RouteMsg::Hop(Hop { purpose: Purpose::Find, .. })) => "Lookup".into(),
            O::Route(RouteMsg::Hop(_)) => "Route".into(),
            O::Route(msg) => format!("{msg:?}"),
            O::Ring(msg) => format!("{msg:?}"),
            O::Cast(msg) => format!("{msg:?}"),
            O::Entry(msg) => format!("{msg:?}"),
            O::Bulk(msg) => format!("Bulk{msg:?}"),
        },
    };
    inner.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// One line about a message.
pub fn message(msg: &Msg, ops: &mut Ops) -> String {
    use overlay::Msg as O;
    let kind = kind(msg);
    let Msg::Overlay(msg) = msg else { return kind };
    let rest = match msg {
        O::Ring(msg) => ring_message(msg, ops),
        O::Route(msg) => route_message(msg, ops),
        O::Entry(EntryMsg::ProbeRes { inside: true, pred, succs }) => {
            format!("predecessor {}, successors {}", name(pred.id), names(succs))
        }
        O::Entry(EntryMsg::Merge { peer }) => format!("find the place of {}", name(peer.id)),
        O::Entry(EntryMsg::Hint { candidate }) => {
            format!("{} may be your successor", name(candidate.id))
        }
        O::Cast(CastMsg::Down { limit, .. }) => format!("reach all before {}", name(*limit)),
        O::Cast(CastMsg::Up { cover, done, .. }) => {
            format!("covers {}{}", arcs(cover), if *done { ", done" } else { "" })
        }
        O::Bulk(BulkMsg::Down(bulk)) => format!("reach {}", arcs(&bulk.arcs)),
        _ => String::new(),
    };
    if rest.is_empty() { kind } else { format!("{kind} {rest}") }
}

fn ring_message(msg: &ring::Msg, ops: &mut Ops) -> String {
    match msg {
        ring::Msg::JoinRetry { op, .. }
        | ring::Msg::JoinDone { op }
        | ring::Msg::LeaveReq { op }
        | ring::Msg::LeaveRetry { op, .. }
        | ring::Msg::LeaveGrant { op }
        | ring::Msg::UpdateSuccAck { op }
        | ring::Msg::LeaveDone { op } => ops.short(*op),
        ring::Msg::JoinPoint { op, pred, succs, .. } => {
            let op = ops.short(*op);
            format!("{op}: predecessor {}, successors {}", name(pred.id), names(succs))
        }
        ring::Msg::NewSucc { op, succ, succs, .. } => {
            let op = ops.short(*op);
            format!("{op}: I am before {}, successors {}", name(*succ), names(succs))
        }
        ring::Msg::NewSuccAck { op, joiner } => {
            format!("{}: {} is my successor now", ops.short(*op), name(*joiner))
        }
        ring::Msg::LeavePoint { op, pred, .. } => {
            format!("{}: predecessor {}", ops.short(*op), name(pred.id))
        }
        ring::Msg::UpdateSucc { op, leaver, succs } => {
            let op = ops.short(*op);
            format!("{op}: {} leaves, successors {}", name(*leaver), names(succs))
        }
        ring::Msg::QueryRes { pred, succs, .. } => {
            format!("predecessor {}, successors {}", name(pred.id), names(succs))
        }
        ring::Msg::Moved { succs, .. } => format!("successors {}", names(succs)),
        _ => String::new(),
    }
}

fn route_message(msg: &RouteMsg, ops: &mut Ops) -> String {
    match msg {
        RouteMsg::Hop(hop) => {
            let what = match &hop.purpose {
                Purpose::Join { op } => format!("{} of {}", ops.short(*op), name(hop.origin.id)),
                Purpose::Find => format!("{} for {}", name(hop.key), name(hop.origin.id)),
                _ => format!("{:?} of {}", hop.purpose, name(hop.origin.id)),
            };
            let last = if hop.last { ", the last hop" } else { "" };
            format!("{what}{last}")
        }
        RouteMsg::Found { found, .. } => {
            let doubt = if found.certain { "" } else { ", not certain" };
            format!("at {}{doubt}", name(found.owner.id))
        }
        RouteMsg::SuccHint { pred } => format!("{} is between us", name(pred.id)),
        _ => String::new(),
    }
}

/// What a reader wants to know of an event of the overlay; most are nothing new.
#[must_use]
pub fn event(event: &Event) -> Option<String> {
    Some(match event {
        Event::Overlay(overlay::Event::Joined) => "is in the ring".into(),
        Event::Overlay(overlay::Event::Left) => "has left".into(),
        Event::Suspect(id) => format!("suspects {}", name(*id)),
        Event::Refuted(id) => format!("{} lives after all", name(*id)),
        Event::Dead(id) => format!("{} is dead", name(*id)),
        Event::Overlay(overlay::Event::Found { found: Some(found), .. }) => {
            let doubt = if found.certain { "certain" } else { "not certain" };
            format!("knows the owner: {}, {doubt}, {} hops", name(found.owner.id), found.hops)
        }
        Event::Overlay(overlay::Event::Found { found: None, .. }) => "finds no owner".into(),
        Event::Overlay(overlay::Event::Cast { .. })
        | Event::Overlay(overlay::Event::Bulk { .. }) => "is told".into(),
        Event::Overlay(overlay::Event::Feedback { feedback, .. }) => {
            let missing = arcs(&feedback.missing);
            let whole =
                if feedback.complete { "complete".into() } else { format!("not {missing}") };
            format!("has {} answers, {whole}", feedback.parts.len())
        }
        _ => return None,
    })
}

/// What a node believes, one phrase each, so that two of them can be compared.
pub fn state(ring: &Ring, ops: &mut Ops) -> Vec<String> {
    let owns = match ring.claim() {
        Some(claim) => format!("owns {}", arc(claim)),
        None => "owns nothing".into(),
    };
    let alone = ring.succs().iter().all(|succ| succ.id == ring.me().id);
    let succs = if alone { "none".into() } else { names(ring.succs()) };
    let outside = ring.status() < Status::Joining;
    let pred = ring.pred_suspect().then(|| format!("predecessor {} is dead", name(ring.pred().id)));
    let lock = ring.lock().map(|op| ops.short(op));
    let forwards = match ring.forwards() {
        (true, _) => "hands on what is before its predecessor",
        (_, true) => "hands on everything",
        _ => "hands nothing on",
    };
    vec![
        format!("{:?}", ring.status()),
        owns,
        if outside { "no successors".into() } else { format!("successors {succs}") },
        pred.unwrap_or_else(|| "predecessor lives".into()),
        lock.map_or_else(|| "unlocked".into(), |op| format!("locked {op}")),
        forwards.into(),
    ]
}
