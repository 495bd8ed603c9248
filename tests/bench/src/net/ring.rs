//! The driver's side of a split virtqueue (virtio 1.3 §2.7) in memory shared with a backend, made to be fast: nothing is
//! allocated, indices are published by batch, and whether to be called is chosen by batch.
#![expect(unsafe_code, reason = "memory shared with a backend is reached through a raw pointer")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use anyhow::Result;
use domus_startup::memfd;
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Descriptors of each ring.
pub const SIZE: u16 = 256;

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;

/// Offsets in a ring's own piece of memory.
const AVAILABLE: usize = 0x2000;
const USED: usize = 0x3000;
/// Bytes of such a piece.
pub const PIECE: usize = 0x4000;

/// A guest's memory.
#[derive(Clone, Debug)]
pub struct Memory {
    file: Arc<File>,
    map: Arc<MmapRaw>,
}

impl Memory {
    /// So many zeros.
    pub fn new(bytes: usize) -> Result<Self> {
        let file = memfd::sealed("guest", bytes as u64)?;
        let map = MmapOptions::new().len(bytes).map_raw(file.as_raw_fd())?;
        Ok(Self { file: Arc::new(file), map: Arc::new(map) })
    }

    /// The file, for backends.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where in this process it is.
    pub fn start(&self) -> u64 {
        self.map.as_ptr().addr() as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.map.len()));
        // SAFETY: the offset is inside the mapping, just asserted.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Writes bytes that no backend reads yet.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.pointer(offset, bytes.len());
        // SAFETY: `pointer` has checked that so many bytes are mapped there; `bytes` is not in the mapping, to which no
        // reference is ever made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Reads bytes that a backend has given back.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.pointer(offset, into.len());
        // SAFETY: as in `write`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    fn at<T>(&self, offset: usize) -> &T {
        let place = self.pointer(offset, size_of::<T>()).cast::<T>();
        assert!(place.is_aligned());
        // SAFETY: mapped, just checked by `pointer`; aligned, just asserted; T is one of the atomics below, of which any
        // bytes are valid; the mapping lives as long as `self`.
        unsafe { &*place }
    }

    fn u16(&self, offset: usize) -> &AtomicU16 {
        self.at(offset)
    }

    fn u32(&self, offset: usize) -> &AtomicU32 {
        self.at(offset)
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        self.at(offset)
    }
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    base: usize,
    available: u16,
    published: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    /// A ring whose areas are in the [`PIECE`] bytes from `base`.
    pub fn new(memory: &Memory, base: usize) -> Result<Self> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let memory = memory.clone();
        Ok(Self { memory, base, available: 0, published: 0, used: 0, kick: eventfd()?, call: eventfd()? })
    }

    /// Where its descriptors, available ring and used ring are, from the memory's start.
    pub fn areas(&self) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|area| (self.base + area) as u64)
    }

    /// The driver's doorbell.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The device's.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Sets descriptor `index`.
    pub fn set_descriptor(&self, index: u16, addr: usize, len: u32, flags: u16, next: u16) {
        let at = self.base + usize::from(index) * 16;
        self.memory.u64(at).store(addr as u64, Ordering::Relaxed);
        let second = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.u64(at + 8).store(second, Ordering::Relaxed);
    }

    /// Makes the chain that starts with `head` available with the next [`Self::publish`].
    pub fn offer(&mut self, head: u16) {
        let slot = self.base + AVAILABLE + 4 + usize::from(self.available % SIZE) * 2;
        self.memory.u16(slot).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was offered, and kicks it if it wants to be kicked.
    pub fn publish(&mut self) -> Result<()> {
        if self.published == self.available {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.published, self.available);
        self.memory.u16(self.base + AVAILABLE + 2).store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.memory.u16(self.base + USED + 4 + usize::from(SIZE) * 8).load(Ordering::Relaxed);
        if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old) {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// The next chain that was used, and how many bytes were written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.memory.u16(self.base + USED + 2).load(Ordering::Acquire) == self.used {
            return None;
        }
        let slot = self.base + USED + 4 + usize::from(self.used % SIZE) * 8;
        let head = self.memory.u32(slot).load(Ordering::Relaxed) as u16;
        let written = self.memory.u32(slot + 4).load(Ordering::Relaxed);
        self.used = self.used.wrapping_add(1);
        Some((head, written))
    }

    /// Asks to be called for the next used chain, or for none. True if there is one already.
    pub fn want_call(&mut self, wanted: bool) -> bool {
        let event = if wanted { self.used } else { self.used.wrapping_sub(1) };
        self.memory.u16(self.base + AVAILABLE + 4 + usize::from(SIZE) * 2).store(event, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        wanted && self.memory.u16(self.base + USED + 2).load(Ordering::Acquire) != self.used
    }
}
