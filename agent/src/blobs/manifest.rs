//! What a tree is made of: its manifest, and the index that lists the manifest's own chunks.
//!
//! Manifests come from other nodes. A decoded [`Manifest`] has been checked: whoever walks it can
//! join its paths to a folder without leaving that folder.

use std::collections::HashSet;

use dugnad_kernel::Hash;
use dugnad_resource::spec::Tree;
use serde::{Deserialize, Serialize};

/// The longest chunk, in bytes.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The longest manifest, in bytes: enough for 32 GB in long files.
pub(crate) const MANIFEST_MAX: usize = 4 * 1024 * 1024;
/// The most files, folders and links in a tree.
pub(crate) const ENTRIES_MAX: usize = 50_000;
/// The longest path and link target, in bytes.
pub(super) const PATH_MAX: usize = 1024;
const NAME_MAX: usize = 255;
const DEPTH_MAX: usize = 64;
const VERSION: u8 = 1;

/// Everything in a tree, sorted by path. The root folder itself is not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Relative, parts separated by `/`.
    pub(crate) path: String,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    Dir,
    File {
        executable: bool,
        /// Bytes.
        size: u64,
        /// Each holds [`CHUNK`] bytes, the last one what is left. An empty file has none.
        chunks: Vec<Hash>,
    },
    /// A symbolic link that stays inside the tree.
    Link {
        target: String,
    },
}

/// The chunk a tree is named after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    version: u8,
    /// Bytes of the manifest.
    pub(super) manifest: u32,
    /// Bytes of all files.
    bytes: u64,
    pub(super) chunks: Vec<Hash>,
}

impl Index {
    pub(super) fn new(manifest: u32, bytes: u64, chunks: Vec<Hash>) -> Self {
        Self { version: VERSION, manifest, bytes, chunks }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        postcard::to_allocvec(self).map_err(|error| error.to_string())
    }

    /// Decodes the index of `tree` and checks it against what was announced.
    pub(super) fn decode(tree: Tree, bytes: &[u8]) -> Result<Self, String> {
        let (index, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_| format!("tree {}: its index cannot be read", tree.root))?;
        let fits = index.manifest as usize <= MANIFEST_MAX
            && index.chunks.len() == (index.manifest as usize).div_ceil(CHUNK);
        if index.version != VERSION || !rest.is_empty() || !fits {
            return Err(format!("tree {}: its index is not one of this version", tree.root));
        }
        if index.bytes != tree.bytes {
            let (has, said) = (index.bytes, tree.bytes);
            return Err(format!("tree {}: holds {has} bytes, announced were {said}", tree.root));
        }
        Ok(index)
    }
}

impl Manifest {
    /// Bytes of all files.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        let size = |entry: &Entry| match entry.what {
            What::File { size, .. } => size,
            What::Dir | What::Link { .. } => 0,
        };
        self.entries.iter().map(size).fold(0, u64::saturating_add)
    }

    /// Every chunk of its files with its length in bytes, in order, repeated as often as used.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (Hash, usize)> + '_ {
        self.entries.iter().flat_map(|entry| match &entry.what {
            What::File { size, chunks, .. } => lengths(*size, chunks),
            What::Dir | What::Link { .. } => lengths(0, &[]),
        })
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let count = u32::try_from(self.entries.len()).map_err(|error| error.to_string())?;
        let mut bytes = postcard::to_allocvec(&count).map_err(|error| error.to_string())?;
        for entry in &self.entries {
            bytes = postcard::to_extend(entry, bytes).map_err(|error| error.to_string())?;
        }
        if bytes.len() > MANIFEST_MAX {
            return Err(format!(
                "the folder is too large: its list of files takes {} bytes, {MANIFEST_MAX} are \
                 allowed; split the service or pack small files together",
                bytes.len()
            ));
        }
        Ok(bytes)
    }

    /// Decodes and checks a manifest. Never takes more memory than a small multiple of `bytes`.
    ///
    /// # Errors
    /// What is wrong, naming the entry.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let broken = |_| "its list of files cannot be read".to_owned();
        let (count, mut rest) = postcard::take_from_bytes::<u32>(bytes).map_err(broken)?;
        if count as usize > ENTRIES_MAX {
            return Err(format!("it lists {count} files, {ENTRIES_MAX} are allowed"));
        }
        // One by one: a length inside is never trusted with memory before its bytes were seen.
        let mut entries = Vec::with_capacity((count as usize).min(bytes.len() / 3));
        for _ in 0..count {
            let (entry, after) = postcard::take_from_bytes::<Entry>(rest).map_err(broken)?;
            entries.push(entry);
            rest = after;
        }
        if !rest.is_empty() {
            return Err("its list of files is followed by something else".to_owned());
        }
        let manifest = Self { entries };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let mut dirs = HashSet::new();
        let mut before: Option<&str> = None;
        let mut total = 0_u64;
        for Entry { path, what } in &self.entries {
            let wrong = |why: &str| format!("{}: {why}", path.escape_debug());
            let depth = check_path(path).map_err(wrong)?;
            if before.is_some_and(|before| before >= path.as_str()) {
                return Err(wrong("listed twice or out of order"));
            }
            before = Some(path);
            // So no path ever leads through a link or a file.
            if path.rsplit_once('/').is_some_and(|(parent, _)| !dirs.contains(parent)) {
                return Err(wrong("its folder is not listed as a folder"));
            }
            match what {
                What::Dir => {
                    dirs.insert(path.as_str());
                }
                What::Link { target } => check_link(depth, target).map_err(wrong)?,
                What::File { size, chunks, .. } => {
                    if size.div_ceil(CHUNK as u64) != chunks.len() as u64 {
                        return Err(wrong("its size does not fit its chunks"));
                    }
                    total = total.checked_add(*size).ok_or_else(|| wrong("sizes overflow"))?;
                }
            }
        }
        Ok(())
    }
}

/// Chunks of one file with their lengths.
fn lengths(size: u64, chunks: &[Hash]) -> impl Iterator<Item = (Hash, usize)> + '_ {
    chunks.iter().enumerate().map(move |(at, hash)| {
        let left = size.saturating_sub(at as u64 * CHUNK as u64);
        (*hash, usize::try_from(left).unwrap_or(CHUNK).min(CHUNK))
    })
}

/// Checks that a path is relative, bounded and stays inside; gives how many folders it is deep.
pub(super) fn check_path(path: &str) -> Result<usize, &'static str> {
    if path.is_empty() || path.len() > PATH_MAX {
        return Err("a path must have 1 to 1024 bytes");
    }
    let mut depth = 0;
    for part in path.split('/') {
        match part {
            "" | "." | ".." => {
                return Err("a path must not be absolute nor hold '.', '..' or '//'");
            }
            _ if part.len() > NAME_MAX => return Err("a file name must have at most 255 bytes"),
            _ if part.contains('\0') => return Err("a path must not hold a zero byte"),
            _ => depth += 1,
        }
    }
    if depth > DEPTH_MAX {
        return Err("folders are nested more than 64 deep");
    }
    Ok(depth - 1)
}

/// Checks that a link `depth` folders deep leads to nowhere outside. `..` may only come first:
/// behind the name of another link it could climb further than it seems.
pub(crate) fn check_link(depth: usize, target: &str) -> Result<(), &'static str> {
    if target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
        return Err("a link's target must have 1 to 1024 bytes and no zero byte");
    }
    if target.starts_with('/') {
        return Err("the link is absolute; make it relative or copy what it points to");
    }
    let (mut up, mut down) = (0, false);
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if down => return Err("the link has '..' in its middle; write it shorter"),
            ".." => up += 1,
            _ => down = true,
        }
    }
    if up > depth {
        return Err("the link leads out of the folder; copy what it points to");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(path: &str, size: u64) -> Entry {
        let chunks = vec![Hash([1; 32]); usize::try_from(size.div_ceil(CHUNK as u64)).unwrap()];
        Entry { path: path.to_owned(), what: What::File { executable: false, size, chunks } }
    }

    fn dir(path: &str) -> Entry {
        Entry { path: path.to_owned(), what: What::Dir }
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.to_owned(), what: What::Link { target: target.to_owned() } }
    }

    fn decode(entries: Vec<Entry>) -> Result<Manifest, String> {
        Manifest::decode(&Manifest { entries }.encode().unwrap())
    }

    #[test]
    fn good_manifests_read_back() {
        let entries = vec![
            dir("a"),
            file("a-b", 5),
            dir("a/b"),
            file("a/b/ø€.txt", 600_000),
            link("a/up", "../a-b"),
            dir("empty"),
        ];
        let manifest = decode(entries.clone()).unwrap();
        assert_eq!(manifest.entries, entries);
        assert_eq!(manifest.bytes(), 600_005);
        let lengths: Vec<_> = manifest.chunks().map(|(_, length)| length).collect();
        assert_eq!(lengths, [5, CHUNK, CHUNK, 600_000 - 2 * CHUNK]);
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let long = "x".repeat(256);
        let deep = vec!["d"; 65].join("/");
        let bad: &[Vec<Entry>] = &[
            vec![file("../x", 1)],
            vec![file("/etc/passwd", 1)],
            vec![dir("a"), file("a/../../x", 1)],
            vec![dir("a"), file("a//x", 1)],
            vec![file("a\0b", 1)],
            vec![file("", 1)],
            vec![file(&long, 1)],
            vec![file(&deep, 1)],
            vec![file("b", 1), file("a", 1)],
            vec![file("a", 1), file("a", 1)],
            vec![file("a/b", 1)],
            vec![file("a", 1), file("a/b", 1)],
            vec![link("a", "."), file("a/b", 1)],
            vec![link("a", "/etc")],
            vec![link("a", "../etc")],
            vec![dir("a"), link("a/b", "../../etc")],
            vec![dir("a"), link("a/b", "c/../../..")],
            vec![link("a", "")],
        ];
        for entries in bad {
            assert!(decode(entries.clone()).is_err(), "{entries:?}");
        }
        let mut wrong_size = file("a", 1);
        wrong_size.what = What::File { executable: false, size: u64::MAX, chunks: vec![] };
        assert!(decode(vec![wrong_size]).is_err());
    }

    #[test]
    fn huge_counts_take_no_memory() {
        let count = |n: u32| postcard::to_allocvec(&n).unwrap();
        assert!(Manifest::decode(&count(u32::MAX)).is_err());
        assert!(Manifest::decode(&count(40_000)).is_err());
        // One entry whose file claims 2^32 chunks.
        let mut bytes = count(1);
        bytes.extend([1, b'a', 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(Manifest::decode(&bytes).is_err());
        let tree = Tree { root: Hash::default(), bytes: 0 };
        assert!(Index::decode(tree, &[1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
