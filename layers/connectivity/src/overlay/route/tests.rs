//! One node of a ring that stands, by hand: what it says to hops that came the wrong way.

use alloc::vec::Vec;

use dugnad_kernel::{Component, Cx, Effect, Id, Input, NodeId, Peer, Time};
use fastrand::Rng;

use super::{Hop, Purpose, RouteMsg};
use crate::config::HOPS_MAX;
use crate::overlay::ring;
use crate::overlay::{Command, Msg, Overlay};

fn peer(id: u128) -> Peer {
    Peer { inc: 1, ..Peer::new(Id(id << 120)) }
}

/// Node `me` of 16, `[0, 16, .. 240] << 120`, with 12 successors and full slots.
fn node(me: u128) -> Overlay {
    let at = |step: u128| peer((me + 16 * step) % 256);
    let owner = |key: Id| peer((key.0 >> 120).div_ceil(16) * 16 % 256);
    let mut overlay = Overlay::planted(at(0), at(15), (1..13).map(at).collect(), owner);
    step(&mut overlay, Input::Command(Command::Boot { alone: false }));
    overlay
}

fn step(overlay: &mut Overlay, input: Input<Overlay>) -> Vec<(NodeId, Msg)> {
    let (mut rng, mut effects) = (Rng::with_seed(1), Vec::new());
    overlay.handle(input, &mut Cx::new(Time(1_000_000), &mut rng, &mut effects));
    let sent = |effect| match effect {
        Effect::Send { to, msg } => Some((to, msg)),
        Effect::After { .. } | Effect::Emit(_) => None,
    };
    effects.into_iter().filter_map(sent).collect()
}

fn hop(overlay: &mut Overlay, from: u128, key: u128, hops: u8, last: bool) -> Vec<(NodeId, Msg)> {
    let (purpose, origin) = (Purpose::Find, peer(1));
    let hop = Hop { key: Id(key << 120), purpose, origin, call: 7, hops, last, seq: 9 };
    let msg = Msg::Route(RouteMsg::Hop(hop));
    step(overlay, Input::Message { from: peer(from).id, msg })
}

fn hop_to(sent: &[(NodeId, Msg)]) -> Option<(NodeId, bool)> {
    sent.iter().find_map(|(to, msg)| match msg {
        Msg::Route(RouteMsg::Hop(hop)) => Some((*to, hop.last)),
        _ => None,
    })
}

fn counted(overlay: &Overlay, what: &str) -> u64 {
    overlay.counters().find(|(name, _)| *name == what).map_or(0, |(_, count)| count)
}

#[test]
fn who_sends_what_is_my_predecessors_learns_of_it() {
    let mut overlay = node(64);
    let sent = hop(&mut overlay, 32, 40, 3, true);
    assert_eq!(hop_to(&sent), Some((peer(48).id, true)));
    let hint = Msg::Route(RouteMsg::SuccHint { pred: peer(48) });
    assert!(sent.contains(&(peer(32).id, hint.clone())), "{sent:?}");
    let sent = hop(&mut overlay, 32, 60, 3, true);
    assert!(!sent.iter().any(|(_, msg)| *msg == hint), "it is mine: {sent:?}");
    // The predecessor itself, and whoever is farther ahead, learn nothing from it.
    let sent = hop(&mut overlay, 48, 40, 3, true);
    assert!(!sent.iter().any(|(_, msg)| *msg == hint), "{sent:?}");
}

#[test]
fn a_nearer_successor_that_was_named_is_asked_before_it_is_one() {
    let mut overlay = node(64);
    let hint = |id| Msg::Route(RouteMsg::SuccHint { pred: peer(id) });
    let from = peer(80).id;
    let sent = step(&mut overlay, Input::Message { from, msg: hint(70) });
    let asked = |sent: &[(NodeId, Msg)]| {
        let query = |m: &Msg| matches!(m, Msg::Ring(ring::Msg::Query { .. }));
        sent.iter().filter(|(to, m)| *to == peer(70).id && query(m)).count()
    };
    assert_eq!(asked(&sent), 1);
    assert_eq!(overlay.ring().succ().id, peer(80).id);
    let sent = step(&mut overlay, Input::Message { from, msg: hint(70) });
    assert_eq!(asked(&sent), 0, "once is enough");
    let sent = step(&mut overlay, Input::Message { from, msg: hint(96) });
    assert!(sent.is_empty(), "farther than the successor: {sent:?}");
}

#[test]
fn a_hop_that_came_no_nearer_walks_along_successors() {
    let mut overlay = node(0);
    // From 16 back to 0 although it goes to 230; then from 208, past 230 to here.
    let sent = hop(&mut overlay, 16, 230, 3, false);
    assert_eq!(hop_to(&sent), Some((peer(192).id, false)), "the farthest successor");
    assert_eq!(counted(&overlay, "routing_regress"), 1);
    let sent = hop(&mut overlay, 208, 230, 3, false);
    assert_eq!(hop_to(&sent), Some((peer(192).id, false)));
    assert_eq!(counted(&overlay, "routing_regress"), 2, "past the key");
    hop(&mut overlay, 240, 30, 3, false);
    assert_eq!(counted(&overlay, "routing_regress"), 2, "as it should be");
}

#[test]
fn what_goes_in_circles_ends() {
    let mut overlay = node(64);
    assert!(overlay.hops_limit() < HOPS_MAX && overlay.hops_limit() >= 20);
    let limit = overlay.hops_limit();
    assert_eq!(hop_to(&hop(&mut overlay, 32, 200, limit, false)), None);
    assert_eq!(counted(&overlay, "hops_exceeded"), 1);
    assert!(hop_to(&hop(&mut overlay, 32, 200, limit - 1, false)).is_some());
}
