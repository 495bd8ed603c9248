//! Disks, with their counters.

use serde::{Deserialize, Serialize};
use shared_abi::control::{DiskStatistics, OpStatistics};
use zlink::introspect;

use crate::Limit;

/// What a disk has done of one kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct OpInfo {
    /// Requests answered.
    pub ops: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// Time from taking a request to answering it, all added up, in nanoseconds.
    pub total_ns: u64,
    /// Number of requests by that time: entry n counts those of less than 2^n µs that no entry before it counts.
    pub latency: Vec<u64>,
}

/// What a disk has done since its backend started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DiskCounters {
    /// Requests taken from the guest and not answered yet.
    pub in_flight: u64,
    /// Of these, those held after an error.
    pub held: u64,
    /// The most that were in flight at once.
    pub deepest: u64,
    /// Requests that had to wait for a limit.
    pub throttled: u64,
    /// Times that the disk could not go on.
    pub stalls: u64,
    /// Reads.
    pub read: OpInfo,
    /// Writes.
    pub write: OpInfo,
    /// Flushes.
    pub flush: OpInfo,
    /// Discards and write-zeroes.
    pub discard: OpInfo,
    /// Of the requests that the storage has, how long it has had the oldest, in milliseconds.
    pub oldest_ms: Option<u64>,
}

/// One disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DiskInfo {
    /// Its id.
    pub id: String,
    /// Path, URI or socket.
    pub source: String,
    /// `raw`, `qcow2`, `nbd` or `vhost-user`.
    pub format: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Number of virtqueues.
    pub queues: u32,
    /// `none`, `writeback`, `unsafe`, or empty if that is somebody else's matter.
    pub cache: String,
    /// `serving`, `held` (after an error, until unpause) or `waiting` (for a backend or a server).
    pub state: String,
    /// The process that serves it, if it is the domain's own and there.
    pub backend_pid: Option<i32>,
    /// Its size, if its backend is there to say.
    pub bytes: Option<u64>,
    /// The limits it has.
    pub limits: Vec<Limit>,
    /// What it has done, if its backend is there to say.
    pub counters: Option<DiskCounters>,
}

/// The answer to `BlockList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct DiskList {
    /// In the order the guest sees them.
    pub disks: Vec<DiskInfo>,
}

/// The answer to `BlockResize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Resized {
    /// The disk's size now.
    pub bytes: u64,
}

impl From<OpStatistics> for OpInfo {
    fn from(op: OpStatistics) -> Self {
        let OpStatistics { ops, errors, bytes, total_ns, latency } = op;
        Self { ops, errors, bytes, total_ns, latency }
    }
}

impl From<DiskStatistics> for DiskCounters {
    fn from(disk: DiskStatistics) -> Self {
        Self {
            in_flight: disk.in_flight,
            held: disk.held,
            deepest: disk.deepest,
            throttled: disk.throttled,
            stalls: disk.stalls,
            read: disk.read.into(),
            write: disk.write.into(),
            flush: disk.flush.into(),
            discard: disk.discard.into(),
            oldest_ms: disk.oldest_ms,
        }
    }
}
