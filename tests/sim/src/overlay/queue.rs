//! What is going to happen, ordered by (time, sequence). The heap holds small keys only.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dugnad_kernel::Time;

/// More than this is a storm, not a plan.
const MAX: usize = 20_000_000;

pub struct Queue<T> {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    items: Vec<Option<T>>,
    free: Vec<u32>,
    sequence: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), items: Vec::new(), free: Vec::new(), sequence: 0 }
    }
}

impl<T> Queue<T> {
    /// # Panics
    /// If 20 million things are planned.
    pub fn push(&mut self, time: Time, item: T) {
        self.sequence += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.items[place as usize] = Some(item);
                place
            }
            None => {
                assert!(self.items.len() < MAX, "a storm: {MAX} happenings are planned");
                self.items.push(Some(item));
                u32::try_from(self.items.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.heap.push(Reverse((time.0, self.sequence, place)));
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((time, _, _))| Time(*time))
    }

    pub fn pop(&mut self) -> Option<(Time, T)> {
        let Reverse((time, _, place)) = self.heap.pop()?;
        let item = self.items.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some((Time(time), item))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
