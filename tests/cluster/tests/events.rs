//! Finding nodes and hearing of events among nine real agents, three of which are killed meanwhile.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use dugnad_cluster::{Community, PATIENCE, holds, say, until};
use serde_json::Value;

/// Who watches, and what it reads, line by line.
struct Watcher {
    child: Child,
    lines: Receiver<Value>,
}

impl Watcher {
    fn of(community: &Community, node: usize, words: &[&str]) -> Self {
        let words: Vec<&str> = ["watch", "-o", "json"].iter().chain(words).copied().collect();
        let mut child = community.prepare(node, &words).stdout(Stdio::piped()).spawn().unwrap();
        let (to, lines) = channel();
        let from = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in from.lines().map_while(Result::ok) {
                // The test may have ended.
                _ = to.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    /// As many events as are named, by what `of` reads in them.
    fn next(&self, count: usize, of: &str) -> Vec<Value> {
        let mut told = Vec::new();
        while told.len() < count {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(event) => told.push(event["attributes"][of].clone()),
                Err(_) => panic!("{count} events were to come, with {of}; there came {told:?}"),
            }
        }
        told
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Which nodes meet a condition, by name.
fn found(community: &Community, node: usize, condition: &str) -> Vec<String> {
    let found = community.json(node, &["find", condition]).unwrap();
    let names = found["nodes"].as_array().unwrap().iter();
    let mut names: Vec<String> = names.map(|n| n["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Every third node has a panel on its roof.
fn label(community: &Community) {
    for node in &community.nodes {
        let file = node.dir.join("dugnad.toml");
        let text = fs::read_to_string(&file).unwrap();
        let number: usize = node.name[1..].parse().unwrap();
        let tags = if number % 3 == 0 { "tags = [\"solar\"]" } else { "tags = []" };
        let own = format!("[node]\nzone = \"z{}\"\n{tags}", number % 2);
        assert!(text.contains("[node]"), "{text}");
        fs::write(&file, text.replacen("[node]", &own, 1)).unwrap();
    }
    for number in 0..community.nodes.len() {
        community.ok(number, &["reload"]);
    }
}

/// From every node alike, and so does a service that asks for a tag.
fn finds(community: &Community) {
    for node in [0, 4, 8] {
        assert_eq!(found(community, node, "tags~solar"), ["n0", "n3", "n6"], "from n{node}");
        assert_eq!(found(community, node, "tags~solar zone!=z1"), ["n0", "n6"], "from n{node}");
    }
    let nobody = community.cli(1, &["find", "memory>=1T"]);
    assert_eq!(nobody.code, 3, "{}", nobody.all());
    let wrong = community.cli(1, &["find", "memry>1G"]);
    assert!(wrong.code == 2 && wrong.err.contains("memry>1G\n  ^^^^^"), "{}", wrong.all());
    let described = community.json(2, &["describe", "n3"]).unwrap();
    assert_eq!(described["attributes"]["tags"], serde_json::json!(["solar"]));
    let census = community.json(5, &["census"]).unwrap();
    assert_eq!(census["nodes"].as_array().unwrap().len(), 9);

    say(community.start, "a service that wants a tag");
    let text = "name = \"page\"\nreplicas = 2\n[artifacts]\nany = \"page/\"\n[needs]\n\
                where = \"tags~solar\"\n";
    let file = community.service_file("page", text);
    let page = community.folder("files-page").join("page");
    fs::create_dir(&page).unwrap();
    fs::write(page.join("index.html"), "hello").unwrap();
    community.deploy(1, &file);
    let solar = community.ready_on(1, "page").unwrap();
    assert!(solar.len() == 2 && solar.iter().all(|node| node % 3 == 0), "{solar:?}");
}

/// Twelve events, numbered, while three nodes are killed; who was said to be gone so far.
fn kill_and_publish(community: &mut Community, gone: &Watcher) -> Vec<Value> {
    let start = community.start;
    say(start, "three are killed while others publish");
    let mut sent = Vec::new();
    let mut names: Vec<Value> = Vec::new();
    for n in 1..=12 {
        match n {
            4 | 8 => community.kill(5 + n / 4),
            // Of the five that keep an event two may go at a time.
            12 => {
                names = gone.next(2, "name");
                community.kill(8);
            }
            _ => {}
        }
        let from = [0, 1, 2, 3][n % 4];
        let begin = Instant::now();
        until("a publish", PATIENCE, || {
            let said = community.cli(from, &["publish", "door.opened", &format!("n={n}")]);
            holds(said.code == 0, || said.all())
        });
        sent.push((n, begin.elapsed()));
    }
    let slowest = sent.iter().max_by_key(|(_, took)| *took).unwrap();
    say(start, &format!("12 events are in the log; the slowest took {:?}", slowest.1));
    names
}

#[test]
fn nine_agents_find_and_tell() {
    let mut community = Community::new("events", 9);
    let start = community.start;
    label(&community);
    finds(&community);
    say(start, "subscribers");
    let file = community.mark.dir.join("type.toml");
    fs::write(&file, "type = \"door.opened\"\n[attributes]\nn = \"number\"\nmark = \"text\"\n")
        .unwrap();
    community.ok(1, &["type", "define", file.to_str().unwrap()]);
    let again = community.cli(2, &["type", "define", file.to_str().unwrap()]);
    assert_eq!(again.code, 0, "the same once more: {}", again.all());
    fs::write(&file, "type = \"door.opened\"\n[attributes]\nn = \"text\"\nmark = \"text\"\n")
        .unwrap();
    let other = community.cli(2, &["type", "define", file.to_str().unwrap()]);
    assert_eq!(other.code, 5, "{}", other.all());
    let all = Watcher::of(&community, 0, &["door.opened"]);
    let even = Watcher::of(&community, 2, &["door.opened n in 2,4,6,8,10,12"]);
    let gone = Watcher::of(&community, 1, &["node.leave"]);
    // They are in place when each hears of this.
    for watcher in [&all, &even] {
        until("a subscription", PATIENCE, || {
            community.ok(3, &["publish", "door.opened", "n=2", "mark=ready"]);
            holds(watcher.lines.try_recv().is_ok(), || "nothing heard".to_owned())
        });
    }
    community.ok(3, &["publish", "door.opened", "n=2", "mark=go"]);
    for watcher in [&all, &even] {
        while watcher.next(1, "mark") != ["go"] {}
    }
    until("the types", PATIENCE, || {
        let types = community.json(1, &["types"])?;
        holds(types.as_array().unwrap().len() == 10, || types.to_string())
    });

    let mut names = kill_and_publish(&mut community, &gone);
    let numbers: Vec<Value> = (1..=12).map(Value::from).collect();
    let told = all.next(12, "n");
    // A publish that was refused, or not answered, and tried again may stand there twice.
    let mut once = told.clone();
    once.dedup();
    assert_eq!(once, numbers);
    let evens: Vec<Value> = [2, 4, 6, 8, 10, 12].map(Value::from).into();
    assert_eq!(even.next(6, "n"), evens);
    names.extend(gone.next(1, "name"));
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["n6", "n7", "n8"]);
    say(start, "everybody was told");
    let late = Watcher::of(&community, 4, &["door.opened", "--since", "1h"]);
    while late.next(1, "n") != [Value::from(12)] {}
    assert_eq!(found(&community, 4, "tags~solar"), ["n0", "n3"]);
}
