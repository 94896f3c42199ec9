//! Where other nodes answered, kept across restarts.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dugnad_kernel::peer::ADDRS_MAX;
use dugnad_kernel::{Id, NodeId, Peer};

use super::{read_text, write_synced};

/// How many peers are kept: enough to find back into any community.
const PEERS_MAX: usize = 64;
/// Flash wears: the file is written at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(60);
const FILE: &str = "peers";

struct Entry {
    id: NodeId,
    addrs: Vec<SocketAddr>,
    /// Whether it was seen in this run. One that was not gives its place to one that was.
    seen: bool,
}

/// The remembered peers: one line each, `ID ADDR ADDR ...`.
pub(crate) struct Remembered {
    dir: PathBuf,
    entries: Vec<Entry>,
    changed: bool,
    saved: Option<Instant>,
}

impl Remembered {
    /// Never fails: what cannot be read is left out with a warning, since seeds and other nodes
    /// can tell it again.
    #[must_use]
    pub(crate) fn load(dir: &Path) -> Self {
        let mut all =
            Self { dir: dir.to_owned(), entries: Vec::new(), changed: false, saved: None };
        let path = dir.join(FILE);
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
            Err(error) => {
                log::warn!("{error}; continuing without remembered peers");
                return all;
            }
        };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse(line) {
                Some(entry) if all.entries.len() < PEERS_MAX => all.entries.push(entry),
                Some(_) => {}
                None => log::warn!("{}:{}: no peer, left out", path.display(), number + 1),
            }
        }
        all
    }

    /// The peers to try, incarnation unknown (0).
    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> + '_ {
        self.entries.iter().map(|entry| {
            let mut peer = Peer::new(entry.id);
            peer.addrs.extend(entry.addrs.iter().copied().take(ADDRS_MAX));
            peer
        })
    }

    /// Remembers where a linked peer listens; true if that is news. A peer without addresses
    /// teaches nothing. When full, a peer that was not seen in this run makes room, else the new
    /// one is not kept: in a large community the file would change for ever.
    pub(crate) fn note(&mut self, peer: &Peer) -> bool {
        if peer.addrs.is_empty() {
            return false;
        }
        let addrs: Vec<SocketAddr> = peer.addrs.to_vec();
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == peer.id) {
            entry.seen = true;
            let same = entry.addrs.len() == addrs.len()
                && addrs.iter().all(|addr| entry.addrs.contains(addr));
            if same {
                return false;
            }
            entry.addrs = addrs;
        } else {
            if self.entries.len() >= PEERS_MAX {
                let Some(stale) = self.entries.iter().position(|entry| !entry.seen) else {
                    return false;
                };
                self.entries.remove(stale);
            }
            self.entries.push(Entry { id: peer.id, addrs, seen: true });
        }
        self.changed = true;
        true
    }

    /// Forgets a peer that left for good; true if it was known.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, id: NodeId) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.id != id);
        let known = self.entries.len() < before;
        self.changed |= known;
        known
    }

    /// When [`Self::save_if_changed`] should be called next; `None` while nothing changed.
    #[must_use]
    pub(crate) fn save_due(&self) -> Option<Instant> {
        let now = Instant::now();
        self.changed.then(|| self.saved.map_or(now, |last| (last + SAVE_EVERY).max(now)))
    }

    /// Writes the file if something changed and the last write is a minute old; true if it did.
    /// It syncs: call it on the blocking pool, or where a pause of some milliseconds is nothing.
    ///
    /// # Errors
    /// Whatever the file system says, with the path. The change stays pending.
    pub(crate) fn save_if_changed(&mut self) -> io::Result<bool> {
        match self.save_due() {
            Some(due) if due <= Instant::now() => self.save().map(|()| true),
            _ => Ok(false),
        }
    }

    /// Writes the file if something changed, however short ago the last write was: for the end.
    ///
    /// # Errors
    /// Whatever the file system says, with the path. The change stays pending.
    pub(crate) fn save_now(&mut self) -> io::Result<()> {
        if self.changed { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> io::Result<()> {
        let mut text = String::from("# Where other nodes answered. Written by the agent.\n");
        for entry in &self.entries {
            text.push_str(&entry.id.to_string());
            for addr in &entry.addrs {
                text.push(' ');
                text.push_str(&addr.to_string());
            }
            text.push('\n');
        }
        // A failed write is tried again a minute later, not at every call.
        self.saved = Some(Instant::now());
        write_synced(&self.dir, FILE, text.as_bytes())?;
        self.changed = false;
        Ok(())
    }
}

fn parse(line: &str) -> Option<Entry> {
    let mut words = line.split_whitespace();
    let id = words.next().filter(|word| word.len() == 32)?;
    let id = Id(u128::from_str_radix(id, 16).ok()?);
    let addrs: Vec<SocketAddr> =
        words.take(ADDRS_MAX).map(|word| word.parse().ok()).collect::<Option<_>>()?;
    (!addrs.is_empty()).then_some(Entry { id, addrs, seen: false })
}
