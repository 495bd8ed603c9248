//! The three areas of a split virtqueue in shared memory, read and written with atomics.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::area::Area;
use crate::memory::MemoryTable;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.3 §2.7.6).
pub const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` (virtio 1.3 §2.7.8).
pub const NO_NOTIFY: u16 = 1;

/// Where a ring's areas are, in the frontend's own addresses (`SET_VRING_ADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table, aligned to 16 bytes.
    pub descriptors: u64,
    /// The available ring, aligned to 2 bytes.
    pub available: u64,
    /// The used ring, aligned to 4 bytes.
    pub used: u64,
}

/// A descriptor as the driver wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_…`.
    pub flags: u16,
    /// The next one, if the flags say so.
    pub next: u16,
}

impl Descriptor {
    /// From the 16 bytes in memory, as two little-endian words.
    pub fn from_words(first: u64, second: u64) -> Self {
        let second = u64::from_le(second);
        Self {
            addr: u64::from_le(first),
            len: second as u32,
            flags: (second >> 32) as u16,
            next: (second >> 48) as u16,
        }
    }
}

/// The areas of one ring. Indices are checked or wrapped to its size here.
#[derive(Debug)]
pub struct Ring {
    size: u16,
    descriptors: Area,
    available: Area,
    used: Area,
}

impl Ring {
    /// Finds the areas. `None` if one is not within a single region or not aligned (virtio 1.3 §2.7), or if `size` is
    /// no power of two.
    pub fn new(memory: &MemoryTable, addresses: RingAddresses, size: u16) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        let n = usize::from(size);
        let area = |addr, len, align| {
            let (mapping, offset) = memory.frontend_range(addr, len)?;
            Area::new(mapping, offset, len, align)
        };
        Some(Self {
            size,
            descriptors: area(addresses.descriptors, 16 * n, 16)?,
            available: area(addresses.available, 6 + 2 * n, 2)?,
            used: area(addresses.used, 6 + 8 * n, 4)?,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The descriptor at `index`; `None` beyond the table.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let offset = 16 * usize::from(index);
        let word = |at| self.descriptors.at::<AtomicU64>(at).load(Ordering::Relaxed);
        (index < self.size).then(|| Descriptor::from_words(word(offset), word(offset + 8)))
    }

    /// `avail.flags`.
    #[inline]
    pub fn available_flags(&self) -> u16 {
        u16::from_le(self.available.at::<AtomicU16>(0).load(Ordering::Relaxed))
    }

    /// `avail.idx`; what the driver wrote before it is visible after this.
    #[inline]
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.available.at::<AtomicU16>(2).load(Ordering::Acquire))
    }

    /// The head in slot `index` of the available ring.
    #[inline]
    pub fn available_head(&self, index: u16) -> u16 {
        u16::from_le(self.available.at::<AtomicU16>(4 + 2 * self.slot(index)).load(Ordering::Relaxed))
    }

    /// `avail.used_event`.
    #[inline]
    pub fn used_event(&self) -> u16 {
        let offset = 4 + 2 * usize::from(self.size);
        u16::from_le(self.available.at::<AtomicU16>(offset).load(Ordering::Relaxed))
    }

    /// Writes `used.flags`.
    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        self.used.at::<AtomicU16>(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// `used.idx`, which only this side writes while the ring runs.
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used.at::<AtomicU16>(2).load(Ordering::Relaxed))
    }

    /// Writes `used.idx`; what was written before it is visible to the driver when it sees it.
    #[inline]
    pub fn set_used_index(&self, index: u16) {
        self.used.at::<AtomicU16>(2).store(index.to_le(), Ordering::Release);
    }

    /// Writes the used element in slot `index`.
    #[inline]
    pub fn set_used_element(&self, index: u16, head: u16, written: u32) {
        let offset = 4 + 8 * self.slot(index);
        self.used.at::<AtomicU32>(offset).store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used.at::<AtomicU32>(offset + 4).store(written.to_le(), Ordering::Relaxed);
    }

    /// Writes `used.avail_event`.
    #[inline]
    pub fn set_available_event(&self, index: u16) {
        let offset = 4 + 8 * usize::from(self.size);
        self.used.at::<AtomicU16>(offset).store(index.to_le(), Ordering::Relaxed);
    }
}
