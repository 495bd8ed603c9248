//! The start-up contract: one start message with all disks of a domain, then the sandbox, then serving for ever.
//!
//! ```text
//! listen ─▶ start message ─▶ disks, rings ─▶ sandbox::enter ─▶ threads ─▶ sandbox::seal ─▶ open images ─▶ Ready ─▶ serve
//! ```
//!
//! A guest's bytes are looked at after the seal only: the vhost-user sockets are not read before, nor is what a guest may
//! have written into an image's metadata, nor what a server says.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use domus_startup::control::ControlError;
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, SandboxError};
use domus_startup::{Control, Events, Fds, control, threads};
use shared_abi::control::{BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockSource, BlockStart};
use shared_abi::ids::DeviceId;
use shared_abi::limits::{MAX_DEVICES, MAX_QUEUES};
use vu_server::Server;

use crate::control::{Disks, Served, server_of};
use crate::device::BlockDevice;
use crate::disk::{Disk, DiskError, Service, Shape};
use crate::faults::Faults;
use crate::fixed::Fixed;
use crate::nbd::client::Remote;
use crate::open::{Chain, OpenError, connect};
use crate::raw::{Raw, RawEngine, RawError};
use crate::storage::{AskedThread, Storage};
use crate::threads::{Opening, Prepared, ThreadsError, calls};
use crate::throttle::{self, Gate, Shared};

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
    /// A raw image cannot be used.
    #[error("disk {id}")]
    Raw {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: RawError,
    },
    /// An image or an export cannot be opened.
    #[error("disk {id}")]
    Open {
        /// The disk.
        id: DeviceId,
        /// Why.
        source: OpenError,
    },
    /// There cannot be such a disk.
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
    let disks = brought_up.inspect_err(|error| control.fail(error))?;
    control.reply(&BackendReply::Ready);
    control.serve(|request, fds| disks.handle(request, fds))?;
    Ok(())
}

/// One disk on the way: prepared, then with threads, then served.
struct Device<T> {
    id: DeviceId,
    socket: UnixStream,
    what: T,
}

fn bring_up(control: &Control, start: BlockStart, mut fds: Fds) -> Result<Disks, StartError> {
    if !(1..=MAX_DEVICES).contains(&start.disks.len()) {
        return Err(StartError::Count(start.disks.len()));
    }
    let queues = start.disks.iter().map(|disk| usize::from(disk.queues)).sum();
    if queues > MAX_ALL_QUEUES {
        return Err(StartError::AllQueues(queues));
    }
    let lifeline = fds.take(start.lifeline)?;
    let domain = throttle::shared(start.limits);
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
        let (mut what, storage) = prepare(control, disk, &mut fds, domain.clone(), lifeline.as_fd())?;
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

/// What a disk is made of, and what is behind it.
type Made = (Prepared, Option<Arc<dyn Storage>>);

/// Looks at what a disk is made of, and makes its rings.
fn prepare(
    control: &Control,
    disk: BlockDisk,
    fds: &mut Fds,
    domain: Shared,
    lifeline: BorrowedFd<'_>,
) -> Result<Made, StartError> {
    let BlockDisk { id, queues, cache, read_only, discard, .. } = disk;
    let service = Service {
        serial: disk.serial,
        cache,
        gate: Gate::new(disk.limits, domain),
        faults: Faults::new(disk.read_error, disk.write_error, id.clone(), control.events()),
    };
    let unfit = |source| StartError::Disk { id: id.clone(), source };
    let failed = |source| StartError::Threads { id: id.clone(), source };
    match disk.source {
        BlockSource::Raw(image) => {
            let image = fds.take(image)?.into();
            let opened = Raw::open(image, read_only, discard, cache, disk.block_size)
                .map_err(|source| StartError::Raw { id: id.clone(), source })?;
            let (made, raw) = (Disk::new(opened.bytes, opened.shape, service).map_err(unfit)?, opened.raw);
            let left_over = opened.bytes - made.bytes();
            if left_over > 0 {
                domus_startup::say(format_args!(
                    "{id}: the last {left_over} bytes of the image make no whole block and are left out"
                ));
            }
            let raw = Arc::new(raw);
            let engine = || RawEngine::new(raw.clone());
            let prepared = Prepared::new(id.as_str(), made, queues, &[lifeline], engine).map_err(failed)?;
            Ok((prepared, Some(raw)))
        }
        BlockSource::Lost { bytes } => {
            let block_size = disk.block_size.unwrap_or(512);
            let shape = Shape { block_size, physical_block: block_size, optimal_io: 0, read_only, discard };
            // Its errors are the guest's: nothing could be done again.
            let service = Service { faults: Faults::reported(), ..service };
            let made = Disk::new(bytes, shape, service).map_err(unfit)?;
            let prepared = Prepared::new(id.as_str(), made, queues, &[lifeline], || Fixed::Lost);
            Ok((prepared.map_err(failed)?, None))
        }
        BlockSource::Qcow2 { image, path, backing } => {
            let image = (path.into(), fds.take(image)?.into());
            let backing = backing
                .into_iter()
                .map(|behind| Ok((behind.path.into(), fds.take(behind.image)?.into(), behind.format)))
                .collect::<Result<_, FdError>>()?;
            let chain = Chain::new(image, backing, !read_only, cache)
                .map_err(|source| StartError::Open { id: id.clone(), source })?;
            let shape = Chain::shape(disk.block_size, read_only, discard);
            let made = Disk::new(shape.block_size.into(), shape, service).map_err(unfit)?;
            let open = move |reactor: &_, _: &_, _: &_| chain.open(reactor);
            let prepared =
                Prepared::opened_later(id.as_str(), made, queues, &[lifeline], open).map_err(failed)?;
            let storage = Arc::new(AskedThread(prepared.port()));
            Ok((prepared, Some(storage)))
        }
        BlockSource::Nbd { socket, export, error_after } => {
            let socket = socket.map(|socket| fds.take(socket)).transpose()?;
            let block_size = disk.block_size.unwrap_or(512);
            let shape = Shape { block_size, physical_block: block_size, optimal_io: 0, read_only, discard };
            let made = Disk::new(block_size.into(), shape, service).map_err(unfit)?;
            let error_after = error_after.map(|seconds| Duration::from_secs(seconds.into()));
            let remote = Remote { export, writable: !read_only, error_after };
            let (events, device) = (control.events(), id.clone());
            let open = move |reactor: &_, orders: &_, served: &Arc<Disk>| {
                let served = served.clone();
                let lost = Box::new(move |why: &str| {
                    served.faults().stalled();
                    let (device, why) = (device.clone(), why.to_owned());
                    events.stand(&server_of(&device), &BackendEvent::ConnectionLost { device, why });
                });
                connect(reactor, orders, remote, socket, block_size, lost)
            };
            let prepared =
                Prepared::opened_later(id.as_str(), made, queues, &[lifeline], open).map_err(failed)?;
            let storage = Arc::new(AskedThread(prepared.port()));
            Ok((prepared, Some(storage)))
        }
    }
}

/// Serves one disk's frontend until it hangs up, which a runner that ends does.
fn serve(Device { id, socket, what }: Device<Server<BlockDevice>>, events: &Events) {
    if let Err(error) = what.serve(socket) {
        let why = control::chain(&error);
        domus_startup::say(format_args!("{id}: {why}"));
        events.send(&BackendEvent::DeviceFailed { device: id, why });
    }
}
