//! The memory of the inflight logs: made here, kept by the frontend, given to the backend that comes next.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use domus_startup::memfd;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

use crate::MAX_QUEUE_SIZE;
use crate::queue::{LogPlace, log_len};

/// Most queues a log is made for: vhost-user numbers them in a byte.
const MAX_QUEUES: u16 = 256;

/// Bytes of the longest file of logs.
pub const MAX_LOGS: u64 = MAX_QUEUES as u64 * log_len(MAX_QUEUE_SIZE) as u64;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// For nothing, or for more than there can be.
    #[error(
        "an inflight log for {queues} queues of {size}: 1 to {MAX_QUEUES} queues of up to {MAX_QUEUE_SIZE} can be logged"
    )]
    Shape {
        /// Number of queues.
        queues: u16,
        /// Descriptors of each.
        size: u16,
    },
    /// A ring is larger than the log was made for.
    #[error("a ring of {size} descriptors with an inflight log for {logged}")]
    Ring {
        /// Descriptors of the ring.
        size: u16,
        /// Descriptors of the log.
        logged: u16,
    },
    /// It is not all in the file.
    #[error("an inflight log needs {needed:#x} bytes of a file that has {has:#x}")]
    Short {
        /// Where it ends.
        needed: u64,
        /// What there is.
        has: u64,
    },
    /// No memory file could be made or measured.
    #[error("cannot make or measure the file of an inflight log")]
    File(#[from] io::Error),
    /// It cannot be mapped.
    #[error("cannot map an inflight log")]
    Map(#[source] MmapRegionError),
}

/// The logs of all queues of a device.
#[derive(Debug)]
pub struct Inflight {
    mapping: Arc<MmapRegion>,
    queues: u16,
    size: u16,
}

/// Bytes of the logs of so many queues.
fn total(queues: u16, size: u16) -> Result<u64, InflightError> {
    if (1..=MAX_QUEUES).contains(&queues) && (1..=MAX_QUEUE_SIZE).contains(&size) {
        Ok(u64::from(queues) * log_len(size) as u64)
    } else {
        Err(InflightError::Shape { queues, size })
    }
}

impl Inflight {
    /// Makes a file for the logs, empty and of a size that nobody can change, and says what is where
    /// (`GET_INFLIGHT_FD`).
    pub fn create(queues: u16, size: u16) -> Result<(VhostUserInflight, File), InflightError> {
        let bytes = total(queues, size)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, size), memfd::sealed("inflight", bytes)?))
    }

    /// Maps logs that this or another backend has made (`SET_INFLIGHT_FD`).
    pub fn map(given: &VhostUserInflight, file: File) -> Result<Self, InflightError> {
        let (queues, size) = (given.num_queues, given.queue_size);
        let bytes = total(queues, size)?;
        let needed = given.mmap_offset.saturating_add(bytes);
        let has = (&file).seek(SeekFrom::End(0))?.min(given.mmap_offset.saturating_add(given.mmap_size));
        if needed > has {
            return Err(InflightError::Short { needed, has });
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, given.mmap_offset), bytes as usize);
        Ok(Self { mapping: Arc::new(mapping.map_err(InflightError::Map)?), queues, size })
    }

    /// Where the log of a queue is, whose ring has `size` descriptors; none if the frontend asked for fewer queues.
    ///
    /// # Errors
    /// [`InflightError::Ring`].
    pub fn log(&self, queue: u16, size: u16) -> Result<Option<LogPlace>, InflightError> {
        if size > self.size {
            return Err(InflightError::Ring { size, logged: self.size });
        }
        Ok((queue < self.queues).then(|| (self.mapping.clone(), usize::from(queue) * log_len(self.size))))
    }
}
