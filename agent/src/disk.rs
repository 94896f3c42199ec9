//! Small records on disk, really synced, that may be lost as a whole.
//!
//! The records belong to the layers; other nodes hold copies, so a damaged database is moved
//! aside and refilled. What may not be lost is elsewhere (`identity`).
//!
//! - `DIR/records/` is a sled database. A value is stored as a checksum (4 bytes of BLAKE3 over
//!   key and content), a byte for the kind, and the content, up to [`INLINE_MAX`] bytes.
//! - Larger values, up to [`VALUE_MAX`], are files in `DIR/records-large/`, named by the BLAKE3 of
//!   key and content; the database holds the name. sled itself would keep their space for ever.
//!   A file is written and synced before the batch that names it, and removed after the batch
//!   that does not any more; what a crash leaves over is removed at the next start.
//!
//! [`Disk::persist`] only queues. A thread takes all that waits as one batch, flushes, and syncs
//! sled's file itself, because sled's own `flush` reaches the page cache only. Then
//! [`DiskEvent::Persisted`] goes out for each token, in order. An idle disk writes nothing, and
//! its thread sleeps without a timeout; a thread of the blocking pool would wake twice a second.
//! sled has 8 threads of its own, which wake 7 times a second in all and cannot be told not to, but
//! may be told to do so a little later ([`slack`]).
//!
//! After a failed write (a full disk) the database is closed and opened again with the next
//! batch, so that memory and medium agree.

mod ledger;
mod slack;
mod store;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use smol::channel::Sender;

use store::{Found, Store};

/// The longest value inside the database, in bytes.
pub(crate) const INLINE_MAX: usize = 4 * 1024;
/// The longest value at all, in bytes.
pub(crate) const VALUE_MAX: usize = 64 * 1024;
/// The longest key, in bytes.
pub(crate) const KEY_MAX: usize = 1024;
/// Batches are committed together up to this many bytes; a larger one goes alone.
const GROUP_MAX: usize = 64 * 1024;
/// What may wait, in bytes. More is not taken; its tokens fail.
const WAITING_MAX: usize = 8 * 1024 * 1024;

/// Key and value; no value deletes.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);
/// Key and value.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskEvent {
    /// The batch, and every one before it that did not fail, is on the medium.
    Persisted(u64),
    /// Nothing of the batch is promised. The text says why and what to do.
    Failed { token: u64, error: String },
}

struct Batch {
    token: u64,
    /// Or why it was not taken.
    writes: Result<Vec<Write>, String>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Some are being written.
    writing: bool,
    /// Nothing more will come.
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Told when a batch came, or the queue was closed.
    came: Condvar,
    /// Told when some were written.
    written: Condvar,
    store: Mutex<Store>,
    events: Sender<DiskEvent>,
}

/// A panic in another thread ends the program (`panic = "abort"`); in tests the data is usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the thread with the last handle; what waits is still written.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.came.notify_one();
    }
}

/// The records. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Handle>);

impl Disk {
    /// Opens the records in `dir` and reads all of them. It blocks: call it before the loop
    /// starts. Also returns what was dropped or repaired, for the user to read, and whether
    /// something is missing or not as it was written.
    ///
    /// # Errors
    /// If the directory cannot be used at all, or another process has the database open.
    pub(crate) fn open(
        dir: &Path,
        events: Sender<DiskEvent>,
    ) -> io::Result<(Self, Vec<Record>, Vec<String>, bool)> {
        let Found { store, records, notes, damaged } = Store::open(dir)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            came: Condvar::new(),
            written: Condvar::new(),
            store: Mutex::new(store),
            events,
        });
        let own = Arc::clone(&shared);
        thread::Builder::new().name("disk".to_owned()).spawn(move || own.work())?;
        Ok((Self(Arc::new(Handle(shared))), records, notes, damaged))
    }

    /// Queues a batch; never blocks. Its end is told as a [`DiskEvent`] with `token`.
    pub(crate) fn persist(&self, token: u64, writes: Vec<Write>) {
        let bytes =
            writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        let bytes: usize = bytes.sum();
        let shared = &self.0.0;
        let mut queue = lock(&shared.queue);
        let writes = if let Some(wrong) = writes.iter().find_map(wrong) {
            Err(wrong)
        } else if queue.bytes + bytes > WAITING_MAX {
            Err(format!("the disk is too slow: {} bytes wait to be written", queue.bytes))
        } else {
            Ok(writes)
        };
        let bytes = if writes.is_ok() { bytes } else { 0 };
        queue.bytes += bytes;
        queue.batches.push_back(Batch { token, writes, bytes });
        shared.came.notify_one();
    }
}

impl Disk {
    /// Waits, blocking, until all that was queued is on the medium; whether it is within `limit`.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        let shared = &self.0.0;
        let waits = |queue: &mut Queue| queue.writing || !queue.batches.is_empty();
        let waited = shared.written.wait_timeout_while(lock(&shared.queue), limit, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

fn wrong((key, value): &Write) -> Option<String> {
    let length = value.as_ref().map_or(0, Vec::len);
    if key.is_empty() || key.len() > KEY_MAX {
        return Some(format!("a key of {} bytes: 1 to {KEY_MAX} are stored", key.len()));
    }
    (length > VALUE_MAX).then(|| format!("a value of {length} bytes: {VALUE_MAX} are the most"))
}

impl Shared {
    fn work(&self) {
        loop {
            let group = self.next_group();
            if group.is_empty() {
                return;
            }
            let good = group.iter().filter_map(|batch| batch.writes.as_ref().ok()).flatten();
            let result = lock(&self.store).commit(good);
            lock(&self.queue).writing = false;
            self.written.notify_all();
            for batch in group {
                let token = batch.token;
                let event = match (batch.writes, &result) {
                    (Ok(_), Ok(())) => DiskEvent::Persisted(token),
                    (Ok(_), Err(error)) => DiskEvent::Failed { token, error: error.to_string() },
                    (Err(error), _) => DiskEvent::Failed { token, error },
                };
                if self.events.send_blocking(event).is_err() {
                    // The loop has ended. What is queued is still written.
                    continue;
                }
            }
        }
    }

    /// Waits for batches to commit together; there are none when all handles are gone.
    fn next_group(&self) -> Vec<Batch> {
        let mut queue = lock(&self.queue);
        while queue.batches.is_empty() && !queue.closed {
            queue.batches.shrink_to(8);
            queue = self.came.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = queue.batches.front() {
            if !group.is_empty() && bytes + batch.bytes > GROUP_MAX {
                break;
            }
            bytes += batch.bytes;
            group.extend(queue.batches.pop_front());
        }
        queue.bytes -= bytes;
        queue.writing = !group.is_empty();
        group
    }
}

#[cfg(test)]
mod tests;
