//! A driver of disks, and its frontend, that can do what no sane ones do (virtio 1.3 §5.2).
//!
//! The guest has [`MEMORY`] bytes in two regions that touch in its memory and are apart in its frontend's, as many
//! rings of [`SIZE`] descriptors as its disk has queues, and places for one request: [`HEADER`], [`DATA`], [`STATUS`].
//!
//! # Panics
//! All of this: when a backend refuses what a frontend may ask for, or does not use a chain within ten seconds.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::event;
use crate::frontend::{F_EVENT_IDX, F_VERSION_1, OWN, Terms, addresses, region, run, set_up};
use crate::memory::Memory;
use crate::ring::{Buffer, Layout, Ring};

/// `VIRTIO_BLK_T_IN`.
pub const T_IN: u32 = 0;
/// `VIRTIO_BLK_T_OUT`.
pub const T_OUT: u32 = 1;
/// `VIRTIO_BLK_T_FLUSH`.
pub const T_FLUSH: u32 = 4;
/// `VIRTIO_BLK_T_GET_ID`.
pub const T_GET_ID: u32 = 8;
/// `VIRTIO_BLK_T_DISCARD`.
pub const T_DISCARD: u32 = 11;
/// `VIRTIO_BLK_T_WRITE_ZEROES`.
pub const T_WRITE_ZEROES: u32 = 13;
/// `VIRTIO_BLK_S_OK`.
pub const S_OK: u8 = 0;
/// `VIRTIO_BLK_S_IOERR`.
pub const S_IOERR: u8 = 1;
/// `VIRTIO_BLK_S_UNSUPP`.
pub const S_UNSUPP: u8 = 2;
/// A status byte that no device writes.
pub const UNTOUCHED: u8 = 0xaa;
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Descriptors in each ring.
pub const SIZE: u16 = 64;
/// Bytes of guest memory.
pub const MEMORY: u64 = 8 << 20;
/// Where the second of its regions starts.
pub const SEAM: u64 = 4 << 20;
/// Where the header of [`Driver::request`] is. All from here on is free for tests.
pub const HEADER: u64 = 0x10_0000;
/// Where its status is.
pub const STATUS: u64 = 0x10_1000;
/// Where data may be.
pub const DATA: u64 = 0x20_0000;

const PATIENCE: Duration = Duration::from_secs(60);
const SERVED: &str = "a frontend that keeps the rules is served";

/// The driver of one disk, and its frontend.
pub struct Driver {
    /// Sends whatever a test wants to send.
    pub frontend: Frontend,
    /// The guest's memory.
    pub memory: Memory,
    /// One for each queue.
    pub rings: Vec<Ring>,
    /// Their error eventfds.
    pub errors: Vec<File>,
    /// For each ring the descriptor that its next chain begins with.
    next: Vec<u16>,
    features: u64,
}

impl Driver {
    /// Everything up to running rings, with memory by `SET_MEM_TABLE`.
    pub fn new(stream: UnixStream, queues: u16, features: u64) -> Self {
        let mut driver = Self::negotiated(stream, queues, features);
        driver.set_memory();
        driver.start_all(0);
        driver
    }

    /// The same with an inflight log; returns that, too.
    pub fn logged(stream: UnixStream, queues: u16, features: u64) -> (Self, VhostUserInflight, File) {
        let mut driver = Self::negotiated(stream, queues, features);
        driver.set_memory();
        let (log, file) = driver.inflight();
        driver.frontend.set_inflight_fd(&log, file.as_raw_fd()).expect(SERVED);
        driver.start_all(0);
        (driver, log, file)
    }

    /// Features, and no memory yet.
    pub fn negotiated(stream: UnixStream, queues: u16, features: u64) -> Self {
        Self::negotiated_in(Memory::sealed(MEMORY).expect("memory for a guest"), stream, queues, features)
    }

    /// The same of a guest whose file could become shorter, as other VMMs have it.
    pub fn negotiated_unsealed(stream: UnixStream, queues: u16, features: u64) -> Self {
        Self::negotiated_in(Memory::unsealed(MEMORY).expect("memory for a guest"), stream, queues, features)
    }

    fn negotiated_in(memory: Memory, stream: UnixStream, queues: u16, features: u64) -> Self {
        let features = features | F_VERSION_1;
        let frontend = negotiate(stream, queues, features);
        let ring =
            |queue: u64| Ring::new(&memory, Layout::at(0x1_0000 * queue, SIZE), features & F_EVENT_IDX != 0);
        let rings: Vec<_> = (0..queues.into()).map(|queue| ring(queue).expect("a ring")).collect();
        let errors = rings.iter().map(|_| event::call().expect("an eventfd")).collect();
        Self { frontend, memory, next: vec![0; rings.len()], rings, errors, features }
    }

    /// Goes on with another backend where the last one was killed: all it is told of the rings is their used index.
    pub fn take_over(&mut self, stream: UnixStream, log: &VhostUserInflight, file: &File) {
        self.frontend = negotiate(stream, self.rings.len() as u16, self.features);
        self.set_memory();
        self.frontend.set_inflight_fd(log, file.as_raw_fd()).expect(SERVED);
        for queue in 0..self.rings.len() {
            self.start(queue, self.used(queue));
        }
    }

    /// An inflight log for all queues, from the backend.
    pub fn inflight(&mut self) -> (VhostUserInflight, File) {
        let asked = VhostUserInflight::new(0, 0, self.rings.len() as u16, SIZE);
        self.frontend.get_inflight_fd(&asked).expect(SERVED)
    }

    /// The guest's memory. The second region is elsewhere in the frontend than the first.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [(0, SEAM), (SEAM, MEMORY - SEAM)]
            .map(|(start, bytes)| region(&self.memory, start, bytes, OWN + start * 2))
    }

    /// Sends that with `SET_MEM_TABLE`.
    pub fn set_memory(&self) {
        self.frontend.set_mem_table(&self.regions()).expect(SERVED);
    }

    /// What `SET_VRING_ADDR` says of a ring.
    pub fn addresses(&self, queue: usize) -> VringConfigData {
        addresses(&self.rings[queue], OWN)
    }

    /// Starts a ring, which is to go on with the available index `base`.
    pub fn start(&mut self, queue: usize, base: u16) {
        let ring = &self.rings[queue];
        set_up(&self.frontend, queue, ring, OWN, base).expect(SERVED);
        let error = event::lent(&self.errors[queue]).expect("a descriptor");
        self.frontend.set_vring_err(queue, &error).expect(SERVED);
        run(&mut self.frontend, queue, ring).expect(SERVED);
    }

    fn start_all(&mut self, base: u16) {
        (0..self.rings.len()).for_each(|queue| self.start(queue, base));
    }

    /// Puts a chain in the ring's table, behind the one before; returns its head.
    pub fn chain(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let next = self.rings[queue].set_chain(self.next[queue], buffers);
        std::mem::replace(&mut self.next[queue], next)
    }

    /// Puts a head in the available ring, without showing it.
    pub fn offer(&mut self, queue: usize, head: u16) {
        self.rings[queue].push(head);
    }

    /// Shows what was offered, and kicks.
    pub fn show(&mut self, queue: usize) {
        self.rings[queue].show();
        self.rings[queue].kick();
    }

    /// The used index as the device has shown it.
    pub fn used(&self, queue: usize) -> u16 {
        self.rings[queue].used_index()
    }

    /// Waits until `count` more elements are used; returns them as head and length.
    pub fn wait(&mut self, queue: usize, count: u16) -> Vec<(u16, u32)> {
        let (ring, start) = (&mut self.rings[queue], Instant::now());
        while ring.used_index().wrapping_sub(ring.seen) < count {
            let used = ring.used_index().wrapping_sub(ring.seen);
            assert!(start.elapsed() < PATIENCE, "used {used} of {count}");
            sleep(Duration::from_micros(200));
        }
        (0..count).map_while(|_| ring.take()).collect()
    }

    /// Stores a request's header at this address.
    pub fn header(&self, kind: u32, sector: u64, at: u64) {
        self.memory.write(kind, at);
        self.memory.write(0_u32, at + 4);
        self.memory.write(sector, at + 8);
    }

    /// Puts the segments of a discard or write-zeroes (sector, sectors, flags) at [`DATA`].
    pub fn segments(&self, segments: &[(u64, u32, u32)]) {
        for (at, &(sector, sectors, flags)) in (DATA..).step_by(16).zip(segments) {
            self.memory.write(sector, at);
            self.memory.write(sectors, at + 8);
            self.memory.write(flags, at + 12);
        }
    }

    /// One request with its header at [`HEADER`] and its status at [`STATUS`]; returns status and used length.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector, HEADER);
        self.raw(queue, &[&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat())
    }

    /// One chain as it is; returns the byte at [`STATUS`] and the used length.
    pub fn raw(&mut self, queue: usize, buffers: &[Buffer]) -> (u8, u32) {
        self.memory.write(UNTOUCHED, STATUS);
        let head = self.chain(queue, buffers);
        self.offer(queue, head);
        self.show(queue);
        let used = self.wait(queue, 1);
        assert_eq!(used[0].0, head);
        (self.memory.read(STATUS), used[0].1)
    }

    /// The number of the sector that is read, by reading it.
    pub fn sector(&mut self, queue: usize, sector: u64) -> u64 {
        assert_eq!(self.request(queue, T_IN, sector, &[(DATA, 512, true)]), (S_OK, 513));
        self.memory.read(DATA)
    }
}

fn negotiate(stream: UnixStream, queues: u16, features: u64) -> Frontend {
    let protocol = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let terms = Terms { queues: queues.into(), needed: features, wanted: 0, protocol, acknowledged: true };
    let settled = terms.settle(stream).expect(SERVED);
    assert_eq!(settled.protocol, protocol);
    settled.frontend
}
