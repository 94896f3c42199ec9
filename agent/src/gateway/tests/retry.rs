//! Replicas that refuse, vanish and come late.

use super::*;

/// Takes a request's head and goes.
async fn dies(mut stream: TcpStream, _: u32) {
    head(&mut stream).await;
}

struct Three {
    here: Node,
    good: Node,
    bad: Node,
    seen: Rc<Cell<u32>>,
}

/// A service with a replica that dies of every request and, less busy in no way, one that answers.
async fn three(world: &World) -> Three {
    let (here, good, bad) = (world.node(1).await, world.node(2).await, world.node(3).await);
    let seen = Rc::new(Cell::new(0));
    let counter = Rc::clone(&seen);
    let dying = upstream(&bad, move |stream, number| {
        counter.set(counter.get() + 1);
        dies(stream, number)
    })
    .await;
    // On this node, so that it is asked first.
    here.runs("svc", 1, Endpoint::Port(dying));
    good.runs("svc", 2, Endpoint::Port(mirror(&good).await));
    here.route("svc", Port::Http, &[&here, &good]);
    Three { here, good, bad, seen }
}

#[test]
fn only_what_may_be_repeated_is_repeated() {
    World::run(async |world| {
        let Three { here, seen, .. } = three(&world).await;
        let url = here.url("/svc/x");
        for (method, retried) in
            [("GET", true), ("OPTIONS", true), ("DELETE", true), ("PUT", true), ("POST", false)]
        {
            let before = seen.get();
            let answer = text(&["-i", "-X", method, &url]).await;
            assert_eq!(seen.get(), before + 1, "{method}");
            if retried {
                assert!(answer.contains("dugnad-replica: 2@node-2\r\n"), "{method}: {answer}");
            } else {
                assert!(answer.starts_with("HTTP/1.1 502 "), "{method}: {answer}");
                assert!(answer.contains("1@node-1: "), "{method}: {answer}");
            }
        }
        // Part of the body is gone with the first replica.
        let answer = text(&["-i", "-X", "PUT", "-d", "body", &url]).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(here.gateway.shared.load.is_idle());
    });
}

#[test]
fn one_repetition_is_all() {
    World::run(async |world| {
        let Three { here, good, bad, seen } = three(&world).await;
        let Some(Endpoint::Port(dying)) = here.fake.local(replica("svc", 1)) else { panic!() };
        good.runs("svc", 2, Endpoint::Port(dying));
        bad.runs("svc", 3, Endpoint::Port(dying));
        here.route("svc", Port::Http, &[&here, &good, &bad]);
        let answer = text(&["-i", &here.url("/svc/x")]).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(seen.get(), 2);
    });
}

#[test]
fn refused_connections_cost_nothing() {
    World::run(async |world| {
        let Three { here, good, bad, .. } = three(&world).await;
        here.runs("svc", 1, Endpoint::Port(nowhere()));
        bad.runs("svc", 3, Endpoint::Port(nowhere()));
        let unknown = NodeId::of_name("node", b"gone");
        here.route("svc", Port::Http, &[&here, &good, &bad]);
        let mut route = here.fake.routes.borrow()["svc"].clone();
        route.replicas.push((replica("svc", 4), unknown, "gone".to_owned()));
        route.replicas.push((replica("svc", 5), bad.id, "bad".to_owned()));
        here.fake.routes.borrow_mut().insert("svc".to_owned(), route);
        // Not even those that must not be sent twice, with a body, are lost.
        for _ in 0..8 {
            let answer = text(&["-i", "-d", "body", &here.url("/svc/x")]).await;
            assert!(answer.contains("dugnad-replica: 2@node-2\r\n"), "{answer}");
            assert!(answer.ends_with("body"), "{answer}");
        }
        good.runs("svc", 2, Endpoint::Port(nowhere()));
        let answer = text(&["-i", "-d", "body", &here.url("/svc/x")]).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        for said in [
            "1@node-1: ",
            "2@node-2: its port does not answer",
            "4@gone: no link to that node",
            "5@bad: replica 5 is not on this node",
        ] {
            assert!(answer.contains(said), "{said}: {answer}");
        }
    });
}

#[test]
fn what_was_known_is_asked_anew() {
    World::run(async |world| {
        let Three { here, good, .. } = three(&world).await;
        let moved = here.fake.routes.borrow()["svc"].clone();
        let at = |number| vec![(replica("svc", number), good.id, "b".to_owned())];
        let stale = Route { replicas: at(9), ..moved.clone() };
        here.fake.routes.borrow_mut().insert("svc".to_owned(), stale);
        let moved = Route { replicas: at(2), ..moved };
        here.fake.fresh.borrow_mut().push(moved);
        let answer = text(&["-i", "-d", "x", &here.url("/svc/x")]).await;
        assert!(answer.contains("dugnad-replica: 2@b\r\n"), "{answer}");
        assert_eq!(here.fake.asked_anew.get(), 1);
    });
}

#[test]
fn a_starting_service_is_waited_for() {
    World::run(async |world| {
        let node = world.node(1).await;
        node.serves("late", mirror(&node).await);
        let ready = node.fake.routes.borrow()["late"].clone();
        node.route("late", Port::Http, &[]);
        let not_yet = node.fake.routes.borrow()["late"].clone();
        *node.fake.fresh.borrow_mut() = vec![ready, not_yet];
        let answer = text(&["-i", &node.url("/late/")]).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(node.fake.asked_anew.get(), 2);

        node.route("never", Port::Http, &[]);
        let answer = text(&["-i", &node.url("/never/")]).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("retry-after: 5\r\n") && answer.contains("never"), "{answer}");
        assert!(node.fake.asked_anew.get() < 12);
    });
}

#[test]
fn one_replica_can_be_asked_for() {
    World::run(async |world| {
        let Three { here, good, .. } = three(&world).await;
        here.runs("svc", 1, Endpoint::Port(mirror(&here).await));
        let url = here.url("/svc/");
        for number in ["1", "2"] {
            let header = format!("Dugnad-Replica: {number}");
            let answer = text(&["-i", "-H", &header, &url]).await;
            assert!(answer.contains(&format!("dugnad-replica: {number}@")), "{answer}");
        }
        let answer = text(&["-i", "-H", "Dugnad-Replica: 7", &url]).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("replica 7"), "{answer}");
        let answer = text(&["-i", "-H", "Dugnad-Replica: x", &url]).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        // Without being asked: the one on this node.
        for _ in 0..5 {
            assert!(text(&["-i", &url]).await.contains("dugnad-replica: 1@"));
        }
        drop(good);
    });
}

#[test]
fn replicas_on_nodes_that_meet_a_condition_can_be_asked_for() {
    World::run(async |world| {
        let Three { here, good, .. } = three(&world).await;
        here.runs("svc", 1, Endpoint::Port(mirror(&here).await));
        here.fake.zones.borrow_mut().extend([(good.id, "b".to_owned()), (here.id, "a".to_owned())]);
        let url = here.url("/svc/");
        let checks = &here.fake.checks;
        for (path, header, number) in [
            ("/svc/", "Dugnad-Replica: zone=b", "2"),
            ("/svc/", "Dugnad-Replica: zone=a", "1"),
            ("/svc/", "Dugnad-Replica: 2@node-2", "2"),
            ("/svc@zone=b/x?y", "X: y", "2"),
            ("/svc@zone%3Da%20cores!exists/", "Dugnad-Replica: 2", "1"),
            ("/svc@2/", "X: y", "2"),
        ] {
            let answer = text(&["-i", "-H", header, &here.url(path)]).await;
            assert!(answer.contains(&format!("dugnad-replica: {number}@")), "{path}: {answer}");
            // The replica sees its own paths, and under which name it was called.
            let first = path.split('/').nth(1).unwrap();
            assert!(answer.contains(&format!("x-forwarded-prefix: /{first}")), "{path}: {answer}");
        }
        assert_eq!(checks.get(), 3, "what nodes said is kept");
        for (header, code, part) in [
            ("Dugnad-Replica: zone=c", 404, "no ready replica on a node with zone=c"),
            ("Dugnad-Replica: zne=c", 400, "there is no attribute zne"),
            ("Dugnad-Replica: x", 400, "no condition"),
        ] {
            let answer = text(&["-i", "-H", header, &url]).await;
            let line = format!("HTTP/1.1 {code} ");
            assert!(answer.starts_with(&line) && answer.contains(part), "{header}: {answer}");
        }
        // Visitors choose conditions: more than so many are not asked of others.
        let mut refused = 0;
        for number in 0..60 {
            let header = format!("Dugnad-Replica: cores>{number}");
            refused += u32::from(text(&["-i", "-H", &header, &url]).await.contains(" 503 "));
        }
        assert!(refused > 0 && checks.get() < 63, "{refused} {}", checks.get());
        drop(good);
    });
}

#[test]
fn a_kept_connection_may_have_died() {
    World::run(async |world| {
        let node = world.node(1).await;
        // Answers one request a connection, says nothing of it, and dies of the second.
        let at = upstream(&node, |mut stream, number| async move {
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", number % 10);
            stream.write_all(answer.as_bytes()).await.unwrap();
            head(&mut stream).await;
        })
        .await;
        node.serves("svc", at);
        let url = node.url("/svc/");
        let seen = text(&[&url, &url, "--next", "-s", "-d", "x", &url, "--next", "-s", &url]).await;
        assert_eq!(seen, "0123");
        assert_eq!(node.count("gateway_unavailable"), 0);
    });
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    World::run(async |world| {
        let node = world.node(1).await;
        let at = upstream(&node, |mut stream, _| async move {
            head(&mut stream).await;
            let part = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart";
            stream.write_all(part).await.unwrap();
        })
        .await;
        node.serves("svc", at);
        let output = curl(&[&node.url("/svc/")]).await;
        assert_eq!(output.stdout, b"part");
        // Partial file.
        assert_eq!(output.status.code(), Some(18));
    });
}
