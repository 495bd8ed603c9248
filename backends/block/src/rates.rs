//! Limits on a command line, each written as [`shared_abi::rate`] says.

use shared_abi::control::{IoLimit, IoLimits, Rate};

/// What the disk may do. `#[command(flatten)]` it into the program's arguments.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Limits, as RATE[:BURST[:SECONDS]] per second")]
pub struct Rates {
    /// Requests.
    #[arg(long, value_name = "RATE")]
    iops: Option<Rate>,
    /// Bytes.
    #[arg(long, value_name = "RATE")]
    bytes: Option<Rate>,
    /// Reads.
    #[arg(long, value_name = "RATE")]
    read_iops: Option<Rate>,
    /// Bytes read.
    #[arg(long, value_name = "RATE")]
    read_bytes: Option<Rate>,
    /// Writes, discards and write-zeroes.
    #[arg(long, value_name = "RATE")]
    write_iops: Option<Rate>,
    /// Bytes of writes, discards and write-zeroes.
    #[arg(long, value_name = "RATE")]
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
