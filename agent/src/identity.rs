//! Who this node is, and what its state directory says about it.
//!
//! | file in the state directory | holds                                             |
//! |-----------------------------|---------------------------------------------------|
//! | `identity`                  | the device key (Ed25519 seed, 64 hex digits)      |
//! | `community.toml`            | name and secret of the community                  |
//! | `node`                      | the node id that `init` or `join` derived         |
//! | `incarnation`               | how often the agent was started                   |
//! | `peers`                     | where other nodes answered, to find back after a restart |
//! | `copy`                      | that another machine runs with this identity: nothing starts |
//! | `lock`                      | pid of the running agent, locked while it runs    |
//!
//! All are small text files, written aside, synced and renamed: a power cut leaves the old or the
//! new one. They are apart from the database on purpose: that one may be lost and refilled from
//! other nodes, these may not.
//!
//! Order at start: [`DirLock::take`], [`Identity::load`], [`Community::load`], [`node_id`],
//! [`check_node`], [`next_incarnation`], [`Remembered::load`].

mod peers;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use dugnad_kernel::{CommunityId, Id, NodeId};
use ed25519_dalek::SigningKey;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;

use crate::clock::{YEAR_2020, now_unix};
pub(crate) use peers::Remembered;

/// The longest name of a community, in bytes.
pub(crate) const NAME_MAX: usize = 64;
/// No file of this module is longer; a longer one is damaged.
const FILE_MAX: u64 = 64 * 1024;

/// An error that names the path.
pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn invalid(path: &Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// Replaces the file `dir/name` by `bytes`, readable by the owner only. When this returns, the
/// new content is on the medium; after a crash the file holds the old or the new content.
///
/// # Errors
/// Whatever the file system says, with the path.
pub(crate) fn write_synced(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = dir.join(name);
    let aside = dir.join(format!("{name}.new"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        // On a full disk half a file helps nobody; the error that counts is the first.
        let _: io::Result<()> = fs::remove_file(&aside);
        return Err(at(&aside, &error));
    }
    fs::rename(&aside, &path).map_err(|e| at(&path, &e))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| at(dir, &e))
}

/// The text of a small file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
        .map_err(|e| at(path, &e))?;
    Ok(text)
}

/// Refuses a file that other users of this machine can read.
pub(crate) fn check_private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path).map_err(|e| at(path, &e))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let text = format!(
        "{}: other users may read this secret (mode {mode:03o}); run: chmod 600 {}",
        path.display(),
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    dugnad_kernel::Hash::from_hex(text.trim()).map(|hash| hash.0)
}

/// 32 random bytes of the operating system. A board that has just started may have none yet:
/// then this waits and the log says so.
pub(crate) fn random() -> io::Result<[u8; 32]> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 32];
        // Nobody listens any more only if the caller is gone: nothing to tell then.
        let _: Result<(), _> = sender.send(getrandom::fill(&mut bytes).map(|()| bytes));
    });
    let got = match receiver.recv_timeout(Duration::from_secs(1)) {
        Ok(got) => Ok(got),
        Err(_) => {
            log::warn!(
                "waiting for the kernel's random numbers, which a secret key needs; \
                 a freshly started board may take minutes (typing or disk traffic helps)"
            );
            receiver.recv()
        }
    };
    match got {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            Err(io::Error::other(format!("the kernel gives no random numbers: {error}")))
        }
        Err(error) => Err(io::Error::other(format!("the kernel gives no random numbers: {error}"))),
    }
}

/// The key that makes this device one node of a community.
#[derive(Clone)]
pub(crate) struct Identity(SigningKey);

impl Identity {
    const FILE: &'static str = "identity";

    /// Makes a new key in `dir`, which must exist.
    ///
    /// # Errors
    /// If `dir` has a key already: it is never overwritten.
    pub(crate) fn create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        if path.exists() {
            let text = format!("{}: this directory has an identity already", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let seed = random()?;
        write_synced(dir, Self::FILE, format!("{}\n", hex(&seed)).as_bytes())?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// A new key in the place of one that another machine has, too. What belonged to that node is
    /// removed first: should this stop half way, there is no node, and it can be done again.
    ///
    /// # Errors
    /// Whatever the file system says, with the path.
    pub(crate) fn replace(dir: &Path) -> io::Result<Self> {
        for name in ["records", "records-large"] {
            let path = dir.join(name);
            missing_is_fine(fs::remove_dir_all(&path)).map_err(|e| at(&path, &e))?;
        }
        for name in [NODE_FILE, INCARNATION_FILE, COPY_FILE, Self::FILE] {
            let path = dir.join(name);
            missing_is_fine(fs::remove_file(&path)).map_err(|e| at(&path, &e))?;
        }
        Self::create(dir)
    }

    /// # Errors
    /// If the key is missing, damaged, or readable by others.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        let text = match read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!(
                    "{}: no such file; run `dugnad init` or `dugnad join` first",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
            other => other?,
        };
        check_private(&path)?;
        let seed = from_hex(&text).ok_or_else(|| {
            invalid(
                &path,
                format!(
                    "expected 64 hexadecimal digits, found {} bytes; restore the file from a \
                     backup, or remove it and join again as a new node",
                    text.trim().len()
                ),
            )
        })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    #[must_use]
    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// The X25519 form of the secret key, for the link's handshake.
    pub(crate) fn agreement_key(&self) -> [u8; 32] {
        self.0.to_scalar_bytes()
    }

    /// A key that lives as long as the process.
    #[cfg(test)]
    pub(crate) fn ephemeral(seed: u8) -> Self {
        Self(SigningKey::from_bytes(&[seed; 32]))
    }
}

/// The community this node belongs to. Whoever has the secret is a member.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Community {
    pub(crate) name: String,
    pub(crate) secret: [u8; 32],
}

impl std::fmt::Debug for Community {
    /// Without the secret: this may end in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Community({:?}, {})", self.name, self.id())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommunityFile {
    name: String,
    secret: String,
}

impl Community {
    const FILE: &'static str = "community.toml";

    /// A new community with a fresh secret. Nothing is written.
    ///
    /// # Errors
    /// If the name cannot be one, or the kernel gives no random numbers.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        Self::check_name(name)?;
        Ok(Self { name: name.to_owned(), secret: random()? })
    }

    /// # Errors
    /// If `name` is empty, longer than [`NAME_MAX`] bytes, or has control characters.
    pub(crate) fn check_name(name: &str) -> io::Result<()> {
        if name.trim().is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            let text = format!("community name {name:?}: 1 to {NAME_MAX} bytes of plain text");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }

    /// # Errors
    /// If the file is missing, damaged, or readable by others.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        let text = read_text(&path)?;
        check_private(&path)?;
        let file: CommunityFile = toml::from_str(&text).map_err(|e| invalid(&path, e))?;
        let secret = from_hex(&file.secret)
            .ok_or_else(|| invalid(&path, "secret: expected 64 hexadecimal digits"))?;
        Self::check_name(&file.name).map_err(|e| at(&path, &e))?;
        Ok(Self { name: file.name, secret })
    }

    /// # Errors
    /// Whatever the file system says, with the path.
    pub(crate) fn save(&self, dir: &Path) -> io::Result<()> {
        let name = self.name.replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!(
            "# Whoever has this secret is a member of the community.\nname = \"{name}\"\n\
             secret = \"{}\"\n",
            hex(&self.secret)
        );
        write_synced(dir, Self::FILE, text.as_bytes())
    }

    #[must_use]
    pub(crate) fn id(&self) -> CommunityId {
        CommunityId::of_secret(&self.secret)
    }
}

/// The place of this device on the ring of this community.
#[must_use]
pub(crate) fn node_id(identity: &Identity, community: &Community) -> NodeId {
    Id::of_device(community.id(), &identity.public_key(), 0, b"")
}

const NODE_FILE: &str = "node";
const INCARNATION_FILE: &str = "incarnation";
const COPY_FILE: &str = "copy";

pub(crate) fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes down that this directory is a copy: another machine runs with its identity.
///
/// # Errors
/// Whatever the file system says, with the path.
pub(crate) fn record_copy(dir: &Path) -> io::Result<()> {
    write_synced(dir, COPY_FILE, b"another machine runs with this identity\n")
}

/// # Errors
/// If this directory was found to be a copy; says what to do.
pub(crate) fn check_copy(dir: &Path) -> io::Result<()> {
    let path = dir.join(COPY_FILE);
    if !path.exists() {
        return Ok(());
    }
    let text = format!(
        "{}: this state directory is a copy: another machine runs with its identity, so nothing is \
         started here. Make this machine a node of its own with `dugnad init --new-identity`; or, \
         if the other one is gone for good, remove {} and start again",
        dir.display(),
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

/// Writes down which node this directory belongs to. `init` and `join` call it.
///
/// # Errors
/// Whatever the file system says, with the path.
pub(crate) fn record_node(dir: &Path, id: NodeId) -> io::Result<()> {
    write_synced(dir, NODE_FILE, format!("{id}\n").as_bytes())
}

/// Checks that the identity in `dir` is the one its other files belong to.
///
/// # Errors
/// If they belong to another node: part of the directory was copied or restored.
pub(crate) fn check_node(dir: &Path, id: NodeId) -> io::Result<()> {
    let path = dir.join(NODE_FILE);
    let recorded = read_text(&path)?;
    if recorded.trim() == id.to_string() {
        return Ok(());
    }
    Err(invalid(
        &path,
        format!(
            "this directory holds the state of node {}, but its identity and community make it \
             node {id}; put the right identity and community.toml back, or start with an empty \
             directory and `dugnad join`",
            recorded.trim()
        ),
    ))
}

/// More than any count of starts, for a damaged counter on a machine without a clock.
const DAMAGED: u32 = 1 << 24;

/// Seconds since 2020; 0 where the clock was never set.
fn since_2020() -> u32 {
    u32::try_from(now_unix().saturating_sub(YEAR_2020)).unwrap_or(u32::MAX)
}

/// Numbers this start of the agent, higher than every one before, already on the medium: 1 for the
/// first, then the seconds since 2020 or one more than last time, whatever is more. So a directory
/// that is restored from an older copy goes on above what others have seen of it.
///
/// A damaged counter is replaced the same way, and the log says so.
///
/// # Errors
/// Whatever the file system says, with the path.
pub(crate) fn next_incarnation(dir: &Path) -> io::Result<u32> {
    let path = dir.join(INCARNATION_FILE);
    let next = match read_text(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        text => match text.ok().and_then(|text| text.trim().parse::<u32>().ok()) {
            Some(last) => last.saturating_add(1).max(since_2020()),
            None => {
                let next = since_2020().max(DAMAGED);
                log::warn!("{}: damaged, continuing with {next}", path.display());
                next
            }
        },
    };
    write_synced(dir, INCARNATION_FILE, format!("{next}\n").as_bytes())?;
    Ok(next)
}

/// The state directory belongs to this process until this is dropped.
pub(crate) struct DirLock {
    _file: Flock<File>,
}

impl DirLock {
    /// # Errors
    /// If another agent runs on this directory; the error names its pid.
    pub(crate) fn take(dir: &Path) -> io::Result<Self> {
        let path: PathBuf = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| at(&path, &e))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                // Only for the message: it says "unknown" if the pid cannot be read.
                let pid = read_text(&path).unwrap_or_default();
                let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
                let text = format!(
                    "{}: another agent runs on this directory (pid {pid}); stop it first, or \
                     choose another directory with --dir",
                    dir.display()
                );
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Err((_, errno)) => return Err(at(&path, &errno.into())),
        };
        // Not synced: the pid means nothing after a crash of the machine.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| at(&path, &e))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests;
