//! The vhost-user messages, each checked before anything is done.

use std::fs::File;
use std::io;
use std::sync::Arc;

use domus_startup::control::chain;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::device::Device;
use crate::eventfd::{self, EventfdError};
use crate::memory::MemoryTable;
use crate::queue::RingAddresses;
use crate::worker::Port;
use crate::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1, MAX_QUEUE_SIZE, say};

use super::inflight::Inflight;
use super::vring::Vring;

/// What is offered to every frontend. `LOG_SHMFD` would come with the message at the end of this file.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// Bytes of configuration space that can be read; those behind the device's own are 0.
const CONFIG_SPACE: usize = 256;

/// What tmpfs says of its blocks.
const PAGE: i64 = 4096;

/// All that a frontend has set, and the device.
#[derive(Debug)]
pub struct State<D: Device> {
    name: Arc<str>,
    device: D,
    features: u64,
    memory: Arc<MemoryTable>,
    inflight: Option<Inflight>,
    vrings: Vec<Vring<D::Command>>,
    any_memory: bool,
}

/// A refusal that names the act and the value.
fn refuse(text: String) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Refuses memory a touch of which could end this process: of a file that could become shorter, or whose pages may be
/// missing although the file is long enough, as those of hugetlbfs may.
fn check_stays(file: &File) -> std::result::Result<(), String> {
    // First: only files in memory have seals, so what comes after it asks no file system's server.
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).unwrap_or(0);
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        let text = "a memory region's file that could become shorter: it must be sealed (F_SEAL_SHRINK)";
        return Err(text.into());
    }
    let system = fstatfs(file).map_err(|errno| format!("a memory region's file system: {errno}"))?;
    if system.filesystem_type() != TMPFS_MAGIC || system.block_size() != PAGE {
        let text =
            "a memory region's file that has no pages of 4096 bytes in tmpfs: huge pages can be missing";
        return Err(text.into());
    }
    Ok(())
}

fn refuse_eventfd(index: u8, what: &str, why: &EventfdError) -> Error {
    refuse(format!("the {what} descriptor of queue {index}: {}", chain(why)))
}

impl<D: Device> State<D> {
    pub fn new(name: Arc<str>, device: D, queues: Vec<Port<D::Command>>) -> Self {
        let vrings = (0..).zip(queues).map(|(index, worker)| Vring::new(index, worker)).collect();
        let memory = Arc::default();
        Self { name, device, features: 0, memory, inflight: None, vrings, any_memory: false }
    }

    /// Memory may be in any file.
    pub fn take_any_memory(&mut self) {
        self.any_memory = true;
    }

    /// Whether the frontend has acknowledged `VHOST_USER_F_PROTOCOL_FEATURES`.
    pub fn has_protocol_features(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    fn offered(&self) -> u64 {
        self.device.features()
            | F_VERSION_1
            | F_INDIRECT
            | F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// The ring with this number, if the device has it.
    fn vring(&mut self, index: u32) -> Result<&mut Vring<D::Command>> {
        let count = self.vrings.len();
        let vring = usize::try_from(index).ok().and_then(|index| self.vrings.get_mut(index));
        vring.ok_or_else(|| refuse(format!("there is no queue {index}: the device has {count}")))
    }

    /// Starts every ring that can and does not run. Without vhost-user's protocol features a ring is enabled from the
    /// start.
    fn start(&mut self) -> Result<()> {
        let always = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for vring in &mut self.vrings {
            vring.enabled |= always && vring.kick.is_some();
            // One that does not start may have the size of a driver before this one, which the log is not for.
            if !vring.can_start() {
                continue;
            }
            let log = match &self.inflight {
                Some(logs) => {
                    logs.log(vring.index(), vring.size).map_err(|error| refuse(error.to_string()))?
                }
                None => None,
            };
            vring
                .start(&self.name, self.features, &self.memory, log, self.device.signals())
                .map_err(|error| refuse(chain(&error)))?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        for vring in &mut self.vrings {
            if let Err(error) = vring.stop() {
                say::limited(format_args!("{}: {error}", self.name));
            }
        }
    }

    /// Stops a ring, changes it, and starts it again if it ran.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Vring<D::Command>)) -> Result<()> {
        let vring = self.vring(index)?;
        let ran = vring.is_running();
        vring.stop().map_err(|error| refuse(error.to_string()))?;
        change(vring);
        if ran { self.start() } else { Ok(()) }
    }

    /// Changes what is under all rings: they are drained, and go on where they were.
    fn change_all(&mut self, change: impl FnOnce(&mut Self)) -> Result<()> {
        // Those that do not run lack something, so starting all starts those that ran.
        self.stop();
        change(self);
        self.start()
    }

    fn replace_memory(&mut self, memory: MemoryTable) -> Result<()> {
        self.change_all(|state| state.memory = Arc::new(memory))
    }

    /// Refuses a region that the device has no room for, or whose memory could go away.
    fn check_region(&self, memory: &MemoryTable, file: &File) -> Result<()> {
        let most = self.device.max_regions();
        if memory.regions() >= most {
            return Err(refuse(format!("more than {most} memory regions")));
        }
        if self.any_memory { Ok(()) } else { check_stays(file).map_err(refuse) }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        if self.device.inflight() { PROTOCOL | VhostUserProtocolFeatures::INFLIGHT_SHMFD } else { PROTOCOL }
    }

    /// The frontend has gone: the state is as it was before it came.
    pub fn forget_frontend(&mut self) {
        self.stop();
        for vring in &mut self.vrings {
            vring.forget();
        }
        self.features = 0;
        self.memory = Arc::default();
        self.inflight = None;
        self.device.abandoned();
    }
}

impl<D: Device> VhostUserBackendReqHandlerMut for State<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// The specification advises to disable all rings, and nothing else.
    fn reset_owner(&mut self) -> Result<()> {
        self.stop();
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop();
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.kick = None;
            vring.base = 0;
        }
        // What it says is over. A frontend that wants a log for what comes next asks for one.
        self.inflight = None;
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(refuse(format!("feature bits {unknown:#x} were not offered")));
        }
        // A driver settles them before its rings run (virtio 1.3 §3.1.1), and what is behind the rings, a tap's header
        // for one, is set for all of them at once. QEMU says the same features again for each queue pair; the bit that
        // it adds during a migration (`VHOST_F_LOG_ALL`) is not offered.
        if let Some(vring) = self.vrings.iter().find(|vring| vring.is_running()) {
            if features == self.features {
                return Ok(());
            }
            let (old, index) = (self.features, vring.index());
            return Err(refuse(format!(
                "features {features:#x} instead of {old:#x} while queue {index} runs: stop all rings before"
            )));
        }
        self.features = features;
        self.device.set_features(features);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !self.protocol_features().bits() {
            0 => Ok(()),
            unknown => Err(refuse(format!("protocol feature bits {unknown:#x} were not offered"))),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = MemoryTable::default();
        for (region, file) in regions.iter().zip(files) {
            self.check_region(&memory, &file)?;
            memory
                .add(region.guest_phys_addr, region.user_addr, region.memory_size, file, region.mmap_offset)
                .map_err(|error| refuse(chain(&error)))?;
        }
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(self.device.max_regions() as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        // Nothing that a running ring uses goes away: it learns of the new region when it is started next, so start
        // them all again.
        let mut memory = MemoryTable::clone(&self.memory);
        self.check_region(&memory, &file)?;
        memory
            .add(region.guest_phys_addr, region.user_addr, region.memory_size, file, region.mmap_offset)
            .map_err(|error| refuse(chain(&error)))?;
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut memory = MemoryTable::clone(&self.memory);
        memory
            .remove(region.guest_phys_addr, region.user_addr, region.memory_size)
            .map_err(|error| refuse(error.to_string()))?;
        self.replace_memory(memory)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| *size <= MAX_QUEUE_SIZE && size.is_power_of_two());
        let size = size.ok_or_else(|| {
            refuse(format!("a queue of {num} descriptors: powers of two up to {MAX_QUEUE_SIZE} are served"))
        })?;
        self.change(index, |vring| vring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.change(index, |vring| vring.addresses = Some(RingAddresses { descriptors, available, used }))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base =
            u16::try_from(base).map_err(|_| refuse(format!("a ring index of {base}: it has 16 bits")))?;
        self.change(index, |vring| vring.base = base)
    }

    /// Stops the ring. It starts again with the next `SET_VRING_KICK`.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let vring = self.vring(index)?;
        vring.stop().map_err(|error| refuse(error.to_string()))?;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd =
            fd.ok_or_else(|| refuse(format!("queue {index} without a kick eventfd: polling is not served")))?;
        eventfd::check(&fd).map_err(|error| refuse_eventfd(index, "kick", &error))?;
        self.change(index.into(), |vring| vring.kick = Some(fd.into()))?;
        self.start()
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let Some(fd) = &fd {
            eventfd::check_signalled(fd).map_err(|error| refuse_eventfd(index, "call", &error))?;
        }
        self.vring(index.into())?.set_call(fd.map(Into::into)).map_err(|error| refuse(error.to_string()))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let Some(fd) = &fd {
            eventfd::check_signalled(fd).map_err(|error| refuse_eventfd(index, "error", &error))?;
        }
        self.change(index.into(), |vring| vring.error = fd.map(Into::into))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if enable { self.start() } else { vring.stop().map_err(|error| refuse(error.to_string())) }
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut space = self.device.config();
        space.resize(CONFIG_SPACE, 0);
        let start = offset as usize;
        let part = start.checked_add(size as usize).and_then(|end| space.get(start..end));
        part.map(<[u8]>::to_vec).ok_or_else(|| refuse(format!("{size} bytes of configuration at {offset}")))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        // What a guest writes to a read-only field is no reason to lose its connection (virtio 1.3 §2.5.2).
        if !self.device.write_config(offset as usize, bytes) {
            say::limited(format_args!(
                "{}: {} bytes written to read-only configuration at {offset} are ignored",
                self.name,
                bytes.len()
            ));
        }
        Ok(())
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (inflight, file) =
            Inflight::create(asked.num_queues, asked.queue_size).map_err(|e| refuse(chain(&e)))?;
        Ok((inflight, file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let inflight = Inflight::map(given, file).map_err(|error| refuse(chain(&error)))?;
        self.change_all(|state| state.inflight = Some(inflight))
    }

    // Never offered, so the connection refuses them before they come here.

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::LOG_SHMFD))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidMessage)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::SHARED_OBJECT))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::DEVICE_STATE))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::DEVICE_STATE))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InactiveOperation(VhostUserProtocolFeatures::SHMEM))
    }
}
