//! Invitations: one line that lets a new node into the community.
//!
//! `dugnad1:PAYLOAD:ADDR,ADDR,...`: the payload is base 32 (any case) of the community's name and
//! secret, the expiry and a checksum; the addresses stay readable, so that people can see where
//! the newcomer will knock, and can correct them. Whoever has the line can join: it is as secret
//! as the community.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use nix::ifaddrs::getifaddrs;
use serde::{Deserialize, Serialize};

use crate::clock::YEAR_2020;
use crate::identity::Community;

/// How many addresses an invitation names.
pub(crate) const ADDRS_MAX: usize = 8;
/// The longest line that is looked at.
const LINE_MAX: usize = 1024;
const VERSION: u32 = 1;
const CHECKSUM: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invitation {
    pub(crate) community: Community,
    /// Where members answer, best first; 1 to [`ADDRS_MAX`].
    pub(crate) addrs: Vec<SocketAddr>,
    /// Seconds since 1970.
    pub(crate) expires_unix: Option<u64>,
}

/// What the expiry of an invitation says at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Valid,
    /// It has an expiry, but the clock of this device was never set: not checked. Say so.
    ClockUnset,
}

/// Why a line is no usable invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InviteError {
    NotAToken,
    /// From a version of the program that is newer than this one.
    Newer(u32),
    Damaged,
    /// The part after the last `:`; names what is wrong.
    Address(String),
    /// It was good until this time, in seconds since 1970.
    Expired(u64),
}

impl fmt::Display for InviteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAToken => f.write_str(
                "this is no invitation; it starts with `dugnad1:`, and `dugnad invite` prints it",
            ),
            Self::Newer(version) => write!(
                f,
                "the invitation has format {version}, this program knows {VERSION}; \
                 install a newer dugnad"
            ),
            Self::Damaged => {
                f.write_str("the invitation is damaged; copy the whole line once more")
            }
            Self::Address(what) => write!(f, "the invitation names no usable address: {what}"),
            Self::Expired(at) => {
                let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*at);
                write!(
                    f,
                    "the invitation expired at {}; ask for a new one (`dugnad invite`)",
                    humantime::format_rfc3339_seconds(when)
                )
            }
        }
    }
}

impl std::error::Error for InviteError {}

#[derive(Serialize, Deserialize)]
struct Payload {
    name: String,
    secret: [u8; 32],
    expires: Option<u64>,
}

impl Invitation {
    /// Whether it may still be used at `now_unix` (seconds since 1970).
    ///
    /// # Errors
    /// [`InviteError::Expired`].
    pub(crate) fn check_expiry(&self, now_unix: u64) -> Result<Expiry, InviteError> {
        match self.expires_unix {
            Some(_) if now_unix < YEAR_2020 => Ok(Expiry::ClockUnset),
            Some(at) if at <= now_unix => Err(InviteError::Expired(at)),
            _ => Ok(Expiry::Valid),
        }
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"dugnad invitation").update(payload);
    let mut out = [0; CHECKSUM];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    out
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = Payload {
            name: self.community.name.clone(),
            secret: self.community.secret,
            expires: self.expires_unix,
        };
        let mut bytes = postcard::to_allocvec(&payload).map_err(|_| fmt::Error)?;
        bytes.extend_from_slice(&checksum(&bytes));
        write!(f, "dugnad{VERSION}:{}:", base32(&bytes))?;
        let addrs = self.addrs.iter().filter(|addr| is_usable(addr)).take(ADDRS_MAX);
        for (place, addr) in addrs.enumerate() {
            write!(f, "{}{addr}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Invitation {
    type Err = InviteError;

    fn from_str(line: &str) -> Result<Self, InviteError> {
        let line = line.trim();
        let rest = line.strip_prefix("dugnad").ok_or(InviteError::NotAToken)?;
        let (version, rest) = rest.split_once(':').ok_or(InviteError::NotAToken)?;
        match version.parse() {
            Ok(VERSION) => {}
            Ok(newer) if newer > VERSION => return Err(InviteError::Newer(newer)),
            _ => return Err(InviteError::NotAToken),
        }
        if line.len() > LINE_MAX {
            return Err(InviteError::Damaged);
        }
        let (payload, addrs) = rest.split_once(':').ok_or(InviteError::Damaged)?;
        let bytes = from_base32(payload).ok_or(InviteError::Damaged)?;
        let body = bytes.len().checked_sub(CHECKSUM).ok_or(InviteError::Damaged)?;
        let (body, sum) = bytes.split_at(body);
        if checksum(body) != sum {
            return Err(InviteError::Damaged);
        }
        let payload: Payload = match postcard::take_from_bytes(body) {
            Ok((payload, [])) => payload,
            _ => return Err(InviteError::Damaged),
        };
        if Community::check_name(&payload.name).is_err() {
            return Err(InviteError::Damaged);
        }
        let community = Community { name: payload.name, secret: payload.secret };
        Ok(Self { community, addrs: parse_addrs(addrs)?, expires_unix: payload.expires })
    }
}

fn parse_addrs(text: &str) -> Result<Vec<SocketAddr>, InviteError> {
    if text.is_empty() {
        return Err(InviteError::Address("there is none after the last colon".to_owned()));
    }
    let parse = |word: &str| {
        let addr = word.trim().parse().ok().filter(is_usable);
        addr.ok_or_else(|| InviteError::Address(format!("{word:?} is not ADDRESS:PORT")))
    };
    let addrs = text.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
    if addrs.len() > ADDRS_MAX {
        return Err(InviteError::Address(format!("more than {ADDRS_MAX}")));
    }
    Ok(addrs)
}

/// Whether somebody else could dial it.
fn is_usable(addr: &SocketAddr) -> bool {
    !addr.ip().is_unspecified() && !addr.ip().is_multicast() && addr.port() != 0
}

/// The addresses under which a node that listens on `listen` can be reached, best first: global,
/// private, then loopback if there is nothing else. A specific listening address is the only one.
///
/// # Errors
/// If the system does not tell its interfaces.
pub(crate) fn usable_addrs(listen: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    if !listen.ip().is_unspecified() {
        return Ok(if is_usable(&listen) { vec![listen] } else { Vec::new() });
    }
    let interfaces = getifaddrs()
        .map_err(|errno| io::Error::other(format!("cannot list network interfaces: {errno}")))?;
    let ips = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(choose(listen, ips))
}

/// 0 global, 1 private, 2 loopback; `None` cannot be dialled from elsewhere without more
/// knowledge (an IPv6 link-local address needs an interface).
fn rank(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() => None,
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => None,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => None,
        ip if ip.is_loopback() => Some(2),
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let carrier = a == 100 && (64..128).contains(&b);
            Some(u8::from(v4.is_private() || v4.is_link_local() || carrier))
        }
        IpAddr::V6(v6) => Some(u8::from(v6.is_unique_local())),
    }
}

fn choose(listen: SocketAddr, ips: impl Iterator<Item = IpAddr>) -> Vec<SocketAddr> {
    // `[::]` takes IPv4 too on Linux; `0.0.0.0` takes nothing else.
    let mut ranked: Vec<(u8, IpAddr)> = ips
        .filter(|ip| listen.is_ipv6() || ip.is_ipv4())
        .filter_map(|ip| rank(ip).map(|rank| (rank, ip)))
        .collect();
    if ranked.iter().any(|(rank, _)| *rank < 2) {
        ranked.retain(|(rank, _)| *rank < 2);
    }
    ranked.sort();
    ranked.dedup();
    let addrs = ranked.into_iter().map(|(_, ip)| SocketAddr::new(ip, listen.port()));
    addrs.filter(is_usable).take(ADDRS_MAX).collect()
}

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn base32(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(5) {
        let mut group = [0; 8];
        group[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(group);
        for digit in 0..(chunk.len() * 8).div_ceil(5) {
            let index = usize::try_from((bits >> (35 - 5 * digit)) & 31).unwrap_or(0);
            out.push(char::from(ALPHABET[index]));
        }
    }
    out
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes() {
        let digit = ALPHABET.iter().position(|&l| l == letter.to_ascii_lowercase())?;
        bits = (bits << 5) | u32::try_from(digit).ok()?;
        count += 5;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Invitation {
        Invitation {
            community: Community { name: "Øvre gata".into(), secret: [0xa5; 32] },
            addrs: vec!["203.0.113.9:7407".parse().unwrap(), "[2001:db8::7]:7407".parse().unwrap()],
            expires_unix: Some(1_800_000_000),
        }
    }

    #[test]
    fn a_token_is_one_line_and_comes_back() {
        let line = sample().to_string();
        assert!(line.starts_with("dugnad1:") && !line.contains(char::is_whitespace), "{line}");
        assert!(line.ends_with(":203.0.113.9:7407,[2001:db8::7]:7407"), "{line}");
        assert_eq!(line.parse::<Invitation>().unwrap(), sample());
        assert_eq!(format!("  {line}\n").parse::<Invitation>().unwrap(), sample());
    }

    #[test]
    fn every_mistyped_letter_of_the_payload_is_noticed() {
        let line = sample().to_string();
        let end = line.match_indices(':').nth(1).unwrap().0;
        for place in 8..end {
            let mut typed = line.clone().into_bytes();
            typed[place] = if typed[place] == b'a' { b'b' } else { b'a' };
            let typed = String::from_utf8(typed).unwrap();
            if typed != line {
                // The last letter has bits that mean nothing; they may read back unchanged.
                match typed.parse::<Invitation>() {
                    Err(error) => assert_eq!(error, InviteError::Damaged),
                    Ok(read) => assert!(place == end - 1 && read == sample()),
                }
            }
        }
        for cut in 8..end {
            assert_eq!(line[..cut].parse::<Invitation>(), Err(InviteError::Damaged));
        }
    }

    #[test]
    fn each_kind_of_bad_token_has_its_reason() {
        let parse = |text: &str| text.parse::<Invitation>().unwrap_err();
        assert_eq!(parse(""), InviteError::NotAToken);
        assert_eq!(parse("hello"), InviteError::NotAToken);
        assert_eq!(parse("dugnad:abc"), InviteError::NotAToken);
        assert_eq!(parse("dugnad2:whatever"), InviteError::Newer(2));
        assert_eq!(parse("dugnad1:"), InviteError::Damaged);
        let line = sample().to_string();
        let payload = &line[..line.match_indices(':').nth(1).unwrap().0];
        for bad in ["", "0.0.0.0:7407", "10.0.0.1:0", "10.0.0.1", "[::]:1", "a.example:7"] {
            let error = parse(&format!("{payload}:{bad}"));
            assert!(matches!(error, InviteError::Address(_)), "{bad}: {error}");
        }
        let many = ["10.0.0.1:7407"; 9].join(",");
        assert!(matches!(parse(&format!("{payload}:{many}")), InviteError::Address(_)));
        assert_eq!(parse(&format!("dugnad1:{}:1.2.3.4:5", "a".repeat(5000))), InviteError::Damaged);
    }

    #[test]
    fn expiry_needs_a_clock() {
        let token = sample();
        assert_eq!(token.check_expiry(1_799_999_999), Ok(Expiry::Valid));
        let error = token.check_expiry(1_800_000_000).unwrap_err();
        assert_eq!(error, InviteError::Expired(1_800_000_000));
        assert!(error.to_string().contains("2027-01-15T08:00:00Z"), "{error}");
        assert_eq!(token.check_expiry(1000), Ok(Expiry::ClockUnset));
        let forever = Invitation { expires_unix: None, ..token };
        assert_eq!(forever.check_expiry(u64::MAX), Ok(Expiry::Valid));
        assert_eq!(forever.check_expiry(0), Ok(Expiry::Valid));
    }

    #[test]
    fn a_wildcard_becomes_the_addresses_people_can_dial() {
        let ips =
            |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
        let any4: SocketAddr = "0.0.0.0:7".parse().unwrap();
        let any6: SocketAddr = "[::]:7".parse().unwrap();
        let all = ips(&["127.0.0.1", "192.168.1.2", "8.8.4.4", "2001:db8::1", "fe80::1", "::1"]);
        let text = |addrs: Vec<SocketAddr>| {
            addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let four = choose(any4, all.iter().copied());
        assert_eq!(text(four), "8.8.4.4:7 192.168.1.2:7");
        let six = choose(any6, all.iter().copied());
        assert_eq!(text(six), "8.8.4.4:7 [2001:db8::1]:7 192.168.1.2:7");
        let alone = choose(any4, ips(&["127.0.0.1"]).into_iter());
        assert_eq!(text(alone), "127.0.0.1:7");
        let many = choose(any4, (0..20).map(|n| IpAddr::from([10, 0, 0, n])));
        assert_eq!(many.len(), ADDRS_MAX);
        assert_eq!(usable_addrs("127.0.0.1:9".parse().unwrap()).unwrap().len(), 1);
        assert!(usable_addrs("127.0.0.1:0".parse().unwrap()).unwrap().is_empty());
        assert!(usable_addrs(any4).unwrap().iter().all(is_usable));
    }

    #[test]
    fn base32_of_any_length_comes_back() {
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|n| n.wrapping_mul(37)).collect();
            let text = base32(&bytes);
            assert_eq!(from_base32(&text), Some(bytes.clone()));
            assert_eq!(from_base32(&text.to_uppercase()), Some(bytes));
        }
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
    }
}
