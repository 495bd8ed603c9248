//! A file as imago's storage: every access goes through the thread's ring.
//!
//! It opens nothing: files are given open, and their names are only for messages and for what an image says of them.
#![expect(unsafe_code, reason = "imago's storage trait hands out the addresses of its buffers")]

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use crate::async_io::reactor::Reactor;

/// Most buffers of one system call (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;
/// Alignment that suffices for `O_DIRECT` on every disk whose blocks are served.
const DIRECT_ALIGN: usize = 4096;

/// An open file of an image.
pub struct RingFile {
    reactor: Arc<Reactor>,
    file: File,
    path: PathBuf,
    align: usize,
    helper: CommonStorageHelper,
}

impl RingFile {
    /// A file that was opened at `path`, `direct` if with `O_DIRECT`.
    pub fn new(reactor: Arc<Reactor>, file: File, path: &Path, direct: bool) -> Self {
        let align = if direct { DIRECT_ALIGN } else { 1 };
        Self { reactor, file, path: path.into(), align, helper: CommonStorageHelper::default() }
    }

    /// Makes a hole: what is there reads as zeros afterwards. False if the file system makes none.
    ///
    /// # Errors
    /// What the system says.
    pub async fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.reactor.allocate(&self.file, mode, offset, len).await {
            Ok(()) => Ok(true),
            Err(error) if unsupported(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS))
}

impl Storage for RingFile {
    fn mem_align(&self) -> usize {
        self.align
    }

    fn req_align(&self) -> usize {
        self.align
    }

    fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        // `join` leaves an absolute path as it is.
        Ok(self.path.parent().unwrap_or(Path::new("/")).join(relative))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    async unsafe fn pure_readv(&self, mut buffers: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let moved = {
                // SAFETY: the vectors are used while `buffers` is borrowed.
                let vectors = unsafe { buffers.as_iovec() };
                let vectors = &vectors[..vectors.len().min(MAX_BUFFERS)];
                // SAFETY: the buffers are borrowed mutably by this future; imago drops its futures and leaks none.
                unsafe { self.reactor.read(&self.file, vectors, offset) }.await?
            };
            let past_end = moved == 0 || !moved.is_multiple_of(self.align as u64);
            let left = buffers.len();
            buffers = buffers.split_tail_at(moved.min(left));
            offset += moved;
            if past_end {
                buffers.fill(0);
                return Ok(());
            }
        }
        Ok(())
    }

    async unsafe fn pure_writev(&self, mut buffers: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let moved = {
                // SAFETY: the vectors are used while `buffers` is borrowed.
                let vectors = unsafe { buffers.as_iovec() };
                let vectors = &vectors[..vectors.len().min(MAX_BUFFERS)];
                // SAFETY: the buffers are borrowed by this future; imago drops its futures and leaks none.
                unsafe { self.reactor.write(&self.file, vectors, offset) }.await?
            };
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let left = buffers.len();
            buffers = buffers.split_tail_at(moved.min(left));
            offset += moved;
        }
        Ok(())
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // It may lie beyond the end of the file, which a hole would not move.
        let zeroed = self.reactor.allocate(&self.file, libc::FALLOC_FL_ZERO_RANGE, offset, length).await;
        zeroed.map_err(|error| match unsupported(&error) {
            true => io::Error::new(io::ErrorKind::Unsupported, error),
            false => error,
        })
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(offset, length).await.map(drop)
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.reactor.sync(&self.file).await
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    /// Nothing to wait for: an operation is over when its future has been dropped ([`Reactor`]).
    async fn settle_writes(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

impl fmt::Debug for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingFile({} {})", self.file.as_raw_fd(), self.path.display())
    }
}

impl fmt::Display for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}
