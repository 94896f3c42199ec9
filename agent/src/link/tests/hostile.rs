use super::*;
use crate::limits::Limits;

use super::handshake::Failure;
use super::noise::{FRAMES, VERDICT};

fn local(key: u8, secret: u8, version: u8) -> Local {
    let identity = Identity::ephemeral(key);
    let mut me = Peer::new(node_id(&identity, &community(secret)));
    me.inc = 1;
    Local::with_preamble(&identity, &community(secret), me, version)
}

async fn dial_as(local: &Local, to: &Links) -> Result<Proven, Failure> {
    let addr = to.local_addr();
    let tcp = smol::net::TcpStream::connect(addr).await.unwrap();
    handshake::dial(local, tcp, addr, |_| Ok(Vec::new())).await
}

fn id_of(key: u8) -> NodeId {
    node_id(&Identity::ephemeral(key), &community(1))
}

fn reason(result: Result<Proven, Failure>) -> &'static str {
    result.err().map_or("nothing", |failure| failure.reason())
}

#[test]
fn another_community_is_refused_on_both_sides() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let b = start(&ex, config(2, 9, 1));
        b.dial(a.local_addr());
        a.counted("refused_community", 1).await;
        b.counted("refused_community", 1).await;
        while b.seeds()[0].1 == "connecting" {
            Timer::after(Duration::from_millis(1)).await;
        }
        assert!(b.seeds()[0].1.contains("another community"), "{:?}", b.seeds());
        assert!(b.strangers()[0].contains("needs an invitation"), "{:?}", b.strangers());
        assert!(a.strangers()[0].contains("calls from 127.0.0.1"), "{:?}", a.strangers());
        assert!(a.quiet() && b.quiet() && a.peers().is_empty());
    });
}

#[test]
fn another_version_is_refused_on_both_sides() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let result = dial_as(&local(2, 1, wire::VERSION + 1), &a).await;
        assert_eq!(reason(result), "refused_version");
        a.counted("refused_version", 1).await;
        assert!(a.strangers()[0].contains("another wire version"), "{:?}", a.strangers());
    });
}

#[test]
fn the_right_tag_with_another_secret_is_refused_on_both_sides() {
    run(|ex| async move {
        let a = node(&ex, 1);
        let mut stranger = local(2, 1, wire::VERSION);
        stranger.forge_psk([9; 32]);
        assert_eq!(reason(dial_as(&stranger, &a).await), "refused_secret");
        a.counted("refused_secret", 1).await;
        assert!(a.quiet());
    });
}

#[test]
fn nobody_can_claim_the_id_of_another() {
    run(|ex| async move {
        let a = node(&ex, 1);
        // A member with a key of its own says it is member 3.
        let mut impostor = local(2, 1, wire::VERSION);
        impostor.forge_public_key(Identity::ephemeral(3).public_key());
        let sent = dial_as(&impostor, &a).await;
        // The dialler is done after its last message; the refusal comes instead of a verdict.
        if let Ok(mut proven) = sent {
            assert!(proven.read_verdict().await.is_err());
        }
        a.counted("refused_identity", 1).await;
        // As the listener it fares no better.
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let listen = async {
            let (tcp, from) = listener.accept().await.unwrap();
            let result = handshake::listen(&impostor, tcp, from, false).await;
            assert_eq!(reason(result), "refused_identity");
        };
        a.dial(addr);
        listen.await;
        a.counted("refused_identity", 2).await;
        assert!(a.quiet() && a.peers().is_empty());
    });
}

#[test]
fn an_address_where_another_node_answers_is_dropped() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let mut peer = Peer::new(dugnad_kernel::Id(7));
        peer.addrs.push(b.local_addr()).unwrap();
        a.learn(peer.clone());
        assert!(a.try_send(peer.id, frame("for 7 only")));
        a.down(peer.id).await;
        assert_eq!(count(&a, "wrong_identity"), 1);
        assert_eq!(a.0.book.with(peer.id, |entry| entry.peer.addrs.len()), Some(0));
        assert!(b.quiet());
    });
}

#[test]
fn dialling_oneself_is_noticed() {
    run(|ex| async move {
        let a = node(&ex, 1);
        a.dial(a.local_addr());
        a.counted("dialled_oneself", 1).await;
        let mut peer = Peer::new(dugnad_kernel::Id(7));
        peer.addrs.push(a.local_addr()).unwrap();
        a.learn(peer.clone());
        assert!(a.try_send(peer.id, frame("x")));
        a.down(peer.id).await;
        assert_eq!(a.0.book.with(peer.id, |entry| entry.peer.addrs.len()), Some(0));
        assert!(a.quiet() && a.peers().is_empty());
    });
}

#[test]
fn garbage_is_refused_and_the_listener_goes_on() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..50u64 {
            let mut tcp = smol::net::TcpStream::connect(a.local_addr()).await.unwrap();
            let mut bytes: Vec<u8> = (0..rng.usize(1..2000)).map(|_| rng.u8(..)).collect();
            if round % 2 == 1 {
                // The right beginning, then garbage.
                let good = local(2, 1, wire::VERSION).preamble_bytes();
                bytes.splice(..0, good);
            }
            // The other side may have closed already.
            let _: io::Result<()> = tcp.write_all(&bytes).await;
            drop(tcp);
        }
        while a.0.admission.unproven_now() > 0 || count(&a, "refused_magic") < 20 {
            Timer::after(Duration::from_millis(1)).await;
        }
        link(&b, &a).await;
    });
}

#[test]
fn frames_that_lie_about_themselves_end_the_session() {
    run(|ex| async move {
        let a = node(&ex, 1);
        for (reason, bytes) in [
            ("frame_oversized", [wire::VERSION, 0xff, 0xff]),
            ("frame_version", [wire::VERSION + 1, 1, 0]),
        ] {
            let mut bad = raw(&a, 2).await;
            a.up(id_of(2)).await;
            let record = [&[FRAMES][..], &frame("fine"), &bytes].concat();
            bad.writer.record(&bad.noise, &record).await.unwrap();
            assert_eq!(a.frame(id_of(2)).await, "fine");
            a.down(id_of(2)).await;
            assert_eq!(count(&a, reason), 1);
        }
        let mut bad = raw(&a, 2).await;
        a.up(id_of(2)).await;
        bad.writer.record(&bad.noise, &[VERDICT, 0]).await.unwrap();
        a.down(id_of(2)).await;
        assert_eq!(count(&a, "record_unknown"), 1);
    });
}

#[test]
fn a_replayed_or_changed_record_ends_the_session() {
    run(|ex| async move {
        let a = node(&ex, 1);
        for (round, change) in [0u8, 1].into_iter().enumerate() {
            let mut bad = raw(&a, 2).await;
            let id = id_of(2);
            a.up(id).await;
            let plain = [&[FRAMES][..], &frame("once")].concat();
            let mut sealed = vec![0; 200];
            let length = bad.noise.borrow_mut().write_message(&plain, &mut sealed[2..]).unwrap();
            sealed[..2].copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
            sealed.truncate(2 + length);
            bad.tcp.write_all(&sealed).await.unwrap();
            assert_eq!(a.frame(id).await, "once");
            if change == 1 {
                // The next record, but one bit of it changed on the way.
                let next = bad.noise.borrow_mut().write_message(&plain, &mut sealed[2..]).unwrap();
                assert_eq!(next, length);
                sealed[20] ^= 1;
            }
            bad.tcp.write_all(&sealed).await.unwrap();
            a.down(id).await;
            assert_eq!(count(&a, "undecryptable"), round as u64 + 1);
        }
    });
}

/// Random bytes inside valid records: frames and yamux as a hostile member would send them.
#[test]
fn a_hostile_member_costs_a_session_only() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let mut rng = fastrand::Rng::with_seed(6);
        for _ in 0..40 {
            let mut bad = raw(&a, 3).await;
            for _ in 0..5 {
                let mut record = vec![rng.u8(1..3)];
                record.extend((0..rng.usize(1..500)).map(|_| rng.u8(..)));
                if bad.writer.record(&bad.noise, &record).await.is_err() {
                    break;
                }
            }
            drop(bad);
            loop {
                if let LinkEvent::Down(_) = a.next().await {
                    break;
                }
            }
        }
        link(&b, &a).await;
    });
}

#[test]
fn who_says_nothing_keeps_nobody_out() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        let mut idle = Vec::new();
        let most = a.0.admission.limits.handshakes;
        for _ in 0..most + 3 {
            idle.push(smol::net::TcpStream::connect(a.local_addr()).await.unwrap());
        }
        a.counted("handshakes_gave_way", 3).await;
        assert!(a.0.admission.unproven_now() <= most);
        // The silent ones still hold all places.
        link(&b, &a).await;
        a.counted("handshake_silent", most as u64 / 2).await;
        while a.0.admission.unproven_now() > 0 {
            Timer::after(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn an_address_has_its_share_of_unproven_connections() {
    let admission = admit::Admission::new(Limits::default());
    let enter = |ip: &str| admission.enter(ip.parse().unwrap());
    let share = admission.limits.handshakes / 4;
    let flood: Vec<_> = (0..share + 5).map(|_| enter("10.0.0.66")).collect();
    assert_eq!(admission.unproven_now(), share);
    for first in &flood[..5] {
        smol::block_on(first.gives_way.wait());
    }
    let others: Vec<_> = (1..=3 * share).map(|n| enter(&format!("10.1.{n}.1"))).collect();
    assert_eq!(admission.unproven_now(), 4 * share, "they have places of their own");
    enter("10.2.0.1");
    smol::block_on(flood[5].gives_way.wait());
    for one in others.iter().chain(&flood) {
        admission.proven(one);
    }
}
