//! Twenty serf agents with their defaults for a LAN, spoken to over their MessagePack RPC.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rmpv::Value;

use crate::overlay::{CASTS, Heard, LIMIT, NODES, PAUSE, ROUNDS, Times, all_heard, last};

struct Agents(Vec<Option<Child>>);

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in self.0.iter_mut().flatten() {
            // It may have ended by itself.
            let _: std::io::Result<()> = agent.kill();
            let _: std::io::Result<std::process::ExitStatus> = agent.wait();
        }
    }
}

fn rpc_addr(node: usize) -> SocketAddr {
    let last = u8::try_from(node + 1).unwrap_or(u8::MAX);
    ([127, 77, 1, last], 7373).into()
}

impl Agents {
    fn start(&mut self, node: usize) -> Result<(), String> {
        let last = node + 1;
        let mut command = Command::new("serf");
        command.args(["agent", "-log-level=info"]);
        command.arg(format!("-node=n{node}")).arg(format!("-bind=127.77.0.{last}:7946"));
        command.arg(format!("-rpc-addr={}", rpc_addr(node)));
        if node > 0 {
            command.arg("-join=127.77.0.1:7946");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("serf: {error}"))?;
        self.0[node] = Some(child);
        Ok(())
    }

    fn kill(&mut self, node: usize) {
        if let Some(mut agent) = self.0[node].take() {
            // SIGKILL of a child that was not waited for arrives.
            let _: std::io::Result<()> = agent.kill();
            let _: std::io::Result<std::process::ExitStatus> = agent.wait();
        }
    }
}

struct Rpc {
    stream: BufReader<TcpStream>,
    seq: u64,
}

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Map(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

fn field<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let pairs = value.as_map()?;
    pairs.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
}

impl Rpc {
    fn open(node: usize) -> Result<Self, String> {
        let start = Instant::now();
        let stream = loop {
            match TcpStream::connect(rpc_addr(node)) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > LIMIT => {
                    return Err(format!("serf n{node}: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut rpc = Self { stream: BufReader::new(stream), seq: 0 };
        rpc.call("handshake", map(vec![("Version", 1.into())]))?;
        Ok(rpc)
    }

    /// Sends a command and reads its header.
    fn call(&mut self, command: &str, body: Value) -> Result<(), String> {
        self.seq += 1;
        let head = map(vec![("Command", command.into()), ("Seq", self.seq.into())]);
        let mut bytes = Vec::new();
        for value in [&head, &body] {
            rmpv::encode::write_value(&mut bytes, value).map_err(|error| error.to_string())?;
        }
        self.stream.get_mut().write_all(&bytes).map_err(|error| error.to_string())?;
        let header = self.next()?;
        match field(&header, "Error").and_then(Value::as_str) {
            None | Some("") => Ok(()),
            Some(error) => Err(format!("serf {command}: {error}")),
        }
    }

    fn next(&mut self) -> Result<Value, String> {
        rmpv::decode::read_value(&mut self.stream).map_err(|error| error.to_string())
    }

    fn alive(&mut self) -> Result<usize, String> {
        self.call("members", map(Vec::new()))?;
        let body = self.next()?;
        let members = field(&body, "Members").and_then(Value::as_array);
        let alive =
            |member: &&Value| field(member, "Status").and_then(Value::as_str) == Some("alive");
        Ok(members.map_or(0, |members| members.iter().filter(alive).count()))
    }
}

/// Tells of a stream of serf until the agent ends: `key` of every record.
fn follow(
    node: usize,
    command: &'static str,
    body: Value,
    key: &'static str,
    to: Sender<Heard>,
) -> Result<(), String> {
    let mut rpc = Rpc::open(node)?;
    rpc.call(command, body)?;
    std::thread::spawn(move || {
        while let (Ok(_), Ok(record)) = (rpc.next(), rpc.next()) {
            let text = field(&record, key).and_then(Value::as_str).unwrap_or_default().to_owned();
            // The bench may be over.
            let _: Result<(), _> = to.send((node, Instant::now(), text));
        }
    });
    Ok(())
}

/// User events by name, and its log: what it says of members in the stream comes seconds late.
fn listen(node: usize, to: &Sender<Heard>) -> Result<(), String> {
    follow(node, "stream", map(vec![("Type", "user".into())]), "Name", to.clone())?;
    follow(node, "monitor", map(vec![("LogLevel", "INFO".into())]), "Log", to.clone())
}

fn wait_whole() -> Result<(), String> {
    let start = Instant::now();
    for node in 0..NODES {
        let mut rpc = Rpc::open(node)?;
        while rpc.alive()? != NODES {
            if start.elapsed() > LIMIT {
                return Err(format!("serf n{node} does not see {NODES} members"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// # Errors
/// serf is not installed or does not do its work.
pub(crate) fn measure() -> Result<Times, String> {
    let mut agents = Agents((0..NODES).map(|_| None).collect());
    for node in 0..NODES {
        agents.start(node)?;
        if node == 0 {
            Rpc::open(0)?;
        }
    }
    wait_whole()?;
    let (to, heard) = channel();
    for node in 0..NODES {
        listen(node, &to)?;
    }
    let mut times = Times::default();
    for number in 0..CASTS {
        std::thread::sleep(PAUSE);
        let mut rpc = Rpc::open((number * 7) % NODES)?;
        let name = format!("bench-{number}");
        let start = Instant::now();
        let event = map(vec![
            ("Name", name.as_str().into()),
            ("Payload", Value::Binary(vec![b'x'; 64])),
            ("Coalesce", false.into()),
        ]);
        rpc.call("event", event)?;
        times.cast.push(last(&all_heard(&heard, start, NODES, |text| text == name), NODES));
    }
    for round in 0..ROUNDS {
        let victim = 1 + (round * 5) % (NODES - 1);
        let start = Instant::now();
        agents.kill(victim);
        let failed = format!("EventMemberFailed: n{victim} ");
        let gone = all_heard(&heard, start, NODES - 1, |text| text.contains(&failed));
        times.death.push(last(&gone, NODES - 1));
        // As a person would: not in the second in which it died.
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        agents.start(victim)?;
        let joined = format!("EventMemberJoin: n{victim} ");
        let all = all_heard(&heard, start, NODES - 1, |text| text.contains(&joined));
        times.join.push(last(&all, NODES - 1));
        wait_whole()?;
        listen(victim, &to)?;
    }
    Ok(times)
}
