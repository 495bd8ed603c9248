//! The counters of a NIC. Each worker writes its own counters, and the control thread adds them up.
//!
//! A counter has one writer, so that counting is a load and a store and no locked instruction.

use std::sync::atomic::{AtomicU64, Ordering};

use shared_abi::control::{DropReason, Drops, TrafficStatistics};

/// Entries of the table of lengths: no frame has 2^17 bytes.
const LENGTHS: usize = 18;

/// A number that one thread changes and others read.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    fn add(&self, amount: u64) {
        self.0.store(self.get().wrapping_add(amount), Ordering::Relaxed);
    }
}

/// The counters of one worker. Only that worker calls what changes them.
///
/// Two workers' counters are never in one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    packets: Count,
    bytes: Count,
    open_checksums: Count,
    segments: Count,
    segment_bytes: Count,
    throttled: Count,
    sizes: [Count; LENGTHS],
    drops: [Count; DropReason::ALL.len()],
}

impl Counters {
    /// A frame has passed, whose virtio header starts with these bytes: flags and kind of segments.
    #[inline]
    pub fn passed(&self, bytes: u64, [flags, segments]: [u8; 2]) {
        self.packets.add(1);
        self.bytes.add(bytes);
        let bits = (u64::BITS - bytes.leading_zeros()) as usize;
        self.sizes[bits.min(LENGTHS - 1)].add(1);
        // VIRTIO_NET_HDR_F_NEEDS_CSUM.
        if flags & 1 != 0 {
            self.open_checksums.add(1);
        }
        if segments != 0 {
            self.segments.add(1);
            self.segment_bytes.add(bytes);
        }
    }

    /// A frame is lost.
    #[inline]
    pub fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Frames have to wait for a limit.
    pub fn throttled(&self) {
        self.throttled.add(1);
    }

    /// Adds these counters to those of other workers.
    pub fn add_to(&self, sum: &mut TrafficStatistics) {
        sum.packets += self.packets.get();
        sum.bytes += self.bytes.get();
        sum.open_checksums += self.open_checksums.get();
        sum.segments += self.segments.get();
        sum.segment_bytes += self.segment_bytes.get();
        sum.throttled += self.throttled.get();
        for (index, count) in self.sizes.iter().map(Count::get).enumerate().filter(|(_, count)| *count > 0) {
            sum.sizes.resize(sum.sizes.len().max(index + 1), 0);
            sum.sizes[index] += count;
        }
        for (reason, count) in DropReason::ALL.into_iter().zip(&self.drops) {
            let packets = count.get();
            match sum.drops.iter_mut().find(|drops| drops.reason == reason) {
                Some(drops) => drops.packets += packets,
                None if packets > 0 => sum.drops.push(Drops { reason, packets }),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_two_workers_add_up() {
        let (a, b) = (Counters::default(), Counters::default());
        a.passed(60, [0, 0]);
        a.passed(64, [3, 0]);
        b.passed(65_550, [1, 1]);
        b.dropped(DropReason::Arp);
        a.dropped(DropReason::NoRoom);
        b.dropped(DropReason::NoRoom);
        a.throttled();
        let mut sum = TrafficStatistics::default();
        a.add_to(&mut sum);
        b.add_to(&mut sum);
        let mut sizes = vec![0; 18];
        (sizes[6], sizes[7], sizes[17]) = (1, 1, 1);
        let drops = |reason, packets| Drops { reason, packets };
        let expected = TrafficStatistics {
            packets: 3,
            bytes: 60 + 64 + 65_550,
            open_checksums: 2,
            segments: 1,
            segment_bytes: 65_550,
            throttled: 1,
            sizes,
            drops: vec![drops(DropReason::NoRoom, 2), drops(DropReason::Arp, 1)],
        };
        assert_eq!(sum, expected);
    }
}
