//! The NICs of one domain for dom0: the start message, the sandbox, a server for each connection.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Barrier};

use domus_startup::control::{ControlError, chain};
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, COMMON, SandboxError};
use domus_startup::{Control, Events, Fds, threads};
use shared_abi::DeviceId;
use shared_abi::control::{BackendEvent, NetNic, NetRequest, NetWire, NicFilter};
use shared_abi::limits::{MAX_DEVICES, MAX_QUEUE_PAIRS, NIC_STATE_LEN};
use vu_server::server;

use crate::control::{Nics, stream_of};
use crate::filter::Filter;
use crate::nic::Card;
use crate::prepared::{Cable, NicSpec, Prepared};
use crate::rx::Lost;
use crate::steering::Steering;
use crate::syscalls::CALLS;
use crate::tap::{Tap, TapError};

/// Descriptors of a queue pair, at most: its tap's, two of each worker (commands, epoll), kick and call of each ring,
/// and one to spare.
const PAIR_FILES: usize = 10;

/// Further descriptors of a NIC, at most: its control queue's, its state's, its frontend's socket twice, and those of
/// the guest's memory.
const NIC_FILES: usize = 10;

/// Most descriptors of all NICs: a sealed process may have 1024 open.
const MAX_FILES: usize = 1000;

/// Why NICs could not be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The descriptors of the start message.
    #[error("net start message")]
    Fds(#[from] FdError),
    /// The first message is another one.
    #[error("the first message is not the start")]
    NotStarted,
    /// A number of queue pairs that cannot be.
    #[error(
        "NIC {nic}: {pairs} queue pairs at {ends} ends: a tap has as many queues, 1 to {MAX_QUEUE_PAIRS}, a stream one"
    )]
    Pairs {
        /// Which.
        nic: DeviceId,
        /// What the guest is to have.
        pairs: u16,
        /// What there is at the other end of the cable.
        ends: usize,
    },
    /// More than the descriptors of one process are enough for.
    #[error(
        "{nics} NICs with {pairs} queue pairs need {files} open files: {MAX_FILES} can be had; give them fewer queues"
    )]
    Files {
        /// How many NICs.
        nics: usize,
        /// How many queue pairs of all together.
        pairs: usize,
        /// What they need.
        files: usize,
    },
    /// More NICs than a domain can have.
    #[error("{0} NICs: a domain has at most {MAX_DEVICES} devices")]
    TooMany(usize),
    /// A descriptor is no tap as it should be.
    #[error("NIC {nic}: the tap cannot be used")]
    Tap {
        /// Which.
        nic: DeviceId,
        /// Why.
        source: TapError,
    },
    /// The kernel refuses to set a NIC up.
    #[error("NIC {nic} cannot be set up")]
    Prepare {
        /// Which.
        nic: DeviceId,
        /// What the system said.
        source: io::Error,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Serves the NICs that the controller of the socket at `control` sends. Returns only with an error.
///
/// # Errors
/// [`StartError`]; before the NICs were ready, the controller has been told.
pub fn run(control: &Path) -> Result<(), StartError> {
    domus_startup::serve(control, bring_up, |nics, request, fds| nics.handle(request, fds))
}

fn bring_up(control: &Control, request: NetRequest, mut fds: Fds) -> Result<Nics, StartError> {
    let NetRequest::Start(start) = request else { return Err(StartError::NotStarted) };
    if start.nics.len() > MAX_DEVICES {
        return Err(StartError::TooMany(start.nics.len()));
    }
    let nics = start.nics.len();
    let pairs = start.nics.iter().map(|nic| usize::from(nic.card.pairs)).sum::<usize>();
    let files = pairs * PAIR_FILES + nics * NIC_FILES;
    if files > MAX_FILES {
        return Err(StartError::Files { nics, pairs, files });
    }
    let (mut nics, mut starting) = (Vec::new(), Vec::new());
    for nic in start.nics {
        let id = nic.card.id.clone();
        let socket = UnixStream::from(fds.take(nic.card.socket)?);
        let prepared = prepare(nic, &mut fds)?;
        nics.push((id.clone(), prepared.nic()));
        starting.push((id, prepared, socket));
    }
    fds.finish()?;
    // The only files that it is given are what its NICs keep: a process that is its guest's cannot fill a disk.
    sandbox::limit_files(NIC_STATE_LEN)?;
    sandbox::enter(start.identity.uid)?;
    // The threads run before the seal, but none looks at what a frontend sent before it.
    let sealed = Arc::new(Barrier::new(starting.len() + 1));
    for (id, prepared, socket) in starting {
        start_nic(id.clone(), prepared, socket, &sealed, &control.events())
            .map_err(|source| StartError::Prepare { nic: id, source })?;
    }
    sandbox::seal(&[COMMON, server::CALLS, CALLS].concat())?;
    for (id, nic) in &nics {
        nic.recall().map_err(|source| StartError::Prepare { nic: id.clone(), source })?;
    }
    sealed.wait();
    Ok(Nics::new(nics, control.events()))
}

/// Makes what a NIC needs.
fn prepare(NetNic { card, wire }: NetNic, fds: &mut Fds) -> Result<Prepared, StartError> {
    let failed = |source| StartError::Prepare { nic: card.id.clone(), source };
    let state = fds.take(card.state)?;
    let ends = match &wire {
        NetWire::Tap { queues, .. } => queues.len(),
        NetWire::Stream { .. } => 1,
    };
    if ends != usize::from(card.pairs) || !(1..=MAX_QUEUE_PAIRS).contains(&card.pairs) {
        return Err(StartError::Pairs { nic: card.id, pairs: card.pairs, ends });
    }
    let cable = match wire {
        NetWire::Tap { queues, steering } => {
            let several = queues.len() > 1;
            let unfit = |source| StartError::Tap { nic: card.id.clone(), source };
            let queues = queues
                .into_iter()
                .map(|queue| Tap::new(fds.take(queue)?, several).map_err(unfit))
                .collect::<Result<_, StartError>>()?;
            let table = steering.map(|table| fds.take(table)).transpose()?;
            let steering = table.map(|table| Steering::map(&table).map_err(failed)).transpose()?;
            Cable::Tap { queues, steering }
        }
        NetWire::Stream { socket } => {
            Cable::Stream(socket.map(|socket| fds.take(socket)).transpose()?.map(Into::into))
        }
    };
    let anything = NicFilter::open();
    let filter = (card.filter != anything).then(|| Filter::new(card.mac, &card.filter));
    let any_mac = card.filter.any_mac;
    let spec = NicSpec {
        name: card.id.as_str(),
        card: Card { mac: Some(card.mac), mtu: Some(card.mtu), pairs: card.pairs, controlled: true, any_mac },
        filter,
        limits: card.limits,
        link: card.link_up,
        cable,
        state: Some(state),
    };
    Prepared::new(spec).map_err(failed)
}

fn start_nic(
    id: DeviceId,
    prepared: Prepared,
    socket: UnixStream,
    sealed: &Arc<Barrier>,
    events: &Events,
) -> io::Result<()> {
    let stream = prepared.is_stream();
    let (events, device) = (events.clone(), id.clone());
    let report = {
        let events = events.clone();
        move |why: String| {
            domus_startup::say(format_args!("domus-net: {id}: {why}"));
            events.send(&BackendEvent::DeviceFailed { device: id.clone(), why });
        }
    };
    let lost = || -> Lost {
        let (report, events, device) = (report.clone(), events.clone(), device.clone());
        Box::new(move |error| {
            if stream {
                let why = chain(&error);
                let lost = BackendEvent::ConnectionLost { device: device.clone(), why };
                events.stand(&stream_of(&device), &lost);
            } else {
                report(format!("the tap cannot be read: {error}"));
            }
        })
    };
    let server = prepared.start(lost)?;
    let sealed = sealed.clone();
    let serve = move || {
        sealed.wait();
        if let Err(error) = server.serve(socket) {
            report(chain(&error));
        }
    };
    threads::start("vhost-user".into(), serve).map(drop)
}
