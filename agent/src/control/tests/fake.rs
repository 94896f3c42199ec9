//! An agent that answers at once, for tests of the sockets and of the command line.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{Hash, Id, Peer};
use dugnad_node::{
    Brief, Content, Cost, GroupMode, GroupPolicy, GroupQuestion, GroupView, NodeState,
    ProspectAnswer, ProspectQuestion, ServiceQuestion, Status,
};
use dugnad_resource::describe::Description;
use dugnad_resource::spec::Arch;
use serde_json::json;
use smol::channel::Sender;

use super::super::*;
use super::objects;
use super::samples::{AMOUNTS, node, plan, wiki};
use crate::places::Places;

/// An agent of three nodes that knows the service "wiki" and answers at once.
pub(crate) struct FakeAgent {
    pub(crate) staging: PathBuf,
    pub(crate) asked: RefCell<Vec<String>>,
    /// Followers of events.
    pub(crate) followers: RefCell<Vec<Sender<Value>>>,
    /// Missing at the end of a deploy.
    pub(crate) missing: RefCell<Vec<String>>,
    pub(crate) files: RefCell<Vec<String>>,
    /// Memberships that are held now.
    pub(crate) held: Rc<Cell<usize>>,
}

impl FakeAgent {
    pub(crate) fn new(staging: PathBuf) -> Self {
        Self {
            staging,
            asked: RefCell::default(),
            followers: RefCell::default(),
            missing: RefCell::default(),
            files: RefCell::default(),
            held: Rc::default(),
        }
    }

    fn tell(&self, text: &str) {
        self.followers.borrow_mut().retain(|follower| !follower.is_closed());
        for follower in self.followers.borrow().iter() {
            let event = json!({"service": "wiki", "text": text, "node_name": "attic"});
            follower.try_send(event).unwrap();
            follower.try_send(json!({"service": "other", "text": "no"})).unwrap();
        }
    }

    fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Service(question) => self.service(question),
            Question::Group(GroupQuestion::List) => Answer::Groups(vec![GroupView {
                name: "choir".to_owned(),
                mode: GroupMode::Mesh,
                policy: GroupPolicy::Open,
                epoch: 1,
                members: 3,
                joined: true,
                kept: true,
                listeners: 2,
                delivered: 7,
            }]),
            Question::Group(GroupQuestion::Send { name, .. }) if name == "nowhere" => {
                Answer::Failed("there is no group nowhere".to_owned())
            }
            Question::Group(_) => Answer::Done,
            Question::Object(question) => Answer::Object(objects::answer(question)),
            Question::Events(_) => Answer::Events(EventAnswer::Unavailable),
            Question::Prospect(question) => Answer::Prospect(prospected(&question)),
            Question::Lookup(key) => Answer::Found {
                owner: key,
                owner_name: "attic".to_owned(),
                hops: 2,
                certain: true,
                took: Duration::from_micros(1_234),
            },
            Question::Announce(text) => {
                self.tell(&text);
                Answer::Done
            }
        }
    }

    fn service(&self, question: ServiceQuestion) -> Answer {
        match question {
            ServiceQuestion::Nodes => Answer::Nodes(vec![
                node(1, Some("attic"), NodeState::Alive),
                node(2, Some("kjøkken"), NodeState::Suspect),
                node(3, None, NodeState::Gone),
            ]),
            ServiceQuestion::Plan(_) => Answer::Plan(plan()),
            ServiceQuestion::Deploy(spec) => {
                self.tell("replica 0 started");
                assert!(spec.check().is_ok());
                let missing = self.missing.borrow().clone();
                let ready = if missing.is_empty() { 3 } else { 1 };
                Answer::Deployed { service: wiki(ready), missing }
            }
            ServiceQuestion::Ps => Answer::Ps { services: vec![wiki(1)], complete: false },
            ServiceQuestion::Why(name) if name == "wiki" => {
                Answer::Why(vec!["it was asked for".to_owned()])
            }
            ServiceQuestion::Resolve(_) => Answer::Resolved(wiki(3)),
            ServiceQuestion::Stop(name) if name == "wiki" => {
                Answer::Unmet(vec!["a".to_owned(), "b".to_owned()])
            }
            ServiceQuestion::Remove(name) if name == "wiki" => Answer::Done,
            ServiceQuestion::Restart(name) | ServiceQuestion::Scale(name, _) if name == "wiki" => {
                Answer::Deployed { service: wiki(3), missing: Vec::new() }
            }
            ServiceQuestion::RollBack(name) if name == "wiki" => {
                Answer::Deployed { service: wiki(3), missing: Vec::new() }
            }
            ServiceQuestion::RollBack(name) if name == "theirs" => {
                Answer::Conflict("node 1A2B was first".to_owned())
            }
            ServiceQuestion::RemoveButState(name) if name == "wiki" => Answer::Done,
            ServiceQuestion::Ports
            | ServiceQuestion::Why(_)
            | ServiceQuestion::Stop(_)
            | ServiceQuestion::Remove(_)
            | ServiceQuestion::RemoveButState(_)
            | ServiceQuestion::RollBack(_)
            | ServiceQuestion::Restart(_)
            | ServiceQuestion::Scale(..) => Answer::Unknown,
        }
    }
}

/// One node that has what is asked for, or none.
fn prospected(question: &ProspectQuestion) -> ProspectAnswer {
    let took = dugnad_kernel::Duration::from_micros(2_300);
    let cost = Cost { asked: 3, messages: 4, took, complete: true, sample_age: 0 };
    let mut profile = node(1, Some("attic"), NodeState::Alive).profile.unwrap();
    profile.machine.cores = 4;
    profile.labels.tags = vec!["solar".to_owned()];
    let attic = Description {
        peer: Peer::new(Id(1)),
        profile,
        free: AMOUNTS,
        gives: AMOUNTS,
        takes_work: true,
        up_secs: 90,
        replicas: 1,
        holds: Vec::new(),
        programs: Vec::new(),
        availability: Default::default(),
    };
    match question {
        ProspectQuestion::Census => {
            ProspectAnswer::Census { nodes: vec![Brief::of(&attic); 3], cost }
        }
        ProspectQuestion::Check { nodes, .. } => ProspectAnswer::Checked(nodes.clone()),
        ProspectQuestion::Find { condition, .. } => {
            let meets = condition.matches(attic.attributes().as_slice());
            ProspectAnswer::Found { nodes: meets.then_some(attic).into_iter().collect(), cost }
        }
    }
}

pub(crate) fn status_value() -> Value {
    let status = Status {
        me: Peer::new(Id(1 << 120)),
        state: "member",
        predecessor: Some(Id(3)),
        successors: vec![NodeId::default()],
        size: 3,
        ceilings: Ceilings { amounts: AMOUNTS, upload: None },
        promised: Amounts { memory: 64 << 20, cpu: 100, disk: 0, processes: 16 },
        replicas: Vec::new(),
        managed: vec!["wiki".to_owned()],
        records: 4,
        trees: Vec::new(),
        operations: Vec::new(),
        counters: vec![("retries", 2)],
    };
    let facts = shape::Facts {
        services: vec![],
        running: vec![],
        seeds: vec![],
        name: "attic".to_owned(),
        community: "els-veins".to_owned(),
        version: "0.1.0",
        arch: Arch::Aarch64,
        memory_bytes: 4 << 20,
        up_secs: 61,
        overlay: "0.0.0.0:7407".to_owned(),
        gateway: Some("127.0.0.1:7480".to_owned()),
        not_enforced: vec!["policy.network = \"members\"".to_owned()],
        warnings: Vec::new(),
        frames: shape::FramesByKind::default(),
        kept_state: Vec::new(),
        limits: vec![("HTTP connections", "client address", Places::<()>::new(4, 2).now())],
    };
    shape::status(&status, &facts)
}

impl AgentApi for FakeAgent {
    fn status(&self) -> Value {
        status_value()
    }

    fn ask(&self, question: Question) -> Local<Answer> {
        self.asked.borrow_mut().push(format!("{question:?}"));
        let answer = self.answer(question);
        Box::pin(async { answer })
    }

    fn staging(&self) -> (PathBuf, u64) {
        (self.staging.clone(), 1 << 20)
    }

    fn ingest(&self, folder: PathBuf) -> Local<io::Result<Tree>> {
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        self.files.borrow_mut().extend(names);
        Box::pin(async { Ok(Tree { root: Hash([3; 32]), bytes: 9 }) })
    }

    fn keep_value(&self, from: Incoming) -> Local<io::Result<Tree>> {
        Box::pin(async move {
            let mut bytes = 0;
            while let Ok(block) = from.recv().await {
                bytes += block?.len() as u64;
            }
            Ok(Tree { root: Hash([4; 32]), bytes })
        })
    }

    fn let_go(&self, tree: Tree) {
        self.asked.borrow_mut().push(format!("let go {}", tree.bytes));
    }

    fn read_value(&self, tree: Tree, _: Vec<NodeId>) -> Local<io::Result<ValueStream>> {
        let half = usize::try_from(tree.bytes / 2).unwrap();
        let blocks = [Ok(vec![7; half]), Err(io::Error::other("the disk is gone"))];
        let blocks: ValueStream = Box::pin(futures_util::stream::iter(blocks));
        Box::pin(async { Ok(blocks) })
    }

    fn keys(&self) -> Keys {
        Keys::new(&self.staging)
    }

    fn changes(&self, address: Address) -> Local<Result<Changes, ObjectAnswer>> {
        let (to, changes) = smol::channel::bounded(8);
        self.held.set(self.held.get() + 1);
        let held = Rc::clone(&self.held);
        let found = |value: &[u8], version| ObjectAnswer::Found {
            values: vec![dugnad_node::Value {
                content: Content::Inline(value.to_vec()),
                sources: vec![],
            }],
            version,
            context: None,
            strong: false,
        };
        to.try_send(found(address.path.as_bytes(), 2)).unwrap();
        to.try_send(ObjectAnswer::Absent { version: 3, context: None }).unwrap();
        let first = found(b"first", 1);
        let hold = Hold::new(move || {
            drop(to);
            held.set(held.get() - 1);
        });
        Box::pin(async move { Ok((hold, changes, first)) })
    }

    fn subscribe(&self, _: String, _: String, _: Begin) -> Local<Result<Subscribed, EventAnswer>> {
        Box::pin(async { Err(EventAnswer::Unavailable) })
    }

    fn logs(&self, service: &str, tail: usize, follow: bool) -> Local<io::Result<LogLines>> {
        if service != "wiki" {
            let text = format!("no log of {service} here");
            return Box::pin(async { Err(io::Error::new(io::ErrorKind::NotFound, text)) });
        }
        let line = format!("tail {tail} follow {follow}");
        let lines: LogLines = Box::pin(futures_util::stream::iter([(2, line)]));
        Box::pin(async { Ok(lines) })
    }

    fn events(&self, wanted: Wanted) -> Receiver<Value> {
        let (to, from) = smol::channel::bounded(8);
        if wanted.kept {
            to.try_send(
                json!({"at": "2026-01-01T00:00:00.000Z", "node_name": "attic", "text": "kept"}),
            )
            .unwrap();
        }
        if wanted.follow {
            self.followers.borrow_mut().push(to);
        }
        from
    }

    fn heard(&self, group: &str) -> Result<Receiver<Value>, String> {
        let (to, from) = smol::channel::bounded(8);
        to.try_send(json!({"group": group, "node": "0", "node_name": "attic", "text": "hello"}))
            .unwrap();
        self.followers.borrow_mut().push(to);
        Ok(from)
    }

    /// What is said comes back.
    fn connect(&self, service: String, which: Which) -> Local<Result<Reached, String>> {
        self.asked.borrow_mut().push(format!("connect {service} {which:?}"));
        let known = service == "wiki";
        Box::pin(async move {
            let (near, far) = smol::net::unix::UnixStream::pair().unwrap();
            if !known {
                return Err("no service of that name runs now".to_owned());
            }
            std::thread::spawn(move || {
                smol::block_on(async {
                    let (mut from, mut to) = (far.clone(), far.clone());
                    smol::io::copy(&mut from, &mut to).await.unwrap();
                    to.shutdown(std::net::Shutdown::Write).unwrap();
                });
            });
            Ok((Box::pin(near) as crate::stream::Stream, Busy::nothing()))
        })
    }

    fn healthy(&self) -> Result<(), String> {
        Ok(())
    }

    fn hold(&self, group: String) -> Local<Result<Hold, Answer>> {
        let held = Rc::clone(&self.held);
        Box::pin(async move {
            if group == "nowhere" {
                return Err(Answer::Failed("there is no group nowhere".to_owned()));
            }
            held.set(held.get() + 1);
            Ok(Hold::new(move || held.set(held.get() - 1)))
        })
    }

    fn drain(&self, reason: String) -> Local<Result<(), Vec<String>>> {
        self.asked.borrow_mut().push(format!("drain {reason}"));
        let stuck = reason == "stuck";
        Box::pin(async move { if stuck { Err(vec!["wiki runs here".to_owned()]) } else { Ok(()) } })
    }

    fn undrain(&self) -> Local<Result<(), String>> {
        Box::pin(async { Err("this node is not drained".to_owned()) })
    }

    fn leave(&self, now: bool) -> Local<Result<(), Vec<String>>> {
        let left = if now { Ok(()) } else { Err(vec!["no place for wiki".to_owned()]) };
        Box::pin(async { left })
    }

    fn invite(&self, expires: Duration) -> Local<Result<String, String>> {
        Box::pin(async move { Ok(format!("token-{}", expires.as_secs())) })
    }

    fn reload(&self) -> Local<Result<Vec<String>, String>> {
        Box::pin(async { Ok(vec!["limits.cpu".to_owned()]) })
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            counters: vec![("retries", 2)],
            gauges: vec![("memory_bytes", 5)],
            ..Metrics::default()
        }
    }
}
