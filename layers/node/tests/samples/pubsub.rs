//! Samples of events: their messages, and what of them is stored in registers.

use dugnad_collective::pubsub::log::{EventId, Published, Slot};
use dugnad_collective::pubsub::types::EventType;
use dugnad_collective::pubsub::{Msg, Receiver, Request, Response, Start};
use dugnad_resource::condition::{Kind, Value};

use super::{Variants, id, prospect};
use crate::Lines;

variants!(Msg, "pubsub": Request => request named, Response => response named, Events, Moved);
variants!(Request, "request": Publish, Subscribe, Read);
variants!(Response, "response": Published, Events, NotHere, Unavailable, Unfit);

fn event() -> Published {
    let attributes = vec![
        ("celsius".into(), Value::Number(21)),
        ("room".into(), Value::Text("attic".into())),
        ("tags".into(), Value::Words(vec!["solar".into()])),
    ];
    let id = EventId { by: id(1), number: 9 };
    Published { id, at_ms: 1_700_000_000_000, attributes, body: b"x".to_vec() }
}

pub(super) fn messages() -> Vec<Msg> {
    let (name, filter) = ("sensor.temperature".to_owned(), prospect::condition());
    let events = vec![(7, event())];
    let requests = [
        Request::Publish { name: name.clone(), event: event() },
        Request::Subscribe { name: name.clone(), from: Some(3), filters: vec![filter.clone()] },
        Request::Read { name: name.clone(), start: Start::Place(2), until: 9, filter },
    ];
    let responses = [
        Response::Published { place: 7 },
        Response::Events { events: events.clone(), next: 8, lost: 1 },
        Response::NotHere,
        Response::Unavailable,
        Response::Unfit,
    ];
    let mut all: Vec<Msg> = Vec::new();
    all.extend(requests.map(|request| Msg::Request { call: 7, request }));
    all.extend(responses.map(|response| Msg::Response { call: 7, response }));
    let to = vec![Receiver::new(id(1), 7), Receiver::new(id(2), 3)];
    all.push(Msg::Events { name: name.clone(), events, next: 8, to });
    all.push(Msg::Moved { name });
    all
}

pub(super) fn stored(lines: &mut Lines) {
    let slot = Slot { number: 17, first: 6, closed: true, events: vec![event()] };
    lines.stored("event slot", &slot);
    let (name, parents) = ("sensor.temperature".to_owned(), vec!["sensor".to_owned()]);
    let kinds =
        [Kind::Bytes, Kind::Count, Kind::Cpu, Kind::Share, Kind::Seconds, Kind::Text, Kind::Words];
    let attributes = kinds.map(|kind| (format!("{kind:?}").to_lowercase(), kind)).into();
    lines.stored("event type", &EventType { name, parents, attributes });
    lines.stored("event start", &Start::Since(1_700_000_000_000));
}
