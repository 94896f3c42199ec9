//! Real sockets on 127.0.0.1, several nodes on one executor.
#![allow(clippy::unwrap_used)]

mod hostile;
mod sessions;
mod streams;

use dugnad_kernel::wire;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use smol::channel::Receiver;

use super::handshake::Proven;
use super::*;

/// Nothing here takes longer, even on a busy machine; a hang fails instead of blocking.
const LIMIT: Duration = Duration::from_secs(60);

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<LocalExecutor<'static>>) -> F) {
    let ex = Rc::new(LocalExecutor::new());
    let limit = async {
        Timer::after(LIMIT).await;
        panic!("the test did not end within {LIMIT:?}");
    };
    let test = test(Rc::clone(&ex));
    smol::block_on(ex.run(smol::future::or(test, limit)));
}

struct Node {
    links: Links,
    inbox: Receiver<LinkEvent>,
}

impl std::ops::Deref for Node {
    type Target = Links;
    fn deref(&self) -> &Links {
        &self.links
    }
}

fn community(secret: u8) -> Community {
    Community { name: "test".into(), secret: [secret; 32] }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn config(key: u8, secret: u8, incarnation: u32) -> LinkConfig {
    LinkConfig {
        identity: Identity::ephemeral(key),
        community: community(secret),
        incarnation,
        listen: loopback(),
        announce: vec![loopback()],
        limits: crate::limits::Limits::default(),
    }
}

fn start(ex: &Rc<LocalExecutor<'static>>, config: LinkConfig) -> Node {
    let (sender, inbox) = smol::channel::bounded(16);
    Node { links: Links::start(Rc::clone(ex), config, sender).unwrap(), inbox }
}

fn node(ex: &Rc<LocalExecutor<'static>>, key: u8) -> Node {
    start(ex, config(key, 1, 1))
}

/// Two nodes, the first with the lower id, so that the first decides.
fn pair(ex: &Rc<LocalExecutor<'static>>) -> (Node, Node) {
    let (a, b) = (node(ex, 1), node(ex, 2));
    if a.me().id < b.me().id { (a, b) } else { (b, a) }
}

fn frame(text: &str) -> Vec<u8> {
    wire::encode(&text).unwrap()
}

fn text(body: &[u8]) -> String {
    wire::decode(body).unwrap()
}

fn count(links: &Links, name: &str) -> u64 {
    links.counters().iter().find(|(known, _)| *known == name).unwrap().1
}

impl Node {
    async fn next(&self) -> LinkEvent {
        self.inbox.recv().await.unwrap()
    }

    async fn up(&self, id: NodeId) {
        match self.next().await {
            LinkEvent::Up(peer) if peer.id == id => {}
            other => panic!("expected Up({id:?}), got {other:?}"),
        }
    }

    async fn down(&self, id: NodeId) {
        match self.next().await {
            LinkEvent::Down(peer) if peer == id => {}
            other => panic!("expected Down({id:?}), got {other:?}"),
        }
    }

    async fn frame(&self, from: NodeId) -> String {
        match self.next().await {
            LinkEvent::Frame { from: sender, body } if sender == from => text(&body),
            other => panic!("expected a frame of {from:?}, got {other:?}"),
        }
    }

    async fn stream(&self) -> Stream {
        match self.next().await {
            LinkEvent::Stream { stream, .. } => stream,
            other => panic!("expected a stream, got {other:?}"),
        }
    }

    /// Waits until a counter reaches a value.
    async fn counted(&self, name: &str, value: u64) {
        while count(self, name) < value {
            // Counters ring no bell: let the others run.
            Timer::after(Duration::from_millis(1)).await;
        }
    }

    fn quiet(&self) -> bool {
        self.inbox.is_empty()
    }
}

/// Links two nodes by one frame from the first.
async fn link(a: &Node, b: &Node) {
    a.learn(b.me());
    assert!(a.try_send(b.me().id, frame("hello")));
    a.up(b.me().id).await;
    b.up(a.me().id).await;
    assert_eq!(b.frame(a.me().id).await, "hello");
}

/// A member that speaks the protocol as far as the test wants: handshake done, session accepted.
async fn raw(to: &Links, key: u8) -> Proven {
    let identity = Identity::ephemeral(key);
    let mut me = Peer::new(node_id(&identity, &community(1)));
    me.inc = 1;
    let local = Local::new(&identity, &community(1), me.clone());
    let decides = me.id < to.me().id;
    let addr = to.local_addr();
    let tcp = smol::net::TcpStream::connect(addr).await.unwrap();
    let mut proven = handshake::dial(&local, tcp, addr, |_| Ok(Vec::new())).await.unwrap();
    if decides {
        proven.writer.record(&proven.noise, &[noise::VERDICT, 0]).await.unwrap();
    } else {
        assert_eq!(proven.read_verdict().await.unwrap(), 0);
    }
    proven
}
