//! Strangers on the wire: whatever they send is counted, and the community works on.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dugnad_cluster::http::{Connection, get_text};
use dugnad_cluster::{Community, Options, PATIENCE, holds, say, until, write};

/// Sends bytes to a node's overlay port and waits for its end of the connection.
fn throw(community: &Community, node: usize, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(community.nodes[node].overlay).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // Refused in the middle of it is refused, too.
    let _: std::io::Result<()> = stream.write_all(bytes);
    let mut back = Vec::new();
    // An end by force is an end.
    let _: std::io::Result<usize> = stream.read_to_end(&mut back);
    back
}

/// What a dialler says first, taken from a real one.
fn first_words(community: &Community) -> Vec<u8> {
    let trap = std::net::TcpListener::bind((community.nodes[0].overlay.ip(), 0)).unwrap();
    let at = trap.local_addr().unwrap();
    let mut lonely = Community::found("first-words", 1, Options::default());
    write(
        &lonely.nodes[0].dir.join("dugnad.toml"),
        format!(
            "[node]\nname = \"n0\"\n[listen]\noverlay = \"{}\"\ngateway = \"off\"\n\
             [community]\nseeds = [\"{at}\"]\n",
            lonely.nodes[0].overlay
        ),
    );
    lonely.start(0);
    let (mut stream, _) = trap.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut words = vec![0; 1024];
    let count = stream.read(&mut words).unwrap();
    words.truncate(count);
    words
}

fn refused(community: &Community, node: usize) -> u64 {
    let status = community.status(node);
    let counters = status["counters"].as_object().unwrap().iter();
    let ours =
        counters.filter(|(name, _)| name.starts_with("refused_") || name.starts_with("handshake"));
    ours.filter_map(|(_, count)| count.as_u64()).sum()
}

#[test]
fn strangers_are_counted_and_change_nothing() {
    let community = Community::new("hostile", 3);
    write(&community.folder("files-page/www").join("index.html"), "the page");
    let file = community
        .service_file("page", "name = \"page\"\nreplicas = 2\n[artifacts]\nany = \"www/\"\n");
    community.deploy(0, &file);

    let before = refused(&community, 1);
    throw(&community, 1, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    throw(&community, 1, &[0xff; 100_000]);
    throw(&community, 1, &(0..=255_u8).cycle().take(5_000).collect::<Vec<_>>());
    until("garbage is counted", PATIENCE, || {
        let now = refused(&community, 1);
        holds(now >= before + 3, || format!("{before} -> {now}"))
    });
    say(community.start, "garbage is refused and counted");

    // The first words of a member of another community: known form, foreign content.
    let words = first_words(&community);
    say(
        community.start,
        &format!("a dialler's first {} bytes: {:02x?}", words.len(), &words[..words.len().min(16)]),
    );
    let of = |name: &str| community.counter(1, name);
    let (foreign, version) = (of("refused_community"), of("refused_version"));
    throw(&community, 1, &words);
    until("another community is counted", PATIENCE, || {
        let now = of("refused_community");
        holds(now > foreign, || community.status(1)["counters"].to_string())
    });
    // Wrong version: the byte after the magic, whichever it is.
    for at in 0..8.min(words.len()) {
        let mut other = words.clone();
        other[at] = other[at].wrapping_add(77);
        throw(&community, 1, &other);
    }
    until("another wire version is counted", PATIENCE, || {
        let now = of("refused_version");
        holds(now > version, || community.status(1)["counters"].to_string())
    });
    say(community.start, "another community and another wire version are refused and counted");

    // Half-open connections: more than the agent has places for, and members still get in.
    let half: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(community.nodes[1].overlay).unwrap()).collect();
    say(community.start, &format!("{} connections say nothing", half.len()));
    let alive = community.alive(1).unwrap();
    assert_eq!(alive.len(), 3, "{alive:?}");
    get_text(community.nodes[1].gateway, "/page/").unwrap();
    let mut community = community;
    community.kill(2);
    community.start(2);
    community.wait_whole();
    until("the page through n2", PATIENCE, || get_text(community.nodes[2].gateway, "/page/"));
    let status = community.status(1);
    say(
        community.start,
        &format!("handshake counters: {}", status["counters"]["handshakes_gave_way"]),
    );
    drop(half);
}

#[test]
fn slow_clients_do_not_block_others() {
    let community = Community::new("slow", 2);
    write(&community.folder("files-page/www").join("index.html"), "the page");
    let file = community
        .service_file("page", "name = \"page\"\nreplicas = 1\n[artifacts]\nany = \"www/\"\n");
    community.deploy(0, &file);
    let gateway = community.nodes[1].gateway;
    // Fewer than one address may have: half of all.
    let mut slow: Vec<Connection> = (0..120)
        .map(|number| {
            let mut connection = Connection::open(gateway).unwrap();
            let begun = if number % 2 == 0 {
                "GET /page/ HTTP/1.1\r\nHost: x\r\nX-Slow: "
            } else {
                "POST /page/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx"
            };
            connection.send(begun.as_bytes()).unwrap();
            connection
        })
        .collect();
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(get_text(gateway, "/page/").unwrap(), "the page");
        // Each slow one says one byte more; those answered already are closed.
        slow.iter_mut().for_each(|connection| drop(connection.send(b"y")));
    }
    say(
        community.start,
        &format!("50 visits beside 120 slow clients took {:.1?}", start.elapsed()),
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}
