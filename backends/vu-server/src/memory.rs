//! The memory a frontend shares: regions of files, mapped, and the way from its addresses to ours.
//!
//! Refused: a region beyond its file's end, of no bytes, that wraps around, overlaps another, or is one too many.
//! Promised: no address of a guest or a frontend leads outside a mapping. A file that its owner shortens afterwards
//! ends this process by `SIGBUS`: the server refuses those that can be shortened, but where it serves other VMMs.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use libc::{c_void, iovec};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Most regions of one device (`GET_MAX_MEM_SLOTS`).
pub const MAX_REGIONS: usize = 64;

/// Why a region is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Empty, or its end is beyond 2^64.
    #[error("memory region of {size:#x} bytes at {guest:#x} is empty or wraps around")]
    Range {
        /// Guest-physical start.
        guest: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Another region is there already.
    #[error("memory region at {0:#x} overlaps another")]
    Overlap(u64),
    /// There are [`MAX_REGIONS`] already.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// The file is shorter than the region.
    #[error("memory region needs {needed:#x} bytes of a file that has {has:#x}")]
    BeyondFile {
        /// End of the region in the file.
        needed: u64,
        /// The file's size.
        has: u64,
    },
    /// The file cannot be mapped.
    #[error("cannot map a memory region")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// The file cannot be looked at.
    #[error("cannot seek to the end of a memory region's file")]
    Measure(#[source] std::io::Error),
    /// No region has exactly these bounds.
    #[error("no memory region of {size:#x} bytes at {guest:#x}")]
    NotThere {
        /// Guest-physical start.
        guest: u64,
        /// Length in bytes.
        size: u64,
    },
}

/// A piece of a guest's buffer: guest-physical, not yet checked against the memory table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Part of a segment is outside the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("buffer at {0:#x} is outside the guest's memory")]
pub struct Unmapped(pub u64);

#[derive(Debug, Clone)]
struct Region {
    guest: u64,
    frontend: u64,
    size: u64,
    mapping: Arc<MmapRegion>,
}

/// All regions of one device, by guest-physical address. Cloning shares the mappings.
#[derive(Debug, Clone, Default)]
pub struct MemoryTable {
    regions: Vec<Region>,
}

impl MemoryTable {
    /// Maps a region: `size` bytes of `file` from `offset`, at `guest` for the driver and at `frontend` in
    /// the frontend's own address space.
    ///
    /// # Errors
    /// [`RegionError`]; the table is as before.
    pub fn add(
        &mut self,
        guest: u64,
        frontend: u64,
        size: u64,
        file: File,
        offset: u64,
    ) -> Result<(), RegionError> {
        let range = RegionError::Range { guest, size };
        let ends = [guest, frontend, offset].map(|start| start.checked_add(size));
        let [Some(guest_end), Some(_), Some(needed)] = ends else { return Err(range) };
        let Ok(length) = usize::try_from(size) else { return Err(range) };
        if size == 0 {
            return Err(range);
        }
        if self.regions.len() == MAX_REGIONS {
            return Err(RegionError::TooMany);
        }
        // The frontend's own addresses may overlap: an alias of the same memory at two guest addresses does.
        let overlaps = |region: &Region| guest < region.guest + region.size && region.guest < guest_end;
        if self.regions.iter().any(overlaps) {
            return Err(RegionError::Overlap(guest));
        }
        // Not `metadata`: its system call takes paths too, which a sealed process may not use.
        let has = (&file).seek(SeekFrom::End(0)).map_err(RegionError::Measure)?;
        if needed > has {
            return Err(RegionError::BeyondFile { needed, has });
        }
        // Without MAP_NORESERVE, which `from_file` sets: pages that are reserved at all (hugetlbfs) are so from here on
        // or this fails, and tmpfs reserves none.
        let (place, access) = (FileOffset::new(file, offset), libc::PROT_READ | libc::PROT_WRITE);
        let mapping = MmapRegion::build(Some(place), length, access, libc::MAP_SHARED);
        let mapping = mapping.map_err(RegionError::Map)?;
        let at = self.regions.partition_point(|region| region.guest < guest);
        self.regions.insert(at, Region { guest, frontend, size, mapping: Arc::new(mapping) });
        Ok(())
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Takes a region out (`REM_MEM_REG`). It is unmapped when the last queue that knows it has stopped.
    ///
    /// # Errors
    /// [`RegionError::NotThere`].
    pub fn remove(&mut self, guest: u64, frontend: u64, size: u64) -> Result<(), RegionError> {
        let is_it = |region: &Region| (region.guest, region.frontend, region.size) == (guest, frontend, size);
        let at = self.regions.iter().position(is_it).ok_or(RegionError::NotThere { guest, size })?;
        self.regions.remove(at);
        Ok(())
    }

    /// The mapping that holds `len` bytes from an address of the frontend's, and the offset in it.
    pub(crate) fn frontend_range(&self, addr: u64, len: usize) -> Option<(Arc<MmapRegion>, usize)> {
        let region = self.regions.iter().find(|r| addr >= r.frontend && addr - r.frontend < r.size)?;
        let offset = addr - region.frontend;
        (len as u64 <= region.size - offset).then(|| (region.mapping.clone(), offset as usize))
    }

    /// The piece of guest memory from `addr` that is in one mapping: at most `len` bytes, at least one.
    fn piece(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let after = self.regions.partition_point(|region| region.guest <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = addr - region.guest;
        let left = region.size.checked_sub(offset).filter(|&left| left > 0)?;
        region.mapping.get_slice(offset as usize, left.min(len) as usize).ok()
    }

    /// Gives `each` the pieces of the `limit` bytes that follow the first `skip` bytes of `segments`.
    fn pieces<'a>(
        &'a self,
        segments: &[Segment],
        mut skip: u64,
        mut limit: u64,
        mut each: impl FnMut(VolatileSlice<'a>),
    ) -> Result<(), Unmapped> {
        for segment in segments {
            let mut len = u64::from(segment.len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let start = segment.addr.checked_add(skip).ok_or(Unmapped(segment.addr))?;
            len = (len - skip).min(limit);
            skip = 0;
            limit -= len;
            let mut done = 0;
            while done < len {
                let addr = start.checked_add(done).ok_or(Unmapped(start))?;
                let piece = self.piece(addr, len - done).ok_or(Unmapped(addr))?;
                done += piece.len() as u64;
                each(piece);
            }
            if limit == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Copies from the bytes that follow the first `skip` of `segments`; returns how many there were, at most
    /// `into.len()`.
    ///
    /// # Errors
    /// [`Unmapped`].
    pub fn read(&self, segments: &[Segment], skip: u64, into: &mut [u8]) -> Result<usize, Unmapped> {
        let mut done = 0;
        self.pieces(segments, skip, into.len() as u64, |piece| {
            piece.copy_to(&mut into[done..]);
            done += piece.len();
        })?;
        Ok(done)
    }

    /// Copies to the bytes that follow the first `skip` of `segments`; returns how many fitted.
    ///
    /// # Errors
    /// [`Unmapped`]; some bytes may have been written.
    pub fn write(&self, segments: &[Segment], skip: u64, from: &[u8]) -> Result<usize, Unmapped> {
        let mut done = 0;
        self.pieces(segments, skip, from.len() as u64, |piece| {
            piece.copy_from(&from[done..done + piece.len()]);
            done += piece.len();
        })?;
        Ok(done)
    }

    /// Appends to `into` where in this process the `limit` bytes are that follow the first `skip` of `segments`.
    ///
    /// The addresses hold as long as this table is alive: a [`Queue`](crate::Queue) keeps it until it is given
    /// back, so a worker gives it back only after the kernel has finished with them.
    ///
    /// # Errors
    /// [`Unmapped`]; `into` may have grown.
    pub fn iovecs(
        &self,
        segments: &[Segment],
        skip: u64,
        limit: u64,
        into: &mut Vec<iovec>,
    ) -> Result<(), Unmapped> {
        self.pieces(segments, skip, limit, |piece| {
            let base = piece.ptr_guard_mut().as_ptr().cast::<c_void>();
            into.push(iovec { iov_base: base, iov_len: piece.len() });
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn file(size: u64) -> File {
        let fd: OwnedFd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(size).unwrap();
        file
    }

    fn table() -> MemoryTable {
        let mut table = MemoryTable::default();
        // Two regions that touch, and a hole before a third.
        table.add(0x1000, 0x7000_1000, 0x1000, file(0x1000), 0).unwrap();
        table.add(0x0, 0x7000_0000, 0x1000, file(0x2000), 0x1000).unwrap();
        table.add(0x4000, 0x9000_0000, 0x1000, file(0x1000), 0).unwrap();
        table
    }

    #[test]
    fn bytes_that_span_two_regions_are_written_and_read_back() {
        let table = table();
        let bytes: Vec<u8> = (0..=255).collect();
        let segments = [
            Segment { addr: 0xfc0, len: 0x40 },
            Segment { addr: 0xf00, len: 8 },
            Segment { addr: 0xff0, len: 200 },
        ];
        assert_eq!(table.write(&segments, 0x40, &bytes), Ok(208));
        let mut back = [0; 208];
        assert_eq!(table.read(&segments, 0x40, &mut back), Ok(208));
        assert_eq!(back[..], bytes[..208]);
        let mut iovecs = Vec::new();
        table.iovecs(&segments, 0x44, 100, &mut iovecs).unwrap();
        assert_eq!(iovecs.iter().map(|v| v.iov_len).collect::<Vec<_>>(), [4, 16, 80]);
    }

    #[test]
    fn no_address_leads_outside_the_regions() {
        let table = table();
        let mut byte = [0; 2];
        for (addr, len) in
            [(0x1fff, 2), (0x2000, 1), (0x3fff, 2), (0x5000, 1), (u64::MAX, 2), (u64::MAX - 1, u32::MAX)]
        {
            assert!(table.read(&[Segment { addr, len }], 0, &mut byte).is_err(), "{addr:#x}");
        }
        assert!(table.frontend_range(0x7000_0fff, 2).is_none(), "a ring may not span two mappings");
        assert!(table.frontend_range(0x7000_1ffe, 2).is_some());
        assert!(table.frontend_range(0x7000_1ffe, usize::MAX).is_none());
    }

    #[test]
    fn regions_that_overlap_wrap_or_exceed_their_file_are_refused() {
        let mut table = table();
        for (guest, frontend, size, offset) in [
            (0x1800, 0x1000, 0x1000, 0),
            (u64::MAX - 0xfff, 0x1000, 0x2000, 0),
            (0x8000, u64::MAX, 0x1000, 0),
            (0x8000, 0x1000, 0x1000, u64::MAX),
            (0x8000, 0x1000, 0, 0),
            (0x8000, 0x1000, 0x2000, 0),
            (0x8000, 0x1000, 0x1000, 0x1000),
            (0x8000, 0x1000, 0x800, 0x10),
        ] {
            assert!(
                table.add(guest, frontend, size, file(0x1000), offset).is_err(),
                "{guest:#x} {size:#x} {offset:#x}"
            );
        }
        assert!(table.remove(0x4000, 0x9000_0000, 0x800).is_err());
        assert!(table.remove(0x4000, 0x9000_0000, 0x1000).is_ok());
        assert!(table.read(&[Segment { addr: 0x4000, len: 1 }], 0, &mut [0]).is_err());
    }
}
