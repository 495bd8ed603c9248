//! A bound of what somebody else can cause: lines in a log, messages.
//!
//! The window is a fixed one, as that of the kernel's `ratelimit_state`: after it everything may come at once again. A
//! process that works says a few lines in its life, and what one that does not says first is what explains it; a bucket
//! that fills drop by drop would let a flood go on for ever, a line at a time.

use std::time::{Duration, Instant};

/// Lets a number of events through in each window of time, and counts those that it drops.
#[derive(Debug)]
pub struct EventLimit {
    most: u32,
    window: Duration,
    since: Option<Instant>,
    admitted: u32,
    dropped: u64,
}

impl EventLimit {
    /// So many events in a window, which opens with its first event.
    pub const fn new(most: u32, window: Duration) -> Self {
        Self { most, window, since: None, admitted: 0, dropped: 0 }
    }

    /// None if an event must be dropped now, else how many were dropped before it.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > self.window) {
            self.since = Some(now);
            self.admitted = 0;
        }
        if self.is_spent() {
            self.dropped += 1;
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.dropped))
    }

    /// True if no more is let through in the window of the last event.
    pub fn is_spent(&self) -> bool {
        self.admitted == self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_event_in_ten_seconds_is_dropped_and_counted() {
        let (start, window) = (Instant::now(), Duration::from_secs(10));
        let mut limit = EventLimit::new(10, window);
        assert!(!limit.is_spent() && (0..10).all(|_| limit.admit(start).is_some()) && limit.is_spent());
        assert!((0..7).all(|_| limit.admit(start + window).is_none()));
        assert_eq!(limit.admit(start + window * 2), Some(7));
        assert!(!limit.is_spent());
    }
}
