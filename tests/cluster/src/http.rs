//! A small HTTP client that shows what is on the wire: several requests on one connection, raw
//! requests, no redirects, no retries.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer for so long is a failure.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

pub struct Connection<S = TcpStream> {
    stream: BufReader<S>,
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Connection {
    /// # Errors
    /// Nobody listens.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl Connection<UnixStream> {
    /// # Errors
    /// Nobody listens.
    pub fn to_socket(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl<S: Read + Write> Connection<S> {
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Asks and reads the answer.
    ///
    /// # Errors
    /// The connection broke, or what came is no HTTP.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[&str]) -> io::Result<Answer> {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n").as_bytes())?;
        self.answer(method == "HEAD")
    }

    /// Reads one answer; `head` has no body whatever it says.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub fn answer(&mut self, head: bool) -> io::Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| bad(format!("no status in {first:?}")))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(line.clone()))?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let mut body = Vec::new();
        let length = headers.get("content-length").and_then(|length| length.parse::<usize>().ok());
        if head || status == 304 || status == 204 || status == 101 {
        } else if headers.get("transfer-encoding").is_some_and(|te| te.contains("chunked")) {
            self.chunks(&mut body)?;
        } else if let Some(length) = length {
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(Answer { status, headers, body })
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(&line, 16).map_err(|_| bad(line))?;
            let start = body.len();
            body.resize(start + length, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    /// One line without its end.
    ///
    /// # Errors
    /// The connection broke or ended.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Whatever comes until the end; an end by force counts as one.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // What came before the end is what counts.
        let _: io::Result<usize> = self.stream.read_to_end(&mut rest);
        rest
    }
}

/// One GET on a connection of its own.
///
/// # Errors
/// As for [`Connection::ask`].
pub fn get(to: SocketAddr, path: &str) -> io::Result<Answer> {
    Connection::open(to)?.ask("GET", path, &["Connection: close"])
}

/// `Ok` with the text if the answer is a 200.
///
/// # Errors
/// What came instead, for people.
pub fn get_text(to: SocketAddr, path: &str) -> Result<String, String> {
    match get(to, path) {
        Ok(answer) if answer.status == 200 => Ok(answer.text()),
        Ok(answer) => Err(format!("{} {}", answer.status, answer.text().trim())),
        Err(error) => Err(error.to_string()),
    }
}

/// A path as it is written in a request.
#[must_use]
pub fn quote(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    path.bytes().fold(String::new(), |mut out, byte| {
        if plain(byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
