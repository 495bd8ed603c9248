//! Timestamps of the phases of a start, dom0's and the runner's, on `CLOCK_MONOTONIC`.

use nix::time::{ClockId, clock_gettime};
use shared_abi::control::MachineTimes;

/// The end of one phase: its name, and `CLOCK_MONOTONIC` in nanoseconds.
pub type Phase = (&'static str, u64);

/// dom0's moments of one start.
#[derive(Debug, Default)]
pub struct Timeline(Vec<Phase>);

impl Timeline {
    /// This phase has ended now.
    pub fn mark(&mut self, phase: &'static str) {
        // Fails only for a clock that does not exist.
        if let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) {
            self.0.push((phase, now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64));
        }
    }

    /// With the runner's moments, in their order.
    pub fn with(&self, times: &MachineTimes) -> Vec<Phase> {
        let theirs = [
            ("machine", times.built_ns),
            ("kernel", times.loaded_ns),
            ("run", times.first_run_ns),
            ("output", times.first_output_ns),
            ("driver", times.first_driver_ns),
        ];
        let mut phases = self.0.clone();
        phases.extend(theirs.into_iter().filter_map(|(name, at)| Some((name, at?))));
        phases.sort_by_key(|(_, at)| *at);
        phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_in_the_order_in_which_they_ended() {
        let timeline = Timeline(vec![("config", 10), ("files", 20), ("ready", 60)]);
        let times = MachineTimes { built_ns: Some(30), loaded_ns: Some(50), ..Default::default() };
        let names: Vec<_> = timeline.with(&times).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["config", "files", "machine", "kernel", "ready"]);
    }
}
