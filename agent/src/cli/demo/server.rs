//! The program the demo deploys: this same binary, as it is surely there and fits every box. It
//! says which replica on which node answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use smol::LocalExecutor;
use smol::net::{TcpListener, TcpStream};
use smol_hyper::rt::SmolTimer;

use crate::config::Env;
use crate::http_io::HttpIo;

/// Serves on `PORT` until it is told to end. `_rest` marks the process as one of a demo's.
///
/// # Errors
/// `PORT` is missing or cannot be listened on.
pub(in crate::cli) fn run(env: Env<'_>, _rest: &[&str]) -> Result<(), String> {
    let said = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let port = said("PORT").and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or("demo-server: PORT must say where to listen")?;
    let host = said("HOST").and_then(|host| host.parse().ok()).unwrap_or([127, 0, 0, 1].into());
    let part = |name: &str| said(name).unwrap_or_else(|| "?".to_owned());
    let text = format!(
        "replica {} of {} on node {}\n",
        part("DUGNAD_REPLICA"),
        part("DUGNAD_SERVICE"),
        part("DUGNAD_NODE")
    );
    let address = SocketAddr::new(host, port);
    let ex = Rc::new(LocalExecutor::new());
    smol::block_on(ex.run(async {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("demo-server: {address}: {error}"))?;
        println!("listening on {address}");
        loop {
            let (stream, _) = listener.accept().await.map_err(|e| format!("demo-server: {e}"))?;
            ex.spawn(serve(stream, Bytes::from(text.clone()))).detach();
        }
    }))
}

async fn serve(stream: TcpStream, text: Bytes) {
    let service = service_fn(|_: Request<Incoming>| {
        let text = text.clone();
        async move { Ok::<_, Infallible>(Response::new(Full::new(text))) }
    });
    let mut http = http1::Builder::new();
    let serving = http.timer(SmolTimer::new()).serve_connection(HttpIo::new(stream), service);
    if let Err(error) = serving.await {
        eprintln!("demo-server: {error}");
    }
}
