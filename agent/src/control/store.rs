//! `/v1/store`: objects, for people and for services.
//!
//! | endpoint | does |
//! |---|---|
//! | `GET /v1/store/NAMESPACE/PATH` | the value; `ETag` is its version |
//! | the same `?watch=1` | a JSON line at every change; `?watch=now`: first how it is |
//! | `PUT` there, body: the value | writes it; `If-Match: VERSION`, `If-None-Match: *` |
//! | `DELETE` there | removes it; `If-Match` |
//! | `?kept=strong`, `?kept=any` with them | how the namespace must be kept, and is made |
//! | `GET /v1/store/NAMESPACE?prefix=P&after=PATH` | up to 256 objects, in order |
//! | `GET /v1/store` (people) | what every node keeps |
//!
//! Where concurrent values are kept, an answer has `Dugnad-Context`; a write that sends it back
//! replaces what was read, and one without replaces what there is. Several values come as JSON with
//! status 300.

use std::io;
use std::rc::Rc;

use dugnad_node::{
    Address, Answer, Content, Context, Expect, LOCKS, Listed, Manner, NodeSums, ObjectAnswer,
    ObjectQuestion, Question, STATE, Seal, Value,
};
use futures_util::StreamExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use smol::channel::bounded;

use super::body::Payload;
use super::http::{Query, Reply, json_response, lines, whole};
use super::sealed::{Blocks, Sealed, drain};
use super::shape::Trouble;
use super::{AgentApi, exit};
use crate::seal::{opened_length, sealed_length};
use crate::text::percent_decode;

/// Bytes of a value that travels with its question; a longer one goes to disk first.
const INLINE_MAX: usize = 4096;
/// Blocks on their way to the disk.
const BLOCKS: usize = 4;
const CONTEXT: HeaderName = HeaderName::from_static("dugnad-context");
const REVISION: HeaderName = HeaderName::from_static("dugnad-revision");

/// Who asks.
pub(crate) enum Who {
    Person,
    /// A service, and the namespaces its file names beside its own.
    Service {
        name: String,
        namespaces: Vec<String>,
    },
}

impl Who {
    /// Whether it is the service of this name.
    fn is(&self, service: &str) -> bool {
        matches!(self, Self::Service { name, .. } if name == service)
    }
}

/// A request below `/v1/store`; `path` is what follows it.
pub(super) async fn route(
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    path: &str,
    request: Request<Incoming>,
) -> Reply {
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = percent_decode(path).ok_or_else(|| Trouble::usage("the key is no UTF-8 text"))?;
    match (request.method(), path.split_once('/')) {
        (&Method::GET, None) if path.is_empty() => match who {
            Who::Person => sums(backend).await,
            Who::Service { name, .. } => list(backend, who, name, &query).await,
        },
        (&Method::GET, None) => list(backend, who, &path, &query).await,
        (&Method::GET, Some((namespace, ""))) => list(backend, who, namespace, &query).await,
        (method, _) => {
            let address = Address::parse(&path).map_err(|why| {
                Trouble::usage(format!("\"{}\" is no key: {why}", crate::text::plain(&path)))
            })?;
            may_use(backend, who, &address.namespace).await?;
            if address.namespace == STATE && request.method() != Method::GET {
                let text = "state of services is kept by the agents; dugnad rm removes it with its \
                            service";
                return Err(Trouble::new(403, exit::REFUSED, text));
            }
            match *method {
                Method::GET if query.get("watch").is_some() => {
                    watch(backend, address, query.get("watch") == Some("now")).await
                }
                Method::GET => get(backend, address, manner(&query)?, request.headers()).await,
                Method::PUT => put(backend, who, address, manner(&query)?, request).await,
                Method::DELETE => {
                    let (expect, context) = conditions(request.headers())?;
                    let manner = manner(&query)?;
                    let writing = Writing { address, expect, context, manner, seal: None };
                    write(backend, who, writing, None).await
                }
                _ => Err(Trouble::new(405, exit::USAGE, "only GET, PUT and DELETE are known")),
            }
        }
    }
}

pub(super) async fn ask(
    backend: &Rc<dyn AgentApi>,
    question: ObjectQuestion,
) -> Result<ObjectAnswer, Trouble> {
    match backend.ask(Question::Object(question)).await {
        Answer::Object(answer) => Ok(answer),
        Answer::Failed(text) => Err(Trouble::failed(text)),
        other => Err(Trouble::failed(format!("unexpected answer {other:?}"))),
    }
}

/// What is to be written where, and under what condition.
struct Writing {
    address: Address,
    expect: Option<Expect>,
    context: Option<Context>,
    manner: Option<Manner>,
    /// With which key the value is encrypted.
    seal: Option<Seal>,
}

impl Writing {
    fn key(&self) -> String {
        format!("{}/{}", self.address.namespace, self.address.path)
    }
}

/// `?kept=strong` or `any`: how the namespace must be kept.
fn manner(query: &Query) -> Result<Option<Manner>, Trouble> {
    match query.get("kept") {
        None | Some("") => Ok(None),
        Some("strong") => Ok(Some(Manner::Strong)),
        Some("any") => Ok(Some(Manner::Last)),
        Some(_) => Err(Trouble::usage("kept is strong or any")),
    }
}

/// What an answer means that is not what was hoped for.
pub(super) fn trouble(answer: ObjectAnswer, key: &str) -> Trouble {
    match answer {
        ObjectAnswer::Absent { .. } => {
            Trouble::new(404, exit::FAILED, format!("there is no {key}; see: dugnad ls"))
        }
        ObjectAnswer::Unknown(text) => Trouble::new(404, exit::FAILED, text),
        ObjectAnswer::Lost { version, strong: true } => {
            Trouble::new(412, exit::FAILED, format!("{key} is now revision {version}"))
        }
        ObjectAnswer::Unavailable { maybe: false } => {
            let text = "unavailable: a majority of the nodes that keep it does not answer";
            Trouble::new(503, exit::UNMET, format!("{key}: {text}"))
        }
        ObjectAnswer::Unavailable { maybe: true } => {
            let text = "the majority of the nodes that keep it went away meanwhile: it may have \
                        been written or not; get it to see";
            Trouble::new(503, exit::UNMET, format!("{key}: {text}"))
        }
        ObjectAnswer::Lost { version: 0, .. } => {
            Trouble::new(412, exit::FAILED, format!("{key} does not exist now"))
        }
        ObjectAnswer::Lost { version, .. } => {
            Trouble::new(412, exit::FAILED, format!("{key} is at version {version:016x} now"))
        }
        ObjectAnswer::Refused(text) => Trouble::new(403, exit::REFUSED, text),
        ObjectAnswer::Unmet(mut reasons) if reasons.len() == 1 => {
            Trouble::new(507, exit::UNMET, reasons.remove(0))
        }
        ObjectAnswer::Unmet(reasons) => {
            let text = format!("{key} cannot be kept now");
            Trouble { reasons, ..Trouble::new(507, exit::UNMET, text) }
        }
        ObjectAnswer::Failed(text) => Trouble::new(503, exit::FAILED, text),
        other => Trouble::failed(format!("unexpected answer {other:?}")),
    }
}

/// A service uses its own namespace, and those its file names and that are shared with it.
async fn may_use(backend: &Rc<dyn AgentApi>, who: &Who, namespace: &str) -> Result<(), Trouble> {
    let Who::Service { name, namespaces } = who else { return Ok(()) };
    let refused = |text: String| Err(Trouble::new(403, exit::REFUSED, text));
    if [LOCKS, STATE].contains(&namespace) {
        return refused(format!("the namespace {namespace} is the agents' own; use another name"));
    }
    if namespace == name {
        return Ok(());
    }
    if !namespaces.iter().any(|named| named == namespace) {
        return refused(format!(
            "the file of {name} does not name the namespace {namespace}: add [store] namespaces \
             = [\"{namespace}\"]"
        ));
    }
    match ask(backend, ObjectQuestion::Namespace(namespace.to_owned())).await? {
        ObjectAnswer::Namespace(known) if known.shared.contains(name) => Ok(()),
        ObjectAnswer::Namespace(_) => refused(format!(
            "the namespace {namespace} is not shared with {name}; who agrees says: dugnad \
             namespace {namespace} --share {name}"
        )),
        other => Err(trouble(other, namespace)),
    }
}

/// How the values of the namespace are encrypted, if they are.
///
/// # Errors
/// It is not kept as `manner` says; this node does not have its key.
async fn sealing(
    backend: &Rc<dyn AgentApi>,
    address: &Address,
    manner: Option<Manner>,
) -> Result<Option<Sealed>, Trouble> {
    let namespace = ObjectQuestion::Namespace(address.namespace.clone());
    let known = match ask(backend, namespace).await? {
        ObjectAnswer::Namespace(known) => known,
        // Whoever asks for a value of it hears so; a value that is written makes it.
        ObjectAnswer::Unknown(_) => return Ok(None),
        other => return Err(trouble(other, &address.namespace)),
    };
    if manner.is_some_and(|manner| manner != known.manner) {
        let is = if known.manner == Manner::Strong { "strong" } else { "not strong" };
        let text = format!("the namespace {} is {is}: leave the flag out", known.name);
        return Err(Trouble::new(403, exit::REFUSED, text));
    }
    match known.seal {
        Some(seal) => Sealed::new(backend.keys(), address, seal).await.map(Some),
        None => Ok(None),
    }
}

/// What a write expects, and what its writer has seen.
fn conditions(headers: &HeaderMap) -> Result<(Option<Expect>, Option<Context>), Trouble> {
    let wrong = |what: &str| Trouble::usage(format!("{what} cannot be read"));
    let expect = match (headers.get(IF_MATCH), headers.get(IF_NONE_MATCH)) {
        (Some(tag), _) => {
            let tag = tag.to_str().ok().and_then(version);
            Some(Expect::Version(tag.ok_or_else(|| wrong("the version of If-Match"))?))
        }
        (None, Some(all)) if all == "*" => Some(Expect::Absent),
        (None, Some(_)) => return Err(wrong("If-None-Match (only * is known to a write)")),
        (None, None) => None,
    };
    let context = match headers.get(CONTEXT) {
        Some(text) => {
            let context = text.to_str().ok().and_then(Context::from_text);
            Some(context.ok_or_else(|| wrong("Dugnad-Context"))?)
        }
        None => None,
    };
    Ok((expect, context))
}

/// A version as an `ETag` says it, or bare.
fn version(tag: &str) -> Option<u64> {
    let tag = tag.trim().trim_matches('"');
    (tag.len() == 16).then(|| u64::from_str_radix(tag, 16).ok()).flatten()
}

fn tagged(
    mut response: Response<Payload>,
    version: u64,
    context: Option<&Context>,
) -> Response<Payload> {
    let headers = response.headers_mut();
    if version > 0 {
        if let Ok(tag) = HeaderValue::try_from(format!("\"{version:016x}\"")) {
            headers.insert(ETAG, tag);
        }
    }
    if let Some(Ok(context)) = context.map(|context| HeaderValue::try_from(context.to_text())) {
        headers.insert(CONTEXT, context);
    }
    response
}

/// A revision as people count it, beside the `ETag`.
fn revision(response: &mut Response<Payload>, revision: u64) {
    response.headers_mut().insert(REVISION, HeaderValue::from(revision));
}

async fn get(
    backend: &Rc<dyn AgentApi>,
    address: Address,
    manner: Option<Manner>,
    headers: &HeaderMap,
) -> Reply {
    let key = format!("{}/{}", address.namespace, address.path);
    let sealed = sealing(backend, &address, manner).await?;
    let sealed = sealed.as_ref();
    match ask(backend, ObjectQuestion::Get(address)).await? {
        ObjectAnswer::Found { mut values, version: at, context, strong } => {
            let asked = headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
            if at > 0 && asked.and_then(version) == Some(at) {
                let mut response = Response::new(Payload::Whole(None));
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(tagged(response, at, context.as_ref()));
            }
            let mut response = match (values.pop(), values.is_empty()) {
                (Some(value), true) => raw(backend, value, sealed).await?,
                (last, _) => several(values.iter().chain(&last), sealed),
            };
            if strong {
                revision(&mut response, at);
            }
            Ok(tagged(response, at, context.as_ref()))
        }
        other => Err(trouble(other, &key)),
    }
}

/// One value as it is.
async fn raw(
    backend: &Rc<dyn AgentApi>,
    value: Value,
    sealed: Option<&Sealed>,
) -> Result<Response<Payload>, Trouble> {
    let unavailable = |error: io::Error| Trouble::new(503, exit::UNMET, error.to_string());
    let payload = match value.content {
        Content::Inline(bytes) => Payload::whole(match sealed {
            Some(sealed) => sealed.open(&bytes).map_err(unavailable)?,
            None => bytes,
        }),
        Content::Blob(tree) => {
            let blocks = backend.read_value(tree, value.sources).await;
            let (blocks, length) = match sealed {
                Some(sealed) => sealed.open_blocks(blocks.map_err(unavailable)?, tree.bytes),
                None => (blocks.map_err(unavailable)?, tree.bytes),
            };
            Payload::sized(blocks.map(|block| block.map(Bytes::from)), length)
        }
        // A folder is no value; what was written about it is.
        Content::Folder { note, .. } => Payload::whole(note),
    };
    let mut response = Response::new(payload);
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Values that do not know of each other.
fn several<'a>(
    values: impl Iterator<Item = &'a Value>,
    sealed: Option<&Sealed>,
) -> Response<Payload> {
    let values: Vec<_> = values.map(|value| shown(&value.content, sealed)).collect();
    let mut response = json_response(&json!({ "values": values }));
    *response.status_mut() = StatusCode::MULTIPLE_CHOICES;
    response
}

/// A value in JSON: `text` if it is text, else `hex`; of a long one only how long it is.
fn shown(content: &Content, sealed: Option<&Sealed>) -> serde_json::Value {
    match (content, sealed) {
        (Content::Inline(bytes), None) => super::groups::text_or_hex(bytes),
        (Content::Inline(bytes), Some(sealed)) => match sealed.open(bytes) {
            Ok(bytes) => super::groups::text_or_hex(&bytes),
            Err(error) => json!({ "error": error.to_string() }),
        },
        (Content::Blob(tree), Some(_)) => json!({ "bytes": opened_length(tree.bytes) }),
        (Content::Blob(tree) | Content::Folder { tree, .. }, _) => json!({ "bytes": tree.bytes }),
    }
}

async fn put(
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    address: Address,
    manner: Option<Manner>,
    request: Request<Incoming>,
) -> Reply {
    let (expect, context) = conditions(request.headers())?;
    let sealed = sealing(backend, &address, None).await?;
    let seal = sealed.as_ref().map(Sealed::seal);
    let writing = Writing { address, expect, context, manner, seal };
    let said = request.body().size_hint().exact();
    let said = said.map(|bytes| if seal.is_some() { sealed_length(bytes) } else { bytes });
    let mut blocks = Blocks::new(request.into_body(), sealed.as_ref())?;
    let mut head: Vec<u8> = Vec::new();
    while head.len() <= INLINE_MAX {
        match blocks.next().await {
            None => {
                let content = Some(Content::Inline(head));
                return write(backend, who, writing, content).await;
            }
            Some(block) => head.extend(block?),
        }
    }
    let (key, bytes) = (writing.key(), said.unwrap_or(head.len() as u64));
    let (address, create) = (writing.address.clone(), may_create(who, &writing.address));
    let check = ObjectQuestion::Check { address, bytes, manner, create, seal };
    match ask(backend, check).await? {
        ObjectAnswer::Done => {}
        other => {
            drain(&mut blocks.body).await;
            return Err(trouble(other, &key));
        }
    }
    let (to, from) = bounded::<io::Result<Vec<u8>>>(BLOCKS);
    let sending = async move {
        let mut next = Ok(head);
        loop {
            let over = next.is_err();
            if to.send(next).await.is_err() {
                return drain(&mut blocks.body).await;
            }
            if over {
                return;
            }
            next = match blocks.next().await {
                None => return,
                Some(block) => block.map_err(|trouble| io::Error::other(trouble.text)),
            };
        }
    };
    let ((), kept) = futures_util::future::join(sending, backend.keep_value(from)).await;
    let tree = kept.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => Trouble::new(507, exit::UNMET, error.to_string()),
        _ => Trouble::failed(error.to_string()),
    })?;
    let written = write(backend, who, writing, Some(Content::Blob(tree))).await;
    backend.let_go(tree);
    written
}

/// People make a namespace by writing to it; so does a service, of its own name.
fn may_create(who: &Who, address: &Address) -> bool {
    matches!(who, Who::Person) || who.is(&address.namespace)
}

async fn write(
    backend: &Rc<dyn AgentApi>,
    who: &Who,
    writing: Writing,
    content: Option<Content>,
) -> Reply {
    let (key, create) = (writing.key(), may_create(who, &writing.address));
    let Writing { address, expect, context, manner, seal } = writing;
    let question = ObjectQuestion::Put { address, content, expect, context, manner, create, seal };
    match ask(backend, question).await? {
        ObjectAnswer::Written { version, copies, wanted, context } => {
            let tag = (version > 0).then(|| format!("{version:016x}"));
            let told = json!({ "key": key, "version": tag, "copies": copies, "wanted": wanted });
            Ok(tagged(json_response(&told), version, context.as_ref()))
        }
        ObjectAnswer::Chosen { revision: at, members } => {
            let told = json!({ "key": key, "revision": at, "members": members });
            let mut response = json_response(&told);
            revision(&mut response, at);
            Ok(tagged(response, at, None))
        }
        other => Err(trouble(other, &key)),
    }
}

async fn list(backend: &Rc<dyn AgentApi>, who: &Who, namespace: &str, query: &Query) -> Reply {
    may_use(backend, who, namespace).await?;
    let text = |name: &str| {
        let raw = query.get(name).unwrap_or_default();
        percent_decode(raw).ok_or_else(|| Trouble::usage(format!("{name} is no UTF-8 text")))
    };
    let (prefix, after) = (text("prefix")?, text("after")?);
    let question = ObjectQuestion::List { namespace: namespace.to_owned(), prefix, after };
    match ask(backend, question).await? {
        ObjectAnswer::Listed { objects, more, complete } => {
            let next = objects.last().filter(|_| more).map(|last| last.path.clone());
            let objects: Vec<_> = objects.iter().map(|o| listed(namespace, o)).collect();
            Ok(whole(json_response(&json!({ "objects": objects, "next": next })), complete))
        }
        // A service that has written nothing yet.
        ObjectAnswer::Unknown(_) if who.is(namespace) => {
            Ok(json_response(&json!({ "objects": [], "next": null })))
        }
        other => Err(trouble(other, namespace)),
    }
}

fn listed(namespace: &str, object: &Listed) -> serde_json::Value {
    let stamp = Some(object.version).filter(|version| *version > 0);
    json!({
        "key": format!("{namespace}/{}", object.path),
        "version": stamp.map(|stamp| format!("{stamp:016x}")),
        "modified_unix_ms": stamp.map(dugnad_kernel::hlc::millis),
        "bytes": object.bytes,
        "values": object.values,
    })
}

async fn watch(backend: &Rc<dyn AgentApi>, address: Address, now: bool) -> Reply {
    let key = format!("{}/{}", address.namespace, address.path);
    let sealed = sealing(backend, &address, None).await?;
    let (hold, changes, first) = backend.changes(address).await.map_err(|a| trouble(a, &key))?;
    let first = futures_util::stream::iter(now.then(|| change(&key, &first, sealed.as_ref())));
    let state = (hold, changes, key, sealed);
    let later = futures_util::stream::unfold(state, async |(hold, changes, key, sealed)| {
        let answer = changes.recv().await.ok()?;
        Some((change(&key, &answer, sealed.as_ref()), (hold, changes, key, sealed)))
    });
    Ok(lines(first.chain(later)))
}

/// One line of `dugnad watch`.
fn change(key: &str, answer: &ObjectAnswer, sealed: Option<&Sealed>) -> serde_json::Value {
    let (values, version) = match answer {
        ObjectAnswer::Found { values, version, .. } => (values.as_slice(), *version),
        ObjectAnswer::Absent { version, .. } => (&[][..], *version),
        _ => (&[][..], 0),
    };
    let mut line = match values {
        [value] => shown(&value.content, sealed),
        _ => json!({}),
    };
    line["key"] = json!(key);
    line["version"] = json!((version > 0).then(|| format!("{version:016x}")));
    line["removed"] = json!(values.is_empty());
    line["values"] = json!(values.len());
    line
}

async fn sums(backend: &Rc<dyn AgentApi>) -> Reply {
    match ask(backend, ObjectQuestion::Sums).await? {
        ObjectAnswer::Sums { nodes, complete } => {
            Ok(whole(json_response(&nodes.iter().map(node).collect()), complete))
        }
        other => Err(trouble(other, "")),
    }
}

fn node(sums: &NodeSums) -> serde_json::Value {
    let all = sums.namespaces.iter();
    let namespaces: Vec<_> = all
        .map(|(name, keys, bytes)| json!({ "namespace": name, "keys": keys, "bytes": bytes }))
        .collect();
    json!({
        "node": sums.node.to_string(),
        "name": sums.name,
        "given_bytes": sums.given,
        "used_bytes": sums.record_bytes.saturating_add(sums.tree_bytes),
        "keys": sums.keys,
        "copies": sums.copies,
        "records": sums.records,
        "record_bytes": sums.record_bytes,
        "trees": sums.trees,
        "tree_bytes": sums.tree_bytes,
        "missing": sums.missing,
        "uncompared": sums.uncompared,
        "namespaces": namespaces,
    })
}

/// The services whose state is kept, and when the last snapshot was taken, in seconds since 1970;
/// as far as it can be known.
pub(super) async fn states(backend: &Rc<dyn AgentApi>) -> Vec<(String, u64)> {
    let (prefix, after) = (String::new(), String::new());
    let question = ObjectQuestion::List { namespace: STATE.to_owned(), prefix, after };
    let Ok(ObjectAnswer::Listed { objects, .. }) = ask(backend, question).await else {
        return Vec::new();
    };
    let mut states = Vec::new();
    for Listed { path, .. } in objects {
        let address = Address { namespace: STATE.to_owned(), path: path.clone() };
        let Ok(ObjectAnswer::Found { values, .. }) =
            ask(backend, ObjectQuestion::Get(address)).await
        else {
            continue;
        };
        if let Some(Content::Folder { note, .. }) = values.first().map(|value| &value.content) {
            let note: serde_json::Value = serde_json::from_slice(note).unwrap_or_default();
            states.extend(note["taken"].as_u64().map(|taken| (path, taken)));
        }
    }
    states
}
