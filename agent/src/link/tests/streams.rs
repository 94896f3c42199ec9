use super::*;

const BULK: usize = 20 * 1024 * 1024;

/// Bytes that differ from place to place, the same on both sides.
fn pattern(place: usize, length: usize) -> Vec<u8> {
    (place..place + length).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

#[test]
fn bulk_and_frames_do_not_disturb_each_other() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let (ida, idb) = (a.me().id, b.me().id);
        let mut stream = a.open_stream(idb).await.unwrap();
        let send = async {
            let piece = 64 * 1024;
            for place in (0..BULK).step_by(piece) {
                stream.write_all(&pattern(place, piece)).await.unwrap();
            }
            stream.close().await.unwrap();
        };
        let receive = async {
            let mut stream = b.stream().await;
            let read = async {
                let mut buffer = vec![0; 100_000];
                let mut place = 0;
                loop {
                    let count = stream.read(&mut buffer).await.unwrap();
                    if count == 0 {
                        break place;
                    }
                    assert!(buffer[..count] == pattern(place, count), "at {place}");
                    place += count;
                }
            };
            // Question and answer over frames, all the while.
            let frames = async {
                for n in 0..200 {
                    assert!(b.try_send(ida, frame(&format!("q{n}"))));
                    assert_eq!(a.frame(idb).await, format!("q{n}"));
                    assert!(a.try_send(idb, frame(&format!("a{n}"))));
                    assert_eq!(b.frame(ida).await, format!("a{n}"));
                }
            };
            assert_eq!(smol::future::zip(read, frames).await.0, BULK);
        };
        smol::future::zip(send, receive).await;
        assert_eq!(count(&b, "frames_in"), 201);
        assert!(count(&a, "bytes_out") as usize > BULK);
    });
}

#[test]
fn streams_answer_both_ways_and_either_side_opens() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        // No session yet: opening one dials.
        b.learn(a.me());
        let mut out = b.open_stream(a.me().id).await.unwrap();
        b.up(a.me().id).await;
        a.up(b.me().id).await;
        out.write_all(b"ping").await.unwrap();
        let mut inn = a.stream().await;
        let mut four = [0; 4];
        inn.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"ping");
        inn.write_all(b"pong").await.unwrap();
        inn.close().await.unwrap();
        let mut all = Vec::new();
        out.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"pong");
        drop((out, inn));
        // Now the other way, several at once, while the first are gone.
        let mut streams = Vec::new();
        for n in 0..10u8 {
            let mut stream = a.open_stream(b.me().id).await.unwrap();
            stream.write_all(&[n]).await.unwrap();
            streams.push((stream, b.stream().await));
        }
        for (n, (_, stream)) in streams.iter_mut().enumerate() {
            let mut one = [0];
            stream.read_exact(&mut one).await.unwrap();
            assert_eq!(usize::from(one[0]), n);
        }
    });
}

#[test]
fn a_lost_session_is_an_error_to_its_streams_and_not_their_end() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let mut out = a.open_stream(b.me().id).await.unwrap();
        out.write_all(b"half").await.unwrap();
        let mut inn = b.stream().await;
        let mut four = [0; 4];
        inn.read_exact(&mut four).await.unwrap();
        a.forget(b.me().id);
        b.down(a.me().id).await;
        let error = inn.read(&mut four).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(inn.write_all(b"x").await.is_err());
        assert!(out.read(&mut four).await.is_err());
    });
}

#[test]
fn a_dropped_stream_is_a_reset_to_the_other_side() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let mut out = a.open_stream(b.me().id).await.unwrap();
        out.write_all(b"x").await.unwrap();
        let mut inn = b.stream().await;
        let mut one = [0];
        inn.read_exact(&mut one).await.unwrap();
        drop(out);
        let error = inn.read(&mut one).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn streams_are_bounded_and_the_session_survives() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let mut held = Vec::new();
        for _ in 0..mux::STREAMS_MAX {
            let mut stream = a.open_stream(b.me().id).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            held.push((stream, b.stream().await));
        }
        assert!(a.open_stream(b.me().id).await.is_err());
        held.clear();
        let mut stream = a.open_stream(b.me().id).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        b.stream().await;
        assert_eq!(count(&a, "sessions_down"), 0);
    });
}

/// A reader that does not read stops its own stream, not the frames and not the other streams.
#[test]
fn a_stalled_stream_holds_up_nothing_else() {
    run(|ex| async move {
        let (a, b) = pair(&ex);
        link(&a, &b).await;
        let mut stalled = a.open_stream(b.me().id).await.unwrap();
        let piece = vec![7; 64 * 1024];
        let mut sent = 0;
        // Until the window is used up.
        loop {
            let write = async { Some(stalled.write(&piece).await.unwrap()) };
            let full = async {
                Timer::after(Duration::from_millis(200)).await;
                None
            };
            match smol::future::or(write, full).await {
                Some(count) => sent += count,
                None => break,
            }
        }
        assert!(sent <= 1024 * 1024, "{sent} bytes buffered for a reader that does not read");
        let _unread = b.stream().await;
        let mut other = a.open_stream(b.me().id).await.unwrap();
        other.write_all(b"through").await.unwrap();
        let mut inn = b.stream().await;
        let mut seven = [0; 7];
        inn.read_exact(&mut seven).await.unwrap();
        assert!(a.try_send(b.me().id, frame("through too")));
        assert_eq!(b.frame(a.me().id).await, "through too");
    });
}
