//! The vhost-user messages by which a frontend sets a device up, on the `vhost` crate's [`Frontend`].
//!
//! Each step is a function of its own; the caller sends other messages in between, or others instead, with
//! [`Frontend`].

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::memory::Memory;
use crate::ring::Ring;
use crate::{PATIENCE, event};

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const F_PROTOCOL: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// What a frontend adds to a guest-physical address to make it its own: a name, which nobody uses as a pointer.
pub const OWN: u64 = 0x7f00_0000_0000;

/// A frontend's demands on a backend.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Queues of the device.
    pub queues: u64,
    /// Features that must be offered, and are taken.
    pub needed: u64,
    /// Features that are taken where they are offered.
    pub wanted: u64,
    /// Protocol features that are taken where they are offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Whether every message is to be acknowledged; needs `REPLY_ACK` in `protocol`.
    pub acknowledged: bool,
}

/// The result of [`Terms::settle`].
pub struct Settled {
    /// Sends whatever comes next.
    pub frontend: Frontend,
    /// The features taken.
    pub features: u64,
    /// The protocol features taken.
    pub protocol: VhostUserProtocolFeatures,
}

impl Terms {
    /// Becomes the owner and settles the features. They hold when this returns: they are acknowledged, or come before
    /// the question for the protocol's, which has an answer.
    ///
    /// # Errors
    /// A feature that is needed is not offered, or the backend breaks the protocol.
    pub fn settle(self, stream: UnixStream) -> Result<Settled> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut frontend = Frontend::from_stream(stream, self.queues);
        frontend.set_owner()?;
        let (offered, needed) = (frontend.get_features()?, self.needed | F_PROTOCOL);
        ensure!(needed & !offered == 0, "the backend offers {offered:#x}, {needed:#x} is needed");
        let features = needed | self.wanted & offered;
        if !self.acknowledged {
            frontend.set_features(features)?;
        }
        let protocol = frontend.get_protocol_features()? & self.protocol;
        frontend.set_protocol_features(protocol)?;
        if self.acknowledged {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            frontend.set_features(features)?;
        }
        Ok(Settled { frontend, features, protocol })
    }
}

/// A region of `bytes` at guest-physical address `start`, which is also its place in the memory's file. The frontend
/// has it at its own address `own`.
pub fn region(memory: &Memory, start: u64, bytes: u64, own: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: start,
        memory_size: bytes,
        userspace_addr: own,
        mmap_offset: start,
        mmap_handle: memory.as_fd().as_raw_fd(),
    }
}

/// Gives the backend all of the memory, as one region at [`OWN`].
///
/// # Errors
/// The backend refuses it.
pub fn share(frontend: &Frontend, memory: &Memory) -> Result<()> {
    frontend.set_mem_table(&[region(memory, 0, memory.bytes(), OWN)])?;
    Ok(())
}

/// Where the ring's parts are, of a frontend that has the memory at its own address `own`.
pub fn addresses(ring: &Ring, own: u64) -> VringConfigData {
    let layout = ring.layout();
    VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: 0,
        desc_table_addr: own + layout.descriptors,
        used_ring_addr: own + layout.used,
        avail_ring_addr: own + layout.available,
        log_addr: None,
    }
}

/// Tells the backend all of a ring except that it runs: it is to go on with the available index `base`.
///
/// # Errors
/// The backend refuses it.
pub fn set_up(frontend: &Frontend, queue: usize, ring: &Ring, own: u64, base: u16) -> Result<()> {
    frontend.set_vring_num(queue, ring.layout().size)?;
    frontend.set_vring_base(queue, base)?;
    frontend.set_vring_addr(queue, &addresses(ring, own))?;
    Ok(frontend.set_vring_call(queue, &event::lent(&ring.call)?)?)
}

/// Lets a ring run.
///
/// # Errors
/// The backend refuses it.
pub fn run(frontend: &mut Frontend, queue: usize, ring: &Ring) -> Result<()> {
    frontend.set_vring_kick(queue, &event::lent(&ring.kick)?)?;
    Ok(frontend.set_vring_enable(queue, true)?)
}
