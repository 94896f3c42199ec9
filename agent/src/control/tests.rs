#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use dugnad_kernel::Hash;
use dugnad_resource::spec;
use serde_json::json;
use smol::LocalExecutor;

use super::*;
use crate::places::Places;

mod fake;
mod objects;
mod samples;
pub(crate) use fake::{FakeAgent, status_value};

/// Runs `test` against a fake agent on a socket in a folder of its own, for 20 s at most.
pub(crate) fn with_agent<F: Future<Output = ()>>(test: impl FnOnce(PathBuf, Rc<FakeAgent>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let agent = Rc::new(FakeAgent::new(dir.path().join("staging")));
    let socket = dir.path().join("dugnad.sock");
    let backend = Rc::clone(&agent) as Rc<dyn AgentApi>;
    let control =
        Control::start(Rc::clone(&ex), socket.clone(), 0o660, Places::new(32, 32), backend)
            .unwrap();
    let late = async {
        smol::Timer::after(Duration::from_secs(20)).await;
        panic!("the test took more than 20 s");
    };
    smol::block_on(ex.run(smol::future::or(test(socket.clone(), agent), late)));
    drop(control);
    assert!(!socket.exists(), "the socket's file stays behind");
}

#[test]
fn questions_are_answered_in_the_shapes_scripts_rely_on() {
    with_agent(|socket, _| async move {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let client = Client::new(socket);
        let status = client.get("/v1/status").await.unwrap().value;
        for key in ["node", "name", "community", "state", "version", "arch", "memory_bytes"] {
            assert!(status.get(key).is_some(), "{key}");
        }
        assert_eq!(status["node"], "01000000000000000000000000000000");
        let me = client.get("/v1/whoami").await.unwrap().value;
        let told = ["node", "name", "community", "version"].map(|key| (&me[key], &status[key]));
        assert!(told.iter().all(|(mine, all)| mine == all && !mine.is_null()), "{me}");
        assert_eq!(me.as_object().unwrap().len(), 4);
        let nodes = client.get("/v1/nodes").await.unwrap().value;
        let states: Vec<_> = nodes.as_array().unwrap().iter().map(|n| n["state"].clone()).collect();
        assert_eq!(states, ["alive", "suspect", "gone"]);
        assert_eq!((&nodes[0]["name"], &nodes[0]["arch"]), (&json!("attic"), &json!("aarch64")));
        assert_eq!((&nodes[0]["link"], &nodes[2]["link"]), (&json!("direct"), &json!("none")));
        let ps = client.get("/v1/ps").await.unwrap();
        assert!(!ps.complete);
        let wiki = &ps.value[0];
        assert_eq!(wiki["service"], "wiki");
        assert_eq!(
            (&wiki["version"], &wiki["want"], &wiki["ready"]),
            (&json!(7), &json!(3), &json!(1))
        );
        let replica = json!({"replica": 1, "node": "00000000000000000000000000000002",
            "node_name": "kjøkken", "state": "starting", "note": ""});
        assert_eq!(wiki["replicas"][1], replica);
        assert_eq!(wiki["replicas"][2]["state"], "lost");
    });
}

#[test]
fn what_does_not_work_arrives_with_its_exit_code() {
    with_agent(|socket, _| async move {
        let client = Client::new(socket);
        let code = |error: ClientError| (error.exit(), error.to_string());
        let digits = "000000000000000000000000000000aa";
        let found = client.get(&format!("/v1/lookup/{digits}")).await.unwrap().value;
        assert_eq!(
            found,
            json!({"owner": digits, "owner_name": "attic", "hops": 2, "certain": true,
                   "micros": 1234})
        );
        let by_name = client.get("/v1/lookup/wiki").await.unwrap().value;
        assert_eq!(by_name["owner"], spec::key_of("wiki").to_string());
        let error = client.get("/v1/lookup/Wiki").await.unwrap_err();
        assert_eq!(error.exit(), exit::USAGE);
        for wrong in [json!(""), json!("two\nlines"), json!("x".repeat(201)), json!(7)] {
            let error = client.post("/v1/announce", Some(&wrong)).await.unwrap_err();
            assert_eq!(error.exit(), exit::USAGE, "{wrong}");
        }
        client.post("/v1/announce", Some(&json!("reboot at eight"))).await.unwrap();
        let unknown = client.get("/v1/why/blog").await.unwrap_err();
        let text = "no service is called \"blog\" here; see: dugnad ps".to_owned();
        assert_eq!(code(unknown), (exit::FAILED, text));
        let reasons = vec!["a".to_owned(), "b".to_owned()];
        let text = "it cannot be met now".to_owned();
        let unmet = ClientError::Answer { exit: exit::UNMET, text, reasons };
        assert_eq!(client.post("/v1/stop/wiki", None).await.unwrap_err(), unmet);
        let error = client.post("/v1/leave", None).await.unwrap_err();
        assert_eq!(error.exit(), exit::UNMET);
        client.post("/v1/leave?now=1", None).await.unwrap();
        let error = client.get("/v1/why/..%2fx").await.unwrap_err();
        assert_eq!(error.exit(), exit::USAGE);
        let error = client.post("/v1/plan", Some(&json!({"name": 1}))).await.unwrap_err();
        assert!(error.to_string().starts_with("this is no spec: "), "{error}");
        let error = client.post("/v1/plan", Some(&json!("x".repeat(600 << 10)))).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot read the spec: "), "{error}");
        assert_eq!(client.get("/nowhere").await.unwrap_err().to_string(), "nothing is at /nowhere");
        let nobody = Client::new(PathBuf::from("/nonexistent/dugnad.sock"));
        let error = nobody.get("/v1/status").await.unwrap_err();
        let text = "no agent answers at /nonexistent/dugnad.sock".to_owned();
        assert_eq!(code(error), (exit::NO_AGENT, text));
    });
}

#[test]
fn folders_are_stored_and_nothing_stays_behind() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index.html"), "hi").unwrap();
        std::fs::write(folder.path().join("big"), vec![1; 700 << 10]).unwrap();
        let tree = client.ingest(folder.path(), Default::default()).await.unwrap();
        assert_eq!(tree, Tree { root: Hash([3; 32]), bytes: 9 });
        assert_eq!(*agent.files.borrow(), ["big", "index.html"]);
        std::fs::write(folder.path().join("more"), vec![1; 700 << 10]).unwrap();
        let error = client.ingest(folder.path(), Default::default()).await.unwrap_err();
        assert_eq!(error.exit(), exit::UNMET);
        assert_eq!(error.to_string(), "the folder is larger than the 1M this node has room for");
        let error =
            client.ingest(&folder.path().join("none"), Default::default()).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Own(text) if text.contains("No such file")),
            "{error}"
        );
        // Removing runs on the blocking pool; wait for it there.
        let empty = smol::unblock({
            let staging = agent.staging.clone();
            move || {
                (0..10_000).any(|_| {
                    std::thread::yield_now();
                    std::fs::read_dir(&staging).is_ok_and(|mut entries| entries.next().is_none())
                })
            }
        });
        assert!(empty.await);
    });
}

pub(crate) fn small_spec() -> Value {
    json!({
        "name": "wiki", "kind": "Process", "want": {"Replicas": 3}, "command": ["/bin/true"],
        "env": [], "artifacts": [], "needs": {"memory": 1, "cpu": 1, "disk": 1, "processes": 1},
        "port": "None",
        "health": {"check": "Port", "interval_ms": 1000, "timeout_ms": 1000, "failures": 3},
        "stop_grace_ms": 10, "state": "Nothing"
    })
}

#[test]
fn a_deploy_tells_its_progress_and_then_its_result() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let mut lines = client.post_lines("/v1/deploy", &small_spec()).await.unwrap();
        let first = lines.next().await.unwrap().unwrap();
        assert_eq!(first["progress"]["text"], "replica 0 started");
        let last = lines.next().await.unwrap().unwrap();
        assert_eq!(last["result"]["service"]["ready"], 3);
        assert_eq!(last["result"]["missing"], json!([]));
        assert_eq!(lines.next().await.unwrap(), None);
        assert!(agent.asked.borrow()[0].starts_with("Service(Deploy("));
    });
}

#[test]
fn bytes_go_to_a_replica_and_back() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let (to, there) = smol::channel::bounded(4);
        let path = "/v1/connect/wiki?which=zone%3Db%20cores%3E1";
        let connecting = client.connect(path, there);
        let piece = hyper::body::Bytes::from_static(b"GET / HTTP/1.0\r\n");
        to.send(piece.clone()).await.unwrap();
        let mut back = connecting.await.unwrap();
        assert_eq!(back.next().await.unwrap(), Some(piece));
        let long = hyper::body::Bytes::from(vec![7; 1 << 20]);
        let sending = async { to.send(long.clone()).await.unwrap() };
        let reading = async {
            let mut read = 0;
            while read < long.len() {
                read += back.next().await.unwrap().unwrap().len();
            }
            read
        };
        let ((), read) = futures_util::future::join(sending, reading).await;
        assert_eq!(read, long.len());
        // The end of what is said ends what comes back.
        drop(to);
        assert_eq!(back.next().await.unwrap(), None);
        assert!(agent.asked.borrow()[0].starts_with("connect wiki Where("));
        for (path, exit, part) in [
            ("/v1/connect/blog", exit::UNMET, "no service"),
            ("/v1/connect/wiki?which=zne%3D1", exit::USAGE, "zne"),
            ("/v1/connect/b..g", exit::USAGE, "no service"),
        ] {
            let (to, there) = smol::channel::bounded(1);
            drop(to);
            let error = client.connect(path, there).await.err().unwrap();
            assert_eq!(error.exit(), exit, "{path}: {error}");
            assert!(error.to_string().contains(part), "{path}: {error}");
        }
    });
}

#[test]
fn lines_are_followed_until_the_reader_goes() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let mut logs = client.get_lines("/v1/logs/wiki?tail=5").await.unwrap();
        assert_eq!(
            logs.next().await.unwrap(),
            Some(json!({"replica": 2, "line": "tail 5 follow false"}))
        );
        assert_eq!(logs.next().await.unwrap(), None);
        assert_eq!(client.get_lines("/v1/logs/blog").await.err().unwrap().exit(), exit::FAILED);
        let mut events = client.get_lines("/v1/events?follow=1").await.unwrap();
        assert_eq!(events.next().await.unwrap().unwrap()["text"], "kept");
        let follower = agent.followers.borrow()[0].clone();
        follower.send(json!({"text": "later"})).await.unwrap();
        assert_eq!(events.next().await.unwrap(), Some(json!({"text": "later"})));
        drop(events);
        // The agent sees it without having to send anything.
        follower.closed().await;
    });
}

#[test]
fn metrics_and_health_are_plain_text() {
    with_agent(|socket, _| async move {
        let text = smol::unblock(move || {
            use std::io::{Read, Write};
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n\
                GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .await;
        assert!(
            text.contains("# TYPE dugnad_retries_total counter\ndugnad_retries_total 2\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\n\r\nok\n"), "{text}");
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    // Deeper than a socket address can say.
    let deep = dir.path().join("d".repeat(60)).join("e".repeat(60));
    let path = deep.join("dugnad.sock");
    let first = socket::bind(&path, 0o660).unwrap();
    assert!(socket::connect(&path).is_ok());
    let error = socket::bind(&path, 0o660).unwrap_err().to_string();
    assert_eq!(error, format!("{}: an agent already answers here", path.display()));
    drop(first);
    assert_eq!(socket::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let _second = socket::bind(&path, 0o660).unwrap();
    assert!(socket::connect(&path).is_ok());
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let error = socket::bind(&plain, 0o660).unwrap_err().to_string();
    assert_eq!(error, format!("{}: there is something that is no socket", plain.display()));
    assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 1, "only the socket is left");
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing_and_more_than_two_wait() {
    with_agent(|socket, agent| async move {
        use smol::io::{AsyncReadExt, AsyncWriteExt};
        let open = async || {
            let mut stream = smol::net::unix::UnixStream::connect(&socket).await.unwrap();
            let head = b"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
            stream.write_all(head).await.unwrap();
            stream
        };
        let (one, two) = (open().await, open().await);
        // Both are being unpacked as soon as their folders are there.
        let staging = agent.staging.clone();
        let count = move || std::fs::read_dir(&staging).map_or(0, Iterator::count);
        while count() < 2 {
            smol::future::yield_now().await;
        }
        let mut three = open().await;
        let mut answer = vec![0; 12];
        three.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 503");
        drop((one, two, three));
        while count() > 0 {
            smol::future::yield_now().await;
        }
    });
}

/// Waits until so many memberships are held; whoever listens holds one.
async fn held(agent: &FakeAgent, count: usize) {
    for _ in 0..500 {
        if agent.held.get() == count {
            return;
        }
        smol::Timer::after(Duration::from_millis(10)).await;
    }
    panic!("{} memberships are held, not {count}", agent.held.get());
}

#[test]
fn a_listener_is_a_member_while_it_listens() {
    with_agent(|socket, agent| async move {
        let client = Client::new(socket);
        let list = client.get("/v1/groups").await.unwrap().value;
        assert_eq!((&list[0]["group"], &list[0]["members"]), (&json!("choir"), &json!(3)));
        let mut lines = client.get_lines("/v1/groups/choir/messages").await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap()["text"], "hello");
        held(&agent, 1).await;
        drop(lines);
        held(&agent, 0).await;
        let error = client.get_lines("/v1/groups/nowhere/messages").await.err().unwrap();
        assert_eq!(error.to_string(), "there is no group nowhere");
        client.post_bytes("/v1/groups/choir/send", b"\xff\x00".to_vec()).await.unwrap();
        let sent = agent.asked.borrow().last().cloned().unwrap();
        assert!(sent.contains("Send") && sent.contains("[255, 0]"), "{sent}");
        let large =
            client.post_bytes("/v1/groups/choir/send", vec![0; 20 << 10]).await.unwrap_err();
        assert_eq!(large.exit(), exit::USAGE);
        assert_eq!(client.get("/v1/groups/x/y").await.unwrap_err().exit(), exit::USAGE);
    });
}

/// What a service may do at its own door, and that it ends with the door.
#[test]
fn the_door_of_a_service_is_narrow() {
    let dir = tempfile::tempdir().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let agent = Rc::new(FakeAgent::new(dir.path().join("staging")));
    let socket = dir.path().join("service.sock");
    let backend = Rc::clone(&agent) as Rc<dyn AgentApi>;
    let who = Who::Service { name: "wiki".to_owned(), namespaces: Vec::new() };
    let door = ServiceDoor::open(Rc::clone(&ex), socket.clone(), None, who, backend).unwrap();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    smol::block_on(ex.run(async {
        let client = Client::new(socket.clone());
        let list = client.get("/v1/groups").await.unwrap().value;
        assert_eq!(list, json!([]), "it joined none");
        for name in ["choir", "b", "c", "d"] {
            client.post(&format!("/v1/groups/{name}/join"), None).await.unwrap();
        }
        // Twice is once.
        client.post("/v1/groups/choir/join", None).await.unwrap();
        assert_eq!(agent.held.get(), 4);
        let more = client.post("/v1/groups/e/join", None).await.unwrap_err();
        assert_eq!(more.exit(), exit::REFUSED);
        let list = client.get("/v1/groups").await.unwrap().value;
        assert_eq!(list.as_array().unwrap().len(), 1);
        client.post("/v1/groups/b/leave", None).await.unwrap();
        assert_eq!(agent.held.get(), 3);
        let mut lines = client.get_lines("/v1/groups/choir/messages").await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap()["text"], "hello");
        for path in ["/v1/status", "/v1/ps", "/v1/nodes", "/v1/events", "/metrics"] {
            assert_eq!(client.get(path).await.unwrap_err().exit(), exit::USAGE, "{path}");
        }
        for path in ["/v1/leave", "/v1/stop/wiki", "/v1/groups/choir/create"] {
            assert_eq!(client.post(path, None).await.unwrap_err().exit(), exit::USAGE, "{path}");
        }
        let mut refused = 0;
        for _ in 0..100 {
            let sent = client.post_bytes("/v1/groups/choir/send", b"x".to_vec()).await;
            refused += usize::from(sent.is_err_and(|error| error.exit() == exit::REFUSED));
        }
        assert!(refused > 0, "a service may send as much as it likes");
        drop(door);
        held(&agent, 0).await;
        assert!(!socket.exists());
    }));
}
