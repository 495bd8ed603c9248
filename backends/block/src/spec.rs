//! Makes the rings of one disk from its description, in the same way for dom0 and for a command line.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use shared_abi::control::{Cache, ImageFormat};

use crate::disk::{Disk, DiskError, Service, Shape};
use crate::faults::Faults;
use crate::nbd::client::Remote;
use crate::null_disk::NullDisk;
use crate::open::{Chain, OpenError, connect};
use crate::raw::{Raw, RawEngine, RawError};
use crate::storage::{AskedThread, Storage};
use crate::threads::{Prepared, ThreadsError};
use crate::throttle::Gate;

/// Why a disk cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The raw image cannot be used.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// The qcow2 image cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There cannot be such a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk's rings cannot be made.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// Makes what is called with the reason each time that the connection of this disk to its server is lost.
pub type OnLost = Box<dyn FnOnce(Arc<Disk>) -> Box<dyn Fn(&str)> + Send>;

/// Where a disk's data is. All files and sockets are open already.
pub enum Source {
    /// In a raw image or on a block device.
    Raw(File),
    /// In a qcow2 image, and in the images behind it.
    Qcow2 {
        /// The image and its absolute path.
        image: (PathBuf, File),
        /// The images that it may refer to.
        backing: Vec<(PathBuf, File, ImageFormat)>,
    },
    /// At an NBD server.
    Nbd {
        /// The connection; none if the server could not be reached yet.
        socket: Option<OwnedFd>,
        /// The export.
        remote: Remote,
        /// What the loss of the server means.
        lost: OnLost,
    },
    /// Nowhere: each request has the same result.
    Null(NullDisk, u64),
}

/// One disk to be served.
pub struct DiskSpec<'a> {
    /// Its name, for messages and threads.
    pub name: &'a str,
    /// Where its data is.
    pub source: Source,
    /// The number of its queues.
    pub queues: u16,
    /// What an acknowledged write is worth.
    pub cache: Cache,
    /// The guest may not write.
    pub read_only: bool,
    /// The guest may give space back.
    pub discard: bool,
    /// Bytes of a logical block; those of the image if none.
    pub block_size: Option<u32>,
    /// What `VIRTIO_BLK_T_GET_ID` returns.
    pub serial: String,
    /// What it may do.
    pub gate: Gate,
    /// What becomes of errors.
    pub faults: Faults,
}

/// A disk that needs nothing more than its threads.
pub struct PreparedDisk {
    /// The disk and its rings.
    pub prepared: Prepared,
    /// What is behind the disk; none if nothing is.
    pub storage: Option<Arc<dyn Storage>>,
    /// Bytes at the end of a raw image that make no whole block and are not served.
    pub left_over: u64,
}

impl DiskSpec<'_> {
    /// Looks at what the disk is made of, and makes its rings, each of which holds `files`.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn prepare(self, files: &[BorrowedFd<'_>]) -> Result<PreparedDisk, PrepareError> {
        let Self { name, source, queues, cache, read_only, discard, serial, gate, faults, .. } = self;
        let service = Service { serial, cache, gate, faults };
        let block_size = self.block_size.unwrap_or(512);
        let shape = Shape { block_size, physical_block: block_size, optimal_io: 0, read_only, discard };
        match source {
            Source::Raw(image) => {
                let opened = Raw::open(image, read_only, discard, cache, self.block_size)?;
                let (disk, raw) = (Disk::new(opened.bytes, opened.shape, service)?, Arc::new(opened.raw));
                let left_over = opened.bytes - disk.bytes();
                let prepared = Prepared::new(name, disk, queues, files, || RawEngine::new(raw.clone()))?;
                Ok(PreparedDisk { prepared, storage: Some(raw), left_over })
            }
            Source::Qcow2 { image, backing } => {
                let chain = Chain::new(image, backing, !read_only, cache)?;
                let shape = Chain::shape(self.block_size, read_only, discard);
                let disk = Disk::new(shape.block_size.into(), shape, service)?;
                let open = move |reactor: &_, _: &_, _: &_| chain.open(reactor);
                Ok(Prepared::opened_later(name, disk, queues, files, open)?.into())
            }
            Source::Nbd { socket, remote, lost } => {
                let disk = Disk::new(block_size.into(), shape, service)?;
                let open = move |reactor: &_, commands: &_, served: &Arc<Disk>| {
                    connect(reactor, commands, remote, socket, block_size, lost(served.clone()))
                };
                Ok(Prepared::opened_later(name, disk, queues, files, open)?.into())
            }
            Source::Null(result, bytes) => {
                let disk = Disk::new(bytes, shape, service)?;
                let prepared = Prepared::new(name, disk, queues, files, || result)?;
                Ok(PreparedDisk { prepared, storage: None, left_over: 0 })
            }
        }
    }
}

impl Source {
    /// How long this process may make a file of this source; none if the source grows by itself. `resizable`: somebody
    /// may ask for another length of the image, and does not raise the limit first.
    ///
    /// # Errors
    /// The image cannot be looked at.
    pub fn longest(&self, read_only: bool, resizable: bool) -> io::Result<Option<u64>> {
        Ok(match self {
            _ if read_only => Some(0),
            Self::Raw(image) => match image.metadata()? {
                found if found.file_type().is_block_device() => Some(0),
                found => (!resizable).then_some(found.len()),
            },
            Self::Qcow2 { .. } => None,
            Self::Nbd { .. } | Self::Null(..) => Some(0),
        })
    }
}

/// A disk that its own thread opens, and that this thread is asked about.
impl From<Prepared> for PreparedDisk {
    fn from(prepared: Prepared) -> Self {
        let storage = Arc::new(AskedThread(prepared.port()));
        Self { prepared, storage: Some(storage), left_over: 0 }
    }
}
