//! Arcs of the ring and sets of them (PROTOCOL.md 1.1).
//!
//! The degenerate cases cause most ring bugs, so they are fixed here once: `(a, a]` is the whole
//! ring, never nothing; nothing is `None` or an empty [`ArcSet`].

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::id::Id;

/// `x` in `(a, b]`; `(a, a]` is the whole ring.
#[must_use]
pub const fn in_oc(a: Id, x: Id, b: Id) -> bool {
    let width = a.distance(b);
    let at = a.distance(x);
    width == 0 || (at != 0 && at <= width)
}

/// `x` in `(a, b)`; `(a, a)` is everything except `a`.
#[must_use]
pub const fn in_oo(a: Id, x: Id, b: Id) -> bool {
    let width = a.distance(b);
    let at = a.distance(x);
    at != 0 && (width == 0 || at < width)
}

/// `x` in `[a, b)`; `[a, a)` is the whole ring.
#[must_use]
pub const fn in_co(a: Id, x: Id, b: Id) -> bool {
    let width = a.distance(b);
    width == 0 || a.distance(x) < width
}

/// `(lo, hi]`, never empty; `lo == hi` is the whole ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arc {
    pub lo: Id,
    pub hi: Id,
}

impl Arc {
    #[must_use]
    pub const fn new(lo: Id, hi: Id) -> Self {
        Self { lo, hi }
    }

    #[must_use]
    pub const fn contains(&self, x: Id) -> bool {
        in_oc(self.lo, x, self.hi)
    }

    /// The same arc, `by` further clockwise.
    #[must_use]
    pub const fn shifted(&self, by: u128) -> Self {
        Self { lo: self.lo.plus(by), hi: self.hi.plus(by) }
    }

    /// The arc as one or two runs of plain integers, both ends included.
    fn runs(&self) -> ((u128, u128), Option<(u128, u128)>) {
        let first = self.lo.0.wrapping_add(1);
        if self.lo == self.hi {
            ((0, u128::MAX), None)
        } else if first <= self.hi.0 {
            ((first, self.hi.0), None)
        } else {
            ((0, self.hi.0), Some((first, u128::MAX)))
        }
    }
}

/// How many runs an [`ArcSet`] holds (PROTOCOL.md 1.1).
pub const RUNS_MAX: usize = 32;

/// The set would need more than [`RUNS_MAX`] runs; it was left as it was. Split the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A set of ids as sorted, disjoint, coalesced runs of integers, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArcSet {
    runs: Vec<(u128, u128), RUNS_MAX>,
}

impl ArcSet {
    #[must_use]
    pub const fn empty() -> Self {
        Self { runs: Vec::new() }
    }

    #[must_use]
    pub fn whole() -> Self {
        Self::of(Arc::new(Id(0), Id(0)))
    }

    #[must_use]
    pub fn of(arc: Arc) -> Self {
        let mut set = Self::empty();
        let (one, two) = arc.runs();
        // Two runs always fit.
        let _: Result<(), _> = set.runs.push(one);
        if let Some(two) = two {
            let _: Result<(), _> = set.runs.push(two);
        }
        set
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.runs.as_slice() == [(0, u128::MAX)]
    }

    /// How many runs a set may have so that cutting it along arcs does not fill it up.
    pub const ROOMY: usize = RUNS_MAX / 2;

    /// Both ends included, in order.
    #[must_use]
    pub fn runs(&self) -> &[(u128, u128)] {
        &self.runs
    }

    /// Whether the runs are in order and apart, as every set made here is. One from outside may
    /// not be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let apart = |pair: &[(u128, u128)]| pair[0].1 < u128::MAX && pair[0].1 + 1 < pair[1].0;
        self.runs.iter().all(|(lo, hi)| lo <= hi) && self.runs.windows(2).all(apart)
    }

    /// Two sets with about half of the runs each.
    #[must_use]
    pub fn halves(&self) -> (Self, Self) {
        let (low, high) = self.runs.split_at(self.runs.len() / 2);
        // Less than a set holds.
        let take = |runs| Self { runs: Vec::from_slice(runs).unwrap_or_default() };
        (take(low), take(high))
    }

    #[must_use]
    pub fn contains(&self, x: Id) -> bool {
        self.runs.iter().any(|&(lo, hi)| lo <= x.0 && x.0 <= hi)
    }

    /// Whether every id of `other` is in `self`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.runs.iter().all(|&(lo, hi)| self.runs.iter().any(|&(l, h)| l <= lo && hi <= h))
    }

    /// # Errors
    /// [`Full`] if the result needs more than [`RUNS_MAX`] runs.
    pub fn or(&self, other: &Self) -> Result<Self, Full> {
        let mut out = Self::empty();
        let (mut left, mut right) = (self.runs.iter().peekable(), other.runs.iter().peekable());
        loop {
            let take_left = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) => a.0 <= b.0,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return Ok(out),
            };
            let next = if take_left { left.next() } else { right.next() };
            if let Some(&run) = next {
                out.append(run)?;
            }
        }
    }

    /// # Errors
    /// [`Full`] if the result needs more than [`RUNS_MAX`] runs.
    pub fn and(&self, other: &Self) -> Result<Self, Full> {
        let mut out = Self::empty();
        for &(lo, hi) in &self.runs {
            for &(l, h) in &other.runs {
                if lo.max(l) <= hi.min(h) {
                    out.append((lo.max(l), hi.min(h)))?;
                }
            }
        }
        Ok(out)
    }

    /// # Errors
    /// [`Full`] if the result needs more than [`RUNS_MAX`] runs.
    pub fn minus(&self, other: &Self) -> Result<Self, Full> {
        let mut out = Self::empty();
        for &(lo, hi) in &self.runs {
            let mut from = Some(lo);
            for &(l, h) in &other.runs {
                let Some(start) = from else { break };
                if h < start || l > hi {
                    continue;
                }
                if l > start {
                    out.append((start, l - 1))?;
                }
                from = h.checked_add(1).filter(|&next| next <= hi);
            }
            if let Some(start) = from {
                out.append((start, hi))?;
            }
        }
        Ok(out)
    }

    /// Adds a run that begins at or after the last one.
    fn append(&mut self, (lo, hi): (u128, u128)) -> Result<(), Full> {
        if let Some(last) = self.runs.last_mut() {
            if last.1 == u128::MAX || lo <= last.1 + 1 {
                last.1 = last.1.max(hi);
                return Ok(());
            }
        }
        self.runs.push((lo, hi)).map_err(|_| Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Embeds the 8-bit ring into the 128-bit one, keeping order and equality.
    fn id(x: u8) -> Id {
        Id(u128::from(x) << 120)
    }

    /// T1.1: all 8-bit rings against the definition by walking.
    #[test]
    fn intervals_equal_the_walk_around_the_ring() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                // Walk from a+1 to b: exactly the members of (a, b].
                let mut member = [false; 256];
                let mut x = a;
                loop {
                    x = x.wrapping_add(1);
                    member[usize::from(x)] = true;
                    if x == b {
                        break;
                    }
                }
                for x in 0..=255u8 {
                    let oc = member[usize::from(x)];
                    assert_eq!(in_oc(id(a), id(x), id(b)), oc, "({a},{b}] {x}");
                    let oo = if a == b { x != a } else { oc && x != b };
                    assert_eq!(in_oo(id(a), id(x), id(b)), oo, "({a},{b}) {x}");
                    let co = a == b || x == a || (oc && x != b);
                    assert_eq!(in_co(id(a), id(x), id(b)), co, "[{a},{b}) {x}");
                }
            }
        }
    }

    /// T1.2: responsibilities of any nodes partition the ring.
    #[test]
    fn responsibilities_partition_the_ring() {
        let mut rng = fastrand::Rng::with_seed(12);
        for _ in 0..500 {
            let count = rng.usize(1..=20);
            let mut nodes: std::vec::Vec<Id> = (0..count).map(|_| Id(rng.u128(..))).collect();
            nodes.sort_unstable();
            nodes.dedup();
            for _ in 0..50 {
                let x = Id(rng.u128(..));
                let owners: std::vec::Vec<Id> = (0..nodes.len())
                    .filter(|&i| in_oc(nodes[(i + nodes.len() - 1) % nodes.len()], x, nodes[i]))
                    .map(|i| nodes[i])
                    .collect();
                let oracle = nodes.iter().copied().find(|&n| n >= x).unwrap_or(nodes[0]);
                assert_eq!(owners, [oracle]);
            }
        }
    }

    /// T1.3: the algebra against a set of 256 bits, wrap and overflow included.
    #[test]
    fn set_algebra_agrees_with_bit_sets() {
        let mut rng = fastrand::Rng::with_seed(13);
        let whole_step = |x: u8| {
            Arc::new(
                Id((u128::from(x) << 120).wrapping_sub(1)),
                Id((u128::from(x) << 120) | (u128::MAX >> 8)),
            )
        };
        let mut overflows = 0;
        for _ in 0..300 {
            let build = |rng: &mut fastrand::Rng| {
                let mut bits = [false; 256];
                let mut set = ArcSet::empty();
                for _ in 0..rng.usize(0..60) {
                    let (from, len) = (rng.u8(..), rng.u8(1..6));
                    for step in 0..len {
                        let x = from.wrapping_add(step);
                        if let Ok(larger) = set.or(&ArcSet::of(whole_step(x))) {
                            set = larger;
                            bits[usize::from(x)] = true;
                        }
                    }
                }
                (set, bits)
            };
            let ((a, bits_a), (b, bits_b)) = (build(&mut rng), build(&mut rng));
            let check = |set: Result<ArcSet, Full>, wanted: &dyn Fn(usize) -> bool| match set {
                Ok(set) => {
                    for x in 0..=255u8 {
                        assert_eq!(set.contains(id(x)), wanted(usize::from(x)));
                    }
                    0
                }
                Err(Full) => 1,
            };
            overflows += check(a.or(&b), &|x| bits_a[x] || bits_b[x]);
            overflows += check(a.and(&b), &|x| bits_a[x] && bits_b[x]);
            overflows += check(a.minus(&b), &|x| bits_a[x] && !bits_b[x]);
            let covers = (0..256).all(|x| !bits_b[x] || bits_a[x]);
            assert_eq!(a.covers(&b), covers);
            assert!(a.covers(&a) && ArcSet::whole().covers(&a));
        }
        assert!(overflows > 0, "the generator never reached the capacity");
        assert!(ArcSet::of(Arc::new(Id(5), Id(5))).is_whole());
    }
}
