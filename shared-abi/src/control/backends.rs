//! The messages of `domus-net` and `domus-console`, and the events of every backend.

use serde::{Deserialize, Serialize};

use super::{DiskStatistics, FdIndex, Identity};
use crate::ids::{DeviceId, MacAddress};

/// What dom0 asks of `domus-net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetRequest {
    /// Serve these NICs; answered with [`BackendReply::Ready`].
    Start(NetStart),
}

/// The NICs of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStart {
    /// Whose NICs they are.
    pub identity: Identity,
    /// One vhost-user-net device each.
    pub nics: Vec<NetNic>,
}

/// One NIC: one receive and one transmit queue on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetNic {
    /// Its id.
    pub id: DeviceId,
    /// The MAC address the guest is told.
    pub mac: MacAddress,
    /// The MTU the guest is told, in bytes.
    pub mtu: u16,
    /// The tap, attached (`TUNSETIFF`) with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, non-blocking.
    pub tap: FdIndex,
    /// The backend's end of the vhost-user socket.
    pub socket: FdIndex,
}

/// What dom0 asks of `domus-console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ConsoleRequest {
    /// Serve this console; answered with [`BackendReply::Ready`].
    Start(ConsoleStart),
}

/// The console of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleStart {
    /// Whose console it is.
    pub identity: Identity,
    /// The console's end of the stream socket to the runner's UART.
    pub serial: FdIndex,
    /// A listening stream socket for those who attach ([`crate::console`]).
    pub listener: FdIndex,
    /// Bytes of output kept for those who attach late, 4 KiB to 16 MiB.
    pub history: u32,
    /// Everything the guest prints is appended here, if given.
    pub log: Option<FdIndex>,
}

/// A backend's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendReply {
    /// Sealed and serving.
    Ready,
    /// Done.
    Done,
    /// The disk has so many bytes now.
    Size(u64),
    /// What a disk has done.
    Disk(Box<DiskStatistics>),
}

/// What a backend reports unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendEvent {
    /// A device cannot be served any more; the text is one line for the operator.
    DeviceFailed {
        /// Which.
        device: DeviceId,
        /// Why.
        why: String,
    },
    /// A request of a disk has failed and is held until [`BlockRequest::Retry`](super::BlockRequest::Retry).
    IoError {
        /// Which disk.
        device: DeviceId,
        /// `read`, `write`, `flush` or `discard`.
        operation: String,
        /// First byte, in the disk.
        offset: u64,
        /// Linux' number of the error.
        errno: i32,
    },
    /// The connection of a disk to its server is gone, or was never there:
    /// [`BlockRequest::Reconnect`](super::BlockRequest::Reconnect) is waited for.
    ConnectionLost {
        /// Which disk.
        device: DeviceId,
        /// One line for the operator.
        why: String,
    },
}
