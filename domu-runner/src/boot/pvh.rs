//! The PVH boot protocol: the structures that a kernel gets in memory (`hvm_start_info`,
//! xen/include/public/arch-x86/hvm/start_info.h) and the registers at its entry (xen/docs/misc/pvh.pandoc).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::lowmem::{self, CMDLINE, Told};
use super::{BootError, write};
use crate::memory::GuestRam;

/// Address of `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
const MODULES: u64 = START_INFO + 64;
const MEMORY_MAP: u64 = 0x7000;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Writes `hvm_start_info` and what it alone points to.
pub fn write_start_info(ram: &GuestRam, told: Told) -> Result<(), BootError> {
    let memory = &ram.memory;
    let map = lowmem::memory_map(ram);
    let map_bytes: Vec<u8> = map
        .iter()
        .flat_map(|&(address, size, kind)| {
            [address.to_le_bytes(), size.to_le_bytes(), (kind as u64).to_le_bytes()].concat()
        })
        .collect();
    write(memory, MEMORY_MAP, &map_bytes)?;
    if let Some((address, size)) = told.initrd {
        write(memory, MODULES, &[address, size, 0, 0].map(u64::to_le_bytes).concat())?;
    }
    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, u32::from(told.initrd.is_some())] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for long in [MODULES, CMDLINE, told.rsdp, MEMORY_MAP, map.len() as u64] {
        info.extend_from_slice(&long.to_le_bytes());
    }
    write(memory, START_INFO, &info)
}

/// The registers at the physical address `entry`: 32-bit protected mode without paging, flat segments, EBX pointing to
/// `hvm_start_info`. `sregs` are those of a vCPU after reset.
pub fn registers(entry: u32, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
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
        rip: entry.into(),
        rbx: START_INFO,
        // Bit 1 is always one.
        rflags: 2,
        ..Default::default()
    };
    (regs, sregs)
}
