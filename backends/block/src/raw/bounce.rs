//! Aligned memory for the few requests whose buffers direct I/O cannot take.
//!
//! A driver puts its data where it likes; an aligned one costs nothing here. Others are served through a few buffers of
//! a fixed size, one piece after the other, and wait for one in their order: what a guest can make us allocate is
//! bounded.
#![expect(
    unsafe_code,
    reason = "guest memory is reached through the addresses that the kernel would be given"
)]

use std::collections::VecDeque;

use libc::iovec;
use vm_memory::VolatileSlice;

use super::Alignment;

/// Bytes of each buffer.
pub const LEN: usize = 128 << 10;
/// How many there are in each queue.
const BUFFERS: usize = 4;
/// What every direct I/O is content with.
const ALIGN: usize = 4096;

/// Whether direct I/O can use these buffers.
pub fn is_aligned(buffers: &[iovec], alignment: Alignment) -> bool {
    let (memory, length) = (alignment.memory as usize - 1, alignment.offset as usize - 1);
    buffers.iter().all(|buffer| buffer.iov_base.addr() & memory == 0 && buffer.iov_len & length == 0)
}

/// One buffer: more than [`LEN`] bytes, of which those from the first aligned one on are used.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    user: Option<u16>,
}

/// The buffers of one queue, made when they are needed first.
#[derive(Debug, Default)]
pub struct Bounce {
    buffers: Vec<Buffer>,
    waiting: VecDeque<u16>,
}

impl Bounce {
    /// Gives the request in `slot` a buffer, or lets it wait for one.
    pub fn claim(&mut self, slot: u16) -> bool {
        if self.find(slot).is_some() {
            return true;
        }
        if self.buffers.len() < BUFFERS && self.buffers.iter().all(|buffer| buffer.user.is_some()) {
            let memory = vec![0_u8; LEN + ALIGN];
            let start = memory.as_ptr().align_offset(ALIGN);
            self.buffers.push(Buffer { memory, start, user: None });
        }
        match self.buffers.iter_mut().find(|buffer| buffer.user.is_none()) {
            Some(buffer) => buffer.user = Some(slot),
            None => self.waiting.push_back(slot),
        }
        self.find(slot).is_some()
    }

    /// The request in `slot` needs its buffer no more; returns who has waited longest for one.
    pub fn release(&mut self, slot: u16) -> Option<u16> {
        let buffer = self.find(slot)?;
        self.buffers[buffer].user = None;
        self.waiting.pop_front()
    }

    fn find(&self, slot: u16) -> Option<usize> {
        self.buffers.iter().position(|buffer| buffer.user == Some(slot))
    }

    /// The first `len` bytes, at most [`LEN`], of the buffer of `slot`, for the kernel to fill.
    pub fn empty(&mut self, slot: u16, len: u64) -> Option<iovec> {
        let index = self.find(slot)?;
        let buffer = &mut self.buffers[index];
        let used = &mut buffer.memory[buffer.start..buffer.start + LEN.min(len as usize)];
        Some(iovec { iov_base: used.as_mut_ptr().cast(), iov_len: used.len() })
    }

    /// The same, with what is in the guest's buffers.
    ///
    /// # Safety
    /// The buffers must be mapped guest memory.
    pub unsafe fn filled(&mut self, slot: u16, len: u64, guest: &[iovec]) -> Option<iovec> {
        let index = self.find(slot)?;
        let buffer = &mut self.buffers[index];
        let used = &mut buffer.memory[buffer.start..buffer.start + LEN.min(len as usize)];
        let mut done = 0;
        for from in guest {
            let part = from.iov_len.min(used.len() - done);
            // SAFETY: the caller's promise: `iov_len` bytes are mapped there, and `part` is no more.
            let from = unsafe { VolatileSlice::new(from.iov_base.cast(), part) };
            from.copy_to(&mut used[done..done + part]);
            done += part;
        }
        self.empty(slot, len)
    }

    /// Copies the first `len` bytes of the buffer of `slot`, at most [`LEN`], into the guest's buffers.
    ///
    /// # Safety
    /// The buffers must be mapped guest memory.
    pub unsafe fn empty_into(&self, slot: u16, len: u64, guest: &[iovec]) {
        let Some(buffer) = self.find(slot).map(|index| &self.buffers[index]) else { return };
        let used = &buffer.memory[buffer.start..buffer.start + LEN.min(len as usize)];
        let mut done = 0;
        for into in guest {
            let part = into.iov_len.min(used.len() - done);
            // SAFETY: the caller's promise: `iov_len` bytes are mapped there, and `part` is no more.
            let into = unsafe { VolatileSlice::new(into.iov_base.cast(), part) };
            into.copy_from(&used[done..done + part]);
            done += part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(bytes: &mut [u8], lengths: &[usize]) -> Vec<iovec> {
        let mut at = 0;
        let vector = |&len| {
            let base = bytes[at..at + len].as_mut_ptr().cast();
            at += len;
            iovec { iov_base: base, iov_len: len }
        };
        lengths.iter().map(vector).collect()
    }

    #[test]
    fn bytes_go_through_a_buffer_and_come_back() {
        let mut bounce = Bounce::default();
        assert!(bounce.claim(7));
        let mut source: Vec<u8> = (0..2048_u32).map(|i| (i * 7) as u8).collect();
        let from = vectors(&mut source, &[1, 1000, 1047]);
        // SAFETY: the vectors lead into `source`, which lives.
        let piece = unsafe { bounce.filled(7, 2048, &from) }.unwrap();
        assert_eq!((piece.iov_len, piece.iov_base.addr() % ALIGN), (2048, 0));
        let mut target = vec![0; 2048];
        let into = vectors(&mut target, &[500, 1500, 48]);
        // SAFETY: the vectors lead into `target`, which lives.
        unsafe { bounce.empty_into(7, 2048, &into) };
        assert_eq!(target, source);
    }

    #[test]
    fn who_finds_no_buffer_waits_for_one_in_its_order() {
        let mut bounce = Bounce::default();
        assert!((0..4).all(|slot| bounce.claim(slot)));
        assert!(!bounce.claim(4) && !bounce.claim(5));
        assert_eq!(bounce.release(2), Some(4));
        assert!(bounce.claim(4));
        assert_eq!(bounce.release(2), None);
        assert_eq!(bounce.release(0), Some(5));
        assert_eq!(bounce.empty(1, 1 << 30).unwrap().iov_len, LEN);
    }

    #[test]
    fn addresses_and_lengths_must_be_aligned() {
        let alignment = Alignment { memory: 4, offset: 512 };
        let vector =
            |base: usize, iov_len| iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len };
        assert!(is_aligned(&[vector(4, 512), vector(1024, 4096)], alignment));
        assert!(!is_aligned(&[vector(4, 512), vector(1026, 4096)], alignment));
        assert!(!is_aligned(&[vector(4, 256), vector(1024, 256)], alignment));
    }
}
