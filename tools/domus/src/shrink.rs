//! Disks that become shorter, as images and of domains.

use std::fmt::Display;

use shared_abi::size::DiskSize;

/// Why a disk is not made shorter unless that is said.
pub fn would_lose(disk: impl Display, before: u64, bytes: u64) -> String {
    format!(
        "{disk} has {}: to {} it would lose what is behind its new end; --shrink if that is meant",
        DiskSize(before),
        DiskSize(bytes)
    )
}
