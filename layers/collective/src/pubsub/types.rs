//! Types of events: which attributes their events have, and what they descend from. Pure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::Key;
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::{Attribute, Kind, Value, number};
use serde::{Deserialize, Serialize};

/// Bytes of a type's name.
pub const NAME_MAX: usize = 48;
pub const PARENTS_MAX: usize = 4;
pub const ATTRIBUTES_MAX: usize = 16;
/// Bytes of the name of an attribute, and of a text or word.
const ATTRIBUTE_MAX: usize = 32;
const TEXT_MAX: usize = 256;
/// Types people may define.
pub const TYPES_MAX: usize = 64;
/// Generations a type may have above it.
const DEPTH_MAX: usize = 8;

/// A type of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventType {
    /// Lower-case letters, digits, `-` and `.`.
    pub name: String,
    /// Who subscribes to one of these gets the events of this type, too.
    pub parents: Vec<String>,
    /// Beside those of the parents; sorted by name.
    pub attributes: Vec<(String, Kind)>,
}

/// Types every community has. Their events are kept only while somebody wants them.
const BUILT_IN: [(&str, &str); 9] = [
    ("node", ""),
    ("node.join", "node"),
    ("node.leave", "node"),
    ("node.change", "node"),
    ("service", ""),
    ("service.deployed", "service"),
    ("service.changed", "service"),
    ("service.replica", "service"),
    ("service.failed", "service"),
];

/// What events about services say.
const SERVICE: [(&str, Kind); 4] =
    [("by", Kind::Text), ("replica", Kind::Count), ("service", Kind::Text), ("text", Kind::Text)];

#[must_use]
pub fn is_built_in(name: &str) -> bool {
    BUILT_IN.iter().any(|(known, _)| *known == name)
}

pub(super) fn built_in() -> impl Iterator<Item = EventType> {
    BUILT_IN.into_iter().map(|(name, parent)| {
        let mut attributes: Vec<(String, Kind)> = match name {
            "node" => NODE.iter().map(|a| (a.name.to_string(), a.kind)).collect(),
            "service" => SERVICE.iter().map(|(name, kind)| (name.to_string(), *kind)).collect(),
            _ => Vec::new(),
        };
        attributes.sort_by(|a, b| a.0.cmp(&b.0));
        let parents = Some(parent).filter(|parent| !parent.is_empty()).map(ToString::to_string);
        EventType { name: name.to_string(), parents: parents.into_iter().collect(), attributes }
    })
}

/// Where on the ring the events of a type meet who wants them.
#[must_use]
pub fn key_of(name: &str) -> Key {
    Key::of_name("events", name.as_bytes())
}

/// # Errors
/// What is wrong with the name, for people.
pub fn valid_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) || dots {
        return Err(
            "a type is named with 1 to 48 lower-case letters, digits, '-' and '.', such as \
                    sensor.temperature",
        );
    }
    Ok(())
}

impl EventType {
    /// Checks the bounds; types come from other nodes, too.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        valid_name(&self.name)?;
        self.parents.iter().try_for_each(|parent| valid_name(parent))?;
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        for (name, _) in &self.attributes {
            if name.is_empty() || name.len() > ATTRIBUTE_MAX || !name.bytes().all(plain) {
                return Err(format!(
                    "\"{name}\" is no name of an attribute: 1 to {ATTRIBUTE_MAX} lower-case \
                     letters, digits and '_'"
                ));
            }
        }
        if self.parents.len() > PARENTS_MAX {
            return Err(format!("a type has at most {PARENTS_MAX} parents"));
        }
        if self.attributes.len() > ATTRIBUTES_MAX && !is_built_in(&self.name) {
            return Err(format!("a type has at most {ATTRIBUTES_MAX} attributes of its own"));
        }
        if self.attributes.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err("an attribute stands there twice".to_string());
        }
        Ok(())
    }

    /// Whether this may take the place of `old`: it has the same parents, and all its attributes.
    pub(super) fn continues(&self, old: &Self) -> bool {
        self.parents == old.parents && old.attributes.iter().all(|a| self.attributes.contains(a))
    }
}

/// All types there are, as they were read at one moment.
#[derive(Clone, Debug, Default)]
pub struct Types {
    all: Vec<EventType>,
    /// Of the register that lists them.
    revision: u64,
}

impl Types {
    /// The built-in ones and these.
    pub(super) fn with(defined: Vec<EventType>, revision: u64) -> Self {
        let fit = defined.into_iter().filter(|t| t.check().is_ok() && !is_built_in(&t.name));
        Self { all: built_in().chain(fit.take(TYPES_MAX)).collect(), revision }
    }

    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    #[must_use]
    pub fn all(&self) -> &[EventType] {
        &self.all
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&EventType> {
        self.all.iter().find(|known| known.name == name)
    }

    /// Whether `name` is `ancestor` or descends from it.
    fn descends(&self, name: &str, ancestor: &str, depth: usize) -> bool {
        name == ancestor
            || (depth < DEPTH_MAX
                && self.get(name).is_some_and(|known| {
                    known.parents.iter().any(|parent| self.descends(parent, ancestor, depth + 1))
                }))
    }

    /// The type and all that descend from it, each once.
    #[must_use]
    pub fn below(&self, name: &str) -> Vec<String> {
        let below = self.all.iter().filter(|known| self.descends(&known.name, name, 0));
        below.map(|known| known.name.clone()).collect()
    }

    /// The attributes of a type, inherited ones included, by name.
    #[must_use]
    pub fn schema(&self, name: &str) -> Vec<(String, Kind)> {
        let mut all: Vec<(String, Kind)> = Vec::new();
        for known in self.all.iter().filter(|known| self.descends(name, &known.name, 0)) {
            for attribute in &known.attributes {
                if !all.iter().any(|(name, _)| *name == attribute.0) {
                    all.push(attribute.clone());
                }
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// What `names`, or all, there are; for errors.
    pub(super) fn unknown(&self, name: &str) -> String {
        let names: Vec<&str> = self.all.iter().map(|known| known.name.as_str()).collect();
        format!("there is no type {name}; there are {}", names.join(", "))
    }
}

/// As conditions want it.
#[must_use]
pub fn attributes(schema: &[(String, Kind)]) -> Vec<Attribute<'_>> {
    schema.iter().map(|(name, kind)| Attribute { name, kind: *kind }).collect()
}

/// The values of an event's attributes from what people typed, sorted by name.
///
/// # Errors
/// Which one is wrong, and what it should be.
pub(super) fn values(
    typed: &[(String, String)],
    schema: &[(String, Kind)],
) -> Result<Vec<(String, Value)>, String> {
    let mut all: Vec<(String, Value)> = Vec::new();
    for (name, text) in typed {
        let Some((_, kind)) = schema.iter().find(|(known, _)| known == name) else {
            let names: Vec<&str> = schema.iter().map(|(name, _)| name.as_str()).collect();
            return Err(format!("there is no attribute {name}; there are {}", names.join(", ")));
        };
        if all.iter().any(|(known, _)| known == name) {
            return Err(format!("{name} is said twice"));
        }
        if text.len() > TEXT_MAX {
            return Err(format!("{name} has more than {TEXT_MAX} bytes"));
        }
        let value = match kind {
            Kind::Text => Value::Text(text.clone()),
            Kind::Words => Value::Words(text.split_whitespace().map(ToString::to_string).collect()),
            kind => Value::Number(
                number(*kind, text)
                    .ok_or_else(|| format!("{name} is {}, not \"{text}\"", kind.what()))?,
            ),
        };
        all.push((name.clone(), value));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// Whether the values are of these kinds; events come from other nodes, too.
pub(super) fn conform(values: &[(String, Value)], schema: &[(String, Kind)]) -> bool {
    let right = |(name, value): &(String, Value)| {
        schema.iter().find(|(known, _)| known == name).is_some_and(|(_, kind)| match value {
            Value::Number(_) => !matches!(kind, Kind::Text | Kind::Words),
            Value::Text(text) => *kind == Kind::Text && text.len() <= TEXT_MAX,
            Value::Words(words) => {
                *kind == Kind::Words && words.iter().map(String::len).sum::<usize>() <= TEXT_MAX
            }
        })
    };
    values.windows(2).all(|pair| pair[0].0 < pair[1].0) && values.iter().all(right)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn type_of(name: &str, parents: &[&str], attributes: &[(&str, Kind)]) -> EventType {
        EventType {
            name: name.into(),
            parents: parents.iter().map(ToString::to_string).collect(),
            attributes: attributes.iter().map(|(name, kind)| (name.to_string(), *kind)).collect(),
        }
    }

    #[test]
    fn a_diamond_has_each_type_and_attribute_once() {
        let types = Types::with(
            Vec::from([
                type_of("a", &[], &[("room", Kind::Text)]),
                type_of("a.b", &["a"], &[("x", Kind::Count)]),
                type_of("a.c", &["a"], &[("y", Kind::Count)]),
                type_of("a.d", &["a.b", "a.c"], &[]),
            ]),
            0,
        );
        assert_eq!(types.below("a"), ["a", "a.b", "a.c", "a.d"]);
        assert_eq!(types.below("a.c"), ["a.c", "a.d"]);
        let schema = types.schema("a.d");
        let names: Vec<&str> = schema.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["room", "x", "y"]);
        assert!(types.schema("node.join").iter().any(|(name, _)| name == "memory"));
    }

    #[test]
    fn types_that_descend_from_each_other_end() {
        let types =
            Types::with(Vec::from([type_of("a", &["b"], &[]), type_of("b", &["a"], &[])]), 0);
        assert_eq!(types.below("a"), ["a", "b"]);
    }

    #[test]
    fn only_attributes_may_be_added() {
        let old = type_of("a", &[], &[("x", Kind::Count)]);
        assert!(type_of("a", &[], &[("w", Kind::Text), ("x", Kind::Count)]).continues(&old));
        assert!(!type_of("a", &[], &[("x", Kind::Text)]).continues(&old));
        assert!(!type_of("a", &["b"], &[("x", Kind::Count)]).continues(&old));
        for bad in [
            type_of("", &[], &[]),
            type_of("A", &[], &[]),
            type_of("a..b", &[], &[]),
            type_of("a", &[], &[("X", Kind::Text)]),
            type_of("a", &[], &[("x", Kind::Text), ("x", Kind::Text)]),
            type_of("a", &["a", "b", "c", "d", "e"], &[]),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(built_in().all(|known| known.check().is_ok()));
    }

    #[test]
    fn values_are_of_the_kind_the_type_says() {
        let schema = Vec::from([
            ("celsius".to_string(), Kind::Count),
            ("room".to_string(), Kind::Text),
            ("tags".to_string(), Kind::Words),
        ]);
        let typed = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
        };
        let good = values(&typed(&[("room", "attic"), ("celsius", "21")]), &schema).unwrap();
        assert_eq!(good[0], ("celsius".to_string(), Value::Number(21)));
        assert!(conform(&good, &schema));
        for (bad, says) in [
            (typed(&[("celsius", "warm")]), "whole number"),
            (typed(&[("kelvin", "1")]), "there is no attribute kelvin; there are celsius"),
            (typed(&[("room", "a"), ("room", "b")]), "twice"),
        ] {
            let told = values(&bad, &schema).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
        assert!(!conform(&[("room".into(), Value::Number(1))], &schema));
    }
}
