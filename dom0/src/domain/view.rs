//! What others see of a domain.

use std::path::PathBuf;

use shared_abi::control::VcpuCounters;
use shared_abi::{DomId, DomainName, NetworkName};
use uuid::Uuid;

use crate::domain::lifecycle::State;
use crate::value::cpus::Scheduling;
use crate::value::trouble::Trouble;

/// What others see of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its name.
    pub name: DomainName,
    /// The name that its processes have: nobody else can have it.
    pub started_as: DomainName,
    /// Where its console is.
    pub console: PathBuf,
    /// Its number; another one after each restart.
    pub domid: DomId,
    /// By which the host's other tools know it.
    pub uuid: Uuid,
    /// Where it is in its life.
    pub state: State,
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Its part of the host's CPUs.
    pub scheduling: Scheduling,
    /// The runner's process, while there is one.
    pub runner: Option<i32>,
    /// What its vCPUs did to the host, as far as the runner has told.
    pub vcpu_counters: Option<VcpuCounters>,
    /// How the last machine ended, for people.
    pub ended: Option<String>,
    /// It ended by a crash.
    pub crashed: bool,
    /// Backends that were started again, or connected to again.
    pub restarts: u64,
    /// The managed networks that its NICs are on.
    pub networks: Vec<NetworkName>,
    /// What is amiss with it just now.
    pub troubles: Vec<Trouble>,
}
