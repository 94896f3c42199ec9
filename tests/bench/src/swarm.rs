//! Docker Swarm beside dugnad: three engines, all of them managers, as its documentation advises,
//! and three agents, each in a network namespace of its own, one after the other in one run.
//!
//! Both run a small program that is there already (an image loaded into each engine, a package on
//! each node) and are asked in the same way: deploy, then take a machine away whole, by SIGKILL of
//! everything on it or by its cable, the leader of the managers among them. Swarm's time ends when
//! it says that a new task runs, ours when a new replica answers a request.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dugnad_cluster::{Community, Options, Wires, holds, until};
use serde_json::{Value, json};

use crate::netns::enter;
use crate::{Row, seconds, speed, spread};

const ENGINES: usize = 3;
const NET: u8 = 78;
const DEPLOYS: usize = 5;
const DEATHS: usize = 2;
const LIMIT: Duration = Duration::from_secs(120);

/// Seconds of one of the two.
#[derive(Default)]
struct Times {
    one: Vec<f64>,
    three: Vec<f64>,
    /// A machine that is not the leader, killed.
    killed: Vec<f64>,
    cut: Vec<f64>,
    /// The machine that leads: Swarm's leader, the manager of our service.
    leader: Vec<f64>,
}

pub(crate) fn rows() -> Vec<Row> {
    match (theirs(), ours()) {
        (Ok(theirs), Ok(ours)) => beside(theirs, ours),
        (Err(why), _) | (_, Err(why)) => {
            vec![Row::new("Docker Swarm beside us", "", format!("not measured: {why}"))]
        }
    }
}

fn beside(theirs: Times, ours: Times) -> Vec<Row> {
    let row = |what, budget, most: f64, ours: Vec<f64>, theirs: Vec<f64>| {
        let ratio = spread(ours.clone()).1 / spread(theirs.clone()).1;
        let ((ours, worst), (theirs, _)) = (seconds(ours), seconds(theirs));
        let text = format!("{ours}; Swarm {theirs}: {ratio:.2} times");
        Row::new(what, budget, text).kept(worst <= most && ratio <= 0.5)
    };
    vec![
        row("deploy of 1 replica", "half of Swarm's", LIMIT.as_secs_f64(), ours.one, theirs.one),
        row("deploy of 3", "half of Swarm's", LIMIT.as_secs_f64(), ours.three, theirs.three),
        row("machine killed → replacement", "≤ 5 s, half", 5.0, ours.killed, theirs.killed),
        row("cable cut → replacement", "≤ 12 s, half", 12.0, ours.cut, theirs.cut),
        row("leader killed → replacement", "≤ 5 s, half", 5.0, ours.leader, theirs.leader),
    ]
}

// --- Swarm -----------------------------------------------------------------------------------

/// One engine; whatever it started ends with the value.
struct Engine {
    name: String,
    dir: PathBuf,
    daemon: Option<Child>,
}

impl Engine {
    fn new(wires: &Wires, number: usize, dir: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let mut engine = Self { name: format!("engine{number}"), dir, daemon: None };
        engine.start(wires, number)?;
        Ok(engine)
    }

    fn start(&mut self, wires: &Wires, number: usize) -> Result<(), String> {
        let log = File::create(self.dir.join("log")).map_err(|error| error.to_string())?;
        let at = |file: &str| self.dir.join(file).display().to_string();
        // Views of its own, of files and of its name: engines would step on each other's feet.
        let script = "hostname \"$1\"; shift; exec dockerd \"$@\"";
        // Not `ip netns exec`, which would hide the control groups.
        let daemon = Command::new("nsenter")
            .arg(format!("--net={}", wires.namespace(number)))
            .args(["unshare", "-m", "-u", "--propagation", "private", "sh", "-c", script])
            .args(["sh", &self.name, "--storage-driver", "overlay2", "--log-level", "warn"])
            .args(["--data-root", &at("root"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("sock"))])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("dockerd: {error}"))?;
        self.daemon = Some(daemon);
        let start = Instant::now();
        while self.ask("GET", "/info", None).is_err() {
            if start.elapsed() > LIMIT {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                return Err(format!("dockerd does not start: {log}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn docker(&self) -> Command {
        // Another docker may come first in the path.
        let program =
            if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" };
        let mut command = Command::new(program);
        command.arg("-H").arg(format!("unix://{}", self.dir.join("sock").display()));
        command
    }

    fn run(&self, words: &[&str]) -> Result<String, String> {
        let output =
            self.docker().args(words).output().map_err(|error| format!("docker: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("docker {}: {}", words.join(" "), text(&output.stderr))),
        }
    }

    /// One question to its API.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let failed = |error: io::Error| format!("{}: {error}", self.name);
        let mut stream = UnixStream::connect(self.dir.join("sock")).map_err(failed)?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(failed)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /v1.41{path} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            return Err(format!("{method} {path}: {status} {body}"));
        }
        Ok(serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Everything that belongs to it, as if its machine had lost its power.
    fn kill(&mut self) {
        let dir = self.dir.display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let words = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let root = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
            // A container's root lies below the folder of its engine.
            let inside = root.lines().any(|line| {
                line.split(' ').nth(4) == Some("/") && line.contains(&format!("upperdir={dir}"))
            });
            if words.contains(&dir) || inside {
                // It may have ended by itself.
                _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            // It was killed above.
            _ = daemon.wait();
        }
        for file in ["pid", "exec/containerd/containerd.pid"] {
            // It may not have been written.
            _ = fs::remove_file(self.dir.join(file));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let dir = self.dir.display().to_string();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in ours.filter(|mount| mount.starts_with(&dir)) {
            // What is still in use goes with the machine.
            _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

struct Swarm {
    wires: Wires,
    image: String,
    engines: Vec<Engine>,
}

impl Swarm {
    fn new(dir: &Path) -> Result<Self, String> {
        let wires = Wires::new(ENGINES, NET);
        let mut engines = Vec::new();
        for number in 0..ENGINES {
            engines.push(Engine::new(&wires, number, dir.join(number.to_string()))?);
        }
        let (image, saved) = (dir.join("image.tar"), dir.join("saved.tar"));
        let (image, saved) = (image.display().to_string(), saved.display().to_string());
        let packed = Command::new("tar").args(["-C", "/bin", "-cf", &image, "busybox"]).status();
        if !packed.is_ok_and(|status| status.success()) {
            return Err("needs tar and /bin/busybox: apt-get install busybox-static".into());
        }
        engines[0].run(&["import", &image, "idle"])?;
        engines[0].run(&["save", "-o", &saved, "idle"])?;
        for engine in &engines[1..] {
            engine.run(&["load", "-q", "-i", &saved])?;
        }
        let image = engines[0].run(&["image", "inspect", "idle", "--format", "{{.Id}}"])?;
        let first = wires.address(0).to_string();
        engines[0].run(&["swarm", "init", "--advertise-addr", &first])?;
        let token = engines[0].run(&["swarm", "join-token", "-q", "manager"])?;
        for engine in &engines[1..] {
            engine.run(&["swarm", "join", "--token", &token, &format!("{first}:2377")])?;
        }
        let swarm = Self { wires, image, engines };
        swarm.wait_whole();
        Ok(swarm)
    }

    /// Of what every engine says.
    fn nodes(&self, asked: usize) -> Result<Vec<Value>, String> {
        let nodes = self.engines[asked].ask("GET", "/nodes", None)?;
        nodes.as_array().cloned().ok_or_else(|| "no list of nodes".to_owned())
    }

    fn wait_whole(&self) {
        until("all engines are ready", LIMIT, || {
            for asked in 0..ENGINES {
                let nodes = self.nodes(asked)?;
                let ready = |node: &&Value| {
                    node["Status"]["State"] == "ready"
                        && node["ManagerStatus"]["Reachability"] == "reachable"
                };
                let ready = nodes.iter().filter(ready).count();
                holds(ready == ENGINES, || format!("{ready} as {asked} sees it"))?;
            }
            Ok(())
        });
    }

    fn leader(&self) -> Result<usize, String> {
        let nodes = self.nodes(0)?;
        let leader = nodes.iter().find(|node| node["ManagerStatus"]["Leader"] == true);
        self.number(leader.ok_or("no leader")?)
    }

    fn number(&self, node: &Value) -> Result<usize, String> {
        let name = node["Description"]["Hostname"].as_str().unwrap_or_default();
        let found = self.engines.iter().position(|engine| engine.name == name);
        found.ok_or_else(|| format!("an engine named {name:?}"))
    }

    /// Running tasks of a service: their ids, and the engines they are on.
    fn running(&self, asked: usize, service: &str) -> Result<Vec<(String, usize)>, String> {
        let nodes = self.nodes(asked)?;
        let filter = format!("/tasks?filters=%7B%22service%22:%5B%22{service}%22%5D%7D");
        let tasks = self.engines[asked].ask("GET", &filter, None)?;
        let tasks = tasks.as_array().into_iter().flatten();
        let runs =
            tasks.filter(|t| t["Status"]["State"] == "running" && t["DesiredState"] == "running");
        runs.map(|task| {
            let node = nodes.iter().find(|node| node["ID"] == task["NodeID"]);
            let id = task["ID"].as_str().unwrap_or_default().to_owned();
            Ok((id, self.number(node.ok_or("a task on no node")?)?))
        })
        .collect()
    }

    fn deploy(&self, name: &str, replicas: usize) -> Result<f64, String> {
        let container = json!({ "Image": self.image, "Command": ["/busybox", "sleep", "100000"] });
        let spec = json!({
            "Name": name,
            "TaskTemplate": { "ContainerSpec": container, "RestartPolicy": { "Condition": "any" } },
            "Mode": { "Replicated": { "Replicas": replicas } },
        });
        let start = Instant::now();
        self.engines[0].ask("POST", "/services/create", Some(&spec))?;
        until(name, LIMIT, || {
            let now = self.running(0, name)?.len();
            holds(now == replicas, || format!("{now} run"))
        });
        Ok(start.elapsed().as_secs_f64())
    }

    fn remove(&self, name: &str) -> Result<(), String> {
        self.engines[0].ask("DELETE", &format!("/services/{name}"), None)?;
        until("its tasks end", LIMIT, || {
            // Once it is gone there is no such service.
            let left = self.running(0, name).map_or(0, |left| left.len());
            holds(left == 0, || format!("{left} run"))
        });
        // The engines take the containers away after they have said so.
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }

    /// From the moment a machine is gone until a task runs that was not there.
    fn heal(&mut self, victim: usize, cable: bool) -> Result<f64, String> {
        let asked = (0..ENGINES).find(|engine| *engine != victim).unwrap_or(0);
        let before: Vec<_> = self.running(asked, "web")?;
        let start = Instant::now();
        match cable {
            true => self.wires.cable(victim, "out"),
            false => self.engines[victim].kill(),
        }
        until("a replacement runs", LIMIT, || {
            let now = self.running(asked, "web")?;
            let new = now.iter().any(|task| task.1 != victim && !before.contains(task));
            holds(new, || format!("{now:?}"))
        });
        let took = start.elapsed().as_secs_f64();
        match cable {
            true => self.wires.cable(victim, "in"),
            false => {
                self.engines[victim].start(&self.wires, victim)?;
            }
        }
        self.wait_whole();
        Ok(took)
    }
}

fn theirs() -> Result<Times, String> {
    if let Some(why) = Wires::missing() {
        return Err(why.into());
    }
    let dir = std::env::temp_dir().join(format!("dugnad-swarm-{}", std::process::id()));
    let mut times = Times::default();
    let mut swarm = Swarm::new(&dir)?;
    for round in 0..DEPLOYS {
        for (replicas, times) in [(1, &mut times.one), (3, &mut times.three)] {
            let name = format!("fresh{replicas}-{round}");
            times.push(swarm.deploy(&name, replicas)?);
            swarm.remove(&name)?;
        }
    }
    for _ in 0..DEATHS {
        for (cable, leads) in [(false, false), (true, false), (false, true)] {
            swarm.deploy("web", ENGINES)?;
            let leader = swarm.leader()?;
            let other = (0..ENGINES).find(|engine| *engine != leader).unwrap_or(0);
            let took = swarm.heal(if leads { leader } else { other }, cable)?;
            match (cable, leads) {
                (true, _) => times.cut.push(took),
                (false, true) => times.leader.push(took),
                (false, false) => times.killed.push(took),
            }
            swarm.remove("web")?;
        }
    }
    drop(swarm);
    // A container may still hold a file of it.
    _ = fs::remove_dir_all(&dir);
    Ok(times)
}

// --- dugnad ----------------------------------------------------------------------------------

fn ours() -> Result<Times, String> {
    let wires = Wires::new(ENGINES, NET);
    let options = Options {
        addresses: (0..ENGINES).map(|node| wires.address(node)).collect(),
        before_each: (0..ENGINES).map(|node| wires.words(node)).collect(),
        ..Options::default()
    };
    let mut community = Community::with("bench-swarm", ENGINES, options);
    let mut times = Times::default();
    community.deploy(0, &speed::server(&community, "everywhere", ENGINES));
    for round in 0..DEPLOYS {
        for (replicas, times) in [(1, &mut times.one), (3, &mut times.three)] {
            let name = format!("fresh{replicas}-{round}");
            let file = speed::server(&community, &name, replicas);
            let start = Instant::now();
            community.ok(round % ENGINES, &["deploy", &file]);
            times.push(start.elapsed().as_secs_f64());
            community.ok(0, &["rm", &name]);
        }
    }
    for round in 0..DEATHS {
        for (cable, leads) in [(false, false), (true, false), (false, true)] {
            let (name, victim) = deployed(&community, round, leads)?;
            let asked = (0..ENGINES).find(|node| *node != victim).unwrap_or(0);
            enter(&wires.namespace(asked)).map_err(|error| error.to_string())?;
            let pid = community.pid(victim);
            let took = speed::heal(&community, asked, &name, LIMIT, || match cable {
                true => wires.cable(victim, "out"),
                false => {
                    // The process is ours and alive: the signal arrives.
                    _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            });
            match (cable, leads) {
                (true, _) => {
                    wires.cable(victim, "in");
                    times.cut.push(took);
                }
                (false, leads) => {
                    community.kill(victim);
                    community.start(victim);
                    if leads { times.leader.push(took) } else { times.killed.push(took) }
                }
            }
            community.wait_whole();
            community.ok(0, &["rm", &name]);
        }
    }
    Ok(times)
}

/// A service with two replicas, so that there is a third machine, and one machine that runs one of
/// them: that of its manager, or another. Who manages a service its name decides.
fn deployed(community: &Community, round: usize, leads: bool) -> Result<(String, usize), String> {
    for number in 0..50 {
        let name = format!("web-{round}-{number}");
        community.deploy(0, &speed::server(community, &name, 2));
        let leader = community.manager(0, &name);
        let on = community.ready_on(0, &name)?;
        if let Some(victim) = on.into_iter().find(|node| (*node == leader) == leads) {
            return Ok((name, victim));
        }
        community.ok(0, &["rm", &name]);
    }
    Err("no service is managed where it runs".into())
}
