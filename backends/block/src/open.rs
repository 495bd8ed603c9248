//! Opens the disk that a start message or a command line names, in two steps. Before the seal only the descriptors are
//! checked. After the seal the disk's own thread parses metadata and talks to servers.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use shared_abi::control::{Cache, ImageFormat};
use vu_server::{Commands, WorkerCommand};

use crate::async_io::AsyncDisk;
use crate::async_io::reactor::Reactor;
use crate::disk::{DiskError, Shape};
use crate::nbd::client::{NbdDisk, Remote};
use crate::nbd::handshake::HandshakeError;
use crate::qcow2::{ChainError, Image, OpenImage};
use crate::worker_command::BlockCommand;

/// Bytes of a request that a qcow2 image likes: a cluster of the usual size.
const CLUSTER: u32 = 64 << 10;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An image is refused.
    #[error("cannot serve the image")]
    Chain(#[from] ChainError),
    /// A server is of no use.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It is too small.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A descriptor cannot do what the disk needs.
    #[error("an image is not open for {0}")]
    Access(&'static str),
    /// The server has larger blocks than the guest would be told.
    #[error("the NBD server wants blocks of {0} bytes: give the disk a block size of {0}")]
    Block(u32),
    /// The thread has ended.
    #[error("the thread of the disk has ended")]
    Gone,
}

/// The images of a chain, not looked into yet.
#[derive(Debug)]
pub struct Chain {
    image: OpenImage,
    backing: Vec<(ImageFormat, OpenImage)>,
    writable: bool,
    sync: bool,
}

impl Chain {
    /// Looks at the descriptors.
    ///
    /// # Errors
    /// [`OpenError::Access`].
    pub fn new(
        image: (PathBuf, File),
        backing: Vec<(PathBuf, File, ImageFormat)>,
        writable: bool,
        cache: Cache,
    ) -> Result<Self, OpenError> {
        let image = open(image.0, image.1, writable)?;
        let backing = backing
            .into_iter()
            .map(|(path, file, format)| Ok((format, open(path, file, false)?)))
            .collect::<Result<_, OpenError>>()?;
        Ok(Self { image, backing, writable, sync: cache != Cache::Unsafe })
    }

    /// What a guest is told.
    pub fn shape(block_size: Option<u32>, read_only: bool, discard: bool) -> Shape {
        let block_size = block_size.unwrap_or(512);
        Shape { block_size, physical_block: block_size.max(4096), optimal_io: CLUSTER, read_only, discard }
    }

    /// Opens the chain, in its thread.
    ///
    /// # Errors
    /// [`OpenError::Chain`].
    pub fn open(self, reactor: &Arc<Reactor>) -> Result<(Image, u64), OpenError> {
        reactor.block_on(async {
            let Self { image, backing, writable, sync } = self;
            let image = Image::open(reactor, image, ImageFormat::Qcow2, backing, writable, sync).await?;
            let bytes = image.size().await;
            Ok((image, bytes))
        })
    }
}

fn open(path: PathBuf, file: File, write: bool) -> Result<OpenImage, OpenError> {
    let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|_| OpenError::Access("anything"))?;
    let flags = OFlag::from_bits_retain(flags);
    match flags & OFlag::O_ACCMODE {
        OFlag::O_RDWR => {}
        OFlag::O_RDONLY if !write => {}
        OFlag::O_RDONLY => return Err(OpenError::Access("writing: open it so, or make the disk read-only")),
        _ => return Err(OpenError::Access("reading")),
    }
    Ok(OpenImage { path, file, direct: flags.contains(OFlag::O_DIRECT) })
}

/// Connects to a server, in the disk's thread; without a socket it waits for one to be offered.
///
/// # Errors
/// [`OpenError`].
pub fn connect(
    reactor: &Arc<Reactor>,
    commands: &Commands<BlockCommand>,
    remote: Remote,
    socket: Option<OwnedFd>,
    block_size: u32,
    lost: Box<dyn Fn(&str)>,
) -> Result<(NbdDisk, u64), OpenError> {
    let disk = NbdDisk::new(reactor, remote, lost);
    let export = reactor.block_on(offered_meanwhile(reactor, commands, &disk, disk.connect(socket)))?;
    if export.block > block_size {
        return Err(OpenError::Block(export.block));
    }
    Ok((disk, export.bytes))
}

/// Waits for `work`, with the commands that may come before a disk is served: offers.
async fn offered_meanwhile<T>(
    reactor: &Reactor,
    commands: &Commands<BlockCommand>,
    disk: &NbdDisk,
    work: impl Future<Output = T>,
) -> T {
    let offers = async {
        loop {
            reactor.ready(commands.as_fd(), false).await;
            while let Some(order) = commands.take() {
                if let WorkerCommand::Device(BlockCommand::Offer(offer)) = order {
                    disk.offer(offer);
                }
            }
        }
    };
    match select(pin!(work), pin!(offers)).await {
        Either::Left((done, _)) => done,
        Either::Right((never, _)) => never,
    }
}
