//! Polls an empty ring for a moment before the worker sleeps, if polling was worth it recently ([`PollTime`]).

use domus_startup::time::monotonic as now;
use vu_server::{PollTime, Queue};

/// Looks at the ring between two looks at the clock.
const POLLS: u32 = 32;

/// One ring's.
#[derive(Debug, Default)]
pub struct RingPoll {
    poll_time: PollTime,
    /// When the ring was found empty, while it is.
    empty_since: Option<u64>,
}

impl RingPoll {
    /// Polls the empty ring, whose driver does not kick. True if the ring has a chain; otherwise the caller enables
    /// kicks.
    pub fn poll(&mut self, queue: &Queue) -> bool {
        let since = *self.empty_since.get_or_insert_with(now);
        let limit = self.poll_time.limit();
        while limit > 0 && now().saturating_sub(since) <= limit {
            for _ in 0..POLLS {
                if queue.has_available() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// The ring is not empty.
    #[inline]
    pub fn not_empty(&mut self) {
        if let Some(since) = self.empty_since.take() {
            self.poll_time.came(now().saturating_sub(since));
        }
    }
}
