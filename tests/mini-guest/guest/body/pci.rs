//! PCI configuration by CF8/CFC (and ECAM where a check asks for it), base address registers, capabilities.

use super::sys;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where [`Device::place`] puts what firmware has not placed: next free address.
static WINDOW: AtomicU64 = AtomicU64::new(0xc000_0000);
/// What it must leave alone: the ECAM.
static ECAM: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Says where the ECAM is, and where free MMIO space begins, if the command line knows better than 3 GiB.
pub fn init(ecam: Option<(u64, u8)>, window: Option<u64>) {
    if let Some((base, last_bus)) = ecam {
        ECAM[0].store(base, Ordering::Relaxed);
        ECAM[1].store(base + ((u64::from(last_bus) + 1) << 20), Ordering::Relaxed);
    }
    if let Some(at) = window {
        WINDOW.store(at, Ordering::Relaxed);
    }
}

/// The ECAM's addresses; empty without an MCFG.
pub fn ecam() -> Range<u64> {
    ECAM[0].load(Ordering::Relaxed)..ECAM[1].load(Ordering::Relaxed)
}

fn take(len: u64) -> u64 {
    let mut at = WINDOW.load(Ordering::Relaxed).next_multiple_of(len.max(4096));
    if at < ecam().end && at + len > ecam().start {
        at = ecam().end.next_multiple_of(len.max(4096));
    }
    WINDOW.store(at + len, Ordering::Relaxed);
    at
}

/// A function on bus 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Device and function: `device << 3 | function`.
    pub devfn: u8,
}

/// A memory base address register, sized.
#[derive(Clone, Copy)]
pub struct Bar {
    /// Its index, the lower of the two if it is 64 bits wide.
    pub index: u8,
    /// Where it is.
    pub at: u64,
    /// Bytes, a power of two.
    pub len: u64,
    /// 64 bits wide.
    pub wide: bool,
}

/// A capability's offset and id.
pub type Capability = (u8, u8);

/// Offsets in the configuration header.
pub const COMMAND: u8 = 0x04;

impl Device {
    /// Sets the address port; `offset` may be any.
    pub fn select(self, offset: u8) {
        sys::outl(0xcf8, 0x8000_0000 | u32::from(self.devfn) << 8 | u32::from(offset & 0xfc));
    }

    /// Reads a byte.
    pub fn read8(self, offset: u8) -> u8 {
        self.select(offset);
        sys::inb(0xcfc + u16::from(offset & 3))
    }

    /// Reads 16 bits at an even offset.
    pub fn read16(self, offset: u8) -> u16 {
        self.select(offset);
        sys::inw(0xcfc + u16::from(offset & 2))
    }

    /// Reads 32 bits at a multiple of 4.
    pub fn read32(self, offset: u8) -> u32 {
        self.select(offset);
        sys::inl(0xcfc)
    }

    /// Writes 16 bits at an even offset.
    pub fn write16(self, offset: u8, value: u16) {
        self.select(offset);
        sys::outw(0xcfc + u16::from(offset & 2), value);
    }

    /// Writes 32 bits at a multiple of 4.
    pub fn write32(self, offset: u8, value: u32) {
        self.select(offset);
        sys::outl(0xcfc, value);
    }

    /// Address of the function's configuration in the ECAM.
    pub fn ecam(self) -> Option<u64> {
        (!ecam().is_empty()).then(|| ecam().start + (u64::from(self.devfn) << 12))
    }

    /// Vendor id, `0xffff` where no function is.
    pub fn vendor(self) -> u16 {
        self.read16(0)
    }

    /// Device id.
    pub fn id(self) -> u16 {
        self.read16(2)
    }

    /// Memory and bus mastering on, or off.
    pub fn enable(self, on: bool) {
        let command = self.read16(COMMAND);
        let wanted = if on { command | 0x406 } else { command & !0x6 };
        if wanted != command {
            self.write16(COMMAND, wanted);
        }
    }

    /// A memory BAR, sized with decoding off as PCI 3.0 §6.2.5.1 asks.
    pub fn bar(self, index: u8) -> Option<Bar> {
        let register = 0x10 + index * 4;
        let low = self.read32(register);
        if low & 1 != 0 {
            return None;
        }
        let wide = low & 6 == 4 && index < 5;
        let command = self.read16(COMMAND);
        self.write16(COMMAND, command & !3);
        let high = if wide { self.read32(register + 4) } else { 0 };
        self.write32(register, u32::MAX);
        let mut mask = u64::from(self.read32(register) & !0xf) | 0xffff_ffff_0000_0000;
        self.write32(register, low);
        if wide {
            self.write32(register + 4, u32::MAX);
            mask = mask & 0xffff_ffff | u64::from(self.read32(register + 4)) << 32;
            self.write32(register + 4, high);
        }
        self.write16(COMMAND, command);
        let len = (!mask).wrapping_add(1);
        (mask & 0xffff_fff0 != 0 && len.is_power_of_two()).then(|| Bar {
            index,
            at: u64::from(low & !0xf) | u64::from(high) << 32,
            len,
            wide,
        })
    }

    /// Moves a BAR.
    pub fn set_bar(self, bar: Bar, at: u64) {
        self.write32(0x10 + bar.index * 4, at as u32);
        if bar.wide {
            self.write32(0x14 + bar.index * 4, (at >> 32) as u32);
        }
    }

    /// All memory BARs.
    pub fn bars(self) -> impl Iterator<Item = Bar> {
        let mut index = 0;
        core::iter::from_fn(move || {
            while index < 6 {
                let bar = self.bar(index);
                index += if bar.is_some_and(|bar| bar.wide) { 2 } else { 1 };
                if bar.is_some() {
                    return bar;
                }
            }
            None
        })
    }

    /// Where a memory BAR is, read without sizing it: a machine has to tear down and build up much for that.
    pub fn bar_base(self, index: u8) -> u64 {
        let low = if index < 6 { self.read32(0x10 + index * 4) } else { 1 };
        if low & 1 != 0 {
            return 0;
        }
        let high = if low & 6 == 4 && index < 5 { self.read32(0x14 + index * 4) } else { 0 };
        u64::from(low & !0xf) | u64::from(high) << 32
    }

    /// Gives an address below 4 GiB to memory BAR `index` if it has none there; returns where it is.
    pub fn place(self, index: u8) -> u64 {
        let base = self.bar_base(index);
        if base != 0 && base < 0xfec0_0000 {
            return base;
        }
        self.bar(index).map_or(0, |bar| {
            let at = take(bar.len);
            self.set_bar(bar, at);
            at
        })
    }

    /// The capability list; ends after 48 entries even if the list does not.
    pub fn capabilities(self) -> impl Iterator<Item = Capability> {
        let mut at = if self.read16(6) & 0x10 != 0 { self.read8(0x34) & 0xfc } else { 0 };
        let mut left = 48;
        core::iter::from_fn(move || {
            if at < 0x40 || left == 0 {
                return None;
            }
            let found = (at, self.read8(at));
            at = self.read8(at + 1) & 0xfc;
            left -= 1;
            Some(found)
        })
    }
}

/// All functions of bus 0. A slot without function 0 has no others (PCI 3.0 §3.2.2.3.4).
pub fn devices() -> impl Iterator<Item = Device> {
    (0..32u8).flat_map(|slot| {
        let first = Device { devfn: slot << 3 };
        let functions = match first.vendor() {
            0xffff => 0,
            _ if first.read8(0x0e) & 0x80 != 0 => 8,
            _ => 1,
        };
        (0..functions)
            .map(move |function| Device { devfn: slot << 3 | function })
            .filter(move |device| *device == first || device.vendor() != 0xffff)
    })
}
