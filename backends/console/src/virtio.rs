//! The console as a virtio-console device (virtio 1.3 §5.3): one port, no control queue, no emergency write.
//!
//! Between the rings and the console lies a stream socket, as between a UART and the console:
//!
//! ```text
//!   driver ══ transmitq ══▶ worker ── socket ──▶ console thread ──▶ clients
//!   driver ◀══ receiveq ═══ worker ◀─ socket ─── console thread ◀── the writer
//! ```
//!
//! The console accepts the guest's output at once, so the worker may wait for room in the socket. A client's input
//! waits in the socket until the driver offers a buffer.
//!
//! A worker of the crate `vhost-user-backend` ends silently when its device returns an error, so this device returns
//! none. A chain that cannot be read or written is given back empty.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// Queue 0 receives, queue 1 transmits (virtio 1.3 §5.3.2).
const QUEUES: usize = 2;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The event by which the worker learns that a client has typed. Those up to the number of queues are the crate's.
pub const INPUT_EVENT: u64 = QUEUES as u64 + 1;

/// Most bytes of one chain: what follows in a longer one is dropped.
const MAX_CHAIN: usize = 64 * 1024;

/// Bytes copied at a time.
const COPY_LEN: usize = 4096;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// The device.
#[derive(Debug)]
pub struct VirtioConsole {
    /// To the console.
    socket: OwnedFd,
    memory: OnceLock<Memory>,
    event_idx: AtomicBool,
}

impl VirtioConsole {
    /// A device whose port is the other end of `socket`, a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, memory: OnceLock::new(), event_idx: AtomicBool::new(false) }
    }

    /// Works through a queue: `work` does one chain and says how many bytes it wrote, or `None` to put it back.
    fn pump(&self, vring: &VringRwLock, work: impl Fn(&Self, Chain) -> Option<u32>) {
        let Some(memory) = self.memory.get() else { return };
        let event_idx = self.event_idx.load(Ordering::Relaxed);
        loop {
            let mut worked = false;
            loop {
                // A ring that has been stopped gives nothing.
                let popped = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.memory());
                let Some(chain) = popped else { break };
                let head = chain.head_index();
                let Some(written) = work(self, chain) else {
                    vring.get_mut().get_queue_mut().go_to_previous_position();
                    self.call(vring, worked);
                    return;
                };
                worked |= vring.add_used(head, written).is_ok();
            }
            self.call(vring, worked);
            // Without EVENT_IDX the crate never asks for silence, so there is nothing to ask back. A broken ring
            // says for ever that it has more, but gives nothing.
            if !event_idx || !worked || !vring.enable_notification().unwrap_or(false) {
                return;
            }
        }
    }

    fn call(&self, vring: &VringRwLock, worked: bool) {
        if worked && vring.needs_notification().unwrap_or(true) {
            let _ = vring.signal_used_queue();
        }
    }

    /// One chain from the guest, to the console.
    fn print(&self, chain: Chain) -> Option<u32> {
        let memory = chain.memory().clone();
        let Ok(mut reader) = chain.reader(&memory) else { return Some(0) };
        let (mut buffer, mut left) = ([0; COPY_LEN], MAX_CHAIN);
        while left > 0 {
            let part = left.min(COPY_LEN);
            match reader.read(&mut buffer[..part]) {
                Ok(count) if count > 0 => {
                    left -= count;
                    self.send_all(&buffer[..count]);
                }
                _ => break,
            }
        }
        Some(0)
    }

    fn send_all(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EINTR) => {}
                // The console's thread is gone, and with it this process.
                Err(_) => return,
            }
        }
    }

    /// What a client typed, into one chain.
    fn typed(&self, chain: Chain) -> Option<u32> {
        let memory = chain.memory().clone();
        let Ok(mut writer) = chain.writer(&memory) else { return Some(0) };
        let room = writer.available_bytes().min(COPY_LEN);
        if room == 0 {
            return Some(0);
        }
        let mut buffer = [0; COPY_LEN];
        let count = recv(self.socket.as_raw_fd(), &mut buffer[..room], MsgFlags::MSG_DONTWAIT).ok()?;
        if count == 0 {
            return None;
        }
        // Room was looked for above; if the memory is gone all the same, so is the guest.
        let _ = writer.write_all(&buffer[..count]);
        Some(count as u32)
    }
}

impl VhostUserBackend for VirtioConsole {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    /// `struct virtio_console_config` (virtio 1.3 §5.3.4). All its fields belong to features that are not offered, so
    /// they are 0.
    fn get_config(&self, _offset: u32, size: u32) -> Vec<u8> {
        vec![0; size.min(256) as usize]
    }

    /// The memory is one object whose contents the crate replaces: the first call gives it, later ones change nothing.
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let _ = self.memory.set(memory);
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        match (event, vrings) {
            (TRANSMIT, [_, transmit]) => self.pump(transmit, Self::print),
            // The socket is watched for changes only: so whatever comes, both are looked at.
            (RECEIVE, [receive, _]) => self.pump(receive, Self::typed),
            (event, [receive, _]) if u64::from(event) == INPUT_EVENT && receive.get_ref().is_enabled() => {
                self.pump(receive, Self::typed);
            }
            _ => {}
        }
        Ok(())
    }
}
