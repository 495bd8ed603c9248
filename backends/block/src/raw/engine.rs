//! Carries out the requests of one queue of a raw image, through a ring or at once.
//!
//! ```text
//!   read, write ─▶ aligned? ── no ──▶ a bounce buffer, piece by piece ─┐
//!       │ cached, or memory: done at once                              ├─▶ ring ─▶ the rest again ─▶ answer
//!       └──────────────────────────────────────────────────────────────┘
//!   discard, write-zeroes ─▶ punch, else zero, else write zeros: range by range ─▶ sync if durable ─▶ answer
//! ```

use std::os::fd::AsFd;
use std::sync::Arc;

use domus_startup::sandbox::Allow;

use super::bounce::{self, Bounce};
use super::{Inline, Raw, inline, zeroes};
use crate::in_flight::Work;
use crate::requests::Requests;
use crate::uring::{Completion, Uring};
use crate::worker::Engine;

/// The system calls beyond those of every worker: to read and write at once, and to change an image's size.
pub const CALLS: &[Allow] = &[Allow::Call(libc::SYS_preadv2), Allow::Call(libc::SYS_pwritev2)];

/// Times that one request is submitted again because the kernel says so.
const RETRIES: u8 = 8;
/// Reads that are not tried at once after one that was not in the page cache, at most.
const LONGEST_MISS: u32 = 64;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Stages of a request, after that in which it is taken. Its data goes through a bounce buffer.
const BOUNCED: u8 = 1;
/// A range of it is being punched, zeroed, or filled with zeros.
const PUNCHING: u8 = 2;
const ZEROING: u8 = 3;
const FILLING: u8 = 4;
/// All is done and must be made durable.
const SYNCING: u8 = 5;

/// The engine of one queue.
#[derive(Debug)]
pub struct RawEngine {
    raw: Arc<Raw>,
    bounce: Bounce,
    /// The storage has not said yet that it cannot.
    punches: bool,
    zeroes: bool,
    /// Reads that are still not tried at once, and how many it was the last time.
    skip: u32,
    miss: u32,
}

impl RawEngine {
    /// For one queue of `raw`.
    pub fn new(raw: Arc<Raw>) -> Self {
        Self { raw, bounce: Bounce::default(), punches: true, zeroes: true, skip: 0, miss: 0 }
    }

    /// Does what can be done of a read or write at once. True if that is all of it.
    fn at_once(&mut self, requests: &mut Requests, index: u16) -> bool {
        let slot = requests.slot(index);
        let (file, rest, offset) = (&self.raw.file, slot.rest(), slot.offset);
        let moved = match (self.raw.inline, slot.work) {
            (Inline::Cached, Work::Read) if self.skip == 0 => {
                #[expect(unsafe_code, reason = "the kernel writes to guest memory")]
                // SAFETY: a slot's buffers are mapped guest memory until it is answered.
                let moved = unsafe { inline::read_cached(file, rest, offset) };
                // Where nothing is cached, trying costs a system call for nothing: try ever less.
                self.miss = if moved.is_some() { 0 } else { (self.miss * 2).clamp(1, LONGEST_MISS) };
                self.skip = self.miss;
                moved
            }
            (Inline::Cached, Work::Read) => {
                self.skip -= 1;
                None
            }
            #[expect(unsafe_code, reason = "the kernel writes to guest memory")]
            // SAFETY: as above.
            (Inline::Memory, Work::Read) => unsafe { inline::read_now(file, rest, offset) },
            #[expect(unsafe_code, reason = "the kernel reads from guest memory")]
            // SAFETY: as above.
            (Inline::Memory, Work::Write) => unsafe { inline::write_now(file, rest, offset) },
            _ => None,
        };
        if let Some(moved) = moved {
            slot.advance(moved.min(slot.left));
        }
        slot.left == 0
    }

    /// Hands the kernel what is left of a read or write.
    fn transfer(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16) {
        let slot = requests.slot(index);
        let (offset, durable, tag) = (slot.offset, slot.durable, u64::from(index));
        let aligned = self.raw.direct.is_none_or(|needed| bounce::is_aligned(slot.rest(), needed));
        let piece;
        let buffers = if aligned || slot.stage == FILLING {
            slot.rest()
        } else {
            if !self.bounce.claim(index) {
                return;
            }
            slot.stage = BOUNCED;
            let claimed = if slot.work == Work::Write {
                #[expect(unsafe_code, reason = "copies from guest memory")]
                // SAFETY: a slot's buffers are mapped guest memory until it is answered.
                unsafe {
                    self.bounce.filled(index, slot.left, slot.rest())
                }
            } else {
                self.bounce.empty(index, slot.left)
            };
            // It was claimed just now.
            let Some(claimed) = claimed else { return };
            piece = [claimed];
            &piece
        };
        if slot.work == Work::Read {
            #[expect(unsafe_code, reason = "the kernel writes to guest memory")]
            // SAFETY: the image is open as long as this engine lives. Each buffer is guest memory, which stays mapped
            // until the slot is answered, or a bounce buffer that belongs to this slot until then. An array of several
            // buffers belongs to the slot and is not touched before completion.
            unsafe {
                ring.read(self.raw.as_fd(), buffers, offset, tag);
            }
        } else {
            #[expect(unsafe_code, reason = "the kernel reads from guest memory")]
            // SAFETY: as for reading, or the buffers are zeros that live for ever.
            unsafe {
                ring.write(self.raw.as_fd(), buffers, offset, durable, tag);
            }
        }
    }

    /// Goes on with the ranges of a discard or write-zeroes.
    fn ranges(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16) {
        let discards = requests.disk().shape().discard;
        let slot = requests.slot(index);
        let tag = u64::from(index);
        loop {
            let Some(&range) = slot.ranges.get(slot.range) else {
                if !slot.durable {
                    return requests.answer(index, Ok(()));
                }
                slot.stage = SYNCING;
                return ring.flush(self.raw.as_fd(), tag);
            };
            let punch = range.unmap && discards && self.punches;
            match slot.work {
                _ if punch => {
                    slot.stage = PUNCHING;
                    return ring.allocate(self.raw.as_fd(), PUNCH, range.offset, range.len, tag);
                }
                // Space that cannot be given back is kept: a discard is a hint.
                Work::Discard => slot.range += 1,
                _ if self.zeroes => {
                    slot.stage = ZEROING;
                    return ring.allocate(self.raw.as_fd(), ZERO, range.offset, range.len, tag);
                }
                _ => {
                    slot.stage = FILLING;
                    (slot.offset, slot.left, slot.done) = (range.offset, range.len, 0);
                    zeroes::fill(&mut slot.buffers, range.len);
                    return self.transfer(ring, requests, index);
                }
            }
        }
    }

    /// A part of a read or write is done.
    fn moved(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16, moved: u64) {
        let slot = requests.slot(index);
        if moved == 0 || moved > slot.left {
            // The image has become shorter; more than asked for cannot be.
            return self.end(ring, requests, index, Err(libc::EIO));
        }
        if slot.stage == BOUNCED && slot.work == Work::Read {
            #[expect(unsafe_code, reason = "copies to guest memory")]
            // SAFETY: a slot's buffers are mapped guest memory until it is answered.
            unsafe {
                self.bounce.empty_into(index, moved, slot.rest());
            }
        }
        slot.advance(moved);
        match (slot.stage, slot.left) {
            (FILLING, 0) => {
                slot.range += 1;
                self.ranges(ring, requests, index);
            }
            (FILLING, left) => {
                zeroes::fill(&mut slot.buffers, left);
                slot.done = 0;
                self.transfer(ring, requests, index);
            }
            (_, 0) => self.end(ring, requests, index, Ok(())),
            _ => self.transfer(ring, requests, index),
        }
    }

    /// A request is over: its bounce buffer, if it has one, is the next one's.
    fn end(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16, result: Result<(), i32>) {
        let next = if requests.slot(index).stage == BOUNCED { self.bounce.release(index) } else { None };
        requests.answer(index, result);
        if let Some(next) = next {
            self.transfer(ring, requests, next);
        }
    }
}

impl Engine for RawEngine {
    fn begin(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16) {
        let work = requests.slot(index).work;
        match work {
            Work::Read | Work::Write if self.at_once(requests, index) => requests.answer(index, Ok(())),
            Work::Read | Work::Write => self.transfer(ring, requests, index),
            Work::Flush => ring.flush(self.raw.as_fd(), index.into()),
            Work::Discard | Work::WriteZeroes => self.ranges(ring, requests, index),
        }
    }

    fn completed(&mut self, ring: &mut Uring, requests: &mut Requests, completion: Completion) {
        let Ok(index) = u16::try_from(completion.tag) else { return };
        if !requests.is_busy(index) {
            return;
        }
        let slot = requests.slot(index);
        let (work, stage) = (slot.work, slot.stage);
        match u64::try_from(completion.result) {
            Ok(_) if work == Work::Flush || stage == SYNCING => requests.answer(index, Ok(())),
            Ok(_) if stage == PUNCHING || stage == ZEROING => {
                slot.range += 1;
                self.ranges(ring, requests, index);
            }
            Ok(moved) => self.moved(ring, requests, index, moved),
            Err(_) => match -completion.result {
                libc::EOPNOTSUPP if stage == PUNCHING => {
                    self.punches = false;
                    self.ranges(ring, requests, index);
                }
                libc::EOPNOTSUPP if stage == ZEROING => {
                    self.zeroes = false;
                    self.ranges(ring, requests, index);
                }
                libc::EINTR | libc::EAGAIN if slot.retries < RETRIES => {
                    slot.retries += 1;
                    match (work, stage) {
                        (Work::Flush, _) | (_, SYNCING) => ring.flush(self.raw.as_fd(), index.into()),
                        (_, PUNCHING | ZEROING) => self.ranges(ring, requests, index),
                        _ => self.transfer(ring, requests, index),
                    }
                }
                errno => self.end(ring, requests, index, Err(errno)),
            },
        }
    }
}
