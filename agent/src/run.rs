//! THE loop: next input → `node.handle` → effects (architecture picture in ARCHITECTURE.md).
//!
//! Everything else in the agent turns something that happened into an input here, or carries out
//! an effect. Nothing in the loop awaits a send: queues are bounded, what does not fit is dropped
//! and counted. Start-up is one story in [`boot`]; what the agent does for its own people is in
//! [`people`]; what it does for other nodes' streams and for the gateway in [`streams`].

mod boot;
mod drain;
mod events;
mod groups;
mod objects;
mod pace;
mod people;
mod state;
mod streams;
mod timers;
mod told;
mod traffic;
mod ways;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};

use dugnad_kernel::{Component, Cx, Effect, Input, Peer, Time, wire};
use dugnad_node::{Command, Event, Happened, Msg, Node, Question, Room};
use dugnad_resource::execute::{Order, Report};
use dugnad_resource::spec::state_mark;
use smol::LocalExecutor;
use smol::channel::{Receiver, Sender};

use crate::blobs::Blobs;
use crate::clock;
use crate::config::{Config, Dirs};
use crate::control::shape;
use crate::disk::{Disk, DiskEvent};
use crate::gateway::{Gateway, Listed};
use crate::host::Host;
use crate::identity::{Community, Remembered};
use crate::limits::Limits;
use crate::link::{LinkEvent, Links};
use crate::places::Places;
use crate::stream::OpenStream;
use timers::Timers;
use told::Told;

pub(crate) use boot::agent;

/// What the loop waits for, besides timers.
enum Happening {
    Link(LinkEvent),
    Disk(DiskEvent),
    Report(Report),
    Command(Command),
    Signal(i32),
    /// A timer is due.
    Due,
}

/// Where happenings come from.
struct Sources {
    links: Receiver<LinkEvent>,
    disk: Receiver<DiskEvent>,
    reports: Receiver<Report>,
    commands: Receiver<Command>,
    signals: async_signal::Signals,
}

/// Whether the agent is about to end, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    No,
    /// The agent ends; its services run on.
    Agent,
    /// The node leaves its community; its services stop.
    Node,
    /// Another machine runs with this identity, and was there first; services stop.
    Copy,
}

/// The running agent. One thread, so everything is shared by `Rc`; no borrow outlives an await.
pub(crate) struct Agent {
    ex: Rc<LocalExecutor<'static>>,
    dirs: Dirs,
    config: RefCell<Config>,
    community: Community,
    me: Peer,
    started: Instant,
    node: RefCell<Node>,
    rng: RefCell<fastrand::Rng>,
    timers: Timers,
    links: Links,
    disk: Disk,
    blobs: Rc<Blobs>,
    host: Rc<Host>,
    limits: Limits,
    /// Connections of the owner's own programs.
    own: Rc<Places<()>>,
    gateway: RefCell<Option<Gateway>>,
    remembered: RefCell<Remembered>,
    commands: Sender<Command>,
    reports: Sender<Report>,
    told: Told,
    routes: streams::Routes,
    /// The services there are, as `/` last heard, and when.
    listed: RefCell<Option<(Vec<Listed>, Instant)>>,
    listeners: RefCell<groups::Listeners>,
    /// Who watches which object.
    readers: RefCell<objects::Readers>,
    /// Where there was room for long values, and when that was asked.
    room: RefCell<Option<(Instant, Room)>>,
    subscribers: RefCell<events::Subscribers>,
    /// What the node was told of the time of day.
    clock: clock::Told,
    /// Why the last write failed, if it did.
    disk_trouble: RefCell<Option<String>>,
    traffic: RefCell<traffic::Traffic>,
    ending: Cell<Ending>,
    /// The node has left the ring, or does not wait for that: the loop ends.
    left: Cell<bool>,
    /// Rings when nothing runs here any more, for whoever waits to leave.
    handed_over: RefCell<Option<Sender<()>>>,
    /// Rings when there is somebody new to dial, or this machine moved.
    dial_soon: (Sender<()>, Receiver<()>),
}

/// The agent, as soon as there is one: the host begins before it.
type Itself = Rc<OnceCell<Weak<Agent>>>;

impl Agent {
    /// Runs until the node has left the ring.
    async fn run(self: &Rc<Self>, sources: Sources) {
        while !self.left.get() {
            let happening = sources.next(self.timers.next()).await;
            match happening {
                Happening::Link(event) => self.on_link(event),
                Happening::Disk(event) => self.on_disk(event),
                Happening::Report(report) => {
                    let stopped = matches!(report, Report::Stopped { .. } | Report::Started { .. });
                    self.input(Input::Command(Command::Host(report)));
                    if stopped {
                        self.tell_kept();
                    }
                }
                Happening::Command(command) => self.input(Input::Command(command)),
                Happening::Signal(signal) => self.on_signal(signal),
                Happening::Due => self.on_due(),
            }
        }
    }

    /// Which services have state here though none of their replicas runs.
    fn tell_kept(self: &Rc<Self>) {
        let kept = self.host.kept_state().iter().map(|kept| state_mark(&kept.service)).collect();
        self.input(Input::Command(Command::KeptState(kept)));
    }

    fn input(self: &Rc<Self>, input: Input<Node>) {
        let mut effects = Vec::new();
        {
            let now = Time(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX));
            let (mut node, mut rng) = (self.node.borrow_mut(), self.rng.borrow_mut());
            let mut handle = |input| node.handle(input, &mut Cx::new(now, &mut rng, &mut effects));
            if let Some(set) = self.clock.news(now) {
                handle(Input::Command(Command::Clock(set)));
            }
            handle(input);
        }
        for effect in effects {
            match effect {
                Effect::Send { to, msg } => match wire::encode(&msg) {
                    // A full queue drops and counts; protocols live with loss.
                    Ok(frame) => {
                        if self.links.try_send(to, frame) {
                            self.traffic.borrow_mut().sent(msg.kind());
                        }
                    }
                    Err(error) => {
                        self.links.count("too_large_to_send");
                        log::error!("a message to {} was not sent: {error}", to.short());
                    }
                },
                Effect::After { delay, timer } => {
                    self.timers.after(delay, timer);
                }
                Effect::Emit(event) => self.event(event),
            }
        }
    }

    fn event(self: &Rc<Self>, event: Event) {
        match event {
            Event::Contact(peer) => {
                self.links.learn(peer);
                self.dial_soon();
            }
            Event::Persist { token, writes } => self.disk.persist(token, writes),
            Event::Host(order) => self.order(order),
            Event::Answer(ask, answer) => {
                // Who asked may have gone away.
                if let Some(asker) = self.told.end(ask) {
                    _ = asker.try_send(answer);
                }
            }
            Event::Happened(happened) => self.happened(&happened),
            Event::Ports(ports) => {
                if let Some(gateway) = self.gateway.borrow().as_ref() {
                    gateway.set_ports(ports);
                }
            }
            Event::GroupMessage { group, from, from_name, body } => {
                self.group_message(&group, from, &from_name, &body);
            }
            Event::ObjectChanged { address, answer } => self.object_changed(&address, &answer),
            Event::Told { sub, told } => self.told_event(sub, &told),
            Event::Lost { sub, name, count } => self.lost_events(sub, &name, count),
            Event::HandedOver => {
                if let Some(waiting) = self.handed_over.borrow_mut().take() {
                    // Who waited may have given up.
                    _ = waiting.try_send(());
                }
            }
            Event::Left => self.left.set(true),
        }
    }

    /// The core decides who fetches what from whom; the bytes move here.
    fn order(self: &Rc<Self>, order: Order) {
        let agent = Rc::clone(self);
        match order {
            Order::Fetch { id, tree, from } => self.detach(async move {
                let report = match agent.blobs.fetch(tree, from, agent.open_stream()).await {
                    Ok(()) => Report::Fetched { id },
                    Err(reason) => Report::FetchFailed { id, reason },
                };
                agent.report(report).await;
            }),
            Order::KeepPackage { tree, from } => self.detach(async move {
                let report = match agent.blobs.fetch(tree, from, agent.open_stream()).await {
                    Ok(()) => Report::Kept { tree },
                    Err(reason) => {
                        log::info!("package {} is not here yet: {reason}", tree.root);
                        Report::KeepFailed { tree, reason }
                    }
                };
                agent.report(report).await;
            }),
            Order::Drop { tree } => self.detach(async move {
                if let Err(error) = agent.blobs.drop_tree(tree).await {
                    agent.warn(format!("package {} was not deleted: {error}", tree.root));
                }
            }),
            Order::Start(_) | Order::Stop { .. } | Order::ForgetState { .. } => {
                self.host.order(order);
            }
        }
    }

    async fn report(&self, report: Report) {
        // The loop reads until the end; after it nobody needs to know.
        _ = self.reports.send(report).await;
    }

    fn detach(&self, task: impl Future<Output = ()> + 'static) {
        self.ex.spawn(task).detach();
    }

    fn open_stream(self: &Rc<Self>) -> OpenStream {
        let links = self.links.clone();
        Rc::new(move |node| {
            let links = links.clone();
            Box::pin(async move {
                let stream = links.open_stream(node).await?;
                Ok(Box::pin(stream) as crate::stream::Stream)
            })
        })
    }

    fn on_link(self: &Rc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Up(peer) => {
                self.remembered.borrow_mut().note(&peer);
                self.input(Input::Command(Command::LinkUp(peer)));
            }
            LinkEvent::Down(id) => self.input(Input::Command(Command::LinkDown(id))),
            LinkEvent::Frame { from, body } => match wire::decode::<Msg>(&body) {
                Ok(msg) => {
                    let flood =
                        self.traffic.borrow_mut().received(from, msg.kind(), Instant::now());
                    if let Some(flood) = flood {
                        log::warn!("{flood}");
                        self.links.count("floods");
                    }
                    self.input(Input::Message { from, msg });
                }
                Err(dropped) => {
                    self.links.count("frame_malformed");
                    log::debug!("a frame of {} was dropped: {dropped}", from.short());
                }
            },
            LinkEvent::Twin { text, later } => self.on_twin(text, later),
            LinkEvent::Stream { from, stream } => {
                let agent = Rc::clone(self);
                self.detach(async move { agent.serve(from, Box::pin(stream)).await });
            }
        }
    }

    /// One identity on two machines: everybody hears of it, and the later one ends.
    fn on_twin(self: &Rc<Self>, text: String, later: bool) {
        log::warn!("{text}");
        if later {
            self.ending.set(Ending::Copy);
            self.left.set(true);
            return;
        }
        let ask = self.told.next_ask();
        self.input(Input::Command(Command::Ask(ask, Question::Announce(text))));
    }

    fn on_disk(self: &Rc<Self>, event: DiskEvent) {
        match event {
            DiskEvent::Persisted(token) => {
                self.disk_trouble.replace(None);
                self.input(Input::Command(Command::Persisted(token)));
            }
            DiskEvent::Failed { token, error } => {
                self.disk_trouble.replace(Some(error.to_string()));
                self.warn(format!("not written to disk: {error}"));
                self.input(Input::Command(Command::NotPersisted(token)));
            }
        }
    }

    fn on_signal(self: &Rc<Self>, signal: i32) {
        if signal == nix::libc::SIGHUP {
            match self.reload() {
                Ok(lines) => lines.iter().for_each(|line| log::info!("{line}")),
                Err(error) => log::error!("{error}; the old settings stay in force"),
            }
            return;
        }
        if self.ending.get() != Ending::No {
            log::warn!("told twice: ending without leaving the ring");
            self.left.set(true);
            return;
        }
        self.ending.set(Ending::Agent);
        log::info!("leaving the ring; services run on (`dugnad leave` stops them, too)");
        self.input(Input::Command(Command::Leave));
    }

    fn on_due(self: &Rc<Self>) {
        let now = Instant::now();
        while let Some(timer) = self.timers.pop(now) {
            self.input(Input::Timer(timer));
        }
    }

    fn happened(&self, happened: &Happened) {
        let service = happened.service.as_deref().map(|s| format!("{s}: ")).unwrap_or_default();
        log::info!("{service}{} ({})", happened.text, happened.by_name);
        self.routes.doubt(happened.service.as_deref());
        self.told.event(&shape::event(SystemTime::now(), happened));
    }

    /// Something its owner should know.
    fn warn(&self, text: String) {
        log::warn!("{text}");
        self.told.warn(text);
    }
}

impl Sources {
    /// The next thing that happens; no source starves another.
    async fn next(&self, due: Option<Instant>) -> Happening {
        use smol::future::race;
        let timer = async {
            match due {
                Some(at) => smol::Timer::at(at).await,
                None => std::future::pending().await,
            };
            Happening::Due
        };
        let links = take(&self.links, Happening::Link);
        let disk = take(&self.disk, Happening::Disk);
        let reports = take(&self.reports, Happening::Report);
        let commands = take(&self.commands, Happening::Command);
        let signals = async {
            use futures_util::StreamExt as _;
            let mut signals = &self.signals;
            match signals.next().await {
                Some(Ok(signal)) => Happening::Signal(signal as i32),
                _ => std::future::pending().await,
            }
        };
        race(race(timer, links), race(race(disk, reports), race(commands, signals))).await
    }
}

async fn take<T>(from: &Receiver<T>, wrap: fn(T) -> Happening) -> Happening {
    match from.recv().await {
        Ok(value) => wrap(value),
        // The agent itself holds a sender as long as the loop runs.
        Err(_) => std::future::pending().await,
    }
}

/// How long the peers have to take what is on its way when the agent ends.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
