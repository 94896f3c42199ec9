//! `/v1/groups`: what people do with groups, and the part of it that services do, too.

use std::rc::Rc;

use dugnad_node::{Answer, GroupManner, GroupPolicy, GroupQuestion, Question};
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::Condition;
use dugnad_resource::spec::valid_name;
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::Payload;
use super::http::{Query, Reply, json_response, lines};
use super::shape::{self, Trouble};
use super::{AgentApi, exit};
use crate::text::percent_decode;

/// Bytes of one message (`GROUP_BODY_MAX` of the core, which checks again).
const BODY_MAX: usize = 16 << 10;

/// A request on the control socket: `name` and `verb` are the parts of the path after `/v1/groups`.
pub(super) async fn route(
    backend: &Rc<dyn AgentApi>,
    get: bool,
    (name, verb): (Option<&str>, Option<&str>),
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let question = match (get, name, verb) {
        (true, None, None) => GroupQuestion::List,
        (true, Some(name), Some("messages")) => return messages(backend, group(name)?).await,
        (false, Some(name), Some("create")) => {
            let closed = query.has("members_only");
            let policy = if closed { GroupPolicy::Members } else { GroupPolicy::Open };
            GroupQuestion::Create { name: group(name)?, policy }
        }
        (false, Some(name), Some("join")) => GroupQuestion::Join { name: group(name)?, keep: true },
        (false, Some(name), Some("leave")) => {
            GroupQuestion::Leave { name: group(name)?, keep: true }
        }
        (false, Some(name), Some("send")) => {
            let name = group(name)?;
            let manner = manner(query)?;
            GroupQuestion::Send { name, body: read_message(request).await?, manner }
        }
        _ => {
            let text = "of a group there are create, join, leave, send (POST) and messages (GET)";
            return Err(Trouble::new(404, exit::USAGE, text));
        }
    };
    Ok(json_response(&ask(backend, question).await?))
}

pub(super) async fn ask(
    backend: &Rc<dyn AgentApi>,
    question: GroupQuestion,
) -> Result<Value, Trouble> {
    let answer = backend.ask(Question::Group(question)).await;
    Ok(shape::answer(answer, "")?.value)
}

/// What is said in the group, one object a line, for as long as the caller reads. The node is a
/// member while it lasts.
pub(super) async fn messages(backend: &Rc<dyn AgentApi>, name: String) -> Reply {
    // First listen, then join: nothing is missed.
    let heard = backend.heard(&name).map_err(|why| Trouble::new(429, exit::REFUSED, why))?;
    let hold = backend.hold(name).await.map_err(not_held)?;
    let said = futures_util::stream::unfold((hold, heard), |(hold, heard)| async move {
        let value = heard.recv().await.ok()?;
        Some((value, (hold, heard)))
    });
    Ok(lines(said))
}

pub(super) fn not_held(answer: Answer) -> Trouble {
    match shape::answer(answer, "") {
        Err(trouble) => trouble,
        Ok(_) => Trouble::failed("the group did not take this node in"),
    }
}

pub(super) async fn read_message(request: Request<Incoming>) -> Result<Vec<u8>, Trouble> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|error| {
        Trouble::usage(format!("a message has at most {BODY_MAX} bytes: {error}"))
    })?;
    Ok(body.to_bytes().to_vec())
}

/// `reliable=1`, `one=1`, perhaps with `where=CONDITION`, or none.
pub(super) fn manner(query: &Query) -> Result<GroupManner, Trouble> {
    let typed = percent_decode(query.get("where").unwrap_or_default())
        .ok_or_else(|| Trouble::usage("where is no UTF-8 text"))?;
    if query.has("one") {
        return Ok(GroupManner::ToOne { that: that(&typed)? });
    }
    if !typed.is_empty() {
        return Err(Trouble::usage("where goes with one=1: it says which member"));
    }
    Ok(if query.has("reliable") { GroupManner::Reliable } else { GroupManner::BestEffort })
}

/// What a member must be, as nodes tell each other.
fn that(typed: &str) -> Result<Vec<u8>, Trouble> {
    let condition = Condition::parse(typed, &NODE);
    let condition = condition.map_err(|error| Trouble::usage(error.to_string()))?;
    if condition.is_empty() {
        return Ok(Vec::new());
    }
    postcard::to_allocvec(&condition).map_err(|error| Trouble::usage(error.to_string()))
}

pub(super) fn group(name: &str) -> Result<String, Trouble> {
    valid_name(name).map_err(|why| Trouble::usage(format!("\"{name}\" is no group: {why}")))?;
    Ok(name.to_owned())
}

/// One line of `dugnad group listen`.
pub(crate) fn message(group: &str, from: &str, from_name: &str, body: &[u8]) -> Value {
    let mut line = text_or_hex(body);
    line["group"] = json!(group);
    line["node"] = json!(from);
    line["node_name"] = json!(from_name);
    line
}

/// `text` if it is text, else `hex`.
pub(super) fn text_or_hex(bytes: &[u8]) -> Value {
    use std::fmt::Write as _;
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => {
            let mut hex = String::with_capacity(bytes.len() * 2);
            for byte in bytes {
                // Writing into a String cannot fail.
                let _: Result<(), std::fmt::Error> = write!(hex, "{byte:02x}");
            }
            json!({ "hex": hex })
        }
    }
}

/// Used where a response has no body worth reading.
pub(super) fn done() -> Response<Payload> {
    json_response(&json!({}))
}
