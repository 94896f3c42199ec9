//! A node as it would be in a ring that stands: for simulations and tests, where ten thousand
//! joins would only cost time. Nothing that ships calls this.

use alloc::vec::Vec;

use dugnad_kernel::{Cx, Input, Key, Peer};

use crate::overlay::Overlay;
use crate::overlay::ring::{self, Ring};

impl Overlay {
    /// Inside, with these neighbours, and the first node at or after the start of every wanted
    /// slot, as `owner` names it, in the table. `Command::Boot` sets it going.
    #[must_use]
    pub fn planted(me: Peer, pred: Peer, succs: Vec<Peer>, owner: impl Fn(Key) -> Peer) -> Self {
        let mut overlay = Self::new(me.clone());
        overlay.ring = Ring::planted(me, pred.clone(), succs);
        let last = overlay.ring.succs().last().map_or(pred.id, |last| last.id);
        for start in overlay.table.wanted(last) {
            overlay.table.set(start, owner(start));
        }
        let known = overlay.ring.succs().iter().chain(overlay.table.contacts());
        let known = known.chain(core::iter::once(&pred));
        overlay.book = known.map(|peer| (peer.id, peer.clone())).collect();
        overlay.book.remove(&overlay.ring.me().id);
        overlay
    }

    pub(crate) fn take_up(&mut self, cx: &mut Cx<'_, Self>) {
        self.ring_step(Input::Timer(ring::Timer::Stabilize { round: 0 }), cx);
        self.bulk_range_changed(cx);
        self.update_watch(cx);
        self.fill(cx);
    }
}
