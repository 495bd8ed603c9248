//! The delay before a process that has died is started again. Pure.

use std::time::Duration;

/// Attempts, or deaths soon after a start, that are followed by the next attempt at once.
const AT_ONCE: u32 = 3;
/// The first pause after that; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What has lived as long did not die of its start.
pub const GOOD_LIFE: Duration = Duration::from_secs(1);

/// How long the attempt after so many others waits.
pub fn pause(attempts: u32) -> Duration {
    match attempts.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempts_come_at_once_and_the_later_ones_ever_more_slowly_to_a_bound() {
        let pauses: Vec<_> = (0..14).map(|attempts| pause(attempts).as_millis()).collect();
        assert_eq!(pauses[..7], [0, 0, 0, 50, 100, 200, 400]);
        assert_eq!((pauses[12], pause(u32::MAX)), (5000, LONGEST_PAUSE));
    }
}
