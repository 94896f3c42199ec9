//! What a ring is at an instant, for those who explore all states it can get into. Nothing that
//! ships calls this.

use alloc::vec::Vec;

use dugnad_kernel::{NodeId, Time};

use super::Ring;
use crate::config::{CLAIM, T_DEAD};

fn word(id: NodeId) -> u64 {
    u64::try_from(id.0 >> 64).unwrap_or(u64::MAX)
}

impl Ring {
    /// Everything that decides what it does next, as words: two rings with the same words go on in
    /// the same way. `op` renames operations, 0 for one that nobody else knows any more. Left out
    /// are instants and counters, how often something was tried, and what is unsure.
    pub fn print(&self, now: Time, op: &mut dyn FnMut(u64) -> u64, out: &mut Vec<u64>) {
        let bits = [
            self.pred_suspect,
            self.join_forward,
            self.leave_forward,
            self.leave_wanted,
            self.old_pred.is_some(),
            self.via.is_some(),
            self.asking.is_some(),
            self.stray_op.is_some(),
        ];
        let bits = bits.iter().fold(0, |bits, bit| bits << 1 | u64::from(*bit));
        out.extend([bits, self.status as u64, word(self.pred.id)]);
        out.extend(self.old_pred.iter().chain(&self.via).map(|id| word(*id)));
        out.extend(self.asking.iter().map(|asking| word(asking.target.id)));
        let ops = [self.lock, self.my_op, self.joined_op, self.stray_op];
        out.extend(ops.map(|number| number.map_or(0, &mut *op)));
        list(self.succs.iter().map(|peer| word(peer.id)).collect(), out);
        let mut given_up: Vec<u64> = self.given_up.iter().map(|number| op(*number)).collect();
        given_up.retain(|number| *number != 0);
        given_up.sort_unstable();
        list(given_up, out);
        let dead = self.dead.iter().filter(|(_, _, at)| now.since(*at) < T_DEAD);
        let mut dead: Vec<u64> = dead.map(|(id, _, _)| word(*id)).collect();
        dead.sort_unstable();
        list(dead, out);
        let claimant = self.claimant.iter().filter(|(_, at)| now.since(*at) < CLAIM);
        list(claimant.map(|(peer, _)| word(peer.id)).collect(), out);
    }

    /// The question of stabilisation under way: its number, and who is asked.
    #[must_use]
    pub fn asking(&self) -> Option<(u32, NodeId)> {
        self.asking.as_ref().map(|asking| (asking.call, asking.target.id))
    }

    /// As the overlay around it does with every message: who says something lives.
    pub fn heard(&mut self, id: NodeId) {
        self.lives(id);
    }
}

fn list(words: Vec<u64>, out: &mut Vec<u64>) {
    out.push(words.len() as u64);
    out.extend(words);
}
