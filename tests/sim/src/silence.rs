//! Silence is an invariant: a community that is left alone says next to nothing.

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, NodeId};

use crate::World;

/// Frames a node may send in a minute when nothing happens: heartbeats, and little else.
pub const FRAMES_MAX: f64 = 60.0;
/// After this nothing is left to do: hold-offs after a restart, searches, and dials that back off
/// have come to their longest pause.
const REST: Duration = Duration::from_secs(300);
/// The period of the slowest thing that repeats: comparing records with the other places.
const MINUTES: u32 = 10;

/// Leaves the community alone and counts what its nodes send then.
///
/// # Errors
/// They send too much; which node how often, and of what.
pub fn silent(world: &mut World) -> Result<(), String> {
    world.ends_silent = false;
    world.run_for(REST);
    let nodes = world.alive();
    let before: BTreeMap<NodeId, u64> = nodes.iter().map(|id| (*id, sent(world, *id))).collect();
    world.kinds.clear();
    world.run_for(Duration::from_secs(60) * MINUTES);
    let all: u64 = nodes.iter().map(|id| sent(world, *id) - before[id]).sum();
    let mean = all as f64 / f64::from(MINUTES) / nodes.len().max(1) as f64;
    if mean <= FRAMES_MAX {
        return Ok(());
    }
    let each: Vec<String> = nodes
        .iter()
        .map(|id| format!("{} {}", id.short(), sent(world, *id) - before[id]))
        .collect();
    Err(format!(
        "left alone, {} nodes send {mean:.0} frames a node and minute (at most {FRAMES_MAX}); \
         in {MINUTES} minutes each: {}; by kind: {:?}",
        nodes.len(),
        each.join(", "),
        world.kinds
    ))
}

fn sent(world: &World, id: NodeId) -> u64 {
    world.machines.get(&id).map_or(0, |machine| machine.sent)
}
