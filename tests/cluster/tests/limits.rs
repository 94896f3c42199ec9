//! One broken part, or one who holds on to everything, takes nothing else with it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use dugnad_cluster::http::get_text;
use dugnad_cluster::{Community, Options, PATIENCE, holds, installed, say, skip, until, write};

const CHATTER: &str = "import http.server, os, sys, threading, time
said = 0
def talk():
    global said
    while True:
        print('line', said, flush=True)
        said += 1
        time.sleep(0.05)
threading.Thread(target=talk, daemon=True).start()
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{os.getpid()} {said}'.encode())
    def log_message(self, *words): pass
where = (os.environ['HOST'], int(os.environ['PORT']))
http.server.ThreadingHTTPServer(where, Answer).serve_forever()
";

fn deploy_chatter(community: &Community) {
    write(&community.folder("files-chat/pkg").join("chat.py"), CHATTER);
    let file = community.service_file(
        "chat",
        "name = \"chat\"\nreplicas = 1\ncommand = [\"/usr/bin/python3\", \"chat.py\"]\n\
         stop_grace = \"1s\"\n[artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n\
         [needs]\nmemory = \"64M\"\ncpu = \"10%\"\ndisk = \"8M\"\nprocesses = 16\n",
    );
    community.deploy(0, &file);
}

/// Which node runs the chatter, and its folder.
fn chatter(community: &Community) -> (usize, PathBuf) {
    let on = community.ready_on(0, "chat").unwrap()[0];
    (on, community.nodes[on].dir.join("services/chat.0"))
}

/// Inotify instances an agent has open.
fn inotify(community: &Community, node: usize) -> usize {
    let fds = fs::read_dir(format!("/proc/{}/fd", community.pid(node))).unwrap().flatten();
    fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("anon_inode:inotify")))
        .count()
}

fn follow(community: &Community, node: usize) -> Child {
    let mut command = community.prepare(node, &["logs", "chat", "-f"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_log_that_is_lost_takes_no_service_with_it_and_followers_go_when_they_go() {
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip("limits", "no /usr/bin/python3");
    }
    let community = Community::new("limits-log", 2);
    deploy_chatter(&community);
    let (on, folder) = chatter(&community);
    // Its process, and how many lines it has said.
    let look = || -> Result<(String, u32), String> {
        let text = get_text(community.nodes[0].gateway, "/chat/")?;
        let (pid, said) = text.split_once(' ').ok_or_else(|| text.clone())?;
        Ok((pid.to_owned(), said.parse().map_err(|_| text.clone())?))
    };
    let pid = || look().map(|(pid, _)| pid);
    let first = pid().unwrap();
    let log = folder.join("log");
    until("the log has lines", PATIENCE, || {
        holds(fs::metadata(&log).is_ok_and(|meta| meta.len() > 0), || "none".to_owned())
    });
    // Deleted, and then in the way.
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let before = look().unwrap().1;
    until("it has said more, into nowhere", PATIENCE, || {
        let said = look()?.1;
        holds(said >= before + 10, || said.to_string())
    });
    fs::remove_dir(&log).unwrap();
    until("the log tells what it lost", PATIENCE, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        holds(text.contains(" lines lost: ") && text.contains("\nline "), || text.clone())
    });
    assert_eq!(pid().unwrap(), first, "the service went on all the time");
    say(community.start, "the service outlived its log");

    assert_eq!(inotify(&community, on), 0);
    let followers: Vec<Child> = (0..12).map(|number| follow(&community, number % 2)).collect();
    until("all follow, with one inotify instance", PATIENCE, || {
        let status = community.status(0);
        let row = |status: &serde_json::Value| {
            let rows = status["limits"].as_array().cloned().unwrap_or_default();
            rows.into_iter().find(|row| row["what"] == "connections of the owner's programs")
        };
        let now = [row(&status).unwrap(), row(&community.status(1)).unwrap()];
        let all = now.iter().all(|row| row["now"].as_u64() >= Some(6));
        holds(all && inotify(&community, on) == 1, || format!("{now:?}"))
    });
    for mut one in followers {
        one.kill().unwrap();
        one.wait().unwrap();
    }
    until("no inotify instance is left", PATIENCE, || {
        let left = inotify(&community, on);
        holds(left == 0, || format!("{left} left"))
    });
    assert_eq!(pid().unwrap(), first);
    say(community.start, "followers went with their streams");
}

#[test]
fn few_descriptors_are_enough_to_be_talked_to() {
    let words: Vec<String> =
        ["prlimit", "--nofile=256:256"].map(str::to_owned).into_iter().collect();
    let options = Options { before_each: vec![vec![], words, vec![]], ..Options::default() };
    let community = Community::with("limits-files", 3, options);
    let site = community.folder("files-site/www");
    write(&site.join("index.html"), "the page");
    let file = community
        .service_file("site", "name = \"site\"\nreplicas = 2\n[artifacts]\nany = \"www/\"\n");
    community.deploy(0, &file);
    let node = &community.nodes[1];
    let silent: Vec<TcpStream> = (0..400)
        .filter_map(|number| {
            let to = if number % 2 == 0 { node.gateway } else { node.overlay };
            TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()
        })
        .collect();
    assert!(silent.len() > 300, "{}", silent.len());
    for _ in 0..5 {
        assert_eq!(community.alive(1).unwrap().len(), 3);
    }
    until("visitors get in", PATIENCE, || get_text(node.gateway, "/site/"));
    let log = community.log(1);
    let complaints = log.lines().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints <= 4, "{complaints} times the same:\n{log}");
    drop(silent);
    say(community.start, "with 256 descriptors and 400 silent callers the owner is answered");
}
