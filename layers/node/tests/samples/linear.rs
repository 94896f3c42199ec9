//! Samples of registers: their messages, and what of them is stored.

use dugnad_collective::linear::keeper::Replica;
use dugnad_collective::linear::register::{Cell, Change, Register, RequestId};
use dugnad_collective::linear::view::{Ballot, Member, Range, View};
use dugnad_collective::linear::{Msg, Request, Response};
use dugnad_kernel::Id;

use super::{Variants, id};
use crate::Lines;

variants!(Msg, "linear": Request => request named, Response => response named, Told);
variants!(Request, "registerrequest": Query, Prepare, Accept, Propose, Choose, Commit, Pull,
    Release, Views);
variants!(Response, "registerresponse": Cell, Promised, Accepted, Proposed, Chosen, Decided,
    Refused, OtherView, Committed, Pulled, NotYet, Released, Views, Full);

pub(crate) fn view() -> View {
    let range = Range { start: Id(1 << 127), bits: 1 };
    let member = |n: u128| Member { node: id(n), inc: 2 };
    View { range, number: 300, members: vec![member(1), member(2), member(3)] }
}

fn ballot() -> Ballot {
    Ballot { counter: 300, by: id(2), attempt: (2 << 32) | 5 }
}

fn cell() -> Cell {
    let change = Change::Put { value: Some(vec![1, 2, 3]) };
    let request = RequestId { by: id(1), number: (2 << 32) | 9 };
    Cell::default().after(request, 1 << 41, "notes/today", &change).0
}

pub(crate) fn messages() -> Vec<Msg> {
    let (view, key, ballot) = (view(), id(9), ballot());
    let (of, next) = (view.id(), vec![View { number: 301, ..view.clone() }]);
    let register = Register { promised: ballot, accepted: ballot, cell: cell() };
    let requests = [
        Request::Query { view: of, key },
        Request::Prepare { view: of, key, ballot },
        Request::Accept { view: of, key, ballot, cell: cell() },
        Request::Propose { view: of, ballot },
        Request::Choose { view: of, ballot, next: next.clone() },
        Request::Commit { prior: vec![view.clone()], next: next.clone() },
        Request::Pull { view: of, range: view.range, after: Some(key) },
        Request::Release { view: of },
        Request::Views,
    ];
    let responses = [
        Response::Cell { promised: ballot, accepted: ballot, cell: cell() },
        Response::Promised { accepted: ballot, cell: cell() },
        Response::Accepted,
        Response::Proposed { accepted: Some((ballot, next.clone())) },
        Response::Chosen,
        Response::Decided { next: next.clone() },
        Response::Refused { promised: ballot },
        Response::OtherView { views: next.clone() },
        Response::Committed { active: true },
        Response::Pulled { registers: vec![(key, register)], more: true },
        Response::NotYet,
        Response::Released,
        Response::Views { inc: 2, views: next },
        Response::Full,
    ];
    let mut all: Vec<Msg> = Vec::new();
    all.extend(requests.map(|request| Msg::Request { call: 7, request }));
    all.extend(responses.map(|response| Msg::Response { call: 7, response }));
    all.push(Msg::Told { views: vec![view] });
    all
}

pub(crate) fn stored(lines: &mut Lines) {
    let register = Register { promised: ballot(), accepted: ballot(), cell: cell() };
    lines.stored("register", &register);
    lines.stored("replica", &Replica::syncing(view(), vec![view()]));
}
