//! To one member, whichever has time (PROTOCOL.md 4.6).
//!
//! A token walks: through members the sender knows or the record names, at most sixteen. The first
//! that is free, and is what the sender asks for if it asks for something, takes it, says so to the
//! sender, and is reserved for ten seconds; the message itself goes to that one alone. A sender
//! that hears of nobody sends another token; who took the first one is never handed anything, and
//! its reservation ends. So exactly one member gets the message.

use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, NodeId, Peer};

use super::directory::Policy;
use super::enter::{Asker, Who, get, pause};
use super::messages::{Answer, GroupId, Msg, MsgId, Packet, Refusal, Request, Response, Token};
use super::{Ask, Groups, Out, Outcome, Phase, Reply};
use crate::config::{
    GROUP_ANYCAST_TRIES, GROUP_ANYCAST_VISITS, GROUP_CALL, GROUP_RESERVED, GROUP_SAMPLE,
};

impl Groups {
    /// A token came: mine to take if I fit, or to pass on.
    pub(super) fn on_token(
        &mut self,
        gid: GroupId,
        mut token: Token,
        fits: bool,
        cx: &mut Cx<'_, Self>,
    ) {
        let me = self.me.id;
        let origin = token.id.origin;
        token.visited.truncate(GROUP_ANYCAST_VISITS);
        let Some(group) = self.groups.get_mut(&gid).filter(|group| group.phase == Phase::In) else {
            cx.send(origin, Msg::NotTaken { id: token.id });
            return;
        };
        let free = group.reserved.is_none_or(|(id, until)| id == token.id || until <= cx.now);
        if fits && free && origin != me && !group.seen.contains(token.id) {
            group.reserved = Some((token.id, cx.now + GROUP_RESERVED));
            cx.send(origin, Msg::Taken { id: token.id, by: self.me.clone() });
            return;
        }
        token.visited.push(me);
        let known = group.known(me).into_iter().map(|peer| peer.id);
        let next: Vec<NodeId> =
            known.filter(|id| *id != origin && !token.visited.contains(id)).collect();
        match cx.rng.choice(&next).copied() {
            Some(to) if token.visited.len() < GROUP_ANYCAST_VISITS => {
                cx.send(to, Msg::Token { gid, token });
            }
            Some(_) | None => cx.send(origin, Msg::NotTaken { id: token.id }),
        }
    }

    /// The sender of a token gives the message itself.
    pub(super) fn on_hand(
        &mut self,
        gid: GroupId,
        from: NodeId,
        packet: Packet,
        cx: &mut Cx<'_, Self>,
    ) -> Response {
        let Some(group) = self.groups.get_mut(&gid) else {
            return Response::Refused(Refusal::NotMember);
        };
        if group.seen.contains(packet.id) {
            return Response::Sent;
        }
        let mine = group.reserved.is_some_and(|(id, until)| id == packet.id && until > cx.now);
        if !mine || packet.id.origin != from {
            return Response::Refused(Refusal::Busy);
        }
        group.reserved = None;
        self.deliver(gid, packet, cx);
        Response::Sent
    }

    /// How a token of mine ended.
    pub(super) fn on_token_over(&mut self, id: MsgId, by: Option<Peer>, cx: &mut Cx<'_, Self>) {
        let waits = |out: &Out| matches!(out, Out::Token(token) if *token == id);
        if let Some(call) = self.calls.find(waits) {
            self.answer(call, Reply::Taken(by), cx);
        }
    }
}

/// `known` are the members this node knows; without any the record is asked.
pub(super) async fn send_to_one(
    asker: Asker,
    who: Who,
    packet: Packet,
    that: Vec<u8>,
    known: Vec<Peer>,
    ask: u32,
) -> Outcome {
    let answer = try_send(&asker, &who, packet, that, known).await;
    Outcome::Answer { ask, answer }
}

async fn try_send(
    asker: &Asker,
    who: &Who,
    packet: Packet,
    that: Vec<u8>,
    mut known: Vec<Peer>,
) -> Answer {
    let mut rng = fastrand::Rng::with_seed(who.seed);
    if known.is_empty() {
        match get(asker, who.gid).await {
            None => return Answer::Unreachable,
            Some((_, None)) => return Answer::Unknown,
            Some((_, Some(record))) if record.policy == Policy::Members => {
                return Answer::NotMember;
            }
            Some((_, Some(record))) => known = record.sample,
        }
    }
    known.retain(|peer| peer.id != who.me.id);
    rng.shuffle(&mut known);
    known.truncate(GROUP_SAMPLE);
    for to in known.iter().cycle().take(GROUP_ANYCAST_TRIES.min(known.len() * 2)) {
        let token = Token { id: packet.id, visited: Vec::new(), that: that.clone() };
        let ask = Ask::Token { to: to.clone(), gid: who.gid, token };
        if let Reply::Taken(Some(by)) = asker.ask(ask).await {
            let request = Request::Hand { packet: packet.clone() };
            let ask = Ask::Call { to: by, gid: who.gid, request, limit: GROUP_CALL };
            return match asker.ask(ask).await {
                Reply::Response(Some(Response::Sent)) => Answer::Done,
                // It may have it: handing it to another could make two.
                _ => Answer::Unreachable,
            };
        }
        pause(asker, &mut rng).await;
    }
    Answer::Nobody
}
