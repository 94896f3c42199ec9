//! The store of real agents: people at the command line, and a service at its own socket.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use dugnad_cluster::http::{Connection, get_text};
use dugnad_cluster::{Community, Options, PATIENCE, holds, installed, say, skip, until};

/// Bytes that do not repeat.
fn bytes(count: u32) -> Vec<u8> {
    (0..count / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// What a form sends.
fn post(community: &Community, node: usize, path: &str, body: &str) -> String {
    let mut connection = Connection::open(community.nodes[node].gateway).unwrap();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    connection.send(format!("{head}{body}").as_bytes()).unwrap();
    connection.answer(false).unwrap().text()
}

/// Whether a node gives these bytes for `files/big`.
fn gives(community: &Community, node: usize, value: &[u8]) -> Result<(), String> {
    let back = community.mark.dir.join("back");
    let out = File::create(&back).unwrap();
    let got = community.prepare(node, &["get", "files/big"]).stdout(out).status().unwrap();
    holds(got.success() && fs::read(&back).unwrap() == value, || format!("node {node}: {got}"))
}

/// What is not done says why.
fn refusals(community: &Community) {
    let taken = community.cli(2, &["put", "notes/today", "x", "--if-absent"]);
    assert_eq!(taken.code, 1, "{}", taken.all());
    assert!(taken.err.contains("is at version"), "{}", taken.err);
    for (key, code, says) in [
        ("notes/../x", 2, "is no key"),
        ("notes", 2, "is no key"),
        ("notes/none", 1, "there is no notes/none"),
        ("nowhere/x", 1, "there is no namespace nowhere"),
    ] {
        let said = community.cli(1, &["get", key]);
        assert_eq!(said.code, code, "{key}: {}", said.all());
        assert!(said.err.contains(says), "{key}: {}", said.err);
    }
}

#[test]
fn values_outlive_the_nodes_they_were_put_at() {
    let mut community = Community::new("store", 4);
    let start = community.start;
    community.ok(0, &["put", "notes/today", "hola"]);
    for node in 0..4 {
        assert_eq!(community.ok(node, &["get", "notes/today"]).out, "hola");
    }
    assert_eq!(community.json(1, &["ls", "notes"]).unwrap()[0]["key"], "notes/today");
    refusals(&community);

    say(start, "a long value");
    let value = bytes(20 << 20);
    let file = community.mark.dir.join("value");
    fs::write(&file, &value).unwrap();
    let put =
        community.prepare(1, &["put", "files/big"]).stdin(File::open(&file).unwrap()).status();
    assert!(put.unwrap().success());
    (0..4).for_each(|node| assert_eq!(gives(&community, node, &value), Ok(())));
    // Who is refused hears why, although the value is still on its way.
    community.ok(0, &["namespace", "tiny", "--quota", "1M"]);
    let put = community.prepare(2, &["put", "tiny/big"]).stdin(File::open(&file).unwrap()).output();
    let (code, said) = put.map(|out| (out.status.code(), out.stderr)).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(code == Some(3) && said.contains("of 1048576"), "{code:?} {said}");

    say(start, "a watcher");
    let mut watch = community
        .prepare(3, &["watch", "notes/today", "--now", "--count", "4", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["text"], "hola");
    community.ok(2, &["put", "notes/today", "adéu"]);
    assert_eq!(next()["text"], "adéu");

    say(start, "two of four die");
    community.kill(1);
    community.kill(2);
    until("the value is there", PATIENCE, || {
        let said = community.cli(0, &["get", "notes/today"]);
        holds(said.out == "adéu", || said.all())
    });
    until("it can be written", PATIENCE, || {
        let said = community.cli(0, &["put", "notes/today", "still here"]);
        holds(said.code == 0, || said.all())
    });
    assert_eq!(next()["text"], "still here");
    community.ok(0, &["rm", "notes/today"]);
    assert_eq!(next()["removed"], true);
    assert!(watch.wait().unwrap().success());
    until("the long value is there", PATIENCE, || gives(&community, 3, &value));
    community.start(1);
    community.start(2);
    until("they know what they missed", PATIENCE, || {
        let said = community.cli(1, &["get", "notes/today"]);
        holds(said.code == 1 && said.err.contains("there is no notes/today"), || said.all())
    });
    // It may still be on its way into the ring.
    until("all four say what they keep", PATIENCE, || {
        let nodes = community.json(2, &["store"])?;
        holds(nodes.as_array().is_some_and(|nodes| nodes.len() == 4), || nodes.to_string())
    });
}

/// A strong namespace: one order for everybody, and the smaller side of what is left says so.
#[test]
fn a_strong_value_has_one_order_and_a_lock_one_holder() {
    let mut community = Community::new("strong", 3);
    let start = community.start;
    until("three keep it", PATIENCE, || {
        let said = community.cli(0, &["put", "reg/a", "--strong", "one"]);
        holds(said.err.contains("on a majority of 3 nodes"), || said.all())
    });
    let at = community.json(1, &["get", "reg/a"]).unwrap()["revision"].as_u64().unwrap();
    let old = at.to_string();
    let won = community.ok(1, &["cas", "reg/a", &old, "two"]);
    assert!(won.err.contains(&format!("ok rev {}", at + 1)), "{}", won.err);
    let lost = community.cli(2, &["cas", "reg/a", &old, "three"]);
    assert_eq!(lost.code, 1, "{}", lost.all());
    assert!(lost.err.contains(&format!("is now revision {}", at + 1)), "{}", lost.err);
    let other = community.cli(2, &["put", "reg/a", "--any", "x"]);
    assert_eq!(other.code, 5, "{}", other.all());

    say(start, "a lock");
    let shown = ["lock", "job", "--", "sh", "-c", "echo $DUGNAD_FENCE"];
    let mut first = community
        .prepare(0, &["lock", "job", "--ttl", "2s", "--", "sh", "-c", "echo held; sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    let waiting = community.cli(1, &["lock", "job", "--wait", "1s", "--", "true"]);
    assert_eq!(waiting.code, 6, "{}", waiting.all());

    say(start, "its holder's node dies");
    community.kill(0);
    assert_eq!(first.wait().unwrap().code(), Some(3), "the command of a lost lock is ended");
    assert_eq!(community.ok(1, &shown).out, "2\n", "the next holder has the next number");
    assert_eq!(community.ok(2, &["get", "reg/a"]).out, "two");

    say(start, "a majority is gone");
    community.kill(1);
    for words in [&["get", "reg/a"][..], &["put", "reg/a", "three"]] {
        let said = community.cli(2, words);
        assert_eq!(said.code, 3, "{words:?}: {}", said.all());
        assert!(said.err.contains("unavailable"), "{}", said.err);
    }
    community.start(0);
    community.start(1);
    until("all of it is there", PATIENCE, || {
        let said = community.cli(0, &["get", "reg/a"]);
        holds(said.out == "two", || said.all())
    });
}

/// Whether any file below a folder holds these bytes.
fn lies_in(dir: &std::path::Path, bytes: &[u8]) -> bool {
    // What goes away meanwhile holds nothing.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        if path.is_dir() {
            return lies_in(&path, bytes);
        }
        // Sockets cannot be read.
        let Ok(file) = fs::read(&path) else { return false };
        file.windows(bytes.len()).any(|window| window == bytes)
    })
}

/// A sealed namespace: who has the key reads and writes, the others keep what they cannot read.
#[test]
fn sealed_values_are_read_only_with_the_key() {
    let community = Community::new("sealed", 3);
    let made = community.ok(0, &["namespace", "diary", "--sealed"]);
    assert!(made.out.contains("sealed (this node has the key)"), "{}", made.all());
    let words = "words nobody else may read";
    community.ok(0, &["put", "diary/today", words]);
    community.ok(0, &["put", "open/today", words]);
    let value = words.repeat(100_000);
    let file = community.mark.dir.join("value");
    fs::write(&file, &value).unwrap();
    let mut long = community.prepare(0, &["put", "diary/long"]);
    assert!(long.stdin(File::open(&file).unwrap()).status().unwrap().success());

    for words in [&["get", "diary/today"][..], &["put", "diary/today", "x"], &["watch", "diary/x"]]
    {
        let said = community.cli(1, words);
        assert_eq!(said.code, 5, "{words:?}: {}", said.all());
        assert!(said.err.contains("no key for it"), "{}", said.err);
    }
    // How it is kept changes without the key; what it is sealed with does not.
    let more = community.ok(1, &["namespace", "diary", "--quota", "300M"]);
    assert!(more.out.contains("sealed (this node does not have the key)"), "{}", more.all());
    assert_eq!(community.cli(1, &["namespace", "open", "--sealed"]).code, 5);
    assert_eq!(community.cli(1, &["namespace", "open", "--show-key"]).code, 1);

    let key = community.ok(0, &["namespace", "diary", "--show-key"]).out;
    let wrong = "0".repeat(64);
    assert_eq!(community.cli(1, &["namespace", "diary", "--key", &wrong]).code, 5);
    assert_eq!(community.cli(1, &["namespace", "diary", "--key", "abc"]).code, 2);
    community.ok(1, &["namespace", "diary", "--key", key.trim()]);
    assert_eq!(community.ok(1, &["get", "diary/today"]).out, words);
    assert!(community.ok(1, &["get", "diary/long"]).out == value, "the long value came back");
    assert_eq!(community.ok(1, &["watch", "diary/today", "--now", "--count", "1"]).out.trim(), {
        format!("diary/today {words}")
    });
    community.ok(1, &["put", "diary/today", "from the other"]);
    assert_eq!(community.ok(0, &["get", "diary/today"]).out, "from the other");
    community.ok(2, &["rm", "open/today"]);

    // All three keep the values; none has them in the open, but of the one that was not sealed.
    let keeps = community.json(2, &["store"]).unwrap();
    assert!(keeps.as_array().unwrap().iter().all(|node| node["tree_bytes"] != 0), "{keeps}");
    let twice = [words, words].concat();
    for node in &community.nodes {
        assert!(!lies_in(&node.dir, twice.as_bytes()), "{}", node.dir.display());
    }
}

/// A replica writes, another shows it: the guestbook of `configs/services`.
#[test]
fn a_service_keeps_what_visitors_write() {
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip("a_service_keeps_what_visitors_write", "no /usr/bin/python3");
    }
    let community = Community::new("guestbook", 3);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/services/guestbook.toml");
    community.deploy(0, file);
    let sign = |node: usize, text: &str| {
        let answer = post(&community, node, "/guestbook/", &format!("text={text}"));
        assert!(answer.contains("thank you"), "{answer}");
    };
    sign(0, "ona");
    sign(1, "%3Cb%3E");
    sign(2, "kari");
    for node in 0..3 {
        let page = get_text(community.nodes[node].gateway, "/guestbook/").unwrap();
        assert!(page.contains("<li>ona<li>&lt;b&gt;<li>kari"), "node {node}: {page}");
    }
    let keys = community.json(1, &["ls", "guestbook/entry/"]).unwrap();
    assert_eq!(keys.as_array().unwrap().len(), 3);
}

/// Two of six nodes have room for long values: there they go, whichever places the ring gives them,
/// and there they are found from everywhere, also when one of the two is gone.
#[test]
fn long_values_go_where_there_is_room() {
    let mut community = Community::found("room", 6, Options::default());
    let large = [1, 4];
    for number in (0..6).filter(|number| !large.contains(number)) {
        let file = community.nodes[number].dir.join("dugnad.toml");
        let text = fs::read_to_string(&file).unwrap().replace("\"4G\"", "\"40M\"");
        fs::write(file, text).unwrap();
    }
    (0..6).for_each(|node| community.start(node));
    community.wait_whole();
    let values: Vec<Vec<u8>> = (1..5).map(|number| bytes(48_000_000 + number * 4)).collect();
    for (number, value) in values.iter().enumerate() {
        let from = community.mark.dir.join("value");
        fs::write(&from, value).unwrap();
        let mut put =
            community.prepare(large[number % 2], &["put", &format!("files/{number}"), "-"]);
        let put = put.stdin(File::open(&from).unwrap()).output().unwrap();
        assert!(put.status.success(), "{number}: {}", String::from_utf8_lossy(&put.stderr));
        say(community.start, &format!("value {number} is kept"));
    }
    community.kill(large[0]);
    for (number, value) in values.iter().enumerate() {
        until("the other has it", PATIENCE, || {
            let got = community.prepare(0, &["get", &format!("files/{number}")]).output().unwrap();
            holds(got.status.success() && got.stdout == *value, || {
                format!("{number}: {}", String::from_utf8_lossy(&got.stderr))
            })
        });
    }
    say(community.start, "one of the two is gone, and the other gives all");
    // With one of the two gone there is one place for it, which is one too few.
    let from = community.mark.dir.join("value");
    let mut put = community.prepare(large[1], &["put", "files/more", "-"]);
    let put = put.stdin(File::open(&from).unwrap()).output().unwrap();
    assert_eq!(put.status.code(), Some(3), "{}", String::from_utf8_lossy(&put.stderr));
    assert!(String::from_utf8_lossy(&put.stderr).contains("cannot keep a copy"));
    say(community.start, "no more");
}
