//! T4.1 and T4.6 for broadcasts: the plan of each node, on rings that are never built.

use std::collections::{BTreeMap, VecDeque};

use dugnad_kernel::{Duration, Id, NodeId, Time};
use fastrand::Rng;

use super::{Bucket, Casts, plan};
use crate::config::{FANOUT, SEEN_MAX, SOURCE_BURST, SOURCES_MAX, SUCCESSORS, T_SEEN};
use crate::overlay::table::Table;

/// Random rings a test of exactness runs on.
pub(crate) fn runs() -> u32 {
    std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2_000)
}

struct Reached {
    /// Hops from the initiator, of every node reached.
    depth: BTreeMap<NodeId, u32>,
    messages: usize,
    most_sends: usize,
}

/// Runs one broadcast from `start`.
fn broadcast(start: NodeId, pointers: &impl Fn(NodeId) -> Vec<NodeId>) -> Reached {
    let mut reached = Reached { depth: BTreeMap::from([(start, 0)]), messages: 0, most_sends: 0 };
    let mut queue = VecDeque::from([(start, start, 0)]);
    while let Some((me, limit, depth)) = queue.pop_front() {
        let legs = plan(me, &pointers(me), limit);
        reached.messages += legs.len();
        reached.most_sends = reached.most_sends.max(legs.len());
        for (child, limit) in legs {
            assert_eq!(reached.depth.insert(child, depth + 1), None, "reached twice");
            queue.push_back((child, limit, depth + 1));
        }
    }
    reached
}

fn ring(rng: &mut Rng, count: usize) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = (0..count).map(|_| Id(rng.u128(..))).collect();
    nodes.sort_unstable();
    nodes
}

/// T4.1: n-1 messages and nobody twice, as long as everybody knows its successor.
#[test]
fn broadcast_takes_one_message_a_node() {
    let mut rng = Rng::with_seed(41);
    for _ in 0..runs() {
        let count = rng.usize(1..=64);
        let nodes = ring(&mut rng, count);
        let kept = rng.u32(0..=100);
        let tables: BTreeMap<NodeId, Vec<NodeId>> = (0..count)
            .map(|place| {
                let (me, succ) = (nodes[place], nodes[(place + 1) % count]);
                let mut known = nodes.clone();
                known.retain(|id| *id != me && (*id == succ || rng.u32(0..100) < kept));
                known.sort_by_key(|id| me.distance(*id));
                (me, known)
            })
            .collect();
        let start = *rng.choice(&nodes).unwrap();
        let reached = broadcast(start, &|me| tables[&me].clone());
        assert_eq!(reached.messages, count - 1);
        assert_eq!(reached.depth.len(), count);
        assert!(reached.most_sends <= FANOUT);
    }
}

/// T4.6: with full tables and ten thousand nodes nobody sends more than eight, and the depth stays
/// within 2 log_k n + 2.
#[test]
fn the_cap_on_sends_costs_little_depth() {
    let mut rng = Rng::with_seed(46);
    let nodes = ring(&mut rng, 10_000);
    let at = |id: Id| nodes.partition_point(|node| *node < id);
    let pointers = |me: NodeId| {
        let place = at(me);
        let succ = |i: usize| nodes[(place + i) % nodes.len()];
        let mut known: Vec<NodeId> = (1..=SUCCESSORS).map(succ).collect();
        let starts = Table::new(me).wanted(succ(SUCCESSORS));
        known.extend(starts.into_iter().map(|start| nodes[at(start) % nodes.len()]));
        known.push(nodes[(place + nodes.len() - 1) % nodes.len()]);
        known.retain(|id| *id != me);
        known.sort_by_key(|id| me.distance(*id));
        known.dedup();
        known
    };
    for _ in 0..3 {
        let start = *rng.choice(&nodes).unwrap();
        let reached = broadcast(start, &pointers);
        let depth = reached.depth.values().max().copied().unwrap();
        let sum: u32 = reached.depth.values().sum();
        println!("depth {depth}, mean {:.2}", f64::from(sum) / nodes.len() as f64);
        assert_eq!(reached.messages, nodes.len() - 1);
        assert_eq!(reached.most_sends, FANOUT);
        // 2 log_4 10,000 = 13.3.
        assert!(depth <= 15, "depth {depth}");
    }
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let mut bucket = Bucket::full(5, Time(0));
    let at = |ms: u64| Time(0) + Duration::from_millis(ms);
    assert_eq!((0..10).filter(|_| bucket.take(5, 1, at(0))).count(), 5);
    assert!(!bucket.take(5, 1, at(999)));
    assert!(bucket.take(5, 1, at(1_000)));
    assert!(!bucket.take(5, 1, at(1_000)));
    assert_eq!((0..10).filter(|_| bucket.take(5, 1, at(60_000))).count(), 5);
}

#[test]
fn a_source_that_floods_is_cut_off_and_others_pass() {
    let mut casts = Casts::default();
    let passed = (0..1_000).filter(|_| casts.allow(Id(1), Time(0))).count();
    assert_eq!(passed, SOURCE_BURST as usize);
    assert!(casts.allow(Id(2), Time(0)));
    // Sources that are quiet again make room for new ones.
    let later = Time(0) + Duration::from_secs(600);
    for source in 0..2 * SOURCES_MAX as u128 {
        let now = later + Duration::from_secs(u64::try_from(source).unwrap());
        assert!(casts.allow(Id(source), now));
    }
    assert!(casts.sizes().1 <= SOURCES_MAX);
}

#[test]
fn what_was_seen_is_remembered_for_ten_minutes_at_most() {
    let mut casts = Casts::default();
    let id = casts.next_id(Id(1));
    assert!(casts.first_time(id, Time(0)));
    assert!(!casts.first_time(id, Time(0) + T_SEEN / 2));
    assert!(casts.first_time(id, Time(0) + T_SEEN));
    for _ in 0..2 * SEEN_MAX {
        let id = casts.next_id(Id(1));
        casts.first_time(id, Time(0) + T_SEEN);
    }
    assert_eq!(casts.sizes().0, SEEN_MAX);
}
