//! Keeping copies where they belong while the ring changes (PROTOCOL.md 5.3, 5.4).
//!
//! An owner compares its range with its next two successors whenever its range grew or they
//! changed; both sides take what they miss. A range gained without a hand-over (its owner died)
//! is also compared with the owners of the other ids of its class.

use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Arc, Cx, Duration, NodeId};
use serde::{Deserialize, Serialize};

use super::operations::AskerExt;
use super::record::{DEGREE, Name, Record, Version, belongs};
use super::{Asker, Msg, Outcome, Persistence, Timer};

/// Changes of the neighbourhood come in bursts; one comparison serves them all.
pub(crate) const SYNC_DELAY: Duration = Duration::from_millis(200);
/// Anti-entropy with a random place of the class (PROTOCOL.md 5.2).
pub(crate) const ANTI_ENTROPY: Duration = Duration::from_secs(600);
/// Entries of one digest, bytes of one batch of records.
const ENTRIES_MAX: usize = 400;
const BATCH_BYTES: usize = 48 * 1024;
/// Owners asked on the way along an image of a range.
const REPAIR_STEPS: usize = 24;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMsg {
    /// What I hold of the classes in `arc`, from `from` (included) to `to` (excluded).
    Digest { arc: Arc, from: Name, to: Option<Name>, entries: Vec<(Name, Version)> },
    /// To whoever sent a digest: send me these.
    Want { names: Vec<Name> },
    /// Records the other lacks, or has an older version of.
    Items { records: Vec<Record> },
}

/// Which successor holds copies of which range of mine.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    ranges: Map<NodeId, Arc>,
    planned: bool,
}

impl Synced {
    pub(crate) fn is_compared(&self, node: NodeId) -> bool {
        self.ranges.contains_key(&node)
    }

    /// What was in flight to it is lost; whether it was compared with.
    pub(crate) fn forget(&mut self, node: NodeId) -> bool {
        self.ranges.remove(&node).is_some()
    }
}

impl Persistence {
    pub(crate) fn plan_sync(&mut self, cx: &mut Cx<'_, Self>) {
        if !core::mem::replace(&mut self.synced.planned, true) {
            cx.after(SYNC_DELAY, Timer::Sync);
        }
    }

    /// At once when the ring moves: who is no copy holder for a moment may miss a write in it, and
    /// so does everybody of a part of the range that is another's for a moment.
    pub(crate) fn forget_synced(&mut self) {
        let (holders, range) = (self.position.copy_holders(self.me), self.position.range);
        self.synced.ranges.retain(|id, known| {
            *known = range.filter(|range| within(range, known)).unwrap_or(*known);
            holders.contains(id) && range.is_some()
        });
    }

    pub(crate) fn on_sync_timer(&mut self, cx: &mut Cx<'_, Self>) {
        self.synced.planned = false;
        let Some(range) = self.position.range else { return };
        let holders = self.position.copy_holders(self.me);
        self.synced.ranges.retain(|id, _| holders.contains(id));
        for to in holders {
            let done = self.synced.ranges.get(&to).is_some_and(|known| within(&range, known));
            if !done {
                self.synced.ranges.insert(to, range);
                self.send_digest(to, range, cx);
            }
        }
    }

    pub(crate) fn on_anti_entropy(&mut self, cx: &mut Cx<'_, Self>) {
        let jitter = cx.rng.u32(80..120);
        cx.after(ANTI_ENTROPY * jitter / 100, Timer::AntiEntropy);
        self.synced.ranges.clear();
        self.plan_sync(cx);
        self.expire_groups(cx);
        self.forget_tombstones(cx);
        if let Some(range) = self.position.range {
            let x = cx.rng.u32(1..DEGREE);
            self.repair(range, &[x], cx);
        }
    }

    /// Compares `arc`, which I gained, with the owners of its images.
    pub(crate) fn repair(&mut self, arc: Arc, images: &[u32], cx: &mut Cx<'_, Self>) {
        if self.position.succs.first().is_none_or(|s| s.id == self.me) {
            return;
        }
        for x in images {
            let x = *x;
            self.start("repair", move |asker| repair(asker, arc, x), cx);
        }
    }

    pub(crate) fn send_digest(&mut self, to: NodeId, arc: Arc, cx: &mut Cx<'_, Self>) {
        let store = self.records.read();
        let mine: Vec<(Name, Version)> = store
            .iter()
            .filter(|record| belongs(record.key, &arc))
            .map(|record| (record.id(), record.version))
            .collect();
        let mut from: Name = Name::default();
        let mut rest = mine.as_slice();
        loop {
            let (page, more) = rest.split_at(rest.len().min(ENTRIES_MAX));
            rest = more;
            let to_name = rest.first().map(|(name, _)| name.clone());
            let digest = SyncMsg::Digest {
                arc,
                from: core::mem::take(&mut from),
                to: to_name.clone(),
                entries: page.to_vec(),
            };
            cx.send(to, Msg::Sync(digest));
            match to_name {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    pub(crate) fn on_sync(&mut self, from: NodeId, msg: SyncMsg, cx: &mut Cx<'_, Self>) {
        match msg {
            SyncMsg::Digest { arc, from: lower, to, entries } => {
                self.on_digest(from, arc, &lower, to.as_ref(), &entries, cx);
            }
            SyncMsg::Want { names } => {
                let store = self.records.read();
                let records = names.iter().filter_map(|name| store.records.get(name));
                send_items(from, records.cloned().collect(), cx);
            }
            SyncMsg::Items { records } => self.on_items(from, records, cx),
        }
    }

    fn on_digest(
        &mut self,
        from: NodeId,
        arc: Arc,
        lower: &Name,
        upper: Option<&Name>,
        entries: &[(Name, Version)],
        cx: &mut Cx<'_, Self>,
    ) {
        let store = self.records.read();
        let mut names = Vec::new();
        for (name, version) in entries {
            let known = store.records.get(name).map(|record| record.version);
            if known.is_none_or(|known| known < *version) {
                names.push(name.clone());
            }
        }
        if !names.is_empty() {
            cx.send(from, Msg::Sync(SyncMsg::Want { names }));
        }
        let theirs: Map<&Name, Version> =
            entries.iter().map(|(name, version)| (name, *version)).collect();
        let newer = |(id, record): &(&Name, &Record)| {
            let inside = *id >= lower && upper.is_none_or(|upper| *id < upper);
            let theirs = theirs.get(id);
            inside && belongs(record.key, &arc) && theirs.is_none_or(|v| *v < record.version)
        };
        let records = store.records.iter().filter(newer);
        let records: Vec<Record> = records.map(|(_, record)| record.clone()).collect();
        send_items(from, records, cx);
    }
}

fn send_items(to: NodeId, records: Vec<Record>, cx: &mut Cx<'_, Persistence>) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for record in records {
        let size = record.name.len() + record.value.as_ref().map_or(0, Vec::len) + 64;
        if bytes + size > BATCH_BYTES && !batch.is_empty() {
            let records = core::mem::take(&mut batch);
            cx.send(to, Msg::Sync(SyncMsg::Items { records }));
            bytes = 0;
        }
        bytes += size;
        batch.push(record);
    }
    if !batch.is_empty() {
        cx.send(to, Msg::Sync(SyncMsg::Items { records: batch }));
    }
}

/// Whether `inner` lies in `outer`; both end at the same node.
fn within(inner: &Arc, outer: &Arc) -> bool {
    inner.hi == outer.hi && width(inner) <= width(outer)
}

fn width(arc: &Arc) -> u128 {
    // The whole ring has width zero when measured by its ends.
    arc.lo.distance(arc.hi).wrapping_sub(1)
}

/// Compares with the owners of the image of `arc`, [`REPAIR_STEPS`] of them at most: what the
/// others have comes with later rounds of anti-entropy, each along a random image.
async fn repair(asker: Asker, arc: Arc, x: u32) -> Outcome {
    let image = arc.shifted(u128::from(x) << 126);
    let mut at = image.lo.plus(1);
    for _ in 0..REPAIR_STEPS {
        let Some(owner) = asker.find(at).await else { break };
        asker.report(Outcome::Digest { to: owner, arc });
        let covered = image.lo.distance(owner);
        if covered == 0 || !image.contains(owner) || owner == image.hi {
            break;
        }
        at = owner.plus(1);
    }
    Outcome::Nothing
}
