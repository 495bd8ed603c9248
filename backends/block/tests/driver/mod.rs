//! A frontend and driver of our own for the real `domus-block`: it can do what no sane driver does.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod dom0;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const S_OK: u8 = 0;
pub const S_IOERR: u8 = 1;
pub const S_UNSUPP: u8 = 2;
/// A status byte that no device writes.
pub const UNTOUCHED: u8 = 0xaa;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Descriptors in each ring.
pub const SIZE: u16 = 64;
/// Bytes of guest memory, in two regions that touch.
pub const MEMORY: u64 = 8 << 20;
/// Where the second region starts.
pub const SEAM: u64 = 4 << 20;
/// Guest-physical addresses that tests use freely.
pub const HEADER: u64 = 0x10_0000;
pub const STATUS: u64 = 0x10_1000;
pub const DATA: u64 = 0x20_0000;
/// What the frontend adds to a guest-physical address to make it its own.
const OWN: u64 = 0x7f00_0000_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// A running `domus-block`, killed when dropped.
pub struct Backend {
    pub child: Child,
    pub socket: PathBuf,
}

impl Backend {
    /// Of an image.
    pub fn start(dir: &Path, image: &Path, more: &[&str]) -> Self {
        Self::of(dir, &[&["--blk-file", image.to_str().unwrap()], more].concat())
    }

    /// Of what the arguments say.
    pub fn of(dir: &Path, args: &[&str]) -> Self {
        Self::logged(dir, args, Stdio::inherit())
    }

    /// The same, with its words going there.
    pub fn logged(dir: &Path, args: &[&str], words: Stdio) -> Self {
        let socket = dir.join("block.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_domus-block"))
            .arg("--socket-path")
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .stderr(words)
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// Connects, as soon as it listens.
    pub fn connect(&mut self) -> UnixStream {
        let start = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return stream,
                Err(error) => {
                    assert!(self.child.try_wait().unwrap().is_none(), "domus-block has ended");
                    assert!(start.elapsed() < PATIENCE, "no connection: {error}");
                    sleep(Duration::from_millis(5));
                }
            }
        }
    }

    pub fn assert_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "domus-block has ended");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image of `len` bytes in which every sector says its number.
pub fn image(dir: &Path, len: usize) -> PathBuf {
    let path = dir.join("image.raw");
    let mut bytes = vec![0; len];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        let (word, _) = sector.split_at_mut(8.min(sector.len()));
        word.copy_from_slice(&(number as u64).to_le_bytes()[..word.len()]);
    }
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

/// A virtqueue as its driver sees it.
pub struct Ring {
    pub index: u16,
    base: u64,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    /// `avail.idx`.
    pub available: u16,
    /// Used elements seen.
    pub seen: u16,
    next_descriptor: u16,
}

impl Ring {
    pub fn descriptors(&self) -> u64 {
        self.base
    }
    pub fn available_ring(&self) -> u64 {
        self.base + 0x4000
    }
    pub fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }
}

pub struct Driver {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    file: File,
    pub rings: Vec<Ring>,
    pub features: u64,
}

impl Driver {
    /// Everything up to running rings, with memory by `SET_MEM_TABLE`.
    pub fn new(stream: UnixStream, queues: u16, features: u64) -> Self {
        let mut driver = Self::negotiated(stream, queues, features);
        driver.set_memory();
        for queue in 0..queues.into() {
            driver.start(queue, 0);
        }
        driver
    }

    /// The guest's memory, by `SET_MEM_TABLE`.
    pub fn set_memory(&mut self) {
        let regions = self.regions();
        self.frontend.set_mem_table(&regions).unwrap();
    }

    /// Features, and no memory yet.
    pub fn negotiated(stream: UnixStream, queues: u16, features: u64) -> Self {
        let features = features | F_PROTOCOL | F_VERSION_1;
        let frontend = negotiate(stream, queues, features);
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, Some(offset))])
                .unwrap();
        let ring = |index| Ring {
            index,
            base: 0x1_0000 * u64::from(index),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            error: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            available: 0,
            seen: 0,
            next_descriptor: 0,
        };
        Self { frontend, memory, file, rings: (0..queues).map(ring).collect(), features }
    }

    /// Goes on with another backend where the last one was killed: all it is told of the rings is their used index.
    pub fn take_over(&mut self, stream: UnixStream, log: &VhostUserInflight, file: &File) {
        self.frontend = negotiate(stream, self.rings.len() as u16, self.features);
        let regions = self.regions();
        self.frontend.set_mem_table(&regions).unwrap();
        self.frontend.set_inflight_fd(log, file.as_raw_fd()).unwrap();
        for queue in 0..self.rings.len() {
            self.start(queue, self.used(queue));
        }
    }

    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [(0, SEAM), (SEAM, MEMORY - SEAM)].map(|(start, memory_size)| VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size,
            // The second region is elsewhere in the frontend than the first.
            userspace_addr: OWN + start * 2,
            mmap_offset: start,
            mmap_handle: self.file.as_raw_fd(),
        })
    }

    pub fn addresses(&self, queue: usize) -> VringConfigData {
        let ring = &self.rings[queue];
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: OWN + ring.descriptors(),
            used_ring_addr: OWN + ring.used_ring(),
            avail_ring_addr: OWN + ring.available_ring(),
            log_addr: None,
        }
    }

    pub fn start(&mut self, queue: usize, base: u16) {
        let addresses = self.addresses(queue);
        let ring = &self.rings[queue];
        self.frontend.set_vring_num(queue, SIZE).unwrap();
        self.frontend.set_vring_base(queue, base).unwrap();
        self.frontend.set_vring_addr(queue, &addresses).unwrap();
        self.frontend.set_vring_call(queue, &ring.call).unwrap();
        self.frontend.set_vring_err(queue, &ring.error).unwrap();
        self.frontend.set_vring_kick(queue, &ring.kick).unwrap();
        self.frontend.set_vring_enable(queue, true).unwrap();
    }

    pub fn write<T: vm_memory::ByteValued>(&self, value: T, addr: u64) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    pub fn read<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn write_bytes(&self, bytes: &[u8], addr: u64) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn read_bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// One descriptor, in the ring's table or in an indirect one at `table`.
    pub fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.write(addr, at);
        self.write(len, at + 8);
        self.write(flags, at + 12);
        self.write(next, at + 14);
    }

    /// Chains `buffers` (address, length, written by the device) in the ring's table; returns the head.
    pub fn chain(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let table = self.rings[queue].descriptors();
        let head = self.rings[queue].next_descriptor;
        for (i, &(addr, len, write)) in buffers.iter().enumerate() {
            let index = (head + i as u16) % SIZE;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(
                table,
                index,
                addr,
                len,
                more | if write { WRITE } else { 0 },
                (index + 1) % SIZE,
            );
        }
        self.rings[queue].next_descriptor = (head + buffers.len() as u16) % SIZE;
        head
    }

    /// Puts a head in the available ring, without showing it.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let at = ring.available_ring() + 4 + 2 * u64::from(ring.available % SIZE);
        ring.available = ring.available.wrapping_add(1);
        self.write(head, at);
    }

    /// Shows what was offered, and kicks.
    pub fn show(&mut self, queue: usize) {
        let ring = &self.rings[queue];
        self.memory
            .store(ring.available, GuestAddress(ring.available_ring() + 2), Ordering::Release)
            .unwrap();
        ring.kick.write(1).unwrap();
    }

    /// `used.idx`.
    pub fn used(&self, queue: usize) -> u16 {
        self.memory.load(GuestAddress(self.rings[queue].used_ring() + 2), Ordering::Acquire).unwrap()
    }

    /// Waits until `count` more elements are used; returns them as head and length.
    pub fn wait(&mut self, queue: usize, count: u16) -> Vec<(u32, u32)> {
        let start = Instant::now();
        while self.used(queue).wrapping_sub(self.rings[queue].seen) < count {
            assert!(
                start.elapsed() < PATIENCE,
                "used {} of {count}",
                self.used(queue).wrapping_sub(self.rings[queue].seen)
            );
            sleep(Duration::from_micros(200));
        }
        let ring = &mut self.rings[queue];
        let first = ring.seen;
        ring.seen = ring.seen.wrapping_add(count);
        let elements = ring.used_ring() + 4;
        (0..count)
            .map(|i| elements + 8 * u64::from(first.wrapping_add(i) % SIZE))
            .map(|at| (self.read(at), self.read(at + 4)))
            .collect()
    }

    pub fn header(&self, kind: u32, sector: u64, at: u64) {
        self.write(kind, at);
        self.write(0_u32, at + 4);
        self.write(sector, at + 8);
    }

    /// Puts the segments of a discard or write-zeroes (sector, sectors, flags) at [`DATA`].
    pub fn segments(&self, segments: &[(u64, u32, u32)]) {
        for (at, &(sector, sectors, flags)) in (DATA..).step_by(16).zip(segments) {
            self.write(sector, at);
            self.write(sectors, at + 8);
            self.write(flags, at + 12);
        }
    }

    /// One request with its header at [`HEADER`] and its status at [`STATUS`]; returns status and used length.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector, HEADER);
        let buffers = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
        self.raw(queue, &buffers)
    }

    /// One chain as it is; returns the byte at [`STATUS`] and the used length.
    pub fn raw(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> (u8, u32) {
        self.write(UNTOUCHED, STATUS);
        let head = self.chain(queue, buffers);
        self.offer(queue, head);
        self.show(queue);
        let used = self.wait(queue, 1);
        assert_eq!(used[0].0, u32::from(head));
        (self.read(STATUS), used[0].1)
    }

    /// The number of the sector that is read, by reading it.
    pub fn sector(&mut self, queue: usize, sector: u64) -> u64 {
        assert_eq!(self.request(queue, T_IN, sector, &[(DATA, 512, true)]), (S_OK, 513));
        self.read(DATA)
    }
}

fn negotiate(stream: UnixStream, queues: u16, features: u64) -> Frontend {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut frontend = Frontend::from_stream(stream, queues.into());
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(features & !offered, 0, "{offered:#x} offered");
    let protocol = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(frontend.get_protocol_features().unwrap().contains(protocol));
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features).unwrap();
    frontend
}

/// Takes what `fd` counts, once it counts anything; 0 if it does not within `ms`.
pub fn counted(fd: &EventFd, ms: u64) -> u64 {
    let start = Instant::now();
    loop {
        match fd.read() {
            Ok(count) => return count,
            Err(_) if start.elapsed() > Duration::from_millis(ms) => return 0,
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
}
