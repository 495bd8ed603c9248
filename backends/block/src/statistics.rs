//! The counters of a disk. Each worker writes its own counters, and the control thread adds them up.
//!
//! A counter has one writer, so counting takes a load and a store and no locked instruction.
//!
//! Which requests the storage has is kept apart from the worker, too: a worker that stands still in a system call can
//! tell nobody how long its requests have waited.

use std::sync::atomic::{AtomicU64, Ordering};

use shared_abi::control::{DiskStatistics, OpStatistics};

/// Most requests in flight in one queue.
pub const SLOTS: usize = 256;

/// Entries of a latency histogram: the last is for 2^22 µs (4 s) and longer.
const BUCKETS: usize = 24;

/// A kind of request, as statistics and events name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `VIRTIO_BLK_T_IN`.
    Read,
    /// `VIRTIO_BLK_T_OUT`.
    Write,
    /// `VIRTIO_BLK_T_FLUSH`.
    Flush,
    /// `VIRTIO_BLK_T_DISCARD` and `VIRTIO_BLK_T_WRITE_ZEROES`.
    Discard,
}

impl Op {
    /// Its name in [`BackendEvent::IoError`](shared_abi::control::BackendEvent::IoError).
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// A number that one thread changes and others read.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    #[inline]
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }
}

#[derive(Debug, Default)]
struct OpCounters {
    ops: Count,
    errors: Count,
    bytes: Count,
    total_ns: Count,
    latency: [Count; BUCKETS],
}

/// The counters of one worker. Only that worker calls what changes them.
///
/// Two workers' counters are never in one cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    in_flight: Count,
    held: Count,
    deepest: Count,
    throttled: Count,
    ops: [OpCounters; 4],
    /// For each slot when the storage was given its request, in nanoseconds; 0 for none.
    given: Box<[Count]>,
}

impl Default for Counters {
    fn default() -> Self {
        let (in_flight, held, deepest, throttled) = Default::default();
        let given = (0..SLOTS).map(|_| Count::default()).collect();
        Self { in_flight, held, deepest, throttled, ops: Default::default(), given }
    }
}

impl Counters {
    /// So many requests are taken and not answered, and so many of them are held.
    #[inline]
    pub fn depth(&self, in_flight: usize, held: usize) {
        self.in_flight.set(in_flight as u64);
        self.held.set(held as u64);
        if in_flight as u64 > self.deepest.get() {
            self.deepest.set(in_flight as u64);
        }
    }

    /// A request has to wait for a limit.
    pub fn throttled(&self) {
        self.throttled.add(1);
    }

    /// The storage is given the request in this slot, at a time in nanoseconds.
    #[inline]
    pub fn given(&self, slot: u16, now: u64) {
        self.given[usize::from(slot) % SLOTS].set(now.max(1));
    }

    /// The storage has no request of this slot any more.
    #[inline]
    pub fn taken_back(&self, slot: u16) {
        self.given[usize::from(slot) % SLOTS].set(0);
    }

    /// When the storage was given the oldest request that it has, in nanoseconds.
    pub fn oldest(&self) -> Option<u64> {
        self.given.iter().map(Count::get).filter(|given| *given != 0).min()
    }

    /// A request is answered, `ns` nanoseconds after it was taken.
    #[inline]
    pub fn answered(&self, op: Op, ok: bool, bytes: u64, ns: u64) {
        let counters = &self.ops[op as usize];
        counters.ops.add(1);
        if ok {
            counters.bytes.add(bytes);
        } else {
            counters.errors.add(1);
        }
        counters.total_ns.add(ns);
        counters.latency[bucket(ns)].add(1);
    }

    /// Adds these counters to those of other workers. The deepest queues of all are added up.
    pub fn add_to(&self, sum: &mut DiskStatistics) {
        sum.in_flight += self.in_flight.get();
        sum.held += self.held.get();
        sum.deepest += self.deepest.get();
        sum.throttled += self.throttled.get();
        let ops = [&mut sum.read, &mut sum.write, &mut sum.flush, &mut sum.discard];
        for (counters, op) in self.ops.iter().zip(ops) {
            counters.add_to(op);
        }
    }
}

impl OpCounters {
    fn add_to(&self, sum: &mut OpStatistics) {
        sum.ops += self.ops.get();
        sum.errors += self.errors.get();
        sum.bytes += self.bytes.get();
        sum.total_ns += self.total_ns.get();
        for (index, count) in self.latency.iter().map(Count::get).enumerate().filter(|(_, count)| *count > 0)
        {
            sum.latency.resize(sum.latency.len().max(index + 1), 0);
            sum.latency[index] += count;
        }
    }
}

/// The first entry *n* with less than 2^n µs, or the last one.
#[inline]
fn bucket(ns: u64) -> usize {
    let us = ns / 1000;
    let bits = (u64::BITS - us.leading_zeros()) as usize;
    bits.min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_sorted_by_powers_of_two_of_microseconds() {
        for (ns, entry) in
            [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (3999, 2), (4000, 3), (u64::MAX, BUCKETS - 1)]
        {
            assert_eq!(bucket(ns), entry, "{ns}");
        }
    }

    #[test]
    fn the_oldest_request_is_the_one_that_the_storage_has_had_for_longest() {
        let counters = Counters::default();
        assert_eq!(counters.oldest(), None);
        counters.given(3, 50);
        counters.given(SLOTS as u16 - 1, 40);
        counters.given(0, 60);
        assert_eq!(counters.oldest(), Some(40));
        counters.taken_back(SLOTS as u16 - 1);
        assert_eq!(counters.oldest(), Some(50));
    }

    #[test]
    fn the_counters_of_two_workers_add_up() {
        let (a, b) = (Counters::default(), Counters::default());
        a.depth(7, 0);
        a.depth(3, 1);
        b.depth(2, 0);
        a.answered(Op::Read, true, 4096, 1500);
        b.answered(Op::Read, false, 512, 500);
        b.answered(Op::Discard, true, 1 << 20, 5000);
        b.throttled();
        let mut sum = DiskStatistics::default();
        a.add_to(&mut sum);
        b.add_to(&mut sum);
        assert_eq!((sum.in_flight, sum.held, sum.deepest, sum.throttled), (5, 1, 9, 1));
        let read = OpStatistics { ops: 2, errors: 1, bytes: 4096, total_ns: 2000, latency: vec![1, 1] };
        assert_eq!(sum.read, read);
        assert_eq!(sum.discard.latency, [0, 0, 0, 1]);
        assert_eq!(sum.write, OpStatistics::default());
    }
}
