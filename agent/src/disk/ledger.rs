//! What must be in the database: how many records, and a digest of all of them.
//!
//! sled notices some damage, but not all: a page that was overwritten may lose records without a
//! word, or bring an older version back. So every batch also writes the count and the digest of
//! what is there then, and the number of batches; and that number stands in a file beside the
//! database, written after the batch is on the medium and not synced itself. So the file is never
//! ahead of a database that is whole, costs no sync, and a database behind it has lost something.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use dugnad_kernel::Hash;
use serde::{Deserialize, Serialize};

use crate::identity::at;

/// The key it has in the database; no record of the layers begins so.
pub(super) const KEY: &[u8] = b"\0ledger";
const FILE: &str = "records.ledger";

/// What the last batch left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    batches: u64,
    records: u64,
    digest: u128,
}

/// The sums, and the part of each record in them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sums: Sums,
    parts: BTreeMap<Vec<u8>, u128>,
}

/// What a batch changes, to be counted when it is on the medium.
#[derive(Debug, Default)]
pub(super) struct Change {
    parts: BTreeMap<Vec<u8>, Option<u128>>,
}

impl Change {
    /// `stored` are the bytes as the database has them; `None` deletes.
    pub(super) fn add(&mut self, key: &[u8], stored: Option<&[u8]>) {
        self.parts.insert(key.to_vec(), stored.map(|stored| part(key, stored)));
    }
}

fn part(key: &[u8], stored: &[u8]) -> u128 {
    let length = (key.len() as u64).to_le_bytes();
    let hash = Hash::of(&[&length[..], key, stored].concat()).0;
    u128::from_le_bytes(std::array::from_fn(|place| hash[place]))
}

impl Ledger {
    /// Of what was read from the database, and what is wrong with it, if something is.
    pub(super) fn check(
        dir: &Path,
        stored: &[(Vec<u8>, Vec<u8>)],
        told: Option<&[u8]>,
    ) -> (Self, Option<String>) {
        let parts: BTreeMap<Vec<u8>, u128> =
            stored.iter().map(|(key, bytes)| (key.clone(), part(key, bytes))).collect();
        let told: Option<Sums> = told.and_then(|bytes| postcard::from_bytes(bytes).ok());
        let path = dir.join(FILE);
        // Without the file, or with a damaged one, the database is all there is.
        let beside = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let here = Sums {
            batches: told.map_or(0, |told| told.batches).max(beside.unwrap_or(0)),
            records: parts.len() as u64,
            digest: parts.values().fold(0, |sum, part| sum ^ part),
        };
        let wrong = match (told, beside) {
            (None, None) => None,
            (None, Some(batches)) => Some(format!("nothing is left of {batches} writes")),
            (Some(told), Some(batches)) if told.batches < batches => {
                Some(format!("the last {} writes are missing", batches - told.batches))
            }
            (Some(told), _) if told.records != here.records => {
                Some(format!("{} records are there, and {} were", here.records, told.records))
            }
            (Some(told), _) if told.digest != here.digest => {
                Some("some records are not as they were written".to_owned())
            }
            (Some(_), _) => None,
        };
        (Self { sums: here, parts }, wrong)
    }

    /// What the database has to say of itself after this change.
    pub(super) fn after(&self, change: &Change) -> io::Result<Vec<u8>> {
        postcard::to_allocvec(&self.sums_after(change)).map_err(io::Error::other)
    }

    fn sums_after(&self, change: &Change) -> Sums {
        let mut sums = self.sums;
        sums.batches += 1;
        for (key, new) in &change.parts {
            let old = self.parts.get(key);
            sums.digest ^= old.unwrap_or(&0) ^ new.unwrap_or(0);
            sums.records = sums.records + u64::from(new.is_some()) - u64::from(old.is_some());
        }
        sums
    }

    /// The change is on the medium.
    ///
    /// # Errors
    /// The file beside the database cannot be written.
    pub(super) fn count(&mut self, dir: &Path, change: Change) -> io::Result<()> {
        self.sums = self.sums_after(&change);
        for (key, new) in change.parts {
            match new {
                Some(part) => self.parts.insert(key, part),
                None => self.parts.remove(&key),
            };
        }
        let path = dir.join(FILE);
        fs::write(&path, format!("{}\n", self.sums.batches)).map_err(|e| at(&path, &e))
    }
}
