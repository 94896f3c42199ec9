//! TCP ports, and a gateway that cannot start.

use super::*;

pub(super) async fn echo(stream: TcpStream, _: u32) {
    let (mut from, mut to) = (stream.clone(), stream);
    smol::io::copy(&mut from, &mut to).await.unwrap();
    to.shutdown(std::net::Shutdown::Write).unwrap();
}

pub(super) async fn ask(port: u16, word: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(word.as_bytes()).await?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[test]
fn ports_lead_to_replicas() {
    World::run(async |world| {
        let (here, there) = (world.node(1).await, world.node(2).await);
        let port = nowhere().port();
        let at = upstream(&here, echo).await;
        here.route("db", Port::Tcp(port), &[&here, &there]);
        // The one on this node refuses; nothing is lost.
        here.runs("db", 1, Endpoint::Port(nowhere()));
        there.runs("db", 2, Endpoint::Port(at));
        here.gateway.set_ports(vec![("db".to_owned(), Port::Tcp(port))]);
        assert_eq!(here.gateway.problems(), Vec::<String>::new());
        for word in ["PING", "ECHO"] {
            assert_eq!(ask(port, word).await.unwrap(), word);
        }
        assert_eq!(here.count("gateway_tcp_connections"), 2);
        let seen = text(&[&here.url("/db/")]).await;
        assert!(seen.contains(&format!("TCP port {port}")), "{seen}");

        // A connection that stands outlives its listener.
        let mut standing = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut back = [0; 2];
        standing.write_all(b"ab").await.unwrap();
        standing.read_exact(&mut back).await.unwrap();
        here.gateway.set_ports(vec![]);
        // The listener closes with its task, which is dropped on its next turn.
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {}
        standing.write_all(b"cd").await.unwrap();
        standing.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"cd");
    });
}

#[test]
fn ports_that_cannot_be_opened_are_told() {
    World::run(async |world| {
        let node = world.node(1).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let wanted = [("db".to_owned(), Port::Tcp(port)), ("other".to_owned(), Port::Tcp(port))];
        node.gateway.set_ports(wanted.to_vec());
        let problems = node.gateway.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("belongs to db"), "{problems:?}");
        assert!(problems[1].contains(&format!("db: TCP port {port} is not open")), "{problems:?}");
        assert!(problems[1].contains("gives it back"), "{problems:?}");
        node.gateway.set_ports(wanted[..1].to_vec());
        assert_eq!(node.gateway.problems().len(), 1);
        // Nobody asks again: it is opened as soon as it is free.
        drop(taken);
        while !node.gateway.problems().is_empty() {
            smol::Timer::after(std::time::Duration::from_millis(20)).await;
        }
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_err(), "nobody has it");
        node.gateway.set_ports(vec![("web".to_owned(), Port::Tcp(node.addr().port()))]);
        assert_eq!(node.gateway.problems().len(), 1);
    });
}

#[test]
fn a_taken_address_names_the_key() {
    World::run(async |world| {
        let node = world.node(1).await;
        let backend: Rc<dyn Backend> = Rc::<Fake>::clone(&node.fake);
        let error = Gateway::start(Rc::clone(&world.ex), node.addr(), Limits::default(), backend)
            .err()
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let error = error.to_string();
        assert!(error.contains(&node.addr().to_string()), "{error}");
        assert!(error.contains("[listen] gateway in dugnad.toml"), "{error}");
    });
}
