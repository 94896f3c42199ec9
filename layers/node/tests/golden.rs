//! The bytes of every message and of everything stored, as version 6 of the wire has them.
//!
//! A line of `golden.txt` that changes breaks communities of mixed versions and the disks of
//! members: raise `wire::VERSION` or keep the old form readable. New variants go to the end of
//! their enum and need a sample here, else this does not compile or fails.
//! `GOLDEN=write cargo test -p dugnad-node --test golden` writes the file anew.

#![expect(clippy::unwrap_used, reason = "tests")]

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fmt::Write as _;

use dugnad_kernel::wire;
use dugnad_node::Msg;
use serde::Serialize;
use serde::de::DeserializeOwned;

use samples::{Variants, messages, stored};

/// Named lines of hexadecimal digits.
#[derive(Default)]
struct Lines {
    lines: BTreeMap<String, String>,
    seen: BTreeSet<String>,
}

impl Lines {
    fn add<T>(&mut self, name: &str, value: &T, bytes: &[u8], back: &T)
    where
        T: PartialEq + Debug,
    {
        assert_eq!(value, back, "{name} does not come back as it went");
        let mut hex = String::new();
        bytes.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
        assert_eq!(self.lines.insert(name.to_owned(), hex), None, "{name} is there twice");
    }

    fn frame(&mut self, message: &Msg) {
        let path = message.path();
        let name = format!("msg {}", path.join(" "));
        let bytes = wire::encode(message).unwrap();
        let back: Msg = wire::read_frame(&mut bytes.as_slice()).unwrap();
        self.add(&name, message, &bytes, &back);
        self.seen.extend(path);
    }

    fn stored<T>(&mut self, name: &str, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let bytes = postcard::to_allocvec(value).unwrap();
        let back: T = postcard::from_bytes(&bytes).unwrap();
        self.add(&format!("stored {name}"), value, &bytes, &back);
    }
}

#[test]
fn the_bytes_of_version_six_stay_as_they_are() {
    assert_eq!(wire::VERSION, 6, "a new version needs a golden file of its own");
    let mut lines = Lines::default();
    messages().iter().for_each(|message| lines.frame(message));
    stored(&mut lines);
    let missing: Vec<String> =
        samples::all_variants().into_iter().filter(|name| !lines.seen.contains(name)).collect();
    assert!(missing.is_empty(), "no sample of {missing:?}");
    let mut text = String::new();
    for (name, hex) in &lines.lines {
        writeln!(text, "{name} = {hex}").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var_os("GOLDEN").is_some_and(|what| what == "write") {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    for (old, new) in kept.lines().zip(text.lines()) {
        assert_eq!(old, new, "the bytes of a message changed");
    }
    assert_eq!(kept.lines().count(), text.lines().count(), "lines came or went");
}

/// ARCHITECTURE.md says of every kind of message what ends it, and of no other.
#[test]
fn every_message_has_a_stated_end() {
    let text = include_str!("../../PROTOCOL.md");
    let table = text.split("## 13. Every message").nth(1).unwrap();
    let rows = table.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    let mut told = BTreeSet::new();
    for row in rows {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let ["", kinds, _, answer, end, ""] = columns[..] else { panic!("{row}: four columns") };
        assert!(answer == "none" || !end.is_empty(), "{kinds} is answered, and nothing ends it");
        for kind in kinds.split('`').skip(1).step_by(2) {
            assert!(told.insert(kind.to_owned()), "{kind} stands in two rows");
        }
    }
    let sent: BTreeSet<String> = messages().iter().map(|msg| msg.kind().to_owned()).collect();
    let missing: Vec<&String> = sent.symmetric_difference(&told).collect();
    assert!(missing.is_empty(), "in the code or in the table, not in both: {missing:?}");
}
