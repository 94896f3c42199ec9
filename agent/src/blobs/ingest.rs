//! Folders into trees, and trees into folders. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use dugnad_kernel::Hash;
use dugnad_kernel::map::Set;
use dugnad_resource::spec::Tree;
use nix::fcntl::OFlag;

use super::manifest::{CHUNK, ENTRIES_MAX, Entry, Index, Manifest, What, check_link, check_path};
use super::store::{Store, at, invalid, on_disk};

/// Stores a folder or a single file.
pub(super) fn ingest(store: &Store, path: &Path) -> io::Result<Tree> {
    let mut found = Vec::new();
    let meta = fs::metadata(path).map_err(|error| at(path, error))?;
    if meta.is_dir() {
        walk(path, "", &mut found)?;
    } else {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
        found.push(look(path, name.to_owned())?);
    }
    found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    // The list of files and its index: a bound, as chunks that are here already take nothing.
    let around = found.iter().map(|item| 128 + item.entry.path.len() as u64).sum::<u64>();
    let _room = store.reserve(missing(store, &found)? + 2 * on_disk(around))?;
    for item in &mut found {
        if let What::File { size, chunks, .. } = &mut item.entry.what {
            each_chunk(&item.from, *size, |bytes| {
                chunks.push(keep(store, bytes)?);
                Ok(())
            })?;
        }
    }
    let manifest = Manifest { entries: found.into_iter().map(|item| item.entry).collect() };
    let tree = seal(store, &manifest)?;
    store.sync()?;
    store.mark(tree)?;
    Ok(tree)
}

struct Item {
    from: PathBuf,
    entry: Entry,
}

fn walk(dir: &Path, under: &str, found: &mut Vec<Item>) -> io::Result<()> {
    for entry in fs::read_dir(dir).map_err(|error| at(dir, error))? {
        let path = entry.map_err(|error| at(dir, error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(refused(&path, "its name is not UTF-8; rename it"));
        };
        let relative = if under.is_empty() { name.to_owned() } else { format!("{under}/{name}") };
        let item = look(&path, relative)?;
        if found.len() >= ENTRIES_MAX {
            let text = format!("more than {ENTRIES_MAX} files; pack them together");
            return Err(refused(dir, &text));
        }
        let folder = matches!(item.entry.what, What::Dir).then(|| item.entry.path.clone());
        found.push(item);
        if let Some(folder) = folder {
            walk(&path, &folder, found)?;
        }
    }
    Ok(())
}

/// What one path is. Chunks are filled in later.
fn look(path: &Path, relative: String) -> io::Result<Item> {
    let depth = check_path(&relative).map_err(|why| refused(path, why))?;
    let meta = fs::symlink_metadata(path).map_err(|error| at(path, error))?;
    let what = if meta.is_dir() {
        What::Dir
    } else if meta.is_file() {
        let executable = meta.permissions().mode() & 0o111 != 0;
        What::File { executable, size: meta.len(), chunks: Vec::new() }
    } else if meta.is_symlink() {
        let target = fs::read_link(path).map_err(|error| at(path, error))?;
        let Some(target) = target.to_str() else {
            return Err(refused(path, "the link's target is not UTF-8"));
        };
        check_link(depth, target).map_err(|why| refused(path, why))?;
        What::Link { target: target.to_owned() }
    } else {
        return Err(refused(path, "neither file, folder nor link; leave it out of the folder"));
    };
    Ok(Item { from: path.to_owned(), entry: Entry { path: relative, what } })
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {why}", path.display()))
}

/// Bytes on disk the files will take. They are only read for it if room may be short.
fn missing(store: &Store, found: &[Item]) -> io::Result<u64> {
    let files = || {
        found.iter().filter_map(|item| match item.entry.what {
            What::File { size, .. } => Some((&item.from, size)),
            What::Dir | What::Link { .. } => None,
        })
    };
    let all = files().map(|(_, size)| on_disk(size)).fold(0, u64::saturating_add);
    if store.reserve(all).is_ok() {
        return Ok(all);
    }
    let (mut missing, mut seen) = (0, Set::new());
    for (path, size) in files() {
        each_chunk(path, size, |bytes| {
            let hash = Hash::of(bytes);
            if seen.insert(hash) && !store.lists(hash) {
                missing += on_disk(bytes.len() as u64);
            }
            Ok(())
        })?;
    }
    Ok(missing)
}

/// Reads a file of a known size chunk by chunk.
fn each_chunk(
    path: &Path,
    size: u64,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(|error| at(path, error))?;
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact(&mut buffer[..length]).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refused(path, "changed while it was read; try again"),
            _ => at(path, error),
        })?;
        each(&buffer[..length])?;
        left -= length as u64;
    }
    match file.read(&mut buffer[..1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(refused(path, "changed while it was read; try again")),
        Err(error) => Err(at(path, error)),
    }
}

/// Writes a chunk unless it is here, and whole, already.
pub(super) fn keep(store: &Store, bytes: &[u8]) -> io::Result<Hash> {
    let hash = Hash::of(bytes);
    if !store.lists(hash) || !store.holds(hash) {
        store.write(hash, bytes)?;
    }
    Ok(hash)
}

/// Stores the list of files and its index.
pub(super) fn seal(store: &Store, manifest: &Manifest) -> io::Result<Tree> {
    index(manifest, |bytes| keep(store, bytes))
}

/// The tree it would be; nothing is stored.
pub(super) fn root_of(manifest: &Manifest) -> io::Result<Tree> {
    index(manifest, |bytes| Ok(Hash::of(bytes)))
}

fn index(manifest: &Manifest, mut keep: impl FnMut(&[u8]) -> io::Result<Hash>) -> io::Result<Tree> {
    let bytes = manifest.encode().map_err(invalid)?;
    let mut chunks = Vec::new();
    for part in bytes.chunks(CHUNK) {
        chunks.push(keep(part)?);
    }
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let total = manifest.bytes();
    let index = Index::new(length, total, chunks).encode().map_err(invalid)?;
    Ok(Tree { root: keep(&index)?, bytes: total })
}

/// Writes a tree into a fresh folder beside `dest`, makes it durable, then gives it its name.
pub(super) fn unpack(store: &Store, tree: Tree, dest: &Path) -> io::Result<()> {
    let manifest = store.manifest(tree)?;
    let (Some(parent), Some(name)) = (dest.parent(), dest.file_name()) else {
        return Err(refused(dest, "no place to unpack to"));
    };
    fs::create_dir_all(parent).map_err(|error| at(parent, error))?;
    let mut aside = name.to_owned();
    aside.push(".unpacking");
    let aside = parent.join(aside);
    // Left by an interrupted unpacking.
    remove_all(&aside)?;
    let unpacked = fill(store, &manifest, &aside)
        .and_then(|()| fs::rename(&aside, dest).map_err(|error| at(dest, error)));
    if unpacked.is_err() {
        remove_all(&aside)?;
    }
    unpacked
}

pub(super) fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn fill(store: &Store, manifest: &Manifest, root: &Path) -> io::Result<()> {
    make_dir(root)?;
    for Entry { path, what } in &manifest.entries {
        // The manifest was checked: relative, no `..`, and every parent is a folder made here.
        let to = root.join(path);
        match what {
            What::Dir => make_dir(&to)?,
            What::Link { target } => {
                std::os::unix::fs::symlink(target, &to).map_err(|error| at(&to, error))?;
            }
            What::File { executable, size, chunks } => {
                write_file(store, &to, *executable, *size, chunks)?;
            }
        }
    }
    // One call for all files. A later start must not find a program half there.
    let dir = File::open(root).map_err(|error| at(root, error))?;
    nix::unistd::syncfs(&dir).map_err(|errno| at(root, io::Error::from(errno)))
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|error| at(path, error))
}

fn write_file(
    store: &Store,
    to: &Path,
    executable: bool,
    size: u64,
    chunks: &[Hash],
) -> io::Result<()> {
    let mode = if executable { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(to)
        .map_err(|error| at(to, error))?;
    let mut written = 0;
    for hash in chunks {
        let bytes = store.read_needed(*hash)?;
        file.write_all(&bytes).map_err(|error| at(to, error))?;
        written += bytes.len() as u64;
    }
    if written != size {
        return Err(at(to, invalid("its chunks do not add up to its size".to_owned())));
    }
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|error| at(to, error))
}
