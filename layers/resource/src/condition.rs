//! Conditions on attributes: one language for finding nodes, for the places of services and for
//! subscriptions (PROTOCOL.md 9.1).
//!
//! `memory>=256M arch=aarch64 zone!=attic tags~solar up>=95%`: every term must hold. A condition is
//! kept in normal form, one test for each attribute, so that equal conditions have equal bytes and
//! [`Condition::covers`] compares test by test. An attribute that is not there fails every test
//! but `!exists`.

mod parse;
#[cfg(test)]
mod tests;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

pub use parse::{ParseError, number};

/// Attributes one condition may name.
pub const TERMS_MAX: usize = 16;
/// Values, ranges or words in one test.
pub const VALUES_MAX: usize = 16;
/// Bytes of the name of an attribute, and of a word or text it is compared with.
pub const NAME_MAX: usize = 32;
pub const TEXT_MAX: usize = 128;
/// Bytes of a condition as it is typed.
pub const TYPED_MAX: usize = 1_024;

/// What kind of values an attribute has, and so how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `256M`; units K, M, G, T of 1024.
    Bytes,
    /// A whole number.
    Count,
    /// Thousandths of a core: `50%` of one, or `2.0`.
    Cpu,
    /// Millionths: `95%`.
    Share,
    /// Seconds: `90s`, `10m`, `2h`, `7d`.
    Seconds,
    Text,
    /// Several words, tested one by one with `~`.
    Words,
}

impl Kind {
    /// What may be written for it, to follow "expected".
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Bytes => "a size such as 256M (units K, M, G, T of 1024)",
            Self::Count => "a whole number",
            Self::Cpu => "a share of a processor such as 50%, or a number of cores such as 2.0",
            Self::Share => "a percentage such as 95%",
            Self::Seconds => "a time such as 90s, 10m, 2h or 7d",
            Self::Text => "a text, in \"..\" if it has spaces",
            Self::Words => "a word",
        }
    }
}

/// An attribute that conditions may name.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    pub name: &'a str,
    pub kind: Kind,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    Number(i64),
    Text(String),
    Words(Vec<String>),
}

/// What conditions are tested on.
pub trait Attributes {
    fn number(&self, name: &str) -> Option<i64>;
    fn text(&self, name: &str) -> Option<&str>;
    /// Whether the words of `name` hold `word`; `None` if there is no such attribute.
    fn has(&self, name: &str, word: &str) -> Option<bool>;
    fn exists(&self, name: &str) -> bool;
}

impl Attributes for [(String, Value)] {
    fn number(&self, name: &str) -> Option<i64> {
        self.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
            Value::Number(number) => Some(*number),
            Value::Text(_) | Value::Words(_) => None,
        })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
            Value::Text(text) => Some(text.as_str()),
            Value::Number(_) | Value::Words(_) => None,
        })
    }

    fn has(&self, name: &str, word: &str) -> Option<bool> {
        self.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
            Value::Words(words) => Some(words.iter().any(|known| known == word)),
            Value::Number(_) | Value::Text(_) => None,
        })
    }

    fn exists(&self, name: &str) -> bool {
        self.iter().any(|(known, _)| known == name)
    }
}

/// What must be true of one attribute, in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    Absent,
    /// Of whatever kind.
    Exists,
    /// In one of these ranges, both ends included; sorted, apart from each other, not empty.
    Number(Vec<(i64, i64)>),
    /// One of these; sorted, not empty.
    OneOf(Vec<String>),
    /// Begins with `prefix`, and is none of `but` (sorted, and they all begin so).
    Begins {
        prefix: String,
        but: Vec<String>,
    },
    /// Both sorted, nothing in both.
    Words {
        has: Vec<String>,
        lacks: Vec<String>,
    },
}

/// A conjunction of tests, by attribute in order. Without any it is true of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    tests: Vec<(String, Test)>,
}

impl Condition {
    #[must_use]
    pub fn tests(&self) -> &[(String, Test)] {
        &self.tests
    }

    /// True of everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    #[must_use]
    pub fn matches(&self, attributes: &(impl Attributes + ?Sized)) -> bool {
        self.tests.iter().all(|(name, test)| test.matches(name, attributes))
    }

    /// The first test that does not hold, as a person would type it; `None` if all do.
    #[must_use]
    pub fn failing(&self, attributes: &(impl Attributes + ?Sized)) -> Option<String> {
        let mut failing = self.tests.iter().filter(|(name, test)| !test.matches(name, attributes));
        failing.next().map(|test| Self { tests: Vec::from([test.clone()]) }.to_string())
    }

    /// Whether everything `other` is true of, this is true of. Never wrongly `true`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.tests.iter().all(|(name, test)| {
            let theirs = other.tests.iter().find(|(known, _)| known == name);
            theirs.is_some_and(|(_, theirs)| test.covers(theirs))
        })
    }

    /// One more test, which must hold as well. False, and nothing changed, if the two can never
    /// hold together, or there are too many.
    fn add(&mut self, name: &str, test: Test) -> bool {
        match self.tests.binary_search_by(|(known, _)| known.as_str().cmp(name)) {
            Ok(at) => match self.tests[at].1.and(&test) {
                Some(both) if both.fits() => {
                    self.tests[at].1 = both;
                    true
                }
                Some(_) | None => false,
            },
            Err(_) if self.tests.len() >= TERMS_MAX || !test.fits() => false,
            Err(at) => {
                self.tests.insert(at, (String::from(name), test));
                true
            }
        }
    }

    /// Whether it is in normal form and within the bounds; conditions come from other nodes, too.
    #[must_use]
    pub fn fits(&self) -> bool {
        let sorted = self.tests.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let fit = |(name, test): &(String, Test)| name.len() <= NAME_MAX && test.fits();
        sorted && self.tests.len() <= TERMS_MAX && self.tests.iter().all(fit)
    }
}

/// For people: as it is typed, but numbers without units, and several ranges as `in ..3,5..`.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, test)) in self.tests.iter().enumerate() {
            if number > 0 {
                f.write_str(" ")?;
            }
            test.show(name, f)?;
        }
        Ok(())
    }
}

fn sorted<T: Ord>(items: &[T]) -> bool {
    items.windows(2).all(|pair| pair[0] < pair[1])
}

fn short(words: &[String]) -> bool {
    words.len() <= VALUES_MAX && sorted(words) && words.iter().all(|word| word.len() <= TEXT_MAX)
}

impl Test {
    fn matches(&self, name: &str, attributes: &(impl Attributes + ?Sized)) -> bool {
        match self {
            Self::Absent => !attributes.exists(name),
            Self::Exists => attributes.exists(name),
            Self::Number(ranges) => attributes.number(name).is_some_and(|value| {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&value))
            }),
            Self::OneOf(_) | Self::Begins { .. } => {
                attributes.text(name).is_some_and(|text| self.takes(text))
            }
            Self::Words { has, lacks } => {
                attributes.exists(name)
                    && has.iter().all(|word| attributes.has(name, word) == Some(true))
                    && lacks.iter().all(|word| attributes.has(name, word) == Some(false))
            }
        }
    }

    /// Whether a text meets it.
    fn takes(&self, text: &str) -> bool {
        match self {
            Self::OneOf(all) => all.iter().any(|known| known == text),
            Self::Begins { prefix, but } => {
                text.starts_with(prefix.as_str()) && !but.iter().any(|known| known == text)
            }
            Self::Absent | Self::Number(_) | Self::Words { .. } => false,
            Self::Exists => true,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::Exists, other) => *other != Self::Absent,
            (Self::Number(wide), Self::Number(narrow)) => narrow.iter().all(|(low, high)| {
                // Ranges lie apart, with room between: one of them holds all of it, or none does.
                wide.iter().any(|(l, h)| l <= low && high <= h)
            }),
            (_, Self::OneOf(all)) => all.iter().all(|text| self.takes(text)),
            (Self::Begins { prefix, but }, Self::Begins { prefix: longer, but: theirs }) => {
                let left_out = |text: &String| text.starts_with(longer.as_str());
                longer.starts_with(prefix.as_str())
                    && but.iter().filter(|text| left_out(text)).all(|text| theirs.contains(text))
            }
            (Self::Words { has, lacks }, Self::Words { has: more, lacks: fewer }) => {
                has.iter().all(|word| more.contains(word))
                    && lacks.iter().all(|word| fewer.contains(word))
            }
            _ => false,
        }
    }

    /// Both at once; `None` if that can never be.
    fn and(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Absent, Self::Absent) => Self::Absent,
            (Self::Absent, _) | (_, Self::Absent) => return None,
            (Self::Exists, test) | (test, Self::Exists) => test.clone(),
            (Self::Number(a), Self::Number(b)) => {
                let mut both: Vec<(i64, i64)> = Vec::new();
                for (low, high) in a {
                    let meet = b.iter().map(|(l, h)| (*low.max(l), *high.min(h)));
                    both.extend(meet.filter(|(low, high)| low <= high));
                }
                both.sort_unstable();
                (!both.is_empty()).then_some(Self::Number(both))?
            }
            (Self::OneOf(all), text) | (text, Self::OneOf(all)) => {
                let all: Vec<String> = all.iter().filter(|one| text.takes(one)).cloned().collect();
                (!all.is_empty()).then_some(Self::OneOf(all))?
            }
            (Self::Begins { prefix: a, but }, Self::Begins { prefix: b, but: more }) => {
                let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
                if !long.starts_with(short.as_str()) {
                    return None;
                }
                let mut but: Vec<String> = but.iter().chain(more).cloned().collect();
                but.retain(|text| text.starts_with(long.as_str()));
                but.sort_unstable();
                but.dedup();
                Self::Begins { prefix: long.clone(), but }
            }
            (Self::Words { has, lacks }, Self::Words { has: more, lacks: fewer }) => {
                let join = |a: &[String], b: &[String]| {
                    let mut all: Vec<String> = a.iter().chain(b).cloned().collect();
                    all.sort_unstable();
                    all.dedup();
                    all
                };
                let (has, lacks) = (join(has, more), join(lacks, fewer));
                if has.iter().any(|word| lacks.contains(word)) {
                    return None;
                }
                Self::Words { has, lacks }
            }
            _ => return None,
        })
    }

    fn fits(&self) -> bool {
        match self {
            Self::Absent | Self::Exists => true,
            Self::Number(ranges) => {
                let apart = ranges.windows(2).all(|pair| {
                    let next = pair[0].1.checked_add(1);
                    next.is_some_and(|next| next < pair[1].0)
                });
                let right = ranges.iter().all(|(low, high)| low <= high);
                (1..=VALUES_MAX).contains(&ranges.len()) && apart && right
            }
            Self::OneOf(all) => !all.is_empty() && short(all),
            Self::Begins { prefix, but } => {
                prefix.len() <= TEXT_MAX
                    && short(but)
                    && but.iter().all(|text| text.starts_with(prefix.as_str()))
            }
            Self::Words { has, lacks } => {
                short(has) && short(lacks) && !has.iter().any(|word| lacks.contains(word))
            }
        }
    }

    fn show(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "{name} !exists"),
            Self::Exists => write!(f, "{name} exists"),
            Self::Number(ranges) => show_ranges(name, ranges, f),
            Self::OneOf(all) if all.len() == 1 => {
                write!(f, "{name}=")?;
                quoted(all, f)
            }
            Self::OneOf(all) => {
                write!(f, "{name} in ")?;
                quoted(all, f)
            }
            Self::Begins { prefix, but } => {
                if !prefix.is_empty() || but.is_empty() {
                    write!(f, "{name} prefix ")?;
                    quoted(core::slice::from_ref(prefix), f)?;
                }
                for (number, text) in but.iter().enumerate() {
                    let gap = if number > 0 || !prefix.is_empty() { " " } else { "" };
                    write!(f, "{gap}{name}!=")?;
                    quoted(core::slice::from_ref(text), f)?;
                }
                Ok(())
            }
            Self::Words { has, lacks } => {
                let signs = has.iter().map(|word| ("~", word));
                for (number, (sign, word)) in
                    signs.chain(lacks.iter().map(|word| ("!~", word))).enumerate()
                {
                    write!(f, "{}{name}{sign}", if number > 0 { " " } else { "" })?;
                    quoted(core::slice::from_ref(word), f)?;
                }
                Ok(())
            }
        }
    }
}

/// Values behind each other, with a comma between.
fn quoted(all: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (number, text) in all.iter().enumerate() {
        let gap = if number > 0 { "," } else { "" };
        if !text.is_empty() && text.chars().all(parse::plain) {
            write!(f, "{gap}{text}")?;
        } else {
            write!(f, "{gap}\"{text}\"")?;
        }
    }
    Ok(())
}

fn show_ranges(name: &str, ranges: &[(i64, i64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match ranges {
        [(value, same)] if value == same => return write!(f, "{name}={value}"),
        [(i64::MIN, high)] => return write!(f, "{name}<={high}"),
        [(low, i64::MAX)] => return write!(f, "{name}>={low}"),
        [(low, high)] => return write!(f, "{name}>={low} {name}<={high}"),
        _ => {}
    }
    write!(f, "{name} in ")?;
    for (number, (low, high)) in ranges.iter().enumerate() {
        f.write_str(if number > 0 { "," } else { "" })?;
        match (*low, *high) {
            (low, high) if low == high => write!(f, "{low}")?,
            (i64::MIN, high) => write!(f, "..{high}")?,
            (low, i64::MAX) => write!(f, "{low}..")?,
            (low, high) => write!(f, "{low}..{high}")?,
        }
    }
    Ok(())
}
