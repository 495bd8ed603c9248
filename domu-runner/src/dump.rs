//! A core of the machine for `gdb` and `crash`: ELF64 with notes for each vCPU and a segment for each piece of RAM.
//!
//! ```text
//! ELF header │ program headers: PT_NOTE, PT_LOAD… │ notes: CORE of each vCPU, QEMU of each vCPU │ RAM, page aligned
//! ```
//!
//! Memory that the guest has never touched, and pages of zeros, are holes in the file. Addresses are physical, in
//! `p_vaddr` and in `p_paddr`. The notes are those of QEMU's `dump-guest-memory` (`target/i386/arch_dump.c`): the
//! general registers for gdb (`NT_PRSTATUS`), and the control registers that a debugger needs to find a kernel's page
//! tables (`QEMU`, version 1).

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::memory::GuestRam;

/// A core is longer than the machine's RAM by this many bytes at most: 32 vCPUs have notes of 27 KiB.
pub const BESIDE_RAM: u64 = 1 << 20;

const PAGE: usize = 4096;
/// Bytes copied at once.
const CHUNK: usize = 256 << 10;
const ZEROS: [u8; PAGE] = [0; PAGE];

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const ALL_RIGHTS: u32 = 7;

const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// What a core says of a vCPU.
#[derive(Debug, Clone, Default)]
pub struct Registers {
    general: kvm_regs,
    special: kvm_sregs,
    kernel_gs_base: u64,
}

impl Registers {
    /// Those that the vCPU has now.
    ///
    /// # Errors
    /// What KVM says.
    pub fn read(vcpu: &VcpuFd) -> Result<Self, vmm_sys_util::errno::Error> {
        let (general, special) = (vcpu.get_regs()?, vcpu.get_sregs()?);
        let entry = kvm_msr_entry { index: IA32_KERNEL_GS_BASE, ..Default::default() };
        // A KVM that does not know it, or a list that cannot be made, costs this value alone.
        let kernel_gs_base = Msrs::from_entries(&[entry]).ok().and_then(|mut msrs| {
            let read = vcpu.get_msrs(&mut msrs).ok()?;
            msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data)
        });
        Ok(Self { general, special, kernel_gs_base: kernel_gs_base.unwrap_or(0) })
    }

    /// `struct elf_prstatus` of x86-64 Linux, of "thread" `id`.
    fn prstatus(&self, id: u32) -> Vec<u8> {
        let (r, s) = (&self.general, &self.special);
        // struct user_regs_struct. What a system call began with (orig_rax) is not known: -1.
        let registers = [
            r.r15,
            r.r14,
            r.r13,
            r.r12,
            r.rbp,
            r.rbx,
            r.r11,
            r.r10,
            r.r9,
            r.r8,
            r.rax,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            u64::MAX,
            r.rip,
            s.cs.selector.into(),
            r.rflags,
            r.rsp,
            s.ss.selector.into(),
            s.fs.base,
            s.gs.base,
            s.ds.selector.into(),
            s.es.selector.into(),
            s.fs.selector.into(),
            s.gs.selector.into(),
        ];
        let mut bytes = vec![0; 32];
        bytes.extend(id.to_le_bytes());
        bytes.resize(112, 0);
        bytes.extend(registers.iter().flat_map(|register| register.to_le_bytes()));
        bytes.resize(336, 0);
        bytes
    }

    /// QEMU's `struct QEMUCPUState`, version 1.
    fn qemu(&self) -> Vec<u8> {
        const VERSION: u32 = 1;
        const SIZE: u32 = 440;
        let (r, s) = (&self.general, &self.special);
        let general = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15, r.rip, r.rflags,
        ];
        let mut bytes: Vec<u8> = [VERSION, SIZE].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(general.iter().flat_map(|register| register.to_le_bytes()));
        for segment in [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.ldt, &s.tr] {
            bytes.extend(segment_bytes(segment));
        }
        for table in [&s.gdt, &s.idt] {
            bytes.extend(table_bytes(table));
        }
        // CR1 does not exist.
        let others = [s.cr0, 0, s.cr2, s.cr3, s.cr4, self.kernel_gs_base];
        bytes.extend(others.iter().flat_map(|register| register.to_le_bytes()));
        bytes
    }
}

/// `struct QEMUCPUSegment`, with the flags where a descriptor has them.
fn segment_bytes(segment: &kvm_segment) -> [u8; 24] {
    let bit = |value: u8, at: u32| u32::from(value) << at;
    let flags = bit(segment.type_, 8)
        | bit(segment.s, 12)
        | bit(segment.dpl, 13)
        | bit(segment.present, 15)
        | bit(segment.avl, 20)
        | bit(segment.l, 21)
        | bit(segment.db, 22)
        | bit(segment.g, 23);
    packed(segment.selector.into(), segment.limit, flags, segment.base)
}

fn table_bytes(table: &kvm_dtable) -> [u8; 24] {
    packed(0, table.limit.into(), 0, table.base)
}

fn packed(selector: u32, limit: u32, flags: u32, base: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    let words = [selector, limit, flags, 0].into_iter().flat_map(u32::to_le_bytes);
    let all = words.chain(base.to_le_bytes());
    bytes.iter_mut().zip(all).for_each(|(byte, value)| *byte = value);
    bytes
}

/// A note's header, name and description, each padded to four bytes (ELF, "Note Section").
fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32 + 1, description.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name);
    // The name's NUL, and what is missing to four bytes.
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes.extend(description);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A program header (Elf64_Phdr).
fn segment(kind: u32, flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = [kind, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
    let align = if kind == PT_LOAD { PAGE as u64 } else { 4 };
    for word in [offset, address, address, size, size, align] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// Everything before the RAM; `pieces` are guest physical addresses and sizes, in the order in which they follow.
fn head(vcpus: &[Registers], pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (id, vcpu) in (1..).zip(vcpus) {
        notes.extend(note(b"CORE", NT_PRSTATUS, &vcpu.prstatus(id)));
    }
    for vcpu in vcpus {
        notes.extend(note(b"QEMU", 0, &vcpu.qemu()));
    }
    let count = 1 + pieces.len() as u64;
    let at = EHDR + count * PHDR;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    // ET_CORE, EM_X86_64, EV_CURRENT; no entry point, the program headers' offset, no section headers, no flags.
    bytes.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, EHDR, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0; 4]);
    for half in [EHDR, PHDR, count, 0, 0, 0] {
        bytes.extend((half as u16).to_le_bytes());
    }
    bytes.extend(segment(PT_NOTE, 0, at, 0, notes.len() as u64));
    let mut offset = (at + notes.len() as u64).next_multiple_of(PAGE as u64);
    for (address, size) in pieces {
        bytes.extend(segment(PT_LOAD, ALL_RIGHTS, offset, *address, *size));
        offset += size;
    }
    bytes.extend(notes);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    bytes
}

/// Writes a core into an empty file.
///
/// # Errors
/// What the file system said.
pub fn write(file: &mut File, ram: &GuestRam, vcpus: &[Registers]) -> io::Result<()> {
    let regions = ram.regions();
    let pieces: Vec<_> = regions.iter().map(|region| (region.gpa, region.size)).collect();
    let head = head(vcpus, &pieces);
    file.write_all(&head)?;
    let mut at = head.len() as u64;
    let memory = ram.file();
    let mut chunk = vec![0; CHUNK];
    for region in regions {
        let (start, end) = (region.offset, region.offset + region.size);
        let mut next = start;
        // Read by descriptor and not by address: looking at a page that was never touched would make it one that was.
        while let Some((data, hole)) = data(memory, next, end)? {
            next = data;
            while next < hole {
                let part = &mut chunk[..(hole - next).min(CHUNK as u64) as usize];
                memory.read_exact_at(part, next)?;
                copy(file, at + (next - start), part)?;
                next += part.len() as u64;
            }
        }
        at += region.size;
    }
    // A hole at the end has no end of its own.
    file.seek(SeekFrom::Start(at - 1))?;
    let mut last = [0];
    let size = pieces.iter().map(|(_, size)| size).sum::<u64>();
    memory.read_exact_at(&mut last, size - 1)?;
    file.write_all(&last)
}

/// The first range of the file from `start` on that has been written to; none if there is none before `end`.
fn data(file: &File, start: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if start >= end {
        return Ok(None);
    }
    let data = match lseek(file, start as i64, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        found => found? as u64,
    };
    if data >= end {
        return Ok(None);
    }
    let hole = lseek(file, data as i64, Whence::SeekHole)? as u64;
    // A range that is not empty: it is the end of the loop that a hole comes after its data.
    Ok(Some((data, hole.clamp(data + 1, end))))
}

/// Writes the pages of `part` that are not all zeros, adjacent ones in one write. `part` begins on a page boundary.
fn copy(file: &mut File, at: u64, part: &[u8]) -> io::Result<()> {
    let page = |from: usize| &part[from..part.len().min(from + PAGE)];
    let mut from = 0;
    while from < part.len() {
        let mut to = from;
        while to < part.len() && *page(to) != ZEROS[..page(to).len()] {
            to += page(to).len();
        }
        if to > from {
            file.seek(SeekFrom::Start(at + from as u64))?;
            file.write_all(&part[from..to])?;
        }
        // The page at `to`, if there is one, is all zeros.
        from = to + PAGE;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn a_core_is_as_long_as_its_memory_and_holds_what_is_in_it() {
        let size = 8 << 20;
        let ram = GuestRam::new(size).unwrap();
        ram.memory.write_slice(b"domus was here", GuestAddress(0x10_0ff8)).unwrap();
        ram.memory.write_slice(b"the end", GuestAddress(size - 7)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &ram, &[Registers::default(), Registers::default()]).unwrap();
        let mut core = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut core, 0).unwrap();
        assert_eq!(&core[..4], b"\x7fELF");
        // The second program header: type and flags, offset, virtual and physical address, sizes.
        let load = (EHDR + PHDR) as usize;
        let offset = word(&core, load + 8) as usize;
        assert_eq!((offset % PAGE, word(&core, load + 24), word(&core, load + 40)), (0, 0, size));
        assert_eq!(core.len(), offset + size as usize);
        assert_eq!(&core[offset + 0x10_0ff8..][..14], b"domus was here");
        assert_eq!(&core[core.len() - 7..], b"the end");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks: pages of zeros are no holes");
    }

    #[test]
    fn notes_have_the_sizes_that_debuggers_expect() {
        let registers = Registers::default();
        assert_eq!((registers.prstatus(1).len(), registers.qemu().len()), (336, 440));
        assert_eq!(note(b"CORE", 1, &[0; 5]).len(), 12 + 8 + 8);
    }

    #[test]
    fn a_file_that_cannot_grow_is_an_error() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = write(&mut full, &ram, &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
