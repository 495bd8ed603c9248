//! The start-up contract: one start message with all disks of a domain, then the sandbox, then serving for ever.
//!
//! ```text
//! listen ─▶ start message ─▶ disks, rings ─▶ sandbox::enter ─▶ threads ─▶ sandbox::seal ─▶ Ready ─▶ serve
//! ```
//!
//! A guest's bytes are looked at after the seal only: the vhost-user sockets are not read before.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Barrier};

use domus_startup::control::ControlError;
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, SandboxError};
use domus_startup::{Control, Events, Fds, control, threads};
use shared_abi::control::{BackendEvent, BackendReply, BlockRequest, BlockSource, BlockStart};
use shared_abi::ids::DeviceId;
use shared_abi::limits::{MAX_DEVICES, MAX_QUEUES};
use vu_server::Server;

use crate::device::BlockDevice;
use crate::disk::{Disk, DiskError};
use crate::threads::{Prepared, ThreadsError, calls};

/// Most queues of all disks together. Each has five descriptors: a ring, an eventfd for orders, and three from the
/// frontend; and a sealed process may have 1024 open. 31 disks with 5 queues each fit.
const MAX_ALL_QUEUES: usize = 160;

/// Why the disks cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The first request was another one.
    #[error("the first request must be `start`")]
    NoStart,
    /// A kind of disk that is not known.
    #[error("disk {0}: only raw images are served")]
    Kind(DeviceId),
    /// None, or more than a domain can have.
    #[error("{0} disks: 1 to {MAX_DEVICES} can be served")]
    Count(usize),
    /// A number of queues that cannot be.
    #[error("disk {id}: {queues} queues, it can have 1 to {MAX_QUEUES}")]
    Queues {
        /// The disk.
        id: DeviceId,
        /// The number.
        queues: u16,
    },
    /// More than the descriptors of one process are enough for.
    #[error("{0} queues of all disks together: at most {MAX_ALL_QUEUES} can be served")]
    AllQueues(usize),
    /// The message's descriptors do not fit it.
    #[error("start message")]
    Fds(#[from] FdError),
    /// An image cannot be used.
    #[error("disk {id}")]
    Disk {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: DiskError,
    },
    /// A disk's rings or threads cannot be made.
    #[error("disk {id}")]
    Threads {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: ThreadsError,
    },
    /// The sandbox did not close.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Serves the disks of one domain, as dom0 says on the control socket at `path`. Returns only if that is over.
///
/// # Errors
/// [`StartError`]; dom0 has been told, if it was there.
pub fn run(path: &Path) -> Result<(), StartError> {
    let control = Control::listen(path)?;
    let (request, fds) = control.accept_start()?;
    let brought_up = match request {
        BlockRequest::Start(start) => bring_up(&control, *start, fds),
        _ => Err(StartError::NoStart),
    };
    if let Err(error) = brought_up {
        control.fail(&error);
        return Err(error);
    }
    control.reply(&BackendReply::Ready);
    control.serve(|request: BlockRequest, _| match request {
        BlockRequest::Start(_) => {
            Err::<BackendReply, _>("the disks of this process are being served already".into())
        }
        other => Err(format!("{other:?} is not known yet")),
    })?;
    Ok(())
}

/// One disk on the way: prepared, then with threads, then served.
struct Device<T> {
    id: DeviceId,
    socket: UnixStream,
    what: T,
}

fn bring_up(control: &Control, start: BlockStart, mut fds: Fds) -> Result<(), StartError> {
    if !(1..=MAX_DEVICES).contains(&start.disks.len()) {
        return Err(StartError::Count(start.disks.len()));
    }
    let queues = start.disks.iter().map(|disk| usize::from(disk.queues)).sum();
    if queues > MAX_ALL_QUEUES {
        return Err(StartError::AllQueues(queues));
    }
    let mut prepared = Vec::new();
    for disk in start.disks {
        let id = disk.id;
        if !(1..=MAX_QUEUES).contains(&disk.queues) {
            return Err(StartError::Queues { id, queues: disk.queues });
        }
        let BlockSource::Raw(image) = disk.source else { return Err(StartError::Kind(id)) };
        let image: OwnedFd = fds.take(image)?;
        let socket = UnixStream::from(fds.take(disk.socket)?);
        let image = Disk::new(image.into(), &disk.serial, disk.read_only)
            .map_err(|source| StartError::Disk { id: id.clone(), source })?;
        let what = Prepared::new(id.as_str(), image, disk.queues)
            .map_err(|source| StartError::Threads { id: id.clone(), source })?;
        prepared.push(Device { id, socket, what });
    }
    // Open as long as the process lives, and longer where a ring has it.
    std::mem::forget(fds.take(start.lifeline)?);
    fds.finish()?;
    sandbox::enter(start.identity.uid)?;

    // The sockets' threads are made before the seal and wait at the gate until after it.
    let gate = Arc::new(Barrier::new(prepared.len() + 1));
    for Device { id, socket, what } in prepared {
        let failed = |source| StartError::Threads { id: id.clone(), source };
        let device = Device { id: id.clone(), socket, what: what.start().map_err(failed)? };
        let (gate, events) = (gate.clone(), control.events());
        let work = move || {
            gate.wait();
            serve(device, &events);
        };
        let name = format!("{}.ctl", id.as_str().chars().take(11).collect::<String>());
        threads::start(name, work).map_err(|error| failed(ThreadsError::Spawn(error)))?;
    }
    sandbox::seal(&calls())?;
    gate.wait();
    Ok(())
}

/// Serves one disk's frontend until it hangs up, which a runner that ends does.
fn serve(Device { id, socket, what }: Device<Server<BlockDevice>>, events: &Events) {
    if let Err(error) = what.serve(socket) {
        let why = control::chain(&error);
        domus_startup::say(format_args!("{id}: {why}"));
        events.send(&BackendEvent::DeviceFailed { device: id, why });
    }
}
