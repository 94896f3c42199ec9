//! The store beside etcd: the same values, the same number of clients, on the same disk, in turn.
//! `etcd` is Debian's `etcd-server`; its client is a program of its own (`etcd/`), built here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dugnad_cluster::http::{Answer, Connection};
use dugnad_cluster::{Community, holds, installed, until};

use crate::Row;

const NODES: usize = 3;
const SECONDS: u64 = 3;
const CLIENTS: [usize; 3] = [1, 8, 64];
const LIMIT: Duration = Duration::from_secs(30);
const VALUE: usize = 256;
const KEYS: u64 = 2_000;
const LONG: usize = 1 << 20;
/// Keys and bytes of long values whose weight in memory is measured.
const MANY: u64 = 10_000;
const FILES: usize = 32;
const FILE: usize = 8 << 20;

/// Requests a second, and percentiles in microseconds.
#[derive(Clone, Copy)]
struct Speed {
    requests: f64,
    p50: u64,
    p99: u64,
}

impl Speed {
    fn of(mut took: Vec<u64>, elapsed: Duration) -> Self {
        took.sort_unstable();
        let at = |hundredths: usize| took.get(took.len() * hundredths / 100).copied().unwrap_or(0);
        let requests = took.len() as f64 / elapsed.as_secs_f64();
        Self { requests, p50: at(50), p99: at(99) }
    }

    fn text(self) -> String {
        let Self { requests, p50, p99 } = self;
        format!("{requests:.0}/s (p50 {:.1} ms, p99 {:.1} ms)", p50 as f64 / 1e3, p99 as f64 / 1e3)
    }
}

/// What a client does again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Put,
    Get,
    Cas,
    PutLong,
    GetLong,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Put | Self::PutLong => "put",
            Self::Get | Self::GetLong => "get",
            Self::Cas => "cas",
        }
    }
}

type Client = Connection<std::os::unix::net::UnixStream>;

fn send(to: &mut Client, method: &str, path: &str, header: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: d\r\n{header}Content-Length: {length}\r\n\r\n");
    // Who is refused may be so before all is sent.
    let sent = to.send(&[head.as_bytes(), body].concat());
    to.answer(false).unwrap_or_else(|error| panic!("{method} {path}: {error}, {sent:?}"))
}

/// One client; how long each of its requests took, in microseconds.
fn client(socket: &Path, what: What, number: u64, ready: &Barrier) -> Vec<u64> {
    let mut to = Connection::to_socket(socket).expect("the agent listens");
    let (mut took, mut next, mut at) = (Vec::new(), number << 32, String::new());
    let (value, long) = (vec![b'v'; VALUE], noise(number, LONG));
    if what == What::Cas {
        let path = format!("/v1/store/reg/cas/{number}");
        at = send(&mut to, "PUT", &path, "", &value).header("etag").to_owned();
    }
    ready.wait();
    let end = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < end {
        next += 1;
        let key = next.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS;
        let short = format!("/v1/store/reg/k/{key}");
        let begun = Instant::now();
        let answer = match what {
            What::Put => send(&mut to, "PUT", &short, "", &value),
            What::Get => send(&mut to, "GET", &short, "", &[]),
            What::Cas => {
                let path = format!("/v1/store/reg/cas/{number}");
                send(&mut to, "PUT", &path, &format!("If-Match: {at}\r\n"), &value)
            }
            What::PutLong => {
                // Another value each time: what is stored already is not stored again.
                let mut long = long.clone();
                long[..8].copy_from_slice(&next.to_be_bytes());
                send(&mut to, "PUT", &format!("/v1/store/long/{number}/{}", next % 8), "", &long)
            }
            What::GetLong => {
                send(&mut to, "GET", &format!("/v1/store/long/{number}/{}", next % 8), "", &[])
            }
        };
        let done = matches!(answer.status, 200..=204 | 404);
        assert!(done, "{} {}: {}", what.name(), answer.status, answer.text());
        if what == What::Cas {
            answer.header("etag").clone_into(&mut at);
        }
        took.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    took
}

/// Bytes that do not repeat.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2).wrapping_add(1);
    let step = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    std::iter::repeat_with(step).take(length / 8).flatten().collect()
}

fn socket(community: &Community, number: usize) -> PathBuf {
    community.nodes[number % community.nodes.len()].dir.join("dugnad.sock")
}

/// All clients at once, spread over the nodes.
fn run(community: &Community, what: What, clients: usize) -> Speed {
    let ready = Barrier::new(clients + 1);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|number| {
                let (socket, ready) = (socket(community, number), &ready);
                scope.spawn(move || client(&socket, what, number as u64, ready))
            })
            .collect();
        ready.wait();
        let begun = Instant::now();
        let took = all.into_iter().flat_map(|client| client.join().expect("a client works"));
        let took = took.collect();
        Speed::of(took, begun.elapsed())
    })
}

/// A community with the namespaces that are written to.
fn community(name: &str, nodes: usize) -> Community {
    let community = Community::new(name, nodes);
    until("a majority keeps registers", LIMIT, || {
        let said = community.cli(0, &["put", "reg/first", "--strong", "x"]);
        holds(said.err.contains(&format!("majority of {nodes} nodes")), || said.all())
    });
    community.ok(0, &["put", "long/first", "x"]);
    community.ok(0, &["namespace", "long", "--quota", "1G"]);
    community.ok(0, &["put", "many/first", "x"]);
    community
}

struct Etcd {
    members: Vec<Child>,
    endpoints: String,
    client: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended by itself.
            _ = member.kill();
            _ = member.wait();
        }
    }
}

impl Etcd {
    /// Three members on loopback, and the client for them.
    fn start() -> Result<Self, String> {
        let etcd = installed(&["/usr/bin/etcd"]).ok_or("there is no /usr/bin/etcd")?;
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("etcd/Cargo.toml");
        let mut build = Command::new("cargo");
        build.args(["build", "--quiet", "--release", "--manifest-path"]).arg(&manifest);
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench-etcd");
        let built = build.arg("--target-dir").arg(&target).status();
        if !built.map_err(|error| error.to_string())?.success() {
            return Err("its client cannot be built".to_owned());
        }
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let url = |member: usize, port: u16| format!("http://127.78.0.{member}:{port}");
        let cluster: Vec<_> = (1..=NODES).map(|n| format!("e{n}={}", url(n, 2380))).collect();
        let mut members = Vec::new();
        for member in 1..=NODES {
            let mut command = Command::new(&etcd);
            command.arg("--name").arg(format!("e{member}"));
            command.arg("--data-dir").arg(dir.path().join(format!("e{member}")));
            command.args(["--initial-cluster", &cluster.join(",")]);
            for (words, port) in [("peer", 2380), ("client", 2379)] {
                let middle = if words == "peer" { "peer-" } else { "client-" };
                command.arg(format!("--listen-{middle}urls")).arg(url(member, port));
                let advertise = match words {
                    "peer" => "--initial-advertise-peer-urls",
                    _ => "--advertise-client-urls",
                };
                command.arg(advertise).arg(url(member, port));
            }
            command.stdout(Stdio::null()).stderr(Stdio::null());
            members.push(command.spawn().map_err(|error| format!("etcd: {error}"))?);
        }
        let endpoints: Vec<_> = (1..=NODES).map(|n| format!("127.78.0.{n}:2379")).collect();
        let client = target.join("release/dugnad-bench-etcd");
        let etcd = Self { members, endpoints: endpoints.join(","), client, _dir: dir };
        until("etcd answers", LIMIT, || etcd.run(What::Put, 1, 1).map(|_| ()));
        Ok(etcd)
    }

    fn run(&self, what: What, clients: usize, seconds: u64) -> Result<Speed, String> {
        let mut command = Command::new(&self.client);
        command.arg(&self.endpoints).arg(what.name());
        command.args([clients.to_string(), seconds.to_string()]);
        let output = command.output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures: Vec<f64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let [requests, p50, p99] = figures[..] else {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        };
        Ok(Speed { requests, p50: p50 as u64, p99: p99 as u64 })
    }
}

/// Kilobytes that lie in memory, of which those that are no file.
fn memory(community: &Community, node: usize) -> (u64, u64) {
    let path = format!("/proc/{}/status", community.pid(node));
    let status = std::fs::read_to_string(path).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    (of("VmRSS:"), of("RssAnon:"))
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![weight()];
    rows.extend(long());
    rows.extend(short());
    rows
}

fn short() -> Vec<Row> {
    let (community, etcd) = (community("bench-store", NODES), Etcd::start());
    let mut rows = Vec::new();
    for (what, goals) in
        [(What::Put, [1.0, 1.2, 1.5]), (What::Get, [1.5; 3]), (What::Cas, [1.0, 1.2, 1.5])]
    {
        for (clients, goal) in CLIENTS.into_iter().zip(goals) {
            let ours = run(&community, what, clients);
            let name = format!("strong {} of 256 bytes, {clients} clients", what.name());
            let theirs = etcd.as_ref().map_err(Clone::clone);
            let row = match theirs.and_then(|etcd| etcd.run(what, clients, SECONDS)) {
                Ok(theirs) => {
                    let ratio = ours.requests / theirs.requests;
                    let text = format!("{}; etcd {}: {ratio:.2} times", ours.text(), theirs.text());
                    let budget = match goal {
                        1.0 => "≥ 1.0 × etcd",
                        1.2 => "≥ 1.2 × etcd",
                        _ => "≥ 1.5 × etcd",
                    };
                    Row::new(name, budget, text).kept(ratio >= goal)
                }
                Err(error) => Row::new(name, "", format!("{}; etcd: {error}", ours.text())),
            };
            rows.push(row);
        }
    }
    rows
}

/// What one core enciphers, in MiB a second, as openssl measures it.
fn cipher() -> Option<f64> {
    let mut command = Command::new("openssl");
    command.args(["speed", "-seconds", "1", "-bytes", "16384", "-evp", "chacha20-poly1305"]);
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().rev().find(|line| line.to_lowercase().starts_with("chacha20"))?;
    let kilobytes: f64 = line.split_whitespace().last()?.trim_end_matches('k').parse().ok()?;
    Some(kilobytes * 1000.0 / f64::from(1 << 20))
}

fn long() -> Vec<Row> {
    let community = community("bench-long", NODES);
    let core = cipher().map_or_else(
        || "openssl is not there".to_owned(),
        |core| format!("one core enciphers {core:.0} MiB/s"),
    );
    let mut rows = Vec::new();
    for what in [What::PutLong, What::GetLong] {
        for clients in [1, 4, 8] {
            let speed = run(&community, what, clients);
            let name = format!("{} of 1 MiB, 3 copies, {clients} clients", what.name());
            let text = format!("{:.0} MiB/s; {core}", speed.requests);
            rows.push(Row::new(name, "", text));
        }
    }
    rows
}

/// The memory of a node that keeps much.
fn weight() -> Row {
    let community = community("bench-weight", NODES);
    let before = memory(&community, 0);
    std::thread::scope(|scope| {
        for client in 0..16_u64 {
            let socket = socket(&community, client as usize);
            scope.spawn(move || {
                let mut to = Connection::to_socket(&socket).expect("the agent listens");
                for key in (client..MANY).step_by(16) {
                    let path = format!("/v1/store/many/{key}");
                    let answer = send(&mut to, "PUT", &path, "", &[b'v'; VALUE]);
                    assert_eq!(answer.status / 100, 2, "{}", answer.text());
                }
            });
        }
    });
    let mut to = Connection::to_socket(&socket(&community, 0)).expect("the agent listens");
    for file in 0..FILES {
        let body = noise(file as u64, FILE);
        let answer = send(&mut to, "PUT", &format!("/v1/store/long/f{file}"), "", &body);
        assert_eq!(answer.status / 100, 2, "{}", answer.text());
    }
    let after = memory(&community, 0);
    let text = format!(
        "{:.1} MB resident, of it {:.1} MB its own (before: {:.1}, {:.1})",
        after.0 as f64 / 1e3,
        after.1 as f64 / 1e3,
        before.0 as f64 / 1e3,
        before.1 as f64 / 1e3
    );
    let megabytes = (FILES * FILE) >> 20;
    let what = format!("memory of a node with {MANY} keys and {megabytes} MB of long values");
    Row::new(what, "≤ 16 MB", text).kept(after.0 <= 16_000)
}
