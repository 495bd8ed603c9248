//! One backend process: how it comes up, and what it is asked.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use shared_abi::control::{BackendEvent, BackendReply};
use shared_abi::{DeviceId, Role};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::device::start::{Leftovers, Start};
use crate::domain::error::StartError;
use crate::host::locks::OpenMarker;
use crate::host::watch::readable;
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
    /// It was killed since it had not answered for so many seconds.
    pub hung: Option<u64>,
    /// The domain was paused since it is silent.
    pub is_told: bool,
    /// True when an operator destroys the domain.
    destroyed: watch::Receiver<bool>,
}

impl BackendProcess {
    /// A process that has just been started.
    pub fn new(role: Role, process: Process, destroyed: watch::Receiver<bool>) -> Self {
        let since = Instant::now();
        Self {
            role,
            process,
            link: None,
            lifeline: None,
            markers: None,
            since,
            hung: None,
            is_told: false,
            destroyed,
        }
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
        let watched = lifeline.map(readable).transpose();
        self.lifeline = watched.map_err(|source| StartError::Io { act: "watch a pipe", source })?;
        match self.exchange(&message, fds, PATIENCE, "become ready").await? {
            BackendReply::Ready => Ok(sockets),
            other => Err(unexpected(role, &other).into()),
        }
    }

    /// Has it do something. One that is silent is killed, and another one takes its place.
    ///
    /// # Errors
    /// It refuses, has ended, is silent, or the domain is being destroyed.
    pub async fn ask(
        &mut self,
        request: &impl Serialize,
        fds: Vec<OwnedFd>,
    ) -> Result<BackendReply, ChildError> {
        let answer = self.exchange(request, fds, ANSWER, "answered").await;
        if let Err(ChildError::Silent { seconds, .. }) = answer {
            self.kill_hung(seconds);
        }
        answer
    }

    /// Asks it something that nobody depends on.
    ///
    /// # Errors
    /// As [`Self::ask`], sooner.
    pub async fn question(&mut self, request: &impl Serialize) -> Result<BackendReply, ChildError> {
        let Self { role, process, link, destroyed, .. } = self;
        let link = link.as_mut().ok_or_else(|| ChildError::not_connected(*role))?;
        link.question(process, request, destroyed).await
    }

    /// Ends it because it has not answered for so many seconds.
    pub fn kill_hung(&mut self, seconds: u64) {
        self.hung = Some(seconds);
        self.process.kill();
    }

    /// The version of the messages that it was agreed on, once connected.
    pub fn version(&self) -> Option<u32> {
        self.link.as_ref().map(ChildLink::version)
    }

    /// Since when it has owed an answer.
    pub fn silent_since(&self) -> Option<Instant> {
        self.link.as_ref()?.silent_since()
    }

    async fn exchange(
        &mut self,
        request: &impl Serialize,
        fds: Vec<OwnedFd>,
        patience: Duration,
        done: &'static str,
    ) -> Result<BackendReply, ChildError> {
        let Self { role, process, link, destroyed, .. } = self;
        let link = link.as_mut().ok_or_else(|| ChildError::not_connected(*role))?;
        link.ask(process, request, fds, (patience, done), destroyed).await
    }

    /// Its process, to be reaped, and what may outlive it.
    pub fn into_parts(self) -> (Process, Leftovers) {
        (self.process, Leftovers { lifeline: self.lifeline, marks: self.markers })
    }
}
