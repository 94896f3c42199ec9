//! Whether what clients saw of strong values can be explained by one order of all requests, and
//! nothing acknowledged is missing. It knows the clients' logs alone.
//!
//! Every write raises the revision by one, so there is one order that could be: it has to agree
//! with the clock on the wall, and with what was read. A write nobody was told of may have happened
//! once, or never.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a client asked of a key. No two writes write the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Get,
    Put(String),
    /// The revision it must have.
    Cas(u64, String),
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The revision, 0 before the first write, and the value.
    Read(u64, Option<String>),
    Written(u64),
    /// The revision that stands there instead.
    Lost(u64),
    /// It may have happened, or may happen yet.
    Unknown,
}

/// One request, by the clock of the test.
#[derive(Clone, Debug)]
pub struct Request {
    pub key: String,
    pub what: What,
    pub from: Duration,
    pub until: Duration,
    pub told: Told,
}

impl Request {
    fn wrote(&self) -> Option<&String> {
        match &self.what {
            What::Put(value) | What::Cas(_, value) => Some(value),
            What::Get => None,
        }
    }

    /// The revision it saw or made.
    fn revision(&self) -> Option<u64> {
        match &self.told {
            Told::Read(at, _) | Told::Written(at) | Told::Lost(at) => Some(*at),
            Told::Unknown => None,
        }
    }
}

/// # Errors
/// What contradicts what.
pub fn check(all: &[Request]) -> Result<(), String> {
    let mut keys: BTreeMap<&str, Vec<&Request>> = BTreeMap::new();
    for request in all {
        keys.entry(&request.key).or_default().push(request);
    }
    keys.into_iter()
        .try_for_each(|(key, of_key)| check_key(&of_key).map_err(|why| format!("{key}: {why}")))
}

fn check_key(all: &[&Request]) -> Result<(), String> {
    let mut values: BTreeMap<u64, &String> = BTreeMap::new();
    for request in all {
        let (Told::Written(at), Some(value)) = (&request.told, request.wrote()) else { continue };
        if let Some(other) = values.insert(*at, value) {
            return Err(format!("revision {at} was given to {other} and {value}"));
        }
        match &request.what {
            What::Cas(expected, _) if expected + 1 != *at => {
                return Err(format!("{value} expected {expected} and became {at}"));
            }
            _ => {}
        }
    }
    let mut maybe: Vec<&Request> = all
        .iter()
        .copied()
        .filter(|request| request.told == Told::Unknown && request.wrote().is_some())
        .collect();
    for request in all {
        match &request.told {
            Told::Read(0, None) => {}
            Told::Read(at, Some(seen)) if values.get(at).is_some_and(|value| *value == seen) => {}
            Told::Read(at, Some(seen)) if !values.contains_key(at) => {
                let explains = |maybe: &&Request| {
                    let expected = match &maybe.what {
                        What::Cas(expected, _) => expected + 1 == *at,
                        _ => true,
                    };
                    maybe.wrote() == Some(seen) && maybe.from <= request.until && expected
                };
                let Some(n) = maybe.iter().position(explains) else {
                    return Err(format!("{seen} was read at {at}: nobody wrote it there"));
                };
                values.insert(*at, seen);
                maybe.remove(n);
            }
            Told::Read(at, seen) => {
                return Err(format!("{seen:?} was read at {at}, written was {:?}", values.get(at)));
            }
            Told::Lost(at) if matches!(&request.what, What::Cas(wanted, _) if wanted == at) => {
                return Err(format!("a write that expected {at} lost to {at}"));
            }
            Told::Lost(_) | Told::Written(_) | Told::Unknown => {}
        }
    }
    let last = all.iter().filter_map(|request| request.revision()).max().unwrap_or(0);
    let unexplained = (1..=last).filter(|at| !values.contains_key(at)).count();
    if unexplained > maybe.len() {
        return Err(format!("{unexplained} revisions up to {last} were written by nobody"));
    }
    in_time(all)
}

/// Whoever asks after somebody was answered sees no less.
fn in_time(all: &[&Request]) -> Result<(), String> {
    for request in all {
        let Some(at) = request.revision() else { continue };
        let least = if matches!(request.told, Told::Written(_)) { at - 1 } else { at };
        let saw_more =
            |other: &&&Request| other.until < request.from && other.revision() > Some(least);
        if let Some(other) = all.iter().find(saw_more) {
            return Err(format!("{request:?} came after {other:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(what: What, from: u64, until: u64, told: Told) -> Request {
        let (from, until) = (Duration::from_secs(from), Duration::from_secs(until));
        Request { key: "k".to_owned(), what, from, until, told }
    }

    fn put(value: &str, from: u64, until: u64, at: u64) -> Request {
        request(What::Put(value.to_owned()), from, until, Told::Written(at))
    }

    fn read(from: u64, until: u64, at: u64, value: Option<&str>) -> Request {
        request(What::Get, from, until, Told::Read(at, value.map(str::to_owned)))
    }

    fn lost(value: &str, from: u64, until: u64, at: u64) -> Request {
        request(What::Put(value.to_owned()), from, until, Told::Lost(at))
    }

    #[test]
    fn what_one_order_explains_passes_and_nothing_else() {
        let maybe = request(What::Put("b".to_owned()), 3, 4, Told::Unknown);
        let cas = |expected, told| request(What::Cas(expected, "c".to_owned()), 5, 6, told);
        for (name, history) in [
            (
                "reads beside a write",
                vec![put("a", 0, 9, 1), read(1, 2, 0, None), read(3, 4, 1, Some("a"))],
            ),
            (
                "a write nobody was told of",
                vec![put("a", 0, 1, 1), maybe.clone(), read(5, 6, 2, Some("b"))],
            ),
            ("or that never was", vec![put("a", 0, 1, 1), maybe.clone(), read(5, 6, 1, Some("a"))]),
            ("or was unseen", vec![put("a", 0, 1, 1), maybe.clone(), put("d", 5, 6, 3)]),
            ("a cas", vec![put("a", 0, 1, 1), cas(1, Told::Written(2))]),
            ("a cas that lost", vec![put("a", 0, 1, 1), cas(0, Told::Lost(1))]),
        ] {
            assert_eq!(check(&history), Ok(()), "{name}");
        }
        for (name, history) in [
            ("stale", vec![put("a", 0, 1, 1), read(2, 3, 0, None)]),
            (
                "back in time",
                vec![put("a", 0, 9, 1), read(1, 2, 1, Some("a")), read(3, 4, 0, None)],
            ),
            ("two at one revision", vec![put("a", 0, 1, 1), put("b", 2, 3, 1)]),
            ("lost", vec![put("a", 0, 1, 1), read(2, 3, 1, Some("b"))]),
            ("from nowhere", vec![put("a", 0, 1, 1), put("b", 2, 3, 3)]),
            ("from nowhere", vec![read(2, 3, 1, Some("z"))]),
            ("before it was asked", vec![maybe.clone(), read(0, 1, 1, Some("b"))]),
            ("twice", vec![maybe.clone(), read(5, 6, 1, Some("b")), read(7, 8, 2, Some("b"))]),
            ("a cas at the wrong place", vec![put("a", 0, 1, 1), cas(0, Told::Written(2))]),
            ("a cas that lost to what it wanted", vec![put("a", 0, 1, 1), cas(1, Told::Lost(1))]),
            ("lost to what never was", vec![lost("x", 0, 1, 1)]),
        ] {
            assert!(check(&history).is_err(), "{name}");
        }
    }
}
