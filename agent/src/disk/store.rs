//! The database and the files beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dugnad_kernel::Hash;
use sled::Db;

use super::ledger::{self, Change, Ledger};
use super::slack::Slack;
use super::{INLINE_MAX, Record, Write};
use crate::identity::{at, write_synced};

const RECORDS: &str = "records";
const LARGE: &str = "records-large";
/// How often in a row opening did not come to an end.
const OPENING: &str = "records.opening";
/// A database that ended so many starts is taken as damaged.
const DEATHS_MAX: u32 = 2;
/// How many damaged databases are kept for a look.
const CORRUPT_KEPT: usize = 2;
/// A database that was just closed keeps its lock for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const CHECKSUM: usize = 4;
const INLINE: u8 = 0;
const FILE: u8 = 1;

pub(super) struct Store {
    dir: PathBuf,
    /// None after a failed write.
    db: Option<Db>,
    /// The file each key with a large value is in.
    large: BTreeMap<Vec<u8>, String>,
    ledger: Ledger,
}

/// What was found.
pub(super) struct Found {
    pub(super) store: Store,
    pub(super) records: Vec<Record>,
    /// What was dropped or repaired, for the user to read.
    pub(super) notes: Vec<String>,
    /// Something is missing, or not as it was written.
    pub(super) damaged: bool,
}

type Opened = (Db, Vec<(Vec<u8>, Vec<u8>)>, Option<String>);

impl Store {
    pub(super) fn open(dir: &Path) -> io::Result<Found> {
        let mut notes = Vec::new();
        let large_dir = dir.join(LARGE);
        fs::create_dir_all(&large_dir).map_err(|e| at(&large_dir, &e))?;
        let deaths = opening(dir)?;
        if deaths >= DEATHS_MAX {
            let why = format!("opening it ended the agent {deaths} times");
            notes.push(move_aside(dir, &why)?);
        }
        let (db, stored, damage) = match open_and_read(dir)? {
            Ok(opened) => opened,
            Err(why) => {
                notes.push(move_aside(dir, &why)?);
                open_and_read(dir)?.map_err(|why| io::Error::other(format!("{RECORDS}: {why}")))?
            }
        };
        let (told, stored): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|(key, _)| key == ledger::KEY);
        let told = told.first().map(|(_, bytes)| bytes.as_slice());
        let (ledger, missing) = Ledger::check(dir, &stored, told);
        let mut store = Self { dir: dir.to_owned(), db: Some(db), large: BTreeMap::new(), ledger };
        let mut damaged = missing.is_some() || damage.is_some() || !notes.is_empty();
        let before = notes.len();
        let records = store.read(stored, &mut notes)?;
        damaged |= notes.len() > before;
        if let Some(why) = damage {
            store.ledger = Ledger::default();
            store.salvage(&records, &why, &mut notes)?;
        }
        if let Some(missing) = missing {
            notes.push(format!(
                "the records are damaged: {missing}; other nodes fill in what they have, and what \
                 ran here is started when they have said what it is now"
            ));
            // Said once: from now on this is what must be there.
            store.apply(sled::Batch::default(), Change::default())?;
        }
        store.sweep(&mut notes)?;
        let opening = dir.join(OPENING);
        fs::remove_file(&opening).map_err(|e| at(&opening, &e))?;
        Ok(Found { store, records, notes, damaged })
    }

    /// Takes the records out of what is stored, and drops damaged ones.
    fn read(&mut self, stored: Vec<Record>, notes: &mut Vec<String>) -> io::Result<Vec<Record>> {
        let mut records = Vec::with_capacity(stored.len());
        let (mut damaged, mut change) = (sled::Batch::default(), Change::default());
        let before = notes.len();
        for (key, bytes) in stored {
            match self.decode(&key, &bytes) {
                Ok(value) => records.push((key, value)),
                Err(why) => {
                    damaged.remove(key.as_slice());
                    change.add(&key, None);
                    notes.push(format!("dropped record {}: {why}", key.escape_ascii()));
                }
            }
        }
        if notes.len() > before {
            self.apply(damaged, change)?;
        }
        Ok(records)
    }

    fn decode(&mut self, key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, String> {
        let (sum, rest) = bytes.split_at_checked(CHECKSUM).ok_or("too short")?;
        if sum != checksum(key, rest) {
            return Err("its checksum is wrong".to_owned());
        }
        match rest {
            [INLINE, value @ ..] => Ok(value.to_vec()),
            [FILE, name @ ..] => {
                let name = String::from_utf8_lossy(name).into_owned();
                let path = self.dir.join(LARGE).join(&name);
                let value = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                if file_name(key, &value) != name {
                    return Err(format!("{} is damaged", path.display()));
                }
                self.large.insert(key.to_vec(), name);
                Ok(value)
            }
            _ => Err("it is of no known kind".to_owned()),
        }
    }

    /// Moves a database that could be read in part only aside, and writes that part anew.
    fn salvage(
        &mut self,
        records: &[Record],
        why: &str,
        notes: &mut Vec<String>,
    ) -> io::Result<()> {
        self.db = None;
        notes.push(move_aside(&self.dir, why)?);
        notes.push(format!("{} records could still be read and are kept", records.len()));
        let writes: Vec<Write> =
            records.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        for some in writes.chunks(64) {
            self.commit(some.iter())?;
        }
        Ok(())
    }

    /// Removes files no record names.
    fn sweep(&self, notes: &mut Vec<String>) -> io::Result<()> {
        let dir = self.dir.join(LARGE);
        let named: BTreeSet<&str> = self.large.values().map(String::as_str).collect();
        for entry in fs::read_dir(&dir).map_err(|e| at(&dir, &e))? {
            let entry = entry.map_err(|e| at(&dir, &e))?;
            if !entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
                if let Err(error) = fs::remove_file(entry.path()) {
                    notes.push(format!(
                        "left over and not removed: {}: {error}",
                        entry.path().display()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Writes all of it; on return it is on the medium.
    ///
    /// # Errors
    /// Whatever went wrong, with the path. Then the database is opened anew by the next commit.
    pub(super) fn commit<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        let mut change = Change::default();
        let mut large = self.large.clone();
        let mut old = Vec::new();
        let mut any = false;
        for (key, value) in writes {
            any = true;
            old.extend(large.remove(key));
            let stored = match value {
                None => None,
                Some(value) if value.len() <= INLINE_MAX => Some(encode(key, INLINE, value)),
                Some(value) => {
                    let name = file_name(key, value);
                    write_synced(&self.dir.join(LARGE), &name, value)?;
                    let stored = encode(key, FILE, name.as_bytes());
                    large.insert(key.clone(), name);
                    Some(stored)
                }
            };
            change.add(key, stored.as_deref());
            match stored {
                None => batch.remove(key.as_slice()),
                Some(stored) => batch.insert(key.as_slice(), stored),
            }
        }
        if !any {
            return Ok(());
        }
        self.apply(batch, change)?;
        self.large = large;
        for name in old {
            if !self.large.values().any(|current| *current == name) {
                let path = self.dir.join(LARGE).join(name);
                if let Err(error) = fs::remove_file(&path) {
                    // It is no record any more; the next start tries again.
                    log::debug!("{}: {error}", path.display());
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, mut batch: sled::Batch, change: Change) -> io::Result<()> {
        batch.insert(ledger::KEY, self.ledger.after(&change)?);
        let path = self.dir.join(RECORDS);
        let db = match self.db.take() {
            Some(db) => db,
            None => open_db(&path)?.map_err(|why| {
                io::Error::other(format!(
                    "{}: {why}; restart the agent to repair it",
                    path.display()
                ))
            })?,
        };
        let written = catch_unwind(AssertUnwindSafe(|| {
            let _slack = Slack::set();
            db.apply_batch(batch)?;
            db.flush().map(|_| ())
        }));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(storage_error(&path, &error)),
            Err(_) => return Err(io::Error::other(format!("{}: sled gave up", path.display()))),
        }
        let file = path.join("db");
        File::open(&file).and_then(|file| file.sync_all()).map_err(|e| at(&file, &e))?;
        // Only now: after an error it stays closed.
        self.db = Some(db);
        self.ledger.count(&self.dir, change)
    }
}

fn storage_error(path: &Path, error: &sled::Error) -> io::Error {
    let kind = match error {
        sled::Error::Io(error) => error.kind(),
        _ => io::ErrorKind::Other,
    };
    let advice = match kind {
        io::ErrorKind::StorageFull => "; free some space or lower [limits] disk",
        io::ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: check the medium",
        _ => "",
    };
    io::Error::new(kind, format!("{}: {error}{advice}", path.display()))
}

fn checksum(key: &[u8], rest: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(rest);
    let mut out = [0; CHECKSUM];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    out
}

fn encode(key: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; CHECKSUM];
    out.push(kind);
    out.extend_from_slice(content);
    let sum = checksum(key, &out[CHECKSUM..]);
    out[..CHECKSUM].copy_from_slice(&sum);
    out
}

fn file_name(key: &[u8], value: &[u8]) -> String {
    let length = (key.len() as u64).to_le_bytes();
    Hash::of(&[&length[..], key, value].concat()).to_string()
}

/// Notes that opening begins; how often it began and did not end. A damaged database may make
/// sled panic, which ends the agent: without the note, at every start.
fn opening(dir: &Path) -> io::Result<u32> {
    let path = dir.join(OPENING);
    // Unreadable counts as none: the worst is one more try.
    let deaths = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let deaths: u32 = deaths.unwrap_or(0);
    fs::write(&path, format!("{}\n", deaths.saturating_add(1))).map_err(|e| at(&path, &e))?;
    Ok(deaths)
}

/// Opens the database and reads it. The inner error says how it is damaged; damage found while
/// reading comes with what could be read before.
fn open_and_read(dir: &Path) -> io::Result<Result<Opened, String>> {
    let path = dir.join(RECORDS);
    let db = match open_db(&path)? {
        Ok(db) => db,
        Err(why) => return Ok(Err(why)),
    };
    let mut stored = Vec::new();
    let read = catch_unwind(AssertUnwindSafe(|| {
        for pair in &*db {
            let (key, value) = pair?;
            stored.push((key.to_vec(), value.to_vec()));
        }
        Ok::<_, sled::Error>(())
    }));
    let damage = match read {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("sled could not read it".to_owned()),
    };
    // The file itself was created just now, perhaps.
    File::open(&path).and_then(|dir| dir.sync_all()).map_err(|e| at(&path, &e))?;
    Ok(Ok((db, stored, damage)))
}

/// A snapshot of the database that a power cut left half written. sled takes it for damage of the
/// whole, but it is only a copy that was not finished: the log has everything.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(path, &error)),
    };
    for entry in entries {
        let file = entry.map_err(|e| at(path, &e))?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            log::info!("{}: left by a power cut, removed", file.display());
            fs::remove_file(&file).map_err(|e| at(&file, &e))?;
        }
    }
    Ok(())
}

fn open_db(path: &Path) -> io::Result<Result<Db, String>> {
    remove_unfinished(path)?;
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(1 << 20)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(5_000));
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        let open = || {
            let _slack = Slack::set();
            config.open()
        };
        let Ok(opened) = catch_unwind(AssertUnwindSafe(open)) else {
            return Ok(Err("sled could not open it".to_owned()));
        };
        match opened {
            Ok(db) => return Ok(Ok(db)),
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                if Instant::now() >= until {
                    let text = format!(
                        "{}: another process has the records open; stop it first",
                        path.display()
                    );
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                // Nothing tells when the threads of a database closed just now let go of it.
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(sled::Error::Io(error)) if is_environment(&error) => return Err(at(path, &error)),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
}

/// Whether the machine is to blame and not the content.
fn is_environment(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::StorageFull
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::OutOfMemory
            | io::ErrorKind::NotADirectory
    )
}

/// Puts a damaged database out of the way; says so.
fn move_aside(dir: &Path, why: &str) -> io::Result<String> {
    let prefix = format!("{RECORDS}.corrupt-");
    let mut kept: Vec<u32> = fs::read_dir(dir)
        .map_err(|e| at(dir, &e))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok())
        .collect();
    kept.sort_unstable();
    let next = kept.last().map_or(1, |last| last.saturating_add(1));
    while kept.len() >= CORRUPT_KEPT {
        let oldest = dir.join(format!("{prefix}{}", kept.remove(0)));
        fs::remove_dir_all(&oldest).map_err(|e| at(&oldest, &e))?;
    }
    let (from, to) = (dir.join(RECORDS), dir.join(format!("{prefix}{next}")));
    match fs::rename(&from, &to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&from, &error)),
        _ => {}
    }
    Ok(format!(
        "the records were damaged ({why}); they are in {} now, and other nodes fill in what is \
         missing",
        to.display()
    ))
}
