//! Limits of disks and NICs, by name.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// One limit of a disk, of all disks of a domain, or of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct Limit {
    /// `iops`, `read_iops`, `write_iops`, `bytes`, `read_bytes` or `write_bytes`; of a NIC `receive_bits`,
    /// `receive_packets`, `transmit_bits` or `transmit_packets`.
    pub name: String,
    /// `RATE[:BURST[:SECONDS]]`, or `none`.
    pub rate: String,
}

/// The names of a disk's limits, which are those of all disks of a domain together, too.
pub const DISK_LIMITS: [&str; 6] = ["iops", "read_iops", "write_iops", "bytes", "read_bytes", "write_bytes"];

/// The names of a NIC's limits.
pub const NIC_LIMITS: [&str; 4] = ["receive_bits", "receive_packets", "transmit_bits", "transmit_packets"];
