//! What the community has in all.

use alloc::vec::Vec;

use dugnad_kernel::{Arc, Id};
use dugnad_resource::condition::Condition;

use super::operations::{Asker, AskerExt, Outcome};
use super::{Cost, ProspectAnswer};
use crate::cast::{CastBody, CastPart};

/// Nodes whose answers fit one feedback.
const TOGETHER: u64 = 400;

/// Asks everybody: at once, or in a large community arc by arc.
pub(super) async fn take(asker: Asker, ask: u64, size: u64) -> Outcome {
    let body = || CastBody::Find { condition: Condition::default(), brief: true };
    let count = size.div_ceil(TOGETHER).max(1);
    let at = |part: u64| Id(u128::MAX / u128::from(count) * u128::from(part % count));
    let mut asked = Vec::new();
    for part in 0..count {
        let arc = (count > 1).then(|| Arc::new(at(part), at(part + 1)));
        asked.push(asker.cast(body(), arc));
    }
    let (mut nodes, mut cost) = (Vec::new(), Cost { complete: true, ..Cost::default() });
    for said in asked {
        let (parts, complete) = said.await;
        cost.complete &= complete;
        nodes.extend(parts.into_iter().filter_map(|part| match part {
            CastPart::Brief(brief) if brief.fits() => Some(*brief),
            _ => None,
        }));
    }
    cost.asked = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    cost.messages = cost.asked.saturating_sub(1).saturating_mul(2);
    Outcome::Answer { ask, answer: ProspectAnswer::Census { nodes, cost } }
}
