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
/// A session in full flow uses five.
const KEPT: usize = 6;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for `room` bytes at least.
pub(super) fn take(room: usize) -> Vec<u8> {
    if room < LEAST {
        return Vec::with_capacity(room);
    }
    let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.reserve_exact(room);
    buffer
}

/// `buffer` is not needed any more.
pub(super) fn give(mut buffer: Vec<u8>) {
    if (LEAST..=MOST).contains(&buffer.capacity()) {
        buffer.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn a_few_are_kept_and_come_back_empty() {
        for _ in 0..KEPT + 2 {
            give(vec![7; LEAST]);
        }
        assert_eq!(kept(), KEPT);
        let again = take(2 * LEAST);
        assert!(again.is_empty() && again.capacity() >= 2 * LEAST);
        assert_eq!(kept(), KEPT - 1);
        // Small ones, huge ones and none at all stay out.
        [0, 10, MOST + 1].into_iter().map(Vec::with_capacity).for_each(give);
        assert!(take(10).capacity() < LEAST);
        assert_eq!(kept(), KEPT - 1);
    }
}
