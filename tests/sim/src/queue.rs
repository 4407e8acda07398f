//! What will happen, in order of time and then of scheduling.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events lie in a slab, so that the heap moves three words and not the event.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slab: Vec<Option<T>>,
    free: Vec<usize>,
    order: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            slab: Vec::new(),
            free: Vec::new(),
            order: 0,
        }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, at: u64, event: T) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            self.slab.len() - 1
        });
        self.slab[slot] = Some(event);
        self.order += 1;
        self.heap.push(Reverse((at, self.order, slot)));
    }

    /// The next event at or before `end`.
    pub fn pop(&mut self, end: u64) -> Option<(u64, T)> {
        let Reverse((at, _, slot)) = *self.heap.peek()?;
        if at > end {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        Some((at, self.slab[slot].take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_scheduling() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (3, 'a'), (5, 'd'), (4, 'b')] {
            queue.push(at, event);
        }
        let mut order = String::new();
        while let Some((_, event)) = queue.pop(5) {
            order.push(event);
        }
        assert_eq!(order, "abcd");
    }
}
