//! The PVH boot protocol: the structures that a kernel gets in memory (`hvm_start_info`,
//! xen/include/public/arch-x86/hvm/start_info.h) and the registers at its entry (xen/docs/misc/pvh.pandoc).
//!
//! ```text
//! 0x6000  hvm_start_info, then one module entry
//! 0x7000  memory map
//! 0x8000  command line
//! 0xe0000 ACPI tables
//! 0xffff0 reset vector
//! ```

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::{BootError, Entry, write};
use crate::layout::{ACPI_PORT, ECAM, ECAM_SIZE, HOLE_END};
use crate::memory::GuestRam;
use crate::power;

/// Address of `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
const MODULES: u64 = START_INFO + 64;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: u64 = 0x8000;
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

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const RESERVED: u32 = 2;

/// Writes `hvm_start_info` and what it points to. `module` is the initrd's address and size.
pub fn write_start_info(
    ram: &GuestRam,
    module: Option<(u64, u64)>,
    cmdline: &str,
    rsdp: u64,
) -> Result<(), BootError> {
    let memory = &ram.memory;
    let map = memory_map(ram);
    let map_bytes: Vec<u8> = map
        .iter()
        .flat_map(|&(address, size, kind)| {
            [address.to_le_bytes(), size.to_le_bytes(), u64::from(kind).to_le_bytes()].concat()
        })
        .collect();
    write(memory, MEMORY_MAP, &map_bytes)?;
    write(memory, RESET_VECTOR, &RESET_CODE)?;
    write(memory, CMDLINE, &[cmdline.as_bytes(), b"\0"].concat())?;
    if let Some((address, size)) = module {
        write(memory, MODULES, &[address, size, 0, 0].map(u64::to_le_bytes).concat())?;
    }
    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, u32::from(module.is_some())] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for long in [MODULES, CMDLINE, rsdp, MEMORY_MAP, map.len() as u64] {
        info.extend_from_slice(&long.to_le_bytes());
    }
    write(memory, START_INFO, &info)
}

/// (address, size, kind) of what the guest may and may not use.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_END, RAM), (LOW_END, FIRMWARE_END - LOW_END, RESERVED)];
    for region in ram.regions() {
        match region.gpa {
            0 => map.extend([(FIRMWARE_END, region.size - FIRMWARE_END, RAM), (ECAM, ECAM_SIZE, RESERVED)]),
            gpa => map.push((gpa.max(HOLE_END), region.size, RAM)),
        }
    }
    map
}

/// The registers of the first vCPU: 32-bit protected mode without paging, flat segments, EBX pointing to
/// `hvm_start_info`. `sregs` are those of a vCPU after reset.
pub fn entry_registers(entry: Entry, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    /// `CR0.PE`, and `CR0.ET`, which is always one.
    const CR0: u64 = 1 << 0 | 1 << 4;
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0x10, 0xb);
    let data = flat(0x18, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit TSS of the smallest size.
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.cr0 = CR0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    let regs = kvm_regs {
        rip: entry.entry.into(),
        rbx: entry.start_info.into(),
        // Bit 1 is always one.
        rflags: 2,
        ..Default::default()
    };
    (regs, sregs)
}
