//! A disk and its threads: made in two steps, since rings are made with privileges and threads without.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use domus_startup::sandbox::{Allow, COMMON};
use domus_startup::threads;
use shared_abi::ids::DeviceId;
use vu_server::worker::{Port, orders};
use vu_server::{Server, server};

use crate::control::{Served, Storage};
use crate::device::BlockDevice;
use crate::disk::Disk;
use crate::intake::Intake;
use crate::order::BlockOrder;
use crate::raw;
use crate::statistics::Counters;
use crate::uring::{NewUring, UringError};
use crate::worker::{Engine, Worker};

/// The system calls of a sealed `domus-block` beyond [`COMMON`] and those of vu-server: to wait for and feed the rings.
const OWN: &[Allow] = &[Allow::Call(libc::SYS_io_uring_enter)];

/// Every system call of a sealed `domus-block`.
pub fn calls() -> Vec<Allow> {
    [COMMON, server::CALLS, OWN, raw::CALLS].concat()
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    /// No io_uring.
    #[error(transparent)]
    Uring(#[from] UringError),
    /// No eventfd.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// No thread.
    #[error("cannot start a thread")]
    Spawn(#[source] io::Error),
}

/// What a worker's thread does: it says whether its ring is in use, and works.
type Work = Box<dyn FnOnce(SyncSender<Result<(), UringError>>) + Send>;

/// A disk with a ring for each queue, and no thread yet.
pub struct Prepared {
    name: String,
    disk: Arc<Disk>,
    work: Vec<Work>,
    counters: Vec<Arc<Counters>>,
    ports: Vec<Port<BlockOrder>>,
}

impl Prepared {
    /// Makes the rings of a disk that messages call `name`: one for each queue, each holding `files`, with an engine
    /// that `engine` makes.
    ///
    /// # Errors
    /// [`ThreadsError`].
    pub fn new<E: Engine>(
        name: &str,
        disk: Disk,
        queues: u16,
        files: &[BorrowedFd<'_>],
        mut engine: impl FnMut() -> E,
    ) -> Result<Self, ThreadsError> {
        let disk = Arc::new(disk);
        let (mut work, mut counters, mut ports) = (Vec::<Work>::new(), Vec::new(), Vec::new());
        for _ in 0..queues {
            let (port, orders) = orders().map_err(ThreadsError::EventFd)?;
            let (ring, engine, disk) = (NewUring::new(files)?, engine(), disk.clone());
            let count = Arc::<Counters>::default();
            ports.push(port);
            counters.push(count.clone());
            work.push(Box::new(move |report| match ring.enable() {
                Ok(ring) => {
                    let _ = report.send(Ok(()));
                    Worker::new(ring, Intake::new(disk, count), engine, orders).run();
                }
                Err(error) => drop(report.send(Err(error))),
            }));
        }
        Ok(Self { name: name.into(), disk, work, counters, ports })
    }

    /// The disk as the control thread knows it.
    pub fn served(&self, id: DeviceId, storage: Option<Arc<dyn Storage>>) -> Served {
        let (disk, counters, ports) = (self.disk.clone(), self.counters.clone(), self.ports.clone());
        Served { id, disk, storage, counters, ports }
    }

    /// Starts the threads; when this returns each has its ring in use and needs no more system calls than [`calls`].
    ///
    /// # Errors
    /// [`ThreadsError`].
    pub fn start(self) -> Result<Server<BlockDevice>, ThreadsError> {
        let device = BlockDevice::new(self.disk, self.ports.len() as u16);
        for (index, work) in self.work.into_iter().enumerate() {
            let (report, enabled) = sync_channel(1);
            let name = format!("{}.{index}", self.name.chars().take(11).collect::<String>());
            threads::start(name, move || work(report)).map_err(ThreadsError::Spawn)?;
            enabled.recv().map_err(|_| ThreadsError::Spawn(io::ErrorKind::Other.into()))??;
        }
        Ok(Server::new(&self.name, device, self.ports))
    }
}
