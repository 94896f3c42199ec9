//! Groups of real agents: people at the command line, and a service at its own socket.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use dugnad_cluster::{Community, PATIENCE, holds, installed, say, skip, until};
use serde_json::Value;

/// A `dugnad group listen` in the background; what it prints lies in a file.
struct Listener {
    child: Child,
    out: PathBuf,
}

impl Listener {
    fn start(community: &Community, node: usize) -> Self {
        let file = |kind: &str| community.mark.dir.join(format!("listen-{node}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let child = community
            .prepare(node, &["group", "listen", "choir", "-o", "json"])
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        until("it listens", PATIENCE, || {
            let said = fs::read_to_string(&err).unwrap();
            holds(said.contains("listening"), || said)
        });
        Self { child, out }
    }

    fn heard(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.out).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["text"].as_str().map(str::to_owned)).collect()
    }

    fn hears(&self, wanted: &[&str]) {
        until("all is heard", PATIENCE, || {
            let heard = self.heard();
            holds(heard == wanted, || format!("{heard:?}"))
        });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn members(community: &Community, node: usize) -> Option<u64> {
    let list = community.json(node, &["group", "list"]).unwrap();
    list.as_array().unwrap().first()?["members"].as_u64()
}

fn has_members(community: &Community, node: usize, count: u64) {
    until("so many members", PATIENCE, || {
        let members = members(community, node);
        holds(members == Some(count), || format!("{members:?}"))
    });
}

#[test]
fn people_and_services_tell_a_group() {
    let mut community = Community::new("group", 4);
    let start = community.start;
    community.ok(0, &["group", "create", "choir"]);
    let again = community.cli(1, &["group", "create", "choir"]);
    assert_eq!(again.code, 1, "{}", again.all());
    assert!(again.err.contains("there is a group choir already"), "{}", again.err);
    let missing = community.cli(1, &["group", "send", "quire", "x"]);
    assert!(missing.err.contains("there is no group quire"), "{}", missing.err);
    community.ok(1, &["group", "join", "choir"]);
    community.ok(2, &["group", "join", "choir"]);
    has_members(&community, 0, 3);
    say(start, "three members");

    let (one, two) = (Listener::start(&community, 1), Listener::start(&community, 2));
    community.ok(3, &["group", "send", "choir", "from outside"]);
    one.hears(&["from outside"]);
    two.hears(&["from outside"]);
    community.ok(0, &["group", "send", "choir", "in order", "--reliable"]);
    community.ok(0, &["group", "send", "choir", "and once", "--reliable"]);
    one.hears(&["from outside", "in order", "and once"]);
    two.hears(&["from outside", "in order", "and once"]);
    community.ok(3, &["group", "send", "choir", "to n2", "--one", "--where", "name=n2"]);
    two.hears(&["from outside", "in order", "and once", "to n2"]);
    let large = ["group", "send", "choir", "x", "--one", "--where", "memory>=900G"];
    let nobody = community.cli(3, &large);
    assert_eq!(nobody.code, 1, "{}", nobody.all());
    assert!(nobody.err.contains("is what was asked for"), "{}", nobody.err);
    let wrong = community.cli(3, &["group", "send", "choir", "x", "--one", "--where", "memry>1"]);
    assert_eq!(wrong.code, 2, "{}", wrong.all());
    say(start, "told from inside and outside");

    // Who only listens is a member as long as it does.
    let three = Listener::start(&community, 3);
    has_members(&community, 0, 4);
    drop(three);
    has_members(&community, 0, 3);

    // A membership outlives the agent.
    community.kill(2);
    community.start(2);
    has_members(&community, 2, 3);
    say(start, "a member is back after its agent was killed");

    community.ok(2, &["group", "leave", "choir"]);
    has_members(&community, 0, 2);
    let left = community.cli(2, &["group", "leave", "choir"]);
    assert_eq!(left.code, 1, "{}", left.all());

    let Some(curl) = installed(&["/usr/bin/curl", "/bin/curl"]) else {
        skip("a service in a group", "there is no curl");
        return;
    };
    let file = community.service_file(
        "singer",
        &format!(
            "name = \"singer\"\nkind = \"process\"\nreplicas = 1\n\
             command = [\"/bin/sh\", \"-c\", \"{curl} -sS \
             --unix-socket $DUGNAD_SOCKET --data 'from a service' http://d/v1/groups/choir/send \
             && exec sleep 1000\"]\n[needs]\nmemory = \"32M\"\n"
        ),
    );
    community.deploy(3, &file);
    one.hears(&["from outside", "in order", "and once", "from a service"]);
    say(start, "told by a service");
}
