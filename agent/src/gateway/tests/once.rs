//! Requests that are done at most once.

use super::*;

/// A service that counts what it is asked, and answers each with its number. `behave` may hold an
/// answer back or end the connection.
async fn counting<F>(
    node: &Node,
    behave: impl Fn(u32) -> F + 'static,
) -> (SocketAddr, Rc<Cell<u32>>)
where
    F: Future<Output = bool> + 'static,
{
    let (seen, behave) = (Rc::new(Cell::new(0)), Rc::new(behave));
    let count = Rc::clone(&seen);
    let addr = upstream(node, move |mut stream, _| {
        let (count, behave) = (Rc::clone(&count), Rc::clone(&behave));
        async move {
            let (head, body) = head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            count.set(count.get() + 1);
            if behave(count.get()).await {
                let text = format!("{} {}", count.get(), String::from_utf8_lossy(&body));
                let answer = format!("HTTP/1.1 201 Made\r\nContent-Length: {}\r\n\r\n", text.len());
                // Whoever asked may be gone.
                _ = stream.write_all(format!("{answer}{text}").as_bytes()).await;
            }
        }
    })
    .await;
    (addr, seen)
}

async fn post(node: &Node, key: &str, body: &str) -> String {
    let key = format!("Idempotency-Key: {key}");
    text(&["-i", "-H", &key, "-d", body, &node.url("/pay/")]).await
}

#[test]
fn the_same_key_is_done_once_through_every_gateway() {
    World::run(async |world| {
        let (one, two, far) = (world.node(1).await, world.node(2).await, world.node(3).await);
        let (at, seen) = counting(&far, async |_| true).await;
        let (near_at, near_seen) = counting(&one, async |_| true).await;
        for node in [&one, &two] {
            node.route("pay", Port::Http, &[&one, &far]);
        }
        one.runs("pay", 1, Endpoint::Port(near_at));
        far.runs("pay", 2, Endpoint::Port(at));
        for number in 0..20 {
            let key = format!("key-{number}");
            let first = post(&one, &key, "5 kr").await;
            assert!(first.starts_with("HTTP/1.1 201 "), "{first}");
            assert!(first.ends_with("5 kr") && !first.contains("replayed"), "{first}");
            let second = post(&two, &key, "5 kr").await;
            assert!(second.contains("idempotent-replayed: true\r\n"), "{second}");
            let told = |answer: &str| answer.lines().last().map(str::to_owned);
            assert_eq!(told(&first), told(&second));
            let by =
                |answer: &str| answer.split("dugnad-replica: ").nth(1).map(|by| by.as_bytes()[0]);
            assert_eq!(by(&first), by(&second));
            let other = post(&two, &key, "6 kr").await;
            assert!(other.starts_with("HTTP/1.1 422 "), "{other}");
        }
        assert_eq!(seen.get() + near_seen.get(), 20);
        assert!(seen.get() > 2 && near_seen.get() > 2, "keys are spread over replicas");
        // Another visitor's key is another key.
        let url = one.url("/pay/");
        let theirs =
            ["-i", "-H", "Idempotency-Key: key-0", "-H", "Cookie: a=b", "-d", "5 kr", &url];
        let theirs = text(&theirs).await;
        assert!(!theirs.contains("replayed"), "{theirs}");
        assert_eq!(seen.get() + near_seen.get(), 21);
        assert!(one.gateway.shared.load.is_idle() && two.gateway.shared.load.is_idle());
    });
}

/// Between a gateway and a node: cuts the first `cut` connections after so many bytes of answer.
async fn cutting(world: &World, before: &Node, cut: u32) -> Rc<Cell<u32>> {
    let to = world.nodes.borrow()[&before.id];
    let through = Rc::new(Cell::new(0));
    let count = Rc::clone(&through);
    let addr = upstream(before, move |client, number| {
        count.set(number + 1);
        async move {
            let node = TcpStream::connect(to).await.unwrap();
            let there = smol::io::copy(client.clone(), node.clone());
            let back = async {
                if number < cut {
                    // The answer is on its way when the line breaks.
                    let mut byte = [0];
                    _ = node.clone().read(&mut byte).await;
                    return Ok(0);
                }
                smol::io::copy(node.clone(), client.clone()).await
            };
            let _: io::Result<u64> = there.or(back).await;
            for end in [&client, &node] {
                // It may have ended by itself.
                _ = end.shutdown(std::net::Shutdown::Both);
            }
        }
    })
    .await;
    world.nodes.borrow_mut().insert(before.id, addr);
    through
}

#[test]
fn a_broken_line_is_no_reason_to_do_it_twice() {
    World::run(async |world| {
        let (here, far) = (world.node(1).await, world.node(2).await);
        let (at, seen) = counting(&far, async |_| true).await;
        far.runs("pay", 1, Endpoint::Port(at));
        here.route("pay", Port::Http, &[&far]);
        let through = cutting(&world, &far, 2).await;
        let answer = post(&here, "k", "5 kr").await;
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
        assert_eq!((seen.get(), through.get()), (1, 3));
        // Without a key the visitor must know for himself.
        let through = cutting(&world, &far, 1).await;
        let answer = text(&["-i", "-d", "x", &here.url("/pay/")]).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(through.get(), 1);
        // Unless the service file says so.
        let mut route = here.fake.routes.borrow()["pay"].clone();
        route.reliable = true;
        here.fake.routes.borrow_mut().insert("pay".to_owned(), route);
        let (through, before) = (cutting(&world, &far, 2).await, seen.get());
        let answer = text(&["-i", "-d", "x", &here.url("/pay/")]).await;
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
        assert_eq!((seen.get() - before, through.get()), (1, 3));
    });
}

#[test]
fn what_nobody_can_tell_is_never_tried_again() {
    World::run(async |world| {
        let (here, far) = (world.node(1).await, world.node(2).await);
        let (at, seen) = counting(&far, async |_| false).await;
        far.runs("pay", 1, Endpoint::Port(at));
        here.route("pay", Port::Http, &[&far, &here]);
        // Nothing listens there: that one has not seen it, and another is tried.
        here.runs("pay", 2, Endpoint::Port(nowhere()));
        for _ in 0..2 {
            let answer = post(&here, "k", "5 kr").await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
            assert!(answer.contains("may have been done"), "{answer}");
        }
        assert_eq!(seen.get(), 1);
    });
}

#[test]
fn who_comes_while_it_is_done_gets_the_same_answer() {
    World::run(async |world| {
        let (here, far) = (world.node(1).await, world.node(2).await);
        let (go, wait) = smol::channel::bounded::<()>(1);
        let (at, seen) = counting(&far, move |_| {
            let wait = wait.clone();
            async move { wait.recv().await.is_ok() }
        })
        .await;
        far.runs("pay", 1, Endpoint::Port(at));
        here.route("pay", Port::Http, &[&far]);
        let both = smol::future::zip(post(&here, "k", "x"), post(&here, "k", "x"));
        let release = async {
            while here.count("gateway_requests") < 2 || far.count("gateway_replayed") < 1 {
                smol::future::yield_now().await;
            }
            go.send(()).await.unwrap();
        };
        let ((one, two), ()) = smol::future::zip(both, release).await;
        let replayed = [&one, &two].map(|answer| answer.contains("idempotent-replayed"));
        assert_eq!(replayed.iter().filter(|again| **again).count(), 1, "{one}\n{two}");
        assert_eq!(seen.get(), 1);
    });
}

#[test]
fn what_is_kept_is_bounded_and_longer_answers_pass_once() {
    World::run(async |world| {
        let node = world.node(1).await;
        let long = upstream(&node, |mut stream, _| async move {
            head(&mut stream).await;
            let body = vec![b'x'; 300_000];
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        })
        .await;
        node.serves("pay", long);
        let answer = post(&node, "k", "x").await;
        assert!(answer.ends_with("xxx") && answer.len() > 300_000, "{}", answer.len());
        let answer = post(&node, "k", "x").await;
        assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
        let file = node.fake.dir.path().join("long");
        std::fs::write(&file, vec![b'x'; 65 * 1024]).unwrap();
        let file = format!("@{}", file.display());
        let answer = post(&node, "l", &file).await;
        assert!(answer.contains("HTTP/1.1 413 ") && answer.contains("64 KiB"), "{answer}");
        for key in [String::new(), "k".repeat(256)] {
            let key = format!("Idempotency-Key;{key}").replace(";k", ": k");
            let answer = text(&["-i", "-H", &key, "-d", "x", &node.url("/pay/")]).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{key}: {answer}");
        }
    });
}
