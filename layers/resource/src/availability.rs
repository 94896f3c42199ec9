//! How much of the time a node is up, by the hour of the week (PROTOCOL.md 10.3). Pure; times are
//! milliseconds since 1970.
//!
//! A node keeps how long it was seen up and down in each hour of weekdays and of weekends, and how
//! long it runs between two ends. What is old counts less: half after three weeks. Where little was
//! seen of an hour, the mean of all its hours stands in, as strong as
//! five hours, and for that mean a prior, as strong as a day.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Millionths of the time a node is taken to be up, until it is measured.
pub const PRIOR_UP: u32 = 700_000;
/// Hours that are told apart: those of weekdays, then those of weekends, in UTC.
pub const HOURS: usize = 48;
/// How much what stands in counts, of one hour of the week and of all, in milliseconds.
const PRIOR_MS: u64 = 5 * HOUR;
/// An hour in which it was down is believed sooner: nodes that are off at the same hours would else
/// each be taken for up at some of them, and together for up at most.
const PRIOR_DOWN: u64 = HOUR / 4;
const PRIOR_ALL: u64 = DAY;
/// A node nobody has seen end runs so long between two ends.
const PRIOR_SESSION: u64 = 8 * HOUR;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// Thousandths that are left of what was seen after a week: half after three.
const LEFT: u64 = 794;
/// What lies further back does not count.
const BACK: u64 = 4 * WEEK;

/// What a node knows of its ups and downs. It is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Milliseconds up, and seen at all, of each hour; empty or [`HOURS`].
    hours: Vec<(u64, u64)>,
    /// Thousandths of ends, and milliseconds between them.
    ends: u64,
    run: u64,
    /// The week that was counted last.
    week: u64,
}

/// The hour of the week a moment is in.
#[must_use]
pub fn hour_of(at: u64) -> usize {
    let hour = usize::try_from(at / HOUR % 24).unwrap_or(0);
    // The first of January 1970 was a Thursday.
    let day = (at / DAY + 4) % 7;
    if day == 0 || day == 6 { hour + 24 } else { hour }
}

impl History {
    /// It was up, or down, from one moment to another.
    pub fn saw(&mut self, from: u64, to: u64, up: bool) {
        let mut at = from.max(to.saturating_sub(BACK));
        self.fade(to);
        if self.hours.len() != HOURS {
            self.hours = [(0, 0)].repeat(HOURS);
        }
        while at < to {
            let end = ((at / HOUR + 1) * HOUR).min(to);
            if let Some((was_up, seen)) = self.hours.get_mut(hour_of(at)) {
                *was_up = was_up.saturating_add(if up { end - at } else { 0 });
                *seen = seen.saturating_add(end - at);
            }
            at = end;
        }
    }

    /// It ended after it had run so long.
    pub fn ended(&mut self, run: u64) {
        self.ends = self.ends.saturating_add(1_000);
        self.run = self.run.saturating_add(run);
    }

    fn fade(&mut self, to: u64) {
        let week = to / WEEK;
        if self.week == 0 {
            self.week = week;
        }
        for _ in 0..week.saturating_sub(self.week).min(64) {
            for (up, seen) in &mut self.hours {
                (*up, *seen) = (*up * LEFT / 1_000, *seen * LEFT / 1_000);
            }
            (self.ends, self.run) = (self.ends * LEFT / 1_000, self.run * LEFT / 1_000);
        }
        self.week = self.week.max(week);
    }

    /// What others are told; `running`: milliseconds since the last end.
    #[must_use]
    pub fn availability(&self, running: u64) -> Availability {
        let all = |what: fn(&(u64, u64)) -> u64| {
            self.hours.iter().map(what).fold(0_u64, u64::saturating_add).min(BACK * 64)
        };
        let (up, seen) = (all(|hour| hour.0), all(|hour| hour.1));
        // Of five hours, the part that stands in for what was not seen.
        let prior = PRIOR_ALL * u64::from(PRIOR_UP) / 1_000_000;
        let mean = |strength| (up + prior).saturating_mul(strength) / (seen + PRIOR_ALL);
        let share = |(up, seen): &(u64, u64)| {
            let (up, seen) = ((*up).min(BACK * 64), (*seen).min(BACK * 64));
            // In steps of 1/250.
            let with = |strength| (up + mean(strength)) * 250 / (seen + strength);
            u8::try_from(with(PRIOR_MS).min(with(PRIOR_DOWN))).unwrap_or(250).min(250)
        };
        let session = (self.run + running + PRIOR_SESSION) * 1_000 / (self.ends + 1_000);
        Availability {
            hours: self.hours.iter().map(share).collect(),
            session: u32::try_from(session / 1_000).unwrap_or(u32::MAX),
            seen: u32::try_from(seen / HOUR).unwrap_or(u32::MAX),
        }
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// In 1/250, by the hour of the week; empty: nobody has seen it for long.
    hours: Vec<u8>,
    /// Seconds it runs between two ends.
    pub session: u32,
    /// Hours it was seen, of which what is long ago counts less.
    pub seen: u32,
}

impl Default for Availability {
    fn default() -> Self {
        History::default().availability(0)
    }
}

impl Availability {
    /// Millionths of the time it is up in an hour of the week.
    #[must_use]
    pub fn at(&self, hour: usize) -> u32 {
        self.hours.get(hour).map_or(PRIOR_UP, |share| u32::from(*share).min(250) * 4_000)
    }

    /// Millionths of the whole week.
    #[must_use]
    pub fn up(&self) -> u32 {
        weekly(|hour| u64::from(self.at(hour)))
    }

    /// Cuts what others say to the bounds.
    pub fn clip(&mut self) {
        if self.hours.len() != HOURS {
            self.hours = Vec::new();
        }
        self.session = self.session.max(1);
    }
}

/// The mean of the hours of a week: five weekdays and two days of weekend.
pub fn weekly(of: impl Fn(usize) -> u64) -> u32 {
    let sum = |hours: core::ops::Range<usize>| hours.map(&of).sum::<u64>();
    u32::try_from((5 * sum(0..24) + 2 * sum(24..HOURS)) / (7 * 24)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Monday.
    const START: u64 = 2_800 * WEEK + 4 * DAY;

    #[test]
    fn hours_of_weekdays_and_weekends_are_told_apart() {
        assert_eq!(hour_of(START + 9 * HOUR), 9);
        assert_eq!(hour_of(START + 4 * DAY + 23 * HOUR), 23, "a Friday");
        assert_eq!(hour_of(START + 5 * DAY), 24, "a Saturday");
        assert_eq!(hour_of(START + 7 * DAY - 1), 47);
        assert_eq!(hour_of(START + 7 * DAY), 0);
    }

    #[test]
    fn nothing_seen_is_the_prior() {
        let prior = Availability::default();
        assert_eq!((prior.up(), prior.session, prior.seen), (PRIOR_UP, 8 * 3_600, 0));
        let mut history = History::default();
        history.saw(START, START + HOUR, true);
        let day = history.availability(HOUR);
        assert!((700_000..720_000).contains(&day.up()), "{}", day.up());
    }

    /// An office machine, two weeks long: up from 8 to 18 on weekdays, with some noise.
    #[test]
    fn a_daily_rhythm_is_learnt_in_two_weeks() {
        let mut history = History::default();
        let mut rng = fastrand::Rng::with_seed(3);
        for quarter in 0..14 * 96 {
            let from = START + quarter * HOUR / 4;
            let hour = hour_of(from);
            let truth = if (8..18).contains(&hour) { 95 } else { 3 };
            history.saw(from, from + HOUR / 4, rng.u32(0..100) < truth);
        }
        let learnt = history.availability(0);
        for hour in 0..HOURS {
            let truth: i64 = if (8..18).contains(&hour) { 950_000 } else { 30_000 };
            // Ten hours of weekdays were seen, four of weekends; the mean stands in for five of
            // them, or for a quarter where the node was down.
            let weight = if hour < 24 { 40 } else { 16 };
            let quarters = if truth > 303_000 { 20 } else { 1 };
            let prior = (303_000 - truth) * quarters / (quarters + weight);
            let at = i64::from(learnt.at(hour));
            assert!((at - truth - prior).abs() < 120_000, "{hour}: {at} of {truth}");
        }
    }

    #[test]
    fn what_is_old_counts_less() {
        let mut history = History::default();
        history.saw(START, START + 2 * WEEK, false);
        let down = history.availability(0).up();
        assert!(down < 300_000, "{down}");
        history.saw(START + 2 * WEEK, START + 10 * WEEK, true);
        let up = history.availability(0).up();
        assert!(up > 800_000, "{up}");
    }

    #[test]
    fn the_mean_run_follows_the_ends() {
        let mut history = History::default();
        for _ in 0..9 {
            history.ended(HOUR);
        }
        let session = history.availability(HOUR).session;
        assert_eq!(session, 18 * 360, "ten hours and the prior's eight, in ten runs");
        assert!(History::default().availability(100 * HOUR).session > 100 * 3_600);
    }

    #[test]
    fn what_others_say_is_cut_to_the_bounds() {
        let mut odd = Availability { hours: [255].repeat(3), session: 0, seen: 1 };
        odd.clip();
        assert_eq!((odd.up(), odd.session), (PRIOR_UP, 1));
        let high = Availability { hours: [255].repeat(HOURS), session: 1, seen: 1 };
        assert_eq!(high.up(), 1_000_000);
        let mut ends = History::default();
        ends.saw(5, 4, true);
        ends.saw(0, u64::MAX / 2, true);
        assert!(ends.availability(u64::MAX / 4_000).up() > 700_000);
    }
}
