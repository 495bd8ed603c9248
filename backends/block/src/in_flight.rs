//! One request in flight: its buffers, its progress and its answer.

use libc::iovec;
use vu_server::Segment;

use crate::request::Range;
use crate::statistics::Op;
use crate::throttle::Direction;

/// A slot that had more buffers than this gives the memory back.
const KEEP_BUFFERS: usize = 32;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Fill the buffers from the disk.
    Read,
    /// Store the buffers in the disk.
    Write,
    /// Make everything that was acknowledged survive a power cut.
    Flush,
    /// Give the space of the ranges back.
    Discard,
    /// Make the ranges read as zeros.
    WriteZeroes,
}

impl Work {
    /// What statistics and events call it.
    pub fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
            Self::Flush => Op::Flush,
            Self::Discard | Self::WriteZeroes => Op::Discard,
        }
    }

    /// Which limits it is under; none for a flush.
    pub fn direction(self) -> Option<Direction> {
        match self {
            Self::Read => Some(Direction::Read),
            Self::Write | Self::Discard | Self::WriteZeroes => Some(Direction::Write),
            Self::Flush => None,
        }
    }
}

/// A request in flight, or a free slot.
#[derive(Debug)]
pub struct InFlight {
    /// What it does.
    pub work: Work,
    /// It must survive a power cut before it is acknowledged.
    pub durable: bool,
    /// Where in the disk what is left to read or write starts.
    pub offset: u64,
    /// Bytes that are left to read or write.
    pub left: u64,
    /// Guest memory to read to or write from. It stays mapped until the request is answered.
    pub buffers: Vec<iovec>,
    /// The first of the buffers that is not done.
    pub done: usize,
    /// What a discard or write-zeroes is about.
    pub ranges: Vec<Range>,
    /// The first of the ranges that is not done.
    pub range: usize,
    /// Times that the kernel has said "again".
    pub retries: u8,
    /// For whoever carries the request out; 0 when it is taken.
    pub stage: u8,
    pub(crate) head: u16,
    pub(crate) status: Segment,
    /// Bytes that a read writes into the guest's buffers.
    pub(crate) written: u32,
    /// Bytes that statistics and limits count.
    pub(crate) bytes: u64,
    /// The first byte after all it touches.
    pub(crate) end: u64,
    /// When it was taken, in nanoseconds.
    pub(crate) taken: u64,
    /// Its place in the order in which requests were taken.
    pub(crate) order: u64,
    pub(crate) busy: bool,
    /// A process before this one had it in flight.
    pub(crate) again: bool,
}

impl InFlight {
    pub(crate) const fn free() -> Self {
        Self {
            work: Work::Flush,
            durable: false,
            offset: 0,
            left: 0,
            buffers: Vec::new(),
            done: 0,
            ranges: Vec::new(),
            range: 0,
            retries: 0,
            stage: 0,
            head: 0,
            status: Segment { addr: 0, len: 0 },
            written: 0,
            bytes: 0,
            end: 0,
            taken: 0,
            order: 0,
            busy: false,
            again: false,
        }
    }

    /// The slot for a new request of a chain, whose buffers come next.
    pub(crate) fn take(&mut self, head: u16, status: Segment) {
        (self.head, self.status, self.work) = (head, status, Work::Flush);
        (self.offset, self.left, self.done, self.range) = (0, 0, 0, 0);
        (self.retries, self.stage, self.written, self.bytes, self.end) = (0, 0, 0, 0, 0);
        self.buffers.clear();
        self.ranges.clear();
    }

    pub(crate) fn release(&mut self) {
        self.busy = false;
        if self.buffers.capacity() > KEEP_BUFFERS {
            self.buffers = Vec::new();
        }
    }

    /// Where in the disk it is now.
    pub fn position(&self) -> u64 {
        self.ranges.get(self.range).map_or(self.offset, |range| range.offset)
    }

    /// The buffers that are left.
    #[inline]
    pub fn rest(&self) -> &[iovec] {
        &self.buffers[self.done..]
    }

    /// Takes `moved` bytes, at most [`left`](Self::left), off what is left to do.
    pub fn advance(&mut self, moved: u64) {
        self.left -= moved;
        self.offset += moved;
        let mut moved = moved as usize;
        while moved > 0 {
            let buffer = &mut self.buffers[self.done];
            if moved < buffer.iov_len {
                buffer.iov_base = buffer.iov_base.wrapping_byte_add(moved);
                buffer.iov_len -= moved;
                break;
            }
            moved -= buffer.iov_len;
            self.done += 1;
        }
    }
}
