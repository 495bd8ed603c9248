//! The inflight log: which chains of a ring were popped and not yet given back, in memory that outlives this process.
//!
//! A backend that is killed leaves the log behind; the one that replaces it reads there what it must do again, and in
//! which order. The layout is that of the vhost-user specification for split virtqueues ("Inflight I/O tracking"):
//!
//! ```text
//!   0 features u64 │ 8 version u16 │ 10 desc_num u16 │ 12 last_batch_head u16 │ 14 used_idx u16
//!   16 + 16·head: inflight u8 │ +6 next u16 │ +8 counter u64
//! ```
//!
//! The memory is the frontend's and may hold anything: what it says is checked, and one that makes no sense is an
//! error that keeps the ring from starting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::MmapRegion;

use super::area::Area;

/// Bytes before the entries, and of each entry.
const UNIT: usize = 16;
/// The version of the layout; 0 is a log that was never used.
const VERSION: u16 = 1;

/// Bytes of one ring's log.
pub const fn log_len(queue_size: u16) -> usize {
    UNIT + UNIT * queue_size as usize
}

/// A log that cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Of another layout, or for a ring of another size.
    #[error("an inflight log of version {version} for {entries} descriptors")]
    Header {
        /// `version`.
        version: u16,
        /// `desc_num`.
        entries: u16,
    },
    /// Its last batch is longer than the ring or leads outside.
    #[error("the last batch in the inflight log leads nowhere")]
    Batch,
}

/// The log of one ring.
#[derive(Debug)]
pub struct Log {
    area: Area,
    size: u16,
    counter: u64,
    /// Given back since the last [`Self::published`].
    batch: Vec<u16>,
}

impl Log {
    /// The log at `offset` of a mapping, for a ring of `size` descriptors. `None` if it is not inside.
    pub fn new(mapping: Arc<MmapRegion>, offset: usize, size: u16) -> Option<Self> {
        let area = Area::new(mapping, offset, log_len(size), align_of::<u64>())?;
        Some(Self { area, size, counter: 0, batch: Vec::new() })
    }

    fn version(&self) -> &AtomicU16 {
        self.area.at(8)
    }

    fn entries(&self) -> &AtomicU16 {
        self.area.at(10)
    }

    fn last_batch_head(&self) -> &AtomicU16 {
        self.area.at(12)
    }

    fn used_index(&self) -> &AtomicU16 {
        self.area.at(14)
    }

    fn inflight(&self, head: u16) -> &AtomicU8 {
        self.area.at(UNIT + UNIT * usize::from(head))
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        self.area.at(UNIT + UNIT * usize::from(head) + 6)
    }

    fn order(&self, head: u16) -> &AtomicU64 {
        self.area.at(UNIT + UNIT * usize::from(head) + 8)
    }

    /// True if a backend has used this log before.
    pub fn is_begun(&self) -> bool {
        self.version().load(Ordering::Relaxed) != 0
    }

    /// The heads that are marked as in flight.
    fn marked(&self) -> Vec<u16> {
        (0..self.size).filter(|&head| self.inflight(head).load(Ordering::Relaxed) != 0).collect()
    }

    /// Resumes the log of a ring that was left at this `used.idx`. Returns the heads to be done again, in order. A log
    /// without heads in flight is initialized.
    pub fn recover(&mut self, used_index: u16) -> Result<Vec<u16>, LogError> {
        let (version, entries) =
            (self.version().load(Ordering::Acquire), self.entries().load(Ordering::Relaxed));
        if version == 0 || (version == VERSION && self.marked().is_empty()) {
            // Never used, or left with nothing in flight: the ring may be another one since.
            for head in self.marked() {
                self.inflight(head).store(0, Ordering::Relaxed);
            }
            self.entries().store(self.size, Ordering::Relaxed);
            self.used_index().store(used_index, Ordering::Relaxed);
            self.version().store(VERSION, Ordering::Release);
            return Ok(Vec::new());
        }
        if version != VERSION || entries != self.size {
            return Err(LogError::Header { version, entries });
        }
        // Killed between showing a batch and crossing it off: cross it off now.
        let batch = used_index.wrapping_sub(self.used_index().load(Ordering::Relaxed));
        let mut head = self.last_batch_head().load(Ordering::Relaxed);
        if batch > self.size {
            return Err(LogError::Batch);
        }
        for _ in 0..batch {
            if head >= self.size {
                return Err(LogError::Batch);
            }
            self.inflight(head).store(0, Ordering::Release);
            head = self.next(head).load(Ordering::Relaxed);
        }
        self.used_index().store(used_index, Ordering::Release);
        let order = |head: &u16| self.order(*head).load(Ordering::Relaxed);
        let mut heads = self.marked();
        heads.sort_by_cached_key(order);
        self.counter = heads.last().map_or(0, |head| order(head).wrapping_add(1));
        Ok(heads)
    }

    /// A chain was popped.
    #[inline]
    pub fn popped(&mut self, head: u16) {
        self.order(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // Release: the order is there before the mark. A process that is killed has made its stores in this order.
        self.inflight(head).store(1, Ordering::Release);
    }

    /// A chain is about to be given back with the next batch.
    #[inline]
    pub fn pushed(&mut self, head: u16) {
        let last =
            self.batch.last().copied().unwrap_or_else(|| self.last_batch_head().load(Ordering::Relaxed));
        self.next(head).store(last, Ordering::Release);
        self.last_batch_head().store(head, Ordering::Release);
        self.batch.push(head);
    }

    /// The batch was shown to the driver, whose `used.idx` is now this.
    pub fn published(&mut self, used_index: u16) {
        for index in 0..self.batch.len() {
            self.inflight(self.batch[index]).store(0, Ordering::Release);
        }
        self.batch.clear();
        self.used_index().store(used_index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    fn memory() -> Arc<MmapRegion> {
        Arc::new(MmapRegion::new(4096).unwrap())
    }

    fn log(memory: &Arc<MmapRegion>) -> Log {
        Log::new(memory.clone(), 0, SIZE).unwrap()
    }

    #[test]
    fn what_was_popped_and_not_given_back_is_done_again_in_its_order() {
        let memory = memory();
        let mut first = log(&memory);
        assert_eq!(first.recover(5), Ok(vec![]));
        for head in [6, 1, 4, 0] {
            first.popped(head);
        }
        first.pushed(1);
        first.published(6);
        first.popped(1);
        // Pushed and not published: the driver has not seen it.
        first.pushed(0);
        drop(first);
        let mut second = log(&memory);
        assert_eq!(second.recover(6), Ok(vec![6, 4, 0, 1]));
        // And once more, with what the second has popped since behind it.
        second.popped(3);
        assert_eq!(log(&memory).recover(6), Ok(vec![6, 4, 0, 1, 3]));
    }

    #[test]
    fn a_batch_that_was_shown_and_not_crossed_off_is_not_done_again() {
        let memory = memory();
        let mut first = log(&memory);
        assert_eq!(first.recover(u16::MAX), Ok(vec![]));
        for head in [0, 1, 2, 3] {
            first.popped(head);
        }
        first.pushed(3);
        first.published(0);
        first.pushed(0);
        first.pushed(2);
        // `used.idx` is 2 now, and then comes the kill.
        drop(first);
        assert_eq!(log(&memory).recover(2), Ok(vec![1]));
        assert_eq!(log(&memory).recover(2), Ok(vec![1]));
    }

    #[test]
    fn a_log_that_makes_no_sense_is_an_error_and_an_empty_one_never_is() {
        let memory = memory();
        let mut first = log(&memory);
        first.recover(0).unwrap();
        first.popped(2);
        assert_eq!(log(&memory).recover(9), Err(LogError::Batch));
        first.last_batch_head().store(SIZE, Ordering::Relaxed);
        assert_eq!(log(&memory).recover(1), Err(LogError::Batch));
        first.last_batch_head().store(2, Ordering::Relaxed);
        first.entries().store(4, Ordering::Relaxed);
        assert_eq!(log(&memory).recover(0), Err(LogError::Header { version: 1, entries: 4 }));
        first.pushed(2);
        first.published(1);
        assert_eq!(log(&memory).recover(777), Ok(vec![]));
        assert!(Log::new(memory.clone(), 4096 - 16, SIZE).is_none());
        assert!(Log::new(memory.clone(), 4, SIZE).is_none());
    }
}
