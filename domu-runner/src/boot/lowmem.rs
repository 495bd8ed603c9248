//! Guest memory below 1 MiB, which holds what a kernel is told, by whichever protocol.
//!
//! ```text
//! 0x6000  PVH: hvm_start_info, then one module entry    Linux: descriptor table
//! 0x7000  PVH: memory map                               Linux: zero page (boot_params)
//! 0x8000  command line
//! 0x9000                                                Linux: page tables, up to 0xf000
//! 0xe0000 ACPI tables
//! 0xffff0 reset vector
//! ```

use super::{BootError, write};
use crate::layout::{ACPI_PORT, ECAM, ECAM_SIZE, HOLE_END};
use crate::memory::GuestRam;
use crate::power;

/// Address of the command line, which ends in NUL.
pub const CMDLINE: u64 = 0x8000;
/// Address of the ACPI tables.
pub const ACPI_TABLES: u32 = 0xe_0000;

/// Where a real-mode CPU begins. Linux with EFI support that has hardware-reduced ACPI and no EFI takes neither the
/// FADT's register nor port 0x64 for a reboot, but jumps here.
const RESET_VECTOR: u64 = 0xf_fff0;

/// `mov $port, %dx; mov $value, %al; out %al, (%dx); 1: hlt; jmp 1b`: writes the reset register.
const RESET_CODE: [u8; 9] = {
    let [low, high] = ((ACPI_PORT + power::RESET) as u16).to_le_bytes();
    [0xba, low, high, 0xb0, power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
};

/// Where low memory ends on a PC: above it are the adapters' and the firmware's areas.
const LOW_END: u64 = 0x9_fc00;
/// End of the firmware's area.
const FIRMWARE_END: u64 = 0x10_0000;

/// What the guest may do with a range of addresses, by E820's numbers, which PVH has, too
/// (`XEN_HVM_MEMMAP_TYPE_RAM`, `XEN_HVM_MEMMAP_TYPE_RESERVED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Use it.
    Ram = 1,
    /// Leave it alone.
    Reserved = 2,
}

/// What a kernel is told, whatever it is told by.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Address and size of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// Writes what is the same for every protocol but the ACPI tables.
pub fn write_common(ram: &GuestRam, cmdline: &[u8]) -> Result<(), BootError> {
    write(&ram.memory, RESET_VECTOR, &RESET_CODE)?;
    write(&ram.memory, CMDLINE, &[cmdline, b"\0"].concat())
}

/// (address, size, kind) of what the guest may and may not use: at most five ranges.
pub fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, Kind)> {
    let mut map = vec![(0, LOW_END, Kind::Ram), (LOW_END, FIRMWARE_END - LOW_END, Kind::Reserved)];
    for region in ram.regions() {
        match region.gpa {
            0 => map.extend([
                (FIRMWARE_END, region.size - FIRMWARE_END, Kind::Ram),
                (ECAM, ECAM_SIZE, Kind::Reserved),
            ]),
            gpa => map.push((gpa.max(HOLE_END), region.size, Kind::Ram)),
        }
    }
    map
}
