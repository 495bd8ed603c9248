//! The troubles of a domain, and the replacement of a backend.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// The answer to `BackendUpgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Upgraded {
    /// How long the devices of the backend stood still, in microseconds.
    pub stalled_us: u64,
}

/// Something amiss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct TroubleInfo {
    /// Where: a disk, a backend, the guest.
    pub layer: String,
    /// Since when, in seconds after 1970 (UTC), if that is known.
    pub since: Option<u64>,
    /// What has happened.
    pub cause: String,
    /// What to do, or what is being done.
    pub next: String,
}

/// The answer to `Why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Troubles {
    /// The domain's state, as `List` has it.
    pub state: String,
    /// Its vCPUs share the threads of a core with nobody else; none while that is not known.
    pub core_scheduling: Option<bool>,
    /// What is amiss; empty if nothing is.
    pub troubles: Vec<TroubleInfo>,
}
