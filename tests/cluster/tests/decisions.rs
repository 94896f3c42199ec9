//! What was decided later counts, with real agents and a program that keeps what it was told.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use dugnad_cluster::http::get;
use dugnad_cluster::{Community, PATIENCE, SURPLUS, holds, installed, processes_of, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Counts its visitors in memory: whoever starts it anew starts at one.
const COUNTER: &str = r#"
import http.server, os
seen = 0
class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global seen
        seen += self.path.endswith("/visit")
        body = f"{seen} VERSION".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Counter).serve_forever()
"#;

fn counter(community: &Community, version: &str, replicas: usize, program: &str) -> String {
    let folder = community.folder("files-counter").join("pkg");
    let program = program.replace("VERSION", version);
    dugnad_cluster::write(&folder.join("counter.py"), program);
    community.service_file(
        "counter",
        &format!(
            "name = \"counter\"\nreplicas = {replicas}\nstop_grace = \"1s\"\n\
             command = [\"/usr/bin/python3\", \"counter.py\"]\n[artifacts]\nany = \"pkg/\"\n\
             [port]\nhttp = true\n[needs]\nmemory = \"48M\"\ncpu = \"5%\"\ndisk = \"8M\"\n"
        ),
    )
}

fn page(community: &Community, node: usize, path: &str) -> Result<String, String> {
    let answer = get(community.nodes[node].gateway, path).map_err(|error| error.to_string())?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    holds(answer.status == 200, || format!("{}: {body}", answer.status))?;
    Ok(body)
}

/// Ends the agent of a node and what runs there, as a power cut would.
fn cut(community: &mut Community, node: usize) {
    community.kill(node);
    for (name, _, pid) in processes_of(&community.mark, "counter") {
        if name == community.nodes[node].name {
            // It may have ended with its agent.
            let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn who_comes_back_does_not_undo_what_was_decided_meanwhile() {
    let test = "who_comes_back_does_not_undo_what_was_decided_meanwhile";
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip(test, "it needs python3");
    }
    let mut community = Community::new("returns", 5);
    let file = counter(&community, "one", 1, COUNTER);
    community.deploy(0, &file);
    let mut away = vec![community.ready_on(0, "counter").unwrap()[0]];
    away.push(community.manager(0, "counter"));
    away.dedup();
    let asked = (0..5).find(|node| !away.contains(node)).unwrap();
    away.iter().for_each(|node| cut(&mut community, *node));
    until("it serves elsewhere", PATIENCE, || {
        let on = community.ready_on(asked, "counter")?;
        holds(on.len() == 1 && !away.contains(&on[0]), || format!("{on:?}"))?;
        page(&community, asked, "/counter/")
    });
    for visits in 1..=3 {
        let told = page(&community, asked, "/counter/visit").unwrap();
        assert_eq!(told, format!("{visits} one"));
    }
    away.iter().for_each(|node| community.start(*node));
    community.wait_whole();
    community.wait_exactly(asked, "counter", 1, SURPLUS);
    for node in 0..5 {
        let told = until("it answers", PATIENCE, || page(&community, node, "/counter/"));
        assert_eq!(told, "3 one", "what was written meanwhile is gone, asked at n{node}");
    }
}

#[test]
fn a_new_version_serves_before_the_old_one_stops_or_is_withdrawn() {
    let test = "a_new_version_serves_before_the_old_one_stops_or_is_withdrawn";
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip(test, "it needs python3");
    }
    let mut community = Community::new("versions", 2);
    community.deploy(0, &counter(&community, "one", 1, COUNTER));
    let serves = |version: &str| {
        until(&format!("version {version} serves"), PATIENCE, || {
            let told = page(&community, 1, "/counter/")?;
            holds(told.ends_with(version), || told.clone())
        });
    };
    serves("one");
    // While it is updated, every visit is answered.
    let file = counter(&community, "two", 1, COUNTER);
    let mut deploy = community.prepare(0, &["deploy", &file]).spawn().unwrap();
    let mut visits = 0;
    while deploy.try_wait().unwrap().is_none() {
        let told = page(&community, 1, "/counter/");
        assert!(told.is_ok(), "visit {visits} during the update: {told:?}");
        visits += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(deploy.wait().unwrap().success() && visits > 0);
    serves("two");
    community.ok(1, &["rollback", "counter"]);
    serves("one");
    // One that cannot start is taken back, and says why.
    let bad = "import sys\nprint('no configuration found', file=sys.stderr)\nsys.exit(3)\n";
    let said = community.cli(0, &["deploy", &counter(&community, "three", 1, bad)]);
    assert_eq!(said.code, 1, "{}", said.all());
    assert!(said.err.contains("no configuration found"), "{}", said.err);
    assert!(said.err.contains("stays"), "{}", said.err);
    serves("one");
    community.wait_exactly(0, "counter", 1, PATIENCE);
    // Its node is about to leave: somebody else serves first.
    let leaver = community.ready_on(0, "counter").unwrap()[0];
    community.ok(leaver, &["leave"]);
    assert!(community.wait_end(leaver).success());
    let stays = 1 - leaver;
    assert!(page(&community, stays, "/counter/").unwrap().ends_with("one"));
}
