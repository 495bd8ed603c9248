//! One chain of descriptors, walked within bounds.
//!
//! Refused, as a broken ring: a head, a next or an indirect table that does not exist, a chain longer than the ring,
//! an indirect table in an indirect table or in the middle of nothing, a readable buffer behind a writable one.
//! Buffers outside the guest's memory are no matter of the ring: the device finds out when it touches them.

use super::ring::{Descriptor, Ring};
use crate::MAX_QUEUE_SIZE;
use crate::memory::{MemoryTable, Segment};

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// What a driver did to its ring. The ring stands still after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More chains available than the ring has slots.
    #[error("the available index is {0} ahead of a ring of {1}")]
    AvailableIndex(u16, u16),
    /// A head or a next beyond the table.
    #[error("descriptor {0} does not exist")]
    NoDescriptor(u16),
    /// A loop, or a chain that no ring of this size can hold.
    #[error("a chain has more than {0} descriptors")]
    TooLong(u16),
    /// Not negotiated, inside another one, or in company of `NEXT`.
    #[error("an indirect table where none may be")]
    Indirect,
    /// Empty, no multiple of 16 bytes, too long, or outside the guest's memory.
    #[error("an indirect table of {len} bytes at {addr:#x}")]
    IndirectTable {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Virtio 1.3 §2.7.4.2: what the device writes comes after what it reads.
    #[error("a readable buffer follows a writable one")]
    Order,
}

/// One chain: what the device reads, then what it writes. Reused from one chain to the next, so that walking
/// allocates nothing once it has grown.
#[derive(Debug, Default)]
pub struct Chain {
    /// The head's index, by which the chain is given back.
    pub head: u16,
    /// A process before this one had it in flight.
    pub again: bool,
    /// Buffers for the device to read, in order.
    pub readable: Vec<Segment>,
    /// Buffers for the device to write, in order.
    pub writable: Vec<Segment>,
    /// The indirect table as it was when it was read.
    table: Vec<u8>,
}

impl Chain {
    /// Length of the readable part in bytes.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Length of the writable part in bytes.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Reads the chain that starts at `head`.
    pub(super) fn walk(
        &mut self,
        ring: &Ring,
        memory: &MemoryTable,
        head: u16,
        indirect: bool,
    ) -> Result<(), RingError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let mut index = head;
        for _ in 0..ring.size() {
            let descriptor = ring.descriptor(index).ok_or(RingError::NoDescriptor(index))?;
            if descriptor.flags & INDIRECT != 0 {
                if !indirect || descriptor.flags & NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                return self.walk_table(memory, descriptor);
            }
            self.add(descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::TooLong(ring.size()))
    }

    fn walk_table(
        &mut self,
        memory: &MemoryTable,
        Descriptor { addr, len, .. }: Descriptor,
    ) -> Result<(), RingError> {
        let bad = RingError::IndirectTable { addr, len };
        // A driver may not make it longer than its ring; some do, so the bound is that of the largest ring.
        if len == 0 || len % 16 != 0 || len > 16 * u32::from(MAX_QUEUE_SIZE) {
            return Err(bad);
        }
        let mut table = std::mem::take(&mut self.table);
        table.resize(len as usize, 0);
        let walked = match memory.read(&[Segment { addr, len }], 0, &mut table) {
            Ok(_) => self.walk_copy(&table),
            Err(_) => Err(bad),
        };
        self.table = table;
        walked
    }

    fn walk_copy(&mut self, table: &[u8]) -> Result<(), RingError> {
        let (descriptors, _) = table.as_chunks::<16>();
        let mut index = 0;
        for _ in descriptors {
            let bytes = descriptors.get(usize::from(index)).ok_or(RingError::NoDescriptor(index))?;
            let (words, _) = bytes.as_chunks::<8>();
            let descriptor =
                Descriptor::from_words(u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1]));
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            self.add(descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::TooLong(descriptors.len() as u16))
    }

    fn add(&mut self, descriptor: Descriptor) -> Result<(), RingError> {
        let segment = Segment { addr: descriptor.addr, len: descriptor.len };
        if descriptor.flags & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(RingError::Order);
        }
        Ok(())
    }
}
