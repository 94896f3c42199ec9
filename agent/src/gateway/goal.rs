//! Whom a request is for, and what its visitor is told when nobody takes it.

use std::rc::Rc;
use std::time::Duration;

use dugnad_resource::spec::Port;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use smol::Timer;

use super::body::{Body, text};
use super::which::Which;
use super::{Known, Shared, count};

/// How long a request waits for a replica of a service that has none ready.
const READY_WITHIN: Duration = Duration::from_secs(5);
const READY_FIRST: Duration = Duration::from_millis(100);

/// Whom a request is for.
pub(super) struct Goal<'a> {
    pub(super) shared: &'a Rc<Shared>,
    pub(super) service: String,
    pub(super) which: Which,
}

impl Goal<'_> {
    pub(super) fn cannot_tell(&self, why: &str) -> Response<Body> {
        let note = format!("which replicas of {} are meant cannot be told: {why}\n", self.service);
        unavailable(self.shared, note, "1")
    }

    /// `there`: ready replicas there are in all.
    pub(super) fn give_up(&self, there: usize, said: &[String]) -> Response<Body> {
        let name = &self.service;
        if said.is_empty() {
            let none = match &self.which {
                Which::Number(number) => Some(format!("{name} has no ready replica {number}\n")),
                Which::Where(_, typed) => {
                    Some(format!("{name} has no ready replica on a node with {typed}\n"))
                }
                Which::Any => None,
            };
            if let Some(note) = none.filter(|_| there > 0) {
                return text(StatusCode::NOT_FOUND, note);
            }
            let note = format!("{name} has no ready replica now; `dugnad why {name}` tells why\n");
            return unavailable(self.shared, note, "5");
        }
        count(&self.shared.counters.unavailable);
        log::debug!("{name}: {}", said.join("; "));
        let note = format!("{name} did not answer; tried:\n  {}\n", said.join("\n  "));
        text(StatusCode::BAD_GATEWAY, note)
    }
}

/// Where a service is, waiting a while for a replica to be ready, or for this node to know.
pub(super) async fn ready(shared: &Shared, service: &str) -> Known {
    let mut known = shared.backend.resolve(service).await;
    let (mut waited, mut wait) = (Duration::ZERO, READY_FIRST);
    // The core tells nobody when a replica elsewhere gets ready; asking less and less often
    // costs a few messages and only while somebody waits.
    let may_change = |known: &Known| match known {
        Known::At(route) => route.replicas.is_empty() && route.port != Port::None,
        Known::NotYet => true,
        Known::Stopped | Known::Unknown => false,
    };
    while may_change(&known) && waited < READY_WITHIN {
        let pause = wait.min(READY_WITHIN - waited);
        Timer::after(pause).await;
        waited += pause;
        wait *= 2;
        known = shared.backend.resolve_fresh(service).await;
    }
    known
}

/// 503, and when to come again.
pub(super) fn unavailable(shared: &Shared, note: String, secs: &'static str) -> Response<Body> {
    count(&shared.counters.unavailable);
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, note);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(secs));
    answer
}
