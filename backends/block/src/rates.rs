//! Limits on a command line: `RATE[:BURST[:SECONDS]]`.

use shared_abi::control::{IoLimit, IoLimits, Rate};

/// What the disk may do. `#[command(flatten)]` it into the program's arguments.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Limits, as RATE[:BURST[:SECONDS]] per second")]
pub struct Rates {
    /// Requests.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    iops: Option<Rate>,
    /// Bytes.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bytes: Option<Rate>,
    /// Reads.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    read_iops: Option<Rate>,
    /// Bytes read.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    read_bytes: Option<Rate>,
    /// Writes, discards and write-zeroes.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    write_iops: Option<Rate>,
    /// Bytes of writes, discards and write-zeroes.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    write_bytes: Option<Rate>,
}

impl From<Rates> for IoLimits {
    fn from(rates: Rates) -> Self {
        Self {
            total: IoLimit { iops: rates.iops, bytes: rates.bytes },
            read: IoLimit { iops: rates.read_iops, bytes: rates.read_bytes },
            write: IoLimit { iops: rates.write_iops, bytes: rates.write_bytes },
        }
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    let mut parts = text.splitn(3, ':').map(str::parse::<u64>);
    let mut next = |default| parts.next().unwrap_or(Ok(default));
    let mut read = || {
        let per_second = next(0).ok()?;
        let burst = next(per_second).ok()?;
        let burst_seconds = u32::try_from(next(1).ok()?).ok()?;
        Some(Rate { per_second, burst, burst_seconds })
    };
    read()
        .filter(|rate| rate.per_second > 0 && rate.burst >= rate.per_second && rate.burst_seconds > 0)
        .ok_or_else(|| {
            "give RATE, RATE:BURST or RATE:BURST:SECONDS, BURST not below RATE, such as 1000:5000:10".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_may_have_a_burst_and_its_length() {
        let all = |per_second, burst, burst_seconds| Ok(Rate { per_second, burst, burst_seconds });
        assert_eq!(rate("7"), all(7, 7, 1));
        assert_eq!(rate("7:9"), all(7, 9, 1));
        assert_eq!(rate("7:9:30"), all(7, 9, 30));
        for wrong in ["", "0", "x", "7:", "7:6", "7:9:0", "7:9:30:1", "-7", "7:9:4294967296"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
