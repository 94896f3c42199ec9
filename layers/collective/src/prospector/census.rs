//! What the community has in all.

use alloc::vec::Vec;

use dugnad_resource::condition::Condition;
use dugnad_resource::describe::Brief;

use super::operations::{Asker, AskerExt, Outcome};
use super::{Cost, ProspectAnswer};
use crate::cast::{CastBody, CastPart};

pub(super) async fn take(asker: Asker, ask: u64) -> Outcome {
    let body = CastBody::Find { condition: Condition::default(), brief: true };
    let (parts, complete) = asker.cast(body, None).await;
    let briefs = parts.into_iter().filter_map(|part| match part {
        CastPart::Brief(brief) if brief.fits() => Some(*brief),
        _ => None,
    });
    let nodes: Vec<Brief> = briefs.collect();
    let asked = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    let messages = asked.saturating_sub(1).saturating_mul(2);
    let cost = Cost { asked, messages, complete, ..Cost::default() };
    Outcome { ask, answer: ProspectAnswer::Census { nodes, cost } }
}
