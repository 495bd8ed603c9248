//! The vhost-user frontend: one connection to the backend that serves a device.
//!
//! A [`Session`] is everything a backend must be told to run the device; [`Backend::start`] says it from the
//! beginning, so it is said again to a backend that takes another's place. That one goes on at the used index of each
//! ring, and with the inflight log (`GET_INFLIGHT_FD`, `SET_INFLIGHT_FD`), which is kept here because this process
//! outlives every backend. Every exchange is bounded by [`Watched::call`]. After an error the connection is of no more
//! use: drop the [`Backend`].

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use shared_abi::DeviceId;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    self, Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::common::{Rings, VERSION_1};
use super::watch::{Watched, Watcher};
use crate::memory::GuestRam;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: negotiated between the two ends, never shown to the guest.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Why a backend cannot serve its device.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The socket could not be put to use.
    #[error("cannot watch the backend's socket")]
    Socket(#[source] std::io::Error),
    /// An exchange failed.
    #[error("the vhost-user backend fails {request}")]
    Exchange {
        /// The message's name in the vhost-user specification.
        request: &'static str,
        /// What happened.
        source: vhost::Error,
    },
    /// It was hung up on, since it took too long.
    #[error("the vhost-user backend has not answered {request} within {seconds} s: see what it waits for")]
    Silent {
        /// The message's name in the vhost-user specification.
        request: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Not a modern device.
    #[error("the vhost-user backend does not offer VIRTIO_F_VERSION_1: it is too old for this machine")]
    Legacy,
    /// Too few queues.
    #[error(
        "the vhost-user backend has {has} queues, {wanted} are wanted: give the device fewer, or the backend more"
    )]
    TooFewQueues {
        /// What the backend has.
        has: u64,
        /// What the machine was told to give the guest.
        wanted: u16,
    },
    /// It has no configuration space to give.
    #[error(
        "the vhost-user backend does not offer VHOST_USER_PROTOCOL_F_CONFIG, and dom0 gave no configuration space"
    )]
    NoConfig,
    /// It cannot take the place of the one before it.
    #[error(
        "the new vhost-user backend does not offer the feature bits {0:#x} that the guest uses: start one that does"
    )]
    FewerFeatures(u64),
}

/// What the backend must know to run a device.
pub struct Session {
    /// The features that guest and device agreed on.
    pub features: u64,
    /// The enabled queues.
    pub vrings: Vec<Vring>,
    /// What is in flight, for the next backend; none before the first start, or if the backend keeps no log.
    pub log: Option<InflightLog>,
}

/// The memory in which a backend notes what it has taken from the rings and not given back. The runner never looks into
/// it.
pub struct InflightLog {
    what: VhostUserInflight,
    memory: File,
}

/// One enabled queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vring {
    /// Its number.
    pub index: usize,
    /// Its size.
    pub size: u16,
    /// Where it is in this process.
    pub rings: Rings,
    /// Guest physical address of its used ring.
    pub used: u64,
    /// The index to go on with, in the available ring.
    pub base: u16,
}

/// A connection that works.
pub struct Backend {
    frontend: Frontend,
    watched: Arc<Watched>,
    queues: u16,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    knows_memory: bool,
}

/// Names the request that failed.
fn exchange<T>(
    watched: &Watched,
    request: &'static str,
    result: vhost::Result<T>,
) -> Result<T, BackendError> {
    result.map_err(|source| match watched.overdue() {
        Some(patience) => BackendError::Silent { request, seconds: patience.as_secs() },
        None => BackendError::Exchange { request, source },
    })
}

impl Backend {
    /// Takes up the connection and settles the protocol features.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn connect(
        device: &DeviceId,
        socket: OwnedFd,
        queues: u16,
        watcher: &Arc<Watcher>,
    ) -> Result<Self, BackendError> {
        let socket = UnixStream::from(socket);
        let watched = watcher.watch(device.clone(), &socket).map_err(BackendError::Socket)?;
        let frontend = Frontend::from_stream(socket, queues.into());
        let protocol = VhostUserProtocolFeatures::empty();
        let mut backend =
            Self { frontend, watched: watched.clone(), queues, features: 0, protocol, knows_memory: false };
        let _call = watched.call();
        backend.negotiate(queues)?;
        Ok(backend)
    }

    fn negotiate(&mut self, queues: u16) -> Result<(), BackendError> {
        let frontend = &mut self.frontend;
        self.features = exchange(&self.watched, "GET_FEATURES", frontend.get_features())?;
        if self.features & VERSION_1 == 0 {
            return Err(BackendError::Legacy);
        }
        if self.features & PROTOCOL_FEATURES != 0 {
            let offered = exchange(&self.watched, "GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
            let known = VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
            self.protocol = offered & known;
            exchange(&self.watched, "SET_PROTOCOL_FEATURES", frontend.set_protocol_features(self.protocol))?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        exchange(&self.watched, "SET_OWNER", frontend.set_owner())?;
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            let has = exchange(&self.watched, "GET_QUEUE_NUM", frontend.get_queue_num())?;
            if has < queues.into() {
                return Err(BackendError::TooFewQueues { has, wanted: queues });
            }
        }
        Ok(())
    }

    /// The virtio features that the backend offers.
    pub fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// The first `size` bytes of the configuration space.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn read_config(&mut self, size: u16) -> Result<Vec<u8>, BackendError> {
        if size == 0 {
            return Ok(Vec::new());
        }
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(BackendError::NoConfig);
        }
        let _call = self.watched.call();
        let room = vec![0; size.into()];
        let reply = self.frontend.get_config(0, size.into(), VhostUserConfigFlags::empty(), &room);
        exchange(&self.watched, "GET_CONFIG", reply).map(|(_, config)| config)
    }

    /// Writes to the configuration space. A backend that refuses the write is no error.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), BackendError> {
        let _call = self.watched.call();
        match self.frontend.set_config(offset, VhostUserConfigFlags::empty(), data) {
            Err(vhost::Error::VhostUserProtocol(vhost_user::Error::BackendInternalError)) => Ok(()),
            result => exchange(&self.watched, "SET_CONFIG", result),
        }
    }

    /// Lets the backend run the device: `kicks` and `calls` are indexed by queue number. A session without a log gets
    /// one, if the backend keeps any.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn start(
        &mut self,
        session: &mut Session,
        ram: &GuestRam,
        kicks: &[EventFd],
        calls: &[Arc<EventFd>],
    ) -> Result<(), BackendError> {
        let watched = self.watched.clone();
        let _call = watched.call();
        let frontend = &mut self.frontend;
        exchange(
            &watched,
            "SET_FEATURES",
            frontend.set_features(session.features | self.features & PROTOCOL_FEATURES),
        )?;
        if !self.knows_memory {
            exchange(&watched, "SET_MEM_TABLE", frontend.set_mem_table(&memory_table(ram)))?;
            self.knows_memory = true;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) && !session.vrings.is_empty() {
            if session.log.is_none() {
                let size = session.vrings.iter().map(|vring| vring.size).max().unwrap_or(0);
                let wanted = VhostUserInflight::new(0, 0, self.queues, size);
                let (what, memory) =
                    exchange(&watched, "GET_INFLIGHT_FD", frontend.get_inflight_fd(&wanted))?;
                session.log = Some(InflightLog { what, memory });
            }
            if let Some(InflightLog { what, memory }) = &session.log {
                exchange(&watched, "SET_INFLIGHT_FD", frontend.set_inflight_fd(what, memory.as_raw_fd()))?;
            }
        }
        for &Vring { index, size, rings, base, .. } in &session.vrings {
            let addresses = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: rings.desc,
                used_ring_addr: rings.used,
                avail_ring_addr: rings.avail,
                log_addr: None,
            };
            exchange(&watched, "SET_VRING_NUM", frontend.set_vring_num(index, size))?;
            exchange(&watched, "SET_VRING_BASE", frontend.set_vring_base(index, base))?;
            exchange(&watched, "SET_VRING_ADDR", frontend.set_vring_addr(index, &addresses))?;
            exchange(&watched, "SET_VRING_CALL", frontend.set_vring_call(index, &calls[index]))?;
            // Starts the ring.
            exchange(&watched, "SET_VRING_KICK", frontend.set_vring_kick(index, &kicks[index]))?;
        }
        self.enable(session, true)
    }

    /// Tells the backend that what the last driver has set is over, if the backend can be told. No ring runs.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn forget_driver(&mut self) -> Result<(), BackendError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
            return Ok(());
        }
        let _call = self.watched.call();
        exchange(&self.watched, "RESET_DEVICE", self.frontend.reset_device())
    }

    /// Stops the rings. When it returns the backend touches no ring and no buffer of the guest.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn stop(&mut self, session: &Session) -> Result<(), BackendError> {
        let watched = self.watched.clone();
        let _call = watched.call();
        self.enable(session, false)?;
        for vring in &session.vrings {
            exchange(&watched, "GET_VRING_BASE", self.frontend.get_vring_base(vring.index))?;
        }
        Ok(())
    }

    /// Hangs up without a report.
    pub fn let_go(self) {
        self.watched.let_go();
    }

    /// When its loss was noticed, if it has been.
    pub fn lost_at(&self) -> Option<Instant> {
        self.watched.ended()
    }

    /// Without protocol features rings are always enabled.
    fn enable(&mut self, session: &Session, on: bool) -> Result<(), BackendError> {
        for vring in session.vrings.iter().filter(|_| self.features & PROTOCOL_FEATURES != 0) {
            exchange(&self.watched, "SET_VRING_ENABLE", self.frontend.set_vring_enable(vring.index, on))?;
        }
        Ok(())
    }
}

impl Drop for Backend {
    /// A backend that has broken the protocol must not go on with a ring the guest believes stopped.
    fn drop(&mut self) {
        self.watched.hang_up();
    }
}

fn memory_table(ram: &GuestRam) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: crate::memory::RamRegion| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.gpa,
        memory_size: region.size,
        userspace_addr: region.host,
        mmap_offset: region.offset,
        mmap_handle: ram.fd().as_raw_fd(),
    };
    ram.regions().into_iter().map(region).collect()
}
