//! Deployment alone: records, packages and hosts are played.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use dugnad_fabric::Amounts;
use dugnad_kernel::testing::{self, Around};
use dugnad_kernel::{Duration, Hash, Id, Key, NodeId, Peer};
use dugnad_resource::describe::{Description, Profile};
use dugnad_resource::execute::{Epoch, HostState, ReplicaId, ToHost, ToManager};
use dugnad_resource::spec::{Arch, Check, Health, Keep, Kind, Port, Spec, Tree, Want};

use super::client::{ServiceAnswer, ServiceQuestion};
use super::{Command, Deployment, Event};
use crate::cast::{CastBody, CastPart};
use crate::played::Played;

const SECOND: Duration = Duration::from_secs(1);

/// What one machine runs, and whom it obeys.
#[derive(Default)]
struct Host {
    runs: BTreeMap<ReplicaId, u64>,
    epoch: Epoch,
}

#[derive(Default)]
struct Community {
    played: Played,
    hosts: BTreeMap<NodeId, Host>,
    answers: BTreeMap<u64, ServiceAnswer>,
    asks: u64,
    /// Replicas that were started, ever.
    started: usize,
}

type World = testing::World<Deployment, Community>;

impl Around<Deployment> for Community {
    fn on_event(world: &mut World, at: NodeId, event: Event) {
        let after = Duration::from_millis(world.rng.u64(1..80));
        match event {
            Event::Lookup { call, key } => {
                let owner = world.around.played.owner(key);
                world.command_after(after, at, Command::Found { call, owner });
            }
            Event::Cast { call: Some(call), body } => {
                let parts = world.live().filter_map(|(id, node)| part(world, id, node, &body));
                let parts: Vec<Vec<u8>> = parts.collect();
                let feedback = Command::Feedback { call, parts, complete: true };
                world.command_after(after, at, feedback);
            }
            Event::Cast { call: None, .. } | Event::Saw { .. } => {}
            Event::Records { call, question } => {
                let (answer, changed) = world.around.played.answer(question);
                for id in world.ids() {
                    if let Some(name) = changed.clone() {
                        world.command_after(after, id, Command::Changed(name));
                    }
                }
                if let Some(call) = call {
                    world.command_after(after, at, Command::Records { call, answer });
                }
            }
            Event::Packages { call, .. } => {
                world.command_after(after, at, Command::Packages { call, answer: Ok(()) });
            }
            Event::ToHost { to, msg } => world.after(after, move |world| host(world, at, to, msg)),
            Event::Watch(nodes) => {
                for id in nodes {
                    if world.get(id).is_none() {
                        world.command_after(SECOND * 9, at, Command::Dead(id));
                    }
                }
            }
            Event::Answer { ask, reply } => {
                assert!(world.around.answers.insert(ask, reply).is_none(), "answered twice");
            }
        }
    }

    fn link_down(_: &World, to: NodeId) -> Option<Command> {
        Some(Command::LinkDown(to))
    }

    fn check(deployment: &Deployment) {
        for (name, size, most) in deployment.sizes() {
            assert!(size <= most, "{size} {name}, at most {most}");
        }
    }
}

/// What a node says to everybody's question.
fn part(world: &World, id: NodeId, node: &Deployment, body: &CastBody) -> Option<Vec<u8>> {
    let part = match body {
        CastBody::Describe { .. } => {
            let amounts = Amounts { memory: 1 << 30, cpu: 4_000, disk: 1 << 30, processes: 64 };
            let replicas = u16::try_from(world.around.hosts[&id].runs.len()).unwrap();
            CastPart::Node(Box::new(Description {
                peer: Peer::new(id),
                profile: Profile::plain(&id.short().to_string(), Arch::X86_64, 0),
                free: amounts,
                gives: amounts,
                takes_work: true,
                up_secs: 1,
                replicas,
                holds: Vec::new(),
                programs: Vec::new(),
                availability: Default::default(),
            }))
        }
        CastBody::Services => CastPart::Services(node.views()),
        CastBody::Ports => CastPart::Ports(Vec::new()),
        _ => return None,
    };
    postcard::to_allocvec(&part).ok()
}

/// A host that does at once what it is told, by whoever speaks in the highest epoch.
fn host(world: &mut World, manager: NodeId, at: NodeId, msg: ToHost) {
    if world.get(at).is_none() {
        return;
    }
    let epoch = match &msg {
        ToHost::Reserve { epoch, .. }
        | ToHost::Start { epoch, .. }
        | ToHost::Stop { epoch, .. }
        | ToHost::Probe { epoch, .. } => *epoch,
        ToHost::BeatAck { .. } | ToHost::NotManager { .. } => return,
    };
    let host = world.around.hosts.get_mut(&at).unwrap();
    let node_name = at.short().to_string();
    let beat = |id: ReplicaId, generation, state| ToManager::Beat {
        id,
        generation,
        state,
        note: String::new(),
        node_name: node_name.clone(),
    };
    let mut said = Vec::new();
    if epoch < host.epoch {
        let service = match msg {
            ToHost::Reserve { id, .. } | ToHost::Start { id, .. } | ToHost::Stop { id, .. } => {
                id.service
            }
            ToHost::Probe { service, .. }
            | ToHost::BeatAck { service, .. }
            | ToHost::NotManager { service } => service,
        };
        said.push(ToManager::Deposed { service, epoch: host.epoch });
    } else {
        host.epoch = epoch;
        match msg {
            ToHost::Reserve { id, epoch, .. } => said.push(ToManager::Reserved { id, epoch }),
            ToHost::Start { id, generation, .. } => {
                world.around.started += usize::from(host.runs.insert(id, generation).is_none());
                said.push(beat(id, generation, HostState::Starting));
                said.push(beat(id, generation, HostState::Ready));
            }
            ToHost::Stop { id, .. } => {
                host.runs.remove(&id);
                said.push(beat(id, 0, HostState::Gone));
            }
            ToHost::Probe { service, .. } => {
                let of = |(id, _): &(&ReplicaId, &u64)| id.service == service;
                let runs = host.runs.iter().filter(of);
                said.extend(runs.map(|(id, generation)| beat(*id, *generation, HostState::Ready)));
                if said.is_empty() {
                    said.push(ToManager::Nothing { service });
                }
            }
            ToHost::BeatAck { .. } | ToHost::NotManager { .. } => {}
        }
    }
    for (number, msg) in said.into_iter().enumerate() {
        let after = Duration::from_millis(20 * (number as u64 + 1));
        world.command_after(after, manager, Command::ToManager { from: at, msg });
    }
}

fn world(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, Community::default());
    for _ in 0..count {
        let id = Id(world.rng.u128(..));
        let records = world.around.played.join(id);
        world.start(id, Deployment::new(id, records));
        world.around.hosts.insert(id, Host::default());
    }
    tell(&mut world);
    world.run(SECOND);
    world
}

fn tell(world: &mut World) {
    for id in world.ids() {
        if world.get(id).is_some() {
            let position = world.around.played.position(id);
            world.command(id, Command::Moved(position));
        }
    }
}

/// It is gone, with all it ran; who watches it, and the ring, find out.
fn crash(world: &mut World, id: NodeId) {
    world.crash(id);
    world.around.played.members.remove(&id);
    world.around.hosts.insert(id, Host::default());
    world.after(SECOND * 2, move |world| {
        for other in world.ids() {
            world.command(other, Command::Dead(id));
        }
        tell(world);
    });
}

fn spec(name: &str, want: u8, content: &[u8]) -> Spec {
    Spec {
        name: name.into(),
        kind: Kind::Static,
        want: Want::Replicas(want),
        command: Vec::new(),
        env: Vec::new(),
        artifacts: vec![(None, Tree { root: Hash::of(content), bytes: 1 })],
        needs: Amounts { memory: 1 << 20, cpu: 10, disk: 1 << 20, processes: 1 },
        port: Port::Http,
        health: Health { check: Check::Port, interval_ms: 1_000, timeout_ms: 500, failures: 3 },
        stop_grace_ms: 100,
        state: Keep::Nothing,
    }
}

fn ask(world: &mut World, at: NodeId, question: ServiceQuestion) -> ServiceAnswer {
    world.around.asks += 1;
    let ask = world.around.asks;
    world.command(at, Command::Ask { ask, question });
    let end = world.now + SECOND * 120;
    assert!(world.run_until(end, |world| world.around.answers.contains_key(&ask)), "no answer");
    world.around.answers.remove(&ask).unwrap()
}

fn deploy(world: &mut World, at: NodeId, spec: &Spec) {
    match ask(world, at, ServiceQuestion::Deploy(spec.clone())) {
        ServiceAnswer::Deployed { missing, .. } => assert_eq!(missing, Vec::<String>::new()),
        other => panic!("{other:?}"),
    }
}

/// The replicas that run: where, and in which version.
fn running(world: &World, service: Key) -> Vec<(NodeId, u64)> {
    let hosts = world.around.hosts.iter();
    let of = |(at, host): (&NodeId, &Host)| {
        let runs = host.runs.iter().filter(|(id, _)| id.service == service);
        runs.map(|(_, generation)| (*at, *generation)).collect::<Vec<_>>()
    };
    hosts.flat_map(of).collect()
}

/// Deployed, updated, kept through deaths of hosts and managers, removed; then silence.
#[test]
fn a_service_from_its_first_day_to_its_last() {
    for seed in 0..150 {
        let count = 1 + seed as usize % 9;
        let want = count.min(3);
        let mut world = world(seed, count);
        let at = world.ids()[seed as usize % count];
        let first = spec("site", u8::try_from(want).unwrap(), b"first");
        let key = first.key();
        deploy(&mut world, at, &first);
        assert_eq!(running(&world, key).len(), want, "{count} nodes");
        let second = spec("site", u8::try_from(want).unwrap(), b"second");
        deploy(&mut world, at, &second);
        world.run(SECOND * 20);
        let now = running(&world, key);
        assert!(now.iter().all(|(_, generation)| *generation == 2), "{count} nodes: {now:?}");
        assert_eq!(now.len(), want);
        if count > 4 {
            // The manager, with or without a replica.
            let manager = world.around.played.owner(key).unwrap();
            let hosted = now.iter().filter(|(id, _)| *id == manager).count();
            let started = world.around.started;
            crash(&mut world, manager);
            world.run(SECOND * 60);
            assert_eq!(running(&world, key).len(), want, "seed {seed}: after its manager died");
            assert_eq!(world.around.started - started, hosted, "only what died is started anew");
            let next = world.around.played.owner(key).unwrap();
            let views = world.get(next).unwrap().views();
            assert_eq!(usize::from(views[0].ready), want, "the next one knows who serves");
        }
        let sent = world.sent;
        world.run(SECOND * 3_600);
        assert_eq!(world.sent, sent, "{count} nodes at rest");
        let at = world.live().next().unwrap().0;
        assert!(matches!(
            ask(&mut world, at, ServiceQuestion::Remove("site".into())),
            ServiceAnswer::Done
        ));
        assert_eq!(running(&world, key), Vec::new());
    }
}

/// Two deploy the same name at once: one wins everywhere, and the other is told.
#[test]
fn two_deploy_one_name() {
    for seed in 0..100 {
        let count = 2 + seed as usize % 8;
        let mut world = world(seed, count);
        let ids = world.ids();
        let (one, other) = (spec("site", 1, b"one"), spec("site", 1, b"other"));
        for (ask, (at, spec)) in [(0, one), (1, other)].into_iter().enumerate() {
            let question = ServiceQuestion::Deploy(spec);
            world.command(ids[at], Command::Ask { ask: ask as u64, question });
        }
        world.run(SECOND * 60);
        let answers = &world.around.answers;
        let won = answers.values().filter(|a| matches!(a, ServiceAnswer::Deployed { .. })).count();
        let told = answers.values().filter(|a| matches!(a, ServiceAnswer::Conflict(_))).count();
        assert_eq!((won, told), (1, 1), "seed {seed}: {answers:?}");
    }
}
