//! For tests of one component: a ring everybody agrees on, and the persistence module, played.

use std::collections::{BTreeMap, BTreeSet};

use dugnad_kernel::{Arc, Key, NodeId, Peer};

use crate::persistence::record::{DEGREE, Name, Record, class};
use crate::persistence::store::Records;
use crate::persistence::{Answer, Question};
use crate::position::RingPosition;

/// What is written every member has at once.
#[derive(Default)]
pub(crate) struct Played {
    pub(crate) members: BTreeSet<NodeId>,
    handles: BTreeMap<NodeId, Records>,
    newest: BTreeMap<Name, Record>,
}

impl Played {
    /// A member, and what it reads its records with.
    pub(crate) fn join(&mut self, id: NodeId) -> Records {
        self.members.insert(id);
        let records = Records::default();
        records.write().restore(self.newest.values().cloned().collect());
        self.handles.insert(id, records.clone());
        records
    }

    pub(crate) fn owner(&self, key: Key) -> Option<NodeId> {
        self.members.range(key..).next().or_else(|| self.members.first()).copied()
    }

    pub(crate) fn owners(&self, key: Key) -> BTreeSet<NodeId> {
        (0..DEGREE).filter_map(|x| self.owner(class(key, x))).collect()
    }

    pub(crate) fn position(&self, id: NodeId) -> RingPosition {
        let members: Vec<NodeId> = self.members.iter().copied().collect();
        let at = members.partition_point(|other| *other < id);
        let of = |step: usize| members[(at + step) % members.len()];
        let others = members.len() - 1;
        let succs = (1..=others.min(12)).map(|step| Peer::new(of(step))).collect();
        let range = Some(Arc::new(of(members.len() - 1), id));
        RingPosition { range, succs, size: members.len() as u64 }
    }

    /// The answer, and which record is another for everybody now.
    pub(crate) fn answer(&mut self, question: Question) -> (Answer, Option<Name>) {
        match question {
            Question::Get(name) => (Answer::Found(self.newest.get(&name).cloned()), None),
            Question::Owners(key) => (Answer::Owners(self.owners(key).into_iter().collect()), None),
            Question::Holders(key) => {
                let after = |id: NodeId| {
                    let first = self.owner(id.plus(1)).unwrap_or(id);
                    [id, first, self.owner(first.plus(1)).unwrap_or(first)]
                };
                (Answer::Owners(self.owners(key).into_iter().flat_map(after).collect()), None)
            }
            Question::Put { record, .. } => self.put(record),
            Question::Claim { record, expected, .. } => {
                let known = self.newest.get(&record.id());
                if known.map_or(0, |known| known.version.counter) == expected {
                    return self.put(record);
                }
                (Answer::Taken(known.cloned()), None)
            }
            Question::TakeIn(_) => (Answer::TakenIn, None),
            Question::Directory { .. } => (Answer::Unreachable, None),
        }
    }

    fn put(&mut self, record: Record) -> (Answer, Option<Name>) {
        let (name, holders) = (record.id(), self.owners(record.key).into_iter().collect());
        let older = self.newest.get(&name).is_none_or(|known| known.version < record.version);
        if older {
            for records in self.handles.values() {
                records.write().restore(vec![record.clone()]);
            }
            self.newest.insert(name.clone(), record);
        }
        (Answer::Stored(holders), older.then_some(name))
    }
}
