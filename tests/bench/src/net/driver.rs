//! A NIC's driver without a guest: one queue pair over vhost-user. The same code drives every backend.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::ring::{Memory, NEXT, PIECE, Ring, SIZE, WRITE};

/// Bytes of the header before each frame (virtio 1.3 §5.1.6).
pub const HEADER: usize = 12;

/// Bytes of a guest's memory: room for the buffers of both rings.
const MEMORY: usize = 64 << 20;
/// Where the buffers of the transmit ring begin, and how far they are apart.
const TRANSMIT: usize = 1 << 20;
const STRIDE: usize = 80 << 10;
/// Where the buffers of the receive ring begin.
const RECEIVE: usize = 32 << 20;

/// A backend that does nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

// Virtio 1.3 §5.1.3 and §6.
const WANTED: u64 = 1 << 0 // CSUM
    | 1 << 1 // GUEST_CSUM
    | 1 << 7 // GUEST_TSO4
    | 1 << 11 // HOST_TSO4
    | 1 << 15; // MRG_RXBUF
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

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
            buffer as usize * usize::from(SIZE) <= MEMORY - RECEIVE,
            "no room for receive buffers of {buffer} bytes"
        );
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let needed = EVENT_IDX | VERSION_1 | PROTOCOL | 1 << 15;
        ensure!(offered & needed == needed, "the backend offers {offered:#x}, {needed:#x} is needed");
        frontend.set_features(offered & (WANTED | EVENT_IDX | VERSION_1 | PROTOCOL))?;
        let protocol = frontend.get_protocol_features()?;
        frontend.set_protocol_features(protocol & VhostUserProtocolFeatures::MQ)?;
        let memory = Memory::new(MEMORY)?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: memory.len() as u64,
            userspace_addr: memory.start(),
            mmap_offset: 0,
            mmap_handle: memory.fd().as_raw_fd(),
        }])?;
        let (receive, transmit) = (Ring::new(&memory, 0)?, Ring::new(&memory, PIECE)?);
        for (index, ring) in [&receive, &transmit].into_iter().enumerate() {
            let [descriptors, available, used] = ring.areas().map(|area| memory.start() + area);
            frontend.set_vring_num(index, SIZE)?;
            let config = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: descriptors,
                used_ring_addr: used,
                avail_ring_addr: available,
                log_addr: None,
            };
            frontend.set_vring_addr(index, &config)?;
            frontend.set_vring_base(index, 0)?;
            frontend.set_vring_call(index, &eventfd(ring.call_fd())?)?;
            frontend.set_vring_kick(index, &eventfd(ring.kick_fd())?)?;
        }
        for index in 0..2 {
            frontend.set_vring_enable(index, true)?;
        }
        Ok(Self { frontend, memory, receive, transmit, buffer, chains: Vec::new() })
    }

    /// Makes all receive buffers available.
    pub fn offer_buffers(&mut self) -> Result<()> {
        for index in 0..SIZE {
            let at = RECEIVE + usize::from(index) * self.buffer as usize;
            self.receive.set_descriptor(index, at, self.buffer, WRITE, 0);
            self.receive.offer(index);
        }
        self.receive.publish()
    }

    /// Sets up as many chains as the ring holds, each with this header and frame, in pieces of at most `piece` bytes.
    pub fn prepare(&mut self, header: [u8; HEADER], frame: &[u8], piece: usize) {
        let bytes = [&header[..], frame].concat();
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let count = SIZE / pieces.len() as u16;
        self.chains.clear();
        for chain in 0..count {
            let first = chain * pieces.len() as u16;
            let mut at =
                TRANSMIT + usize::from(chain) * STRIDE.min((RECEIVE - TRANSMIT) / usize::from(count));
            for (index, part) in (first..).zip(&pieces) {
                self.memory.write(at, part);
                let last = usize::from(index - first) + 1 == pieces.len();
                let (flags, next) = if last { (0, 0) } else { (NEXT, index + 1) };
                self.transmit.set_descriptor(index, at, part.len() as u32, flags, next);
                at += part.len();
            }
            self.chains.push(first);
        }
    }

    /// The chains that were prepared.
    pub fn chains(&self) -> &[u16] {
        &self.chains
    }

    /// Counts the frames that have come, and gives their buffers back.
    pub fn take_frames(&mut self, ends: &mut Ends) -> Result<u64> {
        let mut frames = 0;
        while let Some((head, _)) = self.receive.used() {
            if ends.left == 0 {
                let mut count = [0; 2];
                self.memory.read(RECEIVE + usize::from(head) * self.buffer as usize + 10, &mut count);
                ends.left = u16::from_le_bytes(count).max(1);
                frames += 1;
            }
            ends.left -= 1;
            self.receive.offer(head);
        }
        self.receive.publish()?;
        Ok(frames)
    }

    /// Waits until the backend calls for its receive ring.
    pub fn wait_receive(&mut self) -> Result<()> {
        if self.receive.want_call(true) {
            return Ok(());
        }
        let mut ready = [PollFd::new(self.receive.call_fd().as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::try_from(PATIENCE)?)? == 0 {
            bail!("no frame came for {} s", PATIENCE.as_secs());
        }
        self.receive.call_fd().read()?;
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

/// The same eventfd, as the `vhost` crate wants it.
fn eventfd(fd: &impl AsFd) -> Result<EventFd> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let owned = fd.as_fd().try_clone_to_owned()?;
    #[expect(unsafe_code, reason = "the crate's eventfd is made of a number only")]
    // SAFETY: the number is that of a descriptor which nobody else owns from here on.
    Ok(unsafe { EventFd::from_raw_fd(owned.into_raw_fd()) })
}
