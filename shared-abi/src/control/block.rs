//! The messages of `domus-block`.

use serde::{Deserialize, Serialize};

use super::{FdIndex, Identity};
use crate::ids::DeviceId;

/// What dom0 asks of `domus-block`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BlockRequest {
    /// Serve these disks; answered with [`BackendReply::Ready`](super::BackendReply::Ready).
    Start(Box<BlockStart>),
    /// Throttle a disk, or without one all disks together, from now on; answered with
    /// [`BackendReply::Done`](super::BackendReply::Done).
    Limit {
        /// Which disk; none for the domain.
        disk: Option<DeviceId>,
        /// All its limits: what is not named is unlimited.
        limits: IoLimits,
    },
    /// Give a disk another size; answered with [`BackendReply::Size`](super::BackendReply::Size) once requests are
    /// checked against the new size.
    Resize {
        /// Which disk.
        disk: DeviceId,
        /// Its new size in bytes; none to measure what has grown by itself (a block device, a remote disk).
        bytes: Option<u64>,
    },
    /// Do again the requests that are held ([`OnError::Pause`]); answered with
    /// [`BackendReply::Done`](super::BackendReply::Done).
    Retry,
    /// Report what a disk has done; answered with [`BackendReply::Disk`](super::BackendReply::Disk).
    Statistics(DeviceId),
    /// A new connection to the server of a [`BlockSource::Nbd`] disk; answered with
    /// [`BackendReply::Done`](super::BackendReply::Done).
    Reconnect {
        /// Which disk.
        disk: DeviceId,
        /// A connected stream socket.
        socket: FdIndex,
    },
}

/// The disks of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockStart {
    /// Whose disks they are.
    pub identity: Identity,
    /// One vhost-user-blk device each.
    pub disks: Vec<BlockDisk>,
    /// Open files that hold the images' locks: the process keeps them open for its whole life and does not use them.
    /// For its I/O each image is opened once more, and the kernel closes that open file with its last operation.
    pub locks: Vec<FdIndex>,
    /// What all disks together may do.
    pub limits: IoLimits,
    /// The write end of a pipe. It is closed when the kernel has finished everything this process asked it to do,
    /// which may be after the process has ended: nothing touches the guest's memory or an image any more.
    pub lifeline: FdIndex,
    /// Raw images become no longer than they are: whoever asks for a longer one raises the limit of the process first
    /// (`prlimit(2)`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited_files: bool,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDisk {
    /// Its id.
    pub id: DeviceId,
    /// What `VIRTIO_BLK_T_GET_ID` returns: at most 20 bytes.
    pub serial: String,
    /// Where its data is.
    pub source: BlockSource,
    /// Offer `VIRTIO_BLK_F_RO` and fail every write.
    pub read_only: bool,
    /// Number of virtqueues, 1 to [`MAX_QUEUES`](crate::limits::MAX_QUEUES).
    pub queues: u16,
    /// The logical block size the guest sees, 512 or 4096 bytes; none for the image's own.
    pub block_size: Option<u32>,
    /// What an acknowledged write is worth before it is flushed.
    pub cache: Cache,
    /// Offer `VIRTIO_BLK_F_DISCARD` and let it give space back to the host.
    pub discard: bool,
    /// What becomes of a write (or flush, discard) that fails.
    pub write_error: OnError,
    /// What becomes of a read that fails.
    pub read_error: OnError,
    /// What it may do.
    pub limits: IoLimits,
    /// The backend's end of the vhost-user socket.
    pub socket: FdIndex,
}

impl BlockDisk {
    /// A raw image that the guest may write, with one queue, no serial, through the page cache, without limits, whose
    /// errors are reported.
    pub fn raw(id: DeviceId, image: FdIndex, socket: FdIndex) -> Self {
        Self {
            id,
            serial: String::new(),
            source: BlockSource::Raw(image),
            read_only: false,
            queues: 1,
            block_size: None,
            cache: Cache::Writeback,
            discard: true,
            write_error: OnError::Report,
            read_error: OnError::Report,
            limits: IoLimits::default(),
            socket,
        }
    }
}

/// Where a disk's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BlockSource {
    /// The bytes of a regular file or a block device, opened read-write unless the disk is read-only, with `O_DIRECT`
    /// if [`Cache::None`].
    Raw(FdIndex),
    /// A qcow2 image, which no process but the sealed backend parses.
    Qcow2 {
        /// The image, opened like a raw one.
        image: FdIndex,
        /// The path of the image, which a relative backing path in it starts from.
        path: String,
        /// The images it may refer to, as the config lists them. One that it names and that is not here is refused.
        backing: Vec<BackingImage>,
    },
    /// An NBD server's export.
    Nbd {
        /// A connected stream socket; none if the server could not be reached yet
        /// ([`BackendEvent::ConnectionLost`](super::BackendEvent::ConnectionLost)).
        socket: Option<FdIndex>,
        /// The export's name; empty for the default one.
        export: String,
        /// Seconds without a server after which requests fail; none: they wait.
        error_after: Option<u32>,
    },
    /// Nothing: what there was cannot be had any more, and every request fails.
    Lost {
        /// The size the guest knows, in bytes.
        bytes: u64,
    },
}

/// An image behind another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackingImage {
    /// Its absolute path.
    pub path: String,
    /// The image, opened read-only.
    pub image: FdIndex,
    /// Its format: never guessed from its bytes, which a guest may have written.
    pub format: ImageFormat,
}

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What an acknowledged write is worth before it is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// It is with the disk (`O_DIRECT`); a flush is `fdatasync`.
    None,
    /// It is in the host's page cache; a flush is `fdatasync`.
    Writeback,
    /// It is in the host's page cache; a flush does nothing. For data that may be lost with the host's power.
    Unsafe,
}

/// What becomes of a request that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest is told.
    Report,
    /// It is held, dom0 is told ([`BackendEvent::IoError`](super::BackendEvent::IoError)), and
    /// [`BlockRequest::Retry`] does it again. The guest is not told.
    Pause,
    /// [`Self::Pause`] where the host's storage is full (`ENOSPC`, `EDQUOT`), [`Self::Report`] otherwise.
    PauseIfFull,
}

/// What a disk may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Reads and writes together.
    pub total: IoLimit,
    /// Reads.
    pub read: IoLimit,
    /// Writes, discards and write-zeroes.
    pub write: IoLimit,
}

/// How much of one kind of request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimit {
    /// Requests.
    pub iops: Option<Rate>,
    /// Bytes.
    pub bytes: Option<Rate>,
}

/// A rate with bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// So many a second on the average; at least 1.
    pub per_second: u64,
    /// So many a second in a burst; at least `per_second`, and the same for no bursts.
    pub burst: u64,
    /// How long a burst may last, in seconds, after a long enough rest; at least 1.
    pub burst_seconds: u32,
}

/// What a disk has done since its process started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskStatistics {
    /// Its size in bytes.
    pub bytes: u64,
    /// Requests taken from the guest and not answered yet.
    pub in_flight: u64,
    /// Of these, those held after an error.
    pub held: u64,
    /// The most that were in flight at once.
    pub deepest: u64,
    /// Requests that had to wait for a limit.
    pub throttled: u64,
    /// Times that the disk could not go on: errors held, connections lost.
    pub stalls: u64,
    /// `VIRTIO_BLK_T_IN`.
    pub read: OpStatistics,
    /// `VIRTIO_BLK_T_OUT`.
    pub write: OpStatistics,
    /// `VIRTIO_BLK_T_FLUSH`.
    pub flush: OpStatistics,
    /// `VIRTIO_BLK_T_DISCARD` and `VIRTIO_BLK_T_WRITE_ZEROES`.
    pub discard: OpStatistics,
    /// Of the requests that the storage has, how long it has had the oldest, in milliseconds; none if it has none.
    /// Not in a message of a version before 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// The last request that failed. Not in a message of a version before 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<FailedRequest>,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedRequest {
    /// `read`, `write`, `flush` or `discard`.
    pub operation: String,
    /// First byte, in the disk.
    pub offset: u64,
    /// Linux' number of the error.
    pub errno: i32,
}

/// What a disk has done of one kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpStatistics {
    /// Requests answered.
    pub ops: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// Time from taking a request to answering it, all added up, in nanoseconds.
    pub total_ns: u64,
    /// Number of requests by that time: entry *n* counts those of less than 2^n µs that no entry before it counts, the
    /// last one all longer ones. Zeros at the end are left out.
    pub latency: Vec<u64>,
}
