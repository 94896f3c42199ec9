//! A sample of a large community, at the owner of one key: the first place to look.
//!
//! Everybody is asked once a period, and so many answer, by chance, as fit two answers: two
//! messages a node, and an even sample, whatever is asked for. It is drawn only while somebody
//! asks: an hour after the last question it is dropped.

use alloc::boxed::Box;
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Arc, Cx, Duration, Id, Key, NodeId, Peer, Time};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe::Description;

use super::operations::{Asker, AskerExt, Outcome};
use super::{Event, Msg, Prospector, Request, Response, Timer, WANT_MAX};
use crate::cast::{CastBody, CastPart};

/// Nodes that answer in each half of the ring: about so many fit.
const HALF: u64 = 320;
/// After so long without a question the sample is dropped.
const ASLEEP: Duration = Duration::from_secs(3_600);
/// A sample older than so many periods is none.
const OLD: u32 = 3;
/// Peers in one answer.
const HITS_MAX: usize = 128;

/// Where a large community looks first.
#[must_use]
pub(super) fn key() -> Key {
    Key::of_name("prospector", b"sample")
}

/// What this node keeps while it is asked.
#[derive(Default)]
pub(super) struct Sample {
    nodes: Vec<Description>,
    drawn: Option<Time>,
    asked: Option<Time>,
    /// Whether [`Timer::Draw`] is out, or a sample is being drawn.
    awake: bool,
}

/// How often a sample is drawn: rarely where it costs many messages.
fn period(size: u64) -> Duration {
    Duration::from_secs(match size {
        0..=1_500 => 60,
        1_501..=15_000 => 120,
        _ => 300,
    })
}

impl Prospector {
    pub(super) fn on_request(
        &mut self,
        from: NodeId,
        call: CallId,
        request: Request,
        cx: &mut Cx<'_, Self>,
    ) {
        match request {
            Request::Search { condition, want } if condition.fits() => {
                let response = self.searched(&condition, want, cx);
                cx.send(from, Msg::Response { call, response });
            }
            Request::Check { condition } if condition.fits() => {
                cx.emit(Event::Describe { to: from, call, condition });
            }
            // No condition in normal form: nobody sends that but by mistake.
            Request::Search { .. } | Request::Check { .. } => {
                self.counters.add("condition_unfit", 1);
            }
        }
    }

    /// How this node is, to who checked a condition.
    pub(super) fn on_described(
        to: NodeId,
        call: CallId,
        node: Option<Description>,
        cx: &mut Cx<'_, Self>,
    ) {
        let response = node.map_or(Response::NotMeant, |node| Response::Is(Box::new(node)));
        cx.send(to, Msg::Response { call, response });
    }

    fn searched(&mut self, condition: &Condition, want: u16, cx: &mut Cx<'_, Self>) -> Response {
        if !self.position.owns(key()) {
            return Response::NoSample;
        }
        self.sample.asked = Some(cx.now);
        if !core::mem::replace(&mut self.sample.awake, true) {
            self.draw(cx);
        }
        let fresh = period(self.position.size) * OLD;
        let Some(drawn) = self.sample.drawn.filter(|drawn| cx.now.since(*drawn) <= fresh) else {
            return Response::NoSample;
        };
        let meets = |node: &&Description| condition.matches(node.attributes().as_slice());
        let mut hits: Vec<Peer> =
            self.sample.nodes.iter().filter(meets).map(|node| node.peer.clone()).collect();
        // Not always the same ones, and some to spare: they may have changed.
        cx.rng.shuffle(&mut hits);
        hits.truncate(HITS_MAX.min(usize::from(want.min(WANT_MAX)) * 2 + 2));
        let age = cx.now.since(drawn).as_secs();
        Response::Hits { peers: hits, age_secs: u32::try_from(age).unwrap_or(u32::MAX) }
    }

    pub(super) fn draw(&mut self, cx: &mut Cx<'_, Self>) {
        let asked = self.sample.asked.is_some_and(|at| cx.now.since(at) < ASLEEP);
        if !asked || !self.position.owns(key()) {
            self.sample = Sample::default();
            return;
        }
        let size = self.position.size.max(1);
        let share = (2 * HALF * 1_000_000 / size).min(1_000_000);
        let share = u32::try_from(share).unwrap_or(1_000_000);
        self.round = self.round.wrapping_add(1);
        cx.after(period(size), Timer::Draw { round: self.round });
        let start = Id(cx.rng.u128(..));
        self.start("draw a sample", |asker| draw(asker, share, start), cx);
    }

    pub(super) fn on_drawn(&mut self, nodes: Vec<Description>, cx: &mut Cx<'_, Self>) {
        if self.sample.awake && !nodes.is_empty() {
            (self.sample.nodes, self.sample.drawn) = (nodes, Some(cx.now));
        }
    }

    pub(super) fn sampled(&self) -> usize {
        self.sample.nodes.len()
    }
}

/// Twice what is expected: chance, and estimates of the size that are too low.
pub(super) const SAMPLED_MAX: usize = 4 * HALF as usize;

async fn draw(asker: Asker, share: u32, start: Id) -> Outcome {
    let half = start.plus(1 << 127);
    let body = || CastBody::Sample { share };
    let one = asker.cast(body(), Some(Arc::new(start, half)));
    let other = asker.cast(body(), Some(Arc::new(half, start)));
    let mut nodes = Vec::new();
    for part in one.await.0.into_iter().chain(other.await.0) {
        if let CastPart::Node(mut node) = part {
            node.clip();
            nodes.push(*node);
        }
    }
    nodes.truncate(SAMPLED_MAX);
    Outcome::Drawn(nodes)
}
