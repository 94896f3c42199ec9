//! The lease of a service of which only one replica may run (PROTOCOL.md 10.14): had before it
//! starts, held while it runs, given back when it has ended.
//!
//! Without it the replica is killed before anybody else can have it: by its own task, and, if the
//! agent died or the machine slept, by the keeper of its log, which hears of every renewal.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use dugnad_resource::execute::{ReplicaId, Run};
use dugnad_resource::spec::Want;
use futures_util::{Stream, StreamExt as _};
use smol::Timer;
use smol::lock::Mutex;

use super::deadline;
use super::record::Folder;
use super::{AGAIN, Shared, State};
use crate::clock::boottime;

/// Whoever waits longer for its lease is told so.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long an agent that took a running replica up tries to have its lease again; its keeper may
/// end it before.
const TAKE_UP: Duration = Duration::from_secs(30);

/// What becomes of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeaseNews {
    /// It is held until then, by [`boottime`]; `fence` grows with every holder.
    Held { fence: u64, until: Duration },
    /// It may be another's now.
    Lost,
    /// It cannot be had now, and why.
    Failed(String),
}

/// News of a lease; dropping it gives the lease back.
pub(crate) type LeaseStream = Pin<Box<dyn Stream<Item = LeaseNews>>>;

/// Asks for the lease of a service; with the fence of an earlier agent of this node it is taken up
/// again.
pub(crate) type AskLease = Rc<dyn Fn(&str, Option<u64>) -> LeaseStream>;

/// The lease of one replica.
pub(super) struct Lease {
    shared: Rc<Shared>,
    id: ReplicaId,
    holding: Mutex<Option<Holding>>,
}

struct Holding {
    news: LeaseStream,
    until: Duration,
}

impl Lease {
    pub(super) fn new(shared: Rc<Shared>, id: ReplicaId) -> Self {
        Self { shared, id, holding: Mutex::new(None) }
    }

    /// Waits until the replica has it, if its service needs one.
    pub(super) async fn begin(&self, run: &Run, adopted: bool) {
        if run.spec.want != Want::Single {
            return;
        }
        let mut lease = self.holding.lock().await;
        if lease.as_ref().is_some_and(|holding| boottime() < holding.until) {
            return;
        }
        // What is left of an old one is given back first.
        *lease = None;
        let folder = self.shared.folder(run);
        if adopted {
            let fence = folder.fence().unwrap_or(0);
            let news = (self.shared.config.lease)(&run.spec.name, Some(fence));
            self.shared.set_lease(self.id, fence, boottime() + TAKE_UP);
            *lease = Some(Holding { news, until: boottime() + TAKE_UP });
            return;
        }
        *lease = Some(self.have(run, &folder).await);
    }

    async fn have(&self, run: &Run, folder: &Folder) -> Holding {
        self.shared.set_state(self.id, State::Starting, "");
        loop {
            let mut news = (self.shared.config.lease)(&run.spec.name, None);
            let soon = async {
                Timer::after(PATIENCE).await;
                None
            };
            let first = match smol::future::or(async { Some(news.next().await) }, soon).await {
                Some(first) => first,
                None => {
                    self.shared
                        .waits(
                            self.id,
                            "waits for its lease: another may still run, or nobody can be asked",
                        )
                        .await;
                    news.next().await
                }
            };
            let why = match first {
                Some(LeaseNews::Held { fence, until }) => {
                    let noted = folder.clone();
                    match smol::unblock(move || noted.set_fence(fence)).await {
                        Ok(()) => {
                            self.shared.set_lease(self.id, fence, until);
                            return Holding { news, until };
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Some(LeaseNews::Failed(why)) => why,
                Some(LeaseNews::Lost) | None => "somebody else has it".to_owned(),
            };
            self.shared.waits(self.id, &format!("waits for its lease: {why}")).await;
            Timer::after(AGAIN).await;
        }
    }

    /// Returns when the lease is not held any more, with the reason.
    pub(super) async fn hold(&self, run: &Run) -> String {
        if run.spec.want != Want::Single {
            return std::future::pending().await;
        }
        let mut lease = self.holding.lock().await;
        let Some(holding) = lease.as_mut() else { return "it has no lease".to_owned() };
        let folder = self.shared.folder(run);
        let why = loop {
            let left = holding.until.saturating_sub(boottime());
            let over = async {
                Timer::after(left).await;
                None
            };
            match smol::future::or(async { Some(holding.news.next().await) }, over).await {
                Some(Some(LeaseNews::Held { fence, until })) => {
                    holding.until = until;
                    self.shared.set_lease(self.id, fence, until);
                    // The keeper then ends it sooner than it must, and it starts again.
                    if let Err(error) = deadline::tell(&folder.0, until) {
                        log::debug!("{}: its keeper does not hear: {error}", folder.name());
                    }
                }
                Some(Some(LeaseNews::Failed(why))) => break format!("its lease is lost: {why}"),
                Some(Some(LeaseNews::Lost) | None) => break "its lease is lost".to_owned(),
                None if boottime() >= holding.until => {
                    break "its lease ran out: those who keep it cannot be reached".to_owned();
                }
                None => {}
            }
        };
        *lease = None;
        why
    }

    /// Nothing of it runs any more: others may.
    pub(super) async fn end(&self) {
        *self.holding.lock().await = None;
    }
}
