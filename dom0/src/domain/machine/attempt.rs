//! Repairs: how dom0 replaces a lost process or connection, and when it retries.
//!
//! ```text
//!   lost ─▶ (pause) ─▶ process started ─▶ connected ─▶ told what to serve ─┐
//!              ▲                          nothing left of the old one ─────┴▶ Repaired ─▶ the runner attaches it
//!              └────────────────────── failed ◀────────────────────────────┘
//! ```
//!
//! A qcow2 image is opened only after the old process is gone, so that two processes never write its metadata. Attempts
//! are repeated without limit: the device stands still until one succeeds or the domain ends.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use shared_abi::{DeviceId, DomainName, Role};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::device::loss::{Loss, Mended};
use crate::device::start::Leftovers;
use crate::device::{Backend, Handover, Owner, Providers};
use crate::domain::directory::beside;
use crate::domain::error::StartError;
use crate::domain::machine::backend::BackendProcess;
use crate::host::fault;
use crate::process::{Launch, Limits};
use crate::value::backoff::{self, EarlyDeaths};

/// The least pause before what has failed is tried again because something has changed.
const LEAST: Duration = Duration::from_millis(200);

/// What a machine has lost, and what waits for an operator.
#[derive(Debug, Default)]
pub struct Losses {
    /// What is being had again.
    pub open: Vec<Repair>,
    /// How often in a row each has died early.
    pub deaths: BTreeMap<Loss, EarlyDeaths>,
    /// Requests that wait for an operator.
    pub paused: Vec<PausedRequest>,
    /// A backend has come whose disks must be measured.
    pub unmeasured: bool,
}

impl Losses {
    /// The count of the early deaths of this.
    pub fn deaths(&mut self, loss: &Loss) -> &mut EarlyDeaths {
        self.deaths.entry(loss.clone()).or_default()
    }
}

/// A request of a disk that waits for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedRequest {
    /// The disk.
    pub device: DeviceId,
    /// Since when.
    pub since: Instant,
    /// Why it failed.
    pub cause: String,
}

/// What an attempt came to.
#[derive(Debug)]
pub enum Repaired {
    /// A process that serves.
    Process(Box<Served>),
    /// A connection.
    Device(Mended),
}

/// A process that serves, and what the runner is to be given.
#[derive(Debug)]
pub struct Served {
    /// It.
    pub backend: BackendProcess,
    /// The runner's ends of its devices' sockets.
    pub sockets: Vec<(DeviceId, OwnedFd)>,
    /// The runner's end of a new serial line.
    pub serial: Option<OwnedFd>,
}

/// An attempt under way.
pub type Attempt = LocalBoxFuture<'static, Result<Repaired, StartError>>;

/// Something lost, and the attempt to have it again.
pub struct Repair {
    /// What.
    pub loss: Loss,
    /// How it was lost, for people.
    pub how: String,
    /// When.
    pub since: Instant,
    /// Attempts made, those for the ones before it that died early among them.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub problem: Option<String>,
    /// The domain has been paused for it, or need not be.
    pub settled: bool,
    /// What is left of the old one.
    pub leftovers: Rc<Leftovers>,
    /// The attempt.
    pub attempt: Attempt,
}

impl fmt::Debug for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repair").field("loss", &self.loss).finish_non_exhaustive()
    }
}

/// What a process of a class is started with.
#[derive(Clone)]
pub struct Launcher {
    /// The devices that it serves.
    pub class: Rc<dyn Backend>,
    /// Its role.
    pub role: Role,
    /// Whose devices they are.
    pub owner: Owner,
    /// By which the host's other tools know the domain.
    pub uuid: Uuid,
    /// The guest's RAM in bytes.
    pub memory: u64,
    /// The guest's vCPUs.
    pub vcpus: u8,
    /// Where its control socket is.
    pub control: PathBuf,
    /// The program; none for the installed one.
    pub program: Option<PathBuf>,
    /// Starts processes, among others.
    pub from: Providers,
    /// True when an operator destroys the domain.
    pub destroyed: watch::Receiver<bool>,
}

impl Launcher {
    /// Starts a process and connects to it. What it is to serve it is not told yet.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn connected(&self) -> Result<BackendProcess, StartError> {
        self.started(&self.control).await
    }

    /// The same beside a process that lives; it can be reached there until [`Self::in_its_place`].
    ///
    /// # Errors
    /// It does not come up.
    pub async fn connected_beside(&self) -> Result<BackendProcess, StartError> {
        self.started(&beside(&self.control)).await
    }

    /// The process that was beside another one is in its place: a dom0 that comes later finds it there.
    pub fn in_its_place(&self) {
        // Where it cannot be renamed it is found at the other path.
        let _ = std::fs::rename(beside(&self.control), &self.control);
    }

    async fn started(&self, control: &Path) -> Result<BackendProcess, StartError> {
        // The socket of a dead process may be there: nobody is to be taken for the new one.
        let _ = std::fs::remove_file(control);
        let domain: &DomainName = &self.owner.started_as;
        let launch = Launch {
            whom: domain.as_str(),
            role: self.role,
            control,
            program: self.program.as_deref(),
            limits: Some(Limits { domain, uuid: self.uuid, memory: self.memory, vcpus: self.vcpus }),
        };
        let process = self.from.supervisor.start(launch).await?;
        let mut backend = BackendProcess::new(self.role, process, self.destroyed.clone());
        fault::point();
        backend.connect(control).await?;
        Ok(backend)
    }

    /// Lets a connected process serve.
    ///
    /// # Errors
    /// It refuses, or what it is to serve cannot be opened.
    pub async fn serve(&self, mut backend: BackendProcess) -> Result<Served, StartError> {
        self.class.open(&self.owner, &self.from).await?;
        let start = self.class.start(&self.owner);
        let mut start =
            start.map_err(|source| StartError::Io { act: "make what a backend is given", source })?;
        let serial = start.serial.take();
        let sockets = backend.start(start).await?;
        Ok(Served { backend, sockets, serial })
    }

    /// An attempt to have another process.
    pub fn attempt(self, attempts: u32, leftovers: Rc<Leftovers>) -> Attempt {
        Box::pin(async move {
            sleep(backoff::pause(attempts)).await;
            let gone = async {
                let gone = leftovers.gone().await;
                gone.map_err(|source| StartError::Io { act: "watch what is left of a backend", source })
            };
            if self.class.handover() == Handover::Exclusive {
                let (backend, ()) = tokio::try_join!(self.connected(), gone)?;
                return Ok(Repaired::Process(Box::new(self.serve(backend).await?)));
            }
            // It touches nothing before the runner attaches it.
            let serving = async { self.serve(self.connected().await?).await };
            let (served, ()) = tokio::try_join!(serving, gone)?;
            Ok(Repaired::Process(Box::new(served)))
        })
    }
}

/// An attempt to have something again that is no process of the domain's own.
pub fn mend(class: Rc<dyn Backend>, loss: Loss, attempts: u32, owner: Owner, from: Providers) -> Attempt {
    Box::pin(async move {
        let pause = backoff::pause(attempts);
        let stirs = async { tokio::join!(sleep(pause.min(LEAST)), class.stirs(&loss, &from)) };
        tokio::select! {
            () = sleep(pause) => {}
            _ = stirs => {}
        }
        Ok(Repaired::Device(class.mend(&loss, attempts, &owner, &from).await?))
    })
}
