//! Identifiers on the ring of 2^128 points (PROTOCOL.md 1.1).
//!
//! Nodes and keys live in the same space but are hashed with different tags, so that nobody can
//! place a key under a chosen node.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A point on the ring. All arithmetic wraps.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id(pub u128);

/// The place of a node on the ring.
pub type NodeId = Id;
/// The place of a thing on the ring; its owner is the first node at or after it.
pub type Key = Id;

/// BLAKE3 of some bytes: the name of a chunk or of a tree.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

/// Names a community without giving its secret away.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommunityId(pub [u8; 16]);

fn digest(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag.as_bytes());
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

fn trunc128(bytes: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[..16]);
    out
}

impl CommunityId {
    /// The public name of the community that shares `secret`.
    #[must_use]
    pub fn of_secret(secret: &[u8; 32]) -> Self {
        Self(trunc128(&digest("community-id/1", &[secret])))
    }
}

impl Id {
    /// The node id of a device key (PROTOCOL.md 1.1). `slot` (0..4) and `salt` come from the
    /// admission; a device that was simply invited has slot 0 and an empty salt.
    #[must_use]
    pub fn of_device(community: CommunityId, public_key: &[u8; 32], slot: u8, salt: &[u8]) -> Self {
        Self::of_digest(&digest("ring-id/1", &[&community.0, public_key, &[slot], salt]))
    }

    /// The key of a name inside a namespace (PROTOCOL.md 1.1).
    #[must_use]
    pub fn of_name(namespace: &str, name: &[u8]) -> Self {
        Self::of_digest(&digest("key/1", &[namespace.as_bytes(), name]))
    }

    fn of_digest(bytes: &[u8; 32]) -> Self {
        Self(u128::from_be_bytes(trunc128(bytes)))
    }

    /// Clockwise distance from `self` to `to`.
    #[must_use]
    pub const fn distance(self, to: Self) -> u128 {
        to.0.wrapping_sub(self.0)
    }

    /// The point `by` further clockwise.
    #[must_use]
    pub const fn plus(self, by: u128) -> Self {
        Self(self.0.wrapping_add(by))
    }

    /// The point `by` counter-clockwise.
    #[must_use]
    pub const fn minus(self, by: u128) -> Self {
        Self(self.0.wrapping_sub(by))
    }

    /// Four characters people can read aloud: the top 20 bits in Crockford's base 32.
    #[must_use]
    pub fn short(self) -> Short {
        Short(self)
    }
}

impl Hash {
    /// BLAKE3 of `bytes`, untagged, so that any tool can check it.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Parses 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        Some(Self(out))
    }
}

/// Displays an id by its first four base-32 characters.
#[derive(Clone, Copy)]
pub struct Short(Id);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        for place in 0..4 {
            let digit = usize::try_from((self.0.0 >> (123 - 5 * place)) & 31).unwrap_or(0);
            fmt::Write::write_char(f, char::from(ALPHABET[digit]))?;
        }
        Ok(())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for CommunityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CommunityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_keys_are_hashed_apart() {
        let community = CommunityId::of_secret(&[7; 32]);
        let node = Id::of_device(community, &[1; 32], 0, b"");
        assert_ne!(node, Id::of_device(community, &[1; 32], 1, b""));
        assert_ne!(node, Id::of_name("ring-id/1", &[1; 32]));
        assert_ne!(Id::of_name("ab", b"c"), Id::of_name("a", b"bc"));
    }

    #[test]
    fn short_names_are_the_top_bits() {
        assert_eq!(Id(0).short().to_string(), "0000");
        assert_eq!(Id(u128::MAX).short().to_string(), "ZZZZ");
        assert_eq!(Id(1 << 123).short().to_string(), "1000");
    }

    #[test]
    fn hashes_read_back_what_they_print() {
        let hash = Hash::of(b"dugnad");
        assert_eq!(Hash::from_hex(&hash.to_string()), Some(hash));
        assert_eq!(Hash::from_hex("abc"), None);
        assert_eq!(Hash::from_hex(&"g".repeat(64)), None);
    }
}
