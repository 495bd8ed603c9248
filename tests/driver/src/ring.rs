//! The driver's side of a split virtqueue (virtio 1.3 §2.7).
//!
//! The path of [`Ring::push`], [`Ring::publish`], [`Ring::take`] and [`Ring::want_call`] is made to be fast: nothing is
//! allocated, indices are published by batch, and whether to be called is chosen by batch. With the rest a driver does
//! one thing at a time, or lies: descriptors, heads and indices are stored as they are given.
//!
//! # Panics
//! An eventfd that cannot be written; a device that does not call within [`PATIENCE`] where [`Ring::used`] waits for
//! it, or that uses a head of more than 16 bits.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use anyhow::{Result, ensure};

use crate::memory::Memory;
use crate::{PATIENCE, event};

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// One descriptor: address, length in bytes, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// One buffer of a chain: address, length in bytes, whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// Where a ring's parts are in the memory, and how many descriptors it has.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
    /// Descriptors, a power of two.
    pub size: u16,
}

/// Bytes that a ring of [`Layout::at`] takes.
pub const PIECE: u64 = 0x4000;

impl Layout {
    /// All parts in the [`PIECE`] bytes from `base` on, for up to 256 descriptors.
    pub fn at(base: u64, size: u16) -> Self {
        Self { descriptors: base, available: base + 0x2000, used: base + 0x3000, size }
    }
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    layout: Layout,
    /// Whether `VIRTIO_F_EVENT_IDX` is settled.
    event_idx: bool,
    /// The available index after all that was pushed.
    pub available: u16,
    published: u16,
    /// The used index after all that was taken.
    pub seen: u16,
    /// The driver's doorbell.
    pub kick: File,
    /// The device's.
    pub call: File,
}

impl Ring {
    /// An empty ring.
    ///
    /// # Errors
    /// Its size is none, or there is no descriptor for its eventfds.
    pub fn new(memory: &Memory, layout: Layout, event_idx: bool) -> Result<Self> {
        ensure!(layout.size.is_power_of_two(), "a ring of {} descriptors", layout.size);
        let (memory, kick, call) = (memory.clone(), event::kick()?, event::call()?);
        Ok(Self { memory, layout, event_idx, available: 0, published: 0, seen: 0, kick, call })
    }

    /// Where its parts are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.layout.size - 1))
    }

    fn u16(&self, at: u64) -> &AtomicU16 {
        self.memory.atomic(at)
    }

    /// `used_event`: the index of the used element to be called for.
    pub fn used_event(&self) -> u64 {
        self.layout.available + 4 + u64::from(self.layout.size) * 2
    }

    /// `avail_event`: the index of the available element to kick for.
    pub fn available_event(&self) -> u64 {
        self.layout.used + 4 + u64::from(self.layout.size) * 8
    }

    /// Sets a descriptor of the table.
    pub fn set_descriptor(&self, index: u16, (addr, len, flags, next): Descriptor) {
        let at = self.layout.descriptors + u64::from(index) * 16;
        self.memory.atomic::<AtomicU64>(at).store(addr, Ordering::Relaxed);
        let second = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.atomic::<AtomicU64>(at + 8).store(second, Ordering::Relaxed);
    }

    /// Sets the descriptors of a chain, from `first` on; returns the one after its last.
    pub fn set_chain(&self, first: u16, buffers: &[Buffer]) -> u16 {
        let mut index = first;
        for (left, &(addr, len, write)) in (0..buffers.len()).rev().zip(buffers) {
            let flags = if left > 0 { NEXT } else { 0 } | if write { WRITE } else { 0 };
            let next = (index + 1) & (self.layout.size - 1);
            self.set_descriptor(index, (addr, len, flags, next));
            index = next;
        }
        index
    }

    /// Puts a head in the available ring, to be shown with the next [`Self::publish`] or [`Self::show`].
    pub fn push(&mut self, head: u16) {
        let at = self.layout.available + 4 + self.slot(self.available) * 2;
        self.u16(at).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was pushed, without a kick.
    pub fn show(&mut self) {
        self.published = self.available;
        self.set_available_index(self.available);
    }

    /// Puts a head in the available ring and shows it, without a kick.
    pub fn offer(&mut self, head: u16) {
        self.push(head);
        self.show();
    }

    /// Shows the device what was pushed, and kicks it if it wants to be kicked for that.
    pub fn publish(&mut self) {
        if self.published == self.available {
            return;
        }
        let old = self.published;
        self.show();
        fence(Ordering::SeqCst);
        if self.wants_kick_since(old) {
            self.kick();
        }
    }

    /// Stores an available index as it is.
    pub fn set_available_index(&self, index: u16) {
        self.u16(self.layout.available + 2).store(index, Ordering::Release);
    }

    /// Makes the available index say that there are more chains than the ring has room for.
    pub fn break_available_index(&self) {
        self.set_available_index(self.available.wrapping_add(self.layout.size + 1));
    }

    /// Whether a kick is wanted for the chain that was shown last.
    pub fn wants_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        self.wants_kick_since(self.available.wrapping_sub(1))
    }

    fn wants_kick_since(&self, old: u16) -> bool {
        if !self.event_idx {
            return self.u16(self.layout.used).load(Ordering::Relaxed) & 1 == 0;
        }
        let event = self.u16(self.available_event()).load(Ordering::Relaxed);
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
    }

    /// Kicks, wanted or not.
    pub fn kick(&self) {
        (&self.kick).write_all(&1_u64.to_ne_bytes()).expect("a kick can be written");
    }

    /// The used index as the device has shown it.
    pub fn used_index(&self) -> u16 {
        self.u16(self.layout.used + 2).load(Ordering::Acquire)
    }

    /// The next chain that was used, if there is one: its head, and how many bytes were written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let at = self.layout.used + 4 + self.slot(self.seen) * 8;
        let head = self.memory.atomic::<AtomicU32>(at).load(Ordering::Relaxed);
        let written = self.memory.atomic::<AtomicU32>(at + 4).load(Ordering::Relaxed);
        self.seen = self.seen.wrapping_add(1);
        Some((u16::try_from(head).expect("the head is one of 16 bits"), written))
    }

    /// Asks to be called for the next used chain, or for none. True if there is one already.
    pub fn want_call(&mut self, wanted: bool) -> bool {
        let event = if wanted { self.seen } else { self.seen.wrapping_sub(1) };
        self.u16(self.used_event()).store(event, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        wanted && self.used_index() != self.seen
    }

    /// As [`Self::take`], and asks to be called for the one after it.
    pub fn try_used(&mut self) -> Option<(u16, u32)> {
        let used = self.take()?;
        self.want_call(true);
        Some(used)
    }

    /// Waits, by the call eventfd alone, for the next used chain.
    pub fn used(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.try_used() {
                return used;
            }
            let called = event::counted(&self.call, PATIENCE).expect("a call can be waited for");
            assert!(called > 0, "the driver was not called");
        }
    }
}

/// Stores a descriptor in any table, at an address of any alignment.
pub fn put_descriptor(memory: &Memory, table: u64, index: u16, (addr, len, flags, next): Descriptor) {
    let at = table + 16 * u64::from(index);
    memory.write(addr, at);
    memory.write(len, at + 8);
    memory.write(flags, at + 12);
    memory.write(next, at + 14);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Kicks since the last look.
    fn kicks(ring: &Ring) -> u64 {
        event::counted(&ring.kick, Duration::ZERO).unwrap()
    }

    /// Uses a chain as a device does.
    fn use_chain(ring: &Ring, index: u16, head: u32, written: u32) {
        let at = ring.layout.used + 4 + ring.slot(index) * 8;
        ring.memory.write(head, at);
        ring.memory.write(written, at + 4);
        ring.memory.write(index.wrapping_add(1), ring.layout.used + 2);
    }

    #[test]
    fn a_batch_is_kicked_for_once_and_only_if_the_device_waits_for_one_of_it() {
        let memory = Memory::sealed(PIECE).unwrap();
        let mut ring = Ring::new(&memory, Layout::at(0, 8), true).unwrap();
        (0..3).for_each(|head| ring.push(head));
        assert_eq!(memory.read::<u16>(ring.layout.available + 2), 0, "shown too early");
        ring.publish();
        assert_eq!((memory.read::<u16>(ring.layout.available + 2), kicks(&ring)), (3, 1));
        for (event, expected) in [(7, 0), (4, 1), (3, 0)] {
            memory.write::<u16>(event, ring.available_event());
            ring.offer(0);
            assert_eq!(u64::from(ring.wants_kick()), expected, "{event}");
        }
        ring.publish();
        assert_eq!(kicks(&ring), 0, "there was nothing to publish");
        let mut ring = Ring::new(&memory, Layout::at(0, 8), false).unwrap();
        for (flags, expected) in [(0, 1), (1, 0)] {
            memory.write::<u16>(flags, ring.layout.used);
            ring.push(0);
            ring.publish();
            assert_eq!(kicks(&ring), expected, "flags {flags}");
        }
    }

    #[test]
    fn used_chains_are_taken_in_order_around_the_end_of_the_ring_and_of_all_numbers() {
        let memory = Memory::sealed(PIECE).unwrap();
        let mut ring = Ring::new(&memory, Layout::at(0, 8), true).unwrap();
        ring.seen = u16::MAX - 4;
        memory.write(ring.seen, ring.layout.used + 2);
        for round in 0..10 {
            assert_eq!(ring.try_used(), None);
            assert!(!ring.want_call(true));
            use_chain(&ring, ring.seen, round, round * 2);
            assert!(ring.want_call(true) && !ring.want_call(false));
            assert_eq!(ring.try_used(), Some((round as u16, round * 2)));
            assert_eq!(memory.read::<u16>(ring.used_event()), ring.seen);
        }
    }

    #[test]
    fn a_chain_goes_on_at_the_tables_start() {
        let memory = Memory::sealed(PIECE).unwrap();
        let ring = Ring::new(&memory, Layout::at(0, 8), true).unwrap();
        assert_eq!(ring.set_chain(7, &[(0x1234, 5, false), (0x5678, 9, true)]), 1);
        let other = Memory::sealed(PIECE).unwrap();
        put_descriptor(&other, 0, 7, (0x1234, 5, NEXT, 0));
        put_descriptor(&other, 0, 0, (0x5678, 9, WRITE, 1));
        assert!(memory.read_bytes(0, PIECE as usize) == other.read_bytes(0, PIECE as usize));
    }
}
