//! `/v1/events` and `/v1/types`: publishing and subscribing, for people and for services.
//!
//! | request | does |
//! |---|---|
//! | `GET /v1/events?filter=TYPE CONDITION` | one JSON object a line, for each event |
//! | the same with `Accept: text/event-stream` | server-sent events, with `Last-Event-ID` |
//! | `...&since=SECONDS`, `...&after=CURSOR` | also what was published before, while it is kept |
//! | `POST /v1/events/TYPE` | publishes; answered when the event is in the log |
//! | `GET /v1/types`, `POST /v1/types` | which types there are; defines one |
//!
//! An event is sent as `name=value&name=value`, or as `{"attributes": {..}, "body": ".."}`.

use std::collections::BTreeMap;
use std::rc::Rc;

use dugnad_node::{Answer, Begin, EventAnswer, EventQuestion, EventType, Told};
use dugnad_resource::condition::Kind;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, HeaderMap};
use hyper::{Method, Request, Response};
use serde_json::{Map, Value, json};

use super::body::Payload;
use super::http::{Query, Reply, json_response, lines};
use super::shape::{self, Trouble};
use super::store::Who;
use super::{AgentApi, exit};
use crate::clock::now_unix;
use crate::text::percent_decode;

/// Bytes of an event as it is sent to the agent; what is too long for the log is said by the node.
const BODY_MAX: usize = 64 << 10;

/// Kinds of attributes, as people write them.
const KINDS: [(&str, Kind); 7] = [
    ("number", Kind::Count),
    ("size", Kind::Bytes),
    ("cpu", Kind::Cpu),
    ("share", Kind::Share),
    ("time", Kind::Seconds),
    ("text", Kind::Text),
    ("words", Kind::Words),
];

/// A request below `/v1/events` with a filter or a type, or to `/v1/types`.
pub(super) async fn route(
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    place: (&str, Option<&str>),
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    match (place, request.method()) {
        (("types", None), &Method::GET) => types(backend).await,
        (("types", None), &Method::POST) => define(backend, who, request).await,
        (("events", None), &Method::GET) => subscribe(backend, query, request.headers()).await,
        (("events", Some(name)), &Method::POST) => publish(backend, who, name, request).await,
        _ => {
            let text = "of events there are GET /v1/events?filter=.., POST /v1/events/TYPE and \
                        GET or POST /v1/types";
            Err(Trouble::new(404, exit::USAGE, text))
        }
    }
}

async fn ask(backend: &Rc<dyn AgentApi>, question: EventQuestion) -> Result<EventAnswer, Trouble> {
    match backend.ask(question.into()).await {
        Answer::Events(answer) => Ok(answer),
        Answer::Failed(text) => Err(Trouble::failed(text)),
        other => Err(Trouble::failed(format!("unexpected answer {other:?}"))),
    }
}

/// An answer that is none to what was asked.
fn trouble(answer: EventAnswer) -> Trouble {
    match answer {
        EventAnswer::Wrong(text) => Trouble::usage(text),
        EventAnswer::Conflict(text) => Trouble::new(409, exit::REFUSED, text),
        EventAnswer::Unavailable => {
            let text = "unavailable: no majority of the nodes that keep these events answers; see \
                        `dugnad status` and try again";
            Trouble::new(503, exit::UNMET, text)
        }
        EventAnswer::Failed(text) => Trouble::failed(text),
        other => Trouble::failed(format!("unexpected answer {other:?}")),
    }
}

async fn types(backend: &Rc<dyn AgentApi>) -> Reply {
    match ask(backend, EventQuestion::Types).await? {
        EventAnswer::Types(types) => Ok(json_response(&types.iter().map(shown).collect())),
        other => Err(trouble(other)),
    }
}

fn shown(known: &EventType) -> Value {
    let kind = |kind: &Kind| {
        KINDS.iter().find(|(_, known)| known == kind).map_or("number", |(name, _)| *name)
    };
    let attributes: Map<String, Value> =
        known.attributes.iter().map(|(name, k)| (name.clone(), json!(kind(k)))).collect();
    json!({ "type": known.name, "parents": known.parents, "attributes": attributes })
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Trouble> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|error| {
        Trouble::new(413, exit::USAGE, format!("an event has at most 4096 bytes: {error}"))
    })?;
    Ok(body.to_bytes())
}

async fn define(backend: &Rc<dyn AgentApi>, who: &Who, request: Request<Incoming>) -> Reply {
    let said: Value = serde_json::from_slice(&read(request).await?)
        .map_err(|error| Trouble::usage(format!("this is no JSON: {error}")))?;
    let new = event_type(&said).map_err(Trouble::usage)?;
    may_publish(who, &new.name)?;
    match ask(backend, EventQuestion::Define(new)).await? {
        EventAnswer::Done => Ok(json_response(&json!({}))),
        other => Err(trouble(other)),
    }
}

/// A type as people write it: `{"type": .., "parents": [..], "attributes": {NAME: KIND}}`.
fn event_type(said: &Value) -> Result<EventType, String> {
    let name = said["type"].as_str().ok_or("a type needs a name: \"type\"")?.to_owned();
    let parents = said["parents"].as_array().into_iter().flatten();
    let parents = parents.filter_map(|parent| parent.as_str().map(str::to_owned)).collect();
    let mut attributes = BTreeMap::new();
    for (name, kind) in said["attributes"].as_object().into_iter().flatten() {
        let known = KINDS.iter().find(|(known, _)| kind == known);
        let Some((_, kind)) = known else {
            let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            return Err(format!("attributes.{name}: {kind} is none of {}", names.join(", ")));
        };
        attributes.insert(name.clone(), *kind);
    }
    Ok(EventType { name, parents, attributes: attributes.into_iter().collect() })
}

/// People publish what they like; a service what begins with its name.
fn may_publish(who: &Who, name: &str) -> Result<(), Trouble> {
    match who {
        Who::Person => Ok(()),
        Who::Service { name: own, .. } => {
            let rest = name.strip_prefix(own.as_str());
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                return Ok(());
            }
            let text = format!("the service {own} may publish {own} and {own}.ANYTHING");
            Err(Trouble::new(403, exit::REFUSED, text))
        }
    }
}

async fn publish(
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    name: &str,
    request: Request<Incoming>,
) -> Reply {
    may_publish(who, name)?;
    let body = read(request).await?;
    let (attributes, body) =
        if body.first() == Some(&b'{') { from_json(&body)? } else { form(&body)? };
    let name = name.to_owned();
    match ask(backend, EventQuestion::Publish { name: name.clone(), attributes, body }).await? {
        EventAnswer::Published { place } => {
            Ok(json_response(&json!({ "type": name, "place": place })))
        }
        other => Err(trouble(other)),
    }
}

type Typed = (Vec<(String, String)>, Vec<u8>);

fn from_json(bytes: &[u8]) -> Result<Typed, Trouble> {
    let said: Value = serde_json::from_slice(bytes)
        .map_err(|error| Trouble::usage(format!("this is no JSON: {error}")))?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(words) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            words.join(" ")
        }
        other => other.to_string(),
    };
    let attributes = said["attributes"].as_object().into_iter().flatten();
    let attributes = attributes.map(|(name, value)| (name.clone(), text(value))).collect();
    Ok((attributes, said["body"].as_str().unwrap_or_default().as_bytes().to_vec()))
}

/// As a form is sent, and as `curl --data` sends: `name=value&name=value`.
fn form(bytes: &[u8]) -> Result<Typed, Trouble> {
    let wrong = || Trouble::usage("an event is sent as name=value&name=value, or as JSON");
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?.trim();
    let mut attributes = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent_decode(&value.replace('+', " ")).ok_or_else(wrong)?;
        attributes.push((name.to_owned(), value));
    }
    Ok((attributes, Vec::new()))
}

async fn subscribe(backend: &Rc<dyn AgentApi>, query: &Query, headers: &HeaderMap) -> Reply {
    let filter = percent_decode(query.get("filter").unwrap_or_default())
        .ok_or_else(|| Trouble::usage("filter is no UTF-8 text"))?;
    let filter = filter.trim().to_owned();
    if filter.is_empty() {
        return Err(Trouble::usage("say which events: /v1/events?filter=TYPE CONDITION"));
    }
    let (name, condition) = filter.split_once(char::is_whitespace).unwrap_or((&filter, ""));
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let after = query.get("after").and_then(percent_decode);
    let begin = match (after.as_deref().or(last), query.get("since")) {
        (Some(cursor), _) => Begin::After(places(cursor)?),
        (None, Some(secs)) => {
            let secs: u64 = secs.parse().map_err(|_| Trouble::usage("since is in seconds"))?;
            Begin::Since(now_unix().saturating_sub(secs).saturating_mul(1_000))
        }
        (None, None) => Begin::Now,
    };
    // Where it had come to with types that send nothing for a while stays in the cursor.
    let mut cursor: BTreeMap<String, u64> = match &begin {
        Begin::After(places) => places.iter().cloned().collect(),
        Begin::Now | Begin::Since(_) => BTreeMap::new(),
    };
    let (hold, events) =
        backend.subscribe(name.to_owned(), condition.to_owned(), begin).await.map_err(trouble)?;
    let told = futures_util::stream::unfold((hold, events), |(hold, events)| async move {
        let value = events.recv().await.ok()?;
        Some((value, (hold, events)))
    });
    let told = told.map(move |mut event| {
        if let (Some(name), Some(place)) = (event["type"].as_str(), event["place"].as_u64()) {
            cursor.insert(name.to_owned(), place);
            let places: Vec<_> = cursor.iter().map(|(name, at)| format!("{name}={at}")).collect();
            event["cursor"] = json!(places.join(","));
        }
        event
    });
    let accepts = headers.get(ACCEPT).and_then(|kinds| kinds.to_str().ok()).unwrap_or_default();
    if !accepts.contains("text/event-stream") {
        return Ok(lines(told));
    }
    let frames = told.map(|event| {
        let id = event["cursor"].as_str().unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or("lost");
        Bytes::from(format!("id: {id}\nevent: {kind}\ndata: {event}\n\n"))
    });
    let mut response = Response::new(Payload::stream(frames));
    let kind = hyper::header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Where somebody left off: `TYPE=PLACE,TYPE=PLACE`.
fn places(cursor: &str) -> Result<Vec<(String, u64)>, Trouble> {
    let place = |pair: &str| {
        let (name, place) = pair.split_once('=')?;
        Some((name.to_owned(), place.parse().ok()?))
    };
    cursor.split(',').filter(|pair| !pair.is_empty()).map(place).collect::<Option<_>>().ok_or_else(
        || Trouble::usage(format!("\"{cursor}\" is no place of events: give what `cursor` said")),
    )
}

/// One event, as subscribers read it.
pub(crate) fn event_told(told: &Told) -> Value {
    json!({
        "type": told.name,
        "place": told.place,
        "at_unix_ms": told.event.at_ms,
        "node": told.event.id.by.to_string(),
        "attributes": shape::attributes(&told.event.attributes),
        "body": String::from_utf8_lossy(&told.event.body),
    })
}

/// Some events nobody can read any more.
pub(crate) fn event_lost(name: &str, count: u64) -> Value {
    json!({ "lost": count, "of": name })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_forms_and_as_json() {
        let typed = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        let (attributes, body) = form(b"celsius=21&room=the+attic%21").unwrap();
        assert_eq!(attributes, typed(&[("celsius", "21"), ("room", "the attic!")]));
        assert!(body.is_empty());
        assert!(form(b"celsius").is_err() && form(b"a=%zz").is_err() && form(b"\xff=1").is_err());
        let said = br#"{"attributes": {"n": 3, "tags": ["a", "b"], "room": "x"}, "body": "hi"}"#;
        let (mut attributes, body) = from_json(said).unwrap();
        attributes.sort();
        assert_eq!(attributes, typed(&[("n", "3"), ("room", "x"), ("tags", "a b")]));
        assert_eq!(body, b"hi");
        assert!(from_json(b"{").is_err());
    }

    #[test]
    fn types_and_places_are_checked() {
        let said = json!({"type": "a.b", "parents": ["a"], "attributes": {"n": "number"}});
        let new = event_type(&said).unwrap();
        assert_eq!((new.name.as_str(), new.attributes.len()), ("a.b", 1));
        let wrong = event_type(&json!({"type": "a", "attributes": {"n": "float"}})).unwrap_err();
        assert!(wrong.contains("attributes.n") && wrong.contains("number, size"), "{wrong}");
        assert!(event_type(&json!({})).is_err());
        let at = places("a=1,a.b=22").unwrap();
        assert_eq!(at, [("a".to_owned(), 1), ("a.b".to_owned(), 22)]);
        assert!(places("a").is_err() && places("a=x").is_err());
    }

    #[test]
    fn a_service_publishes_what_begins_with_its_name() {
        let who = Who::Service { name: "thermo".to_owned(), namespaces: Vec::new() };
        assert!(may_publish(&who, "thermo").is_ok() && may_publish(&who, "thermo.reading").is_ok());
        for other in ["thermometer", "node.join", "x.thermo"] {
            assert!(may_publish(&who, other).is_err(), "{other}");
        }
        assert!(may_publish(&Who::Person, "anything").is_ok());
    }
}
