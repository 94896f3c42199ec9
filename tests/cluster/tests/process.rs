//! Programs as services: real servers of several kinds, what they may expect, and what people see.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dugnad_cluster::http::{self, Connection};
use dugnad_cluster::{
    Community, PATIENCE, holds, installed, processes_of, root, run, say, skip, slim_program, until,
    write,
};

const NEEDS: &str = "[needs]\nmemory = \"64M\"\ncpu = \"5%\"\ndisk = \"8M\"\nprocesses = 16\n";

fn executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Every node's gateway gives this text for the path.
fn everywhere(community: &Community, path: &str, wanted: &str) {
    for node in &community.nodes {
        until(&format!("{path} through {}", node.name), Duration::from_secs(10), || {
            let text = http::get_text(node.gateway, path)?;
            holds(text.contains(wanted), || text.clone())
        });
    }
    say(community.start, &format!("{path} answers through every node"));
}

fn host_servers(community: &Community) {
    let page = "from a program of the host";
    for (name, path, words) in [
        ("busy", "/usr/bin/busybox", r#""httpd", "-f", "-p", "127.0.0.1:$PORT""#),
        ("py", "/usr/bin/python3", r#""-m", "http.server", "--bind", "$HOST", "$PORT""#),
    ] {
        if installed(&[path]).is_none() {
            skip(name, &format!("no {path}"));
            continue;
        }
        write(&community.folder(&format!("files-{name}/pkg")).join("index.html"), page);
        let file = community.service_file(
            name,
            &format!(
                "name = \"{name}\"\nreplicas = 2\ncommand = [\"{path}\", {words}]\n\
                 stop_grace = \"1s\"\n[artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n{NEEDS}"
            ),
        );
        community.deploy(1, &file);
        everywhere(community, &format!("/{name}/"), page);
        community.ok(2, &["rm", name]);
    }
}

/// A service reaches another by its name, wherever that runs.
fn by_name(community: &Community) {
    let (busybox, curl) = ("/usr/bin/busybox", "/usr/bin/curl");
    if !root() || installed(&[busybox]).is_none() || installed(&[curl]).is_none() {
        return skip("services by name", "needs root, busybox and curl");
    }
    let page = "found by its name";
    write(&community.folder("files-named/pkg").join("index.html"), page);
    let named = "name = \"named\"\nkind = \"static\"\nreplicas = 1\n[artifacts]\nany = \"pkg/\"\n";
    community.deploy(0, &community.service_file("named", named));
    let asker = format!(
        "name = \"asker\"\nreplicas = 3\nuses = [\"named\"]\n\
         command = [\"/bin/sh\", \"-c\", \"{curl} -sSf http://named.dugnad.internal:7480/ \
         > index.html && exec {busybox} httpd -f -p 127.0.0.1:$PORT\"]\n\
         [port]\nhttp = true\n{NEEDS}"
    );
    community.deploy(1, &community.service_file("asker", &asker));
    everywhere(community, "/asker/", page);
    // The same page as a browser on the node would find it.
    let url = format!("http://named.localhost:{}/", community.nodes[0].gateway.port());
    let to = format!("named.localhost:{}:{}", 7480, community.nodes[0].gateway.ip());
    let seen = run(&[curl, "-sSf", "--resolve", &to, &url]);
    assert!(String::from_utf8_lossy(&seen.stdout).contains(page));
    community.ok(2, &["rm", "asker"]);
    community.ok(2, &["rm", "named"]);
}

/// The clock of `configs/services`, asked by UDP through every node.
fn datagrams(community: &Community) {
    let python = "/usr/bin/python3";
    if installed(&[python]).is_none() {
        return skip("clock by UDP", "no /usr/bin/python3");
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/services/");
    let port = free_udp_port();
    let written = fs::read_to_string(format!("{folder}clock.toml")).unwrap();
    let file = community.service_file("clock", &written.replace("7013", &port.to_string()));
    let package = community.folder("files-clock/clock");
    fs::copy(format!("{folder}clock/clock.py"), package.join("clock.py")).unwrap();
    community.deploy(0, &file);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for node in &community.nodes {
        until(&format!("the time through {}", node.name), Duration::from_secs(10), || {
            let at = (node.gateway.ip(), port);
            client.send_to(b"?", at).map_err(|error| error.to_string())?;
            let mut got = [0; 100];
            let (length, from) = client.recv_from(&mut got).map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&got[..length]).into_owned();
            holds(from == at.into() && text.contains("replica"), || text.clone())
        });
    }
    say(community.start, "datagrams reach it through every node");
    community.ok(2, &["rm", "clock"]);
}

/// Counts what it is asked to do, and answers with the number.
const TILL: &str = "\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
count = 0
class Till(BaseHTTPRequestHandler):
    def do_POST(self):
        global count
        count += 1
        body = str(count).encode()
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(201)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), Till).serve_forever()
";

/// A request with a key is done once, through whichever nodes it comes.
fn at_most_once(community: &Community) {
    let (python, curl) = ("/usr/bin/python3", "/usr/bin/curl");
    if installed(&[python]).is_none() || installed(&[curl]).is_none() {
        return skip("requests done once", "needs python3 and curl");
    }
    write(&community.folder("files-till/pkg").join("till.py"), TILL);
    let file = community.service_file(
        "till",
        &format!(
            "name = \"till\"\ncommand = [\"{python}\", \"till.py\"]\nstop_grace = \"1s\"\n\
             [artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n{NEEDS}"
        ),
    );
    community.deploy(0, &file);
    let pay = |node: usize, key: &str| {
        let url = format!("http://{}/till/", community.nodes[node].gateway);
        let key = format!("Idempotency-Key: {key}");
        let said = run(&[curl, "-sS", "-i", "-H", &key, "-d", "5 kr", &url]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    for (number, key) in ["a", "b"].iter().enumerate() {
        for node in 0..community.nodes.len() {
            let answer = pay(node, key);
            assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{}", number + 1)), "{answer}");
            assert_eq!(answer.contains("idempotent-replayed: true"), node > 0, "{answer}");
        }
    }
    say(community.start, "what has a key is done once, through every node");
    community.ok(2, &["rm", "till"]);
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server of the distribution, brought along as a package of its own.
fn packaged_server(community: &Community) {
    let Some(lighttpd) = installed(&["/usr/sbin/lighttpd"]) else {
        return skip("lighttpd as a package", "no /usr/sbin/lighttpd");
    };
    let package = community.folder("files-light/pkg");
    fs::copy(lighttpd, package.join("lighttpd")).unwrap();
    executable(&package.join("lighttpd"));
    write(&package.join("www/index.html"), "from lighttpd");
    write(
        &package.join("light.conf"),
        "server.document-root = var.CWD + \"/www\"\nserver.port = env.PORT\n\
         server.bind = \"127.0.0.1\"\nindex-file.names = ( \"index.html\" )\n\
         mimetype.assign = ( \".html\" => \"text/html\" )\nserver.event-handler = \"poll\"\n",
    );
    let arch = std::env::consts::ARCH;
    let file = community.service_file(
        "light",
        &format!(
            "name = \"light\"\nreplicas = 2\nstop_grace = \"1s\"\n\
             command = [\"./lighttpd\", \"-D\", \"-f\", \"light.conf\"]\n\
             [artifacts]\n{arch} = \"pkg/\"\n[port]\nhttp = true\n{NEEDS}"
        ),
    );
    community.deploy(2, &file);
    everywhere(community, "/light/", "from lighttpd");
    community.ok(0, &["rm", "light"]);
}

fn own_server(community: &Community) {
    let package = community.folder("files-own/pkg");
    slim_program(&package.join("server"));
    executable(&package.join("server"));
    let arch = std::env::consts::ARCH;
    let file = community.service_file(
        "own",
        &format!(
            "name = \"own\"\nreplicas = 2\nstop_grace = \"1s\"\n\
             command = [\"./server\", \"demo-server\"]\n\
             [artifacts]\n{arch} = \"pkg/\"\n[port]\nhttp = true\n{NEEDS}"
        ),
    );
    community.deploy(0, &file);
    everywhere(community, "/own/", "of own on node n");
    let running = processes_of(&community.mark, "own");
    assert_eq!(running.len(), 2, "{running:?}");
    community.ok(1, &["stop", "own"]);
    until("stopped", Duration::from_secs(20), || {
        let running = processes_of(&community.mark, "own");
        holds(running.is_empty(), || format!("{running:?}"))
    });
    // It stays known, and the same file starts it again.
    assert_eq!(community.service(2, "own").unwrap()["stopped"], true);
    community.deploy(2, &file);
    everywhere(community, "/own/", "of own on node n");
    community.ok(1, &["rm", "own"]);
    until("all gone", Duration::from_secs(20), || {
        let services = community.json(0, &["ps"])?;
        holds(services.as_array().is_some_and(Vec::is_empty), || services.to_string())?;
        let running = community.mark.processes().len();
        holds(running == 3, || format!("{running} processes, 3 of them agents"))
    });
    say(community.start, "stopped, started again, removed: no process is left");
}

#[test]
fn servers_of_every_kind_run() {
    let community = Community::new("servers", 3);
    host_servers(&community);
    by_name(&community);
    datagrams(&community);
    at_most_once(&community);
    packaged_server(&community);
    own_server(&community);
}

/// Tells its environment, upgrades connections to an echo, and logs what it is told to.
const TALKER: &str = r#"
import os, socket, sys, threading

def serve(conn):
    file = conn.makefile("rb")
    while True:
        request = file.readline().decode().split(" ")
        headers = {}
        while True:
            line = file.readline().decode().strip()
            if not line:
                break
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if len(request) < 2:
            return
        path = request[1]
        if headers.get("upgrade", "").lower() == "echo":
            conn.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
            conn.sendall(b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\nhello ")
            while True:
                data = file.read1(4096)
                if not data:
                    return
                conn.sendall(data.upper())
        if path.startswith("/log/"):
            print("said", path[5:], "by", os.environ["DUGNAD_REPLICA"], flush=True)
        if path == "/count":
            name = os.path.join(os.environ["STATE_DIRECTORY"], "count")
            count = int(open(name).read()) + 1 if os.path.exists(name) else 1
            with open(name, "w") as out:
                out.write(str(count))
            body = str(count).encode()
        elif path == "/length":
            body = str(len(file.read(int(headers["content-length"])))).encode()
        else:
            body = "".join(f"{k}={v}\n" for k, v in sorted(os.environ.items())).encode()
            body += f"cwd={os.getcwd()}\nuid={os.getuid()}\npath={path}\n".encode()
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

listener = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])))
print("started replica", os.environ["DUGNAD_REPLICA"], flush=True)
print("a word on stderr", file=sys.stderr, flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"#;

fn deploy_talker(community: &Community, node: usize, replicas: usize) {
    write(&community.folder("files-talk/pkg").join("talk.py"), TALKER);
    let file = community.service_file(
        "talk",
        &format!(
            "name = \"talk\"\nreplicas = {replicas}\nstop_grace = \"1s\"\n\
             command = [\"/usr/bin/python3\", \"talk.py\", \"port is $PORT\"]\n\
             [env]\nGREETING = \"god dag\"\n\
             [artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n[state]\nkeep = true\n{NEEDS}"
        ),
    );
    community.deploy(node, &file);
}

fn check_contract(community: &Community, through: usize) {
    let told = http::get_text(community.nodes[through].gateway, "/talk/some/path?x=1").unwrap();
    let value = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {told}")).to_owned()
    };
    assert!(value("PORT").parse::<u16>().unwrap() > 0);
    assert_eq!(value("HOST"), "127.0.0.1");
    assert_eq!(value("GREETING"), "god dag");
    assert_eq!(value("DUGNAD_SERVICE"), "talk");
    assert!(value("DUGNAD_REPLICA").parse::<u32>().unwrap() < 2);
    assert!(value("DUGNAD_NODE").starts_with('n'));
    assert_eq!(value("DUGNAD_ARCH"), std::env::consts::ARCH);
    assert!(Path::new(&value("STATE_DIRECTORY")).is_absolute());
    assert!(value("DUGNAD_SOCKET").ends_with("dugnad.sock"));
    assert_eq!(value("path"), "/some/path?x=1", "the service's name is not part of its paths");
    if dugnad_cluster::root() {
        assert!((60_000..65_000).contains(&value("uid").parse::<u32>().unwrap()), "{told}");
    }
    // Nothing of the agent's own environment leaks.
    assert!(!told.contains("DUGNAD_CLUSTER_TEST") && !told.contains("CARGO"), "{told}");
    say(community.start, "the environment is as promised");
}

fn check_upgrade(community: &Community, through: usize) {
    let mut connection = Connection::open(community.nodes[through].gateway).unwrap();
    let answer =
        connection.ask("GET", "/talk/ws", &["Connection: Upgrade", "Upgrade: echo"]).unwrap();
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("upgrade"), "echo");
    connection.send(b"over the wire\n").unwrap();
    assert_eq!(connection.line().unwrap(), "hello OVER THE WIRE");
    let long = "x".repeat(300_000);
    connection.send(format!("{long}\n").as_bytes()).unwrap();
    assert_eq!(connection.line().unwrap(), "X".repeat(300_000));
    say(community.start, "an upgraded connection carries bytes both ways");
}

fn check_body(community: &Community, through: usize) {
    let mut connection = Connection::open(community.nodes[through].gateway).unwrap();
    let body = vec![b'z'; 5 << 20];
    let head =
        format!("POST /talk/length HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.send(head.as_bytes()).unwrap();
    connection.send(&body).unwrap();
    assert_eq!(connection.answer(false).unwrap().text(), body.len().to_string());
}

/// Lines of a following command, as they come.
fn follow(
    community: &Community,
    node: usize,
    words: &[&str],
) -> (std::process::Child, mpsc::Receiver<String>) {
    let mut command = community.prepare(node, words);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (to, from) = mpsc::channel();
    std::thread::spawn(move || {
        lines.map_while(Result::ok).take_while(|line| to.send(line.clone()).is_ok()).count();
    });
    (child, from)
}

fn wait_line(from: &mpsc::Receiver<String>, what: &str, fits: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    let mut seen = Vec::new();
    while let Some(left) = PATIENCE.checked_sub(start.elapsed()) {
        let Ok(line) = from.recv_timeout(left) else { break };
        if fits(&line) {
            return line;
        }
        seen.push(line);
    }
    panic!("no line with {what} in {seen:?}");
}

#[test]
fn programs_get_what_they_were_promised() {
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip("programs_get_what_they_were_promised", "no /usr/bin/python3");
    }
    let community = Community::new("talk", 4);
    let (mut watching, events) = follow(&community, 3, &["events", "-f"]);
    deploy_talker(&community, 1, 2);
    let event = wait_line(&events, "talk is ready", |l| l.contains("talk") && l.contains("ready"));
    say(community.start, &format!("events -f told: {event}"));
    let on = community.ready_on(0, "talk").unwrap();
    let without = (0..4).find(|node| !on.contains(node)).unwrap();
    check_contract(&community, without);
    check_contract(&community, on[0]);
    check_upgrade(&community, without);
    check_upgrade(&community, on[0]);
    check_body(&community, without);

    let (mut child, lines) = follow(&community, without, &["logs", "talk", "-f"]);
    let mut replicas: Vec<String> = (0..2)
        .map(|_| wait_line(&lines, "started replica", |line| line.contains("started replica")))
        .collect();
    replicas.sort();
    assert_ne!(replicas[0], replicas[1]);
    // Each replica's own gateway prefers it.
    for node in &on {
        http::get_text(community.nodes[*node].gateway, &format!("/talk/log/n{node}")).unwrap();
        let line = wait_line(&lines, "what was said", |l| l.contains(&format!("said n{node}")));
        say(community.start, &format!("logs -f on n{without}, which runs none: {line}"));
    }
    let once = community.ok(without, &["logs", "talk", "--tail", "50"]).out;
    assert!(once.contains("a word on stderr") && once.matches("started replica").count() == 2);

    // State outlives a new version: the count goes on.
    let count = |node: usize| http::get_text(community.nodes[node].gateway, "/talk/count").unwrap();
    assert_eq!(count(on[0]), "1");
    write(&community.folder("files-talk/pkg").join("more.txt"), "version 2");
    deploy_talker(&community, 2, 2);
    assert_eq!(community.service(3, "talk").unwrap()["version"], 2);
    let after = community.ready_on(0, "talk").unwrap();
    if after.contains(&on[0]) {
        assert_eq!(count(on[0]), "2");
        say(community.start, "state was kept over an update");
    }
    for mut process in
        [child.kill().map(|()| child), watching.kill().map(|()| watching)].map(Result::unwrap)
    {
        process.wait().unwrap();
    }
    community.ok(0, &["rm", "talk"]);
}

const ECHO: &str = r"
import os, shutil, socketserver

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        shutil.copyfileobj(self.rfile, self.wfile)

socketserver.ThreadingTCPServer(('127.0.0.1', int(os.environ['PORT'])), Echo).serve_forever()
";

/// `dugnad connect` from a node that does not run it, to all, one, and those that meet a condition.
fn connects(community: &Community) {
    let ready = community.ready_on(0, "echo").unwrap();
    let from = (0..4).find(|node| !ready.contains(node)).unwrap();
    let on = &community.nodes[ready[0]].name;
    for which in ["echo", "echo@0", "echo@1", &format!("echo@name={on}")] {
        let mut child = community
            .prepare(from, &["connect", which])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"\x00\xffraw bytes\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{which}: {output:?}");
        assert!(output.stdout.ends_with(b"\x00\xffraw bytes\n"), "{which}: {output:?}");
    }
    for (which, code) in [("echo@9", 3), ("echo@name=nobody", 3), ("echo@nme=x", 2), ("no", 3)] {
        let said = community.cli(from, &["connect", which]);
        assert_eq!(said.code, code, "{which}: {}", said.all());
    }
    say(community.start, "connect reaches any replica, one, and one on a certain node");
}

#[test]
fn a_tcp_port_is_the_same_on_every_node() {
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip("a_tcp_port_is_the_same_on_every_node", "no /usr/bin/python3");
    }
    let community = Community::new("tcp", 4);
    let port = 6379;
    write(&community.folder("files-echo/pkg").join("echo.py"), ECHO);
    let file = community.service_file(
        "echo",
        &format!(
            "name = \"echo\"\nreplicas = 2\nstop_grace = \"1s\"\n\
             command = [\"/usr/bin/python3\", \"echo.py\"]\n\
             [artifacts]\nany = \"pkg/\"\n[port]\ntcp = {port}\n{NEEDS}"
        ),
    );
    community.deploy(3, &file);
    for node in &community.nodes {
        until(&format!("port {port} of {}", node.name), Duration::from_secs(10), || {
            let talk = || -> std::io::Result<String> {
                let mut stream = TcpStream::connect((node.gateway.ip(), port))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(b"\x00\xffraw bytes\n")?;
                stream.shutdown(std::net::Shutdown::Write)?;
                let mut back = Vec::new();
                stream.read_to_end(&mut back)?;
                Ok(String::from_utf8_lossy(&back).into_owned())
            };
            let back = talk().map_err(|error| error.to_string())?;
            holds(back.ends_with("raw bytes\n"), || back.clone())
        });
    }
    say(community.start, "the port echoes on every node");
    connects(&community);
    community.ok(0, &["rm", "echo"]);
    until("the port is closed", Duration::from_secs(20), || {
        let open =
            |node: &&dugnad_cluster::Node| TcpStream::connect((node.gateway.ip(), port)).is_ok();
        let open: Vec<_> = community.nodes.iter().filter(open).map(|node| &node.name).collect();
        holds(open.is_empty(), || format!("open on {open:?}"))
    });
}
