//! A driver for virtio-blk (virtio 1.3 §5.2): many queues, chained and indirect requests, polled or by interrupt.

use super::ring::{Queue, Segment};
use super::virtio::{self, Virtio};
use super::{Failed, arena, clock, ensure, sys};

/// `VIRTIO_BLK_F_RO`.
pub const RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_FLUSH`.
pub const FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_MQ`.
pub const MQ: u64 = 1 << 12;

/// Request types.
pub mod request {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
}

/// Request status.
pub mod result {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
    /// What the driver puts there before.
    pub const PENDING: u8 = 0xee;
}

/// How long a request may take: a backend may be restarted meanwhile.
pub const PATIENCE_MS: u64 = 30_000;
/// The most queues it uses.
pub const QUEUES: usize = 8;

/// A block device under way.
pub struct Blk {
    /// The transport.
    pub virtio: Virtio,
    /// Features taken.
    pub features: u64,
    /// Capacity in 512-byte sectors.
    pub capacity: u64,
    /// Queues; the first `count` are there.
    pub queues: [Option<Queue>; QUEUES],
    /// How many.
    pub count: usize,
    headers: [u64; QUEUES],
}

impl Blk {
    /// Brings the `nth` block device up with up to `queues` queues of `size`.
    pub fn open(nth: usize, wanted: u64, queues: usize, size: u16) -> Result<Self, Failed> {
        Self::with(Virtio::open(2, nth)?, wanted, queues, size)
    }

    /// Brings a block device up.
    pub fn with(virtio: Virtio, wanted: u64, queues: usize, size: u16) -> Result<Self, Failed> {
        let features = virtio.negotiate(wanted)?;
        let capacity = sys::read64(virtio.config.at);
        let offered = if features & MQ != 0 { usize::from(sys::read16(virtio.config.at + 34)) } else { 1 };
        let count = queues.min(offered).min(usize::from(virtio.queues())).clamp(1, QUEUES);
        let mut blk = Self {
            virtio,
            features,
            capacity,
            queues: [const { None }; QUEUES],
            count,
            headers: [0; QUEUES],
        };
        for index in 0..count {
            let entry = (index as u16 + 1).min(virtio.msix.count - 1);
            let queue = virtio.queue(index as u16, size, features, entry)?;
            blk.headers[index] = arena::alloc(u64::from(queue.size) * 32, 64);
            queue.disarm();
            blk.queues[index] = Some(queue);
        }
        virtio.go()?;
        Ok(blk)
    }

    /// A queue.
    pub fn queue(&mut self, index: usize) -> Result<&mut Queue, Failed> {
        self.queues[index % self.count].as_mut().ok_or(Failed)
    }

    /// Makes a request available without notifying; `None` if the queue is full.
    pub fn submit(
        &mut self,
        index: usize,
        kind: u32,
        sector: u64,
        data: &[Segment],
        indirect: bool,
    ) -> Result<Option<u16>, Failed> {
        let headers = self.headers[index % self.count];
        let queue = self.queue(index)?;
        if queue.room() == 0 {
            return Ok(None);
        }
        let header = headers + u64::from(queue.next_head()) * 32;
        let mut segments = [Segment::default(); 14];
        ensure!(data.len() + 2 <= segments.len(), "a request of {} segments", data.len());
        segments[0] = Segment { at: header, len: 16, writable: false };
        segments[1..=data.len()].copy_from_slice(data);
        segments[data.len() + 1] = Segment { at: header + 16, len: 1, writable: true };
        sys::write32(header, kind);
        sys::write32(header + 4, 0);
        sys::write64(header + 8, sector);
        sys::write8(header + 16, result::PENDING);
        Ok(queue.add(&segments[..data.len() + 2], indirect))
    }

    /// The status byte of a finished request.
    pub fn result(&self, index: usize, head: u16) -> u8 {
        sys::read8(self.headers[index % self.count] + u64::from(head) * 32 + 16)
    }

    /// Waits, polling, for one request of a queue.
    pub fn reap(&mut self, index: usize) -> Result<(u16, u32), Failed> {
        let deadline = clock::deadline(PATIENCE_MS);
        loop {
            let queue = self.queue(index)?;
            if let Some(used) = queue.pop()? {
                return Ok(used);
            }
            ensure!(sys::tsc() < deadline, "no completion on queue {index} in {PATIENCE_MS} ms");
            core::hint::spin_loop();
        }
    }

    /// One request from start to end: its status, and the length the device says it wrote.
    pub fn transact(
        &mut self,
        index: usize,
        kind: u32,
        sector: u64,
        data: &[Segment],
    ) -> Result<(u8, u32), Failed> {
        let head = self.submit(index, kind, sector, data, sector & 1 != 0)?;
        ensure!(head.is_some(), "queue {index} is full");
        self.queue(index)?.kick();
        let (head, len) = self.reap(index)?;
        Ok((self.result(index, head), len))
    }

    /// Takes the device down, so that the arena may be emptied.
    pub fn close(self) -> Result<(), Failed> {
        self.virtio.reset()
    }
}

/// What the word `word` of `sector` is, by `seed`.
pub fn pattern(seed: u64, sector: u64, word: u64) -> u64 {
    let mut x = seed ^ (sector << 6 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 29
}

/// Fills memory with the pattern of `sectors` sectors from `first`.
pub fn write_pattern(at: u64, seed: u64, first: u64, sectors: u64) {
    for word in 0..sectors * 64 {
        sys::write64(at + word * 8, pattern(seed, first + word / 64, word % 64));
    }
}

/// Compares memory with the pattern.
pub fn check_pattern(at: u64, seed: u64, first: u64, sectors: u64) -> Result<(), Failed> {
    for word in 0..sectors * 64 {
        let (seen, right) = (sys::read64(at + word * 8), pattern(seed, first + word / 64, word % 64));
        ensure!(
            seen == right,
            "sector {} word {} is {seen:#x}, not {right:#x}",
            first + word / 64,
            word % 64
        );
    }
    Ok(())
}

/// A short proof that the `nth` block device works: brings it up, writes and reads back one sector, takes it down.
pub fn works(nth: usize, seed: u64) -> Result<(), Failed> {
    let mark = arena::mark();
    let mut blk = Blk::open(nth, virtio::INDIRECT | virtio::EVENT_IDX | FLUSH | RO, 1, 16)?;
    let sector = blk.capacity.min(1 << 20) - 1;
    let buffer = arena::alloc(1024, 4096);
    if blk.features & RO == 0 {
        write_pattern(buffer, seed, sector, 1);
        let (status, _) =
            blk.transact(0, request::OUT, sector, &[Segment { at: buffer, len: 512, writable: false }])?;
        ensure!(status == result::OK, "a write after the reset ended with status {status}");
    }
    let (status, len) =
        blk.transact(0, request::IN, sector, &[Segment { at: buffer + 512, len: 512, writable: true }])?;
    ensure!(
        status == result::OK && len >= 1,
        "a read after the reset ended with status {status}, length {len}"
    );
    if blk.features & RO == 0 {
        check_pattern(buffer + 512, seed, sector, 1)?;
    }
    blk.close()?;
    arena::rewind(mark);
    Ok(())
}
