//! The messages of `domus-block`, `domus-net` and `domus-console`.

use serde::{Deserialize, Serialize};

use super::{FdIndex, Identity};
use crate::ids::{DeviceId, MacAddress};

/// What dom0 asks of `domus-block`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BlockRequest {
    /// Serve these disks; answered with [`BackendReply::Ready`].
    Start(BlockStart),
}

/// The disks of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockStart {
    /// Whose disks they are.
    pub identity: Identity,
    /// One vhost-user-blk device each.
    pub disks: Vec<BlockDisk>,
}

/// One disk: a raw image or a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDisk {
    /// Its id.
    pub id: DeviceId,
    /// What `VIRTIO_BLK_T_GET_ID` returns: at most 20 bytes.
    pub serial: String,
    /// The image, opened read-write unless `read_only`.
    pub image: FdIndex,
    /// Offer `VIRTIO_BLK_F_RO` and fail every write.
    pub read_only: bool,
    /// Number of virtqueues, 1 to [`MAX_QUEUES`](crate::limits::MAX_QUEUES).
    pub queues: u16,
    /// The backend's end of the vhost-user socket.
    pub socket: FdIndex,
}

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
}
