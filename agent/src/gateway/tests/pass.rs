//! What passes through, in both directions.

use std::process::Stdio;

use smol::channel::bounded;
use smol::future::yield_now;

use super::*;

#[test]
fn requests_reach_the_service_behind_its_prefix() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("wiki", mirror(&node).await);
        let seen = text(&["-i", &node.url("/wiki/a%20b/../c?q=1&r=%2f"), "--path-as-is"]).await;
        assert!(seen.contains("dugnad-replica: 1@node-1\r\n"), "{seen}");
        assert!(seen.contains("GET /a%20b/../c?q=1&r=%2f HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("x-forwarded-prefix: /wiki\r\n"), "{seen}");
        assert!(seen.contains("x-forwarded-for: 127.0.0.1\r\n"), "{seen}");
        assert!(seen.contains("x-forwarded-proto: http\r\n"), "{seen}");
        assert!(seen.contains(&format!("host: {}\r\n", node.addr())), "{seen}");
        assert!(seen.contains(&format!("x-forwarded-host: {}\r\n", node.addr())), "{seen}");

        let seen = text(&[&node.url("/x/y"), "-H", "Host: wiki.dugnad.internal"]).await;
        assert!(seen.contains("GET /x/y HTTP/1.1\r\n"), "{seen}");
        assert!(!seen.contains("x-forwarded-prefix"), "{seen}");

        let seen = text(&["-i", &node.url("/wiki?a=1")]).await;
        assert!(seen.starts_with("HTTP/1.1 308 "), "{seen}");
        assert!(seen.contains("location: /wiki/?a=1\r\n"), "{seen}");
        let seen = text(&["-i", &node.url("/nope/")]).await;
        assert!(seen.starts_with("HTTP/1.1 404 ") && seen.contains("\"nope\""), "{seen}");
        let seen = text(&["-i", &node.url("/Not_A_Name/")]).await;
        assert!(seen.starts_with("HTTP/1.1 404 "), "{seen}");
        let seen = text(&["-I", &node.url("/wiki/head")]).await;
        assert!(seen.starts_with("HTTP/1.1 200 OK") && seen.contains("content-length: "), "{seen}");
        let seen =
            text(&[&node.url("/wiki/p"), "--data", "hei", "-H", "Expect: 100-continue"]).await;
        assert!(seen.contains("POST /p") && seen.ends_with("\r\n\r\nhei"), "{seen}");
        let seen = text(&["-0", &node.url("/wiki/old")]).await;
        assert!(seen.contains("GET /old HTTP/1.1\r\n"), "{seen}");
    });
}

#[test]
fn the_load_of_a_service_that_follows_it_is_reported() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("wiki", mirror(&node).await);
        node.serves("other", mirror(&node).await);
        let (service, manager) = (key_of("wiki"), NodeId::of_name("node", b"m"));
        let metered = Some(Metered { service, manager, on: Measure::Requests(50) });
        node.fake.routes.borrow_mut().get_mut("wiki").unwrap().metered = metered;
        for _ in 0..3 {
            text(&[&node.url("/wiki/a"), &node.url("/other/a")]).await;
        }
        let heard = || node.fake.loads.borrow().iter().map(|(.., load)| load.requests).sum::<u32>();
        while heard() < 3 {
            Timer::after(Duration::from_millis(5)).await;
        }
        let loads = node.fake.loads.borrow();
        assert!(loads.iter().all(|(key, to, _)| (*key, *to) == (service, manager)), "{loads:?}");
        assert_eq!(heard(), 3);
    });
}

#[test]
fn the_first_page_lists_the_services() {
    World::run(async |world| {
        let node = world.node(1).await;
        let lines = text(&[&node.url("/")]).await;
        assert!(lines.starts_with("attic of community a <small> community\n"), "{lines}");
        assert!(lines.contains("\n/wiki/  1 of 2 ready\n"), "{lines}");
        assert!(lines.contains("1 of 2 ready, on TCP port 6667\n"), "{lines}");
        assert!(lines.contains("/asleep/  stopped\n"), "{lines}");
        let browser = "Accept: text/html,application/xhtml+xml,*/*;q=0.8";
        let page = text(&["-i", &node.url("/"), "-H", browser]).await;
        assert!(page.contains("content-type: text/html"), "{page}");
        assert!(page.contains("a &lt;small&gt; community"), "{page}");
        assert!(page.contains("<a href=\"/wiki/\">wiki</a>"), "{page}");
        assert!(!page.contains("href=\"/chat/\"") && !page.contains("href=\"/asleep/"), "{page}");
        let json = text(&[&node.url("/"), "-H", "Accept: application/json"]).await;
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["services"][1]["tcp_port"], 6667);
        assert_eq!(value["services"][2]["path"], "/wiki/");
        let no = text(&["-i", "-X", "POST", &node.url("/")]).await;
        assert!(no.starts_with("HTTP/1.1 405 "), "{no}");
    });
}

#[test]
fn what_is_not_known_yet_or_stopped_is_not_missing() {
    World::run(async |world| {
        let node = world.node(1).await;
        let stopped = text(&["-i", &node.url("/asleep/")]).await;
        assert!(stopped.starts_with("HTTP/1.1 503 "), "{stopped}");
        assert!(stopped.contains("retry-after: 60\r\n"), "{stopped}");
        assert!(stopped.contains("asleep is stopped"), "{stopped}");
        let later = text(&["-i", &node.url("/later/")]).await;
        assert!(later.starts_with("HTTP/1.1 503 "), "{later}");
        assert!(later.contains("retry-after: 5\r\n") && later.contains("does not know yet"));
        assert_eq!(node.count("gateway_unknown_service"), 0);
    });
}

/// Answers every request with these bytes and closes; cut off if `reset`.
async fn old_server(node: &Node, answer: &'static str, reset: bool) -> SocketAddr {
    upstream(node, move |mut stream, _| async move {
        head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        if reset {
            // Closing then resets the connection.
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let option = nix::sys::socket::sockopt::Linger;
            nix::sys::socket::setsockopt(&stream, option, &linger).unwrap();
        }
    })
    .await
}

#[test]
fn an_old_server_is_passed_on_whole_or_as_an_error() {
    const LENGTH: &str = "HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nonly a part";
    const UNTIL_END: &str = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall there is";
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        for (name, answer, reset) in
            [("whole", UNTIL_END, false), ("short", LENGTH, false), ("cut", UNTIL_END, true)]
        {
            let at = old_server(&here, answer, reset).await;
            here.serves(name, at);
            let far = format!("far-{name}");
            here.route(&far, Port::Http, &[&there]);
            there.runs(&far, 1, Endpoint::Port(at));
        }
        for name in ["whole", "far-whole"] {
            let url = here.url(&format!("/{name}/"));
            let before = here.count("gateway_connections");
            let seen = text(&["-i", &url, "--next", "-s", &url]).await;
            assert!(seen.starts_with("HTTP/1.1 200 OK"), "{seen}");
            assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
            assert_eq!(seen.matches("all there is").count(), 2, "{seen}");
            let more = here.count("gateway_connections") - before;
            assert_eq!(more, 1, "the client's connection was kept");
        }
        for name in ["short", "cut", "far-short"] {
            let done = curl(&["-s", &here.url(&format!("/{name}/"))]).await;
            // Or it is told at once that nothing came.
            let told = String::from_utf8_lossy(&done.stdout).contains("did not answer");
            assert!(!done.status.success() || told, "{name}: {done:?}");
        }
    });
}

#[test]
fn connections_are_kept_on_both_sides() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let at = mirror(&here).await;
        here.serves("wiki", at);
        here.route("far", Port::Http, &[&there]);
        there.runs("far", 1, Endpoint::Port(at));
        let urls: Vec<_> = (0..5).map(|n| here.url(&format!("/wiki/{n}"))).collect();
        let urls: Vec<_> = urls.iter().map(String::as_str).collect();
        let seen = text(&urls).await;
        assert_eq!(seen.matches("conn: 0\n").count(), 5, "{seen}");
        assert_eq!(here.count("gateway_connections"), 1);
        // HEAD and an empty answer give the connection back, too.
        let far = here.url("/far/x");
        let seen = text(&["-I", &far, "--next", "-s", &far, "--next", "-s", &far]).await;
        assert_eq!(seen.matches("conn: 1\n").count(), 2, "{seen}");
        assert_eq!(there.count("gateway_streams"), 1);
        assert_eq!(here.count("gateway_retries"), 0);
    });
}

#[test]
fn a_real_server_is_served() {
    World::run(async |world| {
        let node = world.node(1).await;
        let site = tempfile::tempdir().unwrap();
        std::fs::write(site.path().join("side.txt"), "på norsk").unwrap();
        let mut python = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(site.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = io::BufReader::new(python.stdout.take().unwrap());
        io::BufRead::read_line(&mut out, &mut line).unwrap();
        let port = line.split("port ").nth(1).unwrap().split(' ').next().unwrap();
        node.serves("py", format!("127.0.0.1:{port}").parse().unwrap());
        assert_eq!(text(&[&node.url("/py/side.txt")]).await, "på norsk");
        assert!(text(&[&node.url("/py/")]).await.contains("side.txt"));
        let code = text(&["-o", "/dev/null", "-w", "%{http_code}", &node.url("/py/none")]).await;
        assert_eq!(code, "404");
        python.kill().unwrap();
        python.wait().unwrap();
    });
}

/// Answers before the body has come, and then waits for nothing.
async fn hasty(mut stream: TcpStream, _: u32) {
    let (asked, _) = head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    if asked.starts_with("POST") {
        std::future::pending::<()>().await;
    }
}

/// A connection that is still busy with the last request's body is not taken for the next one.
#[test]
fn an_answer_before_its_time_holds_nobody_up() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("hasty", upstream(&node, hasty).await);
        let mut early = TcpStream::connect(node.addr()).await.unwrap();
        let begun = "POST /hasty/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\npart";
        early.write_all(begun.as_bytes()).await.unwrap();
        let (answer, _) = head(&mut early).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        for _ in 0..3 {
            let got =
                node.raw("GET /hasty/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("ok"), "{got}");
        }
    });
}

/// Answers chunk for chunk, each as soon as its like has come.
async fn echo_chunks(mut stream: TcpStream, _: u32) {
    let (_, mut seen) = head(&mut stream).await;
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    loop {
        stream.write_all(&seen).await.unwrap();
        if seen.ends_with(b"0\r\n\r\n") {
            return;
        }
        let mut buffer = [0; 512];
        let read = stream.read(&mut buffer).await.unwrap();
        seen = buffer[..read].to_vec();
    }
}

#[test]
fn bodies_stream_both_ways() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let at = upstream(&here, echo_chunks).await;
        here.route("echo", Port::Http, &[&there]);
        there.runs("echo", 1, Endpoint::Port(at));
        let mut client = TcpStream::connect(here.addr()).await.unwrap();
        let head_out = "POST /echo/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(head_out.as_bytes()).await.unwrap();
        let mut seen = String::new();
        for word in ["alpha", "bravo", "charlie"] {
            let chunk = format!("{:x}\r\n{word}\r\n", word.len());
            client.write_all(chunk.as_bytes()).await.unwrap();
            // Only if nothing is held back does each come before the next is sent.
            while !seen.contains(word) {
                let mut buffer = [0; 512];
                let read = client.read(&mut buffer).await.unwrap();
                assert!(read > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        }
        client.write_all(b"0\r\n\r\n").await.unwrap();
        while !seen.ends_with("0\r\n\r\n") {
            let mut buffer = [0; 512];
            let read = client.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{seen}");
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    });
}

#[test]
fn a_slow_reader_slows_the_service_down() {
    const ALL: usize = 256 << 20;
    World::run(async |world| {
        let node = world.node(1).await;
        let written = Rc::new(Cell::new(0_usize));
        let (done, ended) = bounded::<()>(1);
        let counter = Rc::clone(&written);
        let at = upstream(&node, move |mut stream, _| {
            let (counter, done) = (Rc::clone(&counter), done.clone());
            async move {
                head(&mut stream).await;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                while counter.get() < ALL && stream.write_all(&[7; 65536]).await.is_ok() {
                    counter.set(counter.get() + 65536);
                }
                done.try_send(()).unwrap();
            }
        })
        .await;
        node.serves("big", at);
        let mut client = TcpStream::connect(node.addr()).await.unwrap();
        client.write_all(b"GET /big/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut some = vec![0; 1 << 20];
        client.read_exact(&mut some).await.unwrap();
        // Plenty of turns to read ahead, if it did.
        for _ in 0..50_000 {
            yield_now().await;
        }
        assert!(written.get() < ALL / 4, "{} read ahead", written.get());
        // And a client that goes away ends it.
        drop(client);
        ended.recv().await.unwrap();
        assert!(written.get() < ALL);
    });
}

#[test]
fn upgrades_become_pipes() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let at = upstream(&here, |mut stream, _| async move {
            let (seen, _) = head(&mut stream).await;
            assert!(seen.contains("upgrade: websocket\r\n"), "{seen}");
            assert!(seen.contains("connection: upgrade\r\n"), "{seen}");
            assert!(seen.contains("sec-websocket-key: abc\r\n"), "{seen}");
            // The first bytes of the new protocol come with the answer.
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                          Upgrade: websocket\r\nSec-WebSocket-Accept: def\r\n\r\nhello";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut from, mut to) = (stream.clone(), stream);
            smol::io::copy(&mut from, &mut to).await.unwrap();
            to.write_all(b"bye").await.unwrap();
        })
        .await;
        here.route("near", Port::Http, &[&here]);
        here.runs("near", 1, Endpoint::Port(at));
        here.route("far", Port::Http, &[&there]);
        there.runs("far", 1, Endpoint::Port(at));
        for service in ["near", "far"] {
            let mut client = TcpStream::connect(here.addr()).await.unwrap();
            let ask = format!(
                "GET /{service}/ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n"
            );
            client.write_all(ask.as_bytes()).await.unwrap();
            let (answer, mut seen) = head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
            assert!(answer.contains("sec-websocket-accept: def\r\n"), "{answer}");
            let send: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
            let mut to = client.clone();
            let copy = send.clone();
            let writing = here.ex.spawn(async move {
                to.write_all(&copy).await.unwrap();
                to.shutdown(std::net::Shutdown::Write).unwrap();
            });
            client.read_to_end(&mut seen).await.unwrap();
            writing.await;
            assert!(seen.starts_with(b"hello") && seen.ends_with(b"bye"));
            assert!(seen[5..seen.len() - 3] == send);
        }
        assert_eq!(here.count("gateway_upgrades"), 2);
        assert!(here.gateway.shared.load.is_idle());
    });
}
