//! The statistics of all domains at once.

use serde::{Deserialize, Serialize};
use zlink::introspect;

use crate::{DiskInfo, DomainInfo, NicInfo};

/// What a vCPU has had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct VcpuInfo {
    /// Its number.
    pub vcpu: u32,
    /// Nanoseconds that it has run.
    pub ran_ns: u64,
    /// Nanoseconds that it has been ready to run while others had the host's CPUs.
    pub steal_ns: u64,
}

/// What a domain has used and done. Its counters begin anew with each start of the process that counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::CustomType)]
pub struct DomainStatistics {
    /// The domain.
    pub domain: DomainInfo,
    /// Bytes of RAM that its runner has touched, the guest's memory with it.
    pub resident_bytes: u64,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuInfo>,
    /// Its disks, as `BlockList` has them.
    pub disks: Vec<DiskInfo>,
    /// Its NICs, as `NicList` has them.
    pub nics: Vec<NicInfo>,
    /// How often its guest has locked the bus of all the host's CPUs, as far as the host tells.
    pub bus_locks: Option<u64>,
    /// Number of things that are amiss, see `Why`.
    pub troubles: u64,
}

/// The answer to `Statistics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Statistics {
    /// By number, without Domain-0.
    pub domains: Vec<DomainStatistics>,
}
