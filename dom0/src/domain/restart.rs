//! The restart delay of a guest. Reads the clock, no other I/O.

use std::time::Duration;

use shared_abi::DomainName;
use tokio::time::Instant;

use crate::value::trouble::Trouble;

/// The shortest time from one start of a guest to the next.
const SHORTEST: Duration = Duration::from_secs(1);

/// Upper bound of the restart delay. A guest that ran at least this long gets its delay reset.
const LONGEST: Duration = Duration::from_secs(60);

/// A build that has failed and is tried again.
#[derive(Debug)]
pub struct Problem {
    /// Why.
    pub why: String,
    /// Since when.
    pub since: Instant,
    /// How many in a row have.
    pub attempts: u32,
}

/// Guests that have ended soon after their start, one after the other.
#[derive(Debug)]
struct Early {
    count: u32,
    since: Instant,
    /// How the last one ended.
    how: String,
    crashed: bool,
}

/// The starts of one domain's machines.
#[derive(Debug, Default)]
pub struct Pace {
    /// Why the last build failed, and how many in a row have.
    pub problem: Option<Problem>,
    early: Option<Early>,
    last: Option<Instant>,
    /// The next start comes at least this long after the last one.
    delay: Duration,
}

impl Pace {
    /// The delay from the last start to the next one if that fails.
    fn next_delay(&self) -> Duration {
        delay(self.delay, Duration::ZERO, true)
    }

    /// Its guest ends.
    pub fn ended(&mut self, how: &str, crashed: bool) {
        let lived_long = self.last.is_none_or(|last| last.elapsed() >= LONGEST);
        let before = self.early.take_if(|_| !lived_long);
        if !lived_long {
            let (count, since) = before.map_or((0, Instant::now()), |early| (early.count, early.since));
            self.early = Some(Early { count: count + 1, since, how: how.into(), crashed });
        }
    }

    /// What is amiss with the starts of the domain `name`.
    pub fn troubles(&self, name: &DomainName) -> Vec<Trouble> {
        let gives_up = format!("domus destroy {name} gives it up");
        let failed = self.problem.as_ref().map(|Problem { why, since, attempts }| Trouble {
            layer: "domain".into(),
            since: Some(*since),
            cause: format!("cannot be started, {attempts} time(s) by now: {why}"),
            next: format!("it is tried again within {} s; {gives_up}", self.next_delay().as_secs()),
        });
        // One reset is nothing; and one that lives for long has got over it.
        let early = self.early.as_ref().filter(|early| early.count > 1 || early.crashed);
        let early = early.filter(|_| self.last.is_some_and(|last| last.elapsed() < LONGEST));
        let early = early.map(|Early { count, since, how, .. }| Trouble {
            layer: "guest".into(),
            since: Some(*since),
            cause: format!("has ended {count} time(s) in a row soon after its start: the last one {how}"),
            next: format!(
                "it is started again after ever longer pauses: see domus console {name}; {gives_up}"
            ),
        });
        failed.into_iter().chain(early).collect()
    }

    /// When the machine that is to be started now may be, and counts it. None for the first one. `crashed` is how the
    /// one before it ended.
    pub fn next_start(&mut self, crashed: bool) -> Option<Instant> {
        let crashed = crashed || self.problem.is_some();
        if let Some(last) = self.last {
            self.delay = delay(self.delay, last.elapsed(), crashed);
        }
        let not_before = self.last.map(|last| last + self.delay);
        let now = Instant::now();
        self.last = Some(not_before.map_or(now, |at| at.max(now)));
        not_before
    }
}

/// The delay after a machine that lived so long, and that was started with the delay before.
fn delay(before: Duration, lived: Duration, crashed: bool) -> Duration {
    match crashed && lived < LONGEST {
        true => (before * 2).clamp(SHORTEST, LONGEST),
        false => SHORTEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_crashes_in_a_loop_is_started_less_and_less_often() {
        let seconds = Duration::from_secs;
        let mut now = Duration::ZERO;
        let delays = [(); 8].map(|()| {
            now = delay(now, seconds(1), true);
            now.as_secs()
        });
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delay(now, seconds(61), true), SHORTEST);
        assert_eq!(delay(now, seconds(1), false), SHORTEST);
    }
}
