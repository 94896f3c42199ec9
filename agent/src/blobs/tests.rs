//! Stores in temporary folders that fetch from each other over real sockets.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use futures_util::StreamExt as _;
use smol::future::FutureExt as _;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{LocalExecutor, Timer};
use tempfile::TempDir;

use super::manifest::Manifest;
use super::*;
use crate::stream::{StreamHead, read_head};

const MB: usize = 1 << 20;
const ROOM: u64 = 1 << 40;

struct Home {
    dir: TempDir,
    blobs: Rc<Blobs>,
}

fn home(ceiling: u64) -> Home {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), ceiling).unwrap();
    Home { dir, blobs }
}

impl Home {
    fn chunk_files(&self) -> Vec<PathBuf> {
        let shards = fs::read_dir(self.dir.path().join("blobs")).unwrap();
        let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }

    fn chunk(&self, hash: Hash) -> PathBuf {
        let name = hash.to_string();
        self.dir.path().join("blobs").join(&name[..2]).join(name)
    }
}

/// Bytes that look random but are the same every time.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// How a source behaves.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Honest,
    /// Sends bytes that do not match.
    Lies,
    /// Ends the stream after so many chunks.
    DiesAfter(usize),
    /// Takes questions and never answers.
    Refuses,
}

struct World {
    ex: Rc<LocalExecutor<'static>>,
    sources: Rc<RefCell<HashMap<NodeId, std::net::SocketAddr>>>,
}

impl World {
    fn run<T>(work: impl AsyncFnOnce(Self) -> T) -> T {
        let ex = Rc::new(LocalExecutor::new());
        let world = Self { ex: Rc::clone(&ex), sources: Rc::default() };
        let limit = async {
            Timer::after(Duration::from_secs(120)).await;
            panic!("took longer than two minutes")
        };
        smol::block_on(ex.run(work(world).or(limit)))
    }

    async fn source(&self, number: u128, blobs: Rc<Blobs>, how: Source) -> NodeId {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = NodeId::of_name("node", &number.to_le_bytes());
        self.sources.borrow_mut().insert(node, listener.local_addr().unwrap());
        let ex = Rc::clone(&self.ex);
        let spawn = Rc::clone(&self.ex);
        ex.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_eq!(read_head(&mut stream).await.unwrap(), StreamHead::Chunks);
                spawn.spawn(behave(stream, Rc::clone(&blobs), how)).detach();
            }
        })
        .detach();
        node
    }

    fn open(&self) -> OpenStream {
        let sources = Rc::clone(&self.sources);
        Rc::new(move |node| {
            let addr = sources.borrow().get(&node).copied();
            Box::pin(async move {
                let addr = addr.ok_or_else(|| io::Error::other("not linked"))?;
                Ok(Box::pin(TcpStream::connect(addr).await?) as Stream)
            })
        })
    }
}

async fn behave(mut stream: TcpStream, blobs: Rc<Blobs>, how: Source) {
    let chunks = match how {
        Source::Honest => {
            // The asker may go away at any time.
            let _: io::Result<u64> = blobs.serve(Box::pin(stream)).await;
            return;
        }
        Source::DiesAfter(chunks) => chunks,
        Source::Lies => usize::MAX,
        Source::Refuses => 0,
    };
    for _ in 0..chunks {
        let mut hash = Hash::default();
        if stream.read_exact(&mut hash.0).await.is_err() {
            return;
        }
        let mut bytes = blobs.read_chunk(hash).await.unwrap();
        if how == Source::Lies {
            bytes[0] ^= 1;
        }
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        if stream.write_all(&length).await.is_err() || stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

fn site(dir: &Path) {
    write(dir, "index.html", b"<h1>hei</h1>");
    write(dir, "bilder/blå €/fjørd 山.txt", "på norsk".as_bytes());
    write(dir, "big.bin", &noise(1, 5 * MB + 123));
    write(dir, "bin/run", b"#!/bin/sh\n");
    fs::set_permissions(dir.join("bin/run"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir_all(dir.join("tom/tommere")).unwrap();
    write(dir, "zero", b"");
    symlink("../index.html", dir.join("bin/hjem")).unwrap();
}

fn same(a: &Path, b: &Path) {
    let listing = |dir: &Path| {
        let mut lines = vec![];
        let mut todo = vec![dir.to_owned()];
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(dir).unwrap().to_owned();
                if meta.is_dir() {
                    lines.push((name, vec![]));
                    todo.push(path);
                } else if meta.is_symlink() {
                    lines.push((
                        name,
                        fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
                    ));
                } else {
                    lines.push((name, fs::read(path).unwrap()));
                }
            }
        }
        lines.sort();
        lines
    };
    assert!(listing(a) == listing(b), "{} and {} differ", a.display(), b.display());
}

#[test]
fn a_folder_comes_back_as_it_was() {
    World::run(async |_| {
        let (home, from) = (home(ROOM), tempfile::tempdir().unwrap());
        site(from.path());
        let tree = home.blobs.ingest(from.path().to_owned()).await.unwrap();
        assert!(home.blobs.has(tree).await);
        assert_eq!(home.blobs.ingest(from.path().to_owned()).await.unwrap(), tree);
        let dest = home.dir.path().join("run/pkg");
        home.blobs.unpack(tree, dest.clone()).await.unwrap();
        same(from.path(), &dest);
        let mode = |name: &str| fs::metadata(dest.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("bin/run"), mode("index.html"), mode("tom")), (0o755, 0o644, 0o755));
        // A second time it says no rather than mixing two versions.
        assert!(home.blobs.unpack(tree, dest).await.is_err());

        // What is complete is still known after a restart, leftovers are gone.
        fs::write(home.dir.path().join("trees/x.tmp"), "half").unwrap();
        let leftover = home.chunk_files()[0].with_extension("3.tmp");
        fs::write(&leftover, "half").unwrap();
        let again = Blobs::open(home.dir.path(), ROOM).unwrap();
        assert_eq!(again.trees(), [tree]);
        assert_eq!(again.used(), home.blobs.used());
        assert!(!leftover.exists());
    });
}

#[test]
fn a_single_file_is_a_tree_too() {
    World::run(async |_| {
        let (home, from) = (home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "tool", &noise(3, 50 * MB));
        let tree = home.blobs.ingest(from.path().join("tool")).await.unwrap();
        assert_eq!(tree.bytes, 50 * MB as u64);
        let dest = home.dir.path().join("pkg");
        home.blobs.unpack(tree, dest.clone()).await.unwrap();
        same(from.path(), &dest);
    });
}

#[test]
fn what_cannot_be_stored_is_named() {
    World::run(async |_| {
        let (home, from) = (home(ROOM), tempfile::tempdir().unwrap());
        for target in ["/etc/passwd", "../out", "sub/../../out"] {
            symlink(target, from.path().join("bad")).unwrap();
            let error = home.blobs.ingest(from.path().to_owned()).await.unwrap_err().to_string();
            assert!(error.contains("bad: the link"), "{error}");
            fs::remove_file(from.path().join("bad")).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("sock")).unwrap();
        let error = home.blobs.ingest(from.path().to_owned()).await.unwrap_err().to_string();
        assert!(error.contains("sock: neither"), "{error}");
        let error = home.blobs.ingest(from.path().join("none")).await.unwrap_err().to_string();
        assert!(error.contains("none: "), "{error}");
        // Nothing of the failed attempts stays.
        assert_eq!((home.chunk_files().len(), home.blobs.used()), (0, 0));
    });
}

#[test]
fn a_new_version_moves_only_what_changed() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(ROOM), tempfile::tempdir().unwrap());
        site(from.path());
        let one = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        b.blobs.fetch(one, vec![node], world.open()).await.unwrap();
        // 21 of big.bin, three small files, manifest, index.
        assert_eq!((b.blobs.chunks_fetched(), a.blobs.chunks_served()), (26, 0));
        write(from.path(), "index.html", b"<h1>hei igjen</h1>");
        let two = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        b.blobs.fetch(two, vec![node], world.open()).await.unwrap();
        assert_eq!(b.blobs.chunks_fetched(), 26 + 3);
        b.blobs.unpack(two, b.dir.path().join("pkg")).await.unwrap();
        same(from.path(), &b.dir.path().join("pkg"));
        let again = Blobs::open(b.dir.path(), ROOM).unwrap();
        assert_eq!(again.trees().len(), 2);
    });
}

#[test]
fn liars_and_the_dying_are_replaced() {
    World::run(async |world| {
        let (a, from) = (home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "big", &noise(7, 12 * MB));
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let empty = home(ROOM);
        let liar = world.source(1, Rc::clone(&a.blobs), Source::Lies).await;
        let dying = world.source(2, Rc::clone(&a.blobs), Source::DiesAfter(9)).await;
        let refuses = world.source(3, Rc::clone(&a.blobs), Source::Refuses).await;
        let lacking = world.source(4, Rc::clone(&empty.blobs), Source::Honest).await;
        let unknown = NodeId::of_name("node", b"unknown");
        let bad = vec![liar, lacking, unknown, refuses, dying];

        let b = home(ROOM);
        let said = b.blobs.fetch(tree, bad.clone(), world.open()).await.unwrap_err();
        assert!(said.contains("sent other bytes"), "{said}");
        assert!(said.contains("does not have chunk"), "{said}");
        assert!(said.contains("not linked"), "{said}");
        assert!(said.contains(&format!("node {}", dying.short())), "{said}");
        assert!(!b.blobs.has(tree).await);
        // What came is kept: the next attempt asks only for the rest.
        let before = b.blobs.chunks_fetched();
        assert!(before >= 2, "{before}");
        let honest = world.source(5, Rc::clone(&a.blobs), Source::Honest).await;
        let mut all = bad;
        all.push(honest);
        b.blobs.fetch(tree, all, world.open()).await.unwrap();
        assert_eq!(b.blobs.chunks_fetched(), 48 + 2);
        assert_eq!(b.chunk_files().len(), 48 + 2);
        assert!(b.blobs.has(tree).await);
    });
}

/// A value is passed on in order from several sources at a time, whoever of them fails, and from
/// those that are named when all have failed.
#[test]
fn a_value_is_passed_on_from_several_sources() {
    World::run(async |world| {
        let a = home(ROOM);
        let value = noise(9, 12 * MB + 7);
        let (to, from) = smol::channel::unbounded();
        to.send(Ok(value.clone())).await.unwrap();
        to.close();
        let (tree, _) = a.blobs.keep_value(from, async |_| None).await.unwrap();
        let opened = Rc::new(Cell::new(0));
        let open: OpenStream = {
            let (open, opened) = (world.open(), Rc::clone(&opened));
            Rc::new(move |node| {
                opened.set(opened.get() + 1);
                open(node)
            })
        };
        let mut nodes = Vec::new();
        for how in [Source::Lies, Source::DiesAfter(9), Source::DiesAfter(5), Source::Refuses] {
            nodes.push(world.source(nodes.len() as u128, Rc::clone(&a.blobs), how).await);
        }
        let honest = world.source(9, Rc::clone(&a.blobs), Source::Honest).await;
        for (more, also) in [(Vec::new(), true), (vec![nodes[0], honest], false)] {
            let b = home(ROOM);
            let mut sources = nodes.clone();
            sources.extend(also.then_some(honest));
            let more = Box::pin(async move { more });
            let reading = b.blobs.read_value(tree, sources, more, open.clone()).await.unwrap();
            let came: Vec<u8> = reading.map(Result::unwrap).concat().await;
            assert!(came == value, "{} bytes of {}", came.len(), value.len());
            assert!(b.chunk_files().is_empty(), "nothing is kept on the way");
            assert_eq!(opened.replace(0), 5, "each once");
        }
        let b = home(ROOM);
        let failed = b.blobs.read_value(tree, nodes, Box::pin(async { Vec::new() }), open).await;
        let rest: Vec<_> = failed.unwrap().collect().await;
        let error = rest.into_iter().find_map(Result::err).unwrap().to_string();
        assert!(error.contains("sent other bytes"), "{error}");
        // Two that are well are both asked.
        let two = vec![honest, world.source(10, Rc::clone(&a.blobs), Source::Honest).await];
        let (open, asked) = (world.open(), Rc::new(RefCell::new(HashSet::new())));
        let seen = Rc::clone(&asked);
        let open: OpenStream = Rc::new(move |node| {
            seen.borrow_mut().insert(node);
            open(node)
        });
        let more = Box::pin(async { Vec::new() });
        let reading = b.blobs.read_value(tree, two, more, open).await.unwrap();
        assert!(reading.map(Result::unwrap).concat().await == value);
        assert_eq!(asked.borrow().len(), 2);
    });
}

#[test]
fn several_sources_and_several_askers_share_one_fetch() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "big", &noise(8, 10 * MB));
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let mut nodes = vec![];
        for number in 0..6 {
            nodes.push(world.source(number, Rc::clone(&a.blobs), Source::Honest).await);
        }
        let all = (0..5).map(|_| b.blobs.fetch(tree, nodes.clone(), world.open()));
        for done in futures_util::future::join_all(all).await {
            done.unwrap();
        }
        assert_eq!(b.blobs.chunks_fetched(), 42);
        assert_eq!(b.blobs.trees(), [tree]);
    });
}

#[test]
fn hostile_trees_are_refused() {
    World::run(async |world| {
        let (a, b) = (home(ROOM), home(ROOM));
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        let store = Arc::clone(&a.blobs.store);
        let put = |bytes: &[u8]| {
            store.write(Hash::of(bytes), bytes).unwrap();
            Hash::of(bytes)
        };
        let entry =
            |path: &str| manifest::Entry { path: path.to_owned(), what: manifest::What::Dir };
        let list = Manifest { entries: vec![entry("../x")] }.encode().unwrap();
        let length = u32::try_from(list.len()).unwrap();
        let index = manifest::Index::new(length, 0, vec![put(&list)]).encode().unwrap();
        let tree = Tree { root: put(&index), bytes: 0 };
        let said = b.blobs.fetch(tree, vec![node], world.open()).await.unwrap_err();
        assert!(said.contains("../x: a path must"), "{said}");
        // An index that says another size than was announced.
        let tree = Tree { bytes: 1, ..tree };
        let said = b.blobs.fetch(tree, vec![node], world.open()).await.unwrap_err();
        assert!(said.contains("announced were 1"), "{said}");
        let garbage = Tree { root: put(&noise(1, 1000)), bytes: 9 };
        assert!(b.blobs.fetch(garbage, vec![node], world.open()).await.is_err());
        assert!(b.blobs.trees().is_empty());
    });
}

#[test]
fn the_ceiling_holds() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(4 * MB as u64), tempfile::tempdir().unwrap());
        write(from.path(), "one", &noise(1, 3 * MB));
        let one = b.blobs.ingest(from.path().to_owned()).await.unwrap();
        let used = b.blobs.used();
        write(from.path(), "two", &noise(2, 3 * MB));
        let error = b.blobs.ingest(from.path().to_owned()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let error = error.to_string();
        assert!(error.starts_with("disk: needs 3"), "{error}");
        assert!(error.contains("ceiling 4M leaves"), "{error}");
        assert!(error.contains("(limits.disk in dugnad.toml; 512K are for"), "{error}");
        assert_eq!(b.blobs.used(), used);

        let two = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        let said = b.blobs.fetch(two, vec![node], world.open()).await.unwrap_err();
        assert!(said.contains("ceiling 4M"), "{said}");
        // Small changes still fit: only what is new counts.
        write(from.path(), "two", &noise(2, 1000));
        let three = b.blobs.ingest(from.path().to_owned()).await.unwrap();
        b.blobs.drop_tree(one).await.unwrap();
        b.blobs.drop_tree(three).await.unwrap();
        // Left of the fetch that failed: the index and the manifest, for when it is tried again.
        assert_eq!((b.chunk_files().len(), b.blobs.used()), (2, 8192));
        b.blobs.set_ceiling(ROOM);
        b.blobs.fetch(two, vec![node], world.open()).await.unwrap();
    });
}

#[test]
fn what_lies_beside_the_chunks_takes_from_the_ceiling() {
    World::run(async |_| {
        let (tmp, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(from.path(), "one", &noise(1, 2 * MB));
        let state = tmp.path().join("services/diary.0/state");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join("entries"), noise(3, 3 * MB)).unwrap();
        let blobs = Blobs::open(tmp.path(), 4 * MB as u64).unwrap();
        assert_eq!(blobs.over().await, 0);
        let error = blobs.ingest(from.path().to_owned()).await.unwrap_err();
        assert!(error.to_string().contains("3.0M are for records, logs and"), "{error}");
        // Counted anew only now and then: at the next start for one.
        std::fs::write(state.join("more"), noise(4, 2 * MB)).unwrap();
        assert_eq!(blobs.over().await, 0);
        let blobs = Blobs::open(tmp.path(), 4 * MB as u64).unwrap();
        assert!(blobs.over().await > MB as u64);
        blobs.set_ceiling(ROOM);
        blobs.ingest(from.path().to_owned()).await.unwrap();
    });
}

#[test]
fn dropping_keeps_what_others_need() {
    World::run(async |_| {
        let (a, from) = (home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "shared", &noise(1, MB));
        write(from.path(), "own", &noise(2, MB));
        let one = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        write(from.path(), "own", &noise(3, MB));
        let two = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        assert_eq!(a.chunk_files().len(), 4 * 3 + 2 * 2);
        a.blobs.drop_tree(one).await.unwrap();
        assert_eq!(a.chunk_files().len(), 4 * 2 + 2);
        a.blobs.unpack(two, a.dir.path().join("pkg")).await.unwrap();
        same(from.path(), &a.dir.path().join("pkg"));

        // While somebody writes, the chunks wait; the last writer takes them away.
        let writing = a.blobs.gate.read_arc().await;
        a.blobs.drop_tree(two).await.unwrap();
        assert!(!a.blobs.has(two).await);
        assert_eq!(a.chunk_files().len(), 4 * 2 + 2);
        drop(writing);
        a.blobs.settle().await;
        assert_eq!(a.chunk_files().len(), 0);
    });
}

#[test]
fn what_is_being_read_stays_until_it_was_read() {
    World::run(async |_| {
        let (a, from) = (home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "page", &noise(1, MB));
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let other = {
            write(from.path(), "page", &noise(2, MB));
            a.blobs.ingest(from.path().to_owned()).await.unwrap()
        };
        let readers = (a.blobs.hold(tree).unwrap(), a.blobs.hold(tree).unwrap());
        a.blobs.drop_tree(tree).await.unwrap();
        // Another one's end takes nothing away that is read.
        a.blobs.drop_tree(other).await.unwrap();
        assert!(!a.blobs.has(tree).await);
        assert_eq!(a.chunk_files().len(), 4 + 2);
        drop(readers.0);
        assert_eq!(a.chunk_files().len(), 4 + 2);
        drop(readers.1);
        while !a.chunk_files().is_empty() {
            Timer::after(Duration::from_millis(5)).await;
        }
        // Whoever still thinks that it is here learns so before the answer has begun.
        let late = a.blobs.hold(tree).err().unwrap();
        assert_eq!(late.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn damage_is_noticed() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(ROOM), tempfile::tempdir().unwrap());
        let bytes = noise(1, 3 * CHUNK);
        write(from.path(), "f", &bytes);
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let hash = Hash::of(&bytes[CHUNK..2 * CHUNK]);
        let spoil = || {
            let mut spoilt = bytes[CHUNK..2 * CHUNK].to_vec();
            spoilt[77] ^= 4;
            fs::write(a.chunk(hash), spoilt).unwrap();
        };
        spoil();
        let error = a.blobs.unpack(tree, a.dir.path().join("pkg")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("damaged on disk"), "{error}");
        assert!(!a.dir.path().join("pkg").exists());
        assert!(!a.dir.path().join("pkg.unpacking").exists());
        assert!(!a.chunk(hash).exists());
        assert!(!a.blobs.has(tree).await);

        // Storing it again heals it; damage is never passed on.
        a.blobs.ingest(from.path().to_owned()).await.unwrap();
        assert!(a.blobs.has(tree).await);
        spoil();
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        let said = b.blobs.fetch(tree, vec![node], world.open()).await.unwrap_err();
        assert!(said.contains("does not have chunk"), "{said}");
        assert!(!a.blobs.has(tree).await);
    });
}

#[test]
fn a_chunk_that_vanished_is_fetched_again() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(ROOM), tempfile::tempdir().unwrap());
        let bytes = noise(1, 3 * CHUNK);
        write(from.path(), "f", &bytes);
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        b.blobs.fetch(tree, vec![node], world.open()).await.unwrap();
        fs::remove_file(b.chunk(Hash::of(&bytes[..CHUNK]))).unwrap();
        let error = b.blobs.unpack(tree, b.dir.path().join("pkg")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!b.blobs.has(tree).await);
        let before = b.blobs.chunks_fetched();
        b.blobs.fetch(tree, vec![node], world.open()).await.unwrap();
        assert_eq!(b.blobs.chunks_fetched(), before + 1);
        b.blobs.unpack(tree, b.dir.path().join("pkg")).await.unwrap();
        same(from.path(), &b.dir.path().join("pkg"));
    });
}

#[test]
fn a_fetch_given_up_midway_goes_on_where_it_was() {
    World::run(async |world| {
        let (a, b, from) = (home(ROOM), home(ROOM), tempfile::tempdir().unwrap());
        write(from.path(), "big", &noise(9, 10 * MB));
        let tree = a.blobs.ingest(from.path().to_owned()).await.unwrap();
        let node = world.source(1, Rc::clone(&a.blobs), Source::Honest).await;
        let mut fetch = Box::pin(b.blobs.fetch(tree, vec![node], world.open()));
        while b.blobs.chunks_fetched() < 10 {
            assert!(smol::future::poll_once(&mut fetch).await.is_none());
            smol::future::yield_now().await;
        }
        drop(fetch);
        // As after a crash.
        let again = Blobs::open(b.dir.path(), ROOM).unwrap();
        again.fetch(tree, vec![node], world.open()).await.unwrap();
        let (first, second) = (b.blobs.chunks_fetched(), again.chunks_fetched());
        assert!(first >= 10 && second < 42, "{first} and {second}");
        again.unpack(tree, b.dir.path().join("pkg")).await.unwrap();
        same(from.path(), &b.dir.path().join("pkg"));
    });
}
