//! When a start came to what: dom0's moments, and those that its runner knows, on the one clock of the host.

use nix::time::{ClockId, clock_gettime};
use shared_abi::control::{MachineTimes, RunnerReply, RunnerRequest};

use crate::domain::Domain;
use crate::process::link::ANSWER;

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
    fn with(&self, times: &MachineTimes) -> Vec<Phase> {
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

impl Domain {
    /// What the start of the machine that runs came to, and when; the later phases are there when they have come.
    ///
    /// # Errors
    /// One line: it has no machine, or its runner does not answer.
    pub async fn timeline(&mut self) -> Result<Vec<Phase>, String> {
        match self.talk(&RunnerRequest::Times, ANSWER, "said when it did what").await {
            Ok(Some(RunnerReply::Times(times))) => Ok(self.incarnation.timeline.with(&times)),
            Ok(_) => Err(format!("cannot tell how it started: the domain {}", self.state)),
            Err(error) => {
                Err(format!("cannot tell how it started: {}", domus_startup::control::chain(&error)))
            }
        }
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
