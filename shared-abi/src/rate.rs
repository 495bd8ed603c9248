//! The grammar of a rate in configs and on command lines: `RATE[:BURST[:SECONDS]]`, such as `500` or
//! `100MiB:400MiB:10`.

use std::str::FromStr;

use crate::control::Rate;
use crate::size::amount;

/// Longest burst, in seconds.
const MAX_BURST_SECONDS: u32 = 3600;

/// The text is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "give RATE, RATE:BURST or RATE:BURST:SECONDS, BURST not below RATE, such as 1000:5000:10 or 50MiB, and SECONDS \
     not above {MAX_BURST_SECONDS}"
)]
pub struct RateError;

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let rate = || {
            let mut parts = text.split(':');
            let per_second = amount(parts.next()?).filter(|rate| *rate > 0)?;
            let burst = parts.next().map_or(Some(per_second), amount)?;
            let burst_seconds = parts.next().map_or(Some(1), |text| text.parse().ok())?;
            let sound = burst >= per_second
                && (1..=MAX_BURST_SECONDS).contains(&burst_seconds)
                && parts.next().is_none();
            // What a bucket holds must be a number.
            burst.checked_mul(u64::from(burst_seconds)).filter(|_| sound)?;
            Some(Self { per_second, burst, burst_seconds })
        };
        rate().ok_or(RateError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_may_have_units_a_burst_and_its_length() {
        let all = |per_second, burst, burst_seconds| Ok(Rate { per_second, burst, burst_seconds });
        assert_eq!("7".parse(), all(7, 7, 1));
        assert_eq!("7:9".parse(), all(7, 9, 1));
        assert_eq!("7:9:30".parse(), all(7, 9, 30));
        assert_eq!("1KiB:2GiB".parse(), all(1 << 10, 2 << 30, 1));
        assert_eq!("100M:1G:3600".parse(), all(100_000_000, 1_000_000_000, 3600));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for wrong in [
            "",
            "0",
            "x",
            "7:",
            "7:6",
            "7:9:0",
            "7:9:3601",
            "7:9:30:1",
            "-7",
            "7:9:4294967296",
            "1.5",
            "5MB",
            "none",
            "20000000000GiB",
            "16G:16000000000G:3600",
        ] {
            assert_eq!(wrong.parse::<Rate>(), Err(RateError), "{wrong}");
        }
    }
}
