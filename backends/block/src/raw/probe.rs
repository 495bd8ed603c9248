//! Probes an open image: the layout of its storage, and the alignment that direct I/O needs.
#![expect(unsafe_code, reason = "ioctls that write an int, and statx of an open file")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::Alignment;

nix::ioctl_read_bad!(
    /// The logical block size of a block device, in bytes.
    blksszget, libc::BLKSSZGET as libc::c_int,
    libc::c_int
);
nix::ioctl_read_bad!(
    /// The physical block size of a block device, in bytes.
    blkpbszget, libc::BLKPBSZGET as libc::c_int,
    libc::c_uint
);
nix::ioctl_read_bad!(
    /// The size of requests that a block device likes, in bytes; 0 if it does not say.
    blkioopt, libc::BLKIOOPT as libc::c_int,
    libc::c_uint
);

/// Bytes of a block device's blocks, and of the requests it likes.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// A logical block.
    pub logical: u32,
    /// A physical block.
    pub physical: u32,
    /// The best request; 0 if it does not say.
    pub optimal: u32,
}

/// Asks a block device.
///
/// # Errors
/// The system's.
pub fn device(file: &File) -> io::Result<Device> {
    let (mut logical, mut physical, mut optimal) = (0, 0, 0);
    // SAFETY: BLKSSZGET writes one int, to `logical`, which lives here.
    unsafe { blksszget(file.as_raw_fd(), &raw mut logical) }?;
    // SAFETY: BLKPBSZGET writes one unsigned int, to `physical`, which lives here.
    unsafe { blkpbszget(file.as_raw_fd(), &raw mut physical) }?;
    // SAFETY: BLKIOOPT writes one unsigned int, to `optimal`, which lives here.
    unsafe { blkioopt(file.as_raw_fd(), &raw mut optimal) }?;
    Ok(Device { logical: u32::try_from(logical).unwrap_or(0), physical, optimal })
}

/// How direct I/O on `file` must be aligned: as the system says (Linux 6.1, `STATX_DIOALIGN`), else as a read shows.
/// None if direct I/O is impossible.
///
/// # Errors
/// The system's.
pub fn alignment(file: &File) -> io::Result<Option<Alignment>> {
    let mut said = MaybeUninit::<libc::statx>::zeroed();
    let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
    // SAFETY: the path is empty, so the descriptor itself is looked at; one `statx` is written, to `said`, which lives
    // here.
    let done = unsafe { libc::statx(fd, path, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, said.as_mut_ptr()) };
    nix::errno::Errno::result(done)?;
    // SAFETY: it was all zeros before the system wrote to it, and any bytes are valid integers.
    let said = unsafe { said.assume_init() };
    if said.stx_mask & libc::STATX_DIOALIGN != 0 {
        let (memory, offset) = (said.stx_dio_mem_align, said.stx_dio_offset_align);
        return Ok((memory > 0 && offset > 0).then_some(Alignment { memory, offset }));
    }
    // A read of nothing at the end of a file is no proof, but there is nothing to read wrongly either.
    for size in [512, 1024, 2048, 4096_u32] {
        let mut buffer = vec![0; 8192];
        let start = buffer.as_ptr().align_offset(size as usize);
        match file.read_at(&mut buffer[start..start + size as usize], 0) {
            Ok(_) => return Ok(Some(Alignment { memory: size, offset: size })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the file's data is in memory and nowhere else: a `tmpfs`.
///
/// # Errors
/// The system's.
pub fn is_memory(file: &File) -> io::Result<bool> {
    Ok(nix::sys::statfs::fstatfs(file)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}
