//! The start-up contract: one start message with all disks of a domain, then the sandbox, then serving for ever.
//!
//! ```text
//! listen ─▶ start message ─▶ disks, rings ─▶ sandbox::enter ─▶ threads ─▶ sandbox::seal
//!                                                                              │
//!                                                serve ◀─ Ready ◀─ open images ◀┘
//! ```
//!
//! Untrusted bytes are read only after the seal: from the vhost-user sockets, from an image's metadata, which a guest
//! may have written, and from a server.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use domus_startup::control::ControlError;
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, SandboxError};
use domus_startup::{Control, Events, Fds, control, threads};
use shared_abi::control::{BackendEvent, BlockDisk, BlockRequest, BlockSource};
use shared_abi::ids::DeviceId;
use shared_abi::limits::{MAX_DEVICES, MAX_QUEUES};
use vu_server::Server;
use vu_server::server::MAX_LOGS;

use crate::control::{Disks, Served, server_of};
use crate::device::BlockDevice;
use crate::faults::Faults;
use crate::nbd::client::Remote;
use crate::nbd::fence;
use crate::null_disk::NullDisk;
use crate::open::OpenError;
use crate::spec::{DiskSpec, OnLost, PrepareError, PreparedDisk, Source};
use crate::syscalls::calls;
use crate::threads::{Opening, ThreadsError};
use crate::throttle::{self, Gate, Shared};

/// Most queues of all disks together. Each has five descriptors: a ring, an eventfd for commands, and three from the
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
    /// A disk's image cannot be looked at.
    #[error("cannot look at the image of disk {id}")]
    Look {
        /// The disk.
        id: DeviceId,
        /// What the system said.
        source: io::Error,
    },
    /// A disk cannot be prepared.
    #[error("disk {id}")]
    Prepare {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: PrepareError,
    },
    /// An image or an export cannot be opened.
    #[error("disk {id}")]
    Open {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: OpenError,
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
    domus_startup::serve(path, bring_up, |disks, request, fds| disks.handle(request, fds))
}

/// One disk on the way: prepared, then with threads, then served.
struct Device<T> {
    id: DeviceId,
    socket: UnixStream,
    what: T,
}

fn bring_up(control: &Control, request: BlockRequest, mut fds: Fds) -> Result<Disks, StartError> {
    let BlockRequest::Start(start) = request else { return Err(StartError::NoStart) };
    if !(1..=MAX_DEVICES).contains(&start.disks.len()) {
        return Err(StartError::Count(start.disks.len()));
    }
    let queues = start.disks.iter().map(|disk| usize::from(disk.queues)).sum();
    if queues > MAX_ALL_QUEUES {
        return Err(StartError::AllQueues(queues));
    }
    let lifeline = fds.take(start.lifeline)?;
    let domain = throttle::shared(start.limits);
    let mut longest = Some(MAX_LOGS);
    let (mut prepared, mut served) = (Vec::new(), Vec::new());
    let (mut openings, mut unconnected) = (Vec::new(), Vec::new());
    for disk in start.disks {
        let id = disk.id.clone();
        if !(1..=MAX_QUEUES).contains(&disk.queues) {
            return Err(StartError::Queues { id, queues: disk.queues });
        }
        let socket = UnixStream::from(fds.take(disk.socket)?);
        let remote = matches!(disk.source, BlockSource::Nbd { .. });
        if matches!(disk.source, BlockSource::Nbd { socket: None, .. }) {
            unconnected.push(id.clone());
        }
        let (PreparedDisk { prepared: mut what, storage, .. }, file) =
            prepare(control, disk, &mut fds, domain.clone(), lifeline.as_fd(), !start.limited_files)?;
        longest = longest.zip(file).map(|(one, other)| one.max(other));
        served.push(Served::new(id.clone(), &what, storage, remote));
        openings.extend(what.opening().map(|opening| (id.clone(), opening)));
        prepared.push(Device { id, socket, what });
    }
    for lock in start.locks {
        std::mem::forget(fds.take(lock)?);
    }
    fds.finish()?;
    // The rings have it: it is closed when the kernel has finished everything they were asked to do.
    drop(lifeline);
    // Where no image grows by itself: a process that is its guest's cannot fill a disk. dom0 raises the limit before it
    // asks for a longer image.
    longest.map_or(Ok(()), sandbox::limit_files_for_now)?;
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
    let disks = Disks::new(served, domain, control.events());
    finish(control, &disks, openings, unconnected)?;
    gate.wait();
    Ok(disks)
}

/// Opens what is looked into after the seal only. Disks whose server could not be reached get their connections from
/// dom0, which asks for nothing else before this process is ready.
fn finish(
    control: &Control,
    disks: &Disks,
    openings: Vec<(DeviceId, Opening)>,
    mut unconnected: Vec<DeviceId>,
) -> Result<(), StartError> {
    openings.iter().for_each(|(_, opening)| opening.begin());
    let (later, now): (Vec<_>, Vec<_>) = openings.into_iter().partition(|(id, _)| unconnected.contains(id));
    let end = |(id, opening): (DeviceId, Opening)| {
        opening.finish().map_err(|source| StartError::Open { id, source })
    };
    now.into_iter().try_for_each(end)?;
    while !unconnected.is_empty() {
        let (request, fds) = control.receive()?;
        let BlockRequest::Reconnect { disk, .. } = &request else {
            control.refuse("only connections to servers are waited for before the disks are ready".into());
            continue;
        };
        let disk = disk.clone();
        match disks.handle(request, fds) {
            Ok(reply) => {
                unconnected.retain(|id| *id != disk);
                control.reply(&reply);
            }
            Err(why) => control.refuse(why),
        }
    }
    later.into_iter().try_for_each(end)
}

/// Looks at what a disk is made of, and makes its rings.
fn prepare(
    control: &Control,
    disk: BlockDisk,
    fds: &mut Fds,
    domain: Shared,
    lifeline: BorrowedFd<'_>,
    unlimited: bool,
) -> Result<(PreparedDisk, Option<u64>), StartError> {
    let BlockDisk { id, queues, cache, read_only, discard, block_size, serial, .. } = disk;
    let mut faults = Faults::new(disk.read_error, disk.write_error, id.clone(), control.events());
    let source = match disk.source {
        BlockSource::Raw(image) => Source::Raw(fds.take(image)?.into()),
        BlockSource::Lost { bytes } => {
            // Its errors are the guest's: nothing could be done again.
            faults = Faults::reported();
            Source::Null(NullDisk::Failing, bytes)
        }
        BlockSource::Qcow2 { image, path, backing } => Source::Qcow2 {
            image: (path.into(), fds.take(image)?.into()),
            backing: backing
                .into_iter()
                .map(|behind| Ok((behind.path.into(), fds.take(behind.image)?.into(), behind.format)))
                .collect::<Result<_, FdError>>()?,
        },
        BlockSource::Nbd { socket, export, error_after } => {
            let error_after = error_after.map(|seconds| Duration::from_secs(seconds.into()));
            Source::Nbd {
                socket: socket.map(|socket| fds.take(socket)).transpose()?,
                remote: Remote { export, writable: !read_only, error_after, fence: fence::PATIENCE },
                lost: server_lost(id.clone(), control.events()),
            }
        }
    };
    let longest = source.longest(read_only, unlimited);
    let longest = longest.map_err(|source| StartError::Look { id: id.clone(), source })?;
    let (name, gate) = (id.as_str(), Gate::new(disk.limits, domain));
    let spec = DiskSpec { name, source, queues, cache, read_only, discard, block_size, serial, gate, faults };
    let made = spec.prepare(&[lifeline]).map_err(|source| StartError::Prepare { id: id.clone(), source })?;
    if made.left_over > 0 {
        domus_startup::say(format_args!(
            "{id}: the last {} bytes of the image make no whole block and are left out",
            made.left_over
        ));
    }
    Ok((made, longest))
}

/// Tells dom0 that a disk's server is gone, until there is a new connection.
fn server_lost(device: DeviceId, events: Events) -> OnLost {
    Box::new(move |disk| {
        Box::new(move |why| {
            disk.faults().stalled();
            let (device, why) = (device.clone(), why.to_owned());
            events.stand(&server_of(&device), &BackendEvent::ConnectionLost { device, why });
        })
    })
}

/// Serves one disk's frontend until it hangs up, which a runner that ends does.
fn serve(Device { id, socket, what }: Device<Server<BlockDevice>>, events: &Events) {
    if let Err(error) = what.serve(socket) {
        let why = control::chain(&error);
        domus_startup::say(format_args!("{id}: {why}"));
        events.send(&BackendEvent::DeviceFailed { device: id, why });
    }
}
