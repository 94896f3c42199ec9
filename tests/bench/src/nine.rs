//! A neighbourhood of nine machines in one hard evening: a web server, redis with one replica that
//! keeps its state, a static site. Eight machines lose their power one after the other, they come
//! back, cables are pulled and plugged in, a machine is drained. Visitors stand at the machine that
//! stays, and measure for how long nobody answered them; wrk loads the web server throughout.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dugnad_cluster::{
    Community, Options, Wires, holds, http, installed, processes_of, until, write,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::enter;
use crate::{Row, speed};

const NODES: usize = 9;
const NET: u8 = 79;
const REDIS: u16 = 6379;
const REPLICAS: usize = 3;
const LIMIT: Duration = Duration::from_secs(120);
/// Between two questions of a visitor.
const EVERY: Duration = Duration::from_millis(20);

pub(crate) fn rows() -> Vec<Row> {
    let missing = Wires::missing().map(str::to_owned).or_else(|| {
        let redis = installed(&["/usr/bin/redis-server"]);
        redis.is_none().then(|| "needs /usr/bin/redis-server: apt-get install redis-server".into())
    });
    match missing {
        Some(why) => vec![Row::new("nine machines", "", format!("not measured: {why}"))],
        None => Evening::begin().run(),
    }
}

/// When somebody was answered, since the visitor began to count.
#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    longest: Duration,
    answered: u64,
    failed: u64,
    /// What redis has counted to.
    count: i64,
    /// How much of it was gone at most.
    lost: i64,
}

/// Asks again and again until it is dropped.
struct Visitor {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Visitor {
    fn new(wires: &Wires, node: usize, ask: impl Fn() -> Option<i64> + Send + 'static) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (to, ends, at) = (Arc::clone(&seen), Arc::clone(&stop), wires.namespace(node));
        let thread = std::thread::spawn(move || {
            if let Err(error) = enter(&at) {
                eprintln!("{at}: {error}");
                return;
            }
            while !ends.load(Ordering::Relaxed) {
                let answer = ask();
                let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                match answer {
                    Some(count) => {
                        let gap = seen.last.map_or(Duration::ZERO, |last| now - last);
                        seen.longest = seen.longest.max(gap);
                        seen.last = Some(now);
                        seen.answered += 1;
                        seen.lost = seen.lost.max(seen.count - count + 1);
                        seen.count = count;
                    }
                    None => seen.failed += 1,
                }
                drop(seen);
                std::thread::sleep(EVERY);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// What was seen since it was asked last: the longest gap, the one that lasts included.
    fn take(&self) -> String {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let open = seen.last.map_or(Duration::ZERO, |last| last.elapsed());
        let gap = seen.longest.max(open).as_secs_f64();
        let lost = match seen.lost {
            0 | 1 => String::new(),
            lost => format!(", {lost} writes lost"),
        };
        let text = format!("{gap:.2} s, {} of {}{lost}", seen.failed, seen.failed + seen.answered);
        (seen.longest, seen.answered, seen.failed, seen.lost) = (Duration::ZERO, 0, 0, 0);
        text
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it panicked of was printed.
            _ = thread.join();
        }
    }
}

fn page(gateway: SocketAddr, path: &'static str) -> impl Fn() -> Option<i64> {
    move || http::get(gateway, path).ok().filter(|answer| answer.status == 200).map(|_| 0)
}

/// Counts in redis by one.
fn incr(gateway: SocketAddr) -> Option<i64> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&(gateway.ip(), REDIS).into(), limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(b"INCR visits\r\n").ok()?;
    let mut answer = [0; 32];
    let length = stream.read(&mut answer).ok()?;
    let text = std::str::from_utf8(&answer[..length]).ok()?;
    text.strip_prefix(':')?.trim_end().parse().ok()
}

struct Evening {
    community: Community,
    wires: Wires,
    visitors: Vec<Visitor>,
    rows: Vec<Row>,
    /// The machine that stays, where the visitors are.
    here: usize,
}

impl Evening {
    fn begin() -> Self {
        let wires = Wires::new(NODES, NET);
        let options = Options {
            addresses: (0..NODES).map(|node| wires.address(node)).collect(),
            before_each: (0..NODES).map(|node| wires.words(node)).collect(),
            ..Options::default()
        };
        let community = Community::with("bench-nine", NODES, options);
        community.deploy(0, &speed::server(&community, "web", REPLICAS));
        let site = community.folder("files-site/pkg");
        write(&site.join("index.html"), "a page");
        let text = format!("name = \"site\"\nreplicas = {REPLICAS}\n[artifacts]\nany = \"pkg/\"\n");
        community.deploy(1, &community.service_file("site", &text));
        let text = format!(
            "name = \"redis\"\nsingle = true\ncommand = [\"/usr/bin/redis-server\", \"--port\", \
             \"$PORT\", \"--bind\", \"$HOST\", \"--dir\", \"$STATE_DIRECTORY\", \"--appendonly\", \
             \"yes\"]\nstop_grace = \"5s\"\n[needs]\nmemory = \"64M\"\ncpu = \"10%\"\n\
             disk = \"64M\"\n[port]\ntcp = {REDIS}\n[state]\nsnapshot = \"10s\"\n"
        );
        community.deploy(2, &community.service_file("redis", &text));
        let here = NODES / 2;
        let gateway = community.nodes[here].gateway;
        let visitors = vec![
            Visitor::new(&wires, here, page(gateway, "/web/")),
            Visitor::new(&wires, here, page(gateway, "/site/")),
            Visitor::new(&wires, here, move || incr(gateway)),
        ];
        Self { community, wires, visitors, rows: Vec::new(), here }
    }

    fn run(mut self) -> Vec<Row> {
        let wrk = self.wrk();
        self.settle("nothing happens");
        // An order nobody chose, the same each time.
        let others: Vec<usize> = (1..NODES).map(|step| (self.here + step * 5) % NODES).collect();
        for (number, victim) in others.iter().enumerate() {
            self.power_cut(*victim);
            self.settle(&format!("machine {} of 8 loses its power", number + 1));
        }
        for node in &others {
            self.community.start(*node);
        }
        self.community.wait_whole();
        self.settle("all eight come back");
        for node in &others[..3] {
            self.wires.cable(*node, "out");
        }
        self.settle("three cables are pulled");
        for node in &others[..3] {
            self.wires.cable(*node, "in");
        }
        self.community.wait_whole();
        self.settle("they are plugged in again");
        let on = self.community.ready_on(self.here, "redis").unwrap_or_default();
        let on = on.first().copied().unwrap_or(self.here);
        self.community.ok(on, &["drain", "--reason", "evening"]);
        self.settle("the machine with redis is drained");
        if let Some(wrk) = wrk {
            self.rows.push(ended(wrk));
        }
        // What they ask is no silence.
        self.visitors.clear();
        self.rows
    }

    /// The agent of a machine, and all that it runs.
    fn power_cut(&mut self, victim: usize) {
        let name = self.community.nodes[victim].name.clone();
        let services = ["web", "redis"].map(|name| processes_of(&self.community.mark, name));
        self.community.kill(victim);
        for (node, _, pid) in services.into_iter().flatten() {
            if node == name {
                // The whole family; it may have ended with the agent.
                _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
            }
        }
    }

    /// Waits until as many replicas as fit are ready, for a while longer, and writes the row.
    fn settle(&mut self, what: &str) {
        let start = Instant::now();
        let (community, here) = (&self.community, self.here);
        until("what fits is ready", LIMIT, || {
            let alive = community.alive(here)?.len();
            for (name, want) in [("web", REPLICAS), ("site", REPLICAS), ("redis", 1)] {
                let on = community.ready_on(here, name)?;
                let fits = want.min(alive);
                let seen = || format!("{name}: {on:?}, {alive} machines");
                let all_run = on.iter().all(|node| community.runs(*node));
                holds(on.len() == fits && all_run, seen)?;
            }
            Ok(())
        });
        let took = start.elapsed().as_secs_f64();
        // A snapshot of redis, and some visits.
        std::thread::sleep(Duration::from_secs(12));
        let [web, site, redis] = [0, 1, 2].map(|visitor: usize| self.visitors[visitor].take());
        let text = format!("ready in {took:.1} s; web {web}; site {site}; redis {redis}");
        eprintln!("{what}: {text}");
        self.rows.push(Row::new(what, "gap, failed visits", text));
    }

    /// Eight connections to the web server for as long as it takes.
    fn wrk(&self) -> Option<std::process::Child> {
        installed(&["/usr/bin/wrk"])?;
        let words = self.wires.words(self.here);
        let url = format!("http://{}/web/", self.community.nodes[self.here].gateway);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["wrk", "-t1", "-c8", "-d3600", "--timeout", "10", &url]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().ok()
    }
}

/// Ends wrk, which says what it saw.
fn ended(wrk: std::process::Child) -> Row {
    let pid = i32::try_from(wrk.id()).map(Pid::from_raw);
    // It is ours and runs.
    _ = pid.map(|pid| kill(pid, Signal::SIGINT));
    let said = wrk.wait_with_output().map(|output| output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let line = |what: &str| {
        let line = said.lines().find(|line| line.contains(what)).unwrap_or_default();
        line.trim().to_owned()
    };
    let (done, errors) = (line("requests in"), line("Socket errors"));
    Row::new(
        "wrk, eight connections, meanwhile",
        "",
        format!("{done} {errors} {}", line("Non-2xx")),
    )
}
