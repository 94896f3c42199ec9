//! Values that only who has the key can read (PROTOCOL.md 7.5). They are encrypted before they
//! leave the agent that was asked to keep them, and opened by the one that is asked for them; the
//! nodes that keep them see how long they are and under which name.
//!
//! One byte [`FORMAT`], 19 random bytes, then blocks of at most [`BLOCK`] bytes, each with a tag of
//! 16: `XChaCha20-Poly1305` as STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, 2015). So a value
//! streams, and what is cut off, swapped or changed is found. The key of the object belongs to each
//! block: who keeps a value cannot pass it off as another.

use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::Payload;
use chacha20poly1305::aead::stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use dugnad_node::Seal;

use crate::identity;

const FORMAT: u8 = 1;
const NONCE: usize = 19;
const HEAD: usize = 1 + NONCE;
const TAG: usize = 16;
/// Bytes of a value that are encrypted as one.
const BLOCK: usize = 64 << 10;

/// The key of a namespace.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    /// Without the secret: this may end in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:?})", self.seal())
    }
}

impl Secret {
    /// # Errors
    /// The kernel gives no random numbers.
    pub(crate) fn create() -> io::Result<Self> {
        identity::random().map(Self)
    }

    /// As [`Self::text`] writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        identity::from_hex(text).map(Self)
    }

    /// 64 hexadecimal digits.
    pub(crate) fn text(&self) -> String {
        identity::hex(&self.0)
    }

    /// What the community knows of it.
    pub(crate) fn seal(&self) -> Seal {
        let whole = blake3::derive_key("dugnad 2026 name of the key of a namespace", &self.0);
        let mut name = [0; 8];
        name.copy_from_slice(&whole[..8]);
        Seal(name)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&self.0).into())
    }
}

/// Bytes of a value of `plain` bytes when it is sealed.
pub(crate) fn sealed_length(plain: u64) -> u64 {
    let blocks = plain.div_ceil(BLOCK as u64).max(1);
    plain.saturating_add(HEAD as u64).saturating_add(blocks.saturating_mul(TAG as u64))
}

/// Bytes of a value that takes `sealed` when it is sealed; `None` if none does.
pub(crate) fn opened_length(sealed: u64) -> Option<u64> {
    let body = sealed.checked_sub(HEAD as u64)?;
    body.checked_sub(body.div_ceil((BLOCK + TAG) as u64).max(1) * TAG as u64)
}

fn broken() -> io::Error {
    let text = "the value does not fit the key on this node: another key sealed it, or somebody \
                changed it";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Seals a value as it comes.
pub(crate) struct Sealer {
    stream: Option<EncryptorBE32<XChaCha20Poly1305>>,
    about: Vec<u8>,
    /// What comes first, as long as it was not given out.
    head: Vec<u8>,
    plain: Vec<u8>,
}

impl Sealer {
    /// `about`: the key of the object.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub(crate) fn new(secret: &Secret, about: &str) -> io::Result<Self> {
        let random = identity::random()?;
        let nonce = &random[..NONCE];
        let stream = EncryptorBE32::from_aead(secret.cipher(), nonce.into());
        let head = [&[FORMAT], nonce].concat();
        Ok(Self { stream: Some(stream), about: about.into(), head, plain: Vec::new() })
    }

    /// What can be given out when these bytes have come.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.head);
        self.plain.extend_from_slice(bytes);
        // The last block is another than those before it; only the end tells which it is.
        while self.plain.len() > BLOCK {
            let rest = self.plain.split_off(BLOCK);
            let block = Payload { msg: &self.plain, aad: &self.about };
            let stream = self.stream.as_mut().ok_or_else(broken)?;
            out.extend(stream.encrypt_next(block).map_err(|_| broken())?);
            self.plain = rest;
        }
        Ok(out)
    }

    /// The rest.
    pub(crate) fn finish(&mut self) -> io::Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.head);
        let stream = self.stream.take().ok_or_else(broken)?;
        let block = Payload { msg: &self.plain, aad: &self.about };
        out.extend(stream.encrypt_last(block).map_err(|_| broken())?);
        Ok(out)
    }
}

/// Opens a value as it comes.
pub(crate) struct Opener {
    secret: Secret,
    stream: Option<DecryptorBE32<XChaCha20Poly1305>>,
    about: Vec<u8>,
    sealed: Vec<u8>,
}

impl Opener {
    pub(crate) fn new(secret: Secret, about: &str) -> Self {
        Self { secret, stream: None, about: about.into(), sealed: Vec::new() }
    }

    /// What can be given out when these bytes have come.
    ///
    /// # Errors
    /// It is no value that this key sealed for this object.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.sealed.extend_from_slice(bytes);
        if self.stream.is_none() && self.sealed.len() >= HEAD {
            let rest = self.sealed.split_off(HEAD);
            let head = std::mem::replace(&mut self.sealed, rest);
            if head[0] != FORMAT {
                return Err(broken());
            }
            let nonce = &head[1..];
            self.stream = Some(DecryptorBE32::from_aead(self.secret.cipher(), nonce.into()));
        }
        let mut out = Vec::new();
        while let Some(stream) = self.stream.as_mut().filter(|_| self.sealed.len() > BLOCK + TAG) {
            let rest = self.sealed.split_off(BLOCK + TAG);
            let block = Payload { msg: &self.sealed, aad: &self.about };
            out.extend(stream.decrypt_next(block).map_err(|_| broken())?);
            self.sealed = rest;
        }
        Ok(out)
    }

    /// The rest, now that nothing follows.
    ///
    /// # Errors
    /// As [`Self::take`]; also if the end is missing.
    pub(crate) fn finish(&mut self) -> io::Result<Vec<u8>> {
        let stream = self.stream.take().ok_or_else(broken)?;
        let block = Payload { msg: &self.sealed, aad: &self.about };
        stream.decrypt_last(block).map_err(|_| broken())
    }
}

/// The keys of namespaces this node has, each in a file that only its owner reads.
#[derive(Clone, Debug)]
pub(crate) struct Keys(PathBuf);

impl Keys {
    const FOLDER: &'static str = "keys";

    /// `state`: the state folder.
    pub(crate) fn new(state: &Path) -> Self {
        Self(state.join(Self::FOLDER))
    }

    /// Where the key of a namespace is kept.
    pub(crate) fn path(&self, namespace: &str) -> PathBuf {
        self.0.join(namespace)
    }

    /// # Errors
    /// It is there and cannot be read, or others may read it; with the path.
    pub(crate) fn get(&self, namespace: &str) -> io::Result<Option<Secret>> {
        let path = self.path(namespace);
        let text = match identity::read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        identity::check_private(&path)?;
        let secret = Secret::parse(&text).ok_or_else(|| {
            let text = format!("{}: expected 64 hexadecimal digits", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Ok(Some(secret))
    }

    /// On the medium when it returns.
    ///
    /// # Errors
    /// Those of the file system, with the path.
    pub(crate) fn put(&self, namespace: &str, secret: &Secret) -> io::Result<()> {
        std::fs::create_dir_all(&self.0).map_err(|error| identity::at(&self.0, &error))?;
        identity::write_synced(&self.0, namespace, format!("{}\n", secret.text()).as_bytes())
    }

    /// # Errors
    /// Those of the file system, with the path.
    pub(crate) fn forget(&self, namespace: &str) -> io::Result<()> {
        let path = self.path(namespace);
        identity::missing_is_fine(std::fs::remove_file(&path))
            .map_err(|error| identity::at(&path, &error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret([byte; 32])
    }

    fn sealed(secret: &Secret, about: &str, plain: &[u8], step: usize) -> Vec<u8> {
        let mut sealer = Sealer::new(secret, about).unwrap();
        let mut out: Vec<u8> = Vec::new();
        for part in plain.chunks(step) {
            out.extend(sealer.take(part).unwrap());
        }
        out.extend(sealer.finish().unwrap());
        out
    }

    fn opened(secret: &Secret, about: &str, bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut opener = Opener::new(secret.clone(), about);
        let mut out = Vec::new();
        for part in bytes.chunks(step) {
            out.extend(opener.take(part)?);
        }
        out.extend(opener.finish()?);
        Ok(out)
    }

    #[test]
    fn what_is_sealed_opens_again_in_any_pieces() {
        for length in [0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5] {
            let plain: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            for step in [1_000, BLOCK + TAG, usize::MAX] {
                let bytes = sealed(&secret(1), "photos/a", &plain, step);
                assert_eq!(bytes.len() as u64, sealed_length(length as u64));
                assert_eq!(opened_length(bytes.len() as u64), Some(length as u64));
                let again = opened(&secret(1), "photos/a", &bytes, 977).unwrap();
                assert!(again == plain, "{length} bytes in steps of {step}");
            }
        }
        assert_eq!(opened_length(10), None);
        assert_eq!(opened_length(HEAD as u64), None);
    }

    #[test]
    fn what_was_changed_cut_moved_or_sealed_with_another_key_does_not_open() {
        let plain = vec![9; 2 * BLOCK + 100];
        let bytes = sealed(&secret(1), "photos/a", &plain, BLOCK);
        assert!(!bytes.windows(16).any(|window| window == [9; 16]), "nothing of it shows");
        assert!(opened(&secret(2), "photos/a", &bytes, BLOCK).is_err());
        assert!(opened(&secret(1), "photos/b", &bytes, BLOCK).is_err());
        let second = HEAD + BLOCK + TAG;
        for end in [0, 5, HEAD, HEAD + 4, second, 2 * (BLOCK + TAG) + HEAD, bytes.len() - 1] {
            assert!(opened(&secret(1), "photos/a", &bytes[..end], BLOCK).is_err(), "cut at {end}");
        }
        for at in [0, 1, HEAD, second, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(opened(&secret(1), "photos/a", &changed, BLOCK).is_err(), "changed at {at}");
        }
        let mut swapped = bytes.clone();
        swapped[HEAD..].rotate_left(BLOCK + TAG);
        assert!(opened(&secret(1), "photos/a", &swapped, BLOCK).is_err());
    }

    #[test]
    fn keys_are_kept_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path());
        assert_eq!(keys.get("photos").unwrap(), None);
        let secret = Secret::create().unwrap();
        keys.put("photos", &secret).unwrap();
        assert_eq!(keys.get("photos").unwrap(), Some(secret.clone()));
        assert_eq!(Secret::parse(&secret.text()), Some(secret.clone()));
        assert!(!format!("{secret:?}").contains(&secret.text()));
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(keys.path("photos"), open).unwrap();
        assert!(keys.get("photos").is_err(), "others may read it");
        keys.put("photos", &secret).unwrap();
        std::fs::write(keys.path("photos"), "short").unwrap();
        assert!(keys.get("photos").is_err());
    }
}
