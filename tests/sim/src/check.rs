//! What must hold of a community.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_collective::deployment::service::ReplicaState;
use dugnad_collective::persistence::record::{COPIES, DEGREE, Version, class};
use dugnad_connectivity::ring::Status;
use dugnad_kernel::{ArcSet, Key, NodeId};

use crate::World;

/// Every live member's successor and predecessor are its neighbours among the live members, and
/// the successor lists are exact (PROTOCOL.md 2.8, "Ideal"). The first thing that is wrong.
pub fn ideal_ring(world: &World) -> Result<(), String> {
    let alive = world.alive();
    for (place, id) in alive.iter().enumerate() {
        let Some(node) = world.node(*id) else { continue };
        let ring = node.overlay().ring();
        let name = id.short();
        if ring.status() != Status::Inside {
            return Err(format!("{name} is {:?}", ring.status()));
        }
        let next = alive[(place + 1) % alive.len()];
        let before = alive[(place + alive.len() - 1) % alive.len()];
        if ring.succ().id != next {
            return Err(format!(
                "{name}: successor {} not {}",
                ring.succ().id.short(),
                next.short()
            ));
        }
        if ring.pred().id != before || ring.pred_suspect() {
            return Err(format!("{name}: predecessor {}", ring.pred().id.short()));
        }
        let list = ring.succs().iter().map(|p| p.id);
        let wanted = (1..alive.len()).map(|k| alive[(place + k) % alive.len()]);
        if alive.len() > 1 && !list.eq(wanted.take(ring.succs().len())) {
            let have: Vec<NodeId> = ring.succs().iter().map(|p| p.id).collect();
            return Err(format!("{name}: successor list {have:?} of {alive:?}"));
        }
    }
    Ok(())
}

/// The claims of all members cover no id twice (I-OWN, one half); while no node failed and no
/// message point is in flight they cover the ring. The overlapping pair, if any.
pub fn no_two_owners(world: &World) -> Result<(), String> {
    let mut claims: Vec<(NodeId, ArcSet)> = Vec::new();
    for id in world.alive() {
        let Some(claim) = world.node(id).and_then(|n| n.overlay().ring().claim()) else { continue };
        let claim = ArcSet::of(claim);
        for (other, theirs) in &claims {
            if theirs.and(&claim).is_ok_and(|both| !both.is_empty()) {
                return Err(format!("{} and {} both own", other.short(), id.short()));
            }
        }
        claims.push((id, claim));
    }
    Ok(())
}

/// Replicas that run on live machines, by service.
pub fn running(world: &World) -> BTreeMap<Key, Vec<(NodeId, u32)>> {
    let mut all: BTreeMap<Key, Vec<(NodeId, u32)>> = BTreeMap::new();
    for (id, machine) in world.machines.iter().filter(|(_, m)| m.node.is_some()) {
        for replica in machine.processes.running.keys() {
            all.entry(replica.service).or_default().push((*id, replica.number));
        }
    }
    all
}

/// Every service runs exactly `want` replicas on different live nodes, one manager knows exactly
/// those, and nothing else runs.
pub fn services(world: &World, wanted: &BTreeMap<Key, usize>) -> Result<(), String> {
    let running = running(world);
    for (key, replicas) in &running {
        let want = wanted.get(key).copied().unwrap_or(0);
        let nodes: BTreeSet<NodeId> = replicas.iter().map(|(node, _)| *node).collect();
        if replicas.len() != want || nodes.len() != want {
            return Err(format!("{}: {} of {want} run: {replicas:?}", key.short(), replicas.len()));
        }
    }
    for (key, want) in wanted.iter().filter(|(_, want)| **want > 0) {
        if !running.contains_key(key) {
            return Err(format!("{}: none of {want} run", key.short()));
        }
        let views: Vec<_> = world
            .alive()
            .into_iter()
            .filter_map(|id| world.node(id))
            .flat_map(|node| node.collective().views())
            .filter(|view| view.service == *key)
            .collect();
        let [view] = views.as_slice() else {
            return Err(format!("{}: {} managers", key.short(), views.len()));
        };
        // A lost one stays in the plan until there is another place.
        let placed = view.slots.iter().filter(|slot| slot.state != ReplicaState::Lost);
        let known: BTreeSet<(NodeId, u32)> = placed.map(|s| (s.node, s.number)).collect();
        let real: BTreeSet<(NodeId, u32)> =
            running.get(key).into_iter().flatten().copied().collect();
        if known != real || usize::from(view.ready) != *want {
            return Err(format!(
                "{}: plan {known:?}, real {real:?}, {} ready",
                key.short(),
                view.ready
            ));
        }
    }
    Ok(())
}

/// Every record of any live node is, in its newest version, at every place of its class: the
/// owner of each of the four ids, and that owner's next two successors.
pub fn records(world: &World) -> Result<(), String> {
    let alive = world.alive();
    let store = |id: NodeId| world.node(id).map(|n| n.collective().store());
    let mut newest: BTreeMap<(Key, Vec<u8>), Version> = BTreeMap::new();
    for held in alive.iter().filter_map(|id| store(*id)) {
        for record in held.iter() {
            let known = newest.entry(record.id()).or_insert(record.version);
            *known = record.version.max(*known);
        }
    }
    for ((key, name), version) in newest {
        for x in 0..DEGREE {
            let place = class(key, x);
            let owner = alive.partition_point(|id| *id < place) % alive.len();
            for step in 0..alive.len().min(1 + COPIES) {
                let holder = alive[(owner + step) % alive.len()];
                let held = store(holder).and_then(|s| s.get(key, &name).map(|r| r.version));
                if held != Some(version) {
                    let (id, name) = (holder.short(), String::from_utf8_lossy(&name));
                    return Err(format!("{id} holds {held:?} of {name}, newest is {version:?}"));
                }
            }
        }
    }
    Ok(())
}
