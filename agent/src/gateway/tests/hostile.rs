//! Clients that mean no good.

use super::*;

#[test]
fn nothing_is_smuggled() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        let smuggled = "GET /secret HTTP/1.1\r\nHost: x\r\n\r\n";
        let bad = [
            "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
            "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "Content-Length: +5\r\n\r\nhello",
            "Content-Length: 5, 5\r\n\r\nhello",
            "X: a\r\n b: folded\r\n\r\n",
            "Host: y\r\n\r\n",
            "Bad Header: 1\r\n\r\n",
        ];
        for tail in bad {
            let ask = format!("POST /svc/ HTTP/1.1\r\nHost: x\r\n{tail}{smuggled}");
            let answer = node.raw(&ask).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{tail:?}: {answer}");
            assert!(!answer.contains("/secret") && !answer.contains("200 OK"), "{answer}");
        }
        // Both: chunked wins, the length is not passed on, and what follows is not read at all
        // (RFC 9112 6.3).
        for tail in [
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        ] {
            let ask = format!("POST /svc/ HTTP/1.1\r\nHost: x\r\n{tail}{smuggled}");
            let answer = node.raw(&ask).await;
            assert!(!answer.contains("/secret"), "{answer}");
            assert!(!answer.contains("content-length: 6"), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
        }
        for ask in [
            "GET /svc/ HTTP/1.1\r\n\r\n",
            "CONNECT svc:80 HTTP/1.1\r\nHost: svc:80\r\nConnection: close\r\n\r\n",
            "GET /svc/ HTTP/3.0\r\n\r\n",
            "\0\0\0\0\r\n\r\n",
        ] {
            let answer = node.raw(ask).await;
            assert!(!answer.contains("200 OK"), "{ask:?}: {answer}");
        }
        // A chunk that lies about its length ends the connection, and nothing of it is a request.
        let ask = format!(
            "POST /svc/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{smuggled}"
        );
        assert!(!node.raw(&ask).await.contains("/secret"));
        let seen = node.raw("GET /svc/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(seen.starts_with("HTTP/1.1 200 OK"), "{seen}");
    });
}

#[test]
fn slow_heads_are_cut_off() {
    LIMITS.set(Some((Duration::from_millis(300), Duration::from_secs(3600))));
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        for start in ["", "G", "GET /svc/ HTTP/1.1\r\nHost: x\r\nX: "] {
            let answer = node.raw(start).await;
            assert!(!answer.contains("200 OK"), "{answer}");
        }
        // The second request of a connection, too.
        let mut stream = TcpStream::connect(node.addr()).await.unwrap();
        stream.write_all(b"GET /svc/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(head(&mut stream).await.0.starts_with("HTTP/1.1 200 OK"));
        stream.write_all(b"GET /svc/ HT").await.unwrap();
        let mut rest = Vec::new();
        let _: io::Result<usize> = stream.read_to_end(&mut rest).await;
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    });
}

#[test]
fn idle_connections_end() {
    LIMITS.set(Some((Duration::from_secs(3600), Duration::from_millis(300))));
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        let answer = node.raw("GET /svc/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    });
}

#[test]
fn heads_are_bounded() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        let long = format!("GET /svc/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(20_000));
        assert!(node.raw(long).await.starts_with("HTTP/1.1 431 "));
        let many = "A: b\r\n".repeat(150);
        let many = format!("GET /svc/ HTTP/1.1\r\nHost: x\r\n{many}\r\n");
        assert!(node.raw(many).await.starts_with("HTTP/1.1 431 "));
        let fits = format!(
            "GET /svc/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n",
            "a".repeat(10_000)
        );
        assert!(node.raw(fits).await.starts_with("HTTP/1.1 200 "));
    });
}

const ASK: &str = "GET /svc/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Connections to `port` that say nothing.
async fn silent(port: u16, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    all
}

#[test]
fn the_idlest_visitor_gives_way_and_nobody_waits_for_ever() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        let share = Limits::default().http / 2;
        let mut idle = silent(node.addr().port(), share).await;
        // They came just now: a visitor is told to come again.
        let full = node.raw(ASK).await;
        assert!(full.starts_with("HTTP/1.1 503 ") && full.contains("Retry-After: 1"), "{full}");
        assert!(full.ends_with("as it can\n"), "{full}");
        Timer::after(Duration::from_millis(1100)).await;
        for _ in 0..20 {
            assert!(node.raw(ASK).await.starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0, "the first was idle longest");
        let http = node.gateway.limits()[0];
        assert_eq!((http.0, http.2.most, http.2.each), ("HTTP connections", 2 * share, share));
        assert!(http.2.refused == 1 && http.2.gave_way >= 1 && http.2.now <= share, "{http:?}");
    });
}

#[test]
fn silent_connections_to_a_port_keep_nobody_out() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("svc", mirror(&node).await);
        let (first, second) = (nowhere().port(), nowhere().port());
        for (name, number, port) in [("one", 1, first), ("two", 1, second)] {
            node.route(name, Port::Tcp(port), &[&node]);
            node.runs(name, number, Endpoint::Port(upstream(&node, tcp::echo).await));
        }
        node.gateway.set_ports(vec![
            ("one".to_owned(), Port::Tcp(first)),
            ("two".to_owned(), Port::Tcp(second)),
        ]);
        let limits = Limits::default();
        let mut idle = silent(first, limits.tcp_service).await;
        Timer::after(Duration::from_millis(1100)).await;
        // Web pages, another service, and the same one: all are answered.
        assert!(node.raw(ASK).await.starts_with("HTTP/1.1 200 "));
        for port in [second, first, first] {
            let answer = tcp::ask(port, "word").await;
            assert_eq!(
                answer.as_deref().ok(),
                Some("word"),
                "{port} {first} {answer:?} {:?}",
                node.gateway.limits()
            );
        }
        assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0, "the first was idle longest");
        let tcp = node.gateway.limits()[1].2;
        assert!(tcp.now <= limits.tcp_service && tcp.most == limits.tcp, "{tcp:?}");
    });
}
