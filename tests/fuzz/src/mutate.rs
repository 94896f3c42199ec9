//! Damage to bytes, as lines and hostile peers do it.

use fastrand::Rng;

const LONGEST: usize = 70_000;

/// A damaged copy of `frame`; `other` lends bytes for splices.
#[must_use]
pub fn mutate(rng: &mut Rng, frame: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = frame.to_vec();
    for _ in 0..rng.usize(1..4) {
        once(rng, &mut out, other);
    }
    if rng.bool() {
        honest_length(&mut out);
    }
    out.truncate(LONGEST);
    out
}

fn once(rng: &mut Rng, out: &mut Vec<u8>, other: &[u8]) {
    let at = rng.usize(0..=out.len());
    match rng.u8(0..9) {
        0 => out.truncate(at),
        1 => out.insert(at, rng.u8(..)),
        2 if at < out.len() => {
            out.remove(at);
        }
        3 if at < out.len() => out[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap_or(&0),
        // The end of one message after the beginning of another.
        4 => {
            let from = rng.usize(0..=other.len());
            out.truncate(at);
            out.extend_from_slice(&other[from..]);
        }
        // A length that lies: the largest number of each width, where a varint may stand.
        5 => {
            let width = rng.usize(1..11);
            let mut lie = vec![0xff; width];
            lie[width - 1] = rng.u8(0..0x80);
            out.splice(at..at, lie);
        }
        // A piece again, many times.
        6 => {
            let until = rng.usize(at..=out.len().min(at + 64));
            let piece = out[at..until].to_vec();
            for _ in 0..rng.usize(1..200) {
                out.splice(at..at, piece.iter().copied());
            }
        }
        7 if out.len() >= 3 => {
            let length = rng.u16(..).to_le_bytes();
            out[1..3].copy_from_slice(&length);
        }
        _ if at < out.len() => out[at] ^= 1 << rng.u8(0..8),
        _ => {}
    }
}

/// Writes the real length of the body into the header, so that the body is looked at.
pub fn honest_length(frame: &mut [u8]) {
    if frame.len() >= 3 {
        let length = u16::try_from(frame.len() - 3).unwrap_or(u16::MAX);
        frame[1..3].copy_from_slice(&length.to_le_bytes());
    }
}
