//! A manifest to look paths up in: the bytes it came in, and where in them each entry begins.
//! Decoded, fifty thousand files would take three times the memory.

use dugnad_kernel::Hash;
use serde::Deserialize;

use super::manifest::{Manifest, PATH_MAX};

/// Links followed before a path counts as a loop.
const LINKS_MAX: usize = 16;
const HASH: usize = size_of::<Hash>();

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Dir,
    /// `entry`: its place in the manifest, for [`Catalog::chunk`].
    File {
        entry: usize,
        size: u64,
    },
}

/// Everything in a tree, by path.
pub(crate) struct Catalog {
    bytes: Vec<u8>,
    at: Vec<u32>,
}

/// [`super::manifest::Entry`] up to the hashes of its chunks, which follow.
#[derive(Deserialize)]
struct Head<'a> {
    _path: &'a str,
    what: HeadOf<'a>,
}

#[derive(Deserialize)]
enum HeadOf<'a> {
    Dir,
    File { _executable: bool, size: u64, chunks: u32 },
    Link { target: &'a str },
}

impl Catalog {
    /// Of a manifest's bytes and what they decode to.
    pub(super) fn new(manifest: &Manifest, bytes: Vec<u8>) -> Result<Self, postcard::Error> {
        let (_, mut rest) = postcard::take_from_bytes::<u32>(&bytes)?;
        let mut at = Vec::with_capacity(manifest.entries.len());
        for _ in &manifest.entries {
            let start = bytes.len() - rest.len();
            at.push(u32::try_from(start).map_err(|_| postcard::Error::DeserializeUnexpectedEnd)?);
            let (head, after) = postcard::take_from_bytes::<Head<'_>>(rest)?;
            let hashes = match head.what {
                HeadOf::File { chunks, .. } => chunks as usize * HASH,
                HeadOf::Dir | HeadOf::Link { .. } => 0,
            };
            rest = after.get(hashes..).ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        }
        Ok(Self { bytes, at })
    }

    /// Bytes it takes in memory.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.at.len() * size_of::<u32>()
    }

    /// An entry, and the hashes of its chunks. It was read once already.
    fn head(&self, entry: usize) -> Option<(Head<'_>, &[u8])> {
        let start = *self.at.get(entry)? as usize;
        postcard::take_from_bytes(self.bytes.get(start..)?).ok()
    }

    fn place(&self, path: &str) -> Option<usize> {
        let by_path = |start: &u32| {
            let path = self.bytes.get(*start as usize..);
            let path = path.and_then(|bytes| postcard::take_from_bytes::<&str>(bytes).ok());
            path.map_or("", |(path, _)| path)
        };
        self.at.binary_search_by(|start| by_path(start).cmp(path)).ok()
    }

    /// A chunk of the file at this place of the list, counted from 0.
    #[must_use]
    pub(crate) fn chunk(&self, entry: usize, number: usize) -> Option<Hash> {
        let (head, hashes) = self.head(entry)?;
        let HeadOf::File { chunks, .. } = head.what else { return None };
        let hash = hashes.chunks_exact(HASH).take(chunks as usize).nth(number)?;
        Some(Hash(hash.try_into().ok()?))
    }

    /// What a path leads to, following links. Empty parts and `.` are skipped; `..` is nothing.
    #[must_use]
    pub(crate) fn find(&self, path: &str) -> Option<Found> {
        let parts = |path: &str| -> Vec<String> {
            path.split('/').rev().filter(|p| !matches!(*p, "" | ".")).map(str::to_owned).collect()
        };
        if path.len() > PATH_MAX || path.split('/').any(|part| part == "..") {
            return None;
        }
        let mut todo = parts(path);
        let mut at = String::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            let parent = at.len();
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(&part);
            let entry = self.place(&at)?;
            match self.head(entry)?.0.what {
                HeadOf::Dir => {}
                HeadOf::Link { target } => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    at.truncate(parent);
                    todo.extend(parts(target));
                }
                HeadOf::File { size, .. } => {
                    return todo.is_empty().then_some(Found::File { entry, size });
                }
            }
        }
        Some(Found::Dir)
    }

    /// How many files there are.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::manifest::{CHUNK, Entry, What};
    use super::*;

    fn catalog(entries: Vec<Entry>) -> Catalog {
        let bytes = Manifest { entries }.encode().unwrap();
        Catalog::new(&Manifest::decode(&bytes).unwrap(), bytes).unwrap()
    }

    fn entry(path: &str, what: What) -> Entry {
        Entry { path: path.to_owned(), what }
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path, What::Link { target: target.to_owned() })
    }

    fn file(path: &str, size: u64) -> Entry {
        let count = usize::try_from(size.div_ceil(CHUNK as u64)).unwrap();
        let chunks = (0..count).map(|n| Hash([u8::try_from(n).unwrap() + 1; 32])).collect();
        entry(path, What::File { executable: true, size, chunks })
    }

    #[test]
    fn paths_are_found_and_chunks_with_them() {
        let all = vec![
            entry("a", What::Dir),
            file("a-b", 5),
            entry("a/b", What::Dir),
            file("a/b/ø€.txt", 600_000),
            link("a/up", "../a-b"),
            entry("empty", What::Dir),
        ];
        let catalog = catalog(all.clone());
        assert_eq!(catalog.len(), all.len());
        assert_eq!(catalog.find("a/up"), Some(Found::File { entry: 1, size: 5 }));
        assert_eq!(catalog.find("/a//b/./"), Some(Found::Dir));
        assert_eq!(catalog.find(""), Some(Found::Dir));
        for nowhere in ["b", "a/../a-b", "a-b/c", "a/b/ø", ".."] {
            assert_eq!(catalog.find(nowhere), None, "{nowhere}");
        }
        let Some(Found::File { entry, size: 600_000 }) = catalog.find("a/b/ø€.txt") else {
            panic!("not found")
        };
        for number in 0..3 {
            assert_eq!(catalog.chunk(entry, number), Some(Hash([number as u8 + 1; 32])));
        }
        assert_eq!((catalog.chunk(entry, 3), catalog.chunk(0, 0)), (None, None));
    }

    #[test]
    fn loops_of_links_end() {
        let catalog = catalog(vec![link("a", "b"), link("b", "a"), link("c", ".")]);
        assert_eq!(catalog.find("a"), None);
        assert_eq!(catalog.find("c/c/c"), Some(Found::Dir));
    }
}
