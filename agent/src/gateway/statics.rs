//! Folders as web sites: files straight from their chunks, ranges, and tags to ask by.

use std::io;
use std::rc::Rc;

use dugnad_resource::spec::Tree;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, VARY,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};

use super::body::{Body, FileBody, text};
use super::hot::Hot;
use super::{Shared, compress};
use crate::blobs::{Blobs, Catalog, Found, Held};
use crate::text::percent_decode;

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// What is in a folder, which stays as long as it is read from.
type Reading = (Rc<Catalog>, Rc<Held>);

/// Answers a request for a path of a folder; the service's prefix is off already.
///
/// # Errors
/// Those of the disk: the folder cannot be read here, another replica may have it.
pub(super) async fn answer(
    shared: &Shared,
    tree: Tree,
    parts: &Parts,
) -> io::Result<Response<Body>> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        let mut no = text(StatusCode::METHOD_NOT_ALLOWED, "a folder: only GET and HEAD\n");
        no.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(no);
    }
    let blobs = &shared.backend.blobs();
    let held = Rc::new(blobs.hold(tree)?);
    let catalog = (blobs.catalog(tree).await?, held);
    let raw = parts.uri.path();
    let found = percent_decode(raw).and_then(|path| {
        let found = catalog.0.find(&path)?;
        Some((path, found))
    });
    let (path, entry, size) = match found {
        // `file/` is not `file`: its links would lead elsewhere.
        Some((path, Found::File { entry, size })) if !raw.ends_with('/') => (path, entry, size),
        Some((_, Found::Dir)) if !raw.ends_with('/') => {
            return Ok(to_folder(raw, parts.uri.query()));
        }
        Some((path, Found::Dir)) => {
            let index = format!("{path}/index.html");
            match catalog.0.find(&index) {
                Some(Found::File { entry, size }) => (index, entry, size),
                Some(Found::Dir) | None => return Ok(missing(shared, blobs, &catalog, raw)),
            }
        }
        Some((_, Found::File { .. })) | None => return Ok(missing(shared, blobs, &catalog, raw)),
    };
    let content_type = match content_type(&path) {
        Some(known) => known,
        None => sniff(shared, blobs, &catalog.0, entry).await?,
    };
    let file = File { shared, blobs, tree, catalog: &catalog, entry, size };
    let worth = compress::is_worth(content_type, size);
    let whole = parts.headers.get(RANGE).is_none();
    let mut answer = if worth && whole && compress::is_wanted(&parts.headers) {
        let bytes = shared.compressed.of(blobs, tree.root, &catalog.0, entry).await?;
        file.compressed(parts, content_type, bytes)
    } else {
        file.answer(parts, content_type)
    };
    if worth {
        set(answer.headers_mut(), VARY, "accept-encoding");
    }
    Ok(answer)
}

/// What a file is whose name does not tell: text, if its beginning reads as text.
async fn sniff(
    shared: &Shared,
    blobs: &Blobs,
    catalog: &Catalog,
    entry: usize,
) -> io::Result<&'static str> {
    let Some(hash) = catalog.chunk(entry, 0) else { return Ok(TEXT) };
    let bytes = shared.hot.read(blobs, hash).await?;
    let start = &bytes[..bytes.len().min(1024)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // A letter may be cut in two where we stopped.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return Ok(BYTES),
    };
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b');
    Ok(if text.contains(odd) { BYTES } else { TEXT })
}

/// Sends the client to the folder's name with a slash, so that relative links work. The answer is
/// relative, too: it is right behind any prefix.
fn to_folder(raw: &str, query: Option<&str>) -> Response<Body> {
    let name = raw.rsplit('/').next().unwrap_or_default();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut answer = text(StatusCode::PERMANENT_REDIRECT, "this is a folder\n");
    if let Ok(to) = HeaderValue::try_from(format!("./{name}/{query}")) {
        answer.headers_mut().insert(LOCATION, to);
    }
    answer
}

/// Where the bytes of a file come from.
fn from(shared: &Shared, blobs: &Rc<Blobs>) -> (Rc<Blobs>, Rc<Hot>) {
    (Rc::clone(blobs), Rc::clone(&shared.hot))
}

/// The folder's own `404.html` if there is one.
fn missing(shared: &Shared, blobs: &Rc<Blobs>, catalog: &Reading, raw: &str) -> Response<Body> {
    if let Some(Found::File { entry, size }) = catalog.0.find("404.html") {
        let file = FileBody::new(from(shared, blobs), catalog.clone(), entry, 0, size);
        let mut answer = Response::new(Body::File(file));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        set(answer.headers_mut(), CONTENT_TYPE, "text/html; charset=utf-8");
        set(answer.headers_mut(), CONTENT_LENGTH, size.to_string());
        return answer;
    }
    text(StatusCode::NOT_FOUND, format!("no such file: {raw}\n"))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: impl TryInto<HeaderValue>) {
    if let Ok(value) = value.try_into() {
        headers.insert(name, value);
    }
}

struct File<'a> {
    shared: &'a Shared,
    blobs: &'a Rc<Blobs>,
    tree: Tree,
    catalog: &'a Reading,
    entry: usize,
    size: u64,
}

impl File<'_> {
    /// The whole of it in gzip form, under a tag of its own.
    fn compressed(
        &self,
        parts: &Parts,
        content_type: &'static str,
        bytes: Bytes,
    ) -> Response<Body> {
        let tag = format!("\"{}-gz\"", self.tree.root);
        let mut answer = Response::new(Body::EMPTY);
        let headers = answer.headers_mut();
        set(headers, ETAG, tag.as_str());
        set(headers, CACHE_CONTROL, "no-cache");
        if matches_tag(&parts.headers, &tag) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return answer;
        }
        set(headers, CONTENT_TYPE, content_type);
        set(headers, CONTENT_ENCODING, "gzip");
        set(headers, CONTENT_LENGTH, bytes.len().to_string());
        if parts.method == Method::GET {
            *answer.body_mut() = Body::text(bytes);
        }
        answer
    }

    fn answer(&self, parts: &Parts, content_type: &'static str) -> Response<Body> {
        let tag = format!("\"{}\"", self.tree.root);
        let mut answer = Response::new(Body::EMPTY);
        let headers = answer.headers_mut();
        set(headers, ETAG, tag.as_str());
        // Asked about every time, answered with 304 mostly: a new version shows at once.
        set(headers, CACHE_CONTROL, "no-cache");
        set(headers, ACCEPT_RANGES, "bytes");
        if matches_tag(&parts.headers, &tag) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return answer;
        }
        let range = match wanted_range(parts, &tag) {
            Some(range) => range.within(self.size),
            None => Ok(None),
        };
        let (at, length) = match range {
            Ok(None) => (0, self.size),
            Ok(Some((first, last))) => {
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {first}-{last}/{}", self.size);
                set(answer.headers_mut(), CONTENT_RANGE, range);
                (first, last - first + 1)
            }
            Err(OutOfFile) => {
                *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                set(answer.headers_mut(), CONTENT_RANGE, format!("bytes */{}", self.size));
                return answer;
            }
        };
        set(answer.headers_mut(), CONTENT_TYPE, content_type);
        set(answer.headers_mut(), CONTENT_LENGTH, length.to_string());
        if parts.method == Method::GET {
            let (from, catalog) = (from(self.shared, self.blobs), self.catalog.clone());
            *answer.body_mut() = Body::File(FileBody::new(from, catalog, self.entry, at, length));
        }
        answer
    }
}

/// Whether the client has this version (RFC 9110 13.1.2).
fn matches_tag(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).any(|candidate| {
        candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == tag
    })
}

/// One range, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    From(u64),
    FromTo(u64, u64),
    Last(u64),
}

#[derive(Debug, PartialEq, Eq)]
struct OutOfFile;

impl Range {
    /// `None` for what is to be ignored: other units, several ranges, nonsense.
    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
            return None;
        }
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // Longer than any file is as good as the longest.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::FromTo(first, last))
            }
        }
    }

    /// First and last byte of it in a file of this size.
    fn within(self, size: u64) -> Result<Option<(u64, u64)>, OutOfFile> {
        let end = size.checked_sub(1).ok_or(OutOfFile)?;
        match self {
            Self::From(first) | Self::FromTo(first, _) if first > end => Err(OutOfFile),
            Self::Last(0) => Err(OutOfFile),
            Self::From(first) => Ok(Some((first, end))),
            Self::FromTo(first, last) => Ok(Some((first, last.min(end)))),
            Self::Last(length) => Ok(Some((size.saturating_sub(length), end))),
        }
    }
}

fn wanted_range(parts: &Parts, tag: &str) -> Option<Range> {
    if parts.method != Method::GET {
        return None;
    }
    // A date never matches: trees keep no times.
    if parts.headers.get(IF_RANGE).is_some_and(|value| value.as_bytes() != tag.as_bytes()) {
        return None;
    }
    Range::parse(parts.headers.get(RANGE)?.to_str().ok()?)
}

/// What the end of a name tells; `None` if nothing.
fn content_type(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    Some(match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "log" => TEXT,
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" | "map" => "application/json",
        "webcatalog" => "application/catalog+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "mp3" => "audio/mpeg",
        "ogg" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "bin" | "exe" | "img" | "iso" => BYTES,
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_rfc_has_them() {
        let of = |text, size| Range::parse(text).map(|range| range.within(size));
        assert_eq!(of("bytes=0-0", 10), Some(Ok(Some((0, 0)))));
        assert_eq!(of("bytes=2-", 10), Some(Ok(Some((2, 9)))));
        assert_eq!(of("bytes=2-99999999999999999999", 10), Some(Ok(Some((2, 9)))));
        assert_eq!(of("bytes=-3", 10), Some(Ok(Some((7, 9)))));
        assert_eq!(of("bytes=-30", 10), Some(Ok(Some((0, 9)))));
        assert_eq!(of("bytes=-0", 10), Some(Err(OutOfFile)));
        assert_eq!(of("bytes=10-", 10), Some(Err(OutOfFile)));
        assert_eq!(of("bytes=0-", 0), Some(Err(OutOfFile)));
        for ignored in [
            "bytes=3-2",
            "bytes=1-2,4-5",
            "lines=1-2",
            "bytes=a-",
            "bytes=-",
            "bytes",
            "bytes=+1-2",
        ] {
            assert_eq!(of(ignored, 10), None, "{ignored}");
        }
    }
}
