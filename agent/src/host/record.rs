//! What is remembered of a running replica, so that the next agent recognises it; and the folder
//! it lives in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dugnad_platform::process::Process;
use dugnad_platform::{explain, read_number, weigh};
use dugnad_resource::execute::{ReplicaId, Run};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// One running replica, as `run` in its folder (postcard).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u8,
    /// Process ids mean nothing after a boot.
    boot: String,
    pub(super) run: Run,
    process: (i32, u64),
    keeper: Option<(i32, u64)>,
    pub(super) port: Option<u16>,
    pub(super) user: Option<u32>,
    pub(super) groups: Vec<PathBuf>,
}

fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

const fn process_of((pid, start): (i32, u64)) -> Process {
    Process { pid, start }
}

impl Record {
    pub(super) fn new(run: Run, process: Process, keeper: Option<Process>) -> Self {
        Self {
            version: VERSION,
            boot: boot(),
            run,
            process: (process.pid, process.start),
            keeper: keeper.map(|keeper| (keeper.pid, keeper.start)),
            port: None,
            user: None,
            groups: Vec::new(),
        }
    }

    pub(super) fn process(&self) -> Process {
        process_of(self.process)
    }

    pub(super) fn keeper(&self) -> Option<Process> {
        self.keeper.map(process_of)
    }

    /// Whether its process still runs.
    pub(super) fn is_alive(&self) -> bool {
        self.boot == boot() && self.process().is_alive()
    }
}

/// `D/services/NAME.NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn of(services: &Path, name: &str, id: ReplicaId) -> Self {
        Self(services.join(format!("{name}.{}", id.number)))
    }

    /// `NAME.NUMBER`.
    pub(super) fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The replica it is for.
    pub(super) fn id(&self) -> Option<ReplicaId> {
        super::replica_of(self.name())
    }

    pub(super) fn package(&self) -> PathBuf {
        self.0.join("package")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// What it sees in the place of `/etc/hosts`.
    pub(super) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// Scratch space where the box has no private /tmp.
    pub(super) fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }

    fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Says that its state outlives the replica ([`super::Host::forget_unordered`]).
    fn kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    /// Makes it. Others may pass through (services have users of their own), not look.
    pub(super) fn make(&self) -> io::Result<()> {
        make_dir(&self.0, 0o711)
    }

    pub(super) fn load(&self) -> Option<Record> {
        let bytes = fs::read(self.run()).ok()?;
        match postcard::from_bytes::<Record>(&bytes) {
            Ok(record) if record.version == VERSION => Some(record),
            Ok(_) | Err(_) => {
                log::warn!("{} is of another version or damaged: ignored", self.run().display());
                None
            }
        }
    }

    /// Writes the record; a crash leaves this one or the one before.
    pub(super) fn save(&self, record: &Record) -> io::Result<()> {
        self.put("run", &postcard::to_allocvec(record).map_err(io::Error::other)?)
    }

    /// Writes a small file aside, syncs it, and puts it in place.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (aside, path) = (self.0.join(format!("{name}.new")), self.0.join(name));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&aside)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, &path))
            .and_then(|()| File::open(&self.0)?.sync_all())
            .map_err(|error| explain(&error, &format!("cannot write {}", path.display())))
    }

    /// Nothing runs here any more.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove(&self.run())
    }

    pub(super) fn set_kept(&self, kept: bool) -> io::Result<()> {
        let path = self.kept();
        if !kept {
            return remove(&path);
        }
        // Nothing writes there any more, so this is counted once.
        let bytes = weigh(&self.state()).map_or_else(|_| String::new(), |bytes| bytes.to_string());
        fs::write(&path, bytes)
            .map_err(|error| explain(&error, &format!("cannot write {}", path.display())))
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept().exists()
    }

    /// When its replica stopped, if its state was kept.
    pub(super) fn kept_since(&self) -> Option<SystemTime> {
        fs::metadata(self.kept()).and_then(|marker| marker.modified()).ok()
    }

    /// Bytes of its state, if it was kept and could be counted.
    pub(super) fn kept_bytes(&self) -> Option<u64> {
        read_number(&self.kept())
    }

    fn turn_path(&self) -> PathBuf {
        self.0.join("turn")
    }

    /// The turn in which its state is the newest there is (`state.rs`).
    pub(super) fn turn(&self) -> Option<u64> {
        read_number(&self.turn_path())
    }

    pub(super) fn set_turn(&self, turn: Option<u64>) -> io::Result<()> {
        match turn {
            None => remove(&self.turn_path()),
            Some(turn) => self.put("turn", turn.to_string().as_bytes()),
        }
    }

    /// With which its replica held its lease last (`lease.rs`).
    pub(super) fn fence(&self) -> Option<u64> {
        read_number(&self.0.join("fence"))
    }

    pub(super) fn set_fence(&self, fence: u64) -> io::Result<()> {
        self.make()?;
        self.put("fence", fence.to_string().as_bytes())
    }

    /// The turn of another folder, whose state is this one's from now on.
    pub(super) fn take_turn(&self, from: &Self) -> io::Result<()> {
        match fs::rename(from.turn_path(), self.turn_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Deletes it; what is worth keeping of its state waits in the trash.
    pub(super) fn delete(&self, keeps_state: bool) -> io::Result<()> {
        if keeps_state {
            self.set_state_aside()?;
        }
        remove_all(&self.0)
    }

    /// Moves its state to the trash, if it has any.
    pub(super) fn set_state_aside(&self) -> io::Result<()> {
        if fs::read_dir(self.state()).is_ok_and(|mut state| state.next().is_some()) {
            let trash = trash(self.0.parent().unwrap_or(&self.0));
            make_dir(&trash, 0o700)?;
            let secs = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let secs = secs.map_or(0, |since| since.as_secs());
            let to = trash.join(format!("{}.{secs}", self.name()));
            fs::rename(self.state(), &to)
                .map_err(|error| explain(&error, &format!("cannot move to {}", to.display())))?;
        }
        Ok(())
    }
}

/// How long deleted state stays in `D/trash`: whoever can have a service removed must not be able
/// to destroy what it has written.
const IN_TRASH: Duration = Duration::from_secs(24 * 3600);

/// `D/trash`, beside `D/services`.
pub(super) fn trash(services: &Path) -> PathBuf {
    services.with_file_name("trash")
}

/// Deletes what has been in the trash for long enough at `now`.
pub(super) fn empty_trash(services: &Path, now: SystemTime) -> io::Result<()> {
    let entries = fs::read_dir(trash(services)).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        // The last part of its name says when it came.
        let secs = name.to_str().and_then(|name| name.rsplit_once('.')?.1.parse().ok());
        let came = SystemTime::UNIX_EPOCH + Duration::from_secs(secs.unwrap_or(0));
        // A clock that was set back keeps it longer.
        if now.duration_since(came).is_ok_and(|since| since >= IN_TRASH) {
            remove_all(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| explain(&error, &format!("cannot make the folder {}", path.display())))
}

fn missing_is_fine(done: io::Result<()>, path: &Path) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(explain(&error, &format!("cannot delete {}", path.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    missing_is_fine(fs::remove_file(path), path)
}

pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    missing_is_fine(fs::remove_dir_all(path), path)
}
