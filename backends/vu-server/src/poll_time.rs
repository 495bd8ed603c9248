//! Decides how long a worker polls for work before it sleeps. Pure.
//!
//! The rule is that of KVM's halt polling: look only where the last pauses were so short that looking would have met
//! the next request, and give up at the first pause that was longer.

/// The longest look, in nanoseconds: what a driver needs to wake up and to ask for more, or a fast disk to answer.
const LONGEST: u64 = 100_000;

/// What the last pauses say of the next one.
#[derive(Debug, Default)]
pub struct PollTime {
    looks: bool,
}

impl PollTime {
    /// How long to look, in nanoseconds; 0 for not at all.
    pub fn limit(&self) -> u64 {
        if self.looks { LONGEST } else { 0 }
    }

    /// Something has come `pause` nanoseconds after all else was done.
    pub fn came(&mut self, pause: u64) {
        self.looks = pause <= LONGEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_pause_makes_the_worker_look_and_a_long_one_makes_it_sleep() {
        let mut poll_time = PollTime::default();
        assert_eq!(poll_time.limit(), 0);
        poll_time.came(20_000);
        assert_eq!(poll_time.limit(), LONGEST);
        poll_time.came(LONGEST + 1);
        assert_eq!(poll_time.limit(), 0);
    }
}
