//! Reads and writes that are done at once: copies between the page cache and guest memory.
#![expect(unsafe_code, reason = "the kernel reads and writes guest memory at the addresses given")]

use std::fs::File;
use std::os::fd::AsRawFd;

use libc::iovec;

/// Reads what the page cache has; none if it has not the first byte, or if the file system cannot tell.
///
/// # Safety
/// The buffers must be mapped guest memory.
pub unsafe fn read_cached(file: &File, buffers: &[iovec], offset: u64) -> Option<u64> {
    // SAFETY: the caller's promise.
    unsafe { read(file, buffers, offset, libc::RWF_NOWAIT) }
}

/// Reads, however long it takes.
///
/// # Safety
/// As for [`read_cached`].
pub unsafe fn read_now(file: &File, buffers: &[iovec], offset: u64) -> Option<u64> {
    // SAFETY: the caller's promise.
    unsafe { read(file, buffers, offset, 0) }
}

/// # Safety
/// As for [`read_cached`].
unsafe fn read(file: &File, buffers: &[iovec], offset: u64, flags: libc::c_int) -> Option<u64> {
    let (fd, count) = (file.as_raw_fd(), buffers.len() as libc::c_int);
    // SAFETY: the array is `count` long, and what it leads to is mapped: the caller's promise.
    let moved = unsafe { libc::preadv2(fd, buffers.as_ptr(), count, offset.cast_signed(), flags) };
    u64::try_from(moved).ok().filter(|&moved| moved > 0)
}

/// Writes, however long it takes; none if nothing could be written.
///
/// # Safety
/// As for [`read_cached`].
pub unsafe fn write_now(file: &File, buffers: &[iovec], offset: u64) -> Option<u64> {
    let (fd, count) = (file.as_raw_fd(), buffers.len() as libc::c_int);
    // SAFETY: the array is `count` long, and what it leads to is mapped: the caller's promise.
    let moved = unsafe { libc::pwritev2(fd, buffers.as_ptr(), count, offset.cast_signed(), 0) };
    u64::try_from(moved).ok().filter(|&moved| moved > 0)
}
