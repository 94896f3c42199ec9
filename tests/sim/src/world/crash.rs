//! How a node of the world stops, and what the others notice of it.

use dugnad_kernel::{Duration, NodeId};

use super::{Disk, Happening, World};
use crate::net::GIVE_UP;

/// How a machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: peers see their connections reset, services run on.
    Process,
    /// The machine loses power: silence, services gone, unsynced writes lost.
    Power,
}

impl World {
    pub fn slow_disk(&mut self, id: NodeId, by: Duration) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.slow_sync = by;
        }
    }

    /// What a backup of the machine's state holds: its disk, and which life it was.
    #[must_use]
    pub fn backup(&self, id: NodeId) -> Option<(Disk, u32)> {
        self.machines.get(&id).map(|machine| (machine.disk.clone(), machine.inc))
    }

    /// Puts an older state in the place of what a stopped machine has.
    pub fn restore(&mut self, id: NodeId, (disk, inc): (Disk, u32)) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.disk = disk;
            machine.inc = inc;
        }
    }

    pub fn crash(&mut self, id: NodeId, kind: Crash) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.node = None;
        machine.life += 1;
        if kind == Crash::Power {
            machine.processes.running.clear();
        }
        self.waiting.retain(|(node, _)| *node != id);
        self.next_turn(None);
        self.note(b"crash", id, &[]);
        match kind {
            Crash::Process => self.close_all(id),
            Crash::Power => {
                for peer in self.net.peers(id) {
                    let epoch = self.net.epoch(id, peer);
                    let at = self.now + GIVE_UP;
                    self.at(at, Happening::LinkDown { node: peer, peer: id, epoch });
                }
            }
        }
    }

    /// Ends all sessions of a node; the other ends learn of it soon.
    pub(super) fn close_all(&mut self, id: NodeId) {
        for peer in self.net.peers(id) {
            let epoch = self.net.epoch(id, peer);
            let after = Duration::from_millis(self.rng.u64(1..40));
            self.net.close(id, peer);
            self.at(self.now + after, Happening::LinkDown { node: peer, peer: id, epoch });
        }
    }
}
