//! The pointers: predecessor, successor list, and what follows when they change.

use alloc::vec::Vec;

use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, Cx, NodeId, Peer};

use super::{Event, Msg, Ring};
use crate::config::{STABILIZE_FAST, T_UNSURE, UNSURE_MAX};

impl Ring {
    /// Drops everything from myself on, duplicates, and what is beyond the length.
    pub(crate) fn trim(&self, list: Vec<Peer>) -> Vec<Peer> {
        let mut out: Vec<Peer> = Vec::new();
        for peer in list {
            if peer.id == self.me.id || out.len() == self.length {
                break;
            }
            let ordered = out.last().is_none_or(|last| in_oo(last.id, peer.id, self.me.id));
            if ordered && !out.iter().any(|known| known.id == peer.id) {
                out.push(peer);
            }
        }
        if out.is_empty() {
            out.push(self.me.clone());
        }
        out
    }

    pub(crate) fn set_succs(&mut self, mut list: Vec<Peer>, cx: &mut Cx<'_, Self>) {
        list.retain(|peer| !self.died(peer, cx.now));
        let list = self.trim(list);
        let same = list.len() == self.succs.len()
            && list.iter().zip(&self.succs).all(|(a, b)| a.id == b.id);
        self.succs = list;
        if !same {
            self.neighbours_changed(cx);
            if self.is_member() && !self.pred_suspect && self.pred.id != self.me.id {
                cx.send(self.pred.id, Msg::ListChanged);
            }
        }
    }

    /// Takes `peer` as predecessor. What I gain this way is unsure for a while: another node may
    /// still answer for it.
    pub(crate) fn set_pred(&mut self, peer: Peer, cx: &mut Cx<'_, Self>) {
        let old = core::mem::replace(&mut self.pred, peer);
        self.pred_suspect = false;
        if old.id == self.pred.id {
            return;
        }
        if !in_oo(old.id, self.pred.id, self.me.id) {
            let gained = Arc::new(self.pred.id, old.id);
            self.unsure.retain(|(_, until)| *until > cx.now);
            if self.unsure.len() == UNSURE_MAX {
                self.unsure.remove(0);
            }
            self.unsure.push((gained, cx.now + T_UNSURE));
        }
        cx.emit(Event::RangeChanged);
        self.neighbours_changed(cx);
    }

    pub(crate) fn remove_succ(&mut self, id: NodeId) -> bool {
        let before = self.succs.len();
        self.succs.retain(|succ| succ.id != id);
        let removed = self.succs.len() != before;
        if self.succs.is_empty() {
            self.succs.push(self.me.clone());
        }
        removed
    }

    pub(crate) fn suspect_pred(&mut self, id: NodeId) -> bool {
        let mine = self.pred.id == id && id != self.me.id;
        self.pred_suspect |= mine;
        mine
    }

    pub(crate) fn neighbours_changed(&mut self, cx: &mut Cx<'_, Self>) {
        self.changed_at = cx.now;
        cx.emit(Event::NeighboursChanged);
        self.schedule_stabilize(STABILIZE_FAST, cx);
    }

    /// Newer addresses of a neighbour.
    pub fn refresh(&mut self, peer: &Peer) {
        if self.pred.id == peer.id && self.pred.inc <= peer.inc {
            self.pred = peer.clone();
        }
        for succ in &mut self.succs {
            if succ.id == peer.id && succ.inc <= peer.inc {
                *succ = peer.clone();
            }
        }
    }
}
