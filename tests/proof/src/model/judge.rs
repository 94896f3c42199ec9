//! What must hold of a [`World`], and when two of them are the same.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use dugnad_connectivity::ring::{Msg, Status};
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, NodeId};

use super::{Action, Machine, Wire, World};
use crate::check::{self, Rings};
use crate::words::name;

/// Rounds of stabilisation after which a ring must be ideal, and batches of other things that
/// happen between two of them.
const SETTLE_ROUNDS: usize = 20;
const SETTLE_BATCHES: usize = 30;

impl World {
    /// The same for two worlds that go on in the same way.
    #[must_use]
    pub fn print(&self) -> u64 {
        let mut ops: Vec<u64> = Vec::new();
        let held = self.nodes.iter().filter(|machine| !machine.down);
        let held = held.flat_map(|machine| [machine.ring.lock(), machine.ring.op()]);
        for op in held.chain(self.flights().map(|flight| flight.op)).flatten() {
            if !ops.contains(&op) {
                ops.push(op);
            }
        }
        let mut short =
            |op: u64| ops.iter().position(|known| *known == op).map_or(0, |at| at as u64 + 1);
        let mut out = vec![
            u64::from(u32::from_be_bytes([self.leaves, self.fails, self.rounds, self.leases])),
            u64::from(self.faulty),
        ];
        for machine in &self.nodes {
            if machine.down {
                out.push(u64::MAX);
                continue;
            }
            let flags = [machine.again, machine.wants_in, machine.wants_out];
            out.push(flags.iter().fold(0, |bits, flag| bits << 1 | u64::from(*flag)));
            machine.ring.print(self.now(), &mut short, &mut out);
        }
        for (place, link) in self.links.iter().enumerate().filter(|(_, link)| !link.is_empty()) {
            out.push((place as u64) << 32 | link.len() as u64);
            for flight in link {
                let asker = [place / self.count(), place % self.count()];
                let fresh = flight.call.is_some_and(|call| {
                    let asks = |n: &usize| {
                        self.nodes[*n].ring.asking().is_some_and(|(number, _)| number == call)
                    };
                    asker.iter().any(asks)
                });
                let op = flight.op.map_or(0, &mut short);
                out.extend([flight.print, op << 1 | u64::from(fresh)]);
            }
        }
        let mut hasher = DefaultHasher::new();
        out.hash(&mut hasher);
        hasher.finish()
    }

    /// I-OWN while nothing failed, I3, and Z1 to Z5.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        let live = self.nodes.iter().filter(|machine| !machine.down);
        live.clone().try_for_each(|machine| check::locks(&machine.ring))?;
        if !self.faulty {
            let claims = live.filter_map(|machine| machine.ring.claim());
            check::partition(claims.chain(self.points()))?;
        }
        let rings = self.rings();
        if !self.bounds.principals {
            return rings.values().try_for_each(|ring| check::ordered(ring));
        }
        check::zave(&rings)?;
        let principals = check::principals(&rings).len();
        if principals < self.bounds.length + 1 {
            return Err(format!("Z2: {principals} principals"));
        }
        Ok(())
    }

    /// Nothing failed, but an operation waits for something that was thrown away: only the end of
    /// its lease gets it going again.
    #[must_use]
    pub fn stuck(&self) -> bool {
        let waits = |m: &Rc<Machine>| m.ring.lock().is_some_and(|op| !self.under_way(op));
        !self.faulty && self.nodes.iter().any(|machine| !machine.down && waits(machine))
    }

    /// Claims on their way.
    fn points(&self) -> impl Iterator<Item = Arc> {
        self.links.iter().enumerate().flat_map(move |(place, link)| {
            let (from, to) = (place / self.count(), place % self.count());
            link.iter().filter_map(move |flight| match &flight.wire {
                Wire::Ring(Msg::JoinPoint { pred, .. }) => {
                    Some(Arc::new(pred.id, self.nodes[to].ring.me().id))
                }
                Wire::Ring(Msg::LeavePoint { pred, .. }) => {
                    Some(Arc::new(pred.id, self.nodes[from].ring.me().id))
                }
                _ => None,
            })
        })
    }

    /// Z6, of a step from `before`: only failing and leaving end a principal.
    ///
    /// # Errors
    /// Who is none any more.
    pub fn check_step(&self, before: &Self, action: Action) -> Result<(), String> {
        if !self.bounds.principals || matches!(action, Action::Fail(_)) {
            return Ok(());
        }
        let (now, after) = (self.rings(), self.principals());
        let lost = |id: &&NodeId| now.get(id).is_some_and(|r| r.is_member()) && !after.contains(id);
        match before.principals().iter().find(lost) {
            Some(id) => Err(format!("Z6: {} is no principal any more", name(*id))),
            None => Ok(()),
        }
    }

    /// Whether what follows is to be looked at.
    #[must_use]
    pub fn within(&self) -> bool {
        self.links.iter().all(|link| link.len() <= self.bounds.queue)
    }

    /// No message is on its way.
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.links.iter().all(Vec::is_empty)
    }

    /// Z7: lets everything end in one fair order, with rounds of stabilisation, and demands that
    /// the ring becomes ideal. Every action is told to `each` before it is taken.
    ///
    /// # Errors
    /// What is wrong in the end.
    pub fn settle(&mut self, each: &mut dyn FnMut(&Self, Action)) -> Result<(), String> {
        (self.leaves, self.fails, self.leases) = (0, 0, 0);
        let mut wrong = Ok(());
        for _ in 0..SETTLE_ROUNDS {
            self.batches(each);
            wrong = self.ideal();
            if wrong.is_ok() {
                break;
            }
            for n in 0..self.count() {
                if self.nodes[n].live() {
                    each(self, Action::Round(n as u8));
                    self.apply(Action::Round(n as u8));
                }
            }
        }
        wrong
    }

    /// Messages first, and then everything else that may happen, once each: fair, as clocks are.
    fn batches(&mut self, each: &mut dyn FnMut(&Self, Action)) {
        let message = |action: &Action| matches!(action, Action::Deliver(..));
        for _ in 0..SETTLE_BATCHES {
            self.rounds = 0;
            let all = self.actions();
            let wanted = |action: &Action| match action {
                Action::Join(n) => self.nodes[usize::from(*n)].wants_in,
                _ => true,
            };
            let some: Vec<Action> = if all.iter().any(message) {
                all.into_iter().filter(message).collect()
            } else {
                all.into_iter().filter(wanted).collect()
            };
            if some.is_empty() {
                break;
            }
            for action in some {
                if self.actions().contains(&action) {
                    each(self, action);
                    self.apply(action);
                }
            }
        }
        // Rounds come to nothing at who is about to do something else.
        while let Some(next) = self.actions().into_iter().find(message) {
            each(self, next);
            self.apply(next);
        }
    }

    fn ideal(&self) -> Result<(), String> {
        let there = |machine: &&Rc<Machine>| {
            !machine.down
                && machine.ring.status() != Status::Gone
                && (machine.wants_in || machine.ring.status() != Status::Out)
        };
        let rings = self.nodes.iter().filter(there);
        check::ideal(&rings.map(|machine| (machine.ring.me().id, &machine.ring)).collect())
    }

    /// The operating assumption of Zave's proof: everybody keeps a live successor, and there are
    /// enough principals, when it and all that are leaving are gone. Lists on their way count as if
    /// they had arrived.
    pub(super) fn may_go(&self, n: usize) -> bool {
        let mut after = self.clone();
        for going in (0..self.count()).filter(|m| *m == n || self.nodes[*m].wants_out) {
            after.down(going);
        }
        let rings = after.rings();
        let live = |id: &NodeId| rings.get(id).is_some_and(|ring| ring.is_member());
        if !self.bounds.principals {
            return rings.keys().any(live);
        }
        let length = self.bounds.length;
        let reached =
            |list: &Vec<NodeId>| !live(&list[0]) || list[1..].iter().take(length).any(live);
        after.principals().len() > length
            && check::zave(&rings).is_ok()
            && after.lists().iter().all(reached)
    }

    /// Members that no list skips, of those on their way either.
    fn principals(&self) -> BTreeSet<NodeId> {
        let mut principals = check::principals(&self.rings());
        for list in self.lists() {
            for pair in list.windows(2).filter(|pair| pair[0] != pair[1]) {
                principals.retain(|id| !in_oo(pair[0], *id, pair[1]));
            }
        }
        principals
    }

    /// What receivers will have as their lists, themselves first. Not cut to their length: whoever
    /// is known to be dead is left out before.
    fn lists(&self) -> Vec<Vec<NodeId>> {
        let mut lists = Vec::new();
        for (place, link) in self.links.iter().enumerate().filter(|(_, link)| !link.is_empty()) {
            let (from, to) = (place / self.count(), place % self.count());
            let (from, ring) = (self.nodes[from].ring.me().id, &self.nodes[to].ring);
            let to = ring.me().id;
            for flight in link {
                let Wire::Ring(msg) = &flight.wire else { continue };
                let (head, succs) = match msg {
                    Msg::JoinPoint { succs, .. } | Msg::UpdateSucc { succs, .. } => (None, succs),
                    Msg::NewSucc { succs, .. } => (Some(from), succs),
                    Msg::QueryRes { call, succs, .. } => {
                        let asked = ring.asking().is_some_and(|(number, _)| number == *call);
                        let near = from == ring.succ().id || in_oo(to, from, ring.succ().id);
                        if !asked || !near {
                            continue;
                        }
                        (Some(from), succs)
                    }
                    _ => continue,
                };
                let rest = succs.iter().map(|peer| peer.id).take_while(|id| *id != to);
                lists.push([to].into_iter().chain(head).chain(rest).collect());
            }
        }
        lists
    }

    fn rings(&self) -> Rings<'_> {
        let live = self.nodes.iter().filter(|machine| !machine.down);
        live.map(|machine| (machine.ring.me().id, &machine.ring)).collect()
    }
}
