//! Another backend in the place of one that is gone: how it is made, and how soon.
//!
//! ```text
//!   lost ─▶ (pause) ─▶ process started ─▶ connected ─▶ told what to serve ─┐
//!              ▲                          nothing left of the old one ─────┴▶ Revived ─▶ the runner attaches it
//!              └────────────────────── failed ◀────────────────────────────┘
//! ```
//!
//! A qcow2 image is opened only after the old process is gone, so that two processes never write its metadata. Attempts
//! are repeated without limit: the device stands still until one succeeds or the domain ends.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;

use shared_abi::control::Identity;
use shared_abi::nbd::NbdUri;
use shared_abi::{DeviceId, Role};
use tokio::time::{Instant, sleep, timeout};

use crate::config::DomainConfig;
use crate::device::Owner;
use crate::device::block::open;
use crate::device::devices::Devices;
use crate::device::error::DeviceError;
use crate::device::net::attach;
use crate::device::net::passt::{self, PASST_START};
use crate::device::start::Leftovers;
use crate::domain::directory::beside;
use crate::domain::environment::Environment;
use crate::domain::error::StartError;
use crate::domain::machine::backend::Backend;
use crate::domain::machine::build::limits;
use crate::host::{fault, nbd, sockets};
use crate::process::{Launch, Process};
use crate::value::backoff;
use crate::value::place::Place;

/// What is to be had again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// A backend of the domain's own.
    Own(Role),
    /// A connection to a backend that Domus does not start.
    Foreign(DeviceId),
    /// The connection of a remote disk to its server, whose backend lives.
    Server(DeviceId),
    /// passt of a NIC, whose backend lives.
    Passt(DeviceId),
    /// The switch that a NIC is at.
    Switch(DeviceId),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(role) => f.write_str(role.program()),
            Self::Foreign(device) => write!(f, "the backend of {device}"),
            Self::Server(device) => write!(f, "the server of {device}"),
            Self::Passt(nic) => write!(f, "passt of {nic}"),
            Self::Switch(nic) => write!(f, "the switch of {nic}"),
        }
    }
}

/// What an attempt came to.
#[derive(Debug)]
pub struct Revived {
    /// The new process, if it is the domain's own.
    pub backend: Option<Backend>,
    /// What the runner is to attach; of a remote disk or a NIC on passt, what its backend is to connect with.
    pub sockets: Vec<(DeviceId, OwnedFd)>,
    /// The runner's end of a new serial line.
    pub serial: Option<OwnedFd>,
}

impl Revived {
    /// A connection for one device.
    fn connection(device: DeviceId, socket: OwnedFd) -> Self {
        Self { backend: None, sockets: vec![(device, socket)], serial: None }
    }
}

/// An attempt under way.
pub type Attempt = Pin<Box<dyn Future<Output = Result<Revived, StartError>>>>;

/// Something lost, and the attempt to have it again.
pub struct Reviving {
    /// What.
    pub lost: Lost,
    /// How it was lost, for people.
    pub how: String,
    /// When.
    pub since: Instant,
    /// Attempts made, those for the ones before it that died young among them.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub problem: Option<String>,
    /// The domain has been paused for it, or need not be.
    pub settled: bool,
    /// What is left of the old one.
    pub remains: Rc<Leftovers>,
    /// The attempt.
    pub attempt: Attempt,
}

impl fmt::Debug for Reviving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviving").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// What an attempt needs.
#[derive(Clone)]
pub struct Means {
    /// Whose devices they are.
    pub owner: Owner,
    /// The domain's config.
    pub config: Rc<DomainConfig>,
    /// Whom its processes become.
    pub identity: Identity,
    /// Where the control socket is.
    pub control: PathBuf,
    /// The program; none for the installed one.
    pub program: Option<PathBuf>,
    /// Starts processes, among others.
    pub commons: Rc<Environment>,
    /// What the backend is given.
    pub kept: Rc<Devices>,
}

impl Means {
    /// Starts a process and connects to it. What it is to serve it is not told yet.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn connected(&self, role: Role) -> Result<Backend, StartError> {
        self.started(role, &self.control).await
    }

    /// The same beside a process that lives, and can be reached until [`Self::in_its_place`].
    ///
    /// # Errors
    /// It does not come up.
    pub async fn connected_beside(&self, role: Role) -> Result<Backend, StartError> {
        self.started(role, &beside(&self.control)).await
    }

    /// The process that was beside another one is in its place: a dom0 that comes later finds it there.
    pub fn in_its_place(&self) {
        // Where it cannot be renamed it is found at the other path.
        let _ = std::fs::rename(beside(&self.control), &self.control);
    }

    async fn started(&self, role: Role, control: &Path) -> Result<Backend, StartError> {
        // The socket of a dead process may be there: nobody is to be taken for the new one.
        let _ = std::fs::remove_file(control);
        let launch = Launch {
            whom: self.owner.started_as.as_str(),
            role,
            control,
            program: self.program.as_deref(),
            limits: Some(limits(&self.config)),
        };
        let mut backend = Backend::new(role, self.commons.providers.supervisor.start(launch).await?);
        fault::point();
        backend.connect(control).await?;
        Ok(backend)
    }

    /// Lets a connected process serve. Nothing of the one before it may be left if it looks at metadata.
    ///
    /// # Errors
    /// It refuses, or a server that it needs cannot be reached.
    pub async fn serve(&self, mut backend: Backend) -> Result<Revived, StartError> {
        let io = |source| StartError::Io { act: "make what a backend is given", source };
        let mut serial = None;
        if backend.role == Role::Console {
            serial = self.kept.console.make().map_err(io)?;
        }
        if backend.role == Role::Block {
            open::open_absent(&self.kept.disks).await?;
            let unconnected = self.kept.disks.borrow().unconnected();
            for (disk, uri) in unconnected {
                let connection = dial(&uri).await?;
                self.kept.disks.borrow_mut().keep_connection(&disk, connection);
            }
        }
        if backend.role == Role::Net {
            attach::open_absent(&self.owner, &self.kept.nets, &self.commons.providers).await?;
            let unconnected = self.kept.nets.borrow().unconnected();
            for nic in unconnected {
                let (passt, socket) = self.another_passt(&nic).await?;
                self.kept.nets.borrow_mut().keep_passt(&nic, passt, Some(socket));
            }
        }
        let start = self.kept.start(backend.role, &self.identity).map_err(io)?;
        let sockets = backend.start(start).await?;
        Ok(Revived { backend: Some(backend), sockets, serial })
    }
}

impl Means {
    /// Another passt for a NIC. The one before it has ended then.
    async fn another_passt(&self, nic: &DeviceId) -> Result<(Process, OwnedFd), DeviceError> {
        attach::another_passt(&self.owner, nic, &self.kept.nets, &self.commons.providers).await
    }
}

/// An attempt for a backend of the domain's own.
pub fn own(means: Means, role: Role, attempts: u32, remains: Rc<Leftovers>) -> Attempt {
    Box::pin(async move {
        sleep(backoff::pause(attempts)).await;
        let gone = async {
            remains.gone().await.map_err(|source| StartError::Io { act: "watch a backend's remains", source })
        };
        let in_turn = means.kept.exclusive(role);
        if in_turn {
            let (backend, ()) = tokio::try_join!(means.connected(role), gone)?;
            return means.serve(backend).await;
        }
        // It touches nothing before the runner attaches it.
        let serving = async { means.serve(means.connected(role).await?).await };
        let (revived, ()) = tokio::try_join!(serving, gone)?;
        Ok(revived)
    })
}

/// An attempt for a backend that somebody else starts, whose socket the config names at this JSON path.
pub fn foreign(file: PathBuf, device: DeviceId, at: String, path: Box<Path>, attempts: u32) -> Attempt {
    Box::pin(async move {
        sleep(backoff::pause(attempts)).await;
        let socket = sockets::foreign(&Place::new(&file, &at), &path, true)?.ok_or(StartError::GivenUp)?;
        Ok(Revived::connection(device, socket))
    })
}

/// An attempt for a remote disk's server.
pub fn server(device: DeviceId, uri: NbdUri, attempts: u32) -> Attempt {
    Box::pin(async move {
        sleep(backoff::pause(attempts)).await;
        Ok(Revived::connection(device, dial(&uri).await?))
    })
}

/// An attempt for a NIC's passt. One that follows a short-lived one is looked at for a moment, so that one that cannot
/// serve says why to dom0 and not by way of the backend.
pub fn passt(means: Means, nic: DeviceId, attempts: u32) -> Attempt {
    Box::pin(async move {
        sleep(backoff::pause(attempts)).await;
        let (passt, socket) = means.another_passt(&nic).await?;
        if attempts > 0
            && let Ok(how) = timeout(PASST_START, passt.ended()).await
        {
            return Err(DeviceError::from(passt::PasstError::Ended(how)).into());
        }
        means.kept.nets.borrow_mut().keep_passt(&nic, passt, None);
        Ok(Revived::connection(nic, socket))
    })
}

/// An attempt to plug a NIC in again. The switch itself is started again by its own task.
pub fn switch(means: Means, nic: DeviceId, attempts: u32) -> Attempt {
    Box::pin(async move {
        sleep(backoff::pause(attempts)).await;
        let socket = attach::plug(&means.owner, &nic, &means.kept.nets, &means.commons.providers).await?;
        Ok(Revived::connection(nic, socket))
    })
}

async fn dial(uri: &NbdUri) -> Result<OwnedFd, DeviceError> {
    nbd::dial(uri).await.map_err(|source| DeviceError::Unreachable { server: uri.to_string(), source })
}
