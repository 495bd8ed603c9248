//! The file that all programs of a case read and write.
//!
//! It has no name, so nothing of it stays however this process ends; the programs open it through `/proc`. Each of its
//! 4 KiB blocks begins with its own offset, by which a client sees that it gets what it asked for.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};

/// Bytes of the file, and of a null disk.
pub const SIZE: u64 = 1 << 30;

/// The distance of the stamps.
pub const STAMPED: usize = 4096;

/// A full file without a name.
#[derive(Debug)]
pub struct Data(File);

impl Data {
    /// Makes it in `folder`, allocates it and writes all of it; unless it shall be `cached`, the page cache then
    /// forgets it.
    pub fn new(folder: &Path, cached: bool) -> Result<Self> {
        let make = || {
            let mut options = File::options();
            let mut file =
                options.read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits()).open(folder)?;
            fallocate(&file, FallocateFlags::empty(), 0, SIZE as i64)?;
            let mut chunk = vec![0; 1 << 20];
            for start in (0..SIZE).step_by(chunk.len()) {
                for (offset, block) in (start..).step_by(STAMPED).zip(chunk.chunks_exact_mut(STAMPED)) {
                    block[..8].copy_from_slice(&offset.to_le_bytes());
                }
                file.write_all(&chunk)?;
            }
            file.sync_all()?;
            if !cached {
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            }
            Ok::<_, std::io::Error>(file)
        };
        let made = make();
        made.map(Self).with_context(|| format!("cannot make a file of {SIZE} bytes in {}", folder.display()))
    }

    /// A path that opens it as long as this process lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}
