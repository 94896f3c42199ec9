//! Static services, on this node and behind a stream.

use std::fs;

use super::*;
use crate::blobs::CHUNK;

fn site(dir: &std::path::Path) -> Vec<u8> {
    let mut big = vec![0; 50 << 20];
    fastrand::Rng::with_seed(5).fill(&mut big);
    fs::write(dir.join("big.bin"), &big).unwrap();
    fs::write(dir.join("index.html"), "<h1>hei</h1>").unwrap();
    fs::write(dir.join("empty.txt"), "").unwrap();
    fs::create_dir_all(dir.join("blå €/山")).unwrap();
    fs::write(dir.join("blå €/山/100%.txt"), "unicode").unwrap();
    fs::create_dir(dir.join("docs")).unwrap();
    fs::write(dir.join("docs/index.html"), "docs").unwrap();
    fs::create_dir(dir.join("bare")).unwrap();
    std::os::unix::fs::symlink("docs", dir.join("link")).unwrap();
    big
}

/// The same folder here and, as another service, on another node.
async fn both(world: &World) -> (Node, Node, TempDir, Vec<u8>) {
    let (here, there) = (world.node(1).await, world.node(2).await);
    let from = tempfile::tempdir().unwrap();
    let big = site(from.path());
    here.folder("near", from.path()).await;
    there.folder("far", from.path()).await;
    here.route("far", Port::Http, &[&there]);
    (here, there, from, big)
}

#[test]
fn downloads_are_bit_identical() {
    World::run(async |world| {
        let (here, there, _from, big) = both(&world).await;
        for service in ["near", "far"] {
            let url = here.url(&format!("/{service}/big.bin"));
            assert!(curl(&[&url]).await.stdout == big, "{service}");
            let from_start = CHUNK * 3 - 5;
            for (range, part) in [
                ("0-0".to_owned(), &big[..1]),
                (format!("{from_start}-{}", from_start + 9), &big[from_start..][..10]),
                ("-1000".to_owned(), &big[big.len() - 1000..]),
                (format!("{}-", big.len() - CHUNK - 7), &big[big.len() - CHUNK - 7..]),
            ] {
                let got = curl(&["-r", &range, &url]).await.stdout;
                assert!(got == part, "{service} {range}: {} bytes", got.len());
            }
            let seen = text(&["-I", &url]).await;
            assert!(seen.contains(&format!("content-length: {}\r\n", big.len())), "{seen}");
            assert!(seen.contains("accept-ranges: bytes\r\n"), "{seen}");
        }
        assert!(there.count("gateway_streams") > 0);
        assert!(here.gateway.shared.load.is_idle());
    });
}

#[test]
fn files_are_answered_as_the_rfc_has_it() {
    World::run(async |world| {
        let (here, _there, _from, big) = both(&world).await;
        for service in ["near", "far"] {
            let url = |path: &str| here.url(&format!("/{service}/{path}"));
            let get = async |args: &[&str], path: &str| {
                let url = url(path);
                text(&[&["-i", "--path-as-is", url.as_str()], args].concat()).await
            };
            let seen = get(&[], "").await;
            assert!(seen.starts_with("HTTP/1.1 200 OK"), "{seen}");
            assert!(seen.contains("content-type: text/html; charset=utf-8\r\n"), "{seen}");
            assert!(seen.contains("content-length: 12\r\n") && seen.ends_with("<h1>hei</h1>"));
            assert!(seen.contains("dugnad-replica: 1@node-1\r\n"), "{seen}");
            let tag = seen.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap();

            let same = format!("If-None-Match: \"x\", W/{tag}");
            let seen = get(&["-H", &same], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 304 ") && seen.contains(tag), "{seen}");
            let seen = get(&["-H", "If-None-Match: \"x\""], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
            let fits = format!("If-Range: {tag}");
            let seen = get(&["-r", "0-3", "-H", &fits], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 206 ") && seen.ends_with("\r\n\r\n<h1>"), "{seen}");
            assert!(seen.contains("content-range: bytes 0-3/12\r\n"), "{seen}");
            let seen = get(&["-r", "0-3", "-H", "If-Range: \"x\""], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
            let past = format!("{}-", big.len());
            let seen = get(&["-r", &past], "big.bin").await;
            assert!(seen.starts_with("HTTP/1.1 416 "), "{seen}");
            assert!(seen.contains(&format!("content-range: bytes */{}\r\n", big.len())), "{seen}");
            let seen = get(&["-r", "0-1,3-4"], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
            let seen = get(&[], "empty.txt").await;
            assert!(seen.contains("content-length: 0\r\n"), "{seen}");
            assert!(seen.contains("text/plain; charset=utf-8\r\n"), "{seen}");

            let seen = get(&[], "bl%C3%A5%20%E2%82%AC/%E5%B1%B1/100%25.txt").await;
            assert!(seen.ends_with("\r\n\r\nunicode"), "{seen}");
            let seen = get(&[], "docs?x=1").await;
            assert!(seen.starts_with("HTTP/1.1 308 "), "{seen}");
            assert!(seen.contains("location: ./docs/?x=1\r\n"), "{seen}");
            for folder in ["docs/", "link/", "docs/./"] {
                assert!(get(&[], folder).await.ends_with("\r\n\r\ndocs"), "{folder}");
            }
            assert!(text(&["-L", &url("link")]).await.ends_with("docs"));
            for none in [
                "bare/",
                "none",
                "index.html/",
                "..%2f..%2fetc/passwd",
                "../near/index.html",
                "..%5c..",
                "%2e%2e/index.html",
                "docs/..%2findex.html",
                "docs/%2e%2e/index.html",
                "docs/../index.html",
                "index.html%00",
                "%ff",
                "%zz",
            ] {
                let seen = get(&[], none).await;
                assert!(seen.starts_with("HTTP/1.1 404 "), "{none}: {seen}");
            }
            let seen = get(&["-X", "POST", "-d", "x"], "index.html").await;
            assert!(seen.starts_with("HTTP/1.1 405 ") && seen.contains("allow: GET, HEAD"));
        }
    });
}

#[test]
fn a_folder_may_bring_its_own_page_for_what_is_not_there() {
    World::run(async |world| {
        let (here, from) = (world.node(1).await, tempfile::tempdir().unwrap());
        fs::write(from.path().join("404.html"), "lost?").unwrap();
        here.folder("near", from.path()).await;
        let seen = text(&["-i", &here.url("/near/none")]).await;
        assert!(seen.starts_with("HTTP/1.1 404 ") && seen.ends_with("\r\n\r\nlost?"), "{seen}");
    });
}

#[test]
fn a_damaged_copy_is_passed_over() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("index.html"), "whole").unwrap();
        let tree = here.folder("site", from.path()).await;
        there.fake.blobs.ingest(from.path().to_owned()).await.unwrap();
        here.route("site", Port::Http, &[&here, &there]);
        there.runs("site", 2, Endpoint::Static(tree));
        let name = tree.root.to_string();
        let index = here.fake.dir.path().join("blobs").join(&name[..2]).join(&name);
        fs::write(index, "spoilt").unwrap();
        let seen = text(&["-i", &here.url("/site/")]).await;
        assert!(seen.contains("dugnad-replica: 2@") && seen.ends_with("whole"), "{seen}");
    });
}

#[test]
fn kept_streams_show_the_new_version_and_the_end() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("index.html"), "first").unwrap();
        let first = there.folder("site", from.path()).await;
        fs::write(from.path().join("index.html"), "second").unwrap();
        let second = there.fake.blobs.ingest(from.path().to_owned()).await.unwrap();
        here.route("site", Port::Http, &[&there]);
        assert_eq!(text(&[&here.url("/site/")]).await, "first");
        there.runs("site", 1, Endpoint::Static(second));
        there.fake.blobs.drop_tree(first).await.unwrap();
        assert_eq!(text(&[&here.url("/site/")]).await, "second");
        there.fake.local.borrow_mut().clear();
        let seen = text(&["-i", &here.url("/site/")]).await;
        assert!(seen.starts_with("HTTP/1.1 502 ") && seen.contains("not on this node"), "{seen}");
    });
}

#[test]
fn text_is_known_as_text_and_compressed_for_who_wants_it() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let from = tempfile::tempdir().unwrap();
        let page = "<p>mange ord om igjen</p>\n".repeat(2_000);
        fs::write(from.path().join("index.html"), &page).unwrap();
        fs::write(from.path().join("README"), "Les meg. Blåbær.\n".repeat(400)).unwrap();
        fs::write(from.path().join("program"), [0x7f, b'E', b'L', b'F', 0, 1]).unwrap();
        fs::write(from.path().join("empty"), "").unwrap();
        here.folder("near", from.path()).await;
        there.folder("far", from.path()).await;
        here.route("far", Port::Http, &[&there]);
        for service in ["near", "far"] {
            let url = |path: &str| here.url(&format!("/{service}/{path}"));
            for (path, kind) in [
                ("README", "text/plain; charset=utf-8"),
                ("empty", "text/plain; charset=utf-8"),
                ("program", "application/octet-stream"),
            ] {
                let seen = text(&["-I", &url(path)]).await;
                assert!(seen.contains(&format!("content-type: {kind}\r\n")), "{path}: {seen}");
            }
            // Twice: made, and kept.
            for _ in 0..2 {
                assert_eq!(text(&["--compressed", &url("")]).await, page);
            }
            let gzip = ["-H", "Accept-Encoding: gzip"];
            let seen = text(&["-I", gzip[0], gzip[1], &url("")]).await;
            assert!(seen.contains("content-encoding: gzip\r\n"), "{seen}");
            assert!(seen.contains("vary: accept-encoding\r\n"), "{seen}");
            let length = seen.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            assert!(length < page.len() / 20, "{length}");
            let tag = seen.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let same = format!("If-None-Match: {tag}");
            let seen = text(&["-I", gzip[0], gzip[1], "-H", &same, &url("")]).await;
            assert!(seen.starts_with("HTTP/1.1 304 "), "{seen}");
            // Who asks for a part, or does not want it, gets the file.
            let part = text(&[gzip[0], gzip[1], "-r", "3-7", &url("")]).await;
            assert_eq!(part, page[3..8]);
            let seen = text(&["-I", &url("")]).await;
            assert!(!seen.contains("content-encoding"), "{seen}");
            assert!(seen.contains("vary: accept-encoding\r\n"), "{seen}");
        }
    });
}
