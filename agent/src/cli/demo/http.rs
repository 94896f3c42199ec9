//! One GET, as a visitor's browser would make it.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use smol::net::TcpStream;

use crate::http_io::HttpIo;

const LIMIT: Duration = Duration::from_secs(5);
const BODY_MAX: usize = 64 << 10;

/// The text at `http://address/path`.
///
/// # Errors
/// It is not a 200, or nothing came within 5 s; for people.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let late = async {
        smol::Timer::after(LIMIT).await;
        Err(format!("no answer within {}s", LIMIT.as_secs()))
    };
    smol::future::or(try_get(address, path), late).await
}

async fn try_get(address: SocketAddr, path: &str) -> Result<String, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let handshake = http1::handshake(HttpIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let request = Request::get(path)
        .header(hyper::header::HOST, address.to_string())
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status == hyper::StatusCode::OK {
            Ok(text)
        } else {
            Err(format!("{status}: {}", text.trim()))
        }
    };
    let driving = async {
        // Its error is the request's, too.
        let _: Result<(), hyper::Error> = connection.await;
        smol::future::pending().await
    };
    smol::future::or(asking, driving).await
}
