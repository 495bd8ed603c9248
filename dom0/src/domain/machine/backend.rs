//! One backend process: its start message, and how it comes up.

use std::os::fd::OwnedFd;
use std::path::Path;

use shared_abi::control::{BackendEvent, BackendReply};
use shared_abi::{DeviceId, Role};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::device::start::{Leftovers, Message, Start};
use crate::domain::error::StartError;
use crate::host::locks::Mark;
use crate::host::watch;
use crate::process::Process;
use crate::process::link::{ChildError, ChildLink, PATIENCE};

/// A started backend.
#[derive(Debug)]
pub struct Backend {
    /// What it is for.
    pub role: Role,
    /// Its process.
    pub process: Process,
    /// Its control socket, once connected.
    pub link: Option<ChildLink<BackendReply, BackendEvent>>,
    /// Hangs up when the kernel has finished all that the process asked it to do, if it asks for what can outlive it.
    lifeline: Option<AsyncFd<OwnedFd>>,
    marks: Option<Vec<Mark>>,
    /// When it was started.
    pub since: Instant,
}

impl Backend {
    /// A process that has just been started.
    pub fn new(role: Role, process: Process) -> Self {
        Self { role, process, link: None, lifeline: None, marks: None, since: Instant::now() }
    }

    /// Connects to its control socket at `path` as soon as it listens.
    ///
    /// # Errors
    /// It ended, or takes too long.
    pub async fn connect(&mut self, path: &Path) -> Result<(), ChildError> {
        self.link = Some(ChildLink::connect(self.role, path, &self.process).await?);
        Ok(())
    }

    /// Tells a connected one what to serve, and waits until it does; returns the runner's ends of its devices' sockets.
    ///
    /// # Errors
    /// It refused or ended.
    pub async fn start(&mut self, start: Start) -> Result<Vec<(DeviceId, OwnedFd)>, StartError> {
        let role = self.role;
        let Start { message, fds, sockets, lifeline, marks } = start;
        self.marks = marks;
        let watched = lifeline.map(watch::readable).transpose();
        self.lifeline = watched.map_err(|source| StartError::Io { act: "watch a pipe", source })?;
        let Some(link) = &mut self.link else {
            return Err(ChildError::Failed { role, why: "is not connected".into() }.into());
        };
        match &message {
            Message::Block(request) => link.send(request, &fds).await?,
            Message::Net(request) => link.send(request, &fds).await?,
            Message::Console(request) => link.send(request, &fds).await?,
        }
        // The lifeline must have no other end than the process's.
        drop(fds);
        match link.answer(&self.process, PATIENCE, "become ready").await? {
            BackendReply::Ready => Ok(sockets),
            other => Err(ChildError::Failed { role, why: format!("answered start with {other:?}") }.into()),
        }
    }

    /// Its process, to be reaped, and what may outlive it.
    pub fn into_parts(self) -> (Process, Leftovers) {
        (self.process, Leftovers { lifeline: self.lifeline, marks: self.marks })
    }
}
