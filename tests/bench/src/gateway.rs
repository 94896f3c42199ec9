//! The way in, beside caddy on the same two cores: requests a second and the slowest of a hundred,
//! to the same nginx behind both, and to the same folder. `caddy`, `nginx` and `wrk` are Debian's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dugnad_cluster::{Community, http, installed, until, write};

use crate::Row;

const SECONDS: u32 = 5;
const CONNECTIONS: [u32; 2] = [8, 32];
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of the file that is passed on, and of the large one.
const PAGE: usize = 285_000;
const LARGE: usize = 200 << 20;

const NGINX: &str = "daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr;
events { worker_connections 256; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path /tmp/a;
proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
server { listen 127.0.0.1:PORT; location / { return 200 \"hello from nginx\\n\"; } } }
";

/// What is wanted through the own node, and through the other: in words, and as a ratio.
type Budget = [(&'static str, f64); 2];

/// A program that ends with the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Requests a second, and the 99th percentile in milliseconds.
#[derive(Clone, Copy)]
struct Speed {
    requests: f64,
    p99: f64,
}

fn wrk(url: &str, connections: u32) -> Speed {
    let output = Command::new("wrk")
        .args([
            "-t1",
            "--latency",
            "-c",
            &connections.to_string(),
            "-d",
            &format!("{SECONDS}s"),
            url,
        ])
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Non-2xx"), "{url}: {text}");
    let word = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
    };
    let p99 = word("99%");
    let number = |unit: &str| p99.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok());
    // The longer endings first: "ms" ends with "s", too.
    let p99 = number("us").map(|us| us / 1e3).or_else(|| number("ms"));
    let p99 = p99.or_else(|| number("s").map(|s| s * 1e3)).unwrap_or(f64::NAN);
    Speed { requests: word("Requests/sec:").parse().unwrap_or(f64::NAN), p99 }
}

fn port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Caddy with one site; where it answers.
fn caddy(folder: &Path, site: &str) -> (Running, String) {
    let port = port();
    let file = folder.join("Caddyfile");
    write(
        &file,
        format!("{{\n admin off\n auto_https off\n}}\nhttp://127.0.0.1:{port} {{\n{site}\n}}\n"),
    );
    let child = Command::new("caddy")
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("XDG_DATA_HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("caddy runs");
    let addr = format!("127.0.0.1:{port}").parse().expect("an address");
    until("caddy answers", LIMIT, || http::get_text(addr, "/").map(drop));
    (Running(child), format!("http://{addr}/"))
}

fn row(what: &str, budget: &'static str, least: f64, ours: Speed, theirs: Speed) -> Row {
    let ratio = ours.requests / theirs.requests;
    let measured = format!(
        "{ratio:.2} times caddy's ({:.0}/s, p99 {:.2} ms; caddy {:.0}/s, {:.2} ms)",
        ours.requests, ours.p99, theirs.requests, theirs.p99
    );
    Row::new(what, budget, measured).kept(ratio >= least && ours.p99 <= theirs.p99)
}

/// Seconds to get all of it.
fn seconds(url: &str) -> f64 {
    let start = Instant::now();
    let done = Command::new("curl").args(["-sf", "-o", "/dev/null", url]).status();
    assert!(done.is_ok_and(|done| done.success()), "{url}");
    start.elapsed().as_secs_f64()
}

/// nginx as a service.
fn deploy_web(community: &Community) {
    let package = community.folder("nginx");
    write(&package.join("nginx.conf"), NGINX);
    let start = "sed s/PORT/$PORT/ nginx.conf > $STATE_DIRECTORY/conf && \
                 exec /usr/sbin/nginx -p $STATE_DIRECTORY -c $STATE_DIRECTORY/conf";
    write(&package.join("start.sh"), start);
    community.deploy(
        0,
        &community.service_file(
            "web",
            &format!(
                "name = \"web\"\ncommand = [\"/bin/sh\", \"start.sh\"]\n[artifacts]\nany = \"{}\"\n\
                 [needs]\nmemory = \"64M\"\ncpu = \"2.0\"\ndisk = \"8M\"\nprocesses = 16\n\
                 [port]\nhttp = true\n",
                package.display()
            ),
        ),
    );
}

/// A folder of a small, a medium and a large file.
fn deploy_files(community: &Community) -> PathBuf {
    let folder = community.folder("files");
    write(&folder.join("index.html"), "<h1>a small page</h1>\n");
    write(&folder.join("page.bin"), vec![b'x'; PAGE]);
    write(&folder.join("large.bin"), vec![b'y'; LARGE]);
    let file = "name = \"files\"\n[artifacts]\nany = \"files/\"\n";
    community.deploy(
        0,
        &community.service_file("files", &file.replace("files/", &folder.display().to_string())),
    );
    folder
}

pub(crate) fn rows() -> Vec<Row> {
    for program in ["/usr/bin/caddy", "/usr/sbin/nginx", "/usr/bin/wrk", "/usr/bin/curl"] {
        if installed(&[program]).is_none() {
            return vec![Row::new("gateway", "", format!("not measured: no {program}"))];
        }
    }
    let community = Community::new("bench-gateway", 2);
    deploy_web(&community);
    let folder = deploy_files(&community);
    let on = |service: &str| community.ready_on(0, service).expect("it is ready")[0];
    let url = |node: usize, path: &str| format!("http://{}/{path}", community.nodes[node].gateway);
    let (web, files) = (on("web"), on("files"));

    let at = community.status(web)["running"]
        .as_array()
        .and_then(|running| running.iter().find(|one| one["service"] == "web"))
        .and_then(|one| one["at"].as_str().map(str::to_owned))
        .expect("its port");
    let scratch = community.folder("caddy");
    let mut rows = Vec::new();
    let mut compare = |name: &str, path: &str, node: usize, caddy: &str, budget: Budget| {
        for connections in CONNECTIONS {
            let theirs = wrk(caddy, connections);
            for (place, node, (text, least)) in
                [("own", node, budget[0]), ("other", 1 - node, budget[1])]
            {
                let what = format!("{name}, {place} node, {connections} connections");
                rows.push(row(&what, text, least, wrk(&url(node, path), connections), theirs));
            }
        }
    };
    let any = ("≥ 1.0, p99 ≤ caddy's", 1.0);
    let (proxy, proxied) = caddy(&scratch, &format!(" reverse_proxy {at}"));
    compare("proxy", "web/", web, &proxied, [("≥ 1.3, p99 ≤ caddy's", 1.3), any]);
    drop(proxy);
    let (_server, served) = caddy(&scratch, &format!(" root * {}\n file_server", folder.display()));
    compare("files", "files/", files, &served, [("≥ 1.5, p99 ≤ caddy's", 1.5), any]);
    let (own, other) =
        (wrk(&url(files, "files/page.bin"), 8), wrk(&url(1 - files, "files/page.bin"), 8));
    let ratio = other.requests / own.requests;
    let measured = format!("{ratio:.2} ({:.0}/s of {:.0}/s)", other.requests, own.requests);
    rows.push(Row::new("285 kB file, other node to own", "≥ 0.5", measured).kept(ratio >= 0.5));
    let megabytes = LARGE as f64 / 1e6;
    let own = megabytes / seconds(&url(files, "files/large.bin"));
    let other = megabytes / seconds(&url(1 - files, "files/large.bin"));
    let measured = format!("{other:.0} MB/s through another node, {own:.0} through its own");
    rows.push(Row::new("200 MB file", "", measured));
    rows
}
