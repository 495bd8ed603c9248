//! What domains have used and done, all of them at once: for `domus top` and for metrics.

use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use zlink::introspect;

use super::DomainInfo;
use super::disks::DiskInfo;
use super::nets::NicInfo;
use super::service::describe;
use crate::domain::operate::Order;
use crate::registry::Dom0;
use crate::resources::usage;

/// A domain whose backends do not answer within this time has no counters.
const PATIENCE: Duration = Duration::from_secs(2);

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
    /// Number of things that are amiss, see `Why`.
    pub troubles: u64,
}

/// The answer to `Statistics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Statistics {
    /// By number, without Domain-0.
    pub domains: Vec<DomainStatistics>,
}

/// Asks every domain, all at once.
pub async fn collect(dom0: &Dom0) -> Vec<DomainStatistics> {
    let domains = dom0.list().into_iter().map(async |(name, view)| {
        let ask = async || {
            let disks = dom0.order(name.as_str(), Order::Disks).await.unwrap_or_default();
            let nics = dom0.order(name.as_str(), Order::Nics).await.unwrap_or_default();
            (disks, nics)
        };
        // A domain without a machine has nobody to ask.
        let (disks, nics) = match view.state.has_machine() {
            true => tokio::time::timeout(PATIENCE, ask()).await.unwrap_or_default(),
            false => Default::default(),
        };
        let vcpus = view.runner.map(usage::vcpu_times).unwrap_or_default();
        DomainStatistics {
            resident_bytes: view.runner.map_or(0, usage::resident),
            vcpus: vcpus
                .into_iter()
                .map(|it| VcpuInfo { vcpu: it.vcpu.into(), ran_ns: it.ran_ns, steal_ns: it.waited_ns })
                .collect(),
            disks: disks.into_iter().map(Into::into).collect(),
            nics: nics.into_iter().map(Into::into).collect(),
            troubles: view.troubles.len() as u64,
            domain: describe(&name, &view),
        }
    });
    join_all(domains).await
}
