//! Events, as a client follows them.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct EventInfo {
    /// From 1 on, one more each time, as long as this dom0 runs.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The domain that it is about, if it is about one.
    pub domain: Option<String>,
    /// The number that the domain had then.
    pub id: Option<u32>,
    /// dom0-started, adopted, building, start-failed, running, paused, stopping, stopped, crashed, preserved, dying,
    /// gone, backend-lost, backend-back, request-held, network-fault, network-mended, link-up or link-down.
    pub kind: String,
    /// More about it, for people.
    pub detail: Option<String>,
    /// How many events before this one the client was too slow, or too late, for.
    pub missed: u64,
}
