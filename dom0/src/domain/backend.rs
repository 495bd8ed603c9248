//! One backend process: its start message, and how it comes up.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use shared_abi::control::{BackendEvent, BackendReply, BlockRequest, ConsoleRequest, NetRequest};
use shared_abi::{DeviceId, Role};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use super::build::StartError;
use crate::child::{ChildError, ChildLink, PATIENCE};
use crate::resources::locks::Mark;
use crate::resources::watch;
use crate::supervisor::Process;

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

/// All that a backend is told to start with.
#[derive(Debug)]
pub struct Start {
    /// What it is sent.
    pub message: Message,
    /// The descriptors that go with it.
    pub fds: Vec<OwnedFd>,
    /// The runner's ends of its devices' sockets.
    pub sockets: Vec<(DeviceId, OwnedFd)>,
    /// dom0's end of its lifeline.
    pub lifeline: Option<OwnedFd>,
    /// What tells that its open images are closed; none if one of them has no such thing.
    pub marks: Option<Vec<Mark>>,
}

/// A start message.
#[derive(Debug)]
pub enum Message {
    /// To `domus-block`.
    Block(BlockRequest),
    /// To `domus-net`.
    Net(NetRequest),
    /// To `domus-console`.
    Console(ConsoleRequest),
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
    pub fn into_parts(self) -> (Process, Remains) {
        (self.process, Remains { lifeline: self.lifeline, marks: self.marks })
    }
}

/// What may be left of a process that has ended: work of the kernel's.
#[derive(Debug, Default)]
pub struct Remains {
    lifeline: Option<AsyncFd<OwnedFd>>,
    marks: Option<Vec<Mark>>,
}

impl Remains {
    /// Waits until nothing of it touches the guest's memory or an image any more.
    ///
    /// # Errors
    /// The pipe cannot be watched.
    pub async fn gone(&self) -> io::Result<()> {
        let Some(lifeline) = &self.lifeline else { return Ok(()) };
        // An open image is closed with the last operation on it, its ring some tens of milliseconds later.
        let closed = async {
            let Some(marks) = &self.marks else { return std::future::pending().await };
            while !marks.iter().all(Mark::is_gone) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = closed => Ok(()),
            // Nobody writes to it, so what it becomes readable with is the hang-up.
            hung_up = lifeline.readable() => hung_up.map(drop),
        }
    }
}
