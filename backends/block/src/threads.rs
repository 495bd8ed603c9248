//! A disk and its threads: made in two steps, since rings are made with privileges and threads without.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use domus_startup::threads;
use vu_server::Server;
use vu_server::worker::{Commands, Port, commands};

use crate::async_io::AsyncDisk;
use crate::async_io::reactor::Reactor;
use crate::async_io::worker::AsyncWorker;
use crate::device::BlockDevice;
use crate::disk::Disk;
use crate::open::OpenError;
use crate::requests::Requests;
use crate::statistics::Counters;
use crate::uring::{NewUring, UringError};
use crate::worker::{Engine, Worker};
use crate::worker_command::BlockCommand;

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

/// A disk that is opened after the seal, by its own thread.
pub struct Opening {
    go: SyncSender<()>,
    opened: Receiver<Result<(), OpenError>>,
}

impl Opening {
    /// Lets the thread open the disk.
    pub fn begin(&self) {
        // A thread that has gone is noticed in `finish`.
        let _ = self.go.try_send(());
    }

    /// Waits until the disk is open and has its size.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn finish(self) -> Result<(), OpenError> {
        self.opened.recv().unwrap_or(Err(OpenError::Gone))
    }
}

/// A disk with a ring for each queue, or one for all, and no thread yet.
pub struct Prepared {
    name: String,
    disk: Arc<Disk>,
    work: Vec<Work>,
    counters: Vec<Arc<Counters>>,
    ports: Vec<Port<BlockCommand>>,
    opening: Option<Opening>,
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
            let (port, commands) = commands().map_err(ThreadsError::EventFd)?;
            let (ring, engine, disk) = (NewUring::new(files)?, engine(), disk.clone());
            let count = Arc::<Counters>::default();
            ports.push(port);
            counters.push(count.clone());
            work.push(Box::new(move |report| match ring.enable() {
                Ok(ring) => {
                    let _ = report.send(Ok(()));
                    Worker::new(ring, Requests::new(disk, count), engine, commands).run();
                }
                Err(error) => drop(report.send(Err(error))),
            }));
        }
        Ok(Self { name: name.into(), disk, work, counters, ports, opening: None })
    }

    /// Makes the ring of a disk whose work is asynchronous: one thread, which opens it when it is told to
    /// ([`Self::opening`]) and then serves all queues. Until then the disk has no proper size.
    ///
    /// # Errors
    /// [`ThreadsError`].
    pub fn opened_later<D: AsyncDisk>(
        name: &str,
        disk: Disk,
        queues: u16,
        files: &[BorrowedFd<'_>],
        open: impl FnOnce(&Arc<Reactor>, &Commands<BlockCommand>, &Arc<Disk>) -> Result<(D, u64), OpenError>
        + Send
        + 'static,
    ) -> Result<Self, ThreadsError> {
        let disk = Arc::new(disk);
        let (port, commands) = commands().map_err(ThreadsError::EventFd)?;
        let counters: Vec<_> = (0..queues).map(|_| Arc::<Counters>::default()).collect();
        let ring = NewUring::new(files)?;
        let ((go, told), (opened, result)) = (sync_channel(1), sync_channel(1));
        let (served, counts) = (disk.clone(), counters.clone());
        let work = move |report: SyncSender<Result<(), UringError>>| {
            let ring = match ring.enable() {
                Ok(ring) => ring,
                Err(error) => return drop(report.send(Err(error))),
            };
            let _ = report.send(Ok(()));
            if told.recv().is_err() {
                return;
            }
            let reactor = Arc::new(Reactor::new(ring));
            match open(&reactor, &commands, &served)
                .and_then(|(made, bytes)| Ok(served.sized(bytes).map(|()| made)?))
            {
                Ok(made) => {
                    let _ = opened.send(Ok(()));
                    let queues =
                        counts.into_iter().map(|count| Requests::new(served.clone(), count)).collect();
                    AsyncWorker::new(reactor, made, queues, commands).run();
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let ports = vec![port; queues.into()];
        let opening = Some(Opening { go, opened: result });
        Ok(Self { name: name.into(), disk, work: vec![Box::new(work)], counters, ports, opening })
    }

    /// What is left to do after the seal, if anything is.
    pub fn opening(&mut self) -> Option<Opening> {
        self.opening.take()
    }

    /// The way to its first worker.
    pub fn port(&self) -> Port<BlockCommand> {
        self.ports[0].clone()
    }

    /// The disk, the counters of its workers, and the way to each.
    pub fn parts(&self) -> (Arc<Disk>, Vec<Arc<Counters>>, Vec<Port<BlockCommand>>) {
        (self.disk.clone(), self.counters.clone(), self.ports.clone())
    }

    /// Starts the threads. On return every thread has enabled its ring and needs only the system calls in
    /// [`syscalls::calls`](crate::syscalls::calls).
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
