//! What is out, and why: each lookup, feedback and write of this node has a number of its own, and
//! stands in one of two maps until it is answered.

use alloc::string::ToString;
use alloc::vec::Vec;
use dugnad_kernel::map::Map;

use dugnad_collective::{self as collective, Seeker};
use dugnad_connectivity::overlay;
use dugnad_connectivity::route::Found;
use dugnad_kernel::{Cx, Key, NodeId, Time};
use dugnad_resource::execute::ReplicaId;
use dugnad_resource::executor::{self, clip_note};

use crate::disk::DiskKey;
use crate::{Answer, AskId, Event, Node};

/// Lookups of people under way; more are refused.
const PEOPLE_MAX: usize = 64;
/// Every layer bounds its operations, and none asks for more than the four places of a class at a
/// time; together they stay below this.
pub(crate) const CALLS_MAX: usize = 8192;
/// One an operation of the persistence module, two a replica, and the registers' unsent answers.
pub(crate) const WRITES_MAX: usize = 8192;

/// Why something was asked of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The executor looks for the manager of this service.
    Manager(Key),
    /// Something waits for the address of this node.
    Address(NodeId),
    Collective(Seeker),
    /// Somebody waits for what the community answers.
    Feedback(Seeker),
    /// A person asked who answers for a key.
    Person {
        ask: AskId,
        since: Time,
    },
}

/// Who waits until something is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Run(ReplicaId),
    /// The persistence module, by its token.
    Records(u64),
    /// Registers, by its token.
    Registers(u64),
    Nobody,
}

#[derive(Default)]
pub(crate) struct Asked {
    calls: Map<u32, Why>,
    writes: Map<u64, Writer>,
    next_call: u32,
    next_write: u64,
}

impl Asked {
    /// Lookups and feedbacks under way.
    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Writes somebody waits for.
    pub(crate) fn writes(&self) -> usize {
        self.writes.len()
    }

    /// Whether something is out for this very reason.
    pub(crate) fn is_out(&self, why: &Why) -> bool {
        self.calls.values().any(|known| known == why)
    }

    pub(crate) fn call(&mut self, why: Why) -> u32 {
        self.next_call = self.next_call.wrapping_add(1);
        self.calls.insert(self.next_call, why);
        self.next_call
    }

    /// It was answered; why it was asked.
    pub(crate) fn over(&mut self, call: u32) -> Option<Why> {
        self.calls.remove(&call)
    }

    fn of_people(&self) -> usize {
        self.calls.values().filter(|why| matches!(why, Why::Person { .. })).count()
    }
}

impl Node {
    /// Who answers for `key`? Whoever looks for a manager or an address asks once at a time.
    pub(crate) fn look_up(&mut self, why: Why, key: Key, cx: &mut Cx<'_, Self>) {
        if matches!(why, Why::Manager(_) | Why::Address(_)) && self.asked.is_out(&why) {
            return;
        }
        let call = self.asked.call(why);
        self.ring(overlay::Command::Lookup { call, key }, cx);
    }

    pub(crate) fn on_found(&mut self, call: u32, found: Option<Found>, cx: &mut Cx<'_, Self>) {
        let owner = found.as_ref().map(|found| found.owner.id);
        match self.asked.over(call) {
            Some(Why::Manager(service)) => {
                self.host(executor::Command::Manager { service, manager: owner }, cx);
            }
            Some(Why::Address(id)) => self.on_address_found(id, cx),
            Some(Why::Collective(seeker)) => {
                self.community(collective::Command::Found { seeker, owner }, cx);
            }
            Some(Why::Person { ask, since }) => self.on_person_found(ask, since, found, cx),
            // A lookup is no feedback, and each is answered once.
            Some(Why::Feedback(_)) | None => {}
        }
    }

    pub(crate) fn write(
        &mut self,
        writer: Writer,
        writes: Vec<(DiskKey, Option<Vec<u8>>)>,
        cx: &mut Cx<'_, Self>,
    ) {
        self.asked.next_write += 1;
        let token = self.asked.next_write;
        if writer != Writer::Nobody {
            self.asked.writes.insert(token, writer);
        }
        let writes = writes.into_iter().map(|(key, value)| (key.encode(), value)).collect();
        cx.emit(Event::Persist { token, writes });
    }

    pub(crate) fn on_written(&mut self, token: u64, done: bool, cx: &mut Cx<'_, Self>) {
        use collective::Command as C;
        use executor::Command as E;
        match self.asked.writes.remove(&token) {
            Some(Writer::Run(id)) if done => self.host(E::Persisted(id), cx),
            Some(Writer::Run(id)) => self.host(E::NotPersisted(id), cx),
            Some(Writer::Records(token)) if done => self.community(C::Persisted(token), cx),
            Some(Writer::Records(token)) => self.community(C::NotPersisted(token), cx),
            Some(Writer::Registers(token)) if done => {
                self.community(C::RegistersPersisted(token), cx);
            }
            Some(Writer::Registers(token)) => {
                self.community(C::RegistersNotPersisted(token), cx);
            }
            Some(Writer::Nobody) | None => {}
        }
    }

    /// A person asks who answers for a key.
    pub(crate) fn on_lookup(&mut self, ask: AskId, key: Key, cx: &mut Cx<'_, Self>) {
        if self.asked.of_people() >= PEOPLE_MAX {
            self.refuse(ask, "too many lookups at a time; try again", cx);
        } else if self.may_ask(ask, cx) {
            self.look_up(Why::Person { ask, since: cx.now }, key, cx);
        }
    }

    /// A person has something to tell everybody.
    pub(crate) fn on_announce(&mut self, ask: AskId, text: &str, cx: &mut Cx<'_, Self>) {
        if self.may_ask(ask, cx) {
            self.announce(None, clip_note(text), cx);
            cx.emit(Event::Answer(ask, Answer::Done));
        }
    }

    fn may_ask(&self, ask: AskId, cx: &mut Cx<'_, Self>) -> bool {
        let member = self.connectivity.ring().is_member();
        if !member {
            self.refuse(ask, "this node is not in the ring yet; see `dugnad status`", cx);
        }
        member
    }

    fn refuse(&self, ask: AskId, why: &str, cx: &mut Cx<'_, Self>) {
        cx.emit(Event::Answer(ask, Answer::Failed(why.to_string())));
    }

    fn on_person_found(
        &self,
        ask: AskId,
        since: Time,
        found: Option<Found>,
        cx: &mut Cx<'_, Self>,
    ) {
        let answer = match found {
            Some(found) => Answer::Found {
                owner: found.owner.id,
                owner_name: self.names.get(&found.owner.id).cloned().unwrap_or_default(),
                hops: found.hops,
                certain: found.certain,
                took: cx.now.since(since),
            },
            None => Answer::Failed(
                "no node answered for the key; see `dugnad status` and try again".to_string(),
            ),
        };
        cx.emit(Event::Answer(ask, answer));
    }
}
