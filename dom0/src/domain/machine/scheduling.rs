//! What a domain has of the host's CPUs: where its vCPUs may run, its weight beside other domains, its cap.
//!
//! A runner's threads keep their places when dom0 is replaced, and its cgroup its weight; a machine that is started
//! again gets what the one before it had.

use crate::config::DomainConfig;
use crate::domain::machine::Machine;
use crate::host::vcpus::{self, VcpuThread};
use crate::value::cpus::{CpuSet, Scheduling};
use crate::value::place::ConfigError;

/// What there is to say of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuReport {
    /// Its thread.
    pub thread: VcpuThread,
    /// Where it is wanted.
    pub wanted: CpuSet,
}

/// Refuses CPUs that this host does not have.
///
/// # Errors
/// [`ConfigError`] at `cpus`.
pub fn check(config: &DomainConfig) -> Result<(), ConfigError> {
    let online = vcpus::online();
    let refused = config.scheduling.pins.iter().find_map(|pin| pin.among(&online).err());
    refused.map_or(Ok(()), |why| Err(ConfigError::new(&config.file, "cpus", why)))
}

impl Machine {
    /// Gives it its part, when it has been built and has not run yet.
    ///
    /// # Errors
    /// [`ConfigError`] at the key that cannot be fulfilled.
    pub async fn apply_scheduling(&self) -> Result<(), ConfigError> {
        let refuse = |at: &str, why: String| self.owner.place(at).refuse(why);
        for thread in self.threads() {
            if let Some(cpus) = self.scheduling.pins.get(usize::from(thread.vcpu)) {
                self.place(&thread, cpus).map_err(|why| refuse("cpus", why))?;
            }
        }
        let Scheduling { weight, cap, .. } = self.scheduling;
        if weight.is_none() && cap.is_none() {
            return Ok(());
        }
        let limited = self.from.supervisor.set_cpu_limits(&self.owner.started_as, weight, cap).await;
        let at = if weight.is_some() { "cpu_weight" } else { "cpu_cap" };
        limited.map_err(|why| refuse(at, format!("{why}; leave it out")))
    }

    fn threads(&self) -> Vec<VcpuThread> {
        let mut threads = self.runner().map_or(Vec::new(), vcpus::vcpus);
        threads.retain(|thread| thread.vcpu < self.vcpus);
        threads
    }

    fn wanted(&self, vcpu: u8) -> CpuSet {
        self.scheduling.pins.get(usize::from(vcpu)).cloned().unwrap_or(CpuSet::ALL)
    }

    fn place(&self, thread: &VcpuThread, cpus: &CpuSet) -> Result<(), String> {
        let runner = self.runner().ok_or("its runner is gone")?;
        let chosen = cpus.among(&vcpus::online())?;
        vcpus::pin(runner, thread, &chosen)
            .map_err(|error| format!("cannot let vCPU {} run on \"{cpus}\": {error}", thread.vcpu))
    }

    /// Reports on every vCPU.
    pub fn vcpu_reports(&self) -> Vec<VcpuReport> {
        let report = |thread: VcpuThread| VcpuReport { wanted: self.wanted(thread.vcpu), thread };
        self.threads().into_iter().map(report).collect()
    }

    /// Lets a vCPU, or with none all of them, run on these CPUs only.
    ///
    /// # Errors
    /// One line.
    pub fn pin(&mut self, vcpu: Option<u8>, cpus: CpuSet) -> Result<(), String> {
        let count = self.vcpus;
        if let Some(vcpu) = vcpu.filter(|vcpu| *vcpu >= count) {
            return Err(format!("there is no vCPU {vcpu}: the domain has 0 to {}", count - 1));
        }
        let threads = self.threads();
        for thread in threads.iter().filter(|thread| vcpu.is_none_or(|vcpu| thread.vcpu == vcpu)) {
            self.place(thread, &cpus)?;
        }
        let mut pins: Vec<CpuSet> = (0..count).map(|vcpu| self.wanted(vcpu)).collect();
        for (n, pin) in (0..).zip(&mut pins) {
            if vcpu.is_none_or(|vcpu| vcpu == n) {
                pin.clone_from(&cpus);
            }
        }
        self.scheduling.pins = pins;
        Ok(())
    }

    /// Changes weight and cap, as far as they are given; returns both.
    ///
    /// # Errors
    /// One line; they are as before then.
    pub async fn set_cpu_limits(
        &mut self,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> Result<Scheduling, String> {
        self.from.supervisor.set_cpu_limits(&self.owner.started_as, weight, cap).await?;
        let Scheduling { weight: old_weight, cap: old_cap, .. } = self.scheduling;
        self.scheduling.weight = weight.or(old_weight);
        self.scheduling.cap = cap.or(old_cap);
        Ok(self.scheduling.clone())
    }
}
