#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use smol::channel::Receiver;

use super::*;

struct Opened {
    disk: Disk,
    events: Receiver<DiskEvent>,
    records: Vec<Record>,
    notes: Vec<String>,
    damaged: bool,
}

fn open(dir: &Path) -> Opened {
    let (sender, events) = smol::channel::bounded(1000);
    let (disk, records, notes, damaged) = Disk::open(dir, sender).unwrap();
    Opened { disk, events, records, notes, damaged }
}

impl Opened {
    fn event(&self) -> DiskEvent {
        self.events.recv_blocking().unwrap()
    }

    fn write(&self, token: u64, key: &str, value: &[u8]) {
        self.disk.persist(token, vec![(key.into(), Some(value.into()))]);
        assert_eq!(self.event(), DiskEvent::Persisted(token));
    }

    fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.records.iter().find(|(known, _)| known == key.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }
}

fn large_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("records-large")).unwrap().count()
}

#[test]
fn records_come_back_and_deleted_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    assert!(disk.records.is_empty() && disk.notes.is_empty());
    for n in 0..100u64 {
        disk.disk.persist(n, vec![(n.to_be_bytes().into(), Some(vec![1; 100]))]);
    }
    for n in 0..100 {
        assert_eq!(disk.event(), DiskEvent::Persisted(n), "in order");
    }
    disk.write(100, "a", b"first");
    disk.write(101, "a", b"second");
    disk.write(102, "empty", b"");
    let gone = (0..50u64).map(|n| (n.to_be_bytes().into(), None)).collect();
    disk.disk.persist(103, gone);
    assert_eq!(disk.event(), DiskEvent::Persisted(103));
    drop(disk);
    let disk = open(dir.path());
    assert!(disk.notes.is_empty(), "{:?}", disk.notes);
    assert_eq!(disk.records.len(), 52);
    assert_eq!((disk.get("a"), disk.get("empty")), (Some(&b"second"[..]), Some(&b""[..])));
}

#[test]
fn large_values_are_files_and_go_when_nobody_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let large = vec![7; VALUE_MAX];
    disk.write(1, "large", &large);
    disk.write(2, "same", &large);
    disk.write(3, "edge", &large[..INLINE_MAX]);
    assert_eq!(large_files(dir.path()), 2);
    disk.write(4, "same", &large[1..]);
    disk.write(5, "same", &large);
    disk.write(6, "same", &large);
    assert_eq!(large_files(dir.path()), 2);
    disk.disk.persist(7, vec![(b"same".to_vec(), None)]);
    assert_eq!(disk.event(), DiskEvent::Persisted(7));
    assert_eq!(large_files(dir.path()), 1);
    fs::write(dir.path().join("records-large/left-over"), b"x").unwrap();
    drop(disk);
    let disk = open(dir.path());
    assert_eq!(large_files(dir.path()), 1);
    assert!(disk.get("large") == Some(&large) && disk.get("edge") == Some(&large[..INLINE_MAX]));
}

#[test]
fn what_cannot_be_stored_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    disk.disk.persist(1, vec![(b"a".to_vec(), Some(vec![0; VALUE_MAX + 1]))]);
    disk.disk.persist(2, vec![(Vec::new(), Some(vec![0]))]);
    disk.disk.persist(3, vec![(b"good".to_vec(), Some(vec![0]))]);
    disk.disk.persist(4, Vec::new());
    assert!(matches!(disk.event(), DiskEvent::Failed { token: 1, .. }));
    assert!(matches!(disk.event(), DiskEvent::Failed { token: 2, .. }));
    assert_eq!(disk.event(), DiskEvent::Persisted(3));
    assert_eq!(disk.event(), DiskEvent::Persisted(4));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of the directory while it is open is what a kill would leave.
#[test]
fn acknowledged_records_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for round in 0..5u64 {
        for n in 0..20u64 {
            let value = vec![n as u8; 50 + 300 * n as usize];
            disk.write(round * 20 + n, &format!("{round}/{n}"), &value);
        }
        let killed = tempfile::tempdir().unwrap();
        copy(dir.path(), killed.path());
        let after = open(killed.path());
        assert!(after.notes.is_empty(), "{:?}", after.notes);
        assert_eq!(after.records.len() as u64, (round + 1) * 20);
        for n in 0..20u64 {
            assert_eq!(after.get(&format!("{round}/{n}")).unwrap().len(), 50 + 300 * n as usize);
        }
    }
}

#[test]
fn damaged_databases_are_moved_aside_and_two_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let disk = open(dir.path());
        disk.write(1, "a", b"x");
        drop(disk);
        for entry in fs::read_dir(dir.path().join("records")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let length = fs::metadata(&path).unwrap().len() as usize;
                fs::write(path, vec![0x5a; length]).unwrap();
            }
        }
        let disk = open(dir.path());
        assert!(disk.records.is_empty());
        let moved = dir.path().join(format!("records.corrupt-{round}"));
        assert!(moved.exists(), "{:?}", disk.notes);
        assert!(disk.notes[0].contains(moved.to_str().unwrap()), "{:?}", disk.notes);
        disk.write(2, "b", b"works");
    }
    assert!(!dir.path().join("records.corrupt-1").exists());
    assert!(dir.path().join("records.corrupt-2").exists());
}

#[test]
fn a_database_that_ends_the_agent_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).write(1, "a", b"x");
    fs::write(dir.path().join("records.opening"), "1\n").unwrap();
    let disk = open(dir.path());
    assert_eq!(disk.get("a"), Some(&b"x"[..]), "once may be a power cut");
    drop(disk);
    fs::write(dir.path().join("records.opening"), "2\n").unwrap();
    let disk = open(dir.path());
    assert!(disk.records.is_empty() && disk.notes[0].contains("2 times"), "{:?}", disk.notes);
}

/// The database itself, as soon as the threads of the one closed just now let go of it.
fn behind_its_back(path: &Path) -> sled::Db {
    loop {
        if let Ok(db) = sled::Config::new().path(path).open() {
            return db;
        }
    }
}

#[test]
fn a_flipped_bit_drops_that_record_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    disk.write(1, "good", b"kept");
    disk.write(2, "large", &[1; 10_000]);
    disk.write(3, "large too", &[2; 10_000]);
    drop(disk);
    // sled has checksums of its own, so the damage is put in through sled.
    let path = dir.path().join("records");
    let db = behind_its_back(&path);
    let mut bytes = db.get("good").unwrap().unwrap().to_vec();
    db.insert("also good", bytes.clone()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    db.insert("bad", bytes).unwrap();
    db.flush().unwrap();
    drop(db);
    let file = |byte| {
        let files = fs::read_dir(dir.path().join("records-large")).unwrap();
        let mut paths = files.map(|entry| -> PathBuf { entry.unwrap().path() });
        paths.find(|path| fs::read(path).unwrap()[0] == byte).unwrap()
    };
    let mut content = fs::read(file(1)).unwrap();
    content[5000] ^= 0x80;
    fs::write(file(1), content).unwrap();
    let disk = open(dir.path());
    assert_eq!(disk.get("good"), Some(&b"kept"[..]));
    assert_eq!(disk.get("large too").unwrap().len(), 10_000);
    assert_eq!(disk.records.len(), 2);
    // One for each, and one that there were others.
    assert_eq!(disk.notes.len(), 4, "{:?}", disk.notes);
    assert!(disk.damaged && disk.notes[3].contains("5 records are there, and 3 were"));
    assert_eq!(large_files(dir.path()), 1);
    drop(disk);
    assert!(open(dir.path()).notes.is_empty(), "said once");
}

#[test]
fn a_queue_that_grows_too_long_fails_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    // The store is busy, so that nothing is taken meanwhile except the first.
    let busy = lock(&disk.disk.0.0.store);
    for token in 0..200 {
        disk.disk.persist(token, vec![(b"k".to_vec(), Some(vec![0; VALUE_MAX]))]);
    }
    drop(busy);
    let events: Vec<DiskEvent> = (0..200).map(|_| disk.event()).collect();
    let failed = events.iter().filter(|event| matches!(event, DiskEvent::Failed { .. })).count();
    assert!((60..80).contains(&failed), "{failed}");
}

#[test]
fn a_full_disk_fails_writes_and_the_next_ones_work_again() {
    use nix::mount::{MsFlags, mount, umount};
    let dir = tempfile::tempdir().unwrap();
    let flags = MsFlags::empty();
    if let Err(errno) = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=3m")) {
        eprintln!("SKIPPED: a full disk needs root to mount a small tmpfs ({errno})");
        return;
    }
    let disk = open(dir.path());
    disk.write(0, "first", b"kept");
    let filler = dir.path().join("filler");
    let mut size = 3 << 20;
    while size > 0 {
        use std::io::Write as _;
        let file = fs::OpenOptions::new().create(true).append(true).open(&filler).unwrap();
        if (&file).write_all(&vec![1; size]).is_err() {
            size /= 2;
        }
    }
    let mut token = 1;
    let error = loop {
        disk.disk.persist(token, vec![(token.to_be_bytes().into(), Some(vec![3; 60_000]))]);
        match disk.event() {
            DiskEvent::Persisted(_) => token += 1,
            DiskEvent::Failed { error, .. } => break error,
        }
        assert!(token < 200, "the disk never fills up");
    };
    let small = loop {
        disk.disk.persist(token, vec![(token.to_be_bytes().into(), Some(vec![3; 4_000]))]);
        match disk.event() {
            DiskEvent::Persisted(_) => token += 1,
            DiskEvent::Failed { error, .. } => break error,
        }
        assert!(token < 20_000, "the disk never fills up");
    };
    eprintln!("large: {error}\nsmall: {small}");
    fs::remove_file(filler).unwrap();
    disk.write(50_000, "after", b"works");
    drop(disk);
    let disk = open(dir.path());
    assert!(disk.notes.is_empty(), "{:?}", disk.notes);
    assert_eq!(disk.get("first"), Some(&b"kept"[..]));
    assert_eq!(disk.get("after"), Some(&b"works"[..]));
    drop(disk);
    // Best effort: sled's threads may still hold the file for a moment.
    let _: nix::Result<()> = umount(dir.path())
        .or_else(|_| nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH));
}

/// What a power cut leaves of a snapshot is no damage.
#[test]
fn an_unfinished_snapshot_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    disk.write(1, "a", b"first");
    drop(disk);
    let left = dir.path().join("records/snap.0000000000000123.generating");
    fs::write(&left, b"half").unwrap();
    let disk = open(dir.path());
    assert_eq!(disk.get("a"), Some(&b"first"[..]));
    assert!(disk.notes.is_empty() && !left.exists(), "{:?}", disk.notes);
}

fn copy_files(from: &Path, to: &Path) {
    // It may not be there yet.
    _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// Bytes of the database are overwritten somewhere: whatever comes back that is not what was
/// written is told.
#[test]
fn overwritten_bytes_never_go_unnoticed() {
    let whole = tempfile::tempdir().unwrap();
    let disk = open(whole.path());
    for round in 0..3u8 {
        for key in 0..40u64 {
            disk.write(key, &format!("key-{key}"), &[round; 200]);
        }
    }
    drop(disk);
    let good = open(whole.path());
    let records = good.records.clone();
    assert!(!good.damaged && records.len() == 40);
    drop(good);
    let mut rng = fastrand::Rng::with_seed(15);
    let mut changed = 0;
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        copy_files(whole.path(), dir.path());
        copy_files(&whole.path().join("records"), &dir.path().join("records"));
        let path = dir.path().join("records/db");
        let mut bytes = fs::read(&path).unwrap();
        // Most of the file is empty: where something is written.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        let count = if round % 2 == 0 { 64 } else { 4 };
        let at = rng.usize(0..used.saturating_sub(count).max(1));
        bytes[at..at + count].fill_with(|| rng.u8(..));
        fs::write(&path, bytes).unwrap();
        let disk = open(dir.path());
        if disk.records != records {
            changed += 1;
            let (is, was) = (disk.records.len(), records.len());
            assert!(disk.damaged, "round {round}, byte {at}: {is} of {was}, without a word");
            assert!(!disk.notes.is_empty(), "round {round}");
        }
    }
    assert!(changed > 5, "{changed} of 60 changed anything: that tests nothing");
}

/// Damage that sled does not notice: records that went without a word, and an older version of the
/// whole that came back.
#[test]
fn what_is_missing_or_old_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    assert!(!disk.damaged);
    for (token, key) in ["a", "b", "c"].into_iter().enumerate() {
        disk.write(token as u64, key, b"first");
    }
    drop(disk);
    let disk = open(dir.path());
    assert!(!disk.damaged && disk.notes.is_empty(), "{:?}", disk.notes);
    drop(disk);
    let (records, older) = (dir.path().join("records"), dir.path().join("older"));
    copy_files(&records, &older);
    let disk = open(dir.path());
    disk.write(9, "a", b"second");
    drop(disk);
    // The disk brings back what it held before the last write.
    copy_files(&older, &records);
    let disk = open(dir.path());
    assert!(disk.damaged, "an old version went unnoticed");
    assert!(
        disk.notes.iter().any(|note| note.contains("1 writes are missing")),
        "{:?}",
        disk.notes
    );
    assert_eq!(disk.get("a"), Some(&b"first"[..]));
    drop(disk);
    // Said once.
    let disk = open(dir.path());
    assert!(!disk.damaged && disk.notes.is_empty(), "{:?}", disk.notes);
    drop(disk);
    // Records vanish, and sled does not know that they were there.
    let db = behind_its_back(&records);
    db.remove("b").unwrap();
    db.flush().unwrap();
    drop(db);
    let disk = open(dir.path());
    assert!(disk.damaged, "a lost record went unnoticed");
    assert!(disk.notes[0].contains("2 records are there, and 3 were"), "{:?}", disk.notes);
}

/// Whoever ends waits for what it said last: it is in the files then, whatever was told of it.
#[test]
fn what_was_queued_last_is_there_after_finish() {
    for round in 0..20_u64 {
        let (dir, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (events, _told) = smol::channel::unbounded();
        let (disk, ..) = Disk::open(dir.path(), events.clone()).unwrap();
        for number in 0..=round {
            disk.persist(number, vec![(vec![1, number as u8], Some(vec![7; 100]))]);
        }
        assert!(disk.finish(Duration::from_secs(60)));
        copy(dir.path(), copied.path());
        let (_disk, records, notes, damaged) = Disk::open(copied.path(), events).unwrap();
        assert!(!damaged, "{notes:?}");
        assert_eq!(records.len() as u64, round + 1);
    }
}
