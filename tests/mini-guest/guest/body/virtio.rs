//! Virtio over PCI (virtio 1.3 §4.1), modern only: finds the structures, negotiates, sets queues up.

use super::pci::{self, Device};
use super::ring::Queue;
use super::{Failed, clock, ensure, irq, sys};

/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;

/// Offsets in the common configuration structure (§4.1.4.3).
pub mod common {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// Device status bits (§2.1).
pub mod status {
    #![allow(missing_docs, reason = "the specification's names")]
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
}

/// One of the structures in a BAR.
#[derive(Clone, Copy, Default)]
pub struct Window {
    /// Physical address.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// The MSI-X structures.
#[derive(Clone, Copy)]
pub struct Msix {
    /// Offset of the capability.
    pub cap: u8,
    /// Address of the table.
    pub table: u64,
    /// Entries.
    pub count: u16,
    /// Address of the pending bits.
    pub pba: u64,
}

/// A virtio device with its BARs placed.
#[derive(Clone, Copy)]
pub struct Virtio {
    /// Its function.
    pub pci: Device,
    /// Common configuration.
    pub common: Window,
    /// Notifications.
    pub notify: Window,
    /// `notify_off_multiplier`.
    pub notify_step: u64,
    /// ISR status.
    pub isr: Window,
    /// The device's own configuration.
    pub config: Window,
    /// MSI-X.
    pub msix: Msix,
}

/// The functions that are virtio devices of type `kind` (0: of any).
pub fn functions(kind: u16) -> impl Iterator<Item = Device> {
    pci::devices().filter(move |device| {
        let id = device.id();
        device.vendor() == 0x1af4 && (0x1040..0x1080).contains(&id) && (kind == 0 || id == 0x1040 + kind)
    })
}

impl Virtio {
    /// Opens the `nth` device of type `kind`.
    pub fn open(kind: u16, nth: usize) -> Result<Self, Failed> {
        let pci = functions(kind).nth(nth);
        ensure!(pci.is_some(), "there is no virtio device {nth} of type {kind}");
        pci.ok_or(Failed).and_then(Self::from_pci)
    }

    /// Finds the structures of a virtio function.
    pub fn from_pci(pci: Device) -> Result<Self, Failed> {
        let mut found = [Window::default(); 5];
        let (mut step, mut msix) = (0, None);
        for (cap, id) in pci.capabilities() {
            match id {
                0x09 => {
                    let (kind, bar) = (usize::from(pci.read8(cap + 3)), pci.read8(cap + 4));
                    if (1..=4).contains(&kind) && found[kind].len == 0 {
                        let base = pci.place(bar);
                        ensure!(
                            base != 0,
                            "a virtio capability of type {kind} is in BAR {bar}, which is nowhere"
                        );
                        let (offset, len) = (pci.read32(cap + 8), pci.read32(cap + 12));
                        found[kind] = Window { at: base + u64::from(offset), len: u64::from(len) };
                        if kind == 2 {
                            step = u64::from(pci.read32(cap + 16));
                        }
                    }
                }
                0x11 => {
                    let place = |at: u8| {
                        let value = pci.read32(at);
                        pci.place((value & 7) as u8) + u64::from(value & !7)
                    };
                    let count = (pci.read16(cap + 2) & 0x7ff) + 1;
                    msix = Some(Msix { cap, table: place(cap + 4), count, pba: place(cap + 8) });
                }
                _ => {}
            }
        }
        let [_, common, notify, isr, config] = found;
        ensure!(common.len >= 0x38 && notify.len >= 2 && isr.len >= 1, "a virtio structure is missing");
        ensure!(msix.is_some(), "there is no MSI-X capability");
        let msix = msix.ok_or(Failed)?;
        pci.enable(true);
        Ok(Self { pci, common, notify, notify_step: step, isr, config, msix })
    }

    /// Reads the device status.
    pub fn status(&self) -> u8 {
        sys::read8(self.common.at + common::DEVICE_STATUS)
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u8) {
        sys::write8(self.common.at + common::DEVICE_STATUS, status);
    }

    /// Resets the device; it must say so within 10 s.
    pub fn reset(&self) -> Result<(), Failed> {
        self.set_status(0);
        let deadline = clock::deadline(10_000);
        while self.status() != 0 {
            ensure!(sys::tsc() < deadline, "device status is {:#x} 10 s after a reset", self.status());
            clock::spin(100);
        }
        Ok(())
    }

    /// All features the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            sys::write32(self.common.at + common::DEVICE_FEATURE_SELECT, select);
            u64::from(sys::read32(self.common.at + common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Says which features the driver takes.
    pub fn accept(&self, features: u64) {
        for select in 0..2 {
            sys::write32(self.common.at + common::DRIVER_FEATURE_SELECT, select);
            sys::write32(self.common.at + common::DRIVER_FEATURE, (features >> (32 * select)) as u32);
        }
    }

    /// Reset to FEATURES_OK, taking what is both `wanted` and offered (VERSION_1 always); returns what was taken.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, Failed> {
        self.reset()?;
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.offered();
        ensure!(offered & VERSION_1 != 0, "VERSION_1 is not among the offered features {offered:#x}");
        let taken = offered & (wanted | VERSION_1);
        self.accept(taken);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        ensure!(
            self.status() & status::FEATURES_OK != 0,
            "the device refuses the features {taken:#x} it offers"
        );
        self.msix_control(true, false);
        Ok(taken)
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        sys::read16(self.common.at + common::NUM_QUEUES)
    }

    /// Selects a queue.
    pub fn select(&self, index: u16) {
        sys::write16(self.common.at + common::QUEUE_SELECT, index);
    }

    /// Makes queue `index` with at most `size` entries, its interrupts on MSI-X entry and vector as given.
    pub fn queue(&self, index: u16, size: u16, features: u64, entry: u16) -> Result<Queue, Failed> {
        self.select(index);
        let most = sys::read16(self.common.at + common::QUEUE_SIZE);
        ensure!(most > 0 && most.is_power_of_two(), "queue {index} has a size of {most}");
        let size = size.min(most);
        sys::write16(self.common.at + common::QUEUE_SIZE, size);
        self.msix_entry(entry, vector(entry), false);
        sys::write16(self.common.at + common::QUEUE_MSIX_VECTOR, entry);
        let seen = sys::read16(self.common.at + common::QUEUE_MSIX_VECTOR);
        ensure!(seen == entry, "queue {index} got MSI-X entry {seen} instead of {entry}");
        let off = sys::read16(self.common.at + common::QUEUE_NOTIFY_OFF);
        let notify = self.notify.at + u64::from(off) * self.notify_step;
        let queue = Queue::new(index, size, notify, features);
        self.addresses(queue.desc, queue.avail, queue.used);
        sys::write16(self.common.at + common::QUEUE_ENABLE, 1);
        ensure!(
            sys::read16(self.common.at + common::QUEUE_ENABLE) == 1,
            "queue {index} does not stay enabled"
        );
        Ok(queue)
    }

    /// Writes the selected queue's three addresses, each as two halves.
    pub fn addresses(&self, desc: u64, driver: u64, device: u64) {
        let places =
            [(common::QUEUE_DESC, desc), (common::QUEUE_DRIVER, driver), (common::QUEUE_DEVICE, device)];
        for (register, value) in places {
            sys::write32(self.common.at + register, value as u32);
            sys::write32(self.common.at + register + 4, (value >> 32) as u32);
        }
    }

    /// Lets the device go.
    pub fn go(&self) -> Result<(), Failed> {
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
        let seen = self.status();
        ensure!(seen & 0xc0 == 0, "device status is {seen:#x} after DRIVER_OK");
        Ok(())
    }

    /// MSI-X enable and function mask.
    pub fn msix_control(&self, enable: bool, mask: bool) {
        let value = u16::from(enable) << 15 | u16::from(mask) << 14;
        self.pci.write16(self.msix.cap + 2, value);
    }

    /// Points MSI-X table entry `entry` to `vector` of this CPU, or masks it.
    pub fn msix_entry(&self, entry: u16, vector: u8, masked: bool) {
        let at = self.msix.table + u64::from(entry) * 16;
        sys::write32(at + 12, 1);
        sys::write32(at, 0xfee0_0000 | u32::from(irq::apic_id()) << 12);
        sys::write32(at + 4, 0);
        sys::write32(at + 8, u32::from(vector));
        sys::write32(at + 12, u32::from(masked));
    }

    /// Masks or unmasks one entry without touching the rest.
    pub fn msix_mask(&self, entry: u16, masked: bool) {
        sys::write32(self.msix.table + u64::from(entry) * 16 + 12, u32::from(masked));
    }

    /// Whether an entry's pending bit is set.
    pub fn msix_pending(&self, entry: u16) -> bool {
        sys::read64(self.msix.pba + u64::from(entry / 64) * 8) >> (entry % 64) & 1 != 0
    }
}

/// The interrupt vector that goes with an MSI-X entry.
pub fn vector(entry: u16) -> u8 {
    irq::DEVICES + (entry as u8).min(0x3f)
}
