//! The control protocol between dom0 and a child: one JSON value in each `SOCK_SEQPACKET` datagram.
//!
//! ```text
//! dom0                                child
//!   │── Hello{oldest, newest} ─────────▶│  every controller says this first
//!   │◀──────────────── Welcome{version} │  the newest version that both speak
//!   │── Request{start} + fds ──────────▶│  the first request is always `start`
//!   │◀───────────── Reply{ready} ───────│  sealed, serving
//!   │── Request{…} ────────────────────▶│
//!   │◀──────── Reply{…} | Failed{…} ────│  one answer to each request, in order
//!   │◀───────────── Event{…} ───────────│  at any time
//! ```
//!
//! A controller that replaces another one greets in the same way, and then receives every event that still holds.
//!
//! A message has at most [`MAX_MESSAGE`](crate::limits::MAX_MESSAGE) bytes. An unknown field, a version other than the
//! one agreed on or a descriptor that is missing, named twice or not named at all makes the whole message an error.

mod backends;
mod block;
mod net;
mod runner;

pub use backends::{BackendEvent, BackendReply, ConsoleRequest, ConsoleStart};
pub use block::{
    BackingImage, BlockDisk, BlockRequest, BlockSource, BlockStart, Cache, DiskStatistics, FailedRequest,
    ImageFormat, IoLimit, IoLimits, OnError, OpStatistics, Rate,
};
pub use net::{
    AddressRange, DropReason, Drops, NetCard, NetNic, NetRequest, NetStart, NetWire, NicFilter, NicLimit,
    NicLimits, NicRequest, NicStatistics, SwitchEvent, SwitchRequest, SwitchStart, TrafficStatistics,
};
pub use runner::{
    Attachment, Device, DeviceConfig, DeviceFeatures, DeviceSpec, MachineTimes, RunnerEvent, RunnerReply,
    RunnerRequest, RunnerStart, RunnerStatus, StartPart, StopReason, Unpacked, VcpuCounters,
};

use serde::{Deserialize, Serialize};

use crate::ids::{DomId, DomainName};

/// The version of these messages. It goes up when a message changes in a way that the other side must know of.
///
/// | version | what is new in it |
/// |---|---|
/// | 2 | a device's PCI slot in [`DeviceSpec`], [`RunnerReply::Refused`] |
/// | 3 | [`ConsoleRequest::Ping`], [`ConsoleRequest::Log`], [`SwitchRequest::Ping`], more in [`DiskStatistics`] |
/// | | the CPU in [`RunnerStart`], [`StartPart::Cpu`], [`RunnerRequest::Counters`], [`RunnerRequest::Gone`] |
/// | 4 | a command line that yields and [`Unpacked`], in [`RunnerStart`] |
pub const VERSION: u32 = 4;

/// The oldest version that this build still speaks: an upgraded dom0 drives children that the older dom0 started.
pub const OLDEST: u32 = 1;

/// What a controller says first: which versions it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Hello {
    /// What this build speaks.
    pub const OWN: Self = Self { oldest: OLDEST, newest: VERSION };

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// What a child says to that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Welcome {
    /// All that follows is of this version.
    Version(u32),
    /// They cannot talk; the text is one line for the operator.
    Refused(String),
}

/// A position in the message's `SCM_RIGHTS` array. Each descriptor sent is named exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u8);

/// A request from dom0, of the kinds `R` that the child's role knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<R> {
    /// Must be the one agreed on.
    pub version: u32,
    /// What to do.
    pub request: R,
}

/// What a child sends: replies `A` in the order of the requests, and events `E` in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromChild<A, E> {
    /// The request was done.
    Reply(A),
    /// The request was refused or failed; the text is one line for the operator.
    Failed(String),
    /// Something happened that nobody asked for.
    Event(E),
}

/// The domain that a child serves, and whom it becomes before it touches anything a guest can reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The domain's name, for messages and logs.
    pub domain: DomainName,
    /// The domain's number.
    pub domid: DomId,
    /// The user id and group id of all the domain's processes. 0 is refused by the sandbox; a dom0 that does
    /// not run as root sends its own.
    pub uid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_speak_the_newest_version_that_both_know_or_none() {
        let speaks = |oldest, newest| Hello { oldest, newest };
        assert_eq!(speaks(1, 3).common(speaks(2, 5)), Some(3));
        assert_eq!(speaks(2, 5).common(speaks(1, 3)), Some(3));
        assert_eq!(speaks(1, 1).common(speaks(2, 2)), None);
        assert_eq!(speaks(0, u32::MAX).common(Hello::OWN), Some(VERSION));
        // Nonsense agrees with nobody.
        assert_eq!(speaks(3, 1).common(speaks(1, 3)), None);
    }
}
