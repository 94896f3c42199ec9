//! The store of real agents: people at the command line, and a service at its own socket.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use dugnad_cluster::http::{Connection, get_text};
use dugnad_cluster::{Community, PATIENCE, holds, installed, say, skip, until};

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
    let nodes = community.json(2, &["store"]).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 4);
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
