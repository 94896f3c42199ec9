//! Headers: those of one hop only are taken off, those that tell where a request came from put on.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Version};

use crate::host::DOMAIN;

pub(super) const REPLICA: HeaderName = HeaderName::from_static("dugnad-replica");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Those RFC 9110 (7.6.1) and habit reserve for one hop. `expect` is answered by this hop.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// Why a request is not passed on: it could mean one thing here and another to the service.
pub(super) fn ambiguous(parts: &Parts) -> Option<&'static str> {
    let headers = &parts.headers;
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key("content-length") {
        return Some("both Content-Length and Transfer-Encoding");
    }
    if headers.get_all("content-length").iter().count() > 1 {
        return Some("more than one Content-Length");
    }
    if parts.version == Version::HTTP_10 && headers.contains_key(TRANSFER_ENCODING) {
        return Some("Transfer-Encoding in HTTP/1.0");
    }
    match headers.get_all(HOST).iter().count() {
        0 if parts.version == Version::HTTP_11 && parts.uri.host().is_none() => Some("no Host"),
        0 | 1 => None,
        _ => Some("more than one Host"),
    }
}

/// What a client wants to talk instead of HTTP, if it asks.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| named).cloned()
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes off what belongs to one hop.
pub(super) fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<_> =
        tokens(headers).filter_map(|token| HeaderName::try_from(token).ok()).collect();
    for name in named {
        // Nobody may have the gateway take these off by naming them.
        if name != HOST && name != "content-length" {
            headers.remove(name);
        }
    }
    for name in HOP {
        headers.remove(name);
    }
}

/// A name of this machine itself: browsers and curl look no further (RFC 6761 6.3).
const LOCAL: &str = ".localhost";

/// The service a host name names.
pub(super) fn service_of_host(parts: &Parts) -> Option<String> {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = parts.uri.host().or(host)?.to_ascii_lowercase();
    let host = host.split(':').next().unwrap_or_default();
    // With its dot at the end a name is the same name.
    let host = host.strip_suffix('.').unwrap_or(host);
    let name = host.strip_suffix(DOMAIN).or_else(|| host.strip_suffix(LOCAL))?;
    Some(name.to_owned())
}

/// Makes the headers of a request fit for the service behind.
pub(super) fn forward(parts: &mut Parts, peer: SocketAddr, here: SocketAddr, prefix: &str) {
    let upgrade = upgrade(&parts.headers);
    let headers = &mut parts.headers;
    strip_hop(headers);
    headers.remove(REPLICA);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    // The target's own host beats the header (RFC 9112 3.2.2).
    let host = parts.uri.authority().map(|authority| {
        // Whatever stands before it is between the client and nobody.
        let text = authority.as_str();
        text.rsplit_once('@').map_or(text, |(_, host)| host).to_owned()
    });
    let host = host.or_else(|| (!headers.contains_key(HOST)).then(|| here.to_string()));
    if let Some(host) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        headers.insert(HOST, host);
    }
    let ip = peer.ip().to_canonical();
    // A front on the same machine has seen the client; nobody else is believed.
    let trusted = ip.is_loopback();
    if !trusted {
        for claim in [FOR, FORWARDED, REAL_IP] {
            headers.remove(claim);
        }
    }
    let mut came: Vec<_> =
        headers.get_all(FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let ip = ip.to_string();
    came.push(&ip);
    let came = HeaderValue::try_from(came.join(", "));
    if let Ok(came) = came {
        headers.insert(FOR, came);
    }
    if !(trusted && headers.contains_key(PROTO)) {
        headers.insert(PROTO, HeaderValue::from_static("http"));
    }
    if !(trusted && headers.contains_key(FORWARDED_HOST)) {
        if let Some(host) = headers.get(HOST).cloned() {
            headers.insert(FORWARDED_HOST, host);
        }
    }
    headers.remove(PREFIX);
    if let (false, Ok(prefix)) = (prefix.is_empty(), HeaderValue::try_from(prefix)) {
        headers.insert(PREFIX, prefix);
    }
}

/// Makes an answer lead where its visitor can follow: a `Location` that names the service's own
/// address, or a path without the prefix it is reached under, names the visitor's address instead.
/// `asked` are the headers of the request as [`forward`] left them.
pub(super) fn back(headers: &mut HeaderMap, asked: &HeaderMap) {
    let text = |name: &HeaderName| asked.get(name).and_then(|value| value.to_str().ok());
    let Some(to) = headers.get(LOCATION).and_then(|to| to.to_str().ok()) else { return };
    let prefix = text(&PREFIX).unwrap_or_default();
    let (own, path) = match to.split_once("://") {
        Some(("http" | "https", rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (host, path) = rest.split_at(end);
            (is_own(host, text(&HOST)), path)
        }
        Some(_) => return,
        // Not an absolute path: it leads on from where the visitor is.
        None if !to.starts_with('/') || to.starts_with("//") => return,
        None => (true, to),
    };
    let inside =
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !own || (!to.contains("://") && inside) {
        return;
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    let prefix = if inside { "" } else { prefix };
    let there = match (to.contains("://"), text(&FORWARDED_HOST)) {
        (true, Some(host)) => format!("{}://{host}", text(&PROTO).unwrap_or("http")),
        _ => String::new(),
    };
    if let Ok(to) = HeaderValue::try_from(format!("{there}{prefix}{slash}{path}")) {
        headers.insert(LOCATION, to);
    }
}

/// Whether this is how a service names itself: by the loopback address it listens on, or by the
/// host it was asked for.
fn is_own(host: &str, asked: Option<&str>) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let loopback = name == "localhost"
        || name.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    loopback || asked.is_some_and(|asked| asked.eq_ignore_ascii_case(host))
}

/// Whether doing it twice is the same as doing it once.
pub(super) fn idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::builder().uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_end_to_end_headers_pass() {
        let mut parts = parts(&[
            ("host", "a.example:7480"),
            ("connection", "keep-alive, x-mine, Host"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("dugnad-replica", "1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-prefix", "/evil"),
            ("cookie", "a=b"),
        ]);
        let peer = "[::ffff:192.0.2.7]:99".parse().unwrap();
        forward(&mut parts, peer, "127.0.0.1:7480".parse().unwrap(), "/wiki");
        let mut names: Vec<_> =
            parts.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "cookie: a=b",
                "host: a.example:7480",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: a.example:7480",
                "x-forwarded-prefix: /wiki",
                "x-forwarded-proto: http",
            ]
        );
    }

    #[test]
    fn what_two_could_read_in_two_ways_is_refused() {
        let bad = [
            &[("host", "a"), ("content-length", "3"), ("transfer-encoding", "chunked")][..],
            &[("host", "a"), ("content-length", "3"), ("content-length", "3")],
            &[("host", "a"), ("host", "b")],
            &[],
        ];
        for headers in bad {
            assert!(ambiguous(&parts(headers)).is_some(), "{headers:?}");
        }
        assert_eq!(ambiguous(&parts(&[("host", "a"), ("content-length", "3")])), None);
    }

    #[test]
    fn services_have_host_names() {
        let of = |host| service_of_host(&parts(&[("host", host)]));
        assert_eq!(of("Wiki.dugnad.internal:7480").as_deref(), Some("wiki"));
        assert_eq!(of("wiki.dugnad.internal.").as_deref(), Some("wiki"));
        assert_eq!(of("wiki.dugnad.internal.:80").as_deref(), Some("wiki"));
        assert_eq!(of("dugnad.internal"), None);
        assert_eq!(of("wiki.localhost:7480").as_deref(), Some("wiki"));
        assert_eq!(of("localhost:7480"), None);
        assert_eq!(of("[::1]:7480"), None);
    }

    #[test]
    fn who_calls_says_nothing_for_others_and_keeps_its_password() {
        let here = "127.0.0.1:7480".parse().unwrap();
        let mut parts = parts(&[("host", "b"), ("x-forwarded-for", "9.9.9.9")]);
        parts.uri = "http://user:secret@a.example:80/x".parse().unwrap();
        // A front on this machine is believed.
        forward(&mut parts, "127.0.0.1:9".parse().unwrap(), here, "");
        assert_eq!(parts.headers["host"], "a.example:80");
        assert_eq!(parts.headers["x-forwarded-host"], "a.example:80");
        assert_eq!(parts.headers["x-forwarded-for"], "9.9.9.9, 127.0.0.1");
    }

    #[test]
    fn redirects_lead_where_the_visitor_can_follow() {
        let of = |prefix: &str, to: &str| {
            let mut asked = parts(&[("host", "n1.lan:7480"), ("x-forwarded-proto", "https")]);
            let here = "127.0.0.1:7480".parse().unwrap();
            forward(&mut asked, "127.0.0.1:9".parse().unwrap(), here, prefix);
            let mut answer = HeaderMap::new();
            answer.insert(LOCATION, HeaderValue::from_str(to).unwrap());
            back(&mut answer, &asked.headers);
            answer[LOCATION].to_str().unwrap().to_owned()
        };
        for (prefix, from, to) in [
            ("/wiki", "http://127.0.0.1:31001/login?a=1", "https://n1.lan:7480/wiki/login?a=1"),
            ("/wiki", "http://localhost:31001", "https://n1.lan:7480/wiki/"),
            ("/wiki", "http://[::1]:31001/wiki/x", "https://n1.lan:7480/wiki/x"),
            ("/wiki", "http://n1.lan:7480/login", "https://n1.lan:7480/wiki/login"),
            ("/wiki", "/login", "/wiki/login"),
            ("/wiki", "/wikipedia", "/wiki/wikipedia"),
            ("/wiki", "/wiki/login", "/wiki/login"),
            ("/wiki", "login", "login"),
            ("/wiki", "//other.example/x", "//other.example/x"),
            ("/wiki", "https://other.example/x", "https://other.example/x"),
            ("/wiki", "mailto:a@b", "mailto:a@b"),
            ("", "http://127.0.0.1:31001/login", "https://n1.lan:7480/login"),
            ("", "/login", "/login"),
        ] {
            assert_eq!(of(prefix, from), to, "{prefix} {from}");
        }
    }
}
