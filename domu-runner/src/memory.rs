//! Guest memory: one sealed memfd, mapped once, shared with the backends.
//!
//! RAM below 3 GiB comes first in the file, the rest follows at 4 GiB of the guest. The seals keep anybody who
//! holds the descriptor from shrinking it under a reader (`SIGBUS`) or growing it, and from executing it.
#![expect(unsafe_code, reason = "to give the kernel advice about a mapping has no safe binding")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use domus_startup::memfd;
use nix::errno::Errno;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout::{HOLE_END, HOLE_START};

/// Why a guest's memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {} MiB of guest memory", .size >> 20)]
pub struct MemoryError {
    act: &'static str,
    size: u64,
    source: io::Error,
}

/// One piece of RAM, as KVM and vhost-user (`SET_MEM_TABLE`) want it described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host: u64,
    /// Where it starts in the memfd.
    pub offset: u64,
}

/// The RAM of one guest. Cheap to clone.
#[derive(Clone)]
pub struct GuestRam {
    /// For access by guest physical address, with every bound checked.
    pub memory: GuestMemoryMmap,
    file: Arc<File>,
}

impl GuestRam {
    /// Makes `size` bytes of zeroed RAM. Pages are taken from the host when they are touched.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        let fail = |act, source| MemoryError { act, size, source };
        let file = memfd::sealed("guest-ram", size).map_err(|e| fail("make a sealed memfd for", e))?;
        let file = Arc::new(file);
        let ranges = pieces(size).map(|(gpa, offset, length)| {
            (GuestAddress(gpa), length as usize, Some(FileOffset::from_arc(file.clone(), offset)))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>())
            .map_err(|e| fail("map", io::Error::other(e)))?;
        let ram = Self { memory, file };
        ram.leave_out_of_cores().map_err(|e| fail("keep out of cores", e))?;
        Ok(ram)
    }

    /// A core of this process has nothing of its guest in it. One of the machine is made without the kernel's help.
    fn leave_out_of_cores(&self) -> io::Result<()> {
        for region in self.memory.iter() {
            let map = region.get_mmap();
            let start = map.as_ptr().cast::<libc::c_void>();
            // SAFETY: the range is exactly this mapping, and the advice changes nothing of what is in it.
            let advised = unsafe { libc::madvise(start, region.len() as usize, libc::MADV_DONTDUMP) };
            Errno::result(advised)?;
        }
        Ok(())
    }

    /// The pieces, in the order of their addresses.
    pub fn regions(&self) -> Vec<RamRegion> {
        let piece = |region: &vm_memory::GuestRegionMmap| RamRegion {
            gpa: region.start_addr().0,
            size: region.len(),
            host: region.get_mmap().as_ptr() as u64,
            offset: region.file_offset().map_or(0, FileOffset::start),
        };
        self.memory.iter().map(piece).collect()
    }

    /// The memfd, to be read without touching what was never touched.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The memfd, for backends.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// (guest physical address, offset in the memfd, bytes) of each piece of `size` bytes of RAM.
pub fn pieces(size: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let low = size.min(HOLE_START);
    [(0, 0, low), (HOLE_END, low, size - low)].into_iter().filter(|piece| piece.2 > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_sealed_and_its_pieces_skip_the_hole() {
        let ram = GuestRam::new(5 << 30).unwrap();
        let regions = ram.regions();
        assert_eq!((regions[0].gpa, regions[0].size, regions[0].offset), (0, 3 << 30, 0));
        assert_eq!((regions[1].gpa, regions[1].size, regions[1].offset), (4 << 30, 2 << 30, 3 << 30));
        assert!(nix::unistd::ftruncate(ram.fd(), 0).is_err());
    }

    proptest! {
        #[test]
        fn pieces_cover_the_size_and_nothing_of_the_hole(megabytes in 1u64..1 << 24) {
            let size = megabytes << 20;
            let mut next = 0;
            for (gpa, offset, length) in pieces(size) {
                prop_assert_eq!(offset, next);
                prop_assert!(gpa + length <= HOLE_START || gpa >= HOLE_END);
                next += length;
            }
            prop_assert_eq!(next, size);
        }
    }
}
