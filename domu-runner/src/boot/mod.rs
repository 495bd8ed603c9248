//! Puts a kernel, its initrd and what they are told into guest memory. Runs after the sandbox is sealed:
//! every byte of the files is hostile.
//!
//! ```text
//! file ─▶ UKI? ─yes─▶ its kernel, initrd, command line
//!          └─no──────▶ kernel ─▶ bzImage? ─yes─▶ payload ─▶ unpacked ─▶ ELF segments ─▶ guest memory
//!                                   └─no, ELF ──────────────────────────▲  └─▶ PVH entry, or else Linux's 64-bit one
//! ```
//!
//! The kernel is unpacked as a stream; a whole vmlinux is never held. Refused: whatever does not lie
//! in the guest's RAM between 1 MiB and 3 GiB, overlaps, unpacks to more than [`MAX_KERNEL`], or has no entry.

mod bzimage;
mod codec;
mod elf;
mod keep;
mod linux;
mod lowmem;
mod pvh;
mod uki;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs};
use shared_abi::control::StartPart;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi::Tables;
use crate::layout::HOLE_START;
use crate::memory::GuestRam;

pub use keep::Keep;
use linux::SetupHeader;
use lowmem::Told;
use uki::Uki;

/// Most bytes that a kernel may unpack to.
pub const MAX_KERNEL: u64 = 1 << 30;

/// Kernels live from here on; below are the tables that they are told of.
const KERNEL_START: u64 = 0x10_0000;

/// Why a guest cannot be started from these files. The text says what is wrong with them, and what would do.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither format.
    #[error("the kernel is neither an ELF vmlinux nor an x86 bzImage (its first bytes are {0:02x?})")]
    NoKernel([u8; 4]),
    /// Shorter than its own headers say.
    #[error(
        "the kernel is truncated: {what} ends at byte {end}, the file has {size}: name a whole ELF vmlinux or x86 bzImage"
    )]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// Where the file ends.
        size: u64,
    },
    /// A bzImage whose payload cannot be unpacked here.
    #[error(
        "the bzImage's payload is {0}: Domus unpacks gzip, bzip2, lzma, xz, lzo, lz4 and zstd, or takes the ELF vmlinux"
    )]
    Payload(String),
    /// The payload is damaged.
    #[error("the bzImage's {codec} payload cannot be unpacked")]
    Unpack {
        /// Its compression.
        codec: &'static str,
        /// Where it broke.
        source: io::Error,
    },
    /// The ELF file is not one that can be started.
    #[error("the kernel's ELF {0}: name a whole ELF vmlinux or x86 bzImage")]
    Elf(String),
    /// No entry point.
    #[error(
        "the kernel has no PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY), and its ELF entry {0:#x} lies outside all \
         segments, as Linux's 64-bit one never does: name a Linux kernel, or one with such a note"
    )]
    NoEntry(u64),
    /// A unified kernel image that cannot be used.
    #[error(
        "the unified kernel image {0}: name another one, or its kernel, initrd and command line themselves"
    )]
    Uki(String),
    /// No room for the initrd.
    #[error(
        "an initrd of {initrd} bytes does not fit between the kernel's end ({kernel_end:#x}) and the end of low memory ({end:#x}): give the domain more memory"
    )]
    NoRoom {
        /// Its size.
        initrd: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Where RAM below 4 GiB ends.
        end: u64,
    },
    /// It is no regular file, or cannot be asked for its size.
    #[error("cannot use the {}", name(*.part))]
    Image {
        /// Which.
        part: StartPart,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read the {}", name(*.part))]
    Read {
        /// Which.
        part: StartPart,
        /// What the system said.
        source: io::Error,
    },
    /// Guest memory could not be written, at an address that was checked.
    #[error("cannot write to guest memory at {0:#x}")]
    Write(u64),
}

impl BootError {
    /// The file that is at fault.
    pub fn part(&self) -> StartPart {
        match self {
            Self::Image { part, .. } | Self::Read { part, .. } => *part,
            Self::NoRoom { .. } => StartPart::Initrd,
            Self::Write(_) => StartPart::Other,
            Self::NoKernel(_)
            | Self::Truncated { .. }
            | Self::Payload(_)
            | Self::Unpack { .. }
            | Self::Elf(_)
            | Self::Uki(_)
            | Self::NoEntry(_) => StartPart::Kernel,
        }
    }
}

fn name(part: StartPart) -> &'static str {
    match part {
        StartPart::Kernel => "kernel",
        StartPart::Initrd => "initrd",
        StartPart::Cpu | StartPart::Other => "file",
    }
}

/// An open regular file, or a part of one, and its size, taken before the sandbox is sealed.
#[derive(Clone)]
pub struct Image {
    part: StartPart,
    file: Arc<File>,
    start: u64,
    size: u64,
}

impl Image {
    /// Asks for the size of `file`, which is this part of the start message.
    ///
    /// # Errors
    /// [`BootError::Image`] if it is no regular file, or cannot be asked.
    pub fn new(part: StartPart, file: File) -> Result<Self, BootError> {
        let failed = |source| BootError::Image { part, source };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            Ok(Self { part, file: Arc::new(file), start: 0, size: metadata.len() })
        } else {
            Err(failed(io::Error::other("it is no regular file")))
        }
    }

    /// A part of it, which must lie within.
    fn part(&self, what: &'static str, start: u64, size: u64) -> Result<Self, BootError> {
        self.check(what, start, size)?;
        Ok(Self { part: self.part, file: self.file.clone(), start: self.start + start, size })
    }

    /// Reads exactly `buffer.len()` bytes of `what` at `offset`.
    fn read_exact(&self, what: &'static str, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        self.check(what, offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, self.start + offset)
            .map_err(|source| BootError::Read { part: self.part, source })
    }

    /// Refuses a piece that goes beyond the end of the file.
    fn check(&self, what: &'static str, offset: u64, length: u64) -> Result<(), BootError> {
        let end = offset.saturating_add(length);
        if end <= self.size { Ok(()) } else { Err(BootError::Truncated { what, end, size: self.size }) }
    }

    /// A reader of the bytes from `start` to `end`.
    fn section(&self, start: u64, end: u64) -> Section<'_> {
        Section { file: &self.file, next: self.start + start, end: self.start + end }
    }
}

/// A part of a file, read from its beginning with `pread64`: the descriptor's own position may be anywhere.
struct Section<'a> {
    file: &'a File,
    next: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.end - self.next).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..length], self.next)?;
        self.next += count as u64;
        Ok(count)
    }
}

/// Where the first vCPU is started: a physical address, and the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// By PVH, in 32-bit mode.
    Pvh(u32),
    /// As Linux, in 64-bit mode.
    Linux(u64),
}

impl Entry {
    /// The registers of the first vCPU. `sregs` are those of a vCPU after reset.
    pub fn registers(self, sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
        match self {
            Self::Pvh(entry) => pvh::registers(entry, sregs),
            Self::Linux(entry) => linux::registers(entry, sregs),
        }
    }
}

/// What a guest is started from.
pub struct Boot {
    /// An ELF vmlinux, a bzImage, or a unified kernel image.
    pub kernel: Image,
    /// The initial RAM disk; with none, that of a unified kernel image.
    pub initrd: Option<Image>,
    /// The command line.
    pub cmdline: String,
    /// A unified kernel image's own command line goes before.
    pub yields: bool,
    /// What the kernel unpacks to, if it is packed.
    pub unpacked: Unpacked,
}

/// What a packed kernel unpacks to.
pub enum Unpacked {
    /// Nobody has it, and nobody wants it.
    Unknown,
    /// Nobody has it, and it is to be kept.
    Keep(Keep),
    /// This.
    Kept(Image),
}

impl Boot {
    /// Loads everything.
    ///
    /// # Errors
    /// [`BootError`]; guest memory then holds parts of it.
    pub fn load(mut self, ram: &GuestRam, vcpus: u8) -> Result<Entry, BootError> {
        let uki = Uki::open(&self.kernel)?;
        let (kernel, own_initrd, own_cmdline) = match &uki {
            Some(uki) => (&uki.kernel, uki.initrd.as_ref(), uki.cmdline.as_deref()),
            None => (&self.kernel, None, None),
        };
        let initrd = self.initrd.as_ref().or(own_initrd);
        let cmdline = own_cmdline.filter(|_| self.yields).unwrap_or(self.cmdline.as_bytes());

        let memory = &ram.memory;
        let low = ram.regions().first().map_or(0, |region| region.size.min(HOLE_START));
        let mut magic = [0; 4];
        kernel.read_exact("its first word", 0, &mut magic)?;
        let (loaded, header) = if magic == elf::MAGIC {
            (elf::load(&mut elf::Plain(kernel), memory, low)?, SetupHeader::of_elf())
        } else {
            let header = bzimage::header(kernel, magic)?;
            let loaded = match &mut self.unpacked {
                Unpacked::Kept(vmlinux) => elf::load(&mut elf::Plain(vmlinux), memory, low)?,
                unpacked => {
                    let mut payload = bzimage::Payload::open(kernel, &header, unpacked)?;
                    let loaded = elf::load(&mut payload, memory, low)?;
                    payload.finish()?;
                    loaded
                }
            };
            (loaded, header)
        };
        let initrd_end = match loaded.entry {
            Entry::Pvh(_) => low,
            Entry::Linux(_) => low.min(header.initrd_limit()),
        };
        let initrd = initrd.map(|initrd| load_initrd(memory, initrd, loaded.end, initrd_end)).transpose()?;
        let tables = Tables::new(lowmem::ACPI_TABLES, vcpus);
        write(memory, lowmem::ACPI_TABLES.into(), &tables.bytes)?;
        lowmem::write_common(ram, cmdline)?;
        let told = Told { initrd, rsdp: tables.rsdp };
        match loaded.entry {
            Entry::Pvh(_) => pvh::write_start_info(ram, told)?,
            Entry::Linux(_) => linux::write_zero_page(ram, &header, told)?,
        }
        Ok(loaded.entry)
    }
}

/// Puts the initrd as high as it goes, so that the kernel has room to unfold below; its address and size.
fn load_initrd(
    memory: &GuestMemoryMmap,
    initrd: &Image,
    kernel_end: u64,
    low: u64,
) -> Result<(u64, u64), BootError> {
    let start = low.checked_sub(initrd.size).map(|start| start & !0xfff).filter(|&start| start >= kernel_end);
    let Some(start) = start else {
        return Err(BootError::NoRoom { initrd: initrd.size, kernel_end, end: low });
    };
    let mut section = initrd.section(0, initrd.size);
    copy(memory, start, initrd.size, |buffer| {
        section.read_exact(buffer).map_err(|source| BootError::Read { part: initrd.part, source })
    })?;
    Ok((start, initrd.size))
}

/// Fills `length` bytes of guest memory at `address` with what `next` gives, a piece at a time.
fn copy(
    memory: &GuestMemoryMmap,
    address: u64,
    length: u64,
    mut next: impl FnMut(&mut [u8]) -> Result<(), BootError>,
) -> Result<(), BootError> {
    /// Small enough for the second-level cache, large enough for few system calls.
    const PIECE: usize = 128 << 10;
    let mut buffer = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let mut done = 0;
    while done < length {
        let piece = buffer.len().min(usize::try_from(length - done).unwrap_or(PIECE));
        next(&mut buffer[..piece])?;
        write(memory, address + done, &buffer[..piece])?;
        done += piece as u64;
    }
    Ok(())
}

fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::Write(address))
}

#[cfg(test)]
mod tests;
