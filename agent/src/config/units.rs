//! The units people write: sizes, rates, shares, durations. Each says what it allows.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use dugnad_resource::condition::{Kind, number};
use serde::de::{self, Deserializer, Visitor};

/// A value written as text in a file.
pub(crate) trait Unit: Sized {
    /// What may be written, to follow "expected".
    const WHAT: &'static str;

    /// The value, or `None` if the text is none of [`Unit::WHAT`].
    fn read(text: &str) -> Option<Self>;

    /// # Errors
    /// What was written and what is allowed.
    fn parse(text: &str) -> Result<Self, String> {
        Self::read(text.trim()).ok_or_else(|| format!("\"{text}\" is not {}", Self::WHAT))
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);
/// Bytes a second; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) Option<u64>);
/// Thousandths of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu(pub(crate) u32);
/// Millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(pub(crate) u32);
/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Unit for Size {
    const WHAT: &'static str = "a size such as \"64M\" or \"1G\" (units K, M, G of 1024)";

    fn read(text: &str) -> Option<Self> {
        parse_size::Config::new().with_binary().parse_size(text).ok().map(Self)
    }
}

impl Unit for Rate {
    const WHAT: &'static str = "a rate such as \"300K/s\", or \"unlimited\"";

    fn read(text: &str) -> Option<Self> {
        if text == "unlimited" {
            return Some(Self(None));
        }
        Size::read(text.strip_suffix("/s")?)
            .filter(|size| size.0 > 0)
            .map(|size| Self(Some(size.0)))
    }
}

/// The most cores a share of a processor may name.
const CORES_MAX: u32 = 1024;

impl Unit for Cpu {
    const WHAT: &'static str =
        "a share of a processor: \"50%\" of one core, or a number of cores such as \"2.0\"";

    fn read(text: &str) -> Option<Self> {
        let thousandths = number(Kind::Cpu, text)?;
        u32::try_from(thousandths).ok().filter(|&cpu| cpu <= CORES_MAX * 1000).map(Self)
    }
}

impl Unit for Share {
    const WHAT: &'static str = "a percentage such as \"99%\" or \"99.9%\"";

    fn read(text: &str) -> Option<Self> {
        let millionths = number(Kind::Share, text)?;
        u32::try_from(millionths).ok().filter(|&share| share <= 1_000_000).map(Self)
    }
}

impl Unit for Span {
    const WHAT: &'static str = "a duration such as \"10s\", \"500ms\", \"5m\", \"12h\" or \"7d\"";

    fn read(text: &str) -> Option<Self> {
        humantime::parse_duration(text).ok().map(Self)
    }
}

struct Written<T>(PhantomData<T>);

impl<T: Unit> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }
}

/// Reads a [`Unit`] from a file.
pub(crate) fn written<'de, T: Unit, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_str(Written(PhantomData))
}

macro_rules! from_text {
    ($($unit:ty),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $unit {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::config::units::written(from)
            }
        }
    )*};
}
pub(crate) use from_text;

from_text!(Size, Rate, Cpu, Share, Span);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn units_read_what_people_write() {
        assert_eq!(Size::parse("64M"), Ok(Size(64 << 20)));
        assert_eq!(Size::parse("1 GiB"), Ok(Size(1 << 30)));
        assert_eq!(Size::parse("1.5K"), Ok(Size(1536)));
        assert_eq!(Rate::parse("300K/s"), Ok(Rate(Some(300 << 10))));
        assert_eq!(Rate::parse("unlimited"), Ok(Rate(None)));
        assert_eq!(Cpu::parse("50%"), Ok(Cpu(500)));
        assert_eq!(Cpu::parse("0.5%"), Ok(Cpu(5)));
        assert_eq!(Cpu::parse("2.0"), Ok(Cpu(2000)));
        assert_eq!(Cpu::parse("1.25"), Ok(Cpu(1250)));
        assert_eq!(Share::parse("99.9%"), Ok(Share(999_000)));
        assert_eq!(Span::parse("1m 30s"), Ok(Span(Duration::from_secs(90))));
    }

    #[test]
    fn everything_else_is_refused_with_what_is_allowed() {
        for text in ["", "M", "-1", "64X", "99999999999G"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        for text in ["", "%", "-5%", "1e3", "1.2345", ".5", "5000", "99999999999999999999"] {
            assert!(Cpu::parse(text).is_err(), "{text}");
        }
        for text in ["300K", "/s", "0/s", "fast"] {
            assert!(Rate::parse(text).is_err(), "{text}");
        }
        assert!(Share::parse("101%").is_err());
        assert_eq!(
            Span::parse("soon").unwrap_err(),
            "\"soon\" is not a duration such as \"10s\", \"500ms\", \"5m\", \"12h\" or \"7d\""
        );
    }
}
