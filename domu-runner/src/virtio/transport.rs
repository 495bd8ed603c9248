//! One virtio device as a PCI function: its BAR, and the effect of its registers on the backend, KVM and interrupts.
//!
//! ```text
//! BAR 0   0x0000 common configuration   0x1000 ISR status   0x2000 device configuration
//!         0x3000 doorbells, 4 bytes for each queue           0x4000 MSI-X table   0x5000 pending bits
//! ```
//!
//! The queues' doorbells are ioeventfds wherever the BAR decodes; a write that reaches this process all the same (by
//! way of the access window, or while the BAR moves) writes the eventfd. There is no INTx, so the ISR status reads 0.
//!
//! What a driver's register asks of the backend is done by the device's own thread (`Wish`), so that no vCPU waits
//! for a backend longer than [`COURTESY`]: a reset is under way until the status reads 0. It ends when nobody writes to
//! the driver's memory any more. Of a backend that is lost, dom0 knows that: it says so, or attaches another one, which
//! it does not before the kernel has finished the last operation of the one before.
//!
//! Locks, in this order: PCI slot, `link`, `registers`, `interrupts`. A vCPU takes `registers` and never `link`.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domus_startup::{lock, threads};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use shared_abi::DeviceId;
use shared_abi::control::{DeviceConfig, DeviceFeatures, DeviceSpec};
use shared_abi::limits::{MAX_DEVICE_CONFIG, MAX_QUEUE_SIZE, MAX_QUEUES};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, BackendError, Session, Vring};
use super::common::{self, Action, Common, PASSED_FEATURES};
use super::watch::Watcher;
use crate::irq::IrqRouter;
use crate::memory::{GuestRam, RamRegion};
use crate::pci::config::{Config, Identity};
use crate::pci::msix::{self, Interrupts, MsixError, NO_VECTOR};
use crate::pci::{Description, Function};
use crate::rules::{self, Gate};
use crate::timeline::Mark;

/// Bytes of the BAR.
const BAR_SIZE: u32 = 0x8000;
/// Where the structures are in the BAR.
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
/// Each structure has this much room.
const ROOM: u64 = 0x1000;
/// `notify_off_multiplier`.
const DOORBELL: u32 = 4;

/// How long a vCPU waits for what it asks of the backend: it is there nearly always, and quick.
pub const COURTESY: Duration = Duration::from_millis(50);

/// Red Hat's vendor id, as virtio 1.3 §4.1.2 wants it; the device id is 0x1040 plus the type.
const VENDOR: u16 = 0x1af4;
/// Id of a vendor-specific capability, which virtio's are (§4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;

/// Why a device cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A value of dom0's description is out of range.
    #[error("device {device}: {field} is {value}, which is not {accepted}")]
    Description {
        /// The device.
        device: DeviceId,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// Its backend cannot serve it.
    #[error("device {device}: no use of its backend")]
    Backend {
        /// The device.
        device: DeviceId,
        /// Why.
        source: BackendError,
    },
    /// Its interrupts cannot be made.
    #[error("device {device}: no interrupts")]
    Interrupts {
        /// The device.
        device: DeviceId,
        /// Why.
        source: MsixError,
    },
    /// Its thread cannot be started.
    #[error("device {device}: cannot start its thread")]
    Thread {
        /// The device.
        device: DeviceId,
        /// Why.
        source: std::io::Error,
    },
    /// Its doorbells cannot be made.
    #[error("device {device}: cannot make an eventfd for a queue")]
    EventFd {
        /// The device.
        device: DeviceId,
        /// Why.
        source: std::io::Error,
    },
}

/// A virtio device of any type, served by a vhost-user backend.
pub struct Transport {
    device: DeviceId,
    vm: Arc<VmFd>,
    ram: GuestRam,
    regions: Vec<RamRegion>,
    /// One for each queue: written by the guest, read by the backend.
    kicks: Vec<EventFd>,
    /// One for each queue: written by the backend. With the next, the sources of `interrupts`.
    calls: Vec<Arc<EventFd>>,
    /// Tells the guest of a changed configuration.
    config_changed: Arc<EventFd>,
    watcher: Arc<Watcher>,
    first_driver: Mark,
    /// Bytes of the configuration space that the backend is asked for, if it is.
    config_size: Option<u16>,
    /// What is offered beside, or not of, what the backend offers.
    features: DeviceFeatures,
    /// Where the doorbells are ioeventfds.
    doorbells: Mutex<Option<u64>>,
    interrupts: Mutex<Interrupts>,
    registers: Mutex<Registers>,
    /// There is a wish, or one has been done.
    changed: Condvar,
    link: Mutex<Link>,
}

/// What the driver sees, and what it has asked for.
struct Registers {
    common: Common,
    config: Vec<u8>,
    wish: Wish,
    /// The device's thread is doing what was wished.
    busy: bool,
}

/// What the backend is to be told. At most one of each: a driver that asks for more has not waited.
#[derive(Default)]
struct Wish {
    /// A write to its configuration space.
    write: Option<(u32, Vec<u8>)>,
    /// DRIVER_OK.
    start: Option<Session>,
    /// The reset that the registers wait for.
    reset: bool,
}

impl Wish {
    fn is_none(&self) -> bool {
        self.write.is_none() && self.start.is_none() && !self.reset
    }
}

/// Who serves the device, and what.
struct Link {
    /// None while the device stands still.
    backend: Option<Backend>,
    /// Since when it has none.
    since: Instant,
    /// What the backend runs, or would if it were there. From DRIVER_OK to the reset.
    session: Option<Session>,
    /// The backend has been told of rings, and has not said that it has stopped them.
    served: bool,
    /// One that was lost may still write to the guest's memory.
    remains: bool,
    /// A reset waits for the end of that.
    waits: bool,
}

impl Transport {
    /// Makes the PCI function that is to be given to [`Root::add`](crate::pci::Root::add), without a backend. Makes
    /// eventfds and a thread, so before the sandbox is sealed.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn new(
        device: &DeviceSpec,
        ram: &GuestRam,
        vm: Arc<VmFd>,
        router: Arc<IrqRouter>,
        watcher: &Arc<Watcher>,
        gate: &Gate,
    ) -> Result<(Description, Arc<Self>), TransportError> {
        check(device)?;
        let id = &device.id;
        let (config, config_size) = match &device.config {
            DeviceConfig::Given(config) => (config.clone(), None),
            DeviceConfig::FromBackend(size) => (vec![0; (*size).into()], Some(*size)),
        };
        let vectors = device.queues + 1;
        // A source for each queue, and the last for the configuration.
        let interrupts = Interrupts::new(router, vectors, vectors)
            .map_err(|source| TransportError::Interrupts { device: id.clone(), source })?;
        let kicks = (0..device.queues)
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<Result<_, _>>()
            .map_err(|source| TransportError::EventFd { device: id.clone(), source })?;
        let description = describe(device, config.len() as u32);
        let event = |source| TransportError::EventFd { device: id.clone(), source };
        let mut calls = interrupts.events();
        let config_changed = calls.pop().ok_or_else(|| event(std::io::ErrorKind::NotFound.into()))?;
        let common = Common::new(0, device.queues, device.queue_size, vectors);
        let link = Link {
            backend: None,
            since: Instant::now(),
            session: None,
            served: false,
            remains: false,
            waits: false,
        };
        let transport = Arc::new(Self {
            device: id.clone(),
            vm,
            regions: ram.regions(),
            ram: ram.clone(),
            kicks,
            calls,
            config_changed,
            watcher: watcher.clone(),
            first_driver: Mark::default(),
            config_size,
            features: device.features,
            doorbells: Mutex::new(None),
            interrupts: Mutex::new(interrupts),
            registers: Mutex::new(Registers { common, config, wish: Wish::default(), busy: false }),
            changed: Condvar::new(),
            link: Mutex::new(link),
        });
        let (own, ticket) = (transport.clone(), gate.ticket(rules::DEVICE));
        threads::start(format!("dev {id}"), move || ticket.run(|| own.serve()))
            .map_err(|source| TransportError::Thread { device: id.clone(), source })?;
        Ok((description, transport))
    }

    /// Takes up the connection to its first backend, which decides what the guest is offered. Before the guest runs,
    /// and behind the seal: a backend may be anybody's.
    ///
    /// # Errors
    /// [`TransportError::Backend`].
    pub fn connect(&self, socket: OwnedFd) -> Result<(), TransportError> {
        let failed = |source| TransportError::Backend { device: self.device.clone(), source };
        let mut backend =
            Backend::connect(&self.device, socket, self.kicks.len() as u16, &self.watcher).map_err(failed)?;
        let config = self.config_size.map(|size| backend.read_config(size)).transpose().map_err(failed)?;
        let DeviceFeatures { own, withheld } = self.features;
        let features = (backend.features() & !withheld | own) & PASSED_FEATURES;
        lock(&self.link).backend = Some(backend);
        let mut registers = lock(&self.registers);
        registers.common.offer(features);
        registers.config = config.unwrap_or_else(|| std::mem::take(&mut registers.config));
        Ok(())
    }

    fn write_common(&self, offset: usize, data: &[u8]) {
        let mut registers = lock(&self.registers);
        match registers.common.write(offset, data, &self.regions) {
            Action::None => {}
            Action::Vectors => {
                let queues = registers.common.queues().iter().map(|queue| queue.vector);
                lock(&self.interrupts).bind(queues.chain([registers.common.config_vector()]));
            }
            Action::Start => {
                let session = self.session(&registers.common);
                registers.wish.start = Some(session);
                self.wait(registers);
            }
            Action::Reset => {
                lock(&self.interrupts).bind(std::iter::repeat_n(NO_VECTOR, self.kicks.len() + 1));
                // What has not been begun is not done.
                registers.wish = Wish { reset: true, ..Wish::default() };
                self.wait(registers);
            }
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut registers = lock(&self.registers);
        let within = offset.checked_add(data.len()).is_some_and(|end| end <= registers.config.len());
        // Only the backend's own may be written.
        if self.config_size.is_some() && within && registers.wish.is_none() {
            registers.wish.write = Some((offset as u32, data.to_vec()));
            self.wait(registers);
        }
    }

    /// Has the device's thread do what is wished, and waits for it a moment.
    fn wait(&self, registers: MutexGuard<'_, Registers>) {
        self.changed.notify_all();
        let undone = |registers: &mut Registers| registers.busy || !registers.wish.is_none();
        let waited = self.changed.wait_timeout_while(registers, COURTESY, undone);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What the driver has set up, for a backend.
    fn session(&self, common: &Common) -> Session {
        let queues = common.queues().iter().enumerate().filter(|(_, queue)| queue.enabled);
        // They were checked when they were enabled, so none is left out.
        let vring = |(index, queue): (usize, &common::Queue)| {
            // A driver starts both indices at 0 (virtio 1.3 §2.7).
            let rings = queue.rings(&self.regions)?;
            Some(Vring { index, size: queue.size, rings, used: queue.device, base: 0 })
        };
        let features = common.features() & !self.features.own;
        Session { features, vrings: queues.filter_map(vring).collect(), log: None }
    }

    /// Does what is wished, for ever.
    fn serve(&self) {
        loop {
            let Wish { write, start, reset } = {
                let mut registers = lock(&self.registers);
                while registers.wish.is_none() {
                    let woken = self.changed.wait(registers);
                    registers = woken.unwrap_or_else(PoisonError::into_inner);
                }
                registers.busy = true;
                std::mem::take(&mut registers.wish)
            };
            let mut link = lock(&self.link);
            if let (Some((offset, data)), Some(size)) = (write, self.config_size) {
                let config = self.ask(&mut link, |backend| {
                    backend.write_config(offset, &data)?;
                    backend.read_config(size)
                });
                if let Some(config) = config {
                    lock(&self.registers).config = config;
                }
            }
            if let Some(session) = start {
                self.start(&mut link, session);
            }
            let is_over = reset && self.stop(&mut link);
            link.waits |= reset && !is_over;
            let mut registers = lock(&self.registers);
            drop(link);
            if is_over {
                self.finish_reset(&mut registers);
            }
            registers.busy = false;
            self.changed.notify_all();
        }
    }

    fn start(&self, link: &mut Link, mut session: Session) {
        // Whatever becomes of it: the backend may have begun.
        link.served = link.backend.is_some();
        // Here and not when the device is reset: then the backend may not have been there to be told. And only here:
        // a backend that takes another's place goes on with what the driver has set.
        self.ask(link, |backend| {
            backend.forget_driver()?;
            backend.start(&mut session, &self.ram, &self.kicks, &self.calls)
        });
        self.first_driver.set();
        link.session = Some(session);
    }

    /// Ends the session. True if nobody writes to the guest's memory any more.
    fn stop(&self, link: &mut Link) -> bool {
        if let Some(session) = link.session.take()
            && self.ask(link, |backend| backend.stop(&session)).is_some()
        {
            link.served = false;
        }
        !link.served && !link.remains
    }

    /// The next driver finds the device as new.
    fn finish_reset(&self, registers: &mut Registers) {
        // What was meant for the driver before is nothing to the next.
        lock(&self.interrupts).drain();
        for kick in &self.kicks {
            let _ = kick.read();
        }
        registers.common.finish_reset();
    }

    /// Lets the backend finish what it has in flight, and hangs up on it: the device stands still. True if the backend
    /// has said that it has finished.
    pub fn detach(&self) -> bool {
        let mut link = lock(&self.link);
        let now = Instant::now();
        if let Some(session) = link.session.take() {
            if self.ask(&mut link, |backend| backend.stop(&session)).is_some() {
                link.served = false;
            }
            link.session = Some(session);
        }
        let Some(backend) = link.backend.take() else { return false };
        backend.let_go();
        link.since = now;
        true
    }

    /// Gives the device another backend, which goes on where the one before it stopped or died; returns how long the
    /// device has stood still. Nothing of the one before is at work any more.
    ///
    /// # Errors
    /// [`TransportError::Backend`]; the device stands still.
    pub fn attach(&self, socket: OwnedFd) -> Result<Duration, TransportError> {
        let failed = |source| TransportError::Backend { device: self.device.clone(), source };
        let mut link = lock(&self.link);
        if let Some(old) = link.backend.take() {
            link.since = old.lost_at().unwrap_or_else(Instant::now);
            old.let_go();
        }
        self.nothing_remains(&mut link);
        let mut backend =
            Backend::connect(&self.device, socket, self.kicks.len() as u16, &self.watcher).map_err(failed)?;
        let missing = lock(&self.registers).common.needed() & !(backend.features() | self.features.own);
        if missing != 0 {
            return Err(failed(BackendError::FewerFeatures(missing)));
        }
        let new = self.config_size.map(|size| backend.read_config(size)).transpose().map_err(failed)?;
        let Link { session, served, .. } = &mut *link;
        if let Some(session) = session {
            for vring in &mut session.vrings {
                // The index that the last backend has shown: nothing behind it was given back.
                let used: Result<u16, _> = self.ram.memory.read_obj(GuestAddress(vring.used + 2));
                vring.base = used.map_or(0, u16::from_le);
            }
            *served = true;
            backend.start(session, &self.ram, &self.kicks, &self.calls).map_err(|error| {
                // It is hung up on, and may have begun.
                link.remains = true;
                failed(error)
            })?;
            // The last call of the one before may be lost with it. One too many is harmless.
            self.calls.iter().for_each(|call| _ = call.write(1));
        }
        link.backend = Some(backend);
        let still = link.since.elapsed();
        if let Some(new) = new {
            self.take_config(&mut lock(&self.registers), new);
        }
        Ok(still)
    }

    /// Nothing of a backend that was lost is at work any more. A backend that is there has said so itself.
    pub fn gone(&self) {
        let mut link = lock(&self.link);
        let lost_at = link.backend.as_ref().map(Backend::lost_at);
        match lost_at {
            Some(None) => return,
            Some(Some(lost_at)) => (link.backend, link.since) = (None, lost_at),
            None => {}
        }
        self.nothing_remains(&mut link);
    }

    fn nothing_remains(&self, link: &mut Link) {
        (link.served, link.remains) = (false, false);
        if std::mem::take(&mut link.waits) {
            self.finish_reset(&mut lock(&self.registers));
        }
    }

    /// `CLOCK_MONOTONIC` in nanoseconds when a driver first took it into use; none before it.
    pub fn first_driver(&self) -> Option<u64> {
        self.first_driver.get()
    }

    /// True if the device has no backend, as far as that can be said without waiting for one.
    pub fn stands_still(&self) -> bool {
        let Ok(link) = self.link.try_lock() else { return false };
        link.backend.as_ref().is_none_or(|backend| backend.lost_at().is_some())
    }

    /// Asks the backend for the configuration space again.
    pub fn read_config(&self) {
        let mut link = lock(&self.link);
        let Some(size) = self.config_size else { return };
        if let Some(new) = self.ask(&mut link, |backend| backend.read_config(size)) {
            self.take_config(&mut lock(&self.registers), new);
        }
    }

    /// Takes what the backend says of the configuration space, and tells the guest if it is something else.
    fn take_config(&self, registers: &mut Registers, new: Vec<u8>) {
        if registers.config != new {
            registers.config = new;
            registers.common.config_changed();
            // A counter that is full has its interrupt pending already.
            let _ = self.config_changed.write(1);
        }
    }

    /// Asks the backend, if it is still there. One that fails is given up; the watcher reports it.
    fn ask<T>(
        &self,
        link: &mut Link,
        request: impl FnOnce(&mut Backend) -> Result<T, BackendError>,
    ) -> Option<T> {
        match request(link.backend.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(error) => {
                // Once for a connection, so no guest can flood the log with it.
                let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
                domus_startup::say(format_args!(
                    "domu-runner: device {} stands still: {error}{source}",
                    self.device
                ));
                (link.backend, link.since) = (None, Instant::now());
                link.remains |= std::mem::take(&mut link.served);
                None
            }
        }
    }

    fn kick(&self, offset: u64) {
        let queue = (offset / u64::from(DOORBELL)) as usize;
        if let (true, Some(kick)) = (offset.is_multiple_of(DOORBELL.into()), self.kicks.get(queue)) {
            // It fails only when the counter is full, and then the backend has enough to read.
            let _ = kick.write(1);
        }
    }

    /// Address of each queue's doorbell with the BAR at `base`.
    fn doorbells(&self, base: u64) -> impl Iterator<Item = (&EventFd, IoEventAddress)> {
        let address = move |queue| base + u64::from(NOTIFY) + u64::from(DOORBELL) * queue;
        self.kicks.iter().zip(0u64..).map(move |(kick, queue)| (kick, IoEventAddress::Mmio(address(queue))))
    }
}

impl Function for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = (offset % ROOM) as usize;
        match (offset - offset % ROOM) as u32 {
            COMMON => lock(&self.registers).common.read(within, data),
            DEVICE => {
                let registers = lock(&self.registers);
                for (byte, &value) in data.iter_mut().zip(registers.config.iter().skip(within)) {
                    *byte = value;
                }
            }
            TABLE => lock(&self.interrupts).read_table(within, data),
            PENDING => lock(&self.interrupts).read_pending(within, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let within = (offset % ROOM) as usize;
        match (offset - offset % ROOM) as u32 {
            COMMON => self.write_common(within, data),
            DEVICE => self.write_config(within, data),
            NOTIFY => self.kick(within as u64),
            TABLE => lock(&self.interrupts).write_table(within, data),
            _ => {}
        }
    }

    fn moved(&self, base: Option<u64>) {
        let mut doorbells = lock(&self.doorbells);
        // KVM refuses a doorbell that another device has at this address, or one too many: those
        // queues' kicks come as exits. So it refuses to remove what it has not.
        if let Some(old) = doorbells.take() {
            for (kick, address) in self.doorbells(old) {
                let _ = self.vm.unregister_ioevent(kick, &address, NoDatamatch);
            }
        }
        if let Some(new) = base {
            for (kick, address) in self.doorbells(new) {
                let _ = self.vm.register_ioevent(kick, &address, NoDatamatch);
            }
        }
        *doorbells = base;
    }

    fn msix_control(&self, control: u16) {
        lock(&self.interrupts).set_control(control);
    }
}

fn check(device: &DeviceSpec) -> Result<(), TransportError> {
    let config = match &device.config {
        DeviceConfig::Given(config) => config.len() as u64,
        DeviceConfig::FromBackend(size) => (*size).into(),
    };
    let size = device.queue_size;
    let checks = [
        ("virtio_type", device.virtio_type.into(), (1..64).contains(&device.virtio_type), "1 to 63"),
        ("pci_class", device.pci_class.into(), device.pci_class < 1 << 24, "24 bits"),
        ("queues", device.queues.into(), (1..=MAX_QUEUES).contains(&device.queues), "1 to 64"),
        (
            "queue_size",
            size.into(),
            size.is_power_of_two() && size <= MAX_QUEUE_SIZE,
            "a power of two up to 1024",
        ),
        ("the length of config", config, config <= MAX_DEVICE_CONFIG as u64, "at most 256"),
    ];
    match checks.into_iter().find(|(_, _, good, _)| !good) {
        None => Ok(()),
        Some((field, value, _, accepted)) => {
            Err(TransportError::Description { device: device.id.clone(), field, value, accepted })
        }
    }
}

/// The function's identity and capabilities (virtio 1.3 §4.1.4).
fn describe(device: &DeviceSpec, config_length: u32) -> Description {
    let mut config = Config::new(Identity {
        vendor: VENDOR,
        device: 0x1040 + device.virtio_type,
        revision: 1,
        class: device.pci_class,
        subsystem_vendor: VENDOR,
        subsystem: 0x1100,
    });
    let (body, mask) = msix::capability(device.queues + 1, TABLE, PENDING);
    let msix = config.add_capability(msix::CAPABILITY, &body, &mask);
    let mut structure = |kind: u8, offset: u32, length: u32, more: &[u8], mask: &[u8]| {
        // The body starts after id and next pointer: cap_len, cfg_type, bar, id, two of padding, offset, length.
        let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
        body.extend(offset.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(more);
        config.add_capability(VENDOR_CAPABILITY, &body, mask)
    };
    structure(1, COMMON, common::LENGTH as u32, &[], &[]);
    structure(2, NOTIFY, DOORBELL * u32::from(device.queues), &DOORBELL.to_le_bytes(), &[]);
    structure(3, ISR, 1, &[], &[]);
    if config_length > 0 {
        structure(4, DEVICE, config_length, &[], &[]);
    }
    // bar, offset, length and pci_cfg_data are the driver's to write.
    let mut mask = [0xff; 18];
    mask[..2].fill(0);
    mask[3..6].fill(0);
    let access_window = structure(5, 0, 0, &[0; 4], &mask);
    Description { config, bar_size: BAR_SIZE, msix, access_window }
}

#[cfg(test)]
mod tests;
