//! The host's memory and CPUs.

use std::fs;

use crate::value::place::{ConfigError, Place};
use crate::value::size::MemorySize;

/// The host's RAM in bytes (`MemTotal`), or 0 if it cannot be known.
pub fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0) * 1024
}

/// Number of CPUs that dom0 may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Refuses more memory than the host has.
///
/// # Errors
/// [`ConfigError`].
pub fn check(place: &Place<'_>, bytes: u64) -> Result<(), ConfigError> {
    let has = memory();
    if has != 0 && bytes > has {
        let (asked, has) = (MemorySize { mib: bytes >> 20 }, has >> 20);
        let problem = format!("{asked} is more than this host has: less than {has}MiB would do");
        return Err(place.refuse(problem));
    }
    Ok(())
}
