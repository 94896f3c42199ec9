use super::*;

#[test]
fn frames_arrive_in_order_both_ways() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let (ida, idb) = (a.me().id, b.me().id);
        for round in 0..20 {
            for n in 0..10 {
                let number = format!("{round}/{n}");
                assert!(a.try_send(idb, frame(&number)) && b.try_send(ida, frame(&number)));
            }
            for n in 0..10 {
                let number = format!("{round}/{n}");
                assert_eq!(b.frame(ida).await, number);
                assert_eq!(a.frame(idb).await, number);
            }
        }
        assert_eq!((count(&a, "frames_out"), count(&b, "frames_in")), (201, 201));
        assert_eq!(count(&a, "bytes_out"), count(&b, "bytes_in"));
        assert_eq!(a.peers()[0].2, Direction::Out);
        assert_eq!(b.peers()[0].2, Direction::In);
    });
}

#[test]
fn the_largest_frames_fit() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&b, &a).await;
        let long = "x".repeat(wire::BODY_MAX - 3);
        for _ in 0..3 {
            assert!(a.try_send(b.me().id, frame(&long)));
            assert!(a.try_send(b.me().id, frame("short")));
        }
        for _ in 0..3 {
            assert!(b.frame(a.me().id).await == long);
            assert_eq!(b.frame(a.me().id).await, "short");
        }
    });
}

#[test]
fn a_dialled_node_is_known_by_what_it_announces() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        b.dial(a.local_addr());
        match a.next().await {
            LinkEvent::Up(peer) => assert_eq!(peer, b.me()),
            other => panic!("{other:?}"),
        }
        b.up(a.me().id).await;
        assert!(b.seeds()[0].1.contains("linked") || b.linked(a.me().id));
        // The listener can now dial back by itself.
        b.close().await;
        a.down(b.me().id).await;
        assert!(a.try_send(b.me().id, frame("x")));
        a.down(b.me().id).await;
    });
}

/// T: both dial at once, a hundred times: one session, no frame lost, no Down.
#[test]
fn dialling_each_other_at_once_gives_one_session() {
    run(|ex| async move {
        for round in 0..100u32 {
            let a = start(&ex, config(1, 1, round + 1));
            let b = start(&ex, config(2, 1, round + 1));
            let (ida, idb) = (a.me().id, b.me().id);
            a.learn(b.me());
            b.learn(a.me());
            for n in 0..5 {
                assert!(a.try_send(idb, frame(&n.to_string())));
                assert!(b.try_send(ida, frame(&n.to_string())));
            }
            a.up(idb).await;
            b.up(ida).await;
            for n in 0..5 {
                assert_eq!(a.frame(idb).await, n.to_string());
                assert_eq!(b.frame(ida).await, n.to_string());
            }
            // Frames keep flowing after the tie is settled on both sides.
            a.counted("dials", 1).await;
            assert!(a.try_send(idb, frame("after")) && b.try_send(ida, frame("after")));
            assert_eq!(a.frame(idb).await, "after");
            assert_eq!(b.frame(ida).await, "after");
            assert!(a.quiet() && b.quiet(), "an event too many in round {round}");
            assert_eq!((count(&a, "sessions_up"), count(&b, "sessions_up")), (1, 1));
            assert_eq!((count(&a, "sessions_down"), count(&b, "sessions_down")), (0, 0));
            smol::future::zip(a.close(), b.close()).await;
        }
    });
}

#[test]
fn a_peer_that_started_again_replaces_its_old_session() {
    for dialled_by_the_new in [true, false] {
        run(|ex| async move {
            for key in [1, 2] {
                let stays = node(&ex, 3 - key);
                let old = node(&ex, key);
                link(&old, &stays).await;
                // The old one is silent, as after a power cut; the same node comes back.
                let new = start(&ex, config(key, 1, 2));
                let id = new.me().id;
                if dialled_by_the_new {
                    new.dial(stays.local_addr());
                } else {
                    // A frame would still go to the old session: the dial must come from a seed.
                    stays.dial(new.local_addr());
                }
                new.up(stays.me().id).await;
                stays.down(id).await;
                match stays.next().await {
                    LinkEvent::Up(peer) => assert_eq!((peer.id, peer.inc), (id, 2)),
                    other => panic!("{other:?}"),
                }
                assert!(stays.try_send(id, frame("new")));
                assert_eq!(new.frame(stays.me().id).await, "new");
                assert_eq!(count(&stays, "sessions_replaced"), 1);
                // The old incarnation cannot take the place back.
                old.down(stays.me().id).await;
                old.dial(stays.local_addr());
                stays.counted("refused_incarnation", 1).await;
                assert!(stays.linked(id) && stays.quiet());
            }
        });
    }
}

/// The end that does not decide lost its session and the other has not noticed.
#[test]
fn a_session_that_is_dead_on_one_side_is_replaced() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let lost = b.0.session(a.me().id).unwrap();
        // What a cut cable and a timeout on one side leave behind.
        b.0.book.with(a.me().id, |entry| {
            entry.note_ended(lost.id);
            entry.session = None;
        });
        assert!(b.try_send(a.me().id, frame("again")));
        a.down(b.me().id).await;
        a.up(b.me().id).await;
        assert_eq!(a.frame(b.me().id).await, "again");
        assert_eq!(count(&a, "sessions_replaced"), 1);
    });
}

#[test]
fn a_refused_connection_is_told_at_once_and_then_left_alone() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let gone = {
            let other = std::net::TcpListener::bind(loopback()).unwrap();
            other.local_addr().unwrap()
        };
        let mut peer = Peer::new(b.me().id);
        peer.addrs.push(gone).unwrap();
        a.learn(peer.clone());
        assert!(a.try_send(peer.id, frame("x")));
        a.down(peer.id).await;
        assert_eq!(count(&a, "dials"), 1);
        for _ in 0..5 {
            assert!(!a.try_send(peer.id, frame("x")));
        }
        a.down(peer.id).await;
        assert!(a.quiet(), "one Down a back-off");
        assert_eq!((count(&a, "dials"), count(&a, "backing_off")), (1, 5));
        assert!(a.open_stream(peer.id).await.is_err());
        // A newer start of the peer, at another address, ends the back-off.
        let mut newer = b.me();
        newer.inc = 7;
        a.learn(newer.clone());
        assert!(a.try_send(peer.id, frame("there you are")));
        a.up(peer.id).await;
        b.up(a.me().id).await;
        assert_eq!(b.frame(a.me().id).await, "there you are");
    });
}

#[test]
fn unknown_and_unreachable_peers_are_counted() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let nobody = dugnad_kernel::Id(7);
        assert!(!a.try_send(nobody, frame("x")));
        assert_eq!(count(&a, "unknown_peer"), 1);
        assert!(a.open_stream(nobody).await.unwrap_err().to_string().contains("not known"));
        a.learn(Peer::new(nobody));
        a.try_send(nobody, frame("x"));
        a.down(nobody).await;
        assert_eq!((count(&a, "dials"), count(&a, "frames_lost")), (0, 1));
    });
}

#[test]
fn the_queue_of_a_peer_is_bounded_and_counts() {
    run(|ex| async move {
        let a = node(&ex, 1);
        // Accepts connections in the kernel and never answers.
        let mute = std::net::TcpListener::bind(loopback()).unwrap();
        let mut peers = Vec::new();
        for id in [7, 8] {
            let mut peer = Peer::new(dugnad_kernel::Id(id));
            peer.addrs.push(mute.local_addr().unwrap()).unwrap();
            a.learn(peer.clone());
            peers.push(peer.id);
        }
        for _ in 0..queue::FRAMES_MAX {
            assert!(a.try_send(peers[0], frame("x")));
        }
        assert!(!a.try_send(peers[0], frame("x")));
        let large = frame(&"x".repeat(60_000));
        let fits = queue::BYTES_MAX / large.len();
        for _ in 0..fits {
            assert!(a.try_send(peers[1], large.clone()));
        }
        assert!(!a.try_send(peers[1], large));
        assert_eq!(count(&a, "queue_full"), 2);
        // Both dials end by timeout, and what waited is lost.
        let both = [a.next().await, a.next().await];
        assert!(both.iter().all(|event| matches!(event, LinkEvent::Down(_))), "{both:?}");
        assert_eq!(count(&a, "handshake_timeout"), 2);
        assert_eq!(count(&a, "frames_lost"), (queue::FRAMES_MAX + fits) as u64);
    });
}

#[test]
fn a_silent_address_does_not_hold_up_a_good_one() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let mute = std::net::TcpListener::bind(loopback()).unwrap();
        let mut peer = Peer::new(b.me().id);
        peer.addrs.push(mute.local_addr().unwrap()).unwrap();
        peer.addrs.push(b.local_addr()).unwrap();
        a.learn(peer.clone());
        assert!(a.try_send(peer.id, frame("x")));
        a.up(peer.id).await;
        assert_eq!(count(&a, "handshake_timeout"), 0);
        let first = a.0.book.with(peer.id, |entry| entry.peer.addrs[0]);
        assert_eq!(first, Some(b.local_addr()), "what answered comes first next time");
    });
}

#[test]
fn closing_sends_what_waits_and_tells_the_peer() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        for n in 0..50 {
            assert!(a.try_send(b.me().id, frame(&n.to_string())));
        }
        let close = async {
            a.close().await;
            assert!(!a.linked(b.me().id));
        };
        let read = async {
            for n in 0..50 {
                assert_eq!(b.frame(a.me().id).await, n.to_string());
            }
            b.down(a.me().id).await;
        };
        smol::future::zip(close, read).await;
        a.down(b.me().id).await;
        assert!(!b.linked(a.me().id));
    });
}

#[test]
fn a_forgotten_peer_is_gone() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        a.forget(b.me().id);
        a.down(b.me().id).await;
        b.down(a.me().id).await;
        assert!(!a.linked(b.me().id));
        a.try_send(b.me().id, frame("x"));
        a.down(b.me().id).await;
    });
}

#[test]
fn the_address_book_is_bounded() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        for id in 0..1000 {
            a.learn(Peer::new(dugnad_kernel::Id(id)));
        }
        assert_eq!(a.0.book.len(), book::PEERS_MAX);
        assert!(a.linked(b.me().id));
        a.learn(a.me());
        assert!(!a.try_send(a.me().id, frame("x")), "never oneself");
    });
}

#[test]
fn a_port_in_use_is_explained() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let (sender, _inbox) = smol::channel::bounded(1);
        let mut taken = config(2, 1, 1);
        taken.listen = a.local_addr();
        let text = Links::start(ex, taken, sender).err().unwrap().to_string();
        assert!(text.contains(&a.local_addr().to_string()) && text.contains("overlay"), "{text}");
    });
}

/// The child of the next test: a node that links with the address it is given, and stays.
#[test]
#[ignore = "runs as a child process of another test"]
fn child_node() {
    let Ok(addr) = std::env::var("DUGNAD_TEST_DIAL") else { return };
    run(|ex| async move {
        let child = node(&ex, 2);
        child.dial(addr.parse().unwrap());
        loop {
            child.next().await;
        }
    });
}

#[test]
fn a_killed_process_is_told_at_once() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "link::tests::sessions::child_node", "--ignored", "--nocapture"])
            .env("DUGNAD_TEST_DIAL", a.local_addr().to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let LinkEvent::Up(peer) = a.next().await else { panic!("no session") };
        child.kill().unwrap();
        a.down(peer.id).await;
        child.wait().unwrap();
    });
}

/// The same tie between two threads, so that the steps interleave in other ways each time.
#[test]
fn dialling_each_other_from_two_threads_gives_one_session() {
    use smol::channel::{Receiver, Sender, bounded};
    fn side(key: u8, mine: &Sender<Peer>, theirs: &Receiver<Peer>) {
        for round in 1..=60u32 {
            run(|ex| async move {
                let node = start(&ex, config(key, 1, round));
                mine.send(node.me()).await.unwrap();
                let other = theirs.recv().await.unwrap();
                node.learn(other.clone());
                for n in 0..5 {
                    assert!(node.try_send(other.id, frame(&n.to_string())));
                }
                node.up(other.id).await;
                for n in 0..5 {
                    assert_eq!(node.frame(other.id).await, n.to_string(), "round {round}");
                }
                assert_eq!(count(&node, "sessions_up"), 1);
                // Both must be done before either goes.
                assert!(node.try_send(other.id, frame("bye")));
                assert_eq!(node.frame(other.id).await, "bye");
                assert!(node.quiet(), "an event too many in round {round}");
                mine.send(node.me()).await.unwrap();
                theirs.recv().await.unwrap();
                node.close().await;
            });
        }
    }
    let (to_b, from_a) = bounded(1);
    let (to_a, from_b) = bounded(1);
    let b = std::thread::spawn(move || side(2, &to_a, &from_a));
    side(1, &to_b, &from_b);
    b.join().unwrap();
}

/// Who talked to everybody once must still be able to talk to one more.
#[test]
fn a_session_nobody_uses_gives_way_to_a_new_one() {
    run(|ex| async move {
        let hub = node(&ex, 255);
        let limits = hub.0.admission.limits;
        let open = limits.sessions - limits.sessions / 4;
        let members = u8::try_from(open).unwrap();
        let mut standing = Vec::new();
        for key in 0..members {
            let member = raw(&hub, key).await;
            let LinkEvent::Up(peer) = hub.next().await else { panic!("no session with {key}") };
            standing.push((peer.id, member));
        }
        // All are in use, as far as anybody knows: one more is told so.
        let others: Vec<_> = (members..200).map(|key| node(&ex, key)).collect();
        let (lower, higher): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|other| other.me().id < hub.me().id);
        let late = &higher[0];
        late.dial(hub.local_addr());
        late.counted("refused_busy", 1).await;
        // Whoever decides which connection is the session.
        let decides = &lower[0];
        decides.dial(hub.local_addr());
        decides.counted("refused_busy", 1).await;
        assert!(hub.quiet() && late.quiet());
        // The second has been silent longest.
        assert!(hub.try_send(standing[0].0, frame("still there?")));
        hub.counted("frames_out", 1).await;
        hub.0.unused.set(Duration::ZERO);
        late.dial(hub.local_addr());
        late.up(hub.me().id).await;
        let (first, second) = (hub.next().await, hub.next().await);
        let down = |event: &LinkEvent| matches!(event, LinkEvent::Down(id) if *id == standing[1].0);
        let up =
            |event: &LinkEvent| matches!(event, LinkEvent::Up(peer) if peer.id == late.me().id);
        assert!(down(&first) && up(&second) || up(&first) && down(&second), "{first:?} {second:?}");
        assert!(hub.quiet());
        assert_eq!(count(&hub, "sessions_unused"), 1);
        assert_eq!(hub.peers().len(), open);
        // A neighbour gets in at once, though everybody else has just been heard of.
        hub.0.unused.set(Duration::from_secs(60));
        let neighbour = &lower[1];
        let its = neighbour.me().id;
        hub.set_neighbours(move |id| id == its);
        neighbour.dial(hub.local_addr());
        neighbour.up(hub.me().id).await;
        hub.up(its).await;
        assert_eq!(hub.peers().len(), open + 1);
        // So does whom the hub dials, up to the last place.
        let dialled = &higher[1];
        hub.dial(dialled.local_addr());
        hub.up(dialled.me().id).await;
    });
}
