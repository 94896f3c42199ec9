//! State that goes with the service from node to node.

use std::cell::{Cell, OnceCell};

use dugnad_resource::spec::Tree;

use super::*;
use crate::blobs::{Blobs, Seen, Snapshot};
use crate::stream::Later;

/// A community of one register and one store of chunks.
#[derive(Default)]
pub(super) struct Community {
    kept: RefCell<Option<Found>>,
    writes: Cell<u64>,
    blobs: OnceCell<(tempfile::TempDir, Rc<Blobs>)>,
    hosts: RefCell<Vec<(NodeId, Rc<Host>)>>,
    /// Nobody answers.
    down: Cell<bool>,
}

impl Community {
    fn blobs(&self) -> Rc<Blobs> {
        let (_, blobs) = self.blobs.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
            (dir, blobs)
        });
        Rc::clone(blobs)
    }

    fn note(&self) -> Note {
        self.kept.borrow().as_ref().unwrap().note.clone()
    }
}

impl StateStore for Community {
    fn read(&self, _: &str) -> Later<Result<Option<Found>, String>> {
        let found =
            if self.down.get() { Err("nobody".into()) } else { Ok(self.kept.borrow().clone()) };
        Box::pin(async move { found })
    }

    fn write(&self, _: &str, note: Note, tree: Option<Tree>, expect: u64) -> Later<Written> {
        let mut kept = self.kept.borrow_mut();
        let version = kept.as_ref().map_or(0, |found| found.version);
        let written = if self.down.get() {
            Written::Failed("nobody".to_owned())
        } else if version == expect {
            let version = version + 1;
            *kept = Some(Found { note, tree, sources: Vec::new(), version });
            self.writes.set(self.writes.get() + 1);
            Written::At(version)
        } else {
            Written::Overtaken
        };
        Box::pin(async move { written })
    }

    fn ended(&self, node: NodeId, id: ReplicaId) -> Later<()> {
        let host =
            self.hosts.borrow().iter().find(|(at, _)| *at == node).map(|(_, h)| Rc::clone(h));
        Box::pin(async move {
            if let Some(host) = host {
                host.ended(id).await;
            }
        })
    }

    fn snapshot(&self, dir: PathBuf, before: Seen, most: u64) -> Later<io::Result<Snapshot>> {
        let blobs = self.blobs();
        Box::pin(async move { blobs.snapshot(dir, before, most).await })
    }

    fn restore(&self, tree: Tree, _: Vec<NodeId>, to: PathBuf) -> Later<Result<(), String>> {
        let blobs = self.blobs();
        Box::pin(async move { blobs.restore(tree, to).await.map_err(|error| error.to_string()) })
    }
}

/// Two machines of one community.
struct Two {
    community: Rc<Community>,
    worlds: [World; 2],
}

fn with_two<F: Future<Output = Two>>(test: impl FnOnce(Two) -> F) {
    let tmp = tempfile::tempdir().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let work = async {
        let community = Rc::new(Community::default());
        let worlds = ["a", "b"].map(|name| {
            let dir = tmp.path().join(name);
            let (host, reports) = open_with(&ex, &dir, Rc::clone(&community) as _, no_lease());
            let id = host.shared.config.node_id;
            community.hosts.borrow_mut().push((id, Rc::clone(&host)));
            World { ex: Rc::clone(&ex), host, reports, dir }
        });
        let two = test(Two { community, worlds }).await;
        for world in &two.worlds {
            world.host.stop_all().await;
        }
        two.community.hosts.borrow_mut().clear();
    };
    let late = async {
        Timer::after(LIMIT).await;
        panic!("the test takes longer than {LIMIT:?}");
    };
    smol::block_on(ex.run(smol::future::or(work, late)));
}

/// A service that adds a line to its diary at every start.
fn diary(every_ms: u32) -> Spec {
    let mut spec = sh("diary", "echo entry >> diary; exec sleep 1000");
    spec.state = Keep::Snapshots { every_ms, hook: Vec::new() };
    spec
}

fn numbered(spec: &Spec, number: u32) -> Run {
    let id = ReplicaId { service: spec.key(), number };
    Run { id, generation: 1, spec: spec.clone(), package: None }
}

impl World {
    fn lines(&self, number: u32) -> usize {
        let diary = self.folder(&format!("diary.{number}/state/diary"));
        fs::read_to_string(diary).map_or(0, |text| text.lines().count())
    }

    /// Until it is ready; what it waited for.
    async fn waits(&self, id: ReplicaId) -> Vec<String> {
        let mut waited = Vec::new();
        loop {
            match self.next().await {
                Report::Ready { .. } => return waited,
                Report::Waits { reason, .. } => waited.push(reason),
                Report::Started { id: started } => assert_eq!(started, id),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn state_goes_where_the_next_replica_starts() {
    with_two(|two| async move {
        let [a, b] = &two.worlds;
        let spec = diary(60_000);
        let (first, second) = (numbered(&spec, 0), numbered(&spec, 1));
        a.host.order(Order::Start(first.clone()));
        a.ready(first.id).await;
        // It begins while the first still runs, and waits for it.
        b.host.order(Order::Start(second.clone()));
        let Report::Waits { reason, .. } = b.next().await else { panic!("it does not wait") };
        assert_eq!(reason, "waits for replica 0 on kitchen");
        a.stop(first.id, false).await;
        assert!(b.waits(second.id).await.is_empty());
        assert_eq!((a.lines(0), b.lines(1)), (1, 2));
        let note = two.community.note();
        assert_eq!((note.turn, note.replica, note.closed), (2, 1, false));
        // And back again: what is there is not the newest, and waits in the trash.
        b.stop(second.id, false).await;
        let third = numbered(&spec, 2);
        a.host.order(Order::Start(third.clone()));
        a.ready(third.id).await;
        assert_eq!(a.lines(2), 3);
        let trash = fs::read_dir(a.dir.join("d/trash")).unwrap().count();
        assert_eq!((trash, two.community.note().turn), (1, 3));
        // The same replica once more: nothing changes hands, and nothing is fetched.
        a.stop(third.id, false).await;
        a.host.order(Order::Start(third.clone()));
        a.ready(third.id).await;
        assert_eq!((a.lines(2), two.community.note().turn), (4, 3));
        two
    });
}

#[test]
fn a_running_replica_is_kept_and_nothing_is_written_while_nothing_changes() {
    with_two(|two| async move {
        let [a, b] = &two.worlds;
        let mut spec = diary(60_000);
        spec.state = Keep::Snapshots {
            every_ms: 10_000,
            hook: ["/bin/sh", "-c", "echo hooked >> hooks"].map(str::to_owned).to_vec(),
        };
        let first = numbered(&spec, 0);
        a.host.order(Order::Start(first.clone()));
        a.ready(first.id).await;
        while two.community.kept.borrow().as_ref().is_none_or(|found| found.tree.is_none()) {
            Timer::after(Duration::from_millis(50)).await;
        }
        assert!(a.folder("diary.0/state/hooks").exists());
        // Its node goes down. The next begins with the snapshot, without being told.
        let gone = a.host.shared.config.node_id;
        two.community.hosts.borrow_mut().retain(|(id, _)| *id != gone);
        let second = numbered(&spec, 1);
        b.host.order(Order::Start(second.clone()));
        b.waits(second.id).await;
        assert_eq!((b.lines(1), two.community.note().turn), (2, 2));
        // The node was only cut off. What it has written since is not wanted, and not thrown away.
        a.stop(first.id, false).await;
        assert_eq!(two.community.note().turn, 2);
        assert!(!a.folder("diary.0/state/diary").exists());
        assert_eq!(fs::read_dir(a.dir.join("d/trash")).unwrap().count(), 1);
        let writes = two.community.writes.get();
        b.stop(second.id, false).await;
        assert_eq!(two.community.writes.get(), writes + 1);
        two
    });
}

#[test]
fn without_a_community_it_runs_on_where_it_was_and_begins_nowhere_else() {
    with_two(|two| async move {
        let [a, b] = &two.worlds;
        let spec = diary(60_000);
        let first = numbered(&spec, 0);
        a.host.order(Order::Start(first.clone()));
        a.ready(first.id).await;
        two.community.down.set(true);
        a.stop(first.id, false).await;
        a.host.order(Order::Start(first.clone()));
        a.ready(first.id).await;
        assert_eq!(a.lines(0), 2);
        let second = numbered(&spec, 1);
        b.host.order(Order::Start(second.clone()));
        let Report::Waits { reason, .. } = b.next().await else { panic!("it does not wait") };
        assert_eq!(reason, "waits for its state to be found: nobody");
        // A stop is heard meanwhile.
        b.host.order(Order::Stop { id: second.id, forget: false });
        while b.next().await != (Report::Stopped { id: second.id }) {}
        two.community.down.set(false);
        a.stop(first.id, false).await;
        b.host.order(Order::Start(second.clone()));
        b.waits(second.id).await;
        assert_eq!(b.lines(1), 3);
        two
    });
}
