//! The corpus, and seeded damage to it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use dugnad_fuzz::mutate::mutate;
use dugnad_fuzz::{Fate, frame, golden};
use dugnad_kernel::wire::{self, Dropped};

const MUTATIONS: u64 = 200_000;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

fn file(name: &str) -> String {
    name.to_lowercase().replace([' ', '.'], "-")
}

/// Frames that once were trouble elsewhere, or look like it.
fn damaged() -> Vec<(&'static str, Vec<u8>, Dropped)> {
    let (_, first) = golden().into_iter().next().unwrap();
    let mut version = first.clone();
    version[0] = wire::VERSION + 1;
    let mut long = first.clone();
    long.push(0);
    let length = u16::try_from(long.len() - 3).unwrap().to_le_bytes();
    long[1..3].copy_from_slice(&length);
    let short = first[..first.len() - 1].to_vec();
    vec![
        ("damaged-empty", vec![], Dropped::Truncated),
        ("damaged-header", vec![wire::VERSION, 5], Dropped::Truncated),
        ("damaged-version", version, Dropped::Version(wire::VERSION + 1)),
        ("damaged-too-large", vec![wire::VERSION, 0xff, 0xff], Dropped::TooLarge),
        ("damaged-trailing", long, Dropped::Malformed),
        ("damaged-truncated", short, Dropped::Truncated),
        // Items that claim to be 2^32 records in six bytes.
        (
            "damaged-length-lies",
            vec![wire::VERSION, 9, 0, 1, 0, 2, 2, 0xff, 0xff, 0xff, 0xff, 0x0f],
            Dropped::Malformed,
        ),
        ("damaged-variant", vec![wire::VERSION, 1, 0, 9], Dropped::Malformed),
        // A varint that never ends.
        (
            "damaged-varint",
            vec![wire::VERSION, 13, 0, 0, 0, 0, 4, 255, 255, 255, 255, 255, 255, 255, 255, 255],
            Dropped::Malformed,
        ),
    ]
}

/// `CORPUS=write` writes the files anew from the golden bytes.
#[test]
fn the_corpus_holds_every_golden_frame_and_its_damage() {
    let write = std::env::var_os("CORPUS").is_some_and(|what| what == "write");
    let golden = golden().into_iter().map(|(name, bytes)| (file(&name), bytes, Fate::Same));
    let damaged = damaged()
        .into_iter()
        .map(|(name, bytes, why)| (name.to_owned(), bytes, Fate::Dropped(why)));
    for (name, bytes, fate) in golden.chain(damaged) {
        let path = folder().join(&name);
        if write {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).ok().as_ref(), Some(&bytes), "{}", path.display());
        assert_eq!(frame(&bytes), fate, "{name}");
    }
}

#[test]
fn no_damage_to_a_frame_panics() {
    let mut corpus = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        corpus.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    corpus.sort();
    let mut fates: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..MUTATIONS {
        let mut rng = fastrand::Rng::with_seed(seed);
        let one = &corpus[rng.usize(0..corpus.len())];
        let other = &corpus[rng.usize(0..corpus.len())];
        let fate = frame(&mutate(&mut rng, one, other));
        *fates.entry(format!("{fate:?}").split('(').next().unwrap().to_owned()).or_default() += 1;
    }
    // The damage must reach all the way into the decoder to be worth anything.
    for fate in ["Same", "Other", "Dropped"] {
        let count = fates.get(fate).copied().unwrap_or(0);
        assert!(count > MUTATIONS / 1_000, "{fate}: {count} of {MUTATIONS}: {fates:?}");
    }
}
