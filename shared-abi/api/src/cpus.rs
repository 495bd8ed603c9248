//! vCPUs, and the share of the host's CPUs that a domain has.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// One vCPU of a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::CustomType)]
pub struct VcpuPlace {
    /// Its number.
    pub vcpu: u32,
    /// The host's CPU that it ran on last.
    pub cpu: u32,
    /// It runs, or waits for a CPU.
    pub runs: bool,
    /// CPU time that it has used, in seconds.
    pub cpu_seconds: f64,
    /// The host's CPUs that it is to run on, such as `0-3` or `all`.
    pub affinity: String,
}

/// The answer to `VcpuList`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct VcpuList {
    /// By number.
    pub vcpus: Vec<VcpuPlace>,
}

/// The answer to `SchedSet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Sched {
    /// Its weight beside other domains'.
    pub weight: u32,
    /// What it may use, in percent of one CPU; 0 is all there is.
    pub cap: u32,
}
