//! The command line's side of the control socket.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use dugnad_kernel::Hash;
use dugnad_resource::spec::Tree;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use smol::Async;
use smol::channel::{Receiver, bounded};

use super::body::Payload;
use super::{exit, socket, upload};
use crate::http_io::HttpIo;

/// One JSON value has at most this many bytes; a community of thousands fits.
const ANSWER_MAX: usize = 16 << 20;

/// Why a command got no answer, or a bad one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientError {
    /// Nobody listens at the socket.
    NoAgent(PathBuf),
    /// The socket is there and may not be used; why.
    NoAccess(PathBuf, String),
    /// The agent says no: exit code, what happened, reasons one line each.
    Answer { exit: u8, text: String, reasons: Vec<String> },
    /// The conversation broke off.
    Broken(String),
    /// Something of the caller's own, such as a file that cannot be read.
    Own(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent(path) => write!(f, "no agent answers at {}", path.display()),
            Self::NoAccess(path, why) => write!(
                f,
                "cannot use {}: {why}; become the user of the agent, or a member of its group",
                path.display()
            ),
            Self::Answer { text, .. } | Self::Own(text) => f.write_str(text),
            Self::Broken(why) => {
                write!(f, "the agent broke off ({why}); its log says more")
            }
        }
    }
}

impl ClientError {
    /// The command line's exit code.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::NoAgent(_) | Self::NoAccess(..) => exit::NO_AGENT,
            Self::Answer { exit, .. } => *exit,
            Self::Broken(_) | Self::Own(_) => exit::FAILED,
        }
    }

    fn broken(error: impl fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

type Connection = Pin<Box<dyn Future<Output = ()>>>;

/// Runs `work` while the connection behind it is driven.
async fn drive<T>(connection: &mut Option<Connection>, work: impl Future<Output = T>) -> T {
    let driving = async {
        if let Some(running) = connection {
            // How it ended, `work` sees for itself.
            running.await;
        }
        *connection = None;
        pending().await
    };
    smol::future::or(work, driving).await
}

/// A JSON answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answered {
    pub(crate) value: Value,
    /// False if part of the community did not answer.
    pub(crate) complete: bool,
}

/// Talks to the agent at a socket; one connection a request.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Answered, ClientError> {
        self.whole(Method::GET, path, Payload::Whole(None)).await
    }

    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn post(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answered, ClientError> {
        let body = body.map_or(Payload::Whole(None), |body| Payload::whole(body.to_string()));
        self.whole(Method::POST, path, body).await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn post_bytes(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answered, ClientError> {
        self.whole(Method::POST, path, Payload::whole(body)).await
    }

    /// Writes a value that comes in blocks, or removes it if there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn write(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        value: Option<Receiver<Bytes>>,
    ) -> Result<Answered, ClientError> {
        let method = if value.is_some() { Method::PUT } else { Method::DELETE };
        let body = value.map_or(Payload::Whole(None), Payload::stream);
        let (mut connection, response) = self.send(method, path, headers, body).await?;
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = drive(&mut connection, body).await.map_err(ClientError::broken)?;
        let value = serde_json::from_slice(&body.to_bytes()).map_err(ClientError::broken)?;
        Ok(Answered { value, complete: true })
    }

    /// Sends JSON to be put in the place of what is there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Answered, ClientError> {
        self.whole(Method::PUT, path, Payload::whole(body.to_string())).await
    }

    /// Bytes as they come.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn read(&self, path: &str) -> Result<Bulk, ClientError> {
        let body = Payload::Whole(None);
        let (connection, response) = self.send(Method::GET, path, &[], body).await?;
        let several = response.status() == StatusCode::MULTIPLE_CHOICES;
        let tag = response.headers().get(hyper::header::ETAG);
        let version = tag.and_then(|tag| tag.to_str().ok());
        let version = version.map(|tag| tag.trim_matches('"').to_owned());
        let revision = response.headers().get("dugnad-revision");
        let revision = revision.and_then(|n| n.to_str().ok()?.parse().ok());
        Ok(Bulk { connection, body: response.into_body(), several, version, revision })
    }

    /// Bytes in both directions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn connect(
        &self,
        path: &str,
        there: Receiver<Bytes>,
    ) -> Result<Bulk, ClientError> {
        let body = Payload::stream(there);
        let (connection, response) = self.send(Method::POST, path, &[], body).await?;
        let body = response.into_body();
        Ok(Bulk { connection, body, several: false, version: None, revision: None })
    }

    /// Lines of JSON as they come.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn get_lines(&self, path: &str) -> Result<Lines, ClientError> {
        self.lines(Method::GET, path, Payload::Whole(None)).await
    }

    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn post_lines(&self, path: &str, body: &Value) -> Result<Lines, ClientError> {
        self.lines(Method::POST, path, Payload::whole(body.to_string())).await
    }

    /// Sends a folder for the agent to store; `sent` counts the bytes that went.
    ///
    /// # Errors
    /// [`ClientError::Own`] if the folder cannot be read, else as above.
    pub(crate) async fn ingest(
        &self,
        folder: &Path,
        sent: Arc<AtomicUsize>,
    ) -> Result<Tree, ClientError> {
        let (blocks, from) = bounded(upload::BLOCKS);
        let folder = folder.to_path_buf();
        let packing =
            smol::unblock(move || upload::pack(&folder, &mut upload::Sender::new(blocks, sent)));
        let asking = self.whole(Method::POST, "/v1/ingest", Payload::stream(from));
        let (packed, answered) = futures_util::future::join(packing, asking).await;
        match packed {
            // The agent stopped reading: its answer says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(ClientError::Own(error.to_string()));
            }
            Ok(()) | Err(_) => {}
        }
        let value = answered?.value;
        let root = value["root"].as_str().and_then(Hash::from_hex);
        match (root, value["bytes"].as_u64()) {
            (Some(root), Some(bytes)) => Ok(Tree { root, bytes }),
            _ => Err(ClientError::broken("what it stored has no name")),
        }
    }

    async fn whole(
        &self,
        method: Method,
        path: &str,
        body: Payload,
    ) -> Result<Answered, ClientError> {
        let (mut connection, response) = self.send(method, path, &[], body).await?;
        let complete = response.headers().get("dugnad-complete").is_none_or(|v| v != "false");
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = drive(&mut connection, body).await.map_err(ClientError::broken)?;
        let value = serde_json::from_slice(&body.to_bytes()).map_err(ClientError::broken)?;
        Ok(Answered { value, complete })
    }

    async fn lines(&self, method: Method, path: &str, body: Payload) -> Result<Lines, ClientError> {
        let (connection, response) = self.send(method, path, &[], body).await?;
        Ok(Lines { connection, body: response.into_body(), rest: Vec::new(), scanned: 0 })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Payload,
    ) -> Result<(Option<Connection>, Response<Incoming>), ClientError> {
        let stream =
            socket::connect(&self.socket).and_then(Async::new).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::NoAgent(self.socket.clone())
                    }
                    _ => ClientError::NoAccess(self.socket.clone(), error.to_string()),
                }
            })?;
        let (mut sender, connection) =
            http1::handshake(HttpIo::new(stream)).await.map_err(ClientError::broken)?;
        let mut connection: Option<Connection> = Some(Box::pin(async move {
            // The request that runs on it ends with the same error.
            let _: Result<(), hyper::Error> = connection.await;
        }));
        let request = Request::builder().method(method).uri(path);
        let request = headers
            .iter()
            .fold(request.header(hyper::header::HOST, "dugnad"), |request, (name, value)| {
                request.header(*name, *value)
            });
        let request = request.body(body).map_err(ClientError::broken)?;
        let response = drive(&mut connection, sender.send_request(request));
        let response = response.await.map_err(ClientError::broken)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::MULTIPLE_CHOICES {
            return Ok((connection, response));
        }
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_MAX).collect();
        let body = drive(&mut connection, body).await.map_err(ClientError::broken)?;
        Err(serde_json::from_slice(&body.to_bytes())
            .map_or_else(ClientError::broken, |value| trouble(&value)))
    }
}

/// The error an agent's answer says.
fn trouble(value: &Value) -> ClientError {
    let exit = value["exit"].as_u64().and_then(|exit| u8::try_from(exit).ok());
    let reasons = value["reasons"].as_array().into_iter().flatten();
    ClientError::Answer {
        exit: exit.filter(|&exit| exit != exit::DONE).unwrap_or(exit::FAILED),
        text: value["error"].as_str().unwrap_or("the agent gave no reason").to_owned(),
        reasons: reasons.filter_map(Value::as_str).map(str::to_owned).collect(),
    }
}

/// Bytes from the agent.
pub(crate) struct Bulk {
    connection: Option<Connection>,
    body: Incoming,
    /// They are JSON of several values.
    pub(crate) several: bool,
    /// Of the value, if it has one.
    pub(crate) version: Option<String>,
    /// The same of a strong one.
    pub(crate) revision: Option<u64>,
}

impl Bulk {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The agent went away, or cannot get the rest.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match drive(&mut self.connection, self.body.frame()).await {
            None => Ok(None),
            Some(frame) => {
                let data = frame.map_err(ClientError::broken)?.into_data();
                Ok(Some(data.unwrap_or_default()))
            }
        }
    }
}

/// Lines of JSON from the agent.
pub(crate) struct Lines {
    connection: Option<Connection>,
    body: Incoming,
    rest: Vec<u8>,
    /// How much of `rest` is known to hold no newline.
    scanned: usize,
}

impl Lines {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// The agent went away, or the line is an error of its own.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(end) = self.rest[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=self.scanned + end).collect();
                self.scanned = 0;
                let value: Value = serde_json::from_slice(&line).map_err(ClientError::broken)?;
                return if value.get("error").is_some() {
                    Err(trouble(&value))
                } else {
                    Ok(Some(value))
                };
            }
            self.scanned = self.rest.len();
            if self.rest.len() > ANSWER_MAX {
                return Err(ClientError::broken("a line without end"));
            }
            match drive(&mut self.connection, self.body.frame()).await {
                None if self.rest.is_empty() => return Ok(None),
                None => return Err(ClientError::broken("in the middle of a line")),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::broken)?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
