//! A driver of consoles, and its frontend (virtio 1.3 §5.3): one port, a receive and a transmit ring.
//!
//! # Panics
//! All of this: when a backend refuses what a frontend may ask for, or does not call when it must.

use std::os::unix::net::UnixStream;

use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::frontend::{F_EVENT_IDX, OWN, Terms, run, set_up, share};
use crate::memory::Memory;
use crate::ring::{Layout, Ring, WRITE};

/// Bytes of guest memory.
pub const MEMORY: u64 = 4 << 20;
/// Descriptors of each ring.
const SIZE: u16 = 16;
/// Where text to be printed is.
const PRINTED: u64 = 0x10_0000;
/// Where text that was typed comes, and at most how many bytes at once.
const TYPED: (u64, u32) = (0x20_0000, 10);
const SERVED: &str = "a frontend that keeps the rules is served";

/// A guest with a console.
pub struct Guest {
    /// To stay connected.
    pub frontend: Frontend,
    memory: Memory,
    /// What is typed.
    pub rx: Ring,
    /// What is printed.
    pub tx: Ring,
}

impl Guest {
    /// Settles the features and starts both rings, without a buffer in them.
    pub fn new(stream: UnixStream, wanted: u64) -> Self {
        let protocol = VhostUserProtocolFeatures::CONFIG;
        let terms = Terms { queues: 2, needed: wanted, wanted: 0, protocol, acknowledged: false };
        let mut frontend = terms.settle(stream).expect(SERVED).frontend;
        let memory = Memory::unsealed(MEMORY).expect("memory for a guest");
        share(&frontend, &memory).expect(SERVED);
        let ring = |base| Ring::new(&memory, Layout::at(base, SIZE), wanted & F_EVENT_IDX != 0);
        let [rx, tx] = [0x1_0000, 0x2_0000].map(|base| ring(base).expect("a ring"));
        for (queue, ring) in [&rx, &tx].into_iter().enumerate() {
            set_up(&frontend, queue, ring, OWN, 0).expect(SERVED);
            run(&mut frontend, queue, ring).expect(SERVED);
        }
        Self { frontend, memory, rx, tx }
    }

    /// Prints a text, and waits until it was taken.
    pub fn print(&mut self, text: &[u8]) {
        self.memory.write_bytes(text, PRINTED);
        offer(&mut self.tx, 0, PRINTED, text.len() as u32, 0);
        assert_eq!(self.tx.used(), (0, 0));
    }

    /// Waits for at least `count` bytes that are typed.
    pub fn typed(&mut self, count: usize) -> Vec<u8> {
        let mut typed = Vec::new();
        while typed.len() < count {
            offer(&mut self.rx, 3, TYPED.0, TYPED.1, WRITE);
            let (head, len) = self.rx.used();
            assert!(head == 3 && (1..=TYPED.1).contains(&len));
            typed.extend(self.memory.read_bytes(TYPED.0, len as usize));
        }
        typed
    }
}

/// Offers one buffer as descriptor `head`, and kicks.
pub fn offer(ring: &mut Ring, head: u16, addr: u64, len: u32, flags: u16) {
    ring.set_descriptor(head, (addr, len, flags, 0));
    ring.offer(head);
    ring.kick();
}
