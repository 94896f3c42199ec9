//! Which replicas of a service somebody wants to speak with: any, one, or those on nodes that meet
//! a condition (service client, paper 3.4.4).
//!
//! A condition is asked of the nodes themselves, and what they say is kept for a while: a request
//! costs two messages for each replica, and the next ones cost none.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use dugnad_kernel::NodeId;
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::Condition;

use super::{Route, Shared};
use crate::rate::{Bucket, Rate};

/// For so long a node is taken to be as it said.
const KEPT: Duration = Duration::from_secs(30);
/// Answers of nodes that are kept.
const KEPT_MAX: usize = 1_024;
/// Conditions that are asked of nodes; visitors choose them.
const ASKED: Rate = Rate { each: Duration::from_millis(200), at_once: 20 };
/// Bytes of a condition.
const TYPED_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Any,
    /// The replica of this number.
    Number(u32),
    /// Those on nodes this is true of; as it was typed, too.
    Where(Condition, String),
}

impl Which {
    /// `2`, or `zone=b memory>=1G`.
    ///
    /// # Errors
    /// What is wrong with the condition.
    pub(crate) fn parse(typed: &str) -> Result<Self, String> {
        // Answers name a replica `2@attic`: that will do as well.
        if let Ok(number) = typed.split('@').next().unwrap_or(typed).parse() {
            return Ok(Self::Number(number));
        }
        if typed.len() > TYPED_MAX {
            return Err(format!("a condition has at most {TYPED_MAX} bytes"));
        }
        match Condition::parse(typed, &NODE) {
            Ok(condition) if condition.is_empty() => Ok(Self::Any),
            Ok(condition) => Ok(Self::Where(condition, typed.to_owned())),
            Err(error) => Err(format!("no number of a replica, and no condition: {error}")),
        }
    }
}

/// What nodes said of themselves lately.
pub(super) struct Checked {
    known: RefCell<HashMap<(String, NodeId), (bool, Instant)>>,
    asked: Bucket,
}

impl Default for Checked {
    fn default() -> Self {
        Self { known: RefCell::default(), asked: Bucket::new(ASKED) }
    }
}

impl Checked {
    fn get(&self, typed: &str, node: NodeId, now: Instant) -> Option<bool> {
        let known = self.known.borrow();
        let (so, at) = known.get(&(typed.to_owned(), node))?;
        (now.duration_since(*at) < KEPT).then_some(*so)
    }

    fn put(&self, typed: &str, nodes: &[NodeId], so: &[NodeId], now: Instant) {
        let mut known = self.known.borrow_mut();
        if known.len() + nodes.len() > KEPT_MAX {
            known.retain(|_, (_, at)| now.duration_since(*at) < KEPT);
        }
        if known.len() + nodes.len() > KEPT_MAX {
            known.clear();
        }
        for node in nodes {
            known.insert((typed.to_owned(), *node), (so.contains(node), now));
        }
    }
}

/// The route with those replicas only.
///
/// # Errors
/// Why nobody can tell now.
pub(super) async fn narrow(
    shared: &Shared,
    which: &Which,
    mut route: Route,
) -> Result<Route, String> {
    match which {
        Which::Any => {}
        Which::Number(number) => route.replicas.retain(|(id, ..)| id.number == *number),
        Which::Where(condition, typed) => {
            let now = Instant::now();
            let unknown = |node: &NodeId| shared.checked.get(typed, *node, now).is_none();
            let nodes: Vec<NodeId> =
                route.replicas.iter().map(|(_, node, _)| *node).filter(unknown).collect();
            if !nodes.is_empty() {
                if !shared.checked.asked.take(now) {
                    let most = ASKED.a_second();
                    return Err(format!("more than {most} conditions a second are asked for here"));
                }
                let so = shared.backend.meet(condition.clone(), nodes.clone()).await?;
                shared.checked.put(typed, &nodes, &so, now);
            }
            let meets = |node| shared.checked.get(typed, node, now) == Some(true);
            route.replicas.retain(|(_, node, _)| meets(*node));
        }
    }
    Ok(route)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    #[test]
    fn numbers_and_conditions_are_told_apart() {
        assert_eq!(Which::parse("2"), Ok(Which::Number(2)));
        assert_eq!(Which::parse(""), Ok(Which::Any));
        let Ok(Which::Where(condition, typed)) = Which::parse("zone=b memory>=1G") else {
            panic!("a condition");
        };
        assert_eq!(typed, "zone=b memory>=1G");
        assert!(!condition.is_empty());
        for (typed, says) in [("-1", "no condition"), ("zone", "no condition"), ("zne=b", "zne")] {
            let error = Which::parse(typed).unwrap_err();
            assert!(error.contains(says), "{typed}: {error}");
        }
        assert!(Which::parse(&format!("zone={}", "x".repeat(300))).is_err());
    }

    #[test]
    fn what_nodes_said_is_kept_for_a_while_and_is_bounded() {
        let (checked, now) = (Checked::default(), Instant::now());
        checked.put("zone=b", &[Id(1), Id(2)], &[Id(2)], now);
        assert_eq!(checked.get("zone=b", Id(1), now), Some(false));
        assert_eq!(checked.get("zone=b", Id(2), now), Some(true));
        assert_eq!(checked.get("zone=c", Id(2), now), None);
        assert_eq!(checked.get("zone=b", Id(2), now + KEPT), None);
        for number in 0..10_000 {
            checked.put(&format!("cores>{number}"), &[Id(1)], &[], now);
            assert!(checked.known.borrow().len() <= KEPT_MAX);
        }
    }
}
