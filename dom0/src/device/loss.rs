//! What can be lost of a device while its guest runs, and what comes in its place.

use std::fmt;
use std::os::fd::OwnedFd;

use domus_startup::fds::Outgoing;
use serde::Serialize;
use shared_abi::{DeviceId, Role};

use crate::device::error::DeviceError;
use crate::device::start::Message;

/// What is lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A backend process of the domain's own.
    Process(Role),
    /// The connection to a backend that Domus does not start.
    Connection(DeviceId),
    /// The connection of a remote disk to its server, whose backend lives.
    Server(DeviceId),
    /// passt of a NIC, whose backend lives.
    Passt(DeviceId),
    /// The switch that a NIC is at.
    Switch(DeviceId),
    /// What dom0 made of the host's links for a NIC, whose backend lives.
    Wire(DeviceId),
}

impl Loss {
    /// The device concerned, where it is one.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Process(_) => None,
            Self::Connection(device)
            | Self::Server(device)
            | Self::Passt(device)
            | Self::Switch(device)
            | Self::Wire(device) => Some(device),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(role) => f.write_str(role.program()),
            Self::Connection(device) => write!(f, "the backend of {device}"),
            Self::Server(device) => write!(f, "the server of {device}"),
            Self::Passt(nic) => write!(f, "passt of {nic}"),
            Self::Switch(nic) => write!(f, "the switch of {nic}"),
            Self::Wire(nic) => write!(f, "the wire of {nic}"),
        }
    }
}

/// What an attempt of [`Backend::mend`](crate::device::Backend::mend) has got.
#[derive(Debug)]
pub enum Mended {
    /// A connection for the runner.
    Attach(DeviceId, OwnedFd),
    /// A request, with its descriptors, for the process that serves the device.
    Tell(DeviceId, Message, Vec<OwnedFd>),
    /// All there is to it.
    Done,
    /// Only another process can have it, in the place of the one that serves the device.
    Restart(DeviceId),
}

impl Mended {
    /// A request for the process that serves the device.
    ///
    /// # Errors
    /// The request cannot be written.
    pub fn tell(device: &DeviceId, request: &impl Serialize, fds: Outgoing) -> Result<Self, DeviceError> {
        let failed = |source| DeviceError::Io { act: "write a request", source };
        Ok(Self::Tell(device.clone(), Message::new(request).map_err(failed)?, fds.into_vec()))
    }
}
