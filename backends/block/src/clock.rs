//! The time, in nanoseconds since some moment that is the same for all threads. Read once for a batch.

use nix::time::{ClockId, clock_gettime};

/// Now.
pub fn now() -> u64 {
    // The monotonic clock exists on every Linux, and is not negative.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
}
