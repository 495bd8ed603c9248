//! Frames for the guest: one `readv` from the wire into as many of the guest's buffers as the frame takes.
//!
//! ```text
//!            buffers                   frame                more than the buffers hold
//!   refill ──────────▶ read the wire ────────▶ deliver ─────────────────────────────▶ partial
//!     ▲ none: wait for a kick, leave        │ unwanted: the buffers stay                │ buffers
//!     │ the wire alone                      ▼                                          ▼
//!     └──────────────────────────────── push ◀──────────────────────────────────── complete
//! ```
//!
//! The length of a frame is known only after the read. So the last piece of every read is a private buffer of [`SPILL`]
//! bytes: bytes beyond the guest's buffers are copied from there when the guest provides more buffers. While frames are
//! small, only as many buffers are offered as a small frame takes. The first piece is a private buffer too: it receives
//! the virtio header and the addresses, which are checked and then copied to the guest.
//!
//! Promises: no frame is cut, and a frame that can never fit is dropped whole. Without a free buffer, or with the limit
//! reached, the wire is not read, so the wire drops the excess. With the cable pulled, the wire is drained. Buffers
//! outside the guest's memory are given back empty.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use domus_startup::time;
use nix::errno::Errno;
use shared_abi::control::DropReason;
use vu_server::{Chain, Queue, Segment};

use crate::features::{MRG_RXBUF, header_len};
use crate::header::{LEN, MAX_FRAME};
use crate::link_state::LinkState;
use crate::ring_poll::RingPoll;
use crate::rx_buffers::RxBuffers;
use crate::settings::{CHECKED_LEN, Wanted};
use crate::statistics::Counters;
use crate::vectored_io::{Part, VectoredIo};
use crate::wait_set::Wait;
use crate::wire::Source;
use crate::worker::Work;

/// Longest header and frame in bytes, rounded up.
pub const SPILL: usize = 72 * 1024;

/// Most frames of one turn.
const BURST: usize = 64;

/// Most pieces of memory in one chain, and so many more in the window.
const MAX_PIECES: usize = 256;

/// After so many small frames in a row the window is small again.
const SMALL_AGAIN: u32 = 256;

/// What a receiver reports: the wire cannot be read any more.
pub type Lost = Box<dyn FnMut(io::Error) + Send>;

/// The receive queue's work.
pub struct Receive<S> {
    shared: Arc<LinkState>,
    counters: Arc<Counters>,
    wire: S,
    wanted: Arc<Wanted>,
    /// The queue pair is in use.
    active: bool,
    queue: Option<Box<Queue>>,
    chain: Chain,
    window: RxBuffers,
    pieces: VectoredIo,
    /// The virtio header and the first bytes of the frame in work.
    head: [u8; LEN + CHECKED_LEN],
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
    ring_poll: RingPoll,
    /// What is left of the frame in work: this part of `spill`.
    partial: std::ops::Range<usize>,
    /// Length of the frame in work, without its header.
    length: u64,
    /// The wire cannot be read.
    gone: bool,
    /// Told when it could not be any more.
    lost: Lost,
}

impl<S: Source> Receive<S> {
    /// Frames of at most `mtu` bytes of payload are small.
    pub fn new(shared: Arc<LinkState>, counters: Arc<Counters>, wire: S, mtu: u16, lost: Lost) -> Self {
        let gone = wire.fd().is_none();
        Self {
            shared,
            counters,
            wire,
            wanted: Arc::default(),
            active: false,
            queue: None,
            chain: Chain::default(),
            window: RxBuffers::default(),
            pieces: VectoredIo::default(),
            head: [0; LEN + CHECKED_LEN],
            spill: vec![0; SPILL].into_boxed_slice(),
            small: u64::from(mtu) + 18 + LEN as u64,
            calm: SMALL_AGAIN,
            filled: Vec::new(),
            taken: 0,
            first: Vec::new(),
            ring_poll: RingPoll::default(),
            partial: 0..0,
            length: 0,
            gone,
            lost,
        }
    }

    /// Pops buffers until a frame as large as those of late fits. False if the next one cannot be used, and not be
    /// given back either before those that were popped earlier: only the last ones can be put back.
    fn refill(&mut self, queue: &mut Queue) -> bool {
        let merge = queue.features() & MRG_RXBUF != 0;
        let wanted = if self.calm < SMALL_AGAIN { MAX_FRAME + LEN as u64 } else { self.small };
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

    /// Reads one frame into `head`, the window and, for the rest, `spill`. Returns the lengths of `head` and of all.
    fn read(&mut self, queue: &Queue) -> io::Result<(usize, usize)> {
        let header = header_len(queue.features());
        // Every buffer holds at least a header.
        let look = (header + CHECKED_LEN).min(usize::try_from(self.window.bytes()).unwrap_or(usize::MAX));
        let (memory, segments) = (queue.memory(), self.window.segments());
        let buffers = Part { memory, segments, skip: look as u64, limit: u64::MAX };
        let length = self.wire.read(header, &mut self.head[..look], buffers, &mut self.spill)?;
        Ok((look.min(length), length))
    }

    /// A frame of `length` bytes, header included, has been read, of which the first `look` are in `head`.
    fn deliver(&mut self, queue: &mut Queue, (look, length): (usize, usize)) {
        let header = header_len(queue.features());
        let length = length as u64;
        let frame = length.saturating_sub(header as u64);
        self.shared.receive.charge(time::monotonic, frame);
        self.calm = if length > self.small { 0 } else { self.calm.saturating_add(1) };
        let merge = queue.features() & MRG_RXBUF != 0;
        let spilled = length.saturating_sub(self.window.bytes()) as usize;
        // Too long for the only buffer, or longer than any frame of 64 KiB (BIG TCP), which the kernel has cut: dropped
        // whole. The buffers stay for the next frame.
        if (!merge && spilled > 0) || spilled > self.spill.len() {
            return self.counters.dropped(DropReason::NoRoom);
        }
        if !self.wanted.frame(self.head.get(header..look).unwrap_or_default()) {
            return self.counters.dropped(DropReason::Unwanted);
        }
        let buffers = self.window.holding(length);
        if header == LEN {
            // `num_buffers`, behind the ten bytes of the wire. At most the window's size.
            self.head[10..LEN].copy_from_slice(&(buffers as u16).to_le_bytes());
        }
        // The window was checked when it was popped, and the memory is the same.
        let _ = queue.memory().write(self.window.segments(), 0, &self.head[..look]);
        let mut left = length;
        for _ in 0..buffers {
            let Some((buffer, segments)) = self.window.pop() else { break };
            if spilled > 0 && self.filled.is_empty() {
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
        self.length = frame;
        self.complete(queue);
    }

    /// Puts what is left of the frame in work into further buffers. False if there are not enough yet.
    fn complete(&mut self, queue: &mut Queue) -> bool {
        let whole = self.partial.is_empty();
        while !self.partial.is_empty() {
            let usable = !self.window.is_empty() || self.refill(queue);
            let Some((buffer, segments)) = self.window.pop() else {
                if !usable || self.taken >= usize::from(queue.size()) || queue.is_broken() {
                    self.counters.dropped(DropReason::NoRoom);
                    self.put_back(queue);
                    return true;
                }
                return false;
            };
            let rest = &self.spill[self.partial.clone()];
            let written = queue.memory().write(segments, 0, rest).unwrap_or(rest.len());
            self.filled.push((buffer.head, written as u32));
            self.taken += segments.len();
            self.partial.start += written;
        }
        if !whole && header_len(queue.features()) == LEN {
            let count = (self.filled.len() as u16).to_le_bytes();
            let _ = queue.memory().write(&self.first, 10, &count);
        }
        for (head, used) in self.filled.drain(..) {
            queue.push(head, used);
        }
        self.taken = 0;
        self.counters.passed(self.length, [self.head[0], self.head[1]]);
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

    /// Holds no buffer any more.
    fn let_go(&mut self) {
        if let Some(mut queue) = self.queue.take() {
            queue.publish();
            self.put_back(&mut queue);
            self.queue = Some(queue);
        }
    }

    fn burst(&mut self, queue: &mut Queue) -> Wait {
        for round in 0..BURST {
            let stuck = if self.partial.is_empty() {
                self.refill(queue);
                self.window.is_empty()
            } else {
                !self.complete(queue)
            };
            if stuck {
                queue.publish();
                if !queue.is_broken() && self.ring_poll.poll(queue) {
                    continue;
                }
                return match (queue.is_broken(), queue.enable_kicks()) {
                    (true, _) => Wait::Command,
                    (false, true) => Wait::Nothing,
                    (false, false) => Wait::Kick,
                };
            }
            self.ring_poll.not_empty();
            queue.disable_kicks();
            if self.window.is_empty() {
                continue;
            }
            if let Err(time) = self.shared.receive.open(time::monotonic) {
                self.counters.throttled();
                queue.publish();
                return Wait::Time(time);
            }
            match self.read(queue) {
                Ok(read) => self.deliver(queue, read),
                Err(error) => {
                    queue.publish();
                    if let Some(wait) = self.failed(error) {
                        return wait;
                    }
                }
            }
            // A lone frame is shown at once; those that follow it are shown together.
            if round == 0 {
                queue.publish();
            }
        }
        queue.publish();
        Wait::Nothing
    }

    /// Empties the wire while the cable is pulled.
    fn drain(&mut self) -> Wait {
        for _ in 0..BURST {
            match self.wire.skip(&mut self.spill) {
                Ok(()) => self.counters.dropped(DropReason::LinkDown),
                Err(error) => {
                    if let Some(wait) = self.failed(error) {
                        return wait;
                    }
                }
            }
        }
        Wait::Nothing
    }

    /// What to wait for when the wire could not be read; none if the next frame may be read.
    fn failed(&mut self, error: io::Error) -> Option<Wait> {
        if error.raw_os_error() == Some(Errno::EAGAIN as i32) || error.kind() == io::ErrorKind::WouldBlock {
            return Some(Wait::Readable);
        }
        // Memory that cannot be had just now: this frame is lost, the next one may not be.
        if is_passing(&error) {
            self.counters.dropped(DropReason::Memory);
            return None;
        }
        self.gone = true;
        self.wire.gone();
        self.shared.connected.store(false, Ordering::Relaxed);
        (self.lost)(error);
        Some(Wait::Command)
    }
}

impl<S: Source> Work for Receive<S> {
    fn queue(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    fn start(&mut self, queue: Box<Queue>) {
        self.queue = Some(queue);
        self.wire.running(true);
    }

    fn stop(&mut self) -> Option<Box<Queue>> {
        self.wire.running(false);
        let mut queue = self.queue.take()?;
        queue.publish();
        self.put_back(&mut queue);
        Some(queue)
    }

    fn turn(&mut self) -> Wait {
        if self.gone || !self.active {
            return Wait::Command;
        }
        if !self.shared.link.load(Ordering::Relaxed) {
            self.let_go();
            return self.drain();
        }
        let Some(mut queue) = self.queue.take() else { return Wait::Command };
        let wait = self.burst(&mut queue);
        self.queue = Some(queue);
        wait
    }

    fn wire(&self) -> Option<BorrowedFd<'_>> {
        self.wire.fd()
    }

    fn connect(&mut self, socket: Arc<UnixStream>) {
        self.wire.connect(socket);
        self.gone = false;
        self.shared.connected.store(true, Ordering::Relaxed);
    }

    fn want(&mut self, wanted: Arc<Wanted>) {
        self.wanted = wanted;
    }

    fn activate(&mut self, active: bool) {
        self.active = active;
        if !active {
            self.let_go();
        }
    }
}

/// True if a read has failed for want of memory, the guest's or the host's: the wire is there still.
fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::EFAULT, Errno::ENOMEM, Errno::ENOBUFS, Errno::EINVAL, Errno::EINTR];
    passing.into_iter().any(|errno| error.raw_os_error() == Some(errno as i32))
}
