//! The messages of `domus-console`, and the answers and events of every backend.

use serde::{Deserialize, Serialize};

use super::{DiskStatistics, FdIndex, Identity, NicStatistics};
use crate::ids::DeviceId;

/// What dom0 asks of `domus-console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ConsoleRequest {
    /// Serve this console; answered with [`BackendReply::Ready`].
    Start(ConsoleStart),
    /// Answer with [`BackendReply::Console`].
    Ping,
    /// Append what the guest prints to another file from now on; answered with [`BackendReply::Done`].
    Log {
        /// The file, open to append.
        file: FdIndex,
        /// Bytes in it.
        length: u64,
    },
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
    /// What a NIC has done.
    Nic(Box<NicStatistics>),
    /// How a console is.
    Console {
        /// What is amiss with its log, in one line.
        trouble: Option<String>,
        /// Bytes of it that have not been written yet.
        unwritten: u64,
    },
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
    /// The connection of a disk to its server, or of a NIC to its stream, is gone, or was never there:
    /// [`BlockRequest::Reconnect`](super::BlockRequest::Reconnect) or
    /// [`NetRequest::Reconnect`](super::NetRequest::Reconnect) is waited for.
    ConnectionLost {
        /// Which disk or NIC.
        device: DeviceId,
        /// One line for the operator.
        why: String,
    },
}
