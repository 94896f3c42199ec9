//! `dugnad-bench-dht NODES LOOKUPS`: lookups in a libp2p Kademlia network (loopback TCP, Noise,
//! yamux, tables of its own bootstrap) and in a mainline test network (loopback UDP). One line a
//! system: name, requests a lookup (mean), milliseconds (p50, p99).

mod kad;

use std::time::Instant;

/// Requests and microseconds of some lookups.
#[derive(Default)]
struct Seen {
    requests: Vec<f64>,
    micros: Vec<f64>,
}

impl Seen {
    fn line(mut self, name: &str) -> String {
        self.micros.sort_by(f64::total_cmp);
        let count = self.micros.len();
        let at = |share: f64| {
            let place = ((count as f64 * share) as usize).min(count.saturating_sub(1));
            self.micros.get(place).copied().unwrap_or(f64::NAN) / 1e3
        };
        let mean = self.requests.iter().sum::<f64>() / self.requests.len().max(1) as f64;
        format!("{name} {mean:.1} {:.2} {:.2}", at(0.5), at(0.99))
    }
}

/// UDP datagrams this machine has received: there is nothing else that counts them.
fn datagrams() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let values = text.lines().filter(|line| line.starts_with("Udp:")).nth(1);
    values.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

fn mainline(nodes: usize, lookups: usize) -> Seen {
    let mut builder = mainline::Testnet::builder(nodes);
    builder.bind_address(std::net::Ipv4Addr::LOCALHOST);
    let net = builder.build().expect("a test network on loopback");
    let mut seen = Seen::default();
    for number in 0..lookups {
        let node = &net.nodes[(number * 37) % net.nodes.len()];
        let (before, start) = (datagrams(), Instant::now());
        node.find_node(mainline::Id::random());
        seen.micros.push(start.elapsed().as_secs_f64() * 1e6);
        // A request and its answer.
        seen.requests.push((datagrams() - before) as f64 / 2.0);
    }
    seen
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse().expect("a number"));
    let (nodes, lookups) = (numbers.next().unwrap_or(20), numbers.next().unwrap_or(200));
    println!("{}", mainline(nodes, lookups).line("mainline"));
    println!("{}", kad::lookups(nodes, lookups).line("libp2p-kad"));
}
