//! A folder as a stream: for each entry one line of JSON, then (for a file) its bytes; a last
//! line says how many entries there were, so that a stream cut short is seen.
//!
//! Both sides are plain blocking code; [`Sender`] and [`Reader`] join them to the async side
//! through a channel of a few blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use smol::channel::{Receiver, Sender as Channel};

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
    Folder { path: String },
    File { path: String, bytes: u64, executable: bool },
    End { entries: u64 },
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Writes all of `folder` to `out`: files (also through links to files) and folders, in order of
/// their names.
///
/// # Errors
/// Something cannot be read, is neither file nor folder, or has a name that is no text; named.
/// `BrokenPipe` if the other side no longer reads.
pub(super) fn pack(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut packer = Packer { out, entries: 0 };
    packer.folder(folder, "", 0)?;
    let entries = packer.entries;
    packer.line(&Entry::End { entries })?;
    out.flush()
}

struct Packer<'a, W> {
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
            let link = fs::symlink_metadata(&full).map_err(|error| about(&full, &error))?;
            let found = fs::metadata(&full).map_err(|error| about(&full, &error))?;
            if found.is_dir() && link.is_symlink() {
                let text = format!("{}: a link to a folder cannot be stored", full.display());
                return Err(invalid(text));
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
    for entries in 0..ENTRIES_MAX {
        let mut line = Vec::new();
        from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(invalid("the upload was cut short"));
        }
        match serde_json::from_slice(&line).map_err(|e| invalid(format!("bad entry: {e}")))? {
            Entry::Folder { path } => {
                let full = inside(into, &path)?;
                fs::create_dir(&full).map_err(|error| about(&full, &error))?;
            }
            Entry::File { path, bytes, executable } => {
                room = room.checked_sub(bytes).ok_or_else(|| {
                    let limit = dugnad_fabric::Bytes(bytes_max);
                    let text =
                        format!("the folder is larger than the {limit} this node has room for");
                    io::Error::new(io::ErrorKind::FileTooLarge, text)
                })?;
                let full = inside(into, &path)?;
                write_file(from, &full, bytes, executable)?;
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

/// The place of an entry, which must lie inside.
fn inside(into: &Path, path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    let mut plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    plain &=
        !path.is_empty() && !path.contains('\0') && relative.components().count() <= DEPTH_MAX + 1;
    if !plain {
        return Err(invalid(format!("\"{path}\" is no path inside the folder")));
    }
    Ok(into.join(relative))
}

/// Hands what is written to it to the async side in blocks.
pub(super) struct Sender {
    blocks: Channel<Bytes>,
    block: Vec<u8>,
}

impl Sender {
    pub(super) fn new(blocks: Channel<Bytes>) -> Self {
        Self { blocks, block: Vec::with_capacity(BLOCK) }
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
        std::os::unix::fs::symlink("run", from.path().join("same")).unwrap();
        let mut stream = Vec::new();
        pack(from.path(), &mut stream).unwrap();
        unpack(&mut stream.as_slice(), to.path(), 400_004).unwrap();
        assert_eq!(fs::read(to.path().join("run")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::read(to.path().join("same")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::read(to.path().join("a/æ.txt")).unwrap(), b"text");
        assert!(to.path().join("a/empty").is_dir());
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
    fn what_cannot_be_stored_is_named() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("a")).unwrap();
        std::os::unix::fs::symlink(".", from.path().join("a/loop")).unwrap();
        let error = pack(from.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.ends_with("a/loop: a link to a folder cannot be stored"), "{error}");
    }
}
