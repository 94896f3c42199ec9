//! The Unix socket itself: a path of any length, no stale file in the way, the right mode.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// The kernel takes 108 bytes with a zero at the end; some stay in reserve for the new file's name.
const PATH_MAX: usize = 100;

fn named(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {what}: {error}", path.display()))
}

/// Calls `with` with a path short enough for a socket address that leads to `path`.
fn short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= PATH_MAX {
        return with(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return with(path) };
    // The way through our own open descriptor is short however deep the folder lies.
    let folder =
        open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    with(&through)
}

/// Connects to the agent.
///
/// # Errors
/// As the system says: `NotFound` and `ConnectionRefused` mean that no agent is there.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    short(path, |path| UnixStream::connect(path))
}

/// Listens at `path`, which from the first moment has `mode`. A socket nobody answers on is
/// replaced.
///
/// # Errors
/// Another agent answers there, something that is no socket lies there, or the folder cannot be
/// made or written; the path is named.
pub(super) fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| named(folder, "cannot make", &error))?;
    }
    match fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if !found.file_type().is_socket() => {
            let text = format!("{}: there is something that is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) if connect(path).is_ok() => {
            let text = format!("{}: an agent already answers here", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        Ok(_) => {}
    }
    // Made beside its place and then moved: it never stands there with another mode, and a stale
    // one is replaced in one step.
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    // Left by a crash of a process with the same id; if it is not there, so much the better.
    let _: io::Result<()> = fs::remove_file(&new);
    let listener = short(&new, |path| UnixListener::bind(path))
        .map_err(|e| named(path, "cannot listen", &e))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| named(path, "cannot put the socket in place", &error))?;
    Ok(listener)
}
