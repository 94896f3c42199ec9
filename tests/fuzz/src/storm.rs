//! A live node among peers that say anything at any time.

use std::collections::{BTreeMap, VecDeque};

use dugnad_collective::cast::CastPart;
use dugnad_collective::{self as collective, deployment, persistence, prospector, pubsub};
use dugnad_connectivity::route::{Found, Purpose, RouteMsg};
use dugnad_connectivity::tree::broadcast::{CastId, CastMsg};
use dugnad_connectivity::tree::bulk::BulkMsg;
use dugnad_connectivity::tree::feedback::{Ask, Part};
use dugnad_connectivity::{self as connectivity, group, overlay, ring};
use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{ArcSet, Component, Cx, Duration, Effect, Id, Input, NodeId, Peer, Time, wire};
use dugnad_node::{
    Begin, Command, Config, Event, EventQuestion, GroupManner, GroupMode, GroupPolicy,
    GroupQuestion, Msg, Node, ProspectQuestion, Question, ServiceQuestion, Timer,
};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::{Description, Profile};
use dugnad_resource::execute::{HostState, Order, ReplicaId, Report, ToHost, ToManager};
use dugnad_resource::spec::{Arch, Check, Health, Keep, Kind, Port, Spec, Tree, Want};
use fastrand::Rng;

use crate::mutate::{honest_length, mutate};
use crate::{Fate, frame};

/// One input never causes more than this.
pub const EFFECTS_MAX: usize = 2_000;
/// Timers that wait are not held back beyond this: the oldest fire.
const TIMERS_MAX: usize = 4_096;
const SENT_MAX: usize = 64;

pub struct Storm {
    node: Node,
    me: NodeId,
    rng: Rng,
    now: Time,
    peers: Vec<NodeId>,
    golden: Vec<Vec<u8>>,
    timers: BTreeMap<(Time, u64), Timer>,
    tokens: Vec<u64>,
    orders: Vec<Order>,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the node said lately, to be answered.
    sent: VecDeque<(NodeId, Msg)>,
    sequence: u64,
    inc: u32,
    /// The most there ever was of what [`Node::sizes`] names, and of effects of one input.
    pub most: BTreeMap<&'static str, usize>,
    pub messages: u64,
}

fn amounts(memory: u64) -> Amounts {
    Amounts { memory, cpu: 4_000, disk: 1 << 34, processes: 512 }
}

fn node(me: NodeId, inc: u32) -> Node {
    let mut peer = Peer::new(me);
    peer.inc = inc;
    let profile = Profile::plain("fuzzed", Arch::X86_64, 1);
    let ceilings = Ceilings { amounts: amounts(1 << 32), upload: None };
    Node::new(Config { me: peer, profile, ceilings, programs: Vec::new() })
}

fn spec(rng: &mut Rng) -> Spec {
    let name = *rng.choice(&["wiki", "site", "third"]).unwrap_or(&"wiki");
    let tree = Tree { root: dugnad_kernel::Hash([rng.u8(0..4); 32]), bytes: 1 << rng.u8(0..40) };
    Spec {
        name: name.into(),
        kind: Kind::Static,
        want: Want::Replicas(rng.u8(1..6)),
        command: Vec::new(),
        env: Vec::new(),
        artifacts: vec![(None, tree)],
        needs: amounts(1 << 20),
        port: Port::Http,
        health: Health { check: Check::Port, interval_ms: 10, timeout_ms: 10, failures: 3 },
        stop_grace_ms: 1,
        state: if rng.bool() { Keep::OnNode } else { Keep::Nothing },
    }
}

impl Storm {
    #[must_use]
    pub fn new(seed: u64, golden: &[(String, Vec<u8>)]) -> Self {
        let mut rng = Rng::with_seed(seed);
        // The ids that the golden messages speak of, so that their content means something.
        let mut peers: Vec<NodeId> = (0..10u128).map(|n| Id(n << 100 | n)).collect();
        let me = peers.remove(rng.usize(0..peers.len()));
        let mut storm = Self {
            node: node(me, 1),
            me,
            rng,
            now: Time(1),
            peers,
            golden: golden.iter().map(|(_, bytes)| bytes.clone()).collect(),
            timers: BTreeMap::new(),
            tokens: Vec::new(),
            orders: Vec::new(),
            disk: BTreeMap::new(),
            sent: VecDeque::new(),
            sequence: 0,
            inc: 1,
            most: BTreeMap::new(),
            messages: 0,
        };
        storm.boot();
        storm
    }

    fn boot(&mut self) {
        let records = self.disk.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let alone = self.rng.bool();
        self.command(Command::Boot { records, trees: Vec::new(), alone });
    }

    /// One random input.
    pub fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..=44 => self.message(),
            45..=69 => self.answer(),
            70..=87 => self.timer(),
            88..=91 => self.link(),
            92..=94 => self.persisted(),
            95..=97 => self.report(),
            98 => self.ask(),
            _ => self.rare(),
        }
    }

    fn peer(&mut self) -> NodeId {
        match self.rng.u8(0..20) {
            // Strangers, and somebody with my own id.
            0 => Id(self.rng.u128(..)),
            1 => self.me,
            _ => self.peers[self.rng.usize(0..self.peers.len())],
        }
    }

    fn message(&mut self) {
        let golden = &self.golden;
        let bytes = &golden[self.rng.usize(0..golden.len())];
        let other = &golden[self.rng.usize(0..golden.len())];
        let mut bytes = if self.rng.u8(0..4) == 0 {
            bytes.clone()
        } else {
            mutate(&mut self.rng, bytes, other)
        };
        honest_length(&mut bytes);
        if matches!(frame(&bytes), Fate::Dropped(_)) {
            return;
        }
        let Ok(msg) = wire::decode::<Msg>(&bytes[wire::HEADER..]) else { return };
        // Orders of others wait until their manager was looked up; those of its own are obeyed.
        let own = matches!(msg, Msg::ToHost(_)) && self.rng.bool();
        let from = if own { self.me } else { self.peer() };
        self.messages += 1;
        self.input(Input::Message { from, msg });
    }

    /// Answers something the node said, as the one it was said to might, or might not.
    fn answer(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let place = self.rng.usize(0..self.sent.len());
        let Some((to, said)) = self.sent.get(place).cloned() else { return };
        let Some(msg) = self.answer_to(to, said) else { return };
        self.messages += 1;
        self.input(Input::Message { from: to, msg });
    }

    fn answer_to(&mut self, to: NodeId, said: Msg) -> Option<Msg> {
        use connectivity::Msg as Connected;
        Some(match said {
            Msg::Connectivity(Connected::Overlay(overlay::Msg::Ring(ring::Msg::Query {
                call,
            }))) => {
                let (pred, succs) = (self.some_peer(), self.some_peers());
                let answer = if self.rng.u8(0..8) == 0 {
                    ring::Msg::Moved { call, succs }
                } else {
                    ring::Msg::QueryRes { call, pred, succs }
                };
                Msg::Connectivity(Connected::Overlay(overlay::Msg::Ring(answer)))
            }
            Msg::Connectivity(Connected::Overlay(overlay::Msg::Ring(ring::Msg::LeaveReq {
                op,
            }))) => {
                Msg::Connectivity(Connected::Overlay(overlay::Msg::Ring(ring::Msg::LeaveGrant {
                    op,
                })))
            }
            Msg::Connectivity(Connected::Overlay(overlay::Msg::Route(RouteMsg::Hop(hop)))) => {
                match hop.purpose {
                    Purpose::Join { op } => {
                        let mut succs = self.some_peers();
                        succs.insert(0, Peer::new(to));
                        let pred = self.some_peer();
                        Msg::Connectivity(Connected::Overlay(overlay::Msg::Ring(
                            ring::Msg::JoinPoint { op, pred, succs },
                        )))
                    }
                    Purpose::Find | Purpose::Merge => {
                        let (owner, succs) = (self.some_peer(), self.some_peers());
                        let found = Found { owner, succs, certain: self.rng.bool(), hops: 2 };
                        Msg::Connectivity(Connected::Overlay(overlay::Msg::Route(
                            RouteMsg::Found { call: hop.call, found },
                        )))
                    }
                }
            }
            Msg::Connectivity(Connected::Overlay(overlay::Msg::Cast(CastMsg::Down {
                id,
                ask: Some(ask),
                ..
            }))) => self.feedback(id, ask),
            Msg::Connectivity(Connected::Overlay(overlay::Msg::Bulk(BulkMsg::Down(bulk)))) => {
                self.feedback(bulk.id, bulk.ask?)
            }
            Msg::Collective(msg) => Msg::Collective(self.golden_response(&msg)?),
            Msg::ToHost(order) => Msg::ToManager(self.host_answer(order)?),
            Msg::Connectivity(connectivity::Msg::Group(group::Msg::Request { call, .. })) => {
                let mode = if self.rng.bool() { GroupMode::Mesh } else { GroupMode::Ring };
                let (epoch, policy) = (self.rng.u32(0..5), GroupPolicy::Open);
                let welcome = group::Welcome {
                    epoch,
                    mode,
                    policy,
                    peers: self.some_peers(),
                    places: Vec::new(),
                };
                let response = group::Response::Welcome(welcome);
                Msg::Connectivity(connectivity::Msg::Group(group::Msg::Response { call, response }))
            }
            _ => return None,
        })
    }

    fn feedback(&mut self, id: CastId, Ask { tag, .. }: Ask) -> Msg {
        let count = self.rng.usize(0..5);
        let part = |_| Part { at: self.some_peer().id, bytes: self.part() };
        let parts = (0..count).map(part).collect();
        let (cut, done) = (self.rng.bool(), self.rng.bool());
        let cover = Box::new(ArcSet::whole());
        let up = match self.rng.u8(0..10) {
            0 => CastMsg::Unknown { id, tag },
            1 => CastMsg::Alive { id, tag },
            _ => CastMsg::Up { id, tag, parts, cover, cut, done },
        };
        Msg::Connectivity(connectivity::Msg::Overlay(overlay::Msg::Cast(up)))
    }

    fn host_answer(&mut self, order: ToHost) -> Option<ToManager> {
        let states = [HostState::Ready, HostState::Unready, HostState::Failed, HostState::Gone];
        let state = *self.rng.choice(&states)?;
        let note = "n".repeat(self.rng.usize(0..40_000));
        let node_name = "m".repeat(self.rng.usize(0..20_000));
        Some(match order {
            ToHost::Reserve { id, epoch, .. } if self.rng.u8(0..4) > 0 => {
                ToManager::Reserved { id, epoch }
            }
            ToHost::Reserve { id, epoch, .. } => ToManager::Refused { id, epoch, reason: note },
            ToHost::Start { id, generation, .. } => {
                ToManager::Beat { id, generation, state, note, node_name }
            }
            ToHost::Stop { id, .. } => {
                ToManager::Beat { id, generation: 0, state: HostState::Gone, note, node_name }
            }
            ToHost::Probe { service, .. } if self.rng.bool() => ToManager::Nothing { service },
            ToHost::Probe { service, mut epoch } => {
                epoch.term = epoch.term.saturating_add(self.rng.u64(..) >> self.rng.u32(0..64));
                ToManager::Deposed { service, epoch }
            }
            ToHost::BeatAck { .. } | ToHost::NotManager { .. } => return None,
        })
    }

    /// Some answer of the kind the request is for.
    fn golden_response(&mut self, asked: &collective::Msg) -> Option<collective::Msg> {
        use collective::Msg as M;
        for _ in 0..100 {
            let bytes = &self.golden[self.rng.usize(0..self.golden.len())];
            let Ok(Msg::Collective(answer)) = wire::decode(&bytes[wire::HEADER..]) else {
                continue;
            };
            match (asked, answer) {
                (
                    M::Persistence(persistence::Msg::Request { call, .. }),
                    M::Persistence(persistence::Msg::Response { response, .. }),
                ) => {
                    let msg = persistence::Msg::Response { call: *call, response };
                    return Some(M::Persistence(msg));
                }
                (
                    M::Deployment(deployment::Msg::Request { call, .. }),
                    M::Deployment(deployment::Msg::Response { response, .. }),
                ) => {
                    let msg = deployment::Msg::Response { call: *call, response };
                    return Some(M::Deployment(msg));
                }
                (
                    M::PubSub(pubsub::Msg::Request { call, .. }),
                    M::PubSub(pubsub::Msg::Response { response, .. }),
                ) => {
                    let msg = pubsub::Msg::Response { call: *call, response };
                    return Some(M::PubSub(msg));
                }
                (
                    M::Prospector(prospector::Msg::Request { call, .. }),
                    M::Prospector(prospector::Msg::Response { response, .. }),
                ) => {
                    let msg = prospector::Msg::Response { call: *call, response };
                    return Some(M::Prospector(msg));
                }
                _ => {}
            }
        }
        None
    }

    /// What one node says in a broadcast: that it has room.
    fn part(&mut self) -> Vec<u8> {
        let description = Description {
            peer: self.some_peer(),
            profile: {
                let name = "p".repeat(self.rng.usize(0..3_000));
                let mut profile = Profile::plain(&name, Arch::X86_64, self.rng.u32(0..4));
                profile.labels.tags = vec!["t".repeat(300); self.rng.usize(0..40)];
                profile
            },
            free: amounts(self.rng.u64(..)),
            gives: amounts(self.rng.u64(..)),
            takes_work: true,
            up_secs: 1,
            replicas: self.rng.u16(..),
            holds: Vec::new(),
            programs: Vec::new(),
            availability: Default::default(),
        };
        wire::encode(&CastPart::Node(Box::new(description)))
            .map(|f| f[wire::HEADER..].to_vec())
            .unwrap_or_default()
    }

    fn some_peer(&mut self) -> Peer {
        let mut peer = Peer::new(self.peer());
        peer.inc = self.rng.u32(0..4);
        peer
    }

    fn some_peers(&mut self) -> Vec<Peer> {
        let count = if self.rng.u8(0..10) == 0 { 2_000 } else { self.rng.usize(0..8) };
        (0..count).map(|_| self.some_peer()).collect()
    }

    fn timer(&mut self) {
        if let Some(((due, _), timer)) = self.timers.pop_first() {
            self.now = self.now.max(due);
            self.input(Input::Timer(timer));
        }
    }

    fn link(&mut self) {
        let id = self.peer();
        if id == self.me {
            return;
        }
        if self.rng.bool() {
            let mut peer = Peer::new(id);
            peer.inc = self.rng.u32(0..5);
            self.command(Command::LinkUp(peer));
        } else {
            self.command(Command::LinkDown(id));
        }
    }

    fn persisted(&mut self) {
        if !self.tokens.is_empty() {
            let token = self.tokens.swap_remove(self.rng.usize(0..self.tokens.len()));
            self.command(Command::Persisted(token));
        }
    }

    fn report(&mut self) {
        let Some(order) = self.orders.pop() else { return };
        let reason = "x".repeat(self.rng.usize(0..5_000));
        let good = self.rng.bool();
        let state = |id: ReplicaId, reason: String, choice: u8| match choice {
            0 => Report::Started { id },
            1 => Report::Ready { id },
            2 => Report::Unready { id, reason },
            _ => Report::Failed { id, reason },
        };
        let report = match order {
            Order::Fetch { id, .. } if good => Report::Fetched { id },
            Order::Fetch { id, .. } => Report::FetchFailed { id, reason },
            Order::Start(run) => state(run.id, reason, self.rng.u8(0..4)),
            Order::Stop { id, .. } => Report::Stopped { id },
            Order::KeepPackage { tree, .. } if good => Report::Kept { tree },
            Order::KeepPackage { tree, .. } => Report::KeepFailed { tree, reason },
            Order::Drop { .. } | Order::ForgetState { .. } => return,
        };
        self.command(Command::Host(report));
    }

    fn ask(&mut self) {
        let name = spec(&mut self.rng).name;
        let question = match self.rng.u8(0..14) {
            10 | 11 => self.event_question().into(),
            12 => ProspectQuestion::Census.into(),
            13 => {
                let (condition, want) = (Condition::default(), self.rng.u16(..));
                ProspectQuestion::Find { condition, want }.into()
            }
            8 | 9 => Question::Group(self.group_question()),
            0 => ServiceQuestion::Nodes.into(),
            1 => ServiceQuestion::Ps.into(),
            2 => ServiceQuestion::Why(name).into(),
            3 => ServiceQuestion::Resolve(name).into(),
            4 => ServiceQuestion::Stop(name).into(),
            5 => ServiceQuestion::Remove(name).into(),
            6 => ServiceQuestion::Plan(spec(&mut self.rng)).into(),
            _ => ServiceQuestion::Deploy(spec(&mut self.rng)).into(),
        };
        self.sequence += 1;
        self.command(Command::Ask(self.sequence, question));
    }

    /// About the type of the golden messages, or one of the community's own.
    fn event_question(&mut self) -> EventQuestion {
        let names = ["sensor.temperature", "sensor.temperature", "node.join", "node", "a"];
        let name = names[self.rng.usize(0..names.len())].to_owned();
        let sub = self.rng.u64(0..400);
        match self.rng.u8(0..5) {
            0 => EventQuestion::Types,
            1 => EventQuestion::Publish { name, attributes: Vec::new(), body: vec![1; 100] },
            2 => EventQuestion::Unsubscribe { sub },
            _ => {
                let begin = if self.rng.bool() { Begin::Now } else { Begin::Since(0) };
                EventQuestion::Subscribe { sub, name, condition: String::new(), begin }
            }
        }
    }

    /// About the group of the golden messages, or one of few others.
    fn group_question(&mut self) -> GroupQuestion {
        let names = ["choir", "choir", "wiki", "a", "b"];
        let name = names[self.rng.usize(0..names.len())].to_owned();
        let (keep, policy) = (self.rng.bool(), GroupPolicy::Open);
        match self.rng.u8(0..5) {
            0 => GroupQuestion::List,
            1 => GroupQuestion::Create { name, policy },
            2 => GroupQuestion::Join { name, keep },
            3 => GroupQuestion::Leave { name, keep },
            _ => {
                let body = vec![1; self.rng.usize(0..20_000)];
                let manner = if keep {
                    GroupManner::Reliable
                } else {
                    GroupManner::ToOne { that: Vec::new() }
                };
                GroupQuestion::Send { name, body, manner }
            }
        }
    }

    fn rare(&mut self) {
        match self.rng.u8(0..8) {
            0 => self.command(Command::Leave),
            1 => {
                // A restart from what is on disk.
                self.inc += 1;
                self.node = node(self.me, self.inc);
                self.timers.clear();
                self.tokens.clear();
                self.orders.clear();
                self.boot();
            }
            _ => {
                let amounts = amounts(self.rng.u64(0..1 << 33));
                let ceilings = Ceilings { amounts, upload: None };
                let takes_work = self.rng.bool();
                self.command(Command::Limits { ceilings, takes_work });
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.input(Input::Command(command));
    }

    fn input(&mut self, input: Input<Node>) {
        self.now = self.now + Duration::from_millis(self.rng.u64(0..50));
        let mut effects = Vec::new();
        self.node.handle(input, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        let count = effects.len();
        assert!(effects.len() <= EFFECTS_MAX, "{} effects of one input", effects.len());
        for effect in effects {
            self.effect(effect);
        }
        for (name, have, max) in self.node.sizes() {
            assert!(have <= max, "{have} {name}, {max} at most");
            let most = self.most.entry(name).or_default();
            *most = have.max(*most);
        }
        let most = self.most.entry("effects").or_default();
        *most = count.max(*most);
        while self.timers.len() > TIMERS_MAX {
            self.timer();
        }
    }

    fn effect(&mut self, effect: Effect<Node>) {
        self.sequence += 1;
        match effect {
            Effect::Send { to, msg } => {
                assert_ne!(to, self.me, "sent to itself: {msg:?}");
                if let Err(error) = wire::encode(&msg) {
                    panic!("{error}: {msg:?}");
                }
                self.sent.push_back((to, msg));
                if self.sent.len() > SENT_MAX {
                    self.sent.pop_front();
                }
            }
            Effect::After { delay, timer } => {
                self.timers.insert((self.now + delay, self.sequence), timer);
            }
            Effect::Emit(Event::Persist { token, writes }) => {
                self.tokens.push(token);
                for (key, value) in writes {
                    match value {
                        Some(value) => self.disk.insert(key, value),
                        None => self.disk.remove(&key),
                    };
                }
            }
            Effect::Emit(Event::Host(order)) => self.orders.push(order),
            Effect::Emit(_) => {}
        }
    }
}
