//! A NIC's driver without a guest: one queue pair over vhost-user. The same code drives every backend.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use domus_driver::event;
use domus_driver::frontend::{F_EVENT_IDX, F_VERSION_1, OWN, Terms, run, set_up, share};
use domus_driver::memory::Memory;
use domus_driver::ring::{Layout, PIECE, Ring, WRITE};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

/// Bytes of the header before each frame (virtio 1.3 §5.1.6).
pub const HEADER: usize = 12;

/// Descriptors of each ring.
pub const SIZE: u16 = 256;

/// Bytes of a guest's memory: room for the buffers of both rings.
const MEMORY: u64 = 64 << 20;
/// Where the buffers of the transmit ring begin, and how far they are apart.
const TRANSMIT: u64 = 1 << 20;
const STRIDE: u64 = 80 << 10;
/// Where the buffers of the receive ring begin.
const RECEIVE: u64 = 32 << 20;

/// A backend that does nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

// Virtio 1.3 §5.1.3.
const MRG_RXBUF: u64 = 1 << 15;
const WANTED: u64 = 1 << 0 // CSUM
    | 1 << 1 // GUEST_CSUM
    | 1 << 7 // GUEST_TSO4
    | 1 << 11; // HOST_TSO4

/// A connected driver.
pub struct Driver {
    frontend: Frontend,
    memory: Memory,
    /// Frames from the backend.
    pub receive: Ring,
    /// Frames to it.
    pub transmit: Ring,
    /// Bytes of each receive buffer.
    buffer: u32,
    /// Chains to send, each set up once.
    chains: Vec<u16>,
}

impl Driver {
    /// Connects, and starts both rings without any buffer in them. Receive buffers will have `buffer` bytes.
    pub fn connect(stream: UnixStream, buffer: u32) -> Result<Self> {
        ensure!(
            u64::from(buffer) * u64::from(SIZE) <= MEMORY - RECEIVE,
            "no room for receive buffers of {buffer} bytes"
        );
        let needed = F_EVENT_IDX | F_VERSION_1 | MRG_RXBUF;
        let protocol = VhostUserProtocolFeatures::MQ;
        let terms = Terms { queues: 2, needed, wanted: WANTED, protocol, acknowledged: false };
        let mut frontend = terms.settle(stream)?.frontend;
        let memory = Memory::sealed(MEMORY)?;
        share(&frontend, &memory)?;
        let ring = |base| Ring::new(&memory, Layout::at(base, SIZE), true);
        let (receive, transmit) = (ring(0)?, ring(PIECE)?);
        for (queue, ring) in [&receive, &transmit].into_iter().enumerate() {
            set_up(&frontend, queue, ring, OWN, 0)?;
            run(&mut frontend, queue, ring)?;
        }
        Ok(Self { frontend, memory, receive, transmit, buffer, chains: Vec::new() })
    }

    /// Makes all receive buffers available.
    pub fn offer_buffers(&mut self) {
        for index in 0..SIZE {
            self.receive.set_descriptor(index, (self.place(index), self.buffer, WRITE, 0));
            self.receive.push(index);
        }
        self.receive.publish();
    }

    /// Where a receive buffer is.
    fn place(&self, index: u16) -> u64 {
        RECEIVE + u64::from(index) * u64::from(self.buffer)
    }

    /// Sets up as many chains as the ring holds, each with this header and frame, in pieces of at most `piece` bytes.
    pub fn prepare(&mut self, header: [u8; HEADER], frame: &[u8], piece: usize) {
        let bytes = [&header[..], frame].concat();
        let (mut starts, mut start) = (Vec::new(), 0);
        for part in bytes.chunks(piece) {
            starts.push((start, part.len() as u32, false));
            start += part.len() as u64;
        }
        let count = SIZE / starts.len() as u16;
        let stride = STRIDE.min((RECEIVE - TRANSMIT) / u64::from(count));
        self.chains = (0..count).map(|chain| chain * starts.len() as u16).collect();
        for (at, &first) in (TRANSMIT..).step_by(stride as usize).zip(&self.chains) {
            self.memory.write_bytes(&bytes, at);
            let pieces: Vec<_> = starts.iter().map(|&(start, len, write)| (at + start, len, write)).collect();
            self.transmit.set_chain(first, &pieces);
        }
    }

    /// The chains that were prepared.
    pub fn chains(&self) -> &[u16] {
        &self.chains
    }

    /// Counts the frames that have come, and gives their buffers back.
    pub fn take_frames(&mut self, ends: &mut Ends) -> u64 {
        let mut frames = 0;
        while let Some((head, _)) = self.receive.take() {
            if ends.left == 0 {
                // `num_buffers`, the header's last field.
                let buffers = self.memory.atomic::<AtomicU16>(self.place(head) + 10);
                ends.left = buffers.load(Ordering::Relaxed).max(1);
                frames += 1;
            }
            ends.left -= 1;
            self.receive.push(head);
        }
        self.receive.publish();
        frames
    }

    /// Waits until the backend calls for its receive ring.
    pub fn wait_receive(&mut self) -> Result<()> {
        if !self.receive.want_call(true) {
            let called = event::counted(&self.receive.call, PATIENCE)?;
            ensure!(called > 0, "no frame came for {} s", PATIENCE.as_secs());
        }
        Ok(())
    }

    /// Waits, looking all the time, until `done`.
    pub fn look(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done()? {
            ensure!(start.elapsed() < PATIENCE, "the backend does nothing for {} s", PATIENCE.as_secs());
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Stops both rings, so that nothing comes any more.
    pub fn stop(self) -> Result<()> {
        for index in 0..2 {
            self.frontend.get_vring_base(index)?;
        }
        Ok(())
    }
}

/// How many of the used buffers to come belong to the frame whose first one was seen.
#[derive(Debug, Default)]
pub struct Ends {
    left: u16,
}
