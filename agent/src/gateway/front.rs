//! The page at `/`: which services this node knows, for people and for programs.

use std::fmt::Write as _;

use dugnad_resource::spec::Port;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde_json::json;

use super::body::{Body, text};
use super::{Listed, Listing};

const HEAD: &str = "<!doctype html><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width\">\
    <style>body{font:1rem/1.5 sans-serif;margin:2rem auto;max-width:40rem;padding:0 1rem}\
    td{padding:.2rem 1rem .2rem 0}</style>";

/// In the form the client likes best: a page, JSON, or lines.
pub(super) fn answer(listing: &Listing, parts: &Parts) -> Response<Body> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "services are at /NAME/\n");
    }
    let accepts = |kind: &str| {
        let values = parts.headers.get_all(ACCEPT).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().starts_with(kind))
    };
    let (body, kind) = if accepts("text/html") {
        (page(listing), "text/html; charset=utf-8")
    } else if accepts("application/json") {
        (format!("{}\n", json(listing)), "application/json")
    } else {
        (lines(listing), "text/plain; charset=utf-8")
    };
    let mut answer = text(StatusCode::OK, body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

fn state(service: &Listed) -> String {
    if service.stopped {
        return "stopped".to_owned();
    }
    let at = match service.port {
        Port::Tcp(_) | Port::Udp(_) => format!(", on {}", service.port),
        Port::None => ", without a port".to_owned(),
        Port::Http => String::new(),
    };
    format!("{} of {} ready{at}", service.ready, service.want)
}

/// Names of services hold letters, digits and dashes; those of nodes and communities may hold
/// anything.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(listing: &Listing) -> String {
    let (community, node) = (escaped(&listing.community), escaped(&listing.node));
    let mut page = format!("{HEAD}<title>{community}</title><h1>{community}</h1><table>\n");
    for service in &listing.services {
        let name = escaped(&service.name);
        let link = match service.port {
            Port::Http if !service.stopped => format!("<a href=\"/{name}/\">{name}</a>"),
            _ => name,
        };
        // Writing to a string cannot fail.
        _ = writeln!(page, "<tr><td>{link}<td>{}", state(service));
    }
    let none = if listing.services.is_empty() { "<p>No services yet.\n" } else { "" };
    _ = writeln!(page, "</table>{none}<p>through {node}");
    page
}

fn lines(listing: &Listing) -> String {
    let mut lines = format!("{} of community {}\n", listing.node, listing.community);
    for service in &listing.services {
        _ = writeln!(lines, "/{}/  {}", service.name, state(service));
    }
    if listing.services.is_empty() {
        lines.push_str("no services yet\n");
    }
    lines
}

fn json(listing: &Listing) -> serde_json::Value {
    let services = listing.services.iter().map(|service| {
        json!({
            "service": service.name,
            "path": matches!(service.port, Port::Http).then(|| format!("/{}/", service.name)),
            "tcp_port": match service.port {
                Port::Tcp(port) => Some(port),
                _ => None,
            },
            "udp_port": match service.port {
                Port::Udp(port) => Some(port),
                _ => None,
            },
            "ready": service.ready,
            "want": service.want,
            "stopped": service.stopped,
        })
    });
    json!({
        "node": listing.node,
        "community": listing.community,
        "services": services.collect::<Vec<_>>(),
    })
}
