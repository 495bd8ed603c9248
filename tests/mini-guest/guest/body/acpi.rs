//! As much of ACPI as a guest without an AML interpreter can use: FADT (sleep and reset registers), MADT (CPUs), MCFG.

use super::sys;

/// A generic address structure (ACPI 6.5 §5.2.3.2) of one byte, in I/O space or memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// Port.
    Port(u16),
    /// Physical address.
    Memory(u64),
}

impl Register {
    fn read(at: u64) -> Option<Self> {
        let addr = sys::read64(at + 4);
        match sys::read8(at) {
            _ if addr == 0 => None,
            0 => Some(Self::Memory(addr)),
            1 => u16::try_from(addr).ok().map(Self::Port),
            _ => None,
        }
    }

    /// Writes one byte.
    pub fn write(self, value: u8) {
        match self {
            Self::Port(port) => sys::outb(port, value),
            Self::Memory(addr) => sys::write8(addr, value),
        }
    }
}

/// What the tables say.
pub struct Acpi {
    /// FADT SLEEP_CONTROL_REG (§4.8.3.7).
    pub sleep: Option<Register>,
    /// FADT PM1a_CNT_BLK, where ACPI is not hardware-reduced.
    pub pm1a: Option<u16>,
    /// FADT RESET_REG and RESET_VALUE (§4.8.3.6).
    pub reset: Option<(Register, u8)>,
    /// FADT flag HW_REDUCED_ACPI.
    pub reduced: bool,
    /// APIC ids of enabled processors, from the MADT.
    pub cpus: [u8; 255],
    /// How many.
    pub cpu_count: usize,
    /// ECAM base and its last bus, from the MCFG.
    pub ecam: Option<(u64, u8)>,
    /// Tables whose checksum is right, and those whose is not.
    pub sums: (u32, u32),
}

fn sum(at: u64, len: u64) -> u8 {
    (0..len).fold(0u8, |sum, i| sum.wrapping_add(sys::read8(at + i)))
}

impl Acpi {
    /// Reads the tables that the RSDP at `rsdp` leads to; nothing found is nothing said.
    pub fn read(rsdp: u64) -> Self {
        let mut acpi = Self {
            sleep: None,
            pm1a: None,
            reset: None,
            reduced: false,
            cpus: [0; 255],
            cpu_count: 0,
            ecam: None,
            sums: (0, 0),
        };
        if rsdp == 0 || sys::read64(rsdp) != u64::from_le_bytes(*b"RSD PTR ") {
            return acpi;
        }
        acpi.count(sum(rsdp, 20) == 0);
        let (root, entry) = match sys::read8(rsdp + 15) {
            0 | 1 => (u64::from(sys::read32(rsdp + 16)), 4),
            _ => {
                acpi.count(sum(rsdp, 36) == 0);
                (sys::read64(rsdp + 24), 8)
            }
        };
        let len = acpi.table(root);
        for at in (root + 36..root + len).step_by(entry) {
            let table = if entry == 8 { sys::read64(at) } else { u64::from(sys::read32(at)) };
            let len = acpi.table(table);
            match &sys::read32(table).to_le_bytes() {
                b"FACP" => acpi.fadt(table, len),
                b"APIC" => acpi.madt(table, len),
                b"MCFG" if len >= 60 => acpi.ecam = Some((sys::read64(table + 44), sys::read8(table + 55))),
                _ => {}
            }
        }
        acpi
    }

    fn count(&mut self, good: bool) {
        if good {
            self.sums.0 += 1;
        } else {
            self.sums.1 += 1;
        }
    }

    fn table(&mut self, at: u64) -> u64 {
        let len = u64::from(sys::read32(at + 4)).clamp(36, 0x10000);
        self.count(sum(at, len) == 0);
        len
    }

    fn fadt(&mut self, at: u64, len: u64) {
        let flags = sys::read32(at + 112);
        self.reduced = flags & 1 << 20 != 0;
        if len >= 129 && flags & 1 << 10 != 0 {
            self.reset = Register::read(at + 116).map(|register| (register, sys::read8(at + 128)));
        }
        if self.reduced && len >= 256 {
            self.sleep = Register::read(at + 244);
        }
        if !self.reduced {
            self.pm1a = u16::try_from(sys::read32(at + 64)).ok().filter(|&port| port != 0);
        }
    }

    fn madt(&mut self, at: u64, len: u64) {
        let mut entry = at + 44;
        while entry + 2 <= at + len {
            let size = u64::from(sys::read8(entry + 1));
            if size < 2 {
                break;
            }
            if sys::read8(entry) == 0 && sys::read32(entry + 4) & 1 != 0 && self.cpu_count < self.cpus.len() {
                self.cpus[self.cpu_count] = sys::read8(entry + 3);
                self.cpu_count += 1;
            }
            entry += size;
        }
    }
}
