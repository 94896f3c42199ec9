//! Text files in a compressed form, for clients that want it: made once, kept while there is room.
//!
//! Only files of packages: what a service sends may hold a visitor's secrets beside her own words,
//! which compression would give away; and it can do it itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use dugnad_kernel::Hash;
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::ACCEPT_ENCODING;
use miniz_oxide::deflate::compress_to_vec;

use crate::blobs::{Blobs, Catalog};

/// Shorter files fit one packet as they are; longer ones would take a small board a second.
const WORTH: std::ops::RangeInclusive<u64> = 1_400..=(1 << 20);
/// Bytes kept in all.
const KEPT: usize = 2 << 20;
/// Good, and a third of the time of the best.
const LEVEL: u8 = 6;
/// Of a gzip file (RFC 1952): deflated, no name, no time, from Unix.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// Compressed files, the latest first, by tree and place in its catalog.
#[derive(Default)]
pub(super) struct Compressed(RefCell<VecDeque<(Hash, usize, Bytes)>>);

/// Whether a file of this type and size is compressed at all.
pub(super) fn is_worth(content_type: &str, size: u64) -> bool {
    let text = content_type.starts_with("text/")
        || ["application/json", "application/manifest+json", "image/svg+xml", "application/wasm"]
            .contains(&content_type);
    text && WORTH.contains(&size)
}

/// Whether the client takes gzip (RFC 9110 12.5.3).
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight.is_some_and(|weight| weight <= 0.0)
        };
        gzip && !parts.any(refused)
    })
}

impl Compressed {
    /// The file in gzip form.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) async fn of(
        &self,
        blobs: &Rc<Blobs>,
        root: Hash,
        catalog: &Catalog,
        entry: usize,
    ) -> io::Result<Bytes> {
        let kept = self.0.borrow().iter().find(|kept| (kept.0, kept.1) == (root, entry)).cloned();
        if let Some((_, _, bytes)) = kept {
            return Ok(bytes);
        }
        let mut plain = Vec::new();
        for number in 0.. {
            let Some(hash) = catalog.chunk(entry, number) else { break };
            plain.extend(blobs.read_chunk(hash).await?);
        }
        let bytes = Bytes::from(smol::unblock(move || gzip(&plain)).await);
        let mut kept = self.0.borrow_mut();
        kept.retain(|kept| (kept.0, kept.1) != (root, entry));
        kept.push_front((root, entry, bytes.clone()));
        let mut sum = 0;
        kept.retain(|(_, _, bytes)| {
            sum += bytes.len();
            sum <= KEPT
        });
        Ok(bytes)
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut bytes = HEAD.to_vec();
    bytes.extend(compress_to_vec(plain, LEVEL));
    bytes.extend(crc32fast::hash(plain).to_le_bytes());
    // The length modulo 2^32, as the format has it.
    bytes.extend((plain.len() as u32).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn clients_say_whether_they_take_it() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            is_wanted(&headers)
        };
        for yes in ["gzip", "deflate, gzip;q=1.0, br", "br;q=1.0, GZIP;q=0.8"] {
            assert!(of(yes), "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "gzip; q=0.0", "identity", "x-gzipped"] {
            assert!(!of(no), "{no}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn text_of_a_fair_size_is_worth_it() {
        assert!(is_worth("text/html; charset=utf-8", 5_000));
        assert!(is_worth("application/json", 1_400));
        assert!(!is_worth("text/html; charset=utf-8", 1_000));
        assert!(!is_worth("text/plain; charset=utf-8", 2 << 20));
        assert!(!is_worth("image/png", 5_000));
    }
}
