//! What the links of the simulated nodes do: sending, and dialling again.

use dugnad_connectivity::{Command, Msg, overlay};
use dugnad_kernel::{Duration, NodeId};

use super::World;
use super::fault::Gone;
use super::measure::{digest, kind};
use super::world::Happening;
use crate::net::{Listener, Sent};

impl World {
    pub(super) fn send(&mut self, from: u32, to: NodeId, msg: Msg) {
        let me = &self.nodes[from as usize];
        if to == me.id {
            let direct = Happening::Direct { from, to: from, life: me.life, msg: Box::new(msg) };
            self.queue.push(self.now, direct);
            return;
        }
        let (bytes, hash) = digest(&msg);
        self.note(hash);
        self.traffic.add(kind(&msg), bytes);
        let machine = &mut self.nodes[from as usize];
        machine.sent += 1;
        machine.bytes += bytes;
        let id = machine.id;
        let known = machine.overlay.as_ref().is_some_and(|o| o.overlay().peer(to).is_some());
        let number = self.index.get(&to).copied();
        let Some(number) = number.filter(|_| known || self.net.epoch(id, to).is_some()) else {
            self.unknown += 1;
            return;
        };
        self.to_gone += u64::from(self.nodes[number as usize].left);
        self.checks.sent(id, to, &msg, self.now);
        let listener = self.listener(number);
        match self.net.send(self.now, id, to, listener) {
            Sent::At { time, epoch } => {
                let msg = Box::new(msg);
                self.queue.push(time, Happening::Deliver { from, to: number, epoch, msg });
            }
            Sent::Opens { time, epoch } => {
                let msg = Box::new(msg);
                self.queue.push(time, Happening::LinkUp { a: from, b: number, epoch });
                self.queue.push(time, Happening::Deliver { from, to: number, epoch, msg });
            }
            Sent::Refused { time } => {
                self.dropped(&msg);
                let life = self.nodes[from as usize].life;
                self.queue.push(time, Happening::LinkDown { node: from, peer: to, life });
            }
            Sent::Lost => self.dropped(&msg),
        }
    }

    /// The links did not take it, because they leave its addressee alone for now.
    pub(super) fn dropped(&mut self, msg: &Msg) {
        self.checks.lost(msg);
        if matches!(msg, Msg::Overlay(overlay::Msg::Ring(_))) {
            self.checks.disturbed(self.now);
        }
    }

    pub(super) fn listener(&self, number: u32) -> Listener {
        let machine = &self.nodes[number as usize];
        match (machine.overlay.is_some(), machine.gone) {
            (true, _) => Listener::Alive,
            (false, Gone::Closed) => Listener::Closed,
            (false, Gone::Silent) => Listener::Silent,
        }
    }

    pub(super) fn link_up(&mut self, a: u32, b: u32, epoch: u64) {
        let (x, y) = (self.id(a), self.id(b));
        if self.net.epoch(x, y) != Some(epoch) {
            return;
        }
        if self.overlay(a).is_none() || self.overlay(b).is_none() {
            self.drop_session(a, b);
            return;
        }
        for (me, other) in [(a, b), (b, a)] {
            let up = Command::LinkUp(self.peer(other));
            self.command(me, up);
        }
    }

    /// A node without any session dials its seeds again.
    pub(super) fn dial_again(&mut self, number: u32) {
        let id = self.id(number);
        let machine = &mut self.nodes[number as usize];
        if machine.dialling || machine.overlay.is_none() || !self.net.peers(id).is_empty() {
            return;
        }
        machine.dialling = true;
        let (life, wait) = (machine.life, Duration::from_secs(1));
        self.queue.push(self.now + wait, Happening::Redial { node: number, life, tries: 1 });
    }

    /// As the agent does: seeds, and some peers it met, are dialled, with back-off, until there
    /// is a session.
    pub(super) fn redial(&mut self, number: u32, life: u32, tries: u32) {
        if !self.lives(number, life) {
            return;
        }
        let linked = !self.net.peers(self.id(number)).is_empty();
        self.nodes[number as usize].dialling = !linked;
        if linked {
            return;
        }
        let book: Vec<NodeId> = self
            .overlay(number)
            .into_iter()
            .flat_map(|o| o.overlay().book())
            .map(|p| p.id)
            .collect();
        let start = tries as usize * 4 % book.len().max(1);
        let met = book.iter().cycle().skip(start).take(book.len().min(4));
        let met: Vec<u32> = met.filter_map(|id| self.index.get(id).copied()).collect();
        for seed in self.nodes[number as usize].seeds.clone().into_iter().chain(met) {
            let (listener, me, to) = (self.listener(seed), self.id(number), self.id(seed));
            if let Sent::Opens { time, epoch } = self.net.send(self.now, me, to, listener) {
                self.queue.push(time, Happening::LinkUp { a: number, b: seed, epoch });
            }
        }
        let wait = Duration::from_millis(500 << tries.min(6));
        let again = Happening::Redial { node: number, life, tries: tries + 1 };
        self.queue.push(self.now + wait, again);
    }

    /// Dials the seeds of a node that has no session.
    pub(super) fn redial_now(&mut self, number: u32) {
        let life = self.nodes[number as usize].life;
        self.redial(number, life, 0);
    }

    /// How often any node's ring changed.
    #[must_use]
    pub const fn ring_changes(&self) -> u64 {
        self.checks.changes_seen
    }
}
