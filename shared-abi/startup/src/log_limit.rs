//! A bound of the lines that somebody else can cause in a log.

use std::time::{Duration, Instant};

/// Lets a number of lines through in each window of time, and counts those that it drops.
#[derive(Debug)]
pub struct LogLimit {
    lines: u32,
    window: Duration,
    since: Option<Instant>,
    said: u32,
    dropped: u64,
}

impl LogLimit {
    /// So many lines in a window, which opens with its first line.
    pub const fn new(lines: u32, window: Duration) -> Self {
        Self { lines, window, since: None, said: 0, dropped: 0 }
    }

    /// None if a line must be dropped now, else how many were dropped before it.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) > self.window) {
            self.since = Some(now);
            self.said = 0;
        }
        if self.said == self.lines {
            self.dropped += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_line_in_ten_seconds_is_dropped_and_counted() {
        let (start, window) = (Instant::now(), Duration::from_secs(10));
        let mut limit = LogLimit::new(10, window);
        assert!((0..10).all(|_| limit.admit(start).is_some()));
        assert!((0..7).all(|_| limit.admit(start + window).is_none()));
        assert_eq!(limit.admit(start + window * 2), Some(7));
    }
}
