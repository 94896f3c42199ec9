//! `POST /v1/connect/NAME?which=W`: bytes to a replica of a service and back.
//!
//! The body of the request goes to the replica, the body of the answer comes from it, both for as
//! long as they like. `which` is the number of a replica, or a condition on its node.

use std::rc::Rc;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use smol::LocalExecutor;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};

use super::body::Payload;
use super::http::{Query, Reply};
use super::shape::Trouble;
use super::{AgentApi, exit};
use crate::gateway::Which;
use crate::stream::Stream;
use crate::text::percent_decode;

/// Bytes that are passed on at once.
const PIECE: usize = 32 << 10;

pub(super) async fn route(
    ex: &Rc<LocalExecutor<'static>>,
    backend: &Rc<dyn AgentApi>,
    name: String,
    query: &Query,
    request: Request<Incoming>,
) -> Reply {
    let typed = query.get("which").unwrap_or_default();
    let typed = percent_decode(typed).ok_or_else(|| Trouble::usage("which is no text"))?;
    let which = Which::parse(&typed).map_err(Trouble::usage)?;
    let reached = backend.connect(name, which).await;
    let (stream, busy) = reached.map_err(|why| Trouble::new(503, exit::UNMET, why))?;
    let (from, to) = split(stream);
    let there = ex.spawn(there(request.into_body(), to));
    let back = futures_util::stream::unfold((from, there, busy), |(mut from, there, busy)| async {
        let block = read(&mut from).await?;
        Some((block, (from, there, busy)))
    });
    Ok(Response::new(Payload::stream(back)))
}

/// `None` at the end, whatever the end is.
async fn read(from: &mut ReadHalf<Stream>) -> Option<Bytes> {
    let mut block = vec![0; PIECE];
    let read = from.read(&mut block).await.ok().filter(|read| *read > 0)?;
    block.truncate(read);
    Some(Bytes::from(block))
}

/// What the caller says, until it ends or the replica does not listen any more.
async fn there(mut body: Incoming, mut to: WriteHalf<Stream>) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(block) = frame.into_data() else { continue };
        let sent = async {
            to.write_all(&block).await?;
            to.flush().await
        };
        if let Err(error) = sent.await {
            log::debug!("connect: {error}");
            return;
        }
    }
    // The replica may have ended first.
    _ = to.close().await;
}
