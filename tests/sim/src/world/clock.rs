//! The time of day, as each machine has it.

use dugnad_kernel::{Input, NodeId};
use dugnad_node::Command;

use super::World;

/// Milliseconds since 1970 when the simulated world begins.
pub const BIRTH_MS: u64 = 1_800_000_000_000;

impl World {
    /// Its clock is so many milliseconds ahead from now on; `None`: it is as if never set.
    pub fn set_clock(&mut self, id: NodeId, ahead: Option<i64>) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.clock = ahead;
        }
        self.tell_clock(id);
    }

    pub(super) fn tell_clock(&mut self, id: NodeId) {
        let Some(machine) = self.machines.get(&id) else { return };
        let right = BIRTH_MS + self.now.0 / 1_000;
        let set = machine.clock.map(|ahead| right.saturating_add_signed(ahead));
        self.input(id, Input::Command(Command::Clock(set)));
    }
}
