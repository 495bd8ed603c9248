//! A split virtqueue (virtio 1.3 §2.7), seen from the driver: well-behaved calls, and raw ones for hostile checks.

use super::virtio::{EVENT_IDX, INDIRECT};
use super::{Failed, arena, ensure, sys};

/// The largest queue it makes.
pub const MAX_SIZE: u16 = 256;
/// Entries in the indirect table that each descriptor has.
const TABLE: u64 = 16;

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const TO_TABLE: u16 = 4;

/// A piece of a buffer.
#[derive(Clone, Copy, Default)]
pub struct Segment {
    /// Guest-physical address.
    pub at: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// One queue.
pub struct Queue {
    /// Index in the device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Notifications written.
    pub kicks: u64,
    notify: u64,
    tables: u64,
    features: u64,
    free: [u16; MAX_SIZE as usize],
    free_len: u16,
    chain_len: [u16; MAX_SIZE as usize],
    chain_next: [u16; MAX_SIZE as usize],
    next_avail: u16,
    told: u16,
    next_used: u16,
}

impl Queue {
    /// Lays an empty queue out in the arena.
    pub fn new(index: u16, size: u16, notify: u64, features: u64) -> Self {
        let size = size.clamp(1, MAX_SIZE);
        let n = u64::from(size);
        Self {
            index,
            size,
            desc: arena::alloc(16 * n, 4096),
            avail: arena::alloc(6 + 2 * n, 4096),
            used: arena::alloc(6 + 8 * n, 4096),
            kicks: 0,
            notify,
            tables: if features & INDIRECT != 0 { arena::alloc(n * TABLE * 16, 4096) } else { 0 },
            features,
            free: core::array::from_fn(|i| size.saturating_sub(1).saturating_sub(i as u16)),
            free_len: size,
            chain_len: [0; MAX_SIZE as usize],
            chain_next: [0; MAX_SIZE as usize],
            next_avail: 0,
            told: 0,
            next_used: 0,
        }
    }

    /// Descriptors that are free.
    pub fn room(&self) -> u16 {
        self.free_len
    }

    /// The head that the next [`Self::add`] will use.
    pub fn next_head(&self) -> u16 {
        self.free[usize::from(self.free_len.max(1)) - 1]
    }

    fn take(&mut self) -> u16 {
        self.free_len -= 1;
        self.free[usize::from(self.free_len)]
    }

    /// Writes one descriptor of the table at `table`.
    pub fn describe(table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let entry = table + u64::from(index) * 16;
        sys::write64(entry, at);
        sys::write32(entry + 8, len);
        sys::write16(entry + 12, flags);
        sys::write16(entry + 14, next);
    }

    /// Makes a buffer available, as a chain or through an indirect table; `None` if there is no room.
    pub fn add(&mut self, segments: &[Segment], indirect: bool) -> Option<u16> {
        let count = segments.len() as u16;
        let indirect = indirect && self.tables != 0 && u64::from(count) <= TABLE;
        let wanted = if indirect { 1 } else { count };
        if count == 0 || wanted > self.free_len {
            return None;
        }
        let flags = |i: usize| {
            let next = if i + 1 < segments.len() { NEXT } else { 0 };
            if segments[i].writable { next | WRITE } else { next }
        };
        let head = self.take();
        if indirect {
            let table = self.tables + u64::from(head) * TABLE * 16;
            for (i, segment) in segments.iter().enumerate() {
                Self::describe(table, i as u16, segment.at, segment.len, flags(i), i as u16 + 1);
            }
            Self::describe(self.desc, head, table, u32::from(count) * 16, TO_TABLE, 0);
        } else {
            let mut at = head;
            for (i, segment) in segments.iter().enumerate() {
                let next = if i + 1 < segments.len() { self.take() } else { 0 };
                Self::describe(self.desc, at, segment.at, segment.len, flags(i), next);
                self.chain_next[usize::from(at)] = next;
                at = next;
            }
        }
        self.chain_len[usize::from(head)] = wanted;
        self.offer(head);
        Some(head)
    }

    /// Puts any number into the available ring.
    pub fn offer(&mut self, head: u16) {
        sys::write16(self.avail + 4 + u64::from(self.next_avail % self.size) * 2, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    /// Writes the available index, be it true or not.
    pub fn set_avail_index(&self, index: u16) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        sys::write16(self.avail + 2, index);
    }

    /// Notifies the device if it wants to be (§2.7.10).
    pub fn kick(&mut self) {
        sys::fence();
        let new = self.next_avail;
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = sys::read16(self.used + 4 + u64::from(self.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(self.told)
        } else {
            sys::read16(self.used) & 1 == 0
        };
        self.told = new;
        if wanted {
            self.notify();
        }
    }

    /// Notifies the device whatever it says.
    pub fn notify(&mut self) {
        self.kicks += 1;
        sys::write16(self.notify, self.index);
    }

    /// Asks for an interrupt at the next used buffer.
    pub fn arm(&self) {
        if self.features & EVENT_IDX != 0 {
            sys::write16(self.avail + 4 + u64::from(self.size) * 2, self.next_used);
        }
        sys::write16(self.avail, 0);
        sys::fence();
    }

    /// Asks for no interrupts.
    pub fn disarm(&self) {
        if self.features & EVENT_IDX != 0 {
            sys::write16(self.avail + 4 + u64::from(self.size) * 2, self.next_used.wrapping_sub(1));
        }
        sys::write16(self.avail, 1);
    }

    /// Whether a used buffer waits.
    pub fn ready(&self) -> bool {
        sys::read16(self.used + 2) != self.next_used
    }

    /// Takes the next used buffer: its head and the length that the device says it wrote.
    pub fn pop(&mut self) -> Result<Option<(u16, u32)>, Failed> {
        let waiting = sys::read16(self.used + 2).wrapping_sub(self.next_used);
        ensure!(waiting <= self.size, "the used index of queue {} jumped by {waiting}", self.index);
        if waiting == 0 {
            return Ok(None);
        }
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        let entry = self.used + 4 + u64::from(self.next_used % self.size) * 8;
        let (id, len) = (sys::read32(entry), sys::read32(entry + 4));
        ensure!(id < u32::from(self.size), "the device returns descriptor {id} of {}", self.size);
        let head = id as u16;
        let count = core::mem::take(&mut self.chain_len[usize::from(head)]);
        ensure!(count != 0, "the device returns descriptor {id}, which it did not have");
        self.next_used = self.next_used.wrapping_add(1);
        let mut at = head;
        for _ in 0..count {
            self.free[usize::from(self.free_len)] = at;
            self.free_len += 1;
            at = self.chain_next[usize::from(at)];
        }
        Ok(Some((head, len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(size: u16) -> Queue {
        Queue {
            index: 0,
            size,
            desc: 0,
            avail: 0,
            used: 0,
            kicks: 0,
            notify: 0,
            tables: 0,
            features: 0,
            free: core::array::from_fn(|i| size.saturating_sub(1).saturating_sub(i as u16)),
            free_len: size,
            chain_len: [0; MAX_SIZE as usize],
            chain_next: [0; MAX_SIZE as usize],
            next_avail: 0,
            told: 0,
            next_used: 0,
        }
    }

    #[test]
    fn every_descriptor_of_a_new_queue_is_taken_once_in_order() {
        let mut queue = queue(8);
        let taken: Vec<u16> = (0..8).map(|_| queue.take()).collect();
        assert_eq!(taken, (0..8).collect::<Vec<u16>>());
        assert_eq!(queue.room(), 0);
    }

    #[test]
    fn next_head_foretells_the_head() {
        let mut queue = queue(4);
        let foretold = queue.next_head();
        assert_eq!(queue.take(), foretold);
    }
}
