//! Buffers that a burst needed, kept for the next one.
//!
//! Allocators hand memory of this size back to the system as soon as it is free, musl's always:
//! then every record costs a dozen page faults. A few buffers kept for all sessions together end
//! that, and idle sessions still hold none.

use std::cell::RefCell;

/// Below this an allocator does well by itself.
const LEAST: usize = 4 * 1024;
/// Larger ones are rare, and too large to be kept.
const MOST: usize = 80 * 1024;
/// So many of each kind: a session in full flow uses two and three.
const KEPT: usize = 3;

#[derive(Default)]
struct Spare {
    /// To be appended to.
    empty: Vec<Vec<u8>>,
    /// To be written over, so as long as they ever were: making one costs as much as using it.
    full: Vec<Vec<u8>>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// An empty buffer with room for `room` bytes at least.
pub(super) fn take(room: usize) -> Vec<u8> {
    if room < LEAST {
        return Vec::with_capacity(room);
    }
    let mut buffer = SPARE.with_borrow_mut(|spare| spare.empty.pop()).unwrap_or_default();
    buffer.reserve_exact(room);
    buffer
}

/// `buffer` is not needed any more.
pub(super) fn give(mut buffer: Vec<u8>) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| keep(&mut spare.empty, buffer));
}

/// A buffer of `length` bytes at least, with anything in them.
pub(super) fn take_full(length: usize) -> Vec<u8> {
    let kept = (length >= LEAST).then(|| SPARE.with_borrow_mut(|spare| spare.full.pop())).flatten();
    let mut buffer = kept.unwrap_or_default();
    if buffer.len() < length {
        buffer.reserve_exact(length - buffer.len());
        buffer.resize(length, 0);
    }
    buffer
}

/// `buffer`, in its full length, is not needed any more.
pub(super) fn give_full(buffer: Vec<u8>) {
    SPARE.with_borrow_mut(|spare| keep(&mut spare.full, buffer));
}

fn keep(kept: &mut Vec<Vec<u8>>, buffer: Vec<u8>) {
    if (LEAST..=MOST).contains(&buffer.capacity()) && kept.len() < KEPT {
        kept.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (usize, usize) {
        SPARE.with_borrow(|spare| (spare.empty.len(), spare.full.len()))
    }

    #[test]
    fn a_few_are_kept_and_come_back() {
        for _ in 0..KEPT + 2 {
            give(vec![7; LEAST]);
            give_full(vec![7; LEAST]);
        }
        assert_eq!(kept(), (KEPT, KEPT));
        let again = take(2 * LEAST);
        assert!(again.is_empty() && again.capacity() >= 2 * LEAST);
        let again = take_full(2 * LEAST);
        assert_eq!((again.len(), again[LEAST - 1], again[LEAST]), (2 * LEAST, 7, 0));
        assert_eq!(kept(), (KEPT - 1, KEPT - 1));
        // Small ones, huge ones and none at all stay out.
        [0, 10, MOST + 1].into_iter().map(Vec::with_capacity).for_each(give);
        [0, 10, MOST + 1].into_iter().map(|length| vec![0; length]).for_each(give_full);
        assert!(take(10).capacity() < LEAST);
        assert_eq!(take_full(10).len(), 10);
        assert_eq!(kept(), (KEPT - 1, KEPT - 1));
    }
}
