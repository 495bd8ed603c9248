//! The 64-bit entry of Linux (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol", and `zero-page.rst`), for
//! kernels that have no PVH entry.
//!
//! The kernel is entered where its ELF header says, at the addresses that it was linked for: neither the real-mode
//! part of a bzImage nor its decompressor runs, so nothing is moved at random (KASLR).

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::lowmem::{self, CMDLINE, Told};
use super::{BootError, write};
use crate::memory::GuestRam;

/// Address of the descriptor table: `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18.
const GDT: u64 = 0x6000;
/// Two descriptors that are not there, flat 64-bit code, flat data.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Address of the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
const ZERO_PAGE_SIZE: usize = 4096;

/// Address of the page tables: one of level 4, one of level 3, and four of level 2.
const PAGE_TABLES: u64 = 0x9000;
const PAGE: u64 = 0x1000;
/// Present, writable.
const TABLE: u64 = 1 << 0 | 1 << 1;
/// Present, writable, a page of 2 MiB.
const LARGE_PAGE: u64 = TABLE | 1 << 7;

// Fields of `boot_params`, by their offsets.
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
/// Where the setup header begins and where the room for it ends, in a bzImage as in the zero page.
const HEADER: std::ops::Range<usize> = 0x1f1..0x290;
const BOOT_FLAG: usize = 0x1fe;
/// The length of the setup header, counted from 0x202.
const JUMP_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;

/// "HdrS".
const HEADER_MAGIC: [u8; 4] = *b"HdrS";
/// What a kernel without a setup header is told: that of Linux 3.8, the first with a 64-bit entry that others use.
const VERSION_2_12: u16 = 0x020c;
/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
/// `XLF_CAN_BE_LOADED_ABOVE_4G`, which goes for the initrd, too.
const ANYWHERE: u8 = 1 << 1;

/// The setup header of a bzImage, or what an ELF file has instead.
#[derive(Clone)]
pub struct SetupHeader([u8; HEADER.end]);

impl SetupHeader {
    /// Length of what is read of a bzImage for it, from its beginning.
    pub const LENGTH: usize = HEADER.end;

    /// That of a bzImage, of which `file` are the first bytes; none if they are of something else.
    pub fn of_bzimage(mut file: [u8; Self::LENGTH]) -> Option<Self> {
        if file[MAGIC..MAGIC + 4] != HEADER_MAGIC {
            return None;
        }
        // What is behind the header is code, and what is before it was for loaders of the last century.
        let end = (MAGIC + usize::from(file[JUMP_LENGTH])).clamp(SETUP_DATA, HEADER.end);
        file[..HEADER.start].fill(0);
        file[end..].fill(0);
        Some(Self(file))
    }

    /// For a kernel without one.
    pub fn of_elf() -> Self {
        let mut header = [0; Self::LENGTH];
        header[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&0xaa55u16.to_le_bytes());
        header[MAGIC..MAGIC + 4].copy_from_slice(&HEADER_MAGIC);
        header[VERSION..VERSION + 2].copy_from_slice(&VERSION_2_12.to_le_bytes());
        header[CMDLINE_SIZE..CMDLINE_SIZE + 4].copy_from_slice(&2047u32.to_le_bytes());
        header[XLOADFLAGS] = ANYWHERE;
        Self(header)
    }

    /// The first address that the kernel's initrd may not reach.
    pub fn initrd_limit(&self) -> u64 {
        match self.version() >= VERSION_2_12 && self.0[XLOADFLAGS] & ANYWHERE != 0 {
            true => u64::MAX,
            false => u64::from(self.word(INITRD_ADDR_MAX)) + 1,
        }
    }

    /// The version of the boot protocol: 0x020c is 2.12.
    pub fn version(&self) -> u16 {
        u16::from_le_bytes([self.0[VERSION], self.0[VERSION + 1]])
    }

    /// The 32-bit field at an offset below [`HEADER`]'s end.
    pub fn word(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Sectors of the real-mode part after the first; 0 means 4 (boot.rst, setup_sects).
    pub fn setup_sectors(&self) -> u64 {
        match self.0[HEADER.start] {
            0 => 4,
            sectors => sectors.into(),
        }
    }
}

/// Writes the zero page, the page tables and the descriptor table.
pub fn write_zero_page(ram: &GuestRam, header: &SetupHeader, told: Told) -> Result<(), BootError> {
    let memory = &ram.memory;
    let mut page = vec![0; ZERO_PAGE_SIZE];
    page[HEADER].copy_from_slice(&header.0[HEADER]);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
    put(LOADFLAGS, &[LOADED_HIGH]);
    put(CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    put(SETUP_DATA, &[0; 8]);
    put(ACPI_RSDP_ADDR, &told.rsdp.to_le_bytes());
    // An initrd is below 3 GiB, and so is its size.
    let (address, size) = told.initrd.unwrap_or_default();
    put(RAMDISK_IMAGE, &(address as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(size as u32).to_le_bytes());
    let map = lowmem::memory_map(ram);
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, (address, size, kind)) in map.into_iter().enumerate() {
        put(E820_TABLE + 20 * index, &[address, size].map(u64::to_le_bytes).concat());
        put(E820_TABLE + 20 * index + 16, &(kind as u32).to_le_bytes());
    }
    write(memory, ZERO_PAGE, &page)?;
    write(memory, GDT, &DESCRIPTORS.map(u64::to_le_bytes).concat())?;
    write(memory, PAGE_TABLES, &page_tables())
}

/// The first 4 GiB at their own addresses: more than a kernel and what it is told can take up.
fn page_tables() -> Vec<u8> {
    let mut tables = vec![0; 6 * PAGE as usize / 8];
    let [level_3, level_2] = [1, 2].map(|page| PAGE_TABLES + page * PAGE);
    tables[0] = level_3 | TABLE;
    for (entry, gigabyte) in tables[512..].iter_mut().zip(0..4) {
        *entry = (level_2 + gigabyte * PAGE) | TABLE;
    }
    for (entry, large) in tables[1024..].iter_mut().zip(0..) {
        *entry = large << 21 | LARGE_PAGE;
    }
    tables.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The registers at the physical address `entry`: 64-bit mode with flat segments, RSI pointing to the zero page,
/// interrupts off. `sregs` are those of a vCPU after reset.
pub fn registers(entry: u64, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    /// `CR0.PE`, `CR0.ET`, `CR0.PG`.
    const CR0: u64 = 1 << 0 | 1 << 4 | 1 << 31;
    /// `CR4.PAE`.
    const CR4: u64 = 1 << 5;
    /// `EFER.LME`, `EFER.LMA`.
    const EFER: u64 = 1 << 8 | 1 << 10;
    let flat = kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 0x18, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 64-bit TSS of the smallest size.
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: GDT, limit: size_of_val(&DESCRIPTORS) as u16 - 1, ..Default::default() };
    // The kernel loads its own before it lets an interrupt in.
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.cr0 = CR0;
    // Bit 1 of the flags is always one.
    let regs = kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: 2, ..Default::default() };
    (regs, sregs)
}
