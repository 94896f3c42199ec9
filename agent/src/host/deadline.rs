//! Until when a replica with a lease may run, as the keeper of its log knows it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use crate::clock::boottime;

/// Where the keeper hears of renewals, in the folder of its replica.
const SOCKET: &str = "lease";

/// Tells the keeper of a log that the lease of its replica lasts until then.
///
/// # Errors
/// It does not hear.
pub(super) fn tell(folder: &Path, until: Duration) -> io::Result<()> {
    // A path to a socket may have 108 bytes only.
    let dir = File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let millis = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
    socket.send_to(&millis.to_le_bytes(), path).map(drop)
}

/// The keeper's side: until when the replica may run.
pub(super) struct Deadline {
    socket: UnixDatagram,
    until: Duration,
}

impl Deadline {
    /// # Errors
    /// The socket cannot be made.
    pub(super) fn begin(folder: &Path, until: Duration) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, until })
    }

    /// Whether the replica must end; it has been told of all renewals then.
    pub(super) fn is_over(&mut self) -> bool {
        let mut millis = [0; 8];
        while self.socket.recv(&mut millis).is_ok_and(|length| length == millis.len()) {
            self.until = Duration::from_millis(u64::from_le_bytes(millis));
        }
        boottime() >= self.until
    }
}
