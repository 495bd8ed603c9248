//! An ELF64 executable into guest memory, by physical addresses, and its entry point: PVH's if a note tells it, else
//! that of the header, which is Linux's 64-bit one.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Entry, Image, KERNEL_START, copy};

/// The first bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

/// Most program headers looked at; kernels have about five.
const MAX_HEADERS: u16 = 64;
/// Most bytes of notes looked at; kernels have about 500.
const MAX_NOTES: u64 = 64 << 10;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// Xen's note that tells the 32-bit physical entry point (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Where the bytes of the file come from.
pub trait Source {
    /// Fills `buffer` with what is at `offset` of the file. A source may refuse to go backwards.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError>;
}

/// An ELF file as it is.
pub struct Plain<'a>(pub &'a Image);

impl Source for Plain<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        self.0.read_exact("an ELF header or segment", offset, buffer)
    }
}

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Where it is entered, and how.
    pub entry: Entry,
    /// First address after the kernel.
    pub end: u64,
}

/// A program header, without what does not matter here.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Self {
        let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Self {
            kind,
            offset: long(bytes, 8),
            address: long(bytes, 24),
            file_size: long(bytes, 32),
            memory_size: long(bytes, 40),
        }
    }

    /// Refuses a segment that does not lie between 1 MiB and `low`.
    fn check(&self, low: u64) -> Result<(), BootError> {
        let end = self.address.checked_add(self.memory_size);
        let within = end.is_some_and(|end| self.address >= KERNEL_START && end <= low);
        if self.file_size > self.memory_size || self.offset.checked_add(self.file_size).is_none() {
            Err(BootError::Elf(format!(
                "segment at {:#x} has more bytes in the file than in memory",
                self.address
            )))
        } else if !within {
            Err(BootError::Elf(format!(
                "segment at {:#x} of {:#x} bytes does not lie in RAM between {KERNEL_START:#x} and {low:#x}: give the domain more memory, or another kernel",
                self.address, self.memory_size
            )))
        } else {
            Ok(())
        }
    }
}

/// Loads the file, whose segments must lie between 1 MiB and `low`.
pub fn load(source: &mut dyn Source, memory: &GuestMemoryMmap, low: u64) -> Result<Loaded, BootError> {
    let mut header = [0; HEADER];
    source.read_at(0, &mut header)?;
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[..4] != MAGIC || header[4..6] != [2, 1] || short(18) != EM_X86_64 {
        let (class, machine) = (header[4], short(18));
        return Err(BootError::Elf(format!(
            "header is not that of a 64-bit x86 executable (class {class}, machine {machine})"
        )));
    }
    let (offset, size, count) = (long(&header, 32), short(54), short(56));
    if usize::from(size) != PROGRAM_HEADER || count == 0 || count > MAX_HEADERS || offset < HEADER as u64 {
        let text = format!("header announces {count} program headers of {size} bytes at {offset:#x}");
        return Err(BootError::Elf(format!(
            "{text}: 1 to {MAX_HEADERS} of {PROGRAM_HEADER} after the header would do"
        )));
    }
    let mut headers = vec![0; PROGRAM_HEADER * usize::from(count)];
    source.read_at(offset, &mut headers)?;
    let segments: Vec<Segment> = headers.chunks_exact(PROGRAM_HEADER).map(Segment::parse).collect();

    let mut loads: Vec<Segment> =
        segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_size > 0).copied().collect();
    for segment in &loads {
        segment.check(low)?;
    }
    loads.sort_by_key(|segment| segment.address);
    if loads.windows(2).any(|pair| pair[0].address + pair[0].memory_size > pair[1].address) {
        return Err(BootError::Elf("segments overlap in memory".into()));
    }
    let Some(end) = loads.last().map(|last| last.address + last.memory_size) else {
        return Err(BootError::Elf("file has nothing to load".into()));
    };
    loads.sort_by_key(|segment| segment.offset);
    for segment in &loads {
        let mut offset = segment.offset;
        copy(memory, segment.address, segment.file_size, |buffer| {
            source.read_at(offset, buffer)?;
            offset += buffer.len() as u64;
            Ok(())
        })?;
    }

    let inside = |entry| loads.iter().any(|s| (s.address..s.address + s.memory_size).contains(&entry));
    for note in segments.iter().filter(|s| s.kind == PT_NOTE && s.file_size <= MAX_NOTES) {
        let bytes = read_note(source, memory, &loads, note)?;
        if let Some(entry) = pvh_entry(&bytes) {
            return match inside(entry.into()) {
                true => Ok(Loaded { entry: Entry::Pvh(entry), end }),
                false => Err(BootError::Elf(format!(
                    "note puts the PVH entry at {entry:#x}, outside all segments"
                ))),
            };
        }
    }
    // Linux's is a physical address. That of a kernel which is not Linux is a virtual one, as a rule.
    let entry = long(&header, 24);
    if inside(entry) {
        Ok(Loaded { entry: Entry::Linux(entry), end })
    } else {
        Err(BootError::NoEntry(entry))
    }
}

/// The bytes of a note segment: from guest memory if it was loaded as part of another, else from the file.
fn read_note(
    source: &mut dyn Source,
    memory: &GuestMemoryMmap,
    loads: &[Segment],
    note: &Segment,
) -> Result<Vec<u8>, BootError> {
    let mut bytes = vec![0; note.file_size as usize];
    let holder = loads.iter().find(|load| {
        let inside = note.offset.checked_sub(load.offset).and_then(|start| start.checked_add(note.file_size));
        inside.is_some_and(|end| end <= load.file_size)
    });
    match holder {
        Some(load) => {
            let address = load.address + (note.offset - load.offset);
            memory.read_slice(&mut bytes, GuestAddress(address)).map_err(|_| BootError::Write(address))?;
        }
        None => source.read_at(note.offset, &mut bytes)?,
    }
    Ok(bytes)
}

/// Finds the PVH entry point among notes (name size, description size, type, name, description; each padded to 4).
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    while let Some((header, rest)) = notes.split_at_checked(12) {
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (name_size, size, kind) = (word(0) as usize, word(4) as usize, word(8));
        let (name, rest) = rest.split_at_checked(name_size.checked_next_multiple_of(4)?)?;
        let description = rest.get(..size)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name.starts_with(b"Xen\0") {
            // 4 or 8 bytes, by the kernel's word size; the value has 32 bits.
            let (entry, high) = description.split_first_chunk::<4>()?;
            return high.iter().all(|byte| *byte == 0).then(|| u32::from_le_bytes(*entry));
        }
        notes = rest.get(size.checked_next_multiple_of(4)?..).unwrap_or(&[]);
    }
    None
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}
