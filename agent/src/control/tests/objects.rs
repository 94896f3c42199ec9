//! Objects over the control socket and the door of a service.

use dugnad_kernel::{Hash, hlc};
use dugnad_node::{
    Address, Content, Context, Expect, Listed, Manner, Namespace, NodeSums, ObjectAnswer,
    ObjectQuestion, Value,
};
use dugnad_resource::spec::Tree;
use hyper::body::Bytes;
use serde_json::json;
use smol::LocalExecutor;
use smol::channel::bounded;

use super::super::client::Bulk;
use super::super::*;
use super::{FakeAgent, with_agent};

const VERSION: u64 = hlc::stamp(1_767_225_600_000);

fn found(contents: &[&[u8]], context: Option<Context>) -> ObjectAnswer {
    let value =
        |content: &&[u8]| Value { content: Content::Inline(content.to_vec()), sources: Vec::new() };
    let version = if context.is_some() { 0 } else { VERSION };
    ObjectAnswer::Found {
        values: contents.iter().map(value).collect(),
        version,
        context,
        strong: false,
    }
}

/// A community that knows `notes/today` and few other keys.
pub(super) fn answer(question: ObjectQuestion) -> ObjectAnswer {
    match question {
        ObjectQuestion::Get(Address { namespace, path }) => match (&*namespace, &*path) {
            ("notes" | "wiki", "today") => found(&[b"hola"], None),
            ("votes", "a") => found(&[b"1", b"2"], Some(Context::default())),
            ("files", "big") => {
                let tree = Tree { root: Hash([4; 32]), bytes: 100_000 };
                let value = Value { content: Content::Blob(tree), sources: Vec::new() };
                ObjectAnswer::Found {
                    values: vec![value],
                    version: VERSION,
                    context: None,
                    strong: false,
                }
            }
            ("nowhere", _) => ObjectAnswer::Unknown("there is no namespace nowhere".to_owned()),
            _ => ObjectAnswer::Absent { version: 0, context: None },
        },
        ObjectQuestion::Put { address, content, expect, manner, .. } => {
            match (&*address.path, expect) {
                ("reg", Some(Expect::Version(7))) => {
                    ObjectAnswer::Lost { version: 9, strong: true }
                }
                ("reg", _) if manner == Some(Manner::Strong) => {
                    ObjectAnswer::Chosen { revision: 8, members: 3 }
                }
                ("reg", _) => ObjectAnswer::Unavailable { maybe: false },
                ("full", _) => ObjectAnswer::Unmet(vec!["the namespace is full".to_owned()]),
                ("locked", _) => ObjectAnswer::Refused("the namespace is read-only".to_owned()),
                (_, Some(Expect::Version(1))) => {
                    ObjectAnswer::Lost { version: VERSION, strong: false }
                }
                ("nothing", _) if content.is_none() => {
                    ObjectAnswer::Absent { version: 0, context: None }
                }
                _ => {
                    ObjectAnswer::Written { version: VERSION, copies: 2, wanted: 3, context: None }
                }
            }
        }
        ObjectQuestion::Check { .. } | ObjectQuestion::Watch(_) | ObjectQuestion::Unwatch(_) => {
            ObjectAnswer::Done
        }
        ObjectQuestion::List { after, .. } => {
            let listed = |path: &str| Listed {
                path: path.to_owned(),
                version: VERSION,
                bytes: 4,
                values: 1,
            };
            let first = after.is_empty();
            let path = if first { "a" } else { "b" };
            ObjectAnswer::Listed { objects: vec![listed(path)], more: first, complete: true }
        }
        ObjectQuestion::Namespace(name) => {
            let shared = vec!["wiki".to_owned()];
            ObjectAnswer::Namespace(Namespace { shared, ..Namespace::plain(&name) })
        }
        ObjectQuestion::Declare(namespace) if namespace.manner == Manner::Merge => {
            ObjectAnswer::Refused("that cannot change".to_owned())
        }
        ObjectQuestion::Declare(namespace) => ObjectAnswer::Namespace(namespace),
        ObjectQuestion::Sums => sums(),
        ObjectQuestion::Beside(_) => ObjectAnswer::Beside(Vec::new()),
    }
}

fn sums() -> ObjectAnswer {
    let namespaces = vec![("notes".to_owned(), 2, 8)];
    let one = NodeSums { keys: 2, copies: 2, namespaces, ..NodeSums::default() };
    let nodes = vec![one.clone(), NodeSums { keys: 0, missing: 1, ..one }];
    ObjectAnswer::Sums { nodes, complete: true }
}

async fn put(client: &Client, path: &str, value: &[u8], headers: &[(&'static str, &str)]) -> u8 {
    let (to, from) = bounded(4);
    to.send(Bytes::from(value.to_vec())).await.unwrap();
    drop(to);
    match client.write(path, headers, Some(from)).await {
        Ok(written) => {
            assert_eq!(written.value["copies"], 2);
            exit::DONE
        }
        Err(error) => error.exit(),
    }
}

async fn get(client: &Client, path: &str) -> Result<(Vec<u8>, Bulk), ClientError> {
    let mut bulk = client.read(path).await?;
    let mut all = Vec::new();
    while let Some(bytes) = bulk.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok((all, bulk))
}

#[test]
fn values_come_back_as_they_are_with_their_version() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let (value, bulk) = get(&client, "/v1/store/notes/today").await.unwrap();
        assert_eq!((value.as_slice(), bulk.several), (&b"hola"[..], false));
        assert_eq!(bulk.version, Some(format!("{VERSION:016x}")));
        let (value, bulk) = get(&client, "/v1/store/votes/a").await.unwrap();
        let values: serde_json::Value = serde_json::from_slice(&value).unwrap();
        assert!(bulk.several);
        assert_eq!(values, json!({"values": [{"text": "1"}, {"text": "2"}]}));
        for (path, code) in [
            ("/v1/store/notes/gone", exit::FAILED),
            ("/v1/store/nowhere/x", exit::FAILED),
            ("/v1/store/notes/../x", exit::USAGE),
            ("/v1/store/notes/%2e%2e", exit::USAGE),
            ("/v1/store/notes/a%00", exit::USAGE),
            ("/v1/store/Notes/x", exit::USAGE),
            ("/v1/store/notes/%ff", exit::USAGE),
        ] {
            let got = get(&client, path).await.map(drop).map_err(|error| error.exit());
            assert_eq!(got, Err(code), "{path}");
        }
        // Half of the bytes came: that is no value.
        assert!(get(&client, "/v1/store/files/big").await.is_err());
        assert!(agent.asked.borrow().iter().all(|asked| !asked.contains("..")));
    });
}

#[test]
fn writes_say_what_became_of_them() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        assert_eq!(put(&client, "/v1/store/notes/a%20b", b"x", &[]).await, exit::DONE);
        let asked = agent.asked.borrow().last().cloned().unwrap();
        assert!(asked.contains("\"a b\"") && asked.contains("Inline([120])"), "{asked}");
        assert_eq!(put(&client, "/v1/store/notes/full", b"x", &[]).await, exit::UNMET);
        assert_eq!(put(&client, "/v1/store/notes/locked", b"x", &[]).await, exit::REFUSED);
        let one = format!("\"{:016x}\"", 1);
        let stale = [("if-match", one.as_str())];
        assert_eq!(put(&client, "/v1/store/notes/x", b"x", &stale).await, exit::FAILED);
        let odd = [("if-match", "yesterday")];
        assert_eq!(put(&client, "/v1/store/notes/x", b"x", &odd).await, exit::USAGE);
        let strange = [("dugnad-context", "zz")];
        assert_eq!(put(&client, "/v1/store/notes/x", b"x", &strange).await, exit::USAGE);
        let gone = client.write("/v1/store/notes/nothing", &[], None).await.unwrap_err();
        assert_eq!(gone.exit(), exit::FAILED);
        assert!(client.write("/v1/store/notes/today", &[], None).await.is_ok());
        // A long one goes to disk before it is spoken of, and is let go where it came in.
        assert_eq!(put(&client, "/v1/store/files/big", &[7; 9_000], &[]).await, exit::DONE);
        let asked = agent.asked.borrow().clone();
        let last: Vec<&str> = asked[asked.len() - 3..].iter().map(String::as_str).collect();
        assert!(last[0].contains("Check") && last[1].contains("Blob"), "{last:?}");
        assert_eq!(last[2], "let go 9000");
    });
}

#[test]
fn a_watch_gives_a_line_a_change_and_ends_with_its_reader() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let mut lines = client.get_lines("/v1/store/notes/today?watch=now").await.unwrap();
        for (text, removed) in
            [(json!("first"), false), (json!("today"), false), (json!(null), true)]
        {
            let line = lines.next().await.unwrap().unwrap();
            assert_eq!((&line["text"], &line["removed"]), (&text, &json!(removed)));
        }
        assert_eq!(agent.held.get(), 1);
        drop(lines);
        let mut later = client.get_lines("/v1/store/notes/today?watch=1").await.unwrap();
        assert_eq!(later.next().await.unwrap().unwrap()["text"], "today");
    });
}

/// A service has its own namespace, and another if its file names it and that is shared with it.
#[test]
fn a_service_sees_what_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let ex = std::rc::Rc::new(LocalExecutor::new());
    let agent = std::rc::Rc::new(FakeAgent::new(dir.path().join("staging")));
    let open = |name: &str, namespaces: &[&str]| {
        let socket = dir.path().join(format!("{name}.sock"));
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let who = Who::Service { name: name.to_owned(), namespaces };
        let backend = std::rc::Rc::clone(&agent) as std::rc::Rc<dyn AgentApi>;
        let ex = std::rc::Rc::clone(&ex);
        (ServiceDoor::open(ex, socket.clone(), None, who, backend).unwrap(), Client::new(socket))
    };
    let (_wiki_door, wiki) = open("wiki", &["notes"]);
    let (_other_door, other) = open("other", &["notes"]);
    smol::block_on(ex.run(async {
        assert!(get(&wiki, "/v1/store/wiki/today").await.is_ok());
        assert!(get(&wiki, "/v1/store/notes/today").await.is_ok());
        let code = |got: Result<(Vec<u8>, Bulk), ClientError>| got.map(drop).map_err(|e| e.exit());
        assert_eq!(code(get(&wiki, "/v1/store/other/today").await), Err(exit::REFUSED));
        assert_eq!(code(get(&other, "/v1/store/notes/today").await), Err(exit::REFUSED));
        assert_eq!(put(&other, "/v1/store/notes/today", b"x", &[]).await, exit::REFUSED);
        let own = wiki.get("/v1/store").await.unwrap().value;
        assert_eq!(own["objects"][0]["key"], "wiki/a", "a list of its own, not of the nodes");
        assert!(wiki.put("/v1/namespaces/notes", &json!({})).await.is_err());
        for _ in 0..120 {
            put(&wiki, "/v1/store/wiki/x", b"x", &[]).await;
        }
        assert_eq!(put(&wiki, "/v1/store/wiki/x", b"x", &[]).await, exit::REFUSED, "too fast");
    }));
}
