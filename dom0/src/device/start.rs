//! What a backend is started with, and what may outlive its process.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use shared_abi::DeviceId;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::host::locks::OpenMarker;

/// All that a backend is told to start with.
#[derive(Debug)]
pub struct Start {
    /// What it is sent.
    pub message: Message,
    /// The descriptors that go with it.
    pub fds: Vec<OwnedFd>,
    /// The runner's ends of its devices' sockets.
    pub sockets: Vec<(DeviceId, OwnedFd)>,
    /// The runner's end of a new serial line.
    pub serial: Option<OwnedFd>,
    /// dom0's end of its lifeline.
    pub lifeline: Option<OwnedFd>,
    /// What tells that its open images are closed; none if one of them has no such thing.
    pub marks: Option<Vec<OpenMarker>>,
}

impl Start {
    /// A message with its descriptors, and the runner's ends of the devices' sockets.
    pub fn new(message: Message, fds: Vec<OwnedFd>, sockets: Vec<(DeviceId, OwnedFd)>) -> Self {
        Self { message, fds, sockets, serial: None, lifeline: None, marks: None }
    }
}

/// A request to a backend, of the kind that its role knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Message(Value);

impl Message {
    /// Of a class' own kind of requests.
    ///
    /// # Errors
    /// The request cannot be written as JSON.
    pub fn new(request: &impl Serialize) -> io::Result<Self> {
        Ok(Self(serde_json::to_value(request)?))
    }
}

/// What may be left of a process that has ended: work of the kernel's.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// dom0's end of the process's lifeline.
    pub lifeline: Option<AsyncFd<OwnedFd>>,
    /// The marks on its open images.
    pub marks: Option<Vec<OpenMarker>>,
}

impl Leftovers {
    /// Waits until nothing of it touches the guest's memory or an image any more.
    ///
    /// # Errors
    /// The pipe cannot be watched.
    pub async fn gone(&self) -> io::Result<()> {
        let Some(lifeline) = &self.lifeline else { return Ok(()) };
        // An open image is closed with the last operation on it, its ring some tens of milliseconds later.
        let closed = async {
            let Some(marks) = &self.marks else { return std::future::pending().await };
            while !marks.iter().all(OpenMarker::is_gone) {
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
