//! The host, dom0 itself, and the end of all guests.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// The answer to `GuestsStop`: names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct GuestsStopped {
    /// Guests that have switched themselves off.
    pub shut_down: Vec<String>,
    /// Guests that had to be destroyed.
    pub destroyed: Vec<String>,
}

/// The answer to `Info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct HostInfo {
    /// The version of dom0.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its run directory.
    pub run_dir: String,
    /// Where it keeps what is said about each domain; none where the journal has that.
    pub log_dir: Option<String>,
    /// The host's RAM in MiB.
    pub memory_mib: u64,
    /// The host's CPUs.
    pub cpus: u32,
    /// Number of domains, without Domain-0.
    pub domains: u32,
}
