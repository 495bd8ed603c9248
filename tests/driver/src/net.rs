//! A driver of NICs, and its frontend, that can do what no sane ones do (virtio 1.3 §5.1).
//!
//! The guest has [`MEMORY`] bytes and as many rings of [`SIZE`] descriptors as its NIC has queues: receive and transmit
//! queues in turn, and the control queue. Descriptors are not handed out: tests name them.
//!
//! # Panics
//! All of this: when a backend refuses what a frontend may ask for, or does not call when it must.

use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use crate::frontend::{F_EVENT_IDX, F_PROTOCOL, OWN, Terms, run, set_up, share};
use crate::memory::Memory;
use crate::ring::{Layout, Ring, WRITE};

/// Bytes of guest memory.
pub const MEMORY: u64 = 32 << 20;
/// Descriptors of each ring.
pub const SIZE: u16 = 256;
/// Where frames to be sent are. Tests put theirs there, too.
pub const SENT: u64 = 0x180_0000;
/// Where commands are.
pub const COMMAND: u64 = 0x190_0000;
/// Where their answers are.
const ANSWER: u64 = 0x191_0000;
/// Bytes of the header before each frame (virtio 1.3 §5.1.6).
const HEADER: usize = 12;
const SERVED: &str = "a frontend that keeps the rules is served";

/// Where receive buffer `index` is: 32 KiB each.
pub fn rx_buffer(index: u16) -> u64 {
    0x20_0000 + u64::from(index) * 0x8000
}

/// A guest with one NIC.
pub struct Guest {
    /// Sends whatever a test wants to send.
    pub frontend: Frontend,
    /// The guest's memory.
    pub memory: Memory,
    /// One for each queue.
    pub rings: Vec<Ring>,
    /// The features settled.
    pub features: u64,
    /// The transmit descriptor that the next frame begins with.
    next: u16,
}

impl Guest {
    /// Settles the features, shares the memory, sets the rings of one queue pair up but does not start them.
    pub fn new(stream: UnixStream, wanted: u64) -> Self {
        Self::with_queues(stream, wanted, 2)
    }

    /// The same with this many queues, at least 2.
    pub fn with_queues(stream: UnixStream, wanted: u64, queues: u64) -> Self {
        let memory = Memory::sealed(MEMORY).expect("memory for a guest");
        let (frontend, features) = connect(stream, wanted, queues, &memory);
        let layouts = (1..=queues).map(|place| Layout::at(0x1_0000 * place, SIZE));
        let ring = |layout| Ring::new(&memory, layout, features & F_EVENT_IDX != 0).expect("a ring");
        let rings: Vec<_> = layouts.map(ring).collect();
        for (queue, ring) in rings.iter().enumerate() {
            set_up(&frontend, queue, ring, OWN, 0).expect(SERVED);
        }
        Self { frontend, memory, rings, features, next: 0 }
    }

    /// The same of a driver that begins anew: its frontend says so first.
    pub fn resetting(stream: UnixStream, wanted: u64, queues: u64) -> Self {
        let mut early = Frontend::from_stream(stream.try_clone().expect("a descriptor"), queues);
        early.set_owner().expect(SERVED);
        assert_ne!(early.get_features().expect(SERVED) & F_PROTOCOL, 0);
        early.get_protocol_features().expect(SERVED);
        early.set_protocol_features(VhostUserProtocolFeatures::RESET_DEVICE).expect(SERVED);
        early.reset_device().expect(SERVED);
        Self::with_queues(stream, wanted, queues)
    }

    /// Another backend takes over: the rings go on with what they have used.
    pub fn go_on(&mut self, stream: UnixStream) {
        (self.frontend, _) = connect(stream, self.features, self.rings.len() as u64, &self.memory);
        for (queue, ring) in self.rings.iter().enumerate() {
            set_up(&self.frontend, queue, ring, OWN, ring.used_index()).expect(SERVED);
            run(&mut self.frontend, queue, ring).expect(SERVED);
        }
    }

    /// Starts one ring.
    pub fn start(&mut self, queue: usize) {
        run(&mut self.frontend, queue, &self.rings[queue]).expect(SERVED);
    }

    /// Starts all rings.
    pub fn run(mut self) -> Self {
        (0..self.rings.len()).for_each(|queue| self.start(queue));
        self
    }

    /// The first receive ring.
    pub fn rx(&mut self) -> &mut Ring {
        &mut self.rings[0]
    }

    /// The first transmit ring.
    pub fn tx(&mut self) -> &mut Ring {
        &mut self.rings[1]
    }

    /// Sends a command on the control queue, which is the last one; returns the answer.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        self.command_on(self.rings.len() - 1, command)
    }

    /// Sends a command on this queue.
    pub fn command_on(&mut self, queue: usize, command: &[u8]) -> u8 {
        self.memory.write_bytes(command, COMMAND);
        self.memory.write(0xaa_u8, ANSWER);
        let ring = &mut self.rings[queue];
        ring.set_chain(0, &[(COMMAND, command.len() as u32, false), (ANSWER, 1, true)]);
        ring.push(0);
        ring.publish();
        assert_eq!(ring.used(), (0, 1));
        self.memory.read(ANSWER)
    }

    /// Stops the first receive ring and starts it again, as a frontend does. Returns where it had stopped.
    pub fn restart_receive(&mut self) -> u16 {
        let base = self.frontend.get_vring_base(0).expect(SERVED) as u16;
        self.frontend.set_vring_base(0, base).expect(SERVED);
        self.start(0);
        base
    }

    /// `length` bytes of configuration space.
    pub fn config(&mut self, length: u32) -> Vec<u8> {
        let buffer = vec![0; length as usize];
        self.frontend.get_config(0, length, VhostUserConfigFlags::empty(), &buffer).expect(SERVED).1
    }

    /// What the backend offers.
    pub fn offered(&self) -> u64 {
        self.frontend.get_features().expect(SERVED)
    }

    /// Offers `count` receive buffers of `size` bytes each, without a kick. Buffer *i* is at [`rx_buffer`].
    pub fn offer_buffers(&mut self, count: u16, size: u32) {
        (0..count).for_each(|index| self.offer_buffer(index, size));
    }

    /// Offers receive buffer `index`, without a kick.
    pub fn offer_buffer(&mut self, index: u16, size: u32) {
        self.rx().set_descriptor(index, (rx_buffer(index), size, WRITE, 0));
        self.rx().offer(index);
    }

    /// Offers `count` more receive buffers on this pair, all the same one, and kicks.
    pub fn offer_to(&mut self, pair: usize, count: u16) {
        let ring = &mut self.rings[2 * pair];
        for index in 0..count {
            ring.set_descriptor(index, (rx_buffer(pair as u16), 2000, WRITE, 0));
            ring.offer(index);
        }
        ring.kick();
    }

    /// Receives one frame, with its header, and offers its buffers again without a kick.
    pub fn receive(&mut self) -> ([u8; HEADER], Vec<u8>) {
        let (mut bytes, mut heads, mut count) = (Vec::new(), Vec::new(), 1);
        while heads.len() < count {
            let (head, len) = self.rx().used();
            bytes.extend(self.memory.read_bytes(rx_buffer(head), len as usize));
            heads.push(head);
            count = u16::from_le_bytes([bytes[10], bytes[11]]).into();
        }
        heads.into_iter().for_each(|head| self.rx().offer(head));
        let (header, frame) = bytes.split_first_chunk().expect("a frame has a header");
        (*header, frame.to_vec())
    }

    /// Stores a frame behind a header at [`SENT`]; returns how many bytes that are.
    pub fn put(&self, header: [u8; 10], frame: &[u8]) -> u32 {
        let bytes = [&header[..], &[0, 0], frame].concat();
        self.memory.write_bytes(&bytes, SENT);
        bytes.len() as u32
    }

    /// Sends one frame in pieces of `piece` bytes, with a kick if one is wanted, and waits until it was used.
    pub fn send(&mut self, header: [u8; 10], frame: &[u8], piece: u32) {
        let (bytes, head) = (self.put(header, frame), self.next);
        let starts = (0..bytes).step_by(piece as usize);
        let pieces = starts.map(|start| (SENT + u64::from(start), piece.min(bytes - start), false));
        self.next = self.rings[1].set_chain(head, &pieces.collect::<Vec<_>>());
        self.send_chain(head);
    }

    /// Makes a chain available, kicks if that is wanted, and waits until it was used.
    pub fn send_chain(&mut self, head: u16) {
        self.tx().push(head);
        self.tx().publish();
        assert_eq!(self.tx().used(), (head, 0));
    }

    /// Sends one frame on this pair, with a kick, and waits until it was used.
    pub fn send_on(&mut self, pair: usize, frame: &[u8]) {
        let bytes = self.put([0; 10], frame);
        let ring = &mut self.rings[2 * pair + 1];
        ring.set_descriptor(255, (SENT, bytes, 0, 0));
        ring.offer(255);
        ring.kick();
        assert_eq!(ring.used(), (255, 0));
    }
}

fn connect(stream: UnixStream, wanted: u64, queues: u64, memory: &Memory) -> (Frontend, u64) {
    let protocol = VhostUserProtocolFeatures::CONFIG;
    let terms = Terms { queues, needed: wanted, wanted: 0, protocol, acknowledged: false };
    let settled = terms.settle(stream).expect(SERVED);
    share(&settled.frontend, memory).expect(SERVED);
    (settled.frontend, settled.features)
}
