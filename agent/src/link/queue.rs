//! Frames that wait for one peer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// How many frames wait for one peer at most.
pub(super) const FRAMES_MAX: usize = 64;
/// How many bytes of frames wait for one peer at most.
pub(super) const BYTES_MAX: usize = 1024 * 1024;

/// How many bytes of frames wait for all peers together at most.
pub(super) const TOTAL_MAX: usize = 4 * 1024 * 1024;

/// First in, first out; what does not fit is not taken.
pub(super) struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The bytes in all queues.
    total: Rc<Cell<usize>>,
}

impl Queue {
    pub(super) fn new(total: Rc<Cell<usize>>) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, total }
    }

    /// False if it is full: then nothing changed.
    pub(super) fn push(&mut self, frame: Vec<u8>) -> bool {
        let total = self.total.get() + frame.len();
        let bytes = self.bytes + frame.len();
        if self.frames.len() >= FRAMES_MAX || bytes > BYTES_MAX || total > TOTAL_MAX {
            return false;
        }
        self.total.set(total);
        self.bytes = bytes;
        self.frames.push_back(frame);
        true
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.total.set(self.total.get() - frame.len());
        if self.frames.is_empty() && self.frames.capacity() > 8 {
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops all; how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.frames.len() as u64;
        self.total.set(self.total.get() - self.bytes);
        self.bytes = 0;
        self.frames = VecDeque::new();
        count
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}
