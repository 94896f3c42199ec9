//! What an object is, where it lies, and how it is written down (PROTOCOL.md 7).

use alloc::string::String;
use alloc::vec::Vec;

use dugnad_kernel::Key;
use dugnad_resource::spec::{NAME_MAX, Tree, valid_name};
use serde::{Deserialize, Serialize};

use crate::persistence::record::Record;

/// Name of the record of an object of which the last written value counts.
pub const OBJECT: &[u8] = b"obj";
/// How the name of a record with concurrent values begins; the node that wrote them follows.
pub const SIBLINGS: &[u8] = b"sib";
/// Name of the record that says how a namespace is kept.
pub const NAMESPACE: &[u8] = b"ns";

/// Bytes of a key, namespace included.
pub const KEY_MAX: usize = 512;
/// Bytes of a value that lies in its record; a longer one is kept as a blob.
pub const INLINE_MAX: usize = 4096;
/// Services one namespace is shared with.
pub const SHARED_MAX: usize = 32;
/// Bytes a namespace may hold if nobody said otherwise.
pub const QUOTA: u64 = 256 << 20;

/// The namespace in which agents keep the state of services, each under the service's name.
pub const STATE: &str = "state";
/// The namespace of locks.
pub const LOCKS: &str = "locks";

/// Whether a record of this name is one of an object.
#[must_use]
pub fn is_object(name: &[u8]) -> bool {
    name == OBJECT || name.starts_with(SIBLINGS)
}

/// `namespace/path`, as people write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// Named as a service: letters, digits and `-`.
    pub namespace: String,
    /// Parts joined by `/`; none is empty, `.` or `..`.
    pub path: String,
}

impl Address {
    /// # Errors
    /// What is wrong, for a person to read.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > KEY_MAX {
            return Err("a key has at most 512 bytes");
        }
        let (namespace, path) = text.split_once('/').ok_or("a key is written namespace/path")?;
        valid_name(namespace).map_err(
            |_| "a namespace has 1 to 48 lower-case letters, digits and '-', not starting with '-'",
        )?;
        valid_path(path)?;
        Ok(Self { namespace: namespace.into(), path: path.into() })
    }

    /// Whether it is within its bounds; addresses come from other nodes, too.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.namespace.len() + 1 + self.path.len() <= KEY_MAX
            && valid_name(&self.namespace).is_ok()
            && valid_path(&self.path).is_ok()
    }

    /// Where on the ring the object is kept.
    #[must_use]
    pub fn key(&self) -> Key {
        let whole = [self.namespace.as_bytes(), b"/", self.path.as_bytes()].concat();
        Key::of_name("object", &whole)
    }
}

fn valid_path(path: &str) -> Result<(), &'static str> {
    if path.chars().any(char::is_control) {
        return Err("a key holds no control characters and no zero byte");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("a key has no empty part, no \".\" and no \"..\" between its slashes");
    }
    Ok(())
}

/// The bytes of a value, or where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// At most [`INLINE_MAX`] bytes.
    Inline(Vec<u8>),
    /// One file, kept as packages are.
    Blob(Tree),
    /// A folder, kept so too, and at most [`INLINE_MAX`] bytes about it.
    Folder { tree: Tree, note: Vec<u8> },
}

impl Content {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(tree) => tree.bytes,
            Self::Folder { tree, note } => tree.bytes.saturating_add(note.len() as u64),
        }
    }

    #[must_use]
    pub const fn blob(&self) -> Option<Tree> {
        match self {
            Self::Inline(_) => None,
            Self::Blob(tree) | Self::Folder { tree, .. } => Some(*tree),
        }
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        match self {
            Self::Inline(bytes) | Self::Folder { note: bytes, .. } => bytes.len() <= INLINE_MAX,
            Self::Blob(_) => true,
        }
    }
}

/// The value of an [`OBJECT`] record; a removed object is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub address: Address,
    pub content: Content,
}

impl Object {
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        let object: Self = postcard::from_bytes(record.value.as_ref()?).ok()?;
        let whole = object.address.fits() && object.content.fits();
        (record.name == OBJECT && whole && object.address.key() == record.key).then_some(object)
    }
}

/// What becomes of two writes that do not know of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manner {
    /// The later one counts.
    #[default]
    Last,
    /// Both stay, until somebody who has read both writes again.
    Merge,
    /// There are not two: each is before or after the other for everybody (8).
    Strong,
}

/// Names the key with which the values of a namespace are encrypted before they reach a node: a
/// hash of it. The core never sees a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal(pub [u8; 8]);

/// How the objects of a namespace are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub name: String,
    pub manner: Manner,
    /// Nobody writes.
    pub read_only: bool,
    /// Bytes of all values.
    pub quota: u64,
    /// Services that may use it beside the one of its name.
    pub shared: Vec<String>,
    /// Whether values are encrypted, and with which key.
    pub seal: Option<Seal>,
}

impl Namespace {
    /// As it is made where nobody said how.
    #[must_use]
    pub fn plain(name: &str) -> Self {
        Self {
            name: name.into(),
            manner: Manner::default(),
            read_only: false,
            // What services need of the disk bounds their state already.
            quota: if name == STATE { u64::MAX } else { QUOTA },
            shared: Vec::new(),
            seal: None,
        }
    }

    /// Where on the ring its record is kept.
    #[must_use]
    pub fn key_of(name: &str) -> Key {
        Key::of_name("namespace", name.as_bytes())
    }

    #[must_use]
    pub fn fits(&self) -> bool {
        let shared = self.shared.len() <= SHARED_MAX
            && self.shared.iter().all(|service| service.len() <= NAME_MAX);
        // The agents read and write these themselves.
        let open = ![STATE, LOCKS].contains(&self.name.as_str()) || self.seal.is_none();
        valid_name(&self.name).is_ok() && shared && open
    }

    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        // One more byte: a record from before there were seals ends without, and 0 says so.
        let bytes = [record.value.as_ref()?.as_slice(), &[0]].concat();
        let namespace: Self = postcard::from_bytes(&bytes).ok()?;
        let mine = record.name == NAMESPACE && record.key == Self::key_of(&namespace.name);
        (mine && namespace.fits()).then_some(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn keys_are_a_namespace_and_a_path() {
        let address = Address::parse("notes/2026/today").unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((address.namespace.as_str(), address.path.as_str()), ("notes", "2026/today"));
        assert!(address.fits());
        for good in ["a/b", "a/ø€", "a/b c", "a/..b", "a/b.", "0/0"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        let long = ["a/", &"x".repeat(KEY_MAX - 2)].concat();
        assert!(Address::parse(&long).is_ok());
        let bad = [
            "", "a", "a/", "/a", "A/b", "-a/b", "a/../b", "a/..", "a/.", "a//b", "a/b/", "a/b\0c",
            "a/b\nc", "a b/c", "../a",
        ];
        for bad in bad.iter().map(ToString::to_string).chain([long + "x"]) {
            assert!(Address::parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_namespace_from_before_there_were_seals_is_read() {
        let plain = Namespace::plain("notes");
        let mut value = postcard::to_allocvec(&plain).unwrap_or_default();
        let (key, name) = (Namespace::key_of("notes"), NAMESPACE.to_vec());
        let record = |value| Record {
            key,
            name: name.clone(),
            version: Default::default(),
            value: Some(value),
        };
        assert_eq!(Namespace::of(&record(value.clone())), Some(plain.clone()));
        assert_eq!(value.pop(), Some(0), "no seal is the last byte");
        assert_eq!(Namespace::of(&record(value)), Some(plain.clone()));
        let sealed = Namespace { seal: Some(Seal([7; 8])), ..plain };
        let value = postcard::to_allocvec(&sealed).unwrap_or_default();
        assert_eq!(Namespace::of(&record(value)), Some(sealed));
    }

    #[test]
    fn a_record_of_another_place_is_no_object() {
        let address = Address { namespace: "a".into(), path: "b".into() };
        let object = Object { address: address.clone(), content: Content::Inline(b"c".to_vec()) };
        let value = postcard::to_allocvec(&object).ok();
        let mut record = Record {
            key: address.key(),
            name: OBJECT.to_vec(),
            version: Default::default(),
            value,
        };
        assert_eq!(Object::of(&record), Some(object));
        record.key = record.key.plus(1);
        assert_eq!(Object::of(&record), None);
    }
}
