//! vCPUs and what they have of the host's CPUs, as the API shows and changes them.

use domus_api::{Sched, VcpuPlace};

use crate::domain::machine::VcpuReport;
use crate::value::cpus::{CpuSet, MAX_CAP, MAX_WEIGHT, Scheduling, USUAL_WEIGHT};

impl From<VcpuReport> for VcpuPlace {
    fn from(VcpuReport { thread, wanted }: VcpuReport) -> Self {
        Self {
            vcpu: thread.vcpu.into(),
            cpu: thread.cpu.into(),
            runs: thread.runs,
            // USER_HZ is 100 on every Linux that runs KVM on x86.
            cpu_seconds: thread.ticks as f64 / 100.0,
            affinity: wanted.to_string(),
        }
    }
}

impl From<Scheduling> for Sched {
    fn from(scheduling: Scheduling) -> Self {
        Self { weight: scheduling.weight.unwrap_or(USUAL_WEIGHT), cap: scheduling.cap.unwrap_or(0) }
    }
}

/// The vCPU, if one is named, and the CPUs.
///
/// # Errors
/// One line.
pub fn pin(vcpu: Option<u32>, cpus: &str) -> Result<(Option<u8>, CpuSet), String> {
    let vcpu = vcpu.map(|vcpu| u8::try_from(vcpu).map_err(|_| format!("there is no vCPU {vcpu}")));
    Ok((vcpu.transpose()?, cpus.parse()?))
}

/// Refuses a weight or a cap that no domain can have.
///
/// # Errors
/// One line.
pub fn check(weight: Option<u32>, cap: Option<u32>) -> Result<(), String> {
    if let Some(weight) = weight.filter(|weight| !(1..=MAX_WEIGHT).contains(weight)) {
        return Err(format!("a weight of {weight} is out of range: 1 to {MAX_WEIGHT} would do"));
    }
    match cap {
        Some(cap) if cap > MAX_CAP => {
            Err(format!("a cap of {cap} % is out of range: up to {MAX_CAP}, or 0 for none, would do"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_domain_can_have_is_refused_with_its_value() {
        assert_eq!(check(Some(MAX_WEIGHT), Some(0)), Ok(()));
        assert!(check(Some(0), None).unwrap_err().contains("weight of 0"));
        assert!(check(None, Some(25_501)).unwrap_err().contains("cap of 25501 %"));
        assert!(pin(Some(256), "0").unwrap_err().contains("vCPU 256"));
        assert!(pin(None, "x").is_err());
    }
}
