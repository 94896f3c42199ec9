//! Self-tuning (paper 3.4.4, PROTOCOL.md 10.15): how many replicas a load takes. Pure.
//!
//! Nodes report what they measured in the last five seconds, and only while there is something to
//! report. Of requests and of processor time it follows how many replicas there should be; of slow
//! answers only whether there are too few. More are had as soon as two looks in a row say so, fewer
//! only after minutes in which fewer would have done, with a fifth to spare; each time the load
//! comes back within ten minutes that wait doubles, for an hour. So a load that swings does not
//! make the service swing.

use alloc::format;
use alloc::string::String;

use dugnad_kernel::map::Map;
use dugnad_kernel::{Duration, NodeId};
use dugnad_resource::spec::{Load, Measure, Scale};

/// How often the load is looked at.
pub(crate) const WINDOW: Duration = Duration::from_millis(Load::WINDOW_MS as u64);
const WINDOW_SECS: u64 = Load::WINDOW_MS as u64 / 1_000;
/// Looks that must say that more are needed.
const MORE: u8 = 2;
/// Looks after a change that count for nothing: the new replicas are not there yet.
const SETTLE: u8 = 2;
/// Looks in which fewer would have done, at least and at most: two minutes to an hour.
const FEWER: u16 = 24;
const FEWER_MAX: u16 = 720;
/// More within so many looks after fewer: fewer was too early.
const TOO_EARLY: u16 = 120;
/// Nodes that may report; what more say is not counted.
const NODES_MAX: usize = 1024;
/// So few answers say nothing about how many are slow.
const ANSWERS_MIN: u64 = 10;

/// What was reported, and what follows.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    heard: Map<NodeId, (Load, bool)>,
    settle: u8,
    more: u8,
    /// The least that the looks which asked for more have in common.
    least: u8,
    fewer: u16,
    /// The most that any of the looks which asked for fewer needed.
    most: u8,
    patience: u16,
    since_fewer: u16,
    since_more: u16,
}

impl Default for Tuner {
    fn default() -> Self {
        Self {
            heard: Map::new(),
            settle: 0,
            more: 0,
            least: u8::MAX,
            fewer: 0,
            most: 0,
            patience: FEWER,
            since_fewer: u16::MAX,
            since_more: u16::MAX,
        }
    }
}

/// What one look needs: replicas for the load, and with a fifth to spare.
struct Needs {
    now: u8,
    with_room: u8,
    told: String,
}

impl Tuner {
    /// A node reports; false if it was not counted.
    pub(crate) fn hear(&mut self, from: NodeId, load: Load) -> bool {
        let may = self.heard.len() < NODES_MAX || self.heard.contains_key(&from);
        if may {
            self.heard.insert(from, (load, true));
        }
        may
    }

    /// Whether nobody reports and nothing is to be given back.
    pub(crate) fn is_quiet(&self, scale: &Scale, count: u8) -> bool {
        self.heard.is_empty() && count <= scale.min
    }

    /// Looks at what was reported; another number of replicas, and why, if there should be one.
    /// `cpu`: what one replica has, in thousandths of a core.
    pub(crate) fn look(&mut self, scale: &Scale, count: u8, cpu: u32) -> Option<(u8, String)> {
        let needs = self.needs(scale, count, cpu);
        // A report counts in the look after it, and in one more: nodes and this one do not look at
        // the same time.
        self.heard.retain(|_, (_, fresh)| core::mem::replace(fresh, false));
        self.since_fewer = self.since_fewer.saturating_add(1);
        self.since_more = self.since_more.saturating_add(1);
        if self.since_more >= FEWER_MAX {
            self.patience = FEWER;
        }
        if self.settle > 0 {
            self.settle -= 1;
            return None;
        }
        let clamp = |count: u8| count.clamp(scale.min, scale.max);
        if clamp(needs.now) > count {
            self.more += 1;
            self.least = self.least.min(clamp(needs.now));
        } else {
            (self.more, self.least) = (0, u8::MAX);
        }
        if clamp(needs.with_room) < count {
            self.fewer += 1;
            self.most = self.most.max(clamp(needs.with_room));
        } else {
            (self.fewer, self.most) = (0, 0);
        }
        let new = if self.more >= MORE {
            if self.since_fewer < TOO_EARLY {
                self.patience = self.patience.saturating_mul(2).min(FEWER_MAX);
            }
            self.since_more = 0;
            self.least
        } else if self.fewer >= self.patience {
            self.since_fewer = 0;
            self.most
        } else {
            return None;
        };
        self.settle = SETTLE;
        (self.more, self.least, self.fewer, self.most) = (0, u8::MAX, 0, 0);
        Some((new, needs.told))
    }

    fn needs(&self, scale: &Scale, count: u8, cpu: u32) -> Needs {
        let sum = |part: fn(&Load) -> u32| -> u64 {
            self.heard.values().map(|(load, _)| u64::from(part(load))).sum()
        };
        let requests = sum(|load| load.requests);
        match scale.on {
            Measure::Requests(most) => {
                let most = u64::from(most.max(1)) * WINDOW_SECS;
                let rate = requests.div_ceil(WINDOW_SECS);
                Needs {
                    now: few(requests.div_ceil(most)),
                    with_room: few((requests * 5).div_ceil(most * 4)),
                    told: format!("{rate} requests a second"),
                }
            }
            Measure::Cpu(percent) => {
                let used = sum(|load| load.cpu);
                let most = (u64::from(cpu) * u64::from(percent)).max(1);
                let whole = u64::from(cpu.max(1)) * u64::from(count.max(1));
                Needs {
                    now: few((used * 100).div_ceil(most)),
                    with_room: few((used * 125).div_ceil(most)),
                    told: format!("its processors are in use to {}%", used * 100 / whole),
                }
            }
            Measure::Answer(most) => {
                let slow = sum(|load| load.slow);
                let told = format!("{slow} of {requests} answers took longer than {most}ms");
                let (now, with_room) = if requests < ANSWERS_MIN && requests > 0 {
                    (count, count)
                } else if slow * 20 > requests {
                    (count.saturating_add(count.div_ceil(2)), count)
                } else if slow * 100 > requests {
                    (count, count)
                } else {
                    (count, count.saturating_sub(1))
                };
                Needs { now, with_room, told }
            }
        }
    }
}

fn few(count: u64) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    const RPS: Scale = Scale { min: 1, max: 6, on: Measure::Requests(50) };

    /// Looks at a load of so many requests a second, over two gateways, for so many looks.
    fn run(tuner: &mut Tuner, count: &mut u8, rate: impl Fn(u32) -> u32, looks: u32) -> Vec<u32> {
        let mut changes = Vec::new();
        for look in 0..looks {
            let requests = rate(look) * 5;
            for (node, part) in [(1, requests / 2), (2, requests - requests / 2)] {
                if part > 0 {
                    tuner.hear(Id(node), Load { requests: part, ..Load::default() });
                }
            }
            if let Some((new, _)) = tuner.look(&RPS, *count, 100) {
                *count = new;
                changes.push(look);
            }
        }
        changes
    }

    #[test]
    fn a_step_of_ten_is_followed_within_six_looks_and_goes_down_after_it() {
        let (mut tuner, mut count) = (Tuner::default(), 1);
        assert_eq!(run(&mut tuner, &mut count, |_| 20, 100), []);
        assert_eq!(run(&mut tuner, &mut count, |_| 200, 6), [1]);
        assert_eq!(count, 4);
        assert_eq!(run(&mut tuner, &mut count, |_| 20, 24 + 2 + 1).len(), 1);
        assert_eq!(count, 1);
        assert_eq!(run(&mut tuner, &mut count, |_| 10_000, 4).len(), 1);
        assert_eq!(count, 6, "never more than the most");
    }

    #[test]
    fn a_load_about_a_boundary_does_not_make_it_swing() {
        let mut rng = fastrand::Rng::with_seed(3);
        for rate in [45, 50, 95, 100, 155, 200] {
            let (mut tuner, mut count) = (Tuner::default(), 1);
            let mut noise: Vec<u32> = (0..1_440).map(|_| rate * rng.u32(85..115) / 100).collect();
            noise.rotate_left(7);
            run(&mut tuner, &mut count, |n| noise[n as usize], 60);
            let changes = run(&mut tuner, &mut count, |n| noise[n as usize], 1_440);
            assert!(changes.len() <= 1, "{rate}: changed at {changes:?} within two hours");
        }
    }

    #[test]
    fn a_load_that_comes_and_goes_is_given_more_and_more_time() {
        // Four minutes of load, four without, all day: at first it follows, then it stays, and is
        // given back once an hour to see.
        let (mut tuner, mut count) = (Tuner::default(), 1);
        let wave = |n: u32| if n / 48 % 2 == 0 { 200 } else { 0 };
        let first = run(&mut tuner, &mut count, wave, 720).len();
        let later = run(&mut tuner, &mut count, wave, 720).len();
        assert!((2..=6).contains(&first) && later <= 2, "{first} changes, then {later}");
    }

    #[test]
    fn nothing_is_looked_at_when_nobody_asks() {
        let mut tuner = Tuner::default();
        assert!(tuner.is_quiet(&RPS, 1));
        tuner.hear(Id(1), Load { requests: 1, ..Load::default() });
        assert!(!tuner.is_quiet(&RPS, 1));
        tuner.look(&RPS, 1, 100);
        tuner.look(&RPS, 1, 100);
        assert!(tuner.is_quiet(&RPS, 1), "a report counts twice and is gone");
        assert!(!tuner.is_quiet(&RPS, 2), "there is one to give back");
    }

    #[test]
    fn slow_answers_and_busy_processors_ask_for_more() {
        let slow = Scale { min: 1, max: 4, on: Measure::Answer(300) };
        let busy = Scale { min: 1, max: 8, on: Measure::Cpu(70) };
        for (scale, load, then) in [
            (slow, Load { requests: 100, slow: 6, cpu: 0 }, 2),
            (slow, Load { requests: 100, slow: 4, cpu: 0 }, 1),
            (slow, Load { requests: 5, slow: 5, cpu: 0 }, 1),
            (busy, Load { requests: 0, slow: 0, cpu: 75 }, 2),
            (busy, Load { requests: 0, slow: 0, cpu: 69 }, 1),
            (busy, Load { requests: 0, slow: 0, cpu: 400 }, 6),
        ] {
            let (mut tuner, mut count) = (Tuner::default(), 1);
            for _ in 0..2 {
                tuner.hear(Id(1), load);
                if let Some((new, _)) = tuner.look(&scale, count, 100) {
                    count = new;
                }
            }
            assert_eq!(count, then, "{scale:?} {load:?}");
        }
    }
}
