//! PCI bus 0: a host bridge at 00:00.0 and up to 31 functions, one a slot.
//!
//! Configuration is reached through ports 0xCF8–0xCFF and through the ECAM; the functions' BARs lie in one
//! window of memory. There are no bridges, no I/O BARs, no INTx: interrupts are MSI-X ([`msix`]).
//!
//! A guest may move BARs wherever it wants. A BAR that is not in the window as a whole decodes nowhere; where
//! two overlap, the lower slot answers. Either harms only the guest's own access to its devices.

pub mod config;
pub mod msix;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use domus_startup::lock;
use shared_abi::Slot;
use shared_abi::control::StopReason;

use crate::bus::BusDevice;
use crate::layout::{PCI_WINDOW, PCI_WINDOW_SIZE};
use crate::stop::Stop;
use config::{Config, Identity};

/// The window for BARs.
const WINDOW: Range<u64> = PCI_WINDOW..PCI_WINDOW + PCI_WINDOW_SIZE;

/// Slots of a bus.
const SLOTS: usize = 32;

/// The host bridge: nothing but an identity, Intel's 82G33 (q35), which no driver binds to.
const HOST_BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0x29c0,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The registers behind a function's BAR and capabilities.
///
/// Called on vCPU threads, on several at once, with offsets, widths and values that an untrusted guest chose.
/// Never panic; a read that makes no sense leaves `data` as it is.
pub trait Function: Send + Sync {
    /// Reads at `offset` in the BAR.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` in the BAR.
    fn write(&self, offset: u64, data: &[u8]);
    /// The BAR decodes at `base` from now on, or nowhere. Calls are in order, and none is repeated.
    fn moved(&self, base: Option<u64>);
    /// The MSI-X message control register was written (PCI 3.0 §6.8.2.3).
    fn msix_control(&self, control: u16);
}

/// What [`Root::add`] needs to know of a function.
pub struct Description {
    /// Identity and capabilities; no BAR yet.
    pub config: Config,
    /// Bytes of its memory BAR, a power of two from 4096.
    pub bar_size: u32,
    /// Offset of its MSI-X capability.
    pub msix: usize,
    /// Offset of its virtio configuration access capability (virtio 1.3 §4.1.4.9): a window of
    /// 4 bytes at +16 through which the BAR is accessed, selected by the fields before.
    pub access_window: usize,
}

/// Why a function cannot be on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No slot, or no address for its BAR, is left.
    #[error("a machine has at most {} PCI devices: give the domain fewer", SLOTS - 1)]
    Full,
    /// Another function is in the slot.
    #[error("two devices are to be in PCI slot {0}: each needs its own")]
    Taken(Slot),
}

/// Bus 0.
pub struct Root {
    slots: [Option<Occupant>; SLOTS],
    next_bar: u64,
    /// What the guest wrote to port 0xCF8.
    address: AtomicU32,
}

/// What is in a slot.
struct Occupant {
    config: Mutex<Config>,
    /// Where the BAR decodes, 0 for nowhere. Outside the lock, so that no device waits for another.
    base: AtomicU64,
    device: Option<Device>,
}

struct Device {
    function: Arc<dyn Function>,
    bar_size: u32,
    msix: usize,
    access_window: usize,
}

impl Default for Root {
    fn default() -> Self {
        let bridge =
            Occupant { config: Mutex::new(Config::new(HOST_BRIDGE)), base: AtomicU64::new(0), device: None };
        let mut slots = [const { None }; SLOTS];
        slots[0] = Some(bridge);
        Self { slots, next_bar: WINDOW.start, address: AtomicU32::new(0) }
    }
}

impl Root {
    /// Puts a function into `slot`, or with none into the lowest free one, and gives its BAR an address.
    /// The guest must enable memory decoding itself.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn add(
        &mut self,
        slot: Option<Slot>,
        description: Description,
        function: Arc<dyn Function>,
    ) -> Result<(), BusError> {
        let Description { mut config, bar_size, msix, access_window } = description;
        let free = |slot: &Slot| self.slots[usize::from(slot.number())].is_none();
        let slot = match slot {
            Some(slot) if free(&slot) => slot,
            Some(slot) => return Err(BusError::Taken(slot)),
            None => Slot::all().find(free).ok_or(BusError::Full)?,
        };
        let base = self.next_bar.next_multiple_of(u64::from(bar_size));
        if base + u64::from(bar_size) > WINDOW.end {
            return Err(BusError::Full);
        }
        self.next_bar = base + u64::from(bar_size);
        config.set_bar(base as u32, bar_size);
        let device = Device { function, bar_size, msix, access_window };
        let base = AtomicU64::new(0);
        let occupant = Occupant { config: Mutex::new(config), base, device: Some(device) };
        self.slots[usize::from(slot.number())] = Some(occupant);
        Ok(())
    }

    fn config_read(&self, devfn: u8, offset: usize, data: &mut [u8]) {
        if let Some(slot) = self.slot(devfn) {
            slot.config_read(offset, data);
        }
    }

    fn config_write(&self, devfn: u8, offset: usize, data: &[u8]) {
        if let Some(slot) = self.slot(devfn) {
            slot.config_write(offset, data);
        }
    }

    /// What is in the slot of a device number, as function 0; there are no others.
    fn slot(&self, devfn: u8) -> Option<&Occupant> {
        if devfn & 7 == 0 { self.slots.get(usize::from(devfn >> 3))?.as_ref() } else { None }
    }

    /// The function whose BAR holds all of `length` bytes at `address`, and the offset there.
    fn decode(&self, address: u64, length: usize) -> Option<(&dyn Function, u64)> {
        self.slots.iter().flatten().find_map(|slot| {
            let device = slot.device.as_ref()?;
            let base = slot.base.load(Ordering::Acquire);
            let offset = address.checked_sub(base).filter(|_| base != 0)?;
            let fits = offset.checked_add(length as u64)? <= u64::from(device.bar_size);
            fits.then(|| (device.function.as_ref(), offset))
        })
    }
}

impl Occupant {
    fn config(&self) -> MutexGuard<'_, Config> {
        lock(&self.config)
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let window = self.device.as_ref().filter(|device| offset == device.access_window + 16);
        if let (Some(device), Some((at, length))) = (window, self.selected()) {
            // Without the lock: the access may take as long as any to the BAR.
            let mut value = [0; 4];
            device.function.read(at, &mut value[..length]);
            self.config().write(offset, &value);
        }
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut config = self.config();
        config.write(offset, data);
        let Some(device) = &self.device else { return };
        let end = offset.saturating_add(data.len());
        if offset < device.msix + 4 && end > device.msix + 2 {
            device.function.msix_control(u16::from_le_bytes(config.word(device.msix + 2)));
        }
        // Under the lock, so that a function hears of its moves in order.
        let base = config.decoded(&WINDOW);
        if self.base.swap(base.unwrap_or(0), Ordering::AcqRel) != base.unwrap_or(0) {
            device.function.moved(base);
        }
        drop(config);
        if offset == device.access_window + 16
            && let Some((at, length)) = self.selected()
        {
            let value: [u8; 4] = self.config().word(offset);
            device.function.write(at, &value[..length]);
        }
    }

    /// The access that the guest has selected in the access window: 1, 2 or 4 bytes, aligned, in BAR 0.
    fn selected(&self) -> Option<(u64, usize)> {
        let device = self.device.as_ref()?;
        let config = self.config();
        let [bar] = config.word(device.access_window + 4);
        let at = u32::from_le_bytes(config.word(device.access_window + 8));
        let length = u32::from_le_bytes(config.word(device.access_window + 12));
        let sound =
            bar == 0 && matches!(length, 1 | 2 | 4) && at.is_multiple_of(length) && at < device.bar_size;
        sound.then_some((u64::from(at), length as usize))
    }
}

/// Ports 0xCF8–0xCFF: configuration mechanism #1 (PCI 3.0 §3.2.2.3.2), and the chipset's reset control register, which
/// is a byte at 0xCF9 (Intel ICH9 §13.7.5): a write with bit 2 set resets the machine.
pub struct ConfigPorts {
    root: Arc<Root>,
    stop: Stop,
}

/// The bit of the reset control register that resets the CPUs.
const RESET_CPU: u8 = 1 << 2;

impl ConfigPorts {
    /// The ports of this bus; a reset goes to `stop`.
    pub fn new(root: Arc<Root>, stop: Stop) -> Self {
        Self { root, stop }
    }

    /// Device and function, and offset, of an access to port 0xCFC + `byte`.
    fn target(&self, byte: u64) -> Option<(u8, usize)> {
        let address = self.root.address.load(Ordering::Relaxed);
        // Bit 31 enables; bus 0 is the only one.
        (address & 0x80ff_0000 == 0x8000_0000)
            .then(|| ((address >> 8) as u8, (address & 0xfc) as usize + byte as usize))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0 if data.len() == 4 => {
                data.copy_from_slice(&self.root.address.load(Ordering::Relaxed).to_le_bytes())
            }
            4.. => {
                if let Some((devfn, register)) = self.target(offset - 4) {
                    self.root.config_read(devfn, register, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, <[u8; 4]>::try_from(data)) {
            (1, _) if matches!(data, [value] if value & RESET_CPU != 0) => {
                self.stop.request(StopReason::Reboot)
            }
            (0, Ok(address)) => self.root.address.store(u32::from_le_bytes(address), Ordering::Relaxed),
            (4.., _) => {
                if let Some((devfn, register)) = self.target(offset - 4) {
                    self.root.config_write(devfn, register, data);
                }
            }
            _ => {}
        }
    }
}

/// The ECAM: 4 KiB of configuration space for each function (PCI Express 3.0 §7.2.2).
pub struct Ecam(pub Arc<Root>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.config_read((offset >> 12) as u8, (offset & 0xfff) as usize, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.config_write((offset >> 12) as u8, (offset & 0xfff) as usize, data);
    }
}

/// The memory window with the BARs: [`PCI_WINDOW`].
pub struct Window(pub Arc<Root>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, at)) = self.0.decode(WINDOW.start + offset, data.len()) {
            function.read(at, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, at)) = self.0.decode(WINDOW.start + offset, data.len()) {
            function.write(at, data);
        }
    }
}

#[cfg(test)]
mod tests;
