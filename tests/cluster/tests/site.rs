//! A real web site: many files, odd names, a large one; fetched through nodes that have none of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dugnad_cluster::http::{self, Connection, quote};
use dugnad_cluster::{Community, PATIENCE, holds, installed, say, skip, until, write};

const LARGE: usize = 50 << 20;

/// Bytes that do not repeat and are the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Paths and contents of the site; the large file is the last.
fn site(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("index.html".into(), b"<h1>first page</h1>".to_vec()),
        ("blåbær/syltetøy på brødskive.txt".into(), "blåbær".into()),
        ("emoji/🍓 & 🫐?#%.html".into(), "<p>🍓</p>".into()),
        ("empty.txt".into(), Vec::new()),
        ("a b/c+d/index.html".into(), b"plus".to_vec()),
    ];
    for number in 0_usize..294 {
        let path = format!("part{}/sub{}/file{number}.bin", number % 7, number % 3);
        files.push((path, noise(number as u64 + 1, (number * 977) % 90_000)));
    }
    files.push(("large/video.bin".into(), noise(4711, LARGE)));
    for (path, bytes) in &files {
        write(&dir.join(path), bytes);
    }
    fs::create_dir_all(dir.join("nothing/in/here")).unwrap();
    files
}

fn file(community: &Community, folder: &str) -> String {
    write(
        &community.mark.dir.join("site.toml"),
        format!(
            "name = \"site\"\nkind = \"static\"\nreplicas = 3\n[artifacts]\nany = \"{folder}/\"\n"
        ),
    );
    community.mark.dir.join("site.toml").to_string_lossy().into_owned()
}

/// Bytes that these nodes were sent over all their links so far.
fn moved(community: &Community, to: &[usize]) -> u64 {
    to.iter().map(|node| community.counter(*node, "bytes_in")).sum()
}

fn check_all(community: &Community, through: usize, files: &[(String, Vec<u8>)]) {
    let mut connection = Connection::open(community.nodes[through].gateway).unwrap();
    for (path, bytes) in files {
        let answer = connection.ask("GET", &format!("/site/{}", quote(path)), &[]).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(
            answer.body == *bytes,
            "{path}: {} of {} bytes, or others",
            answer.body.len(),
            bytes.len()
        );
    }
}

fn check_http(community: &Community, through: usize, large: &[u8]) {
    let to = community.nodes[through].gateway;
    let mut connection = Connection::open(to).unwrap();
    let mut ask =
        |method: &str, path: &str, headers: &[&str]| connection.ask(method, path, headers).unwrap();
    let head = ask("HEAD", "/site/large/video.bin", &[]);
    assert_eq!((head.status, head.header("content-length")), (200, LARGE.to_string().as_str()));
    let tag = head.header("etag").to_owned();
    assert!(!tag.is_empty(), "{head:?}");
    let unchanged = ask("GET", "/site/large/video.bin", &[&format!("If-None-Match: {tag}")]);
    assert_eq!(unchanged.status, 304);
    let total = LARGE - 1;
    for (range, part) in [
        ("bytes=0-0".to_owned(), &large[..1]),
        ("bytes=1048570-1048590".to_owned(), &large[1_048_570..=1_048_590]),
        ("bytes=-7".to_owned(), &large[LARGE - 7..]),
        (format!("bytes={total}-"), &large[total..]),
    ] {
        let answer = ask("GET", "/site/large/video.bin", &[&format!("Range: {range}")]);
        assert_eq!((answer.status, &answer.body[..]), (206, part), "{range}");
        assert!(answer.header("content-range").ends_with(&format!("/{LARGE}")), "{answer:?}");
    }
    let beyond = ask("GET", "/site/large/video.bin", &[&format!("Range: bytes={LARGE}-")]);
    assert_eq!(beyond.status, 416);
    assert_eq!(ask("GET", "/site/no/such.file", &[]).status, 404);
    assert_eq!(ask("GET", "/nosuchservice/", &[]).status, 404);
    for escape in ["/site/../../../etc/passwd", "/site/%2e%2e/%2e%2e/etc/passwd", "/site/a%00b"] {
        let answer = ask("GET", escape, &[]);
        assert!((400..500).contains(&answer.status), "{escape}: {}", answer.status);
        assert!(!answer.text().contains("root:"));
    }
    assert_eq!(ask("GET", "/site/", &[]).text(), "<h1>first page</h1>");
    let without = ask("GET", "/site", &[]);
    assert!(matches!(without.status, 301 | 302 | 307 | 308), "{}", without.status);
    assert_eq!(ask("POST", "/site/", &["Content-Length: 0"]).status, 405);
    check_curl(&format!("http://{to}/site/"));
}

/// Two pages on one connection, as a browser everybody has sees it.
fn check_curl(base: &str) {
    let Some(curl) = installed(&["/usr/bin/curl"]) else {
        return skip("keep-alive with curl", "no /usr/bin/curl");
    };
    let output = Command::new(curl)
        .args(["-sSv", "-o", "/dev/null", base, "-o", "/dev/null", &format!("{base}empty.txt")])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("Re-using existing connection"), "{told}");
}

/// Asks these gateways for the page, one after the other, as long as `work` takes; how often, and
/// how often in vain.
fn visited_meanwhile(gateways: &[SocketAddr], work: impl FnOnce()) -> (usize, usize) {
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for gateway in gateways {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = http::get_text(*gateway, "/site/");
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !answer.as_ref().is_ok_and(|text| text.contains("page")) {
                        eprintln!("failed: {answer:?}");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        work();
        stop.store(true, Ordering::Relaxed);
    });
    (asked.into_inner(), failed.into_inner())
}

#[test]
fn a_site_is_the_same_everywhere_and_changes_without_a_gap() {
    let community = Community::new("site", 5);
    let mut files = site(&community.folder("v1"));
    let v1 = file(&community, "v1");
    community.deploy(0, &v1);
    let on = community.ready_on(0, "site").unwrap();
    assert_eq!(on.len(), 3, "{on:?}");
    let without = (0..5).rev().find(|node| !on.contains(node)).unwrap();
    let start = Instant::now();
    check_all(&community, without, &files);
    let text = format!(
        "{} files identical through n{without}, replicas on {on:?}, {:.1?}",
        files.len(),
        start.elapsed()
    );
    say(community.start, &text);
    check_http(&community, without, &files[files.len() - 1].1);
    say(community.start, "HEAD, ranges, 304, 404, keep-alive as they should be");

    // Version 2: one small file and one byte of the large one.
    let before = moved(&community, &on);
    let v2 = community.folder("v2");
    let last = files.len() - 1;
    files[last].1[LARGE / 2] ^= 1;
    files[0].1 = b"<h1>second page</h1>".to_vec();
    for (path, bytes) in &files {
        write(&v2.join(path), bytes);
    }
    let v2 = file(&community, "v2");
    let gateways = [community.nodes[without].gateway, community.nodes[on[0]].gateway];
    let (asked, failed) = visited_meanwhile(&gateways, || {
        community.deploy(1, &v2);
        until("every gateway has version 2", PATIENCE, || {
            for node in &community.nodes {
                let text = http::get_text(node.gateway, "/site/")?;
                holds(text.contains("second"), || format!("{}: {text}", node.name))?;
            }
            Ok(())
        });
    });
    let update = moved(&community, &on) - before;
    let text = format!(
        "version 2 moved {update} bytes to the replicas; {asked} visits meanwhile, {failed} failed"
    );
    say(community.start, &text);
    assert_eq!(failed, 0);
    // Three replicas of a 50 MB file with one byte changed: single chunks, not files. (A node that
    // is to keep version 2 and had nothing of version 1 gets all of it.)
    assert!(update < 20 << 20, "{update} bytes moved");
    check_all(&community, without, &files);
    community.ok(without, &["rm", "site"]);
    until("it is gone", Duration::from_secs(20), || {
        let answer =
            http::get(community.nodes[on[0]].gateway, "/site/").map_err(|e| e.to_string())?;
        holds(answer.status == 404, || answer.status.to_string())
    });
}
