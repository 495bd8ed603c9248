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
use shared_abi::control::{BackendEvent, BackendReply, NetRequest, NetStart, NetWire};
use shared_abi::limits::MAX_DEVICES;

use crate::nic::{Card, Prepared};
use crate::seal::CALLS;
use crate::tap::{Tap, TapError};

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
    /// Not served yet.
    #[error("NIC {0}: one queue pair on a tap is served")]
    Wire(DeviceId),
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
    let control = Control::listen(control)?;
    let (NetRequest::Start(start), fds) = control.accept_start()? else {
        let refused = StartError::NotStarted;
        control.fail(&refused);
        return Err(refused);
    };
    if let Err(error) = serve(start, fds, &control.events()) {
        control.fail(&error);
        return Err(error);
    }
    control.reply(&BackendReply::Ready);
    control.serve(|_: NetRequest, _| Err::<BackendReply, _>("the NICs are started already".into()))?;
    Ok(())
}

fn serve(start: NetStart, mut fds: Fds, events: &Events) -> Result<(), StartError> {
    if start.nics.len() > MAX_DEVICES {
        return Err(StartError::TooMany(start.nics.len()));
    }
    let mut nics = Vec::with_capacity(start.nics.len());
    for nic in start.nics {
        let id = nic.card.id;
        let socket = UnixStream::from(fds.take(nic.card.socket)?);
        fds.take(nic.card.state)?;
        let (NetWire::Tap { queues, steering: None }, 1) = (nic.wire, nic.card.pairs) else {
            return Err(StartError::Wire(id));
        };
        let [tap] = queues[..] else { return Err(StartError::Wire(id)) };
        let tap = Tap::new(fds.take(tap)?).map_err(|source| StartError::Tap { nic: id.clone(), source })?;
        let card = Card { mac: Some(nic.card.mac), mtu: Some(nic.card.mtu) };
        let prepared = Prepared::new(id.as_str(), card, tap)
            .map_err(|source| StartError::Prepare { nic: id.clone(), source })?;
        nics.push((id, prepared, socket));
    }
    fds.finish()?;
    sandbox::enter(start.identity.uid)?;
    // The threads run before the seal, but none looks at what a frontend sent before it.
    let sealed = Arc::new(Barrier::new(nics.len() + 1));
    for (id, prepared, socket) in nics {
        start_nic(id.clone(), prepared, socket, &sealed, events)
            .map_err(|source| StartError::Prepare { nic: id, source })?;
    }
    sandbox::seal(&[COMMON, CALLS].concat())?;
    sealed.wait();
    Ok(())
}

fn start_nic(
    id: DeviceId,
    prepared: Prepared,
    socket: UnixStream,
    sealed: &Arc<Barrier>,
    events: &Events,
) -> io::Result<()> {
    let report = {
        let events = events.clone();
        move |why: String| {
            domus_startup::say(format_args!("domus-net: {id}: {why}"));
            events.send(&BackendEvent::DeviceFailed { device: id.clone(), why });
        }
    };
    let lost = report.clone();
    let server = prepared.start(move |error| lost(format!("the tap cannot be read: {error}")))?;
    let sealed = sealed.clone();
    let serve = move || {
        sealed.wait();
        if let Err(error) = server.serve(socket) {
            report(chain(&error));
        }
    };
    threads::start("vhost-user".into(), serve).map(drop)
}
