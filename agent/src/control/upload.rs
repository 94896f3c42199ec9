//! A folder as a stream: for each entry one line of JSON, then (for a file) its bytes; a last
//! line says how many entries there were, so that a stream cut short is seen.
//!
//! Both sides are plain blocking code; [`Sender`] and [`Reader`] join them to the async side
//! through a channel of a few blocks.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use smol::channel::{Receiver, Sender as Channel};

use crate::blobs::check_link;

/// Bounds on what one upload may hold; the bytes are bounded by the agent.
const ENTRIES_MAX: u64 = 50_000;
const LINE_MAX: u64 = 8_192;
const DEPTH_MAX: usize = 64;
/// Blocks on their way between the two sides.
pub(super) const BLOCKS: usize = 4;
const BLOCK: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Entry {
    Folder {
        path: String,
    },
    File {
        path: String,
        bytes: u64,
        executable: bool,
    },
    /// A symbolic link that leads nowhere outside.
    Link {
        path: String,
        target: String,
    },
    End {
        entries: u64,
    },
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Writes all of `folder` to `out`: files, folders, and links that stay inside it, in order of
/// their names.
///
/// # Errors
/// Something cannot be read, is neither file nor folder nor link, leads out of the folder, or has a
/// name that is no text; named. `BrokenPipe` if the other side no longer reads.
pub(super) fn pack(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let root = fs::canonicalize(folder).map_err(|error| about(folder, &error))?;
    let mut packer = Packer { root, out, entries: 0 };
    packer.folder(folder, "", 0)?;
    let entries = packer.entries;
    packer.line(&Entry::End { entries })?;
    out.flush()
}

struct Packer<'a, W> {
    /// What is packed, without links in its path.
    root: PathBuf,
    out: &'a mut W,
    entries: u64,
}

impl<W: Write> Packer<'_, W> {
    fn line(&mut self, entry: &Entry) -> io::Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(invalid(format!("the folder holds more than {ENTRIES_MAX} entries")));
        }
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.out.write_all(&line)
    }

    fn folder(&mut self, folder: &Path, inside: &str, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(invalid(format!("{}: folders too deep", folder.display())));
        }
        let fail = |error| about(folder, &error);
        let mut names = fs::read_dir(folder)
            .map_err(fail)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(fail)?;
        names.sort();
        for name in names {
            let full = folder.join(&name);
            let Some(name) = name.to_str() else {
                return Err(invalid(format!("{}: the name is no UTF-8 text", full.display())));
            };
            let path = if inside.is_empty() { name.to_owned() } else { format!("{inside}/{name}") };
            let found = fs::symlink_metadata(&full).map_err(|error| about(&full, &error))?;
            if found.is_symlink() {
                let target = self.target(&full, depth)?;
                self.line(&Entry::Link { path, target })?;
            } else if found.is_dir() {
                self.line(&Entry::Folder { path: path.clone() })?;
                self.folder(&full, &path, depth + 1)?;
            } else if found.is_file() {
                self.file(&full, path)?;
            } else {
                let text = format!("{}: neither file nor folder", full.display());
                return Err(invalid(text));
            }
        }
        Ok(())
    }

    /// Where a link `depth` folders deep leads, relative to its place.
    fn target(&self, full: &Path, depth: usize) -> io::Result<String> {
        let target = fs::read_link(full).map_err(|error| about(full, &error))?;
        // One to a place in the same folder by its full path means the same place in the package.
        let relative = target
            .strip_prefix(&self.root)
            .map_or_else(|_| target.clone(), |inside| Path::new(&"../".repeat(depth)).join(inside));
        let named = |why: &str| {
            let (full, target) = (full.display(), target.display());
            invalid(format!("{full}: the link leads to {target}: {why}"))
        };
        let text = relative.to_str().ok_or_else(|| named("that is no UTF-8 text"))?;
        let text = if text.is_empty() { "." } else { text };
        check_link(depth, text).map_err(|_| {
            named("outside of the package; put a copy in its place, or leave it out")
        })?;
        Ok(text.to_owned())
    }

    fn file(&mut self, full: &Path, path: String) -> io::Result<()> {
        let fail = |error| about(full, &error);
        let file = File::open(full).map_err(fail)?;
        let found = file.metadata().map_err(fail)?;
        let (bytes, executable) = (found.len(), found.permissions().mode() & 0o111 != 0);
        self.line(&Entry::File { path, bytes, executable })?;
        // Errors of the receiving side must keep their kind, those of the file get its name.
        let copied = io::copy(&mut BufReader::with_capacity(BLOCK, file.take(bytes)), self.out)?;
        if copied != bytes {
            return Err(invalid(format!("{}: changed while it was read", full.display())));
        }
        Ok(())
    }
}

/// Unpacks a stream into `into`, an empty folder of the agent, up to `bytes_max` bytes.
///
/// # Errors
/// The stream is malformed or cut short, leaves the folder or its bounds; or the disk fails.
pub(super) fn unpack(from: &mut impl BufRead, into: &Path, bytes_max: u64) -> io::Result<()> {
    let mut room = bytes_max;
    let mut links = HashSet::new();
    for entries in 0..ENTRIES_MAX {
        let mut line = Vec::new();
        from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(invalid("the upload was cut short"));
        }
        match serde_json::from_slice(&line).map_err(|e| invalid(format!("bad entry: {e}")))? {
            Entry::Folder { path } => {
                let full = inside(into, &path, &links)?;
                fs::create_dir(&full).map_err(|error| about(&full, &error))?;
            }
            Entry::File { path, bytes, executable } => {
                room = room.checked_sub(bytes).ok_or_else(|| {
                    let limit = dugnad_fabric::Bytes(bytes_max);
                    let text =
                        format!("the folder is larger than the {limit} this node has room for");
                    io::Error::new(io::ErrorKind::FileTooLarge, text)
                })?;
                let full = inside(into, &path, &links)?;
                write_file(from, &full, bytes, executable)?;
            }
            Entry::Link { path, target } => {
                let full = inside(into, &path, &links)?;
                let depth = path.matches('/').count();
                check_link(depth, &target).map_err(|why| invalid(format!("{path}: {why}")))?;
                symlink(&target, &full).map_err(|error| about(&full, &error))?;
                links.insert(path);
            }
            Entry::End { entries: said } if said == entries => return Ok(()),
            Entry::End { entries: said } => {
                return Err(invalid(format!("the upload says {said} entries and has {entries}")));
            }
        }
    }
    Err(invalid(format!("the upload holds more than {ENTRIES_MAX} entries")))
}

fn write_file(
    from: &mut impl BufRead,
    full: &Path,
    bytes: u64,
    executable: bool,
) -> io::Result<()> {
    let mode = if executable { 0o755 } else { 0o644 };
    let fail = |error| about(full, &error);
    // `create_new` follows no link and overwrites nothing.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(full).map_err(fail)?;
    let copied = io::copy(&mut from.by_ref().take(bytes), &mut file).map_err(fail)?;
    if copied != bytes {
        return Err(invalid("the upload was cut short"));
    }
    Ok(())
}

/// The place of an entry, which must lie inside, and not behind one of the links there.
fn inside(into: &Path, path: &str, links: &HashSet<String>) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    let mut plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    let mut above = path;
    while let Some((folder, _)) = above.rsplit_once('/') {
        plain &= !links.contains(folder);
        above = folder;
    }
    plain &=
        !path.is_empty() && !path.contains('\0') && relative.components().count() <= DEPTH_MAX + 1;
    if !plain {
        return Err(invalid(format!("\"{path}\" is no path inside the folder")));
    }
    Ok(into.join(relative))
}

/// Hands what is written to it to the async side in blocks.
pub(crate) struct Sender {
    blocks: Channel<Bytes>,
    block: Vec<u8>,
    /// Bytes handed over so far, for whoever watches.
    sent: Arc<AtomicUsize>,
}

impl Sender {
    pub(crate) fn new(blocks: Channel<Bytes>, sent: Arc<AtomicUsize>) -> Self {
        Self { blocks, block: Vec::with_capacity(BLOCK), sent }
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        self.sent.fetch_add(block.len(), Ordering::Relaxed);
        self.blocks
            .send_blocking(Bytes::from(block))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the agent stopped reading"))
    }
}

/// Reads what the async side receives.
pub(super) struct Reader {
    blocks: Receiver<Bytes>,
    block: Bytes,
}

impl Reader {
    pub(super) fn new(blocks: Receiver<Bytes>) -> Self {
        Self { blocks, block: Bytes::new() }
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let taken = self.fill_buf()?.len().min(into.len());
        into[..taken].copy_from_slice(&self.block[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.block.is_empty() {
            match self.blocks.recv_blocking() {
                Ok(block) => self.block = block,
                // The other side is done, or gone: the end either way, which `unpack` tells apart.
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.block)
    }

    fn consume(&mut self, amount: usize) {
        self.block = self.block.slice(amount..);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_out_as_it_went_in() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/empty")).unwrap();
        fs::write(from.path().join("a/æ.txt"), "text").unwrap();
        fs::write(from.path().join("run"), vec![7; 200_000]).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(from.path().join("run"), mode).unwrap();
        symlink("run", from.path().join("same")).unwrap();
        symlink("../run", from.path().join("a/up")).unwrap();
        symlink("a", from.path().join("folder")).unwrap();
        let full = fs::canonicalize(from.path()).unwrap();
        symlink(full.join("a/empty"), from.path().join("a/full")).unwrap();
        symlink(&full, from.path().join("a/whole")).unwrap();
        let mut stream = Vec::new();
        pack(from.path(), &mut stream).unwrap();
        unpack(&mut stream.as_slice(), to.path(), 400_004).unwrap();
        assert_eq!(fs::read(to.path().join("run")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::read(to.path().join("same")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::read(to.path().join("a/æ.txt")).unwrap(), b"text");
        assert!(to.path().join("a/empty").is_dir());
        let link = |name: &str| fs::read_link(to.path().join(name)).unwrap();
        for (name, target) in [
            ("same", "run"),
            ("a/up", "../run"),
            ("folder", "a"),
            ("a/full", "../a/empty"),
            ("a/whole", "../"),
        ] {
            assert_eq!(link(name), Path::new(target), "{name}");
            assert!(to.path().join(name).exists(), "{name}");
        }
        let mode = |name: &str| fs::metadata(to.path().join(name)).unwrap().permissions().mode();
        assert_eq!((mode("run") & 0o111 != 0, mode("a/æ.txt") & 0o111), (true, 0));
    }

    #[test]
    fn a_stream_that_lies_is_refused() {
        let refused = |stream: &[u8], room: u64| {
            let to = tempfile::tempdir().unwrap();
            unpack(&mut &stream[..], &to.path().join("."), room).unwrap_err().to_string()
        };
        let file = |path: &str| {
            format!("{{\"file\":{{\"path\":{path:?},\"bytes\":2,\"executable\":false}}}}\nhi")
        };
        for path in ["../x", "/etc/x", "", "a/../b", "."] {
            let error = refused(file(path).as_bytes(), 9);
            assert_eq!(error, format!("\"{path}\" is no path inside the folder"));
        }
        assert_eq!(refused(file("x").as_bytes(), 9), "the upload was cut short");
        assert_eq!(refused(b"", 9), "the upload was cut short");
        assert_eq!(
            refused(file("x").as_bytes(), 1),
            "the folder is larger than the 1 this node has room for"
        );
        assert_eq!(
            refused(b"{\"end\":{\"entries\":3}}\n", 9),
            "the upload says 3 entries and has 0"
        );
        assert!(refused(b"{\"device\":{}}\n", 9).starts_with("bad entry: unknown variant"));
        let twice = [file("x"), file("x")].concat();
        assert!(refused(twice.as_bytes(), 9).contains("File exists"));
    }

    #[test]
    fn links_that_lead_out_are_named_and_refused_on_both_sides() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("a")).unwrap();
        for target in ["/etc/shadow", "../../x", "..", "b/../../.."] {
            let link = from.path().join("a/out");
            _ = fs::remove_file(&link);
            let target = if target == ".." { "../.." } else { target };
            symlink(target, &link).unwrap();
            let error = pack(from.path(), &mut Vec::new()).unwrap_err().to_string();
            let named = format!("a/out: the link leads to {target}: outside of the package");
            assert!(error.contains(&named), "{error}");
        }
        let refused = |stream: &str| {
            let to = tempfile::tempdir().unwrap();
            let into = to.path().join("into");
            fs::create_dir(&into).unwrap();
            let error = unpack(&mut stream.as_bytes(), &into, 99).unwrap_err().to_string();
            assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "nothing is outside");
            error
        };
        let link = |path: &str, target: &str| {
            format!("{{\"link\":{{\"path\":{path:?},\"target\":{target:?}}}}}\n")
        };
        let folder = "{\"folder\":{\"path\":\"d\"}}\n";
        let file = |path: &str| {
            format!("{{\"file\":{{\"path\":{path:?},\"bytes\":2,\"executable\":false}}}}\nhi")
        };
        for stream in [
            link("x", "/etc/shadow"),
            link("x", ".."),
            // Deep by its name, and not so deep in truth.
            format!("{folder}{}{}", link("d/up", ".."), link("d/up/out", "../..")),
            format!("{}{}", link("x", "."), file("x/y")),
            format!("{}{}", link("x", "nowhere"), file("x")),
        ] {
            let error = refused(&stream);
            let known = ["the link", "no path inside", "File exists"];
            assert!(known.iter().any(|word| error.contains(word)), "{stream}: {error}");
        }
    }
}
