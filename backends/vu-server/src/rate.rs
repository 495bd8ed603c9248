//! A rate limit with bursts, in pure arithmetic: times in, waiting times out.
//!
//! Each rate is kept by the virtual-scheduling form of a token bucket: `next` is the moment at which all that was let
//! through so far would be done at the rate, and a request may go while that is no more than a tolerance ahead of now.
//! The tolerance is what the bucket holds. A request larger than the bucket goes when the bucket is full, and what
//! comes after it waits the longer.
//!
//! ```text
//!   average: `per_second`, holds what a burst of `burst_seconds` is above the average, and 100 ms
//!   peak:    `burst`, holds 100 ms                                          (only where bursts are allowed)
//! ```

use shared_abi::control::Rate;

const SECOND: u128 = 1_000_000_000;

/// A share of a second that may always come at once: a driver works in batches.
const BURST_DIVISOR: u64 = 10;

/// A token bucket.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_second: u64,
    /// How far `next` may be ahead, in nanoseconds.
    tolerance: u64,
    /// In nanoseconds of the clock that [`Self::wait`] is asked by.
    next: u64,
}

impl Bucket {
    fn new(per_second: u64, holds: u64) -> Self {
        // A rate of nothing would never let anything through, and whoever asks for one means "almost nothing".
        let per_second = per_second.max(1);
        Self { per_second, tolerance: nanoseconds(holds, per_second), next: 0 }
    }

    fn wait(&self, now: u64) -> u64 {
        self.next.saturating_sub(now).saturating_sub(self.tolerance)
    }

    fn charge(&mut self, now: u64, amount: u64) {
        self.next = self.next.max(now).saturating_add(nanoseconds(amount, self.per_second));
    }
}

/// How long `amount` takes at a rate, rounded up.
fn nanoseconds(amount: u64, per_second: u64) -> u64 {
    let time = (u128::from(amount) * SECOND).div_ceil(per_second.into());
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// A rate with bursts.
#[derive(Debug, Clone, Copy)]
pub struct Limiter {
    average: Bucket,
    peak: Option<Bucket>,
}

impl Limiter {
    /// A limiter that has rested for long.
    pub fn new(rate: Rate) -> Self {
        let above = rate.burst.saturating_sub(rate.per_second);
        let burst = above.saturating_mul(rate.burst_seconds.into());
        let average = Bucket::new(rate.per_second, burst.saturating_add(rate.per_second / BURST_DIVISOR));
        let peak = (above > 0).then(|| Bucket::new(rate.burst, rate.burst / BURST_DIVISOR));
        Self { average, peak }
    }

    /// Nanoseconds until something may go: 0 if it may now.
    pub fn wait(&self, now: u64) -> u64 {
        self.average.wait(now).max(self.peak.map_or(0, |peak| peak.wait(now)))
    }

    /// Takes `amount` off: something of this size goes now.
    pub fn charge(&mut self, now: u64, amount: u64) {
        self.average.charge(now, amount);
        if let Some(peak) = &mut self.peak {
            peak.charge(now, amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets requests of these sizes go as early as they may, from `start` on; returns when each went.
    fn run(rate: Rate, start: u64, sizes: &[u64]) -> Vec<u64> {
        let (mut limiter, mut now) = (Limiter::new(rate), start);
        let mut went = Vec::new();
        for &size in sizes {
            now += limiter.wait(now);
            assert_eq!(limiter.wait(now), 0);
            limiter.charge(now, size);
            went.push(now);
        }
        went
    }

    #[test]
    fn a_burst_lasts_as_long_as_it_may_and_then_the_average_holds() {
        let rate = Rate { per_second: 100, burst: 1000, burst_seconds: 2 };
        let went = run(rate, 5_000_000_000, &[1; 4000]);
        let within = |from: u64, to: u64| {
            went.iter().filter(|&&at| (5 + from..5 + to).contains(&(at / 1_000_000_000))).count()
        };
        assert!((990..=1101).contains(&within(0, 1)), "{}", within(0, 1));
        assert!((890..=1010).contains(&within(1, 2)), "{}", within(1, 2));
        assert!((99..=101).contains(&within(3, 4)), "{}", within(3, 4));
    }

    #[test]
    fn one_in_a_second_is_one_in_a_second() {
        let went = run(Rate { per_second: 1, burst: 1, burst_seconds: 1 }, 0, &[1; 4]);
        assert_eq!(went, [0, 1_000_000_000, 2_000_000_000, 3_000_000_000]);
    }

    #[test]
    fn a_request_larger_than_the_bucket_goes_and_is_paid_for_afterwards() {
        let went = run(Rate { per_second: 1000, burst: 1000, burst_seconds: 1 }, 0, &[5000, 1, 1]);
        assert_eq!(went[0], 0);
        assert_eq!(went[1], 4_900_000_000);
    }

    proptest! {
        #[test]
        fn in_no_time_span_goes_more_than_rate_and_burst_allow(
            per_second in 1_u64..1 << 40,
            more in 0_u64..1 << 41,
            burst_seconds in 1_u32..100,
            start in 0_u64..1 << 60,
            sizes in proptest::collection::vec(1_u64..1 << 30, 1..60),
        ) {
            let rate = Rate { per_second, burst: per_second + more, burst_seconds };
            let went = run(rate, start, &sizes);
            for from in 0..sizes.len() {
                for to in from + 1..sizes.len() {
                    let time = u128::from(went[to] - went[from]);
                    // The last one is let go by what went before it.
                    let amount: u128 = sizes[from..to].iter().map(|&size| u128::from(size)).sum();
                    let at = |rate: u64| u128::from(rate) * time / SECOND;
                    let holds = u128::from(more) * u128::from(burst_seconds) + u128::from(per_second / BURST_DIVISOR);
                    // Each bucket's tolerance is rounded up by less than a nanosecond.
                    let round = |rate: u64| u128::from(rate) / SECOND + 1;
                    prop_assert!(amount <= at(per_second) + holds + round(per_second));
                    let holds = u128::from(rate.burst / BURST_DIVISOR);
                    prop_assert!(amount <= at(rate.burst) + holds + round(rate.burst));
                }
            }
        }

        #[test]
        fn whatever_the_numbers_nothing_overflows(
            per_second: u64, burst: u64, burst_seconds: u32, now: u64, amount: u64,
        ) {
            let mut limiter = Limiter::new(Rate { per_second, burst, burst_seconds });
            limiter.wait(now);
            limiter.charge(now, amount);
            limiter.charge(now, amount);
            limiter.wait(now);
        }
    }
}
