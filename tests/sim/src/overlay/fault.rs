//! What can go wrong (PROTOCOL.md 12.3), and what the links make of it.
//!
//! A session over a cut does not lose single messages, as TCP does not: what is sent waits, and
//! arrives in order if the way opens in time. After 15 s without an acknowledgement the session
//! breaks, everything in it is lost, and both ends learn of it.

use dugnad_connectivity::{Command, Msg, overlay};
use dugnad_kernel::{Duration, NodeId};

use super::World;
use super::world::{Happening, Todo};
use crate::net::GIVE_UP;

/// How a node is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The process ended: peers see their connections reset, and are refused when they dial.
    Closed,
    /// The machine has no power, or no network: nothing comes back.
    Silent,
}

/// Messages of one session in one direction that wait for the way to open.
pub(super) struct Held {
    epoch: u64,
    messages: Vec<Msg>,
    /// Whether a release is on its way.
    released: bool,
}

/// Messages that may be replayed later.
const RECENT: usize = 64;

impl World {
    /// A node stops without a word.
    pub fn crash(&mut self, number: u32, how: Gone) {
        if self.overlay(number).is_none() {
            return;
        }
        self.note(0x63_7261_7368 ^ u64::from(number));
        if self.options.verbose {
            self.say(number, &format!("crashes, {how:?}"));
        }
        self.stop(number, how);
        self.checks.disturbed(self.now);
    }

    /// The node left; its process ends.
    pub(super) fn ended(&mut self, number: u32) {
        // Still in the middle of its last step: what it sent stands.
        let life = self.nodes[number as usize].life;
        if self.lives(number, life) {
            self.stop(number, Gone::Closed);
            self.nodes[number as usize].left = true;
        }
    }

    fn stop(&mut self, number: u32, how: Gone) {
        self.harvest(number);
        let machine = &mut self.nodes[number as usize];
        machine.gone = how;
        machine.life += 1;
        for todo in std::mem::take(&mut machine.deferred) {
            if let Todo::Message { msg, .. } = todo {
                self.checks.lost(&msg);
            }
        }
        let id = self.id(number);
        self.checks.stopped(id, self.now);
        if how == Gone::Closed {
            self.close_all(number);
        }
    }

    /// Ends all sessions of a node; the other ends learn of it if the way is open.
    pub(super) fn close_all(&mut self, number: u32) {
        let id = self.id(number);
        for peer in self.net.peers(id) {
            self.net.close(id, peer);
            let Some(other) = self.index.get(&peer).copied() else { continue };
            self.forget_held(number, other);
            if self.net.reach(id, peer) {
                let at = self.now + self.net.way(self.now, id, peer);
                let life = self.nodes[other as usize].life;
                self.queue.push(at, Happening::LinkDown { node: other, peer: id, life });
            }
        }
    }

    /// The node handles nothing for a while; its connections stand.
    pub fn pause(&mut self, number: u32, span: Duration) {
        let machine = &mut self.nodes[number as usize];
        machine.busy_until = machine.busy_until.max(self.now + span);
        self.checks.disturbed(self.now + span);
    }

    /// From now on every event costs the node this much time.
    pub fn slow(&mut self, number: u32, micros: u64) {
        self.nodes[number as usize].slow_us = micros;
        self.checks.disturbed(self.now);
    }

    pub fn leave(&mut self, number: u32) {
        self.command(number, Command::Leave);
    }

    /// Packets between the two are lost, both ways.
    pub fn cut(&mut self, a: u32, b: u32) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    pub fn cut_one_way(&mut self, a: u32, b: u32) {
        let (a, b) = (self.id(a), self.id(b));
        self.net.cut_one_way(a, b);
        self.checks.parted(self.now);
    }

    /// Only nodes of the same group reach each other, except for a share of the pairs.
    pub fn partition(&mut self, group: impl Fn(u32) -> u32, leak: f64) {
        let all = 0..self.nodes.len() as u32;
        let groups = all.map(|n| (self.id(n), group(n))).collect();
        self.net.partition_leaky(groups, leak);
        self.checks.parted(self.now);
    }

    /// All ways are open again.
    pub fn heal(&mut self) {
        self.net.heal();
        self.checks.parted(self.now);
        self.unacked.clear();
        let ways: Vec<(u32, u32)> = self.held.keys().copied().collect();
        for (from, to) in ways {
            let (x, y) = (self.id(from), self.id(to));
            if !self.passes(from, to) {
                continue;
            }
            let at = self.now + self.net.way(self.now, x, y);
            if let Some(held) = self.held.get_mut(&(from, to)) {
                held.released = true;
                self.queue.push(at, Happening::Release { from, to });
            }
        }
    }

    /// One of the latest messages of the ring reaches its addressee once more, although the
    /// session it belonged to may be long over.
    pub fn replay(&mut self, which: usize) {
        if self.recent.is_empty() {
            return;
        }
        let (from, to, msg) = &self.recent[which % self.recent.len()];
        let life = self.nodes[*to as usize].life;
        let direct = Happening::Direct { from: *from, to: *to, life, msg: msg.clone() };
        self.queue.push(self.now, direct);
        self.checks.disturbed(self.now);
    }

    /// Whether packets arrive at a machine that takes them.
    fn passes(&self, from: u32, to: u32) -> bool {
        let there = &self.nodes[to as usize];
        let silent = there.overlay.is_none() && there.gone == Gone::Silent;
        !silent && self.net.reach(self.id(from), self.id(to))
    }

    pub(super) fn deliver(&mut self, from: u32, to: u32, epoch: u64, msg: Box<Msg>) {
        let (x, y) = (self.id(from), self.id(to));
        if self.net.epoch(x, y) != Some(epoch) {
            self.checks.lost(&msg);
            return;
        }
        if self.held.get(&(from, to)).is_some_and(|held| held.epoch != epoch) {
            self.drop_held(from, to);
        }
        let held = self.held.contains_key(&(from, to));
        if held || !self.passes(from, to) {
            if !held {
                self.watch_ack(from, to, epoch);
            }
            let new = || Held { epoch, messages: Vec::new(), released: false };
            self.held.entry((from, to)).or_insert_with(new).messages.push(*msg);
            return;
        }
        if !self.net.is_whole() && !self.net.reach(y, x) && self.unacked.insert((from, to)) {
            self.watch_ack(from, to, epoch);
        }
        self.arrive(from, to, msg);
    }

    fn watch_ack(&mut self, from: u32, to: u32, epoch: u64) {
        self.queue.push(self.now + GIVE_UP, Happening::Break { from, to, epoch });
    }

    fn arrive(&mut self, from: u32, to: u32, msg: Box<Msg>) {
        if self.checks.replays && matches!(*msg, Msg::Overlay(overlay::Msg::Ring(_))) {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((from, to, msg.clone()));
        }
        self.offer(to, Todo::Message { from, msg });
    }

    pub(super) fn release(&mut self, from: u32, to: u32) {
        let Some(held) = self.held.get_mut(&(from, to)) else { return };
        if !std::mem::take(&mut held.released) || !self.passes(from, to) {
            return;
        }
        let Some(held) = self.held.remove(&(from, to)) else { return };
        let current = self.net.epoch(self.id(from), self.id(to)) == Some(held.epoch);
        for msg in held.messages {
            if current {
                self.arrive(from, to, Box::new(msg));
            } else {
                self.checks.lost(&msg);
            }
        }
    }

    /// What was sent was not acknowledged for too long: the session is over.
    pub(super) fn break_session(&mut self, from: u32, to: u32, epoch: u64) {
        let (x, y) = (self.id(from), self.id(to));
        let waits = self.held.get(&(from, to)).is_some_and(|held| held.epoch == epoch);
        let unacked = self.unacked.contains(&(from, to));
        if self.net.epoch(x, y) != Some(epoch) || (!waits && !unacked) {
            return;
        }
        if self.passes(from, to) && self.net.reach(y, x) {
            return;
        }
        self.checks.disturbed(self.now);
        self.drop_session(from, to);
    }

    /// Ends a session that one end knows to be over now, and the other when it can.
    pub(super) fn drop_session(&mut self, from: u32, to: u32) {
        let (x, y) = (self.id(from), self.id(to));
        self.net.close(x, y);
        self.forget_held(from, to);
        self.tell_down(from, y, Duration::ZERO);
        let later = if self.net.reach(x, y) { self.net.way(self.now, x, y) } else { GIVE_UP };
        self.tell_down(to, x, later);
    }

    fn tell_down(&mut self, node: u32, peer: NodeId, later: Duration) {
        let life = self.nodes[node as usize].life;
        self.queue.push(self.now + later, Happening::LinkDown { node, peer, life });
    }

    fn forget_held(&mut self, a: u32, b: u32) {
        self.drop_held(a, b);
        self.drop_held(b, a);
        self.unacked.remove(&(a, b));
        self.unacked.remove(&(b, a));
    }

    fn drop_held(&mut self, from: u32, to: u32) {
        if let Some(held) = self.held.remove(&(from, to)) {
            held.messages.iter().for_each(|msg| self.checks.lost(msg));
        }
    }
}
