//! Routes a guest's port and memory accesses to the device that owns the address.
//!
//! Built once, before the first vCPU runs, and never changed: a look-up takes no lock. What moves while
//! the guest runs (PCI BARs) moves inside one device that owns the whole window.
//!
//! Promises: an access reaches a device only if it lies in that device's range as a whole; any other
//! reads as ones and is dropped when written, as on a PC where nobody answers.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers port or memory accesses of a vCPU.
///
/// Called on vCPU threads, on several at once. `offset` counts from the start of the device's range;
/// `offset + data.len()` is within it. Both are chosen by an untrusted guest: `data` has 1, 2, 4 or 8
/// bytes, aligned or not. Never panic, never wait for anything a guest or a backend decides.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads. All of it: it arrives filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range cannot be given to a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address range {start:#x}+{length:#x} is empty, wraps or overlaps another device")]
pub struct RangeTaken {
    start: u64,
    length: u64,
}

/// An address space: ports or physical memory.
#[derive(Default)]
pub struct Bus {
    /// By start address; ranges do not overlap.
    ranges: BTreeMap<u64, Range>,
}

struct Range {
    length: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// Gives `length` addresses from `start` to `device`.
    ///
    /// # Errors
    /// [`RangeTaken`] if the range is empty, wraps, or overlaps one given before.
    pub fn insert(&mut self, start: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<(), RangeTaken> {
        let taken = RangeTaken { start, length };
        let last = length.checked_sub(1).and_then(|rest| start.checked_add(rest)).ok_or(taken.clone())?;
        match self.ranges.range(..=last).next_back() {
            Some((&below, range)) if below + (range.length - 1) >= start => Err(taken),
            _ => {
                self.ranges.insert(start, Range { length, device });
                Ok(())
            }
        }
    }

    /// Reads `data.len()` bytes at `address`: ones where no device is.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes `data` at `address`; dropped where no device is.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &dyn BusDevice)> {
        let (start, range) = self.ranges.range(..=address).next_back()?;
        let offset = address - start;
        let fits = offset.checked_add(length as u64)? <= range.length;
        fits.then(|| (offset, range.device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_outside_or_across_the_end_of_a_range_reads_as_ones_and_reaches_nobody() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x100, 8, device.clone()).unwrap();
        for address in [0xff, 0x105, 0x108, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(address, &data);
        }
        assert!(device.0.lock().unwrap().is_empty());
        bus.write(0x104, &[1, 2, 3, 4]);
        assert_eq!(*device.0.lock().unwrap(), [(4, vec![1, 2, 3, 4])]);
    }

    proptest! {
        #[test]
        fn two_devices_never_own_the_same_address(ranges in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20)) {
            let mut bus = Bus::default();
            let mut taken: Vec<(u128, u128)> = Vec::new();
            for (start, length) in ranges {
                // Small numbers too, so that overlaps happen.
                let (start, length) = if length % 2 == 0 { (start % 64, length % 16) } else { (start, length) };
                let (first, end) = (u128::from(start), u128::from(start) + u128::from(length));
                let free = length > 0
                    && end <= 1 << 64
                    && taken.iter().all(|&(other, other_end)| end <= other || other_end <= first);
                prop_assert_eq!(bus.insert(start, length, Arc::new(Recorder::default())).is_ok(), free);
                if free {
                    taken.push((first, end));
                }
            }
        }
    }
}
