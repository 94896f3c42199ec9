//! What one member keeps: its part in views, and the registers of their ranges (PROTOCOL.md 8.3).
//!
//! Pure: a question goes in, an answer and what changed come out. The answer may leave only when
//! what changed, and all that changed before it, is on disk.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Ref, RefCell, RefMut};

use dugnad_kernel::Key;
use dugnad_kernel::map::Map;
use serde::{Deserialize, Serialize};

use super::register::{Cell, Register};
use super::view::{Ballot, Known, Member, Range, View, ViewId, may_follow};
use super::{DiskKey, Part, Request, Response, is_left_out};

/// Views one node takes part in, those that are over included.
pub(super) const REPLICAS_MAX: usize = 256;
/// Registers of one node, and bytes of a page of them.
pub(super) const REGISTERS_MAX: usize = 16 * 1024;
const PAGE_BYTES: usize = 40 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It collects what members of the view before have.
    Syncing,
    /// It answers.
    Active,
    /// What comes next is decided; it never answers in this view again.
    Sealed,
    /// All of the next view have what it had, and it has it no more. That it was there is
    /// remembered: it must not enter again when an old message comes late.
    Ended,
}

/// A node's part in one view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub view: View,
    pub phase: Phase,
    /// While it syncs: the views it comes from. Once it is sealed: those that ended together.
    pub prior: Vec<View>,
    /// What was decided together with it.
    pub decree: Vec<View>,
    /// What comes next, once it is sealed.
    pub next: Vec<View>,
    promised: Ballot,
    accepted: Option<(Ballot, Vec<View>)>,
}

impl Replica {
    fn new(view: View, phase: Phase, prior: Vec<View>, decree: Vec<View>) -> Self {
        let promised = Ballot::default();
        Self { view, phase, prior, decree, next: Vec::new(), promised, accepted: None }
    }

    /// A part in a view that comes from these.
    #[must_use]
    pub fn syncing(view: View, prior: Vec<View>) -> Self {
        let decree = Vec::from([view.clone()]);
        Self::new(view, Phase::Syncing, prior, decree)
    }

    /// Whether it answers no more, and has all it answered with.
    fn is_over(&self) -> bool {
        let unsealed = is_left_out(Part::Sealing) && self.phase == Phase::Active;
        self.phase == Phase::Sealed || unsealed
    }
}

/// What changed, to be written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    /// Which member it is.
    Member,
    Replica(ViewId),
    Register(Key),
}

/// What a member keeps, to read. Only its component writes, and nobody holds what it reads beyond
/// one input.
#[derive(Clone, Debug, Default)]
pub struct Registers(Rc<RefCell<Keeper>>);

impl Registers {
    pub(super) fn new(keeper: Keeper) -> Self {
        Self(Rc::new(RefCell::new(keeper)))
    }

    #[must_use]
    pub fn read(&self) -> Ref<'_, Keeper> {
        self.0.borrow()
    }

    pub(super) fn write(&self) -> RefMut<'_, Keeper> {
        self.0.borrow_mut()
    }

    pub(super) fn writes(&self, changed: &[Changed]) -> Vec<(DiskKey, Option<Vec<u8>>)> {
        self.read().writes(changed)
    }
}

#[derive(Debug, Default)]
pub struct Keeper {
    me: Member,
    replicas: Map<ViewId, Replica>,
    registers: BTreeMap<Key, Register>,
    /// What changed since it was last asked, as it was before.
    log: Vec<Before>,
}

impl Keeper {
    pub(super) fn new(me: Member) -> Self {
        Self { me, ..Self::default() }
    }

    pub(super) const fn me(&self) -> Member {
        self.me
    }

    /// Takes over what lay on disk.
    pub(super) fn restore(&mut self, replica: Replica) {
        self.replicas.insert(replica.view.id(), replica);
    }

    pub(super) fn restore_register(&mut self, key: Key, register: Register) {
        self.registers.insert(key, register);
    }

    /// It is this member from now on.
    pub(super) fn begin(&mut self) {
        self.log.push(Before::Member);
    }

    /// Begins the community's first view.
    pub(super) fn found(&mut self) {
        let view = View::first(self.me);
        self.set(view.id(), Some(Replica::new(view, Phase::Active, Vec::new(), Vec::new())));
    }

    /// What changed since the last time, as it was before; the oldest first.
    pub(super) fn changes(&mut self) -> Vec<Before> {
        core::mem::take(&mut self.log)
    }

    /// Changes a replica, or removes it.
    fn set(&mut self, id: ViewId, replica: Option<Replica>) {
        let before = match replica {
            Some(replica) => self.replicas.insert(id, replica),
            None => self.replicas.remove(&id),
        };
        self.log.push(Before::Replica(id, before));
    }

    fn set_register(&mut self, key: Key, register: Option<Register>) {
        let before = match register {
            Some(register) => self.registers.insert(key, register),
            None => self.registers.remove(&key),
        };
        self.log.push(Before::Register(key, before));
    }

    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    pub fn replica(&self, id: ViewId) -> Option<&Replica> {
        self.replicas.get(&id)
    }

    /// The views it answers in as their first member.
    #[must_use]
    pub fn led(&self) -> Vec<View> {
        let active = self.replicas.values().filter(|replica| replica.phase == Phase::Active);
        let views = active.map(|replica| &replica.view);
        views.filter(|view| view.members.first() == Some(&self.me)).cloned().collect()
    }

    /// The views it has entered and does not answer in yet.
    pub(super) fn syncing(&self) -> Vec<ViewId> {
        let entered = self.replicas.values().filter(|replica| replica.phase == Phase::Syncing);
        entered.map(|replica| replica.view.id()).collect()
    }

    /// The views that are over and not let go yet.
    pub(super) fn sealed(&self) -> Vec<ViewId> {
        let over = self.replicas.values().filter(|replica| replica.phase == Phase::Sealed);
        over.map(|replica| replica.view.id()).collect()
    }

    /// Which views ended with this one, and what comes next; `None` if it is not over.
    pub(super) fn ended(&self, id: ViewId) -> Option<(Vec<View>, Vec<View>)> {
        let replica = self.replicas.get(&id).filter(|replica| replica.phase == Phase::Sealed)?;
        Some((replica.prior.clone(), replica.next.clone()))
    }

    /// The views before one that it has entered, and what was decided; `None` if it has not, or
    /// answers already.
    pub(super) fn decree(&self, id: ViewId) -> Option<(Vec<View>, Vec<View>)> {
        let replica = self.replicas.get(&id).filter(|replica| replica.phase == Phase::Syncing)?;
        Some((replica.prior.clone(), replica.decree.clone()))
    }

    /// Registers with a value of the views it answers in, and whether it is the first member there.
    pub fn values(&self) -> impl Iterator<Item = (&Cell, bool)> {
        let active = self.replicas.values().filter(|replica| replica.phase == Phase::Active);
        active.flat_map(|replica| {
            let leads = replica.view.members.first() == Some(&self.me);
            let range = replica.view.range;
            let registers = self.registers.range(range.start..).map(move |(key, register)| {
                range.contains(*key).then_some((&register.cell, leads))
            });
            let cells = registers.map_while(|cell| cell);
            cells.filter(|(cell, _)| cell.value.is_some())
        })
    }

    pub fn registers(&self) -> impl Iterator<Item = (&Key, &Register)> {
        self.registers.iter()
    }

    #[must_use]
    pub fn register(&self, key: Key) -> Option<&Register> {
        self.registers.get(&key)
    }

    /// What of it lies on disk under this change; `None`: nothing any more.
    fn encode(&self, changed: Changed) -> Option<Vec<u8>> {
        match changed {
            Changed::Member => postcard::to_allocvec(&self.me.inc).ok(),
            Changed::Replica(id) => postcard::to_allocvec(self.replicas.get(&id)?).ok(),
            Changed::Register(key) => postcard::to_allocvec(self.registers.get(&key)?).ok(),
        }
    }

    /// Whether it answers for the key in this very view.
    fn is_active(&self, id: ViewId, key: Key) -> bool {
        let replica = self.replicas.get(&id);
        id.0.contains(key) && replica.is_some_and(|replica| replica.phase == Phase::Active)
    }

    /// The answer to a question about a register or a view; [`Self::changes`] has to be on disk
    /// before it leaves. `known`: what else is known of views.
    pub(super) fn answer(&mut self, request: Request, known: &Known) -> Response {
        match request {
            Request::Query { view, key } if self.is_active(view, key) => {
                let register = self.registers.get(&key).cloned().unwrap_or_default();
                let Register { promised, accepted, cell } = register;
                Response::Cell { promised, accepted, cell }
            }
            Request::Prepare { view, key, ballot } if self.is_active(view, key) => {
                let Some(mut register) = self.room_for(key) else { return Response::Full };
                if !register.prepare(ballot) {
                    return Response::Refused { promised: register.promised };
                }
                let (accepted, cell) = (register.accepted, register.cell.clone());
                self.set_register(key, Some(register));
                Response::Promised { accepted, cell }
            }
            Request::Accept { view, key, ballot, cell } if self.is_active(view, key) => {
                let Some(mut register) = self.room_for(key) else { return Response::Full };
                if !cell.fits() || !register.accept(ballot, cell) {
                    return Response::Refused { promised: register.promised };
                }
                self.set_register(key, Some(register));
                Response::Accepted
            }
            Request::Query { key, .. }
            | Request::Prepare { key, .. }
            | Request::Accept { key, .. } => self.other_view(key, known),
            Request::Propose { view, ballot } => self.on_propose(view, ballot, known),
            Request::Choose { view, ballot, next } => self.on_choose(view, ballot, next, known),
            Request::Commit { prior, next } => self.on_commit(&prior, &next),
            Request::Pull { view, range, after } => self.on_pull(view, range, after),
            Request::Release { view } => self.on_release(view),
            Request::Views => {
                let views = known.iter().cloned().collect();
                Response::Views { inc: self.me.inc, views }
            }
        }
    }

    /// The register as it is; `None`: there are as many as may be, and it is not among them.
    fn room_for(&self, key: Key) -> Option<Register> {
        let known = self.registers.get(&key);
        if known.is_none() && self.registers.len() >= REGISTERS_MAX {
            return None;
        }
        Some(known.cloned().unwrap_or_default())
    }

    /// It does not answer in that view: which views it knows of.
    fn other_view(&self, key: Key, known: &Known) -> Response {
        let next = self.replicas.values().flat_map(|replica| &replica.next);
        let mine = self.replicas.values().map(|replica| &replica.view);
        let all = next.chain(mine).chain(known.of(key));
        let newest = all.filter(|view| view.range.contains(key)).max_by_key(|view| view.number);
        Response::OtherView { views: newest.cloned().into_iter().collect() }
    }

    /// The first half of deciding what comes after a view.
    fn on_propose(&mut self, view: ViewId, ballot: Ballot, known: &Known) -> Response {
        match self.replicas.get(&view).cloned() {
            Some(Replica { phase: Phase::Sealed | Phase::Ended, next, .. }) => {
                Response::Decided { next }
            }
            Some(replica) if replica.phase == Phase::Active => {
                if ballot <= replica.promised {
                    return Response::Refused { promised: replica.promised };
                }
                let accepted = replica.accepted.clone();
                self.set(view, Some(Replica { promised: ballot, ..replica }));
                Response::Proposed { accepted }
            }
            _ => self.other_view(view.0.start, known),
        }
    }

    /// The second half.
    fn on_choose(
        &mut self,
        view: ViewId,
        ballot: Ballot,
        next: Vec<View>,
        known: &Known,
    ) -> Response {
        match self.replicas.get(&view).cloned() {
            Some(Replica { phase: Phase::Sealed | Phase::Ended, next, .. }) => {
                Response::Decided { next }
            }
            Some(replica) if replica.phase == Phase::Active => {
                if ballot < replica.promised || !may_follow(&replica.view, &next) {
                    return Response::Refused { promised: replica.promised };
                }
                let accepted = Some((ballot, next));
                self.set(view, Some(Replica { promised: ballot, accepted, ..replica }));
                Response::Chosen
            }
            _ => self.other_view(view.0.start, known),
        }
    }

    /// It is decided what comes after `prior`.
    fn on_commit(&mut self, prior: &[View], next: &[View]) -> Response {
        if prior.is_empty() || !prior.iter().all(|prior| may_follow(prior, next)) {
            return Response::Committed { active: false };
        }
        for view in prior {
            match self.replicas.get(&view.id()).cloned() {
                Some(replica) if replica.phase == Phase::Active => {
                    let next = next.to_vec();
                    let phase =
                        if is_left_out(Part::Sealing) { Phase::Active } else { Phase::Sealed };
                    let prior = prior.to_vec();
                    self.set(view.id(), Some(Replica { phase, prior, next, ..replica }));
                }
                // What it never had whole it must not give to others.
                Some(replica) if replica.phase == Phase::Syncing => self.forget(view.id()),
                Some(_) | None => {}
            }
        }
        let me = self.me;
        for view in next.iter().filter(|view| view.has(me)) {
            self.enter(view, prior, next);
        }
        let active = |view: &View| {
            let past = |replica: &Replica| match replica.phase {
                Phase::Syncing => false,
                Phase::Active | Phase::Sealed | Phase::Ended => {
                    replica.view.number >= view.number && replica.view.range.covers(&view.range)
                }
            };
            !view.has(self.me) || self.replicas.values().any(past)
        };
        Response::Committed { active: next.iter().all(active) }
    }

    /// Begins to take part in a view.
    fn enter(&mut self, view: &View, prior: &[View], decree: &[View]) {
        let overlaps =
            |other: &View| other.range.covers(&view.range) || view.range.covers(&other.range);
        let newer = |other: &View| overlaps(other) && other.number > view.number;
        let known = self.replicas.contains_key(&view.id());
        if known || self.replicas.values().any(|replica| newer(&replica.view)) {
            return;
        }
        if self.replicas.len() >= REPLICAS_MAX {
            return;
        }
        let sealed = |prior: &View| {
            let replica = self.replicas.get(&prior.id());
            replica.is_some_and(Replica::is_over)
        };
        let all_sealed = prior.iter().all(sealed);
        if !all_sealed {
            // What it has of the range is from a view before, in which it may have accepted what
            // nobody else did. Who drops that answers for no view it was in any more.
            let kept: Vec<View> = prior.iter().filter(|prior| sealed(prior)).cloned().collect();
            let stale = |other: &View| overlaps(other) && !kept.contains(other);
            let gone: Vec<ViewId> = self
                .replicas
                .values()
                .filter(|replica| stale(&replica.view))
                .map(|replica| replica.view.id())
                .collect();
            gone.iter().for_each(|id| self.forget(*id));
        }
        // Two majorities of the same members have one in common, who brings what was chosen.
        let same = |prior: &View| prior.members == view.members;
        let carries = all_sealed && prior.iter().all(same);
        let phase = if carries { Phase::Active } else { Phase::Syncing };
        let (from, decree) =
            if carries { Default::default() } else { (prior.to_vec(), decree.to_vec()) };
        self.set(view.id(), Some(Replica::new(view.clone(), phase, from, decree)));
    }

    /// What it has of a view that is over, a page at a time.
    fn on_pull(&self, view: ViewId, range: Range, after: Option<Key>) -> Response {
        let replica = self.replicas.get(&view);
        if !replica.is_some_and(Replica::is_over) {
            return Response::NotYet;
        }
        let (mut registers, mut bytes) = (Vec::new(), 0);
        let from = after.map_or(range.start, |after| after.plus(1));
        if after.is_some_and(|after| after.0 == u128::MAX) {
            return Response::Pulled { registers, more: false };
        }
        let ahead = self.registers.range(from..).take_while(|(key, _)| range.contains(**key));
        for (key, register) in ahead.filter(|(key, _)| view.0.contains(**key)) {
            let size = 256 + register.cell.value.as_ref().map_or(0, Vec::len);
            bytes += size + register.cell.size_of_last();
            if bytes > PAGE_BYTES && !registers.is_empty() {
                return Response::Pulled { registers, more: true };
            }
            registers.push((*key, register.clone()));
        }
        Response::Pulled { registers, more: false }
    }

    /// Registers a member of a view before has, for a view that syncs.
    pub(super) fn take_in(&mut self, id: ViewId, registers: &[(Key, Register)]) {
        let syncing = self.replicas.get(&id).is_some_and(|r| r.phase == Phase::Syncing);
        for (key, theirs) in registers {
            if syncing && id.0.contains(*key) && theirs.cell.fits() {
                let Some(mut own) = self.room_for(*key) else { continue };
                let before = own.clone();
                own.join(theirs);
                if own != before {
                    self.set_register(*key, Some(own));
                }
            }
        }
    }

    /// It has what a majority of each view before has. Whether it answers from now on.
    pub(super) fn activate(&mut self, id: ViewId) -> bool {
        match self.replicas.get(&id).cloned() {
            Some(replica) if replica.phase == Phase::Syncing => {
                let (phase, prior, decree) = (Phase::Active, Vec::new(), Vec::new());
                self.set(id, Some(Replica { phase, prior, decree, ..replica }));
                true
            }
            _ => false,
        }
    }

    /// All of the next view have what it has.
    fn on_release(&mut self, id: ViewId) -> Response {
        let replica = self.replicas.get(&id).filter(|replica| replica.phase == Phase::Sealed);
        if let Some(replica) = replica {
            let mut ended =
                Replica::new(replica.view.clone(), Phase::Ended, Vec::new(), Vec::new());
            // Who asks for it is told where it went.
            ended.next.clone_from(&replica.next);
            self.set(id, Some(ended));
            self.drop_unneeded(id.0);
            // One such memory a range is enough.
            let older = |replica: &Replica| {
                let view = &replica.view;
                replica.phase == Phase::Ended && id.0.covers(&view.range) && view.number < id.1
            };
            let older: Vec<ViewId> = self
                .replicas
                .values()
                .filter(|replica| older(replica))
                .map(|replica| replica.view.id())
                .collect();
            older.iter().for_each(|id| self.set(*id, None));
        }
        Response::Released
    }

    /// Its part in a view, and the registers no other view needs.
    fn forget(&mut self, id: ViewId) {
        self.set(id, None);
        self.drop_unneeded(id.0);
    }

    /// Drops the registers of a range that no view needs.
    fn drop_unneeded(&mut self, range: Range) {
        let mut holding = self.replicas.values().filter(|replica| replica.phase != Phase::Ended);
        let holding: Vec<Range> = holding.by_ref().map(|replica| replica.view.range).collect();
        let needed = |key: &Key| holding.iter().any(|range| range.contains(*key));
        let keys = self.registers.keys().copied();
        let gone: Vec<Key> = keys.filter(|key| range.contains(*key) && !needed(key)).collect();
        for key in gone {
            self.set_register(key, None);
        }
    }

    /// What of these is to be written to disk.
    fn writes(&self, changed: &[Changed]) -> Vec<(DiskKey, Option<Vec<u8>>)> {
        let write = |changed: &Changed| {
            let key = match changed {
                Changed::Member => DiskKey::Member,
                Changed::Replica(id) => DiskKey::Replica(*id),
                Changed::Register(key) => DiskKey::Register(*key),
            };
            (key, self.encode(*changed))
        };
        changed.iter().map(write).collect()
    }

    /// What it was before a write that failed.
    pub(super) fn undo(&mut self, before: Before) {
        match before {
            // It is somebody now, and says nothing before that is on disk.
            Before::Member => {}
            Before::Replica(id, Some(replica)) => {
                self.replicas.insert(id, replica);
            }
            Before::Replica(id, None) => {
                self.replicas.remove(&id);
            }
            Before::Register(key, Some(register)) => {
                self.registers.insert(key, register);
            }
            Before::Register(key, None) => {
                self.registers.remove(&key);
            }
        }
    }
}

/// What one thing was before it changed.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// It was nobody.
    Member,
    Replica(ViewId, Option<Replica>),
    Register(Key, Option<Register>),
}

impl Before {
    pub(super) const fn of(&self) -> Changed {
        match self {
            Self::Member => Changed::Member,
            Self::Replica(id, _) => Changed::Replica(*id),
            Self::Register(key, _) => Changed::Register(*key),
        }
    }
}
