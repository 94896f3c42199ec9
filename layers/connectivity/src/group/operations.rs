//! What operations of groups ask for, and how they are answered (ARCHITECTURE.md, "Operations").

use dugnad_kernel::calls::{Awaited, CallsOf, Operates};
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, NodeId, Peer};

use super::Groups;
use super::directory::{self, DirectoryAnswer, DirectoryAsk, GroupRecord};
use super::enter::Entry;
use super::messages::{Answer, Event, GroupId, Msg, MsgId, Request, Response, Timer, Token};
use crate::config::{GROUP_DIRECTORY, GROUP_OPS_MAX, GROUP_TOKEN, GROUPS_MAX};

/// What an operation may wait for.
#[derive(Clone, Debug)]
pub enum Ask {
    Directory { gid: GroupId, ask: DirectoryAsk },
    Call { to: Peer, gid: GroupId, request: Request, limit: Duration },
    Sleep(Duration),
    Token { to: Peer, gid: GroupId, token: Token },
}

#[derive(Clone, Debug)]
pub enum Reply {
    Directory(DirectoryAnswer),
    Response(Option<Response>),
    /// By whom a token was taken.
    Taken(Option<Peer>),
    Over,
}

/// What an operation ends with.
#[derive(Clone, Debug)]
pub enum Outcome {
    Entered {
        gid: GroupId,
        life: u32,
        result: Result<Entry, Answer>,
    },
    MayGo {
        gid: GroupId,
        life: u32,
    },
    /// The record as it is; `wrote`: it is what this node wrote.
    Record {
        gid: GroupId,
        life: u32,
        version: u64,
        record: Option<GroupRecord>,
        wrote: bool,
    },
    NoRecord {
        gid: GroupId,
        life: u32,
    },
    Answer {
        ask: u32,
        answer: Answer,
    },
}

/// A question that is out.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    Call(NodeId),
    Directory,
    Sleep,
    Token(MsgId),
}

impl Awaited for Out {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Call(to) => Some(*to),
            Self::Directory | Self::Sleep | Self::Token(_) => None,
        }
    }
}

impl Operates for Groups {
    type Ask = Ask;
    type Reply = Reply;
    type Outcome = Outcome;
    type Awaited = Out;
    /// What people send is refused earlier; each membership has a few of its own.
    const MAX: usize = GROUP_OPS_MAX + 4 * GROUPS_MAX;

    fn calls(&mut self) -> &mut CallsOf<Self> {
        &mut self.calls
    }

    fn carry_out(
        &mut self,
        call: CallId,
        ask: Ask,
        cx: &mut Cx<'_, Self>,
    ) -> (Out, Option<Duration>) {
        let (out, limit) = match ask {
            Ask::Directory { gid, ask } => {
                let key = directory::directory_key(gid);
                cx.emit(Event::Directory { call, key, ask });
                (Out::Directory, GROUP_DIRECTORY)
            }
            Ask::Call { to, gid, request, limit } => {
                self.contact(&to, cx);
                cx.send(to.id, Msg::Request { call, gid, request });
                (Out::Call(to.id), limit)
            }
            Ask::Sleep(limit) => (Out::Sleep, limit),
            Ask::Token { to, gid, token } => {
                let id = token.id;
                self.contact(&to, cx);
                cx.send(to.id, Msg::Token { gid, token });
                (Out::Token(id), GROUP_TOKEN)
            }
        };
        (out, Some(limit))
    }

    fn no_answer(&mut self, call: CallId) -> Option<Reply> {
        Some(match self.calls.awaited(call)? {
            Out::Call(_) => Reply::Response(None),
            Out::Directory => Reply::Directory(DirectoryAnswer::Failed),
            Out::Sleep => Reply::Over,
            Out::Token(_) => Reply::Taken(None),
        })
    }

    fn expire(call: CallId) -> Timer {
        Timer::Expire { call }
    }

    fn refused(&mut self) {
        self.count("group_operations_overflow");
    }

    fn on_outcome(&mut self, outcome: Outcome, cx: &mut Cx<'_, Self>) {
        let (gid, life) = match &outcome {
            Outcome::Answer { ask, answer } => {
                cx.emit(Event::Answer { call: *ask, answer: *answer });
                return;
            }
            Outcome::Entered { gid, life, .. }
            | Outcome::MayGo { gid, life }
            | Outcome::Record { gid, life, .. }
            | Outcome::NoRecord { gid, life } => (*gid, *life),
        };
        let Some(group) = self.groups.get_mut(&gid).filter(|group| group.life == life) else {
            return;
        };
        match outcome {
            Outcome::Entered { result, .. } => self.on_entered(gid, result, cx),
            Outcome::MayGo { .. } => self.on_may_go(gid, cx),
            Outcome::Record { version, record, wrote, .. } => {
                group.writing = false;
                self.on_record(gid, version, record, wrote, cx);
            }
            Outcome::NoRecord { .. } => {
                (group.writing, group.changed) = (false, true);
                self.review(gid, cx);
            }
            Outcome::Answer { .. } => {}
        }
    }
}
