//! The statistics of all domains at once, for `domus top` and for metrics.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domus_api::{DomainStatistics, VcpuInfo};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, join_all};
use tokio::time::Instant;

use crate::api::domains::describe;
use crate::host::usage;
use crate::service::Dom0;

/// A domain whose backends do not answer within this time has no counters.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sample that is younger is as good as a new one.
const FRESH: Duration = Duration::from_secs(1);

/// A sample that is being taken, or was.
type Sample = Shared<LocalBoxFuture<'static, Rc<[DomainStatistics]>>>;

/// Samples of all domains, one at a time: ten who ask cost as much as one.
pub struct Samples {
    dom0: Rc<Dom0>,
    last: RefCell<Option<(Instant, Sample)>>,
}

impl Samples {
    /// Of a dom0's domains.
    pub fn new(dom0: Rc<Dom0>) -> Self {
        Self { dom0, last: RefCell::default() }
    }

    /// The sample of the moment.
    pub async fn take(&self) -> Rc<[DomainStatistics]> {
        let sample = {
            let mut last = self.last.borrow_mut();
            let fresh =
                last.as_ref().filter(|(since, sample)| since.elapsed() < FRESH || sample.peek().is_none());
            match fresh {
                Some((_, sample)) => sample.clone(),
                None => {
                    let dom0 = self.dom0.clone();
                    let sample = async move { collect(&dom0).await.into() }.boxed_local().shared();
                    last.insert((Instant::now(), sample)).1.clone()
                }
            }
        };
        sample.await
    }
}

/// Asks every domain, all at once.
async fn collect(dom0: &Dom0) -> Vec<DomainStatistics> {
    let domains = dom0.list().into_iter().map(async |view| {
        let ask = async || {
            let disks = dom0
                .question(view.name.as_str(), |domain| {
                    async move { Ok(domain.machine().disks().await) }.boxed_local()
                })
                .await
                .unwrap_or_default();
            let nics = dom0
                .question(view.name.as_str(), |domain| {
                    async move { Ok(domain.machine().nics().await) }.boxed_local()
                })
                .await
                .unwrap_or_default();
            (disks, nics)
        };
        // A domain without a machine has nobody to ask.
        let (disks, nics) = match view.state.has_machine() {
            true => tokio::time::timeout(PATIENCE, ask()).await.unwrap_or_default(),
            false => Default::default(),
        };
        let vcpus = view.runner.map(usage::vcpu_times).unwrap_or_default();
        let waits = dom0.find(view.name.as_str()).map_or(0, |handle| handle.waits().len());
        let faults = view.networks.iter().map(|network| dom0.networks().faults(network).len()).sum::<usize>();
        DomainStatistics {
            resident_bytes: view.runner.map_or(0, usage::resident),
            vcpus: vcpus
                .into_iter()
                .map(|it| VcpuInfo { vcpu: it.vcpu.into(), ran_ns: it.ran_ns, steal_ns: it.waited_ns })
                .collect(),
            disks: disks.into_iter().map(Into::into).collect(),
            nics: nics.into_iter().map(Into::into).collect(),
            bus_locks: view.vcpu_counters.map(|counters| counters.bus_locks),
            troubles: (view.troubles.len() + faults + waits) as u64,
            domain: describe(&view),
        }
    });
    join_all(domains).await
}
