//! Reading a condition as people type it; what is wrong is said with its place.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::{Attribute, Condition, Kind, NAME_MAX, TERMS_MAX, TEXT_MAX, TYPED_MAX, Test};
use super::{VALUES_MAX, sorted};

/// What is wrong with a condition, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    typed: String,
    /// Bytes of `typed`.
    at: Range<usize>,
    message: String,
}

/// What is wrong, the line as it was typed, and a caret below the place.
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide =
            |range: Range<usize>| self.typed.get(range).map_or(0, |text| text.chars().count());
        let (before, marked) = (wide(0..self.at.start), wide(self.at.clone()).max(1));
        let blank: String = core::iter::repeat_n(' ', before).collect();
        let carets: String = core::iter::repeat_n('^', marked).collect();
        write!(f, "{}\n  {}\n  {blank}{carets}", self.message, self.typed)
    }
}

/// Characters of a value that need no quotes.
pub(super) fn plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '%' | '+' | '@')
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    AtLeast,
    AtMost,
    More,
    Less,
    Has,
    Lacks,
    In,
    Prefix,
    Exists,
    Absent,
}

impl Op {
    /// Longest first: `>=` before `>`.
    const SIGNS: [(&'static str, Self); 8] = [
        ("!=", Self::Unequal),
        (">=", Self::AtLeast),
        ("<=", Self::AtMost),
        ("!~", Self::Lacks),
        ("=", Self::Equal),
        (">", Self::More),
        ("<", Self::Less),
        ("~", Self::Has),
    ];
    const WORDS: [(&'static str, Self); 4] = [
        ("in", Self::In),
        ("prefix", Self::Prefix),
        ("exists", Self::Exists),
        ("!exists", Self::Absent),
    ];
}

struct Reader<'a> {
    typed: &'a str,
    at: usize,
}

impl Condition {
    /// Reads a condition on the attributes of `schema`. Nothing typed is true of everything.
    ///
    /// # Errors
    /// The first thing that is wrong, where it is, and what could stand there.
    pub fn parse(typed: &str, schema: &[Attribute<'_>]) -> Result<Self, ParseError> {
        let mut reader = Reader { typed, at: 0 };
        if typed.len() > TYPED_MAX {
            let message = format!("a condition has at most {TYPED_MAX} bytes");
            return Err(ParseError { typed: String::new(), at: 0..0, message });
        }
        let mut condition = Self::default();
        while reader.more() {
            let start = reader.at;
            let (name, test) = reader.term(schema)?;
            let (count, all) = (condition.tests.len(), start..reader.at);
            if condition.add(&name, test) {
                continue;
            }
            let message = if count >= TERMS_MAX {
                format!("a condition names at most {TERMS_MAX} attributes")
            } else {
                format!("what is said of {name} can never be true together")
            };
            return Err(reader.wrong(all, message));
        }
        Ok(condition)
    }
}

impl Reader<'_> {
    fn wrong(&self, at: Range<usize>, message: impl Into<String>) -> ParseError {
        ParseError { typed: self.typed.to_string(), at, message: message.into() }
    }

    fn rest(&self) -> &str {
        &self.typed[self.at..]
    }

    fn skip(&mut self) {
        let blank = self.rest().len() - self.rest().trim_start().len();
        self.at += blank;
    }

    fn more(&mut self) -> bool {
        self.skip();
        !self.rest().is_empty()
    }

    /// As many characters as are of a kind.
    fn take(&mut self, of: impl Fn(char) -> bool) -> (String, Range<usize>) {
        let start = self.at;
        let length = self.rest().find(|c| !of(c)).unwrap_or(self.rest().len());
        self.at += length;
        (self.typed[start..self.at].to_string(), start..self.at)
    }

    fn term(&mut self, schema: &[Attribute<'_>]) -> Result<(String, Test), ParseError> {
        let (name, at) = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
        if name.is_empty() {
            let next = self.at + self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.wrong(self.at..next, "expected the name of an attribute"));
        }
        let Some(known) = schema.iter().find(|known| known.name == name) else {
            let all: Vec<&str> = schema.iter().map(|known| known.name).collect();
            let message = format!("there is no attribute {name}; there are {}", all.join(", "));
            return Err(self.wrong(at, message));
        };
        if name.len() > NAME_MAX {
            return Err(self.wrong(at, "this name is too long"));
        }
        self.skip();
        let (op, place) = self.op(at)?;
        let test = self.test(*known, op, place)?;
        Ok((name, test))
    }

    fn op(&mut self, name: Range<usize>) -> Result<(Op, Range<usize>), ParseError> {
        let start = self.at;
        for (word, op) in Op::WORDS {
            let rest = self.rest().strip_prefix(word);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '"'])) {
                self.at += word.len();
                return Ok((op, start..self.at));
            }
        }
        for (sign, op) in Op::SIGNS {
            if self.rest().starts_with(sign) {
                self.at += sign.len();
                return Ok((op, start..self.at));
            }
        }
        let at = if self.rest().is_empty() { name } else { start..start + 1 };
        let message = "expected =, !=, >=, <=, >, <, ~, !~, in, prefix or exists behind the name";
        Err(self.wrong(at, message))
    }

    /// One value, or several with commas between.
    fn values(&mut self) -> Result<Vec<(String, Range<usize>)>, ParseError> {
        let mut all = Vec::new();
        loop {
            self.skip();
            all.push(self.value()?);
            if all.len() > VALUES_MAX {
                let at = all.last().map_or(0..0, |(_, at)| at.clone());
                return Err(self.wrong(at, format!("at most {VALUES_MAX} values")));
            }
            match self.rest().strip_prefix(',') {
                Some(_) => self.at += 1,
                None => return Ok(all),
            }
        }
    }

    fn value(&mut self) -> Result<(String, Range<usize>), ParseError> {
        let start = self.at;
        let (text, at) = match self.rest().strip_prefix('"') {
            Some(quoted) => {
                let Some(length) = quoted.find('"') else {
                    return Err(self.wrong(start..self.typed.len(), "the second \" is missing"));
                };
                let text = quoted[..length].to_string();
                self.at += length + 2;
                (text, start..self.at)
            }
            None => self.take(plain),
        };
        if at.is_empty() {
            let end = start + self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.wrong(start..end, "expected a value"));
        }
        if text.len() > TEXT_MAX || text.contains(char::is_control) {
            return Err(self.wrong(at, format!("a value has at most {TEXT_MAX} bytes")));
        }
        Ok((text, at))
    }

    fn test(
        &mut self,
        known: Attribute<'_>,
        op: Op,
        place: Range<usize>,
    ) -> Result<Test, ParseError> {
        let Attribute { name, kind } = known;
        match op {
            Op::Exists => return Ok(Test::Exists),
            Op::Absent => return Ok(Test::Absent),
            _ => {}
        }
        let values = self.values()?;
        if values.len() > 1 && op != Op::In {
            let at = values.get(1).map_or(place, |(_, at)| at.clone());
            return Err(self.wrong(at, format!("for several values say: {name} in A,B")));
        }
        match kind {
            Kind::Text => text_test(op, values).ok_or_else(|| {
                let what = format!("{name} is a text: it takes =, !=, in, prefix and exists");
                self.wrong(place, what)
            }),
            Kind::Words => words_test(op, values).ok_or_else(|| {
                let what = format!("{name} are words: {name}~WORD asks for one, {name}!~WORD not");
                self.wrong(place, what)
            }),
            _ => self.number_test(known, op, place, &values),
        }
    }

    fn number_test(
        &self,
        known: Attribute<'_>,
        op: Op,
        place: Range<usize>,
        values: &[(String, Range<usize>)],
    ) -> Result<Test, ParseError> {
        let mut numbers = Vec::new();
        for (text, at) in values {
            let number = number(known.kind, text).ok_or_else(|| {
                let message = format!("{} is {}, not \"{text}\"", known.name, known.kind.what());
                self.wrong(at.clone(), message)
            })?;
            numbers.push(number);
        }
        let of = |low: i64, high: i64| (low <= high).then(|| Vec::from([(low, high)]));
        let value = numbers.first().copied().unwrap_or_default();
        let ranges = match op {
            Op::Equal => of(value, value),
            Op::AtLeast => of(value, i64::MAX),
            Op::AtMost => of(i64::MIN, value),
            Op::More => value.checked_add(1).and_then(|low| of(low, i64::MAX)),
            Op::Less => value.checked_sub(1).and_then(|high| of(i64::MIN, high)),
            Op::Unequal => {
                let below = value.checked_sub(1).and_then(|high| of(i64::MIN, high));
                let above = value.checked_add(1).and_then(|low| of(low, i64::MAX));
                Some(below.into_iter().chain(above).flatten().collect())
            }
            Op::In => Some(points(numbers)),
            Op::Has | Op::Lacks | Op::Prefix | Op::Exists | Op::Absent => {
                let what = "is a number: it takes =, !=, >=, <=, >, <, in and exists";
                return Err(self.wrong(place, format!("{} {what}", known.name)));
            }
        };
        ranges.map(Test::Number).ok_or_else(|| self.wrong(place, "no number is so"))
    }
}

/// Single values as ranges; those that touch are one.
fn points(mut numbers: Vec<i64>) -> Vec<(i64, i64)> {
    numbers.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, high)) if number <= high.saturating_add(1) => *high = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// The texts, sorted and each once.
fn texts(values: Vec<(String, Range<usize>)>) -> Vec<String> {
    let mut all: Vec<String> = values.into_iter().map(|(text, _)| text).collect();
    all.sort_unstable();
    all.dedup();
    debug_assert!(sorted(&all));
    all
}

fn text_test(op: Op, values: Vec<(String, Range<usize>)>) -> Option<Test> {
    let mut all = texts(values);
    match op {
        Op::Equal | Op::In => Some(Test::OneOf(all)),
        Op::Unequal => Some(Test::Begins { prefix: String::new(), but: all }),
        Op::Prefix => all.pop().map(|prefix| Test::Begins { prefix, but: Vec::new() }),
        _ => None,
    }
}

fn words_test(op: Op, values: Vec<(String, Range<usize>)>) -> Option<Test> {
    let all = texts(values);
    match op {
        Op::Has => Some(Test::Words { has: all, lacks: Vec::new() }),
        Op::Lacks => Some(Test::Words { has: Vec::new(), lacks: all }),
        _ => None,
    }
}

/// What a number of this kind is written as, in the unit it is kept in.
#[must_use]
pub fn number(kind: Kind, text: &str) -> Option<i64> {
    let ending = |endings: &[(&str, i64)]| {
        endings.iter().find_map(|(ending, times)| {
            text.strip_suffix(ending).and_then(|digits| decimal(digits, *times))
        })
    };
    match kind {
        Kind::Bytes => {
            ending(&[("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40), ("", 1)])
        }
        Kind::Count => ending(&[("", 1)]),
        Kind::Cpu => ending(&[("%", 10), ("", 1_000)]),
        Kind::Share => ending(&[("%", 10_000)]).filter(|share| *share <= 1_000_000),
        Kind::Seconds => ending(&[("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("", 1)]),
        Kind::Text | Kind::Words => None,
    }
}

/// A decimal number times `times`, exactly: what is finer than that is refused. No floats: they
/// would round, and they cost 20 KB of code to print.
fn decimal(text: &str, times: i64) -> Option<i64> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10_i64.pow(u32::try_from(fraction.len()).ok()?);
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<i64>().ok()? };
    let part = part.checked_mul(times)?;
    let whole = whole.parse::<i64>().ok()?.checked_mul(times)?;
    (part % scale == 0).then(|| whole.checked_add(part / scale)).flatten()
}
