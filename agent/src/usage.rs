//! What folders take on disk.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// A folder nested deeper takes, for all we know, everything.
const DEPTH_MAX: usize = 64;
/// Bytes counted for what has no blocks of its own: it has an inode.
const ENTRY: u64 = 512;
/// Bytes of one block of `st_blocks`.
const BLOCK: u64 = 512;

/// Bytes of everything in a folder, as `du` counts them; what is called as in `but` is left out at
/// the top.
///
/// Others may write to the folder meanwhile: no link is followed, and what cannot be looked at has
/// gone and counts nothing.
pub(crate) fn taken(dir: &Path, but: &[&str]) -> u64 {
    let mut sum = 0;
    if let Some(dir) = open(dir) {
        add(&dir, but, 0, &mut sum);
    }
    sum
}

fn open(dir: &Path) -> Option<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir).ok()
}

fn add(dir: &File, but: &[&str], depth: usize, sum: &mut u64) {
    // The folder that was opened, whatever its name leads to by now.
    let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let Ok(entries) = fs::read_dir(&here) else { return };
    for entry in entries.map_while(Result::ok) {
        let name = entry.file_name();
        if depth == 0 && but.iter().any(|but| name == *but) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        let bytes = (meta.blocks() * BLOCK).max(ENTRY);
        // A file of several names in here counts once.
        let names = if meta.is_file() { meta.nlink().max(1) } else { 1 };
        *sum = sum.saturating_add(bytes / names);
        if meta.is_dir() && depth == DEPTH_MAX {
            *sum = u64::MAX;
        } else if meta.is_dir() {
            if let Some(dir) = open(&here.join(name)) {
                add(&dir, but, depth + 1, sum);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_lies_there_and_nothing_else() {
        let (tmp, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dir = tmp.path();
        let all = |but: &[&str]| taken(dir, but);
        assert_eq!(all(&[]), 0);
        fs::create_dir(dir.join("in")).unwrap();
        let folder = all(&[]);
        fs::write(dir.join("in/file"), vec![7; 100_000]).unwrap();
        let file = all(&[]) - folder;
        assert!((100_000..120_000).contains(&file), "{file}");
        // As sparse as it is, once for two names, and without what a link leads to.
        File::create(dir.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        fs::hard_link(dir.join("in/file"), dir.join("in/again")).unwrap();
        fs::write(other.path().join("far"), vec![7; 1_000_000]).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.join("link")).unwrap();
        let more = all(&[]) - folder - file;
        assert!(more <= 3 * 4096, "{more}");
        assert!(all(&["in"]) < 3 * 4096);
        assert_eq!(taken(&dir.join("none"), &[]), 0);
    }

    #[test]
    fn nobody_hides_by_going_deep() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = (0..=DEPTH_MAX).fold(tmp.path().to_owned(), |dir, _| dir.join("d"));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(taken(tmp.path(), &[]), u64::MAX);
    }
}
