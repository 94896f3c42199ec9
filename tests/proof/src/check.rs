//! Invariants of PROTOCOL.md 2.5 and 2.8 as functions of the state of all nodes.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_connectivity::ring::{Ring, Status};
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, ArcSet, NodeId};

/// Rings here have 64 places, so that a set of places is one word.
pub const PLACES: u8 = 64;
const SHIFT: u32 = 128 - 6;

#[must_use]
pub fn place(number: u8) -> NodeId {
    dugnad_kernel::Id(u128::from(number) << SHIFT)
}

#[must_use]
pub fn number(id: NodeId) -> u8 {
    u8::try_from(id.0 >> SHIFT).unwrap_or(u8::MAX)
}

/// The places in `arc`, whose ends are places.
#[must_use]
pub fn places(arc: Arc) -> u64 {
    let (lo, hi) = (number(arc.lo), number(arc.hi));
    let width = hi.wrapping_sub(lo) & (PLACES - 1);
    let run = if width == 0 { u64::MAX } else { (1 << width) - 1 };
    run.rotate_left(u32::from(lo) + 1)
}

/// I-OWN: the claims cover every place exactly once.
///
/// # Errors
/// The places that two claim, or nobody does.
pub fn partition(claims: impl Iterator<Item = Arc>) -> Result<(), String> {
    let (mut once, mut twice) = (0, 0);
    for claim in claims.map(places) {
        twice |= once & claim;
        once |= claim;
    }
    let list = |set: u64| -> Vec<u8> { (0..PLACES).filter(|n| set >> n & 1 == 1).collect() };
    match (twice, !once) {
        (0, 0) => Ok(()),
        (0, free) => Err(format!("nobody owns {:?}", list(free))),
        (twice, _) => Err(format!("two own {:?}", list(twice))),
    }
}

/// The same on any ring, without the exactness of places: no two claims overlap.
///
/// # Errors
/// Names the two.
pub fn disjoint(claims: &[(NodeId, Arc)]) -> Result<(), String> {
    for (at, (a, one)) in claims.iter().enumerate() {
        for (b, two) in &claims[..at] {
            let both = ArcSet::of(*one).and(&ArcSet::of(*two));
            if both.is_ok_and(|both| !both.is_empty()) {
                return Err(format!("{a:?} and {b:?} own the same"));
            }
        }
    }
    Ok(())
}

/// Live nodes by id.
pub type Rings<'a> = BTreeMap<NodeId, &'a Ring>;

fn member(ring: &Ring) -> bool {
    ring.is_member()
}

/// The first live entry of its successor list: `best` of Zave's model.
fn best(rings: &Rings<'_>, ring: &Ring) -> Option<NodeId> {
    let live = |id: &NodeId| rings.get(id).is_some_and(|r| member(r));
    ring.succs().iter().map(|p| p.id).find(live)
}

/// Every live node inside, successor and predecessor inverse and right, lists exact, no lock.
///
/// # Errors
/// The first thing that is wrong.
pub fn ideal(rings: &Rings<'_>) -> Result<(), String> {
    pointers(rings)?;
    let ids: Vec<NodeId> = rings.keys().copied().collect();
    for (at, (id, ring)) in rings.iter().enumerate() {
        let others = (1..ids.len()).map(|step| ids[(at + step) % ids.len()]);
        let list: Vec<NodeId> = ring.succs().iter().map(|p| p.id).collect();
        let wanted: Vec<NodeId> = others.take(ring.length()).collect();
        if ids.len() > 1 && list != wanted {
            return Err(format!("{id:?}: successors {list:?}, not {wanted:?}"));
        }
    }
    Ok(())
}

/// As [`ideal`], but of the lists only their heads.
///
/// # Errors
/// The first thing that is wrong.
pub fn pointers(rings: &Rings<'_>) -> Result<(), String> {
    let ids: Vec<NodeId> = rings.keys().copied().collect();
    for (at, (id, ring)) in rings.iter().enumerate() {
        let next = ids[(at + 1) % ids.len()];
        let before = ids[(at + ids.len() - 1) % ids.len()];
        if ring.status() != Status::Inside || ring.locked() {
            return Err(format!("{id:?} is {:?}, lock {:?}", ring.status(), ring.lock()));
        }
        if ring.forwards() != (false, false) {
            return Err(format!("{id:?} still forwards"));
        }
        if ring.succ().id != next {
            return Err(format!("{id:?}: successor {:?}, not {next:?}", ring.succ().id));
        }
        if ring.pred().id != before || ring.pred_suspect() {
            return Err(format!("{id:?}: predecessor {:?}, not {before:?}", ring.pred().id));
        }
    }
    Ok(())
}

/// I3: who forwards a join holds a lock; nobody forwards both.
///
/// # Errors
/// What is wrong.
pub fn locks(ring: &Ring) -> Result<(), String> {
    match ring.forwards() {
        (true, true) => Err("forwards a join and a leave".into()),
        (true, false) if !ring.locked() => Err("forwards a join without a lock".into()),
        _ => Ok(()),
    }
}

/// Z3: the list is in order, names nobody twice, and not its owner unless alone.
///
/// # Errors
/// What is wrong.
pub fn ordered(ring: &Ring) -> Result<(), String> {
    let me = ring.me().id;
    let list: Vec<NodeId> = ring.succs().iter().map(|p| p.id).collect();
    if list == [me] {
        return Ok(());
    }
    let apart = list.windows(2).all(|pair| in_oo(me, pair[0], pair[1]));
    if !apart || list.contains(&me) || list.len() > ring.length() {
        return Err(format!("{me:?}: list {list:?} is out of order"));
    }
    Ok(())
}

/// Z1, Z3, Z4, Z5 of all members.
///
/// # Errors
/// The first that does not hold.
pub fn zave(rings: &Rings<'_>) -> Result<(), String> {
    let members: Vec<&&Ring> = rings.values().filter(|r| member(r)).collect();
    if members.len() < 2 {
        return Ok(());
    }
    let mut next = BTreeMap::new();
    for ring in &members {
        ordered(ring)?;
        let me = ring.me().id;
        let Some(best) = best(rings, ring) else {
            return Err(format!("Z1: no live successor in the list of {me:?}"));
        };
        next.insert(me, best);
    }
    // Whoever is reached after as many steps as there are nodes is on a cycle.
    let end = |from: NodeId| (0..next.len()).fold(from, |at, _| next[&at]);
    let cycle = |from: NodeId| {
        let mut ids = vec![from];
        let mut at = next[&from];
        while at != from {
            ids.push(at);
            at = next[&at];
        }
        ids.sort_unstable();
        ids
    };
    let first = cycle(end(members[0].me().id));
    for ring in &members {
        // Z5 holds of itself: best of a member is a member, so every path ends in a cycle.
        if cycle(end(ring.me().id)) != first {
            return Err(format!("Z4: two rings, {first:?} and that of {:?}", ring.me().id));
        }
    }
    for id in &first {
        if let Some(skipped) = first.iter().find(|other| in_oo(*id, **other, next[id])) {
            return Err(format!("Z4: {id:?} skips {skipped:?} on the ring"));
        }
    }
    Ok(())
}

/// Z2: members that no two neighbours of any extended list skip (Zave's principals).
#[must_use]
pub fn principals(rings: &Rings<'_>) -> BTreeSet<NodeId> {
    let members: Vec<&&Ring> = rings.values().filter(|r| member(r)).collect();
    let skipped = |id: NodeId| {
        members.iter().any(|ring| {
            let me = ring.me().id;
            let list: Vec<NodeId> =
                core::iter::once(me).chain(ring.succs().iter().map(|p| p.id)).collect();
            list.windows(2).any(|pair| pair[0] != pair[1] && in_oo(pair[0], id, pair[1]))
        })
    };
    members.iter().map(|ring| ring.me().id).filter(|id| !skipped(*id)).collect()
}
