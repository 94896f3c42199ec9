//! Groups as people and services of this node see them: who of them holds a membership, which ones
//! outlive a restart, and what is said to whom.

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::{Map, Set};

use dugnad_connectivity as connectivity;
use dugnad_connectivity::config::GROUPS_MAX;
use dugnad_connectivity::group;
use dugnad_kernel::{Cx, Duration};
use dugnad_resource::condition::Condition;
use dugnad_resource::describe;
use dugnad_resource::spec::valid_name;

use crate::asked::Writer;
use crate::disk::DiskKey;
use crate::{Answer, AskId, Event, GroupQuestion, GroupView, Node, Timer};

/// Questions about groups under way.
const ASKED_MAX: usize = 256;
/// A kept membership that could not be taken up again is tried this much later.
const AGAIN: Duration = Duration::from_secs(60);

/// Who needs a membership.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Until a person says otherwise; it outlives the agent.
    kept: bool,
    /// Those who listen now.
    listeners: u32,
}

#[derive(Debug)]
enum About {
    Join {
        ask: AskId,
        name: String,
        keep: bool,
    },
    Plain {
        ask: AskId,
        name: String,
    },
    /// Nobody waits: a kept membership is taken up again.
    Again {
        name: String,
    },
}

/// What this node's people and services hold.
#[derive(Default)]
pub(crate) struct GroupState {
    held: Map<String, Held>,
    /// Kept memberships found on disk, until this node is on the ring.
    found: Set<String>,
    asked: Map<u32, About>,
    next: u32,
}

impl GroupState {
    /// A kept membership of an earlier life.
    pub(crate) fn restore(&mut self, name: &str) -> bool {
        let valid = valid_name(name).is_ok() && self.found.len() < GROUPS_MAX;
        valid && self.found.insert(name.into())
    }

    /// What grows with what others say: name, how many there are, how many at most.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        let own = [
            ("groups_held", self.held.len(), GROUPS_MAX),
            ("groups_asked", self.asked.len(), ASKED_MAX),
        ];
        own.into_iter()
    }
}

impl Node {
    pub(crate) fn ask_group(&mut self, ask: AskId, question: GroupQuestion, cx: &mut Cx<'_, Self>) {
        if self.groups.asked.len() >= ASKED_MAX {
            let text = String::from("too many questions about groups at a time; try again");
            cx.emit(Event::Answer(ask, Answer::Failed(text)));
            return;
        }
        match question {
            GroupQuestion::List => {
                let answer = Answer::Groups(self.group_views());
                cx.emit(Event::Answer(ask, answer));
            }
            GroupQuestion::Create { name, policy } => {
                let asked = About::Join { ask, name: name.clone(), keep: true };
                let command = |call| group::Command::Create { call, name, policy };
                self.tell_groups(asked, command, cx);
            }
            GroupQuestion::Join { name, keep } => {
                let asked = About::Join { ask, name: name.clone(), keep };
                let command = |call| group::Command::Join { call, name, found: false };
                self.tell_groups(asked, command, cx);
            }
            GroupQuestion::Leave { name, keep } => self.release_group(ask, name, keep, cx),
            GroupQuestion::Send { name, body, manner } => {
                let asked = About::Plain { ask, name: name.clone() };
                let command = |call| group::Command::Send { call, name, body, manner };
                self.tell_groups(asked, command, cx);
            }
        }
    }

    /// Whether this node is what a message to one member is for.
    pub(crate) fn judge(
        &mut self,
        gid: group::GroupId,
        token: group::Token,
        cx: &mut Cx<'_, Self>,
    ) {
        let condition = postcard::from_bytes(&token.that).ok().filter(Condition::fits);
        let fits = condition.is_some_and(|condition| {
            let node = self.description(&[], &describe::programs(&condition), cx);
            condition.matches(node.attributes().as_slice())
        });
        let command = group::Command::Judged { gid, token, fits };
        self.connect(connectivity::Command::Group(command), cx);
    }

    fn tell_groups(
        &mut self,
        asked: About,
        command: impl FnOnce(u32) -> group::Command,
        cx: &mut Cx<'_, Self>,
    ) {
        self.groups.next = self.groups.next.wrapping_add(1);
        let call = self.groups.next;
        self.groups.asked.insert(call, asked);
        self.connect(connectivity::Command::Group(command(call)), cx);
    }

    /// Somebody needs the membership no more; the last one ends it.
    fn release_group(&mut self, ask: AskId, name: String, keep: bool, cx: &mut Cx<'_, Self>) {
        let Some(held) = self.groups.held.get_mut(&name) else {
            let text = alloc::format!("this node has not joined a group {name}");
            cx.emit(Event::Answer(ask, Answer::Failed(text)));
            return;
        };
        if keep {
            if core::mem::take(&mut held.kept) {
                self.write_kept(&name, false, cx);
            }
        } else {
            held.listeners = held.listeners.saturating_sub(1);
        }
        let Some(held) = self.groups.held.get(&name) else { return };
        if held.kept || held.listeners > 0 {
            cx.emit(Event::Answer(ask, Answer::Done));
            return;
        }
        self.groups.held.remove(&name);
        let asked = About::Plain { ask, name: name.clone() };
        self.tell_groups(asked, |call| group::Command::Leave { call, name }, cx);
    }

    fn write_kept(&mut self, name: &str, kept: bool, cx: &mut Cx<'_, Self>) {
        let key = DiskKey::Membership(String::from(name));
        self.write(Writer::Nobody, Vec::from([(key, kept.then(Vec::new))]), cx);
    }

    /// On the ring (again): what was kept is taken up, and begun if it is nowhere.
    pub(crate) fn rejoin_groups(&mut self, cx: &mut Cx<'_, Self>) {
        for name in core::mem::take(&mut self.groups.found) {
            self.groups.held.insert(name.clone(), Held { kept: true, listeners: 0 });
            self.rejoin_group(name, cx);
        }
    }

    pub(crate) fn rejoin_group(&mut self, name: String, cx: &mut Cx<'_, Self>) {
        if self.groups.held.contains_key(&name) {
            let asked = About::Again { name: name.clone() };
            let command = |call| group::Command::Join { call, name, found: true };
            self.tell_groups(asked, command, cx);
        }
    }

    pub(crate) fn on_group_answer(
        &mut self,
        call: u32,
        answer: group::Answer,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(asked) = self.groups.asked.remove(&call) else { return };
        match asked {
            About::Again { name } => {
                if answer != group::Answer::Done {
                    cx.after(AGAIN, Timer::Rejoin { name });
                }
            }
            About::Plain { ask, name } => {
                cx.emit(Event::Answer(ask, to_answer(answer, &name)));
            }
            About::Join { ask, name, keep } => {
                if answer == group::Answer::Done {
                    let held = self.groups.held.entry(name.clone()).or_default();
                    if !keep {
                        held.listeners = held.listeners.saturating_add(1);
                    } else if !core::mem::replace(&mut held.kept, true) {
                        self.write_kept(&name, true, cx);
                    }
                }
                cx.emit(Event::Answer(ask, to_answer(answer, &name)));
            }
        }
    }

    fn group_views(&self) -> Vec<GroupView> {
        let view = |view: group::View| {
            let held = self.groups.held.get(&view.name).copied().unwrap_or_default();
            GroupView {
                mode: view.mode,
                policy: view.policy,
                epoch: view.epoch,
                members: view.members,
                joined: view.joined,
                kept: held.kept,
                listeners: held.listeners,
                delivered: view.delivered,
                name: view.name,
            }
        };
        self.connectivity.groups().views().map(view).collect()
    }
}

fn to_answer(answer: group::Answer, name: &str) -> Answer {
    use group::Answer as A;
    let text = match answer {
        A::Done => return Answer::Done,
        A::Exists => {
            alloc::format!("there is a group {name} already; join it: dugnad group join {name}")
        }
        A::Unknown => {
            alloc::format!("there is no group {name}; create it: dugnad group create {name}")
        }
        A::Nobody => {
            alloc::format!(
                "no other member of {name} was free to take it and is what was asked for"
            )
        }
        A::NotMember => alloc::format!("only members of {name} may do that"),
        A::Full => alloc::format!("this node is in {GROUPS_MAX} groups, as many as it can be"),
        A::TooLarge => {
            let most = connectivity::config::GROUP_BODY_MAX;
            alloc::format!("a message has at most {most} bytes")
        }
        A::Busy => alloc::format!("{name} is busy; try again"),
        A::Unreachable => {
            alloc::format!("nobody answered for the group {name}; see `dugnad nodes`")
        }
    };
    Answer::Failed(text)
}
