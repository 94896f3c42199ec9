//! The demo's community: real agents on loopback, each with a folder of its own, and their end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dugnad_kernel::Id;
use dugnad_platform::cgroup;
use dugnad_platform::probe::Roots;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::super::Failure;
use super::super::setup::{self, Wishes};
use super::sweep;
use crate::config::{Config, Dirs, Env, Overrides};
use crate::control::Client;
use crate::identity::Community as Secret;
use crate::invite::Invitation;

const LIMITS: &str = "[limits]\ncpu = \"2.0\"\nmemory = \"512M\"\ndisk = \"4G\"\n\
                      processes = 256\nupload = \"unlimited\"\n";
const LOG: &str = "agent.log";
const START_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Node {
    pub(super) name: String,
    /// As 32 hexadecimal digits.
    pub(super) id: String,
    pub(super) gateway: SocketAddr,
    pub(super) client: Client,
    dirs: Dirs,
    agent: Option<Child>,
}

/// Everything ends when this is dropped.
pub(super) struct Community {
    pub(super) mark: String,
    pub(super) dir: PathBuf,
    pub(super) nodes: Vec<Node>,
    signals: SigSet,
}

fn fail(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

/// Ports of loopback nobody listens on now; all different.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, Failure> {
    let any = |_| TcpListener::bind("127.0.0.1:0");
    let taken = (0..count).map(any).collect::<Result<Vec<_>, _>>();
    taken
        .and_then(|taken| taken.iter().map(TcpListener::local_addr).collect())
        .map_err(|error| Failure::failed(format!("no free port on 127.0.0.1: {error}")))
}

impl Community {
    /// The files of `count` nodes of one community; no process yet. `signals` are those the demo
    /// has blocked for itself.
    pub(super) fn found(count: usize, signals: SigSet, env: Env<'_>) -> Result<Self, Failure> {
        let mark = format!("dugnad-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let dir = std::env::temp_dir().join(&mark);
        fs::create_dir(&dir).map_err(|error| fail(&dir, &error))?;
        // From here on the folder is removed when we fail.
        let mut community = Self { mark, dir, nodes: Vec::new(), signals };
        let secret = Secret::create("demo").map_err(|error| Failure::failed(error.to_string()))?;
        let ports = free_ports(2 * count)?;
        let mut token = None;
        for (number, ports) in ports.chunks_exact(2).enumerate() {
            let name = format!("node{}", number + 1);
            let node =
                community.settle(name, ports[0], ports[1], &secret, token.as_deref(), env)?;
            if token.is_none() {
                let config = Config::load(&node.dirs, &Overrides::default(), &|_| None);
                let config = config.map_err(Failure::failed)?;
                token = Some(setup::token(&node.dirs, &config, Duration::from_secs(3_600))?);
            }
            community.nodes.push(node);
        }
        Ok(community)
    }

    /// What `init` does for the first node and `join` for the others.
    fn settle(
        &self,
        name: String,
        overlay: SocketAddr,
        gateway: SocketAddr,
        secret: &Secret,
        token: Option<&str>,
        env: Env<'_>,
    ) -> Result<Node, Failure> {
        let dir = self.dir.join(&name);
        let dirs = Dirs::resolve(Some(&dir), env, false).map_err(Failure::failed)?;
        fs::create_dir(&dir)
            .and_then(|()| fs::write(&dirs.config, LIMITS))
            .map_err(|error| fail(&dirs.config, &error))?;
        let invitation = match token {
            Some(token) => {
                let read = token.parse::<Invitation>();
                Some(read.map_err(|error| Failure::failed(error.to_string()))?)
            }
            None => None,
        };
        let addrs = invitation.as_ref().map(|invitation| invitation.addrs.as_slice());
        let wishes = Wishes {
            name: Some(name.clone()),
            overlay: Some(overlay.to_string()),
            gateway: Some(gateway.to_string()),
            seeds: addrs.unwrap_or_default().iter().map(ToString::to_string).collect(),
        };
        let secret = invitation.as_ref().map_or(secret, |invitation| &invitation.community);
        let (id, _) = setup::settle(&dirs, secret, &wishes, &|_| None)?;
        let client = Client::new(dirs.socket.clone());
        Ok(Node { name, id: id.to_string(), gateway, client, dirs, agent: None })
    }

    /// Starts one agent and waits for the line that says it is ready.
    pub(super) async fn start(&mut self, number: usize) -> Result<(), Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("where is this program? {error}")))?;
        let node = &mut self.nodes[number];
        let log = node.dirs.state.join(LOG);
        let file = File::create(&log).map_err(|error| fail(&log, &error))?;
        let mut command = Command::new(&program);
        command
            .args(["agent", "--dir"])
            .arg(&node.dirs.state)
            .env(sweep::VARIABLE, &self.mark)
            .env_remove("DUGNAD_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            // A Ctrl-C at the terminal is for the demo, which then ends its agents in order.
            .process_group(0);
        for variable in ["DUGNAD_NAME", "DUGNAD_OVERLAY", "DUGNAD_GATEWAY", "DUGNAD_SOCKET"] {
            command.env_remove(variable);
        }
        // A child inherits what its parent blocks, so nothing is blocked in this moment.
        let unblocked = self.signals.thread_unblock();
        let child = command.spawn();
        let blocked = self.signals.thread_block();
        unblocked
            .and(blocked)
            .map_err(|errno| Failure::failed(format!("cannot block signals: {errno}")))?;
        let mut child = child.map_err(|error| fail(&program, &error))?;
        let stdout = child.stdout.take();
        node.agent = Some(child);
        let name = node.name.clone();
        let reading = smol::unblock(move || {
            let mut line = String::new();
            stdout
                .map(|stdout| BufReader::new(stdout).read_line(&mut line))
                .transpose()
                .map(|_| line)
        });
        let late = async {
            smol::Timer::after(START_LIMIT).await;
            Ok(String::new())
        };
        match smol::future::or(reading, late).await {
            Ok(line) if !line.is_empty() => Ok(()),
            _ => Err(Failure::failed(format!("the agent of {name} did not say that it is ready"))),
        }
    }

    /// Kills an agent as a power cut would; its services go on without it, as they would.
    pub(super) fn kill(&mut self, number: usize) -> Result<(), Failure> {
        let node = &mut self.nodes[number];
        let agent = node.agent.as_mut();
        let agent = agent.ok_or_else(|| Failure::failed("it does not run"))?;
        let killed = Child::kill(agent).and_then(|()| agent.wait());
        killed.map_err(|error| Failure::failed(format!("cannot kill {}: {error}", node.name)))?;
        node.agent = None;
        Ok(())
    }

    /// Any agent that runs, to talk to.
    pub(super) fn living(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.agent.is_some())
    }

    /// The last lines of every agent's log.
    pub(super) fn last_words(&self) -> Vec<String> {
        let of = |node: &Node| {
            let lines = last_lines(&node.dirs.state.join(LOG));
            lines.into_iter().map(|line| format!("{}: {line}", node.name)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// Ends all agents, then whatever is left with our mark, then the folder. What could not be
    /// done, for people.
    pub(super) fn end(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for agent in self.nodes.iter_mut().filter_map(|node| node.agent.as_mut()) {
            if let Ok(pid) = i32::try_from(agent.id()) {
                // It may have ended by itself.
                let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let start = Instant::now();
        for node in &mut self.nodes {
            let Some(mut agent) = node.agent.take() else { continue };
            while matches!(agent.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Those that ended are only collected by this.
            if let Err(error) = agent.kill().and_then(|()| agent.wait()) {
                left.push(format!("the agent of {}: {error}", node.name));
            }
        }
        match sweep::end(&self.mark, &self.dir) {
            0 => {}
            count => {
                left.push(format!("{count} processes that carry {} could not be ended", self.mark))
            }
        }
        let roots = Roots::default();
        for node in &self.nodes {
            let id = u128::from_str_radix(&node.id, 16).unwrap_or_default();
            // Killed agents could not remove theirs. Where it is in use, something is left that
            // was told above.
            let group = cgroup::left_by(&roots, &crate::host::group_name(Id(id)));
            left.extend(group.remove().err().map(|error| error.to_string()));
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            if error.kind() != std::io::ErrorKind::NotFound {
                left.push(format!("{}: cannot remove: {error}", self.dir.display()));
            }
        }
        left
    }
}

impl Drop for Community {
    fn drop(&mut self) {
        for line in self.end() {
            eprintln!("dugnad: {line}");
        }
    }
}

fn last_lines(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(3)..].to_vec()
}
