//! Who keeps which part of the keys, and how that is called (PROTOCOL.md 8.1). Pure.

use alloc::vec::Vec;

use dugnad_kernel::{Key, NodeId};
use serde::{Deserialize, Serialize};

/// Nodes that keep one range; an odd number, so that none is there for nothing.
pub const MEMBERS_MAX: usize = 7;
/// Nodes that are wanted to keep one range, where there are so many.
pub const MEMBERS: usize = 5;
/// Bits of the smallest range: no more than 64 of them.
pub const BITS_MAX: u8 = 6;

/// A node with the disk it had when it began to keep registers. A node that lost its disk is
/// another member: it must not answer for what it promised before.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Member {
    pub node: NodeId,
    pub inc: u32,
}

/// Orders attempts to write; each attempt has one of its own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ballot {
    pub counter: u64,
    /// Who attempts it.
    pub by: NodeId,
    /// Grows with every attempt of the node, also over its lives.
    pub attempt: u64,
}

/// All keys that begin with the same bits. One that does not fit is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(Key, u8)")]
pub struct Range {
    /// The first of them.
    pub start: Key,
    /// How many bits; 0 is all keys.
    pub bits: u8,
}

impl Range {
    pub const ALL: Self = Self { start: dugnad_kernel::Id(0), bits: 0 };

    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.bits == 0 || (self.start.0 ^ key.0) >> (128 - u32::from(self.bits)) == 0
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.contains(other.start)
    }

    /// Its halves; `None` if it is as small as may be.
    #[must_use]
    pub fn halves(&self) -> Option<[Self; 2]> {
        let bits = self.bits.checked_add(1).filter(|bits| *bits <= BITS_MAX)?;
        let half = 1_u128 << (128 - u32::from(bits));
        Some([Self { bits, ..*self }, Self { bits, start: self.start.plus(half) }])
    }

    /// What it is a half of, and the other half; `None` if it is all.
    #[must_use]
    pub fn parent(&self) -> Option<(Self, Self)> {
        let bits = self.bits.checked_sub(1)?;
        let half = 1_u128 << (128 - u32::from(self.bits));
        let other = Self { start: dugnad_kernel::Id(self.start.0 ^ half), ..*self };
        let start = self.start.min(other.start);
        Some((Self { start, bits }, other))
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        let mask = u128::MAX.checked_shr(u32::from(self.bits)).unwrap_or(0);
        self.bits <= BITS_MAX && self.start.0 & mask == 0
    }
}

impl TryFrom<(Key, u8)> for Range {
    type Error = &'static str;

    fn try_from((start, bits): (Key, u8)) -> Result<Self, Self::Error> {
        let range = Self { start, bits };
        if range.fits() { Ok(range) } else { Err("no range has so many bits, or bits after them") }
    }
}

/// Who keeps a range. A majority of the members decides, all in the same view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct View {
    pub range: Range,
    /// Grows from view to view of every key.
    pub number: u32,
    pub members: Vec<Member>,
}

/// Names a view.
pub type ViewId = (Range, u32);

impl View {
    /// The first of a community: its founder keeps everything.
    #[must_use]
    pub fn first(founder: Member) -> Self {
        Self { range: Range::ALL, number: 1, members: Vec::from([founder]) }
    }

    #[must_use]
    pub const fn id(&self) -> ViewId {
        (self.range, self.number)
    }

    #[must_use]
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    #[must_use]
    pub fn has(&self, member: Member) -> bool {
        self.members.contains(&member)
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        let mut members = self.members.clone();
        members.sort_unstable();
        members.dedup_by_key(|member| member.node);
        let count = self.members.len();
        self.range.fits() && (1..=MEMBERS_MAX).contains(&count) && members.len() == count
    }
}

/// Whether `next` may come after `view`: they make up its range, or it is a half of the one next.
#[must_use]
pub fn may_follow(view: &View, next: &[View]) -> bool {
    let later = next.iter().all(|next| next.fits() && next.number > view.number);
    later
        && match next {
            [one] => {
                one.range == view.range
                    || view.range.parent().is_some_and(|(parent, _)| parent == one.range)
            }
            [left, right] => view.range.halves() == Some([left.range, right.range]),
            _ => false,
        }
}

/// Views that are remembered: each range has at most two that count.
pub const KNOWN_MAX: usize = 4 << BITS_MAX;

/// The newest views somebody has heard of.
#[derive(Clone, Debug, Default)]
pub struct Known(Vec<View>);

impl Known {
    /// The newest view of the range a key lies in.
    #[must_use]
    pub fn of(&self, key: Key) -> Option<&View> {
        let views = self.0.iter().filter(|view| view.range.contains(key));
        views.max_by_key(|view| view.number)
    }

    pub fn iter(&self) -> impl Iterator<Item = &View> {
        self.0.iter()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this was news.
    pub fn learn(&mut self, view: &View) -> bool {
        if !view.fits() || self.is_known(&view.range, view.number) {
            return false;
        }
        self.0.push(view.clone());
        let all = core::mem::take(&mut self.0);
        // A wide one still counts where no newer one covers it.
        for view in all {
            if !self.is_known(&view.range, view.number) {
                self.0
                    .retain(|other| !view.range.covers(&other.range) || other.number > view.number);
                self.0.push(view);
            }
        }
        let all = self.0.clone();
        self.0.retain(|view| {
            let parts = Self(all.iter().filter(|other| *other != view).cloned().collect());
            !parts.is_known(&view.range, view.number)
        });
        self.0.truncate(KNOWN_MAX);
        true
    }

    /// Whether some view of every key is known.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_known(&Range::ALL, 0)
    }

    /// Whether views of this number or a later one are known of all keys of the range.
    fn is_known(&self, range: &Range, number: u32) -> bool {
        let covers = |known: &View| known.range.covers(range) && known.number >= number;
        if self.0.iter().any(covers) {
            return true;
        }
        let inside = self.0.iter().any(|known| range.covers(&known.range));
        let halves = range.halves().filter(|_| inside);
        halves.is_some_and(|halves| halves.iter().all(|half| self.is_known(half, number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    fn view(range: Range, number: u32) -> View {
        View { range, number, members: Vec::from([Member::default()]) }
    }

    #[test]
    fn halves_make_up_a_range_and_lead_back_to_it() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut range = Range::ALL;
        while let Some([left, right]) = range.halves() {
            assert!(left.fits() && right.fits());
            for _ in 0..100 {
                let key = Id(rng.u128(..));
                let in_one = left.contains(key) != right.contains(key);
                assert_eq!(range.contains(key), in_one, "{range:?} {key}");
            }
            assert_eq!(left.parent(), Some((range, right)));
            assert_eq!(right.parent(), Some((range, left)));
            assert!(range.covers(&left) && !left.covers(&range) && !left.covers(&right));
            range = if rng.bool() { left } else { right };
        }
        assert_eq!(range.bits, BITS_MAX);
    }

    #[test]
    fn a_range_that_cannot_be_is_not_decoded() {
        let [_, right] = Range::ALL.halves().unwrap_or([Range::ALL; 2]);
        let read = |start: Key, bits: u8| {
            let bytes = postcard::to_allocvec(&(start, bits)).unwrap_or_default();
            postcard::from_bytes::<Range>(&bytes).ok()
        };
        assert_eq!(read(right.start, 1), Some(right));
        assert_eq!(read(right.start, 0), None, "a bit after its bits");
        for bits in [BITS_MAX + 1, 128, 129, u8::MAX] {
            assert_eq!(read(Id(0), bits), None, "{bits} bits");
        }
    }

    #[test]
    fn the_newest_view_of_a_key_is_known() {
        let [left, right] = Range::ALL.halves().unwrap_or([Range::ALL; 2]);
        let mut known = Known::default();
        assert!(known.learn(&view(Range::ALL, 1)));
        assert!(!known.learn(&view(Range::ALL, 1)), "no news");
        assert!(known.learn(&view(left, 2)));
        assert_eq!(known.of(left.start).map(|view| view.number), Some(2));
        assert_eq!(known.of(right.start).map(|view| view.number), Some(1));
        assert!(known.learn(&view(right, 5)));
        assert_eq!(known.len(), 2, "the whole is forgotten");
        assert!(!known.learn(&view(Range::ALL, 2)), "its halves are newer");
        assert!(known.learn(&view(Range::ALL, 6)));
        assert_eq!(known.len(), 1, "merged");
    }

    #[test]
    fn only_the_whole_range_follows() {
        let all = view(Range::ALL, 1);
        let [left, right] = Range::ALL.halves().unwrap_or([Range::ALL; 2]);
        assert!(may_follow(&all, &[view(Range::ALL, 2)]));
        assert!(may_follow(&all, &[view(left, 2), view(right, 2)]));
        assert!(may_follow(&view(left, 2), &[view(Range::ALL, 3)]));
        for bad in [
            &[][..],
            &[view(left, 2)],
            &[view(right, 2), view(left, 2)],
            &[view(Range::ALL, 1)],
            &[view(left, 2), view(right, 1)],
        ] {
            assert!(!may_follow(&all, bad), "{bad:?}");
        }
    }
}
