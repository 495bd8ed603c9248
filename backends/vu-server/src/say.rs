//! One line to standard error, however often a guest makes us want to say it: at most ten in ten seconds.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines in one [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

struct Budget {
    since: Option<Instant>,
    said: u32,
    dropped: u64,
}

static BUDGET: Mutex<Budget> = Mutex::new(Budget { since: None, said: 0, dropped: 0 });

/// Says one line that a guest or a frontend can cause. Beyond the budget it is counted and dropped; the count is
/// said with the next line.
pub fn limited(line: fmt::Arguments<'_>) {
    if let Some(dropped) = admit(Instant::now()) {
        if dropped > 0 {
            domus_startup::say(format_args!("{line} ({dropped} lines like this were dropped)"));
        } else {
            domus_startup::say(format_args!("{line}"));
        }
    }
}

/// None if the line must be dropped, else how many were dropped before it.
fn admit(now: Instant) -> Option<u64> {
    let mut budget = BUDGET.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if budget.since.is_none_or(|since| now.saturating_duration_since(since) > WINDOW) {
        budget.since = Some(now);
        budget.said = 0;
    }
    if budget.said == LINES {
        budget.dropped += 1;
        return None;
    }
    budget.said += 1;
    Some(std::mem::take(&mut budget.dropped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_line_in_ten_seconds_is_dropped_and_counted() {
        let start = Instant::now();
        assert!((0..10).all(|_| admit(start).is_some()));
        assert!((0..7).all(|_| admit(start + WINDOW).is_none()));
        assert_eq!(admit(start + WINDOW * 2), Some(7));
    }
}
