//! Frames that wait for one peer.

use std::collections::VecDeque;

/// How many frames wait for one peer at most.
pub(super) const FRAMES_MAX: usize = 64;
/// How many bytes of frames wait for one peer at most.
pub(super) const BYTES_MAX: usize = 1024 * 1024;

/// First in, first out; what does not fit is not taken.
#[derive(Default)]
pub(super) struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Queue {
    /// False if it is full: then nothing changed.
    pub(super) fn push(&mut self, frame: Vec<u8>) -> bool {
        if self.frames.len() >= FRAMES_MAX || self.bytes + frame.len() > BYTES_MAX {
            return false;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        true
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
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
        *self = Self::default();
        count
    }
}
