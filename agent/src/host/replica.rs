//! The life of one replica on this node: one task that carries its orders out one after another.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dugnad_platform::cgroup::Parent;
use dugnad_resource::execute::{Order, ReplicaId, Report, Run};
use dugnad_resource::spec::{Kind, Tree};
use smol::Timer;
use smol::channel::Receiver;

use super::health::{self, Notice};
use super::launch::{self, Fail, Prepared};
use super::lease::Lease;
use super::record::remove_all;
use super::room;
use super::running::{PATIENCE, Running, last_lines};
use super::state::Keeping;
use super::{Endpoint, Shared, State, load};

/// An end within this time is a crash at start.
const YOUNG: Duration = Duration::from_secs(10);
/// So many of them in a row, and it is not started again.
const CRASHES_MAX: u32 = 5;
/// Lines of the log that are told with it.
const LOG_LINES: usize = 10;
/// Before the first restart; doubled every time. Tests do not wait for it.
const PAUSE_MIN: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });
const PAUSE_MAX: Duration = Duration::from_secs(60);

pub(super) struct Replica {
    pub(super) shared: Rc<Shared>,
    pub(super) id: ReplicaId,
    pub(super) orders: Receiver<Order>,
    /// The package that this agent has put into its folder.
    unpacked: Option<Tree>,
    keeping: Keeping,
    lease: Lease,
}

/// Why watching a process came to an end.
enum Ended {
    Order(Box<Order>),
    Exit(Option<std::process::ExitStatus>),
    Sick(String),
    /// It has more on disk than it asked for, and the owner gives no more.
    NoRoom(String),
    /// Another replica may run from now on.
    NoLease(String),
}

/// Restarts, and how long to wait before the next one.
#[derive(Default)]
struct Crashes {
    young: u32,
    pause: Option<Duration>,
}

impl Crashes {
    /// How long to wait now; `None` if it is not to be started again.
    fn next(&mut self, young: bool) -> Option<Duration> {
        if young {
            self.young += 1;
        } else {
            *self = Self::default();
        }
        if self.young >= CRASHES_MAX {
            return None;
        }
        let pause = self.pause.map_or(PAUSE_MIN, |last| (last * 2).min(PAUSE_MAX));
        self.pause = Some(pause);
        Some(pause)
    }
}

impl Replica {
    pub(super) fn new(shared: Rc<Shared>, id: ReplicaId, orders: Receiver<Order>) -> Self {
        let keeping = Keeping::new(Rc::clone(&shared), id);
        let lease = Lease::new(Rc::clone(&shared), id);
        Self { shared, id, orders, unpacked: None, keeping, lease }
    }

    /// Runs until the replica is stopped and no further order waits.
    pub(super) async fn live(mut self, adopted: Option<(Rc<Run>, Running)>) {
        let mut next = match adopted {
            Some((run, running)) => Some(self.keep(run, Some(running)).await),
            None => None,
        };
        loop {
            let order = match next.take() {
                Some(order) => order,
                None if self.orders.is_empty() && self.shared.forget(self.id) => return,
                None => match self.orders.recv().await {
                    Ok(order) => order,
                    Err(_) => return,
                },
            };
            match order {
                Order::Start(run) => next = Some(self.keep(Rc::new(run), None).await),
                Order::Stop { forget, .. } => self.stopped(forget).await,
                Order::Fetch { .. }
                | Order::KeepPackage { .. }
                | Order::Drop { .. }
                | Order::ForgetState { .. } => {}
            }
        }
    }

    /// Keeps `run` running until an order says otherwise; returns that order. Nothing of it runs
    /// then.
    async fn keep(&mut self, run: Rc<Run>, mut running: Option<Running>) -> Order {
        let adopted = running.is_some();
        self.shared.begin(&run);
        if let Err(reason) = run.spec.check() {
            return self.failed(&run, format!("the service is not valid: {reason}")).await;
        }
        if run.spec.kind == Kind::Static {
            return self.keep_static(&run).await;
        }
        if adopted {
            self.report(Report::Started { id: self.id }).await;
        }
        let mut crashes = Crashes::default();
        loop {
            let (young, reason) = match self.once(&run, running.take()).await {
                Ok(order) => return order,
                Err(Fail::Final(reason)) => return self.failed(&run, reason).await,
                Err(Fail::Again(reason)) => (self.shared.was_young(self.id), reason),
            };
            // Whoever deployed it is told why it does not come up.
            let log = if young { self.log_lines(&run).await } else { String::new() };
            let Some(pause) = crashes.next(young) else {
                let reason = format!("{reason}; given up after {CRASHES_MAX} starts{log}");
                return self.failed(&run, reason).await;
            };
            self.shared.set_state(self.id, State::Unready, &reason);
            self.shared.restarted(self.id);
            let reason = format!("{reason}{log}");
            self.report(Report::Unready { id: self.id, reason }).await;
            let over = async {
                Timer::after(pause).await;
                None
            };
            if let Some(order) =
                smol::future::or(async { Some(self.superseding(&run).await) }, over).await
            {
                return order;
            }
        }
    }

    /// One process from start to end. `Ok` is the order that ended it.
    async fn once(&mut self, run: &Rc<Run>, running: Option<Running>) -> Result<Order, Fail> {
        self.shared.set_young(self.id, true);
        let begins = async {
            self.lease.begin(run, running.is_some()).await;
            self.keeping.begin(run, running.is_some()).await.map_err(Fail::Final).map(|()| None)
        };
        let order = async { Ok(Some(self.superseding(run).await)) };
        if let Some(order) = smol::future::or(begins, order).await? {
            return Ok(order);
        }
        let user = match &running {
            Some(running) => running.user,
            None => self.shared.user_for(self.id),
        };
        let door = self.shared.open_door(run, user);
        let (running, prepared) = match running {
            Some(running) => {
                let (user, port) = (running.user, running.port);
                let prepared = Prepared::new(&self.shared, run, user, port)?;
                (running, prepared)
            }
            None => {
                self.shared.set_state(self.id, State::Starting, "");
                let started = launch::start(&self.shared, run, &mut self.unpacked).await?;
                self.shared.set_process(run, &started.0);
                self.report(Report::Started { id: self.id }).await;
                started
            }
        };
        self.shared.set_process(run, &running);
        let ended = {
            let order = async { Ended::Order(Box::new(self.superseding(run).await)) };
            let exit = async { Ended::Exit(running.ended().await) };
            let sick = async { Ended::Sick(health::watch(run, &running, &prepared, self).await) };
            let snapshots = self.keeping.take_snapshots(run, &running, &prepared);
            let lease = async { Ended::NoLease(self.lease.hold(run).await) };
            let room = async { Ended::NoRoom(room::watch(&self.shared, self.id, run).await) };
            let watched = smol::future::or(lease, smol::future::or(sick, snapshots));
            let watched = smol::future::or(room, watched);
            let busy = load::watch(&self.shared, self.id, run, &running);
            let watched = smol::future::or(busy, watched);
            smol::future::or(order, smol::future::or(exit, watched)).await
        };
        let young = running.lived() < YOUNG || !running.was_ready.get();
        self.shared.set_young(self.id, young);
        let outcome = self.wind_down(run, &running, ended).await;
        running.remove_group().await;
        self.shared.set_ended(self.id);
        self.shared.close_door(run, door);
        let folder = self.shared.folder(run);
        if let Err(error) = smol::unblock(move || folder.clear()).await {
            log::warn!("{error}");
        }
        outcome
    }

    /// All of the process is gone then. `Ok` is the order that ended it.
    async fn wind_down(&self, run: &Run, running: &Running, ended: Ended) -> Result<Order, Fail> {
        let folder = self.shared.folder(run);
        let grace = Duration::from_millis(u64::from(run.spec.stop_grace_ms));
        match ended {
            Ended::Order(order) => {
                self.shared.set_state(self.id, State::Stopping, "");
                running.stop(grace).await;
                running.log_closed().await;
                Ok(*order)
            }
            Ended::Exit(status) => {
                running.clear().await;
                running.log_closed().await;
                let reason = running.reason(status, run.spec.needs.memory, &folder.0).await;
                Err(Fail::Again(reason))
            }
            Ended::NoRoom(reason) => {
                self.shared.set_state(self.id, State::Stopping, &reason);
                running.stop(grace).await;
                running.log_closed().await;
                Err(Fail::Final(reason))
            }
            Ended::NoLease(reason) => {
                self.shared.set_state(self.id, State::Unready, &reason);
                running.clear().await;
                running.log_closed().await;
                Err(Fail::Again(reason))
            }
            Ended::Sick(reason) => {
                self.shared.set_state(self.id, State::Unready, &reason);
                running.stop(grace).await;
                running.log_closed().await;
                Err(Fail::Again(reason))
            }
        }
    }

    async fn keep_static(&self, run: &Rc<Run>) -> Order {
        let Some(tree) = run.package else {
            let reason = "the service has no folder for this node: [artifacts] any = \"site/\"";
            return self.failed(run, reason.to_owned()).await;
        };
        // The community may need it no longer before the next version is here to be served.
        let _held = match (self.shared.config.hold)(tree) {
            Ok(held) => held,
            Err(error) => return self.failed(run, error.to_string()).await,
        };
        self.shared.set_endpoint(self.id, Endpoint::Static(tree));
        self.shared.set_state(self.id, State::Ready, "");
        self.report(Report::Started { id: self.id }).await;
        self.report(Report::Ready { id: self.id }).await;
        self.superseding(run).await
    }

    /// The last lines of its log, each on a line of its own; empty if it wrote none.
    async fn log_lines(&self, run: &Run) -> String {
        let path = self.shared.folder(run).0.join("log");
        let lines = smol::unblock(move || last_lines(&path, LOG_LINES)).await;
        lines.iter().fold(String::new(), |text, line| text + "\n" + line)
    }

    async fn failed(&self, run: &Run, reason: String) -> Order {
        log::warn!("{} {}: {reason}", run.spec.name, self.id.number);
        let first = reason.lines().next().unwrap_or_default();
        self.shared.set_state(self.id, State::Failed, first);
        self.report(Report::Failed { id: self.id, reason }).await;
        match self.orders.recv().await {
            Ok(order) => order,
            // The host is gone; so will this task be.
            Err(_) => std::future::pending().await,
        }
    }

    /// The next order that changes something. One that asks for what already is gets a report of
    /// it.
    async fn superseding(&self, run: &Run) -> Order {
        loop {
            match self.orders.recv().await {
                Ok(Order::Start(other)) if other.generation <= run.generation => {
                    self.report_state().await;
                }
                Ok(order) => return order,
                Err(_) => return std::future::pending().await,
            }
        }
    }

    async fn report_state(&self) {
        let id = self.id;
        let Some((state, note, has_process)) = self.shared.state(id) else { return };
        if has_process {
            self.report(Report::Started { id }).await;
        }
        match state {
            State::Ready => self.report(Report::Ready { id }).await,
            State::Unready => self.report(Report::Unready { id, reason: note }).await,
            State::Failed => self.report(Report::Failed { id, reason: note }).await,
            State::Starting | State::Stopping => {}
        }
    }

    /// Nothing of ours runs: tidies up what is on disk (and what an agent that died left
    /// running) and says so.
    async fn stopped(&mut self, forget: bool) {
        let id = self.id;
        match self.shared.run(id) {
            Some(run) if !forget => self.keeping.close(&run).await,
            Some(_) | None => self.keeping.forget().await,
        }
        self.lease.end().await;
        let run = self.shared.end(id);
        let keep_state = run.map(|run| run.spec.keeps_state());
        self.unpacked = self.unpacked.take().filter(|_| !forget);
        let services = self.shared.services.clone();
        let parent = self.shared.parent.borrow().clone();
        let tidied = smol::unblock(move || tidy(&services, &parent, id, keep_state, forget)).await;
        if let Err(error) = tidied {
            log::warn!("{error}");
        }
        self.report(Report::Stopped { id }).await;
    }

    async fn report(&self, report: Report) {
        self.shared.report(report).await;
    }
}

/// `keep_state` is `None` where nobody knows: then state stays until it is forgotten.
fn tidy(
    services: &Path,
    parent: &Parent,
    id: ReplicaId,
    keep_state: Option<bool>,
    forget: bool,
) -> io::Result<()> {
    for name in parent.names().iter().filter(|name| super::replica_of(name) == Some(id)) {
        let left = parent.existing(name);
        left.kill(PATIENCE)?;
        left.remove()?;
    }
    let Some(folder) = super::folders(services).into_iter().find(|f| f.id() == Some(id)) else {
        return Ok(());
    };
    folder.clear()?;
    match keep_state {
        _ if forget => folder.delete(keep_state == Some(true) || folder.is_kept()),
        Some(false) => remove_all(&folder.state()),
        Some(true) => folder.set_kept(true),
        None => Ok(()),
    }
}

impl Notice for Replica {
    async fn ready(&self) {
        self.shared.set_state(self.id, State::Ready, "");
        self.report(Report::Ready { id: self.id }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_crash_loop_ends() {
        let mut crashes = Crashes::default();
        let pauses: Vec<_> = (0..5).map(|_| crashes.next(true)).collect();
        assert_eq!(pauses[..4], [1, 2, 4, 8].map(|times| Some(PAUSE_MIN * times)));
        assert_eq!(pauses[4], None);
        let mut crashes = Crashes::default();
        for _ in 0..20 {
            assert_eq!(crashes.next(false), Some(PAUSE_MIN));
        }
    }
}
