//! Requests and answers of the control socket, whatever they are about.

use dugnad_resource::spec::valid_name;
use futures_util::{Stream, StreamExt};
use hyper::Response;
use hyper::body::Bytes;
use serde_json::Value;

use super::body::Payload;
use super::shape::Trouble;

pub(super) type Reply = Result<Response<Payload>, Trouble>;

/// What stands behind the question mark.
pub(super) struct Query(pub(super) String);

impl Query {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "0")
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// What of a path lies below another: nothing, or a slash and what follows.
pub(super) fn below<'a>(path: &'a str, above: &str) -> Option<&'a str> {
    path.strip_prefix(above).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The name of a service, if it can be one.
pub(super) fn service(name: &str) -> Result<String, Trouble> {
    valid_name(name).map_err(|why| Trouble::usage(format!("\"{name}\" is no service: {why}")))?;
    Ok(name.to_owned())
}

pub(super) fn failed(trouble: &Trouble) -> Response<Payload> {
    let mut response = json_response(&trouble.json());
    *response.status_mut() = hyper::StatusCode::from_u16(trouble.status).unwrap_or_default();
    response
}

pub(super) fn json_response(value: &Value) -> Response<Payload> {
    typed(Payload::whole(format!("{value}\n")), "application/json")
}

/// Says so if part of the community did not answer.
pub(super) fn whole(mut response: Response<Payload>, complete: bool) -> Response<Payload> {
    if !complete {
        let no = hyper::header::HeaderValue::from_static("false");
        response.headers_mut().insert("dugnad-complete", no);
    }
    response
}

pub(super) fn text(text: String) -> Response<Payload> {
    typed(Payload::whole(text), "text/plain; version=0.0.4")
}

pub(super) fn lines(values: impl Stream<Item = Value> + 'static) -> Response<Payload> {
    let lines = values.map(|value| Bytes::from(format!("{value}\n")));
    typed(Payload::stream(lines), "application/x-ndjson")
}

fn typed(payload: Payload, kind: &'static str) -> Response<Payload> {
    let mut response = Response::new(payload);
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
