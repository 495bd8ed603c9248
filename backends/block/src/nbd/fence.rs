//! Writes that a server may still be about, although their connection is lost.
//!
//! ```text
//!   connection 1:  write W to sector s ─▶ … lost, and a thread of the server still has W
//!   connection 2:  W again ─▶ answered     a newer write to s ─▶ waits until the server is done with the first W
//! ```
//!
//! W itself may be sent again at once: it stores the same bytes. What touches its sectors after that must not be
//! answered before the first W has come to its end, or W would store old data over it. The protocol has no way to ask:
//! a flush covers what is done, and not what another connection has begun. So a newer write to those sectors waits for
//! a time in which a server has finished or has failed what it was about.

use std::ops::Range;
use std::time::{Duration, Instant};

/// For so long after the loss of a connection a server may still be about its writes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The sectors of writes that are in doubt.
#[derive(Debug, Default)]
pub struct Fence {
    patience: Duration,
    doubts: Vec<(Range<u64>, Instant)>,
}

impl Fence {
    /// Nothing is in doubt; what is will be for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, doubts: Vec::new() }
    }

    /// The connection on which these bytes of the disk were to be changed was lost just now.
    pub fn doubt(&mut self, bytes: Range<u64>) {
        self.forget();
        let until = Instant::now() + self.patience;
        match self.doubts.iter_mut().find(|(known, _)| *known == bytes) {
            Some(doubt) => doubt.1 = until,
            None => self.doubts.push((bytes, until)),
        }
    }

    /// How long a change of these bytes has to wait; none if not at all.
    pub fn wait(&mut self, bytes: &Range<u64>) -> Option<Duration> {
        self.forget();
        let overlaps = |doubt: &Range<u64>| doubt.start < bytes.end && bytes.start < doubt.end;
        let until = self.doubts.iter().filter(|(doubt, _)| overlaps(doubt)).map(|(_, until)| *until).max()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn forget(&mut self) {
        let now = Instant::now();
        self.doubts.retain(|(_, until)| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_a_write_in_doubt_waits_and_nothing_else_does() {
        let mut fence = Fence::new(Duration::from_secs(10));
        fence.doubt(100..200);
        fence.doubt(100..200);
        assert_eq!(fence.doubts.len(), 1);
        for bytes in [0..100, 200..300] {
            assert_eq!(fence.wait(&bytes), None, "{bytes:?}");
        }
        for bytes in [0..101, 199..300, 120..130, 0..300] {
            assert!(fence.wait(&bytes).unwrap() > Duration::from_secs(5), "{bytes:?}");
        }
        let mut over = Fence::new(Duration::ZERO);
        over.doubt(100..200);
        assert_eq!(over.wait(&(100..200)), None);
    }
}
