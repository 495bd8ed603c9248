//! A driver with a receive and a transmit ring, and the frontend that connects them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::PATIENCE;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const PROTOCOL: u64 = 1 << 30;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Bytes of guest memory.
pub const MEMORY: u64 = 32 << 20;
/// Descriptors of each ring.
pub const SIZE: u16 = 256;

/// What the frontend adds to a guest's address to make it its own: a name, which nobody uses as a pointer.
const OWN: u64 = 0x7000_0000_0000;

/// An empty memory for a guest.
fn memory_file() -> File {
    domus_startup::memfd::sealed("guest", MEMORY).unwrap()
}

/// One descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// One ring as the driver sees it. Descriptors are never reused by it: tests name them.
pub struct Ring {
    pub memory: GuestMemoryMmap,
    base: u64,
    available: u16,
    used: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Ring {
    fn new(memory: &GuestMemoryMmap, base: u64) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { memory: memory.clone(), base, available: 0, used: 0, kick: eventfd(), call: eventfd() }
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.base + offset)
    }

    pub fn set_descriptor(&self, index: u16, (addr, len, flags, next): Descriptor) {
        let at = self.at(u64::from(index) * 16);
        self.memory.write_obj(addr, at).unwrap();
        self.memory.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    /// Makes the chain that starts with `head` available, without a kick.
    pub fn offer(&mut self, head: u16) {
        self.memory.write_obj(head, self.at(0x2004 + u64::from(self.available % SIZE) * 2)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, self.at(0x2002), Ordering::Release).unwrap();
    }

    /// Sets the available index to nonsense.
    pub fn break_available_index(&self) {
        self.memory.store(self.available.wrapping_add(SIZE + 1), self.at(0x2002), Ordering::Release).unwrap();
    }

    /// Whether a kick is wanted for the chain offered last.
    pub fn wants_kick(&self, features: u64) -> bool {
        if features & EVENT_IDX == 0 {
            self.memory.read_obj::<u16>(self.at(0x3000)).unwrap() & 1 == 0
        } else {
            let event: u16 = self.memory.read_obj(self.at(0x3004 + u64::from(SIZE) * 8)).unwrap();
            event == self.available.wrapping_sub(1)
        }
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used element, if there is one: head and length.
    pub fn try_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.load(self.at(0x3002), Ordering::Acquire).unwrap();
        if index == self.used {
            return None;
        }
        let at = 0x3004 + u64::from(self.used % SIZE) * 8;
        let head: u32 = self.memory.read_obj(self.at(at)).unwrap();
        let len: u32 = self.memory.read_obj(self.at(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        // `used_event`: call me for the next one.
        self.memory.store(self.used, self.at(0x2004 + u64::from(SIZE) * 2), Ordering::SeqCst).unwrap();
        Some((head as u16, len))
    }

    /// The index up to which the device has shown what it used.
    fn shown(&self) -> u16 {
        self.memory.load(self.at(0x3002), Ordering::Acquire).unwrap()
    }

    /// Waits, by the call eventfd alone, for the next used element.
    pub fn used(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.try_used() {
                return used;
            }
            let until = Instant::now() + PATIENCE;
            while self.call.read().is_err() {
                assert!(Instant::now() < until, "the driver was not called");
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

/// A guest with one NIC.
pub struct Guest {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap,
    pub file: File,
    pub rx: Ring,
    pub tx: Ring,
    /// The queues behind the first pair.
    pub more: Vec<Ring>,
    pub features: u64,
    next: u16,
}

impl Guest {
    /// Settles the features, shares the memory, sets both rings up but does not start them.
    pub fn new(stream: UnixStream, wanted: u64) -> Self {
        Self::with_queues(stream, wanted, 2)
    }

    /// The same with this many queues, at least 2.
    pub fn with_queues(stream: UnixStream, wanted: u64, queues: u64) -> Self {
        let mut guest = Self::connect(stream, wanted, queues, memory_file());
        for index in 0..queues as usize {
            guest.set_up(index, 0);
        }
        guest
    }

    /// The same of a driver that begins anew: its frontend says so first.
    pub fn resetting(stream: UnixStream, wanted: u64, queues: u64) -> Self {
        let early = Frontend::from_stream(stream.try_clone().unwrap(), queues);
        early.set_owner().unwrap();
        assert_ne!(early.get_features().unwrap() & PROTOCOL, 0);
        let mut early = early;
        early.get_protocol_features().unwrap();
        early.set_protocol_features(VhostUserProtocolFeatures::RESET_DEVICE).unwrap();
        early.reset_device().unwrap();
        Self::with_queues(stream, wanted, queues)
    }

    /// Another backend takes over: the rings go on with what they have used.
    pub fn go_on(&mut self, stream: UnixStream) {
        let queues = 2 + self.more.len() as u64;
        let file = self.file.try_clone().unwrap();
        let new = Self::connect(stream, self.features & !PROTOCOL, queues, file);
        self.frontend = new.frontend;
        for index in 0..queues as usize {
            let used = self.ring(index).shown();
            self.set_up(index, used);
            self.start(index);
        }
    }

    fn connect(stream: UnixStream, wanted: u64, queues: u64, file: File) -> Self {
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), MEMORY as usize, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut frontend = Frontend::from_stream(stream, queues);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap() & (wanted | PROTOCOL);
        assert_eq!(features & wanted, wanted, "not all features wanted are offered");
        frontend.set_features(features).unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered & VhostUserProtocolFeatures::CONFIG).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: OWN,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let ring = |index: u64| Ring::new(&memory, 0x1_0000 * (index + 1));
        let (rx, tx, more) = (ring(0), ring(1), (2..queues).map(ring).collect());
        Self { frontend, memory, file, rx, tx, more, features, next: 0 }
    }

    fn ring(&self, index: usize) -> &Ring {
        match index {
            0 => &self.rx,
            1 => &self.tx,
            _ => &self.more[index - 2],
        }
    }

    fn set_up(&mut self, index: usize, base: u16) {
        let (at, call) = (OWN + self.ring(index).base, self.ring(index).call.try_clone().unwrap());
        self.frontend.set_vring_num(index, SIZE).unwrap();
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + 0x3000,
            avail_ring_addr: at + 0x2000,
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_call(index, &call).unwrap();
    }

    /// Starts one ring.
    pub fn start(&mut self, index: usize) {
        let kick = self.ring(index).kick.try_clone().unwrap();
        self.frontend.set_vring_kick(index, &kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Starts all rings.
    pub fn run(mut self) -> Self {
        (0..2 + self.more.len()).for_each(|index| self.start(index));
        self
    }

    /// Sends a command on the control queue, which is the last one; returns the answer.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        let last = self.more.len() - 1;
        self.command_on(last, command)
    }

    /// Sends a command on this one of `more`.
    pub fn command_on(&mut self, ring: usize, command: &[u8]) -> u8 {
        let (at, answer) = (0x190_0000, 0x191_0000);
        self.memory.write_slice(command, GuestAddress(at)).unwrap();
        self.memory.write_obj(0xaa_u8, GuestAddress(answer)).unwrap();
        let ring = &mut self.more[ring];
        ring.set_descriptor(0, (at, command.len() as u32, NEXT, 1));
        ring.set_descriptor(1, (answer, 1, WRITE, 0));
        ring.offer(0);
        std::sync::atomic::fence(Ordering::SeqCst);
        if ring.wants_kick(self.features) {
            ring.kick();
        }
        assert_eq!(ring.used(), (0, 1));
        self.memory.read_obj(GuestAddress(answer)).unwrap()
    }

    /// Stops the receive ring and starts it again, as a frontend does. Returns where it had stopped.
    pub fn restart_receive(&mut self) -> u16 {
        let base = self.frontend.get_vring_base(0).unwrap() as u16;
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_kick(0, &self.rx.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
        base
    }

    /// `length` bytes of configuration space.
    pub fn config(&mut self, length: u32) -> Vec<u8> {
        let buffer = vec![0; length as usize];
        self.frontend.get_config(0, length, VhostUserConfigFlags::empty(), &buffer).unwrap().1
    }

    /// Offers `count` receive buffers of `size` bytes each, without a kick. Buffer *i* is at [`rx_buffer`].
    pub fn offer_buffers(&mut self, count: u16, size: u32) {
        for index in 0..count {
            self.rx.set_descriptor(index, (rx_buffer(index), size, WRITE, 0));
            self.rx.offer(index);
        }
    }

    /// What the backend offers.
    pub fn frontend_features(&self) -> u64 {
        self.frontend.get_features().unwrap()
    }

    /// The receive ring of this pair.
    pub fn receiver(&mut self, pair: usize) -> &mut Ring {
        match pair {
            0 => &mut self.rx,
            _ => &mut self.more[2 * pair - 2],
        }
    }

    /// Offers `count` more receive buffers on this pair, all the same one, and kicks.
    pub fn offer_to(&mut self, pair: usize, count: u16) {
        let ring = self.receiver(pair);
        for index in 0..count {
            ring.set_descriptor(index, (rx_buffer(pair as u16), 2000, WRITE, 0));
            ring.offer(index);
        }
        ring.kick();
    }

    /// Sends one frame on this pair, and waits until it was used.
    pub fn send_on(&mut self, pair: usize, frame: &[u8]) {
        let start = 0x180_0000;
        let bytes = [&[0; 12][..], frame].concat();
        self.memory.write_slice(&bytes, GuestAddress(start)).unwrap();
        let ring = match pair {
            0 => &mut self.tx,
            _ => &mut self.more[2 * pair - 1],
        };
        ring.set_descriptor(255, (start, bytes.len() as u32, 0, 0));
        ring.offer(255);
        ring.kick();
        assert_eq!(ring.used(), (255, 0));
    }

    /// Receives one frame, with its header, and offers its buffers again without a kick.
    pub fn receive(&mut self) -> ([u8; 12], Vec<u8>) {
        let (first, len) = self.rx.used();
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(rx_buffer(first))).unwrap();
        let mut heads = vec![first];
        let count = u16::from_le_bytes([bytes[10], bytes[11]]);
        for _ in 1..count {
            let (head, len) = self.rx.used();
            let start = bytes.len();
            bytes.resize(start + len as usize, 0);
            self.memory.read_slice(&mut bytes[start..], GuestAddress(rx_buffer(head))).unwrap();
            heads.push(head);
        }
        heads.into_iter().for_each(|head| self.rx.offer(head));
        (bytes[..12].try_into().unwrap(), bytes[12..].to_vec())
    }

    /// Sends one frame in pieces of `piece` bytes, with a kick if one is wanted, and waits until it was used.
    pub fn send(&mut self, header: [u8; 10], frame: &[u8], piece: usize) {
        let bytes = [&header[..], &[0, 0], frame].concat();
        let start = 0x180_0000;
        self.memory.write_slice(&bytes, GuestAddress(start)).unwrap();
        let pieces: Vec<_> = bytes.chunks(piece).collect();
        let head = self.next;
        let mut addr = start;
        for (at, part) in pieces.iter().enumerate() {
            let index = self.next;
            self.next = (self.next + 1) % SIZE;
            let last = at + 1 == pieces.len();
            let flags = if last { 0 } else { NEXT };
            self.tx.set_descriptor(index, (addr, part.len() as u32, flags, self.next));
            addr += part.len() as u64;
        }
        self.send_chain(head);
    }

    /// Makes a chain available, kicks if that is wanted, and waits until it was used.
    pub fn send_chain(&mut self, head: u16) {
        self.tx.offer(head);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.tx.wants_kick(self.features) {
            self.tx.kick();
        }
        assert_eq!(self.tx.used(), (head, 0));
    }
}

/// Where receive buffer `index` is: 32 KiB each.
pub fn rx_buffer(index: u16) -> u64 {
    0x20_0000 + u64::from(index) * 0x8000
}
