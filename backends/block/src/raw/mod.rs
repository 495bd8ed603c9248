//! A raw image: a regular file or a block device that was opened by somebody else, whose bytes are the disk's.
//!
//! Refused: anything that is neither, a writable disk on a descriptor that cannot write, a descriptor that is not open
//! as its cache needs it, and blocks smaller than direct I/O can do. Promised: an image that somebody else makes
//! shorter gives errors and nothing worse.

mod bounce;
mod engine;
mod inline;
mod probe;
mod zeroes;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use shared_abi::control::Cache;

use crate::disk::Shape;
use crate::storage::Storage;

pub use engine::{CALLS, RawEngine};

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// It is a directory, a socket, a pipe, a character device.
    #[error("an image is a regular file or a block device, this is neither")]
    NotAnImage,
    /// The descriptor cannot do what the disk needs.
    #[error("the image is not open for {0}")]
    Access(&'static str),
    /// With `O_DIRECT` and a cache, or the other way round.
    #[error("the image is open {0}")]
    Cache(&'static str),
    /// `O_DIRECT` does nothing here.
    #[error("this image cannot be read without the host's page cache: use cache `writeback`")]
    NoDirect,
    /// Smaller blocks than direct I/O can do.
    #[error(
        "blocks of {asked} bytes on an image that is read without the host's page cache in {needed} bytes at least: \
         use a block size of {needed}, or cache `writeback`"
    )]
    Blocks {
        /// The block size asked for.
        asked: u32,
        /// The least one.
        needed: u32,
    },
    /// The system refused to say.
    #[error("cannot {act} the image")]
    System {
        /// What was attempted.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// How direct I/O must be aligned, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of buffers.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

/// How requests may be answered at once instead of through the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inline {
    /// Not at all: it is direct I/O.
    Never,
    /// Reads of what the page cache has.
    Cached,
    /// All reads and writes: they are copies between memory and memory.
    Memory,
}

/// An open image.
#[derive(Debug)]
pub struct Raw {
    file: File,
    is_file: bool,
    /// Set if it is open with `O_DIRECT`.
    direct: Option<Alignment>,
    inline: Inline,
}

/// What was found.
#[derive(Debug)]
pub struct Opened {
    /// The image.
    pub raw: Raw,
    /// Its size in bytes, whole blocks or not.
    pub bytes: u64,
    /// What a guest is told of it.
    pub shape: Shape,
}

impl Raw {
    /// Looks at an open image that is to be served like this, in blocks of `block_size` bytes or in its own.
    ///
    /// # Errors
    /// [`RawError`].
    pub fn open(
        file: File,
        read_only: bool,
        discard: bool,
        cache: Cache,
        block_size: Option<u32>,
    ) -> Result<Opened, RawError> {
        let system = |act| move |source| RawError::System { act, source };
        let metadata = file.metadata().map_err(system("stat"))?;
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| system("look at")(errno.into()))?;
        let flags = OFlag::from_bits_retain(flags);
        match flags & OFlag::O_ACCMODE {
            OFlag::O_RDWR => {}
            OFlag::O_RDONLY if read_only => {}
            OFlag::O_RDONLY => {
                return Err(RawError::Access("writing: open it so, or make the disk read-only"));
            }
            _ => return Err(RawError::Access("reading")),
        }
        let kind = metadata.file_type();
        let (own, physical, optimal) = match () {
            () if kind.is_file() => (512, u32::try_from(metadata.blksize()).unwrap_or(0), 0),
            () if kind.is_block_device() => {
                let device = probe::device(&file).map_err(system("ask the block size of"))?;
                (device.logical, device.physical, device.optimal)
            }
            () => return Err(RawError::NotAnImage),
        };
        let direct = match (flags.contains(OFlag::O_DIRECT), cache) {
            (true, Cache::None) => {
                Some(probe::alignment(&file).map_err(system("try"))?.ok_or(RawError::NoDirect)?)
            }
            (false, Cache::Writeback | Cache::Unsafe) => None,
            (false, Cache::None) => {
                return Err(RawError::Cache("without O_DIRECT, which cache `none` needs"));
            }
            (true, _) => return Err(RawError::Cache("with O_DIRECT: that is cache `none`")),
        };
        let needed = direct.map_or(512, |alignment| alignment.offset);
        let block_size = block_size.unwrap_or(own.max(needed));
        if block_size < needed {
            return Err(RawError::Blocks { asked: block_size, needed });
        }
        let inline = match direct {
            Some(_) => Inline::Never,
            None if probe::is_memory(&file).map_err(system("find the file system of"))? => Inline::Memory,
            None => Inline::Cached,
        };
        let raw = Self { file, is_file: kind.is_file(), direct, inline };
        let bytes = raw.len().map_err(system("measure"))?;
        let physical_block = if physical.is_power_of_two() { physical.max(block_size) } else { block_size };
        let optimal_io = if optimal.is_multiple_of(block_size) { optimal } else { 0 };
        let shape = Shape { block_size, physical_block, optimal_io, read_only, discard };
        Ok(Opened { raw, bytes, shape })
    }

    fn len(&self) -> io::Result<u64> {
        // Not `metadata`: its system call takes paths too, which a sealed process may not use; and a block device has
        // its size here only.
        (&self.file).seek(SeekFrom::End(0))
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for Raw {
    fn measure(&self) -> Result<u64, String> {
        self.len().map_err(|error| format!("cannot measure the image: {error}"))
    }

    fn set_len(&self, bytes: u64) -> Result<(), String> {
        if !self.is_file {
            return Err(
                "a block device has the size it has: resize it first, then ask for its own size".into()
            );
        }
        self.file.set_len(bytes).map_err(|error| format!("cannot make the image {bytes} bytes long: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn open(file: File, read_only: bool) -> Result<Opened, RawError> {
        Raw::open(file, read_only, true, Cache::Writeback, None)
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1000]).unwrap();
        let file = |read, write| OpenOptions::new().read(read).write(write).open(&path).unwrap();
        assert!(matches!(open(file(true, false), false), Err(RawError::Access(_))));
        assert!(matches!(open(file(false, true), false), Err(RawError::Access(_))));
        assert!(matches!(open(File::open(&dir).unwrap(), true), Err(RawError::NotAnImage)));
        assert!(matches!(open(File::open("/dev/zero").unwrap(), true), Err(RawError::NotAnImage)));
        let without = Raw::open(file(true, true), false, true, Cache::None, None);
        assert!(matches!(without, Err(RawError::Cache(_))));
        let opened = open(file(true, true), false).unwrap();
        assert_eq!((opened.bytes, opened.shape.block_size), (1000, 512));
    }

    #[test]
    fn an_image_without_page_cache_has_the_blocks_that_direct_io_needs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        let file =
            || OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        let direct = |block_size| Raw::open(file(), false, true, Cache::None, block_size);
        assert!(matches!(open(file(), false), Err(RawError::Cache(_))));
        let opened = direct(None).unwrap();
        let needed = opened.raw.direct.unwrap().offset;
        assert_eq!(opened.shape.block_size, needed.max(512));
        assert_eq!(direct(Some(4096)).unwrap().shape.block_size, 4096);
        let refused = direct(Some(needed / 2)).unwrap_err().to_string();
        assert!(refused.contains(&format!("block size of {needed}")), "{refused}");
    }

    #[test]
    fn a_file_can_be_given_another_size_and_is_measured() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let opened = open(file, false).unwrap();
        opened.raw.set_len(12288).unwrap();
        assert_eq!(opened.raw.measure(), Ok(12288));
    }
}
