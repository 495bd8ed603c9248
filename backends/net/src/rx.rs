//! Frames for the guest: one `readv` straight from the tap into as many of the guest's buffers as the frame takes.
//!
//! ```text
//!            buffers                  frame               more than the buffers hold
//!   refill ──────────▶ read the tap ────────▶ deliver ─────────────────────────────▶ partial
//!     ▲ none: wait for a kick, leave       │                                          │ buffers
//!     │ the tap alone                      ▼                                          ▼
//!     └──────────────────────────────── push ◀──────────────────────────────────── complete
//! ```
//!
//! The length of a frame is known only when it has been read. So the last piece of every read is a buffer of our own,
//! [`SPILL`] bytes: what the guest's buffers did not hold is copied from there when it gives more. While frames are
//! small only as many buffers are offered as a small frame takes.
//!
//! Promises: no frame is cut; one that can never fit is dropped whole; with no buffer available the tap is not read, so
//! the kernel drops what is too much; buffers outside the guest's memory are given back empty.

use std::io;

use nix::errno::Errno;
use vu_server::{Chain, Queue, Segment};

use crate::features::{MRG_RXBUF, header_len};
use crate::header::{LEN, MAX_FRAME};
use crate::tap::{Pieces, Tap};
use crate::window::Window;
use crate::worker::{Wait, Work};

/// Longest header and frame in bytes, rounded up.
pub const SPILL: usize = 72 * 1024;

/// Most frames of one turn.
const BURST: usize = 64;

/// Most pieces of memory in one chain, and so many more in the window.
const MAX_PIECES: usize = 256;

/// After so many small frames in a row the window is small again.
const CALM: u32 = 256;

/// The receive queue's work.
#[derive(Debug)]
pub struct Receive<F> {
    queue: Option<Box<Queue>>,
    chain: Chain,
    window: Window,
    pieces: Pieces,
    spill: Box<[u8]>,
    /// A frame that takes more than this many bytes is large.
    small: u64,
    /// Small frames since the last large one.
    calm: u32,
    /// The buffers that hold the frame in work, with the bytes written to each.
    filled: Vec<(u16, u32)>,
    /// How many segments they have: with all of the ring's in one frame, no more will come.
    taken: usize,
    /// The segments of the first of them.
    first: Vec<Segment>,
    /// What is left of the frame in work: this part of `spill`.
    partial: std::ops::Range<usize>,
    /// Told once when the tap is gone.
    lost: Option<F>,
}

impl<F: FnOnce(io::Error)> Receive<F> {
    /// `mtu`: frames of at most this many bytes of payload are small. `lost` is called if the tap cannot be
    /// read any more.
    pub fn new(mtu: u16, lost: F) -> Self {
        Self {
            queue: None,
            chain: Chain::default(),
            window: Window::default(),
            pieces: Pieces::default(),
            spill: vec![0; SPILL].into_boxed_slice(),
            small: u64::from(mtu) + 18 + LEN as u64,
            calm: CALM,
            filled: Vec::new(),
            taken: 0,
            first: Vec::new(),
            partial: 0..0,
            lost: Some(lost),
        }
    }

    /// Pops buffers until a frame as large as those of late fits. False if the next one cannot be used, and not be
    /// given back either before those that were popped earlier: only the last ones can be put back.
    fn refill(&mut self, queue: &mut Queue) -> bool {
        let merge = queue.features() & MRG_RXBUF != 0;
        let wanted = if self.calm < CALM { MAX_FRAME + LEN as u64 } else { self.small };
        for _ in 0..queue.size() {
            let enough = if merge { self.window.bytes() >= wanted } else { !self.window.is_empty() };
            if enough || self.window.segments().len() >= MAX_PIECES || !queue.pop(&mut self.chain) {
                break;
            }
            // A driver's buffer holds at least the header (virtio 1.3 §5.1.6.3.1).
            let writable = &self.chain.writable;
            if self.chain.writable_len() >= LEN as u64
                && self.pieces.can_hold(queue.memory(), writable, MAX_PIECES)
            {
                self.window.push(self.chain.head, writable);
            } else if self.window.is_empty() && self.filled.is_empty() {
                queue.push(self.chain.head, 0);
            } else {
                queue.unpop(1);
                return false;
            }
        }
        true
    }

    /// A frame of `length` bytes, header included, is in the window and, for the rest, in `spill`.
    fn deliver(&mut self, queue: &mut Queue, length: usize) {
        let length = length as u64;
        self.calm = if length > self.small { 0 } else { self.calm.saturating_add(1) };
        let merge = queue.features() & MRG_RXBUF != 0;
        if !merge && length > self.window.bytes() {
            // The buffer stays for the next frame.
            return;
        }
        let spilled = length.saturating_sub(self.window.bytes()) as usize;
        if spilled > self.spill.len() {
            // Longer than any frame of 64 KiB (BIG TCP): the kernel has cut it, so it is dropped whole.
            return;
        }
        let mut left = length;
        while left > 0
            && let Some((buffer, segments)) = self.window.pop()
        {
            if self.filled.is_empty() {
                self.first.clear();
                self.first.extend_from_slice(segments);
            }
            let used = left.min(buffer.len);
            // At most a frame's length.
            self.filled.push((buffer.head, used as u32));
            self.taken += segments.len();
            left -= used;
        }
        self.partial = 0..spilled;
        self.complete(queue);
    }

    /// Puts what is left of the frame in work into further buffers. False if there are not enough yet.
    fn complete(&mut self, queue: &mut Queue) -> bool {
        while !self.partial.is_empty() {
            let usable = !self.window.is_empty() || self.refill(queue);
            let Some((buffer, segments)) = self.window.pop() else {
                if !usable || self.taken >= usize::from(queue.size()) || queue.is_broken() {
                    self.put_back(queue);
                    return true;
                }
                return false;
            };
            let rest = &self.spill[self.partial.clone()];
            // The buffer was checked when it was popped, and the memory is the same.
            let written = queue.memory().write(segments, 0, rest).unwrap_or(rest.len());
            self.filled.push((buffer.head, written as u32));
            self.taken += segments.len();
            self.partial.start += written;
        }
        if header_len(queue.features()) == LEN {
            let count = (self.filled.len() as u16).to_le_bytes();
            // `num_buffers`, behind the ten bytes that the kernel has written.
            let _ = queue.memory().write(&self.first, 10, &count);
        }
        for (head, used) in self.filled.drain(..) {
            queue.push(head, used);
        }
        self.taken = 0;
        true
    }

    /// Puts all buffers back that no whole frame is in, and with that drops the frame in work.
    fn put_back(&mut self, queue: &mut Queue) {
        // At most the ring's size.
        queue.unpop((self.filled.len() + self.window.len()) as u16);
        self.filled.clear();
        self.taken = 0;
        self.window.clear();
        self.partial = 0..0;
    }

    fn burst(&mut self, queue: &mut Queue, tap: &Tap) -> Wait {
        for _ in 0..BURST {
            let stuck = if self.partial.is_empty() {
                self.refill(queue);
                self.window.is_empty()
            } else {
                !self.complete(queue)
            };
            if stuck {
                queue.publish();
                return match (queue.is_broken(), queue.enable_kicks()) {
                    (true, _) => Wait::Order,
                    (false, true) => Wait::Nothing,
                    (false, false) => Wait::Kick,
                };
            }
            queue.disable_kicks();
            if self.window.is_empty() {
                continue;
            }
            match tap.read(queue.memory(), self.window.segments(), &mut self.spill, &mut self.pieces) {
                Ok(length) => self.deliver(queue, length),
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {
                    queue.publish();
                    return Wait::Readable;
                }
                // Memory that cannot be had just now: this frame is lost, the next one may not be.
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    queue.publish();
                    if let Some(lost) = self.lost.take() {
                        lost(error);
                    }
                    return Wait::Order;
                }
            }
        }
        queue.publish();
        Wait::Nothing
    }
}

impl<F: FnOnce(io::Error)> Work for Receive<F> {
    fn queue(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    fn stop(&mut self) -> Option<Box<Queue>> {
        let mut queue = self.queue.take()?;
        queue.publish();
        self.put_back(&mut queue);
        Some(queue)
    }

    fn turn(&mut self, tap: &Tap) -> Wait {
        if self.lost.is_none() {
            return Wait::Order;
        }
        let Some(mut queue) = self.queue.take() else { return Wait::Order };
        let wait = self.burst(&mut queue, tap);
        self.queue = Some(queue);
        wait
    }
}

/// True if a read has failed for want of memory, the guest's or the host's: the tap is there still.
fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::EFAULT, Errno::ENOMEM, Errno::ENOBUFS, Errno::EINVAL];
    passing.into_iter().any(|errno| error.raw_os_error() == Some(errno as i32))
}
