//! What a machine's vCPUs do to their host, as the runner counts it.

use std::time::Duration;

use shared_abi::DomainName;
use shared_abi::control::VcpuCounters;

use crate::value::trouble::Trouble;

/// The counters of the last two signs of life.
#[derive(Debug, Default)]
pub struct VcpuLoad {
    last: Option<VcpuCounters>,
    before: Option<VcpuCounters>,
}

impl VcpuLoad {
    /// The runner has told these.
    pub fn count(&mut self, counters: VcpuCounters) {
        self.before = self.last.replace(counters);
    }

    /// What it has told last.
    pub fn counters(&self) -> Option<VcpuCounters> {
        self.last
    }

    /// What its vCPUs did to others between the two, which are a `beat` apart.
    pub fn troubles(&self, name: &DomainName, beat: Duration) -> Vec<Trouble> {
        let (Some(last), Some(before)) = (self.last, self.before) else { return Vec::new() };
        let seconds = beat.as_secs();
        let new = |counter: fn(&VcpuCounters) -> u64| counter(&last).saturating_sub(counter(&before));
        let mut troubles = Vec::new();
        let mut add = |cause: String, next: String| {
            troubles.push(Trouble { layer: "vCPUs".into(), since: None, cause, next });
        };
        match new(|counters| counters.bus_locks) {
            0 => {}
            locks => add(
                format!(
                    "the guest has locked the bus of all the host's CPUs {locks} times within {seconds} s"
                ),
                "a vCPU stands still for 1 ms after each; look for split locks in the guest's log".into(),
            ),
        }
        match new(|counters| counters.stuck) {
            0 => {}
            stuck => add(
                format!(
                    "a vCPU held its core without a chance for an interrupt {stuck} times within {seconds} s"
                ),
                format!("it goes on; domus destroy {name} ends it"),
            ),
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vcpus_do_to_others_is_told_while_they_do_it() {
        let name = "web1".parse().unwrap();
        let counters = |bus_locks, stuck| VcpuCounters { bus_locks, stuck, ..Default::default() };
        let mut load = VcpuLoad::default();
        load.count(counters(5, 0));
        assert_eq!(load.troubles(&name, Duration::from_secs(3)), []);
        load.count(counters(905, 1));
        let troubles = load.troubles(&name, Duration::from_secs(3));
        assert!(troubles[0].cause.contains("900 times within 3 s"), "{troubles:?}");
        assert!(troubles[1].next.contains("domus destroy web1"), "{troubles:?}");
        load.count(counters(905, 1));
        assert_eq!(load.troubles(&name, Duration::from_secs(3)), []);
    }
}
