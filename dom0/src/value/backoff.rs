//! The delay before a process that has died is started again, and the count of early deaths that it follows from. Pure.

use std::time::{Duration, Instant};

/// Attempts, or deaths soon after a start, that are followed by the next attempt at once.
const AT_ONCE: u32 = 3;
/// The first pause after that; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What has lived as long did not die of its start.
const GOOD_LIFE: Duration = Duration::from_secs(1);

/// How long the attempt after so many others waits.
pub fn pause(attempts: u32) -> Duration {
    match attempts.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE),
    }
}

/// How often in a row something has died early. A start that fails is a death after no life at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct EarlyDeaths {
    in_a_row: u32,
    last: Option<Instant>,
}

impl EarlyDeaths {
    /// Counts a death after so long a life; a good life ends the row. Returns how many are in the row.
    pub fn died(&mut self, lived: Duration) -> u32 {
        self.in_a_row = if lived < GOOD_LIFE { self.in_a_row.saturating_add(1) } else { 0 };
        self.in_a_row
    }

    /// It has begun to live, for [`Self::died_at`].
    pub fn began(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// The same for what not everybody saw start: it has lived since it [began](Self::began) or last died, and the
    /// first one for a good while.
    pub fn died_at(&mut self, now: Instant) -> u32 {
        let last = self.last.replace(now);
        self.died(last.map_or(Duration::MAX, |last| now.saturating_duration_since(last)))
    }

    /// How long the next attempt waits.
    pub fn pause(&self) -> Duration {
        pause(self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_life_ends_a_row_of_early_deaths() {
        let early = GOOD_LIFE.saturating_sub(Duration::from_millis(1));
        let mut deaths = EarlyDeaths::default();
        let counts = [early, Duration::ZERO, early, early, GOOD_LIFE, early].map(|lived| deaths.died(lived));
        assert_eq!(counts, [1, 2, 3, 4, 0, 1]);
        assert_eq!(deaths.pause(), Duration::ZERO);
        let pauses = [1, 2, 3].map(|_| {
            deaths.died(early);
            deaths.pause().as_millis()
        });
        assert_eq!(pauses, [0, 50, 100]);
    }

    #[test]
    fn what_nobody_saw_start_has_lived_since_the_last_death() {
        let first = Instant::now();
        let mut deaths = EarlyDeaths::default();
        let counts = [0, 999, 1998, 2998, 3000].map(|ms| deaths.died_at(first + Duration::from_millis(ms)));
        assert_eq!(counts, [0, 1, 2, 0, 1]);
        // A pause before the next one is no life.
        deaths.began(first + Duration::from_millis(9000));
        assert_eq!(deaths.died_at(first + Duration::from_millis(9100)), 2);
    }

    #[test]
    fn the_first_attempts_come_at_once_and_the_later_ones_ever_more_slowly_to_a_bound() {
        let pauses: Vec<_> = (0..14).map(|attempts| pause(attempts).as_millis()).collect();
        assert_eq!(pauses[..7], [0, 0, 0, 50, 100, 200, 400]);
        assert_eq!((pauses[12], pause(u32::MAX)), (5000, LONGEST_PAUSE));
    }
}
