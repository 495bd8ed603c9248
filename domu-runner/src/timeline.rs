//! When a machine did what for the first time: `CLOCK_MONOTONIC`, which dom0 reads too.

use std::sync::OnceLock;

use domus_startup::time::monotonic;
use shared_abi::control::MachineTimes;

/// A moment that is kept once.
#[derive(Debug, Default)]
pub struct Mark(OnceLock<u64>);

impl Mark {
    /// Now, unless it was before.
    pub fn set(&self) {
        self.0.get_or_init(monotonic);
    }

    /// The moment in nanoseconds, if it has come.
    pub fn get(&self) -> Option<u64> {
        self.0.get().copied()
    }
}

/// The moments of a machine's start.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The start message is there.
    pub received: Mark,
    /// KVM's objects and the devices are made, the process is sealed.
    pub built: Mark,
    /// The kernel is in guest memory.
    pub loaded: Mark,
}

impl Timeline {
    /// For dom0, with what vCPUs, serial line and devices know.
    pub fn times(
        &self,
        first_run: Option<u64>,
        first_output: Option<u64>,
        first_driver: Option<u64>,
    ) -> MachineTimes {
        MachineTimes {
            received_ns: self.received.get(),
            built_ns: self.built.get(),
            loaded_ns: self.loaded.get(),
            first_run_ns: first_run,
            first_output_ns: first_output,
            first_driver_ns: first_driver,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_keeps_the_first_moment() {
        let mark = Mark::default();
        assert_eq!(mark.get(), None);
        mark.set();
        let first = mark.get();
        assert!(first.is_some_and(|first| first <= monotonic()));
        mark.set();
        assert_eq!(mark.get(), first);
    }
}
