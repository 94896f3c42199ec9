//! `POST /v1/locks/NAME?ttl_ms=N`: a lock that is held for as long as its caller reads
//! (PROTOCOL.md 8.6).
//!
//! The answer is a line of JSON when the lock is held, with the `fence`: a number that grows with
//! every holder, for whatever the holder writes to. Further lines say that it is held on, the last
//! one, `"lost": true`, that it may be another's from now on. A holder stops acting `valid_ms`
//! after a line unless another comes. Who stops reading gives it back.

use std::rc::Rc;
use std::time::Duration;

use dugnad_node::{
    Address, Answer, Content, Expect, LOCKS, Manner, ObjectAnswer, ObjectQuestion, Question,
};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use smol::channel::{Receiver, Sender, bounded};
use smol::{LocalExecutor, Timer};

use super::http::{Query, Reply, lines};
use super::shape::Trouble;
use super::store::Who;
use super::{AgentApi, exit};
use crate::clock::boottime;

/// How long a lock is held after its holder is last heard of, if nothing is said, and what may be.
const TTL: Duration = Duration::from_secs(30);
const TTL_LEAST: Duration = Duration::from_secs(2);
const TTL_MOST: Duration = Duration::from_secs(3_600);
/// Clocks may differ by so many hundredths in how fast they run, and by this beside that.
const RATE: u32 = 1;
const MARGIN: Duration = Duration::from_millis(500);
/// What a service may not call a lock of its own: its replica holds it (PROTOCOL.md 10.14).
const SINGLE: &str = "dugnad-single";
/// How often it is looked whether another still holds it, at most.
const LOOK: Duration = Duration::from_secs(1);

/// What lies in the register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    holder: String,
    /// Grows with every holder.
    fence: u64,
    ttl_ms: u64,
    /// Another at every renewal.
    nonce: String,
    released: bool,
}

/// What whoever wants a lock hears, in order.
pub(crate) enum News {
    /// It is held until then, by [`boottime`], unless a later one comes. `fence` grows with every
    /// holder.
    Held { fence: u64, until: Duration },
    /// It may be another's now; nothing follows.
    Lost { fence: u64 },
    /// It cannot be had, and why; nothing follows.
    Failed(Trouble),
}

/// How long a holder may act from before it asked.
fn valid(ttl: Duration) -> Duration {
    (ttl * (100 - RATE) / 100).saturating_sub(MARGIN)
}

/// How long others wait from when they saw it renewed.
fn over(ttl: Duration) -> Duration {
    ttl * (100 + RATE) / 100 + MARGIN
}

pub(super) fn route(
    ex: &Rc<LocalExecutor<'static>>,
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    name: &str,
    query: &Query,
) -> Reply {
    let path = match who {
        Who::Person => name.to_owned(),
        Who::Service { name: service, .. } => format!("{service}/{name}"),
    };
    let address = Address::parse(&format!("{LOCKS}/{path}")).map_err(|why| {
        Trouble::usage(format!("\"{}\" is no lock: {why}", crate::text::plain(name)))
    })?;
    if path.rsplit('/').next() == Some(SINGLE) {
        return Err(Trouble::usage(format!("locks named {SINGLE} are the agents' own")));
    }
    let ttl = query.number("ttl_ms").map_or(TTL, Duration::from_millis);
    if !(TTL_LEAST..=TTL_MOST).contains(&ttl) {
        return Err(Trouble::usage("a lock is held for 2 s to 1 h after its holder was heard of"));
    }
    let lock = Lock::new(backend, address, ttl);
    let news = lock.spawn(ex, None);
    Ok(lines(news.map(|news| match news {
        News::Held { fence, until } => {
            let left = until.saturating_sub(boottime());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            json!({ "fence": fence, "valid_ms": left })
        }
        News::Lost { fence } => json!({ "fence": fence, "lost": true }),
        News::Failed(trouble) => trouble.json(),
    })))
}

/// The lease of a service of which only one replica may run: held until the receiver is dropped.
/// `fence`: it was held with that before, and is taken up again.
pub(crate) fn lease(
    ex: &Rc<LocalExecutor<'static>>,
    backend: &Rc<dyn AgentApi>,
    service: &str,
    fence: Option<u64>,
) -> Receiver<News> {
    // Services have locks of their own at this place, too, but none of this name.
    let address = Address { namespace: LOCKS.to_owned(), path: format!("{service}/{SINGLE}") };
    let lock = Lock { patient: true, ..Lock::new(backend, address, TTL) };
    lock.spawn(ex, fence)
}

struct Lock {
    backend: Rc<dyn AgentApi>,
    address: Address,
    ttl: Duration,
    holder: String,
    /// Waits while those who keep it cannot be reached: what was seen until then counts.
    patient: bool,
}

/// What a write brought.
enum Wrote {
    At(u64),
    Lost,
    /// It may be there or not.
    Unknown(String),
    Failed(Trouble),
}

impl Lock {
    fn new(backend: &Rc<dyn AgentApi>, address: Address, ttl: Duration) -> Self {
        let node = backend.status()["name"].as_str().unwrap_or("?").to_owned();
        let holder = format!("{} of node {node}", address.path);
        Self { backend: Rc::clone(backend), address, ttl, holder, patient: false }
    }

    fn spawn(self, ex: &LocalExecutor<'static>, fence: Option<u64>) -> Receiver<News> {
        let (to, news) = bounded(8);
        ex.spawn(async move {
            if let Some(last) = self.hold(&to, fence).await {
                // The caller may have gone; then nobody needs to know.
                _ = to.send(last).await;
            }
        })
        .detach();
        news
    }

    /// Waits for the lock and holds it until the caller goes, or it is lost; the last news.
    async fn hold(&self, to: &Sender<News>, fence: Option<u64>) -> Option<News> {
        let waiting = async {
            Some(match fence {
                Some(fence) => self.take_up(fence).await,
                None => self.acquire().await.map_err(News::Failed),
            })
        };
        let gone = async {
            to.closed().await;
            None
        };
        let (lease, mut revision, mut since) = match smol::future::or(waiting, gone).await? {
            Ok(held) => held,
            Err(last) => return Some(last),
        };
        let fence = lease.fence;
        let told = |since: Duration| News::Held { fence, until: since + valid(self.ttl) };
        if to.send(told(since)).await.is_err() {
            self.release(&lease, revision).await;
            return None;
        }
        loop {
            let pause = async {
                Timer::after(self.ttl / 3).await;
                true
            };
            let gone = async {
                to.closed().await;
                false
            };
            if !smol::future::or(pause, gone).await {
                self.release(&lease, revision).await;
                return None;
            }
            match self.renew(&lease, revision, since).await {
                Some((at, from)) => (revision, since) = (at, from),
                None => return Some(News::Lost { fence }),
            }
            // A full queue: its reader is slow, and the next news says more.
            _ = to.try_send(told(since));
        }
    }

    /// What an earlier agent of this node held, if nobody has taken it since.
    async fn take_up(&self, fence: u64) -> Result<(Lease, u64, Duration), News> {
        let from = boottime();
        let (there, revision) = self.read().await.map_err(News::Failed)?;
        let mine = there.is_some_and(|lease| lease.fence == fence && !lease.released);
        let lease = self.lease(fence);
        let renewed = if mine { self.renew(&lease, revision, from).await } else { None };
        let (revision, since) = renewed.ok_or(News::Lost { fence })?;
        Ok((lease, revision, since))
    }

    /// The lease, its revision, and from when it counts.
    async fn acquire(&self) -> Result<(Lease, u64, Duration), Trouble> {
        let mut seen: Option<(String, Duration)> = None;
        loop {
            let asked = boottime();
            let (before, revision) = match self.read().await {
                Ok(read) => read,
                Err(trouble) => {
                    self.waits_after(trouble).await?;
                    continue;
                }
            };
            let free = match &before {
                None => true,
                Some(lease) if lease.released => true,
                Some(lease) => {
                    let known = seen.as_ref().filter(|(nonce, _)| *nonce == lease.nonce);
                    let first = known.map_or(asked, |(_, first)| *first);
                    seen = Some((lease.nonce.clone(), first));
                    boottime().saturating_sub(first) >= over(Duration::from_millis(lease.ttl_ms))
                }
            };
            if !free {
                Timer::after(LOOK.min(self.ttl / 4)).await;
                continue;
            }
            let lease = self.lease(before.map_or(0, |lease| lease.fence) + 1);
            let from = boottime();
            match self.write(&lease, revision).await {
                Wrote::At(revision) => return Ok((lease, revision, from)),
                Wrote::Lost => {}
                Wrote::Unknown(_) => match self.read().await {
                    Ok((Some(there), revision)) if there.nonce == lease.nonce => {
                        return Ok((lease, revision, from));
                    }
                    Ok(_) => {}
                    Err(trouble) => self.waits_after(trouble).await?,
                },
                Wrote::Failed(trouble) => self.waits_after(trouble).await?,
            }
        }
    }

    /// It did not work: the next time, if it is patient.
    async fn waits_after(&self, trouble: Trouble) -> Result<(), Trouble> {
        if !self.patient {
            return Err(trouble);
        }
        log::debug!("a lease: {}", trouble.text);
        Timer::after(LOOK).await;
        Ok(())
    }

    /// Holds it on; `None`: it may be another's when the time is over.
    async fn renew(
        &self,
        lease: &Lease,
        revision: u64,
        since: Duration,
    ) -> Option<(u64, Duration)> {
        let until = since + valid(self.ttl);
        loop {
            let from = boottime();
            if from >= until {
                return None;
            }
            match self.write(&self.lease(lease.fence), revision).await {
                Wrote::At(revision) => return Some((revision, from)),
                Wrote::Lost => {
                    // What was unknown before may have been written after all.
                    let (there, revision) = self.read().await.ok()?;
                    let mine = there.is_some_and(|l| l.fence == lease.fence && !l.released);
                    return (mine && boottime() < until).then_some((revision, since));
                }
                Wrote::Unknown(why) => log::debug!("a lock: {why}"),
                Wrote::Failed(trouble) => log::debug!("a lock: {}", trouble.text),
            }
            Timer::after(MARGIN).await;
        }
    }

    async fn release(&self, lease: &Lease, revision: u64) {
        let released = Lease { released: true, ..lease.clone() };
        if !matches!(self.write(&released, revision).await, Wrote::At(_)) {
            log::debug!("a lock was not given back; it is free when its time is over");
        }
    }

    fn lease(&self, fence: u64) -> Lease {
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let nonce = format!("{:016x}", fastrand::u64(..));
        Lease { holder: self.holder.clone(), fence, ttl_ms, nonce, released: false }
    }

    /// What lies there, and its revision.
    async fn read(&self) -> Result<(Option<Lease>, u64), Trouble> {
        let question = ObjectQuestion::Get(self.address.clone());
        match self.ask(question).await? {
            ObjectAnswer::Found { values, version, .. } => {
                let lease = values.first().and_then(|value| match &value.content {
                    Content::Inline(bytes) => serde_json::from_slice(bytes).ok(),
                    Content::Blob(_) | Content::Folder { .. } => None,
                });
                Ok((lease, version))
            }
            ObjectAnswer::Absent { .. } | ObjectAnswer::Unknown(_) => Ok((None, 0)),
            other => Err(super::store::trouble(other, &self.key())),
        }
    }

    async fn write(&self, lease: &Lease, revision: u64) -> Wrote {
        let Ok(bytes) = serde_json::to_vec(lease) else { return Wrote::Lost };
        let expect = match revision {
            0 => Expect::Absent,
            revision => Expect::Version(revision),
        };
        let question = ObjectQuestion::Put {
            address: self.address.clone(),
            content: Some(Content::Inline(bytes)),
            expect: Some(expect),
            context: None,
            manner: Some(Manner::Strong),
            create: true,
            seal: None,
        };
        match self.ask(question).await {
            Ok(ObjectAnswer::Chosen { revision, .. }) => Wrote::At(revision),
            Ok(ObjectAnswer::Lost { .. }) => Wrote::Lost,
            Ok(ObjectAnswer::Unavailable { maybe: true }) => {
                Wrote::Unknown("its majority went away".to_owned())
            }
            Ok(other) => Wrote::Failed(super::store::trouble(other, &self.key())),
            Err(trouble) => Wrote::Failed(trouble),
        }
    }

    fn key(&self) -> String {
        format!("{}/{}", self.address.namespace, self.address.path)
    }

    async fn ask(&self, question: ObjectQuestion) -> Result<ObjectAnswer, Trouble> {
        match self.backend.ask(Question::Object(question)).await {
            Answer::Object(answer) => Ok(answer),
            Answer::Failed(text) => Err(Trouble::new(503, exit::FAILED, text)),
            other => Err(Trouble::failed(format!("unexpected answer {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However fast two clocks run within the bound: the holder stops before another begins.
    #[test]
    fn a_holder_stops_before_another_begins() {
        for ttl in [TTL_LEAST, Duration::from_secs(10), TTL, TTL_MOST] {
            for (slow, fast) in [(100, 100), (99, 101), (100, 101), (99, 100)] {
                // In real time, where a clock of 99 shows 99 while 100 pass.
                let stops = valid(ttl) * 100 / slow;
                let begins = over(ttl) * 100 / fast;
                assert!(stops + MARGIN / 2 < begins, "{ttl:?} {slow} {fast}");
            }
        }
    }
}
