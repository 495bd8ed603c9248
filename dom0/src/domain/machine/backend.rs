//! One backend process: how it comes up, and what it is asked.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use shared_abi::control::{BackendEvent, BackendReply};
use shared_abi::{DeviceId, Role};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::device::start::{Leftovers, Start};
use crate::domain::error::StartError;
use crate::host::locks::OpenMarker;
use crate::host::watch;
use crate::process::Process;
use crate::process::link::{ANSWER, ChildError, ChildLink, PATIENCE, unexpected};

/// A started backend.
#[derive(Debug)]
pub struct BackendProcess {
    /// What it is for.
    pub role: Role,
    /// Its process.
    pub process: Process,
    /// Its control socket, once connected.
    pub link: Option<ChildLink<BackendReply, BackendEvent>>,
    /// Hangs up when the kernel has finished all that the process asked it to do, if it asks for what can outlive it.
    lifeline: Option<AsyncFd<OwnedFd>>,
    markers: Option<Vec<OpenMarker>>,
    /// When it was started.
    pub since: Instant,
}

impl BackendProcess {
    /// A process that has just been started.
    pub fn new(role: Role, process: Process) -> Self {
        Self { role, process, link: None, lifeline: None, markers: None, since: Instant::now() }
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
        let Start { message, fds, sockets, lifeline, marks, .. } = start;
        self.markers = marks;
        let watched = lifeline.map(watch::readable).transpose();
        self.lifeline = watched.map_err(|source| StartError::Io { act: "watch a pipe", source })?;
        match self.exchange(message.request(), fds, PATIENCE, "become ready").await? {
            BackendReply::Ready => Ok(sockets),
            other => Err(unexpected(role, &other).into()),
        }
    }

    /// Asks it something.
    ///
    /// # Errors
    /// It refuses, has ended, or is silent.
    pub async fn ask(
        &mut self,
        request: &impl Serialize,
        fds: Vec<OwnedFd>,
    ) -> Result<BackendReply, ChildError> {
        self.exchange(request, fds, ANSWER, "answered").await
    }

    async fn exchange(
        &mut self,
        request: &impl Serialize,
        fds: Vec<OwnedFd>,
        patience: Duration,
        done: &'static str,
    ) -> Result<BackendReply, ChildError> {
        let Some(link) = &mut self.link else {
            return Err(ChildError::Failed { role: self.role, why: "is not connected".into() });
        };
        link.send(request, &fds).await?;
        // A lifeline among them must have no other end than the process's.
        drop(fds);
        link.answer(&self.process, patience, done).await
    }

    /// Its process, to be reaped, and what may outlive it.
    pub fn into_parts(self) -> (Process, Leftovers) {
        (self.process, Leftovers { lifeline: self.lifeline, marks: self.markers })
    }
}
