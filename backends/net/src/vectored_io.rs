//! `readv` and `writev` between a descriptor, buffers of our own and guest memory, without a copy of the latter.
#![expect(unsafe_code, reason = "readv and writev on guest memory have no safe binding")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_void, iovec};
use nix::errno::Errno;
use vu_server::Segment;
use vu_server::memory::MemoryTable;

/// Most pieces of memory in one `readv` or `writev` (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// Part of a guest's buffers: the `limit` bytes that follow the first `skip` of `segments`.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The memory they are in.
    pub memory: &'a MemoryTable,
    /// The buffers, not checked yet.
    pub segments: &'a [Segment],
    /// Where the part starts.
    pub skip: u64,
    /// How long it is at most.
    pub limit: u64,
}

/// Room for the pieces of one call, kept so that no frame allocates. Holds addresses only during a call.
#[derive(Debug, Default)]
pub struct VectoredIo(Vec<iovec>);

impl VectoredIo {
    /// Reads into `head`, then into the guest's buffers, then into `spill`. Returns the length of all together.
    ///
    /// # Errors
    /// What `readv` says, as the system's error; `InvalidInput` without one if a buffer is outside the memory or there
    /// are too many.
    pub fn read(
        &mut self,
        from: BorrowedFd<'_>,
        head: &mut [u8],
        buffers: Part<'_>,
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.0.clear();
        self.push(head.as_mut_ptr(), head.len());
        self.append(buffers)?;
        self.push(spill.as_mut_ptr(), spill.len());
        // SAFETY: the first and the last address are `head` and `spill`, borrowed mutably here. `append` took the
        // others from memory that is borrowed here and thus mapped, and checked their lengths. No reference points to
        // guest memory.
        let result = unsafe { libc::readv(from.as_raw_fd(), self.0.as_ptr(), self.0.len() as c_int) };
        Ok(Errno::result(result)? as usize)
    }

    /// Writes `head`, then a part of the guest's buffers. Returns how much was written.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, to: BorrowedFd<'_>, head: &[u8], rest: Part<'_>) -> io::Result<usize> {
        if rest.limit == 0 {
            return Ok(nix::unistd::write(to, head)?);
        }
        self.0.clear();
        self.push(head.as_ptr().cast_mut(), head.len());
        self.append(rest)?;
        // SAFETY: the first address is `head`, borrowed here, which writev only reads; `append` took the others from
        // memory that is borrowed here and thus mapped, and checked their lengths.
        let result = unsafe { libc::writev(to.as_raw_fd(), self.0.as_ptr(), self.0.len() as c_int) };
        Ok(Errno::result(result)? as usize)
    }

    /// Whether all of `segments` is in the guest's memory, in at most `most` pieces.
    pub fn can_hold(&mut self, memory: &MemoryTable, segments: &[Segment], most: usize) -> bool {
        self.0.clear();
        let part = Part { memory, segments, skip: 0, limit: u64::MAX };
        self.append(part).is_ok() && self.0.len() <= most
    }

    fn append(&mut self, part: Part<'_>) -> io::Result<()> {
        let outside = |_| io::Error::from(io::ErrorKind::InvalidInput);
        part.memory.iovecs(part.segments, part.skip, part.limit, &mut self.0).map_err(outside)?;
        // One more may follow.
        if self.0.len() < MAX_PIECES { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        self.0.push(iovec { iov_base: base.cast::<c_void>(), iov_len: len });
    }
}
