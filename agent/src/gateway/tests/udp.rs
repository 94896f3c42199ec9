//! UDP ports.

use std::net::UdpSocket;

use super::*;

/// A service that sends every datagram back, with a word before it.
async fn echo(node: &Node, word: &'static str) -> SocketAddr {
    let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
    let addr = socket.get_ref().local_addr().unwrap();
    node.ex
        .spawn(async move {
            let mut got = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut got).await.unwrap();
                let back = [word.as_bytes(), &got[..length]].concat();
                socket.send_to(&back, from).await.unwrap();
            }
        })
        .detach();
    addr
}

fn client(port: u16) -> Async<UdpSocket> {
    let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
    socket.get_ref().connect(("127.0.0.1", port)).unwrap();
    socket
}

async fn ask(socket: &Async<UdpSocket>, what: &str) -> String {
    socket.send(what.as_bytes()).await.unwrap();
    let mut got = [0; 2048];
    let length = socket.recv(&mut got).await.unwrap();
    String::from_utf8(got[..length].to_vec()).unwrap()
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn datagrams_reach_a_replica_here_or_elsewhere() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let port = free_port();
        here.route("dns", Port::Udp(port), &[&here, &there]);
        there.runs("dns", 2, Endpoint::Datagrams(echo(&there, "far ").await));
        here.gateway.set_ports(vec![("dns".to_owned(), Port::Udp(port))]);
        assert_eq!(here.gateway.problems(), Vec::<String>::new());
        let (one, two) = (client(port), client(port));
        for text in ["a", "", "c"] {
            assert_eq!(ask(&one, text).await, format!("far {text}"));
        }
        // Who comes new goes to the one on this node; who is there stays.
        here.runs("dns", 1, Endpoint::Datagrams(echo(&here, "near ").await));
        assert_eq!(ask(&two, "x").await, "near x");
        assert_eq!(ask(&one, "y").await, "far y");
        assert_eq!(here.count("gateway_datagrams"), 5);
        assert_eq!(here.count("gateway_datagrams_dropped"), 0);
        assert_eq!(here.gateway.shared.tcp.now().now, 2);
        let seen = text(&[&here.url("/dns/")]).await;
        assert!(seen.contains(&format!("UDP port {port}")), "{seen}");
        // The same number may be a TCP port of another service.
        let both = vec![("dns".to_owned(), Port::Udp(port)), ("web".to_owned(), Port::Tcp(port))];
        here.gateway.set_ports(both);
        assert_eq!(here.gateway.problems(), Vec::<String>::new());
    });
}

#[test]
fn a_replica_that_dies_costs_the_datagrams_on_their_way() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let port = free_port();
        here.route("dns", Port::Udp(port), &[&here, &there]);
        let dead = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        here.runs("dns", 1, Endpoint::Datagrams(dead.get_ref().local_addr().unwrap()));
        there.runs("dns", 2, Endpoint::Datagrams(echo(&there, "far ").await));
        here.gateway.set_ports(vec![("dns".to_owned(), Port::Udp(port))]);
        let one = client(port);
        one.send(b"lost").await.unwrap();
        let mut got = [0; 8];
        assert_eq!(dead.recv(&mut got).await.unwrap(), 4);
        // Its node sees the process end; the gateway hears it from the kernel.
        drop(dead);
        here.fake.local.borrow_mut().clear();
        here.route("dns", Port::Udp(port), &[&there]);
        here.fake.nodes.borrow_mut().remove(&here.id);
        there.runs("dns", 1, Endpoint::Datagrams(echo(&there, "far ").await));
        one.send(b"lost, too").await.unwrap();
        // The flow ends as soon as its task has run.
        while here.gateway.shared.tcp.now().now > 0 {
            smol::future::yield_now().await;
        }
        assert_eq!(ask(&one, "again").await, "far again");
    });
}

#[test]
fn strangers_take_no_more_than_their_places() {
    World::run(async |world| {
        let node = world.node(1).await;
        let port = free_port();
        node.route("dns", Port::Udp(port), &[&node]);
        node.runs("dns", 1, Endpoint::Datagrams(echo(&node, "").await));
        node.gateway.set_ports(vec![("dns".to_owned(), Port::Udp(port))]);
        let each = node.gateway.shared.limits.tcp_service / 2;
        let mut clients = Vec::new();
        for number in 0..each + 20 {
            let one = client(port);
            one.send(b"x").await.unwrap();
            clients.push(one);
            while node.count("gateway_datagrams") <= number as u64 {
                smol::future::yield_now().await;
            }
            assert!(node.gateway.shared.tcp.now().now <= each);
        }
        assert_eq!(node.count("gateway_datagrams_dropped"), 20, "all are in use");
        assert_eq!(ask(&clients[0], "still").await, "x", "its first answer waits");
    });
}
