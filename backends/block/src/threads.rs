//! A disk and its threads: made in two steps, since rings are made with privileges and threads without.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use domus_startup::sandbox::{Allow, COMMON};
use domus_startup::threads;
use vu_server::worker::{Orders, Port, orders};
use vu_server::{Server, server};

use crate::device::BlockDevice;
use crate::disk::Disk;
use crate::uring::{NewUring, UringError};
use crate::worker::Worker;

/// The system calls of a sealed `domus-block` beyond [`COMMON`] and those of vu-server: to wait for and feed the rings.
const OWN: &[Allow] = &[Allow::Call(libc::SYS_io_uring_enter)];

/// Every system call of a sealed `domus-block`.
pub fn calls() -> Vec<Allow> {
    [COMMON, server::CALLS, OWN].concat()
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

/// A disk with a ring for each queue, and no thread yet.
pub struct Prepared {
    name: String,
    disk: Arc<Disk>,
    rings: Vec<(NewUring, Orders)>,
    ports: Vec<Port>,
}

impl Prepared {
    /// Makes the rings of a disk that messages call `name`. Says so if the guest will not see all of the image.
    ///
    /// # Errors
    /// [`ThreadsError`].
    pub fn new(name: &str, disk: Disk, queues: u16) -> Result<Self, ThreadsError> {
        if disk.left_over() > 0 {
            domus_startup::say(format_args!(
                "{name}: the last {} bytes of the image make no whole block and are left out",
                disk.left_over()
            ));
        }
        let (mut rings, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..queues {
            let (port, orders) = orders().map_err(ThreadsError::EventFd)?;
            rings.push((NewUring::new()?, orders));
            ports.push(port);
        }
        Ok(Self { name: name.into(), disk: Arc::new(disk), rings, ports })
    }

    /// Starts the threads; when this returns each has its ring in use and needs no more system calls than [`calls`].
    ///
    /// # Errors
    /// [`ThreadsError`].
    pub fn start(self) -> Result<Server<BlockDevice>, ThreadsError> {
        let (device, writeback) = BlockDevice::new(self.disk.clone(), self.ports.len() as u16);
        for (index, (ring, orders)) in self.rings.into_iter().enumerate() {
            let (disk, writeback) = (self.disk.clone(), writeback.clone());
            let (report, enabled) = sync_channel(1);
            let work = move || {
                let ring = match ring.enable() {
                    Ok(ring) => ring,
                    Err(error) => return drop(report.send(Err(error))),
                };
                let worker = Worker::new(ring, disk, writeback, orders);
                let _ = report.send(Ok(()));
                worker.run();
            };
            let name = format!("{}.{index}", self.name.chars().take(11).collect::<String>());
            threads::start(name, work).map_err(ThreadsError::Spawn)?;
            enabled.recv().map_err(|_| ThreadsError::Spawn(io::ErrorKind::Other.into()))??;
        }
        Ok(Server::new(&self.name, device, self.ports))
    }
}
