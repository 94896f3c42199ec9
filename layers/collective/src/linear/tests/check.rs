//! Whether what clients saw of one register can be explained by one order of all requests: the
//! search of Wing and Gong with Lowe's memory.

use std::collections::HashSet;

use dugnad_kernel::Time;

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Read,
    Put(u32),
    Cas(u64, u32),
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Value(u64, Option<u32>),
    Written(u64),
    Lost(u64),
    /// It may have happened, or happen later, or never.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) what: What,
    pub(super) from: Time,
    pub(super) until: Option<Time>,
    pub(super) told: Told,
}

type State = (u64, Option<u32>);

impl Request {
    /// The register after it, if it may have been told what it was.
    fn after(&self, (revision, value): State) -> Option<State> {
        let written = |new: u32| match self.told {
            Told::Written(at) if at == revision + 1 => Some((revision + 1, Some(new))),
            Told::Unknown => Some((revision + 1, Some(new))),
            _ => None,
        };
        match (&self.what, &self.told) {
            (What::Read, Told::Value(at, seen)) => {
                (*at == revision && *seen == value).then_some((revision, value))
            }
            (What::Read, _) => Some((revision, value)),
            (What::Put(new), _) => written(*new),
            (What::Cas(expected, new), _) if *expected == revision => written(*new),
            (What::Cas(..), Told::Lost(at)) => (*at == revision).then_some((revision, value)),
            (What::Cas(..), Told::Unknown) => Some((revision, value)),
            (What::Cas(..), _) => None,
        }
    }
}

/// At most 64 requests of one register.
pub(super) fn is_linearizable(requests: &[Request]) -> bool {
    assert!(requests.len() <= 64, "{} requests", requests.len());
    let mut seen = HashSet::new();
    search(requests, 0, (0, None), &mut seen)
}

fn search(all: &[Request], done: u64, state: State, seen: &mut HashSet<(u64, State)>) -> bool {
    let open = |n: usize| done & (1 << n) == 0;
    // Who was told something must have its place; who was not may never have happened.
    let must = |request: &Request| request.told != Told::Unknown;
    if (0..all.len()).all(|n| !open(n) || !must(&all[n])) {
        return true;
    }
    if !seen.insert((done, state)) {
        return false;
    }
    let ends =
        (0..all.len()).filter(|n| open(*n)).filter_map(|n| all[n].until.filter(|_| must(&all[n])));
    let first_end = ends.min();
    (0..all.len()).any(|n| {
        let before_all = first_end.is_none_or(|end| all[n].from <= end);
        let next = if open(n) && before_all { all[n].after(state) } else { None };
        next.is_some_and(|next| search(all, done | (1 << n), next, seen))
    })
}

fn request(what: What, from: u64, until: u64, told: Told) -> Request {
    Request { what, from: Time(from), until: Some(Time(until)), told }
}

#[test]
fn what_one_order_explains_is_found_and_nothing_else() {
    let put = |value, from, until, at| request(What::Put(value), from, until, Told::Written(at));
    let read = |from, until, at, value| request(What::Read, from, until, Told::Value(at, value));
    assert!(is_linearizable(&[put(1, 0, 9, 1), read(1, 2, 0, None), read(3, 4, 1, Some(1))]));
    assert!(!is_linearizable(&[put(1, 0, 9, 1), read(1, 2, 1, Some(1)), read(3, 4, 0, None)]));
    assert!(!is_linearizable(&[put(1, 0, 1, 1), read(2, 3, 0, None)]), "stale");
    assert!(!is_linearizable(&[put(1, 0, 1, 1), put(2, 2, 3, 1)]), "one revision twice");
    let lost = request(What::Cas(0, 5), 2, 3, Told::Lost(1));
    assert!(is_linearizable(&[put(1, 0, 1, 1), lost.clone()]));
    assert!(!is_linearizable(&[lost]), "it never was at 1");
    let maybe = Request { until: None, ..request(What::Put(7), 0, 0, Told::Unknown) };
    assert!(is_linearizable(&[maybe.clone(), read(5, 6, 1, Some(7))]));
    assert!(is_linearizable(&[maybe.clone(), read(5, 6, 0, None)]));
    assert!(!is_linearizable(&[maybe, read(5, 6, 1, Some(7)), read(7, 8, 2, Some(7))]), "twice");
}
