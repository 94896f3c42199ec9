//! What a damaged or hostile member may say: counted, cut or dropped, never a panic, never growth.

#![expect(clippy::unwrap_used, reason = "tests")]

use dugnad_collective::cast::CastBody;
use dugnad_collective::deployment::service::{Desired, PLAN, Plan, SPEC, Service};
use dugnad_collective::persistence::record::{Record, Version};
use dugnad_collective::persistence::sync::SyncMsg;
use dugnad_collective::{self as collective, deployment, persistence};
use dugnad_connectivity::tree::broadcast::{CastId, CastMsg};
use dugnad_connectivity::{self as connectivity, overlay, ring};
use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{Component, Cx, Effect, Hash, Id, Input, NodeId, Peer, Time, wire};
use dugnad_node::{Command, Config, Event, Msg, Node};
use dugnad_resource::describe::Profile;
use dugnad_resource::execute::{Epoch, HostState, ReplicaId, ToHost, ToManager};
use dugnad_resource::spec::{Arch, Check, Health, Keep, Kind, Port, Spec, Tree, Want};

struct Driven {
    node: Node,
    rng: fastrand::Rng,
}

const OTHER: NodeId = Id(77);

impl Driven {
    /// A node that is a ring of its own.
    fn alone() -> Self {
        let profile = Profile::plain("me", Arch::X86_64, 1);
        let amounts = Amounts { memory: 1 << 32, cpu: 1_000, disk: 1 << 40, processes: 99 };
        let ceilings = Ceilings { amounts, upload: None };
        let config = Config { me: Peer::new(Id(7)), profile, ceilings, programs: Vec::new() };
        let mut driven = Self { node: Node::new(config), rng: fastrand::Rng::with_seed(1) };
        let boot = Command::Boot { records: Vec::new(), trees: Vec::new(), alone: true };
        driven.input(Input::Command(boot));
        driven
    }

    fn input(&mut self, input: Input<Node>) -> Vec<Effect<Node>> {
        let mut effects = Vec::new();
        self.node.handle(input, &mut Cx::new(Time(1_000), &mut self.rng, &mut effects));
        for effect in &effects {
            if let Effect::Send { msg, .. } = effect {
                assert!(wire::encode(msg).is_ok(), "does not fit a frame");
            }
        }
        for (name, have, max) in self.node.sizes() {
            assert!(have <= max, "{have} {name}, {max} at most");
        }
        effects
    }

    fn hears(&mut self, msg: Msg) -> Vec<Effect<Node>> {
        assert!(wire::encode(&msg).is_ok(), "nobody can send this");
        self.input(Input::Message { from: OTHER, msg })
    }

    fn records(&mut self, records: Vec<Record>) -> Vec<Effect<Node>> {
        let items = persistence::Msg::Sync(SyncMsg::Items { records });
        self.hears(Msg::Collective(collective::Msg::Persistence(items)))
    }

    fn counter(&self, name: &str) -> u64 {
        self.node.status().counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, c)| *c)
    }
}

/// Whether a manager is answered.
fn is_answer(effect: &&Effect<Node>) -> bool {
    matches!(effect, Effect::Send { msg: Msg::ToManager(_), .. })
}

fn spec() -> Spec {
    Spec {
        name: "wiki".into(),
        kind: Kind::Static,
        want: Want::Replicas(2),
        command: Vec::new(),
        env: Vec::new(),
        artifacts: vec![(None, Tree { root: Hash([1; 32]), bytes: 1 })],
        needs: Amounts::default(),
        port: Port::Http,
        health: Health { check: Check::Port, interval_ms: 1, timeout_ms: 1, failures: 1 },
        stop_grace_ms: 1,
        state: Keep::Nothing,
    }
}

fn record(name: &[u8], counter: u64, value: Vec<u8>) -> Record {
    let version = Version { counter, author: OTHER };
    Record { key: spec().key(), name: name.to_vec(), version, value: Some(value) }
}

fn cast(number: u32, body: &CastBody) -> Msg {
    let body = postcard::to_allocvec(body).unwrap();
    let id = CastId { origin: OTHER, number };
    let down = CastMsg::Down { id, limit: Id(7), body, ask: None };
    Msg::Connectivity(connectivity::Msg::Overlay(overlay::Msg::Cast(down)))
}

/// A list as long as a frame takes; an honest one has twelve.
#[test]
fn a_list_of_thousands_of_peers_is_not_remembered() {
    let mut node = Driven::alone();
    let succs: Vec<Peer> = (100..3_100).map(|n| Peer::new(Id(n))).collect();
    let res = ring::Msg::QueryRes { call: 1, pred: Peer::new(OTHER), succs: succs.clone() };
    let effects =
        node.hears(Msg::Connectivity(connectivity::Msg::Overlay(overlay::Msg::Ring(res))));
    assert!(effects.len() < 50, "{} effects", effects.len());
    let update = ring::Msg::UpdateSucc { op: 1, leaver: Id(7), succs };
    node.hears(Msg::Connectivity(connectivity::Msg::Overlay(overlay::Msg::Ring(update))));
    assert!(node.node.overlay().book().count() < 50);
}

/// The largest numbers a varint holds: no sum over them may overflow.
#[test]
fn the_largest_numbers_are_refused() {
    let mut node = Driven::alone();
    let max = record(SPEC, u64::MAX, vec![1]);
    let put = persistence::Msg::Request { call: 1, request: persistence::Request::Put(max) };
    node.hears(Msg::Collective(collective::Msg::Persistence(put)));
    assert_eq!(node.counter("record_out_of_bounds"), 1);
    let service = |generation| {
        let service =
            Service { spec: spec(), generation, desired: Desired::Running, deployed_from: OTHER };
        postcard::to_allocvec(&service).unwrap()
    };
    node.records(vec![record(SPEC, 1, service(u64::MAX))]);
    assert_eq!(node.counter("invalid_service_record"), 1);
    let epoch = Epoch { term: u64::MAX, manager: OTHER };
    let plan = Plan { epoch, next_number: u32::MAX, slots: Vec::new() };
    let plan = record(PLAN, 1, postcard::to_allocvec(&plan).unwrap());
    node.records(vec![plan, record(SPEC, 2, service(1))]);
    assert_eq!(node.node.collective().views().len(), 1);
    let deposed = ToManager::Deposed { service: spec().key(), epoch };
    node.hears(Msg::ToManager(deposed));
    let probe = ToHost::Probe { service: spec().key(), epoch };
    assert_eq!(node.hears(Msg::ToHost(probe)).iter().filter(is_answer).count(), 0);
    let id = ReplicaId { service: spec().key(), number: u32::MAX };
    let state = HostState::Ready;
    let beat =
        ToManager::Beat { id, generation: 1, state, note: String::new(), node_name: String::new() };
    node.hears(Msg::ToManager(beat));
    let taken = node.node.collective().views()[0].slots.iter().any(|s| s.number == u32::MAX);
    assert!(taken, "it came back and was taken in");
}

/// What a host says of a replica goes into plans and views, which travel in one message.
#[test]
fn a_novel_for_a_note_is_cut() {
    let mut node = Driven::alone();
    let desired = Desired::Running;
    let service = Service { spec: spec(), generation: 1, desired, deployed_from: OTHER };
    node.records(vec![record(SPEC, 1, postcard::to_allocvec(&service).unwrap())]);
    for number in 0..40 {
        let id = ReplicaId { service: spec().key(), number };
        let (note, node_name) = ("ä".repeat(15_000), "ö".repeat(15_000));
        let state = HostState::Unready;
        let from = Id(1_000 + u128::from(number));
        node.input(Input::Command(Command::LinkUp(Peer::new(from))));
        node.input(Input::Message {
            from,
            msg: Msg::ToManager(ToManager::Beat { id, generation: 1, state, note, node_name }),
        });
    }
    node.input(Input::Command(Command::LinkUp(Peer::new(OTHER))));
    let request = deployment::Request::Query { service: spec().key(), seen: 0 };
    let query = deployment::Msg::Request { call: 1, request };
    let effects = node.hears(Msg::Collective(collective::Msg::Deployment(query)));
    assert!(effects.iter().any(|e| matches!(e, Effect::Send { .. })), "no answer");
}

#[test]
fn names_ports_and_tidings_are_bounded() {
    let mut node = Driven::alone();
    for number in 0..2_000u32 {
        let name = format!("svc-{number}");
        let port = Port::Tcp(u16::try_from(number).unwrap());
        node.hears(cast(2 * number, &CastBody::Changed { name, port, removed: false }));
        let by = Id(u128::from(number));
        let (by_name, text) = ("x".repeat(5_000), "y".repeat(5_000));
        let body = CastBody::Happened { by, by_name, service: Some("?".into()), text };
        for effect in node.hears(cast(2 * number + 1, &body)) {
            if let Effect::Emit(Event::Happened(happened)) = effect {
                assert!(happened.text.len() + happened.by_name.len() < 1_000);
                assert_eq!(happened.service, None, "no service has such a name");
            }
        }
    }
}

/// A record of a tree, of which there is one for each service that needs it.
fn big(n: u32, counter: u64, author: u128) -> Record {
    let mut name = [0; 16];
    name[..4].copy_from_slice(&n.to_be_bytes());
    let version = Version { counter, author: Id(author) };
    Record { version, ..record(&name, counter, vec![0; 30_000]) }
}

/// Records fill memory up to a bound, and what is there can still be changed.
#[test]
fn the_store_is_full_before_the_memory_is() {
    let mut node = Driven::alone();
    for n in 0..1_000 {
        node.records(vec![big(n, 1, u128::from(n % 4))]);
    }
    assert!(node.counter("store_full") > 0);
    let before = node.node.collective().store().len();
    node.records(vec![big(0, 2, 0), big(before as u32 + 1, 2, 1)]);
    let store = node.node.collective().store();
    assert_eq!(store.len(), before);
    let first = big(0, 2, 0);
    assert_eq!(store.get(first.key, &first.name).unwrap().version.counter, 2);
}

/// One author has its share of the store; the others' records are taken all the same.
#[test]
fn one_member_cannot_fill_the_store() {
    let mut node = Driven::alone();
    for n in 0..1_000 {
        node.records(vec![big(n, 1, 666)]);
    }
    assert!(node.counter("author_full") > 0 && node.counter("store_full") == 0);
    let before = node.node.collective().store().len();
    node.records(vec![big(5_000, 1, 1)]);
    assert_eq!(node.node.collective().store().len(), before + 1);
    // What the author has can be changed, and made less.
    let smaller = Record { value: None, ..big(0, 2, 666) };
    node.records(vec![smaller.clone()]);
    let store = node.node.collective().store();
    assert_eq!(store.get(smaller.key, &smaller.name).unwrap().value, None);
}

/// A version far above what is known would be the last one for ever.
#[test]
fn nobody_jumps_to_the_last_version() {
    let mut node = Driven::alone();
    node.records(vec![record(b"what", 1, vec![1])]);
    assert_eq!(node.counter("record_of_unknown_kind"), 1);
    node.records(vec![record(SPEC, 1 << 61, vec![1])]);
    assert_eq!(node.counter("version_out_of_bounds"), 1);
    let service = |generation| {
        let desired = Desired::Running;
        let service = Service { spec: spec(), generation, desired, deployed_from: OTHER };
        postcard::to_allocvec(&service).unwrap()
    };
    node.records(vec![record(SPEC, 3, service(1))]);
    node.records(vec![record(SPEC, 3 + (1 << 21), service(2))]);
    assert_eq!(node.counter("version_out_of_bounds"), 2);
    node.records(vec![record(SPEC, 4, service(2))]);
    let store = node.node.collective().store();
    let held = store.get(spec().key(), SPEC).unwrap();
    assert_eq!(held.version.counter, 4, "the next one is taken as ever");
}
