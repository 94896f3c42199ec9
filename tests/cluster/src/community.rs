//! N agents that know each other.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sweep::{self, Mark};
use crate::{PATIENCE, holds, program, say, until};

/// Communities that live at the same time in one test program.
const AT_ONCE: usize = 2;
/// Frames a node may send in a minute when nothing happens, and over which time that is measured:
/// longer than two heartbeats.
const FRAMES_MAX: f64 = 60.0;
const SILENCE: Duration = Duration::from_secs(12);
/// Stabilisation, every 3 s for a minute after a change and every minute later.
const YOUNG: [&str; 3] = ["notify", "ring_query", "ring_query_res"];
const LIMITS: &str = "[limits]\ncpu = \"4.0\"\nmemory = \"512M\"\ndisk = \"4G\"\nprocesses = 256\n\
                      upload = \"unlimited\"\n[when]\nbusy_above = \"100%\"\n";

static LIVE: Mutex<usize> = Mutex::new(0);
static ONE_ENDED: Condvar = Condvar::new();

struct Turn;

impl Turn {
    fn wait() -> Self {
        let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live = ONE_ENDED
            .wait_while(live, |live| *live >= AT_ONCE)
            .unwrap_or_else(PoisonError::into_inner);
        *live += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *LIVE.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_ENDED.notify_one();
    }
}

/// How agents are started.
#[derive(Clone, Default)]
pub struct Options {
    /// Words before the program, such as those of `setpriv`; one list for all nodes.
    pub before: Vec<String>,
    /// Where each node listens; by default an own loopback address each.
    pub addresses: Vec<Ipv4Addr>,
    /// Words before the program of one node: (node, words).
    pub before_each: Vec<Vec<String>>,
    /// The program of each node, where it is not [`program`]: for a mixed community.
    pub programs: Vec<PathBuf>,
    /// Owner of the folders of all nodes.
    pub owner: Option<u32>,
}

pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub overlay: SocketAddr,
    pub gateway: SocketAddr,
    /// 32 hexadecimal digits, once it has run.
    pub id: String,
    /// The first word of `SHORT-name`, as the agent calls itself.
    pub short: String,
    /// What it said when it was ready.
    pub ready: String,
    before: Vec<String>,
    program: PathBuf,
    agent: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Both outputs.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

pub struct Community {
    pub nodes: Vec<Node>,
    pub mark: Mark,
    pub start: Instant,
    /// Whether silence is asserted at the end: not where a test leaves agents cut off or flooded.
    pub ends_silent: bool,
    options: Options,
    folder: Option<tempfile::TempDir>,
    _turn: Turn,
}

/// The first three parts of loopback addresses nobody uses.
fn own_network() -> [u8; 3] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..10_000 {
        let number = std::process::id()
            .wrapping_mul(7919)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, _, high, low] = number.to_be_bytes();
        let network = [127, 1 + high % 254, low];
        let free = |port| TcpListener::bind((Ipv4Addr::new(127, network[1], low, 1), port)).is_ok();
        if free(7407) && free(7480) {
            return network;
        }
    }
    panic!("no free loopback network")
}

impl Community {
    /// `count` running agents that all see each other; node 0 is the first.
    #[must_use]
    pub fn new(name: &str, count: usize) -> Self {
        Self::with(name, count, Options::default())
    }

    #[must_use]
    pub fn with(name: &str, count: usize, options: Options) -> Self {
        let mut community = Self::found(name, count, options);
        for node in 0..count {
            community.start(node);
        }
        community.wait_whole();
        let text = format!("{name}: {count} agents run and see each other");
        say(community.start, &text);
        community
    }

    /// The files of `count` nodes; nothing runs.
    #[must_use]
    pub fn found(name: &str, count: usize, options: Options) -> Self {
        let turn = Turn::wait();
        let folder = tempfile::Builder::new().prefix("dgd-").tempdir();
        let folder = folder.unwrap_or_else(|error| panic!("no folder for the test: {error}"));
        let dir = fs::canonicalize(folder.path()).unwrap_or_else(|error| panic!("{error}"));
        if let Some(owner) = options.owner {
            std::os::unix::fs::chown(&dir, Some(owner), Some(owner))
                .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
        let word = format!("{name}-{}", dir.file_name().unwrap_or_default().to_string_lossy());
        let mut community = Self {
            nodes: Vec::new(),
            mark: Mark { word, dir },
            start: Instant::now(),
            ends_silent: true,
            options,
            folder: Some(folder),
            _turn: turn,
        };
        let network = own_network();
        for number in 0..count {
            let last = u8::try_from(number + 1).unwrap_or(u8::MAX);
            let own = Ipv4Addr::new(network[0], network[1], network[2], last);
            let ip = community.options.addresses.get(number).copied().unwrap_or(own);
            community.settle(name, number, ip);
        }
        community
    }

    /// `init` for the first, `join` with a token of the first for the others.
    fn settle(&mut self, name: &str, number: usize, ip: Ipv4Addr) {
        let node = Node {
            name: format!("n{number}"),
            dir: self.mark.dir.join(format!("n{number}")),
            overlay: (ip, 7407).into(),
            gateway: (ip, 7480).into(),
            id: String::new(),
            short: String::new(),
            ready: String::new(),
            before: self.options.before_each.get(number).cloned().unwrap_or_default(),
            program: self.options.programs.get(number).map_or(program(), PathBuf::as_path).into(),
            agent: None,
        };
        fs::create_dir(&node.dir).unwrap_or_else(|error| panic!("{}: {error}", node.dir.display()));
        write(&node.dir.join("dugnad.toml"), LIMITS);
        if let Some(owner) = self.options.owner {
            for path in [node.dir.clone(), node.dir.join("dugnad.toml")] {
                std::os::unix::fs::chown(&path, Some(owner), Some(owner))
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
        let (overlay, gateway) = (node.overlay.to_string(), node.gateway.to_string());
        self.nodes.push(node);
        let listen =
            ["--name", &format!("n{number}"), "--overlay", &overlay, "--gateway", &gateway];
        let first = if number == 0 {
            vec!["init".to_owned(), "--community".to_owned(), name.to_owned()]
        } else {
            vec!["join".to_owned(), self.token()]
        };
        let words: Vec<&str> = first.iter().map(String::as_str).chain(listen).collect();
        self.ok(number, &words);
    }

    /// An invitation of the first node.
    #[must_use]
    pub fn token(&self) -> String {
        self.ok(0, &["invite"]).out.trim().to_owned()
    }

    fn command(&self, node: usize) -> Command {
        let node = &self.nodes[node];
        let mut words = self.options.before.iter().chain(&node.before);
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(&node.program);
                command
            }
            None => Command::new(&node.program),
        };
        for variable in
            ["DUGNAD_NAME", "DUGNAD_OVERLAY", "DUGNAD_GATEWAY", "DUGNAD_SOCKET", "DUGNAD_OUTPUT"]
        {
            command.env_remove(variable);
        }
        command.env(sweep::VARIABLE, &self.mark.word).env("DUGNAD_DIR", &node.dir);
        command.stdin(Stdio::null());
        command
    }

    /// A command of `dugnad` on a node, not started.
    #[must_use]
    pub fn prepare(&self, node: usize, words: &[&str]) -> Command {
        let mut command = self.command(node);
        command.args(words);
        command
    }

    /// Runs a command of `dugnad` on a node.
    #[must_use]
    #[track_caller]
    pub fn cli(&self, node: usize, words: &[&str]) -> Said {
        let output = self.prepare(node, words).output();
        let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Said { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, node: usize, words: &[&str]) -> Said {
        let said = self.cli(node, words);
        assert_eq!(said.code, 0, "{} {words:?}: {}", self.nodes[node].name, said.all());
        said
    }

    /// What a command says as JSON.
    ///
    /// # Errors
    /// It failed; what it said.
    pub fn json(&self, node: usize, words: &[&str]) -> Result<Value, String> {
        let mut all = words.to_vec();
        all.extend(["-o", "json"]);
        let said = self.cli(node, &all);
        if said.code != 0 {
            return Err(format!("exit {}: {}", said.code, said.err));
        }
        serde_json::from_str(&said.out).map_err(|error| format!("{error}: {}", said.out))
    }

    /// `status -o json`.
    #[must_use]
    #[track_caller]
    pub fn status(&self, node: usize) -> Value {
        self.json(node, &["status"])
            .unwrap_or_else(|error| panic!("{}: {error}", self.nodes[node].name))
    }

    /// One counter of a node.
    #[must_use]
    #[track_caller]
    pub fn counter(&self, node: usize, name: &str) -> u64 {
        let status = self.status(node);
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {status}"))
    }

    /// Starts an agent and waits for the line that says it is ready.
    #[track_caller]
    pub fn start(&mut self, node: usize) {
        if let Err(error) = self.try_start(node, &[]) {
            panic!("{} did not start: {error}\n{}", self.nodes[node].name, self.log(node));
        }
    }

    /// The same with more variables; why it did not start.
    ///
    /// # Errors
    /// It ended before it was ready.
    pub fn try_start(&mut self, node: usize, env: &[(&str, &str)]) -> Result<(), String> {
        let mut command = self.command(node);
        let log = self.log_path(node);
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.map_err(|error| format!("{}: {error}", log.display()))?;
        command.arg("agent").envs(env.iter().copied());
        command.stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        }
        if line.is_empty() {
            let status = child.wait().map_err(|error| error.to_string())?;
            return Err(format!("it ended with {status}"));
        }
        let node = &mut self.nodes[node];
        node.agent = Some(child);
        let label = line.split(" node ").nth(1).and_then(|rest| rest.split([' ', '-']).next());
        node.short = label.unwrap_or_default().to_owned();
        node.ready = line;
        Ok(())
    }

    /// Waits until every running agent sees exactly the running ones alive.
    #[track_caller]
    pub fn wait_whole(&mut self) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|node| self.runs(*node)).collect();
        for node in &running {
            until(
                &format!("{} sees {} alive", self.nodes[*node].name, running.len()),
                PATIENCE,
                || {
                    let alive = self.alive(*node)?;
                    holds(alive.len() == running.len(), || format!("alive: {alive:?}"))
                },
            );
        }
        for node in running {
            let id = self.status(node)["node"].as_str().unwrap_or_default().to_owned();
            self.nodes[node].id = id;
        }
    }

    /// Names of the nodes that this one sees alive.
    ///
    /// # Errors
    /// It does not answer.
    pub fn alive(&self, node: usize) -> Result<Vec<String>, String> {
        let nodes = self.json(node, &["nodes"])?;
        let alive = nodes.as_array().into_iter().flatten().filter(|node| node["state"] == "alive");
        Ok(alive.map(|node| node["name"].as_str().unwrap_or("?").to_owned()).collect())
    }

    #[must_use]
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].agent.is_some()
    }

    /// The process of a running agent.
    #[must_use]
    #[track_caller]
    pub fn pid(&self, node: usize) -> Pid {
        let agent = self.nodes[node].agent.as_ref();
        let id = agent.map(Child::id).and_then(|id| i32::try_from(id).ok());
        Pid::from_raw(id.unwrap_or_else(|| panic!("{} does not run", self.nodes[node].name)))
    }

    #[track_caller]
    pub fn signal(&self, node: usize, signal: Signal) {
        kill(self.pid(node), signal).unwrap_or_else(|error| panic!("{signal}: {error}"));
    }

    /// SIGKILL, as a crash would; services go on.
    #[track_caller]
    pub fn kill(&mut self, node: usize) {
        self.signal(node, Signal::SIGKILL);
        self.wait_end(node);
    }

    /// Waits for an agent that was told to end.
    #[track_caller]
    pub fn wait_end(&mut self, node: usize) -> ExitStatus {
        self.wait_end_within(node, Duration::from_secs(20))
    }

    /// Waits for an agent that ends by itself.
    #[track_caller]
    pub fn wait_end_within(&mut self, node: usize, limit: Duration) -> ExitStatus {
        let Some(mut agent) = self.nodes[node].agent.take() else {
            panic!("node {node} does not run")
        };
        let status = until("the agent ends", limit, || {
            agent.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
        });
        self.nodes[node].agent = None;
        status
    }

    /// A service file in a folder of its own; its path.
    #[must_use]
    pub fn service_file(&self, name: &str, text: &str) -> String {
        let dir = self.folder(&format!("files-{name}"));
        let path = dir.join("service.toml");
        write(&path, text);
        path.to_string_lossy().into_owned()
    }

    /// A folder of the test; made if it is not there.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let dir = self.mark.dir.join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        if self.options.owner.is_some() {
            use std::os::unix::fs::PermissionsExt;
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&dir, open).unwrap_or_else(|error| panic!("{error}"));
        }
        dir
    }

    /// Deploys a file through a node; it must become ready.
    #[track_caller]
    pub fn deploy(&self, node: usize, file: &str) {
        let start = Instant::now();
        let said = self.ok(node, &["deploy", file]);
        say(self.start, &format!("deployed in {:.1?}: {}", start.elapsed(), said.out.trim()));
    }

    /// A service as `ps` of a node tells it.
    ///
    /// # Errors
    /// It is not there.
    pub fn service(&self, node: usize, name: &str) -> Result<Value, String> {
        let services = self.json(node, &["ps"])?;
        let found = services.as_array().into_iter().flatten().find(|s| s["service"] == name);
        found.cloned().ok_or_else(|| format!("no {name} in {services}"))
    }

    /// Nodes with a ready replica, by number, as `ps` of a node tells it.
    ///
    /// # Errors
    /// The service is not there.
    pub fn ready_on(&self, node: usize, name: &str) -> Result<Vec<usize>, String> {
        let service = self.service(node, name)?;
        let replicas = service["replicas"].as_array().into_iter().flatten();
        let ready = replicas.filter(|replica| replica["state"] == "ready");
        Ok(ready
            .filter_map(|r| self.nodes.iter().position(|n| r["node_name"] == n.name.as_str()))
            .collect())
    }

    /// The node that manages a service, as `ps` of a node tells it.
    #[must_use]
    #[track_caller]
    pub fn manager(&self, node: usize, name: &str) -> usize {
        until("a manager is known", PATIENCE, || {
            let service = self.service(node, name)?;
            let of = |n: &Node| service["manager"] == n.id.as_str();
            self.nodes.iter().position(of).ok_or_else(|| service.to_string())
        })
    }

    /// Waits until exactly `want` replicas are ready, all on running nodes, and as many processes
    /// (or, for a folder, none) run in the whole community, dead agents' included.
    #[track_caller]
    pub fn wait_exactly(&self, node: usize, name: &str, want: usize, limit: Duration) {
        let start = Instant::now();
        until(&format!("exactly {want} of {name}"), limit, || {
            let service = self.service(node, name)?;
            let processes = sweep::processes_of(&self.mark, name);
            let on = self.ready_on(node, name)?;
            let seen = || format!("{service}; processes: {processes:?}");
            holds(on.len() == want && on.iter().all(|n| self.runs(*n)), seen)?;
            holds(service["kind"] == "static" || processes.len() == want, seen)
        });
        let text = format!("exactly {want} of {name}, after {:.1?}", start.elapsed());
        say(self.start, &text);
    }

    #[must_use]
    fn log_path(&self, node: usize) -> PathBuf {
        self.mark.dir.join(format!("{}.log", self.nodes[node].name))
    }

    /// What the agents of a node wrote so far.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(self.log_path(node)).unwrap_or_default()
    }

    /// Left alone, the agents that run fall silent: [`FRAMES_MAX`] a node and minute, without what
    /// the ring says to itself in the minute after a change (asserted in the simulator, where a
    /// minute costs nothing). What of it does not hold after [`PATIENCE`].
    ///
    /// # Errors
    /// How much they say, and of what.
    pub fn falls_silent(&self) -> Result<(), String> {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|node| self.runs(*node)).collect();
        let sent = || -> Result<u64, String> {
            running.iter().try_fold(0, |sum, node| {
                let status = self.json(*node, &["status"])?;
                let kinds = status["frames"]["sent"].as_object();
                let kinds = kinds.ok_or_else(|| format!("no frames: {status}"))?.iter();
                let lasting = kinds.filter(|(kind, _)| !YOUNG.contains(&kind.as_str()));
                Ok(sum + lasting.filter_map(|(_, count)| count.as_u64()).sum::<u64>())
            })
        };
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < end && !running.is_empty() {
            let (before, start) = (sent()?, Instant::now());
            std::thread::sleep(SILENCE);
            let frames = (sent()? - before) as f64;
            let minutes = start.elapsed().as_secs_f64() / 60.0;
            let each = frames / running.len() as f64 / minutes;
            if each <= FRAMES_MAX {
                return Ok(());
            }
            let kinds = self.json(running[0], &["status"])?["frames"]["sent"].take();
            last = format!("{each:.0} frames a node and minute; {} so far: {kinds}", running[0]);
        }
        if last.is_empty() { Ok(()) } else { Err(last) }
    }

    /// Ends everything. What could not be ended or removed.
    fn end(&mut self) -> Vec<String> {
        for node in &mut self.nodes {
            if let Some(mut agent) = node.agent.take() {
                // It may have ended by itself.
                let _: std::io::Result<()> = agent.kill();
                let _: std::io::Result<ExitStatus> = agent.wait();
            }
        }
        let shorts: Vec<String> = self.nodes.iter().map(|node| node.short.clone()).collect();
        let mut left = self.mark.end(&shorts);
        if let Some(folder) = self.folder.take() {
            left.extend(folder.close().err().map(|error| error.to_string()));
        }
        left
    }

    fn last_words(&self) {
        for node in 0..self.nodes.len() {
            let log = self.log(node);
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- last lines of {}", self.nodes[node].name);
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
        if let Some(copy) = std::env::var_os("DUGNAD_KEEP_LOGS").map(PathBuf::from) {
            for node in 0..self.nodes.len() {
                let to = copy.join(format!("{}-{}.log", self.mark.word, self.nodes[node].name));
                // Only for whoever looks for the cause.
                let _: std::io::Result<u64> = fs::copy(self.log_path(node), to);
            }
        }
    }
}

impl Drop for Community {
    fn drop(&mut self) {
        let mut loud = None;
        if std::thread::panicking() {
            self.last_words();
        } else if self.ends_silent {
            loud = self.falls_silent().err();
        }
        let left = self.end();
        say(self.start, &format!("{}: everything ended", self.mark.word));
        if !left.is_empty() && !std::thread::panicking() {
            panic!("left behind: {left:?}");
        }
        if let Some(loud) = loud {
            panic!("{}: left alone, it does not fall silent: {loud}", self.mark.word);
        }
    }
}

/// Writes a file.
///
/// # Panics
/// It cannot.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    }
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// An empty file, to be filled.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn create(path: &Path) -> File {
    File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
