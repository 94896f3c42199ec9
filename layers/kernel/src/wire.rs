//! Frames: `[version][length, two bytes, little endian][postcard]`, at most 64 KiB in all.
//!
//! Decoding never panics and never trusts a length: what is wrong is [`Dropped`] with its reason.
//! The layout is fixed by golden bytes in `layers/node/tests/golden.rs`; a change to any message
//! is a new [`VERSION`].

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use embedded_io::{Read, ReadExactError, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of every message a node of this build sends and understands.
pub const VERSION: u8 = 6;
/// Bytes before the body.
pub const HEADER: usize = 3;
/// The longest body, in bytes.
pub const BODY_MAX: usize = u16::MAX as usize - HEADER;

/// Why bytes from outside were not taken. Nothing else happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// The frame says another version than [`VERSION`].
    Version(u8),
    /// The frame says it is longer than [`BODY_MAX`].
    TooLarge,
    /// The bytes are no message of this version, or more than one.
    Malformed,
    /// The stream ended inside a frame.
    Truncated,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(theirs) => write!(f, "wire version {theirs}, ours is {VERSION}"),
            Self::TooLarge => write!(f, "frame longer than {BODY_MAX} bytes"),
            Self::Malformed => f.write_str("malformed message"),
            Self::Truncated => f.write_str("truncated frame"),
        }
    }
}

/// A message that does not fit a frame. It was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    pub bytes: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message of {} bytes does not fit a frame of {BODY_MAX}", self.bytes)
    }
}

/// One frame holding `message`.
///
/// # Errors
/// [`TooLarge`] if the message needs more than [`BODY_MAX`] bytes.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, TooLarge> {
    // Serialising plain data into memory cannot fail; an error would mean an unsized sequence.
    let frame = postcard::to_extend(message, vec![VERSION, 0, 0])
        .map_err(|_| TooLarge { bytes: usize::MAX })?;
    let bytes = frame.len() - HEADER;
    let mut frame = frame;
    match u16::try_from(bytes) {
        Ok(length) if bytes <= BODY_MAX => frame[1..HEADER].copy_from_slice(&length.to_le_bytes()),
        _ => return Err(TooLarge { bytes }),
    }
    Ok(frame)
}

/// The length of the body that follows a header.
///
/// # Errors
/// [`Dropped::Version`] and [`Dropped::TooLarge`].
pub fn body_length(header: [u8; HEADER]) -> Result<usize, Dropped> {
    let length = usize::from(u16::from_le_bytes([header[1], header[2]]));
    match (header[0], length) {
        (VERSION, 0..=BODY_MAX) => Ok(length),
        (VERSION, _) => Err(Dropped::TooLarge),
        (theirs, _) => Err(Dropped::Version(theirs)),
    }
}

/// The message in `body`, which must hold it and nothing else.
///
/// # Errors
/// [`Dropped::Malformed`].
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, Dropped> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(Dropped::Malformed),
    }
}

/// Writes one frame.
///
/// # Errors
/// [`WriteError::TooLarge`] before anything is written; otherwise the writer's own error.
pub fn write_frame<W: Write, M: Serialize>(
    writer: &mut W,
    message: &M,
) -> Result<(), WriteError<W::Error>> {
    let frame = encode(message).map_err(WriteError::TooLarge)?;
    writer.write_all(&frame).map_err(WriteError::Io)
}

/// What [`write_frame`] may end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError<E> {
    TooLarge(TooLarge),
    Io(E),
}

/// Reads one frame.
///
/// # Errors
/// [`ReadError::Dropped`] with the reason, or the reader's own error.
pub fn read_frame<R: Read, M: DeserializeOwned>(reader: &mut R) -> Result<M, ReadError<R::Error>> {
    let mut header = [0; HEADER];
    read_exact(reader, &mut header)?;
    let length = body_length(header).map_err(ReadError::Dropped)?;
    let mut body = vec![0; length];
    read_exact(reader, &mut body)?;
    decode(&body).map_err(ReadError::Dropped)
}

/// What [`read_frame`] may end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError<E> {
    Dropped(Dropped),
    Io(E),
}

fn read_exact<R: Read>(reader: &mut R, buffer: &mut [u8]) -> Result<(), ReadError<R::Error>> {
    reader.read_exact(buffer).map_err(|error| match error {
        ReadExactError::UnexpectedEof => ReadError::Dropped(Dropped::Truncated),
        ReadExactError::Other(error) => ReadError::Io(error),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    type Sample = (u32, Vec<u8>, Option<u64>);

    #[test]
    fn frames_come_back_as_they_went() {
        let sample: Sample = (7, vec![1, 2, 3], Some(u64::MAX));
        let mut bytes = Vec::new();
        assert_eq!(write_frame(&mut bytes, &sample), Ok(()));
        assert_eq!(read_frame(&mut bytes.as_slice()), Ok(sample));
    }

    #[test]
    fn every_kind_of_damage_has_its_reason() {
        let frame = encode(&(7u32, 9u32)).unwrap();
        let read = |bytes: &[u8]| read_frame::<_, (u32, u32)>(&mut &bytes[..]);
        let mut other = frame.clone();
        other[0] = 9;
        assert_eq!(read(&other), Err(ReadError::Dropped(Dropped::Version(9))));
        let mut long = frame.clone();
        long[1..3].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(read(&long), Err(ReadError::Dropped(Dropped::TooLarge)));
        assert_eq!(read(&frame[..4]), Err(ReadError::Dropped(Dropped::Truncated)));
        let trailing = encode(&(7u32, 9u32, 1u8)).unwrap();
        assert_eq!(read(&trailing), Err(ReadError::Dropped(Dropped::Malformed)));
    }

    #[test]
    fn a_message_too_large_is_not_sent() {
        assert!(encode(&vec![0u8; BODY_MAX - 3]).is_ok());
        assert_eq!(encode(&vec![0u8; BODY_MAX]), Err(TooLarge { bytes: BODY_MAX + 3 }));
    }

    #[test]
    fn a_length_that_lies_costs_no_memory() {
        // A sequence that claims 2^32 elements in a body of six bytes.
        let body = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        assert_eq!(decode::<Vec<u64>>(&body), Err(Dropped::Malformed));
    }
}
