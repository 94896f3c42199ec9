//! Kademlia as libp2p has it: each node a swarm of its own, all in one process.

use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::Transport;
use libp2p::core::upgrade::Version;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryResult};
use libp2p::swarm::{Config, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, identity, noise, tcp, yamux};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Seen;

type Kad = kad::Behaviour<MemoryStore>;

/// First port of the nodes.
const PORT: usize = 21_000;
/// Peers each node knows before it bootstraps, besides the first node.
const KNOWN: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);

enum Told {
    Bootstrapped,
    Found { requests: u32, took: Duration },
}

fn swarm(number: usize) -> (Swarm<Kad>, PeerId, Multiaddr) {
    let key = identity::Keypair::generate_ed25519();
    let peer = PeerId::from(key.public());
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key).expect("a Noise key"))
        .multiplex(yamux::Config::default())
        .boxed();
    let mut config = kad::Config::new(StreamProtocol::new("/bench/kad/1"));
    config.set_periodic_bootstrap_interval(None);
    let mut kad = Kad::with_config(peer, MemoryStore::new(peer), config);
    kad.set_mode(Some(kad::Mode::Server));
    let config =
        Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
    let mut swarm = Swarm::new(transport, kad, peer, config);
    let address = format!("/ip4/127.0.0.1/tcp/{}", PORT + number);
    let address: Multiaddr = address.parse().expect("an address");
    swarm.listen_on(address.clone()).expect("a free port");
    swarm.add_external_address(address.clone());
    (swarm, peer, address)
}

/// One node until the process ends: bootstraps, then looks up what it is asked to.
async fn run(
    mut swarm: Swarm<Kad>,
    mut asked: UnboundedReceiver<PeerId>,
    told: UnboundedSender<Told>,
) {
    swarm.behaviour_mut().bootstrap().expect("known peers");
    let mut started = Instant::now();
    loop {
        tokio::select! {
            Some(target) = asked.recv() => {
                started = Instant::now();
                swarm.behaviour_mut().get_closest_peers(target);
            }
            event = swarm.select_next_some() => {
                let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed {
                    result, stats, step, ..
                }) = event else { continue };
                let news = match result {
                    QueryResult::Bootstrap(_) if step.last => Told::Bootstrapped,
                    QueryResult::GetClosestPeers(_) if step.last => {
                        Told::Found { requests: stats.num_requests(), took: started.elapsed() }
                    }
                    _ => continue,
                };
                // Nobody listens any more when the measurement is over.
                let _ = told.send(news);
            }
        }
    }
}

pub fn lookups(nodes: usize, lookups: usize) -> Seen {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut rng = StdRng::seed_from_u64(7);
        let mut swarms: Vec<_> = (0..nodes).map(swarm).collect();
        let known: Vec<_> = swarms.iter().map(|(_, peer, at)| (*peer, at.clone())).collect();
        let (to, mut told) = unbounded_channel();
        let mut askers = Vec::new();
        for (number, (mut swarm, ..)) in swarms.drain(..).enumerate() {
            let others = std::iter::repeat_with(|| rng.random_range(0..nodes)).take(KNOWN);
            for other in std::iter::once(0).chain(others).filter(|other| *other != number) {
                let (peer, address) = &known[other];
                swarm.behaviour_mut().add_address(peer, address.clone());
            }
            if number == 0 {
                let (peer, address) = &known[1];
                swarm.behaviour_mut().add_address(peer, address.clone());
            }
            let (ask, asked) = unbounded_channel();
            askers.push(ask);
            tokio::spawn(run(swarm, asked, to.clone()));
        }
        for _ in 0..nodes {
            let news = tokio::time::timeout(LIMIT, told.recv()).await;
            assert!(matches!(news, Ok(Some(Told::Bootstrapped))), "a node did not bootstrap");
        }
        let mut seen = Seen::default();
        for _ in 0..lookups {
            let secret: [u8; 32] = rng.random();
            let target = identity::Keypair::ed25519_from_bytes(secret).expect("a key");
            let target = PeerId::from(target.public());
            let _ = askers[rng.random_range(0..nodes)].send(target);
            let news = tokio::time::timeout(LIMIT, told.recv()).await;
            if let Ok(Some(Told::Found { requests, took })) = news {
                seen.requests.push(f64::from(requests));
                seen.micros.push(took.as_secs_f64() * 1e6);
            }
        }
        seen
    })
}
