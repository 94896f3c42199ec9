//! `/v1/namespaces`: how the objects of a namespace are kept, and the keys of sealed ones.
//!
//! | endpoint | does |
//! |---|---|
//! | `GET /v1/namespaces/NAME` | how it is kept; `seal` names its key, `key_here`: it is here |
//! | `PUT` there, the same JSON | keeps it so; `"sealed": true` makes a new one with a key |
//! | `GET /v1/namespaces/NAME/key` | the key, as this node has it |
//! | `PUT` there, `{"key": "..."}` | this node has the key from now on |

use std::io;
use std::rc::Rc;

use dugnad_node::{Manner, Namespace, ObjectAnswer, ObjectQuestion, Seal};
use dugnad_resource::spec::valid_name;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::{Value, json};

use super::http::{Reply, json_response};
use super::shape::Trouble;
use super::store::{ask, trouble};
use super::{AgentApi, exit};
use crate::seal::{Keys, Secret};

/// Bytes of the description of a namespace.
const NAMESPACE_MAX: usize = 16 << 10;

/// A request below `/v1/namespaces`.
pub(super) async fn route(
    backend: &Rc<dyn AgentApi>,
    path: &str,
    request: Request<Incoming>,
) -> Reply {
    let (name, key) = match path.split_once('/') {
        None => (path, false),
        Some((name, "key")) => (name, true),
        Some(_) => return Err(Trouble::new(404, exit::USAGE, "there is nothing at this path")),
    };
    valid_name(name).map_err(|_| not_a_name())?;
    match (request.method().clone(), key) {
        (Method::GET, false) => tell(backend, declared(backend, name).await?).await,
        (Method::PUT, false) => {
            let said = read(request).await?;
            declare(backend, name, &said).await
        }
        (Method::GET, true) => show_key(backend, name).await,
        (Method::PUT, true) => {
            let said = read(request).await?;
            take_key(backend, name, &said).await
        }
        _ => Err(Trouble::new(405, exit::USAGE, "only GET and PUT are known")),
    }
}

fn not_a_name() -> Trouble {
    Trouble::usage(
        "a namespace has 1 to 48 lower-case letters, digits and '-', is shared with at most 32 \
         services, and is not sealed if it is the agents' own",
    )
}

fn failed(error: &io::Error) -> Trouble {
    Trouble::failed(error.to_string())
}

async fn declared(backend: &Rc<dyn AgentApi>, name: &str) -> Result<Namespace, Trouble> {
    match ask(backend, ObjectQuestion::Namespace(name.to_owned())).await? {
        ObjectAnswer::Namespace(namespace) => Ok(namespace),
        other => Err(trouble(other, name)),
    }
}

/// The key this node has.
async fn key(keys: Keys, name: &str) -> Result<Option<Secret>, Trouble> {
    let name = name.to_owned();
    smol::unblock(move || keys.get(&name)).await.map_err(|error| failed(&error))
}

async fn tell(backend: &Rc<dyn AgentApi>, namespace: Namespace) -> Reply {
    let mut told = json!({
        "namespace": namespace.name,
        "merge": namespace.manner == Manner::Merge,
        "strong": namespace.manner == Manner::Strong,
        "read_only": namespace.read_only,
        "quota_bytes": namespace.quota,
        "shared": namespace.shared,
    });
    if let Some(seal) = namespace.seal {
        let key = key(backend.keys(), &namespace.name).await?;
        told["seal"] = json!(hex(seal));
        told["key_here"] = json!(key.is_some_and(|key| key.seal() == seal));
    }
    Ok(json_response(&told))
}

fn hex(seal: Seal) -> String {
    format!("{:016x}", u64::from_be_bytes(seal.0))
}

async fn read(request: Request<Incoming>) -> Result<Value, Trouble> {
    let body = Limited::new(request.into_body(), NAMESPACE_MAX).collect().await;
    let body = body.map_err(|error| Trouble::usage(format!("cannot read it: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Trouble::usage(format!("this is no JSON: {error}")))
}

async fn declare(backend: &Rc<dyn AgentApi>, name: &str, said: &Value) -> Reply {
    let plain = Namespace::plain(name);
    let shared = said["shared"].as_array().into_iter().flatten();
    let seal = match said["seal"].as_str() {
        Some(hex) => Some(
            u64::from_str_radix(hex, 16)
                .map(|seal| Seal(seal.to_be_bytes()))
                .map_err(|_| Trouble::usage("\"seal\" is 16 hexadecimal digits"))?,
        ),
        None => None,
    };
    let mut namespace = Namespace {
        manner: match (&said["merge"], &said["strong"]) {
            (_, Value::Bool(true)) => Manner::Strong,
            (Value::Bool(true), _) => Manner::Merge,
            _ => Manner::Last,
        },
        read_only: said["read_only"] == true,
        quota: said["quota_bytes"].as_u64().unwrap_or(plain.quota),
        shared: shared.filter_map(|service| service.as_str().map(str::to_owned)).collect(),
        seal,
        ..plain
    };
    // Its key is on disk before anybody can write a value that needs it.
    let mut new = None;
    if said["sealed"] == true && seal.is_none() {
        let (keys, name) = (backend.keys(), name.to_owned());
        let made = smol::unblock(move || fresh(&keys, &name)).await;
        let (secret, is_new) = made.map_err(|error| failed(&error))?;
        namespace.seal = Some(secret.seal());
        new = is_new.then(|| backend.keys());
    }
    if !namespace.fits() {
        return Err(not_a_name());
    }
    let wanted = namespace.seal;
    let answer = match ask(backend, ObjectQuestion::Declare(namespace)).await? {
        ObjectAnswer::Namespace(namespace) if namespace.seal == wanted => {
            return tell(backend, namespace).await;
        }
        ObjectAnswer::Namespace(_) => {
            let text = format!("namespace {name} was made by somebody else just now");
            Trouble::new(403, exit::REFUSED, text)
        }
        other => trouble(other, name),
    };
    if let Some(keys) = new.filter(|_| answer.exit == exit::REFUSED) {
        let name = name.to_owned();
        smol::unblock(move || keys.forget(&name)).await.map_err(|error| failed(&error))?;
    }
    Err(answer)
}

/// The key of this name, and whether it was made now.
fn fresh(keys: &Keys, name: &str) -> io::Result<(Secret, bool)> {
    if let Some(secret) = keys.get(name)? {
        return Ok((secret, false));
    }
    let secret = Secret::create()?;
    keys.put(name, &secret)?;
    Ok((secret, true))
}

async fn show_key(backend: &Rc<dyn AgentApi>, name: &str) -> Reply {
    match key(backend.keys(), name).await? {
        Some(secret) => Ok(json_response(&json!({ "namespace": name, "key": secret.text() }))),
        None => {
            let text = format!("this node has no key of a namespace {name}");
            Err(Trouble::new(404, exit::FAILED, text))
        }
    }
}

async fn take_key(backend: &Rc<dyn AgentApi>, name: &str, said: &Value) -> Reply {
    let secret = said["key"].as_str().and_then(Secret::parse);
    let secret = secret.ok_or_else(|| Trouble::usage("a key is 64 hexadecimal digits"))?;
    let namespace = declared(backend, name).await?;
    match namespace.seal {
        Some(seal) if seal == secret.seal() => {}
        Some(_) => {
            let text = format!("this is not the key of namespace {name}");
            return Err(Trouble::new(403, exit::REFUSED, text));
        }
        None => {
            let text = format!("namespace {name} is not sealed: it needs no key");
            return Err(Trouble::new(403, exit::REFUSED, text));
        }
    }
    let (keys, at) = (backend.keys(), name.to_owned());
    smol::unblock(move || keys.put(&at, &secret)).await.map_err(|error| failed(&error))?;
    tell(backend, namespace).await
}
