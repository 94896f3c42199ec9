//! One instance of every variant of every message, and of every stored format.

use dugnad_collective::cast::{CastBody, CastPart};
use dugnad_collective::deployment::service::ServiceView;
use dugnad_collective::deployment::service::{Desired, Failed, Plan, ReplicaState, Service, Slot};
use dugnad_collective::packages::Needed;
use dugnad_collective::persistence::record::{Record, Version};
use dugnad_collective::persistence::sync::SyncMsg;
use dugnad_collective::{self as collective, deployment, packages, persistence};
use dugnad_connectivity::entry::EntryMsg;
use dugnad_connectivity::group::directory::{
    DirectoryAnswer, DirectoryAsk, GroupRecord, Mode, Policy, group_id,
};
use dugnad_connectivity::group::{
    self, GroupCast, MsgId, Packet, Refusal, Stream, StreamPos, Welcome,
};
use dugnad_connectivity::route::{Found, Hop, Purpose, RouteMsg};
use dugnad_connectivity::tree::broadcast::{CastId, CastMsg};
use dugnad_connectivity::tree::bulk::{Bulk, BulkMsg, Load, Reach, TopoChange, TopoKind};
use dugnad_connectivity::tree::feedback::{Ask, Part};
use dugnad_connectivity::{self as connectivity, detector, overlay, ring};
use dugnad_fabric::Amounts;
use dugnad_kernel::{Arc, ArcSet, Hash, Id, Peer};
use dugnad_node::{Msg, Predicted};
use dugnad_resource::describe::Brief;
use dugnad_resource::execute::{Epoch, HostState, ReplicaId, Run, ToHost, ToManager};
use dugnad_resource::spec::{
    Arch, Check, Health, Keep, Kind, Measure, Port, Scale, Spec, Tree, Want,
};

use crate::Lines;

/// The names of an enum's variants: the match has no wildcard, so a new variant must be listed,
/// and what is listed must have a sample.
pub(crate) trait Variants {
    const ALL: &'static [&'static str];
    /// The variant, and the variants of what it carries.
    fn path(&self) -> Vec<String>;
}

macro_rules! variants {
    (
        $enum:path,
        $prefix:literal: $($variant:ident $(=> $inner:ident $($named:ident)?)?),+ $(,)?
    ) => {
        impl Variants for $enum {
            const ALL: &'static [&'static str] =
                &[$(concat!($prefix, ".", stringify!($variant))),+];
            fn path(&self) -> Vec<String> {
                match self {
                    $(variants!(@pattern $variant $($inner $($named)?)?) => {
                        #[allow(unused_mut)]
                        let mut path = vec![concat!($prefix, ".", stringify!($variant)).to_owned()];
                        $(path.extend($inner.path());)?
                        path
                    })+
                }
            }
        }
    };
    (@pattern $variant:ident) => { Self::$variant { .. } };
    (@pattern $variant:ident $inner:ident named) => { Self::$variant { $inner, .. } };
    (@pattern $variant:ident $inner:ident) => { Self::$variant($inner) };
}

variants!(Msg, "node":
    Connectivity => inner, Collective => inner, ToHost => inner, ToManager => inner, Away);
variants!(connectivity::Msg, "connectivity": Overlay => inner, Detect => inner, Group => inner);
variants!(overlay::Msg, "overlay":
    Ring => inner, Route => inner, Cast => inner, Entry => inner, Bulk => inner);
variants!(ring::Msg, "ring": JoinRetry, JoinPoint, NewSucc, NewSuccAck, JoinDone, LeaveReq,
    LeaveRetry, LeaveGrant, LeavePoint, UpdateSucc, UpdateSuccAck, LeaveDone, Query, QueryRes,
    Moved, Notify, ListChanged);
variants!(RouteMsg, "route": Hop => inner, Ack, Found, NotInside, SuccHint);
variants!(Purpose, "hop": Find, Join, Merge);
variants!(CastMsg, "cast": Down, Up, Alive, Unknown);
variants!(BulkMsg, "bulk": Down => inner, Served);
variants!(Load, "load": Above, Topology, Cast);
variants!(detector::Msg, "detect": Ping, Pong, PingReq, Reached, Gone);
variants!(EntryMsg, "entry": Probe, ProbeRes, Merge, Hint);
variants!(collective::Msg, "collective":
    Persistence => inner, Packages => inner, Deployment => inner, Objects => inner,
    Linear => inner, PubSub => inner, Prospector => inner);
variants!(persistence::Msg, "persistence":
    Request => request named, Response => response named, Sync => inner);
variants!(packages::Msg, "packages": Held, Mirror, NotHeld);
variants!(deployment::Msg, "deployment":
    Request => request named, Response => response named);
variants!(persistence::Request, "request": Put, Copy, Get, Decide => decide named, Claim);
variants!(persistence::Response, "response":
    Put, Copied, Refused, Get, NotOwner, Decided => inner, Taken);
variants!(deployment::Request, "servicerequest": Query, Why, Recall);
variants!(deployment::Response, "serviceresponse": View, Unknown, NotManager, Why, Recalled);
variants!(DirectoryAsk, "decide": Get, Cas);
variants!(DirectoryAnswer, "decided": Is, Written, Failed);
variants!(group::Msg, "group": Request => request named, Response => response named, Hello, Members,
    Gone, Bye, Outside, Cast => cast named, Checked, Nack, Repair, Token,
    Taken, NotTaken, Ring);
variants!(group::Request, "grouprequest": Join, Send, Hand);
variants!(group::Response, "groupresponse": Welcome, Sent, Refused);
variants!(GroupCast, "groupcast": Packet, Count, Shrink, Check);
variants!(SyncMsg, "sync": Digest, Want, Items);
variants!(ToHost, "tohost": Reserve, Start, Stop, Probe, BeatAck, NotManager);
variants!(ToManager, "tomanager": Reserved, Refused, Beat, Nothing, Deposed,
    Leaving, Load);
variants!(CastBody, "body": Describe, Services, Ports, Changed, Happened, Removed,
    Objects, Views, Find, Sample);
variants!(CastPart, "part": Node, Services, Ports, Objects, NotMeant, Brief);
variants!(Desired, "desired": Running, Stopped, Removed, RemovedButState);
variants!(ReplicaState, "slot": Reserved, Starting, Ready, Draining, Lost);
variants!(HostState, "state":
    Reserved, Fetching, Starting, Ready, Unready, Failed, Stopping, Gone);
variants!(Kind, "kind": Static, Process);
variants!(Want, "want": Replicas, Availability, Single, Load);
variants!(Measure, "measure": Requests, Cpu, Answer);
variants!(Keep, "keep": Nothing, OnNode, Snapshots);
variants!(Port, "port": None, Http, Tcp, Udp);
variants!(Check, "check": Port, Http, Exec);
variants!(Arch, "arch": X86_64, Aarch64, Armv7, Armv6, Mipsel, Riscv64);

impl Variants for Hop {
    const ALL: &'static [&'static str] = &[];
    fn path(&self) -> Vec<String> {
        self.purpose.path()
    }
}

impl Variants for Bulk {
    const ALL: &'static [&'static str] = &[];
    fn path(&self) -> Vec<String> {
        self.load.path()
    }
}

pub(crate) mod hosts;
mod linear;
pub(crate) mod objects;
mod prospect;
mod pubsub;

/// Every variant that travels as a message. The parts of a broadcast travel inside one as bytes.
pub(crate) fn all_variants() -> Vec<String> {
    let all = [
        Msg::ALL,
        connectivity::Msg::ALL,
        overlay::Msg::ALL,
        ring::Msg::ALL,
        RouteMsg::ALL,
        Purpose::ALL,
        CastMsg::ALL,
        BulkMsg::ALL,
        Load::ALL,
        detector::Msg::ALL,
        EntryMsg::ALL,
        collective::Msg::ALL,
        persistence::Msg::ALL,
        persistence::Request::ALL,
        persistence::Response::ALL,
        packages::Msg::ALL,
        deployment::Msg::ALL,
        deployment::Request::ALL,
        deployment::Response::ALL,
        collective::objects::Msg::ALL,
        collective::objects::Request::ALL,
        collective::objects::Response::ALL,
        collective::linear::Msg::ALL,
        collective::linear::Request::ALL,
        collective::linear::Response::ALL,
        collective::prospector::Msg::ALL,
        collective::prospector::Request::ALL,
        collective::prospector::Response::ALL,
        collective::pubsub::Msg::ALL,
        collective::pubsub::Request::ALL,
        collective::pubsub::Response::ALL,
        SyncMsg::ALL,
        ToHost::ALL,
        ToManager::ALL,
        DirectoryAsk::ALL,
        DirectoryAnswer::ALL,
        group::Msg::ALL,
        group::Request::ALL,
        group::Response::ALL,
        GroupCast::ALL,
    ];
    all.concat().into_iter().map(str::to_owned).collect()
}

fn id(n: u128) -> Id {
    Id(n << 100 | n)
}

fn peer(n: u128) -> Peer {
    let mut peer = Peer::new(id(n));
    peer.inc = 3;
    peer.addrs.push("10.0.0.7:7407".parse().unwrap()).unwrap();
    peer.addrs.push("[fd00::7]:7407".parse().unwrap()).unwrap();
    peer
}

fn tree() -> Tree {
    Tree { root: Hash([7; 32]), bytes: 300 }
}

fn amounts() -> Amounts {
    Amounts { memory: 64 << 20, cpu: 100, disk: 1 << 30, processes: 8 }
}

fn spec() -> Spec {
    Spec {
        name: "wiki".into(),
        kind: Kind::Process,
        want: Want::Availability(990_000),
        command: vec!["./wiki".into(), "$PORT".into()],
        env: vec![("KEY".into(), "value".into())],
        artifacts: vec![(Some(Arch::X86_64), tree()), (None, tree())],
        needs: amounts(),
        port: Port::Tcp(6379),
        health: Health {
            check: Check::Http("/healthz".into()),
            interval_ms: 10_000,
            timeout_ms: 2_000,
            failures: 3,
        },
        stop_grace_ms: 10_000,
        state: Keep::OnNode,
    }
}

fn replica() -> ReplicaId {
    ReplicaId { service: id(9), number: 4 }
}

fn epoch() -> Epoch {
    Epoch { term: 5, manager: id(6) }
}

fn record() -> Record {
    let version = Version { counter: 12, author: id(3) };
    Record { key: id(2), name: b"spec".to_vec(), version, value: Some(vec![1, 2, 3]) }
}

fn slot(state: ReplicaState) -> Slot {
    let (node_name, note) = ("pi".into(), "its note".into());
    Slot { number: 4, node: id(8), node_name, generation: 2, state, note }
}

fn view() -> ServiceView {
    ServiceView {
        name: "wiki".into(),
        service: id(9),
        generation: 2,
        desired: Desired::Running,
        port: Port::Http,
        reliable: true,
        kind: Kind::Static,
        want: 3,
        because: "three".into(),
        predicted: Some(Predicted { up: 990_000, enough: true }),
        scale: Some(Scale { min: 1, max: 6, on: Measure::Cpu(70) }),
        ready: 1,
        manager: id(6),
        revision: 77,
        slots: vec![slot(ReplicaState::Ready)],
        blocked: vec!["no room".into()],
    }
}

pub(crate) fn messages() -> Vec<Msg> {
    let overlay = |msg| Msg::Connectivity(connectivity::Msg::Overlay(msg));
    let mut all: Vec<Msg> = Vec::new();
    all.extend(ring_messages().into_iter().map(overlay::Msg::Ring).map(overlay));
    all.extend(route_messages().into_iter().map(overlay::Msg::Route).map(overlay));
    let cast = CastId { origin: id(1), number: 2 };
    let casts = [
        CastMsg::Down { id: cast, limit: id(5), body: vec![1], ask: Some(ask()) },
        CastMsg::Up {
            id: cast,
            tag: 9,
            parts: vec![Part { at: id(5), bytes: vec![1] }, Part { at: id(6), bytes: vec![] }],
            cover: Box::new(ArcSet::of(Arc::new(id(5), id(2)))),
            cut: false,
            done: true,
        },
        CastMsg::Alive { id: cast, tag: 9 },
        CastMsg::Unknown { id: cast, tag: 300 },
    ];
    all.extend(casts.into_iter().map(overlay::Msg::Cast).map(overlay));
    all.extend(bulk_messages(cast).into_iter().map(overlay::Msg::Bulk).map(overlay));
    let target = id(4);
    let detects = [
        detector::Msg::Ping,
        detector::Msg::Pong,
        detector::Msg::PingReq { target },
        detector::Msg::Reached { target },
        detector::Msg::Gone { target },
    ];
    all.extend(detects.into_iter().map(connectivity::Msg::Detect).map(Msg::Connectivity));
    let entries = [
        EntryMsg::Probe,
        EntryMsg::ProbeRes { inside: true, pred: peer(1), succs: vec![peer(2)] },
        EntryMsg::Merge { peer: peer(3) },
        EntryMsg::Hint { candidate: peer(4) },
    ];
    all.extend(entries.into_iter().map(overlay::Msg::Entry).map(overlay));
    all.extend(collective_messages().into_iter().map(Msg::Collective));
    all.extend(hosts::messages());
    all.extend(group_messages().into_iter().map(connectivity::Msg::Group).map(Msg::Connectivity));
    all
}

fn group_record() -> GroupRecord {
    GroupRecord {
        epoch: 2,
        mode: Mode::Ring,
        policy: Policy::Open,
        creator: id(1),
        sample: vec![peer(1), peer(2)],
        size: 40,
        seq: 9,
        nonce: u64::MAX,
    }
}

fn packet() -> Packet {
    Packet { id: MsgId { origin: id(3), number: 3 << 32 }, place: None, body: b"hello".to_vec() }
}

fn place() -> StreamPos {
    StreamPos { stream: Stream { by: id(3), life: u64::MAX }, seq: 300 }
}

fn group_messages() -> Vec<group::Msg> {
    use group::{Msg as M, Request, Response};
    let (gid, call) = (group_id("choir"), 7);
    let request = |request| M::Request { call, gid, request };
    let response = |response| M::Response { call, response };
    let cast = |cast| M::Cast { gid, cast };
    let (mode, policy) = (Mode::Mesh, Policy::Members);
    let welcome = Welcome { epoch: 2, mode, policy, peers: vec![peer(1)], places: vec![place()] };
    vec![
        request(Request::Join { peer: peer(2) }),
        request(Request::Send { packet: packet(), reliable: true }),
        response(Response::Welcome(welcome)),
        response(Response::Sent),
        response(Response::Refused(Refusal::MembersOnly)),
        M::Hello { gid, me: peer(2), known: vec![id(1), id(3)] },
        M::Members { gid, epoch: 2, mode: Mode::Ring, peers: vec![peer(1)] },
        M::Gone { gid, target: id(3) },
        M::Bye { gid },
        M::Outside { gid },
        cast(GroupCast::Packet(packet())),
        request(Request::Hand { packet: packet() }),
        M::Token {
            gid,
            token: group::Token { id: packet().id, visited: vec![id(1)], that: vec![5] },
        },
        M::Taken { id: packet().id, by: peer(1) },
        M::NotTaken { id: packet().id },
        cast(GroupCast::Count),
        cast(GroupCast::Check { place: place() }),
        M::Checked { gid, place: place() },
        M::Nack { gid, stream: place().stream, from: 3, to: 300 },
        M::Repair { gid, packet: Packet { place: Some(place()), ..packet() } },
        cast(GroupCast::Shrink { epoch: 3, members: vec![peer(1)] }),
        M::Ring { gid, msg: Box::new(overlay::Msg::Entry(EntryMsg::Probe)) },
    ]
}

fn ask() -> Ask {
    Ask { tag: 200, patience_ms: 3_750 }
}

fn bulk_messages(id: CastId) -> Vec<BulkMsg> {
    let arcs = || ArcSet::of(Arc::new(self::id(5), self::id(2)));
    let change = TopoChange { kind: TopoKind::Join, node: peer(1), succ: peer(2) };
    let down = |reach, load, ask| {
        let (own, next, avoid) = (ArcSet::empty(), self::id(7), vec![self::id(8)]);
        let (arcs, walk) = (arcs(), true);
        BulkMsg::Down(Box::new(Bulk {
            id,
            reach,
            arcs,
            own,
            next,
            load,
            ask,
            hops: 3,
            avoid,
            walk,
        }))
    };
    vec![
        down(Reach::Owners, Load::Above(vec![1, 2]), Some(ask())),
        down(Reach::Nodes, Load::Topology(change), None),
        down(Reach::Owners, Load::Cast(vec![3]), Some(ask())),
        BulkMsg::Served { id, arcs: Box::new(arcs()) },
    ]
}

fn ring_messages() -> Vec<ring::Msg> {
    use ring::Msg as M;
    let (op, call) = (u64::MAX - 1, 300);
    let (pred, succs) = (peer(1), vec![peer(2), peer(3)]);
    vec![
        M::JoinRetry { op, after_ms: 300 },
        M::JoinPoint { op, pred: pred.clone(), succs: succs.clone() },
        M::NewSucc { op, joiner: peer(4), succ: id(5), succs: succs.clone() },
        M::NewSuccAck { op, joiner: id(4) },
        M::JoinDone { op },
        M::LeaveReq { op },
        M::LeaveRetry { op, after_ms: 300 },
        M::LeaveGrant { op },
        M::LeavePoint { op, pred: pred.clone() },
        M::UpdateSucc { op, leaver: id(6), succs: succs.clone() },
        M::UpdateSuccAck { op },
        M::LeaveDone { op },
        M::Query { call },
        M::QueryRes { call, pred, succs: succs.clone() },
        M::Moved { call, succs },
        M::Notify { me: peer(7) },
        M::ListChanged,
    ]
}

fn route_messages() -> Vec<RouteMsg> {
    let hop = |purpose| Hop {
        key: id(1),
        purpose,
        origin: peer(2),
        call: 7,
        hops: 3,
        last: true,
        seq: 900,
    };
    let found = Found { owner: peer(1), succs: vec![peer(2)], certain: true, hops: 3 };
    vec![
        RouteMsg::Hop(hop(Purpose::Find)),
        RouteMsg::Hop(hop(Purpose::Join { op: 1 << 40 })),
        RouteMsg::Hop(hop(Purpose::Merge)),
        RouteMsg::Ack { seq: 900 },
        RouteMsg::Found { call: 7, found },
        RouteMsg::NotInside { call: 7 },
        RouteMsg::SuccHint { pred: peer(1) },
    ]
}

fn persistence_messages() -> Vec<persistence::Msg> {
    use persistence::{Request, Response};
    let requests = [
        Request::Put(record()),
        Request::Copy(Record { value: None, ..record() }),
        Request::Get((id(2), b"plan".to_vec())),
        Request::Decide { key: id(9), decide: DirectoryAsk::Get },
        Request::Decide {
            key: id(9),
            decide: DirectoryAsk::Cas { expected: 1, value: Some(vec![1]) },
        },
        Request::Claim { record: record(), expected: 300 },
    ];
    let group = group_record().encode();
    let responses = [
        Response::Put { holders: vec![id(1), id(2)], places: 5 },
        Response::Copied,
        Response::Refused,
        Response::Get(Some(record())),
        Response::NotOwner,
        Response::Decided(DirectoryAnswer::Is { version: 300, value: group }),
        Response::Decided(DirectoryAnswer::Written { version: 300 }),
        Response::Decided(DirectoryAnswer::Failed),
        Response::Taken(Some(record())),
    ];
    let name = (id(2), b"spec".to_vec());
    let syncs = [
        SyncMsg::Digest {
            arc: Arc::new(id(1), id(2)),
            from: (id(0), vec![]),
            to: Some(name.clone()),
            entries: vec![(name.clone(), record().version)],
        },
        SyncMsg::Want { names: vec![name] },
        SyncMsg::Items { records: vec![record()] },
    ];
    let mut all: Vec<persistence::Msg> = Vec::new();
    all.extend(requests.map(|request| persistence::Msg::Request { call: 7, request }));
    all.extend(responses.map(|response| persistence::Msg::Response { call: 7, response }));
    all.extend(syncs.map(persistence::Msg::Sync));
    all
}

fn deployment_messages() -> Vec<deployment::Msg> {
    use deployment::{Request, Response};
    let requests = [
        Request::Query { service: id(9), seen: 1 << 33 },
        Request::Why { service: id(9) },
        Request::Recall { service: id(9) },
    ];
    let responses = [
        Response::View(view()),
        Response::Unknown,
        Response::NotManager,
        Response::Why(vec!["because".into()]),
        Response::Recalled(vec![record()]),
    ];
    let mut all: Vec<deployment::Msg> = Vec::new();
    all.extend(requests.map(|request| deployment::Msg::Request { call: 7, request }));
    all.extend(responses.map(|response| deployment::Msg::Response { call: 7, response }));
    all
}

fn collective_messages() -> Vec<collective::Msg> {
    let reason = "no room".to_owned();
    let packages = [
        packages::Msg::Held { root: Hash([7; 32]) },
        packages::Msg::Mirror { tree: tree(), origin: id(4) },
        packages::Msg::NotHeld { root: Hash([7; 32]), reason, beside: Some(id(5)) },
    ];
    let persistence = persistence_messages().into_iter().map(collective::Msg::Persistence);
    let deployment = deployment_messages().into_iter().map(collective::Msg::Deployment);
    let packages = packages.into_iter().map(collective::Msg::Packages);
    let objects = objects::messages().into_iter().map(collective::Msg::Objects);
    let linear = linear::messages().into_iter().map(collective::Msg::Linear);
    let pubsub = pubsub::messages().into_iter().map(collective::Msg::PubSub);
    let all = persistence.chain(packages).chain(deployment).chain(objects);
    all.chain(linear).chain(pubsub).chain(prospect::messages()).collect()
}

/// What lies on disks, and what travels inside broadcasts and records as bytes.
pub(crate) fn stored(lines: &mut Lines) {
    lines.stored("record", &record());
    lines.stored("tombstone", &Record { value: None, ..record() });
    lines.stored("group", &group_record());
    objects::stored(lines);
    hosts::stored(lines);
    linear::stored(lines);
    pubsub::stored(lines);
    lines.stored("needed", &Needed { tree: tree(), origin: id(1) });
    lines.stored("run", &Run { id: replica(), generation: 2, spec: spec(), package: Some(tree()) });
    let states = [
        ReplicaState::Reserved,
        ReplicaState::Starting,
        ReplicaState::Ready,
        ReplicaState::Draining,
        ReplicaState::Lost,
    ];
    let slots: Vec<Slot> = states.into_iter().map(slot).collect();
    lines.stored("plan", &Plan { epoch: epoch(), next_number: 9, slots });
    let failed = Failed { generation: 2, node_name: "pi".into(), reason: "it ended".into() };
    lines.stored("failed", &failed);
    let service = |desired| Service { spec: spec(), generation: 2, desired, deployed_from: id(1) };
    let desired = [Desired::Running, Desired::Stopped, Desired::Removed, Desired::RemovedButState];
    every(lines, "service", desired, service);
    casts(lines);
    let states = [
        HostState::Reserved,
        HostState::Fetching,
        HostState::Starting,
        HostState::Ready,
        HostState::Unready,
        HostState::Failed,
        HostState::Stopping,
        HostState::Gone,
    ];
    every(lines, "host state", states, |state| state);
    every(lines, "kind", [Kind::Static, Kind::Process], |kind| kind);
    let measures = [Measure::Requests(50), Measure::Cpu(70), Measure::Answer(300)];
    every(lines, "measure", measures, |on| on);
    let scale = Scale { min: 1, max: 6, on: Measure::Requests(50) };
    let wants = [Want::Replicas(3), Want::Availability(990_000), Want::Single, Want::Load(scale)];
    every(lines, "want", wants, |want| want);
    let snapshots = Keep::Snapshots { every_ms: 300_000, hook: vec!["./hook".into()] };
    every(lines, "keep", [Keep::Nothing, Keep::OnNode, snapshots], |keep| keep);
    every(lines, "port", [Port::None, Port::Http, Port::Tcp(6379), Port::Udp(53)], |port| port);
    let checks = [Check::Port, Check::Http("/".into()), Check::Exec(vec!["./check".into()])];
    every(lines, "check", checks, |check| check);
    every(lines, "arch", Arch::ALL, |arch| arch);
}

/// One line for each of `variants`, which must be all there are.
fn every<V, T>(
    lines: &mut Lines,
    name: &str,
    variants: impl IntoIterator<Item = V>,
    value: impl Fn(V) -> T,
) where
    V: Variants,
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let mut missing = V::ALL.to_vec();
    for variant in variants {
        let path = variant.path();
        missing.retain(|name| *name != path[0]);
        lines.stored(&format!("{name} {}", path[0]), &value(variant));
    }
    assert!(missing.is_empty(), "no sample of {missing:?}");
}

/// What travels inside broadcasts.
fn casts(lines: &mut Lines) {
    let bodies = [
        CastBody::Describe {
            trees: vec![Hash([7; 32])],
            programs: vec!["/usr/bin/python3".into()],
        },
        CastBody::Services,
        CastBody::Ports,
        CastBody::Changed { name: "wiki".into(), port: Port::Tcp(6379), removed: false },
        CastBody::Happened {
            by: id(1),
            by_name: "pi".into(),
            service: Some("wiki".into()),
            text: "healed".into(),
        },
        CastBody::Removed { service: id(9) },
        CastBody::Objects { namespace: Some("notes".into()) },
        CastBody::Views(vec![linear::view()]),
        CastBody::Find { condition: prospect::condition(), brief: false },
        CastBody::Sample { share: 32_000 },
    ];
    every(lines, "cast", bodies, |body| body);
    let parts = [
        CastPart::Node(Box::new(prospect::description())),
        CastPart::Services(vec![view()]),
        CastPart::Ports(vec![("wiki".into(), Port::Tcp(6379))]),
        CastPart::Objects(Box::new(objects::sums())),
        CastPart::NotMeant,
        CastPart::Brief(Box::new(Brief::of(&prospect::description()))),
    ];
    every(lines, "part", parts, |part| part);
}
