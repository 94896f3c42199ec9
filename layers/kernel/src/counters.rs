//! What happened how often, by name.

use crate::map::Map;

/// Counts of rare things: messages dropped with their reason, retries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Map<&'static str, u64>);

impl Counters {
    /// It happened once more.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    /// By name, in order; each name once.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(what, count)| (*what, *count))
    }
}

/// Several components may count the same thing: it is one row, of all of them.
impl Extend<(&'static str, u64)> for Counters {
    fn extend<I: IntoIterator<Item = (&'static str, u64)>>(&mut self, counts: I) {
        for (what, times) in counts {
            self.add(what, times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_count_is_one_row() {
        let (mut one, mut other) = (Counters::default(), Counters::default());
        one.count("late");
        one.count("early");
        other.add("late", 2);
        one.extend(other.iter());
        assert!(one.iter().eq([("early", 1), ("late", 3)]));
    }
}
