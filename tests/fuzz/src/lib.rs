//! Fuzzing of everything that decodes bytes from outside, and of the node that takes what decodes.
//!
//! `cargo test --profile sim -p dugnad-fuzz` runs the committed corpus and seeded mutations of it
//! on the stable compiler. With cargo-fuzz the same target runs guided by coverage (README.md).

pub mod mutate;
pub mod storm;

use dugnad_kernel::wire::{self, Dropped, ReadError};
use dugnad_node::Msg;

/// What became of the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Dropped(Dropped),
    /// It is a message, and encodes to the same bytes.
    Same,
    /// It is a message that an honest node writes in other bytes.
    Other,
}

/// Reads one frame as a link does.
///
/// # Panics
/// If a message that was read cannot be written, or is another one when it is read again. These
/// are the errors that fuzzing looks for.
pub fn frame(data: &[u8]) -> Fate {
    let mut rest = data;
    let message: Msg = match wire::read_frame(&mut rest) {
        Ok(message) => message,
        Err(ReadError::Dropped(reason)) => return Fate::Dropped(reason),
        Err(ReadError::Io(never)) => match never {},
    };
    let bytes = wire::encode(&message).unwrap_or_else(|error| panic!("{error}: {message:?}"));
    let mut again = bytes.as_slice();
    match wire::read_frame::<_, Msg>(&mut again) {
        Ok(same) => assert_eq!(same, message, "another message when read again"),
        Err(error) => panic!("cannot be read again: {error:?}: {message:?}"),
    }
    let taken = &data[..data.len() - rest.len()];
    if taken == bytes { Fate::Same } else { Fate::Other }
}

/// Name and bytes of every golden frame.
///
/// # Panics
/// If the golden file is damaged.
#[must_use]
pub fn golden() -> Vec<(String, Vec<u8>)> {
    let text = include_str!("../../../layers/node/tests/golden.txt");
    let frames = text.lines().filter_map(|line| line.strip_prefix("msg "));
    frames
        .map(|line| match line.split_once(" = ") {
            Some((name, hex)) => (name.to_owned(), bytes(hex)),
            None => panic!("no name in {line}"),
        })
        .collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap_or_else(|| panic!("no hex: {hex}"));
    let byte = |pair: &[u8]| u8::try_from(digit(&pair[0]) * 16 + digit(&pair[1])).unwrap_or(0);
    hex.as_bytes().chunks_exact(2).map(byte).collect()
}
