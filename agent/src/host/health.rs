//! Whether a service is ready: one check, and the watch that repeats it.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dugnad_resource::execute::Run;
use dugnad_resource::spec::{Check, Port};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, header};
use smol::{Async, Timer};

use super::launch::Prepared;
use super::running::{Running, killed_for_memory};
use crate::http_io::HttpIo;

/// Pauses between checks of a service that is starting: this, doubled up to [`SLOWEST`].
const FIRST: Duration = Duration::from_millis(5);
const SLOWEST: Duration = Duration::from_millis(250);
/// A service without a port is ready when it has lived this long.
const SETTLED: Duration = Duration::from_millis(200);
/// Every service may take at least this long to become ready.
const START_MIN: Duration = Duration::from_secs(10);

/// What the watch tells.
pub(super) trait Notice {
    /// It passed its check, for the first time or again after failures.
    async fn ready(&self);
}

/// Watches until the service is sick; returns why. Cancel it by dropping it.
pub(super) async fn watch(
    run: &Run,
    running: &Running,
    prepared: &Prepared,
    notice: &impl Notice,
) -> String {
    let health = &run.spec.health;
    let interval = Duration::from_millis(u64::from(health.interval_ms.max(1)));
    let failures = u32::from(health.failures.max(1));
    let allowance = (interval * failures).max(START_MIN);
    let started = Instant::now();
    let mut pause = FIRST;
    while let Err(why) = check(run, running, prepared).await {
        if started.elapsed() >= allowance {
            return format!("not ready after {} s: {why}", allowance.as_secs());
        }
        Timer::after(pause).await;
        pause = (pause * 2).min(SLOWEST);
    }
    running.was_ready.set(true);
    notice.ready().await;

    // With nothing to ask and memory held by the kernel, only the end of the process matters.
    if is_settled_check(run) && !prepared.sample_memory {
        return std::future::pending().await;
    }
    let mut failed = 0;
    loop {
        Timer::after(interval).await;
        let limit = run.spec.needs.memory;
        if prepared.sample_memory && limit > 0 && running.memory() > limit {
            return killed_for_memory(limit, true);
        }
        if is_settled_check(run) {
            continue;
        }
        match check(run, running, prepared).await {
            Ok(()) => failed = 0,
            Err(why) => {
                failed += 1;
                log::debug!("{} {}: check failed: {why}", run.spec.name, run.id.number);
                if failed >= failures {
                    return format!("health check failed {failed} times: {why}");
                }
            }
        }
    }
}

fn is_settled_check(run: &Run) -> bool {
    run.spec.health.check == Check::Port && run.spec.port == Port::None
}

async fn check(run: &Run, running: &Running, prepared: &Prepared) -> Result<(), String> {
    let health = &run.spec.health;
    let limit = Duration::from_millis(u64::from(health.timeout_ms.max(1)));
    let port = running.port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    match (&health.check, port) {
        (Check::Port, None) => {
            Timer::after(SETTLED.saturating_sub(running.lived())).await;
            Ok(())
        }
        (Check::Port, Some(port)) if matches!(run.spec.port, Port::Udp(_)) => bound(port.port()),
        (Check::Port, Some(port)) => within(limit, connect(port)).await.map(drop),
        (Check::Http(path), Some(port)) => within(limit, get(port, path)).await,
        (Check::Http(_), None) => Err("an http check needs [port]".to_owned()),
        (Check::Exec(command), _) => prepared.exec(command, running, limit).await,
    }
}

async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = async {
        Timer::after(limit).await;
        Err(format!("no answer within {} ms", limit.as_millis()))
    };
    smol::future::or(attempt, late).await
}

/// Whether somebody listens on this UDP port: the kernel knows, and nothing is sent to the service.
fn bound(port: u16) -> Result<(), String> {
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let listens =
        |table: &&str| fs::read_to_string(table).is_ok_and(|table| has_local_port(&table, port));
    match tables.iter().any(listens) {
        true => Ok(()),
        false => Err(format!("nobody listens on UDP port {port}")),
    }
}

/// Whether a table of the kernel's sockets (`proc(5)`: `0: 0100007F:14E9 00000000:0000 ..`) has a
/// line of this local port.
fn has_local_port(table: &str, port: u16) -> bool {
    let local = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    table.lines().skip(1).any(|line| local(line) == Some(port))
}

async fn connect(port: SocketAddr) -> Result<Async<TcpStream>, String> {
    let refused = |error: io::Error| format!("cannot connect to {port}: {error}");
    Async::<TcpStream>::connect(port).await.map_err(refused)
}

async fn get(port: SocketAddr, path: &str) -> Result<(), String> {
    let stream = HttpIo::new(connect(port).await?);
    let failed = |error: hyper::Error| format!("GET {path} failed: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(failed)?;
    let request = Request::get(path)
        .header(header::HOST, port.to_string())
        .header(header::USER_AGENT, "dugnad")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot ask for {path}: {error}"))?;
    let answer = async { sender.send_request(request).await.map_err(failed) };
    let carried = async {
        match connection.await {
            // The answer may already be there: let the other side say.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(failed(error)),
        }
    };
    let status = smol::future::or(answer, carried).await?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("GET {path} answered {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_listens() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n \
             2098: 0100007F:14E9 00000000:0000 07 00000000:00000000 00:00000000 0\n";
        assert!(has_local_port(table, 0x14E9));
        assert!(!has_local_port(table, 0x14EA));
        assert!(!has_local_port("", 1) && !has_local_port("sl\n x y\n", 1));
    }
}
