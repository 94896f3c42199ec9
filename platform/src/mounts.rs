//! A service's own view of the file system: a private /tmp, its package read-only, its state, and
//! nothing else of the agent's folder. Paths stay the same inside and outside.
//!
//! The plan is pure; a child carries it out between fork and exec, so carrying out makes system
//! calls only and allocates nothing.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// How many folders can be shown.
pub const BINDS_MAX: usize = 8;
const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// A folder that stays visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub path: PathBuf,
    pub writable: bool,
}

/// What to do, in this order: take hold of the binds, cover the masks, make the folders, put the
/// binds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    masks: Vec<(CString, CString)>,
    folders: Vec<CString>,
    binds: Vec<(CString, bool)>,
    /// A file that stands in the place of another.
    instead: Option<(CString, CString)>,
}

/// The folder to cover so that nothing of `dir` shows: `dir`, or the outermost folder above it
/// that a service user could not pass (covered, it can).
#[must_use]
pub fn mask_point(dir: &Path, passable: &dyn Fn(&Path) -> bool) -> PathBuf {
    let mut above: Vec<&Path> = dir.ancestors().skip(1).filter(|p| p.parent().is_some()).collect();
    above.reverse();
    above.into_iter().find(|path| !passable(path)).unwrap_or(dir).to_path_buf()
}

/// Whether anybody may pass through this folder.
#[must_use]
pub fn passable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
}

impl View {
    /// Covers `dir` (and scratch folders, each holding at most `scratch` bytes) and shows `binds`.
    ///
    /// # Errors
    /// More than [`BINDS_MAX`] binds, or a path with a zero byte.
    pub fn plan(
        dir: &Path,
        passable: &dyn Fn(&Path) -> bool,
        binds: &[Bind],
        scratch: u64,
    ) -> io::Result<Self> {
        if binds.len() > BINDS_MAX {
            return Err(io::Error::other(format!("at most {BINDS_MAX} folders can be shown")));
        }
        let point = mask_point(dir, passable);
        let options = CString::new(format!("mode=1777,size={scratch}"))?;
        let mut masks = Vec::new();
        for path in SCRATCH.iter().map(Path::new).filter(|path| path.is_dir()) {
            masks.push((path.to_path_buf(), options.clone()));
        }
        if !masks.iter().any(|(mask, _)| point.starts_with(mask)) {
            masks.push((point, CString::new("mode=755,size=64k")?));
        }
        let mut folders: Vec<PathBuf> = Vec::new();
        for bind in binds {
            let mut missing: Vec<&Path> = bind.path.ancestors().collect();
            missing.reverse();
            for folder in missing {
                let covered = masks.iter().any(|(m, _)| folder.starts_with(m) && folder != m);
                if covered && !folders.iter().any(|known| known == folder) {
                    folders.push(folder.to_path_buf());
                }
            }
        }
        Ok(Self {
            masks: masks
                .into_iter()
                .map(|(path, options)| Ok((c_path(&path)?, options)))
                .collect::<io::Result<_>>()?,
            folders: folders.iter().map(|path| c_path(path)).collect::<io::Result<_>>()?,
            binds: binds
                .iter()
                .map(|bind| Ok((c_path(&bind.path)?, bind.writable)))
                .collect::<io::Result<_>>()?,
            instead: None,
        })
    }

    /// Shows the file `from`, to be read only, in the place of the file `at`, which is not below
    /// what is covered. Both must be there when the service starts.
    ///
    /// # Errors
    /// A path with a zero byte.
    pub fn show_instead(&mut self, from: &Path, at: &Path) -> io::Result<()> {
        self.instead = Some((c_path(from)?, c_path(at)?));
        Ok(())
    }

    /// Carries the plan out for the calling process, which must have one thread.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        let mut held = [-1; BINDS_MAX];
        separate()?;
        for ((path, _), slot) in self.binds.iter().zip(&mut held) {
            *slot = hold(path)?;
        }
        let instead = match &self.instead {
            Some((from, at)) => Some((hold(from)?, at)),
            None => None,
        };
        for (path, options) in &self.masks {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some(c"tmpfs"),
                path.as_c_str(),
                Some(c"tmpfs"),
                flags,
                Some(options.as_c_str()),
            )?;
        }
        for folder in &self.folders {
            match nix::unistd::mkdir(
                folder.as_c_str(),
                nix::sys::stat::Mode::from_bits_truncate(0o755),
            ) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        for ((path, writable), fd) in self.binds.iter().zip(held) {
            show(fd, path, *writable)?;
        }
        instead.map_or(Ok(()), |(fd, at)| show(fd, at, false))
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A mount namespace whose changes stay inside; what the host unmounts still goes away.
fn separate() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&CStr>, c"/", None::<&CStr>, flags, None::<&CStr>)
}

/// Takes hold of a folder, so that it can be put back after its path was covered.
fn hold(path: &CStr) -> Result<i32, Errno> {
    const OPEN_TREE_CLONE: libc::c_long = 1;
    let flags = OPEN_TREE_CLONE | libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: a valid string and plain integers; returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    Errno::result(fd).and_then(|fd| i32::try_from(fd).map_err(|_| Errno::EMFILE))
}

fn put(fd: i32, path: &CStr) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_long = 4;
    // SAFETY: valid strings and plain integers; changes this process's mounts only.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

/// Puts back what was taken hold of, and says what may be done with it.
fn show(fd: i32, path: &CStr, writable: bool) -> Result<(), Errno> {
    put(fd, path)?;
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if !writable {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(None::<&CStr>, path, None::<&CStr>, flags, None::<&CStr>)
}

/// Whether this kernel and these rights allow a [`View`]; changes the calling process.
pub(crate) fn work() -> bool {
    let cover = || mount(Some(c"tmpfs"), c"/tmp", Some(c"tmpfs"), MsFlags::empty(), None::<&CStr>);
    separate().is_ok() && hold(c"/").is_ok() && cover().is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(list: &[CString]) -> Vec<&str> {
        list.iter().map(|c| c.to_str().unwrap()).collect()
    }

    #[test]
    fn the_outermost_closed_folder_is_covered() {
        let closed = |closed: &'static str| move |path: &Path| path != Path::new(closed);
        let dir = Path::new("/var/lib/dugnad");
        assert_eq!(mask_point(dir, &|_| true), dir);
        assert_eq!(mask_point(dir, &closed("/var/lib")), Path::new("/var/lib"));
        // Its own mode does not matter: it is covered anyway.
        assert_eq!(mask_point(dir, &closed("/var/lib/dugnad")), dir);
    }

    #[test]
    fn only_what_was_covered_is_made_again() {
        let bind = |path: &str, writable| Bind { path: path.into(), writable };
        let binds = [bind("/srv/d/services/a.0/package", false), bind("/srv/d/x", true)];
        let view = View::plan(Path::new("/srv/d"), &|_| true, &binds, 1 << 20).unwrap();
        assert_eq!(
            text(&view.folders),
            ["/srv/d/services", "/srv/d/services/a.0", "/srv/d/services/a.0/package", "/srv/d/x"]
        );
        assert!(view.masks.iter().any(|(path, _)| path.as_c_str() == c"/srv/d"));
        // A folder below /tmp is covered with /tmp.
        let view =
            View::plan(Path::new("/tmp/d"), &|_| true, &[bind("/tmp/d/x", true)], 1).unwrap();
        assert_eq!(text(&view.folders), ["/tmp/d", "/tmp/d/x"]);
        assert!(!view.masks.iter().any(|(path, _)| path.as_c_str() == c"/tmp/d"));
    }
}
